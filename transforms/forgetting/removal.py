"""Takes samples out of the lake for good: finds what they are, leaves tombstones, removes what shows them.

docs/forgetting.md says what goes, what stays, and what that does to the rates. Every step works on one file at a time, on
workers, finds what is left to do from the tombstones and from the rows that stay, and changes nothing where it was done: so a
run that was killed goes on. The order matters: tombstones come first, then what says which prompts are touched, then the rows
that say why.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.duplicates.job import PREPARED, keys_of
from transforms.duplicates.keep_list import write_keep_list
from transforms.forgetting.burial import Touching, touching
from transforms.forgetting.rows import among, any_among
from transforms.forgetting.workers import Workers
from transforms.kernels.fingerprints import Fingerprint, Needles
from transforms.results import nights
from transforms.results.database import DATABASE
from transforms.store.arrays import read_json, read_npz
from transforms.store.counters import count
from transforms.store.files import count_rows, delete, delete_all, exists, is_temporary, list_files, read_parquet, walk
from transforms.store.lake import Lake, Manifest, as_table, snapshot_of, table_of
from transforms.store.quotations import SaidByOthers, bytes_of, forgotten_texts, held
from transforms.store.schema import TABLES
from transforms.store.tombstones import FORGOTTEN, NO_TEXT, RETIRED, Tombstones, sha256, tombstone_rows
from transforms.training.runs import MEMBERS, WEIGHTS

Change = Callable[[pa.Table], pa.Table]
"""A part → what it should be. Pickles."""


def remove(workers: Workers) -> dict[str, int]:
    """Removes whatever has a tombstone from all tables and work files; returns table → rows that were changed."""
    lake = workers.lake
    removal = Removal(workers)
    _remove_leftovers(lake)
    _remove_searches(workers, removal.gone)
    _remove_finished_prompts(lake, removal.evidence.touched)
    # Its pictures were among the leftovers.
    _remove_unfinished(lake, "mitigate")
    changed: dict[str, int] = {}
    for rule, change in RULES.items():
        # What is made of others is named before those.
        tables = [table.name for table in reversed(TABLES.values()) if table.forgets.rule == rule]
        rows = change(removal, tables)
        changed |= {table: rows[table] for table in tables if rows.get(table)}
    _settle(lake, *sorted({table.stage for table in TABLES.values() if table.forgets.rule != "stays"}))
    return changed


def _settle(lake: Lake, *stages: str) -> None:
    """Has the manifests say what the parts are known by, and how many rows are left, in this run or in one that was killed."""
    # What lies over another snapshot counts that one's rows, and was made after it.
    for manifest in (one for stage in stages for one in lake.manifests(stage)):
        lake.settle(manifest)


class Removal:
    """One request to forget: what has a tombstone, and what each rule does to the tables that have it.

    Attributes:
        gone: the samples.
        evidence: what there is of them in prompts and matches.
    """

    def __init__(self, workers: Workers):
        self.workers, self.lake = workers, workers.lake
        self.tombstones = Tombstones.read(self.lake)
        self.gone = set(self.tombstones.samples)
        self.evidence = Evidence.of(workers, self.gone)

    def _rewrite(self, changes: dict[str, Change], sample_ids: set[str] | None = None) -> dict[str, int]:
        """Has the parts of these tables rewritten; returns path → rows that differ or are gone. Arguments: of ``Rewrite``."""
        paths = [path for table in changes for path in self.lake.every_part(table)]
        return dict(self.workers.each(paths, Rewrite(self.lake, changes, sample_ids)))

    def prompts(self, tables: list[str]) -> dict[str, int]:
        """Takes forgotten captions out, marks what is touched, and parts prompts from groups that lost their image."""
        captions, quotes = _lone_texts(self.workers, self.tombstones, self.evidence)
        change = ChangePrompts(captions, quotes, self.evidence.touched, self.evidence.without_group)
        return _by_table(self._rewrite(dict.fromkeys(tables, change)))

    def pictures(self, tables: list[str]) -> dict[str, int]:
        """Removes pictures, thumbnails and vectors, whichever a table has: of touched prompts, and what is a forgotten
        one's.
        """
        pictures = {(row["length"], row["sha256"]) for row in tombstone_rows(self.lake, ("picture", "generation"))}
        thumbnails = {row["sha256"] for row in tombstone_rows(self.lake, ("thumbnail",))}
        return _by_table(self._rewrite(dict.fromkeys(tables, RemovePictures(self.evidence.touched, pictures, thumbnails))))

    def rows(self, tables: list[str]) -> dict[str, int]:
        """Removes the rows of forgotten samples."""
        return _by_table(self._rewrite(dict.fromkeys(tables, self.tombstones.spared), self.gone))

    def cells(self, tables: list[str]) -> dict[str, int]:
        """Empties cells in the rows of forgotten samples, which say so where the table has a status."""
        reasons = self.tombstones.samples
        changes: dict[str, Change] = {table: EmptyCells(reasons, TABLES[table].forgets.cells) for table in tables}
        return _by_table(self._rewrite(changes, self.gone))

    def trained(self, tables: list[str]) -> dict[str, int]:
        """Removes the models that were trained on forgotten samples, and what they made: any of it may show them."""
        lake = self.lake
        runs = set(self.workers.each(lake.every_part("model_members"), RunsThatSaw(self.gone)))
        kept = [file.path for file in walk(lake.path(WEIGHTS)) if file.path.endswith(f"/{MEMBERS}")]
        runs |= {path.split("/")[-2] for path in kept if any(row["sample_id"] in self.gone for row in read_json(path))}
        # What says who was in it goes last.
        _delete(lake, lambda parts: parts[0] == WEIGHTS and parts[1] in runs and parts[-1] != MEMBERS)
        models = set(self.workers.each(lake.every_part("models"), ModelsOf(runs)))
        changes: dict[str, Change] = {
            table: EmptyMade("run_id" if table == "models" else "model_id", runs if table == "models" else models,
                             TABLES[table].forgets.cells)
            for table in tables
        }  # fmt: skip
        changed = _by_table(self._rewrite(changes)) if runs else {}
        for run in sorted(runs):
            delete(lake.path(WEIGHTS, run))
        return changed

    def keep_list(self, tables: list[str]) -> dict[str, int]:
        """Makes the lists again that named a forgotten image, or that were being made again, from the members that are left."""
        changed = self._rewrite(dict.fromkeys(tables, self.tombstones.spared), self.gone)
        return dict.fromkeys(tables, _keep_others(self.lake, {snapshot_of(path) for path in changed}))


RULES: dict[str, Callable[[Removal, list[str]], dict[str, int]]] = {
    # First: from then on prompts say themselves that they are touched.
    "prompts": Removal.prompts,
    "pictures": Removal.pictures,
    "rows": Removal.rows,
    "cells": Removal.cells,
    "trained": Removal.trained,
    # Last: it goes by what the others have left.
    "keep_list": Removal.keep_list,
}
"""``Forgets.rule`` → what is done to the tables that have it, in the order in which it is done; table → rows that changed."""


# -- one part ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """A part of a table → (path, number of rows that differ or are gone), if any; it is written again then.

    Attributes:
        lake: whose.
        changes: table → what becomes of a part of it.
        sample_ids: parts that name none of them are left alone without a look at the rest; None for a look at all.
    """

    lake: Lake
    changes: dict[str, Change]
    sample_ids: set[str] | None = None

    def __call__(self, path: str) -> Iterator[tuple[str, int]]:
        if self.sample_ids is None or any_among(path, "sample_id", self.sample_ids):
            table = table_of(path)
            before = as_table(table, read_parquet(path))
            after = self.changes[table](before)
            if not after.equals(before):
                changed = _differing(before, after)
                self.lake.rewrite(path, after)
                count("rows changed", changed)
                yield path, changed


def _differing(before: pa.Table, after: pa.Table) -> int:
    if before.num_rows != after.num_rows:
        return before.num_rows - after.num_rows
    return sum(not before.slice(row, 1).equals(after.slice(row, 1)) for row in range(before.num_rows))


def _by_table(changed: dict[str, int]) -> dict[str, int]:
    """Path → rows as table → rows."""
    rows: collections.Counter[str] = collections.Counter()
    for path, number in changed.items():
        rows[table_of(path)] += number
    return rows


def _with(table: pa.Table, hit: pa.ChunkedArray | pa.Array, **cells: Any) -> pa.Table:
    """``table`` with these cells in the rows that are hit."""
    for name, value in cells.items():
        field = table.schema.field(name)
        column = pc.if_else(hit, pa.scalar(value, field.type), table[name])
        table = table.set_column(table.schema.get_field_index(name), field, column)
    return table


@dataclasses.dataclass(frozen=True)
class ChangePrompts:
    """What becomes of ``prompts``.

    Attributes:
        captions: SHA-256 of the texts that go.
        quotes: what must not stand among other words.
        touched: (audit_id, prompt_id) of those that move to the stratum of what was forgotten.
        without_group: likewise of those that nothing more is said of with their own image.
    """

    captions: set[str]
    quotes: list[Fingerprint]
    touched: set[tuple[str, str]]
    without_group: set[tuple[str, str]]

    def __call__(self, part: pa.Table) -> pa.Table:
        quoting = {place for place, _ in held(bytes_of(part["text"]), Needles(self.quotes))}
        rows = part.to_pylist()
        for number, row in enumerate(rows):
            key = row["audit_id"], row["prompt_id"]
            if number in quoting or sha256(row["text"].strip()) in self.captions:
                row["text"] = NO_TEXT
            if key in self.touched:
                row.update(stratum=FORGOTTEN, stratum_order=-2)
            if key in self.without_group:
                row.update(group_id=None, n_duplicates=None)
        return pa.Table.from_pylist(rows, schema=part.schema)


@dataclasses.dataclass(frozen=True)
class RemovePictures:
    """What becomes of tables with pictures, thumbnails or vectors of generations.

    Attributes:
        touched: (audit_id, prompt_id) of the prompts that lose theirs.
        pictures: length and SHA-256 of those that go wherever they are.
        thumbnails: SHA-256, likewise.
    """

    touched: set[tuple[str, str]]
    pictures: set[tuple[int, str]]
    thumbnails: set[str]

    def __call__(self, part: pa.Table) -> pa.Table:
        prompts = zip(part["audit_id"].to_pylist(), part["prompt_id"].to_pylist(), strict=True)
        touched = [prompt in self.touched for prompt in prompts]
        if "vector" in part.column_names:
            return _with(part, pa.array(touched, pa.bool_()), vector=None)
        lengths = {length for length, _ in self.pictures}
        hit = [
            image.is_valid and (ours or self._is_forgotten(image.as_buffer(), lengths))
            for ours, image in zip(touched, part["image"], strict=True)
        ]
        reason = "the picture was removed: it may give back what was forgotten"
        part = _with(part, pa.array(hit, pa.bool_()), image=None, reason=reason)
        if "thumbnail" not in part.column_names:
            return part
        hit = [
            tiny.is_valid and (ours or sha256(tiny.as_buffer()) in self.thumbnails)
            for ours, tiny in zip(touched, part["thumbnail"], strict=True)
        ]
        return _with(part, pa.array(hit, pa.bool_()), thumbnail=None)

    def _is_forgotten(self, picture: pa.Buffer, lengths: set[int]) -> bool:
        return len(picture) in lengths and (len(picture), sha256(picture)) in self.pictures


@dataclasses.dataclass(frozen=True)
class EmptyCells:
    """What becomes of the rows of some samples (``reasons``: sample_id → why): these cells are null, and they say so."""

    reasons: dict[str, str]
    cells: tuple[str, ...]

    def __call__(self, part: pa.Table) -> pa.Table:
        hit = among(part["sample_id"], self.reasons)
        part = _with(part, hit, **dict.fromkeys(self.cells))
        if "status" not in part.column_names:
            return part
        part = _with(part, hit, status=FORGOTTEN)
        reasons = [self.reasons.get(sample) for sample in part["sample_id"].to_pylist()]
        column = pc.if_else(hit, pa.array(reasons, pa.string()), part["reason"])
        return part.set_column(part.schema.get_field_index("reason"), part.schema.field("reason"), column)


@dataclasses.dataclass(frozen=True)
class RunsThatSaw:
    """A part of ``model_members`` → the trainings in it that were given one of these samples."""

    gone: set[str]

    def __call__(self, path: str) -> Iterator[str]:
        if any_among(path, "sample_id", self.gone):
            part = read_parquet(path, ["run_id", "sample_id"])
            yield from sorted(set(part.filter(among(part["sample_id"], self.gone))["run_id"].to_pylist()))


@dataclasses.dataclass(frozen=True)
class ModelsOf:
    """A part of ``models`` → the models in it that come of these trainings."""

    runs: set[str]

    def __call__(self, path: str) -> Iterator[str]:
        part = read_parquet(path, ["run_id", "model_id"])
        yield from part.filter(among(part["run_id"], self.runs))["model_id"].to_pylist()


@dataclasses.dataclass(frozen=True)
class EmptyMade:
    """What becomes of the rows of models that are gone: these cells are null, and they say so.

    Attributes:
        column: that names the training, or the model.
        which: those that are gone.
        cells: what is emptied.
    """

    column: str
    which: set[str]
    cells: tuple[str, ...]

    def __call__(self, part: pa.Table) -> pa.Table:
        hit = among(part[self.column], self.which)
        reason = "the model was trained on what was forgotten since, and is removed"
        return _with(part, hit, **dict.fromkeys(self.cells), status=FORGOTTEN, reason=reason)


# -- prompts -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What prompts and matches say of forgotten samples, before they change.

    Attributes:
        touched: (audit_id, prompt_id) of the prompts that they have a part in: ``touched_prompts``.
        without_group: likewise of those that are about to lose a match with their own image.
        captions: SHA-256 of the prompts that stand for them.
        quoted: SHA-256 of the forgotten texts that a prompt holds.
    """

    touched: set[tuple[str, str]]
    without_group: set[tuple[str, str]]
    captions: set[str]
    quoted: set[str]

    @classmethod
    def of(cls, workers: Workers, gone: set[str]) -> Evidence:
        lake = workers.lake
        found: dict[str, set[Any]] = {field.name: set() for field in dataclasses.fields(cls)}
        parts = [*lake.every_part("prompts"), *lake.every_part("matches")]
        work = GatherEvidence(touching(workers, gone), gone, forgotten_texts(lake))
        for name, *values in workers.each(parts, work):
            found[name].add(tuple(values) if len(values) > 1 else values[0])
        return cls(**found)


