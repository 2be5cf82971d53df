"""A lower bound is never over what it bounds, for squares and for crops of what is wide or high, and not idle either."""

import numpy as np
import pytest
from PIL import Image

from transforms.kernels.bounds import ROUNDING, SLACK, band_sums, within_reach
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


def reached(squares, tiny, width, height, reach):
    """The squares that may lie within reach of the one picture."""
    return set(within_reach(band_sums(squares), tiny, width, height, reach)[0].tolist())


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
        distances = np.array([min(true_distances(square, picture)) for square in squares])
        assert distances[0] == 0
        # What is near is never ruled out, and another picture nearly always is.
        assert reached(squares, tiny, width, height, distances) == {0, 1, 2}
        if max(height, width) <= 2 * min(height, width):
            assert 2 not in reached(squares, tiny, width, height, np.full(3, 0.08 - SLACK))


def test_of_squares_the_bound_is_that_of_the_block_means():
    random = np.random.default_rng(1)
    a, b = (smooth(random, 64, 64) for _ in range(2))
    means = [one.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)) / 255 for one in (a, b)]
    bound = float(np.sqrt(((means[0] - means[1]) ** 2).mean()))
    tiny = np.frombuffer(thumbnail(b), np.uint8)[None]
    assert reached(a[None], tiny, 64, 64, np.array([bound - ROUNDING + 2 / 255])) == {0}
    assert reached(a[None], tiny, 64, 64, np.array([bound - ROUNDING - 2 / 255])) == set()
    assert reached(a[None], tiny, 64, 64, np.array([np.inf])) == {0}


@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 32), (320, 32)])
def test_many_at_once_are_each_alone(width, height):
    random = np.random.default_rng(2)
    squares = np.stack([smooth(random, 32, 32) for _ in range(4)])
    pictures = [smooth(random, height, width) for _ in range(5)]
    tiny = np.stack([np.frombuffer(thumbnail(one), np.uint8) for one in pictures])
    reach = np.array([0.1, 0.2, 0.3, 0.4])
    pairs = within_reach(band_sums(squares), tiny, width, height, reach)
    alone = [
        (i, j) for i in range(4) for j in range(5)
        if reached(squares[i : i + 1], tiny[j : j + 1], width, height, reach[i : i + 1])
    ]  # fmt: skip
    assert list(zip(*(column.tolist() for column in pairs), strict=True)) == alone
    assert 0 < len(alone) <= 20
