"""Intervals of rates: hand values, scipy as the second opinion, and the ends where nothing or all succeeded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest, gamma, norm

from transforms.kernels.rates import (
    blaker_interval,
    clopper_pearson_interval,
    clopper_pearson_upper,
    slice_interval,
    stratified_interval,
    wilson_interval,
)

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


# -- Clopper and Pearson's, and Blaker's --------------------------------------------------------------------------------


def acceptability(trials, rates):
    """(trials + 1, rates): Blaker 2000, from its definition: the smaller tail, and what of the other is no likelier."""
    results = np.arange(trials + 1)[:, None]
    at_least, at_most = binom.sf(results - 1, trials, rates), binom.cdf(results, trials, rates)
    made = np.zeros_like(at_least)
    for result in range(trials + 1):
        upper = at_least[result] < at_most[result]
        tail = np.where(upper, at_least[result], at_most[result])
        other = np.where(upper, at_most, at_least)
        made[result] = tail + np.where(other <= tail * (1 + 1e-12), other, 0).max(axis=0)
    return np.minimum(1.0, made)


@given(counts)
@settings(max_examples=60, deadline=None)
def test_clopper_and_pearsons_interval_is_scipys(count):
    expected = binomtest(*count).proportion_ci(method="exact")
    assert clopper_pearson_interval(*count) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(counts)
@settings(max_examples=100, deadline=None)
def test_blakers_is_never_wider_than_clopper_and_pearsons(count):
    (lower, upper), (widest_lower, widest_upper) = blaker_interval(*count), clopper_pearson_interval(*count)
    assert widest_lower - 1e-12 <= lower <= count[0] / count[1] <= upper <= widest_upper + 1e-12


@pytest.mark.parametrize("trials", [1, 2, 3, 7, 20, 41])
def test_blakers_ends_are_where_its_definition_says(trials):
    """All rates of a fine grid: outside the interval none is acceptable, and right inside each end one is."""
    grid = np.linspace(0, 1, 4001)
    accepted = acceptability(trials, grid) > 0.05
    for successes in range(trials + 1):
        lower, upper = blaker_interval(successes, trials)
        assert not accepted[successes, (grid < lower - 1e-9) | (grid > upper + 1e-9)].any()
        for end, inwards in ((lower, 1e-7), (upper, -1e-7)):
            if 0 < end < 1:
                assert acceptability(trials, np.array([end + inwards]))[successes, 0] > 0.05 - 1e-5


def test_blakers_by_hand():
    # Over 1/2 no other result is as unlikely as none of one, which has 1 - p.
    assert blaker_interval(0, 1) == pytest.approx((0, 0.95))
    assert blaker_interval(5, 10)[0] + blaker_interval(5, 10)[1] == pytest.approx(1)
    assert blaker_interval(0, 0) == (0.0, 1.0)


RATES = np.unique(np.concatenate([np.geomspace(1e-4, 0.5, 400), np.linspace(1e-4, 0.5, 400)]))


@pytest.mark.parametrize("trials", [5, 30, 100, 1000])
def test_blakers_covers_at_every_rate(trials):
    """By summing the binomial, at a grid of rates and on both sides of every end, where coverage jumps."""
    ends = np.array([blaker_interval(successes, trials) for successes in range(trials + 1)])
    jumps = np.concatenate([ends.ravel() - 1e-9, ends.ravel() + 1e-9])
    rates = np.concatenate([RATES, jumps[(jumps >= 1e-4) & (jumps <= 0.5)]])
    covered = (ends[:, :1] <= rates) & (rates <= ends[:, 1:])
    coverage = (binom.pmf(np.arange(trials + 1)[:, None], trials, rates) * covered).sum(axis=0)
    assert coverage.min() >= 0.95 - 1e-6


def test_wilsons_covers_too_little_at_small_rates():
    """Why it is a column to compare with, and no more."""
    ends = np.array([wilson_interval(successes, 1000) for successes in range(1001)])
    covered = (ends[:, :1] <= RATES) & (ends[:, 1:] >= RATES)
    coverage = (binom.pmf(np.arange(1001)[:, None], 1000, RATES) * covered).sum(axis=0)
    assert coverage.min() < 0.9


# -- by strata ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [([0, 8, 63, 295], [327, 30666, 123419, 34392]), ([0, 0], [3, 1]), ([1, 0, 2], [9, 1, 7])])
def test_it_is_fay_and_feuers(counts):
    """Beside the gamma distributions as R's epitools (ageadjust.direct) has them: shape and scale of mean and variance."""
    (hits, tried), weights = np.array(counts), np.arange(1, len(counts[0]) + 1)
    share = weights / weights.sum()
    rate, variance, most = share @ (hits / tried), share**2 @ (hits / tried**2), (share / tried).max()
    lower, upper = stratified_interval(hits, tried, weights)
    assert lower == (pytest.approx(gamma.ppf(0.025, rate**2 / variance, scale=variance / rate)) if rate else 0)
    by_hits = gamma.ppf(0.975, (rate + most) ** 2 / (variance + most**2), scale=(variance + most**2) / (rate + most))
    misses = tried - hits
    rate, variance = share @ (misses / tried), share**2 @ (misses / tried**2)
    assert upper == pytest.approx(min(by_hits, 1 - gamma.ppf(0.025, rate**2 / variance, scale=variance / rate)))


