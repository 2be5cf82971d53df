"""Trains the small open_clip model of the embedded default, with open_clip's own loss.

    python -m demo.train_clip --lake LAKE --out demo/models/clip

Reads: the newest complete ``ingest`` of LAKE: pictures and captions of the role ``training``, repeats and all. Controls
are never trained on, and nothing here knows which rows were repeated.
Writes: ``open_clip_config.json`` and ``open_clip_model.safetensors`` (float16), which open_clip loads as
``local-dir:demo/models/clip``; and a checkpoint beside it while it runs.

Rows with one caption or one picture are a class; a batch holds one row each of 256 classes, so every other logo in it
is a negative; most of it are the neighbours, under the model itself, of 64 classes drawn at random. Pictures are
cropped, shifted, blurred and encoded again a little, so that near copies land together.
The seed is fixed; the settings are in ``SETTINGS`` and ``model_config``. Takes about 8 minutes of one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from transforms.store.lake import Lake
from transforms.store.pictures import decode

SIZE = 64
"""Side of the pictures that the model sees, in pixels."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the committed model was trained."""

    steps: int = 600
    schedule_steps: int = 800  # the learning rate falls along a cosine of this length, which is not walked to its end
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 60
    largest_logit_scale: float = 20.0
    average_decay: float = 0.98
    neighbours: int = 3
    look_for_neighbours_every: int = 50
    seed: int = 20260


SETTINGS = Settings()


def model_config() -> dict:
    """``open_clip_config.json``: a small ResNet of CLIP's kind, a small text tower, the standard tokenizer."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
            # 49,408 tokens of width 48 are most of the model's bytes; brand names need no more.
            "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2},
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def load_training_rows(lake: Lake) -> tuple[list[Image.Image], list[str]]:
    """The training pictures of the newest complete ingest, as stored, and their captions, one per row."""
    snapshot = lake.latest("ingest").snapshot_id
    samples = lake.read("samples", snapshot, ["sample_id", "role", "caption"]).to_pylist()
    captions = {row["sample_id"]: row["caption"] or "" for row in samples if row["role"] == "training"}
    images = lake.read("images", snapshot, ["sample_id", "image"]).to_pylist()
    # By id: the order of the parts is the machine's business, the order of training is the seed's.
    images = sorted((row for row in images if row["sample_id"] in captions), key=lambda row: row["sample_id"])
    return [decode(row["image"]) for row in images], [captions[row["sample_id"]] for row in images]


def augment(pictures: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Small changes of the kind that the web makes.

    Args:
        pictures: (n, 3, SIZE, SIZE) float32 in 0 to 1.
        generator: where chance comes from.

    Returns:
        the same shape: cut by up to 8% at any side and cropped to a square again, shifted by up to a pixel, some
        blurred, some encoded as JPEG or WebP again.
    """
    n = len(pictures)
    cut = generator.uniform(0, 0.08, (n, 4)) * (generator.random((n, 4)) < 0.35)
    left, top, right, bottom = cut[:, 0], cut[:, 1], 1 - cut[:, 2], 1 - cut[:, 3]
    side = np.minimum(right - left, bottom - top)
    shift = generator.uniform(-1, 1, (2, n)) / SIZE * (generator.random(n) < 0.5)
    # grid_sample counts from -1 to 1; the centre square of what the cuts left is stretched over the picture.
    matrix = np.zeros((n, 2, 3), dtype=np.float32)
    matrix[:, 0, 0] = matrix[:, 1, 1] = side
    matrix[:, 0, 2] = (left + right) - 1 + 2 * shift[0]
    matrix[:, 1, 2] = (top + bottom) - 1 + 2 * shift[1]
    grid = functional.affine_grid(torch.from_numpy(matrix), [n, 3, SIZE, SIZE], align_corners=False)
    changed = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)

    blur = torch.from_numpy((generator.random(n) < 0.25) * generator.uniform(0.2, 0.8, n)).float()[:, None, None, None]
    padded = functional.pad(changed, (1, 1, 1, 1), mode="replicate")
    changed = (1 - blur) * changed + blur * functional.avg_pool2d(padded, 3, stride=1)
    for i in np.flatnonzero(generator.random(n) < 0.25):
        changed[i] = _encode_again(changed[i], generator)
    return changed.clamp(0, 1)


