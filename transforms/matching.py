"""Compares generations with training images (and controls' with controls), and counts how near to unique a find is.

Every generation is compared with all training images, whatever was asked for: with those that CLIP or the thumbnails find near.
The unit of work is one part of ``generations``. Every worker holds the CLIP vectors, thumbnails and groups; pictures are read
by id when they are needed and stay cached.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from transforms.embedding import ClipModel, OpenClipEncoder
from transforms.identity import unit_interval
from transforms.images import ImageStore, decode, thumbnail
from transforms.kernels.copies import blurred, ratio, twins
from transforms.kernels.distances import (
    COARSE,
    adaptive_l2,
    best_crop,
    block_means,
    coarse_l2,
    l2,
    resize_shorter_side,
    tiled_l2,
)
from transforms.kernels.neighbours import Nearest
from transforms.kernels.thumbnails import LENGTH, NearestThumbnails
from transforms.lake import Lake, list_files, part_number, read_parquet, read_rows, write_parquet
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


class Asked(NamedTuple):
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
    def of(cls, picture: np.ndarray, vector: np.ndarray) -> Asked:
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
        asked = Asked.of(picture, vector)
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
        asked = Asked.of(picture, vector)
        training = [other for other in self.near("training", asked) if other.group != without]
        if not training:
            return None
        nearest = min(training, key=lambda other: (other.coarse_l2, other.group))
        return self.row("training", nearest.group, "neighbour", asked, training, nearest.found_by)

    def near(self, role: str, asked: Asked) -> list[Near]:
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

    def _distances(self, sample: str, asked: Asked) -> tuple[float, float]:
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
        self, role: str, group: str, relation: str, asked: Asked, training: Sequence[Near], found_by: str = "own"
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
            asked = Asked.of(central_square(self.store.get(population.ids[row]), side), population.vectors[row])
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


def central_square(picture: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8 → (side, side, 3): the middle of the picture, as training code of text-to-image models crops it."""
    resized = resize_shorter_side(picture, side)
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    return np.ascontiguousarray(resized[top : top + side, left : left + side])


class Task(NamedTuple):
    """What one call of ``MatchPart`` does.

    Attributes:
        kind: generations, regenerations or decoys.
        number: of the part of that table.
    """

    kind: str
    number: int

    @property
    def part(self) -> int:
        """The part of ``matches`` (or ``decoys``) that it writes."""
        return self.number + REGENERATED if self.kind == "regenerations" else self.number


REGENERATED = 100_000_000
"""Parts of ``matches`` from this number on are about ``regenerations``; the others about the part of ``generations``."""


