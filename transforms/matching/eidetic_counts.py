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
from transforms.kernels.bounds import BandSums, band_sums, within_reach
from transforms.kernels.distances import MAX_ASPECT_RATIO, Frame, covering, crop_at, squared_at_offsets, squared_bytes
from transforms.kernels.thumbnails import LENGTH
from transforms.matching.gathering import images_at
from transforms.matching.tasks import Snapshots
from transforms.matching.unreadable import note
from transforms.store.counters import count
from transforms.store.files import read_parquet
from transforms.store.lake import Lake
from transforms.store.pictures import stored_array
from transforms.store.sharing import Shared
from transforms.store.tombstones import Tombstones

AT_ONCE = 1024
"""Targets whose bounds are held at once."""

AT_A_TIME = 64
"""Pictures that a thread looks at in one go."""


@dataclasses.dataclass(frozen=True)
class Sought:
    """Pictures of one size that something near is looked for of.

    Attributes:
        names: of each.
        frame: their size.
        sums: their ``band_sums``, or those of their block means.
        within: (t,) float64: how near.
    """

    names: Sequence[str]
    frame: Frame
    sums: BandSums
    within: np.ndarray


def targets_at_once(frames: Iterable[Frame], memory: int) -> int:
    """How many targets of these sizes are counted in one pass over the pictures, in so many bytes."""
    of_one = max((band_sums(np.zeros((1, *frame, 3), np.uint8)).nbytes for frame in set(frames)), default=1)
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
    width, height = (sizes[name].to_numpy().astype(np.int64) for name in ("width", "height"))
    there = table["thumbnail"].is_valid().to_numpy(zero_copy_only=False)
    there &= table["role"].to_numpy(zero_copy_only=False) == "training"
    forgotten = Tombstones.read(lake).samples
    if forgotten:
        there &= ~np.isin(table["sample_id"].to_numpy(zero_copy_only=False), list(forgotten))
    # Those are compared with nothing.
    for along, across in ((width, height), (width * sought.frame.height, height * sought.frame.width)):
        there &= np.maximum(along, across) <= MAX_ASPECT_RATIO * np.minimum(along, across)
    rows = np.flatnonzero(there)
    pixels = np.frombuffer(b"".join(table["thumbnail"].take(pa.array(rows)).to_pylist()), np.uint8).reshape(-1, LENGTH)
    shape = np.stack([width[rows], height[rows]], axis=1)
    pairs = [np.empty((2, 0), np.int64)]
    for one in np.unique(shape, axis=0).tolist():
        mine = np.flatnonzero((shape == one).all(axis=1))
        for start in range(0, len(sought.names), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            sums, within = sought.sums.some(some), sought.within[some]
            number, place = within_reach(sums, pixels[mine], one[0], one[1], within, sought.frame)
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
        targets: a Parquet file of sample_id, code, offset, height and width: the crop that matched.
        eidetic_delta: the radius.
    """

    def __init__(self, lake: Lake, snapshots: Snapshots, snapshot: str, targets: str, eidetic_delta: float):
        self.lake, self.snapshots, self.snapshot, self.eidetic_delta = lake, snapshots, snapshot, eidetic_delta
        pictures = PicturesByCode(lake, snapshots.ingest)
        self._targets = Shared(lambda: _Targets(pictures, targets, eidetic_delta))

    def _note(self, sample: str, error: ValueError) -> None:
        note(self.lake, self.snapshot, "images", error, sample_id=sample)

    def process(self, number: int) -> Iterator[tuple[str, int | None]]:
        targets = self._targets.get()
        path = self.lake.paths("images", self.snapshots.ingest)[number]
        counts: collections.Counter[str] = collections.Counter()
        for frame, sought in targets.by_frame.items():
            possibly = possible(self.lake, self.snapshots, number, sought)
            images = list(images_at(path, np.array(sorted(possibly), np.int64)))

            def near(some: list, frame: Frame = frame, possibly: dict[int, np.ndarray] = possibly) -> list[int]:
                found = []
                for row, (sample, image) in some:
                    if image is None:
                        continue
                    try:
                        picture, numbers = covering(stored_array(image), frame), possibly[row].tolist()
                    except ValueError as error:  # damaged, or far too long for the frame
                        self._note(sample, error)
                        continue
                    found += [
                        one
                        for one in numbers
                        if (crop := targets.crop(frame, one)) is not None and is_near(crop, picture, self.eidetic_delta)
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
        by_frame: the targets of each size.
        unreadable: of what can't be decoded any more, why: nothing is counted for them.
        pool: a thread for each core.
    """

    def __init__(self, pictures: PicturesByCode, targets: str, eidetic_delta: float):
        self._pictures = pictures
        self._rows: dict[Frame, list[dict[str, Any]]] = {}
        self.by_frame: dict[Frame, Sought] = {}
        self.unreadable: dict[str, ValueError] = {}
        self.pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1)
        rows = read_parquet(targets).to_pylist()
        for frame in sorted({Frame(row["height"], row["width"]) for row in rows}):
            # One crop at a time: it takes many times what is kept of it.
            mine = [row for row in rows if (row["height"], row["width"]) == frame]
            sums = [(row, band_sums(crop[None])) for row in mine if (crop := self._crop(row)) is not None]
            self._rows[frame] = [row for row, _ in sums]
            if sums:
                names = [row["sample_id"] for row, _ in sums]
                together = BandSums(*(np.concatenate(some) for some in zip(*(one for _, one in sums), strict=True)))
                self.by_frame[frame] = Sought(names, frame, together, np.full(len(names), eidetic_delta))

    def crop(self, frame: Frame, number: int) -> np.ndarray | None:
        """(height, width, 3) uint8: the crop of a target's picture that matched; None where it can't be decoded any more."""
        return self._crop(self._rows[frame][number])

    def _crop(self, target: dict[str, Any]) -> np.ndarray | None:
        frame = Frame(target["height"], target["width"])
        try:
            whole = covering(self._pictures.get(target["code"], target["sample_id"]), frame)
        except ValueError as error:  # damaged, or far too long for the frame
            self.unreadable[target["sample_id"]] = error
            return None
        return crop_at(whole, frame, target["offset"])


def is_near(crop: np.ndarray, picture: np.ndarray, delta: float) -> bool:
    """Whether some crop of a picture lies within ``delta`` of another one in l2: exact, in whole numbers.

    Args:
        crop: (h, w, 3) uint8.
        picture: (H, W, 3) uint8 that covers it.
        delta: l2.
    """
    whole = picture.shape == crop.shape
    nearest = squared_bytes(crop, picture) if whole else float(squared_at_offsets(crop, picture).min())
    return nearest <= delta**2 * 255**2 * crop.size


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
