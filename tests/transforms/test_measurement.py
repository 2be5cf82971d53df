"""The marts against plain loops over the same tables, what was planted, the checks, and the database."""

import collections
import os
import subprocess
import sys

import duckdb
import pytest
from scipy.stats import beta, binomtest

import sql
from tests.fakes import fake_lake
from transforms import measurement
from transforms.errors import UserError
from transforms.kernels.rates import blaker_interval, stratified_interval
from transforms.lake import Lake, delete, read_parquet, write_parquet

AUDIT = ("audit_id", "model_revision", "parameters_digest")


def measured(fake, snapshot="measured"):
    """mart → rows without the audit's columns."""
    measurement.run(fake.lake, fake.match, snapshot)
    tables = {mart: read_parquet(fake.lake.part(mart, snapshot, 0)) for mart in measurement.MARTS}
    return {mart: table.drop_columns(list(AUDIT)).to_pylist() for mart, table in tables.items()}


def rewrite(fake, table, change):
    """Replaces a table of the fake lake by what ``change`` makes of its rows."""
    stages = (fake.ingest, fake.embed, fake.deduplicate, fake.generate, fake.match)
    snapshot = next(manifest.snapshot_id for manifest in stages if table in manifest.rows)
    rows = change(fake.rows(table))
    delete(fake.lake.folder(table, snapshot))
    fake.lake.write(table, snapshot, 0, rows)


# -- the same numbers by plain loops ----------------------------------------------------------------------------------


def buckets_by_loops(fake, prompts):
    """(dimension, bucket, bucket_order, prompts) in the order of the mart."""
    samples = {row["sample_id"]: row for row in fake.rows("samples")}
    lists = [prompt for prompt in prompts if prompt["origin"] == "list"]
    drawn = [prompt for prompt in prompts if prompt["origin"] != "list"]
    found = [("all", name, order, some) for order, (name, some) in enumerate((("drawn", drawn), ("list", lists))) if some]
    for order, stratum in sorted({(prompt["stratum_order"], prompt["stratum"]) for prompt in prompts}):
        found.append(("duplicates", stratum, order, [prompt for prompt in prompts if prompt["stratum"] == stratum]))

    def length(prompt):
        words = len(prompt["text"].split())
        return next(order for order in range(8) if order == 7 or words <= 2**order)

    def domain(prompt):
        return prompt["sample_id"] and samples[prompt["sample_id"]]["url"].split("/")[2]

    for order in sorted({length(prompt) for prompt in drawn or lists}):
        name = {0: "1", 1: "2", 7: "65 and more"}.get(order, f"{2 ** (order - 1) + 1}-{2**order}")
        found.append(("prompt_length", name, order, [prompt for prompt in drawn or lists if length(prompt) == order]))
    shapes = {
        name: [p for p in drawn or lists if (p["sample_id"] is None) == (name == "unknown")] for name in ("square", "unknown")
    }
    found += [("aspect", name, order, shapes[name]) for name, order in (("square", 1), ("unknown", 3)) if shapes[name]]
    domains = collections.Counter(domain(prompt) for prompt in drawn or lists)
    named = sorted((name for name in domains if name), key=lambda name: (-domains[name], name))
    for order, name in [*enumerate(named, 1), *([(102, None)] if domains[None] else [])]:
        members = [prompt for prompt in drawn or lists if domain(prompt) == name]
        found.append(("domain", name or "(unknown)", order, members))
    return found


def interval_by_loops(prompts, hits):
    """Blaker's where all weigh the same, else by strata."""
    strata = sorted({(prompt["stratum"], prompt["inclusion_probability"]) for prompt in prompts})
    tried = [[p["prompt_id"] for p in prompts if (p["stratum"], p["inclusion_probability"]) == one] for one in strata]
    extracted = [len(set(ids) & set(hits)) for ids in tried]
    if len({probability for _, probability in strata}) == 1:
        return blaker_interval(sum(extracted), sum(map(len, tried)))
    weights = [len(ids) / probability for ids, (_, probability) in zip(tried, strata, strict=True)]
    return stratified_interval(extracted, [len(ids) for ids in tried], weights)


