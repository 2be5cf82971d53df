"""Intervals of rates: exact where prompts were tried in full, exact by strata where they were drawn by strata.

blaker_interval           all of a kind were tried, or each was drawn with the same probability
stratified_interval       drawn by strata with different probabilities
wilson_interval           the field's usual one, to compare with: at small rates it covers too little
clopper_pearson_interval  what the others are measured by
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

CONFIDENCE = 0.95

Interval = tuple[float, float]


def _check(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials, expected 0 ≤ successes ≤ trials")


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's 95% score interval of a rate (Wilson 1927), without continuity correction.

    Args:
        successes: 0 to ``trials``.
        trials: 0 or more; without a trial nothing is known, and the interval is (0, 1).
    """
    _check(successes, trials)
    if trials == 0:
        return 0.0, 1.0
    # scipy.stats has it too, and takes a second to be imported.
    z = statistics.NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2)
    rate, more = successes / trials, z**2 / trials
    half = z * math.sqrt(rate * (1 - rate) / trials + more / (4 * trials))
    lower = 0.0 if successes == 0 else (rate + more / 2 - half) / (1 + more)
    upper = 1.0 if successes == trials else (rate + more / 2 + half) / (1 + more)
    return lower, upper


def clopper_pearson_upper(successes: int, trials: int) -> float:
    """One-sided 95% upper bound of a rate (Clopper and Pearson 1934): 3/n where none of n was a success, nearly.

    Args:
        successes: 0 to ``trials``.
        trials: 0 or more; without a trial the bound is 1.
    """
    return _clopper_pearson_upper(successes, trials, 1 - CONFIDENCE)


def clopper_pearson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Clopper and Pearson's exact interval (1934): each end is missed with at most half of what is not covered.

    Args:
        successes: 0 to ``trials``.
        trials: 0 or more; without a trial nothing is known, and the interval is (0, 1).
        confidence: over 0, under 1.
    """
    outside = (1 - confidence) / 2
    lower = 1 - _clopper_pearson_upper(trials - successes, trials, outside)
    return lower, _clopper_pearson_upper(successes, trials, outside)


def _clopper_pearson_upper(successes: int, trials: int, outside: float) -> float:
    from scipy.special import betainccinv

    _check(successes, trials)
    return 1.0 if successes == trials else float(betainccinv(successes + 1, trials - successes, outside))


def blaker_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Blaker's exact interval: never wider than Clopper and Pearson's, and it covers as surely.

    It holds the rates under which a result as unlikely as this one has a probability over ``1 - confidence``: that of the
    smaller tail which begins at the result, and of as much of the other tail as is no likelier. Where these rates leave a gap,
    the gap is inside.

    Args:
        successes: 0 to ``trials``.
        trials: 0 or more; without a trial nothing is known, and the interval is (0, 1).
        confidence: over 0, under 1.

    Source: Blaker 2000, "Confidence curves and improved exact confidence intervals for discrete distributions". How the ends
    are found: Klaschka 2010, "BlakerCI: an algorithm and R package for the Blaker's binomial confidence limits calculation".
    """
    _check(successes, trials)
    if trials == 0:
        return 0.0, 1.0
    return _blaker_lower(successes, trials, confidence), 1 - _blaker_lower(trials - successes, trials, confidence)


def _blaker_lower(successes: int, trials: int, confidence: float) -> float:
    """The lower end.

    Between Clopper and Pearson's end and the next rate at which one more of the other tail counts, the probability of both
    tails falls, then rises. At that next rate both tails are equally likely, so together over 1 - confidence: the end is not
    beyond it.
    """
    if successes == 0:
        return 0.0
    begin = clopper_pearson_interval(successes, trials, confidence)[0]
    # Not over 1/2 for either tail, since the upper one is that small at this rate.
    other = _last(lambda count: _at_most(count, trials, begin) <= _at_least(successes, trials, begin), -1, successes)
    end = _root(lambda rate: _at_least(successes, trials, rate) - _at_most(other + 1, trials, rate), begin, 1.0)

    def excess(rate: float) -> float:
        return _at_least(successes, trials, rate) + _at_most(other, trials, rate) - (1 - confidence)

    return _root(excess, begin, end) if excess(end) > 0 else end


def _at_least(count: int, trials: int, rate: float) -> float:
    """P(count or more of the trials)."""
    from scipy.special import betainc

    return 1.0 if count <= 0 else float(betainc(count, trials - count + 1, rate))


