"""Whether one night is worse than another, and how much worse it must be to be seen.

All tests are exact and one-sided: they ask whether the later night gives back more. Several of them are judged together by
``holm``, so that a night of many strata doesn't cry wolf more often than one of few.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np


def mcnemar(newly: int, no_longer: int) -> float:
    """Probability of at least so many new extractions among the changes, if either way were as likely (McNemar 1947, exact).

    The same prompts on two nights: prompts that changed nothing say nothing.

    Args:
        newly: prompts that are extracted in the later night alone.
        no_longer: prompts that were extracted in the earlier night alone.

    Returns:
        the p-value, over 0, up to 1; 1 where nothing changed.
    """
    from scipy.stats import binom

    if newly < 0 or no_longer < 0:
        raise ValueError(f"{newly} new and {no_longer} lost extractions, expected counts")
    return float(binom.sf(newly - 1, newly + no_longer, 0.5))


def fisher(strata: Sequence[tuple[int, int, int, int]]) -> float:
    """Probability of at least so many extractions in the later night, given how many each stratum has in both (exact).

    Other prompts on two nights, drawn by strata. With one stratum it is Fisher's test (1935); with several the exact form of
    Mantel and Haenszel's: strata differ in their rates, and nothing but a change within them counts.

    Args:
        strata: of each (extracted before, tried before, extracted after, tried after); one that was not tried on both nights
            says nothing.

    Returns:
        the p-value, over 0, up to 1; 1 where nothing is known.

    Source: Birch 1964, "The detection of partial association, I: the 2 x 2 case".
    """
    from scipy.stats import hypergeom

    probabilities, later = np.ones(1), 0
    for before, tried_before, after, tried_after in strata:
        for extracted, tried in ((before, tried_before), (after, tried_after)):
            if not 0 <= extracted <= tried:
                raise ValueError(f"{extracted} extractions among {tried} prompts, expected 0 to {tried}")
        if tried_before and tried_after:
            counts = np.arange(min(before + after, tried_after) + 1)
            each = hypergeom.pmf(counts, tried_before + tried_after, before + after, tried_after)
            probabilities, later = np.convolve(probabilities, each), later + after
    return min(1.0, float(probabilities[later:].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that may each be compared with one significance level, whatever depends on what (Holm 1979).

    The chance that any of the true hypotheses is rejected stays under that level.
    """
    count = len(p_values)
    adjusted, highest = [0.0] * count, 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


# -- power --------------------------------------------------------------------------------------------------------------


def mcnemar_power(prompts: int, newly: float, no_longer: float, significance: float) -> float:
    """Probability that ``mcnemar`` of the same ``prompts`` is at most ``significance``.

    Args:
        prompts: tried on both nights.
        newly, no_longer: shares of the prompts that change either way; together at most 1.
        significance: over 0, under 1.
    """
    from scipy.stats import binom

    changing = newly + no_longer
    if changing <= 0:
        return 0.0
    changes = np.arange(prompts + 1)
    # The fewest new ones among so many changes that are significant.
    fewest = binom.isf(significance, changes, 0.5) + 1
    return float(binom.pmf(changes, prompts, changing) @ binom.sf(fewest - 1, changes, newly / changing))


def fisher_power(rate: float, worse: float, tried_before: int, tried_after: int, significance: float) -> float:
    """Probability that ``fisher`` of one stratum is at most ``significance`` where its rate rises to ``worse``."""
    from scipy.stats import binom

    likely, fewest = _fewest_significant(rate, tried_before, tried_after, significance)
    return float(likely @ binom.sf(fewest - 1, tried_after, worse))


@functools.lru_cache
def _fewest_significant(rate: float, tried_before: int, tried_after: int, significance: float) -> tuple[np.ndarray, np.ndarray]:
    """How likely each number of extractions before is, and the fewest after it that are significant, if need be one too many.

    Remembered, since the smallest change is looked for among many and this is most of the work.
    """
    from scipy.stats import binom, hypergeom

    before = np.arange(tried_before + 1)
    likely = binom.pmf(before, tried_before, rate)
    before, likely = before[likely > 1e-12], likely[likely > 1e-12]
    # By bisection for all at once; tried_after + 1 where none are.
    low, high = np.full(len(before), -1), np.full(len(before), tried_after + 1)
    while (high - low > 1).any():
        middle = np.clip((low + high) // 2, 0, tried_after)
        small = hypergeom.sf(middle - 1, tried_before + tried_after, before + middle, tried_after) <= significance
        low, high = np.where(small, low, np.maximum(low, middle)), np.where(small, np.minimum(high, middle), high)
    return likely, high


def smallest_change(power: Callable[[float], float], most: float, wanted: float = 0.8) -> float | None:
    """The smallest change that is seen with probability ``wanted``, to four digits; None where not even ``most`` is.

    Args:
        power: change → probability that it is seen; rises with the change.
        most: the largest change that there can be, over 0.
        wanted: over 0, under 1.
    """
    if most <= 0 or power(most) < wanted:
        return None
    low, high = 0.0, most
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= wanted else (middle, high)
    return high
