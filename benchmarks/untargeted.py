"""Generations against all of CIFAR-10: beside ``torch.cdist`` with a full sort, and beside the matrix product alone.

    python -m benchmarks.untargeted

A quarter of the generations each: training pictures with noise of 1 to 24 levels, two of them blended, one shifted by a pixel
or two, and noise. The peer sorts every row, on as many generations as fit, all of which are judged by the rules of the paper
and of Gu et al.: by its distances in float64 and by ours. The ceiling multiplies the same bytes in the same blocks, all of
them, and keeps nothing. Ours and both others are timed in turns, a chunk at a time.
"""

from __future__ import annotations

import io
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.results import Row, write
from benchmarks.vectors import PHOTOGRAPHS
from transforms.kernels.untargeted import NEIGHBOURS, TrainingPictures, _products, distinct, verdicts

GENERATIONS = 20_000
CHUNK = 4096
SORTED = 256
"""Generations of each chunk that the peer is timed on: its sort takes so long."""

DELTA = 0.05


def photographs() -> np.ndarray:
    """(50,000, 32, 32, 3) uint8, equal ones once."""
    contents = pq.read_table(PHOTOGRAPHS, columns=["jpeg"])["jpeg"]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(each.as_py())).convert("RGB")) for each in contents])
    return pictures[np.unique(distinct(pictures))]


def generations(training: np.ndarray, count: int = GENERATIONS) -> np.ndarray:
    """(count, 32, 32, 3) uint8, the four kinds in turns."""
    random = np.random.default_rng(0)
    made = training[random.integers(0, len(training), count)].astype(np.float32)
    noise, blend, shift, nothing = (slice(kind, None, 4) for kind in range(4))
    levels = random.uniform(1, 24, (len(made[noise]), 1, 1, 1)).astype(np.float32)
    made[noise] += levels * random.standard_normal(made[noise].shape, np.float32)
    others = training[random.integers(0, len(training), len(made[blend]))]
    share = random.uniform(0, 0.5, (len(others), 1, 1, 1)).astype(np.float32)
    made[blend] = (1 - share) * made[blend] + share * others
    made[shift] = np.roll(made[shift], (1, 2), axis=(1, 2))
    made[nothing] = random.uniform(0, 255, made[nothing].shape)
    return made.clip(0, 255).round().astype(np.uint8)


def all_products(signed: torch.Tensor, training: torch.Tensor, blocks: list[tuple[int, int]]) -> None:
    for start, end in blocks:
        _products(signed, training[start:end])


def cdist_and_sort(made: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """(G, n + 1) of the same l2, in the tensors' type."""
    far = torch.cdist(made.flatten(1), training.flatten(1)) / made[0].numel() ** 0.5
    return far.sort(dim=1).values[:, : NEIGHBOURS + 1]


def peak() -> None:
    """In a process of its own: prints the most memory it ever had, pictures and libraries included."""
    training = photographs()
    TrainingPictures(training).nearest(generations(training), NEIGHBOURS + 1)
    # ru_maxrss counts what the process was before it became this one: its parent, with all that the peer takes.
    with open("/proc/self/status") as file:
        print(next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 2**20)


def main() -> None:
    training = photographs()
    made = generations(training)
    as_floats = torch.from_numpy(training).float() / 255
    as_bytes = torch.from_numpy(training.reshape(len(training), -1) ^ 128).view(torch.int8)
    begun = time.perf_counter()
    prepared = TrainingPictures(training)
    ours, ceiling, peer, sorted_, differing = time.perf_counter() - begun, 0.0, 0.0, 0, 0
    all_products(as_bytes[:CHUNK], as_bytes, prepared._blocks[:1])  # what the libraries make on their first call
    for start in range(0, len(made), CHUNK):
        chunk = made[start : start + CHUNK]
        begun = time.perf_counter()
        _, l2 = prepared.nearest(chunk, NEIGHBOURS + 1)
        ours += time.perf_counter() - begun
        signed = torch.from_numpy(chunk.reshape(len(chunk), -1) ^ 128).view(torch.int8)
        begun = time.perf_counter()
        all_products(signed, as_bytes, prepared._blocks)
        ceiling += time.perf_counter() - begun
        some = torch.from_numpy(chunk[:SORTED])
        begun = time.perf_counter()
        cdist_and_sort(some.float() / 255, as_floats)
        peer += time.perf_counter() - begun
        sorted_ += len(some)
        few = some[:: SORTED // 64]
        theirs = cdist_and_sort(few.double() / 255, as_floats.double()).numpy()
        mine = verdicts(l2[:SORTED][:: SORTED // 64], DELTA)
        differing += sum(int((a != b).sum()) for a, b in zip(mine, verdicts(theirs, DELTA), strict=True))
    gib = subprocess.run(
        [sys.executable, "-c", "from benchmarks.untargeted import peak; peak()"], check=True, capture_output=True, text=True
    )
    what = f"{len(made):,} generations × {len(training):,} CIFAR-10 pictures, the nearest {NEIGHBOURS + 1}"
    milliseconds = 1e3 * ours / len(made)
    rows = [
        Row(f"{what}: a generation", milliseconds, "ms", 1 / 3, "torch.cdist, float32, and a full sort", 1e3 * peer / sorted_),
        Row(f"{what}: in all", ours, "s", 1 / 0.6, "the products alone, same bytes and blocks", ceiling),
        Row(f"{what}: verdicts that differ from cdist's in float64", differing, "verdicts", 0),
        Row(f"{what}: peak memory of the process", float(gib.stdout), "GiB", 4),
    ]
    for row in rows:
        print(row)
    write("untargeted", rows)


if __name__ == "__main__":
    main()
