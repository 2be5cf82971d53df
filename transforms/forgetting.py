"""Takes samples out of the lake for good: finds what they are, leaves tombstones, removes what shows them.

docs/forgetting.md says what goes, what stays, and what that does to the rates. Every step works on one file at a time, finds
what is left to do from the tombstones and from the rows that stay, and changes nothing where it was done: so a run that was
killed goes on. The order matters: tombstones come first, then what says which prompts are touched, then the rows that say why.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import datetime
import io
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems

from transforms import nights, report
from transforms.duplicates.job import keys_of, read_npz
from transforms.errors import UserError
from transforms.identity import digest
from transforms.images import decode
from transforms.keep_list import write_keep_list
from transforms.kernels.copies import Limits, is_copy
from transforms.kernels.fingerprints import Fingerprint, Needles, fingerprint
from transforms.lake import (
    Lake,
    Manifest,
    as_table,
    count_rows,
    is_temporary,
    list_files,
    open_parquet,
    read_bytes,
    read_parquet,
    snapshot_of,
    write_parquet,
)
from transforms.measurement import DATABASE
from transforms.proof import TEXTS, quotations
from transforms.schema import TABLES
from transforms.tombstones import FORGOTTEN, NO_TEXT, RETIRED, Tombstones, plain_url, sha256, tombstone_rows

NAMED = 5
"""How many unknown ids an error message names."""

_BATCH = 256
"""Rows with pictures that are held at once."""


# -- what is meant ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Named:
    """What the user names: sample_ids and urls."""

    sample_ids: frozenset[str]
    urls: frozenset[str]

    def __or__(self, other: Named) -> Named:
        return Named(self.sample_ids | other.sample_ids, self.urls | other.urls)


def read_list(path: str) -> Named:
    """The sample_ids and urls of a file.

    Args:
        path: Parquet, CSV or TSV with a column sample_id or url (or both), or text, one a line: 32 hexadecimal digits are a
            sample_id, what has a scheme is a url.

    Raises:
        UserError: if it can't be read, names nothing, or has a line that is neither.
    """
    ending = path.lower().rsplit(".", 1)[-1]
    try:
        if ending == "parquet":
            named = _columns(_texts(read_parquet(path)), path)
        elif ending in ("csv", "tsv"):
            text = io.StringIO(read_bytes(path).decode("utf-8-sig"))
            named = _columns(list(csv.DictReader(text, delimiter="," if ending == "csv" else "\t")), path)
        else:
            named = _lines(read_bytes(path).decode("utf-8-sig").splitlines(), path)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read --file {path!r} ({error}); expected text, CSV, TSV or Parquet") from error
    if not named.sample_ids and not named.urls:
        raise UserError(f"--file {path!r} names nothing; expected a sample_id or url a line, or in a column of that name")
    return named


def _lines(lines: list[str], path: str) -> Named:
    found: tuple[set[str], set[str]] = set(), set()
    for number, line in enumerate(map(str.strip, lines), 1):
        is_id, is_url = re.fullmatch(r"[0-9a-f]{32}", line), re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", line)
        if line and not is_id and not is_url:
            raise UserError(
                f"--file {path!r}, line {number}: {line[:80]!r} is neither a sample_id (32 digits and letters from a to f) nor "
                "a url (https://…); mend it, or take it out"
            )
        if line:
            found[0 if is_id else 1].add(line)
    return Named(frozenset(found[0]), frozenset(found[1]))


def _texts(table: pa.Table) -> list[dict[str, Any]]:
    """The rows; texts that some writers leave as bytes are texts. ValueError where they are none."""
    kinds = [pa.string() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else kind for kind in table.schema.types]
    return table.cast(pa.schema(zip(table.column_names, kinds, strict=True))).to_pylist()


def _columns(rows: list[dict[str, Any]], path: str) -> Named:
    found: dict[str, set[str]] = {"sample_id": set(), "url": set()}
    names = {name.lower(): name for row in rows[:1] for name in row if isinstance(name, str)}
    if rows and not names.keys() & found.keys():
        raise UserError(f"--file {path!r} has columns {list(rows[0])}, expected sample_id or url")
    for column, values in found.items():
        values.update(str(row[names[column]]).strip() for row in rows if column in names and row[names[column]])
    return Named(frozenset(found["sample_id"] - {""}), frozenset(found["url"] - {""}))


class Chosen:
    """The samples that are meant, and all that are the same picture: grows by what it finds in the lake.

    Attributes:
        sample_ids: of all of them.
        urls, contents: SHA-256 of their urls, as they are compared and as they are, and of their bytes as downloaded.
        found: those of ``sample_ids`` and ``urls`` that the lake has, or has a tombstone for.
    """

    def __init__(self, lake: Lake, named: Named):
        self.lake = lake
        self.sample_ids = set(named.sample_ids)
        self.urls = {sha256(plain_url(url)) for url in named.urls}
        self.contents: set[str] = set()
        self.found = {row["sample_id"] for row in tombstone_rows(lake, ("sample",))}
        self._grow()

    def _grow(self) -> None:
        """Until nothing is added: samples of the same url, of the same bytes as downloaded, and as stored."""
        before = None
        while before != (before := self._size()):
            self._by_rows()
            self._by_pictures()

    def _size(self) -> tuple[int, ...]:
        """Grows with whatever is added: the url of one row may be that of a row which was read before it."""
        return len(self.sample_ids), len(self.urls), len(self.contents)

    def _by_rows(self) -> None:
        before = None
        while before != (before := self._size()):
            for sample, urls, content in self._rows():
                if sample in self.sample_ids or urls & self.urls or content in self.contents:
                    self.urls |= urls
                    self.found |= urls
                    for known, one in ((self.sample_ids, sample), (self.found, sample), (self.contents, content)):
                        known.update([one] if one is not None else [])

    def _rows(self) -> Iterator[tuple[str | None, set[str], str | None]]:
        """sample_id, and SHA-256 of url and of bytes: from tombstones, by which those are known that are gone, and samples."""
        for row in tombstone_rows(self.lake, ("url", "content")):
            is_url = row["kind"] == "url"
            yield row["sample_id"], {row["sha256"]} if is_url else set(), None if is_url else row["sha256"]
        for path in self.lake.every_part("samples"):
            for row in read_parquet(path, ["sample_id", "url", "sha256"]).to_pylist():
                yield row["sample_id"], set(map(sha256, _forms(row["url"]))), row["sha256"]

    def _by_pictures(self) -> None:
        pictures = {(row["sha256"], row["length"]) for row in tombstone_rows(self.lake, ("picture",))
                    if row["sample_id"] in self.sample_ids}  # fmt: skip
        for row in rows_of(self.lake, "images", self.sample_ids, ["image"]):
            self.found.add(row["sample_id"])
            if row["image"] is not None:
                pictures.add((sha256(row["image"]), len(row["image"])))
        lengths = {length for _, length in pictures}
        if not lengths:
            return
        for path in self.lake.every_part("images"):
            with open_parquet(path) as file:
                for batch in file.iter_batches(_BATCH, columns=["sample_id", "image"]):
                    for sample, image in zip(batch["sample_id"].to_pylist(), batch["image"], strict=True):
                        content = image.as_buffer() if image.is_valid else b""
                        if len(content) in lengths and (sha256(content), len(content)) in pictures:
                            self.sample_ids.add(sample)

    def add_duplicates(self) -> None:
        """The members of their duplicate groups, in every snapshot."""
        members: set[str] = set()
        for snapshot in sorted({snapshot_of(path) for path in self.lake.every_part("duplicate_groups")}):
            table = self.lake.read("duplicate_groups", snapshot, ["sample_id", "group_id"])
            groups = set(table.filter(_among(table["sample_id"], self.sample_ids))["group_id"].to_pylist())
            members.update(table.filter(_among(table["group_id"], groups))["sample_id"].to_pylist())
        self.sample_ids |= members
        self._grow()

    def unknown(self, named: Named) -> tuple[list[str], int]:
        """The named sample_ids that the lake doesn't have, sorted; and of how many urls that is so."""
        ids = sorted(named.sample_ids - self.found)
        return ids, sum(sha256(plain_url(url)) not in self.found for url in named.urls)


