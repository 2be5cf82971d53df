"""Membership scores against slow references, their rates by hand values, and verdicts on sets whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from transforms.kernels import membership
from transforms.kernels.membership import (
    area,
    dataset_inference,
    exposure,
    lira,
    resampled_true_positives,
    rmia,
    roc,
    true_positives_at,
)


def losses(images: int = 300, models: int = 16, signals: int = 2, effect: float = 1.0, seed: int = 0):
    """Losses of a target and shadows, each image in half of them, with a level of its own."""
    random = np.random.default_rng(seed)
    level, scale = random.normal(0.3, 0.1, (images, 1)), random.uniform(0.01, 0.03, (images, 1))
    inside = np.argsort(random.random((models, images)), axis=0) < models // 2
    drawn = level + scale * random.standard_normal((models, images, signals)) - effect * scale * inside[:, :, None]
    return drawn[0], drawn[1:], inside[0], inside[1:]


def reference_lira(target, shadows, inside, spread):
    """An image and a signal at a time, with scipy's densities."""
    images, signals = target.shape
    scores = np.zeros((images, signals))
    for signal in range(signals):
        sides = []
        for which in (inside, ~inside):
            groups = [shadows[which[:, i], i, signal] for i in range(images)]
            own = [np.std(group, ddof=1) for group in groups]
            if spread == "pooled":
                squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
                own = [(squares / sum(len(group) - 1 for group in groups)) ** 0.5] * images
            elif spread == "mean":
                own = [float(np.mean(own))] * images
            sides.append([(group.mean(), deviation) for group, deviation in zip(groups, own, strict=True)])
        for i in range(images):
            densities = [stats.norm.logpdf(target[i, signal], *side[i]) for side in sides]
            scores[i, signal] = densities[0] - densities[1]
    return scores.mean(axis=1)


@pytest.mark.parametrize("spread", ["image", "pooled", "mean"])
def test_lira_is_the_ratio_of_densities(spread):
    target, shadows, _, inside = losses(60)
    np.testing.assert_allclose(
        lira(target, shadows, inside, spread=spread), reference_lira(target, shadows, inside, spread), rtol=1e-9, atol=1e-9
    )
    one = lira(target[:, 0], shadows[:, :, 0], inside, spread=spread)
    np.testing.assert_allclose(one, reference_lira(target[:, :1], shadows[:, :, :1], inside, spread), rtol=1e-9, atol=1e-9)


def test_lira_by_hand():
    # In: mean 1, out: mean 3, both with a deviation of √2 by two models each; log N differ by (4 − 0) / 4.
    shadows = np.array([[0.0], [2.0], [2.0], [4.0]])
    inside = np.array([[True], [True], [False], [False]])
    for spread in ("image", "pooled", "mean"):
        assert lira(np.array([1.0]), shadows, inside, spread=spread) == pytest.approx([1.0])
        assert lira(np.array([2.0]), shadows, inside, spread=spread) == pytest.approx([0.0])
    # A loss at the mean of those that didn't see it is as small with a probability of a half.
    assert lira(np.array([3.0]), shadows, inside, online=False) == pytest.approx([math.log(2)])
    assert lira(np.array([1.0]), shadows, ~inside & False, online=False)[0] > 0


def test_lira_tells_members_and_is_unmoved_by_scale_order_and_extremes():
    target, shadows, member, inside = losses(2000, signals=1, effect=2.0)
    score = lira(target, shadows, inside)
    assert area(score, member) > 0.85 > area(-target[:, 0], member)
    np.testing.assert_allclose(lira(5 * target - 1, 5 * shadows - 1, inside), score, rtol=1e-7, atol=1e-9)
    order = np.random.default_rng(1).permutation(len(shadows))
    np.testing.assert_allclose(lira(target, shadows[order], inside[order]), score, rtol=1e-9, atol=1e-11)
    offline = lira(target, shadows, inside, online=False)
    assert 0.8 < area(offline, member) < area(score, member)
    assert np.isfinite(lira(np.full(2000, -1e3), shadows[:, :, 0], inside, online=False)).all()


