"""Compares kept generations with training images (or controls with controls), and counts how near to unique a find is.

The unit of work is one part of ``generations``. Every worker holds the CLIP vectors and the groups; pictures are read by
id when they are needed and stay cached.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.compute as pc

from transforms.embedding import ClipModel, OpenClipEncoder
from transforms.images import ImageStore, decode
from transforms.kernels.distances import adaptive_l2, best_crop, l2, resize_shorter_side, tiled_l2
from transforms.kernels.neighbours import Nearest
from transforms.lake import Lake, part_number, read_parquet, read_rows
from transforms.tombstones import Tombstones

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
        delta: extracted from this l2 down.
        neighbours: images that CLIP finds near a generation and whose pixels are compared.
        others: the n of the adaptive distance.
        alpha: the alpha of the adaptive distance.
    """

    delta: float
    neighbours: int
    others: int
    alpha: float


@dataclasses.dataclass(frozen=True)
class Population:
    """Images that a generation is compared with: the training set, or the controls.

    Attributes:
        role: training or control.
        ids: (n,) sample ids.
        vectors: (n, d) float32, unit norm.
        members: group id → row numbers, the representative first. A control is a group of its own.
        index: over the representatives, in the order of ``members``.
    """

    role: str
    ids: list[str]
    vectors: np.ndarray
    members: dict[str, list[int]]
    index: Nearest

    @property
    def groups(self) -> list[str]:
        return list(self.members)


def read_population(lake: Lake, snapshots: Snapshots, role: str) -> Population:
    """Vectors and groups of one role, without what was forgotten."""
    columns = ["sample_id", "role", "status", "vector"]
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
    return Population(role, ids, vectors, members, Nearest(vectors[first_rows]))


class Matcher:
    """Compares one generation with a population. Holds the caches of one worker."""

    def __init__(self, populations: dict[str, Population], store: ImageStore, measure: Measure):
        self.populations, self.store, self.measure = populations, store, measure
        self._resized: collections.OrderedDict[tuple[str, int], np.ndarray] = collections.OrderedDict()

    def match(self, prompt: dict[str, Any], picture: np.ndarray, vector: np.ndarray) -> list[dict[str, Any]]:
        """One generation against the group it was asked for and its nearest other groups.

        Args:
            prompt: a row of ``prompts``.
            picture: (S, S, 3) uint8.
            vector: (d,) float32, its CLIP embedding.

        Returns:
            Rows of ``matches`` without the audit's columns and the generation's identity: the prompt's own group (if it
            has one), the nearest other group, and whatever lies within delta.
        """
        control = prompt["origin"] == "control"
        population = self.populations["control" if control else "training"]
        own = prompt["sample_id"] if control else prompt["group_id"]
        others = self._reference(picture, vector)
        rows = []
        if own in population.members:
            rows.append(self._nearest_member(population, own, "own", picture, vector, others))
        for rank, group in enumerate(self._nearest_groups(population, own, picture, vector)):
            row = self._nearest_member(population, group, "neighbour", picture, vector, others)
            if rank == 0 or row["extracted"]:
                rows.append(row)
        return rows

    def _reference(self, picture: np.ndarray, vector: np.ndarray) -> list[tuple[str, float]]:
        """(group, l2 to its representative) of the training groups near a generation, the nearest first.

        One image per group: the paper counts identical training images once. Controls are measured against the training
        set as well, so that the scale is the same for both.
        """
        population = self.populations["training"]
        near = population.index.search(vector[None], self.measure.neighbours)[0][0]
        groups = population.groups
        found = []
        for number in near:
            group = groups[number]
            _, crop = self._crop(population.ids[population.members[group][0]], picture)
            found.append((group, float(l2(picture, crop))))
        return sorted(found, key=lambda pair: (pair[1], pair[0]))

    def _nearest_groups(self, population: Population, own: str | None, picture: np.ndarray, vector: np.ndarray) -> list[str]:
        """Foreign groups by the l2 of their representatives, the nearest first; at most ``NEAREST_GROUPS``."""
        groups = population.groups
        near = [groups[i] for i in population.index.search(vector[None], self.measure.neighbours)[0][0]]
        distances = []
        for group in near:
            if group != own:
                _, crop = self._crop(population.ids[population.members[group][0]], picture)
                distances.append((float(l2(picture, crop)), group))
        return [group for _, group in sorted(distances)[:NEAREST_GROUPS]]

    def _nearest_member(
        self,
        population: Population,
        group: str,
        relation: str,
        picture: np.ndarray,
        vector: np.ndarray,
        others: Sequence[tuple[str, float]],
    ) -> dict[str, Any]:
        rows = np.asarray(population.members[group])
        cosines = population.vectors[rows] @ vector
        if len(rows) > MAX_MEMBERS:
            chosen = np.argsort(-cosines, kind="stable")[:MAX_MEMBERS]
            rows, cosines = rows[chosen], cosines[chosen]
        best: tuple[float, str, int, np.ndarray, float] | None = None
        for row, cosine in zip(rows, cosines, strict=True):
            offset, crop = self._crop(population.ids[row], picture)
            candidate = (float(l2(picture, crop)), population.ids[row], offset, crop, float(cosine))
            if best is None or candidate[:2] < best[:2]:
                best = candidate
        assert best is not None, "a group has members"
        distance, sample, offset, crop, cosine = best
        foreign = np.asarray([value for other, value in others if other != group][: self.measure.others])
        adaptive = adaptive_l2(distance, foreign, self.measure.alpha)
        return {
            "sample_id": sample,
            "group_id": group,
            "role": population.role,
            "relation": relation,
            "cosine": cosine,
            "offset": offset,
            "l2": distance,
            "tiled_l2": float(tiled_l2(picture, crop)),
            "adaptive_l2": None if np.isnan(adaptive) else adaptive,
            "n_others": len(foreign),
            "extracted": distance <= self.measure.delta,
        }

    def _crop(self, sample: str, picture: np.ndarray) -> tuple[int, np.ndarray]:
        key = (sample, picture.shape[0])
        resized = self._resized.get(key)
        if resized is None:
            resized = resize_shorter_side(self.store.get(sample), picture.shape[0])
            self._resized[key] = resized
            if len(self._resized) > 4096:
                self._resized.popitem(last=False)
        else:
            self._resized.move_to_end(key)
        return best_crop(picture, resized)


