"""LiRA beside the loss threshold: members of small, overfitted models that are found at a false positive rate of 1%.

    python -m benchmarks.lira

Ten diffusion models of 8 × 8 pixels are trained, each on a random half of the same 208 photographs of CIFAR-10, and every one
is attacked with the other nine as its shadows; all are asked with the same noise. The timestep of each model is chosen on the
others. Rates are of all models' scores together, 1,040 of non-members; that images repeat is in the intervals.

The paper has 71% at 1% for 16 models of 25,000 pictures, and says that averaging over draws and flips takes 7% to 44% at 0.1%.
Its models are trained on mirrored pictures, and these are not: averaging over flips, which is printed, costs here.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.results import Row, write
from benchmarks.untargeted import photographs
from transforms.attacks.membership import MembershipQuestions, signals_of
from transforms.attacks.shadows import MEMBERSHIP_ATTACKS, AttackedGroup, Signals, View
from transforms.kernels.membership import area, resampled_true_positives, true_positives_at
from transforms.models.configuration import Configuration, TrainingSet
from transforms.models.training import begin
from transforms.models.unconditional import load

MODELS = 10
POOL = 208
STEPS = 800
QUESTIONS = MembershipQuestions(10, True, (50, 100, 200), ("loss",), 0, POOL)


def pictures() -> np.ndarray:
    """(POOL, 8, 8, 3) uint8, the means of photographs' blocks."""
    some = photographs()[:: 50_000 // POOL][:POOL].astype(np.float64)
    return some.reshape(POOL, 8, 4, 8, 4, 3).mean(axis=(2, 4)).round().astype(np.uint8)


def attacked(pool: np.ndarray, split: int) -> Signals:
    """A model of a half of the pool, and what it says of all of it."""
    configuration = Configuration(images=POOL // 2, pool=POOL, split=split, steps=STEPS, learning_rate=2e-3, seed=split)
    inside = np.zeros(POOL, bool)
    inside[np.random.default_rng(split).permutation(POOL)[: POOL // 2]] = True
    training = begin(configuration, TrainingSet(pool[inside], np.ones(POOL // 2, np.int64), None, 0), "cpu")
    while training.step < STEPS:
        training.advance()
    model = load(training.files().get, "here", "cpu")
    content = signals_of(model, pool, [f"s{at}" for at in range(POOL)], None, QUESTIONS, ("loss",))
    row = {"model_id": f"m{split}", "split": split, "side": "in", "pool": POOL, "images": POOL // 2, "family": "diffusion"}
    none = content["loss"][..., :0]
    return Signals(row, {**content, "inside": inside, "others": none, "sample_ids": np.arange(POOL)})


def main() -> None:
    torch.set_num_threads(1)
    pool, begun = pictures(), time.perf_counter()
    group = AttackedGroup([attacked(pool, split) for split in range(MODELS)])
    print(f"{MODELS} models in {time.perf_counter() - begun:.0f} s")
    member, found = np.concatenate([one.inside for one in group.models]), {}
    for name in ("loss", "lira_online", "lira_offline"):
        attack = MEMBERSHIP_ATTACKS[name]
        for view in (View(1, False), View(1, True), View(QUESTIONS.draws, False), View(QUESTIONS.draws, True)):
            chosen = [group.chosen(attack, number) for number in range(MODELS)]
            scores = np.concatenate([group.scores(attack, at, step or 0, view) for at, step in enumerate(chosen)])
            known = np.isfinite(scores)
            whose = np.tile(np.arange(POOL), MODELS)
            rates = [true_positives_at(scores[known], member[known], rate).rate for rate in (0.01, 0.001)]
            ends = [resampled_true_positives(scores[known], member[known], whose[known], rate) for rate in (0.01, 0.001)]
            found[name, view] = rates[0]
            print(
                f"{name:13}{view.draws:3} draws{', flips' if view.flips else '       '}  area "
                f"{area(scores[known], member[known]):.3f}  "
                + "  ".join(
                    f"at {label} {rate:.3f} ({end[0]:.3f} to {end[1]:.3f})"
                    for label, rate, end in zip(("1%", "0.1%"), rates, ends, strict=True)
                )
                + f"  timesteps {sorted({QUESTIONS.timesteps[step or 0] for step in chosen})}, {int((~known).sum())} without"
            )
    full, single = View(QUESTIONS.draws, False), View(1, False)
    what = f"true positive rate at 1%, {MODELS} models of {POOL // 2} of {POOL} photographs, 8 pixels: "
    rows = [
        Row(what + "loss threshold", found["loss", full], "", 1 / 3, "LiRA online", found["lira_online", full]),
        Row(what + "LiRA of one draw", found["lira_online", single], "", 1, "LiRA of 10 draws", found["lira_online", full]),
    ]
    write("lira", rows)


if __name__ == "__main__":
    main()
