"""Takes samples out of the lake for good: finds what they are, leaves tombstones, removes what shows them.

docs/forgetting.md says what goes, what stays, and what that does to the rates. Every step works on one file at a time, finds
what is left to do from the tombstones and from the rows that stay, and changes nothing where it was done: so a run that was
killed goes on. The order matters: tombstones come first, then what says which prompts are touched, then the rows that say why.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.duplicates.job import keys_of
from transforms.duplicates.keep_list import write_keep_list
from transforms.forgetting.burial import touched_prompts
from transforms.forgetting.rows import among, any_among, rows_of
from transforms.results import nights
from transforms.results.database import DATABASE
from transforms.store.arrays import read_npz
from transforms.store.files import count_rows, delete, delete_all, is_temporary, list_files, read_parquet, walk, write_parquet
from transforms.store.lake import Lake, Manifest, as_table
from transforms.store.quotations import quotations
from transforms.store.schema import TABLES, Table
from transforms.store.tombstones import FORGOTTEN, NO_TEXT, RETIRED, Tombstones, sha256, tombstone_rows


def remove(lake: Lake) -> dict[str, int]:
    """Removes whatever has a tombstone from all tables and work files; returns table → rows that were changed."""
    removal = Removal(lake)
    _remove_leftovers(lake)
    _remove_searches(lake, removal.gone)
    _remove_finished_prompts(lake, removal.touched)
    changed: dict[str, int] = {}
    for rule, change in RULES.items():
        # What is made of others comes before those.
        for table in reversed(TABLES.values()):
            if table.forgets.rule == rule:
                changed[table.name] = change(removal, table)
    for stage in {table.stage for table in TABLES.values() if table.forgets.rule in ("rows", "keep_list")}:
        for manifest in lake.manifests(stage):
            lake.recount(manifest)
    return {table: rows for table, rows in changed.items() if rows}


class Removal:
    """One request to forget: what has a tombstone, and what each rule does to a table.

    Attributes:
        gone: the samples.
        touched: (audit_id, prompt_id) of the prompts that they have a part in.
    """

    def __init__(self, lake: Lake):
        self.lake, self.tombstones = lake, Tombstones.read(lake)
        self.gone = set(self.tombstones.samples)
        self.touched = touched_prompts(lake, self.gone)
        pictures = list(tombstone_rows(lake, ("picture", "generation")))
        self._pictures = {row["sha256"] for row in pictures}
        self._lengths = {row["length"] for row in pictures}
        self._thumbnails = {row["sha256"] for row in tombstone_rows(lake, ("thumbnail",))}

    def prompts(self, table: Table) -> int:
        """Takes forgotten captions out, marks what is touched, and parts prompts from groups that lost their image."""
        captions, without_group = _lone_captions(self.lake, self.gone), _without_own_match(self.lake, self.gone)
        texts = (read_parquet(path, ["text"])["text"].to_pylist() for path in self.lake.every_part(table.name))
        quotes = quotations(self.lake, self.tombstones, texts)

        def change(part: pa.Table) -> pa.Table:
            rows = part.to_pylist()
            for row in rows:
                key = row["audit_id"], row["prompt_id"]
                if sha256(row["text"].strip()) in captions or any(quote in row["text"] for quote in quotes):
                    row["text"] = NO_TEXT
                if key in self.touched:
                    row.update(stratum=FORGOTTEN, stratum_order=-2)
                if key in without_group:
                    row.update(group_id=None, n_duplicates=None)
            return pa.Table.from_pylist(rows, schema=table.schema)

        return _rewrite(self.lake, table.name, change)

    def pictures(self, table: Table) -> int:
        """Removes pictures, thumbnails and vectors, whichever a table has: of touched prompts, and what is a forgotten
        one's.
        """

        def change(part: pa.Table) -> pa.Table:
            prompts = list(zip(part["audit_id"].to_pylist(), part["prompt_id"].to_pylist(), strict=True))
            touched = [prompt in self.touched for prompt in prompts]
            if "vector" in part.column_names:
                return _with(part, pa.array(touched, pa.bool_()), vector=None)
            hit = [
                image.is_valid and (ours or self._is_forgotten(image.as_buffer()))
                for ours, image in zip(touched, part["image"], strict=True)
            ]
            reason = "the picture was removed: it may give back what was forgotten"
            part = _with(part, pa.array(hit, pa.bool_()), image=None, reason=reason)
            if "thumbnail" not in part.column_names:
                return part
            hit = [
                tiny.is_valid and (ours or sha256(tiny.as_buffer()) in self._thumbnails)
                for ours, tiny in zip(touched, part["thumbnail"], strict=True)
            ]
            return _with(part, pa.array(hit, pa.bool_()), thumbnail=None)

        return _rewrite(self.lake, table.name, change)

    def _is_forgotten(self, picture: pa.Buffer) -> bool:
        return len(picture) in self._lengths and sha256(picture) in self._pictures

    def rows(self, table: Table) -> int:
        """Removes the rows of forgotten samples."""
        return _rewrite(self.lake, table.name, self.tombstones.spared, self.gone)

    def cells(self, table: Table) -> int:
        """Empties cells in the rows of forgotten samples, which say so where the table has a status."""

        def change(part: pa.Table) -> pa.Table:
            hit = among(part["sample_id"], self.gone)
            part = _with(part, hit, **dict.fromkeys(table.forgets.cells))
            if "status" not in part.column_names:
                return part
            part = _with(part, hit, status=FORGOTTEN)
            reasons = [self.tombstones.samples.get(sample) for sample in part["sample_id"].to_pylist()]
            column = pc.if_else(hit, pa.array(reasons, pa.string()), part["reason"])
            return part.set_column(part.schema.get_field_index("reason"), part.schema.field("reason"), column)

        return _rewrite(self.lake, table.name, change, self.gone)

    def keep_list(self, table: Table) -> int:
        """Makes the list again from the members that are left."""
        return _keep_others(self.lake, self.tombstones, self.gone)


RULES: dict[str, Callable[[Removal, Table], int]] = {
    # First: from then on prompts say themselves that they are touched.
    "prompts": Removal.prompts,
    "pictures": Removal.pictures,
    "rows": Removal.rows,
    "cells": Removal.cells,
    # Last: it goes by what the others have left.
    "keep_list": Removal.keep_list,
}
"""``Forgets.rule`` → what is done to a table, in the order in which it is done."""


def remove_what_is_made(lake: Lake) -> None:
    """Removes marts, database and reports, with the manifests that say they are there: they are to be made again."""

    def made(parts: list[str]) -> bool:
        mart = len(parts) > 2 and parts[1].startswith("snapshot_id=") and parts[0] not in TABLES
        # What a killed client wrote to the database lies in a file beside it.
        return (
            mart or parts[0] in ("reports", "report.html", DATABASE, f"{DATABASE}.wal") or parts[:2] == ["manifests", "measure"]
        )

    _delete(lake, made)


def measured_matches(lake: Lake) -> list[Manifest]:
    """The matches whose marts are wanted: of each audit those that count, and those of the nights. The latest is the last."""
    by_time = sorted(lake.manifests("match"), key=lambda manifest: manifest.last_asked)
    newest = {manifest.upstream["generate"]: manifest.snapshot_id for manifest in by_time}
    of_nights = {row[name] for row in nights.history(lake) for name in ("panel_match", "rotating_match")}
    return [manifest for manifest in by_time if manifest.snapshot_id in {*newest.values(), *of_nights}]


def retire(lake: Lake, days: int, now: datetime.datetime) -> int:
    """Removes the pictures of generations that were made more than ``days`` ago; returns how many.

    An audit's are as old as its manifest of ``generate``, whether and whenever it was matched. Of one that isn't complete each
    finished prompt goes by the age of its file, and is tried again by a generate that goes on.
    """
    oldest = now - datetime.timedelta(days=days)
    removed = 0

    def without_pictures(table: pa.Table) -> pa.Table:
        return _with(table, pc.is_valid(table["image"]), image=None, reason=f"{RETIRED} {days} days")

    def generations(table: pa.Table) -> pa.Table:
        return _with(without_pictures(table), pa.array([True] * table.num_rows), thumbnail=None)

    old = set()
    for manifest in lake.manifests("generate"):
        if datetime.datetime.fromisoformat(manifest.finished_at) < oldest:
            old.add(manifest.snapshot_id)
            removed += _count_pictures(lake, "generations", manifest.snapshot_id)
            _rewrite(lake, "generations", generations, snapshot=manifest.snapshot_id)
    for matched in lake.manifests("match"):
        if matched.upstream["generate"] in old:
            removed += _rewrite(lake, "regenerations", without_pictures, snapshot=matched.snapshot_id)
    for file in walk(lake.path("work", "generate")):
        if file.path.endswith(".parquet") and file.modified < oldest.timestamp():
            pictures = read_parquet(file.path, ["image"])["image"]
            removed += len(pictures) - pictures.null_count
            delete(file.path)
    _remove_unfinished(lake, "generate")
    return removed


def _count_pictures(lake: Lake, table: str, snapshot: str) -> int:
    tables = [read_parquet(path, ["image"]) for path in lake.parts(table, snapshot)]
    return sum(table.num_rows - table["image"].null_count for table in tables)


def _rewrite(
    lake: Lake,
    table: str,
    change: Callable[[pa.Table], pa.Table],
    sample_ids: set[str] | None = None,
    snapshot: str | None = None,
) -> int:
    """Writes the parts again that ``change`` changes; returns the number of rows that differ or are gone.

    Args:
        lake, table: whose parts, of all snapshots or of one.
        change: a part → what it should be.
        sample_ids: parts that name none of them are left alone without a look at the rest.
        snapshot: of these parts; None for all.
    """
    changed = 0
    for path in lake.every_part(table) if snapshot is None else lake.parts(table, snapshot):
        if sample_ids is None or any_among(path, "sample_id", sample_ids):
            before = as_table(table, read_parquet(path))
            after = change(before)
            if not after.equals(before):
                changed += _differing(before, after)
                write_parquet(path, as_table(table, after))
    return changed


def _differing(before: pa.Table, after: pa.Table) -> int:
    if before.num_rows != after.num_rows:
        return before.num_rows - after.num_rows
    return sum(not before.slice(row, 1).equals(after.slice(row, 1)) for row in range(before.num_rows))


def _with(table: pa.Table, hit: pa.ChunkedArray | pa.Array, **cells: Any) -> pa.Table:
    """``table`` with these cells in the rows that are hit."""
    for name, value in cells.items():
        field = table.schema.field(name)
        column = pc.if_else(hit, pa.scalar(value, field.type), table[name])
        table = table.set_column(table.schema.get_field_index(name), field, column)
    return table


def _lone_captions(lake: Lake, gone: set[str]) -> set[str]:
    """SHA-256 of the forgotten captions, and of the prompts that stand for forgotten samples, that no remaining one has."""
    captions = {row["sha256"] for row in tombstone_rows(lake, ("caption",))}
    captions |= {sha256(row["text"].strip()) for row in rows_of(lake, "prompts", gone, ["text"])}
    for path in lake.every_part("samples") if captions else ():
        table = read_parquet(path, ["sample_id", "caption"])
        for caption in table.filter(pc.invert(among(table["sample_id"], gone)))["caption"].to_pylist():
            if caption is not None:
                captions -= {sha256(caption), sha256(caption.strip())}
    return captions


def _without_own_match(lake: Lake, gone: set[str]) -> set[tuple[str, str]]:
    """(audit_id, prompt_id) of the prompts that are about to lose a match with their own image."""
    found = set()
    for row in rows_of(lake, "matches", gone, ["audit_id", "prompt_id", "relation"]):
        if row["relation"] == "own":
            found.add((row["audit_id"], row["prompt_id"]))
    return found


def _keep_others(lake: Lake, tombstones: Tombstones, gone: set[str]) -> int:
    """Makes the keep lists again that name a forgotten image, or that were being made again, from the members that are left."""
    changed = 0
    for manifest in lake.manifests("deduplicate"):
        parts = lake.parts("keep_list", manifest.snapshot_id)
        naming = [path for path in parts if any_among(path, "sample_id", gone)]
        embed = lake.manifest("embed", manifest.upstream["embed"])
        whole = sum(map(count_rows, parts)) == manifest.rows["keep_list"]
        if embed is None or (whole and not naming):
            continue
        # Rows move from part to part. While it is made it has too few, or names a forgotten image: a killed run sees either.
        if rest := [path for path in parts if path not in naming[:1]]:
            delete_all(rest)
        write_keep_list(lake, embed.upstream["ingest"], manifest.snapshot_id, manifest.parameters["keep_one"])
        changed += 1
    # Nothing is left to do here but for a lake without samples.
    _rewrite(lake, "keep_list", tombstones.spared, gone)
    return changed


# -- files that are no tables ------------------------------------------------------------------------------------------


def _delete(lake: Lake, chosen: Callable[[list[str]], bool]) -> None:
    """Deletes the files that are chosen by their path inside the lake."""
    paths = [path for path in lake.files() if chosen(lake.inside(path).split("/"))]
    delete_all(paths)


def _remove_leftovers(lake: Lake) -> None:
    """Files that a killed writer left under another name, work files that are made again, and pictures without their rows."""
    complete = {manifest.snapshot_id for manifest in lake.manifests("ingest")}
    written = {lake.inside(path).split("/", 1)[1] for path in lake.every_part("samples")}

    def leftover(parts: list[str]) -> bool:
        if is_temporary(parts[-1]) or parts[:2] in (["work", "ingest"], ["work", "match"], ["work", "index"]):
            return True
        # Nobody knows yet whose pictures these are; an ingest that goes on downloads them again.
        orphan = parts[0] == "images" and "/".join(parts[1:]) not in written
        return orphan and parts[1].removeprefix("snapshot_id=") not in complete

    _delete(lake, leftover)


def _remove_searches(lake: Lake, gone: set[str]) -> None:
    """Searches for duplicates that aren't complete, and the work files of those that know a forgotten vector."""
    complete = {manifest.snapshot_id for manifest in lake.manifests("deduplicate")}
    keys = keys_of(gone)
    innocent = set()
    for snapshot in complete:
        stored = list_files(lake.work("deduplicate", snapshot, "keys"), ".npz")
        if not any(np.isin(read_npz(path)["key"], keys).any() for path in stored):
            innocent.add(snapshot)
    _delete(lake, lambda parts: parts[:2] == ["work", "deduplicate"] and parts[2] not in innocent)
    _remove_unfinished(lake, "deduplicate")


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