def _at_most(count: int, trials: int, rate: float) -> float:
    """P(count or fewer of the trials)."""
    from scipy.special import betaincc

    return 0.0 if count < 0 else 1.0 if count >= trials else float(betaincc(count + 1, trials - count, rate))


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last whole number from ``low`` to before ``high`` for which it holds; it holds for ``low`` and up to some number."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _root(value: Callable[[float], float], low: float, high: float) -> float:
    """Where ``value`` is over 0 for the first time, between ``low`` (where it isn't) and ``high``."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if value(middle) > 0 else (middle, high)
    return low


def stratified_interval(
    successes: Sequence[int], trials: Sequence[int], weights: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
    """An interval of the rate of a whole population of which strata were drawn with different probabilities.

    Fay and Feuer's, by the successes or by the failures, whichever bounds an end more closely: at small rates the one, at
    large ones the other. Each end is that of a gamma distribution with the mean and the variance of what was found, for the
    upper end with one more where a single trial weighs most. So a stratum without a success still says how much it may hide,
    in proportion to its weight, even if it was tried once. Korn and Graubard's interval, which is the usual one for surveys,
    takes such a stratum for certain.

    Not proven to cover, but measured: docs/statistics.md. The price is width: up to a third more than exact limits of the same
    prompts in one stratum where about half of them come back, nothing at small rates.

    Args:
        successes: (s,) 0 to the trials.
        trials: (s,) 1 or more. A stratum that was not tried could be anything: leave it out, and say so.
        weights: (s,) its part of the population, in any unit; 0 or more, not all 0.
        confidence: over 0, under 1.

    Source: Fay and Feuer 1997, "Confidence intervals for directly standardized rates: a method based on the gamma
    distribution".
    """
    share = np.asarray(weights, float)
    if not len(share) or len(share) != len(successes) or len(share) != len(trials) or share.min() < 0 or share.sum() <= 0:
        raise ValueError(f"weights {list(weights)} for {len(successes)} strata, expected one each, 0 or more and not all 0")
    if min(trials) < 1:
        raise ValueError(f"a stratum without a trial among {list(trials)}, expected 1 or more in each")
    for some, tried in zip(successes, trials, strict=True):
        _check(some, tried)
    hits, tries = np.asarray(successes), np.asarray(trials)
    weighs = share / share.sum() / tries
    outside = (1 - confidence) / 2
    lower, upper = _fay_feuer(hits, weighs, outside)
    fewest, most = _fay_feuer(tries - hits, weighs, outside)
    return max(0.0, lower, 1 - most), min(1.0, upper, 1 - fewest)


def slice_interval(
    surely: Sequence[int],
    in_slice: Sequence[int],
    slice_weights: Sequence[float],
    trials: Sequence[int],
    weights: Sequence[float],
    confidence: float = CONFIDENCE,
) -> Interval:
    """An interval of the rate of a population, where of some trials only a random slice was looked at.

    Fay and Feuer's, by the successes: those that would have been seen in any case weigh as their stratum's trials do, those
    that were seen in the slice so many times as much. A slice without a success still says how much it may hide.

    Not proven to cover, but measured: docs/statistics.md.

    Args:
        surely: (s,) successes of each stratum that didn't depend on the slice.
        in_slice: (s,) successes that were seen because their trial was in the slice.
        slice_weights: (s,) 1 / the probability to be in it; 1 or more.
        trials: (s,) 1 or more, looked at or not.
        weights: (s,) its part of the population, in any unit; 0 or more, not all 0.
        confidence: over 0, under 1.
    """
    share = np.asarray(weights, float)
    times = np.asarray(slice_weights, float)
    if min(trials) < 1 or share.min() < 0 or share.sum() <= 0 or times.min() < 1:
        raise ValueError(
            f"trials {list(trials)}, weights {list(weights)}, slice weights {list(slice_weights)}; expected 1 or more, "
            "0 or more and not all 0, 1 or more"
        )
    for some, found, tried in zip(surely, in_slice, trials, strict=True):
        _check(some + found, tried)
    each = share / share.sum() / np.asarray(trials)
    counts = np.concatenate([np.asarray(surely), np.asarray(in_slice)])
    lower, upper = _fay_feuer(counts, np.concatenate([each, each * times]), (1 - confidence) / 2)
    return max(0.0, min(1.0, lower)), min(1.0, upper)


def _fay_feuer(counts: np.ndarray, weighs: np.ndarray, outside: float) -> Interval:
    """The limits of Σ weighs · (what was to be expected of counts), Poisson, each missed with a probability of ``outside``."""
    from scipy.special import gammaincinv

    mean, variance, heaviest = float(weighs @ counts), float(weighs**2 @ counts), float(weighs.max())
    lower = 0.0 if mean == 0 else variance / mean * float(gammaincinv(mean**2 / variance, outside))
    mean, variance = mean + heaviest, variance + heaviest**2
    return lower, variance / mean * float(gammaincinv(mean**2 / variance, 1 - outside))
