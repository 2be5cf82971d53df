"""What a sweep says with an interval: means over seeds, differences of rates, slopes, and where a share crosses one half.

All intervals are of 95%. Nothing is said where there is too little to say it of: the numbers are None then.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from transforms.kernels.rates import CONFIDENCE, wilson_interval

FEWEST_EVENTS = 5
"""Of what happened, and of what didn't: with fewer, nothing is said of what it depends on."""


class Estimate(NamedTuple):
    """A number with its 95% interval; None for what can't be said."""

    value: float | None
    lower: float | None
    upper: float | None


NOTHING = Estimate(None, None, None)


def _t(freedom: int) -> float:
    """Student's t that is passed in either direction with a probability of 5%."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / 2))


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of independent values with Student's t interval; of differences of pairs that is the paired t interval.

    Args:
        values: finite; the ends are None for fewer than two, and where all are the same: nothing shows how far they spread.
    """
    if not len(values):
        return NOTHING
    numbers = np.asarray(values, float)
    mean = float(numbers.mean())
    if np.ptp(numbers) <= 1e-12 * max(1.0, abs(mean)):
        return Estimate(mean, None, None)
    half = _t(len(numbers) - 1) * float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return Estimate(mean, mean - half, mean + half)


def rate_difference(successes: int, trials: int, other_successes: int, other_trials: int) -> Estimate:
    """The first rate less the other, of two independent samples, with Newcombe's interval from both of Wilson's.

    Args:
        successes, other_successes: 0 to the trials.
        trials, other_trials: 0 or more; without a trial of either nothing is known.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    if not trials or not other_trials:
        return NOTHING
    rate, other = successes / trials, other_successes / other_trials
    lower, upper = wilson_interval(successes, trials)
    other_lower, other_upper = wilson_interval(other_successes, other_trials)
    difference = rate - other
    return Estimate(
        difference,
        difference - math.hypot(rate - lower, other_upper - other),
        difference + math.hypot(upper - rate, other - other_lower),
    )


class Logistic(NamedTuple):
    """log odds = intercept + slope * x, with the covariance (2, 2) of both."""

    intercept: float
    slope: float
    covariance: np.ndarray


def firth(x: Sequence[float], successes: Sequence[int], trials: Sequence[int], steps: int = 100) -> Logistic:
    """Logistic regression on one number, with Firth's correction: it has an answer where x parts successes and failures, too.

    Args:
        x: (N,) finite, not all the same.
        successes, trials: (N,) of each x; 0 <= successes <= trials, trials >= 1.
        steps: of Fisher scoring at most.

    Returns:
        the maximum of the likelihood times Jeffreys' prior, and the inverse of Fisher's information there.

    Source: Firth 1993, "Bias reduction of maximum likelihood estimates"; Heinze and Schemper 2002, "A solution to the problem
    of separation in logistic regression".
    """
    numbers, hits, tries = (np.asarray(one, float) for one in (x, successes, trials))
    # Fisher scoring wants numbers of about one.
    centre, scale = float(numbers.mean()), float(numbers.std())
    if not scale > 0:
        raise ValueError("all x are the same, expected two or more")
    design = np.stack([np.ones_like(numbers), (numbers - centre) / scale], 1)

    def at(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Rate, covariance, and the logarithm of what is made largest."""
        eta = np.clip(design @ weights, -500, 500)
        rate = 1 / (1 + np.exp(-eta))
        information = design.T @ (design * (tries * rate * (1 - rate))[:, None])
        _, logarithm = np.linalg.slogdet(information)
        likelihood = float((hits * eta - tries * np.logaddexp(0, eta)).sum())
        return rate, np.linalg.pinv(information), likelihood + logarithm / 2

    weights = np.zeros(2)
    rate, covariance, best = at(weights)
    for _ in range(steps):
        spread = tries * rate * (1 - rate)
        leverage = spread * np.einsum("ij,jk,ik->i", design, covariance, design)
        step = covariance @ (design.T @ (hits - tries * rate + leverage * (0.5 - rate)))
        step *= min(1.0, 5 / max(np.abs(step).max(), 1e-300))
        while True:  # half a step where a whole one leads past the top
            new = at(weights + step)
            if new[2] >= best - 1e-12 or np.abs(step).max() < 1e-12:
                break
            step /= 2
        weights = weights + step
        rate, covariance, best = new
        if np.abs(step).max() < 1e-10:
            break
    back = np.array([[1.0, -centre / scale], [0.0, 1 / scale]])
    intercept, slope = back @ weights
    return Logistic(float(intercept), float(slope), back @ covariance @ back.T)


