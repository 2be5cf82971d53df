"""The pictures that are judged, and their CLIP vectors: made where the accelerator is, in a step of its own.

One task in, one file out: the place, the vector and the thumbnail of each of its pictures that can be decoded. The vectors of
generations are a table besides, ``generation_embeddings``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult
from PIL import Image

from transforms.data.images import PicturesByCode
from transforms.kernels.copies import blurred
from transforms.kernels.distances import central_crop
from transforms.matching.directory import own_file
from transforms.matching.tasks import Round, Task, decoy_file
from transforms.matching.unreadable import note
from transforms.models.clip import ClipModel, OpenClipEncoder
from transforms.models.processes import AS_IT_IS, Devices
from transforms.store.counters import count
from transforms.store.files import exists, read_parquet, read_rows, write_parquet
from transforms.store.pictures import DamagedPicture, stored_array, thumbnail

PROMPTS_PARTS = 1000
"""Part numbers of ``generations`` that belong to one part of ``prompts``: see attempts.PARTS_PER_PROMPTS_PART."""

ENCODED_AT_ONCE = 256
"""Pictures that are held while they wait for CLIP."""

SCHEMA = pa.schema(
    [
        pa.field("place", pa.int64()),
        pa.field("vector", pa.list_(pa.float32())),
        pa.field("thumbnail", pa.binary()),
        pa.field("control", pa.bool_()),
    ]
)
"""Of a task's file: place is by which a picture is known in its task; vector is null where CLIP makes nothing of it; control: a
control's caption made it."""


@dataclasses.dataclass(frozen=True)
class JudgedPicture:
    """A picture that is judged.

    Attributes:
        place: in its task, by which it is known from step to step: those that can't be decoded have one, too.
        identity: columns of ``matches``, or ``decoys``, that say which it is.
        prompt: its row of the ``own_file``; None for a decoy.
        picture: (h, w, 3) uint8.
        without: a training group that it is not compared with; None for none.
    """

    place: int
    identity: dict[str, Any]
    prompt: dict[str, Any] | None
    picture: np.ndarray
    without: str | None = None


def read_task(round: Round, task: Task) -> Iterator[JudgedPicture]:
    """The pictures of a task that can be decoded, by rising place; of the others it is noted that they can't."""
    if task.kind == "decoys":
        yield from _decoys(round, task)
    else:
        yield from _generations(round, task)


