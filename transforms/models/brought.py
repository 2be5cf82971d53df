"""Models that were not trained here and make pictures unasked: of diffusers, of TorchScript, of Python, or finished pictures.

Each has what ``DiffusionPictures`` and ``GanPictures`` have of it: ``shape`` (3, H, W), ``classes`` (0 where it is told none)
and ``make(seeds, labels, steps, sampler) -> (B, H, W, 3)``, uint8 or floats in 0 to 1 (NaN: it failed), the same picture of a
seed whatever is made beside it. A Python object that is brought by ``package.module:name`` has just those; ``name`` may be a
function that returns one.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from transforms.errors import UserError, first_line
from transforms.models.configuration import BroughtModel
from transforms.models.parts import INDEX, check_folder, parts_of, read_index
from transforms.models.unconditional import GAN_INDEX, as_shares, load
from transforms.store.files import exists, read_bytes
from transforms.store.identity import digest, folder_digest
from transforms.store.pictures import decode_stranger

TRIAL_STEPS = 2
"""Steps of the picture that tells the size of a pipeline's."""

SAMPLES = (".npz", ".npy")
"""Files of many pictures at once: uint8 (N, H, W, 3), as ADM's code writes them (``arr_0``)."""


def revision(brought: BroughtModel) -> str:
    """Digest of what a model is: of its files' content, of names and sizes of finished pictures, of an object's name alone."""
    place = os.path.expanduser(brought.model)
    if os.path.isdir(place):
        if _is_model(place):
            return folder_digest(place)
        return digest("pictures", [(name, os.path.getsize(os.path.join(place, name))) for name in _files(place)], length=40)
    if os.path.isfile(place):
        import hashlib

        with open(place, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:40]
    _split(place)
    return digest("object", place, length=40)


def bring(brought: BroughtModel, device: str) -> Any:
    """The model, ready.

    Raises:
        UserError: where there is none, or one of another kind, such as one that wants prompts.
    """
    place = os.path.expanduser(brought.model)
    if os.path.isdir(place):
        if not _is_model(place):
            return FinishedPictures(place)
        if os.path.exists(os.path.join(place, GAN_INDEX)) or _is_plain(place):
            return load(functools.partial(_read, place), place, device)
        return PipelinePictures(place, device)
    if os.path.isfile(place):
        return TorchScriptPictures(place, brought.latent, brought.classes, device)
    return _imported(place, device)


def _is_model(folder: str) -> bool:
    return any(os.path.exists(os.path.join(folder, name)) for name in (INDEX, GAN_INDEX))


def _is_plain(folder: str) -> bool:
    """Whether a pipeline is a U-Net in pixels and a scheduler, and no more."""
    parts = parts_of(read_index(folder))
    return set(parts) == {"unet", "scheduler"} and parts["unet"][1] == "UNet2DModel" and "DDPM" in parts["scheduler"][1]


def _read(folder: str, name: str) -> bytes | None:
    path = os.path.join(folder, name)
    return read_bytes(path) if exists(path) else None


