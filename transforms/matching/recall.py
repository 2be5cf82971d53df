"""How many of the nearest training images were among the candidates: against brute force, on a sample of the generations.

Every representative is looked at: by its thumbnail, which rules out nearly all (kernels/bounds.py), and the rest by its
picture.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms.data.images import ROW_BITS
from transforms.kernels.bounds import band_sums
from transforms.kernels.distances import COARSE, Frame, central_crop, coarse_l2
from transforms.matching.directory import Directory
from transforms.matching.eidetic_counts import Sought, possible
from transforms.matching.gathering import images_at
from transforms.matching.parts import sampled_rows
from transforms.matching.tasks import Snapshots
from transforms.matching.unreadable import note
from transforms.store.files import write_parquet
from transforms.store.lake import Lake
from transforms.store.pictures import stored_array
from transforms.store.sharing import Shared


class NearestByBruteForce(beam.DoFn):
    """Number of a part of ``images`` → (sampled generation, (coarse l2, group) of its two nearest groups in that part).

    What can't be nearer than the two nearest candidates is not looked at.

    Args:
        lake, snapshots, snapshot: where images, the directory and sampled generations are.
    """

    def __init__(self, lake: Lake, snapshots: Snapshots, snapshot: str):
        self.lake, self.snapshots, self.snapshot = lake, snapshots, snapshot
        self._sampled = Shared(lambda: _sampled_by_frame(lake, snapshot))

    def process(self, number: int) -> Iterator[tuple[str, list[tuple[float, str]]]]:
        directory = Directory(self.lake, self.snapshots.deduplicate).part(number)
        groups = {
            code & ((1 << ROW_BITS) - 1): group
            for code, group, first in zip(
                directory["code"].to_pylist(), directory["group_id"].to_pylist(), directory["representative"].to_pylist(),
                strict=True,
            )
            if first
        }  # fmt: skip
        path = self.lake.paths("images", self.snapshots.ingest)[number]
        nearest: dict[str, list[tuple[float, str]]] = collections.defaultdict(list)
        for frame, (sought, coarse) in self._sampled.get().items():
            possibly = possible(self.lake, self.snapshots, number, sought)
            rows = np.array(sorted(possibly.keys() & groups.keys()), np.int64)
            for row, (sample, image) in images_at(path, rows):
                if image is None:
                    continue
                # Of a picture of another shape its middle; the candidates' best crop may be nearer.
                try:
                    crop = central_crop(stored_array(image), frame)
                except ValueError as error:  # damaged, or far too long for the frame
                    note(self.lake, self.snapshot, "images", error, sample_id=sample)
                    continue
                numbers = possibly[row]
                distances = coarse_l2(coarse[numbers], crop)
                for one, distance in zip(numbers.tolist(), distances.tolist(), strict=True):
                    key = sought.names[one]
                    nearest[key] = sorted([*nearest[key], (distance, groups[row])])[:2]
        yield from nearest.items()


def _sampled_by_frame(lake: Lake, snapshot: str) -> dict[Frame, tuple[Sought, np.ndarray]]:
    """The sampled generations of each size: how near something must come, and their block means."""
    rows = sampled_rows(lake, snapshot)
    found = {}
    for frame in sorted({Frame(row["height"], row["width"]) for row in rows}):
        mine = [row for row in rows if (row["height"], row["width"]) == frame]
        blocks = [min(COARSE, length) for length in frame]
        coarse = np.stack([np.frombuffer(row["coarse"], np.float32) for row in mine]).reshape(-1, *blocks, 3)
        sums = band_sums(np.rint(coarse * 255).astype(np.uint8))
        within = np.array([np.inf if row["next"] is None else row["next"] for row in mine])
        found[frame] = Sought([row["key"] for row in mine], frame, sums, within), coarse
    return found


@dataclasses.dataclass
class NearestOfAll(beam.PTransform):
    """Parts of ``images`` (numbers), spread → the file ``path``: of each sampled generation its two nearest groups.

    Attributes:
        lake, snapshots, snapshot: where images, the directory and sampled generations are.
        path: Parquet with key, distances (coarse l2, rising) and groups.
    """

    lake: Lake
    snapshots: Snapshots
    snapshot: str
    path: str

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        return (
            parts
            | "NearestByBruteForce" >> beam.ParDo(NearestByBruteForce(self.lake, self.snapshots, self.snapshot))
            | "NearestOfParts" >> beam.CombinePerKey(_two_nearest)
            | "Gather" >> beam.combiners.ToList()
            | "WriteNearest" >> beam.Map(self._write)
        )

    def _write(self, found: list[tuple[str, list[tuple[float, str]]]]) -> int:
        rows = [
            {"key": key, "distances": [distance for distance, _ in two], "groups": [group for _, group in two]}
            for key, two in sorted(found)
        ]
        schema = pa.schema([("key", pa.string()), ("distances", pa.list_(pa.float64())), ("groups", pa.list_(pa.string()))])
        write_parquet(self.path, pa.Table.from_pylist(rows, schema=schema))
        return len(rows)


def _two_nearest(found: Iterable[list[tuple[float, str]]]) -> list[tuple[float, str]]:
    return sorted(pair for some in found for pair in some)[:2]


def recall(sampled: Sequence[dict[str, Any]], nearest: dict[str, list[tuple[float, str]]]) -> dict[str, Any]:
    """How many of the sampled generations' nearest groups were among the candidates.

    Args:
        sampled: rows of ``MatchTask``'s files.
        nearest: key → (coarse l2, group) of the two nearest groups by brute force; what isn't there had none nearer.

    Returns:
        sampled: generations; nearest: share whose nearest group was a candidate, None without any; next: the same of the
        second nearest, which the ratio goes by; by_clip, by_thumbnail: share whose nearest candidate each of them found.
    """
    tolerance = 1e-6  # both are float32 pictures, summed in another order
    if not sampled:
        return {"sampled": 0, "nearest": None, "next": None, "by_clip": None, "by_thumbnail": None}
    pairs = [(row, nearest.get(row["key"], [])) for row in sampled]
    first = [row["nearest"] <= found[0][0] + tolerance if found else True for row, found in pairs]
    second = [
        row["next"] <= found[1][0] + tolerance if len(found) > 1 else True for row, found in pairs if row["next"] is not None
    ]
    return {
        "sampled": len(pairs),
        "nearest": sum(first) / len(first),
        "next": sum(second) / len(second) if second else None,
        "by_clip": sum(row["found_by"] in ("clip", "both") for row in sampled) / len(sampled),
        "by_thumbnail": sum(row["found_by"] in ("thumbnail", "both") for row in sampled) / len(sampled),
    }
