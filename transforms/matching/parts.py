"""Compares generations with training images (and controls' with controls), and counts how near to unique a find is.

Every generation is compared with all training images, whatever was asked for: with those that CLIP or the thumbnails find near.
The unit of work is one part of ``generations``. Every worker holds the CLIP vectors, thumbnails and groups; pictures are read
by id when they are needed and stay cached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from PIL import Image

from transforms.data.embedding import ClipModel, OpenClipEncoder
from transforms.data.images import ImageStore
from transforms.kernels.copies import blurred
from transforms.kernels.distances import central_square
from transforms.matching.comparison import Matcher, Measure, Query, Snapshots, read_population
from transforms.store.counters import count
from transforms.store.files import read_parquet, read_rows, write_parquet
from transforms.store.identity import unit_interval
from transforms.store.lake import Lake, part_number
from transforms.store.pictures import decode


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
            written = list(rows)
            self.lake.write(table, self.snapshot, task.part, written)
            count(f"{table} written", len(written))
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
        asked = Query.of(picture, vector)
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