@dataclasses.dataclass(frozen=True)
class GatherEvidence:
    """A part of ``prompts`` or ``matches`` → what ``Evidence`` has of it: the attribute's name, and what is in it."""

    touching: Touching
    gone: set[str]
    forgotten: list[Fingerprint]

    def __call__(self, path: str) -> Iterator[tuple[str, ...]]:
        for prompt in self.touching(path):
            yield "touched", *prompt
        if table_of(path) == "matches":
            own = pc.field("relation") == "own"
            for row in read_parquet(path, ["audit_id", "prompt_id", "sample_id", "relation"]).filter(own).to_pylist():
                if row["sample_id"] in self.gone:
                    yield "without_group", row["audit_id"], row["prompt_id"]
            return
        part = read_parquet(path, ["sample_id", "text"])
        for text in part.filter(among(part["sample_id"], self.gone))["text"].to_pylist():
            yield "captions", sha256(text.strip())
        for quoted in sorted({find.sha256 for _, find in held(bytes_of(part["text"]), Needles(self.forgotten))}):
            yield "quoted", quoted


def _lone_texts(workers: Workers, tombstones: Tombstones, evidence: Evidence) -> tuple[set[str], list[Fingerprint]]:
    """SHA-256 of the captions that go, and what must not be quoted: those that no remaining sample has."""
    lake = workers.lake
    captions = evidence.captions | {row["sha256"] for row in tombstone_rows(lake, ("caption",))}
    quoted = [one for one in set(forgotten_texts(lake)) if one.sha256 in evidence.quoted]
    parts = lake.every_part("samples") if captions or quoted else ()
    others = {(how, one) for how, one in workers.each(parts, SaidByOthers(tombstones, captions, quoted))}
    captions -= {one for how, one in others if how == "caption"}
    return captions, [one for one in quoted if ("inside", one.sha256) not in others]


