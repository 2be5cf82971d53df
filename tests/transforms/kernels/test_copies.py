"""What a copy is: ratios and twins by hand, limits that keep their promise, and a blur that is none."""

import math

import numpy as np
import pytest

from transforms.kernels.copies import BLUR, MAX_TWINS, CopyLimits, Distances, blurred, is_copy, limits, ratio, twins
from transforms.kernels.distances import block_means


@pytest.mark.parametrize(
    ("distance", "other", "expected"),
    [(0.1, 0.4, 0.25), (0.0, 0.4, 0.0), (0.1, None, None), (0.0, 0.0, 1.0), (0.1, 0.0, math.inf)],
)
def test_a_ratio_by_hand(distance, other, expected):
    found = ratio(distance, other)
    assert found == expected if expected is None else found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ([], 0),
        ([0.01], 0),  # nothing is known to stand apart from
        ([0.05, 0.3, 0.31], 1),
        ([0.05, 0.06, 0.3], 2),  # three pictures are one memory
        ([0.05, 0.09, 0.3], 2),
        ([0.2, 0.5, 0.6], 0),  # too far, however alone they are
        ([0.05, 0.06, 0.07, 0.08], 0),  # a crowd: none stands apart
        ([0.001, *[0.1] * 5], 1),
        ([0.01 + n / 1000 for n in range(MAX_TWINS)] + [0.4], MAX_TWINS),
        ([0.01 + n / 1000 for n in range(MAX_TWINS + 1)] + [0.4], 0),  # more than so many are a crowd too
    ],
)
def test_twins_by_hand(distances, expected):
    assert twins(distances, within=0.15, ratio=0.5) == expected


def test_a_copy_lies_below_both_limits():
    found = CopyLimits(0.1, 0.5, None, 0.12)
    rows = [({"l2": l2, "coarse_l2": distance, "coarse_ratio": share},
             l2 <= 0.12 and distance < 0.1 and share is not None and share < 0.5)
            for l2 in (0.05, 0.12, 0.13)
            for distance in (0.0, 0.05, 0.1, 0.2) for share in (None, 0.0, 0.4, 0.5, 0.9, math.inf)]  # fmt: skip
    assert [is_copy(row, found) for row, _ in rows] == [expected for _, expected in rows]


NONE = Distances(np.zeros(0), np.zeros(0))


@pytest.mark.parametrize("twin", [0.0, 0.02, 0.2])
def test_new_pictures_are_called_no_more_often_than_promised(twin):
    """2,000 audits, a part of whose held-out pictures have a twin among the training images: near, and under the ratio."""
    random = np.random.default_rng(5)
    rate, called, promised = 0.05, [], []

    def new(count):
        near = random.random(count) < twin
        distances = np.where(near, random.uniform(0.0, 0.2, count), random.uniform(0.05, 0.5, count))
        return Distances(distances, np.where(near, random.uniform(0.05, 0.8, count), random.uniform(0.45, 1.0, count)))

    for _ in range(2000):
        found = limits(new(60), new(40), most_l2=0.15, ratio=0.5, rate=rate)
        tried = new(50)
        called.append(float(np.mean((tried.coarse_l2 < found.coarse_l2) & (tried.coarse_ratio < found.coarse_ratio))))
        promised.append(found.promised_rate)
        assert found.coarse_l2 <= 0.15 and found.coarse_ratio == 0.5
    assert set(promised) == {3 / 61} and rate >= 3 / 61
    assert np.mean(called) <= 3 / 61 + 3 * np.std(called) / 2000**0.5


def test_left_out_pictures_that_are_as_near_as_only_twins_lower_nothing():
    far, twins_of = np.full(50, 0.4), np.full(50, 0.01)
    held_out = Distances(far, np.full(50, 0.9))
    assert limits(held_out, Distances(twins_of, np.full(50, 0.1)), most_l2=0.15, ratio=0.5, rate=0.1).coarse_l2 == 0.15
    # The same as near to others: that is how near new pictures come.
    assert limits(held_out, Distances(twins_of, np.full(50, 0.9)), most_l2=0.15, ratio=0.5, rate=0.1).coarse_l2 == 0.01


def test_without_decoys_the_limits_are_those_given_and_nothing_is_promised():
    assert limits(NONE, NONE, most_l2=0.15, ratio=0.5, rate=0.01) == CopyLimits(0.15, 0.5, None)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_rate_that_is_none(rate):
    with pytest.raises(ValueError, match="expected between 0 and 1"):
        limits(NONE, NONE, most_l2=0.15, ratio=0.5, rate=rate)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_distance_that_is_missing(place):
    some = [np.array([0.1]) for _ in range(4)]
    some[place] = np.array([np.nan])
    with pytest.raises(ValueError, match="NaN"):
        limits(Distances(*some[:2]), Distances(*some[2:]), most_l2=0.15, ratio=0.5, rate=0.1)


@pytest.mark.parametrize("side", [16, 64, 60])
def test_of_a_blurred_picture_nothing_but_its_block_means_is_left(side):
    random = np.random.default_rng(6)
    picture = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    found = blurred(picture)
    assert found.shape == picture.shape and found.dtype == np.uint8
    # Another one with the same means becomes the same.
    part = side // BLUR
    other = np.rint(block_means(picture, BLUR) * 255).astype(np.uint8).repeat(part, axis=0).repeat(part, axis=1)
    assert (blurred(other) == found).all()
    flat = np.full((side, side, 3), 77, np.uint8)
    assert (blurred(flat) == flat).all()
