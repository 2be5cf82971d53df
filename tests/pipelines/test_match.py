"""What match makes of its matches and decoys: calibration by the nearest generations, limits of a copy, and its options."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.match import MatchOptions
from transforms.errors import UserError
from transforms.kernels import calibration
from transforms.matching.calibration import DISTANCES, Asked, calibration_rows, copy_calibration_row
from transforms.store.schema import TABLES

CONTROLS, PROMPTS = 40, 6


def row(prompt, index, nearest, distance, **columns):
    """A row of ``matches``, as far as it matters."""
    return {
        "prompt_id": prompt, "sample_index": index, "nearest": nearest, "relation": "own", "l2": distance,
        "tiled_l2": 2 * distance, "adaptive_l2": 3 * distance, "extracted": distance <= 0.15, **columns,
    }  # fmt: skip


def planted(rows):
    """The tables ``matches`` and ``prompts`` of 40 controls and 6 prompts: of each one generation that is nearest."""
    prompts = [{"prompt_id": f"control {n}", "origin": "control", "group_id": None, "images_requested": 2}
               for n in range(CONTROLS)]  # fmt: skip
    prompts += [{"prompt_id": f"prompt {n}", "origin": "duplicates", "group_id": f"group {n}", "images_requested": 4}
                for n in range(PROMPTS)]  # fmt: skip
    schema = TABLES["matches"].schema
    names = list(rows[0])
    types = pa.schema([schema.field(name).with_nullable(True) for name in names])
    return pa.Table.from_pylist(rows, schema=types), pa.Table.from_pylist(prompts)


def rows_of_all():
    """A control's nearest generation lies at 0.2 and more, a prompt's at 0.01 and more."""
    rows = [row(f"control {n}", 1, True, 0.2 + n / 1000, role="control") for n in range(CONTROLS)]
    return rows + [row(f"prompt {n}", 2, True, 0.01 + n / 10, role="training") for n in range(PROMPTS)]


def asked(**options):
    given = {"delta": 0.15, "copy_l2": 0.1, "copy_ratio": 0.6, "calibrated_distance": "adaptive_l2", **options}
    return Asked(max_false_positive_rate=0.1, **given)


def calibrated(rows, **options):
    matches, prompts = planted(rows)
    by_id = {one["prompt_id"]: one for one in prompts.to_pylist()}
    mine = [by_id[prompt] for prompt in matches["prompt_id"].to_pylist()]
    joined = matches.append_column("origin", pa.array([one["origin"] for one in mine])).append_column(
        "has_group", pa.array([one["group_id"] is not None for one in mine])
    )
    # As the SELECT of match does.
    keep = [(row["relation"] == "own" and row["nearest"]) or
            (row["relation"] == "neighbour" and row["role"] == "control" and row["extracted"])
            for row in matches.to_pylist()]  # fmt: skip
    facts = {"images_tested": PROMPTS, "per_prompt": 4, "per_control": 2}
    made = calibration_rows(joined.filter(pa.array(keep)), facts, asked(**options))
    assert [one["distance"] for one in made] == list(DISTANCES)
    return {one["distance"]: one for one in made}


def test_the_threshold_is_a_rank_among_the_nearest_generations():
    found = calibrated(rows_of_all(), calibrated_distance="tiled_l2")
    for times, distance in ((1, "l2"), (2, "tiled_l2"), (3, "adaptive_l2")):
        one = found[distance]
        # Two blocks of two generations, so 0.1 / 2 · 41 = 2: the second smallest.
        assert one["threshold"] == pytest.approx(times * 0.201) and one["chosen"] == (distance == "tiled_l2")
        assert (one["n_controls"], one["controls_called"], one["images_tested"], one["images_called"]) == (40, 1, 6, 2)
        assert one["promised_rate"] == pytest.approx(4 / 41)
        # Two prompts lie nearer than all controls, the third than 29 and as near as one.
        assert one["separation"] == pytest.approx((2 + 29.5 / 40) / 6)
        assert one["false_discovery_rate"] == pytest.approx(calibration.false_discovery_rate(4 / 41, 6, 2))
    assert found["l2"]["controls_within_delta"] == 0


@pytest.mark.parametrize("of", ["control", "prompt"])
def test_other_stored_generations_change_nothing(of):
    """However near they are by some distance, and however many the filter let pass: the nearest in l2 speaks."""
    more = [
        row(f"{of} {n}", 7, False, 0.001, role="control" if of == "control" else "training")
        for n in range(CONTROLS if of == "control" else PROMPTS)
    ]
    assert calibrated(rows_of_all() + more) == calibrated(rows_of_all())


def test_what_is_near_another_control_is_counted_of_every_generation():
    more = [row("control 3", 0, False, 0.1, role="control", relation="neighbour"),
            row("control 3", 1, True, 0.1, role="control", relation="neighbour"),
            row("control 4", 0, False, 0.2, role="control", relation="neighbour"),
            row("control 5", 0, False, 0.1, role="training", relation="neighbour")]  # fmt: skip
    found = calibrated(rows_of_all() + more)
    assert {one["controls_near_another_within_delta"] for one in found.values()} == {1}
    assert {one["controls_within_delta"] for one in found.values()} == {0}


def test_a_control_without_a_distance_is_no_control():
    """One alone has no others to adapt to."""
    rows = rows_of_all()
    for one in rows[:10]:
        one["adaptive_l2"] = None
    found = calibrated(rows)
    assert (found["l2"]["n_controls"], found["adaptive_l2"]["n_controls"]) == (40, 30)
    assert found["adaptive_l2"]["threshold"] == pytest.approx(3 * 0.21)


def test_without_controls_nothing_is_called():
    found = calibrated([one for one in rows_of_all() if one["role"] == "training"])
    for one in found.values():
        assert (one["threshold"], one["images_called"], one["upper_bound"], one["separation"]) == (None, None, None, None)
        assert (one["n_controls"], one["images_tested"]) == (0, 6)


# -- the limits of a copy -----------------------------------------------------------------------------------------------

OPTIONS = asked()


def limits(**decoys):
    """The row for decoys of each kind: (coarse_l2, coarse_ratio) of all."""
    rows = [{"kind": kind, "coarse_l2": float(distance), "coarse_ratio": ratio}
            for kind, some in decoys.items() for distance, ratio in some]  # fmt: skip
    schema = pa.schema([("kind", pa.string()), ("coarse_l2", pa.float64()), ("coarse_ratio", pa.float64())])
    return copy_calibration_row(pa.Table.from_pylist(rows, schema=schema), OPTIONS)


FAR = [(distance, 0.95) for distance in np.linspace(0.2, 0.4, 40)]


def test_the_limits_are_those_given_where_new_pictures_stay_away():
    found = limits(held_out=FAR, left_out=FAR)
    assert (found["coarse_l2_limit"], found["coarse_ratio_limit"]) == (OPTIONS.delta, OPTIONS.copy_ratio)
    assert (found["n_held_out"], found["n_left_out"], found["max_false_positive_rate"]) == (40, 40, 0.1)
    assert found["promised_rate"] == pytest.approx(4 / 41)


@pytest.mark.parametrize("kind", ["held_out", "left_out"])
def test_new_pictures_that_come_near_lower_the_distance(kind):
    near = [(distance, 0.95) for distance in np.linspace(0.05, 0.14, 10)]
    decoys = {"held_out": FAR, "left_out": FAR} | {kind: near + FAR}
    # Of 90 new pictures the fourth smallest distance: 0.05 · 91.
    assert limits(**decoys)["coarse_l2_limit"] == pytest.approx(np.linspace(0.05, 0.14, 10)[3])


def test_held_out_pictures_that_would_be_called_keep_the_promise():
    """Near and under the ratio: twins. Of the held-out ones fewer than the rate allows may lie below both limits."""
    twins = [(distance, 0.1) for distance in np.linspace(0.01, 0.1, 10)]
    found = limits(held_out=twins + FAR, left_out=FAR)
    rank = int(0.1 * 51)
    assert found["coarse_l2_limit"] == pytest.approx(np.linspace(0.01, 0.1, 10)[rank - 1])
    assert found["promised_rate"] == pytest.approx(rank / 51)
    called = [distance < found["coarse_l2_limit"] and ratio < found["coarse_ratio_limit"] for distance, ratio in twins + FAR]
    assert sum(called) == rank - 1
    # Of training images twins are to be expected.
    assert limits(held_out=FAR, left_out=twins + FAR)["coarse_l2_limit"] == OPTIONS.delta


def test_blurred_pictures_and_those_without_another_image_say_nothing_of_the_limits():
    near = [(0.01, 0.1)] * 40
    assert limits(held_out=FAR, left_out=FAR, blurred=near) == limits(held_out=FAR, left_out=FAR)
    alone = [(0.2, None)] * 40
    assert limits(held_out=alone)["coarse_l2_limit"] == OPTIONS.delta


@pytest.mark.parametrize("count", [0, 8])
def test_too_few_held_out_pictures_promise_nothing(count):
    found = limits(held_out=[(0.01, 0.1)] * count)
    assert found["promised_rate"] is None and found["n_held_out"] == count
    assert (found["coarse_l2_limit"], found["coarse_ratio_limit"]) == (OPTIONS.delta, OPTIONS.copy_ratio)


# -- options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"copy_ratio": 1.0}, "--copy_ratio is 1.0, expected between 0 and 1"),
        ({"delta": 0.0}, "--delta is 0.0, expected between 0 and 1"),
        ({"neighbours": 0}, "--neighbours is 0, expected 1 or more"),
        ({"adaptive_alpha": 0.0}, "--adaptive_alpha is 0.0, expected over 0"),
    ],
)
def test_options_that_are_none(options, said):
    with pytest.raises(UserError, match=said):
        MatchOptions(**options)
