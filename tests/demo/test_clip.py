"""The embedded CLIP: its format, and how it was trained."""

import datetime

import numpy as np
import torch

from demo.train_clip import (
    SIZE,
    Settings,
    augment,
    draw_batch,
    load_training_rows,
    nearest_classes,
    rows_by_class,
    train,
)
from tests.pipelines.test_deduplicate import MODEL
from tests.planted import picture, planted_pictures, write_images
from transforms.models.clip import ClipModel
from transforms.store.lake import Lake
from transforms.store.pictures import decode


def test_the_committed_model_is_small_float16_and_loads_in_open_clip():
    from safetensors import safe_open

    weights = MODEL / "open_clip_model.safetensors"
    assert weights.stat().st_size < 8e6
    with safe_open(weights, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} <= {"F16", "I64"}  # noqa: SIM118
    encoder = ClipModel(str(MODEL)).load()
    assert next(encoder._model.parameters()).dtype == torch.float32
    vectors = encoder.encode([decode(content) for _, _, content in planted_pictures(2)])
    assert vectors.shape == (2, 128) and np.isfinite(vectors).all()


def test_rows_with_one_caption_or_one_picture_are_a_class():
    pixels = torch.from_numpy(np.stack([picture(seed, SIZE, SIZE) for seed in (0, 1, 1, 2, 3)])).permute(0, 3, 1, 2)
    assert rows_by_class(pixels, ["a", "a", "b", "c", "c"]) == [[0, 1, 2], [3, 4]]


def test_a_batch_holds_classes_once_and_hard_ones_together():
    classes = [[number, 100 + number] for number in range(20)]
    neighbours = np.array([[number ^ 1] for number in range(20)])
    rows = draw_batch(classes, neighbours, 10, np.random.default_rng(0))
    drawn = [row % 100 for row in rows]
    assert len(set(drawn)) == 10 and {number ^ 1 for number in drawn} == set(drawn)


def test_changes_are_small():
    pixels = torch.from_numpy(np.stack([picture(seed, SIZE, SIZE) for seed in range(40)])).permute(0, 3, 1, 2) / 255
    changed = augment(pixels, np.random.default_rng(0))
    assert changed.shape == pixels.shape and changed.min() >= 0 and changed.max() <= 1
    off = (changed - pixels).square().mean(dim=(1, 2, 3)).sqrt()
    assert 0.01 < off.mean() < 0.2
    assert ((changed - pixels.flip(0)).square().mean(dim=(1, 2, 3)).sqrt() > off)[:19].all()


def test_training_reads_a_lake_leaves_controls_out_and_writes_a_model(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    rows = [*planted_pictures(6), *planted_pictures(3, "control", first=6)]
    ingest = write_images(lake, [rows])
    nothing = dict.fromkeys(
        ("reason", "sha256", "original_width", "original_height", "width", "height", "punsafe", "pwatermark",
         "similarity", "label", "metadata_hash", "metadata_width", "metadata_height")
    )  # fmt: skip
    lake.write(
        "samples",
        ingest.snapshot_id,
        0,
        [
            {
                **nothing,
                "sample_id": sample,
                "role": role,
                "url": sample,
                "caption": f"{sample} logo",
                "occurrence": 0,
                "source_file": "f",
                "source_row": 0,
                "status": "success",
                "drift": "unknown",
                "ingested_at": datetime.datetime.now(datetime.UTC),
            }
            for sample, role, _ in rows
        ],
    )
    pictures, captions = load_training_rows(lake)
    assert captions == [f"{sample} logo" for sample, _, _ in sorted(rows[:6])]
    train(pictures, captions, tmp_path / "clip", Settings(steps=1, batch_size=4, look_for_neighbours_every=1))
    vectors = ClipModel(str(tmp_path / "clip")).load().encode(pictures)
    assert vectors.shape == (6, 128) and np.isfinite(vectors).all()


def test_neighbours_are_the_nearest_by_cosine():
    class Flat(torch.nn.Module):
        def encode_image(self, pictures, normalize):
            return torch.nn.functional.normalize(pictures.mean(dim=(2, 3)), dim=1)

    colours = torch.tensor([[255, 0, 0], [250, 9, 0], [0, 0, 255], [0, 9, 250]], dtype=torch.uint8)
    pictures = colours[:, :, None, None].expand(4, 3, SIZE, SIZE)
    model = Flat().train()
    assert nearest_classes(model, pictures, 1).tolist() == [[1], [0], [3], [2]]
    assert model.training
    assert nearest_classes(model, pictures, 9).shape == (4, 3)
