"""A lower bound is never over what it bounds, for squares and for crops of what is wide or high, and not idle either."""

import numpy as np
import pytest
from PIL import Image

from transforms.kernels.bounds import SLACK, band_sums, lower_bounds
from transforms.kernels.distances import l2, resize_shorter_side, square_at
from transforms.store.pictures import thumbnail


def smooth(random, height, width):
    """Something like a photograph: large shapes, and a little noise."""
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (picture + random.integers(-10, 11, picture.shape)).clip(0, 255).astype(np.uint8)


def true_distances(square, picture):
    resized = resize_shorter_side(picture, square.shape[0])
    return [float(l2(square, square_at(resized, offset))) for offset in range(max(resized.shape[:2]) - square.shape[0] + 1)]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 48), (64, 96), (120, 64), (64, 65), (40, 160), (300, 200)])
@pytest.mark.parametrize("side", [64, 20])
def test_never_over_the_distance(height, width, side):
    random = np.random.default_rng([height, width, side])
    for _ in range(6):
        picture = smooth(random, height, width)
        resized = resize_shorter_side(picture, side)
        offset = int(random.integers(max(resized.shape[:2]) - side + 1))
        crop = np.ascontiguousarray(square_at(resized, offset))
        noisy = (crop + random.integers(-20, 21, crop.shape)).clip(0, 255).astype(np.uint8)
        squares = np.stack([crop, noisy, smooth(random, side, side)])
        tiny = np.frombuffer(thumbnail(picture), np.uint8)[None]
        bounds = lower_bounds(band_sums(squares), tiny, width, height)[:, 0]
        for square, bound in zip(squares, bounds.tolist(), strict=True):
            assert bound <= min(true_distances(square, picture)) + SLACK
        # A crop of the picture itself is never ruled out, and another picture nearly always is.
        assert bounds[0] <= SLACK
        if max(height, width) <= 2 * min(height, width):
            assert bounds[2] > 0.08


def test_of_squares_the_bound_is_that_of_the_block_means():
    random = np.random.default_rng(1)
    a, b = (smooth(random, 64, 64) for _ in range(2))
    means = [one.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)) / 255 for one in (a, b)]
    found = lower_bounds(band_sums(a[None]), np.frombuffer(thumbnail(b), np.uint8)[None], 64, 64)
    assert found[0, 0] == pytest.approx(float(np.sqrt(((means[0] - means[1]) ** 2).mean())), abs=2 / 255)


def test_many_at_once_are_each_alone():
    random = np.random.default_rng(2)
    squares = np.stack([smooth(random, 32, 32) for _ in range(4)])
    pictures = [smooth(random, 32, 48) for _ in range(5)]
    tiny = np.stack([np.frombuffer(thumbnail(one), np.uint8) for one in pictures])
    together = lower_bounds(band_sums(squares), tiny, 48, 32)
    for i in range(4):
        for j in range(5):
            alone = lower_bounds(band_sums(squares[i : i + 1]), tiny[j : j + 1], 48, 32)
            assert together[i, j] == pytest.approx(alone[0, 0], abs=1e-4)