def test_a_stratum_without_a_hit_is_bounded_by_its_weight():
    """The most duplicated are extracted, and none of 100 singles is: those may still hide 3.7%, of nearly everything."""
    lower, upper = stratified_interval([20, 0], [40, 100], [40, 1_000_000])
    assert lower < 40 * 0.5 / 1_000_040 and upper == pytest.approx(clopper_pearson_interval(0, 100)[1], rel=0.02)
    # What is left of the singles if nobody weighs them.
    assert stratified_interval([20, 0], [40, 100], [1, 0]) == pytest.approx(stratified_interval([20], [40], [1]))


def test_of_strata_that_were_tried_once_hardly_anything_is_known():
    assert stratified_interval([0, 0, 0], [1, 1, 1], [1, 1, 1]) == (0, pytest.approx(0.794, abs=1e-3))


def test_strata_that_are_alike_in_any_order_and_unit():
    one = stratified_interval([1, 5, 0], [30, 10, 200], [1, 2, 3])
    none, every = stratified_interval([0, 0], [30, 20], [1, 2]), stratified_interval([30, 20], [30, 20], [1, 2])
    assert none[0] == 0 and every[1] == 1 and none[1] == pytest.approx(1 - every[0])
    # What comes back and what doesn't are mirror images.
    back = stratified_interval([29, 5, 200], [30, 10, 200], [1, 2, 3])
    assert (1 - back[1], 1 - back[0]) == pytest.approx(one)
    assert stratified_interval([0, 1, 5], [200, 30, 10], [3, 1, 2]) == pytest.approx(one)
    assert stratified_interval([1, 5, 0], [30, 10, 200], [10, 20, 30]) == pytest.approx(one)


MANY_PROMPTS = {
    "singles that seldom come back": ([100, 100, 50, 20], [0.95, 0.04, 0.009, 0.001], [0.0005, 0.01, 0.1, 0.5]),
    "nothing comes back of the singles": ([200, 50], [0.99, 0.01], [0.0, 0.3]),
    "all alike and rare": ([50] * 10, [0.1] * 10, [0.005] * 10),
    "half of everything": ([30, 30], [0.5, 0.5], [0.5, 0.4]),
    "nearly everything comes back": ([30, 30, 10], [0.5, 0.3, 0.2], [0.99, 0.97, 0.5]),
    "the light ones come back": ([100, 20, 20, 20], [0.4, 0.3, 0.2, 0.1], [0.001, 0.01, 0.03, 0.9]),
    "one in a thousand, many prompts": ([1000, 300], [0.9, 0.1], [0.001, 0.02]),
    "a night that tries few of each": ([2] * 6, [0.9, 0.05, 0.02, 0.01, 0.01, 0.01], [0.01, 0.02, 0.1, 0.3, 0.6, 0.9]),
}


@pytest.mark.parametrize("design", MANY_PROMPTS)
def test_the_interval_by_strata_covers(design):
    """By simulation with a fixed seed: at least 94% of the intervals hold the population's rate."""
    trials, weights, rates = MANY_PROMPTS[design]
    random, truth, held = np.random.default_rng(0), float(np.dot(weights, rates)), 0
    for _ in range(2000):
        lower, upper = stratified_interval(random.binomial(trials, rates), trials, weights)
        held += lower <= truth <= upper
    assert held / 2000 >= 0.94


