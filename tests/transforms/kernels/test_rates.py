"""Intervals of rates: hand values, scipy as the second opinion, and the ends where nothing or all succeeded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, norm

from transforms.kernels.rates import clopper_pearson_upper, wilson_interval

counts = st.integers(1, 5000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials)))


def wilson_by_formula(successes, trials):
    """Wilson 1927: the rates p for which |p̂ - p| ≤ z · sqrt(p (1 - p) / n)."""
    z, rate = norm.ppf(0.975), successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * (rate * (1 - rate) / trials + z**2 / (4 * trials**2)) ** 0.5 / (1 + z**2 / trials)
    return centre - half, centre + half


def test_wilson_by_hand():
    # 8 of 10, in many textbooks.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert wilson_interval(94, 350_000) == pytest.approx((0.0002195, 0.0003286), abs=5e-8)


@given(counts)
@settings(max_examples=100, deadline=None)
def test_wilson_is_the_formula(count):
    lower, upper = wilson_interval(*count)
    assert (lower, upper) == pytest.approx(wilson_by_formula(*count), abs=1e-9)
    assert 0 <= lower <= count[0] / count[1] <= upper <= 1


@pytest.mark.parametrize("trials", [1, 2, 7, 400])
def test_wilson_at_the_ends(trials):
    assert wilson_interval(0, trials)[0] == pytest.approx(0, abs=1e-12)
    assert wilson_interval(trials, trials)[1] == pytest.approx(1, abs=1e-12)
    # None and all are mirror images.
    assert wilson_interval(0, trials)[1] == pytest.approx(1 - wilson_interval(trials, trials)[0])


def test_without_a_trial_nothing_is_known():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert clopper_pearson_upper(0, 0) == 1.0


def test_the_upper_bound_by_hand():
    # None of 400: 1 - 0.05 ** (1 / 400), the 0.75%, near the rule of three (3 / 400).
    assert clopper_pearson_upper(0, 400) == pytest.approx(1 - 0.05 ** (1 / 400))
    assert clopper_pearson_upper(0, 400) == pytest.approx(0.0075, abs=5e-5)
    assert clopper_pearson_upper(400, 400) == 1.0


@given(counts)
@settings(max_examples=100, deadline=None)
def test_the_upper_bound_is_scipys(count):
    # Two-sided 90% leaves 5% on each side, as one-sided 95% does on its one.
    expected = binomtest(*count).proportion_ci(confidence_level=0.9, method="exact").high
    assert clopper_pearson_upper(*count) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (3, 20), (19, 20), (5, 400)])
def test_the_upper_bound_is_where_so_few_would_be_a_surprise(successes, trials):
    """P(successes or fewer | the bound) is exactly 5%."""
    bound = clopper_pearson_upper(successes, trials)
    assert binomtest(successes, trials, bound, alternative="less").pvalue == pytest.approx(0.05)
    assert beta.cdf(bound, successes + 1, trials - successes) == pytest.approx(0.95)


@pytest.mark.parametrize("bad", [(-1, 3), (4, 3), (0, -1)])
def test_what_is_no_count_is_refused(bad):
    with pytest.raises(ValueError, match="successes in"):
        wilson_interval(*bad)
    with pytest.raises(ValueError, match="successes in"):
        clopper_pearson_upper(*bad)
