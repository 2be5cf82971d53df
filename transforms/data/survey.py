"""What a source holds, before anything of it is read: partitions, and what names their content."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

import pyarrow as pa

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


@dataclasses.dataclass(frozen=True)
class Partition:
    """A piece of a source that one worker reads.

    Attributes:
        name: where it is, for ``Source.read``.
        rows: how many samples it has.
        fingerprints: name the content of its pieces, wherever they lie: one of a metadata file, or one of each picture of a
            folder, which then has a row for each.
    """

    name: str
    rows: int
    fingerprints: tuple[str, ...]


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
