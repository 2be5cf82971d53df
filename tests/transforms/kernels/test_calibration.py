"""The calibrated threshold: hand values, and that it keeps its promise on controls that it has not seen."""

import numpy as np
import pytest

from transforms.kernels import calibration


def limit(distances, rate=0.01, prompt=1, control=1):
    return calibration.threshold(
        np.asarray(distances), max_false_positive_rate=rate, generations_per_prompt=prompt, generations_per_control=control
    )


def test_hand_values():
    distances = np.arange(1, 400) / 1000  # 399 controls: rate 0.01 is rank 4 of 400
    found = limit(distances)
    assert (found.value, found.controls_called, found.promised_rate) == (0.004, 3, 0.01)
    # With eight generations a prompt and two a control, four blocks: rank 1.
    found = limit(distances, prompt=8, control=2)
    assert (found.value, found.controls_called, found.promised_rate) == (0.001, 0, 0.01)


def test_too_few_controls_say_so():
    assert limit(np.ones(98)).value is None  # 99 are the fewest for 1%
    assert limit(np.arange(99.0)).value == 0.0
    assert limit([]).value is None
    assert limit(np.arange(99.0), prompt=2).value is None


@pytest.mark.parametrize(("prompt", "control"), [(4, 4), (8, 2), (3, 2)])
def test_new_controls_pass_no_more_often_than_promised(prompt, control):
    """1,000 audits of a model that has seen nothing: the share of images called, over all of them, within its bound."""
    random = np.random.default_rng(11)
    rate, called, tried, promised = 0.05, 0, 0, 0.0
    for _ in range(1000):
        # A picture's generations resemble one another: the distances of one picture are correlated.
        def smallest(pictures: int, generations: int) -> np.ndarray:
            common = random.normal(size=(pictures, 1))
            return (common + 0.5 * random.normal(size=(pictures, generations))).min(axis=1)

        found = limit(smallest(200, control), rate, prompt, control)
        assert found.value is not None
        assert found.promised_rate is not None
        new = smallest(50, prompt)
        called += int((new < found.value).sum())
        tried += len(new)
        promised += found.promised_rate / 1000
    assert promised <= rate
    # Three standard errors of the mean over audits, whose images share one threshold.
    assert called / tried <= promised + 3 * (rate * (1 - rate) / 1000 / 5) ** 0.5


@pytest.mark.parametrize(("prompt", "control"), [(4, 4), (8, 2), (3, 2)])
def test_the_promise_holds_for_another_distance_of_the_generation_that_is_nearest_in_l2(prompt, control):
    """What is compared is the adaptive l2, say, of the generation with the smallest l2: not the smallest adaptive l2."""
    random = np.random.default_rng(12)
    rate, called, tried, promised = 0.05, 0, 0, 0.0

    def nearest(pictures: int, generations: int) -> np.ndarray:
        common = random.normal(size=(pictures, 1))
        l2 = common + 0.5 * random.normal(size=(pictures, generations))
        adaptive = np.exp(0.3 * l2 + 0.5 * random.normal(size=(pictures, generations)))
        return adaptive[np.arange(pictures), l2.argmin(axis=1)]

    for _ in range(1000):
        found = limit(nearest(200, control), rate, prompt, control)
        assert found.value is not None and found.promised_rate is not None
        new = nearest(50, prompt)
        called += int((new < found.value).sum())
        tried += len(new)
        promised += found.promised_rate / 1000
    assert called / tried <= promised + 3 * (rate * (1 - rate) / 1000 / 5) ** 0.5


def test_ties_are_not_called():
    assert limit(np.full(200, 0.3)).controls_called == 0


def test_a_distance_that_is_missing():
    with pytest.raises(ValueError, match="hold NaN"):
        limit([0.1, float("nan")])


@pytest.mark.parametrize("rate", [0, 1, -0.1])
def test_a_rate_that_is_none(rate):
    with pytest.raises(ValueError, match="expected between 0 and 1"):
        limit([0.1], rate)


def test_false_discovery_rate():
    assert calibration.false_discovery_rate(0.01, 300, 100) == pytest.approx(0.03)
    assert calibration.false_discovery_rate(0.5, 300, 100) == 1.0
    assert np.isnan(calibration.false_discovery_rate(0.01, 300, 0))


def test_separation():
    assert calibration.separation(np.array([0.1, 0.2]), np.array([0.3, 0.4])) == 1.0
    assert calibration.separation(np.array([0.3]), np.array([0.1, 0.5])) == 0.5
    assert calibration.separation(np.array([0.3]), np.array([0.3])) == 0.5
    assert np.isnan(calibration.separation(np.array([]), np.array([0.1])))
