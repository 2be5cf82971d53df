"""The pictures of a lake that models are trained on and asked about: as small arrays, made once for each size.

    work/pictures/<deduplicate>-<most>/population.npz     ids, groups, labels, which the keep list keeps, which are controls
    work/pictures/<deduplicate>-<most>/<pixels>/<k>.npz   the pixels of the k-th chunk of them

A sweep asks for the same pictures hundreds of times. ``forget`` removes these files, and who needs them next makes them again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import apache_beam as beam
import numpy as np
from PIL import Image, ImageOps

from transforms.data.images import ImageStore
from transforms.store.arrays import read_npz, write_npz
from transforms.store.counters import count
from transforms.store.files import exists
from transforms.store.identity import unit_interval
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage
from transforms.store.scan import scan
from transforms.store.tombstones import Tombstones

CHUNK = 4096
"""Pictures of one file."""


class Population(NamedTuple):
    """The lake's pictures at one size, in the order of their ids.

    Attributes:
        sample_ids: (N,) text.
        groups: (N,) text: their duplicate groups.
        labels: (N,) text; "" where there is none.
        kept: (N,) bool: whether the keep list keeps them.
        held: (N,) bool: the lake's controls, which nothing is trained on.
        pixels: (N, pixels, pixels, 3) uint8.
    """

    sample_ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    kept: np.ndarray
    held: np.ndarray
    pixels: np.ndarray

    def order(self, draw: int) -> np.ndarray:
        """Rows of training pictures in an order that depends on ids alone: the first n are a random draw, the first n + 1 those
        and one.
        """
        return self._ordered(draw, np.flatnonzero(~self.held))

    def controls(self, draw: int) -> np.ndarray:
        """Rows of the lake's controls, likewise."""
        return self._ordered(draw, np.flatnonzero(self.held))

    def _ordered(self, draw: int, rows: np.ndarray) -> np.ndarray:
        return np.array(sorted(rows.tolist(), key=lambda row: rank(draw, str(self.sample_ids[row]))), np.int64)


@functools.lru_cache(maxsize=1 << 20)
def rank(draw: int, sample_id: str) -> float:
    """Where a picture stands in the order of a draw."""
    return unit_interval("draw", draw, sample_id)


def folder_of(lake: Lake, deduplicate: Manifest, most: int) -> str:
    """Where a population lies."""
    return lake.work("pictures", f"{deduplicate.snapshot_id}-{most}")


def find(lake: Lake, deduplicate: Manifest, most: int) -> int:
    """Chooses the pictures, up to ``most`` of the training set and of the controls, by hash. Returns how many there are."""
    path = f"{folder_of(lake, deduplicate, most)}/population.npz"
    if not exists(path):
        write_npz(path, **_chosen(lake, deduplicate, most))
    return len(read_npz(path)["sample_ids"])


def _chosen(lake: Lake, deduplicate: Manifest, most: int) -> dict[str, np.ndarray]:
    made_of = lineage(lake, deduplicate)
    tables = {
        "samples": made_of["ingest"].snapshot_id, "embeddings": made_of["embed"].snapshot_id,
        "duplicate_groups": deduplicate.snapshot_id, "keep_list": deduplicate.snapshot_id,
    }  # fmt: skip
    query = """
        WITH training AS (
            SELECT sample_id, group_id, false AS held FROM duplicate_groups
            ORDER BY sha256('population' || sample_id) LIMIT $most
        ),

        controls AS (
            SELECT sample_id, sample_id AS group_id, true AS held FROM embeddings
            WHERE role = 'control' AND status = 'success'
            ORDER BY sha256('population' || sample_id) LIMIT $most
        ),

        chosen AS (SELECT * FROM training UNION ALL SELECT * FROM controls)

        SELECT chosen.sample_id, chosen.group_id, coalesce(samples.label, '') AS label,
            keep_list.sample_id IS NOT NULL AS kept, chosen.held
        FROM chosen
        JOIN samples ON samples.sample_id = chosen.sample_id
        LEFT JOIN keep_list ON keep_list.sample_id = chosen.sample_id
        ORDER BY chosen.sample_id
    """
    forgotten = Tombstones.read(lake).samples
    columns: dict[str, list] = {"sample_ids": [], "groups": [], "labels": [], "kept": [], "held": []}
    for batch in scan(lake, tables, query, most=most):
        for row in batch.to_pylist():
            if row["sample_id"] not in forgotten:
                for name, value in zip(columns, row.values(), strict=True):
                    columns[name].append(value)
    return {name: np.array(values, dtype=bool if name in ("kept", "held") else np.str_) for name, values in columns.items()}


class ShrinkPictures(beam.DoFn):
    """(pixels, number of a chunk) → its pixels, in a file. What was done already is left alone."""

    def __init__(self, lake: Lake, deduplicate: Manifest, most: int):
        self.lake, self.folder = lake, folder_of(lake, deduplicate, most)
        made_of = lineage(lake, deduplicate)
        self.store = ImageStore(lake, made_of["ingest"].snapshot_id, made_of["embed"].snapshot_id)

    def process(self, element: tuple[int, int]) -> Iterator[tuple[int, int]]:
        pixels, number = element
        path = f"{self.folder}/{pixels}/{number:05d}.npz"
        if exists(path):
            return
        ids = read_npz(f"{self.folder}/population.npz")["sample_ids"][number * CHUNK : (number + 1) * CHUNK]
        made = np.zeros((len(ids), pixels, pixels, 3), np.uint8)
        there = np.zeros(len(ids), bool)
        for row, sample_id in enumerate(ids):
            try:
                made[row] = shrunk(self.store.get(str(sample_id)), pixels)
            except ValueError:  # forgotten meanwhile, or damaged: `embed` or `match` has the row that says so
                count("pictures left out")
                continue
            there[row] = True
        write_npz(path, pixels=made, there=there)
        count("pictures shrunk", int(there.sum()))
        yield element


def shrunk(picture: np.ndarray, pixels: int) -> np.ndarray:
    """The middle square of a picture, (H, W, 3) uint8, by the mean of what falls into each pixel: (pixels, pixels, 3)."""
    if picture.shape[:2] == (pixels, pixels):
        return picture
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (pixels, pixels), Image.Resampling.BOX))


def read(lake: Lake, deduplicate: Manifest, most: int, pixels: int) -> Population:
    """The pictures at one size, those that could be read."""
    folder = folder_of(lake, deduplicate, most)
    known = read_npz(f"{folder}/population.npz")
    total = len(known["sample_ids"])
    chunks = [read_npz(f"{folder}/{pixels}/{number:05d}.npz") for number in range(chunks_of(total))]
    there = np.concatenate([one["there"] for one in chunks]) if chunks else np.zeros(0, bool)
    made = np.concatenate([one["pixels"] for one in chunks]) if chunks else np.zeros((0, pixels, pixels, 3), np.uint8)
    return Population(**{name: known[name][there] for name in known}, pixels=made[there])


def sample_ids(lake: Lake, deduplicate: Manifest, most: int) -> list[str]:
    """The training pictures' ids."""
    known = read_npz(f"{folder_of(lake, deduplicate, most)}/population.npz")
    return [str(one) for one in known["sample_ids"][~known["held"]]]


def chunks_of(total: int) -> int:
    """How many files so many pictures are."""
    return -(-total // CHUNK)
