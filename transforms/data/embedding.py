"""The vectors of whole parts of ``images``: open_clip behind Beam's RunInference, as a PTransform.

One example is one part of ``images``, named by its number; its vectors are written as the part of ``embeddings`` with
the same number. So neither pictures nor vectors cross a shuffle, and what a batch holds is the same on every runner.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.ml.inference.base import ModelHandler, PredictionResult
from threadpoolctl import threadpool_limits

from transforms.models.clip import ClipModel, OpenClipEncoder
from transforms.models.devices import cores
from transforms.models.processes import AS_IT_IS, Devices
from transforms.store.counters import count
from transforms.store.files import exists, read_parquet, read_rows
from transforms.store.lake import Lake
from transforms.store.pictures import decode, thumbnail
from transforms.store.tombstones import FORGOTTEN, Tombstones

if TYPE_CHECKING:
    import torch

THREADS = 8
"""At most so many decode and resize pictures for one model; more of them wait for Python's lock."""

AHEAD = 2
"""Batches that they are ahead of the model."""


class OpenClipHandler(ModelHandler[int, PredictionResult, OpenClipEncoder]):
    """open_clip in Beam's RunInference: the number of a part of ``images`` in, its rows of ``embeddings`` out.

    Args:
        clip: the model.
        lake: where the pictures are.
        ingest_snapshot: whose ``images``.
        compare_captions: whether pictures are compared with their captions, where the metadata have LAION's similarity.

    An inference is a ``pa.Table`` in the order of the images, one row each, whatever became of it.
    """

    def __init__(self, clip: ClipModel, lake: Lake, ingest_snapshot: str, compare_captions: bool = False):
        super().__init__()
        self.clip, self.lake, self.ingest_snapshot, self.compare_captions = clip, lake, ingest_snapshot, compare_captions
        # Here and not on the worker: the name must not depend on where the model was loaded from.
        self.model, self.pretrained = clip.identity()

    def on(self, device: str) -> OpenClipHandler:
        """The same on another device."""
        clip = dataclasses.replace(self.clip, device=device)
        return OpenClipHandler(clip, self.lake, self.ingest_snapshot, self.compare_captions)

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
        rows: list[_Row] = []
        waiting: list[tuple[_Row, torch.Tensor]] = []

        def encode_waiting() -> None:
            encoded = encoder.encode_prepared([prepared for _, prepared in waiting])
            for (row, _), vector in zip(waiting, encoded, strict=True):
                if np.isfinite(vector).all():
                    row.vector = vector
                else:
                    row.status, row.reason = "failed_to_embed", "the model's vector is zero or not finite"
            waiting.clear()

        for row, prepared in self._prepared(number, encoder):
            rows.append(row)
            if prepared is not None:
                waiting.append((row, prepared))
            if len(waiting) == self.clip.batch_size:
                encode_waiting()
        encode_waiting()
        if self.compare_captions:
            self._compare_captions(number, rows, encoder)
        return pa.table(
            {
                "sample_id": pa.array([row.sample_id for row in rows], pa.string()),
                "role": pa.array([row.role for row in rows], pa.string()),
                "model": pa.array([self.model] * len(rows), pa.string()),
                "pretrained": pa.array([self.pretrained] * len(rows), pa.string()),
                "preprocessing": pa.array([encoder.preprocessing] * len(rows), pa.string()),
                "vector": _vector_column([row.vector for row in rows]),
                "thumbnail": pa.array([row.thumbnail for row in rows], pa.binary()),
                "caption_cosine": pa.array([row.caption_cosine for row in rows], pa.float32()),
                "other_caption_cosine": pa.array([row.other_caption_cosine for row in rows], pa.float32()),
                "status": pa.array([row.status for row in rows], pa.string()),
                "reason": pa.array([row.reason for row in rows], pa.string()),
            }
        )

    def _compare_captions(self, number: int, rows: list[_Row], encoder: OpenClipEncoder) -> None:
        """Gives the rows their cosines: with the caption, and with that of the next picture whose caption is another."""
        samples = read_parquet(
            self.lake.paths("samples", self.ingest_snapshot)[number], ["sample_id", "role", "caption", "similarity"]
        ).filter(pc.field("similarity").is_valid() & (pc.field("role") == "training"))
        captions = dict(zip(samples["sample_id"].to_pylist(), samples["caption"].to_pylist(), strict=True))
        compared = [row for row in rows if row.status == "success" and (captions.get(row.sample_id) or "").strip()]
        if not compared:
            return
        texts = [captions[row.sample_id] for row in compared]
        vectors = encoder.encode_texts(texts)
        for place, row in enumerate(compared):
            row.caption_cosine = _cosine(row.vector, vectors[place])
            other = (place + 1) % len(compared)
            if texts[other] != texts[place]:
                row.other_caption_cosine = _cosine(row.vector, vectors[other])

    def _prepared(self, number: int, encoder: OpenClipEncoder) -> Iterator[tuple[_Row, torch.Tensor | None]]:
        """The rows of a part, in order, and what the model takes of their pictures: threads are some batches ahead of it."""
        forgotten = Tombstones.read(self.lake).samples
        path = self.lake.paths("images", self.ingest_snapshot)[number]

        def prepare(image: dict[str, Any]) -> tuple[_Row, torch.Tensor | None]:
            row = _Row(image["sample_id"], image["role"])
            if image["image"] is None or row.sample_id in forgotten:
                row.status, row.reason = FORGOTTEN, forgotten.get(row.sample_id, "there is no picture any more")
                return row, None
            try:
                picture = decode(image["image"])
                row.thumbnail = thumbnail(picture)
                return row, encoder.prepare(picture)
            except ValueError as error:
                row.status, row.reason = "failed_to_decode", str(error)
                return row, None

        waiting: collections.deque[concurrent.futures.Future[tuple[_Row, torch.Tensor | None]]] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(min(cores(), THREADS), initializer=_products_on_one_core) as pool:
            for image in read_rows(path, ["sample_id", "role", "image"]):
                waiting.append(pool.submit(prepare, image))
                if len(waiting) > AHEAD * self.clip.batch_size:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


@dataclasses.dataclass
class _Row:
    """A row of ``embeddings`` on its way; its vector is empty until there is one."""

    sample_id: str
    role: str
    status: str = "success"
    reason: str | None = None
    vector: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))
    thumbnail: bytes | None = None
    caption_cosine: float | None = None
    other_caption_cosine: float | None = None


def _cosine(one: np.ndarray, other: np.ndarray) -> float | None:
    """Of two vectors of unit norm; None where one has no direction."""
    found = float(one.astype(np.float64) @ other.astype(np.float64))
    return found if np.isfinite(found) else None


def _products_on_one_core() -> None:
    """Has this thread do torch's work alone: each of many would have helpers on all cores, which wait for one another."""
    import torch

    torch.get_num_threads()  # at the first call it is set for a thread
    threadpool_limits(1, user_api="openmp")


def _vector_column(vectors: list[np.ndarray]) -> pa.Array:
    """A list column; null where a vector is empty."""
    lengths = [len(vector) for vector in vectors]
    values = np.concatenate([np.empty(0, np.float32), *vectors])
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
