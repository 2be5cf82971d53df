"""What makes images from prompts, behind one interface: a diffusers pipeline, or a folder of finished generations.

Another way to get at a model's images is one more class with the methods of ``Generator``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from transforms.errors import UserError
from transforms.identity import digest
from transforms.images import decode
from transforms.lake import exists, read_bytes


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt to make an image: (H, W, 3) uint8, or None with a status and a reason."""

    image: np.ndarray | None
    status: str
    reason: str | None
    seconds: float


class Generator(Protocol):
    """Makes images. Instances are small and pickle; what is heavy is loaded by ``load``, once per process."""

    kind: str
    model: str

    def revision(self) -> str:
        """Names the model's exact weights, or the generations' exact content. UserError where it isn't there."""

    def load(self) -> None:
        """Gets ready on this process. UserError where the device or a part of the model is missing."""

    def generate(self, text: str, seeds: list[int]) -> list[Attempt]:
        """One attempt per seed, in order; an expected fault is an attempt with a status, not an exception."""

    def again(self, text: str, seeds: dict[int, int | None]) -> dict[int, Attempt]:
        """Some of a prompt's attempts once more: number of the generation → its seed, None for finished generations."""

    def describe(self) -> dict[str, Any]:
        """Columns of ``generations``: steps, guidance_scale, device, dtype; None where it doesn't apply."""


# -- diffusers ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class DiffusersGenerator:
    """Any text-to-image pipeline of diffusers.

    Attributes:
        model: hub id, or a folder written by ``save_pretrained``.
        steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 switches it off.
        batch_size: images of one prompt that are made at once; the last batch is filled up, so that a picture does not
            depend on how many were asked for.
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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipeline": None}

    def revision(self) -> str:
        if os.path.isdir(self.model):
            check_pipeline_folder(self.model)
            return folder_digest(self.model)
        return hub_commit(self.model, self.hub_revision)

    def load(self) -> None:
        import torch
        from diffusers import AutoPipelineForText2Image
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

    def generate(self, text: str, seeds: list[int]) -> list[Attempt]:
        size = min(self.batch_size, len(seeds))
        attempts: list[Attempt] = []
        for start in range(0, len(seeds), size):
            batch = seeds[start : start + size]
            attempts += self._batch(text, batch, fill=size - len(batch))
        return attempts

    def again(self, text: str, seeds: dict[int, int | None]) -> dict[int, Attempt]:
        known = {index: seed for index, seed in seeds.items() if seed is not None}
        return dict(zip(known, self.generate(text, list(known.values())), strict=True))

    def _batch(self, text: str, seeds: list[int], fill: int) -> list[Attempt]:
        import torch

        # Noise comes from the CPU, one generator a picture, so it is the same on every device and in every batch.
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds + [0] * fill]
        begun = time.perf_counter()
        try:
            with torch.inference_mode():
                made = self._pipeline(
                    prompt=[text] * len(noise),
                    generator=noise,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    output_type="np",
                )
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(f"out of GPU memory with --batch_size {self.batch_size}; name a smaller one") from error
        seconds = (time.perf_counter() - begun) / len(seeds)
        unsafe = getattr(made, "nsfw_content_detected", None) or [False] * len(noise)
        return [
            self._attempt(picture, blocked, seconds)
            for picture, blocked in zip(made.images[: len(seeds)], unsafe, strict=False)
        ]

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
    except ValueError as error:
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


def folder_digest(folder: str) -> str:
    """Digest of every file of a local model by its path inside the folder and its content: a moved model is the same."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or name == "README.md":  # a model card changes nothing
                continue
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                files.append((os.path.relpath(path, folder), hashlib.file_digest(file, "sha256").hexdigest()))
    return digest("folder", files, length=40)


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


# -- finished generations -------------------------------------------------------------------------------------------


@dataclasses.dataclass
class FolderGenerator:
    """Finished generations of a model that can't be run here: pictures, and a metadata.jsonl that says which prompt.

    Attributes:
        model: the folder. Each line of its metadata.jsonl is an object with ``file_name`` (relative to the folder) and
            ``prompt`` (or ``text``, ``caption``); the order of a prompt's lines is the order of its generations.
    """

    model: str
    kind: str = "folder"

    def __post_init__(self) -> None:
        self._files: dict[str, list[str]] | None = None

    @property
    def files(self) -> dict[str, list[str]]:
        """Prompt → its pictures' file names."""
        if self._files is None:
            self._files = self._read()
        return self._files

    def _read(self) -> dict[str, list[str]]:
        path = os.path.join(self.model, "metadata.jsonl")
        advice = "expected a JSON object a line, with file_name and prompt"
        if not exists(path):
            raise UserError(f"the folder of generations {self.model!r} has no metadata.jsonl; {advice}")
        files: dict[str, list[str]] = {}
        for number, line in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                prompt = next(row[name] for name in ("prompt", "text", "caption") if row.get(name))
                name = row["file_name"]
            except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
                raise UserError(f"{path!r}, line {number}: {line[:80]!r}; {advice}") from error
            if os.path.isabs(name) or ".." in name.split("/"):
                raise UserError(f"{path!r}, line {number}: file_name {name!r} leads out of the folder")
            files.setdefault(prompt.strip(), []).append(name)
        if not files:
            raise UserError(f"{path!r} is empty; {advice}")
        return files

    def prompts(self) -> Iterable[str]:
        return self.files

    def revision(self) -> str:
        # The index and the pictures' sizes, not their bytes: a folder may hold millions of them.
        sizes = []
        for name in sorted(name for names in self.files.values() for name in names):
            path = os.path.join(self.model, name)
            sizes.append((name, os.path.getsize(path) if os.path.isfile(path) else -1))
        return digest("generations", self.files, sizes, length=40)

    def load(self) -> None:
        self._files = self._read()

    def generate(self, text: str, seeds: list[int]) -> list[Attempt]:
        return [self._attempt(name) for name in self.files.get(text, [])[: len(seeds)]]

    def again(self, text: str, seeds: dict[int, int | None]) -> dict[int, Attempt]:
        names = self.files.get(text, [])
        return {index: self._attempt(names[index]) for index in seeds if index < len(names)}

    def _attempt(self, name: str) -> Attempt:
        begun = time.perf_counter()
        try:
            picture = np.asarray(decode(read_bytes(os.path.join(self.model, name))))
            return Attempt(picture, "success", None, time.perf_counter() - begun)
        except (OSError, ValueError) as error:
            return Attempt(None, "failed", f"{name}: {error}", time.perf_counter() - begun)

    def describe(self) -> dict[str, Any]:
        return {"steps": None, "guidance_scale": None, "device": None, "dtype": None}
