"""Membership inference (paper, section 5.2): tells by a model's answers which pictures it was trained on.

reads   models, model_members; the models of LAKE/weights; images
writes  losses; membership_scores: one row a picture, model and attack, higher = member; dataset_inference: whether a set was
        trained on, as a p-value; exposures of canaries; membership_attacks: one row a model

Each model is asked about its members and about as many others: where they were drawn of a larger pool, about all of it. The
models of a cohort (all axes alike but split, side and seed) are each other's shadows: LiRA and RMIA take three of them at
least, with different pictures. The timestep is chosen on other models than the one that is attacked.

With --model it is asked about a model of one's own instead, in pixels, and pictures of which membership isn't known: scores are
printed, each beside those of the lake's controls, and a verdict on all of them; the lake stays as it is.

  eidetic infer --lake lake --draws 20
  eidetic infer --lake lake --model mine/ --images portraits/ --shadows 1f0c2b9a7d3e4f56
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from pipelines.device import DeviceOptions
from pipelines.execution import Execution, Progress, say
from pipelines.extract import in_parts, trained
from pipelines.options import Options, Parsed, option, parameters
from pipelines.stages import Planned, Stage, alone_with
from pipelines.train import build, ready_pictures
from transforms.errors import UserError
from transforms.store.files import delete, list_files
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage

ATTACKS = ("loss", "secmi", "pia", "pian", "sima", "discriminator", "lira_online", "lira_offline", "rmia")
"""The names of attacks/shadows.py's MEMBERSHIP_ATTACKS, which imports what a command line need not wait for."""


@dataclasses.dataclass(frozen=True)
class InferOptions(Options):
    """Membership inference: what models are asked, and by which attacks."""

    draws: int = option(4, "noises of each picture and timestep, over which the loss is averaged; the paper has 20", least=1)
    flips: bool = option(True, "average over the mirrored picture as well")
    timesteps: tuple[str, ...] = option(
        ("50", "100", "200"), "noise levels, of 1,000 mostly, that are asked for (default 50 100 200; the paper has 100)"
    )
    attacks: tuple[str, ...] = option((), f"of {', '.join(ATTACKS)} (default all)")
    membership_pictures: int = option(4096, "pictures that each model is asked about, at most", least=2)
    infer_seed: int = option(0, "of the noise: the same for all models")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.timesteps:
            raise UserError("--timesteps is empty, expected whole numbers such as 50 100 200")
        for one in self.timesteps:
            if not (one.isascii() and one.isdigit() and len(one) < 6):
                raise UserError(f"--timesteps has {one!r}, expected whole numbers from 0 on, such as 50 100 200")
        for one in self.attacks:
            if one not in ATTACKS:
                raise UserError(f"--attacks has {one!r}, expected some of {', '.join(ATTACKS)}")

    def steps(self) -> tuple[int, ...]:
        """The timesteps as numbers, each once, ascending."""
        return tuple(sorted({int(one) for one in self.timesteps}))

    def chosen_attacks(self) -> tuple[str, ...]:
        """The attacks in the registry's order."""
        return tuple(one for one in ATTACKS if not self.attacks or one in self.attacks)


@dataclasses.dataclass(frozen=True)
class OwnModelOptions(Options):
    """A model of one's own."""

    model: str | None = option(None, "folder of a model in pixels, as diffusers or train writes it")
    images: str | None = option(None, "folder of pictures, or file with ids of the lake's samples, one a line")
    shadows: str | None = option(None, "cohort of the latest train, whose models are LiRA's shadows; models.cohort has them")
    out: str | None = option(None, "also write all scores to this file: .parquet")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("images", "shadows", "out"):
            if self.model is None and getattr(self, name) is not None:
                raise UserError(f"--{name} is for a model of one's own; name its folder with --model")
        if self.model is not None and self.images is None:
            raise UserError("--model needs --images: a folder of pictures, or a file with ids of the lake's samples")
        if self.out is not None and not self.out.endswith(".parquet"):
            raise UserError(f"--out is {self.out!r}, expected a file that ends in .parquet")


def plan(lake: Lake, parsed: Parsed, train: str | None) -> Planned:
    """What ``infer`` would make of the models of ``train``."""
    assert train is not None, "it has an upstream"
    options: InferOptions = parsed[InferOptions]
    shaping = parameters(options) | {"timesteps": list(options.steps()), "attacks": list(options.chosen_attacks())}

    def models() -> int | None:
        done = lake.manifest("train", train)
        return None if done is None else done.rows["models"]

    return Planned("infer", shaping, {"train": train}, "models", models)