def by_loops(fake):
    """What the marts should hold, computed row by row from the tables, in the words of docs/architecture.md."""
    prompts = [row for row in fake.rows("prompts") if row["origin"] != "control"]
    cliques = {row["prompt_id"]: row for row in fake.rows("cliques")}
    matches = [row for row in fake.rows("matches") if row["role"] == "training"]
    chosen = next(row for row in fake.rows("calibration") if row["chosen"])
    groups = {row["group_id"]: row for row in fake.rows("duplicate_groups")}
    verdicts = {}
    for prompt in prompts:
        mine = [row for row in matches if row["prompt_id"] == prompt["prompt_id"]]
        distances = [row[chosen["distance"]] for row in mine if row["relation"] == "own"]
        calibrated = None
        if chosen["threshold"] is not None and prompt["group_id"] is not None:
            calibrated = any(value is not None and value < chosen["threshold"] for value in distances)
        verdicts[prompt["prompt_id"]] = {
            "extracted": any(row["l2"] <= 0.15 for row in mine),
            "extracted_own": any(row["l2"] <= 0.15 and row["relation"] == "own" for row in mine),
            "extracted_calibrated": calibrated,
        }

    rates = []
    for dimension, bucket, order, members in buckets_by_loops(fake, prompts):
        ids = [prompt["prompt_id"] for prompt in members]
        weights = {prompt["prompt_id"]: 1 / prompt["inclusion_probability"] for prompt in members}
        tested = [i for i in ids if verdicts[i]["extracted_calibrated"] is not None]
        hits = [i for i in ids if verdicts[i]["extracted"]]
        calibrated = [i for i in tested if verdicts[i]["extracted_calibrated"]]
        wilson = binomtest(len(hits), len(ids)).proportion_ci(method="wilson")
        lower, upper = interval_by_loops(members, hits)
        row = {
            "dimension": dimension,
            "bucket": bucket,
            "bucket_order": order,
            "prompts_tried": len(ids),
            "population": sum(weights.values()),
            "prompts_flagged": sum(cliques[i]["flagged"] for i in ids),
            "prompts_extracted": len(hits),
            "prompts_calibrated": len(tested),
            "prompts_extracted_calibrated": len(calibrated) if tested else None,
            "images_extracted": len({row["group_id"] for row in matches if row["prompt_id"] in ids and row["l2"] <= 0.15}),
            "rate": sum(weights[i] for i in hits) / sum(weights.values()),
            "rate_lower": lower,
            "rate_upper": upper,
            "rate_wilson_lower": wilson.low,
            "rate_wilson_upper": wilson.high,
            "rate_calibrated": sum(weights[i] for i in calibrated) / sum(weights[i] for i in tested) if tested else None,
        }
        rates.append(row)

    extractions = {}
    for group in groups:
        called = []
        own = [verdicts[one["prompt_id"]]["extracted_calibrated"] for one in prompts if one["group_id"] == group]
        for row in (row for row in matches if row["group_id"] == group):
            near = False
            if row["relation"] == "own":
                value = row[chosen["distance"]]
                near = chosen["threshold"] is not None and value is not None and value < chosen["threshold"]
            if row["l2"] <= 0.15 or near:
                called.append(row)
        if called:
            best = min(called, key=lambda row: row["l2"] if row["adaptive_l2"] is None else row["adaptive_l2"])
            known = [verdict for verdict in own if verdict is not None]
            extractions[group] = {
                "copies": groups[group]["size"],
                "extracted": any(row["l2"] <= 0.15 for row in called),
                "extracted_calibrated": any(known) if known else None,
                **{name: best[name] for name in ("sample_id", "prompt_id", "sample_index", "l2", "tiled_l2", "adaptive_l2")},
            }

    unflagged = [prompt["prompt_id"] for prompt in prompts if not cliques[prompt["prompt_id"]]["flagged"]]
    checked = [prompt for prompt in unflagged if cliques[prompt]["keep_rule"] in ("slice", "all")]
    missed = [prompt for prompt in checked if verdicts[prompt]["extracted"]]
    misses = {
        "prompts_unflagged": len(unflagged),
        "prompts_checked": len(checked),
        "prompts_missed": len(missed),
        "prompts_missed_estimate": (
            # Nothing was looked at, so nothing is known: no estimate, rather than none missed.
            None if unflagged and not checked else sum(1 / cliques[prompt]["keep_probability"] for prompt in missed)
        ),
    }
    return verdicts, rates, extractions, misses


def close(actual, expected):
    """Whether ``actual`` holds everything that ``expected`` does (floats up to rounding)."""
    assert {name: actual[name] for name in expected} == {
        name: pytest.approx(value, abs=1e-9) if isinstance(value, float) else value for name, value in expected.items()
    }


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"base_seed": 1, "keep": "all", "images_per_prompt": 1},
        {"base_seed": 2, "calibrated_distance": "l2", "listed": ["group 1", "nobody's caption"]},
        {"base_seed": 3, "calibrated_distance": "tiled_l2", "max_prompts": 6},
        {"base_seed": 4, "controls": 0, "listed": ["nobody's caption"]},
        {"base_seed": 5, "keep": "none"},
    ],
    ids=["plain", "all kept", "listed", "tiled", "no controls", "none kept"],
)
def test_the_marts_are_what_loops_over_the_tables_say(tmp_path, knobs):
    fake = fake_lake(tmp_path, **knobs)
    marts = measured(fake)
    verdicts, rates, extractions, misses = by_loops(fake)

    assert {row["prompt_id"] for row in marts["verdicts"]} == set(verdicts)
    for row in marts["verdicts"]:
        close(row, verdicts[row["prompt_id"]])
    assert len(marts["extraction_rate"]) == len(rates)
    for row, expected in zip(marts["extraction_rate"], rates, strict=True):
        close(row, expected)
    assert {row["group_id"] for row in marts["extractions"]} == set(extractions)
    for row in marts["extractions"]:
        close(row, extractions[row["group_id"]])
    close(marts["filter_misses"][0], misses)
    k = {row["sample_id"]: row["k"] for row in fake.rows("eidetic_counts")}
    assert all(row["k"] == k[row["sample_id"]] for row in marts["extractions"])


