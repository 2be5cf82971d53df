"""The vectors of whole parts of ``images``: open_clip behind Beam's RunInference, as a PTransform.

One example is one part of ``images``, named by its number; its vectors are written as the part of ``embeddings`` with
the same number. So neither pictures nor vectors cross a shuffle, and what a batch holds is the same on every runner.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from transforms.models.clip import ClipModel, OpenClipEncoder
from transforms.models.processes import AS_IT_IS, Devices
from transforms.store.counters import count
from transforms.store.files import exists, read_rows
from transforms.store.lake import Lake
from transforms.store.pictures import decode, thumbnail
from transforms.store.tombstones import FORGOTTEN, Tombstones

if TYPE_CHECKING:
    import torch


class OpenClipHandler(ModelHandler[int, PredictionResult, OpenClipEncoder]):
    """open_clip in Beam's RunInference: the number of a part of ``images`` in, its rows of ``embeddings`` out.

    Args:
        clip: the model.
        lake: where the pictures are.
        ingest_snapshot: whose ``images``.

    An inference is a ``pa.Table`` in the order of the images, one row each, whatever became of it.
    """

    def __init__(self, clip: ClipModel, lake: Lake, ingest_snapshot: str):
        super().__init__()
        self.clip, self.lake, self.ingest_snapshot = clip, lake, ingest_snapshot
        # Here and not on the worker: the name must not depend on where the model was loaded from.
        self.model, self.pretrained = clip.identity()

    def on(self, device: str) -> OpenClipHandler:
        """The same on another device."""
        return OpenClipHandler(dataclasses.replace(self.clip, device=device), self.lake, self.ingest_snapshot)

    def load_model(self) -> OpenClipEncoder:
        return self.clip.load()

    def batch_elements_kwargs(self) -> dict[str, int]:
        # A part is a batch of batches already.
        return {"min_batch_size": 1, "max_batch_size": 1}

    def run_inference(
        self, batch: Sequence[int], model: OpenClipEncoder, inference_args: dict[str, Any] | None = None
    ) -> Iterator[PredictionResult]:
        for number in batch:
            yield PredictionResult(example=number, inference=self._embed(number, model))

    def _embed(self, number: int, encoder: OpenClipEncoder) -> pa.Table:
        ids: list[str] = []
        roles: list[str] = []
        reasons: list[str | None] = []
        statuses: list[str] = []
        vectors: list[np.ndarray] = []
        thumbnails: list[bytes | None] = []
        waiting: list[tuple[int, torch.Tensor]] = []

        def encode_waiting() -> None:
            encoded = encoder.encode_prepared([prepared for _, prepared in waiting])
            for (row, _), vector in zip(waiting, encoded, strict=True):
                if np.isfinite(vector).all():
                    vectors[row] = vector
                else:
                    statuses[row], reasons[row] = "failed_to_embed", "the model's vector is zero or not finite"
            waiting.clear()

        forgotten = Tombstones.read(self.lake).samples
        path = self.lake.paths("images", self.ingest_snapshot)[number]
        for row, image in enumerate(read_rows(path, ["sample_id", "role", "image"])):
            ids.append(image["sample_id"])
            roles.append(image["role"])
            statuses.append("success")
            reasons.append(None)
            vectors.append(_NO_VECTOR)
            thumbnails.append(None)
            if image["image"] is None or image["sample_id"] in forgotten:
                statuses[row], reasons[row] = FORGOTTEN, forgotten.get(image["sample_id"], "there is no picture any more")
                continue
            try:
                picture = decode(image["image"])
                waiting.append((row, encoder.prepare(picture)))
                thumbnails[row] = thumbnail(picture)
            except ValueError as error:
                statuses[row], reasons[row] = "failed_to_decode", str(error)
            if len(waiting) == self.clip.batch_size:
                encode_waiting()
        encode_waiting()
        return pa.table(
            {
                "sample_id": pa.array(ids, pa.string()),
                "role": pa.array(roles, pa.string()),
                "model": pa.array([self.model] * len(ids), pa.string()),
                "pretrained": pa.array([self.pretrained] * len(ids), pa.string()),
                "preprocessing": pa.array([encoder.preprocessing] * len(ids), pa.string()),
                "vector": _vector_column(vectors),
                "thumbnail": pa.array(thumbnails, pa.binary()),
                "status": pa.array(statuses, pa.string()),
                "reason": pa.array(reasons, pa.string()),
            }
        )


_NO_VECTOR = np.empty(0, np.float32)


def _vector_column(vectors: list[np.ndarray]) -> pa.Array:
    """A list column; null where a vector is empty."""
    lengths = [len(vector) for vector in vectors]
    values = np.concatenate([_NO_VECTOR, *vectors])
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    missing = pa.array([length == 0 for length in lengths], pa.bool_())
    return pa.ListArray.from_arrays(offsets, pa.array(values, pa.float32()), mask=missing)


class SkipWritten(beam.DoFn):
    """Lets the numbers of those parts pass that a table does not have yet."""

    def __init__(self, lake: Lake, table: str, snapshot: str):
        self.lake, self.table, self.snapshot = lake, table, snapshot

    def process(self, number: int) -> Iterator[int]:
        if not exists(self.lake.part(self.table, self.snapshot, number)):
            yield number


class WriteEmbeddings(beam.DoFn):
    """An inference → its part of ``embeddings``, written; gives the part's number on."""

    def __init__(self, lake: Lake, embed_snapshot: str):
        self.lake, self.embed_snapshot = lake, embed_snapshot

    def process(self, result: PredictionResult) -> Iterator[int]:
        number: int = result.example  # type: ignore[assignment]  # Beam's type says nothing
        self.lake.write("embeddings", self.embed_snapshot, number, result.inference)
        statuses: list[str] = result.inference["status"].to_pylist()  # type: ignore[index]
        for status, rows in collections.Counter(statuses).items():
            count(f"embeddings {status}", rows)
        yield number


@dataclasses.dataclass
class _InferAndWrite(beam.PTransform):
    """Model and writer in one, so that a hint holds for both: else the vectors would cross between two workers."""

    handler: OpenClipHandler
    embed_snapshot: str
    devices: Devices

    def expand(self, numbers: beam.PCollection) -> beam.PCollection:
        return (
            numbers
            | "Embed" >> self.devices.infer(self.handler)
            | "WriteEmbeddings" >> beam.ParDo(WriteEmbeddings(self.handler.lake, self.embed_snapshot))
        )


@dataclasses.dataclass
class EmbedImages(beam.PTransform):
    """Numbers of parts of ``images`` → numbers of the parts of ``embeddings`` that were written now.

    Attributes:
        handler: the model and where the pictures are.
        embed_snapshot: whose ``embeddings``. Parts that it has are left alone.
        devices: where the model runs.
    """

    handler: OpenClipHandler
    embed_snapshot: str
    devices: Devices = AS_IT_IS

    def expand(self, numbers: beam.PCollection) -> beam.PCollection:
        model = self.devices.hinted(_InferAndWrite(self.handler, self.embed_snapshot, self.devices))
        return (
            numbers
            | "SkipWritten" >> beam.ParDo(SkipWritten(self.handler.lake, "embeddings", self.embed_snapshot))
            | "SpreadParts" >> beam.Reshuffle()
            | "EmbedAndWrite" >> model
        )
