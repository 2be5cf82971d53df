"""Membership inference: scores of images from losses and shadow models, what they are worth, canaries, and whole sets.

In every score of this module higher means member. Where no shadow model is had, the loss itself is one: its negative (the loss
threshold of Yeom et al. 2018). All is float64.

lira               a likelihood ratio by shadow models with and without the image (Carlini et al. 2022)
rmia               a ratio test against a population (Zarifzadeh et al. 2024)
true_positives_at  the largest rate of members found at a rate of false alarms, with its interval; refused on too few negatives
resampled_true_positives  its interval where images repeat, over models
area               under the ROC curve
roc                its corners, for a chart with log axes
exposure           of canaries (Carlini et al. 2019)
dataset_inference  whether a set was trained on (Dubiński et al. 2025)
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from transforms.kernels.rates import clopper_pearson_interval

Spread = Literal["image", "pooled", "mean"]


def lira(
    target: np.ndarray, shadows: np.ndarray, inside: np.ndarray, *, spread: Spread = "pooled", online: bool = True
) -> np.ndarray:
    """LiRA: the logarithm of the likelihood ratio of an image's loss under models that saw it, and under models that didn't.

    Losses are taken as normal. Of several signals (views of the image, timesteps) the mean of the log-likelihood ratios is
    returned, as the authors' code has it over augmentations; the paper writes a multivariate normal, which 8 shadows a side
    can't fit. The mean over draws of noise of one loss is better taken before (paper "Extracting Training Data from Diffusion
    Models", section 5.2): it is then one signal, of less variance.

    Offline, where no shadow model saw the image, the score is −log P(a loss as small, under models that didn't see it):
    one-sided as in the paper. (Some codes have the negative log-density there, which calls large losses members too.)

    Args:
        target: (n,) or (n, s) losses under the model that is attacked, s signals.
        shadows: (m, n) or (m, n, s) losses of the same images, with the same noise, under the shadow models.
        inside: (m, n) bool, whether the shadow model was trained on the image.
        spread: what stands for the standard deviation, by side and signal: "image", the image's own, with the divisor of an
            unbiased variance; "pooled", the root of the mean variance within images, by degrees of freedom; "mean", the mean
            of the images' own standard deviations (PrivacyGuard's ``use_fixed_variance`` with "mix"). With few shadows the
            paper pools.
        online: with the models that saw the image, or without.

    Returns:
        (n,) float64; NaN where an image has no model on a side that is needed (with "image": less than two, or all the same
        loss), or a loss isn't finite.

    Source: Carlini et al. 2022, "Membership Inference Attacks From First Principles", algorithm 1 and section IV; the mean over
    augmentations as in its published code (from memory).
    """
    target, shadows = np.asarray(target, np.float64), np.asarray(shadows, np.float64)
    inside = np.asarray(inside, bool)
    if target.ndim == 1:
        target, shadows = target[:, None], shadows[..., None]
    if target.ndim != 2 or shadows.shape != (len(inside), *target.shape) or inside.shape != shadows.shape[:2]:
        raise ValueError(
            f"losses {target.shape} of the target, {shadows.shape} of the shadows and {inside.shape} of membership; "
            "expected (n, s), (m, n, s) and (m, n)"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, deviation = _moments(shadows, ~inside, spread)
        far = (target - mean) / deviation
        if online:
            mean_in, deviation_in = _moments(shadows, inside, spread)
            near = (target - mean_in) / deviation_in
            scores = (far**2 - near**2) / 2 + np.log(deviation) - np.log(deviation_in)
        else:
            from scipy.special import log_ndtr

            scores = -log_ndtr(far)
        scores = scores.mean(axis=1)
    return np.where(np.isfinite(scores), scores, np.nan)


def _moments(shadows: np.ndarray, which: np.ndarray, spread: Spread) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n, s) and standard deviation (n, s) or (s,) of those losses, (m, n, s), of which ``which``, (m, n), is true."""
    count = which.sum(axis=0)[:, None]
    kept = np.where(which[:, :, None], shadows, 0.0)
    mean = kept.sum(axis=0) / count
    squares = (np.where(which[:, :, None], shadows - mean, 0.0) ** 2).sum(axis=0)
    own = squares / (count - 1)
    own[count[:, 0] < 2] = np.nan
    if spread == "image":
        return mean, np.where(own > 0, np.sqrt(own), np.nan)
    enough = (count[:, 0] > 1) & np.isfinite(squares).all(axis=1)
    if not enough.any():
        return mean, np.full(mean.shape[1], np.nan)
    if spread == "mean":
        deviation = np.sqrt(own[enough]).mean(axis=0)
    elif spread == "pooled":
        deviation = np.sqrt(squares[enough].sum(axis=0) / (count[enough] - 1).sum())
    else:
        raise ValueError(f"spread {spread!r}, expected image, pooled or mean")
    return mean, np.where(deviation > 0, deviation, np.nan)


