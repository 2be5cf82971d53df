"""Judges the pictures that were made under mitigations: rows of ``mitigations``.

A part is some prompts; CLIP makes the vectors of their pictures, by which they are judged and compared with what was asked for.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult
from PIL import Image

from transforms.data.embedding import SkipWritten
from transforms.errors import UserError
from transforms.kernels.copies import CopyLimits
from transforms.matching.comparison import Group, Measure
from transforms.matching.judging import Brought, Judge, Judgement
from transforms.matching.tasks import Round
from transforms.models.clip import ClipModel, OpenClipEncoder
from transforms.models.processes import Devices
from transforms.store.counters import count
from transforms.store.files import read_rows, write_parquet
from transforms.store.pictures import stored_array

PROMPTS_AT_ONCE = 16
"""Prompts in one part of ``mitigations``."""

PICTURES_AT_ONCE = 256
"""Pictures that are held decoded while they are judged."""

VECTORS = pa.schema({"class": pa.string(), "mitigation": pa.string(), "attacked": pa.bool_(), "vector": pa.list_(pa.float32())})


class Picture(NamedTuple):
    """A picture of a prompt's file, and what was said of it.

    Attributes:
        row: of the file.
        vector: (d,) of CLIP.
        judged: None where its own image can't be looked at.
    """

    row: dict[str, Any]
    vector: np.ndarray
    judged: Judgement | None


@dataclasses.dataclass(frozen=True)
class Mitigated:
    """What is judged, and how. Small, and pickles.

    Attributes:
        round: the index, as ``Judge`` has it; its snapshot is that of ``mitigate``.
        measure, limits: of the audit.
        drawn: file of the prompts, in order: prompt_id, text, sample_id, class, own_group, own_code, own_sample, own_size.
        folder: where the file of each lies, PROMPT_ID.parquet: mitigation, attacked, number, status, reason, image, seconds,
            evaluations.
        vectors: where CLIP's vectors of the pictures of each part are put, NUMBER.parquet: class, mitigation, attacked, vector.
        audit: the audit's columns.
    """

    round: Round
    measure: Measure
    limits: CopyLimits
    drawn: str
    folder: str
    vectors: str
    audit: dict[str, str]


class Rows(NamedTuple):
    """A part of ``mitigations``, and the vectors of its pictures."""

    rows: list[dict[str, Any]]
    vectors: list[dict[str, Any]]


class JudgeHandler(ModelHandler[int, PredictionResult, OpenClipEncoder]):
    """open_clip in Beam's RunInference: number of a part → its rows of ``mitigations``.

    Args:
        clip: the model that made the vectors of the training images.
        job: what is judged.
    """

    def __init__(self, clip: ClipModel, job: Mitigated):
        super().__init__()
        self.clip, self.job = clip, job

    def on(self, device: str) -> JudgeHandler:
        """The same on another device."""
        return JudgeHandler(dataclasses.replace(self.clip, device=device), self.job)

    def load_model(self) -> OpenClipEncoder:
        return self.clip.load()

    def batch_elements_kwargs(self) -> dict[str, int]:
        return {"min_batch_size": 1, "max_batch_size": 1}

    def run_inference(
        self, batch: Sequence[int], model: OpenClipEncoder, inference_args: dict[str, Any] | None = None
    ) -> Iterator[PredictionResult]:
        for number in batch:
            yield PredictionResult(example=number, inference=self._rows(number, model))

    def _rows(self, number: int, encoder: OpenClipEncoder) -> Rows:
        job, made = self.job, Rows([], [])
        judge = Judge(job.round, job.measure, job.limits)
        prompts = list(read_rows(job.drawn))[number * PROMPTS_AT_ONCE : (number + 1) * PROMPTS_AT_ONCE]
        asked: list[np.ndarray | None]
        try:
            asked = list(encoder.encode_texts([prompt["text"] for prompt in prompts]))
        except UserError:  # a CLIP without texts: what is judged doesn't need them
            count("prompts without a vector of their text", len(prompts))
            asked = [None] * len(prompts)
        for prompt, vector in zip(prompts, asked, strict=True):
            tried: dict[tuple[str, bool], list[dict[str, Any]]] = collections.defaultdict(list)
            pictures: dict[tuple[str, bool], list[Picture]] = collections.defaultdict(list)
            waiting: list[dict[str, Any]] = []
            for row in read_rows(f"{job.folder}/{prompt['prompt_id']}.parquet"):
                image = row.pop("image")
                tried[row["mitigation"], row["attacked"]].append(row)
                if image is not None:
                    waiting.append({**row, "image": image})
                if len(waiting) == PICTURES_AT_ONCE:
                    self._judge(judge, encoder, prompt, waiting, pictures)
            self._judge(judge, encoder, prompt, waiting, pictures)
            plain = {one.row["number"]: one.vector for one in pictures["none", False]}
            for key, rows in tried.items():
                made.rows.append({**job.audit, **_row(prompt, vector, key, rows, pictures[key], plain, job.measure.delta)})
                of = {"class": prompt["class"], "mitigation": key[0], "attacked": key[1]}
                made.vectors.extend({**of, "vector": one.vector} for one in pictures[key] if one.judged is not None)
        return made

    def _judge(
        self,
        judge: Judge,
        encoder: OpenClipEncoder,
        prompt: dict[str, Any],
        waiting: list[dict[str, Any]],
        pictures: dict[tuple[str, bool], list[Picture]],
    ) -> None:
        """Moves what waits to the pictures that are judged."""
        decoded = [stored_array(row.pop("image")) for row in waiting]
        vectors = encoder.encode([Image.fromarray(one) for one in decoded])
        own = Group(prompt["own_group"], prompt["own_code"], prompt["own_sample"], prompt["own_size"])
        control = prompt["class"] == "never_seen"
        brought = [Brought(one, vector, own, control) for one, vector in zip(decoded, vectors, strict=True)]
        for row, vector, judged in zip(waiting, vectors, judge.judge(brought), strict=True):
            pictures[row["mitigation"], row["attacked"]].append(Picture(row, vector, judged))
        waiting.clear()


def _row(
    prompt: dict[str, Any],
    asked: np.ndarray | None,
    key: tuple[str, bool],
    rows: list[dict[str, Any]],
    pictures: list[Picture],
    plain: dict[int, np.ndarray],
    delta: float,
) -> dict[str, Any]:
    """One prompt under one mitigation: a row of ``mitigations`` without the audit's columns.

    Args:
        prompt: of the drawn ones.
        asked: (d,), the vector of its text; None where CLIP makes none.
        key: mitigation, and whether it was attacked.
        rows: what became of each attempt.
        pictures: those that were made.
        plain: number → vector of what was made of the same noise without mitigation.
        delta: the paper's.
    """
    judged = [one for one in pictures if one.judged is not None]
    status, reason = "success", None
    if not pictures:
        status, reason = "failed", next((row["reason"] for row in rows if row["reason"]), "no picture was made")
    elif not judged:
        status, reason = "unreadable", "its own image can't be looked at any more"
    nearest = min((one.judged for one in judged if one.judged is not None), default=None)
    beside = [(one.vector, plain[one.row["number"]]) for one in judged if one.row["number"] in plain]
    return {
        "prompt_id": prompt["prompt_id"],
        "sample_id": prompt["sample_id"],
        "class": prompt["class"],
        "mitigation": key[0],
        "attacked": key[1],
        "images": len(judged),
        "copies": sum(one.judged.copied for one in judged if one.judged is not None),
        "copied": None if nearest is None else nearest.copied,
        "nearest_l2": None if nearest is None else nearest.l2,
        "extracted": None if nearest is None else nearest.l2 <= delta,
        "prompt_similarity": None if asked is None else _mean([float(one.vector @ asked) for one in judged]),
        "picture_similarity": _mean([float(one @ other) for one, other in beside]),
        "seconds": _mean([one.row["seconds"] for one in pictures]),
        "evaluations": _mean([one.row["evaluations"] for one in pictures]),
        "status": status,
        "reason": reason,
    }


def _mean(values: list[float]) -> float | None:
    """Of what is finite; None where nothing is."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


