"""What is made of models' signals: scores of membership, with the other models of a cohort as shadows, and what goes with them.

One element is a group: the models of a cohort at one step. Every model is attacked with all the others that were not trained
on the very same pictures as its shadows (paper, section 5.2: 15 against 1, in turn).

    work/infer/<snapshot>/judged/<table>/<group>.parquet     rows of the five tables; those of membership_attacks come last
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms.attacks.membership import SECMI_STEPS, SIGNALS, InferencePlace, MembershipQuestions, secmi_interval
from transforms.kernels import membership as kernels
from transforms.store.arrays import read_npz
from transforms.store.counters import count
from transforms.store.files import exists, write_parquet
from transforms.store.identity import digest, unit_interval
from transforms.store.lake import as_table

FEWEST_SHADOWS = 2
"""With fewer no picture has both a model that saw it and one that didn't."""

OWN_SPREAD = 64
"""From so many shadows on each picture has a spread of its own (Carlini et al. 2022 pool the variance of fewer)."""

HELD_OUT = 8
"""Models on which a timestep is chosen: so many of the others, by hash."""

SET_SIZE = 70
"""Pictures of a set that the dataset-level test is asked of, beside all: so many suffice its authors (Dubiński et al. 2025)."""

Shadowed = Callable[["Losses"], np.ndarray]


class Losses(NamedTuple):
    """What a shadow attack goes by, of one view and timestep.

    Attributes:
        target: (n,) of the model that is attacked.
        shadows: (m, n).
        inside: (m, n) bool, whether the shadow model was trained on the picture.
        population, population_shadows: (z,) and (m, z), of pictures outside the pool.
    """

    target: np.ndarray
    shadows: np.ndarray
    inside: np.ndarray
    population: np.ndarray
    population_shadows: np.ndarray


def spread_of(shadows: int) -> kernels.Spread:
    """Which variance LiRA takes with so many shadow models."""
    return "image" if shadows >= OWN_SPREAD else "pooled"


def _lira(losses: Losses, online: bool) -> np.ndarray:
    spread = spread_of(len(losses.shadows))
    return kernels.lira(losses.target, losses.shadows, losses.inside, spread=spread, online=online)


def _rmia(losses: Losses) -> np.ndarray:
    if not len(losses.population):
        return np.full(len(losses.target), np.nan)
    return kernels.rmia(-losses.target, -losses.shadows, losses.inside, -losses.population, -losses.population_shadows)


@dataclasses.dataclass(frozen=True)
class MembershipAttack:
    """One attack.

    Attributes:
        name: as it stands in the tables.
        signal: of SIGNALS, that it goes by.
        shadowed: scores of losses, where it takes shadow models; else minus the signal is the score.
        families: of the models that it is for.
    """

    name: str
    signal: str
    shadowed: Shadowed | None = None
    families: tuple[str, ...] = ("diffusion",)


MEMBERSHIP_ATTACKS = {
    one.name: one
    for one in (
        MembershipAttack("loss", "loss"),
        MembershipAttack("discriminator", "loss", families=("gan",)),
        *(MembershipAttack(name, name) for name in SIGNALS if name != "loss"),
        MembershipAttack("lira_online", "loss", functools.partial(_lira, online=True), ("diffusion", "gan")),
        MembershipAttack("lira_offline", "loss", functools.partial(_lira, online=False), ("diffusion", "gan")),
        # Of what a discriminator says there is no likelihood.
        MembershipAttack("rmia", "loss", _rmia),
    )
}
"""Every attack, by name."""


class View(NamedTuple):
    """How many draws of noise a loss is the mean of, and whether that of the mirrored picture is in it."""

    draws: int
    flips: bool

    def of(self, signal: np.ndarray) -> np.ndarray:
        """(s, d, v, N) → (s, N)"""
        return signal[:, : self.draws, : 1 + self.flips].mean((1, 2))


class Signals(NamedTuple):
    """A model of a group, and what it said.

    Attributes:
        row: of ``models``.
        content: of its file; see AskModels.
    """

    row: dict[str, Any]
    content: dict[str, np.ndarray]

    @property
    def inside(self) -> np.ndarray:
        return self.content["inside"]

    def pictures(self) -> tuple[str, int]:
        """What says which of the pool's pictures it was trained on."""
        return self.row["side"], self.row["split"]

    @property
    def of_a_pool(self) -> bool:
        """Whether it was trained on a part of a pool; nobody knows of a model that was brought."""
        return (self.row["pool"] or 0) > self.row["images"]

    def views(self, signal: str) -> list[View]:
        """From one draw alone to all there is; the last is the full one."""
        _, draws, views, _ = self.content[signal].shape
        wanted = itertools.product(sorted({1, draws}), sorted({False, views == 2}))
        return [View(*one) for one in wanted]

    def timesteps(self, signal: str, questions: MembershipQuestions) -> list[int | None]:
        """That its signal was taken at; None for a GAN, which has none."""
        if self.row["family"] == "gan":
            return [None]
        if signal == "secmi":
            return [SECMI_STEPS * secmi_interval(self.row["timesteps"])]
        return list(questions.timesteps)


