"""What is meant by a request to forget."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from transforms.errors import UserError
from transforms.forgetting.rows import BATCH_ROWS, among, rows_of
from transforms.forgetting.workers import Workers
from transforms.store.files import open_parquet, read_bytes, read_parquet
from transforms.store.lake import snapshot_of, table_of
from transforms.store.listings import PARQUET, column_named, decode_text, separated_rows
from transforms.store.tombstones import plain_url, sha256, tombstone_rows

COLUMNS = ("sample_id", "url")
"""Of a list of what is to be forgotten."""

NAMED = 5
"""How many unknown ids an error message names."""


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
    ending = os.path.splitext(path)[1].lower()
    try:
        if ending in PARQUET:
            named = _columns(_texts(read_parquet(path)), path)
        elif ending in (".csv", ".tsv"):
            rows = separated_rows(_text_of(path), path, COLUMNS, f"expected {' or '.join(COLUMNS)}")
            named = _columns([row for _, row in rows], path)
        else:
            named = _lines(_text_of(path).splitlines(), path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read --file {path!r} ({error}); expected text, CSV, TSV or Parquet") from error
    if not named.sample_ids and not named.urls:
        raise UserError(f"--file {path!r} names nothing; expected a sample_id or url a line, or in a column of that name")
    return named


def _text_of(path: str) -> str:
    """What a file says. ValueError for bytes that are no text: what was meant would be kept, and something else forgotten."""
    text = decode_text(read_bytes(path))
    if "\ufffd" in text:
        raise ValueError(f"line {text[: text.index(chr(0xFFFD))].count(chr(10)) + 1} holds bytes that are no text")
    return text


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
    found: dict[str, set[str]] = {column: set() for column in COLUMNS}
    names = {column: name for column in COLUMNS if rows and (name := column_named(list(rows[0]), (column,))) is not None}
    if rows and not names:
        raise UserError(f"--file {path!r} has columns {list(rows[0])}, expected sample_id or url")
    for column, values in found.items():
        values.update(str(row[names[column]]).strip() for row in rows if column in names and row.get(names[column]))
    return Named(frozenset(found["sample_id"] - {""}), frozenset(found["url"] - {""}))


class Row(NamedTuple):
    """What says of a sample that it is the same picture as another.

    Attributes:
        sample_id: None for what was forgotten without one: a url that the lake didn't have.
        urls: SHA-256 of its url, as it is and as it is compared.
        content: SHA-256 of its bytes as downloaded.
    """

    sample_id: str | None
    urls: tuple[str, ...]
    content: str | None


@dataclasses.dataclass(frozen=True)
class Alike:
    """Samples that are meant, with their urls and their bytes as downloaded by SHA-256; grows by what is like them.

    As a work: of a part of ``samples`` the rows of those and of what is like them, of a part of ``images`` the digests of their
    pictures.
    """

    sample_ids: set[str]
    urls: set[str]
    contents: set[str]

    def size(self) -> int:
        """Grows with whatever is added."""
        return len(self.sample_ids) + len(self.urls) + len(self.contents)

    def take(self, rows: Iterable[Row]) -> list[Row]:
        """Adds the rows of the same sample, url or bytes, and returns them: the url of one may be that of one before it."""
        mine: list[Row] = []
        rows, before = list(rows), None
        while before != (before := self.size()):
            mine = [row for row in rows if self._takes(row)]
        return mine

    def _takes(self, row: Row) -> bool:
        if row.sample_id not in self.sample_ids and row.content not in self.contents and self.urls.isdisjoint(row.urls):
            return False
        self.urls.update(row.urls)
        self.sample_ids.update([row.sample_id] if row.sample_id is not None else [])
        self.contents.update([row.content] if row.content is not None else [])
        return True

    def __call__(self, path: str) -> Iterator[tuple[Any, ...]]:
        if table_of(path) == "images":
            for image in rows_of(path, self.sample_ids, ["image"]) if self.sample_ids else ():
                content = image["image"]
                yield "image", image["sample_id"], sha256(content) if content else None, len(content or b"")
            return
        rows = [
            Row(row["sample_id"], tuple(map(sha256, url_forms(row["url"]))), row["sha256"])
            for row in read_parquet(path, ["sample_id", "url", "sha256"]).to_pylist()
        ]
        # What is found here is known to the others with the next look.
        for mine in Alike(set(self.sample_ids), set(self.urls), set(self.contents)).take(rows):
            yield "sample", *mine


@dataclasses.dataclass(frozen=True)
class SamePictures:
    """A part of ``images`` → the samples whose stored picture is one of these: SHA-256 and length."""

    pictures: set[tuple[str, int]]

    def __call__(self, path: str) -> Iterator[str]:
        lengths = {length for _, length in self.pictures}
        with open_parquet(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["sample_id", "image"]):
                for sample, image in zip(batch["sample_id"].to_pylist(), batch["image"], strict=True):
                    content = image.as_buffer() if image.is_valid else b""
                    if len(content) in lengths and (sha256(content), len(content)) in self.pictures:
                        yield sample


@dataclasses.dataclass(frozen=True)
class Members:
    """A part of ``duplicate_groups`` → (snapshot, group, sample) of some samples, and of some groups: (snapshot, group)."""

    sample_ids: set[str]
    groups: set[tuple[str, str]]

    def __call__(self, path: str) -> Iterator[tuple[str, str, str]]:
        snapshot, table = snapshot_of(path), read_parquet(path, ["sample_id", "group_id"])
        groups = {group for one, group in self.groups if one == snapshot}
        for row in table.filter(
            pc.or_(among(table["sample_id"], self.sample_ids), among(table["group_id"], groups))
        ).to_pylist():
            yield snapshot, row["group_id"], row["sample_id"]


def groups_of(workers: Workers, sample_ids: set[str]) -> set[tuple[str, str]]:
    """(snapshot, group) of the duplicate groups that these samples are members of."""
    found = workers.each(workers.lake.every_part("duplicate_groups"), Members(sample_ids, set()))
    return {(snapshot, group) for snapshot, group, _ in found}


class Chosen:
    """The samples that are meant, and all that are the same picture: grows by what it finds in the lake.

    Attributes:
        sample_ids: of all of them.
        urls, contents: SHA-256 of their urls, as they are compared and as they are, and of their bytes as downloaded.
        found: those of ``sample_ids`` and ``urls`` that the lake has, or has a tombstone for.
    """

    def __init__(self, workers: Workers, named: Named):
        self.workers, self.lake = workers, workers.lake
        self._alike = Alike(set(named.sample_ids), {sha256(plain_url(url)) for url in named.urls}, set())
        self.sample_ids, self.urls, self.contents = self._alike.sample_ids, self._alike.urls, self._alike.contents
        self.found = {row["sample_id"] for row in tombstone_rows(self.lake, ("sample",))}
        self._asked = -1
        self._pictures: set[tuple[str, int]] = set()
        self._compared: set[tuple[str, int]] = set()
        self._grow()

    def _grow(self) -> None:
        """Until nothing is added: samples of the same url, of the same bytes as downloaded, and as stored."""
        while True:
            while self._asked != (size := self._alike.size()):
                self._asked = size
                self._by_rows()
            if not (new := self._pictures - self._compared):
                return
            self.sample_ids.update(self.workers.each(self.lake.every_part("images"), SamePictures(new)))
            self._compared |= new

    def _by_rows(self) -> None:
        """Those of the same url or bytes, from tombstones, by which those are known that are gone, and from the lake."""
        rows = []
        for grave in tombstone_rows(self.lake, ("url", "content")):
            is_url = grave["kind"] == "url"
            rows.append(Row(grave["sample_id"], (grave["sha256"],) if is_url else (), None if is_url else grave["sha256"]))
        parts = [*self.lake.every_part("samples"), *self.lake.every_part("images")]
        for kind, sample, *values in self.workers.each(parts, self._alike):
            if kind == "sample":
                rows.append(Row(sample, tuple(values[0]), values[1]))
                continue
            self.found.add(sample)
            self._pictures.update([(values[0], values[1])] if values[0] else [])
        for taken in self._alike.take(rows):
            self.found.update(taken.urls, [taken.sample_id] if taken.sample_id is not None else [])
        for grave in tombstone_rows(self.lake, ("picture",)):
            if grave["sample_id"] in self.sample_ids:
                self._pictures.add((grave["sha256"], grave["length"]))

    def add_duplicates(self) -> None:
        """The members of their duplicate groups, in every snapshot."""
        groups = groups_of(self.workers, self.sample_ids)
        members = self.workers.each(self.lake.every_part("duplicate_groups") if groups else (), Members(set(), groups))
        self.sample_ids.update(sample for _, _, sample in members)
        self._grow()

    def unknown(self, named: Named) -> tuple[list[str], int]:
        """The named sample_ids that the lake doesn't have, sorted; and of how many urls that is so."""
        ids = sorted(named.sample_ids - self.found)
        return ids, sum(sha256(plain_url(url)) not in self.found for url in named.urls)


def url_forms(url: str | None) -> set[str]:
    """A url as it is, and as it is compared."""
    return {url, plain_url(url)} if url else set()
