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
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from transforms.data.embedding import SkipWritten
from transforms.kernels.copies import CopyLimits, is_copy
from transforms.matching.candidates import candidates_file
from transforms.matching.directory import Directory
from transforms.matching.queries import PROMPTS_PARTS
from transforms.matching.tasks import PLACE_BITS, Round
from transforms.models.base import Generator, Wanted
from transforms.models.processes import AS_IT_IS, Devices
from transforms.store.counters import count
from transforms.store.files import exists, open_parquet, read_parquet, read_rows, write_parquet
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


def points_at(distances: Sequence[float], most: float) -> float | None:
    """How near to a training image a generation may be that its thumbnail points at; None where it points at none.

    Args:
        distances: l2 of the thumbnail to those of the nearest groups, rising; three, or all there are.
        most: bounds are below this.

    Returns:
        the bound: the picture's l2 is over it.
    """
    if not distances:
        return None
    bound = max(0.0, distances[0] - ROUNDING)
    apart = len(distances) < 3 or distances[0] < APART * distances[2]
    return bound if apart and bound < most else None


class Point(beam.DoFn):
    """(number, part of ``generations``) → (copies by stored pictures, those of them that thumbnails point at as well).

    What is to be made again goes to the file ``pointed`` of the part: prompt_id, text, sample_index, seed, group_id, bound,
    thumbnail.

    Args:
        round: whose candidates are those of all attempts' thumbnails.
        limits: of a copy.
    """

    def __init__(self, round: Round, limits: CopyLimits):
        self.round, self.limits = round, limits

    def process(self, element: tuple[int, int]) -> Iterator[tuple[int, int]]:
        place_of_task, number = element
        lake, snapshots = self.round.lake, self.round.snapshots
        copied = self._copied(number)
        copied_by: dict[str, set[str]] = {}
        for (prompt_id, _), some in copied.items():
            copied_by.setdefault(prompt_id, set()).update(some)
        near = self._near(place_of_task)
        prompts = {
            row["prompt_id"]: row for row in read_rows(lake.part("prompts", snapshots.generate, number // PROMPTS_PARTS))
        }
        best: dict[tuple[str, str], dict[str, Any]] = {}
        known = agreeing = 0
        columns = ["prompt_id", "sample_index", "seed", "thumbnail"]
        kept = _kept(lake, snapshots.generate, number)
        for place, row in enumerate(read_rows(lake.part("generations", snapshots.generate, number), columns)):
            if row["thumbnail"] is None:
                continue
            prompt = prompts[row["prompt_id"]]
            mine = copied.get((row["prompt_id"], row["sample_index"]), set())
            known += len(mine - {prompt["group_id"]})
            if place not in near:
                continue
            group, bound = near[place]
            agreeing += group in mine - {prompt["group_id"]}
            key = row["prompt_id"], group
            # The nearest attempt of a prompt speaks for its own image; and of another one a single copy says enough.
            own = group == prompt["group_id"] or prompt["stratum"] == FORGOTTEN
            if kept[place] or own or group in copied_by.get(row["prompt_id"], ()):
                continue
            if key not in best or bound < best[key]["bound"]:
                best[key] = {**row, "text": prompt["text"], "group_id": group, "bound": bound}
        if best:
            write_parquet(pointed_file(lake, self.round.snapshot, number), pa.Table.from_pylist(_one_each(best.values())))
        yield known, agreeing

    def _near(self, number: int) -> dict[int, tuple[str, float]]:
        """Row → (group, bound) of the training image that an attempt's thumbnail points at."""
        most = min(self.limits.coarse_l2, self.limits.l2)
        path = candidates_file(self.round, number)
        if not exists(path):
            return {}
        found: dict[int, list[tuple[float, int]]] = {}
        for row in read_rows(path, ["role", "query", "code", "apart"]):
            if row["role"] == "training":
                found.setdefault(row["query"] & ((1 << PLACE_BITS) - 1), []).append((row["apart"], row["code"]))
        pointed: dict[int, tuple[int, float]] = {}
        for place, some in found.items():
            some.sort()
            bound = points_at([distance for distance, _ in some], most)
            if bound is not None:
                pointed[place] = some[0][1], bound
        rows = Directory(self.round.lake, self.round.snapshots.deduplicate).rows(code for code, _ in pointed.values())
        return {place: (rows[code]["group_id"], bound) for place, (code, bound) in pointed.items()}

    def _copied(self, number: int) -> dict[tuple[str, int], set[str]]:
        """(prompt, generation) → groups that the stored pictures of this part are copies of."""
        path = self.round.lake.part("matches", self.round.snapshot, number)
        columns = ["prompt_id", "sample_index", "group_id", "role", "l2", "coarse_l2", "coarse_ratio"]
        found: dict[tuple[str, int], set[str]] = {}
        for row in read_parquet(path, columns).to_pylist():
            if row["role"] == "training" and is_copy(row, self.limits):
                found.setdefault((row["prompt_id"], row["sample_index"]), set()).add(row["group_id"])
        return found


def _kept(lake: Lake, generate: str, number: int) -> list[bool]:
    """Of each row of a part of ``generations``, whether its picture is stored; no more than a row group is read at once."""
    kept: list[bool] = []
    with open_parquet(lake.part("generations", generate, number)) as file:
        for group in range(file.num_row_groups):
            kept += file.read_row_group(group, columns=["image"])["image"].is_valid().to_pylist()
    return kept


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

    def on(self, device: str) -> RegenerateHandler:
        """The same on another device."""
        return RegenerateHandler(self.generator.on(device), self.lake, self.snapshot, self.audit)

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
    devices: Devices

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        made = parts | "MakeAgain" >> self.devices.infer(self.handler)
        return made | "WriteRegenerations" >> beam.ParDo(WriteRegenerations(self.lake, self.snapshot))


@dataclasses.dataclass
class Regenerate(beam.PTransform):
    """Parts of ``generations`` (numbers) for which ``Point`` left a file → the same parts of ``regenerations``, written.

    Attributes:
        lake, snapshot: where to write.
        generator: what made the audit's images.
        audit: the audit's columns.
        devices: where the model runs.
    """

    lake: Lake
    snapshot: str
    generator: Generator
    audit: dict[str, str]
    devices: Devices = AS_IT_IS

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        handler = RegenerateHandler(self.generator, self.lake, self.snapshot, self.audit)
        make = self.devices.hinted(_RegenerateAndWrite(self.lake, self.snapshot, handler, self.devices))
        missing = SkipWritten(self.lake, "regenerations", self.snapshot)
        return parts | "SkipWritten" >> beam.ParDo(missing) | "SpreadParts" >> beam.Reshuffle() | "MakeAndWrite" >> make


def regenerated(lake: Lake, snapshot: str) -> set[int]:
    """Numbers of the parts of ``regenerations`` that are there."""
    return {part_number(path) for path in lake.parts("regenerations", snapshot)}


def write_counts(counts: list[tuple[int, int]], path: str) -> None:
    """Adds up what ``Point`` counted, in a file of one row: known, agreeing."""
    sums = [sum(count[column] for count in counts) for column in (0, 1)]
    write_parquet(path, pa.Table.from_pylist([{"known": sums[0], "agreeing": sums[1]}]))