class AttackedGroup:
    """The models of one cohort at one step, and their scores.

    Args:
        models: those that answered, in the order of their ids, which were asked about the same pictures.
    """

    def __init__(self, models: Sequence[Signals]):
        self.models = models
        self._scores: dict[tuple, np.ndarray] = {}

    def shadows(self, target: int) -> list[int]:
        """The models that stand in for one of them; none where all saw the same pictures of the pool."""
        if not self.models[target].of_a_pool:
            return []
        mine = self.models[target].pictures()
        return [other for other, model in enumerate(self.models) if model.pictures() != mine]

    def why_no_shadows(self, target: int) -> str | None:
        """Why a model can't be attacked with others of its cohort; None where it can."""
        found = len(self.shadows(target))
        if found >= FEWEST_SHADOWS:
            return None
        if not self.models[target].of_a_pool:
            return "all models of its cohort have the same pictures: LiRA and RMIA take a pool that is larger than images"
        return f"{found} other models of its cohort have other pictures, expected {FEWEST_SHADOWS} or more"

    def scores(self, attack: MembershipAttack, target: int, at: int, view: View, without: int | None = None) -> np.ndarray:
        """(n,) scores of one model's pictures, higher = member; NaN where it can't be said.

        Args:
            attack: which.
            target: which model.
            at: number of the timestep.
            view: of the loss.
            without: a model that is not used as a shadow, since it is what something is chosen for.
        """
        key = (attack.name, target, at, view, without if attack.shadowed else None)
        if key not in self._scores:
            self._scores[key] = self._scored(attack, target, at, view, without)
        return self._scores[key]

    def _scored(self, attack: MembershipAttack, target: int, at: int, view: View, without: int | None) -> np.ndarray:
        mine = self.models[target]
        if attack.shadowed is None:
            found = -view.of(mine.content[attack.signal])[at]
            return np.where(np.isfinite(found), found, np.nan)
        shadows = [self.models[one] for one in self.shadows(target) if one != without]
        # Of the pictures outside, as many as all were asked about: later models may have found fewer in the lake.
        most = min(one.content["others"].shape[-1] for one in (mine, *shadows))

        def outside(model: Signals) -> np.ndarray:
            return view.of(model.content["others"])[at, :most]

        return attack.shadowed(
            Losses(
                view.of(mine.content[attack.signal])[at],
                np.stack([view.of(one.content[attack.signal])[at] for one in shadows]),
                np.stack([one.inside for one in shadows]),
                outside(mine),
                np.stack([outside(one) for one in shadows]),
            )
        )

    def chosen(self, attack: MembershipAttack, target: int) -> int | None:
        """The number of the timestep with the largest mean area under the curve on other models of the group, of which none was
        trained on the same pictures; the model itself is a shadow of none of them. None where there are too few.

        The area, since at a small false positive rate the few non-members of a small cohort choose by chance.
        """
        if self.why_no_shadows(target) is not None:
            return None
        others = sorted(self.shadows(target), key=lambda one: digest("held out", self.models[one].row["model_id"]))[:HELD_OUT]
        if attack.shadowed is not None:
            others = [one for one in others if len([each for each in self.shadows(one) if each != target]) >= FEWEST_SHADOWS]
        view = self.models[target].views(attack.signal)[-1]
        steps = self.models[target].content[attack.signal].shape[0]
        areas = [
            [_area(self.scores(attack, one, at, view, target), self.models[one].inside) for at in range(steps)]
            for one in others
        ]
        kept = np.array([row for row in areas if None not in row], np.float64)
        return int(np.argmax(kept.mean(axis=0))) if len(kept) else None


def _area(scores: np.ndarray, inside: np.ndarray) -> float | None:
    known = np.isfinite(scores)
    return kernels.area(scores[known], inside[known])


# -- rows -------------------------------------------------------------------------------------------------------------


def group_of(target: dict[str, Any]) -> str:
    """The name of a model's group."""
    return f"{target['cohort']}-{target['step']:09d}"