class HalfPoint(NamedTuple):
    """Where a share is one half.

    Attributes:
        size: where; None where that is outside the sizes that were tried.
        slope: of the log odds, for each factor of e in size.
    """

    size: Estimate
    slope: Estimate


def half_point(sizes: Sequence[float], successes: Sequence[int], trials: Sequence[int]) -> HalfPoint:
    """Where a share crosses one half, by logistic regression in the logarithm of size over several models.

    Trials of one model aren't independent, so variances are multiplied by Pearson's dispersion over models (never under 1),
    with Student's t; the interval of the size is Fieller's, and None where it has no end: where the slope may be none.

    Args:
        sizes: (N,) over 0: of each model.
        successes, trials: (N,) 0 <= successes <= trials; models without a trial are left out.

    Returns:
        nothing with fewer than three models, or fewer than two sizes; no size where the share rises through one half and falls
        again among those that were tried.

    Source: McCullagh and Nelder, "Generalized Linear Models", section 4.5; Fieller 1954.
    """
    rows = [row for row in zip(sizes, successes, trials, strict=True) if row[2]]
    if len(rows) < 3 or len({size for size, *_ in rows}) < 2:
        return HalfPoint(NOTHING, NOTHING)
    x = np.log([size for size, *_ in rows])
    hits, tries = (np.array([row[at] for row in rows], float) for at in (1, 2))
    fit = firth(x.tolist(), hits.tolist(), tries.tolist())
    freedom = len(rows) - 2
    rate = 1 / (1 + np.exp(-np.clip(fit.intercept + fit.slope * x, -500, 500)))
    expected = tries * rate * (1 - rate)
    dispersion = max(1.0, float(((hits - tries * rate) ** 2 / np.maximum(expected, 1e-9)).sum()) / freedom)
    covariance = fit.covariance * dispersion
    t = _t(freedom)
    half = t * math.sqrt(covariance[1, 1])
    slope = Estimate(fit.slope, fit.slope - half, fit.slope + half)
    if fit.slope == 0:
        return HalfPoint(NOTHING, slope)
    at = -fit.intercept / fit.slope
    if not x.min() - 1e-9 <= at <= x.max() + 1e-9 or _crosses_twice(x, hits, tries):
        return HalfPoint(NOTHING, slope)
    # All log sizes at which the log odds are 0 within t standard errors: a quadratic inequality.
    square = fit.slope**2 - t**2 * covariance[1, 1]
    linear = fit.intercept * fit.slope - t**2 * covariance[0, 1]
    constant = fit.intercept**2 - t**2 * covariance[0, 0]
    root = linear**2 - square * constant
    if square <= 0 or root < 0:
        return HalfPoint(Estimate(math.exp(at), None, None), slope)
    ends = [(-linear + sign * math.sqrt(root)) / square for sign in (-1, 1)]
    lower, upper = (math.exp(min(one, 700.0)) for one in ends)
    return HalfPoint(Estimate(math.exp(at), lower, upper), slope)