@pytest.mark.parametrize(
    "trials", [[1, 1], [1] * 6, [2] * 4, [3, 3], [4, 4, 4], [10, 1, 1], [30, 1], [5, 5, 5], [20, 20], [40, 10]]
)
@pytest.mark.parametrize("weights", ["equal", "of each a quarter of the one before"])
def test_the_interval_by_strata_covers_however_few_the_prompts(trials, weights):
    """Summed up over all that can be found, at rates of all sorts: strata alike or not, some of which give back nothing."""
    strata, random = len(trials), np.random.default_rng(0)
    weights = np.full(strata, 1 / strata) if weights == "equal" else 0.25 ** np.arange(strata) / sum(0.25 ** np.arange(strata))
    alike = [np.full(strata, rate) for rate in (0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9)]
    rare, any_rate = random.beta(0.4, 8, (60, strata)), random.uniform(size=(60, strata))
    rates = np.concatenate([alike, rare, any_rate, np.where(random.random((60, strata)) < 0.5, 0, any_rate)])
    outcomes = np.stack(np.meshgrid(*[np.arange(tried + 1) for tried in trials]), axis=-1).reshape(-1, strata)
    ends = np.array([stratified_interval(found, trials, weights) for found in outcomes])
    truth = rates @ weights
    held = (ends[:, :1] <= truth) & (truth <= ends[:, 1:])
    coverage = (binom.pmf(outcomes[:, None], trials, rates).prod(axis=-1) * held).sum(axis=0)
    assert coverage.min() >= 0.94


def test_korn_and_graubards_would_not_cover():
    """Why it isn't used: it goes by the variance that was seen, and a stratum without a hit shows none."""
    random, trials, weights, rates = np.random.default_rng(0), [30, 30], [0.9, 0.1], [0.02, 0.5]
    truth, held = float(np.dot(weights, rates)), 0
    for _ in range(1000):
        found = random.binomial(trials, rates)
        each = found / trials
        rate = float(np.dot(weights, each))
        variance = float(np.sum(np.square(weights) * each * (1 - each) / (np.array(trials) - 1)))
        size = rate * (1 - rate) / variance if variance else sum(trials)
        hits = rate * size
        held += beta.ppf(0.025, hits, size - hits + 1) <= truth <= beta.ppf(0.975, hits + 1, size - hits)
    assert held / 1000 < 0.9


@pytest.mark.parametrize(
    "bad", [([1], [2], [0.0]), ([1], [2], [-1.0]), ([1, 1], [2, 2], [1.0]), ([], [], []), ([0], [0], [1.0])]
)
def test_what_are_no_strata_is_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        stratified_interval(*bad)


# -- where of some only a slice was looked at -----------------------------------------------------------------------------

SLICED = {
    # Prompts of each stratum; its share of the population; rates of what is seen in any case, and in the slice alone.
    "one stratum": ([400], [1.0], [0.02], [0.01]),
    "one stratum of few": ([40], [1.0], [0.05], [0.05]),
    "nothing but in the slice": ([200], [1.0], [0.0], [0.2]),
    "rare, and nothing but in the slice": ([1000], [1.0], [0.0], [0.005]),
    "nothing in the slice": ([300], [1.0], [0.1], [0.0]),
    "nothing at all": ([100], [1.0], [0.0], [0.0]),
    "half of everything": ([30, 30], [0.5, 0.5], [0.3, 0.2], [0.2, 0.2]),
    "singles that seldom come back": (
        [100, 100, 50, 20],
        [0.95, 0.04, 0.009, 0.001],
        [0.0005, 0.01, 0.1, 0.5],
        [0.002, 0.01, 0.05, 0.1],
    ),
    "the light ones come back": ([100, 20, 20, 20], [0.4, 0.3, 0.2, 0.1], [0.001, 0.01, 0.03, 0.9], [0.0, 0.0, 0.02, 0.05]),
    "the light ones come back in the slice": (
        [100, 20, 20, 20],
        [0.4, 0.3, 0.2, 0.1],
        [0.0, 0.0, 0.0, 0.1],
        [0.0, 0.0, 0.02, 0.9],
    ),
    "nearly everything comes back": ([30, 30, 10], [0.5, 0.3, 0.2], [0.9, 0.7, 0.5], [0.08, 0.2, 0.3]),
    "a night that tries few of each": (
        [2] * 6,
        [0.9, 0.05, 0.02, 0.01, 0.01, 0.01],
        [0.01, 0.02, 0.1, 0.3, 0.5, 0.8],
        [0.01, 0.01, 0.05, 0.1, 0.1, 0.1],
    ),
}


