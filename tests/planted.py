"""What several tests plant: a tiny open_clip model, and lakes with pictures or vectors in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from transforms.store.lake import Lake, Manifest, snapshot_id
from transforms.store.pictures import encode_png

TINY_CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "shortest"},
}


def write_tiny_clip(folder: Path, seed: int = 0) -> str:
    """A random open_clip model in open_clip's own format; returns the folder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(TINY_CLIP))
    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**TINY_CLIP["model_cfg"])
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return str(folder)


def picture(seed: int, width: int = 40, height: int = 32) -> np.ndarray:
    """(height, width, 3) uint8: coarse random patches, so that pictures differ in more than noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return coarse[rows][:, columns]


def write_images(lake: Lake, parts: list[list[tuple[str, str, bytes]]], size: tuple[int, int] = (40, 32)) -> Manifest:
    """A complete ingest whose ``images`` hold these (sample_id, role, encoded picture), of this size, part by part."""
    lake.create()
    snapshot = snapshot_id("ingest", {"planted": True}, {})
    for number, part in enumerate(parts):
        rows = [
            {
                "sample_id": sample,
                "role": role,
                "image": content,
                "encoding": "png",
                "width": size[0],
                "height": size[1],
                "image_size": min(size),
                "resize_mode": "keep_ratio",
            }
            for sample, role, content in part
        ]
        lake.write("images", snapshot, number, rows)
    return lake.complete("ingest", snapshot, {"planted": True}, {})


def planted_pictures(count: int, role: str = "training", first: int = 0) -> list[tuple[str, str, bytes]]:
    """(sample_id, role, PNG) of ``count`` different pictures; their ids don't sort in their order."""
    numbers = range(first, first + count)
    return [(f"{(7919 * number) % 10007:05d}", role, encode_png(picture(number))) for number in numbers]


def embedding_rows(ids: list[str], vectors: np.ndarray, **columns: str) -> list[dict]:
    """Rows of ``embeddings``; ``columns`` replace what they say by default."""
    shared = {
        "role": "training",
        "model": "planted",
        "pretrained": "none",
        "preprocessing": "none",
        "thumbnail": None,
        "caption_cosine": None,
        "other_caption_cosine": None,
        "status": "success",
        "reason": None,
        **columns,
    }
    pairs = zip(ids, vectors.tolist(), strict=True)
    return [{"sample_id": sample, "vector": vector, **shared} for sample, vector in pairs]


def write_embeddings(lake: Lake, parts: list[list[dict] | pa.Table], ingest: str = "none") -> Manifest:
    """A complete embed with these parts, of the ingest with this id."""
    lake.create()
    snapshot = snapshot_id("embed", {"planted": True}, {"ingest": ingest})
    for number, rows in enumerate(parts):
        lake.write("embeddings", snapshot, number, rows)
    return lake.complete("embed", snapshot, {"planted": True}, {"ingest": ingest})


def clusters(sizes: list[int], dimensions: int = 32, noise: float = 0.02, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (n, d) float32 around random centres, and the number of its centre for each, in random order."""
    random = np.random.default_rng(seed)
    label = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = random.normal(size=(len(sizes), dimensions))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = centres[label] + noise * random.normal(size=(len(label), dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), label
