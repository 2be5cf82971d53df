"""k of (k, l, delta): how many training images lie near an extracted one, over the whole training set, by pixels.

Exact: thumbnails rule out nearly all (kernels/bounds.py), and the pictures of what is left are compared.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms.data.images import PicturesByCode
from transforms.kernels.bounds import band_sums, within_reach
from transforms.kernels.distances import MAX_ASPECT_RATIO, resize_shorter_side, square_at, squared_at_offsets, squared_bytes
from transforms.kernels.thumbnails import LENGTH
from transforms.matching.gathering import images_at
from transforms.matching.tasks import Snapshots
from transforms.matching.unreadable import note
from transforms.store.counters import count
from transforms.store.files import read_parquet
from transforms.store.lake import Lake
from transforms.store.pictures import DamagedPicture, stored_array
from transforms.store.sharing import Shared
from transforms.store.tombstones import Tombstones

AT_ONCE = 1024
"""Targets whose bounds are held at once."""

AT_A_TIME = 64
"""Pictures that a thread looks at in one go."""


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


def targets_at_once(side: int, memory: int) -> int:
    """How many targets of so many pixels along each side are counted in one pass over the pictures, in so many bytes."""
    of_one = band_sums(np.zeros((1, side, side, 3), np.uint8)).nbytes
    return max(1, memory // of_one)


def possible(lake: Lake, snapshots: Snapshots, part: int, sought: Sought) -> dict[int, np.ndarray]:
    """Row of a part of ``images`` → numbers of what is sought that it may lie near, by its thumbnail.

    Args:
        lake, snapshots: where images and embeddings are.
        part: of ``images``.
        sought: what is looked for.
    """
    table = read_parquet(lake.paths("embeddings", snapshots.embed)[part], ["sample_id", "role", "thumbnail"])
    sizes = read_parquet(lake.paths("images", snapshots.ingest)[part], ["width", "height"])
    width, height = sizes["width"].to_numpy(), sizes["height"].to_numpy()
    there = table["thumbnail"].is_valid().to_numpy(zero_copy_only=False)
    there &= table["role"].to_numpy(zero_copy_only=False) == "training"
    forgotten = Tombstones.read(lake).samples
    if forgotten:
        there &= ~np.isin(table["sample_id"].to_numpy(zero_copy_only=False), list(forgotten))
    # Those are compared with nothing.
    there &= np.maximum(width, height) <= MAX_ASPECT_RATIO * np.minimum(width, height)
    rows = np.flatnonzero(there)
    pixels = np.frombuffer(b"".join(table["thumbnail"].take(pa.array(rows)).to_pylist()), np.uint8).reshape(-1, LENGTH)
    shape = np.stack([width[rows], height[rows]], axis=1)
    pairs = [np.empty((2, 0), np.int64)]
    for one in np.unique(shape, axis=0).tolist():
        mine = np.flatnonzero((shape == one).all(axis=1))
        for start in range(0, len(sought.names), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            number, place = within_reach(sought.sums[some], pixels[mine], one[0], one[1], sought.within[some])
            pairs.append(np.stack([rows[mine[place]], number + start]))
    row, number = np.concatenate(pairs, axis=1)
    order = np.argsort(row, kind="stable")
    row, number = row[order], number[order]
    starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]) if len(row) else np.empty(0, np.int64)
    return dict(zip(row[starts].tolist(), np.split(number, starts[1:]), strict=True)) if len(row) else {}


class CountWithin(beam.DoFn):
    """Number of a part of ``images`` → (target sample_id, training images of this part within eidetic_delta of it).

    None instead of the number: the target's own picture can't be decoded any more. It is noted, as is any other that can't.

    Args:
        lake, snapshots, snapshot: where images are, and of which match what can't be decoded is noted.
        targets: a Parquet file of sample_id, code, offset and side: the crop that matched.
        eidetic_delta: the radius.
    """

    def __init__(self, lake: Lake, snapshots: Snapshots, snapshot: str, targets: str, eidetic_delta: float):
        self.lake, self.snapshots, self.snapshot, self.eidetic_delta = lake, snapshots, snapshot, eidetic_delta
        pictures = PicturesByCode(lake, snapshots.ingest)
        self._targets = Shared(lambda: _Targets(pictures, targets, eidetic_delta))

    def _note(self, sample: str, error: DamagedPicture) -> None:
        note(self.lake, self.snapshot, "images", error, sample_id=sample)

    def process(self, number: int) -> Iterator[tuple[str, int | None]]:
        targets = self._targets.get()
        path = self.lake.paths("images", self.snapshots.ingest)[number]
        counts: collections.Counter[str] = collections.Counter()
        for side, sought in targets.by_side.items():
            possibly = possible(self.lake, self.snapshots, number, sought)
            images = list(images_at(path, np.array(sorted(possibly), np.int64)))

            def near(some: list, side: int = side, possibly: dict[int, np.ndarray] = possibly) -> list[int]:
                found = []
                for row, (sample, image) in some:
                    if image is None:
                        continue
                    try:
                        picture, numbers = resize_shorter_side(stored_array(image), side), possibly[row].tolist()
                    except DamagedPicture as error:
                        self._note(sample, error)
                        continue
                    found += [
                        one
                        for one in numbers
                        if (square := targets.crop(side, one)) is not None and is_near(square, picture, self.eidetic_delta)
                    ]
                return found

            # Decoding and comparing let go of Python's lock.
            some = [images[start : start + AT_A_TIME] for start in range(0, len(images), AT_A_TIME)]
            for found in targets.pool.map(near, some):
                counts.update(sought.names[one] for one in found)
            count("pictures looked at for k", len(possibly))
        yield from counts.items()
        for sample, error in list(targets.unreadable.items()):
            self._note(sample, error)
            yield sample, None


class _Targets:
    """What is counted, for all threads of a worker.

    Attributes:
        by_side: side in pixels → the targets of that size.
        unreadable: of what can't be decoded any more, why: nothing is counted for them.
        pool: a thread for each core.
    """

    def __init__(self, pictures: PicturesByCode, targets: str, eidetic_delta: float):
        self._pictures = pictures
        self._rows: dict[int, list[dict[str, Any]]] = {}
        self.by_side: dict[int, Sought] = {}
        self.unreadable: dict[str, DamagedPicture] = {}
        self.pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1)
        rows = read_parquet(targets).to_pylist()
        for side in sorted({row["side"] for row in rows}):
            # One crop at a time: it takes many times what is kept of it.
            mine = [row for row in rows if row["side"] == side]
            sums = [(row, band_sums(crop[None])[0]) for row in mine if (crop := self._crop(row)) is not None]
            self._rows[side] = [row for row, _ in sums]
            if sums:
                names = [row["sample_id"] for row, _ in sums]
                self.by_side[side] = Sought(names, np.stack([one for _, one in sums]), np.full(len(names), eidetic_delta))

    def crop(self, side: int, number: int) -> np.ndarray | None:
        """(side, side, 3) uint8: the square of a target's picture that matched; None where it can't be decoded any more."""
        return self._crop(self._rows[side][number])

    def _crop(self, target: dict[str, Any]) -> np.ndarray | None:
        try:
            whole = resize_shorter_side(self._pictures.get(target["code"], target["sample_id"]), target["side"])
        except DamagedPicture as error:
            self.unreadable[target["sample_id"]] = error
            return None
        return square_at(whole, target["offset"])


def is_near(square: np.ndarray, picture: np.ndarray, delta: float) -> bool:
    """Whether some square crop of a picture lies within ``delta`` of a square picture in l2: exact, in whole numbers.

    Args:
        square: (S, S, 3) uint8.
        picture: (H, W, 3) uint8 whose shorter side is S.
        delta: l2.
    """
    if picture.shape == square.shape:
        nearest = squared_bytes(square, picture)
    else:
        nearest = float(squared_at_offsets(square, picture).min())
    return nearest <= delta**2 * 255**2 * square.size


@dataclasses.dataclass
class CountMemories(beam.PTransform):
    """Parts of ``images`` (numbers), spread → one part of ``eidetic_counts``, written here.

    Attributes:
        lake, snapshot: where to write.
        snapshots: the training set.
        targets: the Parquet file of targets.
        part: of ``eidetic_counts`` that they become.
        eidetic_delta: the radius.
        audit: the audit's columns.
    """

    lake: Lake
    snapshot: str
    snapshots: Snapshots
    targets: str
    part: int
    eidetic_delta: float
    audit: dict[str, str]

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        counting = CountWithin(self.lake, self.snapshots, self.snapshot, self.targets, self.eidetic_delta)
        return (
            parts
            | "CountWithin" >> beam.ParDo(counting)
            | "SumByTarget" >> beam.CombinePerKey(_sum)
            | "Gather" >> beam.combiners.ToList()
            | "WriteCounts" >> beam.Map(self._write)
        )

    def _write(self, counts: list[tuple[str, int | None]]) -> int:
        rows = [
            {**self.audit, "sample_id": sample, "eidetic_delta": self.eidetic_delta, "k": count}
            for sample, count in sorted(counts)
        ]
        self.lake.write("eidetic_counts", self.snapshot, self.part, rows)
        return len(rows)


def _sum(counts: Iterable[int | None]) -> int | None:
    """None where one of the parts couldn't count."""
    total = 0
    for one in counts:
        if one is None:
            return None
        total += one
    return total
