"""Looks for what was forgotten in every byte of the lake, by the fingerprints in its tombstones.

Parquet, and the tables of audit.duckdb, are read value by value, since their bytes are compressed, and texts also for what
stands among other words; everything else, and the footers of Parquet with their smallest and largest values, byte by byte. HTML
and JSON are also read as what they say, and of pictures that a killed ingest has read out of files the digests are taken.

Each file is searched on a worker, which answers with what it has found, once for each thing. Then the remaining samples are
asked which of that is theirs, and only the files with the rest are searched again, for the places: a caption that half of the
data set has costs nobody a row for each of them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import html
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.data.spool import is_spool, pictures_in
from transforms.errors import Damaged, UserError
from transforms.forgetting.rows import BATCH_ROWS
from transforms.forgetting.workers import Workers
from transforms.kernels.fingerprints import Fingerprint, Needles
from transforms.results import report
from transforms.store.counters import count
from transforms.store.files import open_file, open_parquet, read_bytes, read_parquet, read_rows
from transforms.store.identity import url_by_bytes
from transforms.store.lake import Lake, table_of
from transforms.store.lineage import lineage
from transforms.store.pictures import decode
from transforms.store.quotations import TEXTS, SaidByOthers, bytes_of, forgotten_texts, held, stripped
from transforms.store.tombstones import Tombstones, sha256

PIECE = 64 << 20
"""Bytes that are held at once of a file that isn't Parquet."""


class Thing(NamedTuple):
    """What was found, by what is known of it.

    Attributes:
        kind: of the tombstone.
        whole: it is the whole of a value, and not some bytes among others.
        sha256: of it.
        bare: SHA-256 of it without the blanks around it, if it is a text.
    """

    kind: str
    whole: bool
    sha256: str
    bare: str


class Found(NamedTuple):
    """One thing that should not be there.

    Attributes:
        kind: of the tombstone.
        path: inside the lake.
        place: the column and row, or the byte.
        whole: it is the whole of a value, and not some bytes among others.
        sha256: of what was found.
    """

    kind: str
    path: str
    place: str
    whole: bool
    sha256: str


class Searched(NamedTuple):
    """What was looked at, and what was found there. ``read``: bytes, as decoded."""

    files: int
    read: int
    looked_for: int
    found: list[Found]


def search(workers: Workers) -> Searched:
    """Reads every file of the lake and looks for everything that has a tombstone.

    Raises:
        UserError: where it can't be listed, or something lies there that is no file.
        OSError: where a folder can't be read.
    """
    lake = workers.lake
    if lake.is_local:
        _all_can_be_looked_at(lake.root)
    paths = lake.files()
    if "lake.json" not in map(lake.inside, paths):
        raise UserError(f"the files of the lake {lake.root!r} can't be listed, so nothing was searched; spell --lake otherwise")
    searcher = Searcher(lake)
    read, holding = 0, []
    things: set[Thing] = set()
    for path, (size, *found) in zip(paths, workers.each(paths, Look(searcher)), strict=True):
        read += size
        things.update(Thing(*thing) for thing in found)
        holding += [path] if found else []
    things = _of_nobody_else(workers, things)
    found = workers.each(holding, Tell(searcher, things)) if things else []
    return Searched(len(paths), read, len(searcher.kinds), [Found(*one) for one in found])


