"""What a sweep says with an interval: against other libraries, slow references, limits and coverage."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from transforms.kernels.effects import (
    NOTHING,
    Estimate,
    firth,
    half_point,
    mean_interval,
    odds_per_deviation,
    rank_correlation,
    rate_difference,
    slope_within,
)

RANDOM = np.random.default_rng(17)


def test_a_mean_has_students_interval():
    one, other = RANDOM.normal(size=7), RANDOM.normal(size=7)
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    found = mean_interval((one - other).tolist())
    assert found == pytest.approx(((one - other).mean(), expected.low, expected.high))


@pytest.mark.parametrize("values", [[0.25], [0.25, 0.25, 0.25], [0.1 + 0.2, 0.3]])
def test_without_a_spread_a_mean_has_no_ends(values):
    found = mean_interval(values)
    assert found.value == pytest.approx(np.mean(values)) and (found.lower, found.upper) == (None, None)
    assert mean_interval([]) == NOTHING


def test_a_difference_of_rates_is_newcombes():
    """Newcombe 1998, table II, method 10."""
    for counts, expected in (
        ((56, 70, 48, 80), (0.2, 0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.6, 0.1705, 0.8090)),
        ((10, 10, 0, 20), (1.0, 0.6791, 1.0)),
        ((0, 10, 0, 20), (0.0, -0.1611, 0.2775)),
    ):
        assert rate_difference(*counts) == pytest.approx(expected, abs=5e-5)
    assert rate_difference(0, 0, 1, 2) == NOTHING


def penalised(x, hits, trials):
    """The maximum of likelihood times Jeffreys' prior, by a general optimiser."""
    x, hits, trials = (np.asarray(one, float) for one in (x, hits, trials))
    design = np.stack([np.ones_like(x), x], 1)

    def loss(weights):
        eta = design @ weights
        rate = 1 / (1 + np.exp(-eta))
        information = design.T @ (design * (trials * rate * (1 - rate))[:, None])
        return -(hits @ eta - trials @ np.logaddexp(0, eta)) - np.linalg.slogdet(information)[1] / 2

    return optimize.minimize(
        loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 5000}
    ).x


@pytest.mark.parametrize(
    ("x", "hits", "trials"),
    [
        ([0, 1, 2, 3], [9, 7, 4, 1], [10, 10, 10, 10]),
        ([4.16, 4.85, 5.55, 6.24], [64, 128, 0, 0], [64, 128, 256, 512]),  # x parts them
        ([0.0] * 6 + [1.0] * 6, [0, 0, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0], [1] * 12),
    ],
)
def test_firths_regression_is_the_penalised_maximum(x, hits, trials):
    found = firth(x, hits, trials)
    assert (found.intercept, found.slope) == pytest.approx(penalised(x, hits, trials), abs=2e-4, rel=2e-4)
    assert np.linalg.eigvalsh(found.covariance).min() > 0


def test_of_two_groups_firth_adds_half_a_case_to_each_cell():
    """Known in closed form: log((a + 1/2)(d + 1/2) / ((b + 1/2)(c + 1/2)))."""
    found = firth([0, 1], [3, 10], [10, 10])
    assert found.slope == pytest.approx(math.log(10.5 * 7.5 / (0.5 * 3.5)))


def test_where_a_share_is_one_half():
    sizes = [32, 64, 128, 256, 512]
    shares = [1 / (1 + (size / 128) ** 3) for size in sizes]
    trials = [100_000] * 5
    found = half_point(sizes, [round(share * 100_000) for share in shares], trials)
    assert found.size.value == pytest.approx(128, rel=1e-3) and found.slope.value == pytest.approx(-3, rel=1e-3)
    assert found.size.lower < 128 < found.size.upper
    # Sizes in another unit: the same, in that unit.
    scaled = half_point([10 * size for size in sizes], [round(share * 100_000) for share in shares], trials)
    assert scaled.size == pytest.approx([10 * one for one in found.size], rel=1e-6)
    assert scaled.slope == pytest.approx(found.slope, rel=1e-6)


def test_the_half_point_says_nothing_outside_what_was_tried():
    assert half_point([32, 64, 128], [31, 60, 110], [32, 64, 128]).size == NOTHING  # over half everywhere
    assert half_point([32, 64], [31, 1], [32, 64]).size == NOTHING  # two models
    assert half_point([32, 32, 32], [31, 1, 3], [32, 32, 32]).size == NOTHING  # one size
    flat = half_point([32, 64, 128, 256], [16, 33, 63, 129], [32, 64, 128, 256])
    assert (flat.size.lower, flat.size.upper) == (None, None) and flat.slope.lower < 0 < flat.slope.upper


