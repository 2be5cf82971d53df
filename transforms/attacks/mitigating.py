"""Makes pictures of some prompts under each mitigation, by their captions and by what DoRI finds, and makes them durable.

One prompt is one element, and leaves one file: the pictures of all mitigations. A run that was killed makes none of them again.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from transforms.data.images import ImageStore
from transforms.errors import first_line
from transforms.models.devices import out_of_memory
from transforms.models.mitigations import DoRI, Made, MitigatedGenerator, NoMitigation
from transforms.models.processes import Devices
from transforms.store.counters import count
from transforms.store.files import exists, read_rows, write_parquet
from transforms.store.identity import digest, seed
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png

PICTURES = pa.schema(
    [
        pa.field("mitigation", pa.string(), False),
        pa.field("attacked", pa.bool_(), False),
        pa.field("number", pa.int32(), False),
        pa.field("status", pa.string(), False),
        pa.field("reason", pa.string()),
        pa.field("image", pa.binary()),
        pa.field("seconds", pa.float64(), False),
        pa.field("evaluations", pa.float64(), False),
    ]
)
"""Of a prompt's file: one row a picture; image is a PNG, null where there is none."""


def drawn_file(lake: Lake, snapshot: str) -> str:
    """The prompts: columns of ``sql/tables/mitigated_prompts.sql``, and own_code, own_sample and own_size of their image."""
    return lake.work("mitigate", snapshot, "drawn.parquet")


def pictures_folder(lake: Lake, snapshot: str) -> str:
    """Where the finished prompts lie, a file each."""
    return lake.work("mitigate", snapshot, "prompts")


def pictures_file(lake: Lake, snapshot: str, prompt_id: str) -> str:
    return f"{pictures_folder(lake, snapshot)}/{prompt_id}.parquet"


class MitigateHandler(ModelHandler[int, PredictionResult, MitigatedGenerator]):
    """A model in Beam's RunInference: number of a prompt in the ``drawn_file`` in, its pictures durable.

    Args:
        generator: the model of the audit.
        lake, snapshot: where prompts and results are.
        store: the images that DoRI looks for.
        mitigations: which are tried.
        images: pictures of each prompt under each.
        base_seed: the audit's. The pictures have the numbers after those that the audit made, and so noise of their own:
            prompts are chosen by what the audit's noise gave, and "before" must not be flattered by it.
        dori: the attack; None without.
    """

    def __init__(
        self,
        generator: MitigatedGenerator,
        lake: Lake,
        snapshot: str,
        store: ImageStore,
        mitigations: Sequence[NoMitigation],
        images: int,
        base_seed: int,
        dori: DoRI | None,
    ):
        super().__init__()
        self.generator, self.lake, self.snapshot, self.store = generator, lake, snapshot, store
        self.mitigations, self.images, self.base_seed, self.dori = mitigations, images, base_seed, dori

    def on(self, device: str) -> MitigateHandler:
        """The same on another device."""
        moved = copy.copy(self)
        moved.generator = self.generator.on(device)
        return moved

    def load_model(self) -> MitigatedGenerator:
        self.generator.load()
        return self.generator

    def batch_elements_kwargs(self) -> dict[str, int]:
        return {"min_batch_size": 1, "max_batch_size": 1}

    def run_inference(
        self, batch: Sequence[int], model: MitigatedGenerator, inference_args: dict[str, Any] | None = None
    ) -> Iterator[PredictionResult]:
        prompts = list(read_rows(drawn_file(self.lake, self.snapshot)))
        for number in batch:
            prompt = prompts[number]
            table = pa.Table.from_pylist(list(self._rows(prompt, model)), schema=PICTURES)
            write_parquet(pictures_file(self.lake, self.snapshot, prompt["prompt_id"]), table)
            count("prompts tried under mitigations")
            yield PredictionResult(example=number, inference=table.num_rows)

    def _rows(self, prompt: dict[str, Any], model: MitigatedGenerator) -> Iterator[dict[str, Any]]:
        first = prompt["images_requested"]
        seeds = {number: seed(self.base_seed, prompt["prompt_id"], first + number) for number in range(self.images)}
        for mitigation in self.mitigations:
            yield from _said(mitigation, False, model.make(mitigation, prompt["text"], seeds))
        if self.dori is None:
            return
        try:
            own = self.store.get(prompt["sample_id"])
        except ValueError as error:  # forgotten since the prompt was drawn, or undecodable
            yield from (_failed(mitigation, number, str(error)) for mitigation in self.mitigations for number in seeds)
            return
        # Most mitigations don't touch embeddings, and one search does for them.
        found: dict[NoMitigation, Any] = {}
        for mitigation in self.mitigations:
            felt = mitigation if type(mitigation).embedding is not NoMitigation.embedding else NoMitigation()
            if felt not in found:
                found[felt] = self._attack(prompt, own, model, felt)
            if isinstance(found[felt], str):
                yield from (_failed(mitigation, number, found[felt]) for number in seeds)
            else:
                yield from _said(mitigation, True, model.make(mitigation, prompt["text"], seeds, found[felt]))

    def _attack(self, prompt: dict[str, Any], own: np.ndarray, model: MitigatedGenerator, mitigation: NoMitigation) -> Any:
        """The embedding, or why there is none."""
        assert self.dori is not None
        begun = time.perf_counter()
        # The same noise, whichever mitigation it is looked for under.
        chance = seed(self.base_seed, digest("dori", prompt["prompt_id"]), 0)
        try:
            embedding, _ = model.attack(prompt["text"], own, chance, self.dori, mitigation)
        except (RuntimeError, ValueError, LookupError, ArithmeticError) as error:
            if out_of_memory(error):
                return f"out of memory on {model.device} for {self.dori.batch} latents of DoRI at once; name --dori_batch"
            return f"DoRI failed: {type(error).__name__}: {first_line(error)}"
        count("milliseconds of DoRI", round(1000 * (time.perf_counter() - begun)))
        return embedding if bool(embedding.isfinite().all()) else "DoRI's embedding is not finite"


