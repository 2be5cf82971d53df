"""Untargeted extraction (paper, section 5.1): pictures that a model makes unasked, against those that it was trained on.

One element is a chunk of a model's generations: made, compared with all members and with as many controls, written; of the
pictures only those stay that some rule calls. Then one element is a model: how good its pictures are.

    work/extract/<snapshot>/chunks/<model_id>-<chunk>.parquet     rows of untargeted_generations, with the seconds
    work/extract/<snapshot>/features/<model_id>-<chunk>.npy       what quality is made of
    work/extract/<snapshot>/models/<model_id>.json                a row of untargeted_attacks
"""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from PIL import Image

from transforms.errors import UserError, first_line
from transforms.kernels import quality
from transforms.kernels.untargeted import TrainingPictures, adaptive_l2, distinct, nearest_ratio
from transforms.models.brought import FinishedPictures
from transforms.models.clip import ClipModel
from transforms.store.arrays import read_npy, write_json, write_npy
from transforms.store.counters import count
from transforms.store.files import exists, open_parquet, write_parquet
from transforms.store.identity import seed
from transforms.store.lake import Lake, Manifest, as_table
from transforms.store.pictures import encode_png, thumbnail
from transforms.training import members, population
from transforms.training.runs import load_model, members_of

BATCH = 256
"""Pictures that are made at once."""

RULES = ("l2", "adaptive_l2", "ratio")


