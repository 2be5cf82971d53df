"""Compares one generation with the training images, or the controls."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.data.images import ImageStore
from transforms.kernels.copies import ratio, twins
from transforms.kernels.distances import (
    COARSE,
    adaptive_l2,
    best_crop,
    block_means,
    central_square,
    coarse_l2,
    l2,
    resize_shorter_side,
    tiled_l2,
)
from transforms.kernels.neighbours import Nearest
from transforms.kernels.thumbnails import LENGTH, NearestThumbnails
from transforms.store.lake import Lake
from transforms.store.pictures import thumbnail
from transforms.store.tombstones import Tombstones

MAX_MEMBERS = 256
"""So many members of one group are compared at most, the nearest by CLIP: a group can hold 100,000 flags."""

NEAREST_GROUPS = 3
"""Foreign groups whose members are compared as well, the nearest by the pixels of their representatives."""


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """What ``match`` reads, by snapshot id."""

    ingest: str
    embed: str
    deduplicate: str
    generate: str


@dataclasses.dataclass(frozen=True)
class Measure:
    """How a generation is compared.

    Attributes:
        delta: extracted from this l2 down; and twins lie within it.
        neighbours: images that CLIP finds near a generation and whose pixels are compared, and as many that thumbnails find.
        others: the n of the adaptive distance.
        alpha: the alpha of the adaptive distance.
        copy_ratio: twins stand apart by this ratio, as copies do.
        sampled: share of the generations on which the candidates' recall is measured.
    """

    delta: float
    neighbours: int
    others: int
    alpha: float
    copy_ratio: float
    sampled: float


@dataclasses.dataclass(frozen=True)
class Population:
    """Images that a generation is compared with: the training set, or the controls.

    Attributes:
        role: training or control.
        ids: (n,) sample ids.
        vectors: (n, d) float32, unit norm.
        members: group id → row numbers, the representative first. A control is a group of its own.
        index: by CLIP, over the representatives, in the order of ``members``.
        thumbnails: likewise, over those that have one: ``with_thumbnail`` says which of the groups these are.
    """

    role: str
    ids: list[str]
    vectors: np.ndarray
    members: dict[str, list[int]]
    index: Nearest
    thumbnails: NearestThumbnails
    with_thumbnail: np.ndarray

    @property
    def groups(self) -> list[str]:
        return list(self.members)


def read_population(lake: Lake, snapshots: Snapshots, role: str) -> Population:
    """Vectors, thumbnails and groups of one role, without what was forgotten."""
    columns = ["sample_id", "role", "status", "vector", "thumbnail"]
    table = lake.read("embeddings", snapshots.embed, columns)
    forgotten = Tombstones.read(lake)
    table = table.filter(pc.and_(pc.equal(table["role"], role), pc.equal(table["status"], "success")))
    table = forgotten.spared(table).sort_by("sample_id")
    ids = table["sample_id"].to_pylist()
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False) if ids else np.zeros(0)
    vectors = np.asarray(flat, dtype=np.float32).reshape(len(ids), -1) if ids else np.zeros((0, 1), np.float32)
    row_of = {sample: row for row, sample in enumerate(ids)}
    members: dict[str, list[int]] = {}
    if role == "control":
        members = {sample: [row] for sample, row in row_of.items()}
    else:
        groups = lake.read("duplicate_groups", snapshots.deduplicate, ["sample_id", "group_id", "representative"])
        representative: dict[str, str] = {}
        for row in groups.sort_by("sample_id").to_pylist():
            # A forgotten member stays in the table, so that the group's size is right, and has no vector any more.
            if row["sample_id"] not in forgotten.samples:
                members.setdefault(row["group_id"], []).append(row_of[row["sample_id"]])
                representative[row["group_id"]] = row["representative"]
        for group, rows in members.items():
            first = row_of.get(representative[group], rows[0])
            members[group] = [first, *(row for row in rows if row != first)]
    first_rows = [rows[0] for rows in members.values()]
    thumbnails, with_thumbnail = _read_thumbnails(lake, snapshots, table, first_rows)
    return Population(role, ids, vectors, members, Nearest(vectors[first_rows]), thumbnails, with_thumbnail)


def _read_thumbnails(
    lake: Lake, snapshots: Snapshots, embeddings: pa.Table, rows: Sequence[int]
) -> tuple[NearestThumbnails, np.ndarray]:
    """The index of these rows' thumbnails, and the places in ``rows`` of those that have one."""
    chosen = embeddings.select(["sample_id", "thumbnail"]).take(pa.array(rows, pa.int64()))
    has = np.flatnonzero(chosen["thumbnail"].is_valid().to_numpy(zero_copy_only=False))
    sizes = lake.read("images", snapshots.ingest, ["sample_id", "width", "height"])
    places = pc.index_in(chosen["sample_id"], sizes["sample_id"].combine_chunks())
    found = sizes.select(["width", "height"]).take(places)
    aspects = pc.divide(found["width"].cast(pa.float64()), found["height"].cast(pa.float64())).to_numpy()
    pixels = b"".join(chosen["thumbnail"].take(pa.array(has)).to_pylist())
    return NearestThumbnails(np.frombuffer(pixels, np.uint8).reshape(-1, LENGTH), aspects[has]), has


