"""Is a picture in the training set? The nearest training images to pictures that somebody brings, by the same index as
matching's.

Of a large set only the cells that are looked at are read, and of the pictures only those of the nearest.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from transforms.data.images import PicturesByCode
from transforms.kernels.distances import Frame, central_crop
from transforms.kernels.thumbnails import LENGTH
from transforms.kernels.verification import PIXEL_DISTANCE, align, prepare
from transforms.matching import tasks
from transforms.matching.candidates import (
    CHUNK_ROWS,
    FOUND,
    Queries,
    Shards,
    chunks,
    nearest_of,
    read_entries,
    search,
    search_cells,
    shard_folder,
    shards_file,
    together,
    unit,
)
from transforms.matching.directory import Directory
from transforms.matching.tasks import CLIP, THUMBNAIL, Round
from transforms.models.clip import OpenClipEncoder
from transforms.store.pictures import thumbnail

SIDE = 256
"""Pixels of the square that the thumbnail of a picture is made of."""


class NearImage(NamedTuple):
    """A training image near a picture that was brought.

    Attributes:
        picture: its number among those that were brought.
        code, sample_id, group_id: of the image.
        copies: images in its group.
        cosine: of the CLIP vectors; None where CLIP didn't find it.
        thumbnail_l2: of the thumbnails; None where they didn't find it.
        pixel_distance: aligned tiled l2 (kernels/verification.py), 0 to 1; None where it can't be decoded.
    """

    picture: int
    code: int
    sample_id: str
    group_id: str
    copies: int
    cosine: float | None
    thumbnail_l2: float | None
    pixel_distance: float | None

    @property
    def same(self) -> bool:
        """Whether it is that picture, by what ``deduplicate`` calls one."""
        return self.pixel_distance is not None and self.pixel_distance <= PIXEL_DISTANCE


def is_indexed(round: Round) -> bool:
    """Whether all is compared, or the cells are there; else ``candidates.IndexGroups`` must make them."""
    from transforms.store.files import exists

    groups = sum(one["groups"] for one in _totals(round))
    if groups <= tasks.EXACT_UP_TO:
        return True
    for space in (CLIP, THUMBNAIL):
        path = shards_file(round, space)
        if not exists(path):
            return False
        folders = [shard_folder(round, space, number) for number in range(Shards.read(path).count)]
        if not all(exists(f"{folder}/cells.npy") for folder in folders):
            return False
    return True


def _totals(round: Round) -> list[dict]:
    totals = Directory(round.lake, round.snapshots.deduplicate).totals()
    return [one for one in totals if one["role"] == "training" and one["groups"]]


def look_up(round: Round, pictures: Sequence[np.ndarray], encoder: OpenClipEncoder, most: int) -> list[NearImage]:
    """The training images near some pictures, for each the nearest by pixels first, up to the first that is the picture itself.

    Args:
        round: says which groups; they are indexed.
        pictures: (H, W, 3) uint8 each.
        encoder: the CLIP that made the training images' vectors.
        most: images that CLIP, and the thumbnails, name for each picture.
    """
    from PIL import Image
    from threadpoolctl import threadpool_limits

    vectors = encoder.encode([Image.fromarray(one) for one in pictures])
    finite = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    squares = [thumbnail(central_crop(one, Frame(SIDE, SIDE))) for one in pictures]
    tiny = np.frombuffer(b"".join(squares), np.uint8).reshape(-1, LENGTH).astype(np.float32) / np.float32(255)
    everyone = np.arange(len(pictures), dtype=np.int64)
    found: dict[tuple[int, int], dict[str, float]] = {}
    for space, queries in ((CLIP, Queries(finite.astype(np.int64), vectors[finite])), (THUMBNAIL, Queries(everyone, tiny))):
        for row in near_groups(round, queries, space, most).to_pylist():
            found.setdefault((row["query"], row["code"]), {})[space] = row["distance"]
    directory = Directory(round.lake, round.snapshots.deduplicate)
    known = directory.rows(code for _, code in found)
    store = PicturesByCode(round.lake, round.snapshots.ingest)
    by_picture: dict[int, list[int]] = {}
    for picture, code in found:
        by_picture.setdefault(picture, []).append(code)

    def of_picture(element: tuple[int, list[int]]) -> list[NearImage]:
        picture, codes = element
        mine, near = prepare(pictures[picture]), []

        def likely(code: int) -> tuple[float, int]:
            """The nearest by either first: of a picture that is there, that is the one."""
            distances = found[picture, code]
            return min(distances.get(CLIP, 1.0), distances.get(THUMBNAIL, 1.0)), code

        for code in sorted(codes, key=likely):
            row, distances = known[code], found[picture, code]
            try:
                apart = align(mine, prepare(store.get(code, row["sample_id"]))).distance
            except ValueError:
                apart = None
            cosine = 1 - distances[CLIP] if CLIP in distances else None
            there = (row["sample_id"], row["group_id"], row["size"], cosine, distances.get(THUMBNAIL), apart)
            near.append(NearImage(picture, code, *there))
            if near[-1].same:
                break
        return near

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool, threadpool_limits(1, user_api="blas"):
        result = [one for some in pool.map(of_picture, sorted(by_picture.items())) for one in some]
    far = float("inf")
    return sorted(
        result, key=lambda one: (one.picture, far if one.pixel_distance is None else one.pixel_distance, one.sample_id)
    )


def near_groups(round: Round, queries: Queries, space: str, most: int) -> pa.Table:
    """``FOUND`` of some pictures, among all groups."""
    tables = [FOUND.empty_table()]
    totals = _totals(round)
    if sum(one["groups"] for one in totals) <= tasks.EXACT_UP_TO:
        for chunk in chunks(totals, "training", CHUNK_ROWS, (space,)):
            entries = together([read_entries(round, part, "training", space) for part in chunk.parts])
            if len(entries.codes):
                tables.append(search(entries, queries, space, most))
        return nearest_of(pa.concat_tables(tables), most)
    shards = Shards.read(shards_file(round, space))
    probed = shards.nearest(unit(space, queries.vectors), shards.probes)
    shard = np.where(probed >= 0, shards.shard[probed], -1)
    for number in np.unique(shard[shard >= 0]).tolist():
        inside = shard == number
        mine = np.flatnonzero(inside.any(axis=1))
        asked = Queries(queries.numbers[mine], queries.vectors[mine])
        cell = np.where(inside[mine], probed[mine], -1)
        tables.append(search_cells(shard_folder(round, space, number), asked, cell, space, most))
    return nearest_of(pa.concat_tables(tables), most)