class MatchPart(beam.DoFn):
    """Number of a part of ``generations`` → the same part of ``matches``, written here; yields the number."""

    def __init__(
        self,
        lake: Lake,
        snapshots: Snapshots,
        snapshot: str,
        clip: ClipModel,
        measure: Measure,
        parameters_digest: str,
    ):
        self.lake, self.snapshots, self.snapshot = lake, snapshots, snapshot
        self.clip, self.measure, self.parameters_digest = clip, measure, parameters_digest
        self._encoder: OpenClipEncoder | None = None
        self._matcher: Matcher | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None, "_matcher": None}

    def setup(self) -> None:
        self._encoder = self.clip.load()
        populations = {role: read_population(self.lake, self.snapshots, role) for role in ("training", "control")}
        store = ImageStore(self.lake, self.snapshots.ingest, self.snapshots.embed)
        self._matcher = Matcher(populations, store, self.measure)
        prompts = self.lake.read("prompts", self.snapshots.generate).to_pylist()
        self._prompts = {prompt["prompt_id"]: prompt for prompt in prompts}

    def process(self, number: int) -> Iterator[int]:
        assert self._matcher is not None and self._encoder is not None, "setup ran"
        if number not in {part_number(path) for path in self.lake.parts("matches", self.snapshot)}:
            path = self.lake.part("generations", self.snapshots.generate, number)
            rows = []
            for batch in _prompt_by_prompt(path):
                pictures = [decode(generation["image"]) for generation in batch]
                vectors = self._encoder.encode(pictures)
                for generation, picture, vector in zip(batch, pictures, vectors, strict=True):
                    prompt = self._prompts[generation["prompt_id"]]
                    identity = {
                        "audit_id": prompt["audit_id"],
                        "model_revision": prompt["model_revision"],
                        "parameters_digest": self.parameters_digest,
                        "prompt_id": prompt["prompt_id"],
                        "sample_index": generation["sample_index"],
                    }
                    found = self._matcher.match(prompt, np.asarray(picture), vector)
                    rows += [{**identity, **row} for row in found]
            self.lake.write("matches", self.snapshot, number, rows)
        yield number


def _prompt_by_prompt(path: str) -> Iterator[list[dict[str, Any]]]:
    """The kept generations of one part, all of a prompt at once."""
    batch: list[dict[str, Any]] = []
    for row in read_rows(path, ["prompt_id", "sample_index", "image"]):
        if row["image"] is None:
            continue
        if batch and batch[0]["prompt_id"] != row["prompt_id"]:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


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
    along_height = picture.shape[0] > picture.shape[1]
    for offset in range(max(picture.shape[:2]) - side + 1):
        window = picture[offset : offset + side] if along_height else picture[:, offset : offset + side]
        flat = window.reshape(-1).astype(np.float64) / 255
        near |= squares + flat @ flat - 2 * crops @ flat <= delta**2 * crops.shape[1] + 1e-9
    return near


@dataclasses.dataclass
class CountMemories(beam.PTransform):
    """Parts of ``images`` (numbers) → one part of ``eidetic_counts``, written here.

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
            | "SpreadParts" >> beam.Reshuffle()
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