# -- what is made of others, and retention -----------------------------------------------------------------------------


def remove_what_is_made(lake: Lake) -> None:
    """Removes marts, database and reports, with the manifests that say they are there: they are to be made again."""
    # First of all: what they name is about to go.
    _delete(lake, lambda parts: parts[0] == "manifests" and parts[1] in ("measure", "compare"))

    def made(parts: list[str]) -> bool:
        mart = len(parts) > 2 and parts[1].startswith("snapshot_id=") and parts[0] not in TABLES
        # What a killed client wrote to the database lies in a file beside it.
        return mart or parts[0] in ("reports", "report.html", "sweep.html", DATABASE, f"{DATABASE}.wal")

    _delete(lake, made)


def measured_matches(lake: Lake) -> list[Manifest]:
    """The matches whose marts are wanted: of each audit those that count, and those of the nights. The latest is the last."""
    by_time = sorted(lake.manifests("match"), key=lambda manifest: manifest.last_asked)
    newest = {manifest.upstream["generate"]: manifest.snapshot_id for manifest in by_time}
    of_nights = {row[name] for row in nights.history(lake) for name in ("panel_match", "rotating_match")}
    return [manifest for manifest in by_time if manifest.snapshot_id in {*newest.values(), *of_nights}]


MADE = {"generate": "generations", "extract": "untargeted_generations", "inpaint": "inpaintings"}
"""Stage → its table with pictures that a model made."""


