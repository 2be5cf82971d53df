"""Membership inference (paper, section 5.2): what models are asked of pictures that they were trained on, and of others.

One element is a model: its signals of each picture, in a file. ``shadows.py`` makes scores of them. All models of a cohort are
asked about the same pictures, with the same noise, which depends on picture and timestep alone.

    work/infer/<snapshot>/signals/<model_id>.npz
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import apache_beam as beam
import numpy as np

from transforms.errors import UserError
from transforms.kernels import membership_signals as kernels
from transforms.models.configuration import AXES, Configuration
from transforms.store.arrays import write_npz
from transforms.store.counters import count
from transforms.store.files import exists
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest
from transforms.training import members, population
from transforms.training.runs import load_model, members_of

if TYPE_CHECKING:
    import torch

    from transforms.models.unconditional import DiffusionPictures, GanPictures

BATCH = 256
"""Pictures that a model is asked about at once."""

POPULATION = 256
"""Pictures outside the pool that RMIA compares with."""

CANARY_POOL = 1024
"""A canary and those that stand against it, which were never planted (paper, section 7.3: an exposure of 10 bits at most)."""

SECMI_STEPS = 10
"""SecMI's timestep is 100 of 1,000, in steps of 10 (Duan et al. 2023, from memory): a tenth of all, in ten."""


@dataclasses.dataclass(frozen=True)
class MembershipQuestions:
    """What models are asked.

    Attributes:
        draws: of noise, for each picture and timestep.
        flips: whether the mirrored picture is asked about as well.
        timesteps: of the loss, PIA, PIAN and SimA.
        signals: names of SIGNALS, which diffusion models are asked for.
        base_seed: of the noise.
        targets: pictures that one model is asked about at most.
    """

    draws: int
    flips: bool
    timesteps: tuple[int, ...]
    signals: tuple[str, ...]
    base_seed: int
    targets: int


class _Batch(NamedTuple):
    """What a signal is made of: pictures (B, 3, H, W) in -1 to 1, their ids, the model's answer, its noise levels."""

    pictures: torch.Tensor
    ids: Sequence[str]
    predict: kernels.Predict
    levels: torch.Tensor
    questions: MembershipQuestions


def _losses(batch: _Batch) -> torch.Tensor:
    """(s, d, v, B)"""
    import torch

    questions, found = batch.questions, []
    for step in questions.timesteps:
        drawn = np.stack([noise(questions, one, step, tuple(batch.pictures.shape[1:])) for one in batch.ids], axis=1)
        noises = torch.from_numpy(drawn).to(batch.pictures.device)
        found.append(kernels.loss(batch.predict, batch.pictures, batch.levels, [step], noises, questions.flips)[0])
    return torch.stack(found)


def _secmi(batch: _Batch) -> torch.Tensor:
    return kernels.secmi(batch.predict, batch.pictures, batch.levels, secmi_interval(len(batch.levels)), SECMI_STEPS + 1)[-1:]