def _all_can_be_looked_at(root: str) -> None:
    """UserError for what a walk over files passes by, or would hang at: what isn't looked at is not proved to be without."""

    def refused(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(root, onerror=refused):
        for folder in folders:
            if os.path.islink(path := os.path.join(parent, folder)):
                raise UserError(
                    f"{path!r} is a link to a folder, so nothing is proved; put the folder there, or remove the link"
                )
        for name in names:
            if os.path.exists(path := os.path.join(parent, name)) and not os.path.isfile(path):
                raise UserError(f"{path!r} is no file, so nothing is proved; remove it")


@dataclasses.dataclass(frozen=True)
class Look:
    """A file → one row: how many bytes were read, and the things that were found, each once."""

    searcher: Searcher

    def __call__(self, path: str) -> Iterator[tuple[Any, ...]]:
        searcher = copy.copy(self.searcher)  # each counts for itself what it reads
        things = sorted({thing for thing, _, _ in searcher.file(path)})
        count("bytes searched", searcher.read)
        yield searcher.read, *things


@dataclasses.dataclass(frozen=True)
class Tell:
    """A file → where it holds these things."""

    searcher: Searcher
    things: set[Thing]

    def __call__(self, path: str) -> Iterator[Found]:
        for thing, inside, place in copy.copy(self.searcher).file(path):
            if thing in self.things:
                yield Found(thing.kind, inside, place, thing.whole, thing.sha256)


Place = tuple[Thing, str, str]
"""What was found, in which file of the lake, and where there."""


class Searcher:
    """Searches files for all that has a tombstone.

    Attributes:
        kinds: SHA-256 → kind of what is looked for.
        read: bytes of the last file, as decoded.
    """

    def __init__(self, lake: Lake):
        self.lake, self.read = lake, 0
        self.kinds: dict[str, str] = {}
        self.contents: set[bytes] = set()
        fingerprints = []
        for path in lake.every_part("tombstones"):
            for row in read_parquet(path, ["kind", "sha256", "length", "ending"]).to_pylist():
                if row["kind"] == "content":
                    self.contents.add(row["sha256"].encode())
                elif row["length"] is not None:
                    self.kinds[row["sha256"]] = row["kind"]
                    fingerprints.append(Fingerprint(row["sha256"], row["length"], row["ending"]))
        self.lengths = {one.length for one in fingerprints}
        self.needles = Needles(fingerprints)

    def file(self, path: str) -> Iterator[Place]:
        inside, self.read = self.lake.inside(path), 0
        if path.endswith(".parquet"):
            try:
                yield from self._parquet(path, inside)
                return
            except Damaged:  # what it holds isn't known, so nothing is proved
                raise
            except UserError:  # what isn't Parquet, whatever it is called, is read as bytes
                pass
        if path.endswith((".html", ".json")):
            content = read_bytes(path)
            self.read += len(content)
            for reading in readings(path, content):
                yield from self._bytes(reading, inside)
            return
        yield from self._pieces(path, inside)
        if is_spool(inside):
            yield from self._spooled(path, inside)
        if path.endswith(".duckdb"):
            yield from self._database(path, inside)

    def _bytes(self, content: bytes, inside: str, start: int = 0, known: int = 0) -> Iterator[Place]:
        """``start``: where in the file the content begins. What ends in the first ``known`` bytes is left out."""
        for find in self.needles.find(content):
            if find.start + find.length > known:
                there = content[find.start : find.start + find.length]
                yield self._thing(find.sha256, there, False), inside, f"byte {start + find.start:,}"

    def _pieces(self, path: str, inside: str) -> Iterator[Place]:
        """A file of any size, a piece after the other; of the last one so much is kept as may be the beginning of something."""
        longest, before = max(self.lengths, default=0), b""
        with open_file(path) as file:
            while piece := file.read(PIECE):
                content = before + piece
                yield from self._bytes(content, inside, self.read - len(before), len(before))
                self.read += len(piece)
                before = content[max(0, len(content) - longest) :]

    def _spooled(self, path: str, inside: str) -> Iterator[Place]:
        """Pictures as they came, of which the digest alone is known, or which one that was never here would be."""
        for start, picture in pictures_in(path):
            content = sha256(picture)
            url = sha256(url_by_bytes(content))
            if content.encode() in self.contents:
                yield Thing("content", True, content, content), inside, f"byte {start:,}"
            elif url in self.kinds:
                yield Thing(self.kinds[url], True, url, url), inside, f"byte {start:,}"

    def _parquet(self, path: str, inside: str) -> Iterator[Place]:
        row = 0
        with open_parquet(path) as file:
            yield from self._bytes(_footer(file), inside)
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield from self._values(batch, inside, row)
                row += batch.num_rows

    def _database(self, path: str, inside: str) -> Iterator[Place]:
        """The tables of a database, which may be compressed; its views show what the lake's files hold."""
        import duckdb

        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "copy.duckdb")
            with open_file(path) as source, open(local, "wb") as file:
                shutil.copyfileobj(source, file)
            with duckdb.connect(local, read_only=True) as connection:
                tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
                for (name,) in tables:
                    row = 0
                    for batch in connection.table(f'"{name}"').to_arrow_reader(1024):
                        yield from self._values(batch, f"{inside}, table {name}", row)
                        row += batch.num_rows

    def _values(self, batch: pa.RecordBatch, inside: str, row: int) -> Iterator[Place]:
        names = batch.schema.names
        for name, column in zip(names, batch.columns, strict=True):
            # What was downloaded is known by its digest alone, which the rows of samples have as well.
            contents = self.contents if name == "sha256" and "url" in names else set()
            texts, said = is_text(column.type), list(values(column))
            for place, value in enumerate(said):
                self.read += len(value)
                where = f"{name}, row {row + place:,}"
                if value in contents:
                    yield Thing("content", True, value.decode(), value.decode()), inside, where
                for one in (value, stripped(value) if texts else value):
                    # Most values have a length that nothing looked for has.
                    if one and len(one) in self.lengths and (digest := sha256(one)) in self.kinds:
                        yield self._thing(digest, one, True), inside, where
                        break
            for place, find in held(said, self.needles) if texts else ():
                there = said[place][find.start : find.start + find.length]
                if there not in (said[place], stripped(said[place])):
                    yield self._thing(find.sha256, there, False), inside, f"{name}, row {row + place:,}"

    def _thing(self, digest: str, content: bytes, whole: bool) -> Thing:
        kind = self.kinds[digest]
        return Thing(kind, whole, digest, sha256(stripped(content)) if kind in TEXTS else digest)


