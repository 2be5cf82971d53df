"""How near to unique a find is: k of (k, l, delta)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

import apache_beam as beam
import numpy as np

from transforms.kernels.distances import (
    resize_shorter_side,
    square_at,
)
from transforms.store.files import read_parquet, read_rows
from transforms.store.lake import Lake
from transforms.store.pictures import decode
from transforms.store.tombstones import Tombstones

# -- k of (k, l, delta) ---------------------------------------------------------------------------------------------


class CountWithin(beam.DoFn):
    """Number of a part of ``images`` → (target sample_id, training images of this part within eidetic_delta of it).

    The targets are a Parquet file of sample_id, side, crop (raw bytes, side × side × 3): the crop that matched.
    """

    def __init__(self, lake: Lake, ingest: str, targets: str, eidetic_delta: float):
        self.lake, self.ingest, self.targets, self.eidetic_delta = lake, ingest, targets, eidetic_delta

    def setup(self) -> None:
        self._forgotten = Tombstones.read(self.lake).samples
        rows = read_parquet(self.targets).to_pylist()
        self._by_side: dict[int, tuple[list[str], np.ndarray]] = {}
        for side in sorted({row["side"] for row in rows}):
            mine = [row for row in rows if row["side"] == side]
            crops = np.stack([np.frombuffer(row["crop"], np.uint8) for row in mine]).astype(np.float64) / 255
            self._by_side[side] = [row["sample_id"] for row in mine], crops

    def process(self, number: int) -> Iterator[tuple[str, int]]:
        counts: collections.Counter[str] = collections.Counter()
        for row in read_rows(self.lake.paths("images", self.ingest)[number], ["sample_id", "role", "image"]):
            if row["role"] != "training" or row["image"] is None or row["sample_id"] in self._forgotten:
                continue
            picture = np.asarray(decode(row["image"]))
            for side, (samples, crops) in self._by_side.items():
                near = within(crops, resize_shorter_side(picture, side), side, self.eidetic_delta)
                counts.update(samples[index] for index in np.flatnonzero(near))
        yield from counts.items()


def within(crops: np.ndarray, picture: np.ndarray, side: int, delta: float) -> np.ndarray:
    """Which targets some square crop of a picture comes near to.

    Args:
        crops: (t, side · side · 3) float64 in [0, 1].
        picture: (H, W, 3) uint8 whose shorter side is ``side``.
        side: pixels.
        delta: l2.

    Returns:
        (t,) bool.
    """
    near = np.zeros(len(crops), dtype=bool)
    squares = (crops**2).sum(axis=1)
    for offset in range(max(picture.shape[:2]) - side + 1):
        flat = square_at(picture, offset).reshape(-1).astype(np.float64) / 255
        near |= squares + flat @ flat - 2 * crops @ flat <= delta**2 * crops.shape[1] + 1e-9
    return near


@dataclasses.dataclass
class CountMemories(beam.PTransform):
    """Parts of ``images`` (numbers), spread → one part of ``eidetic_counts``, written here.

    Attributes:
        lake, snapshot: where to write.
        ingest: the training set.
        targets: the Parquet file of crops.
        eidetic_delta: the radius.
        audit: the audit's columns.
    """

    lake: Lake
    snapshot: str
    ingest: str
    targets: str
    eidetic_delta: float
    audit: dict[str, str]

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        return (
            parts
            | "CountWithin" >> beam.ParDo(CountWithin(self.lake, self.ingest, self.targets, self.eidetic_delta))
            | "SumByTarget" >> beam.CombinePerKey(sum)
            | "Gather" >> beam.combiners.ToList()
            | "WriteCounts" >> beam.Map(self._write)
        )

    def _write(self, counts: list[tuple[str, int]]) -> int:
        rows = [
            {**self.audit, "sample_id": sample, "eidetic_delta": self.eidetic_delta, "k": count}
            for sample, count in sorted(counts)
        ]
        self.lake.write("eidetic_counts", self.snapshot, 0, rows)
        return len(rows)
