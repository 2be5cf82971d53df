"""Planted truth: a model of 64 photographs, of which 8 stand sixteen times: do those come back, and none that it never saw?

    python -m benchmarks.planted

Three models, each of other photographs of CIFAR-10 (8 × 8 pixels), are trained and asked for 2,048 pictures each. By Gu's rule
(nearer to its nearest training picture than a third of the distance to the second) a picture counts as given back; beside that
as many photographs are held against it that no model saw: what is called of those is false.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.results import Row, write
from benchmarks.untargeted import photographs
from transforms.kernels.untargeted import TrainingPictures, adaptive_l2, nearest_ratio
from transforms.models.configuration import Configuration, TrainingSet
from transforms.models.training import begin
from transforms.models.unconditional import as_pictures, load

IMAGES, COPIED, COPIES = 64, 8, 16
SEEDS = 3
STEPS = 4000
GENERATIONS, SAMPLING_STEPS, BATCH = 2048, 50, 256
RATIO, ALPHA, DELTA, NEIGHBOURS = 1 / 3, 0.5, 0.05, 50


def small(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Photographs to train on and others, (IMAGES, 8, 8, 3) uint8 each: means of blocks."""
    chosen = photographs()[np.random.default_rng(seed).permutation(50_000)[: 2 * IMAGES]].astype(np.float64)
    pictures = chosen.reshape(-1, 8, 4, 8, 4, 3).mean(axis=(2, 4)).round().astype(np.uint8)
    return pictures[:IMAGES], pictures[IMAGES:]


def called(pictures: np.ndarray, against: np.ndarray) -> dict[str, set[int]]:
    """Rule → which of ``against`` some picture is called a copy of."""
    index, l2 = TrainingPictures(against).nearest(pictures, NEIGHBOURS + 1)
    hits = {"ratio": nearest_ratio(l2) < RATIO, "adaptive l2": adaptive_l2(l2, ALPHA) <= 1, "l2": l2[:, 0] <= DELTA}
    return {rule: set(index[hit, 0].tolist()) for rule, hit in hits.items()}


def main() -> None:
    torch.set_num_threads(1)
    found, false = [], []
    for seed in range(SEEDS):
        mine, others = small(seed)
        copies = np.where(np.arange(IMAGES) < COPIED, COPIES, 1)
        configuration = Configuration(
            images=IMAGES, copied_images=COPIED, copies=COPIES, steps=STEPS, batch_size=16, learning_rate=2e-3, seed=seed
        )
        training, begun = begin(configuration, TrainingSet(mine, copies), "cpu"), time.perf_counter()
        while training.step < STEPS:
            training.advance()
        model = load(training.files().get, "here", "cpu")
        some = [range(at, at + BATCH) for at in range(0, GENERATIONS, BATCH)]
        made = as_pictures(np.concatenate([model.make(seeds, None, SAMPLING_STEPS) for seeds in some]))
        of_mine, of_others = called(made, mine), called(made, others)
        print(
            f"seed {seed}, {time.perf_counter() - begun:.0f} s: "
            + "; ".join(
                f"{rule}: {len([one for one in of_mine[rule] if one < COPIED])} of {COPIED} copied, "
                f"{len([one for one in of_mine[rule] if one >= COPIED])} of {IMAGES - COPIED} others, "
                f"{len(of_others[rule])} never seen"
                for rule in of_mine
            ),
            flush=True,
        )
        found.append(len([one for one in of_mine["ratio"] if one < COPIED]))
        false.append(len(of_others["ratio"]))
    what = (
        f"{SEEDS} models of {IMAGES} photographs, {COPIED} of them {COPIES} times; {GENERATIONS:,} pictures each, ratio rule: "
    )
    rows = [
        Row(what + "of the copied, those that did not come back", COPIED * SEEDS - sum(found), "pictures", 0),
        Row(what + "pictures that were called and never seen", sum(false), "pictures", 0),
    ]
    write("planted", rows)


if __name__ == "__main__":
    main()