OFFLINE = 0.3
"""RMIA's factor a where it isn't tuned, as in its published code."""


def rmia(
    target: np.ndarray,
    shadows: np.ndarray,
    inside: np.ndarray,
    population: np.ndarray,
    population_shadows: np.ndarray,
    *,
    offline: float | None = OFFLINE,
    gamma: float = 1.0,
) -> np.ndarray:
    """RMIA: the share of a population over which the model prefers the image, by how likely both are in general.

    All inputs are logarithms of likelihoods. For a diffusion model that is minus the mean squared error: the paper's own signal
    is the probability of a class, and ``offline`` was made for that range, 0 to 1.

    Args:
        target: (n,) log-likelihoods of images under the model that is attacked.
        shadows: (m, n), under shadow models.
        inside: (m, n) bool, whether the shadow model was trained on the image.
        population: (z,) log-likelihoods under the attacked model of other images, which no model was trained on.
        population_shadows: (m, z), under the shadow models.
        offline: the paper's a: P(x) is ((1 + a) · P_out(x) + (1 − a)) / 2 where only models that didn't see the image are
            asked. None asks both kinds (online): P(x) is the mean of the mean of each.
        gamma: how many times likelier the image must be.

    Returns:
        (n,) float64 in [0, 1]; NaN where an image has no shadow model of a kind that is needed, or a number isn't finite.

    Source: Zarifzadeh et al. 2024, "Low-Cost High-Power Membership Inference Attacks"; privacytrustlab/ml_privacy_meter,
    ``modules/mia/attacks/rmia.py`` (which keeps as many of the shadow models as it is told; here all are asked).
    """
    target, shadows = np.asarray(target, np.float64), np.asarray(shadows, np.float64)
    population, population_shadows = np.asarray(population, np.float64), np.asarray(population_shadows, np.float64)
    inside = np.asarray(inside, bool)
    if shadows.shape != inside.shape or shadows.shape[1:] != target.shape:
        raise ValueError(f"{target.shape} of the target, {shadows.shape} of the shadows, {inside.shape} of membership")
    if population_shadows.shape != (len(shadows), len(population)) or not len(population):
        raise ValueError(
            f"{population.shape} of the population, {population_shadows.shape} of the shadows, expected one at least"
        )
    if offline is not None and not 0 <= offline <= 1:
        raise ValueError(f"offline {offline}, expected 0 to 1")
    outside = _log_mean(shadows, ~inside)
    others = _log_mean(population_shadows, np.ones(population_shadows.shape, bool))
    with np.errstate(divide="ignore", invalid="ignore"):
        if offline is None:
            general = np.logaddexp(outside, _log_mean(shadows, inside)) - math.log(2)
        else:
            factor, rest = math.log((1 + offline) / 2), np.log((1 - offline) / 2)
            general, others = np.logaddexp(factor + outside, rest), np.logaddexp(factor + others, rest)
    ratio = target - general
    ascending = np.sort(population - others)
    # How many of the population the image is over gamma times likelier than.
    found = np.searchsorted(ascending, ratio - math.log(gamma), side="left") / len(ascending)
    return np.where(np.isfinite(ratio) & np.isfinite(ascending).all(), found, np.nan)