def _forms(url: str | None) -> set[str]:
    """A url as it is, and as it is compared."""
    return {url, plain_url(url)} if url else set()


def rows_of(lake: Lake, table: str, sample_ids: set[str], columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of some samples in all snapshots of a table: ``sample_id`` and these columns."""
    for path in lake.every_part(table):
        if _any_among(path, "sample_id", sample_ids):
            with open_parquet(path) as file:
                for batch in file.iter_batches(_BATCH, columns=["sample_id", *columns]):
                    yield from batch.filter(_among(batch["sample_id"], sample_ids)).to_pylist()


def _among(column: pa.ChunkedArray, values: Iterable[str]) -> pa.ChunkedArray:
    return pc.is_in(column, pa.array(sorted(values), pa.string()))


def _any_among(path: str, column: str, values: Iterable[str]) -> bool:
    return bool(pc.any(_among(read_parquet(path, [column])[column], values)).as_py())


# -- tombstones -------------------------------------------------------------------------------------------------------


def bury(lake: Lake, sample_ids: set[str], urls: Iterable[str], reason: str) -> int:
    """Writes the tombstones of samples, and of urls whether the lake has them or not; returns how many are new.

    With them come the fingerprints of all that is about to be removed, which the proof goes by.

    Raises:
        UserError: if the reason holds a url or a caption that is forgotten; nothing is written then.
    """
    now = datetime.datetime.now(datetime.UTC)
    there = {(row["kind"], row["sample_id"], row["sha256"]) for row in tombstone_rows(lake, KINDS)}
    urls = list(urls)
    new: dict[tuple[str, str | None, str], dict[str, Any]] = {}

    def add(kind: str, sample: str | None, sha256: str, length: int | None = None, ending: int | None = None) -> None:
        if (kind, sample, sha256) not in there:
            row = {"kind": kind, "sample_id": sample, "sha256": sha256, "length": length, "ending": ending}
            new[kind, sample, sha256] = {**row, "reason": reason, "forgotten_at": now}

    def add_content(kind: str, sample: str | None, content: bytes) -> None:
        add(kind, sample, *fingerprint(content))

    for sample in sorted(sample_ids):
        add("sample", sample, sha256(sample))
    for row in rows_of(lake, "samples", sample_ids, ["url", "caption", "sha256"]):
        for url in sorted(_forms(row["url"])):
            add_content("url", row["sample_id"], url.encode())
        if row["sha256"]:
            add("content", row["sample_id"], row["sha256"])
        for caption in {row["caption"], (row["caption"] or "").strip()} - {None, ""}:
            add_content("caption", row["sample_id"], caption.encode())
    # A url that the lake has is there by now, with its sample.
    known = there | new.keys()
    of_samples = {digest for kind, _, digest in known if kind == "url"}
    for url in map(plain_url, urls):
        if sha256(url) not in of_samples:
            add_content("url", None, url.encode())
    for row in rows_of(lake, "images", sample_ids, ["image"]):
        for kind, content in _shapes("picture", row["image"]):
            add_content(kind, row["sample_id"], content)
    for row in rows_of(lake, "embeddings", sample_ids, ["vector", "thumbnail"]):
        if row["vector"]:
            add_content("vector", row["sample_id"], np.asarray(row["vector"], np.float32).tobytes())
        if row["thumbnail"]:
            add_content("thumbnail", row["sample_id"], row["thumbnail"])
    touched = touched_prompts(lake, sample_ids)
    for path in _generation_files(lake, touched):
        with open_parquet(path) as file:
            for batch in file.iter_batches(_BATCH, columns=["audit_id", "prompt_id", "image"]):
                for row in batch.to_pylist():
                    if (row["audit_id"], row["prompt_id"]) in touched:
                        for kind, content in _shapes("generation", row["image"]):
                            add_content(kind, None, content)
    rows = list(new.values())
    texts = [Fingerprint(row["sha256"], row["length"], row["ending"])
             for row in [*rows, *tombstone_rows(lake, TEXTS)] if row["kind"] in TEXTS]  # fmt: skip
    if _names(reason, texts, urls):
        raise UserError(
            "--reason holds a url or a caption of what is forgotten, and stays in the lake; say it without, by the number of a "
            "request for example"
        )
    if rows:
        lake.write("tombstones", digest("forget", [list(map(str, key)) for key in new], length=16), 0, rows)
    return len(new)


def _names(reason: str, texts: list[Fingerprint], urls: list[str]) -> bool:
    """Whether a reason is one of these texts, holds one (of 16 bytes or more), or one of these urls if it has a scheme."""
    whole = {sha256(reason), sha256(reason.strip())} & {text.sha256 for text in texts}
    inside = any(Needles(texts).find(reason.encode("utf-8", "surrogatepass")))
    return bool(whole) or inside or any("://" in url and plain_url(url).lower() in reason.lower() for url in urls)


KINDS = ("sample", "url", "content", "caption", "picture", "vector", "thumbnail", "generation", "shown")


def _shapes(kind: str, picture: bytes | None) -> Iterator[tuple[str, bytes]]:
    """A picture as it is stored, and as reports may show it."""
    if picture:
        yield kind, picture
        try:
            yield from (("shown", form.encode()) for form in report.shown_forms(np.asarray(decode(picture))))
        except ValueError:  # what can't be decoded was shown nowhere
            return


def _generation_files(lake: Lake, touched: set[tuple[str, str]]) -> Iterator[str]:
    """Files that may hold generations of these prompts: tables, and finished prompts of an audit that is not."""
    audits = {audit for audit, _ in touched}
    yield from (path for path in lake.every_part("generations") if snapshot_of(path) in audits)
    # A match's snapshot doesn't name its audit: rows do.
    yield from lake.every_part("regenerations")
    for audit in sorted(audits):
        yield from list_files(lake.work("generate", audit, "prompts"), ".parquet")


def touched_prompts(lake: Lake, sample_ids: set[str]) -> set[tuple[str, str]]:
    """(audit_id, prompt_id) of the prompts that the samples have a part in; those of before included.

    Their caption, or that of their group; one of whose generations matched one of them or their group, as own, as extracted or
    as a copy; or was compared with nothing else.
    """
    groups = {row["group_id"] for row in rows_of(lake, "duplicate_groups", sample_ids, ["group_id"])}
    touched = set()
    for path in lake.every_part("prompts"):
        columns = ["audit_id", "prompt_id", "sample_id", "group_id", "stratum"]
        for row in read_parquet(path, columns).to_pylist():
            if row["sample_id"] in sample_ids or row["group_id"] in groups or row["stratum"] == FORGOTTEN:
                touched.add((row["audit_id"], row["prompt_id"]))
    for path in lake.every_part("matches"):
        columns = ["audit_id", "prompt_id", "sample_index", "sample_id", "group_id", "role", "relation", "extracted",
                   "l2", "coarse_l2", "coarse_ratio"]  # fmt: skip
        limits = copy_limits(lake, snapshot_of(path))
        lost: set[tuple[str, str, int]] = set()
        left: set[tuple[str, str, int]] = set()
        for row in read_parquet(path, columns).to_pylist():
            prompt = row["audit_id"], row["prompt_id"]
            mine = row["sample_id"] in sample_ids
            close = row["extracted"] or row["relation"] == "own" or (row["role"] == "training" and is_copy(row, limits))
            if (mine or row["group_id"] in groups) and close:
                touched.add(prompt)
            (lost if mine else left).add((*prompt, row["sample_index"]))
        touched |= {(audit, prompt) for audit, prompt, _ in lost - left}
    return touched


def copy_limits(lake: Lake, match: str) -> Limits:
    """The limits of a copy in a snapshot of matches; without bounds where it was killed before it had any."""
    rows = lake.read("copy_calibration", match).to_pylist()
    if not rows:
        return Limits(np.inf, np.inf, None)
    return Limits.of(rows[0])


# -- removal ----------------------------------------------------------------------------------------------------------


def remove(lake: Lake) -> dict[str, int]:
    """Removes whatever has a tombstone from all tables and work files; returns table → rows that were changed."""
    tombstones = Tombstones.read(lake)
    gone = set(tombstones.samples)
    changed: collections.Counter[str] = collections.Counter()
    touched = touched_prompts(lake, gone)
    _remove_leftovers(lake)
    _remove_searches(lake, gone)
    _remove_finished_prompts(lake, touched)

    # Prompts before generations and matches: from then on they say themselves that they are touched.
    captions, without_group = _lone_captions(lake, gone), _without_own_match(lake, gone)
    texts = (read_parquet(path, ["text"])["text"].to_pylist() for path in lake.every_part("prompts"))
    quotes = quotations(lake, tombstones, texts)

    def prompts(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        for row in rows:
            key = row["audit_id"], row["prompt_id"]
            if sha256(row["text"].strip()) in captions or any(quote in row["text"] for quote in quotes):
                row["text"] = NO_TEXT
            if key in touched:
                row.update(stratum=FORGOTTEN, stratum_order=-2)
            if key in without_group:
                row.update(group_id=None, n_duplicates=None)
        return pa.Table.from_pylist(rows, schema=TABLES["prompts"].schema)

    changed["prompts"] = _rewrite(lake, "prompts", prompts)

    pictures = {row["sha256"] for row in tombstone_rows(lake, ("picture", "generation"))}
    lengths = {row["length"] for row in tombstone_rows(lake, ("picture", "generation"))}
    thumbnails = {row["sha256"] for row in tombstone_rows(lake, ("thumbnail",))}

    def without_pictures(table: pa.Table) -> pa.Table:
        prompts = list(zip(table["audit_id"].to_pylist(), table["prompt_id"].to_pylist(), strict=True))
        hit = [
            image.is_valid
            and (prompt in touched or (len(image.as_buffer()) in lengths and sha256(image.as_buffer()) in pictures))
            for prompt, image in zip(prompts, table["image"], strict=True)
        ]
        reason = "the picture was removed: it may give back what was forgotten"
        return _with(table, pa.array(hit, pa.bool_()), image=None, reason=reason)

    def generations(table: pa.Table) -> pa.Table:
        prompts = zip(table["audit_id"].to_pylist(), table["prompt_id"].to_pylist(), table["thumbnail"], strict=True)
        hit = [
            tiny.is_valid and ((audit, prompt) in touched or sha256(tiny.as_buffer()) in thumbnails)
            for audit, prompt, tiny in prompts
        ]
        return _with(without_pictures(table), pa.array(hit, pa.bool_()), thumbnail=None)

    changed["generations"] = _rewrite(lake, "generations", generations)
    changed["regenerations"] = _rewrite(lake, "regenerations", without_pictures)
    for name in ("matches", "decoys", "eidetic_counts"):
        changed[name] = _rewrite(lake, name, tombstones.spared, gone)
    changed["embeddings"] = _rewrite(lake, "embeddings", _status(tombstones, vector=None, thumbnail=None), gone)
    changed["images"] = _rewrite(lake, "images", _cells(gone, image=None), gone)
    nothing = dict.fromkeys(("url", "caption", "sha256", "metadata_hash"))
    changed["samples"] = _rewrite(lake, "samples", _status(tombstones, **nothing), gone)
    changed["keep_list"] = _keep_others(lake, tombstones, gone)
    for stage in ("deduplicate", "match"):
        for manifest in lake.manifests(stage):
            lake.recount(manifest)
    return {table: rows for table, rows in changed.items() if rows}


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
    for file in FileSystems.match([lake.path("work", "generate", "**")])[0].metadata_list:
        if file.path.endswith(".parquet") and file.last_updated_in_seconds < oldest.timestamp():
            pictures = read_parquet(file.path, ["image"])["image"]
            removed += len(pictures) - pictures.null_count
            FileSystems.delete([file.path])
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
        if sample_ids is None or _any_among(path, "sample_id", sample_ids):
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


def _cells(sample_ids: set[str], **cells: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: _with(table, _among(table["sample_id"], sample_ids), **cells)


def _status(tombstones: Tombstones, **cells: Any) -> Callable[[pa.Table], pa.Table]:
    """The same, with the status forgotten and each one's reason."""

    def change(table: pa.Table) -> pa.Table:
        hit = _among(table["sample_id"], tombstones.samples)
        reasons = [tombstones.samples.get(sample) for sample in table["sample_id"].to_pylist()]
        table = _with(table, hit, status=FORGOTTEN, **cells)
        column = pc.if_else(hit, pa.array(reasons, pa.string()), table["reason"])
        return table.set_column(table.schema.get_field_index("reason"), table.schema.field("reason"), column)

    return change


def _lone_captions(lake: Lake, gone: set[str]) -> set[str]:
    """SHA-256 of the forgotten captions, and of the prompts that stand for forgotten samples, that no remaining one has."""
    captions = {row["sha256"] for row in tombstone_rows(lake, ("caption",))}
    captions |= {sha256(row["text"].strip()) for row in rows_of(lake, "prompts", gone, ["text"])}
    for path in lake.every_part("samples") if captions else ():
        table = read_parquet(path, ["sample_id", "caption"])
        for caption in table.filter(pc.invert(_among(table["sample_id"], gone)))["caption"].to_pylist():
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
        naming = [path for path in parts if _any_among(path, "sample_id", gone)]
        embed = lake.manifest("embed", manifest.upstream["embed"])
        whole = sum(map(count_rows, parts)) == manifest.rows["keep_list"]
        if embed is None or (whole and not naming):
            continue
        # Rows move from part to part. While it is made it has too few, or names a forgotten image: a killed run sees either.
        if rest := [path for path in parts if path not in naming[:1]]:
            FileSystems.delete(rest)
        write_keep_list(lake, embed.upstream["ingest"], manifest.snapshot_id, manifest.parameters["keep_one"])
        changed += 1
    # Nothing is left to do here but for a lake without samples.
    _rewrite(lake, "keep_list", tombstones.spared, gone)
    return changed


# -- files that are no tables ------------------------------------------------------------------------------------------


def _delete(lake: Lake, chosen: Callable[[list[str]], bool]) -> None:
    """Deletes the files that are chosen by their path inside the lake."""
    paths = [path for path in lake.files() if chosen(lake.inside(path).split("/"))]
    if paths:
        FileSystems.delete(paths)


def _remove_leftovers(lake: Lake) -> None:
    """Files that a killed writer left under another name, work files that are made again, and pictures without their rows."""
    complete = {manifest.snapshot_id for manifest in lake.manifests("ingest")}
    written = {lake.inside(path).split("/", 1)[1] for path in lake.every_part("samples")}

    def leftover(parts: list[str]) -> bool:
        if is_temporary(parts[-1]) or parts[:2] in (["work", "ingest"], ["work", "match"]):
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