class Query(NamedTuple):
    """A picture that is compared.

    Attributes:
        picture: (S, S, 3) uint8.
        vector: (d,) float32, its CLIP embedding.
        scaled: the picture as float32 in [0, 1].
        coarse: its block means, likewise: what ``coarse_l2`` compares.
    """

    picture: np.ndarray
    vector: np.ndarray
    scaled: np.ndarray
    coarse: np.ndarray

    @classmethod
    def of(cls, picture: np.ndarray, vector: np.ndarray) -> Query:
        return cls(picture, vector, picture.astype(np.float32) / np.float32(255), block_means(picture, COARSE))


class Near(NamedTuple):
    """A group by its representative: one image per group, since the paper counts identical training images once.

    Attributes:
        group: its id.
        l2, coarse_l2: of what is asked to the representative.
        found_by: clip, thumbnail or both.
    """

    group: str
    l2: float
    coarse_l2: float
    found_by: str


class Matcher:
    """Compares one picture with a population. Holds the caches of one worker."""

    def __init__(self, populations: dict[str, Population], store: ImageStore, measure: Measure):
        self.populations, self.store, self.measure = populations, store, measure
        self._resized: collections.OrderedDict[tuple[str, int], np.ndarray] = collections.OrderedDict()
        self._coarse: dict[tuple[str, int], np.ndarray] = {}
        self._twins: dict[tuple[str, int], frozenset[str]] = {}

    def match(self, prompt: dict[str, Any], picture: np.ndarray, vector: np.ndarray) -> list[dict[str, Any]]:
        """One generation against the group it was asked for and the nearest other groups of the training set.

        Args:
            prompt: a row of ``prompts``.
            picture: (S, S, 3) uint8.
            vector: (d,) float32, its CLIP embedding.

        Returns:
            Rows of ``matches`` without the audit's columns and the generation's identity: the prompt's own group or control
            (if it has one), the nearest other training groups by l2 and by coarse l2, and of the others near by those within
            delta; for a control also the nearest other control.
        """
        control = prompt["origin"] == "control"
        asked = Query.of(picture, vector)
        training = self.near("training", asked)
        own = prompt["sample_id"] if control else prompt["group_id"]
        rows = []
        if own in self.populations["control" if control else "training"].members:
            rows.append(self.row("control" if control else "training", own, "own", asked, training))
        if control:
            others = [other for other in self.near("control", asked) if other.group != own]
            rows += [self.row("control", other.group, "neighbour", asked, training, other.found_by) for other in others[:1]]
        foreign = [other for other in training if control or other.group != own]
        nearest = min(foreign, key=lambda other: (other.coarse_l2, other.group), default=None)
        for rank, other in enumerate(foreign):
            chosen = rank == 0 or other is nearest
            if chosen or rank < NEAREST_GROUPS:
                row = self.row("training", other.group, "neighbour", asked, training, other.found_by)
                if chosen or row["extracted"]:
                    rows.append(row)
        return rows

    def nearest(self, picture: np.ndarray, vector: np.ndarray, without: str | None = None) -> dict[str, Any] | None:
        """The row of the training group that lies nearest by coarse l2, ``without`` one of them; None where there is none."""
        asked = Query.of(picture, vector)
        training = [other for other in self.near("training", asked) if other.group != without]
        if not training:
            return None
        nearest = min(training, key=lambda other: (other.coarse_l2, other.group))
        return self.row("training", nearest.group, "neighbour", asked, training, nearest.found_by)

    def near(self, role: str, asked: Query) -> list[Near]:
        """The groups of a population near a picture, by CLIP or by thumbnail, the nearest by l2 first."""
        population, neighbours = self.populations[role], self.measure.neighbours
        # A picture of which CLIP makes nothing has no direction, and still a thumbnail.
        known = bool(np.isfinite(asked.vector).all())
        by_clip = {int(place) for place in population.index.search(asked.vector[None], neighbours)[0][0]} if known else set()
        tiny = np.frombuffer(thumbnail(asked.picture), np.uint8)[None]
        places, _ = population.thumbnails.search(tiny, neighbours)[0]
        by_thumbnail = {int(place) for place in population.with_thumbnail[places]}
        groups = population.groups
        found = []
        for place in by_clip | by_thumbnail:
            group = groups[place]
            distance, coarse = self._distances(population.ids[population.members[group][0]], asked)
            source = "both" if place in by_clip and place in by_thumbnail else "clip" if place in by_clip else "thumbnail"
            found.append(Near(group, distance, coarse, source))
        return sorted(found, key=lambda near: (near.l2, near.group))

    def _distances(self, sample: str, asked: Query) -> tuple[float, float]:
        """(l2, coarse l2) to a picture: in float32, since most of a generation's time goes here."""
        _, crop = self._crop(sample, asked.picture)
        key = sample, asked.picture.shape[0]
        coarse = self._coarse.get(key) if crop is self._resized[key] else block_means(crop, COARSE)
        if coarse is None:
            coarse = self._coarse[key] = block_means(crop, COARSE)
        apart = (asked.scaled - crop.astype(np.float32) / np.float32(255)).ravel()
        coarsely = (asked.coarse - coarse).ravel()
        return float(np.sqrt(apart @ apart / len(apart))), float(np.sqrt(coarsely @ coarsely / len(coarsely)))

    def row(
        self, role: str, group: str, relation: str, asked: Query, training: Sequence[Near], found_by: str = "own"
    ) -> dict[str, Any]:
        """A row of ``matches`` on the nearest member of a group, scaled by the training images near what is asked.

        Controls are measured against the training set as well, so that the scale is the same for both.
        """
        population = self.populations[role]
        rows = np.asarray(population.members[group])
        cosines = np.nan_to_num(population.vectors[rows] @ asked.vector, nan=-1.0)
        if len(rows) > MAX_MEMBERS:
            chosen = np.argsort(-cosines, kind="stable")[:MAX_MEMBERS]
            rows, cosines = rows[chosen], cosines[chosen]
        best: tuple[float, str, int, np.ndarray, float] | None = None
        for row, cosine in zip(rows, cosines, strict=True):
            offset, crop = self._crop(population.ids[row], asked.picture)
            candidate = (float(l2(asked.picture, crop)), population.ids[row], offset, crop, float(cosine))
            if best is None or candidate[:2] < best[:2]:
                best = candidate
        assert best is not None, "a group has members"
        distance, sample, offset, crop, cosine = best
        coarse = float(coarse_l2(asked.coarse, crop))
        foreign = [other for other in training if other.group != group]
        mean_of = np.asarray([other.l2 for other in foreign[: self.measure.others]])
        adaptive = adaptive_l2(distance, mean_of, self.measure.alpha)
        # Only what lies within delta can be a copy: elsewhere twins make no difference.
        apart = self.twins(group, asked.picture.shape[0]) if role == "training" and coarse <= self.measure.delta else ()
        strangers = [other for other in foreign if other.group not in apart]
        nearest_other = min((other.l2 for other in strangers), default=None)
        return {
            "sample_id": sample,
            "group_id": group,
            "role": role,
            "relation": relation,
            "found_by": found_by,
            "cosine": cosine if np.isfinite(asked.vector).all() else None,
            "offset": offset,
            "l2": distance,
            "tiled_l2": float(tiled_l2(asked.picture, crop)),
            "adaptive_l2": None if np.isnan(adaptive) else adaptive,
            "n_others": len(mean_of),
            "nearest_other_l2": nearest_other,
            "ratio": ratio(distance, nearest_other),
            "coarse_l2": coarse,
            "coarse_ratio": ratio(coarse, min((other.coarse_l2 for other in strangers), default=None)),
            "extracted": distance <= self.measure.delta,
        }

    def twins(self, group: str, side: int) -> frozenset[str]:
        """The other groups that stand so near to a training group that they are one memory with it, at a side in pixels."""
        known = self._twins.get((group, side))
        if known is None:
            population = self.populations["training"]
            row = population.members[group][0]
            asked = Query.of(central_square(self.store.get(population.ids[row]), side), population.vectors[row])
            near = [other for other in self.near("training", asked) if other.group != group]
            near.sort(key=lambda other: (other.coarse_l2, other.group))
            count = twins([other.coarse_l2 for other in near], self.measure.delta, self.measure.copy_ratio)
            known = self._twins[group, side] = frozenset(other.group for other in near[:count])
        return known

    def _crop(self, sample: str, picture: np.ndarray) -> tuple[int, np.ndarray]:
        key = (sample, picture.shape[0])
        resized = self._resized.get(key)
        if resized is None:
            resized = resize_shorter_side(self.store.get(sample), picture.shape[0])
            self._resized[key] = resized
            if len(self._resized) > 4096:
                oldest, _ = self._resized.popitem(last=False)
                self._coarse.pop(oldest, None)
        else:
            self._resized.move_to_end(key)
        return best_crop(picture, resized)