def secmi_interval(levels: int) -> int:
    """Timesteps in a step of SecMI."""
    return max(1, levels // (10 * SECMI_STEPS))


SIGNALS: dict[str, Callable[[_Batch], torch.Tensor]] = {
    "loss": _losses,
    "secmi": _secmi,
    # Kong et al. 2024 attack at 200 of 1,000 (from memory); here at each timestep that is asked for.
    "pia": lambda batch: kernels.pia(batch.predict, batch.pictures, batch.levels, batch.questions.timesteps),
    "pian": lambda batch: kernels.pia(batch.predict, batch.pictures, batch.levels, batch.questions.timesteps, normalised=True),
    "sima": lambda batch: kernels.sima(batch.predict, batch.pictures, batch.questions.timesteps),
}
"""Signal → what makes it: (s, B), or (s, d, v, B) of the loss. Smaller for members."""


def noise(questions: MembershipQuestions, sample_id: str, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """The noise of a picture at a timestep: (draws, *shape) float32, standard normal; fewer draws are the first of more."""
    key = int(digest("membership noise", questions.base_seed, sample_id, step), 16)
    return np.random.Generator(np.random.Philox(key=key)).standard_normal((questions.draws, *shape), np.float32)


def signals_of(
    model: DiffusionPictures | GanPictures,
    pictures: np.ndarray,
    ids: Sequence[str],
    labels: np.ndarray | None,
    questions: MembershipQuestions,
    names: Sequence[str],
    batch: int = BATCH,
) -> dict[str, np.ndarray]:
    """What a model says of pictures.

    Args:
        model: that is asked.
        pictures: (N, H, W, 3) uint8.
        ids: (N,) by which noise is drawn.
        labels: (N,) classes that the model is told; None where it is told none.
        questions: how it is asked.
        names: of SIGNALS. A GAN has one signal whatever they are: minus what its discriminator says, as ``loss``.
        batch: pictures at once.

    Returns:
        Signal → (s, d, v, N) float64, with d and v 1 where nothing is drawn or mirrored.

    Raises:
        UserError: a timestep that the model hasn't.
    """
    from transforms.models.unconditional import GanPictures

    if not isinstance(model, GanPictures):
        _check_levels(len(model.levels), questions, names)
    if pictures.shape[1:] != (*model.shape[1:], model.shape[0]):
        raise UserError(f"pictures of {pictures.shape[2]} x {pictures.shape[1]} pixels for a model of {model.shape[1:]}")
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(pictures), batch):
        some = slice(start, start + batch)
        given = None if labels is None else labels[some]
        if isinstance(model, GanPictures):
            answers = _judgement(model, pictures[some], given, questions)
        else:
            answers = _answers(model, pictures[some], ids[some], given, questions, names)
        for name, values in answers.items():
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(values, axis=-1) for name, values in found.items()}


def _check_levels(levels: int, questions: MembershipQuestions, names: Sequence[str]) -> None:
    if max(questions.timesteps) >= levels:
        raise UserError(f"timestep {max(questions.timesteps)} of a model with {levels} noise levels; give smaller --timesteps")
    if "secmi" in names and secmi_interval(levels) * (SECMI_STEPS + 1) >= levels:
        raise UserError(f"SecMI of a model with {levels} noise levels, expected {SECMI_STEPS + 2} or more; leave it out")