def test_the_most_confident_extraction_comes_first(tmp_path):
    rows = measured(fake_lake(tmp_path))["extractions"]
    assert [row["confidence_rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["adaptive_l2"] for row in rows] == sorted(row["adaptive_l2"] for row in rows)


def test_an_extraction_carries_its_sample_and_its_prompt(tmp_path):
    fake = fake_lake(tmp_path)
    samples = {row["sample_id"]: row for row in fake.rows("samples")}
    prompts = {row["prompt_id"]: row for row in fake.rows("prompts")}
    generations = {(row["prompt_id"], row["sample_index"]): row for row in fake.rows("generations")}
    for row in measured(fake)["extractions"]:
        assert (row["url"], row["caption"]) == tuple(samples[row["sample_id"]][name] for name in ("url", "caption"))
        assert row["prompt"] == prompts[row["prompt_id"]]["text"]
        assert row["seed"] == generations[row["prompt_id"], row["sample_index"]]["seed"]


def test_an_extraction_is_as_unsafe_as_the_worst_of_its_group(tmp_path):
    fake = fake_lake(tmp_path, sizes=(4, 3, 2, 1), behaviours=("copy",))
    shown = {row["sample_id"] for row in measured(fake)["extractions"]}
    group = {row["sample_id"]: row["group_id"] for row in fake.rows("duplicate_groups")}
    # Another member of the largest group is unsafe, of the next the one that is shown, of the third all are unknown.
    told = {4: lambda here: float("nan") if here else 0.9, 3: lambda here: 0.9 if here else 0.2, 2: lambda _: float("nan")}
    size = collections.Counter(group.values())

    def change(rows):
        return [{**row, "punsafe": told.get(size[group.get(row["sample_id"])], lambda _: None)(row["sample_id"] in shown)}
                for row in rows]  # fmt: skip

    rewrite(fake, "samples", change)
    found = {row["copies"]: row["punsafe"] for row in measured(fake, "again")["extractions"]}
    assert found == {4: pytest.approx(0.9), 3: pytest.approx(0.9), 2: None, 1: None}


# -- what was planted -------------------------------------------------------------------------------------------------


def test_each_behaviour_gets_the_verdicts_that_it_was_planted_for(tmp_path):
    fake = fake_lake(tmp_path, unflagged_fraction=1.0)
    expected = {
        "copy": (True, True, True),
        "none": (False, False, False),
        "loose": (True, True, False),
        "tight": (False, False, True),
        "neighbour": (True, False, False),
    }
    for row in measured(fake)["verdicts"]:
        actual = (row["extracted"], row["extracted_own"], row["extracted_calibrated"])
        assert actual == expected[fake.behaviour[row["prompt_id"]].split()[0]]


def test_an_image_that_two_prompts_give_back_counts_once(tmp_path):
    # The neighbour gives back what the next prompt, a copy, gives back as well.
    fake = fake_lake(tmp_path, sizes=(3, 4), captions=("low", "high"), behaviours=("neighbour", "copy"))
    marts = measured(fake)
    (rate,) = [row for row in marts["extraction_rate"] if row["dimension"] == "all"]
    assert (rate["prompts_extracted"], rate["images_extracted"]) == (2, 1)
    (row,) = marts["extractions"]
    assert (row["copies"], row["caption"], row["extracted"], row["extracted_calibrated"]) == (3, "low", True, True)


def test_what_only_another_prompt_gives_back_has_the_calibrated_verdict_of_its_own_prompt(tmp_path):
    # Of the smaller group no image is kept.
    fake = fake_lake(tmp_path, sizes=(9, 1), behaviours=("neighbour", "none unflagged"), unflagged_fraction=0.0)
    marts = measured(fake)
    (row,) = marts["extractions"]
    assert (row["relation"], row["extracted"], row["extracted_calibrated"]) == ("neighbour", True, False)
    assert [one["extracted_calibrated"] for one in marts["verdicts"] if one["group_id"] == row["group_id"]] == [False]
    # It isn't tried at all.
    untried = {"group_id": None, "n_duplicates": None}
    rewrite(fake, "prompts", lambda rows: [one | untried if one["n_duplicates"] == 1 else one for one in rows])
    (row,) = measured(fake, "again")["extractions"]
    assert (row["relation"], row["extracted"], row["extracted_calibrated"]) == ("neighbour", True, None)


def test_a_miss_of_the_filter_weighs_as_much_as_the_slice_is_thin(tmp_path):
    fake = fake_lake(tmp_path, sizes=(1,) * 60, behaviours=("copy unflagged",), unflagged_fraction=0.25)
    (row,) = measured(fake)["filter_misses"]
    assert row["prompts_unflagged"] == 60
    assert 0 < row["prompts_missed"] == row["prompts_checked"] < 30
    assert row["prompts_missed_estimate"] == pytest.approx(4 * row["prompts_missed"])


def test_a_forgotten_prompt_is_no_check_of_the_filter(tmp_path):
    """Its pictures and matches are gone: it would count as checked and not missed."""
    fake = fake_lake(tmp_path, sizes=(1,) * 20, behaviours=("copy unflagged",), unflagged_fraction=1.0)
    forgotten = {row["prompt_id"] for row in fake.rows("prompts") if row["origin"] != "control"}
    forgotten = set(sorted(forgotten)[:5])

    def marked(**columns):
        return lambda rows: [row | columns if row["prompt_id"] in forgotten else row for row in rows]

    rewrite(fake, "prompts", marked(stratum="forgotten", stratum_order=-2))
    rewrite(fake, "generations", marked(image=None, reason="the picture was removed"))
    rewrite(fake, "matches", lambda rows: [row for row in rows if row["prompt_id"] not in forgotten])
    (row,) = measured(fake)["filter_misses"]
    assert (row["prompts_unflagged"], row["prompts_checked"], row["prompts_missed"]) == (15, 15, 15)


def test_false_positives_are_counted_on_the_controls(tmp_path):
    fake = fake_lake(tmp_path, controls=60, controls_within_delta=5, max_false_positive_rate=0.1)
    rows = {row["verdict"]: row for row in measured(fake)["false_positives"]}
    own = rows["extracted, own image"]
    assert (own["controls_called"], own["n_controls"]) == (5, 60)
    assert own["rate"] == pytest.approx(5 / 60)
    assert own["upper_bound"] == pytest.approx(beta.ppf(0.95, 6, 55))
    assert rows["extracted, another control"]["controls_called"] == 0
    # Two blocks of control generations fit into a prompt's four, so 0.1 / 2 · 61 = 3: two lie strictly below the third.
    assert rows["extracted_calibrated"]["controls_called"] == 2
    assert rows["extracted_calibrated"]["upper_bound"] == pytest.approx(beta.ppf(0.95, 3, 58))


def test_without_controls_the_calibrated_columns_are_null(tmp_path):
    marts = measured(fake_lake(tmp_path, controls=0))
    assert {row["extracted_calibrated"] for row in marts["verdicts"] + marts["extractions"]} == {None}
    names = ("prompts_extracted_calibrated", "rate_calibrated", "rate_calibrated_lower", "rate_calibrated_upper")
    assert {row[name] for row in marts["extraction_rate"] for name in names} == {None}
    assert {row["rate"] for row in marts["false_positives"]} == {None}


def test_a_prompt_without_an_image_of_its_own_is_no_trial_of_the_calibrated_verdict(tmp_path):
    fake = fake_lake(tmp_path, listed=["group 0", "nobody's caption"])
    row = next(row for row in measured(fake)["extraction_rate"] if row["bucket"] == "list")
    assert (row["prompts_tried"], row["prompts_calibrated"]) == (2, 1)
    assert row["rate_calibrated_upper"] == pytest.approx(0.95)
    assert row["rate_calibrated_wilson_upper"] == pytest.approx(binomtest(0, 1).proportion_ci(method="wilson").high)


@pytest.mark.parametrize("distance", ["l2", "tiled_l2"])
def test_the_best_generation_is_one_that_was_called(tmp_path, distance):
    """Another generation of the prompt may be nearer by adaptive l2 and yet not be called, nor have its k counted."""
    fake = fake_lake(tmp_path, sizes=(4,), behaviours=("none",), calibrated_distance=distance)
    threshold = next(row["threshold"] for row in fake.rows("calibration") if row["chosen"])
    members = sorted(row["sample_id"] for row in fake.rows("duplicate_groups"))
    (prompt,) = [row["prompt_id"] for row in fake.rows("prompts") if row["origin"] != "control"]
    planted = {0: (members[0], threshold / 2, 0.9), 1: (members[1], threshold * 2, 0.1)}

    def plant(rows):
        other = [row for row in rows if row["role"] == "control"]
        template = next(row for row in rows if row["prompt_id"] == prompt) if prompt in {r["prompt_id"] for r in rows} else None
        base = template or {**other[0], "prompt_id": prompt, "group_id": members[0], "role": "training", "relation": "own"}
        return other + [
            {**base, "sample_index": index, "sample_id": sample, "l2": 0.3, "tiled_l2": 0.3, "adaptive_l2": adaptive,
             "extracted": False, distance: value}
            for index, (sample, value, adaptive) in planted.items()
        ]  # fmt: skip

    rewrite(fake, "matches", plant)
    rewrite(fake, "generations", lambda rows: [
        {**row, "image": b"kept"} if row["prompt_id"] == prompt and row["sample_index"] < 2
        else {**row, "image": None} if row["prompt_id"] == prompt else row
        for row in rows
    ])  # fmt: skip
    audit = {name: fake.rows("audits")[0][name] for name in AUDIT}
    rewrite(fake, "eidetic_counts", lambda _: [{**audit, "sample_id": members[0], "eidetic_delta": 0.1, "k": 4}])
    (row,) = measured(fake)["extractions"]
    assert (row["sample_id"], row["sample_index"], row["k"]) == (members[0], 0, 4)


def test_duplication_counts_groups_and_images(tmp_path):
    rows = measured(fake_lake(tmp_path, sizes=(12, 5, 4, 3, 2, 2, 1, 1, 1, 1)))["duplication"]
    counted = {row["duplicates"]: (row["groups"], row["images"]) for row in rows}
    assert counted == {"1": (4, 4), "2": (2, 4), "3-4": (2, 7), "5-8": (1, 5), "9-16": (1, 12)}
    assert sum(row["share_of_images"] for row in rows) == pytest.approx(1)
    assert next(row for row in rows if row["duplicates"] == "9-16")["lowest_cosine"] == pytest.approx(0.97)
    assert {row["duplicates"]: row["diameter"] for row in rows} == {"1": 0, "2": 1, "3-4": 1, "5-8": 1, "9-16": 1}


def test_the_precision_curve_counts_the_controls_that_are_as_near(tmp_path):
    fake = fake_lake(tmp_path, controls=60, controls_within_delta=7, max_false_positive_rate=0.1, calibrated_distance="l2")
    rows = measured(fake)["precision_curve"]
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    own = [row for row in fake.rows("matches") if row["relation"] == "own"]
    smallest = collections.defaultdict(lambda: 1.0)
    for match in own:
        smallest[match["role"], match["group_id"]] = min(smallest[match["role"], match["group_id"]], match["l2"])
    controls = [value for (role, _), value in smallest.items() if role == "control"]
    for row in rows:
        assert row["distance"] == smallest["training", row["group_id"]]
        called = sum(value <= row["distance"] for value in controls)
        # Four generations of a prompt, two of a control: twice the chance, for each of the ten that were tried.
        expected = 10 * min(1, 2 * called / 60)
        assert (row["controls_called"], row["n_controls"]) == (called, 60)
        assert row["expected_false"] == pytest.approx(expected)
        assert row["precision"] == pytest.approx(1 - min(1, expected / row["rank"]))
    assert rows[-1]["controls_called"] >= 7 and {row["called"] for row in rows} == {True, False}


def test_a_forgotten_control_is_no_control_of_the_precision_any_more(tmp_path):
    fake = fake_lake(tmp_path, controls=60, controls_within_delta=60, calibrated_distance="l2", images_per_control=4)
    before = measured(fake)["precision_curve"][-1]
    assert (before["controls_called"], before["n_controls"]) == (60, 60)
    forgotten = {row["sample_id"] for row in fake.rows("samples") if row["role"] == "control"}
    forgotten -= set(sorted(forgotten)[:20])
    rewrite(fake, "matches", lambda rows: [row for row in rows if row["sample_id"] not in forgotten])
    rewrite(fake, "generations", lambda rows: [row | {"image": None, "reason": "the picture was removed"} for row in rows])
    after = measured(fake, "again")["precision_curve"][-1]
    assert (after["controls_called"], after["n_controls"]) == (20, 20)
    assert after["expected_false"] == before["expected_false"]


def test_without_controls_no_precision_is_claimed(tmp_path):
    rows = measured(fake_lake(tmp_path, controls=0))["precision_curve"]
    assert rows and {row["precision"] for row in rows} == {None} == {row["expected_false"] for row in rows}


def test_the_sweep_of_delta_holds_the_audits_own(tmp_path):
    fake = fake_lake(tmp_path, delta=0.123, controls_within_delta=3)
    marts = measured(fake)
    rows = {row["delta"]: row for row in marts["delta_sweep"]}
    assert len(rows) == 31 and [row["delta"] for row in rows.values() if row["used"]] == [0.123]
    own = next(row for row in marts["extraction_rate"] if row["dimension"] == "all")
    for name in ("prompts_tried", "prompts_extracted", "rate", "rate_lower", "rate_upper", "images_extracted"):
        assert rows[0.123][name] == own[name], name
    assert (rows[0.123]["controls_called"], rows[0.123]["n_controls"]) == (3, 60)
    matches = [row for row in fake.rows("matches") if row["role"] == "training"]
    for delta, row in rows.items():
        assert row["prompts_extracted"] == len({match["prompt_id"] for match in matches if match["l2"] <= delta})
        assert row["images_extracted"] == len({match["group_id"] for match in matches if match["l2"] <= delta})


def test_the_sweep_of_delta_counts_the_images_of_the_prompts_that_it_counts(tmp_path):
    """What a listed prompt brings up is no part of a rate of drawn ones."""
    fake = fake_lake(tmp_path, sizes=(3, 1), behaviours=("none",), listed=["nobody's caption"], unflagged_fraction=1.0)
    (listed,) = [row["prompt_id"] for row in fake.rows("prompts") if row["origin"] == "list"]
    rewrite(fake, "matches", lambda rows: [
        row | {"l2": 0.1, "extracted": True} if row["prompt_id"] == listed else row for row in rows
    ])  # fmt: skip
    audit = {name: fake.rows("audits")[0][name] for name in AUDIT}
    samples = {row["sample_id"] for row in fake.rows("matches") if row["prompt_id"] == listed}
    rewrite(fake, "eidetic_counts", lambda _: [{**audit, "sample_id": one, "eidetic_delta": 0.1, "k": 1} for one in samples])
    marts = measured(fake)
    images = {row["bucket"]: row["images_extracted"] for row in marts["extraction_rate"] if row["dimension"] == "all"}
    assert images == {"drawn": 0, "list": 1}
    assert [row["images_extracted"] for row in marts["delta_sweep"] if row["used"]] == [0]


def test_the_cost_is_that_of_every_attempt(tmp_path):
    fake = fake_lake(tmp_path)
    marts = measured(fake)
    (row,) = marts["cost"]
    made = fake.rows("generations")
    succeeded = [one for one in made if one["status"] == "success"]
    found = len(marts["extractions"])
    assert (row["attempts"], row["images_made"], row["extractions"]) == (len(made), len(succeeded), found)
    assert row["images_stored"] == sum(one["image"] is not None for one in made)
    # Eight steps with guidance, two evaluations each.
    assert row["network_evaluations"] == 16 * len(succeeded)
    assert row["network_evaluations_per_extraction"] == pytest.approx(16 * len(succeeded) / found)
    assert row["device_seconds"] == pytest.approx(0.1 * len(made))


def test_the_cost_of_nothing_found_is_not_known(tmp_path):
    (row,) = measured(fake_lake(tmp_path, behaviours=("none",)))["cost"]
    assert row["extractions"] == 0 and row["device_seconds"] > 0 and row["device_seconds_per_extraction"] is None


def test_the_yield_is_what_became_of_every_row(tmp_path):
    fake = fake_lake(tmp_path)
    rows = {(row["role"], row["domain"], row["status"], row["reason"]): row for row in measured(fake)["yield"]}
    trained = sum(row["role"] == "training" for row in fake.rows("samples"))
    assert {key: row["samples"] for key, row in rows.items()} == {
        ("training", "train.example", "success", None): trained - 1,
        ("training", "gone.example", "failed_to_download", "404"): 1,
        ("control", "control.example", "success", None): 60,
    }
    assert rows["training", "gone.example", "failed_to_download", "404"]["share_of_role"] == pytest.approx(1 / trained)


def test_domains_beyond_the_hundredth_are_one_and_no_hosts_name_takes_its_place(tmp_path):
    hosts = ["others", "unknown", *(f"host-{number:03}.example" for number in range(100))]
    urls = [*(f"https://{host}/a.png" for host in hosts), None]
    fake = fake_lake(tmp_path, sizes=[1] * len(urls), urls=urls, controls=20)
    marts = measured(fake)
    rates = [row for row in marts["extraction_rate"] if row["dimension"] == "domain"]
    # Of equal ones the hundred first by name: "others" and "unknown" are the last.
    assert [row["bucket"] for row in rates] == [*hosts[2:], "(others)", "(unknown)"]
    assert [row["prompts_tried"] for row in rates] == [1] * 100 + [2, 1]
    assert sum(row["images_extracted"] for row in rates) > 0
    counted = {row["domain"]: row["samples"] for row in marts["yield"] if row["role"] == "training"}
    # Two of the hundred are the controls' and that of the dead link.
    assert counted == {**dict.fromkeys((*hosts[2:-2], "gone.example"), 1), "(others)": 4, "(unknown)": 1}


@pytest.mark.parametrize(("url", "domain"), [
    ("https://www.Example.COM:8080/a.png?x=http://no", "example.com"), ("http://user@host.org/a", "host.org"),
    ("a/b.png", None), ("https://h\u00f6st.example#x", "h\u00f6st.example"), (None, None), ("javascript:alert(1)", None),
    ("http://[2001:db8::1]:8/a", "[2001:db8::1]"), ("http://[::1]/", "[::1]"), ("http://www.example.org./", "example.org"),
])  # fmt: skip
def test_a_domain_is_the_host_of_the_url(url, domain):
    with measurement.connect() as connection:
        assert connection.execute("SELECT domain_of($url)", {"url": url}).fetchall() == [(domain,)]


def test_the_takedown_names_all_duplicates_and_what_to_block(tmp_path):
    fake = fake_lake(tmp_path)
    marts = measured(fake)
    members = collections.defaultdict(set)
    for row in fake.rows("duplicate_groups"):
        members[row["group_id"]].add(row["sample_id"])
    wanted = set().union(*(members[row["group_id"]] for row in marts["extractions"]))
    images = [row for row in marts["takedown"] if row["kind"] == "image"]
    assert {row["sample_id"] for row in images} == wanted and len(images) == len(wanted)
    extracted = {row["sample_id"] for row in images if row["why"] == "extracted"}
    assert extracted == {row["sample_id"] for row in marts["extractions"]}
    urls = {row["sample_id"]: row["url"] for row in fake.rows("samples")}
    assert all(row["url"] == urls[row["sample_id"]] for row in images)
    blocked = {row["prompt_id"] for row in marts["takedown"] if row["kind"] == "prompt"}
    assert blocked == {row["prompt_id"] for row in marts["verdicts"] if row["extracted"] or row["extracted_calibrated"]}


def test_the_takedown_names_what_has_the_url_of_an_extracted_image(tmp_path):
    """Another caption of the same picture that could not be downloaded here, but by those who train on it."""
    fake = fake_lake(tmp_path, sizes=(3, 1), behaviours=("copy", "none"), controls=2)
    (lost,) = [row["sample_id"] for row in fake.rows("samples") if row["status"] == "failed_to_download"]
    (url, group), *_ = {(row["url"], row["group_id"]) for row in measured(fake)["extractions"]}
    rewrite(fake, "samples", lambda rows: [
        row | {"url": url} if row["sample_id"] == lost or row["role"] == "control" else row for row in rows
    ])  # fmt: skip
    named = [row for row in measured(fake, "again")["takedown"] if row["kind"] == "image"]
    assert len(named) == 4
    (row,) = [row for row in named if row["sample_id"] == lost]
    assert (row["url"], row["group_id"], row["why"]) == (url, group, "same url, not had here")


def test_a_prompt_whose_text_was_forgotten_is_not_blocked_by_what_stands_there_now(tmp_path):
    fake = fake_lake(tmp_path, sizes=(3, 1), behaviours=("copy",), controls=2)
    rewrite(fake, "prompts", lambda rows: [row | {"text": "[forgotten]"} if row["n_duplicates"] == 3 else row for row in rows])
    assert [row["prompt"] for row in measured(fake)["takedown"] if row["kind"] == "prompt"] == ["group 1"]


def test_k_tells_which_kinds_of_eidetic_memorisation_there_are(tmp_path):
    marts = measured(fake_lake(tmp_path))
    rows = {row["k"]: row for row in marts["eidetic_memorisation"]}
    for k in (1, 10, 100, 1000):
        flags = [row[f"eidetic_{k}"] for row in marts["extractions"]]
        assert flags == [row["k"] <= k for row in marts["extractions"]]
        assert rows[k]["images"] == sum(flags)
    assert 0 < rows[1]["images"] < rows[100]["images"] == len(marts["extractions"])


def test_the_sweep_weighs_what_was_looked_at(tmp_path):
    """By hand, from the five pairs that fakes.SWEPT plants around the threshold 0.9."""
    rows = {row["threshold"]: row for row in measured(fake_lake(tmp_path))["threshold_sweep"]}
    assert sorted(rows) == [0.8, 0.81, 0.82, 0.83, 0.84, 0.85, 0.86, 0.87, 0.88, 0.89, 0.9, 0.95]
    assert [row["threshold"] for row in rows.values() if row["searched"]] == [0.9]
    # Over 0.9: six pairs, of which three were looked at, so each of these stands for two of its kind.
    assert (rows[0.9]["sampled_pairs"], rows[0.9]["looked_at"]) == (6, 2)
    assert rows[0.9]["precision"] == pytest.approx(2 / 6)
    assert (rows[0.9]["judged"], rows[0.9]["found"]) == (3, 2)
    assert rows[0.9]["search_recall"] == pytest.approx(2 / 3)
    # Down to 0.81 six more agree in part: 4 of 10.
    assert rows[0.81]["precision"] == pytest.approx((2 + 4) / (6 + 10))
    assert rows[0.81]["recall"] == 1 and rows[0.9]["recall"] == pytest.approx(2 / 6)
    assert rows[0.95]["precision"] == 1 and rows[0.95]["search_recall"] == 1
    assert (rows[0.95]["groups"], rows[0.95]["images_in_groups"], rows[0.95]["largest"]) == (2, 4, 2)
    assert rows[0.85]["groups"] is None


def test_an_empty_audit_has_empty_marts(tmp_path):
    marts = measured(fake_lake(tmp_path, sizes=(), captions=(), controls=0))
    assert marts["extraction_rate"] == marts["extractions"] == marts["duplication"] == marts["threshold_sweep"] == []
    assert marts["filter_misses"][0]["prompts_missed_estimate"] == 0


def test_the_order_and_the_parts_of_the_rows_change_nothing(tmp_path):
    fake = fake_lake(tmp_path)
    before = measured(fake)
    for table in ("matches", "prompts", "duplicate_groups", "samples", "cliques"):
        rewrite(fake, table, lambda rows: rows[::-1])
    assert measured(fake, "again") == before


def test_hostile_captions_pass_through_untouched(tmp_path):
    hostile = ["'; DROP TABLE samples; --", "$max_prompts", "a\x00b", "x" * 10_000, "\u202eevil", '"quoted" {{ 7*7 }}']
    fake = fake_lake(tmp_path, sizes=(1,) * 6, captions=hostile, behaviours=("copy",))
    rows = measured(fake)["extractions"]
    assert {row["caption"] for row in rows} == set(hostile) == {row["prompt"] for row in rows}


# -- the checks -------------------------------------------------------------------------------------------------------


def without_first(rows):
    return rows[1:]


def first_again(rows):
    return [*rows, rows[0]]


def in_first(**columns):
    return lambda rows: [{**rows[0], **columns}, *rows[1:]]


def in_all(**columns):
    return lambda rows: [{**row, **columns} for row in rows]


FAULTS = [
    ("every_attempt_is_a_row", "generations", without_first),
    ("every_extraction_has_its_k", "eidetic_counts", lambda rows: []),
    ("every_kept_generation_was_matched", "matches", lambda rows: [row for row in rows if row["sample_index"]]),
    ("every_match_has_its_generation", "matches", in_first(sample_index=99)),
    ("every_match_has_its_generation", "generations", in_all(image=None)),
    ("every_match_has_its_group", "matches", in_all(group_id="elsewhere")),
    ("every_prompt_is_counted_once", "cliques", first_again),
    ("every_prompt_was_tried", "cliques", without_first),
    ("group_sizes_are_right", "duplicate_groups", in_first(size=77)),
    ("identical_images_share_a_group", "duplicate_groups", in_first(identical_to="elsewhere")),
    ("matches_are_unique", "matches", first_again),
    ("no_extraction_is_lost", "samples", lambda rows: [row for row in rows if row["caption"] != "group 0"]),
    ("one_distance_is_chosen", "calibration", in_all(chosen=False)),
    ("one_distance_is_chosen", "calibration", in_all(chosen=True)),
    ("one_of_each_group_is_kept", "keep_list", without_first),
    ("one_of_each_group_is_kept", "keep_list", first_again),
    ("prompts_are_unique", "prompts", first_again),
    ("samples_are_unique", "samples", first_again),
    ("takedown_is_complete", "duplicate_groups", first_again),
]


@pytest.mark.parametrize(("check", "table", "change"), FAULTS, ids=[f"{check}-{table}" for check, table, _ in FAULTS])
def test_a_check_finds_what_it_is_there_for(tmp_path, check, table, change):
    fake = fake_lake(tmp_path, controls=4)
    rewrite(fake, table, change)
    with pytest.raises(RuntimeError, match=rf"checks failed: .*{check}: \d+ rows, the first is"):
        measurement.run(fake.lake, fake.match, "measured")
    # Nothing half-written: no mart of an audit that failed its checks.
    assert not any(fake.lake.parts(mart, "measured") for mart in measurement.MARTS)


@pytest.mark.parametrize("wrong", [{"rate": 1.2}, {"rate_lower": 0.5}, {"rate_calibrated_upper": 1.1}])
def test_a_rate_outside_its_interval_is_found(wrong):
    right = {f"{rate}{end}": value for rate in ("rate", "rate_calibrated")
             for end, value in (("_lower", 0.1), ("", 0.2), ("_upper", 0.3))}  # fmt: skip
    with duckdb.connect() as connection:
        for row, found in ((right, 0), (right | wrong, 1)):
            columns = ", ".join(f"CAST({value} AS DOUBLE) AS {name}" for name, value in row.items())
            connection.execute(
                f"CREATE OR REPLACE TABLE extraction_rate AS SELECT 'all' AS dimension, 'drawn' AS bucket, {columns}"
            )
            assert len(connection.execute(sql.read("checks", "rates_are_rates")).fetchall()) == found


def test_every_check_has_a_fault_that_it_finds():
    assert {check for check, _, _ in FAULTS} | {"rates_are_rates"} == set(sql.names("checks"))


# -- the audit's snapshots, and the database --------------------------------------------------------------------------


def finish(fake, snapshot):
    measurement.run(fake.lake, fake.match, snapshot)
    upstream = {"match": fake.match.snapshot_id}
    return fake.lake.complete("measure", snapshot, {}, upstream, {"audit_id": fake.generate.snapshot_id})


def ask(lake, question):
    with duckdb.connect(os.path.join(lake.root, "audit.duckdb"), read_only=True) as connection:
        return connection.execute(question).fetchall()


def test_an_audit_reads_its_own_snapshots_alone(tmp_path):
    """Two models in one lake, the second with another plan: neither sees the other's rows."""
    first = fake_lake(tmp_path, behaviours=("copy",))
    alone = measured(first)
    second = fake_lake(tmp_path, behaviours=("none",), model="another", base_seed=1, max_prompts=5)
    assert measured(first, "again") == alone
    other = measured(second)
    assert other["extractions"] == []
    assert len(other["verdicts"]) == 5


def test_a_manifest_that_is_gone_is_the_users_to_restore(tmp_path):
    fake = fake_lake(tmp_path, controls=0)
    os.remove(os.path.join(tmp_path, "manifests", "embed", f"{fake.embed.snapshot_id}.json"))
    with pytest.raises(UserError, match="lacks the manifest of embed"):
        measurement.run(fake.lake, fake.match, "measured")


def test_the_database_has_a_view_for_every_table_and_mart(tmp_path):
    fake = fake_lake(tmp_path)
    finish(fake, "measured")
    assert measurement.build_database(fake.lake) == fake.lake.path("audit.duckdb")
    assert "lake_root" in ask(fake.lake, "SELECT sql FROM duckdb_views() WHERE view_name = 'matches'")[0][0]
    views = {name for (name,) in ask(fake.lake, "SELECT view_name FROM duckdb_views() WHERE NOT internal")}
    expected = {"samples", "images", "embeddings", "duplicate_pairs", "duplicate_groups", "group_sizes", "sampled_pairs",
                "keep_list", "prompts", "generations", "cliques", "matches", "calibration", "eidetic_counts", "audits",
                *measurement.MARTS}  # fmt: skip
    assert views == expected
    for table in ("samples", "generations", "matches", "images"):
        (count,) = ask(fake.lake, f"SELECT count(*) FROM {table}")[0]
        assert count == len(fake.rows(table))
    assert ask(fake.lake, "SELECT DISTINCT snapshot_id FROM matches") == [(fake.match.snapshot_id,)]


def test_the_database_holds_every_audit_and_each_ones_newest_measure(tmp_path):
    first = fake_lake(tmp_path)
    second = fake_lake(tmp_path, model="another", base_seed=1)
    half_done = fake_lake(tmp_path, model="not measured", base_seed=2)
    finish(first, "0123456789012345")  # digits alone: no number may come of it
    finish(first, "12e4567890123456")
    finish(second, "measured")
    measurement.build_database(first.lake)
    audits = collections.Counter(ask(first.lake, "SELECT audit_id, snapshot_id FROM extraction_rate"))
    assert set(audits) == {
        (first.generate.snapshot_id, "12e4567890123456"), (second.generate.snapshot_id, "measured"),
    }  # fmt: skip
    prompts = {audit for (audit,) in ask(first.lake, "SELECT audit_id FROM prompts")}
    assert prompts == {first.generate.snapshot_id, second.generate.snapshot_id}
    assert half_done.generate.snapshot_id not in prompts
    # Both audits share the data: no sample is there twice.
    assert ask(first.lake, "SELECT count(*) - count(DISTINCT sample_id) FROM samples") == [(0,)]


def test_a_database_that_somebody_reads_is_replaced_under_them(tmp_path):
    fake = fake_lake(tmp_path)
    finish(fake, "measured")
    path = measurement.build_database(fake.lake)
    with duckdb.connect(path, read_only=True) as reader:
        measurement.build_database(fake.lake)
        assert reader.execute("SELECT count(*) FROM verdicts").fetchall() == [(10,)]
    assert ask(fake.lake, "SELECT count(*) FROM verdicts") == [(10,)]
    assert not [name for name in os.listdir(tmp_path) if name.startswith("tmp")]


def test_a_lake_that_was_moved_is_told_so_once(tmp_path, monkeypatch):
    fake = fake_lake(tmp_path / "before")
    finish(fake, "measured")
    measurement.build_database(fake.lake)
    (tmp_path / "it's [there] *now").mkdir()
    (tmp_path / "before").rename(tmp_path / "it's [there] *now" / "lake")
    # A lake's own path is no pattern; where it is relative, what is above may look like one.
    monkeypatch.chdir(tmp_path / "it's [there] *now")
    moved = Lake("lake")
    with pytest.raises(duckdb.Error, match="No files found"):
        ask(moved, "SELECT count(*) FROM verdicts")
    assert measurement.relocate(moved) == moved.path("audit.duckdb")
    for table, rows in (("verdicts", 10), ("matches", fake.match.rows["matches"])):
        assert ask(moved, f"SELECT count(*) FROM {table}") == [(rows,)]


def test_a_lake_without_a_database_can_not_be_told(tmp_path):
    with pytest.raises(UserError, match=r"has no audit\.duckdb yet; run 'eidetic measure' first"):
        measurement.relocate(fake_lake(tmp_path).lake)


@pytest.mark.parametrize("fault", ["open", "damaged"])
def test_a_database_that_can_not_be_written_is_the_users_to_free(tmp_path, fault):
    lake = Lake(str(tmp_path))
    if fault == "damaged":
        (tmp_path / "audit.duckdb").write_bytes(b"no database" * 1000)
        with pytest.raises(UserError, match=r"cannot write to .* make it anew with 'eidetic measure'"):
            measurement.relocate(lake)
        return
    path = lake.path("audit.duckdb")
    reading = "import duckdb, sys; reader = duckdb.connect(sys.argv[1], read_only=True); print(flush=True); input()"
    duckdb.connect(path).close()
    with subprocess.Popen([sys.executable, "-c", reading, path], stdin=-1, stdout=-1) as reader:
        assert reader.stdout.readline()
        with pytest.raises(UserError, match=r"Conflicting lock .* end the program that has it open"):
            measurement.relocate(lake)
        reader.communicate(b"\n")
    assert measurement.relocate(lake) == path


def test_a_remote_lake_gets_the_same_marts_and_a_database_without_pictures(tmp_path, monkeypatch):
    fake = fake_lake(tmp_path)
    local = measured(fake)
    monkeypatch.setattr(measurement, "is_local", lambda lake: False)
    assert measured(fake, "remote") == local
    fake.lake.complete("measure", "remote", {}, {"match": fake.match.snapshot_id}, {"audit_id": "one"})
    measurement.build_database(fake.lake)
    columns = [name for (name,) in ask(fake.lake, "SELECT column_name FROM (DESCRIBE generations)")]
    assert "image" not in columns and "kept" in columns
    kept = sum(row["image"] is not None for row in fake.rows("generations"))
    assert ask(fake.lake, "SELECT count(*) FROM generations WHERE kept") == [(kept,)]
    # Copies, no views: whoever downloads the file has everything.
    assert ask(fake.lake, "SELECT count(*) FROM duckdb_views() WHERE NOT internal") == [(0,)]


def test_a_remote_lakes_copies_say_their_snapshots_and_marts_of_an_earlier_version_are_among_them(tmp_path, monkeypatch):
    fake = fake_lake(tmp_path, controls=0)
    finish(fake, "earlier")
    path = fake.lake.part("cost", "earlier", 0)
    write_parquet(path, read_parquet(path).drop_columns("device_seconds"))
    finish(fake_lake(tmp_path, controls=0, model="another"), "now")
    monkeypatch.setattr(measurement, "is_local", lambda lake: False)
    measurement.build_database(fake.lake)
    found = ask(fake.lake, "SELECT snapshot_id, device_seconds IS NULL FROM cost ORDER BY 1")
    assert found == [("earlier", True), ("now", False)]
    assert ask(fake.lake, "SELECT DISTINCT snapshot_id FROM samples") == [(fake.ingest.snapshot_id,)]


def test_a_lake_with_a_quote_in_its_path(tmp_path):
    fake = fake_lake(tmp_path / "it's a lake")
    finish(fake, "measured")
    measurement.build_database(fake.lake)
    assert ask(fake.lake, "SELECT count(*) FROM verdicts") == [(10,)]
