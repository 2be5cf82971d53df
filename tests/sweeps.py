"""A sweep of planted truth, made in a second: models that nobody trained, and generations that nobody made.

What a model gives back is planted by rule: ``Planted.calls`` says of each of its generations which picture it is nearest to and
what the three rules say of that, so a test of marts, report or verb knows the answer beforehand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.fakes import fake_lake
from tests.planted import picture
from transforms.errors import UserError
from transforms.models.configuration import Configuration
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest, snapshot_id
from transforms.store.pictures import encode_png, thumbnail
from transforms.store.schema import TABLES
from transforms.training import members, population
from transforms.training.runs import model_id

MOST = 50_000
RULES = ("l2", "adaptive_l2", "ratio")


class Call(NamedTuple):
    """What a generation is nearest to: the number of a member (or control) and the rules that call it."""

    number: int
    rules: tuple[str, ...] = RULES


@dataclasses.dataclass
class Planted:
    """One model.

    Attributes:
        configuration: its axes.
        step: at which it was kept, and whether that is the last.
        calls: a generation each: the member that it is nearest to; None for one that failed.
        control_calls: likewise of the controls; as many.
        quality: frechet, cmmd, precision, recall.
        drawn: (number of the generation, its members) → the picture, (H, W, 3) uint8, that is stored; a grey one by default.
    """

    configuration: Configuration
    calls: Sequence[Call | None]
    control_calls: Sequence[Call | None] = ()
    step: int = 100
    last: bool = True
    experiments: tuple[str, ...] = ("one",)
    quality: tuple[float | None, ...] = (1.0, 10.0, 0.5, 0.5)
    loss: float = 0.1
    status: str = "success"
    drawn: Callable[[int, np.ndarray], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class FakeSweep:
    """A lake with a sweep. ``ids``: of each model in their order; ``members``: run_id → ids of its pictures."""

    lake: Lake
    train: Manifest
    extract: Manifest
    ids: list[str]
    members: dict[str, list[str]]

    @property
    def taken(self) -> dict[str, Manifest]:
        return {"train": self.train, "extract": self.extract}


def nothing(generations: int) -> list[Call | None]:
    """Generations that are nearest to their first picture, and that no rule calls."""
    return [Call(0, ()) for _ in range(generations)]


def returns(numbers: Sequence[int], generations: int, rules: tuple[str, ...] = RULES) -> list[Call | None]:
    """So many generations, of which the first ones give back these pictures."""
    return [*(Call(number, rules) for number in numbers), *nothing(generations - len(numbers))]


def fake_sweep(root: Path | str, models: Sequence[Planted], pictures: int = 40) -> FakeSweep:
    """Writes the tables of ``train`` and ``extract`` and completes both."""
    fake = fake_lake(
        root, sizes=[1] * pictures, controls=0, max_prompts=1, images_per_prompt=1, draw=lambda number: picture(number, 16, 16)
    )
    lake, groups = fake.lake, fake.deduplicate
    for pixels in {one.configuration.pixels for one in models}:
        for chunk in range(population.chunks_of(population.find(lake, groups, MOST))):
            list(population.ShrinkPictures(lake, groups, MOST).process((pixels, chunk)))
    blank = {table: dict.fromkeys(TABLES[table].schema.names) for table in
             ("models", "model_members", "untargeted_generations", "untargeted_attacks")}  # fmt: skip
    rows: dict[str, list[dict[str, Any]]] = {table: [] for table in blank}
    ids: list[str] = []
    of_run: dict[str, list[str]] = {}
    for one in models:
        configuration = one.configuration
        known = population.read(lake, groups, MOST, configuration.pixels)
        try:
            drawn = members.draw(configuration, known)
            run_id = drawn.run_id(configuration)
        except UserError:
            run_id = digest("run", dataclasses.asdict(configuration))[:20]
        name = model_id(run_id, one.step)
        ids.append(name)
        trained = one.status == "success"
        rows["models"].append(blank["models"] | dataclasses.asdict(configuration) | {
            "model_id": name, "run_id": run_id, "cohort": configuration.cohort(), "experiments": list(one.experiments),
            "total": configuration.images, "step": one.step, "last": one.last, "passes": one.step / 10, "seconds": 1.0,
            "parameters": 100, "loss": one.loss, "status": one.status, "reason": None if trained else "planted",
        })  # fmt: skip
        if not trained:
            continue
        if run_id not in of_run:
            of_run[run_id] = drawn.sample_ids
            rows["model_members"] += [
                {"run_id": run_id, "sample_id": sample, "kind": kind, "copies": int(copies), "class": None}
                for sample, kind, copies in zip(drawn.sample_ids, drawn.kinds, drawn.data.copies, strict=True)
            ]
        others = known.sample_ids[
            members.controls(configuration.draw, known, drawn.rows[drawn.rows >= 0], len(drawn.sample_ids))
        ]
        controls = list(one.control_calls) or nothing(len(one.calls))
        for number, (call, control) in enumerate(zip(one.calls, controls, strict=True)):
            row = blank["untargeted_generations"] | {
                "model_id": name, "sample_index": number, "seed": number, "status": "success" if call else "failed",
                **{f"{prefix}by_{rule}": False for prefix in ("", "control_") for rule in RULES},
            }  # fmt: skip
            for prefix, said, near in (("", call, drawn.sample_ids), ("control_", control, others)):
                if call is not None and said is not None and len(near):
                    row |= {f"{prefix}sample_id": str(near[said.number]), f"{prefix}l2": 0.04 if said.rules else 0.3,
                            f"{prefix}second_l2": 0.4, f"{prefix}mean_l2": 0.5}  # fmt: skip
                    row |= {f"{prefix}by_{rule}": rule in said.rules for rule in RULES}
            if call is not None:
                shape = (configuration.pixels, configuration.pixels, 3)
                made = np.full(shape, 128, np.uint8) if one.drawn is None else one.drawn(number, drawn.data.pictures)
                row["thumbnail"] = thumbnail(made)
                if any(row[f"{prefix}by_{rule}"] for prefix in ("", "control_") for rule in RULES):
                    row["image"] = encode_png(made)
            rows["untargeted_generations"].append(row)
        failed = sum(call is None for call in one.calls)
        rows["untargeted_attacks"].append(blank["untargeted_attacks"] | {
            "model_id": name, "generations": len(one.calls), "failed": failed, "members": len(drawn.sample_ids),
            "controls": len(others), "delta": 0.05, "alpha": 0.5, "neighbours": 50, "ratio_limit": 1 / 3, "sampler": "ddim",
            "sampling_steps": 50, "seconds": 1.0,
            **dict(zip(("frechet", "cmmd", "precision", "recall"), one.quality, strict=True)),
            "quality_generations": len(one.calls), "quality_pictures": 16, "quality_features": "planted",
            "status": "success", "reason": None,
        })  # fmt: skip
    train = snapshot_id("train", {"pictures": MOST}, {"deduplicate": groups.snapshot_id})
    for table in ("models", "model_members"):
        lake.write(table, train, 0, rows[table])
    trained_ = lake.complete("train", train, {"pictures": MOST}, {"deduplicate": groups.snapshot_id})
    extract = snapshot_id("extract", {}, {"train": train})
    for table in ("untargeted_attacks", "untargeted_generations"):
        lake.write(table, extract, 0, rows[table])
    return FakeSweep(lake, trained_, lake.complete("extract", extract, {}, {"train": train}), ids, of_run)