def prompts_of(round: Round, task: Task) -> dict[str, dict[str, Any]]:
    """prompt_id → row of the ``own_file``, of the prompts that a task is about."""
    path = own_file(round.lake, round.snapshot, task.number // PROMPTS_PARTS)
    return {row["prompt_id"]: row for row in read_rows(path)}


def _generations(round: Round, task: Task) -> Iterator[JudgedPicture]:
    lake, again = round.lake, task.kind == "regenerations"
    prompts = prompts_of(round, task)
    if again:
        path, columns = lake.part("regenerations", round.snapshot, task.number), []
    else:
        path, columns = lake.part("generations", round.snapshots.generate, task.number), ["nearest"]
    stored = (row for row in read_rows(path, ["prompt_id", "sample_index", "image", *columns]) if row["image"] is not None)
    for place, row in enumerate(stored):
        identity = {
            "prompt_id": row["prompt_id"],
            "sample_index": row["sample_index"],
            "nearest": row.get("nearest", False),
            "regenerated": again,
        }
        try:
            picture = stored_array(row["image"])
        except DamagedPicture as error:
            key = {name: row[name] for name in ("prompt_id", "sample_index")}
            note(lake, round.snapshot, "regenerations" if again else "generations", error, **key)
            continue
        yield JudgedPicture(place, identity, prompts[row["prompt_id"]], picture)


def _decoys(round: Round, task: Task) -> Iterator[JudgedPicture]:
    pictures = PicturesByCode(round.lake, round.snapshots.ingest)
    listed = read_parquet(decoy_file(round.lake, round.snapshot)).to_pylist()
    for place, row in enumerate(row for row in listed if row["part"] == task.number):
        try:
            picture = central_crop(pictures.get(row["code"], row["sample_id"]), round.frame)
        except ValueError as error:  # damaged, or far too long for the frame
            note(round.lake, round.snapshot, "images", error, sample_id=row["sample_id"])
            continue
        yield JudgedPicture(
            place,
            {"kind": row["kind"], "sample_id": row["sample_id"]},
            None,
            blurred(picture) if row["kind"] == "blurred" else picture,
            row["group_id"] if row["kind"] == "left_out" else None,
        )


class EmbedTaskHandler(ModelHandler[tuple[int, Task], PredictionResult, OpenClipEncoder]):
    """open_clip in Beam's RunInference: a task, with its number in the round, → the table of its file, and its vectors' rows.

    Args:
        clip: the model that made the vectors of the training images.
        round: what is matched.
    """

    def __init__(self, clip: ClipModel, round: Round):
        super().__init__()
        self.clip, self.round = clip, round

    def on(self, device: str) -> EmbedTaskHandler:
        """The same on another device."""
        return EmbedTaskHandler(dataclasses.replace(self.clip, device=device), self.round)

    def load_model(self) -> OpenClipEncoder:
        return self.clip.load()

    def batch_elements_kwargs(self) -> dict[str, int]:
        # A task is a batch of batches already.
        return {"min_batch_size": 1, "max_batch_size": 1}

    def run_inference(
        self, batch: Sequence[tuple[int, Task]], model: OpenClipEncoder, inference_args: dict[str, Any] | None = None
    ) -> Iterator[PredictionResult]:
        for element in batch:
            yield PredictionResult(example=element, inference=self._embed(element[1], model))

    def _embed(self, task: Task, encoder: OpenClipEncoder) -> tuple[pa.Table, list[dict[str, Any]]]:
        tables, rows = [SCHEMA.empty_table()], []
        for some in _batched(read_task(self.round, task), ENCODED_AT_ONCE):
            vectors = encoder.encode([Image.fromarray(one.picture) for one in some])
            finite = np.isfinite(vectors).all(axis=1)
            listed = [vector.tolist() if known else None for vector, known in zip(vectors, finite, strict=True)]
            for one, vector in zip(some, listed, strict=True):
                if one.prompt is not None:
                    audit = {name: one.prompt[name] for name in ("audit_id", "model_revision")}
                    key = {name: one.identity[name] for name in ("prompt_id", "sample_index")}
                    rows.append({**audit, **key, "vector": vector})
            columns = {
                "place": [one.place for one in some],
                "vector": listed,
                "thumbnail": [thumbnail(one.picture) for one in some],
                "control": [one.prompt is not None and one.prompt["origin"] == "control" for one in some],
            }
            tables.append(pa.table(columns, schema=SCHEMA))
        return pa.concat_tables(tables), rows


def _batched(items: Iterator[JudgedPicture], size: int) -> Iterator[list[JudgedPicture]]:
    while batch := list(itertools.islice(items, size)):
        yield batch


class SkipEmbedded(beam.DoFn):
    """Lets those tasks pass that have no file yet."""

    def __init__(self, round: Round):
        self.round = round

    def process(self, element: tuple[int, Task]) -> Iterator[tuple[int, Task]]:
        if not exists(self.round.file("queries", element[0], "parquet")):
            yield element


class WriteTask(beam.DoFn):
    """An inference → its part of ``generation_embeddings`` and its task's file, written; gives the task's number on.

    Args:
        round: what is matched.
        parameters_digest: the audit's column.
    """

    def __init__(self, round: Round, parameters_digest: str):
        self.round, self.parameters_digest = round, parameters_digest

    def process(self, result: PredictionResult) -> Iterator[int]:
        example: Any = result.example
        inference: Any = result.inference
        (number, task), (table, rows) = example, inference
        if task.kind != "decoys":
            rows = [{**row, "parameters_digest": self.parameters_digest} for row in rows]
            self.round.lake.write("generation_embeddings", self.round.snapshot, task.part, rows)
        write_parquet(self.round.file("queries", number, "parquet"), table)
        count(f"{task.kind} embedded", table.num_rows)
        yield number


@dataclasses.dataclass
class _EmbedAndWrite(beam.PTransform):
    """Model and writer in one, so that a hint holds for both: else the vectors would cross between two workers."""

    round: Round
    clip: ClipModel
    parameters_digest: str
    devices: Devices

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        return (
            tasks
            | "Embed" >> self.devices.infer(EmbedTaskHandler(self.clip, self.round))
            | "WriteTask" >> beam.ParDo(WriteTask(self.round, self.parameters_digest))
        )


@dataclasses.dataclass
class EmbedTasks(beam.PTransform):
    """(number, task) → numbers of the tasks that were embedded now.

    Attributes:
        round: what is matched.
        clip: the model that made the vectors of the training images.
        parameters_digest: the audit's column.
        devices: where the model runs.
    """

    round: Round
    clip: ClipModel
    parameters_digest: str
    devices: Devices = AS_IT_IS

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        model = self.devices.hinted(_EmbedAndWrite(self.round, self.clip, self.parameters_digest, self.devices))
        return (
            tasks
            | "SkipEmbedded" >> beam.ParDo(SkipEmbedded(self.round))
            | "SpreadTasks" >> beam.Reshuffle()
            | "EmbedAndWrite" >> model
        )


class ThumbnailsOfAttempts(beam.DoFn):
    """Number of a part of ``generations``, with its number in the round → the latter; leaves the thumbnails of all its
    attempts, stored or not, as a task's file. An attempt's place is its row.
    """

    def __init__(self, round: Round):
        self.round = round

    def process(self, element: tuple[int, int]) -> Iterator[int]:
        number, part = element
        table = read_parquet(self.round.lake.part("generations", self.round.snapshots.generate, part), ["thumbnail"])
        nothing = pa.nulls(table.num_rows, pa.list_(pa.float32()))
        columns = {
            "place": pa.array(range(table.num_rows), pa.int64()),
            "vector": nothing,
            "thumbnail": table["thumbnail"],
            "control": pa.array([False] * table.num_rows, pa.bool_()),
        }
        write_parquet(self.round.file("queries", number, "parquet"), pa.table(columns, schema=SCHEMA))
        yield number
