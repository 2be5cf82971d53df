"""Text-to-image pipelines of diffusers."""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from transforms.errors import UserError, first_line
from transforms.models.base import Attempt, Wanted, failed
from transforms.models.devices import in_batches, out_of_memory
from transforms.models.fetched import local_folder
from transforms.models.hub import hub_commit, hub_files
from transforms.models.parts import Weights, check_folder, choose_weights, parts_of, pipeline_class, unused_options
from transforms.store.identity import folder_digest

if TYPE_CHECKING:
    import torch

# -- diffusers ------------------------------------------------------------------------------------------------------


class _Picture(NamedTuple):
    """One picture to make: ``number`` is the generation's, ``prompt`` the place of its prompt among those that are wanted."""

    prompt: int
    number: int
    text: str
    seed: int


SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
"""How models end that are one file, as other programs keep them."""


@dataclasses.dataclass
class DiffusersGenerator:
    """Any text-to-image pipeline of diffusers.

    Attributes:
        model: hub id, or a folder written by ``save_pretrained``.
        steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 switches it off.
        batch_size: images that are made at once, of whichever prompts. Every batch holds as many, the last one is filled up:
            kernels are chosen by shape, so a picture does not depend on how many were asked for, nor on what lies beside it.
            Where the device has not enough memory it is halved, and stays so.
        device: cpu, cuda, cuda:1 …
        dtype: float32, float16 or bfloat16, for every part of the pipeline.
        hub_revision: branch, tag or commit on the hub; None for the default branch.
        variant: of the weights, such as fp16; None for those without, or for the only one that there is.
        allow_pickle: whether weights may be loaded that can execute code.
        safety_checker: on or off: whether a checker that belongs to the pipeline may take pictures.
    """

    model: str
    steps: int
    guidance_scale: float
    batch_size: int
    device: str
    dtype: str
    hub_revision: str | None = None
    variant: str | None = None
    allow_pickle: bool = False
    safety_checker: str = "on"
    kind: str = "diffusers"

    def __post_init__(self) -> None:
        self._pipeline: Any = None
        self._encodes = False
        self._unused: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        # Where it goes the model may lie elsewhere, or not at all.
        return {name: value for name, value in self.__dict__.items() if name not in ("_source", "_place")} | {"_pipeline": None}

    def on(self, device: str) -> Self:
        return dataclasses.replace(self, device=device)

    @property
    def _left_out(self) -> tuple[str, ...]:
        """Parts that aren't loaded."""
        return ("safety_checker",) if self.safety_checker == "off" else ()

    @functools.cached_property
    def _place(self) -> str:
        """The folder that it is loaded from, a URL's copy on this machine; or the hub's name."""
        return local_folder(self.model)

    def revision(self) -> str:
        if os.path.isdir(self._place):
            check_folder(self._place, self.variant, self.allow_pickle, self._left_out)
            return folder_digest(self._place)
        return self._source["revision"]

    def _refuse_paths(self) -> None:
        """UserError where the model is named as only a file or folder is, and none that could be loaded is there."""
        name = self.model
        if os.path.isfile(name):
            raise UserError(
                f"--model {name!r} is a single file, expected a folder in diffusers' format; convert it once, with a network: "
                'python -c "from diffusers import StableDiffusionPipeline as P; '
                f"P.from_single_file({name!r}).save_pretrained('converted')\" (StableDiffusionXLPipeline for SDXL), "
                "and name --model converted"
            )
        if os.path.islink(name):
            raise UserError(f"--model {name!r} is a link to {os.readlink(name)!r}, which isn't there; mend the link or --model")
        if name.startswith(("/", ".", "~", "\\")) or name.count("/") > 1 or name.endswith(("/", *SINGLE_FILES)):
            kind = "file" if name.endswith(SINGLE_FILES) else "folder"
            raise UserError(
                f"there is no {kind} {name!r}; mend --model: a folder in diffusers' format, or a hub id such as owner/name"
            )

    @functools.cached_property
    def _source(self) -> dict[str, str]:
        """Where diffusers finds the model beside its name: the commit on the hub, and never a branch, which may move on."""
        if os.path.isdir(self._place):
            return {}
        self._refuse_paths()
        return {"revision": hub_commit(self.model, self.hub_revision)}

    def check(self) -> None:
        """UserError where diffusers has no pipeline for the model that can be asked with a prompt alone. Loads no weights."""
        self._weights()
        pipeline_class(self._place, **self._source)

    def unused(self) -> list[str]:
        """Those of ``steps`` and ``guidance_scale`` that the pipeline takes no notice of."""
        return unused_options(pipeline_class(self._place, **self._source), self._place, **self._source)

    def _weights(self) -> Weights:
        """Which weights are loaded. UserError where they're damaged, or not there."""
        if os.path.isdir(self._place):
            return check_folder(self._place, self.variant, self.allow_pickle, self._left_out)
        files = hub_files(self.model, self._source["revision"])
        return choose_weights(self.model, files, self.variant, self.allow_pickle)

    def load(self) -> None:
        import torch
        from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline
        from diffusers.utils import logging
        from transformers import PreTrainedTokenizerBase
        from transformers.utils import logging as transformers_logging

        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(
                f"--device {self.device} was asked for and there is no GPU here; name --device cpu, or use another machine"
            )
        # Long captions are cut to what the text encoder takes, and bars of loading weights say nothing: no need to warn.
        for library in (logging, transformers_logging):
            library.set_verbosity_error()
            library.disable_progress_bar()
        weights = self._weights()
        found = pipeline_class(self._place, **self._source)
        self._unused = self.unused()
        named = inspect.signature(found.__init__).parameters
        without: dict[str, Any] = {"safety_checker": None} if "safety_checker" in named and self.safety_checker == "off" else {}
        if without and "requires_safety_checker" in named:
            without["requires_safety_checker"] = False
        try:
            pipeline = AutoPipelineForText2Image.from_pretrained(
                self._place,
                dtype=getattr(torch, self.dtype),
                variant=weights.variant,
                # None: safetensors where there are any.
                use_safetensors=None if weights.pickle else True,
                **without,
                **self._source,
            )
        except Exception as error:  # diffusers, transformers and what lies below raise nearly anything
            part = self._part_that_does_not_load(weights)
            raise UserError(
                f"diffusers cannot load {f'the part {part} of ' if part else ''}{self.model!r} ({first_line(error)}); "
                "mend the model, or name another"
            ) from error
        for name, part in pipeline.components.items():
            if isinstance(part, PreTrainedTokenizerBase) and len(part.get_vocab()) <= len(part.all_special_tokens):
                raise UserError(
                    f"the part {name} of {self.model!r} knows no words: every prompt would be the same; mend the model"
                )
        pipeline.set_progress_bar_config(disable=True)
        try:
            self._pipeline = pipeline.to(self.device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"the model {self.model!r} doesn't fit into the memory of {self.device}; "
                "name --dtype float16, or another device"
            ) from error
        self._encodes = isinstance(pipeline, StableDiffusionPipeline)
        if self.device == "cpu" and getattr(pipeline, "unet", None) is not None:
            # On a CPU convolutions are faster in this order, and a picture differs by rounding alone. Without a UNet there may
            # be weights of five dimensions, which have no such order.
            for part in (pipeline.unet, getattr(pipeline, "vae", None)):
                if part is not None:
                    part.to(memory_format=torch.channels_last)

    def _part_that_does_not_load(self, weights: Weights) -> str | None:
        """The first part that fails to load alone; None where each does. For a message: diffusers' own errors name none."""
        from diffusers import DiffusionPipeline

        for part, (library, name) in parts_of(DiffusionPipeline.load_config(self._place, **self._source)).items():
            modules = (library, f"diffusers.pipelines.{library}")
            kind = next((getattr(importlib.import_module(one), name, None) for one in modules if _importable(one)), None)
            if kind is None or not hasattr(kind, "from_pretrained"):  # model_index.json may name any function
                return part
            takes = {"variant": weights.variant, "use_safetensors": not weights.pickle or None} if _has_weights(kind) else {}
            try:
                kind.from_pretrained(self._place, subfolder=part, **takes, **self._source)
            except Exception:
                return part
        return None

    def generate(self, wanted: Sequence[Wanted]) -> Iterator[dict[int, Attempt]]:
        pictures = [
            _Picture(prompt, number, text, seed)
            for prompt, (text, seeds) in enumerate(wanted)
            for number, seed in seeds.items()
            if seed is not None
        ]
        left = collections.Counter(picture.prompt for picture in pictures)
        made: list[dict[int, Attempt]] = [{} for _ in wanted]
        encoded: dict[str, torch.Tensor] = {}
        given = 0
        too_little = f"out of memory on {self.device} with a single picture at once; name --dtype float16, or another device"
        work = functools.partial(self._batch, encoded=encoded)
        for batch, attempts in in_batches(self, pictures, work, too_little):
            for picture, attempt in zip(batch, attempts, strict=True):
                made[picture.prompt][picture.number] = attempt
                left[picture.prompt] -= 1
            while given < len(made) and not left[given]:
                yield made[given]
                made[given] = {}
                given += 1
        yield from made[given:]

    def _batch(self, batch: Sequence[_Picture], size: int, encoded: dict[str, torch.Tensor]) -> list[Attempt]:
        """One attempt a picture, in order; where the model doesn't take the batch, those of each prompt are tried alone."""
        begun = time.perf_counter()
        try:
            return self._attempts(batch, size, encoded)
        except (TypeError, AttributeError) as error:
            # Nothing that a prompt could be at fault for: the pipeline is asked for what it hasn't.
            raise UserError(
                f"the pipeline {type(self._pipeline).__name__} of {self.model!r} makes no pictures of prompts alone "
                f"({first_line(error)}); name another --model"
            ) from error
        except (RuntimeError, ValueError, LookupError, ArithmeticError) as error:
            if out_of_memory(error):
                raise
            # A prompt that the model can't take is a fact about the prompt. A model that can't take any is an error.
            texts = {picture.text for picture in batch}
            if len(texts) == 1:
                return [failed(error, (time.perf_counter() - begun) / len(batch))] * len(batch)
            alone = {
                text: iter(self._batch([one for one in batch if one.text == text], size, encoded)) for text in sorted(texts)
            }
            return [next(alone[picture.text]) for picture in batch]

    def _attempts(self, batch: Sequence[_Picture], size: int, encoded: dict[str, torch.Tensor]) -> list[Attempt]:
        import torch

        begun = time.perf_counter()
        filled = [*batch, *[batch[-1]._replace(seed=0)] * (size - len(batch))]
        # Noise comes from the CPU, one generator a picture, so it is the same on every device and in every batch.
        noise = [torch.Generator("cpu").manual_seed(picture.seed) for picture in filled]
        with torch.inference_mode():
            made = self._pipeline(
                **self._prompts([picture.text for picture in filled], encoded),
                **self._settings(),
                generator=noise,
                output_type="np",
            )
        seconds = (time.perf_counter() - begun) / len(batch)
        return [
            self._attempt(picture, taken, seconds)
            for picture, taken in zip(made.images[: len(batch)], _taken(made, len(filled)), strict=False)
        ]

    def _settings(self) -> dict[str, Any]:
        """Steps and guidance, as far as the pipeline heeds them."""
        settings = {"num_inference_steps": ("steps", self.steps), "guidance_scale": ("guidance_scale", self.guidance_scale)}
        return {name: value for name, (option, value) in settings.items() if option not in self._unused}

    def _prompts(self, texts: list[str], encoded: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The prompts as the pipeline takes them: as vectors where it is Stable Diffusion's, else as they are.

        Each text goes through the text encoder once, and alone, so that its vectors don't depend on the texts beside it.

        Args:
            texts: one a picture.
            encoded: text → (1, tokens, width) of texts that were met before; new ones are added.
        """
        import torch

        if not self._encodes:
            return {"prompt": texts}
        for text in ("", *texts):
            if text not in encoded:
                encoded[text], _ = self._pipeline.encode_prompt(text, self._pipeline.device, 1, False)
        return {
            "prompt_embeds": torch.cat([encoded[text] for text in texts]),
            "negative_prompt_embeds": encoded[""].expand(len(texts), -1, -1),
        }

    @staticmethod
    def _attempt(picture: np.ndarray, taken: str | None, seconds: float) -> Attempt:
        if taken is not None:
            return Attempt(None, "safety_filtered", taken, seconds)
        if not np.isfinite(picture).all():
            return Attempt(None, "failed", "the model's output is not finite; try --dtype float32", seconds)
        return Attempt(np.rint(picture.clip(0, 1) * 255).astype(np.uint8), "success", None, seconds)

    def describe(self) -> dict[str, Any]:
        return {
            "steps": None if "steps" in self._unused else self.steps,
            "guidance_scale": None if "guidance_scale" in self._unused else self.guidance_scale,
            "device": self.device,
            "dtype": self.dtype,
        }


_VERDICTS = {
    "nsfw_content_detected": "the pipeline's safety checker took the picture",
    "nsfw_detected": "the pipeline's safety checker took the picture",
    "watermark_detected": "the pipeline's safety checker took the picture for one with a watermark",
}
"""What pipelines call their safety checker's verdicts, and the reason that each is."""


def _taken(made: Any, pictures: int) -> list[str | None]:
    """Why the safety checker took each picture of a pipeline's output; None where it didn't."""
    reasons: list[str | None] = [None] * pictures
    for name, reason in _VERDICTS.items():
        for number, verdict in enumerate(getattr(made, name, None) or ()):
            reasons[number] = reasons[number] or (reason if verdict else None)
    return reasons


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _has_weights(kind: type) -> bool:
    """Whether a part of this class has weights, and so a variant."""
    import torch

    return issubclass(kind, torch.nn.Module)