def test_lira_has_no_score_without_models_on_a_side():
    target, shadows, _, inside = losses(20)
    inside[:, 0], inside[:, 1], inside[1:, 2], inside[0, 2] = True, False, False, True
    shadows[3, 4], shadows[:, 5] = np.nan, 0.25
    pooled, image = lira(target, shadows, inside), lira(target, shadows, inside, spread="image")
    assert np.flatnonzero(np.isnan(pooled)).tolist() == [0, 1, 4]
    assert np.flatnonzero(np.isnan(image)).tolist() == [0, 1, 2, 4, 5]
    assert np.flatnonzero(np.isnan(lira(target, shadows, inside, online=False)))[0] == 0
    with pytest.raises(ValueError, match="expected"):
        lira(target, shadows[:, :5], inside)
    with pytest.raises(ValueError, match="spread"):
        lira(target, shadows, inside, spread="none")


def reference_rmia(target, shadows, inside, population, population_shadows, offline, gamma=1.0):
    def general(values, outside):
        mean = np.mean(np.exp(values[outside]))
        if offline is None:
            return mean if outside.all() else (mean + np.mean(np.exp(values[~outside]))) / 2
        return ((1 + offline) * mean + 1 - offline) / 2

    z = [np.exp(p) / general(population_shadows[:, j], np.ones(len(shadows), bool)) for j, p in enumerate(population)]
    x = [np.exp(t) / general(shadows[:, i], ~inside[:, i]) for i, t in enumerate(target)]
    return np.array([np.mean([one / other > gamma for other in z]) for one in x])


@pytest.mark.parametrize(("offline", "gamma"), [(0.3, 1.0), (0.0, 1.0), (1.0, 1.05), (None, 1.0)])
def test_rmia_is_the_share_of_the_population(offline, gamma):
    target, shadows, _, inside = losses(50, signals=1)
    population, population_shadows = (
        -losses(80, signals=1, effect=0, seed=3)[0][:, 0],
        -losses(80, signals=1, seed=3)[1][..., 0],
    )
    arguments = (-target[:, 0], -shadows[..., 0], inside, population, population_shadows)
    found = rmia(*arguments, offline=offline, gamma=gamma)
    np.testing.assert_allclose(found, reference_rmia(*arguments, offline, gamma))


def test_rmia_without_shadows_of_a_kind_and_its_refusals():
    target, shadows, _, inside = losses(6, signals=1)
    arguments = [-target[:, 0], -shadows[..., 0], inside, -target[:, 0], -shadows[..., 0]]
    arguments[2] = np.ones_like(inside)
    assert np.isnan(rmia(*arguments)).all()
    arguments[2] = np.zeros_like(inside)
    assert np.isfinite(rmia(*arguments)).all() and np.isnan(rmia(*arguments, offline=None)).all()
    with pytest.raises(ValueError, match="offline"):
        rmia(*arguments, offline=1.5)
    with pytest.raises(ValueError, match="population"):
        rmia(*arguments[:3], np.zeros(0), np.zeros((15, 0)))


def test_the_largest_rate_under_a_limit_of_false_alarms():
    # 200 non-members 0 … 199; two may be over the threshold: scores over 197 are members.
    scores = np.concatenate([np.arange(200.0), [197.0, 197.5, 198.0, 500.0]])
    members = np.arange(204) >= 200
    found = true_positives_at(scores, members, 0.01)
    assert (found.rate, found.above, found.false_positives, found.negatives, found.positives) == (0.75, 197.0, 2, 200, 4)
    assert found.lower == pytest.approx(stats.binomtest(3, 4).proportion_ci().low, abs=1e-9)
    assert found.upper == pytest.approx(stats.binomtest(3, 4).proportion_ci().high, abs=1e-9)
    # Three equal ones at the top are one too many: none of them may be called.
    scores[197:200] = 199.0
    tied = true_positives_at(scores, members, 0.01)
    assert (tied.rate, tied.above, tied.false_positives) == (0.25, 199.0, 0)
    assert true_positives_at(scores, members, 1.0).rate == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_does_better(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 30, 400) / 10 + (members := random.random(400) < 0.5) * 0.5
    for rate in (0.01, 0.03, 0.1, 0.5):
        best = max(
            np.mean(scores[members] > above)
            for above in np.append(scores, -1)
            if np.mean(scores[~members] > above) <= rate + 1e-12
        )
        assert true_positives_at(scores, members, rate).rate == best


