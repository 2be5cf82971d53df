"""Looks for what was forgotten in every byte of the lake, by the fingerprints in its tombstones.

Parquet, and the tables of audit.duckdb, are read value by value, since their bytes are compressed, and texts also for what
stands among other words; everything else, and the footers of Parquet with their smallest and largest values, byte by byte. HTML
and JSON are also read as what they say.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.errors import UserError
from transforms.kernels.fingerprints import Fingerprint, Needles
from transforms.results import marts, report
from transforms.store.files import open_parquet, read_bytes, read_parquet
from transforms.store.lake import Lake
from transforms.store.quotations import TEXTS, parts, said_by_others, stripped
from transforms.store.tombstones import Tombstones, sha256

_PAIRS = 1000
"""Extractions whose pictures are held at once."""


class Found(NamedTuple):
    """One thing that should not be there.

    Attributes:
        kind: of the tombstone.
        path: inside the lake.
        place: the column and row, or the byte.
        whole: it is the whole of a value, and not some bytes among others.
        content: what was found.
    """

    kind: str
    path: str
    place: str
    whole: bool
    content: bytes


class Searched(NamedTuple):
    """What was looked at, and what was found there. ``read``: bytes, as decoded."""

    files: int
    read: int
    looked_for: int
    found: list[Found]


def search(lake: Lake) -> Searched:
    """Reads every file of the lake and looks for everything that has a tombstone. UserError where it can't be listed."""
    searcher = _Searcher(lake)
    found: list[Found] = []
    paths = lake.files()
    if "lake.json" not in map(lake.inside, paths):
        raise UserError(f"the files of the lake {lake.root!r} can't be listed, so nothing was searched; spell --lake otherwise")
    for path in paths:
        found += searcher.file(path)
    return Searched(len(paths), searcher.read, len(searcher.kinds), _of_nobody_else(lake, found))


class _Searcher:
    """What is looked for, and how much was read."""

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

    def file(self, path: str) -> Iterator[Found]:
        inside = self.lake.inside(path)
        if path.endswith(".parquet"):
            with contextlib.suppress(UserError):  # what isn't Parquet, whatever it is called, is read as bytes
                yield from self._parquet(path, inside)
                return
        content = read_bytes(path)
        self.read += len(content)
        for said in readings(path, content):
            yield from self._bytes(said, inside)
        if path.endswith(".duckdb"):
            yield from self._database(content, inside)

    def _bytes(self, content: bytes, inside: str) -> Iterator[Found]:
        for place in self.needles.find(content):
            there = content[place.start : place.start + place.length]
            yield Found(self.kinds[place.sha256], inside, f"byte {place.start:,}", False, there)

    def _parquet(self, path: str, inside: str) -> Iterator[Found]:
        row = 0
        with open_parquet(path) as file:
            yield from self._bytes(_footer(file), inside)
            for batch in file.iter_batches(batch_size=256):
                yield from self._values(batch, inside, row)
                row += batch.num_rows

    def _database(self, content: bytes, inside: str) -> Iterator[Found]:
        """The tables of a database, which may be compressed; its views show what the lake's files hold."""
        import duckdb

        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, "copy.duckdb")
            with open(copy, "wb") as file:
                file.write(content)
            with duckdb.connect(copy, read_only=True) as connection:
                tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
                for (name,) in tables:
                    row = 0
                    for batch in connection.table(f'"{name}"').to_arrow_reader(1024):
                        yield from self._values(batch, f"{inside}, table {name}", row)
                        row += batch.num_rows

    def _values(self, batch: pa.RecordBatch, inside: str, row: int) -> Iterator[Found]:
        names = batch.schema.names
        for name, column in zip(names, batch.columns, strict=True):
            # What was downloaded is known by its digest alone, which the rows of samples have as well.
            contents = self.contents if name == "sha256" and "url" in names else ()
            for place, value in enumerate(values(column)):
                self.read += len(value)
                if value in contents:
                    yield Found("content", inside, f"{name}, row {row + place:,}", True, value)
                for said in (value, stripped(value) if is_text(column.type) else value):
                    # Most values have a length that nothing looked for has.
                    if said and len(said) in self.lengths and (kind := self.kinds.get(sha256(said))):
                        yield Found(kind, inside, f"{name}, row {row + place:,}", True, said)
                        break
            if is_text(column.type):
                for place, there in parts(list(values(column)), self.needles):
                    yield Found(self.kinds[sha256(there)], inside, f"{name}, row {row + place:,}", False, there)


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
        yield from (value or b"" for value in column.cast(pa.large_binary()).to_pylist())
    elif (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)) and pa.types.is_primitive(kind.value_type):
        for value in column:
            yield value.values.to_numpy(zero_copy_only=False).tobytes() if value.is_valid else b""


# -- whose it is ------------------------------------------------------------------------------------------------------


def _of_nobody_else(lake: Lake, found: Iterable[Found]) -> list[Found]:
    """What was found, without what is a remaining sample's too: its caption, vector or thumbnail, a part of its texts, or how a
    report shows it."""
    found = list(found)
    texts = {one.content for one in found if one.kind in TEXTS}
    numbers = {one.content for one in found if one.kind in ("vector", "thumbnail")}
    tombstones = Tombstones.read(lake)
    inside, whole = said_by_others(lake, tombstones, texts)
    whole |= {"vector": set(), "thumbnail": set()}
    for path in lake.every_part("embeddings") if numbers else ():
        table = tombstones.spared(read_parquet(path, ["sample_id", "vector", "thumbnail"]))
        for name in ("vector", "thumbnail"):
            for chunk in table[name].chunks:
                whole[name].update(value for value in values(chunk) if value in numbers)

    whole["shown"] = _shown_by_others(lake, {one.content for one in found if one.kind == "shown"})

    def is_anothers(one: Found) -> bool:
        if one.kind == "url":
            # A sample that has all of it should have been forgotten as well.
            return not one.whole and one.content in inside - whole["url"]
        if one.kind == "caption" and not one.whole:
            return one.content in inside
        return one.content in whole.get(one.kind, ())

    return [one for one in found if not is_anothers(one)]


def _shown_by_others(lake: Lake, forms: set[bytes]) -> set[bytes]:
    """Those forms of pictures that the extractions which remain have too: small as reports show them, copies are the same."""
    left = set(forms)
    for measured in lake.manifests("measure"):
        match = lake.manifest("match", measured.upstream["match"])
        assert match is not None, "a complete snapshot's upstream is complete"
        extractions = marts.read_mart(lake, "extractions", measured)
        for start in range(0, len(extractions) if left else 0, _PAIRS):
            for pair in report.pairs(lake, match, extractions[start : start + _PAIRS]):
                for picture in (pair.generated, pair.trained):
                    left -= {form.encode() for form in report.shown_forms(np.asarray(picture))}
    return forms - left
