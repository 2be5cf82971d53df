"""Two nights beside each other: what is compared, by which limits, how often that cries wolf, and what it sees."""

import numpy as np
import pytest

from transforms.kernels import copies
from transforms.kernels.calibration import threshold
from transforms.results.nights import CALIBRATED, COPIED, Half, Night, NightLimits, compare, power

LIMITS = NightLimits(seen=0.5, coarse_l2=0.2, coarse_ratio=0.6)


def row(number, distance, coarse_l2=0.1, coarse_ratio=0.1, stratum="1", group="g"):
    """A row of verdicts; what its own night called doesn't matter beside another one."""
    return {"prompt_id": f"p{number}", "group_id": group, "stratum": stratum, "own_distance": distance,
            "own_l2": coarse_l2, "own_coarse_l2": coarse_l2, "own_coarse_ratio": coarse_ratio, COPIED: None,
            CALIBRATED: None}  # fmt: skip


def night(panel, rotating, limits=LIMITS, name="a"):
    return Night(Half(f"{name}-panel", panel, limits), Half(f"{name}-rotating", rotating, limits))


def changed(found):
    return [one["prompt_id"] for one in found.new], [one["prompt_id"] for one in found.gone]


def test_both_nights_are_judged_by_the_earlier_ones_threshold():
    distances = [0.1, 0.3, 0.6, None]
    before = night([row(n, d) for n, d in enumerate(distances)], [])
    # The same distances under a threshold that calls all of them: no change.
    after = night([row(n, d) for n, d in enumerate(distances)], [], LIMITS._replace(seen=0.9), "b")
    found = compare(before, after)
    assert (found.verdict, found.new, found.gone, found.p_values["panel"]) == (CALIBRATED, [], [], 1.0)
    nearer = night([row(n, d) for n, d in enumerate([0.7, 0.3, 0.4, 0.2])], [], LIMITS._replace(seen=0.1), "b")
    assert changed(compare(before, nearer)) == (["p2", "p3"], ["p0"])


@pytest.mark.parametrize("name", ["coarse_l2", "coarse_ratio"])
@pytest.mark.parametrize("seen", [0.5, None])
def test_both_nights_are_judged_by_the_earlier_ones_limits_of_a_copy(name, seen):
    limits = LIMITS._replace(seen=seen, **{name: 0.3})
    values = [0.29, 0.3, 0.31, None]
    before = night([row(n, 0.1, **{name: value}) for n, value in enumerate(values)], [], limits)
    after = night(before.panel.rows, [], limits._replace(**{name: 0.9}), "b")
    assert changed(compare(before, after)) == ([], [])
    nearer = night([row(n, 0.1, **{name: value}) for n, value in enumerate([0.3, 0.2, 0.31, None])], [], limits, "b")
    assert changed(compare(before, nearer)) == (["p1"], ["p0"])


def test_limits_are_passed_strictly_below():
    at, below = row(0, LIMITS.seen), row(1, np.nextafter(LIMITS.seen, 0))
    half = Half("a", [at, below, row(2, 0.1, group=None)], LIMITS)
    assert half.extracted(CALIBRATED, LIMITS) == {"p0": False, "p1": True}
    assert half.extracted(COPIED, LIMITS) == {"p0": True, "p1": True}


def test_a_copy_that_was_not_seen_and_a_seen_one_that_is_no_copy_are_no_calibrated_extraction():
    half = Half("a", [row(0, 0.9), row(1, 0.1, coarse_l2=0.9), row(2, 0.1, coarse_ratio=0.9), row(3, 0.1)], LIMITS)
    assert half.extracted(CALIBRATED, LIMITS) == {"p0": False, "p1": False, "p2": False, "p3": True}
    assert half.extracted(COPIED, LIMITS) == {"p0": True, "p1": False, "p2": False, "p3": True}


@pytest.mark.parametrize("without", ["before", "after"])
def test_without_controls_on_either_night_it_is_the_copies(without):
    """The model comes nearer, but what it gives was a copy before; and one that was not seen becomes a copy."""
    limits = {"before": LIMITS, "after": LIMITS} | {without: LIMITS._replace(seen=None)}
    before = night([row(0, 0.9), row(1, 0.9, coarse_l2=0.9)], [], limits["before"])
    after = night([row(0, 0.1), row(1, 0.9)], [], limits["after"], "b")
    found = compare(before, after)
    assert found.verdict == COPIED and changed(found) == (["p1"], [])
    assert {"before": before, "after": after}[without].verdict == COPIED


def test_only_prompts_that_both_tried_are_a_change():
    before = night([row(0, 0.9), row(1, 0.9), row(2, 0.1)], [])
    after = night([row(1, 0.1), row(3, 0.1)], [], name="b")
    found = compare(before, after)
    assert changed(found) == (["p1"], [])


def test_the_same_matches_say_nothing():
    before = night([row(0, 0.1)], [row(1, 0.1)])
    assert compare(before, before).p_values == {"panel": 1.0}


@pytest.mark.parametrize("verdict", [CALIBRATED, COPIED])
def test_a_night_that_is_no_worse_is_seldom_called_worse(verdict):
    """Nothing is memorised; each night has few controls and held-out pictures, and so limits of its own that are far off as
    often as not."""
    random, wrong, nights = np.random.default_rng(0), 0, 400

    def half(name, start):
        seen = threshold(
            random.random(100), max_false_positive_rate=0.05, generations_per_prompt=1, generations_per_control=1
        ).value
        held_out, left_out = (copies.Distances(random.random(100), random.random(100)) for _ in range(2))
        near = copies.limits(held_out, left_out, most_l2=0.9, ratio=0.9, rate=0.3)
        limits = NightLimits(seen if verdict == CALIBRATED else None, near.coarse_l2, near.coarse_ratio)
        values = random.random((500, 3)).tolist()
        return Half(name, [row(start + n, *some, stratum=str(n % 5)) for n, some in enumerate(values)], limits)

    for number in range(nights):
        before = Night(half("a", 0), half("b", 1000 * number))
        after = Night(half("c", 0), half("d", 1000 * number + 500))
        found = compare(before, after)
        assert found.verdict == verdict
        wrong += found.p_value <= 0.05
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
        return Half(name, rows, LIMITS)

    for _ in range(nights):
        # The panel changes nothing.
        before, after = (Night(Half("p", [], LIMITS), half(name, rise)) for name, rise in (("a", 0.0), ("b", told)))
        seen += compare(before, after).p_value <= 0.05
    assert seen / nights >= 0.75