def sliced(design, fraction, times=2000):
    """(times, strata) successes that are seen in any case, and those that were in the slice; with a fixed seed."""
    trials, _, surely, in_slice = design
    random = np.random.default_rng(0)
    seen = random.binomial(trials, surely, (times, len(trials)))
    others = random.binomial(np.array(trials) - seen, np.array(in_slice) / (1 - np.array(surely)))
    return seen, random.binomial(others, fraction)


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("name", SLICED)
def test_the_interval_of_a_slice_covers_and_what_it_is_around_is_unbiased(name, fraction):
    """At least 94% of 2,000 intervals hold the rate; the mean of the estimates is the rate, however thin the slice."""
    trials, weights, surely, in_slice = SLICED[name]
    seen, found = sliced(SLICED[name], fraction)
    truth = float(np.dot(weights, np.add(surely, in_slice)))
    estimates = ((seen + found / fraction) / trials) @ weights
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - truth) <= 4 * error + 1e-12
    ends = {}
    for outcome in {(tuple(one), tuple(other)) for one, other in zip(seen.tolist(), found.tolist(), strict=True)}:
        ends[outcome] = slice_interval(*outcome, [1 / fraction] * len(trials), trials, weights)
    held = 0
    for one, other, estimate in zip(seen.tolist(), found.tolist(), estimates, strict=True):
        lower, upper = ends[tuple(one), tuple(other)]
        assert 0 <= lower <= min(1, estimate) + 1e-12 and min(1, estimate) <= upper + 1e-12 <= 1 + 1e-9
        held += lower - 1e-12 <= truth <= upper + 1e-12
    assert held / len(estimates) >= 0.94


@pytest.mark.parametrize(("trials", "fraction"), [(5, 0.5), (12, 0.25), (20, 0.1), (30, 0.5)])
def test_the_interval_of_a_slice_covers_however_few_the_prompts(trials, fraction):
    """Summed up over all that can be found in one stratum, at rates of all sorts."""
    outcomes = [(seen, found) for seen in range(trials + 1) for found in range(trials + 1 - seen)]
    ends = np.array([slice_interval([seen], [found], [1 / fraction], [trials], [1]) for seen, found in outcomes])
    for surely in (0.0, 0.01, 0.05, 0.2, 0.5):
        for in_slice in (0.0, 0.02, 0.1, 0.3, 0.49):
            # Seen in any case; in the slice and found there; everything else.
            shown = in_slice * fraction
            chance = np.array([binom.pmf(seen, trials, surely) * binom.pmf(found, trials - seen, shown / (1 - surely))
                               for seen, found in outcomes])  # fmt: skip
            truth = surely + in_slice
            held = (ends[:, 0] - 1e-12 <= truth) & (truth <= ends[:, 1] + 1e-12)
            assert chance.sum() == pytest.approx(1) and chance[held].sum() >= 0.94, (surely, in_slice)


def test_a_thinner_slice_hides_more():
    """Nothing was found: of 100 prompts, of which one in ten, or one in fifty was looked at."""
    whole, tenth, fiftieth = (slice_interval([0], [0], [times], [100], [1])[1] for times in (1, 10, 50))
    assert whole == pytest.approx(stratified_interval([0], [100], [1])[1])
    assert tenth == pytest.approx(10 * whole) and fiftieth == 1
    # A stratum that stands for nothing has nothing to hide.
    assert slice_interval([0, 0], [0, 0], [1, 10], [100, 100], [1, 0])[1] == pytest.approx(whole)


@pytest.mark.parametrize(
    "bad", [([1], [0], [0.5], [2], [1]), ([1], [0], [1], [0], [1]), ([1], [0], [1], [2], [0]), ([1], [0], [1], [2], [-1])]
)
def test_what_is_no_slice_is_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        slice_interval(*bad)


def test_more_than_was_tried_is_refused():
    with pytest.raises(ValueError, match="successes in"):
        slice_interval([2], [1], [4], [2], [1])
