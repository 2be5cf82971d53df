"""What is trained: one configuration, with every axis of a sweep, and its pictures; and the file that a sweep is written in."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from transforms.errors import UserError
from transforms.store.identity import digest

MOST_MODELS = 10_000
"""Configurations of a sweep, and values of a grid's axes multiplied. More is a slip of the pen, and weeks of work."""

MOST_BYTES = 1 << 20
"""A sweep's file that is larger is none."""

TRAINING_VERSION = 1
"""Of what is made of a configuration: raised when the same one would give other weights, so that no old model passes for it."""


def _axis(
    default: Any, *, choices: Sequence[str] = (), least: float = -math.inf, most: float = math.inf, multiple: int = 1
) -> Any:
    """An axis: its default, and the values that it may have. ``models`` in schema.py says what each means."""
    return dataclasses.field(
        default=default, metadata={"choices": tuple(choices), "least": least, "most": most, "multiple": multiple}
    )


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One model to train: the axes of ``models`` (transforms/store/schema.py has their meanings), each with its default.

    UserError for a value that an axis doesn't take, and for axes that contradict each other.
    """

    family: str = _axis("diffusion", choices=("diffusion", "gan"))
    pixels: int = _axis(8, least=8, most=64, multiple=8)
    width: int = _axis(16, least=8, most=1024, multiple=8)
    layers: int = _axis(1, least=1, most=8)
    attention: bool = _axis(False)
    dropout: float = _axis(0.0, least=0, most=0.9)
    images: int = _axis(64, least=1)
    pool: int = _axis(0, least=0)
    draw: int = _axis(0, least=0)
    split: int = _axis(0, least=0)
    side: str = _axis("in", choices=("in", "out"))
    copied_images: int = _axis(0, least=0)
    copies: int = _axis(1, least=1)
    canaries: int = _axis(0, least=0, most=1024)
    deduplicated: bool = _axis(False)
    labels: str = _axis("none", choices=("none", "true", "random", "unique"))
    classes: int = _axis(10, least=2)
    flip: bool = _axis(False)
    steps: int = _axis(4000, least=1, most=10**8)
    epochs: float = _axis(0.0, least=0)
    checkpoints: int = _axis(1, least=1, most=30)
    batch_size: int = _axis(32, least=1, most=65536)
    learning_rate: float = _axis(1e-3, least=1e-9, most=10)
    warmup: int = _axis(0, least=0)
    weight_decay: float = _axis(0.0, least=0)
    ema: float = _axis(0.99, least=0, most=0.999999)
    precision: str = _axis("float32", choices=("float32", "bfloat16"))
    timesteps: int = _axis(1000, least=2, most=10_000)
    schedule: str = _axis("linear", choices=("linear", "squaredcos_cap_v2"))
    privacy_noise: float = _axis(0.0, least=0)
    privacy_clipping: float = _axis(0.0, least=0)
    seed: int = _axis(0, least=0, most=2**62)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        drawn_from = self.pool or self.images
        needed = self.images * (2 if self.side == "out" else 1)
        if drawn_from < needed:
            raise UserError(f"pool is {self.pool}, expected {needed} or more for images = {self.images}, side = {self.side!r}")
        if self.copied_images > self.images:
            raise UserError(f"copied_images is {self.copied_images}, expected up to images = {self.images}")
        if self.privacy_noise and not self.privacy_clipping:
            raise UserError("privacy_noise needs privacy_clipping, the norm that the noise is measured in; give it")
        if self.privacy_clipping and self.family != "diffusion":
            raise UserError(f"privacy_clipping is for family = 'diffusion', got {self.family!r}; leave it out")

    def steps_for(self, total: int) -> int:
        """Training steps where an epoch is ``total`` pictures: ``steps``, or as many as ``epochs`` take."""
        return math.ceil(self.epochs * total / self.batch_size) if self.epochs else self.steps

    def checkpoint_steps(self, total: int) -> list[int]:
        """The steps at which a model is kept, ascending, the last one last: each about half of the next one."""
        steps = self.steps_for(total)
        return sorted({max(1, math.ceil(steps / 2**back)) for back in range(self.checkpoints)})

    @property
    def class_count(self) -> int:
        """Of ``random`` labels; of the others it depends on the pictures."""
        return self.classes if self.labels == "random" else 0

    def cohort(self) -> str:
        """Digest of all axes but those that only say which pictures and which random numbers: models of one cohort can stand in
        for each other, as LiRA's shadow models do.
        """
        values = dataclasses.asdict(self)
        return digest("cohort", {name: value for name, value in values.items() if name not in ("split", "side", "seed")})[:16]


def _check(field: dataclasses.Field, value: Any) -> None:
    kind = type(field.default)
    limits = field.metadata
    right = type(value) is kind or (kind is float and type(value) is int)
    if not right:
        raise UserError(f"{field.name} is {value!r}, expected {_kind(kind)}")
    if limits["choices"] and value not in limits["choices"]:
        raise UserError(f"{field.name} is {value!r}, expected one of {', '.join(limits['choices'])}")
    if kind in (int, float) and not limits["least"] <= value <= limits["most"]:
        most = "" if limits["most"] == math.inf else f" to {limits['most']:,}"
        raise UserError(f"{field.name} is {value}, expected {limits['least']:,}{most or ' or more'}")
    if kind is int and value % limits["multiple"]:
        raise UserError(f"{field.name} is {value}, expected a multiple of {limits['multiple']}")


def _kind(kind: type) -> str:
    return {str: "text", bool: "true or false", int: "a whole number", float: "a number"}[kind]


AXES = tuple(field.name for field in dataclasses.fields(Configuration))
"""The names of all axes."""


@dataclasses.dataclass(frozen=True)
class BroughtModel:
    """A model that is there already, and is attacked beside those that are trained.

    Attributes:
        model: a folder as diffusers writes it, or of finished pictures; a TorchScript file; or ``package.module:name`` of a
            Python object (docs/sweep.md says what each must be).
        members: file with the ids of the lake's samples that it was trained on, one a line; "" for all training pictures.
        latent: numbers that a TorchScript generator makes a picture of.
        classes: that a TorchScript generator is told; 0 for none.
    """

    model: str = _axis("")
    members: str = _axis("")
    latent: int = _axis(128, least=1, most=1 << 20)
    classes: int = _axis(0, least=0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if not self.model:
            raise UserError("model is '', expected a folder, a TorchScript file, or package.module:name")


class TrainingSet(NamedTuple):
    """What a model is trained on.

    Attributes:
        pictures: (N, pixels, pixels, 3) uint8.
        copies: (N,) how many times each stands in an epoch.
        labels: (N,) int64 from 0; None for an unconditional model.
        classes: how many there are; 0 without.
    """

    pictures: np.ndarray
    copies: np.ndarray
    labels: np.ndarray | None = None
    classes: int = 0

    @property
    def total(self) -> int:
        """Pictures in an epoch."""
        return int(self.copies.sum())


class SweptConfiguration(NamedTuple):
    """A configuration of a sweep, or a model that is brought, and the experiments (names of the file's tables) that it belongs
    to.
    """

    configuration: Configuration | BroughtModel
    experiments: tuple[str, ...]


def read_sweep(path: str) -> list[SweptConfiguration]:
    """The configurations of a sweep's file, each once, in its order.

    The file is TOML: ``[common]`` holds what all have unless they say otherwise; a ``[[grid]]`` is every combination of its
    lists; a ``[[model]]`` is one configuration; a ``[[brought]]`` is a model that is there. ``name`` is the experiment.

    Raises:
        UserError: for a file that isn't there or is no TOML, an axis that doesn't exist, a value that it doesn't take, a grid
            of more than ``MOST_MODELS``; it says which.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise UserError(f"--sweep {path!r} is larger than {MOST_BYTES:,} bytes, expected a TOML file")
        content = tomllib.loads(text.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read --sweep {path!r} ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--sweep {path!r} is not TOML ({error})") from error
    return _configurations(content, os.path.basename(path))


def _configurations(content: Mapping[str, Any], where: str) -> list[SweptConfiguration]:
    for name in content:
        if name not in ("common", "grid", "model", "brought"):
            raise UserError(f"--sweep {where}: {name!r} is none of [common], [[grid]], [[model]] and [[brought]]; mend it")
    common = content.get("common", {})
    _expect(common, dict, where, "[common]")
    found: dict[Configuration | BroughtModel, dict[str, None]] = {}
    for place, values in _tables(content, where):
        mine = dict(values)
        experiment = mine.pop("name", place)
        _expect(experiment, str, where, f"name of {place}")
        kind = BroughtModel if place.startswith("brought") else Configuration
        known = [field.name for field in dataclasses.fields(kind)]
        for one in _combinations(mine if kind is BroughtModel else {**common, **mine}, known, where, place):
            try:
                configuration = kind(**one)
            except UserError as error:
                raise UserError(f"--sweep {where}, {place}: {error}") from error
            found.setdefault(configuration, {})[experiment] = None
            if len(found) > MOST_MODELS:
                raise UserError(f"--sweep {where} has more than {MOST_MODELS:,} configurations; make its grids smaller")
    if not found:
        raise UserError(f"--sweep {where} has no [[grid]], no [[model]] and no [[brought]]; add one")
    return [SweptConfiguration(configuration, tuple(experiments)) for configuration, experiments in found.items()]


def _tables(content: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for kind in ("grid", "model", "brought"):
        tables = content.get(kind, [])
        _expect(tables, list, where, f"[[{kind}]]")
        for number, table in enumerate(tables, start=1):
            place = f"{kind} {number}"
            _expect(table, dict, where, place)
            yield place, table


def _combinations(values: Mapping[str, Any], known: Sequence[str], where: str, place: str) -> Iterator[dict[str, Any]]:
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else f"; there are {', '.join(known)}"
            raise UserError(f"--sweep {where}, {place}: there is no axis {name!r}{hint}")
    lists = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    if not place.startswith("grid") and (several := [name for name, value in values.items() if isinstance(value, list)]):
        raise UserError(f"--sweep {where}, {place}: {several[0]} is a list, expected one value; a [[grid]] takes lists")
    size = math.prod(len(one) for one in lists.values())
    if not 1 <= size <= MOST_MODELS:
        raise UserError(f"--sweep {where}, {place} has {size:,} combinations, expected 1 to {MOST_MODELS:,}; mend its lists")
    for combination in itertools.product(*lists.values()):
        yield dict(zip(lists, combination, strict=True))


def _expect(value: Any, kind: type, where: str, what: str) -> None:
    if not isinstance(value, kind):
        raise UserError(f"--sweep {where}: {what} is {value!r}, expected {'a table' if kind is not str else 'a text'}")