def _log_mean(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The logarithm of the mean of exp of those values, (m, n), of which ``which`` is true: (n,), NaN where there is none."""
    from scipy.special import logsumexp

    count = which.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = logsumexp(np.where(which, values, -np.inf), axis=0) - np.log(count)
    return np.where(count > 0, mean, np.nan)


class TruePositives(NamedTuple):
    """The largest rate of members found with no more false alarms than asked for.

    Attributes:
        rate: None where it was refused.
        lower, upper: Clopper and Pearson's interval of 95%, of the members at this threshold. That the threshold comes from a
            sample of non-members isn't in it.
        above: scores over this are called members.
        false_positives: how many of ``negatives`` are.
        negatives, positives: non-members and members that there were.
        reason: why it was refused, else None.
    """

    rate: float | None
    lower: float | None
    upper: float | None
    above: float | None
    false_positives: int | None
    negatives: int
    positives: int
    reason: str | None


def true_positives_at(scores: np.ndarray, members: np.ndarray, rate: float) -> TruePositives:
    """The largest true positive rate whose false positive rate is at most ``rate``.

    Others take the point nearest to the rate, or the last one below it; at 500 negatives they differ by points of per cent.

    Args:
        scores: (n,) finite, higher = member. Equal scores are on the same side of any threshold.
        members: (n,) bool.
        rate: over 0, at most 1. Under 1 / rate negatives (100 for 1%, 1,000 for 0.1%) one false alarm is already too many, and
            the answer would be of a threshold that nothing has tried: it is refused.
    """
    inside, outside = _sides(scores, members)
    if not 0 < rate <= 1:
        raise ValueError(f"a false positive rate of {rate}, expected over 0, at most 1")
    needed = math.ceil(1 / rate - 1e-9)
    reason = None
    if len(outside) < needed:
        reason = f"{len(outside)} non-members, a false positive rate of {rate:g} takes {needed:,}"
    elif not len(inside):
        reason = "no members"
    if reason:
        return TruePositives(None, None, None, None, None, len(outside), len(inside), reason)
    # A hundredth of 300 is 3, whatever its product is in binary.
    allowed = math.floor(rate * len(outside) + 1e-9)
    above = -math.inf if allowed >= len(outside) else float(np.sort(outside)[len(outside) - allowed - 1])
    found = int((inside > above).sum())
    lower, upper = clopper_pearson_interval(found, len(inside))
    wrong = int((outside > above).sum())
    return TruePositives(found / len(inside), lower, upper, above, wrong, len(outside), len(inside), None)


RESAMPLES = 500
"""Resamples of an interval."""


def resampled_true_positives(
    scores: np.ndarray, members: np.ndarray, images: np.ndarray, rate: float, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The interval of 95% of ``true_positives_at`` where an image has scores under several models, which aren't independent.

    Images are drawn with replacement, each with all its scores, and the threshold is found anew: its ends are the 2.5% and the
    97.5% quantile.

    Args:
        scores: (n,) finite, higher = member.
        members: (n,) bool.
        images: (n,) whose scores they are: of any kind that can be sorted.
        rate: over 0, at most 1.

    Returns:
        lower and upper end; NaN without members or non-members.
    """
    inside, outside = _sides(scores, members)
    if not len(inside) or not len(outside):
        return math.nan, math.nan
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ordered, is_member = np.asarray(scores, np.float64)[order], np.asarray(members, bool)[order]
    # Equal scores are on the same side of any threshold.
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    _, of_image = np.unique(np.asarray(images), return_inverse=True)
    number, of_image = int(of_image.max()) + 1, of_image[order]
    random, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        weights = np.bincount(random.integers(0, number, number), minlength=number)[of_image]
        true, false = np.cumsum(weights * is_member), np.cumsum(weights * ~is_member)
        if not true[-1] or not false[-1]:
            continue
        allowed = false[last] <= rate * false[-1] + 1e-9
        found.append(true[last][allowed].max(initial=0) / true[-1])
    if not found:
        return math.nan, math.nan
    lower, upper = np.quantile(found, [0.025, 0.975])
    return float(lower), float(upper)


def area(scores: np.ndarray, members: np.ndarray) -> float | None:
    """The area under the ROC curve: how often a member's score is over a non-member's, ties counted half. None without both.

    Args:
        scores: (n,) finite, higher = member.
        members: (n,) bool.
    """
    inside, outside = _sides(scores, members)
    if not len(inside) or not len(outside):
        return None
    ascending = np.sort(outside)
    # Whole numbers: over, and over or equal.
    twice = np.searchsorted(ascending, inside, "left").sum() + np.searchsorted(ascending, inside, "right").sum()
    return float(twice / (2 * len(inside) * len(outside)))


def roc(scores: np.ndarray, members: np.ndarray, per_decade: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the ROC curve: false positive rates and true positive rates, from (0, 0) to (1, 1), both ascending.

    Points between two corners lie on the line that joins them, so leaving them out changes nothing.

    Args:
        scores: (n,) finite, higher = member; both members and non-members.
        members: (n,) bool.
        per_decade: of the corners inside such a part of a power of ten of the false positive rate only the first and the last
            stay: what is between them is no wider than that on a log axis, and lies between them.

    Returns:
        (p,) and (p,) float64.
    """
    inside, outside = _sides(scores, members)
    if not len(inside) or not len(outside):
        raise ValueError(f"{len(inside)} members and {len(outside)} non-members, expected one of each at least")
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    true = np.concatenate([[0], len(inside) - np.searchsorted(np.sort(inside), thresholds, "left")])
    false = np.concatenate([[0], len(outside) - np.searchsorted(np.sort(outside), thresholds, "left")])
    across, up = np.diff(false), np.diff(true)
    corner = np.ones(len(true), bool)
    corner[1:-1] = across[1:] * up[:-1] != across[:-1] * up[1:]
    true, false = true[corner], false[corner]
    if per_decade is not None:
        with np.errstate(divide="ignore"):
            bins = np.floor(np.log10(false / len(outside)) * per_decade)
        change = bins[1:] != bins[:-1]
        ends = np.concatenate([[True], change]) | np.concatenate([change, [True]])
        true, false = true[ends], false[ends]
    return false / len(outside), true / len(inside)


def _sides(scores: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of members, and of the others."""
    scores, members = np.asarray(scores, np.float64), np.asarray(members, bool)
    if scores.ndim != 1 or scores.shape != members.shape:
        raise ValueError(f"scores {scores.shape} and members {members.shape}, expected (n,) each")
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores aren't finite: leave them out, and say so"
        )
    return scores[members], scores[~members]


class Exposure(NamedTuple):
    """Bits that a model gives away of canaries, and the most that the pool can show."""

    bits: np.ndarray
    maximum: float


def exposure(canaries: np.ndarray, others: np.ndarray) -> Exposure:
    """How much further in front a canary stands, by its loss, than one of a pool that was not trained on.

    log2(pool) − log2(rank), where the pool is the canary and all the others, and 1 is the rank of the smallest loss; of equal
    losses the mean rank counts. 1,023 others can show 10 bits at most, however well it is known.

    Args:
        canaries: (c,) losses.
        others: (r,) losses of pictures drawn like the canaries.

    Returns:
        (c,) float64, NaN where a loss isn't finite; the maximum, log2(r + 1).

    Source: Carlini et al. 2019, "The Secret Sharer"; Carlini et al. 2023, "Extracting Training Data from Diffusion Models",
    section 7.
    """
    canaries, ascending = np.asarray(canaries, np.float64), np.sort(np.asarray(others, np.float64))
    if not np.isfinite(ascending).all():
        raise ValueError(f"{int((~np.isfinite(ascending)).sum())} of {len(ascending)} losses of the pool aren't finite")
    less, not_more = (np.searchsorted(ascending, canaries, side) for side in ("left", "right"))
    maximum = math.log2(len(ascending) + 1)
    bits = maximum - np.log2(1 + (less + not_more) / 2)
    return Exposure(np.where(np.isfinite(canaries), bits, np.nan), maximum)


class DatasetVerdict(NamedTuple):
    """Whether a set was trained on.

    Attributes:
        p_value: of "the suspects score no higher than the controls"; None where it was refused.
        statistic: Welch's t.
        difference: of the mean scores, which are probabilities by the scoring function.
        suspects, controls: how many of each the test was made on: the half that the function wasn't fitted on.
        reason: why it was refused, else None.
    """

    p_value: float | None
    statistic: float | None
    difference: float | None
    suspects: int
    controls: int
    reason: str | None


FEWEST = 4
"""Pictures of each kind that a dataset-level test takes: two in each half. CDI's authors need about 70 for a small p."""


def dataset_inference(suspects: np.ndarray, controls: np.ndarray, seed: int = 0) -> DatasetVerdict:
    """CDI: a p-value that a model was trained on a set of pictures, from weak signals of many of them.

    Half of both sets fits a logistic regression on standardised features (their penalty: scikit-learn's default, C = 1). It
    gives the other half a score each, and Welch's one-sided t-test asks whether the suspects' are higher. Under the null, where
    neither set was trained on and both are drawn alike, the p-value is uniform: where the sets differ in anything but that, it
    is small as well. The authors' code scores by five folds, where no score is independent of the others; here half is never
    fitted on.

    Args:
        suspects: (n, f) features, of any sign and scale: what attacks say of each picture.
        controls: (m, f), of pictures that the model was surely not trained on, drawn as the suspects are.
        seed: of the halves.

    Source: Dubiński et al. 2025, "CDI: Copyrighted Data Identification in Diffusion Models", sections 4 and 5;
    sprintml/copyrighted_data_identification.
    """
    suspects, controls = np.asarray(suspects, np.float64), np.asarray(controls, np.float64)
    if suspects.ndim != 2 or suspects.shape[1:] != controls.shape[1:] or not suspects.shape[1]:
        raise ValueError(f"features {suspects.shape} and {controls.shape}, expected (n, f) and (m, f)")
    tested = len(suspects) - len(suspects) // 2, len(controls) - len(controls) // 2
    if min(len(suspects), len(controls)) < FEWEST:
        reason = f"{len(suspects)} suspects and {len(controls)} controls, expected {FEWEST} of each at least"
        return DatasetVerdict(None, None, None, *tested, reason)
    if not (np.isfinite(suspects).all() and np.isfinite(controls).all()):
        return DatasetVerdict(None, None, None, *tested, "a feature isn't finite")
    from scipy import stats

    random = np.random.default_rng(seed)
    orders = [random.permutation(len(each)) for each in (suspects, controls)]
    fitted = [each[order[: len(each) // 2]] for each, order in zip((suspects, controls), orders, strict=True)]
    others = [each[order[len(each) // 2 :]] for each, order in zip((suspects, controls), orders, strict=True)]
    features = np.concatenate(fitted)
    centre, scale = features.mean(axis=0), features.std(axis=0)
    # A feature that is the same for all says nothing, and isn't divided by nothing.
    scale[scale == 0] = np.inf
    weights, intercept = logistic_regression((features - centre) / scale, np.repeat([True, False], [len(f) for f in fitted]))
    scores = [_probability((each - centre) / scale @ weights + intercept) for each in others]
    difference = float(scores[0].mean() - scores[1].mean())
    if all(np.ptp(each) < 1e-12 for each in scores):
        return DatasetVerdict(None, None, difference, *tested, "all scores of a set are the same")
    test = stats.ttest_ind(*scores, equal_var=False, alternative="greater")
    return DatasetVerdict(float(test.pvalue), float(test.statistic), difference, *tested, None)


def logistic_regression(features: np.ndarray, labels: np.ndarray, strength: float = 1.0) -> tuple[np.ndarray, float]:
    """Weights and intercept that minimise ½ |w|² + ``strength`` · Σ log-loss, as scikit-learn's with C = ``strength``.

    Args:
        features: (n, f) float64.
        labels: (n,) bool.
    """
    from scipy.optimize import minimize

    signs = np.where(labels, 1.0, -1.0)

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (features @ point[:-1] + point[-1])
        pull = -strength * signs * _probability(-margins)
        value = point[:-1] @ point[:-1] / 2 + strength * np.logaddexp(0, -margins).sum()
        return float(value), np.append(point[:-1] + features.T @ pull, pull.sum())

    start = np.zeros(features.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 10_000, "ftol": 1e-14, "gtol": 1e-8})
    return found.x[:-1], float(found.x[-1])


def _probability(logit: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(logit)
