"""The distances against hand values, slow float64 references and their invariances."""

import numpy as np
import pytest
import torch

from transforms.kernels import distances

RANDOM = np.random.default_rng(7)


def pictures(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, size=shape, dtype=np.uint8)


def reference_l2(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, one entry at a time, in float64."""
    total, count = 0.0, 0
    for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
        total += (x / 255 - y / 255) ** 2
        count += 1
    return float((total / count) ** 0.5)


def reference_tiled_l2(a: np.ndarray, b: np.ndarray) -> float:
    height, width = a.shape[0] // 4, a.shape[1] // 4
    return max(
        reference_l2(
            a[i * height : (i + 1) * height, j * width : (j + 1) * width],
            b[i * height : (i + 1) * height, j * width : (j + 1) * width],
        )
        for i in range(4)
        for j in range(4)
    )


def test_l2_hand_values():
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    assert distances.l2(black, white) == 1.0
    assert distances.l2(black, black) == 0.0
    half = black.copy()
    half[:4] = 255
    assert distances.l2(black, half) == pytest.approx(0.5**0.5, abs=1e-7)
    assert distances.tiled_l2(black, half) == 1.0  # one tile is all that differs, and it differs wholly


@pytest.mark.parametrize("side", [4, 8, 20])
def test_distances_equal_the_reference(side):
    a, b = pictures(side, side, 3), pictures(side, side, 3)
    assert distances.l2(a, b) == pytest.approx(reference_l2(a, b), abs=1e-6)
    assert distances.tiled_l2(a, b) == pytest.approx(reference_tiled_l2(a, b), abs=1e-6)


def test_tiles_are_compared_in_the_same_position():
    a = np.zeros((8, 8, 3), np.uint8)
    b = a.copy()
    a[:2, :2], b[6:, 6:] = 255, 255
    assert distances.tiled_l2(a, b) == 1.0


def test_tiled_is_at_least_plain():
    a, b = pictures(10, 16, 16, 3), pictures(10, 16, 16, 3)
    assert (distances.tiled_l2(a, b) >= distances.l2(a, b) - 1e-12).all()


def test_distances_do_not_depend_on_the_batch():
    a, b = pictures(16, 16, 3), pictures(9, 16, 16, 3)
    together = distances.l2(a, b)
    assert together.tolist() == [float(distances.l2(a, other)) for other in b]


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 4)])
def test_shapes_that_are_no_picture(shape):
    with pytest.raises(ValueError, match=r"expected \(…, height, width, 3\)"):
        distances.l2(np.zeros(shape), np.zeros(shape))


def test_sides_that_cannot_be_tiled():
    with pytest.raises(ValueError, match="10 × 10 pixels can't be cut"):
        distances.tiled_l2(pictures(10, 10, 3), pictures(10, 10, 3))


def test_pairwise_equals_one_by_one():
    batch = pictures(6, 16, 16, 3)
    batch[3] = batch[1]
    batch[4] = np.clip(batch[1].astype(int) + 1, 0, 255)  # a grey level away: cancellation would hide it
    tensor = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
    pairwise = distances.pairwise_tiled_l2(tensor).numpy()
    expected = np.array([[distances.tiled_l2(a, b) for b in batch] for a in batch])
    np.testing.assert_allclose(pairwise, expected, atol=1e-6)
    assert pairwise[1, 3] == 0.0
    assert (pairwise == pairwise.T).all()
    order = [4, 2, 0, 5, 1, 3]
    np.testing.assert_allclose(distances.pairwise_tiled_l2(tensor[order]).numpy(), pairwise[np.ix_(order, order)], atol=1e-6)


def test_adaptive_hand_values_and_limits():
    assert distances.adaptive_l2(0.1, np.array([0.2, 0.4])) == pytest.approx(0.1 / (0.5 * 0.3))
    assert distances.adaptive_l2(0.1, np.array([0.2, 0.4]), alpha=1.0) == pytest.approx(0.1 / 0.3)
    assert np.isnan(distances.adaptive_l2(0.1, np.array([])))
    assert distances.adaptive_l2(0.0, np.zeros(3)) == 0.0
    assert distances.adaptive_l2(0.1, np.zeros(3)) == float("inf")


@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 29, 3), (31, 16, 3), (40, 60, 3), (9, 12, 3)])
def test_best_crop_equals_trying_every_crop(shape):
    generation, picture = pictures(16, 16, 3), pictures(*shape)
    offset, crop = distances.best_crop(generation, picture)
    resized = distances.resize_shorter_side(picture, 16)
    tall = resized.shape[0] > resized.shape[1]
    crops = [resized[i : i + 16] if tall else resized[:, i : i + 16] for i in range(max(resized.shape[:2]) - 16 + 1)]
    tried = [reference_l2(generation, other) for other in crops]
    assert crop.shape == (16, 16, 3)
    assert float(distances.l2(generation, crop)) == pytest.approx(min(tried), abs=1e-6)
    assert offset == int(np.argmin(tried))


def test_best_crop_finds_what_was_cut_out():
    picture = pictures(16, 50, 3)
    offset, crop = distances.best_crop(picture[:, 21:37], picture)
    assert (offset, float(distances.l2(crop, picture[:, 21:37]))) == (21, 0.0)


def test_a_generation_that_is_not_square():
    with pytest.raises(ValueError, match="expected a square one"):
        distances.best_crop(pictures(16, 20, 3), pictures(16, 16, 3))
