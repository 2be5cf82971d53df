"""Intervals of rates. The arithmetic is scipy's; what is decided here is what no trial at all says."""

from __future__ import annotations

CONFIDENCE = 0.95


def _check(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials, expected 0 ≤ successes ≤ trials")


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a rate (Wilson 1927), without continuity correction.

    Args:
        successes: 0 to ``trials``.
        trials: 0 or more; without a trial nothing is known, and the interval is (0, 1).
    """
    from scipy.stats import binomtest

    _check(successes, trials)
    if trials == 0:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def clopper_pearson_upper(successes: int, trials: int) -> float:
    """One-sided 95% upper bound of a rate (Clopper and Pearson 1934): 3/n where none of n was a success, nearly.

    Args:
        successes: 0 to ``trials``.
        trials: 0 or more; without a trial the bound is 1.
    """
    from scipy.stats import beta

    _check(successes, trials)
    if successes == trials:
        return 1.0
    return float(beta.ppf(CONFIDENCE, successes + 1, trials - successes))