def _encode_again(picture: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    buffer = io.BytesIO()
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    form = ("JPEG", "WEBP")[int(generator.integers(2))]
    Image.fromarray(pixels).save(buffer, form, quality=int(generator.integers(50, 96)))
    return torch.from_numpy(np.array(Image.open(buffer).convert("RGB"))).permute(2, 0, 1).float() / 255


def rows_by_class(pictures: torch.Tensor, captions: list[str]) -> list[list[int]]:
    """Rows that must not be each other's negatives: they share a caption or, pixel by pixel, a picture.

    Args:
        pictures: (n, 3, SIZE, SIZE) uint8.
        captions: one per row.

    Returns:
        the rows of each class, by its first row.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(captions)
    first: dict[bytes | str, int] = {}
    links = []
    for row, caption in enumerate(captions):
        links += [(row, first.setdefault(key, row)) for key in (caption, pictures[row].numpy().tobytes())]
    rows, columns = np.array(links).T
    _, labels = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, n)), directed=False)
    classes: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        classes.setdefault(int(label), []).append(row)
    return list(classes.values())


def nearest_classes(model: torch.nn.Module, pictures: torch.Tensor, k: int) -> np.ndarray:
    """The classes that the model finds hardest to tell apart.

    Args:
        model: an open_clip model; its mode is left as it was.
        pictures: (c, 3, SIZE, SIZE) uint8, one picture per class.
        k: how many.

    Returns:
        (c, k) the k nearest other classes of each class, the nearest first.
    """
    training = model.training
    encode: Any = model.eval().encode_image
    with torch.inference_mode():
        vectors = torch.cat([encode(batch.float() / 127.5 - 1, normalize=True) for batch in pictures.split(256)])
    model.train(training)
    cosine = vectors @ vectors.T
    cosine.fill_diagonal_(-2)
    return cosine.topk(min(k, len(vectors) - 1), dim=1).indices.numpy()


def draw_batch(classes: list[list[int]], neighbours: np.ndarray, size: int, generator: np.random.Generator) -> list[int]:
    """One row each of ``size`` different classes: classes drawn at random, each with its ``neighbours`` (c, k)."""
    chosen: dict[int, None] = {}
    for drawn in generator.permutation(len(classes)):
        for one in (drawn, *neighbours[drawn]):
            if len(chosen) < size:
                chosen[int(one)] = None
    return [int(generator.choice(classes[one])) for one in chosen]


def train(pictures: list[Image.Image], captions: list[str], out: Path, settings: Settings = SETTINGS) -> None:
    """Trains on all rows and writes the model's folder ``out``."""
    import open_clip

    torch.manual_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    config = model_config()
    out.mkdir(parents=True, exist_ok=True)
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    model = open_clip.model.CLIP(**config["model_cfg"]).to(memory_format=torch.channels_last)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings.average_decay), use_buffers=True
    )
    loss_function = open_clip.loss.ClipLoss()
    # As CLIP does: no decay on biases, gains and the temperature.
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / settings.warmup_steps)
        * 0.5 * (1 + math.cos(math.pi * step / settings.schedule_steps)),
    )  # fmt: skip

    square = torch.stack([_square(picture) for picture in pictures])
    tokens = open_clip.get_tokenizer(f"local-dir:{out}")(captions)
    classes = rows_by_class(square, captions)

    begun = time.monotonic()
    for step in range(settings.steps):
        if step % settings.look_for_neighbours_every == 0:
            first = square[[rows[0] for rows in classes]]
            neighbours = nearest_classes(averaged.module, first, settings.neighbours)
        rows = draw_batch(classes, neighbours, settings.batch_size, generator)
        batch = augment(square[rows].float() / 255, generator) * 2 - 1
        image_features = model.encode_image(batch.contiguous(memory_format=torch.channels_last), normalize=True)
        text_features = model.encode_text(tokens[rows], normalize=True)
        loss = loss_function(image_features, text_features, model.logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            # A small scale leaves the loss a reason to pull a logo's pictures together even when all are told apart.
            model.logit_scale.clamp_(0, math.log(settings.largest_logit_scale))
        averaged.update_parameters(model)
        if step % 25 == 0 or step == settings.steps - 1:
            print(
                f"step {step} of {settings.steps}: loss {loss.item():.3f}, scale {model.logit_scale.exp().item():.1f}, "
                f"{time.monotonic() - begun:.0f} s",
                flush=True,
            )
        if step % 200 == 199 or step == settings.steps - 1:
            save(averaged.module, out)


def _square(picture: Image.Image) -> torch.Tensor:
    """(3, SIZE, SIZE) uint8, as the model's own preprocessing makes it: shorter side to SIZE, centre cropped."""
    scale = SIZE / min(picture.size)
    if scale != 1:
        size = (max(SIZE, round(picture.width * scale)), max(SIZE, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (picture.width - SIZE) // 2, (picture.height - SIZE) // 2
    pixels = np.array(picture.crop((left, top, left + SIZE, top + SIZE)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def save(model: torch.nn.Module, out: Path) -> None:
    """Writes the weights in float16, in open_clip's own format."""
    from safetensors.torch import save_file

    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in model.state_dict().items()
    }
    path = out / "open_clip_model.safetensors"
    save_file(weights, path)
    path.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True, help="a lake with a complete ingest of the demo corpus")
    parser.add_argument("--out", required=True, type=Path, help="the model's folder")
    parser.add_argument("--steps", type=int, default=SETTINGS.steps, help="training steps")
    arguments = parser.parse_args()
    pictures, captions = load_training_rows(Lake(arguments.lake))
    print(f"{len(pictures)} rows, {len(set(captions))} captions", flush=True)
    train(pictures, captions, arguments.out, dataclasses.replace(SETTINGS, steps=arguments.steps))


if __name__ == "__main__":
    main()