def retire(workers: Workers, days: int, now: datetime.datetime) -> int:
    """Removes the pictures of generations that were made more than ``days`` ago; returns how many.

    They are as old as the manifest of the stage that made them; an audit's as that of ``generate``, whether and whenever it was
    matched. Of a stage that isn't complete each work file goes by its own age, and is made again when the stage goes on.
    """
    lake, oldest = workers.lake, now - datetime.timedelta(days=days)
    every = (one for stage in MADE for one in lake.manifests(stage))
    made = [one for one in every if datetime.datetime.fromisoformat(one.finished_at) < oldest]
    old = {manifest.snapshot_id for manifest in made}
    paths = [path for manifest in made for path in lake.parts(MADE[manifest.stage], manifest.snapshot_id)]
    for matched in lake.manifests("match"):
        if matched.upstream["generate"] in old:
            paths += lake.parts("regenerations", matched.snapshot_id)
    removed = sum(workers.each(paths, RetirePictures(lake, f"{RETIRED} {days} days")))
    _settle(lake, *MADE, "match")
    work = (file for stage in MADE for file in walk(lake.path("work", stage)))
    left = [file.path for file in work if file.modified < oldest.timestamp()]
    removed += sum(workers.each([path for path in left if path.endswith(".parquet")], remove_file_of_pictures))
    for stage in MADE:
        _remove_unfinished(lake, stage)
    return removed