def test_a_share_that_goes_up_and_down_again_has_no_half_point():
    """As at fixed epochs: the smallest sets get too few steps, the largest are too large."""
    sizes = np.repeat([4, 8, 16, 32, 64, 128, 256, 512], 3)
    backs = [1, 0, 1, 2, 3, 2, 8, 7, 8, 19, 20, 18, 35, 34, 35, 19, 18, 20, 14, 15, 15, 2, 2, 2]
    assert half_point(sizes, backs, sizes).size == NOTHING
    # Without the small ones it falls, from over one half.
    falls = half_point(sizes[9:], backs[9:], sizes[9:]).size
    assert 32 < falls.value < 128
    # A fall that is steeper or flatter than a sigmoid's isn't one that turns.
    for steep in (1, 4):
        shares = 1 / (1 + np.exp(steep * np.log(sizes / 40) + 0.2 * np.log(sizes / 40) ** 2 * np.sign(sizes - 40)))
        assert half_point(sizes, np.round(shares * sizes).astype(int), sizes).size.value == pytest.approx(40, rel=0.2)


def test_the_half_points_interval_covers():
    """Models that differ more than their pictures do, as trainings do."""
    inside = known = 0
    sizes = np.repeat([32, 64, 128, 256, 512], 3)
    for _ in range(200):
        odds = -2 * np.log(sizes / 100) + RANDOM.normal(0, 0.5, len(sizes))
        found = half_point(sizes, RANDOM.binomial(sizes, 1 / (1 + np.exp(-odds))), sizes).size
        known += found.lower is not None
        inside += found.lower is not None and found.lower <= 100 <= found.upper
    assert known == 200 and 0.90 <= inside / known <= 0.99


def test_a_slope_within_groups_is_that_of_least_squares_with_their_levels():
    groups = ["a"] * 4 + ["b"] * 5
    x = RANDOM.normal(size=9)
    y = 2 * x + np.where(np.array(groups) == "a", 5, -3) + RANDOM.normal(0, 0.1, 9)
    design = np.stack([x, np.array(groups) == "a", np.array(groups) == "b"], 1).astype(float)
    weights, rest, *_ = np.linalg.lstsq(design, y, rcond=None)
    error = math.sqrt(rest[0] / 6 * np.linalg.inv(design.T @ design)[0, 0])
    half = stats.t.ppf(0.975, 6) * error
    assert slope_within(groups, x.tolist(), y.tolist()) == pytest.approx((weights[0], weights[0] - half, weights[0] + half))


def test_a_slope_needs_something_to_go_by():
    assert slope_within(["a", "b"], [1, 2], [1, 2]) == NOTHING
    assert slope_within([], [], []) == NOTHING
    assert slope_within(["a", "a", "a"], [0, 1, 2], [1, 3, 5]) == Estimate(pytest.approx(2), None, None)


def test_odds_rise_with_what_they_depend_on():
    x = RANDOM.normal(size=2000)
    happened = RANDOM.random(2000) < 1 / (1 + np.exp(-1.5 * x))
    found = odds_per_deviation((7 * x + 100).tolist(), happened.tolist())
    assert found.lower < 1.5 * x.std() < found.upper and found.upper - found.lower < 0.4
    turned = odds_per_deviation((-x).tolist(), happened.tolist())
    assert turned.value == pytest.approx(-found.value)
    assert odds_per_deviation([1.0, 2, 3, 4, 5, 6, 7, 8, 9], [True] * 4 + [False] * 5) == NOTHING
    assert odds_per_deviation([1.0] * 12, [True] * 6 + [False] * 6) == NOTHING


def test_a_rank_correlation_is_spearmans():
    x, y = RANDOM.normal(size=40), RANDOM.normal(size=40)
    found = rank_correlation(x.tolist(), (x + y).tolist())
    assert found.value == pytest.approx(stats.spearmanr(x, x + y).statistic)
    assert found.lower < found.value < found.upper < 1
    assert rank_correlation([1, 2, 3, 4, 5, 6], [1, 4, 9, 16, 25, 36]).value == pytest.approx(1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == NOTHING