def _said(mitigation: NoMitigation, attacked: bool, made: dict[int, Made]) -> Iterator[dict[str, Any]]:
    for number, (attempt, evaluations) in sorted(made.items()):
        yield {
            "mitigation": mitigation.name,
            "attacked": attacked,
            "number": number,
            "status": attempt.status,
            "reason": attempt.reason,
            "image": None if attempt.image is None else encode_png(attempt.image),
            "seconds": attempt.seconds,
            "evaluations": evaluations,
        }


def _failed(mitigation: NoMitigation, number: int, reason: str) -> dict[str, Any]:
    said = {"mitigation": mitigation.name, "attacked": True, "number": number, "status": "failed", "reason": reason}
    return {**said, "image": None, "seconds": 0.0, "evaluations": 0.0}


class SkipFinished(beam.DoFn):
    """Lets the numbers of those prompts pass that have no file yet."""

    def __init__(self, lake: Lake, snapshot: str):
        self.lake, self.snapshot = lake, snapshot

    def setup(self) -> None:
        self._prompts = [row["prompt_id"] for row in read_rows(drawn_file(self.lake, self.snapshot), ["prompt_id"])]

    def process(self, number: int) -> Iterator[int]:
        if not exists(pictures_file(self.lake, self.snapshot, self._prompts[number])):
            yield number


class MakeMitigated(beam.PTransform):
    """Numbers of prompts → what was made now. Those with a file are left alone.

    Args:
        handler: the model, and what it is asked.
        devices: where the model runs.
    """

    def __init__(self, handler: MitigateHandler, devices: Devices):
        super().__init__()
        self.handler, self.devices = handler, devices

    def expand(self, numbers: beam.PCollection) -> beam.PCollection:
        make = self.devices.hinted(self.devices.infer(self.handler))
        skip = beam.ParDo(SkipFinished(self.handler.lake, self.handler.snapshot))
        return numbers | "SkipFinished" >> skip | "SpreadPrompts" >> beam.Reshuffle() | "MakeAndWrite" >> make