def readings(path: str, content: bytes) -> Iterator[bytes]:
    """The bytes of a file as they are, and as what they say."""
    yield content
    if path.endswith(".html"):
        yield html.unescape(content.decode("utf-8", "replace")).encode()
    elif path.endswith(".json"):
        try:
            yield "\n".join(_texts(json.loads(content))).encode("utf-8", "surrogatepass")
        except ValueError:  # not JSON at all, then
            return


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _texts(list(pair))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _footer(file: pq.ParquetFile) -> bytes:
    """Everything in a footer that comes from values: the smallest and largest of each column, and the metadata."""
    said: list[bytes] = []
    metadata = file.metadata
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            statistics = metadata.row_group(group).column(number).statistics
            if statistics is not None and statistics.has_min_max:
                said += [
                    value if isinstance(value, bytes) else str(value).encode() for value in (statistics.min, statistics.max)
                ]
    return b"\n".join([*said, *(metadata.metadata or {}).values()])


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def values(column: pa.Array) -> Iterator[bytes]:
    """The bytes of each value of text, bytes or lists of numbers; b"" where it is null; nothing for other columns."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        yield from bytes_of(column)
    elif (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)) and pa.types.is_primitive(kind.value_type):
        for value in column:
            yield value.values.to_numpy(zero_copy_only=False).tobytes() if value.is_valid else b""


# -- whose it is ------------------------------------------------------------------------------------------------------


def _of_nobody_else(workers: Workers, things: set[Thing]) -> set[Thing]:
    """What was found, without what is a remaining sample's too: its caption, vector or thumbnail, a part of its texts, or how a
    report shows it.
    """
    lake, tombstones = workers.lake, Tombstones.read(workers.lake)
    texts = {thing for thing in things if thing.kind in TEXTS}
    numbers = {thing.sha256 for thing in things if thing.kind in ("vector", "thumbnail")}
    forms = {thing.sha256 for thing in things if thing.kind == "shown"}
    among_others = {thing.sha256 for thing in texts if not thing.whole}
    inside = [one for one in forgotten_texts(lake) if one.sha256 in among_others]
    say = SaidByOthers(tombstones, {thing.bare for thing in texts}, inside)
    others = {(how, one) for how, one in workers.each(lake.every_part("samples") if texts else (), say)}
    have = NumbersOfOthers(tombstones, numbers)
    others |= {(how, one) for how, one in workers.each(lake.every_part("embeddings") if numbers else (), have)}
    others |= {("shown", one) for one in (_shown_by_others(workers, tombstones, forms) if forms else ())}

    def is_anothers(thing: Thing) -> bool:
        if thing.kind == "url":
            # A sample that has all of it should have been forgotten as well.
            return not thing.whole and ("inside", thing.sha256) in others and ("url", thing.bare) not in others
        if thing.kind == "caption" and not thing.whole:
            return ("inside", thing.sha256) in others
        return (thing.kind, thing.bare) in others

    return {thing for thing in things if not is_anothers(thing)}


@dataclasses.dataclass(frozen=True)
class NumbersOfOthers:
    """A part of ``embeddings`` → ("vector" or "thumbnail", SHA-256) of those of ``wanted`` that a remaining sample has."""

    tombstones: Tombstones
    wanted: set[str]

    def __call__(self, path: str) -> list[tuple[str, str]]:
        table = self.tombstones.spared(read_parquet(path, ["sample_id", "vector", "thumbnail"]))
        there = {
            (name, sha256(value)) for name in ("vector", "thumbnail") for chunk in table[name].chunks for value in values(chunk)
        }
        return sorted(one for one in there if one[1] in self.wanted)


def _shown_by_others(workers: Workers, tombstones: Tombstones, forms: set[str]) -> set[str]:
    """Those forms of pictures that the extractions which remain have too: small as reports show them, copies are the same."""
    lake = workers.lake
    extractions: dict[str, set[str]] = {}
    parts: set[str] = set()
    for measured in lake.manifests("measure"):
        made_of = lineage(lake, measured)
        for table, stage in (("generations", "generate"), ("regenerations", "match"), ("images", "ingest")):
            for path in lake.parts(table, made_of[stage].snapshot_id):
                parts.add(path)
                extractions.setdefault(_folder(path), set()).update(lake.parts("extractions", measured.snapshot_id))
    return set(workers.each(sorted(parts), FormsOfOthers(tombstones, forms, extractions)))


@dataclasses.dataclass(frozen=True)
class FormsOfOthers:
    """A part of ``generations``, ``regenerations`` or ``images`` → those of some forms that a report may show by right.

    Attributes:
        tombstones: who has one doesn't remain.
        wanted: SHA-256 of the forms.
        extractions: folder of such parts → the parts of ``extractions`` that show pictures of it.
    """

    tombstones: Tombstones
    wanted: set[str]
    extractions: dict[str, set[str]]

    def __call__(self, path: str) -> list[str]:
        key = ["sample_id"] if table_of(path) == "images" else ["prompt_id", "sample_index"]
        shown = self._shown(path, key)
        found: set[str] = set()
        for row in _rows_with_pictures(path, key) if shown else ():
            if tuple(row[name] for name in key) in shown and row["image"] is not None:
                with contextlib.suppress(ValueError):  # what can't be decoded was shown nowhere
                    found.update(sha256(form) for form in report.shown_forms(np.asarray(decode(row["image"]))))
        return sorted(found & self.wanted)

    def _shown(self, path: str, key: list[str]) -> set[tuple[Any, ...]]:
        """The keys of the part's pictures that are shown: extractions are looked through, those of the part alone are held."""
        here = {tuple(row.values()) for row in read_parquet(path, key).to_pylist()}
        found = set()
        for part in self.extractions[_folder(path)]:
            for row in read_rows(part, ["sample_id", "prompt_id", "sample_index", "regenerated"]):
                mine = table_of(path) in ("images", "regenerations" if row["regenerated"] else "generations")
                if mine and row["sample_id"] not in self.tombstones.samples:
                    found.add(tuple(row[name] for name in key))
        return found & here


def _folder(path: str) -> str:
    return path.rsplit("/", 1)[0]


def _rows_with_pictures(path: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    with open_parquet(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=[*columns, "image"]):
            yield from batch.to_pylist()