class WriteMitigations(beam.DoFn):
    """Makes a part of ``mitigations`` durable; yields its number."""

    def __init__(self, job: Mitigated):
        self.job = job

    def process(self, result: PredictionResult) -> Iterator[int]:
        number: Any = result.example
        made: Any = result.inference
        # Before the rows, by which the part counts as done.
        write_parquet(f"{self.job.vectors}/{number}.parquet", pa.Table.from_pylist(made.vectors, VECTORS))
        self.job.round.lake.write("mitigations", self.job.round.snapshot, number, made.rows)
        count("rows of mitigations", len(made.rows))
        yield number


class _JudgeAndWrite(beam.PTransform):
    """Model and writer in one, so that a hint holds for both."""

    def __init__(self, handler: JudgeHandler, devices: Devices):
        super().__init__()
        self.handler, self.devices = handler, devices

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        return (
            parts
            | "Judge" >> self.devices.infer(self.handler)
            | "WriteMitigations" >> beam.ParDo(WriteMitigations(self.handler.job))
        )


class JudgeMitigated(beam.PTransform):
    """Numbers of parts → numbers of the parts of ``mitigations`` that were written now.

    Args:
        handler: CLIP, and what is judged.
        devices: where the model runs.
    """

    def __init__(self, handler: JudgeHandler, devices: Devices):
        super().__init__()
        self.handler, self.devices = handler, devices

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        job = self.handler.job
        judge = self.devices.hinted(_JudgeAndWrite(self.handler, self.devices))
        skip = beam.ParDo(SkipWritten(job.round.lake, "mitigations", job.round.snapshot))
        return parts | "SkipWritten" >> skip | "SpreadParts" >> beam.Reshuffle() | "JudgeAndWrite" >> judge
