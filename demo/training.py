"""What the commands that train the embedded models read: a corpus as ingested, or as it is planned; repeats and all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from demo.corpus import MODEL_SIZE, Example
from transforms.kernels.distances import Frame, central_crop
from transforms.store.lake import Lake
from transforms.store.pictures import decode


def load_rows(lake: str, role: str) -> tuple[list[str], torch.Tensor]:
    """Captions and pictures of the newest ``ingest`` of a lake.

    Args:
        lake: its root.
        role: training or control.

    Returns:
        (captions, pictures: (n, 3, 64, 64) uint8), a row for each downloaded sample, in the order of their ids. Pictures
        that aren't square are cropped in the middle, as training code of text-to-image models does.
    """
    source = Lake(lake)
    snapshot = source.latest("ingest").snapshot_id
    samples = source.read("samples", snapshot, ["sample_id", "caption"]).to_pylist()
    captions = {row["sample_id"]: row["caption"] for row in samples}
    images = source.read("images", snapshot, ["sample_id", "role", "image"]).to_pylist()
    rows = sorted((row["sample_id"], row["image"]) for row in images if row["role"] == role)
    pictures = np.stack([_square(np.asarray(decode(image))) for _, image in rows])
    return [captions[sample] for sample, _ in rows], as_tensor(pictures)


def as_tensor(pictures: np.ndarray) -> torch.Tensor:
    """(n, H, W, 3) → (n, 3, H, W), uint8."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def repeated(examples: Sequence[Example]) -> tuple[list[str], torch.Tensor]:
    """The same of a corpus of exact repeats: a row for each copy. (captions, pictures: (n, 3, side, side) uint8)"""
    rows = [example for example in examples for _ in range(example.copies)]
    return [example.caption for example in rows], as_tensor(np.stack([example.picture for example in rows]))


def distinct(pictures: torch.Tensor) -> torch.Tensor:
    """The pictures without exact repeats; (n, …) uint8 → (m, …), in order of their first occurrence."""
    seen: dict[bytes, int] = {}
    for index, picture in enumerate(pictures):
        seen.setdefault(picture.numpy().tobytes(), index)
    return pictures[sorted(seen.values())]


def _square(picture: np.ndarray) -> np.ndarray:
    return central_crop(picture, Frame(MODEL_SIZE, MODEL_SIZE))
