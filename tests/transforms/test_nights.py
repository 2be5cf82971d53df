"""Two nights beside each other: what is compared, by which threshold, how often that cries wolf, and what it sees."""

import numpy as np
import pytest

from transforms.kernels.calibration import threshold
from transforms.nights import CALIBRATED, PLAIN, Half, Night, compare, power


def row(number, distance, extracted=False, stratum="1", group="g"):
    return {"prompt_id": f"p{number}", "group_id": group, "stratum": stratum, "own_distance": distance, PLAIN: extracted,
            CALIBRATED: None}  # fmt: skip


def night(panel, rotating, limit=0.5, name="a"):
    return Night(Half(f"{name}-panel", panel, limit), Half(f"{name}-rotating", rotating, limit))


def test_both_nights_are_judged_by_the_earlier_ones_threshold():
    distances = [0.1, 0.3, 0.6, None]
    before = night([row(n, d) for n, d in enumerate(distances)], [], 0.5)
    # The same distances under a threshold that calls all of them: no change.
    after = night([row(n, d) for n, d in enumerate(distances)], [], 0.9, "b")
    found = compare(before, after)
    assert (found.verdict, found.new, found.gone, found.p_values["panel"]) == (CALIBRATED, [], [], 1.0)
    nearer = night([row(n, d) for n, d in enumerate([0.7, 0.3, 0.4, 0.2])], [], 0.1, "b")
    found = compare(before, nearer)
    assert [one["prompt_id"] for one in found.new] == ["p2", "p3"] and [one["prompt_id"] for one in found.gone] == ["p0"]


def test_without_a_threshold_on_either_night_it_is_the_papers_rule():
    before = night([row(0, 0.1, extracted=False), row(1, 0.1, extracted=True)], [], None)
    after = night([row(0, 0.1, extracted=True), row(1, 0.1, extracted=True)], [], 0.5, "b")
    found = compare(before, after)
    assert found.verdict == PLAIN and [one["prompt_id"] for one in found.new] == ["p0"]


def test_only_prompts_that_both_tried_are_a_change():
    before = night([row(0, 0.9), row(1, 0.9), row(2, 0.1)], [])
    after = night([row(1, 0.1), row(3, 0.1)], [], name="b")
    found = compare(before, after)
    assert [one["prompt_id"] for one in found.new] == ["p1"] and found.gone == []


def test_the_same_matches_say_nothing():
    before = night([row(0, 0.1)], [row(1, 0.1)])
    assert compare(before, before).p_values == {"panel": 1.0}


def test_a_night_that_is_no_worse_is_seldom_called_worse():
    """Nothing is memorised; each night has few controls, and so a threshold of its own that is far off as often as not."""
    random, wrong, nights = np.random.default_rng(0), 0, 400

    def half(name, start):
        controls = threshold(
            random.random(100), max_false_positive_rate=0.05, generations_per_prompt=1, generations_per_control=1
        )
        rows = [row(start + n, d, stratum=str(n % 5)) for n, d in enumerate(random.random(500).tolist())]
        return Half(name, rows, controls.value)

    for number in range(nights):
        before = Night(half("a", 0), half("b", 1000 * number))
        after = Night(half("c", 0), half("d", 1000 * number + 500))
        wrong += compare(before, after).p_value <= 0.05
    assert wrong / nights <= 0.05 + 3 * (0.05 * 0.95 / nights) ** 0.5


@pytest.mark.parametrize(("prompts", "rates"), [(110, [0.0] * 11), (1200, [0.01] * 12), (600, [0.0, 0.0, 0.02, 0.1, 0.4, 0.9])])
def test_what_a_night_says_that_it_sees_it_sees(prompts, rates):
    """The same rise in every stratum, simulated: seen in at least about 80% of the nights."""
    random, seen, nights = np.random.default_rng(0), 0, 300
    told = power(prompts, prompts, float(np.mean(rates)), 0.05).rotating
    each = prompts // len(rates)

    def half(name, rise):
        rows = []
        for stratum, rate in enumerate(rates):
            hits = random.random(each) < min(1.0, rate + rise)
            rows += [row(f"{name}{stratum}-{n}", 0.1 if hit else 0.9, stratum=str(stratum)) for n, hit in enumerate(hits)]
        return Half(name, rows, 0.5)

    for _ in range(nights):
        # The panel changes nothing.
        before, after = (Night(Half("p", [], 0.5), half(name, rise)) for name, rise in (("a", 0.0), ("b", told)))
        seen += compare(before, after).p_value <= 0.05
    assert seen / nights >= 0.75