def questions_of(options: InferOptions) -> Any:
    """What models are asked, by the options."""
    from transforms.attacks.membership import SIGNALS, MembershipQuestions
    from transforms.attacks.shadows import MEMBERSHIP_ATTACKS

    # The loss is in ``losses`` whatever is asked of it.
    wanted = {"loss", *(MEMBERSHIP_ATTACKS[name].signal for name in options.chosen_attacks())}
    signals = tuple(name for name in SIGNALS if name in wanted)
    seed, most = options.infer_seed, options.membership_pictures
    return MembershipQuestions(options.draws, options.flips, options.steps(), signals, seed, most)


def groups_of(targets: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The models by cohort and step, each group in the order of their ids."""
    from transforms.attacks.shadows import group_of

    ordered = sorted(targets, key=lambda one: (group_of(one), one["model_id"]))
    return [(name, list(some)) for name, some in itertools.groupby(ordered, key=group_of)]


def work(execution: Execution, parsed: Parsed, planned: Planned, train: Manifest | None) -> dict[str, Any]:
    """Asks each model, and judges each cohort."""
    from transforms.attacks.membership import AskModels, InferencePlace
    from transforms.attacks.shadows import TABLES_OF_A_GROUP, JudgeGroups

    assert train is not None, "it has an upstream"
    lake, options, device = execution.lake, parsed[InferOptions], parsed[DeviceOptions]
    devices = device.devices()
    deduplicate, most = lineage(lake, train)["deduplicate"], train.parameters["pictures"]
    targets = trained(lake, train)
    groups = groups_of(targets)
    _check_shadows(groups, options)
    ready_pictures(execution, deduplicate, most, {one["pixels"] for one in targets})
    place = InferencePlace(lake, planned.snapshot_id, deduplicate, most, device.resolved())
    questions = questions_of(options)
    folder = lake.work("infer", planned.snapshot_id, "signals")
    progress = Progress("infer", lambda: len(list_files(folder, ".npz")), len(targets), "models")
    step = devices.step(lambda one: AskModels(dataclasses.replace(place, device=one), questions))
    execution.run(lambda pipeline: build(pipeline, targets, step, devices), progress)
    judge = JudgeGroups(place, questions, options.chosen_attacks())
    execution.run(lambda pipeline: build(pipeline, groups, judge))
    failed = 0
    for table in TABLES_OF_A_GROUP:
        for part, some in enumerate(in_parts([place.judged_path(table, name) for name, _ in groups])):
            lake.write(table, planned.snapshot_id, part, some)
            if table == "membership_attacks":
                failed += some["status"].to_pylist().count("failed")
    if failed:
        say(f"infer        {failed:,} of {len(targets):,} models said nothing; membership_attacks.reason says why")
    return {"models": len(targets), "failed": failed, "groups": len(groups)}


def _check_shadows(groups: Sequence[tuple[str, list[dict[str, Any]]]], options: InferOptions) -> None:
    """UserError where attacks with shadow models alone are asked for, and no cohort has enough of them."""
    from transforms.attacks.shadows import FEWEST_SHADOWS, MEMBERSHIP_ATTACKS

    if not all(MEMBERSHIP_ATTACKS[name].shadowed for name in options.chosen_attacks()):
        return
    largest = max(
        (len({(one["side"], one["split"]) for one in some if (one["pool"] or 0) > one["images"]}) for _, some in groups),
        default=0,
    )
    if largest <= FEWEST_SHADOWS:
        raise UserError(
            f"--attacks {' '.join(options.chosen_attacks())} take shadow models, and no cohort has more than {largest} with "
            f"different pictures of one pool, expected {FEWEST_SHADOWS + 1} or more; train more splits, with pool over images"
        )


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    delete(execution.lake.work("infer", manifest.snapshot_id))


STAGE = Stage(
    name="infer",
    description=__doc__,
    upstream="train",
    options=(InferOptions, DeviceOptions),
    alone=(OwnModelOptions,),
    plan=plan,
    work=work,
    finish=finish,
)


def main(argv: Sequence[str]) -> None:
    """The verb: the stage, or with --model what is asked of that model."""
    execution, parsed = STAGE.parse(argv)
    own: OwnModelOptions = parsed[OwnModelOptions]
    if own.model is None:
        with alone_with(parsed, STAGE.name):
            STAGE.run(execution, parsed)
        return
    from pipelines import own_model

    rows, verdict = own_model.run(execution.lake, parsed[InferOptions], own, parsed[DeviceOptions].resolved())
    if own.out is not None:
        own_model.write(own.out, rows)
    print(own_model.told(rows, verdict))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