class PipelinePictures:
    """Any pipeline of diffusers that makes pictures without prompts, by its own sampler.

    Attributes:
        classes: that it is told, of a class-conditional one.
        shape: (3, H, W) of its pictures.
    """

    def __init__(self, folder: str, device: str):
        from diffusers import DiffusionPipeline

        check_folder(folder)
        try:
            self._pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True).to(device)
        except Exception as error:  # diffusers and what lies below raise nearly anything
            raise UserError(
                f"diffusers cannot load {folder!r} ({first_line(error)}); mend the model, or name another"
            ) from error
        self._pipeline.set_progress_bar_config(disable=True)
        self._takes = inspect.signature(self._pipeline.__call__).parameters
        if "prompt" in self._takes or not {"batch_size", "class_labels"} & set(self._takes):
            raise UserError(
                f"the pipeline {type(self._pipeline).__name__} of {folder!r} makes no pictures without prompts; audit it by "
                "'eidetic audit --model'"
            )
        network = getattr(self._pipeline, "unet", None) or getattr(self._pipeline, "transformer", None)
        config = getattr(network, "config", {})
        told = next((config[name] for name in ("num_class_embeds", "num_embeds_ada_norm") if config.get(name)), 0)
        self.classes = told if "class_labels" in self._takes else 0
        try:
            height, width = self.make([0], [0] if self.classes else None, TRIAL_STEPS).shape[1:3]
        except Exception as error:  # as above
            raise UserError(f"the pipeline of {folder!r} makes no picture ({first_line(error)}); mend the model") from error
        self.shape = (3, height, width)

    def make(self, seeds: Sequence[int], labels: Sequence[int] | None, steps: int, sampler: str = "") -> np.ndarray:
        """Pictures of seeds, (B, H, W, 3) float32 in 0 to 1, or NaN, by its own sampler."""
        import torch

        given: dict[str, Any] = {"generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds]}
        if "num_inference_steps" in self._takes:
            given["num_inference_steps"] = steps
        if self.classes:
            given["class_labels"] = list(labels or [])
        if "batch_size" in self._takes:
            given["batch_size"] = len(seeds)
        with torch.inference_mode():
            return np.asarray(self._pipeline(output_type="np", **given).images, np.float32)


class TorchScriptPictures:
    """A generator in TorchScript: (B, ``latent``) normal float32, and (B,) int64 classes where it is told any → (B, 3, H, W) in
    -1 to 1.
    """

    def __init__(self, path: str, latent: int, classes: int, device: str):
        import torch

        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
        try:
            self._network = torch.jit.load(path, map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{path!r} is no TorchScript file ({first_line(error)}); torch.jit.save writes one") from error
        self.latent, self.classes, self.device = latent, classes, device
        made = self.make([0], [0] if classes else None)
        self.shape = (3, *made.shape[1:3])

    def make(self, seeds: Sequence[int], labels: Sequence[int] | None, steps: int = 1, sampler: str = "") -> np.ndarray:
        """Pictures of seeds, (B, H, W, 3) float32 in 0 to 1, or NaN. ``steps`` and ``sampler`` mean nothing here."""
        import torch

        numbers = torch.stack([torch.randn(self.latent, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        told = () if labels is None else (torch.tensor(labels, device=self.device),)
        try:
            with torch.inference_mode():
                made = self._network(numbers.to(self.device), *told)
        except RuntimeError as error:
            raise UserError(
                f"the TorchScript generator takes no ({len(seeds)}, {self.latent}) numbers{' and classes' if told else ''} "
                f"({first_line(error)}); mend latent and classes"
            ) from error
        if not isinstance(made, torch.Tensor) or made.ndim != 4 or made.shape[1] != 3:
            raise UserError(f"the TorchScript generator gave {getattr(made, 'shape', type(made))}, expected (B, 3, H, W)")
        return as_shares(made)


class FinishedPictures:
    """Pictures that a model has made: files of ``FORMATS`` and of ``SAMPLES`` in a folder, in the order of their names.

    Attributes:
        count: how many.
        shape: (3, H, W) of the first that can be read; others of another size have failed.
    """

    classes = 0

    def __init__(self, folder: str):
        self.folder = folder
        self._places: list[tuple[str, int | None]] = []
        for name in _files(folder):
            if name.lower().endswith(SAMPLES):
                self._places += [(name, row) for row in range(len(self._samples(name)))]
            else:
                self._places.append((name, None))
        self.count = len(self._places)
        first = next((one for one in self.take(range(min(self.count, 100))) if isinstance(one, np.ndarray)), None)
        if first is None:
            raise UserError(f"the folder {folder!r} has no picture that can be read, and is no model; name one that has")
        self.shape = (3, *first.shape[:2])

    def take(self, numbers: Sequence[int]) -> list[np.ndarray | str]:
        """(H, W, 3) uint8 for each number under ``count``, or why there is none."""
        return [self._take(*self._places[number]) for number in numbers]

    def _take(self, name: str, row: int | None) -> np.ndarray | str:
        if row is not None:
            return np.array(self._samples(name)[row])
        try:
            return decode_stranger(read_bytes(os.path.join(self.folder, name)))
        except (OSError, ValueError) as error:
            return f"{name}: {getattr(error, 'strerror', None) or error}"

    @functools.lru_cache(maxsize=2)  # noqa: B019  # one a worker, as long as it lives
    def _samples(self, name: str) -> np.ndarray:
        try:
            stored = np.load(os.path.join(self.folder, name), allow_pickle=False)
            found = stored if isinstance(stored, np.ndarray) else stored["arr_0"]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise UserError(f"{os.path.join(self.folder, name)!r} holds no pictures ({first_line(error)})") from error
        if found.dtype != np.uint8 or found.ndim != 4 or found.shape[3] != 3:
            raise UserError(f"{os.path.join(self.folder, name)!r} is {found.dtype} {found.shape}, expected uint8 (N, H, W, 3)")
        return found


def _files(folder: str) -> list[str]:
    """Paths inside a folder, sorted; what begins with a dot is no data."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in names if not name.startswith(".")]
    return sorted(found)


def _split(place: str) -> tuple[str, str]:
    module, colon, name = place.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), name)):
        raise UserError(
            f"there is no model {place!r}; expected a folder as diffusers writes it or of finished pictures, a TorchScript "
            "file, or package.module:name"
        )
    return module, name


def _imported(place: str, device: str) -> Any:
    """A Python object that has what a model has here. Code of the user's own, who names it."""
    module, name = _split(place)
    if "" not in sys.path:  # beside the command, as python -m has it
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # it is anybody's code
        raise UserError(f"{place!r} can't be imported ({type(error).__name__}: {first_line(error)}); mend it") from error
    if not (hasattr(found, "make") or callable(found)):
        raise UserError(f"{place!r} is {found!r}, expected a model, or a function that makes one")
    if inspect.isclass(found) or not hasattr(found, "make"):
        try:
            found = found(device) if inspect.signature(found).parameters else found()
        except Exception as error:  # as above
            raise UserError(f"{place!r} makes no model ({type(error).__name__}: {first_line(error)}); mend it") from error
    if missing := [one for one in ("make", "shape", "classes") if not hasattr(found, one)]:
        raise UserError(
            f"{place!r} lacks {', '.join(missing)}; it needs make(seeds, labels, steps, sampler), shape and classes"
        )
    shape = tuple(found.shape)
    if len(shape) != 3 or shape[0] != 3 or not all(isinstance(one, int) and one > 0 for one in shape):
        raise UserError(f"{place!r} has the shape {found.shape!r}, expected (3, H, W)")
    return found