def _crosses_twice(x: np.ndarray, hits: np.ndarray, tries: np.ndarray) -> bool:
    """Whether a share with a square of x in its log odds, which 95% sure isn't zero, is one half at two x among those given.

    Half a success and half a failure are added to each model: without them a share of all or none would have no end.
    """
    if len(x) < 4 or len(np.unique(x)) < 3:
        return False
    columns = np.stack([np.ones_like(x), x - x.mean(), (x - x.mean()) ** 2], 1)
    hits, tries = hits + 0.5, tries + 1
    weights, rate = np.zeros(3), np.full_like(x, 0.5)
    for _ in range(100):
        rate = 1 / (1 + np.exp(-np.clip(columns @ weights, -30, 30)))
        information = columns.T @ (columns * (tries * rate * (1 - rate))[:, None])
        step = np.linalg.lstsq(information, columns.T @ (hits - tries * rate), rcond=None)[0]
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    freedom = len(x) - 3
    squares = (hits - tries * rate) ** 2 / np.maximum(tries * rate * (1 - rate), 1e-9)
    dispersion = max(1.0, float(squares.sum()) / freedom)
    error = math.sqrt(dispersion * float(np.linalg.pinv(information)[2, 2]))
    if not abs(weights[2]) > _t(freedom) * error:
        return False
    roots = np.roots(weights[::-1])
    inside = (roots.real >= x.min() - x.mean()) & (roots.real <= x.max() - x.mean())
    return bool(np.isrealobj(roots) and inside.all())


def slope_within(groups: Sequence[Hashable], x: Sequence[float], y: Sequence[float]) -> Estimate:
    """The slope of y on x by least squares, each group with a level of its own.

    Args:
        groups, x, y: (N,).

    Returns:
        nothing where x doesn't vary inside a group; no ends where nothing is left to see the spread by, or all lie on the line.
    """
    places: dict[Hashable, list[int]] = {}
    for at, group in enumerate(groups):
        places.setdefault(group, []).append(at)
    across, up = np.asarray(x, float), np.asarray(y, float)
    for rows in places.values():
        across[rows], up[rows] = across[rows] - across[rows].mean(), up[rows] - up[rows].mean()
    total = float(across @ across)
    if total <= 1e-12:
        return NOTHING
    slope = float(across @ up) / total
    freedom = len(across) - len(places) - 1
    if freedom < 1:
        return Estimate(slope, None, None)
    rest = up - slope * across
    if float(rest @ rest) <= 1e-18 * max(1.0, float(up @ up)):
        return Estimate(slope, None, None)
    half = _t(freedom) * math.sqrt(float(rest @ rest) / freedom / total)
    return Estimate(slope, slope - half, slope + half)


def odds_per_deviation(x: Sequence[float], happened: Sequence[bool]) -> Estimate:
    """By how much the log odds rise with one standard deviation of x: logistic regression with Firth's correction.

    Args:
        x: (N,) finite.
        happened: (N,).

    Returns:
        with Wald's interval; nothing where fewer than ``FEWEST_EVENTS`` happened or didn't, or x is the same everywhere.
    """
    numbers, events = np.asarray(x, float), np.asarray(happened, bool)
    if min(events.sum(), (~events).sum()) < FEWEST_EVENTS or not numbers.std() > 0:
        return NOTHING
    fit = firth(((numbers - numbers.mean()) / numbers.std()).tolist(), events.astype(int).tolist(), [1] * len(events))
    from scipy.special import ndtri

    half = float(ndtri(1 - (1 - CONFIDENCE) / 2)) * math.sqrt(fit.covariance[1, 1])
    return Estimate(fit.slope, fit.slope - half, fit.slope + half)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Spearman's rank correlation, -1 to 1, with Fisher's interval.

    Returns:
        nothing for fewer than three pairs or where one side is the same everywhere; no ends for fewer than five.

    Source: Bonett and Wright 2000, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations".
    """
    from scipy.stats import rankdata

    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return NOTHING
    rho = float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    if len(x) < 5:
        return Estimate(rho, None, None)
    inside = max(-1 + 1e-12, min(1 - 1e-12, rho))
    half = 1.959963984540054 * math.sqrt((1 + inside**2 / 2) / (len(x) - 3))
    return Estimate(rho, math.tanh(math.atanh(inside) - half), math.tanh(math.atanh(inside) + half))