@dataclasses.dataclass(frozen=True)
class RetirePictures:
    """A part of a table with pictures that a model made → how many it had; they and all thumbnails go, and say why."""

    lake: Lake
    reason: str

    def __call__(self, path: str) -> Iterator[int]:
        yield _count_pictures(path)
        yield from (0 for _ in Rewrite(self.lake, {table_of(path): self._without_pictures})(path))

    def _without_pictures(self, part: pa.Table) -> pa.Table:
        part = _with(part, pc.is_valid(part["image"]), image=None, reason=self.reason)
        everywhere = pa.array([True] * part.num_rows, pa.bool_())
        return _with(part, everywhere, thumbnail=None) if "thumbnail" in part.column_names else part


def remove_file_of_pictures(path: str) -> Iterator[int]:
    """A finished prompt's file, which goes → how many pictures it had."""
    yield _count_pictures(path)
    delete(path)


def _count_pictures(path: str) -> int:
    pictures = read_parquet(path, ["image"])["image"]
    return len(pictures) - pictures.null_count


def _keep_others(lake: Lake, lost: set[str]) -> int:
    """Makes those keep lists again that lost rows, in this run (``lost``: their snapshots) or in one that was killed, from the
    members that are left; returns how many.
    """
    made = 0
    for manifest in lake.manifests("deduplicate"):
        parts = lake.parts("keep_list", manifest.snapshot_id)
        embed = lake.manifest("embed", manifest.upstream["embed"])
        # Until it is made again it has too few rows.
        whole = sum(map(count_rows, parts)) == manifest.rows["keep_list"]
        if embed is None or (whole and manifest.snapshot_id not in lost):
            continue
        for path in parts[1:]:  # rows move from part to part
            lake.remove(path)
        write_keep_list(lake, embed.upstream["ingest"], manifest.snapshot_id, manifest.parameters["keep_one"])
        made += 1
    return made


