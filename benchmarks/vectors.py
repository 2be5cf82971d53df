"""The two sets of vectors that near-duplicate search is measured on: random directions, and real pictures grown to size."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from transforms.models.clip import ClipModel
from transforms.store.lake import Lake, Manifest, snapshot_id

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "demo" / "models" / "clip"
SHARED = Path(os.environ.get("EIDETIC_SHARED", ROOT.parent / "shared"))
PHOTOGRAPHS = SHARED / "data" / "cifar10_train.parquet"

DIMENSIONS = 512
PICTURES = 20_000
"""Real pictures that the second set is grown from."""

ROWS_PER_PART = 10_000


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def group_sizes(n: int, largest: int, random: np.random.Generator) -> np.ndarray:
    """Heavy-tailed sizes of groups that add up to ``n``: most are 1 or 2, the largest ``largest``."""
    sizes = np.minimum(largest, random.pareto(1.6, n) + 1).astype(np.int64)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), n)) + 1]
    sizes[-1] -= sizes.sum() - n
    return sizes


def random_directions(n: int, seed: int = 0) -> np.ndarray:
    """(n, 512) float32: groups around random directions; two of a group are at a cosine of 0.90 to 0.999, other for each."""
    random = np.random.default_rng(seed)
    sizes = group_sizes(n, 1000, random)
    label = np.repeat(np.arange(len(sizes)), sizes)[random.permutation(n)]
    cosine = random.uniform(0.90, 0.999, len(sizes)).astype(np.float32)
    centres = unit(random.standard_normal((len(sizes), DIMENSIONS), np.float32))
    vectors = np.empty((n, DIMENSIONS), np.float32)
    for start in range(0, n, 1 << 15):
        mine = label[start : start + (1 << 15)]
        noise = unit(random.standard_normal((len(mine), DIMENSIONS), np.float32))
        inside = cosine[mine][:, None]
        vectors[start : start + len(mine)] = unit(np.sqrt(inside) * centres[mine] + np.sqrt(1 - inside) * noise)
    return vectors


def real_pictures() -> np.ndarray:
    """(PICTURES, 128) float32: photographs under the embedded CLIP."""
    encoder = ClipModel(str(CLIP), batch_size=256).load()
    contents = pq.read_table(PHOTOGRAPHS, columns=["jpeg"])["jpeg"].slice(0, PICTURES)
    prepared = (encoder.prepare(Image.open(io.BytesIO(content.as_py())).convert("RGB")) for content in contents)
    found = []
    while batch := [picture for picture, _ in zip(prepared, range(2048), strict=False)]:
        found.append(encoder.encode_prepared(batch))
    return np.concatenate(found)


def grown(pictures: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """(n, 512) float32: each picture many times, heavy-tailed, moved in directions in which real pictures differ.

    The embedded CLIP's 128 numbers are turned into 512 by a random rotation, with a little noise in all of them.
    """
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.standard_normal((DIMENSIONS, pictures.shape[1])))[0].T.astype(np.float32)
    sizes = group_sizes(n, 300, random)
    label = np.repeat(np.arange(len(sizes)) % len(pictures), sizes)
    order = random.permutation(n)
    vectors = np.empty((n, DIMENSIONS), np.float32)
    for start in range(0, n, 1 << 15):
        mine = pictures[label[start : start + (1 << 15)]]
        moved = pictures[random.integers(0, len(pictures), len(mine))] - pictures[random.integers(0, len(pictures), len(mine))]
        moved -= (moved * mine).sum(axis=1, keepdims=True) * mine
        cosine = random.uniform(0.95, 0.9999, (len(mine), 1)).astype(np.float32)
        made = cosine * mine + np.sqrt(1 - cosine**2) * unit(moved + 1e-9)
        noise = random.standard_normal((len(mine), DIMENSIONS), np.float32) * (0.02 / DIMENSIONS**0.5)
        vectors[order[start : start + len(mine)]] = unit(made @ rotation + noise)
    return vectors


def threshold_for(vectors: np.ndarray, pairs: float, seed: int = 0) -> float:
    """The lowest cosine, to 0.001, over which a vector has at most so many others on average."""
    some = np.random.default_rng(seed).permutation(len(vectors))[:500]
    cosine = np.sort((vectors[some] @ vectors.T).ravel())
    # The vectors themselves are the first 500.
    return float(np.ceil(1000 * cosine[-int(500 * (pairs + 1))]) / 1000)


def write_lake(root: str, vectors: np.ndarray) -> tuple[Lake, Manifest]:
    """A lake whose newest ``embeddings`` are these vectors."""
    lake = Lake(root)
    lake.create()
    snapshot = snapshot_id("embed", {"vectors": len(vectors)}, {"ingest": "none"})
    for number, start in enumerate(range(0, len(vectors), ROWS_PER_PART)):
        part = np.ascontiguousarray(vectors[start : start + ROWS_PER_PART])
        offsets = pa.array(np.arange(len(part) + 1) * part.shape[1], pa.int32())
        columns = {
            "sample_id": pa.array([f"{row:032x}" for row in range(start, start + len(part))]),
            "role": pa.array(["training"] * len(part)),
            **{name: pa.array(["made"] * len(part)) for name in ("model", "pretrained", "preprocessing")},
            "vector": pa.ListArray.from_arrays(offsets, pa.array(part.ravel())),
            "thumbnail": pa.nulls(len(part), pa.binary()),
            **{name: pa.nulls(len(part), pa.float32()) for name in ("caption_cosine", "other_caption_cosine")},
            "status": pa.array(["success"] * len(part)),
            "reason": pa.nulls(len(part), pa.string()),
        }
        lake.write("embeddings", snapshot, number, pa.table(columns))
    return lake, lake.complete("embed", snapshot, {"vectors": len(vectors)}, {"ingest": "none"})
