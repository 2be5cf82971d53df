"""A lower bound is never over what it bounds, for generations and pictures of any shape, and not idle either."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transforms.kernels.bounds import ROUNDING, SLACK, band_sums, within_reach
from transforms.kernels.distances import (
    COARSE,
    Frame,
    block_means,
    central_crop,
    coarse_l2,
    covering,
    crop_at,
    frame_of,
    l2,
    room,
)
from transforms.store.pictures import thumbnail


def smooth(random, height, width):
    """Something like a photograph: large shapes, and a little noise."""
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (picture + random.integers(-10, 11, picture.shape)).clip(0, 255).astype(np.uint8)


def true_distances(generation, picture):
    frame = frame_of(generation)
    resized = covering(picture, frame)
    return [float(l2(generation, crop_at(resized, frame, offset))) for offset in range(room(resized, frame) + 1)]


def reached(generations, tiny, width, height, reach):
    """The generations that may lie within reach of the one picture."""
    return set(within_reach(band_sums(generations), tiny, width, height, reach)[0].tolist())


def assert_never_over_the_distance(random, height, width, frame):
    picture = smooth(random, height, width)
    resized = covering(picture, frame)
    crop = np.ascontiguousarray(crop_at(resized, frame, int(random.integers(room(resized, frame) + 1))))
    noisy = (crop + random.integers(-20, 21, crop.shape)).clip(0, 255).astype(np.uint8)
    generations = np.stack([crop, noisy, smooth(random, *frame)])
    tiny = np.frombuffer(thumbnail(picture), np.uint8)[None]
    distances = np.array([min(true_distances(one, picture)) for one in generations])
    assert distances[0] == 0
    # What is near is never ruled out, and another picture nearly always is.
    assert reached(generations, tiny, width, height, distances) == {0, 1, 2}
    if max(width * frame.height, height * frame.width) <= 2 * min(width * frame.height, height * frame.width):
        assert 2 not in reached(generations, tiny, width, height, np.full(3, 0.08 - SLACK))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 48), (64, 96), (120, 64), (64, 65), (40, 160), (300, 200)])
@pytest.mark.parametrize("frame", [(64, 64), (20, 20), (96, 64), (64, 96), (24, 40), (76, 52)])
def test_never_over_the_distance(height, width, frame):
    random = np.random.default_rng([height, width, *frame])
    for _ in range(3):
        assert_never_over_the_distance(random, height, width, Frame(*frame))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(24, 160), width=st.integers(24, 160), frame=st.tuples(st.integers(20, 96), st.integers(20, 96)),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_no_true_pair_is_ruled_out(height, width, frame, seed):
    random = np.random.default_rng(seed)
    picture, generations = smooth(random, height, width), np.stack([smooth(random, *frame) for _ in range(3)])
    distances = np.array([min(true_distances(one, picture)) for one in generations])
    tiny = np.frombuffer(thumbnail(picture), np.uint8)[None]
    assert reached(generations, tiny, width, height, distances) == {0, 1, 2}


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(128, 320), width=st.integers(128, 320), frame=st.tuples(st.integers(64, 160), st.integers(64, 160)),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_nor_by_the_block_means_of_the_generation(height, width, frame, seed):
    """From 64 pixels on: of smaller ones whole pixels are so large that what the middle is cut to differs by more."""
    random, frame = np.random.default_rng(seed), Frame(*frame)
    picture = smooth(random, height, width)
    crop = central_crop(picture, frame)
    generations = np.stack([crop, (crop + random.integers(-20, 21, crop.shape)).clip(0, 255).astype(np.uint8)])
    coarse = np.rint(block_means(generations, COARSE) * 255).astype(np.uint8)
    tiny = np.frombuffer(thumbnail(picture), np.uint8)[None]
    found, _ = within_reach(band_sums(coarse), tiny, width, height, coarse_l2(generations, crop), frame)
    assert found.tolist() == [0, 1]


@pytest.mark.parametrize("frame", [(96, 64), (64, 96)])
def test_of_one_shape_the_whole_thumbnail_is_the_window(frame):
    random = np.random.default_rng(3)
    a, b = smooth(random, *frame), smooth(random, *frame)
    means = [np.asarray(Image.fromarray(one).resize((8, 8), Image.Resampling.BOX), float) / 255 for one in (a, b)]
    bound = float(np.sqrt(np.square(means[0] - means[1]).mean()))
    tiny = np.frombuffer(thumbnail(b), np.uint8)[None]
    assert reached(a[None], tiny, frame[1], frame[0], np.array([bound - ROUNDING + 2 / 255])) == {0}
    assert reached(a[None], tiny, frame[1], frame[0], np.array([bound - ROUNDING - 2 / 255])) == set()
    # The same at another size: its thumbnail is the same up to rounding.
    assert reached(a[None], tiny, 3 * frame[1], 3 * frame[0], np.array([bound - SLACK - 2 / 255])) == set()


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