@pytest.mark.parametrize(("rate", "negatives", "refused"), [(0.01, 99, True), (0.01, 100, False), (0.001, 999, True)])
def test_too_few_negatives_are_refused(rate, negatives, refused):
    members = np.arange(negatives + 20) < 20
    found = true_positives_at(np.arange(negatives + 20.0)[::-1], members, rate)
    assert (found.rate is None) is refused and found.negatives == negatives
    assert (found.reason == f"{negatives} non-members, a false positive rate of {rate:g} takes {1 / rate:,.0f}") is refused
    assert true_positives_at(np.zeros(200), np.zeros(200, bool), 0.01).reason == "no members"
    with pytest.raises(ValueError, match="finite"):
        true_positives_at(np.full(200, np.nan), np.zeros(200, bool), 0.01)


def test_area_counts_ties_half():
    random = np.random.default_rng(4)
    scores, members = random.integers(0, 9, 80).astype(float), random.random(80) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in scores[members] for b in scores[~members]]
    assert area(scores, members) == pytest.approx(np.mean(pairs), abs=1e-15)
    assert area(np.ones(8), np.arange(8) < 3) == 0.5
    assert area(np.ones(3), np.ones(3, bool)) is None


def test_corners_are_the_curve():
    random = np.random.default_rng(5)
    members = random.random(5000) < 0.5
    scores = np.round(random.standard_normal(5000) + members, 3)
    false, true = roc(scores, members)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    for above in random.choice(scores, 50):
        at = np.mean(scores[~members] >= above)
        assert np.interp(at, false, true) == pytest.approx(np.mean(scores[members] >= above)) or at in false
    assert np.trapezoid(true, false) == pytest.approx(area(scores, members), abs=1e-12)
    thin_false, thin_true = roc(scores, members, per_decade=50)
    assert len(thin_false) < len(false) / 3 and len(thin_false) <= 2 * 50 * 4 + 2
    assert set(zip(thin_false, thin_true, strict=True)) <= set(zip(false, true, strict=True))
    # Of every corner that was left out, a kept one before and after it is no further than a fiftieth of a power of ten.
    for at in false[false > 0]:
        before = thin_false[thin_false <= at].max()
        assert at / before <= 10 ** (1 / 50) + 1e-9
    assert roc(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False]))[0].tolist() == [0, 0, 1]


def test_exposure_by_hand():
    others = np.arange(1, 1024.0)
    found = exposure(np.array([0.0, 1.5, 2.0, 5000.0, np.nan]), others)
    assert found.maximum == 10.0
    # First; second; second and third alike; last.
    np.testing.assert_allclose(found.bits, [10.0, 9.0, 10 - math.log2(2.5), 0.0, np.nan])
    assert exposure(np.array([1.0]), np.zeros(0)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="finite"):
        exposure(np.array([1.0]), np.array([np.inf]))


def test_logistic_regression_is_at_its_minimum():
    random = np.random.default_rng(6)
    features = random.standard_normal((90, 4)) * [1, 2, 0.5, 3]
    labels = features[:, 0] + random.standard_normal(90) > 0.3
    weights, intercept = membership.logistic_regression(features, labels)
    # Newton's method, in full.
    padded, point = np.column_stack([features, np.ones(90)]), np.zeros(5)
    penalty = np.diag([1.0, 1, 1, 1, 0])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-padded @ point))
        slope = penalty @ point + padded.T @ (chance - labels)
        point -= np.linalg.solve(penalty + padded.T @ (padded * (chance * (1 - chance))[:, None]), slope)
    np.testing.assert_allclose([*weights, intercept], point, atol=1e-6)


