"""What a source holds, before anything of it is read: partitions, and what names their content."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from transforms.store.identity import digest

BATCH_ROWS = 10_000
"""Rows of metadata that are held at once."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
"""What data sets call the class of a picture; the first that is there is taken."""

ROW = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("label", pa.string()),
        ("punsafe", pa.float32()),
        ("pwatermark", pa.float32()),
        ("similarity", pa.float32()),
        ("metadata_hash", pa.string()),
        ("metadata_width", pa.int32()),
        ("metadata_height", pa.int32()),
        ("source_row", pa.int64()),
    ]
)
"""A row of any source. Null where the source doesn't say."""


RANGE_BYTES = 128 << 20
"""Of a large file that are read by themselves, wherever there is a worker, about: of Parquet without its compression."""

SPLIT = "split"
"""The column, beside those of ``ROW``, in which a source says of which split of the data set a row is, where it was asked."""


class FileRange(NamedTuple):
    """A stretch of a file that can be read by itself.

    Attributes:
        start, end: of it: bytes, or of Parquet the numbers of row groups.
        first_row: the number in the file of its first row.
        rows: how many it has.
    """

    start: int
    end: int
    first_row: int
    rows: int


def in_ranges(pieces: Iterable[tuple[int, int, int]], start: int = 0) -> tuple[FileRange, ...]:
    """The pieces of a file, put together to ranges of ``RANGE_BYTES`` or more; the last may be smaller.

    Args:
        pieces: (where it ends, bytes, rows) of each, in their order.
        start: where the first begins.
    """
    ranges: list[FileRange] = []
    first = held = rows = 0
    end = start
    for end, size, more in pieces:
        held, rows = held + size, rows + more
        if held >= RANGE_BYTES:
            ranges.append(FileRange(start, end, first, rows))
            start, first, held, rows = end, first + rows, 0, 0
    return (*ranges, FileRange(start, end, first, rows)) if end > start or not ranges else tuple(ranges)


@dataclasses.dataclass(frozen=True)
class Partition:
    """A piece of a source.

    Attributes:
        name: where it is, for ``Source.read``.
        rows: how many samples it has.
        fingerprints: name the content of its pieces, wherever they lie: one of a metadata file, or one of each picture of a
            folder, which then has a row for each.
        ranges: in which it can be read; () for all of it at once.
        splits: split of the data set → rows of it, where the rows say so themselves; "" where one doesn't.
        only: the splits whose rows are samples; None for all.
    """

    name: str
    rows: int
    fingerprints: tuple[str, ...]
    ranges: tuple[FileRange, ...] = ()
    splits: dict[str, int] = dataclasses.field(default_factory=dict, hash=False)
    only: tuple[str, ...] | None = None

    def pieces(self) -> list[Partition]:
        """Its ranges, which workers read one by one."""
        return [dataclasses.replace(self, ranges=(one,)) for one in self.ranges] if len(self.ranges) > 1 else [self]

    def samples_of(self, table: pa.Table) -> pa.Table:
        """Those rows of what a source read that are samples."""
        if self.only is None:
            return table
        chosen = pc.is_in(pc.fill_null(table[SPLIT], ""), pa.array(self.only, pa.string()))
        return table.filter(chosen).drop_columns(SPLIT)


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a source holds: one partition or more, with at least one row in all.

    Attributes:
        partitions: of it.
        left_out: what lies there and is no sample → how often: endings of files that aren't read, pipes, entries of nothing.
    """

    partitions: list[Partition]
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)

    @property
    def fingerprints(self) -> list[str]:
        """Of all its pieces."""
        return [one for partition in self.partitions for one in partition.fingerprints]

    @property
    def fingerprint(self) -> str:
        """Names the content, wherever it lies."""
        return digest("survey", sorted(self.fingerprints))

    def without(self, fingerprints: Iterable[str]) -> Survey | None:
        """The pieces beside those, as often as they are there; None unless all of those are."""
        known = collections.Counter(fingerprints)
        others = []
        for partition in self.partitions:
            left = []
            for one in partition.fingerprints:
                if known[one] > 0:
                    known[one] -= 1
                else:
                    left.append(one)
            if len(left) == len(partition.fingerprints):
                others.append(partition)
            elif left:
                others.append(dataclasses.replace(partition, rows=len(left), fingerprints=tuple(left)))
        return None if known.total() else dataclasses.replace(self, partitions=others)

    def splits(self, asked: Sequence[str]) -> dict[str, int]:
        """Split of the data set → rows, by what the rows say, or else by names of files; "" where neither does.

        Args:
            asked: names of splits that folders and files may have, beside those that ``split_named`` knows.
        """
        found: collections.Counter[str] = collections.Counter()
        for splits in self._splits(asked):
            found.update(splits)
        return dict(found)

    def of_splits(self, asked: Sequence[str], others: bool = False) -> Survey:
        """What is of the splits that are asked for; or of all others, with what was left out."""
        wanted = {same_split(one) for one in asked}
        chosen = []
        for partition, splits in zip(self.partitions, self._splits(asked), strict=True):
            only = tuple(split for split in splits if (same_split(split) in wanted) != others)
            if rows := sum(splits[split] for split in only):
                mine = {split: splits[split] for split in only}
                some = None if len(only) == len(splits) else only
                chosen.append(dataclasses.replace(partition, rows=rows, splits=mine, only=some))
        return Survey(chosen, self.left_out if others else {})

    def _splits(self, asked: Sequence[str]) -> list[dict[str, int]]:
        # Beside one another: what the folder above all of them is called says nothing of any.
        paths = [one.name.split("/") for one in self.partitions]
        above = 0
        while len({tuple(path[: above + 1]) for path in paths}) == 1 and all(len(path) > above + 1 for path in paths):
            above += 1
        return [
            one.splits or {split_named("/".join(path[above:]), asked): one.rows}
            for one, path in zip(self.partitions, paths, strict=True)
        ]


_SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Words in names of files and folders, as ``datasets`` knows them → the split that they mean."""


def same_split(name: str) -> str:
    """The one name of a split that has several: "validation" for "val", "Valid" and "dev"."""
    name = name.strip().lower()
    return _SPLITS.get(name, name)


def split_named(path: str, asked: Sequence[str] = ()) -> str:
    """The split of a data set that a path inside it names, as ``datasets`` understands names; "" where it names none.

    A name is that of a split that is asked for, or has a word in it that means one (train, test, val, …). Folders are looked
    at before the file, the innermost first: ``train/test-tube.png`` is of train. A shard's name is looked at before them
    where all of it is such a name (``data/test-00000-of-00002.parquet``), and at the end it may name any split.
    """
    *folders, file = path.replace(os.sep, "/").split("/")
    names = {one.strip().lower(): one for one in asked}
    shard = re.match(r"(.+)-\d{5,}-of-\d{5,}", file)
    if shard and (whole := shard[1].lower()) in {*names, *_SPLITS}:
        return names.get(whole) or _SPLITS[whole]
    for part in (*reversed(folders), re.sub(r"(\.\w+)+$", "", file), file):
        part = part.lower().removeprefix(f"{SPLIT}=")
        if part in names:
            return names[part]
        for word in re.split(r"[-._ 0-9=]+", part):
            if word in _SPLITS:
                return _SPLITS[word]
    return shard[1] if shard else ""
