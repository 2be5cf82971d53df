"""Makes some generations again whose pictures were not kept: those whose thumbnail lies near another training image.

A generation is judged against every training image, whatever its prompt asked for, and most pictures are dropped where they
are made. Their thumbnails say which of them may show one (``Point``); these are made again from their seeds, and matched as the
kept ones are. One attempt of a prompt for each training image that it points at is enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference

from transforms.data.embedding import SkipWritten
from transforms.kernels.copies import CopyLimits, is_copy
from transforms.kernels.thumbnails import LENGTH
from transforms.matching.comparison import Population, Snapshots, read_population
from transforms.models.base import Generator, Wanted
from transforms.store.counters import count
from transforms.store.files import read_parquet, read_rows, write_parquet
from transforms.store.lake import Lake, part_number
from transforms.store.pictures import encode_png, thumbnail
from transforms.store.tombstones import FORGOTTEN

ROUNDING = 1 / 255
"""By how much the l2 of two thumbnails in bytes may be over that of the pictures."""

APART = 2 / 3
"""A thumbnail points at an image where it lies nearer to it than this share of its distance to the third nearest: a copy stands
apart from all images but a twin. Copies ask for less than this of the pictures; docs/calibration.md has what it loses."""

MOST_LEVELS = 8
"""So many gray levels may a thumbnail be off that was made again, on another device or in another batch."""


def points_at(population: Population, thumbnails: np.ndarray, most: float) -> list[tuple[str, float] | None]:
    """(group, bound) of the training image that each thumbnail points at, or None; the picture's l2 is over the bound.

    Args:
        population: the training set.
        thumbnails: (m, 192) uint8 of square pictures.
        most: bounds are below this.
    """
    groups = population.groups
    found: list[tuple[str, float] | None] = []
    for places, distances in population.thumbnails.search(thumbnails, 3):
        bound = max(0.0, float(distances[0]) - ROUNDING) if len(places) else np.inf
        apart = len(places) < 3 or distances[0] < APART * distances[2]
        found.append((groups[population.with_thumbnail[places[0]]], bound) if apart and bound < most else None)
    return found


class Point(beam.DoFn):
    """Number of a part of ``generations`` → (copies by stored pictures, those of them that thumbnails point at as well).

    What is to be made again goes to the file ``pointed`` of the part: prompt_id, text, sample_index, seed, group_id, bound,
    thumbnail.

    Args:
        lake, snapshots, snapshot: where generations, training images and matches are.
        limits: of a copy.
    """

    def __init__(self, lake: Lake, snapshots: Snapshots, snapshot: str, limits: CopyLimits):
        self.lake, self.snapshots, self.snapshot, self.limits = lake, snapshots, snapshot, limits

    def setup(self) -> None:
        self._population = read_population(self.lake, self.snapshots, "training")
        columns = ["prompt_id", "text", "group_id", "stratum"]
        prompts = self.lake.read("prompts", self.snapshots.generate, columns).to_pylist()
        self._prompts = {prompt["prompt_id"]: prompt for prompt in prompts}

    def process(self, number: int) -> Iterator[tuple[int, int]]:
        copied = self._copied(number)
        copied_by: dict[str, set[str]] = {}
        for (prompt_id, _), some in copied.items():
            copied_by.setdefault(prompt_id, set()).update(some)
        best: dict[tuple[str, str], dict[str, Any]] = {}
        known = agreeing = 0
        columns = ["prompt_id", "sample_index", "seed", "status", "image", "thumbnail"]
        rows: list[dict[str, Any]] = []
        for row in read_rows(self.lake.part("generations", self.snapshots.generate, number), columns):
            if row["thumbnail"] is not None:
                rows.append({**row, "image": None, "kept": row["image"] is not None})
        thumbnails = np.frombuffer(b"".join(row["thumbnail"] for row in rows), np.uint8).reshape(-1, LENGTH)
        for row, found in zip(
            rows, points_at(self._population, thumbnails, min(self.limits.coarse_l2, self.limits.l2)), strict=True
        ):
            prompt = self._prompts[row["prompt_id"]]
            mine = copied.get((row["prompt_id"], row["sample_index"]), set())
            known += len(mine - {prompt["group_id"]})
            if found is None:
                continue
            group, bound = found
            agreeing += group in mine - {prompt["group_id"]}
            key = row["prompt_id"], group
            # The nearest attempt of a prompt speaks for its own image; and of another one a single copy says enough.
            own = group == prompt["group_id"] or prompt["stratum"] == FORGOTTEN
            if row["kept"] or own or group in copied_by.get(row["prompt_id"], ()):
                continue
            if key not in best or bound < best[key]["bound"]:
                wanted = ("prompt_id", "sample_index", "seed", "thumbnail")
                best[key] = {**{name: row[name] for name in wanted}, "text": prompt["text"], "group_id": group, "bound": bound}
        if best:
            write_parquet(pointed_file(self.lake, self.snapshot, number), pa.Table.from_pylist(_one_each(best.values())))
        yield known, agreeing

    def _copied(self, number: int) -> dict[tuple[str, int], set[str]]:
        """(prompt, generation) → groups that the stored pictures of this part are copies of."""
        path = self.lake.part("matches", self.snapshot, number)
        columns = ["prompt_id", "sample_index", "group_id", "role", "l2", "coarse_l2", "coarse_ratio"]
        found: dict[tuple[str, int], set[str]] = {}
        for row in read_parquet(path, columns).to_pylist():
            if row["role"] == "training" and is_copy(row, self.limits):
                found.setdefault((row["prompt_id"], row["sample_index"]), set()).add(row["group_id"])
        return found


def _one_each(rows: Any) -> list[dict[str, Any]]:
    """One row for each generation, the nearest, in the order of prompts and generations."""
    by_generation: dict[tuple[str, int], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["bound"]):
        by_generation.setdefault((row["prompt_id"], row["sample_index"]), row)
    return [row for _, row in sorted(by_generation.items())]


def pointed_folder(lake: Lake, snapshot: str) -> str:
    """Where it is said which generations are to be made again, one file a part of ``generations``."""
    return lake.work("match", snapshot, "pointed")


def pointed_file(lake: Lake, snapshot: str, number: int) -> str:
    return lake.work("match", snapshot, "pointed", f"part-{number:05d}.parquet")


class RegenerateHandler(ModelHandler[int, PredictionResult, Generator]):
    """A ``Generator`` in Beam's RunInference: number of a part → its rows of ``regenerations``; one model per process.

    Args:
        generator: what made the audit's images.
        lake, snapshot: where ``Point`` left what is to be made again.
        audit: the audit's columns.
    """

    def __init__(self, generator: Generator, lake: Lake, snapshot: str, audit: dict[str, str]):
        super().__init__()
        self.generator, self.lake, self.snapshot, self.audit = generator, lake, snapshot, audit

    def load_model(self) -> Generator:
        self.generator.load()
        return self.generator

    def batch_elements_kwargs(self) -> dict[str, int]:
        return {"min_batch_size": 1, "max_batch_size": 1}

    def run_inference(
        self, batch: Sequence[int], model: Generator, inference_args: dict[str, Any] | None = None
    ) -> Iterator[PredictionResult]:
        for number in batch:
            yield PredictionResult(example=number, inference=list(self._rows(number, model)))

    def _rows(self, number: int, generator: Generator) -> Iterator[dict[str, Any]]:
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        for row in read_parquet(pointed_file(self.lake, self.snapshot, number)).to_pylist():
            by_prompt.setdefault(row["prompt_id"], []).append(row)
        wanted = [Wanted(rows[0]["text"], {row["sample_index"]: row["seed"] for row in rows}) for rows in by_prompt.values()]
        for rows, made in zip(by_prompt.values(), generator.generate(wanted), strict=True):
            for row in rows:
                attempt = made.get(row["sample_index"])
                image = None if attempt is None else attempt.image
                status = "failed" if attempt is None else attempt.status
                reason = "the finished generation isn't there any more" if attempt is None else attempt.reason
                if image is not None and (off := _levels(thumbnail(image), row["thumbnail"])) > MOST_LEVELS:
                    image, status = None, "differs"
                    reason = f"made again, its thumbnail is up to {off} gray levels off: another device, or other versions"
                yield {
                    **self.audit,
                    **{name: row[name] for name in ("prompt_id", "sample_index", "group_id", "bound")},
                    "status": status,
                    "reason": reason,
                    "image": None if image is None else encode_png(image),
                }


def _levels(one: bytes, other: bytes) -> int:
    a, b = (np.frombuffer(pixels, np.uint8).astype(np.int16) for pixels in (one, other))
    return int(np.abs(a - b).max())


class WriteRegenerations(beam.DoFn):
    """Makes a part of ``regenerations`` durable; yields its number."""

    def __init__(self, lake: Lake, snapshot: str):
        self.lake, self.snapshot = lake, snapshot

    def process(self, result: PredictionResult) -> Iterator[int]:
        number: Any = result.example
        rows: Any = result.inference
        self.lake.write("regenerations", self.snapshot, number, rows)
        count("generations made again", len(rows))
        yield number


@dataclasses.dataclass
class _RegenerateAndWrite(beam.PTransform):
    """Model and writer in one, so that a hint holds for both: else the pictures would cross between two workers."""

    lake: Lake
    snapshot: str
    handler: RegenerateHandler

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        made = parts | "MakeAgain" >> RunInference(self.handler)
        return made | "WriteRegenerations" >> beam.ParDo(WriteRegenerations(self.lake, self.snapshot))


@dataclasses.dataclass
class Regenerate(beam.PTransform):
    """Parts of ``generations`` (numbers) for which ``Point`` left a file → the same parts of ``regenerations``, written.

    Attributes:
        lake, snapshot: where to write.
        generator: what made the audit's images.
        audit: the audit's columns.
        accelerator: a Beam resource hint for the steps with the model, or None.
    """

    lake: Lake
    snapshot: str
    generator: Generator
    audit: dict[str, str]
    accelerator: str | None = None

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        handler = RegenerateHandler(self.generator, self.lake, self.snapshot, self.audit)
        make: beam.PTransform = _RegenerateAndWrite(self.lake, self.snapshot, handler)
        if self.accelerator:
            make = make.with_resource_hints(accelerator=self.accelerator, min_ram="16GB")
        missing = SkipWritten(self.lake, "regenerations", self.snapshot)
        return parts | "SkipWritten" >> beam.ParDo(missing) | "SpreadParts" >> beam.Reshuffle() | "MakeAndWrite" >> make


def regenerated(lake: Lake, snapshot: str) -> set[int]:
    """Numbers of the parts of ``regenerations`` that are there."""
    return {part_number(path) for path in lake.parts("regenerations", snapshot)}


def write_counts(counts: list[tuple[int, int]], path: str) -> None:
    """Adds up what ``Point`` counted, in a file of one row: known, agreeing."""
    sums = [sum(count[column] for count in counts) for column in (0, 1)]
    write_parquet(path, pa.Table.from_pylist([{"known": sums[0], "agreeing": sums[1]}]))