# -- files that are no tables ------------------------------------------------------------------------------------------


def _delete(lake: Lake, chosen: Callable[[list[str]], bool]) -> None:
    """Deletes the files that are chosen by their path inside the lake."""
    paths = [path for path in lake.files() if chosen(lake.inside(path).split("/"))]
    delete_all(paths)


MADE_AGAIN = ("ingest", "match", "mitigate", "index", "pictures", "train", "extract", "inpaint")
"""Folders of ``work/`` whose files may show anything, and which whoever needs them makes again."""


def _remove_leftovers(lake: Lake) -> None:
    """Files that a killed writer left under another name, work files that are made again, and pictures without their rows."""
    complete = {manifest.snapshot_id for manifest in lake.manifests("ingest")}
    written = {lake.inside(path).split("/", 1)[1] for path in lake.every_part("samples")}

    def leftover(parts: list[str]) -> bool:
        if is_temporary(parts[-1]) or (parts[0] == "work" and parts[1] in MADE_AGAIN):
            return True
        # Nobody knows yet whose pictures these are; an ingest that goes on downloads them again.
        orphan = parts[0] == "images" and "/".join(parts[1:]) not in written
        return orphan and parts[1].removeprefix("snapshot_id=") not in complete

    _delete(lake, leftover)


def _remove_searches(workers: Workers, gone: set[str]) -> None:
    """Searches for duplicates that aren't complete, and the work files of those that know a forgotten vector.

    A vector is found by its key alone. So keys go last, when what they tell of is gone; and a search of which some part is gone
    (a run was killed), or that has no keys, may know anything.
    """
    lake = workers.lake
    stored = {
        manifest.snapshot_id: list_files(lake.work("deduplicate", manifest.snapshot_id, "keys"), ".npz")
        for manifest in lake.manifests("deduplicate")
    }
    innocent = {one for one, keys in stored.items() if keys and exists(lake.work("deduplicate", one, PREPARED))}
    for path in workers.each([path for one in sorted(innocent) for path in stored[one]], KnowsKeys(keys_of(gone))):
        innocent.discard(lake.inside(path).split("/")[2])

    def guilty(parts: list[str]) -> bool:
        return parts[:2] == ["work", "deduplicate"] and parts[2] not in innocent

    # The mark that a search is whole goes first.
    _delete(lake, lambda parts: guilty(parts) and parts[3:] == [PREPARED])
    _delete(lake, lambda parts: guilty(parts) and parts[3:4] != ["keys"])
    _delete(lake, guilty)
    _remove_unfinished(lake, "deduplicate")


@dataclasses.dataclass(frozen=True)
class KnowsKeys:
    """A file of a search's keys → its path, if one of ``keys`` is among them."""

    keys: np.ndarray

    def __call__(self, path: str) -> Iterator[str]:
        if np.isin(read_npz(path)["key"], self.keys).any():
            yield path


def _remove_finished_prompts(lake: Lake, touched: set[tuple[str, str]]) -> None:
    """What a generate that isn't complete has of touched prompts, and its tables: it draws its prompts again."""
    complete = {manifest.snapshot_id for manifest in lake.manifests("generate")}

    def finished(parts: list[str]) -> bool:
        if parts[:2] != ["work", "generate"]:
            return False
        return parts[2] in complete or (parts[2], parts[-1].removesuffix(".parquet")) in touched

    _delete(lake, finished)
    _remove_unfinished(lake, "generate")


def _remove_unfinished(lake: Lake, stage: str) -> None:
    """The tables of a stage's snapshots that aren't complete: they are made again from its work files."""
    complete = {manifest.snapshot_id for manifest in lake.manifests(stage)}
    tables = {table.name for table in TABLES.values() if table.stage == stage}
    _delete(lake, lambda parts: parts[0] in tables and parts[1].removeprefix("snapshot_id=") not in complete)
