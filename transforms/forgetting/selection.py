"""What is meant by a request to forget."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from transforms.errors import UserError
from transforms.forgetting.rows import BATCH_ROWS, among, rows_of
from transforms.store.files import open_parquet, read_bytes, read_parquet
from transforms.store.lake import Lake, snapshot_of
from transforms.store.tombstones import plain_url, sha256, tombstone_rows

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
                yield row["sample_id"], set(map(sha256, url_forms(row["url"]))), row["sha256"]

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
                for batch in file.iter_batches(BATCH_ROWS, columns=["sample_id", "image"]):
                    for sample, image in zip(batch["sample_id"].to_pylist(), batch["image"], strict=True):
                        content = image.as_buffer() if image.is_valid else b""
                        if len(content) in lengths and (sha256(content), len(content)) in pictures:
                            self.sample_ids.add(sample)

    def add_duplicates(self) -> None:
        """The members of their duplicate groups, in every snapshot."""
        members: set[str] = set()
        for snapshot in sorted({snapshot_of(path) for path in self.lake.every_part("duplicate_groups")}):
            table = self.lake.read("duplicate_groups", snapshot, ["sample_id", "group_id"])
            groups = set(table.filter(among(table["sample_id"], self.sample_ids))["group_id"].to_pylist())
            members.update(table.filter(among(table["group_id"], groups))["sample_id"].to_pylist())
        self.sample_ids |= members
        self._grow()

    def unknown(self, named: Named) -> tuple[list[str], int]:
        """The named sample_ids that the lake doesn't have, sorted; and of how many urls that is so."""
        ids = sorted(named.sample_ids - self.found)
        return ids, sum(sha256(plain_url(url)) not in self.found for url in named.urls)


def url_forms(url: str | None) -> set[str]:
    """A url as it is, and as it is compared."""
    return {url, plain_url(url)} if url else set()
