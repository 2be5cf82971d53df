"""Text-to-image pipelines of diffusers."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transforms.errors import UserError
from transforms.models.base import Attempt, Wanted, failed
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


@dataclasses.dataclass
class DiffusersGenerator:
    """Any text-to-image pipeline of diffusers.

    Attributes:
        model: hub id, or a folder written by ``save_pretrained``.
        steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 switches it off.
        batch_size: images that are made at once, of whichever prompts. Every batch holds as many, the last one is filled up:
            kernels are chosen by shape, so a picture does not depend on how many were asked for, nor on what lies beside it.
        device: cpu, cuda, cuda:1 …
        dtype: float32, float16 or bfloat16, for every part of the pipeline.
        hub_revision: branch, tag or commit on the hub; None for the default branch.
    """

    model: str
    steps: int
    guidance_scale: float
    batch_size: int
    device: str
    dtype: str
    hub_revision: str | None = None
    kind: str = "diffusers"

    def __post_init__(self) -> None:
        self._pipeline: Any = None
        self._encodes = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipeline": None}

    def revision(self) -> str:
        if os.path.isdir(self.model):
            check_pipeline_folder(self.model)
            return folder_digest(self.model)
        return hub_commit(self.model, self.hub_revision)

    def load(self) -> None:
        import torch
        from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline
        from diffusers.utils import logging
        from transformers.utils import logging as transformers_logging

        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(
                f"--device {self.device} was asked for and there is no GPU here; name --device cpu, or use another machine"
            )
        # Long captions are cut to what the text encoder takes, and bars of loading weights say nothing: no need to warn.
        for library in (logging, transformers_logging):
            library.set_verbosity_error()
            library.disable_progress_bar()
        source: dict[str, Any] = {} if os.path.isdir(self.model) else {"revision": self.hub_revision}
        try:
            pipeline = AutoPipelineForText2Image.from_pretrained(self.model, dtype=getattr(torch, self.dtype), **source)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"diffusers cannot load {self.model!r} as a text-to-image pipeline ({reason})") from error
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline.to(self.device)
        self._encodes = isinstance(pipeline, StableDiffusionPipeline)
        if self.device == "cpu" and getattr(pipeline, "unet", None) is not None:
            # On a CPU convolutions are faster in this order, and a picture differs by rounding alone. Without a UNet there may
            # be weights of five dimensions, which have no such order.
            for part in (pipeline.unet, getattr(pipeline, "vae", None)):
                if part is not None:
                    part.to(memory_format=torch.channels_last)

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
        for start in range(0, len(pictures), self.batch_size):
            batch = pictures[start : start + self.batch_size]
            for picture, attempt in zip(batch, self._batch(batch, encoded), strict=True):
                made[picture.prompt][picture.number] = attempt
                left[picture.prompt] -= 1
            while given < len(made) and not left[given]:
                yield made[given]
                made[given] = {}
                given += 1
        yield from made[given:]

    def _batch(self, batch: list[_Picture], encoded: dict[str, torch.Tensor]) -> list[Attempt]:
        """One attempt a picture, in order; where the model doesn't take the batch, those of each prompt are tried alone."""
        begun = time.perf_counter()
        try:
            return self._attempts(batch, encoded)
        except (RuntimeError, ValueError) as error:
            # A prompt that the model can't take is a fact about the prompt. A model that can't take any is an error.
            texts = {picture.text for picture in batch}
            if len(texts) == 1:
                return [failed(error, (time.perf_counter() - begun) / len(batch))] * len(batch)
            alone = {text: iter(self._batch([one for one in batch if one.text == text], encoded)) for text in sorted(texts)}
            return [next(alone[picture.text]) for picture in batch]

    def _attempts(self, batch: list[_Picture], encoded: dict[str, torch.Tensor]) -> list[Attempt]:
        import torch

        begun = time.perf_counter()
        filled = batch + [batch[-1]._replace(seed=0)] * (self.batch_size - len(batch))
        # Noise comes from the CPU, one generator a picture, so it is the same on every device and in every batch.
        noise = [torch.Generator("cpu").manual_seed(picture.seed) for picture in filled]
        try:
            with torch.inference_mode():
                made = self._pipeline(
                    **self._prompts([picture.text for picture in filled], encoded),
                    generator=noise,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    output_type="np",
                )
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(f"out of GPU memory with --batch_size {self.batch_size}; name a smaller one") from error
        seconds = (time.perf_counter() - begun) / len(batch)
        unsafe = getattr(made, "nsfw_content_detected", None) or [False] * len(filled)
        return [
            self._attempt(picture, blocked, seconds)
            for picture, blocked in zip(made.images[: len(batch)], unsafe, strict=False)
        ]

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
    def _attempt(picture: np.ndarray, blocked: bool, seconds: float) -> Attempt:
        if blocked:
            return Attempt(None, "safety_filtered", "the pipeline's safety checker took the picture", seconds)
        if not np.isfinite(picture).all():
            return Attempt(None, "failed", "the model's output is not finite; try --dtype float32", seconds)
        return Attempt(np.rint(picture.clip(0, 1) * 255).astype(np.uint8), "success", None, seconds)

    def describe(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "device": self.device,
            "dtype": self.dtype,
        }


def check_pipeline_folder(folder: str) -> None:
    """UserError unless ``folder`` is a diffusers pipeline with all its parts, an autoencoder among them."""
    advice = "expected a folder written by a text-to-image pipeline's save_pretrained"
    index = os.path.join(folder, "model_index.json")
    if not os.path.isfile(index):
        raise UserError(f"the model folder {folder!r} has no model_index.json; {advice}")
    try:
        with open(index, encoding="utf-8") as file:
            parts = json.load(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{index!r} is not JSON ({error}); {advice}") from error
    named = {
        name for name, value in parts.items()
        if not name.startswith("_") and isinstance(value, list) and value[0] is not None
    }  # fmt: skip
    if not named & {"vae", "vqvae", "movq"}:
        raise UserError(f"the model folder {folder!r} names no autoencoder (vae) in model_index.json; {advice}")
    missing = sorted(name for name in named if not os.path.isdir(os.path.join(folder, name)))
    if missing:
        raise UserError(f"the model folder {folder!r} lacks its part(s) {', '.join(missing)}; {advice}")


def hub_commit(model: str, revision: str | None) -> str:
    """The commit that ``revision`` of a hub model means now; without a network, the one in the local cache."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        commit = HfApi().model_info(model, revision=revision, timeout=10).sha
        if commit:
            return commit
    except Exception as error:  # the hub's errors have no common base: no network, no such model, no permission
        cached = try_to_load_from_cache(model, "model_index.json", revision=revision)
        if isinstance(cached, str):
            return os.path.basename(os.path.dirname(cached))
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the model {model!r} is neither a local folder nor to be had from the hub ({reason}); "
            "mend --model, or name a folder"
        ) from error
    raise UserError(f"the hub names no commit for {model!r}; mend --model")