@dataclasses.dataclass(frozen=True)
class Attack:
    """How models are asked, and by which rules their pictures are judged.

    Attributes:
        generations: pictures of each model.
        chunk: of those, so many are one element.
        sampler, sampling_steps: see ``DiffusionPictures.make``.
        delta, alpha, neighbours, ratio_limit: of the rules: see ``kernels/untargeted.py``.
        base_seed: of the seeds.
        quality_pictures: generations, and held-out pictures, that quality is made of.
    """

    generations: int
    chunk: int
    sampler: str
    sampling_steps: int
    delta: float
    alpha: float
    neighbours: int
    ratio_limit: float
    base_seed: int
    quality_pictures: int

    @property
    def chunks(self) -> int:
        return -(-self.generations // self.chunk)


Model = dict[str, Any]
"""A model that is attacked: its row of ``models``."""


@dataclasses.dataclass(frozen=True)
class ExtractionPlace:
    """Where the models are, and where what comes of them goes.

    Attributes:
        lake: the lake.
        snapshot: of ``extract``.
        deduplicate: whose pictures the models were trained on.
        most: pictures of the population.
        device: cpu, cuda or cuda:1.
        features: what makes quality's features.
    """

    lake: Lake
    snapshot: str
    deduplicate: Manifest
    most: int
    device: str
    features: Features

    def chunk_path(self, model_id: str, chunk: int) -> str:
        return self.lake.work("extract", self.snapshot, "chunks", f"{model_id}-{chunk:06d}.parquet")

    def features_path(self, model_id: str, chunk: int) -> str:
        return self.lake.work("extract", self.snapshot, "features", f"{model_id}-{chunk:06d}.npy")

    def row_path(self, model_id: str) -> str:
        return self.lake.work("extract", self.snapshot, "models", f"{model_id}.json")


@dataclasses.dataclass
class Features:
    """What pictures are compared by to say how good they are: a CLIP, or a network of the user's.

    Attributes:
        clip: the lake's; None with ``weights``.
        weights: TorchScript file: (B, 3, H, W) float32 in 0 to 1 → (B, d).
        name: as it stands in the table.
    """

    clip: ClipModel | None
    weights: str | None
    name: str
    device: str = "cpu"

    def __post_init__(self) -> None:
        self._encode: Callable[[np.ndarray], np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encode": None}

    def on(self, device: str) -> Features:
        """The same on another device."""
        clip = None if self.clip is None else dataclasses.replace(self.clip, device=device)
        return dataclasses.replace(self, clip=clip, device=device)

    def of(self, pictures: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 → (N, d) float32."""
        if self._encode is None:
            self._encode = self._loaded()
        return self._encode(pictures)

    def _loaded(self) -> Callable[[np.ndarray], np.ndarray]:
        if self.clip is not None:
            encoder = self.clip.load()
            return lambda pictures: encoder.encode([Image.fromarray(one) for one in pictures])
        import torch

        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
        try:
            network = torch.jit.load(self.weights, map_location=self.device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"--quality_weights {self.weights!r} is no TorchScript file ({first_line(error)})") from error

        def encode(pictures: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                batches = [
                    network(torch.from_numpy(pictures[at : at + BATCH]).to(self.device).permute(0, 3, 1, 2).float() / 255)
                    for at in range(0, len(pictures), BATCH)
                ]
            return torch.cat(batches).float().flatten(1).cpu().numpy()

        return encode


class _Attacker:
    """What a worker holds while it goes from chunk to chunk."""

    def __init__(self, place: ExtractionPlace):
        self.place = place
        self.population = functools.lru_cache(maxsize=2)(self._population)
        self.model = functools.lru_cache(maxsize=2)(self._model)
        self.references = functools.lru_cache(maxsize=2)(self._references)
        self._models: dict[str, Model] = {}

    def know(self, target: Model) -> str:
        self._models[target["model_id"]] = target
        return target["model_id"]

    def _population(self, pixels: int) -> population.Population:
        return population.read(self.place.lake, self.place.deduplicate, self.place.most, pixels)

    def _model(self, model_id: str) -> Any:
        row = self._models[model_id]
        return load_model(self.place.lake, row, self.place.device)

    def _references(self, model_id: str) -> tuple[_Reference, _Reference]:
        """Members and controls."""
        target = self._models[model_id]
        pictures = self.population(target["pixels"])
        ids, pixels, rows = members.recalled(members_of(self.place.lake, target["run_id"]), pictures, target["pixels"])
        against = members.controls(target["draw"] or 0, pictures, rows[rows >= 0], len(ids))
        return (
            _Reference.of(np.array(ids, np.str_), pixels, self.place.device),
            _Reference.of(pictures.sample_ids[against], pictures.pixels[against], self.place.device),
        )


class _Reference(NamedTuple):
    """Pictures that generations are compared with, identical ones once."""

    ids: np.ndarray
    prepared: TrainingPictures | None

    @classmethod
    def of(cls, ids: np.ndarray, pixels: np.ndarray, device: str) -> _Reference:
        first = np.flatnonzero(distinct(pixels) == np.arange(len(pixels)))
        return cls(ids[first], TrainingPictures(pixels[first], device) if len(first) else None)


class MakeAndCompare(beam.DoFn):
    """(target, number of a chunk) → the same, when its rows are written. What is written already is left alone."""

    def __init__(self, place: ExtractionPlace, attack: Attack):
        self.place, self.attack = place, attack
        self._worker: _Attacker | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_worker": None}

    def process(self, element: tuple[Model, int]) -> Iterator[tuple[str, int]]:
        target, chunk = element
        path = self.place.chunk_path(target["model_id"], chunk)
        if not exists(path):
            if self._worker is None:
                self._worker = _Attacker(self.place)
            begun = time.monotonic()
            rows, features = self._rows(self._worker, target, chunk)
            if len(features):
                write_npy(self.place.features_path(target["model_id"], chunk), features)
            table = as_table("untargeted_generations", rows)
            facts = {"seconds": str(round(time.monotonic() - begun, 3))}
            write_parquet(path, table.replace_schema_metadata(facts))
            count("untargeted generations", len(rows))
            count("untargeted generations kept", sum(row["image"] is not None for row in rows))
        yield target["model_id"], chunk

    def _rows(self, worker: _Attacker, target: Model, chunk: int) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Rows of ``untargeted_generations``, and features of those pictures that quality is made of."""
        attack, model_id = self.attack, worker.know(target)
        numbers = list(range(chunk * attack.chunk, min((chunk + 1) * attack.chunk, attack.generations)))
        drawn = [seed(attack.base_seed, "untargeted", number) for number in numbers]
        seeds: Sequence[int | None] = drawn
        labels: Sequence[int | None] = [None] * len(numbers)
        try:
            model = worker.model(model_id)
            if isinstance(model, FinishedPictures):
                numbers = [number for number in numbers if number < model.count]
                seeds = labels = [None] * len(numbers)
                made: list[np.ndarray | str] = _of_one_size(model.take(numbers), model.shape)
            else:
                labels = [number % model.classes if model.classes else None for number in numbers]
                made = self._made(model, drawn, labels)
        except UserError as error:
            made = [str(error)] * len(numbers)
        rows = [
            {**_BLANK, "model_id": model_id, "sample_index": number, "seed": one, "class": label}
            for number, one, label in zip(numbers, seeds, labels, strict=True)
        ]
        for row, picture in zip(rows, made, strict=True):
            if isinstance(picture, str):
                row |= {"status": "failed", "reason": picture}
        good = [(row, picture) for row, picture in zip(rows, made, strict=True) if isinstance(picture, np.ndarray)]
        if not good:
            return rows, _NO_FEATURES
        pictures = np.stack([picture for _, picture in good])
        for prefix, reference in zip(("", "control_"), worker.references(model_id), strict=True):
            self._compare([row for row, _ in good], pictures, prefix, reference)
        for row, picture in good:
            row["thumbnail"] = thumbnail(picture)
            if any(row[f"{prefix}by_{rule}"] for prefix in ("", "control_") for rule in RULES):
                row["image"] = encode_png(picture)
        wanted = max(0, attack.quality_pictures - numbers[0])
        return rows, self.place.features.of(pictures[:wanted]) if wanted else _NO_FEATURES

    def _made(self, model: Any, seeds: Sequence[int], labels: Sequence[int | None]) -> list[np.ndarray | str]:
        """Pictures of these seeds, some at once; a text where one became no picture."""
        from transforms.models.unconditional import DiffusionPictures, GanPictures, as_pictures

        attack = self.attack
        made: list[np.ndarray | str] = []
        height, width = model.shape[1:]
        for at in range(0, len(seeds), BATCH):
            told = labels[at : at + BATCH] if model.classes else None
            try:
                some = np.asarray(model.make(seeds[at : at + BATCH], told, attack.sampling_steps, attack.sampler))
            except Exception as error:
                if isinstance(model, (DiffusionPictures, GanPictures)):
                    raise
                raise UserError(f"the model that was brought failed ({type(error).__name__}: {first_line(error)})") from error
            if some.shape != (expected := (len(seeds[at : at + BATCH]), height, width, 3)):
                raise UserError(f"the model made {some.shape}, expected {expected}; mend it")
            good = np.isfinite(some).all((1, 2, 3))
            made += [one if ok else _NO_NUMBERS for one, ok in zip(as_pictures(some), good, strict=True)]
        return made

    def _compare(self, rows: list[dict[str, Any]], made: np.ndarray, prefix: str, reference: _Reference) -> None:
        if reference.prepared is None:
            return
        attack = self.attack
        index, l2 = reference.prepared.nearest(made, attack.neighbours + 1)
        adaptive, ratio = adaptive_l2(l2, attack.alpha), nearest_ratio(l2)
        for at, row in enumerate(rows):
            alone = l2.shape[1] < 2
            row |= {
                f"{prefix}sample_id": str(reference.ids[index[at, 0]]),
                f"{prefix}l2": float(l2[at, 0]),
                f"{prefix}second_l2": None if alone else float(l2[at, 1]),
                f"{prefix}mean_l2": None if alone else float(l2[at, 1:].mean()),
                f"{prefix}by_l2": bool(l2[at, 0] <= attack.delta),
                f"{prefix}by_adaptive_l2": bool(adaptive[at] <= 1),
                f"{prefix}by_ratio": bool(ratio[at] < attack.ratio_limit),
            }


_NO_NUMBERS = "what it made is not all numbers (NaN): its weights are broken"

_NO_FEATURES = np.zeros((0, 0), np.float32)


def _of_one_size(pictures: list[np.ndarray | str], shape: tuple[int, ...]) -> list[np.ndarray | str]:
    """Pictures of (3, H, W); what has another size is a reason."""
    height, width = shape[1:]
    return [
        one if isinstance(one, str) or one.shape[:2] == (height, width)
        else f"{one.shape[1]} × {one.shape[0]} pixels, and the first picture has {width} × {height}"
        for one in pictures
    ]  # fmt: skip


_BLANK: dict[str, Any] = {
    "class": None, "status": "success", "reason": None, "image": None, "thumbnail": None,
    **{f"{prefix}{name}": None for prefix in ("", "control_") for name in ("sample_id", "l2", "second_l2", "mean_l2")},
    **{f"{prefix}by_{rule}": False for prefix in ("", "control_") for rule in RULES},
}  # fmt: skip


class JudgeQuality(beam.DoFn):
    """A target whose chunks are all written → its row of ``untargeted_attacks``, written."""

    def __init__(self, place: ExtractionPlace, attack: Attack):
        self.place, self.attack = place, attack
        self._worker: _Attacker | None = None
        self._held_out: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_worker": None, "_held_out": {}}

    def process(self, target: Model) -> Iterator[str]:
        model_id = target["model_id"]
        if not exists(self.place.row_path(model_id)):
            if self._worker is None:
                self._worker = _Attacker(self.place)
            write_json(self.place.row_path(model_id), self._row(self._worker, target))
        yield model_id

    def _row(self, worker: _Attacker, target: Model) -> dict[str, Any]:
        attack, model_id = self.attack, worker.know(target)
        seconds, made_of_all, reasons = 0.0, 0, []
        for chunk in range(attack.chunks):
            with open_parquet(self.place.chunk_path(model_id, chunk)) as file:
                seconds += float((file.schema_arrow.metadata or {}).get(b"seconds", b"0"))
                made_of_all += file.metadata.num_rows
                reasons += [one for one in file.read(["reason"])["reason"].to_pylist() if one is not None]
        member, control = worker.references(model_id)
        paths = [self.place.features_path(model_id, chunk) for chunk in range(attack.chunks)]
        features = [read_npy(path) for path in paths if exists(path)]
        made = np.concatenate(features) if features else np.zeros((0, 0), np.float32)
        real = self._real(worker, target["pixels"])
        by_steps = target["family"] == "diffusion"
        generations = attack.generations if target["brought"] is None else made_of_all
        return {
            "model_id": model_id,
            # Of finished pictures there may be fewer than were asked for.
            "generations": generations,
            "failed": len(reasons),
            "members": len(member.ids),
            "controls": len(control.ids),
            "delta": attack.delta,
            "alpha": attack.alpha,
            "neighbours": attack.neighbours,
            "ratio_limit": attack.ratio_limit,
            "sampler": attack.sampler if by_steps else "none",
            "sampling_steps": 1 if target["family"] == "gan" else attack.sampling_steps,
            "seconds": round(seconds, 3),
            **_quality(real, made),
            "quality_generations": len(made),
            "quality_pictures": len(real),
            "quality_features": self.place.features.name,
            "status": "failed" if len(reasons) == generations else "success",
            "reason": reasons[0] if len(reasons) == generations else None,
        }

    def _real(self, worker: _Attacker, pixels: int) -> np.ndarray:
        if pixels not in self._held_out:
            pictures = worker.population(pixels)
            self._held_out[pixels] = self.place.features.of(
                pictures.pixels[members.held_out(pictures, self.attack.quality_pictures)]
            )
        return self._held_out[pixels]


def _quality(real: np.ndarray, made: np.ndarray) -> dict[str, float | None]:
    """The columns of quality; null where there are too few pictures."""
    made = made[np.isfinite(made).all(1)] if len(made) else made
    if min(len(real), len(made)) < quality.FEWEST:
        return dict.fromkeys(("frechet", "cmmd", "precision", "recall"))
    inside = quality.manifold(made, real)
    return {
        "frechet": quality.frechet(made, real).distance, "cmmd": quality.cmmd(made, real).distance,
        "precision": inside.precision, "recall": inside.recall,
    }  # fmt: skip