TABLES_OF_A_GROUP = ("losses", "membership_scores", "dataset_inference", "exposures", "membership_attacks")
"""In the order in which they are written: the last one says that all are there."""


class JudgeGroups(beam.DoFn):
    """(name, rows of ``models``) of a group whose signals are written → its name, when its rows are."""

    def __init__(self, place: InferencePlace, questions: MembershipQuestions, attacks: Sequence[str]):
        self.place, self.questions, self.attacks = place, questions, tuple(attacks)

    def process(self, element: tuple[str, list[dict[str, Any]]]) -> Iterator[str]:
        name, targets = element
        if not exists(self.place.judged_path(TABLES_OF_A_GROUP[-1], name)):
            made = self._judged(targets)
            for table in TABLES_OF_A_GROUP:
                write_parquet(self.place.judged_path(table, name), made[table])
            count("groups judged")
        yield name

    def _judged(self, targets: list[dict[str, Any]]) -> dict[str, pa.Table]:
        signals = [Signals(one, read_npz(self.place.signals_path(one["model_id"]))) for one in targets]
        answered = [one for one in signals if not str(one.content["reason"])]
        # A picture that was forgotten between two models is asked of no further one.
        if answered and any(
            not np.array_equal(one.content["sample_ids"], answered[0].content["sample_ids"]) for one in answered
        ):
            answered = _of_the_same_pictures(answered)
        group = AttackedGroup(answered)
        attacks = [MEMBERSHIP_ATTACKS[name] for name in self.attacks]
        rows = {
            "dataset_inference": [row for one in answered for row in verdicts_of(one, self.questions)],
            "exposures": [row for one in answered for row in exposures_of(one)],
            "membership_attacks": [
                *(self._attack_row(group, number) for number in range(len(answered))),
                *(_failed(one, self.questions) for one in signals if str(one.content["reason"])),
            ],
        }
        return {
            "losses": _table("losses", (block for one in answered for block in losses_of(one, self.questions))),
            "membership_scores": _table("membership_scores", scores_of(group, attacks, self.questions)),
            **{table: as_table(table, some) for table, some in rows.items()},
        }

    def _attack_row(self, group: AttackedGroup, number: int) -> dict[str, Any]:
        model = group.models[number]
        shadows, reason = len(group.shadows(number)), group.why_no_shadows(number)
        is_gan = model.row["family"] == "gan"
        return {
            **_common(model, self.questions),
            "members": int(model.inside.sum()),
            "non_members": int((~model.inside).sum()),
            "left_out": int(model.content["left_out"]),
            "population": 0 if is_gan else int(model.content["others"].shape[-1]),
            "shadows": 0 if reason else shadows,
            "spread": None if reason else spread_of(shadows),
            "no_shadows": reason,
            "status": "success",
            "reason": None,
        }


def _common(model: Signals, questions: MembershipQuestions) -> dict[str, Any]:
    is_gan = model.row["family"] == "gan"
    return {
        "model_id": model.row["model_id"],
        "draws": 0 if is_gan else questions.draws,
        "flips": questions.flips,
        "timesteps": [] if is_gan else list(questions.timesteps),
        "seconds": float(model.content["seconds"]),
    }


def _failed(model: Signals, questions: MembershipQuestions) -> dict[str, Any]:
    reason = str(model.content["reason"])
    return {
        **_common(model, questions), **dict.fromkeys(("members", "non_members", "left_out", "population", "shadows"), 0),
        "spread": None, "no_shadows": None, "status": "failed", "reason": reason,
    }  # fmt: skip


def _of_the_same_pictures(answered: list[Signals]) -> list[Signals]:
    """The models with the pictures that all were asked about, in one order."""
    common = sorted(set.intersection(*(set(one.content["sample_ids"].tolist()) for one in answered)))
    found = []
    for one in answered:
        place = {each: at for at, each in enumerate(one.content["sample_ids"].tolist())}
        kept = np.array([place[each] for each in common], np.int64)
        mine = ("sample_ids", "inside", *SIGNALS)
        found.append(
            Signals(one.row, {name: value[..., kept] if name in mine else value for name, value in one.content.items()})
        )
    return found