def _answers(
    model: DiffusionPictures,
    pictures: np.ndarray,
    ids: Sequence[str],
    labels: np.ndarray | None,
    questions: MembershipQuestions,
    names: Sequence[str],
) -> dict[str, np.ndarray]:
    import torch

    from transforms.models.unconditional import as_numbers

    classes = None if labels is None else torch.as_tensor(labels, device=model.device)

    def predict(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return model.noise(x, times, classes)

    batch = _Batch(as_numbers(pictures, model.device), ids, predict, model.levels, questions)
    with torch.inference_mode():
        made = {name: SIGNALS[name](batch).cpu().numpy() for name in names}
    return {name: values if values.ndim == 4 else values[:, None, None] for name, values in made.items()}


def _judgement(
    model: GanPictures,
    pictures: np.ndarray,
    labels: np.ndarray | None,
    questions: MembershipQuestions,
) -> dict[str, np.ndarray]:
    import torch

    from transforms.models.unconditional import as_numbers

    classes = None if labels is None else torch.as_tensor(labels, device=model.device)
    x = as_numbers(pictures, model.device)
    views = [x, x.flip(3)][: 1 + questions.flips]
    judged = torch.stack([model.judge(view, classes).double() for view in views])
    return {"loss": -judged.cpu().numpy()[None, None]}


# -- which pictures ---------------------------------------------------------------------------------------------------


class AskedPictures(NamedTuple):
    """The pictures that a model is asked about, the same for all models of its cohort.

    Attributes:
        rows: (N,) where they stand in the population.
        inside: (N,) bool: whether the model was trained on them.
        left_out: pictures of the pool that have a near-duplicate in it: of which membership says nothing.
        others: (Z,) rows of pictures outside the pool, which no model of the cohort was trained on.
    """

    rows: np.ndarray
    inside: np.ndarray
    left_out: int
    others: np.ndarray


def asked(configuration: Configuration, pictures: population.Population, given: set[str], targets: int) -> AskedPictures:
    """Whom a model is asked about.

    Where the members were drawn of a larger pool, all of it: members and others are random parts. Else its members, and as many
    others.

    Args:
        configuration: of the model.
        pictures: of the lake.
        given: ids of the model's members.
        targets: how many at most, by the draw's order.
    """
    pool = members.pool_of(configuration, pictures)
    rest = members.controls(configuration.draw, pictures, pool, len(pictures.sample_ids))
    if configuration.deduplicated:
        rest = rest[pictures.kept[rest]]
    if configuration.pool > configuration.images:
        _, group, size = np.unique(pictures.groups[pool], return_inverse=True, return_counts=True)
        rows, left_out = pool[size[group] == 1][:targets], int((size[group] > 1).sum())
    else:
        # The model's own, which other pictures would replace here that came after it was trained.
        mine = np.array([row for row in pool if str(pictures.sample_ids[row]) in given], np.int64)[: max(1, targets // 2)]
        others, rest = rest[: len(mine)], rest[len(mine) :]
        rows, left_out = np.concatenate([mine, others]), 0
    if configuration.labels == "true":
        rows, rest = rows[pictures.labels[rows] != ""], rest[pictures.labels[rest] != ""]
    inside = np.array([str(one) in given for one in pictures.sample_ids[rows]], bool)
    return AskedPictures(rows, inside, left_out, rest[:POPULATION])


def asked_of_brought(
    configuration: Configuration, pictures: population.Population, given: set[str], targets: int
) -> AskedPictures:
    """Whom a model is asked about that was not trained here: its members, and as many that it wasn't trained on."""
    mine = np.array([row for row in pictures.order(0) if str(pictures.sample_ids[row]) in given], np.int64)
    rest = members.controls(0, pictures, mine, len(pictures.sample_ids))
    mine = mine[: max(1, targets // 2)]
    others, rest = rest[: len(mine)], rest[len(mine) :]
    inside = np.concatenate([np.ones(len(mine), bool), np.zeros(len(others), bool)])
    return AskedPictures(np.concatenate([mine, others]), inside, 0, rest[:POPULATION])


def configuration_of(target: dict[str, Any]) -> Configuration:
    """The configuration of a row of ``models``; of a model that was brought nothing is known but that it is told no class."""
    if target["brought"] is not None:
        return Configuration()
    return Configuration(**{name: target[name] for name in AXES})


# -- the element ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class InferencePlace:
    """Where the models are, and where what comes of them goes.

    Attributes:
        lake: the lake.
        snapshot: of ``infer``.
        deduplicate: whose pictures the models were trained on.
        most: pictures of the population.
        device: cpu, cuda or cuda:1.
    """

    lake: Lake
    snapshot: str
    deduplicate: Manifest
    most: int
    device: str

    def signals_path(self, model_id: str) -> str:
        return self.lake.work("infer", self.snapshot, "signals", f"{model_id}.npz")

    def judged_path(self, table: str, group: str) -> str:
        return self.lake.work("infer", self.snapshot, "judged", table, f"{group}.parquet")


class AskModels(beam.DoFn):
    """A row of ``models`` → its id, when its signals are written. What is written already is left alone.

    The file has ``sample_ids`` (N,), ``inside`` (N,) bool, ``left_out``, a signal each (s, d, v, N), ``others`` (s, d, v, Z) of
    the loss, ``canaries`` (C,) names with ``copies`` and ``canary_loss`` (C,), ``pool_loss`` (R,) of canaries that were never
    planted, ``seconds`` and ``reason``, "" where all went well.
    """

    def __init__(self, place: InferencePlace, questions: MembershipQuestions):
        self.place, self.questions = place, questions
        self._population: Callable[[int], population.Population] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_population": None}

    def process(self, target: dict[str, Any]) -> Iterator[str]:
        path = self.place.signals_path(target["model_id"])
        if not exists(path):
            if self._population is None:
                read = functools.partial(population.read, self.place.lake, self.place.deduplicate, self.place.most)
                self._population = functools.lru_cache(maxsize=2)(read)
            begun = time.monotonic()
            try:
                content = self._asked(target, self._population(target["pixels"]))
                reason = ""
            except UserError as error:
                content, reason = {}, str(error)
            write_npz(path, **content, seconds=round(time.monotonic() - begun, 3), reason=np.array(reason))
            count("models asked about membership")
        yield target["model_id"]

    def _asked(self, target: dict[str, Any], pictures: population.Population) -> dict[str, Any]:
        configuration, questions = configuration_of(target), self.questions
        there = target["brought"] is not None
        if configuration.labels == "unique":
            raise UserError(
                "labels = 'unique': the model has no class for a picture that it wasn't trained on; nothing to compare"
            )
        if target["family"] == "other":
            raise UserError("of a model that was brought as a generator or as pictures no loss is known; nothing to ask about")
        model = load_model(self.place.lake, target, self.place.device)
        given = members_of(self.place.lake, target["run_id"])
        classes = {one["sample_id"]: one["class"] for one in given if one["kind"] == "picture"}
        if there and model.classes:
            raise UserError("the model is told a class, and of the lake's pictures nobody knows which it would be")
        about = (asked_of_brought if there else asked)(configuration, pictures, set(classes), questions.targets)

        def answers(rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
            if not len(rows):
                return {}
            ids = [str(one) for one in pictures.sample_ids[rows]]
            labels, _ = members.labels_of(configuration, pictures, ids, rows)
            if labels is not None and any(classes.get(one, label) != label for one, label in zip(ids, labels, strict=True)):
                raise UserError(
                    "its classes are no longer those that it was trained with: the lake's labels are others; train anew"
                )
            return signals_of(model, pictures.pixels[rows], ids, labels, questions, names)

        if not len(about.rows):
            raise UserError("the lake has none of the pictures any more that it was trained on")
        content: dict[str, Any] = answers(about.rows, questions.signals)
        others = answers(about.others, ["loss"])
        return {
            **content,
            "sample_ids": pictures.sample_ids[about.rows],
            "inside": about.inside,
            "left_out": about.left_out,
            "others": others.get("loss", content["loss"][..., :0]),
            **self._of_canaries(model, configuration, pictures, given),
        }

    def _of_canaries(
        self,
        model: DiffusionPictures | GanPictures,
        configuration: Configuration,
        pictures: population.Population,
        given: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """Losses of planted canaries and of their pool; nothing where none was planted."""
        planted = {one["sample_id"]: one["copies"] for one in given if one["kind"] == "canary"}
        if not planted:
            return {}
        draw, numbers = configuration.draw, range(configuration.canaries + CANARY_POOL - 1)
        ids = [members.canary_id(draw, number) for number in numbers]
        made = np.stack([members.canary(draw, number, configuration.pixels) for number in numbers])
        labels, _ = members.labels_of(configuration, pictures, ids, np.full(len(ids), -1))
        loss = signals_of(model, made, ids, labels, self.questions, ["loss"])["loss"].mean((0, 1, 2))
        first = configuration.canaries
        return {
            "canaries": np.array(ids[:first]), "copies": np.array([planted[one] for one in ids[:first]]),
            "canary_loss": loss[:first], "pool_loss": loss[first:],
        }  # fmt: skip
