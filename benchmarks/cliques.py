"""The distances between 500 generations of one prompt: beside a loop in numpy, and beside what this machine can multiply.

    python -m benchmarks.cliques

The pictures are noise, and every second one is the one before it at a planted distance: none, 0.001, or a level in half or in
all of its values. The ceiling is torch's float32 product (n, k) · (k, n) of the same pictures, all n² entries of it. All are
measured in turns, and the best of each counts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.results import Row, write
from transforms.kernels.distances import pairwise_tiled_l2

PICTURES = 500
SIDE = 256
ROUNDS = 9
PAIRS = 500
"""Pairs that the loop in numpy is timed on; all 124,750 would take more than a minute a round."""

NEAR = 0.001
"""A planted distance that the float32 expansion over dot products loses."""

PEAK = """
import torch
from benchmarks.cliques import generations
from transforms.kernels.distances import pairwise_tiled_l2
few = generations(40, 64)
pictures = torch.from_numpy(generations())
pairwise_tiled_l2(torch.from_numpy(few).permute(0, 3, 1, 2))  # what the libraries take on their first call
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = peak()
pairwise_tiled_l2(pictures.permute(0, 3, 1, 2))
print(peak() - before, pictures.nbytes)
"""
"""Run in a process of its own: bytes of memory that one call adds at its peak, and those of the pictures."""


def generations(n: int = PICTURES, side: int = SIDE) -> np.ndarray:
    """(n, side, side, 3) uint8; every second picture is the one before it with one level more or less in some places."""
    random = np.random.default_rng(0)
    pictures = random.integers(1, 255, (n, side, side, 3), np.uint8)
    # A share s of values that are one level off gives sqrt(s) / 255; 0.065 gives 0.001.
    for index in range(1, n, 2):
        share = (0.0, (NEAR * 255) ** 2, 0.5, 1.0)[index // 2 % 4]
        step = np.where(random.random((side, side, 3)) < share, 1, 0).astype(np.uint8)
        pictures[index] = pictures[index - 1] + step
    return pictures


def in_numpy(a: np.ndarray, b: np.ndarray) -> float:
    """One pair as one would write it: (height, width, 3) of any floating type → tiled l2, in that type."""
    tile = a.shape[0] // 4
    squared = np.square(a - b).reshape(4, tile, 4, tile, 3)
    return float(np.sqrt(squared.mean(axis=(1, 3, 4)).max()))


def best_of(rounds: int, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each call, in turns, the least of all rounds."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - begun)
    return best


def extra_memory() -> tuple[int, int]:
    run = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    extra, held = run.stdout.split()
    return int(extra), int(held)


def main() -> None:
    pictures = generations()
    floats = pictures.astype(np.float32) / np.float32(255)
    rows = torch.from_numpy(floats).flatten(1)
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    random = np.random.default_rng(1)
    pairs = [tuple(random.choice(PICTURES, 2, replace=False)) for _ in range(PAIRS)]
    seconds = best_of(
        ROUNDS,
        {
            "loop": lambda: [in_numpy(floats[a], floats[b]) for a, b in pairs],
            "ceiling": lambda: rows @ rows.T,
            "ours": lambda: pairwise_tiled_l2(tensor),
        },
    )
    matrix = pairwise_tiled_l2(tensor).numpy()
    planted = [(index - 1, index) for index in range(1, PICTURES, 2)]
    exact = {(a, b): in_numpy(pictures[a] / 255, pictures[b] / 255) for a, b in [*pairs, *planted]}
    near = [pair for pair, distance in exact.items() if abs(distance - NEAR) < NEAR / 4]
    loop = seconds["loop"] * (PICTURES * (PICTURES - 1) / 2) / PAIRS
    what = f"tiled l2 of {PICTURES} pictures of {SIDE} × {SIDE}"
    worst = max(abs(float(matrix[pair]) - distance) for pair, distance in exact.items())
    worst_near = max(abs(float(matrix[pair]) - exact[pair]) for pair in near)
    extra, held = extra_memory()
    write("cliques", [
        Row(
            f"{what}: time (the loop's from {PAIRS:,} of the 124,750 pairs)",
            seconds["ours"], "s", 1 / 25, "a loop over pairs in numpy, float32", loop,
        ),
        Row(f"{what}: time", seconds["ours"], "s", 1 / 0.6, "float32 product (n, k)·(k, n) in torch", seconds["ceiling"]),
        Row(f"{what}: memory beyond the pictures", extra / 1e6, "MB", 0.25, "the pictures", held / 1e6),
        Row(f"{what}: largest error of {len(exact):,} pairs, beside float64", worst * 1e6, "millionths", 10),
        Row(f"{what}: largest error of {len(near)} pairs {NEAR} apart", worst_near * 1e6, "millionths", 10),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
