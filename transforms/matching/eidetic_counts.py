"""k of (k, l, delta): how many training images lie near an extracted one, over the whole training set, by pixels.

Exact: thumbnails rule out nearly all (kernels/bounds.py), and the pictures of what is left are compared.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms.data.images import PicturesByCode
from transforms.kernels.bounds import SLACK, band_sums, lower_bounds
from transforms.kernels.distances import resize_shorter_side, square_at
from transforms.matching.gathering import images_at
from transforms.matching.tasks import Snapshots
from transforms.store.counters import count
from transforms.store.files import read_parquet
from transforms.store.lake import Lake
from transforms.store.pictures import decode
from transforms.store.sharing import Shared
from transforms.store.tombstones import Tombstones

AT_ONCE = 1024
"""Targets whose bounds are held at once."""


@dataclasses.dataclass(frozen=True)
class Sought:
    """Square pictures of one size that something near is looked for of.

    Attributes:
        names: of each.
        sums: their ``band_sums``.
        within: (t,) float64: how near.
    """

    names: Sequence[str]
    sums: np.ndarray
    within: np.ndarray


def possible(
    lake: Lake, snapshots: Snapshots, part: int, sought: Sought, allowed: np.ndarray | None = None
) -> dict[int, list[int]]:
    """Row of a part of ``images`` → numbers of what is sought that it may lie near, by its thumbnail.

    Args:
        lake, snapshots: where images and embeddings are.
        part: of ``images``.
        sought: what is looked for.
        allowed: (n,) bool of the part's rows; None for all training images.
    """
    table = read_parquet(lake.paths("embeddings", snapshots.embed)[part], ["sample_id", "role", "thumbnail"])
    sizes = read_parquet(lake.paths("images", snapshots.ingest)[part], ["width", "height"])
    width, height = sizes["width"].to_numpy(), sizes["height"].to_numpy()
    there = table["thumbnail"].is_valid().to_numpy(zero_copy_only=False)
    there &= table["role"].to_numpy(zero_copy_only=False) == "training"
    forgotten = Tombstones.read(lake).samples
    if forgotten:
        there &= ~np.isin(table["sample_id"].to_numpy(zero_copy_only=False), list(forgotten))
    rows = np.flatnonzero(there if allowed is None else there & allowed)
    pixels = np.frombuffer(b"".join(table["thumbnail"].take(pa.array(rows)).to_pylist()), np.uint8).reshape(len(rows), -1)
    found: dict[int, list[int]] = collections.defaultdict(list)
    shape = np.stack([width[rows], height[rows]], axis=1)
    for one in np.unique(shape, axis=0).tolist():
        mine = np.flatnonzero((shape == one).all(axis=1))
        for start in range(0, len(sought.names), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            bounds = lower_bounds(sought.sums[some], pixels[mine], *one)
            near, column = np.nonzero(bounds <= sought.within[some, None] + SLACK)
            for target, place in zip((near + start).tolist(), rows[mine[column]].tolist(), strict=True):
                found[place].append(target)
    return found


class CountWithin(beam.DoFn):
    """Number of a part of ``images`` → (target sample_id, training images of this part within eidetic_delta of it).

    The targets are a Parquet file of sample_id, code, offset and side: the crop that matched.
    """

    def __init__(self, lake: Lake, snapshots: Snapshots, targets: str, eidetic_delta: float):
        self.lake, self.snapshots, self.eidetic_delta = lake, snapshots, eidetic_delta
        pictures = PicturesByCode(lake, snapshots.ingest)
        self._targets = Shared(lambda: _Targets(pictures, targets, eidetic_delta))

    def process(self, number: int) -> Iterator[tuple[str, int]]:
        counts: collections.Counter[str] = collections.Counter()
        path = self.lake.paths("images", self.snapshots.ingest)[number]
        by_side, crop = self._targets.get().by_side, self._targets.get().crop
        for side, (targets, sought) in by_side.items():
            possibly = possible(self.lake, self.snapshots, number, sought)
            for row, (_, image) in images_at(path, np.array(sorted(possibly), np.int64)):
                if image is None:
                    continue
                picture = resize_shorter_side(np.asarray(decode(image)), side)
                numbers = possibly[row]
                crops = np.stack([crop(targets[one]) for one in numbers]).reshape(len(numbers), -1)
                near = within(crops.astype(np.float64) / 255, picture, side, self.eidetic_delta)
                counts.update(targets[numbers[one]]["sample_id"] for one in np.flatnonzero(near))
            count("pictures looked at for k", len(possibly))
        yield from counts.items()


class _Targets:
    """What is counted.

    Attributes:
        by_side: side in pixels → rows of the targets, and how near something must come to each.
    """

    def __init__(self, pictures: PicturesByCode, targets: str, eidetic_delta: float):
        self._pictures = pictures
        self.by_side: dict[int, tuple[list[dict[str, Any]], Sought]] = {}
        rows = read_parquet(targets).to_pylist()
        for side in sorted({row["side"] for row in rows}):
            mine = [row for row in rows if row["side"] == side]
            sums = [band_sums(self.crop(row)[None])[0] for row in mine]
            within = np.full(len(mine), eidetic_delta)
            self.by_side[side] = mine, Sought([row["sample_id"] for row in mine], np.stack(sums), within)

    def crop(self, target: dict[str, Any]) -> np.ndarray:
        """(side, side, 3) uint8: the square of the target's picture that matched."""
        whole = resize_shorter_side(self._pictures.get(target["code"], target["sample_id"]), target["side"])
        return np.ascontiguousarray(square_at(whole, target["offset"]))


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
        snapshots: the training set.
        targets: the Parquet file of targets.
        eidetic_delta: the radius.
        audit: the audit's columns.
    """

    lake: Lake
    snapshot: str
    snapshots: Snapshots
    targets: str
    eidetic_delta: float
    audit: dict[str, str]

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        return (
            parts
            | "CountWithin" >> beam.ParDo(CountWithin(self.lake, self.snapshots, self.targets, self.eidetic_delta))
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
