"""How many of the candidates were found, against brute force."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.kernels.distances import (
    COARSE,
    central_square,
    coarse_l2,
)
from transforms.matching.comparison import Snapshots
from transforms.store.files import list_files, read_parquet, read_rows, write_parquet
from transforms.store.lake import Lake
from transforms.store.pictures import decode
from transforms.store.tombstones import Tombstones


def sampled_folder(lake: Lake, snapshot: str) -> str:
    """Where the sampled generations are left, one file a part."""
    return lake.work("match", snapshot, "sampled")


# -- recall of the candidates ---------------------------------------------------------------------------------------


class NearestByBruteForce(beam.DoFn):
    """Number of a part of ``images`` → (sampled generation, (coarse l2, group) of its two nearest groups in that part).

    Args:
        lake, snapshots, snapshot: where images, groups and sampled generations are.
    """

    def __init__(self, lake: Lake, snapshots: Snapshots, snapshot: str):
        self.lake, self.snapshots, self.snapshot = lake, snapshots, snapshot

    def setup(self) -> None:
        self._forgotten = Tombstones.read(self.lake).samples
        groups = self.lake.read("duplicate_groups", self.snapshots.deduplicate, ["sample_id", "group_id", "representative"])
        alone = groups.filter(pc.equal(groups["sample_id"], groups["representative"]))
        self._groups = dict(zip(alone["sample_id"].to_pylist(), alone["group_id"].to_pylist(), strict=True))
        self._sampled = read_sampled(self.lake, self.snapshot)

    def process(self, number: int) -> Iterator[tuple[str, list[tuple[float, str]]]]:
        nearest: dict[str, list[tuple[float, str]]] = collections.defaultdict(list)
        for row in read_rows(self.lake.paths("images", self.snapshots.ingest)[number], ["sample_id", "image"]):
            group = self._groups.get(row["sample_id"])
            if group is None or row["image"] is None or row["sample_id"] in self._forgotten:
                continue
            picture = np.asarray(decode(row["image"]))
            for side, sampled in self._sampled.items():
                # Of a picture that isn't square its middle; the candidates' best crop may be nearer.
                distances = coarse_l2(sampled.pictures, central_square(picture, side))
                for key, distance in zip(sampled.keys, distances.tolist(), strict=True):
                    nearest[key] = sorted([*nearest[key], (distance, group)])[:2]
        yield from nearest.items()


@dataclasses.dataclass
class NearestOfAll(beam.PTransform):
    """Parts of ``images`` (numbers), spread → the file ``path``: of each sampled generation its two nearest groups.

    Attributes:
        lake, snapshots, snapshot: where images, groups and sampled generations are.
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


class Sampled(NamedTuple):
    """The sampled generations of one side in pixels: (m,) keys, and (m, s, s, 3) float32 coarse pictures."""

    keys: list[str]
    pictures: np.ndarray


def read_sampled(lake: Lake, snapshot: str) -> dict[int, Sampled]:
    """Side in pixels → the generations that ``MatchPart`` left."""
    rows = [row for path in list_files(sampled_folder(lake, snapshot), ".parquet") for row in read_parquet(path).to_pylist()]
    found = {}
    for side in sorted({row["side"] for row in rows}):
        mine = [row for row in rows if row["side"] == side]
        pictures = np.stack([np.frombuffer(row["coarse"], np.float32) for row in mine])
        found[side] = Sampled([row["key"] for row in mine], pictures.reshape(-1, min(COARSE, side), min(COARSE, side), 3))
    return found


def recall(sampled: Sequence[dict[str, Any]], nearest: dict[str, list[tuple[float, str]]]) -> dict[str, Any]:
    """How many of the sampled generations' nearest groups were among the candidates.

    Args:
        sampled: rows of ``MatchPart``'s files.
        nearest: key → (coarse l2, group) of the two nearest groups by brute force.

    Returns:
        sampled: generations; nearest: share whose nearest group was a candidate, None without any; next: the same of the
        second nearest, which the ratio goes by; by_clip, by_thumbnail: share whose nearest candidate each of them found.
    """
    tolerance = 1e-6  # both are float32 pictures, summed in another order
    rows = [(row, nearest[row["key"]]) for row in sampled if row["key"] in nearest]
    if not rows:
        return {"sampled": 0, "nearest": None, "next": None, "by_clip": None, "by_thumbnail": None}
    pairs = [(row["next"], found[1][0]) for row, found in rows if len(found) > 1]
    return {
        "sampled": len(rows),
        "nearest": sum(row["nearest"] <= found[0][0] + tolerance for row, found in rows) / len(rows),
        "next": sum(one is not None and one <= other + tolerance for one, other in pairs) / len(pairs) if pairs else None,
        "by_clip": sum(row["found_by"] in ("clip", "both") for row, _ in rows) / len(rows),
        "by_thumbnail": sum(row["found_by"] in ("thumbnail", "both") for row, _ in rows) / len(rows),
    }