def _table(name: str, blocks: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows of a table; of each block every column is an array of one length, or one value for all."""
    made = [pa.table(_columns(block)) for block in blocks]
    return as_table(name, pa.concat_tables(made, promote_options="permissive") if made else [])


def _columns(block: dict[str, Any]) -> dict[str, pa.Array]:
    length = next(len(value) for value in block.values() if isinstance(value, np.ndarray))
    return {
        # Of numbers that aren't any there is none.
        name: pa.array(value, from_pandas=True) if isinstance(value, np.ndarray) else pa.repeat(pa.scalar(value), length)
        for name, value in block.items()
    }


def losses_of(model: Signals, questions: MembershipQuestions) -> Iterator[dict[str, Any]]:
    """Columns of ``losses``, a timestep at a time."""
    view = model.views("loss")[-1]
    mean = view.of(model.content["loss"])
    for at, step in enumerate(model.timesteps("loss", questions)):
        yield {
            "model_id": model.row["model_id"],
            "sample_id": model.content["sample_ids"],
            "member": model.inside,
            "timestep": step,
            "value": np.where(np.isfinite(mean[at]), mean[at], np.nan),
            "draws": 0 if step is None else view.draws,
            "flips": view.flips,
        }


def scores_of(
    group: AttackedGroup, attacks: Sequence[MembershipAttack], questions: MembershipQuestions
) -> Iterator[dict[str, Any]]:
    """Columns of ``membership_scores``: of each model by each attack, at each timestep, of each view of the loss."""
    for number, model in enumerate(group.models):
        for attack in attacks:
            if model.row["family"] not in attack.families or (attack.shadowed and group.why_no_shadows(number)):
                continue
            if attack.name == "rmia" and not model.content["others"].shape[-1]:
                continue
            chosen = group.chosen(attack, number)
            steps = model.timesteps(attack.signal, questions)
            for view, (at, step) in itertools.product(model.views(attack.signal), enumerate(steps)):
                yield {
                    "model_id": model.row["model_id"],
                    "sample_id": model.content["sample_ids"],
                    "member": model.inside,
                    "attack": attack.name,
                    "timestep": step,
                    "chosen": at == chosen or len(steps) == 1,
                    "draws": view.draws if attack.signal == "loss" and step is not None else 0,
                    "flips": view.flips,
                    "score": group.scores(attack, number, at, view),
                }


def features_of(model: Signals) -> np.ndarray:
    """(N, f) float64: what the dataset-level test goes by: each signal at each timestep, a loss as its mean."""
    return np.concatenate([model.content[name].mean((1, 2)) for name in SIGNALS if name in model.content]).T


def verdicts_of(model: Signals, questions: MembershipQuestions) -> Iterator[dict[str, Any]]:
    """Rows of ``dataset_inference``: of the members, and of pictures that the model was not trained on.

    Both are held against the same half of the others; the other half of those is the second set, of which the test ought to
    find nothing.
    """
    ids = [str(one) for one in model.content["sample_ids"]]
    lots = np.array([unit_interval("set", questions.base_seed, one) for one in ids])
    features = features_of(model)
    usable = np.isfinite(features).all(axis=1)
    members, others = ((side & usable).nonzero()[0] for side in (model.inside, ~model.inside))
    members, others = members[np.argsort(lots[members])], others[np.argsort(lots[others])]
    controls, rest = others[: len(others) // 2], others[len(others) // 2 :]
    for name, some in (("members", members), ("others", rest)):
        for size in sorted({min(SET_SIZE, len(some)), len(some)}):
            seed = int(digest("dataset inference", questions.base_seed, length=8), 16)
            found = kernels.dataset_inference(features[some[:size]], features[controls], seed)
            yield {
                "model_id": model.row["model_id"], "pictures": name, "suspects": size, "controls": len(controls),
                "tested_suspects": found.suspects, "tested_controls": found.controls, "p_value": found.p_value,
                "statistic": found.statistic, "difference": found.difference, "reason": found.reason,
            }  # fmt: skip


def exposures_of(model: Signals) -> Iterator[dict[str, Any]]:
    """Rows of ``exposures``."""
    if "canaries" not in model.content:
        return
    pool = model.content["pool_loss"]
    pool = pool[np.isfinite(pool)]
    found = kernels.exposure(model.content["canary_loss"], pool)
    names = model.content["canaries"].tolist()
    for name, copies, loss, bits in zip(
        names, model.content["copies"].tolist(), model.content["canary_loss"].tolist(), found.bits.tolist(), strict=True
    ):
        known = bool(np.isfinite(bits))
        yield {
            "model_id": model.row["model_id"], "sample_id": name, "copies": copies, "loss": loss if known else None,
            "rank": 2 ** (found.maximum - bits) if known else None, "pool": len(pool) + 1,
            "exposure": bits if known else None, "maximum": found.maximum,
        }  # fmt: skip