class MatchPart(beam.DoFn):
    """A ``Task`` → the same, when its part of ``matches`` or ``decoys`` is written.

    Decoys are listed in a Parquet file (``decoy_file``: part, kind, sample_id, group_id) and compared at ``side`` pixels. Some
    of the generations, drawn by hash, are left in ``sampled_folder`` for ``NearestByBruteForce``.
    """

    def __init__(
        self,
        lake: Lake,
        snapshots: Snapshots,
        snapshot: str,
        clip: ClipModel,
        measure: Measure,
        parameters_digest: str,
        side: int,
    ):
        self.lake, self.snapshots, self.snapshot = lake, snapshots, snapshot
        self.clip, self.measure, self.parameters_digest, self.side = clip, measure, parameters_digest, side
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

    def process(self, task: Task) -> Iterator[Task]:
        table = "decoys" if task.kind == "decoys" else "matches"
        if task.part not in {part_number(path) for path in self.lake.parts(table, self.snapshot)}:
            rows = self._decoys(task) if task.kind == "decoys" else self._generations(task)
            self.lake.write(table, self.snapshot, task.part, list(rows))
        yield task

    def _generations(self, task: Task) -> Iterator[dict[str, Any]]:
        assert self._matcher is not None and self._encoder is not None, "setup ran"
        if task.kind == "generations":
            path, columns = self.lake.part("generations", self.snapshots.generate, task.number), ["nearest"]
        else:
            path, columns = self.lake.part("regenerations", self.snapshot, task.number), []
        sampled: list[dict[str, Any]] = []
        for batch in _prompt_by_prompt(path, columns):
            pictures = [decode(generation["image"]) for generation in batch]
            vectors = self._encoder.encode(pictures)
            for generation, picture, vector in zip(batch, pictures, vectors, strict=True):
                prompt = self._prompts[generation["prompt_id"]]
                identity = {
                    **self._audit(prompt),
                    "prompt_id": prompt["prompt_id"],
                    "sample_index": generation["sample_index"],
                    "nearest": generation.get("nearest", False),
                    "regenerated": task.kind == "regenerations",
                }
                rows = self._matcher.match(prompt, np.asarray(picture), vector)
                yield from ({**identity, **row} for row in rows)
                drawn = unit_interval("recall", prompt["prompt_id"], generation["sample_index"]) < self.measure.sampled
                if drawn and task.kind == "generations":
                    sampled += self._sampled(identity, np.asarray(picture), vector)
        if sampled:
            path = self.lake.work("match", self.snapshot, "sampled", f"part-{task.number:05d}.parquet")
            write_parquet(path, pa.Table.from_pylist(sampled))

    def _sampled(self, identity: dict[str, Any], picture: np.ndarray, vector: np.ndarray) -> Iterator[dict[str, Any]]:
        """What ``NearestByBruteForce`` needs to know of a generation; nothing where there is no training image."""
        assert self._matcher is not None, "setup ran"
        asked = Asked.of(picture, vector)
        near = sorted(self._matcher.near("training", asked), key=lambda other: (other.coarse_l2, other.group))
        if near:
            yield {
                "key": f"{identity['prompt_id']} {identity['sample_index']}",
                "side": picture.shape[0],
                "coarse": asked.coarse.tobytes(),
                "found_by": near[0].found_by,
                "nearest": near[0].coarse_l2,
                "next": near[1].coarse_l2 if len(near) > 1 else None,
            }

    def _decoys(self, task: Task) -> Iterator[dict[str, Any]]:
        assert self._matcher is not None and self._encoder is not None, "setup ran"
        path = decoy_file(self.lake, self.snapshot)
        wanted = [row for row in read_parquet(path).to_pylist() if row["part"] == task.number]
        audit = self._audit(next(iter(self._prompts.values())))
        pictures = []
        for row in wanted:
            picture = central_square(self._matcher.store.get(row["sample_id"]), self.side)
            pictures.append(blurred(picture) if row["kind"] == "blurred" else picture)
        vectors = self._encoder.encode([Image.fromarray(picture) for picture in pictures])
        for row, picture, vector in zip(wanted, pictures, vectors, strict=True):
            without = row["group_id"] if row["kind"] == "left_out" else None
            found = self._matcher.nearest(picture, vector, without)
            if found is not None:
                columns = {name: found[name] for name in found if name not in NO_DECOYS_COLUMNS}
                yield {**audit, **columns, "kind": row["kind"], "sample_id": row["sample_id"]}

    def _audit(self, prompt: dict[str, Any]) -> dict[str, Any]:
        return {
            "audit_id": prompt["audit_id"],
            "model_revision": prompt["model_revision"],
            "parameters_digest": self.parameters_digest,
        }


NO_DECOYS_COLUMNS = ("role", "relation", "found_by", "cosine", "offset", "extracted")
"""Columns of ``matches`` that ``decoys`` lack."""


def decoy_file(lake: Lake, snapshot: str) -> str:
    """Where the decoys of a match are listed."""
    return lake.work("match", snapshot, "decoys.parquet")


def sampled_folder(lake: Lake, snapshot: str) -> str:
    """Where the sampled generations are left, one file a part."""
    return lake.work("match", snapshot, "sampled")


def _prompt_by_prompt(path: str, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """The rows of one part that have an image, all of a prompt at once."""
    batch: list[dict[str, Any]] = []
    for row in read_rows(path, ["prompt_id", "sample_index", "image", *columns]):
        if row["image"] is None:
            continue
        if batch and batch[0]["prompt_id"] != row["prompt_id"]:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


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
