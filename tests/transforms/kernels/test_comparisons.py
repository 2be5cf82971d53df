"""Tests between two nights: scipy as the second opinion, hand values, and power by summing what the test itself says."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, fisher_exact, hypergeom

from transforms.kernels.comparisons import fisher, fisher_power, holm, mcnemar, mcnemar_power, smallest_change


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_binomial_test_of_the_changes(newly, no_longer):
    expected = 1.0 if newly + no_longer == 0 else binomtest(newly, newly + no_longer, 0.5, alternative="greater").pvalue
    assert mcnemar(newly, no_longer) == pytest.approx(expected)


def test_mcnemar_by_hand():
    assert mcnemar(5, 0) == pytest.approx(1 / 32)
    assert mcnemar(0, 0) == 1.0 and mcnemar(0, 9) == 1.0
    assert mcnemar(2, 1) == pytest.approx(4 / 8)


@given(st.tuples(st.integers(0, 40), st.integers(0, 40)), st.tuples(st.integers(0, 40), st.integers(0, 40)))
@settings(max_examples=60, deadline=None)
def test_fisher_is_scipys(before, after):
    (x0, missed0), (x1, missed1) = before, after
    expected = fisher_exact([[x1, missed1], [x0, missed0]], alternative="greater").pvalue
    assert fisher([(x0, x0 + missed0, x1, x1 + missed1)]) == pytest.approx(expected, abs=1e-12)


def test_fisher_by_hand():
    # The lady tasting tea: 4 of 4 against 0 of 4, one way in 70.
    assert fisher([(0, 4, 4, 4)]) == pytest.approx(1 / 70)
    assert fisher([(0, 0, 3, 4)]) == 1.0 == fisher([])
    # Two ladies, and one who got no tea on one of the days.
    assert fisher([(0, 4, 4, 4), (0, 4, 4, 4), (9, 9, 0, 0)]) == pytest.approx(1 / 70**2)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=3))
@settings(max_examples=40, deadline=None)
def test_fisher_of_strata_is_the_sum_over_all_tables(strata):
    """By going through all tables of all strata with the same margins."""
    tables = [(x0, x0 + missed0, x1, x1 + missed1) for x0, missed0, x1, missed1 in strata]
    each = [[(x, hypergeom.pmf(x, n0 + n1, x0 + x1, n1)) for x in range(n1 + 1)] for x0, n0, x1, n1 in tables if n0 and n1]
    seen = sum(x1 for _, n0, x1, n1 in tables if n0 and n1)
    ways = [(sum(x for x, _ in some), np.prod([p for _, p in some])) for some in itertools.product(*each)]
    assert fisher(tables) == pytest.approx(sum(p for total, p in ways if total >= seen))


def test_strata_of_other_rates_are_no_change():
    """All of one stratum come back, none of the other; on the second night there are more of the first."""
    assert fisher([(10, 10, 90, 90), (0, 90, 0, 10)]) == pytest.approx(1.0)
    assert fisher([(10, 100, 90, 100)]) < 1e-9


@pytest.mark.parametrize("bad", [(-1, 3, 1, 2), (4, 3, 1, 2), (1, 3, 3, 2)])
def test_what_are_no_counts_is_refused(bad):
    with pytest.raises(ValueError, match="prompts, expected 0 to"):
        fisher([bad])
    with pytest.raises(ValueError, match="expected counts"):
        mcnemar(-1, 2)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == [] and holm([0.2]) == [0.2]


def test_holm_keeps_what_it_promises():
    """Of ten true hypotheses, however they hang together, one is rejected in at most 5% of the nights."""
    random = np.random.default_rng(0)
    for together in (0.0, 0.5, 1.0):
        common = random.random((4000, 1))
        p_values = np.where(random.random((4000, 10)) < together, common, random.random((4000, 10)))
        wrong = np.mean([min(holm(row)) <= 0.05 for row in p_values.tolist()])
        assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize(("prompts", "newly", "no_longer"), [(12, 0.3, 0.0), (12, 0.4, 0.1), (20, 0.2, 0.2)])
def test_the_power_of_mcnemar_is_the_sum_of_what_it_rejects(prompts, newly, no_longer):
    total = 0.0
    for new, lost in itertools.product(range(prompts + 1), repeat=2):
        if new + lost <= prompts and mcnemar(new, lost) <= 0.05:
            changes = new + lost
            total += binom.pmf(changes, prompts, newly + no_longer) * binom.pmf(new, changes, newly / (newly + no_longer))
    assert mcnemar_power(prompts, newly, no_longer, 0.05) == pytest.approx(total)
    assert mcnemar_power(prompts, 0, 0, 0.05) == 0.0


@pytest.mark.parametrize(("rate", "worse", "before", "after"), [(0.1, 0.5, 12, 15), (0.0, 0.3, 9, 20), (0.4, 0.4, 15, 15)])
def test_the_power_of_fisher_is_the_sum_of_what_it_rejects(rate, worse, before, after):
    total = sum(
        binom.pmf(x0, before, rate) * binom.pmf(x1, after, worse)
        for x0, x1 in itertools.product(range(before + 1), range(after + 1))
        if fisher([(x0, before, x1, after)]) <= 0.05
    )
    assert fisher_power(rate, worse, before, after, 0.05) == pytest.approx(total, abs=1e-10)
    # Where nothing is worse, it is the chance of a false alarm.
    if rate == worse:
        assert total <= 0.05


def test_the_smallest_change_is_seen_and_a_smaller_one_is_not():
    def power(change):
        return mcnemar_power(500, change, 0.0, 0.05)

    change = smallest_change(power, 1.0)
    assert power(change) >= 0.8 > power(change * 0.999)
    # Five new ones of 500 are significant, and 6.7 on average bring five with 80%.
    assert 500 * change == pytest.approx(6.7, abs=0.1)
    assert smallest_change(lambda change: fisher_power(0.1, 0.1 + change, 3, 3, 0.05), 0.9) is None
    assert smallest_change(power, 0.0) is None