def test_a_set_that_was_trained_on_is_found_and_another_is_not():
    random = np.random.default_rng(7)
    shift = np.array([0.5, -0.4, 0.3, 0, 0, 0])

    def features(count, moved):
        return (random.standard_normal((count, 6)) + moved * shift) * [1, 100, 1e-3, 1, 1, 0] + 7

    trained = [dataset_inference(features(140, 1), features(140, 0), seed).p_value for seed in range(20)]
    assert np.median(trained) < 0.01
    verdicts = [dataset_inference(features(60, 0), features(80, 0), seed) for seed in range(200)]
    # One-sided: a set that scores lower than the controls speaks for the null.
    assert all((verdict.p_value > 0.5) == (verdict.statistic < 0) for verdict in verdicts)
    untouched = [verdict.p_value for verdict in verdicts]
    # Uniform where neither was trained on.
    assert stats.kstest(untouched, "uniform").pvalue > 0.01
    assert 0.01 < np.mean(np.array(untouched) < 0.05) < 0.1
    # Higher is asked for, not just different: the function learns which side is which.
    assert np.median([dataset_inference(features(140, 0), features(140, 1), seed).p_value for seed in range(20)]) < 0.01
    suspects, controls = features(141, 1), features(140, 0)
    verdict = dataset_inference(suspects, controls)
    assert (verdict.suspects, verdict.controls, verdict.reason) == (71, 70, None) and 0 < verdict.difference < 1
    assert verdict == dataset_inference(suspects, controls) != dataset_inference(suspects, controls, seed=1)
    # The features' scales say nothing.
    assert dataset_inference(suspects * 8 + 1, controls * 8 + 1).p_value == pytest.approx(verdict.p_value, rel=1e-4)


def test_sets_that_cant_be_tested_say_why():
    some = np.random.default_rng(8).standard_normal((10, 2))
    assert dataset_inference(some[:3], some).reason == "3 suspects and 10 controls, expected 4 of each at least"
    assert dataset_inference(np.ones((10, 2)), np.ones((10, 2))).reason == "all scores of a set are the same"
    assert dataset_inference(np.where(some > 1, np.nan, some), some).reason == "a feature isn't finite"
    with pytest.raises(ValueError, match="features"):
        dataset_inference(some, some[:, :1])


def test_the_resampled_interval_is_that_of_a_slow_reference_and_wider_where_images_repeat():
    random = np.random.default_rng(5)
    images = np.repeat(np.arange(150), 4)
    # What an image adds is the same under all models, and scores have ties.
    member = random.random(600) < 0.5
    scores = np.round(np.repeat(random.normal(0, 1, 150), 4) + 0.3 * random.standard_normal(600) + 1.5 * member, 1)
    found = resampled_true_positives(scores, member, images, 0.05, resamples=40, seed=3)
    again, slow = np.random.default_rng(3), []
    for _ in range(40):
        drawn = np.concatenate([np.flatnonzero(images == one) for one in again.integers(0, 150, 150)])
        slow.append(true_positives_at(scores[drawn], member[drawn], 0.05).rate)
    assert found == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=1e-12)
    whole = resampled_true_positives(scores, member, images, 0.05)
    apart = resampled_true_positives(scores, member, np.arange(600), 0.05)
    assert whole[0] < true_positives_at(scores, member, 0.05).rate < whole[1]
    assert whole[1] - whole[0] > 1.2 * (apart[1] - apart[0])
    shuffled = random.permutation(600)
    assert resampled_true_positives(scores[shuffled], member[shuffled], images[shuffled], 0.05) == whole
    assert np.isnan(resampled_true_positives(scores, np.ones(600, bool), images, 0.05)).all()
