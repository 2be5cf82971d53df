"""The marts against plain loops over the same tables, what was planted, the checks, and the database."""

import collections
import itertools
import json
import math
import os
import subprocess
import sys

import duckdb
import pytest
from scipy.stats import beta, binomtest

import sql
from pipelines.match import MatchOptions
from tests.fakes import BEHAVIOURS, fake_lake, rewrite
from transforms.errors import UserError
from transforms.kernels.copies import GU_RATIO
from transforms.kernels.rates import blaker_interval, slice_interval, stratified_interval, wilson_interval
from transforms.results import database, marts
from transforms.store import scan
from transforms.store.files import read_parquet, write_parquet
from transforms.store.lake import Lake

AUDIT = ("audit_id", "model_revision", "parameters_digest")


def measured(fake, snapshot="measured"):
    """mart → rows without the audit's columns."""
    marts.run(fake.lake, fake.match, snapshot)
    tables = {mart: read_parquet(fake.lake.part(mart, snapshot, 0)) for mart in marts.MARTS}
    return {mart: table.drop_columns(list(AUDIT)).to_pylist() for mart, table in tables.items()}


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


def by_stratum(prompts):
    """The prompts of each stratum, and the groups that one of them stands for."""
    strata = sorted({(prompt["stratum"], prompt["inclusion_probability"]) for prompt in prompts})
    return [([p for p in prompts if (p["stratum"], p["inclusion_probability"]) == one], 1 / one[1]) for one in strata]


def interval_by_loops(prompts, hits):
    """Blaker's where all weigh the same, else by strata."""
    strata = by_stratum(prompts)
    found = [sum(prompt["prompt_id"] in hits for prompt in some) for some, _ in strata]
    if len({each for _, each in strata}) == 1:
        return blaker_interval(sum(found), sum(len(some) for some, _ in strata))
    return stratified_interval(found, [len(some) for some, _ in strata], [len(some) * each for some, each in strata])


def slice_interval_by_loops(fake, prompts, weight):
    """As ``interval_by_loops`` where nothing stands for what was dropped; ``weight``: prompt_id → how many it stands for."""
    cliques = {row["prompt_id"]: row for row in fake.rows("cliques")}
    strata, thin = by_stratum(prompts), []
    for some, _ in strata:
        rules = [cliques[prompt["prompt_id"]] for prompt in some]
        rates = [row["keep_probability"] for row in rules if row["keep_rule"] in ("slice", "dropped")]
        thin.append(max((1 / rate for rate in rates if rate), default=None))
    if max((times or 0 for times in thin), default=0) <= 1:
        return interval_by_loops(prompts, {prompt for prompt, times in weight.items() if times})
    surely, in_slice = (
        [sum(test(weight[prompt["prompt_id"]]) for prompt in some) for some, _ in strata]
        for test in (lambda times: times == 1, lambda times: times > 1)
    )
    trials = [len(some) for some, _ in strata]
    return slice_interval(
        surely, in_slice, [times or 1 for times in thin], trials, [len(some) * each for some, each in strata]
    )  # fmt: skip


class ByLoops:
    """What the marts should hold, computed row by row from the tables, in the words of docs/architecture.md."""

    def __init__(self, fake):
        self.fake = fake
        self.prompts = [row for row in fake.rows("prompts") if row["origin"] != "control"]
        self.controls = [row for row in fake.rows("prompts") if row["origin"] == "control"]
        self.cliques = {row["prompt_id"]: row for row in fake.rows("cliques")}
        self.matches = [row for row in fake.rows("matches") if row["role"] == "training"]
        self.chosen = next(row for row in fake.rows("calibration") if row["chosen"])
        (self.limits,) = fake.rows("copy_calibration")
        (audit,) = fake.rows("audits")
        self.delta = json.loads(audit["parameters"])["match"]["delta"]
        self.control_rows = [row for row in fake.rows("matches")
                             if row["role"] == "control" and row["relation"] == "own" and row["nearest"]]  # fmt: skip
        self.own = {row["prompt_id"]: row for row in self.matches if row["relation"] == "own" and row["nearest"]}
        self.verdicts = {prompt["prompt_id"]: self.verdict(prompt) for prompt in self.prompts}

    def is_copy(self, row):
        near = row["coarse_ratio"] is not None and row["coarse_ratio"] < self.limits["coarse_ratio_limit"]
        return near and row["coarse_l2"] < self.limits["coarse_l2_limit"]

    def p_value(self, distance):
        """By counting: how many controls come as near, for as many chances as a prompt has over them."""
        nulls = [row[self.chosen["distance"]] for row in self.control_rows if row[self.chosen["distance"]] is not None]
        times = math.ceil(self.chosen["generations_per_prompt"] / self.chosen["generations_per_control"])
        return min(1.0, times * (1 + sum(one <= distance for one in nulls)) / (len(nulls) + 1)) if nulls else None

    def verdict(self, prompt):
        mine = [row for row in self.matches if row["prompt_id"] == prompt["prompt_id"]]
        clique, own = self.cliques[prompt["prompt_id"]], self.own.get(prompt["prompt_id"])
        known = prompt["group_id"] is not None and (own is not None or clique["n_generated"] == 0)
        copied = own is not None and self.is_copy(own)
        distance = None if own is None else own[self.chosen["distance"]]
        seen = distance is not None and self.chosen["threshold"] is not None and distance < self.chosen["threshold"]
        extracted = any(row["l2"] <= self.delta for row in mine if not row["regenerated"])
        surely = clique["keep_rule"] != "slice" or any(row["l2"] <= self.delta for row in mine if row["nearest"])
        calibrated = known and self.chosen["threshold"] is not None
        return {
            "copied": copied if known else None,
            "seen": seen if calibrated else None,
            "extracted_calibrated": copied and seen if calibrated else None,
            "copied_any": any(map(self.is_copy, mine)),
            "extracted": extracted,
            "extracted_own": own is not None and own["l2"] <= self.delta,
            "extraction_weight": 0.0 if not extracted else 1.0 if surely else 1 / clique["keep_probability"],
            "own_distance": distance,
            "seen_p_value": None if distance is None or prompt["group_id"] is None else self.p_value(distance),
            "nearest_l2": min((row["l2"] for row in mine if not row["regenerated"]), default=None),
            "nearest_generation_l2": min((row["l2"] for row in mine if row["nearest"]), default=None),
            **{f"own_{name}": None if own is None else own[name] for name in ("l2", "coarse_l2", "coarse_ratio")},
        }

    def rates(self):
        rows = []
        for dimension, bucket, order, members in buckets_by_loops(self.fake, self.prompts):
            ids = [prompt["prompt_id"] for prompt in members]
            each = {prompt["prompt_id"]: 1 / prompt["inclusion_probability"] for prompt in members}
            row = {
                "dimension": dimension,
                "bucket": bucket,
                "bucket_order": order,
                "prompts_tried": len(ids),
                "population": sum(each.values()),
                "prompts_flagged": sum(self.cliques[i]["flagged"] for i in ids),
                "prompts_copied_any": sum(self.verdicts[i]["copied_any"] for i in ids),
                "prompts_extracted": sum(self.verdicts[i]["extracted"] for i in ids),
                "images_copied": len(
                    {one["group_id"] for one in self.matches if one["prompt_id"] in ids and self.is_copy(one)}
                ),
                "images_extracted": len(
                    {one["group_id"] for one in self.matches if one["prompt_id"] in ids and one["l2"] <= self.delta}
                ),
            }
            for column, rate, count, of in (
                ("copied", "rate_copied", "prompts_copied", "prompts_with_image"),
                ("seen", "rate_seen", "prompts_seen", "prompts_calibrated"),
                ("extracted_calibrated", "rate_calibrated", "prompts_extracted_calibrated", "prompts_calibrated"),
            ):
                asked = [prompt for prompt in members if self.verdicts[prompt["prompt_id"]][column] is not None]
                hits = {prompt["prompt_id"] for prompt in asked if self.verdicts[prompt["prompt_id"]][column]}
                row[of], row[count] = len(asked), len(hits) if asked else None
                whole = sum(each[prompt["prompt_id"]] for prompt in asked)
                row[rate] = sum(each[i] for i in sorted(hits)) / whole if asked else None
                row[f"{rate}_lower"], row[f"{rate}_upper"] = interval_by_loops(asked, hits) if asked else (None, None)
            weight = {i: self.verdicts[i]["extraction_weight"] for i in ids}
            wilson = binomtest(row["prompts_extracted"], len(ids)).proportion_ci(method="wilson")
            row["rate_wilson_lower"], row["rate_wilson_upper"] = wilson.low, wilson.high
            row["rate"] = min(1.0, sum(each[i] * weight[i] for i in ids) / sum(each.values()))
            row["rate_lower"], row["rate_upper"] = slice_interval_by_loops(self.fake, members, weight)
            rows.append(row)
        return rows

    def extractions(self):
        """group_id → columns, in the order of confidence."""
        groups = {row["group_id"]: row for row in self.fake.rows("duplicate_groups")}
        origin = {row["prompt_id"]: row["origin"] for row in (*self.prompts, *self.controls)}
        found = {}
        for group, its in groups.items():
            called = [row for row in self.matches
                      if row["group_id"] == group and (row["l2"] <= self.delta or self.is_copy(row))]  # fmt: skip
            if not called:
                continue
            copies = [row for row in called if self.is_copy(row)]
            best = min(called, key=lambda row: (not self.is_copy(row), row["coarse_ratio"], row["l2"]))
            own = [self.verdicts[prompt["prompt_id"]] for prompt in self.prompts if prompt["group_id"] == group]
            known = [verdict for verdict in own if verdict["seen"] is not None]
            found[group] = {
                "copies": its["size"],
                "copied": bool(copies),
                "extracted": any(row["l2"] <= self.delta for row in called),
                "seen": any(verdict["seen"] for verdict in known) if known else None,
                "extracted_calibrated": any(verdict["extracted_calibrated"] for verdict in known) if known else None,
                "prompts_copied": len({row["prompt_id"] for row in copies}),
                "copied_by_own_caption": any(row["relation"] == "own" for row in copies),
                "copied_by_control_caption": any(origin[row["prompt_id"]] == "control" for row in copies),
                "origin": origin[best["prompt_id"]],
                **{name: best[name] for name in ("sample_id", "prompt_id", "sample_index", "relation", "regenerated", "l2",
                                                 "tiled_l2", "adaptive_l2", "nearest_other_l2", "ratio", "coarse_l2",
                                                 "coarse_ratio")},
            }  # fmt: skip
        order = sorted(found, key=lambda group: (not found[group]["copied"], found[group]["coarse_ratio"]))
        return {group: {**found[group], "confidence_rank": rank} for rank, group in enumerate(order, 1)}

    def agreement(self):
        """(rule, other) → how many prompts of which both say something (both, the first, the other, neither call)."""
        calls = collections.defaultdict(dict)
        for prompt, verdict in self.verdicts.items():
            own = self.own.get(prompt)
            if verdict["copied"] is None:
                continue
            calls["l2"][prompt] = own is not None and own["l2"] <= self.delta
            calls["adaptive_l2"][prompt] = own is not None and own["adaptive_l2"] is not None and own["adaptive_l2"] <= 1
            calls["ratio"][prompt] = own is not None and own["ratio"] is not None and own["ratio"] < GU_RATIO
            for rule in ("copied", "seen", "extracted_calibrated"):
                if verdict[rule] is not None:
                    calls[rule][prompt] = verdict[rule]
        found = {}
        for one, other in itertools.product(calls, calls):
            both = [(calls[one][prompt], calls[other][prompt]) for prompt in calls[one] if prompt in calls[other]]
            found[one, other] = tuple(
                both.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))
            )  # fmt: skip
        return found

    def misses(self):
        unflagged = [prompt["prompt_id"] for prompt in self.prompts if not self.cliques[prompt["prompt_id"]]["flagged"]]
        checked = [prompt for prompt in unflagged if self.cliques[prompt]["keep_rule"] in ("slice", "all")]
        columns = {name: [self.verdicts[i][name] for i in unflagged] for name in ("copied", "extracted_calibrated")}
        count = {
            name: sum(filter(None, said)) if any(one is not None for one in said) else None for name, said in columns.items()
        }
        weights = [self.verdicts[prompt]["extraction_weight"] for prompt in unflagged]
        return {
            "prompts_unflagged": len(unflagged),
            "prompts_missed": count["copied"],
            "prompts_missed_calibrated": count["extracted_calibrated"],
            "prompts_checked": len(checked),
            "prompts_missed_extracted": sum(weight > 0 for weight in weights),
            # Nothing was looked at, so nothing is known: no estimate, rather than none missed.
            "prompts_missed_extracted_estimate": None if unflagged and not checked else float(sum(weights)),
        }

    def precision(self):
        """Rows in their order."""
        near = {prompt["group_id"]: (verdict["own_coarse_ratio"], prompt["prompt_id"], verdict["copied"])
                for prompt, verdict in ((prompt, self.verdicts[prompt["prompt_id"]]) for prompt in self.prompts
                                        if prompt["origin"] == "duplicates")
                if verdict["own_coarse_l2"] is not None
                and verdict["own_coarse_l2"] < self.limits["coarse_l2_limit"]}  # fmt: skip
        held_out = [row for row in self.fake.rows("decoys") if row["kind"] == "held_out"]
        false = [row["coarse_ratio"] for row in held_out if row["coarse_l2"] < self.limits["coarse_l2_limit"]]
        rows = []
        for rank, (group, (ratio, prompt, copied)) in enumerate(sorted(near.items(), key=lambda item: item[1][0]), 1):
            called = sum(one <= ratio for one in false)
            expected = self.chosen["images_tested"] * called / len(held_out) if held_out else None
            rows.append({
                "rank": rank, "group_id": group, "prompt_id": prompt, "coarse_ratio": ratio, "copied": copied,
                "held_out_called": called, "n_held_out": len(held_out), "expected_false": expected,
                "precision": None if expected is None else 1 - min(1.0, expected / rank),
            })  # fmt: skip
        return rows

    def takedown(self):
        """{(kind, sample_id or prompt_id, why)}, without samples of the same url."""
        copied = {group: row for group, row in self.extractions().items() if row["copied"]}
        seen = {prompt["group_id"] for prompt in self.prompts if self.verdicts[prompt["prompt_id"]]["seen"]}
        found = set()
        for row in self.fake.rows("duplicate_groups"):
            if row["group_id"] in copied:
                best = row["sample_id"] == copied[row["group_id"]]["sample_id"]
                found.add(("image", row["sample_id"], "copied" if best else "duplicate of a copied image"))
            elif row["group_id"] in seen:
                found.add(("seen", row["sample_id"], "the model was trained on it, and did not give it back"))
        prompts = {row["prompt_id"] for row in self.matches if self.is_copy(row)}
        return found | {("prompt", prompt, "gives back a training image") for prompt in prompts}


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
        {"base_seed": 3, "calibrated_distance": "tiled_l2", "max_prompts": 6, "controls_that_copy": 3, "held_out_near": 4},
        {"base_seed": 4, "controls": 0, "listed": ["nobody's caption"]},
        {"base_seed": 5, "keep": "none"},
        {"base_seed": 6, "keep": "nearest", "controls_that_copy": 2},
        {"base_seed": 7, "unflagged_fraction": 0.0, "regenerate": False, "controls_that_copy": 1},
        # More held-out pictures are near than the rate allows: the limits are theirs.
        {"base_seed": 8, "held_out_near": 9, "max_prompts": 7, "unflagged_fraction": 0.3},
    ],
    ids=["plain", "all kept", "listed", "tiled", "no controls", "none kept", "nearest kept", "not again", "near decoys"],
)
def test_the_marts_are_what_loops_over_the_tables_say(tmp_path, knobs):
    fake = fake_lake(tmp_path, **knobs)
    marts, loops = measured(fake), ByLoops(fake)

    assert {row["prompt_id"] for row in marts["verdicts"]} == set(loops.verdicts)
    for row in marts["verdicts"]:
        close(row, loops.verdicts[row["prompt_id"]])
    for row, expected in zip(marts["extraction_rate"], loops.rates(), strict=True):
        close(row, expected)
    extractions = loops.extractions()
    assert {row["group_id"] for row in marts["extractions"]} == set(extractions)
    for row in marts["extractions"]:
        close(row, extractions[row["group_id"]])
    called = {(row["rule"], row["other"]): tuple(row[name] for name in ("both", "only_rule", "only_other", "neither"))
              for row in marts["agreement"]}  # fmt: skip
    assert called == loops.agreement()
    assert all(sum(called[row["rule"], row["other"]]) == row["prompts"] for row in marts["agreement"])
    close(marts["filter_misses"][0], loops.misses())
    for row, expected in zip(marts["precision_curve"], loops.precision(), strict=True):
        close(row, expected)
    listed = [(row["kind"], row["sample_id"] or row["prompt_id"], row["why"]) for row in marts["takedown"]]
    assert len(listed) == len(set(listed)) and set(listed) == loops.takedown()
    k = {row["sample_id"]: row["k"] for row in fake.rows("eidetic_counts")}
    assert all(row["k"] == k[row["sample_id"]] for row in marts["extractions"])


def test_the_most_confident_extraction_comes_first(tmp_path):
    rows = measured(fake_lake(tmp_path))["extractions"]
    assert [row["confidence_rank"] for row in rows] == list(range(1, len(rows) + 1))
    # Copies by their ratio, then what the paper's rule alone calls.
    assert [row["copied"] for row in rows] == sorted((row["copied"] for row in rows), reverse=True)
    for copied in (True, False):
        ratios = [row["coarse_ratio"] for row in rows if row["copied"] == copied]
        assert ratios and ratios == sorted(ratios)


def test_where_there_is_one_group_alone_nothing_can_be_a_copy(tmp_path):
    """No other image to be nearer to: the distance alone orders what the paper's rule calls."""
    fake = fake_lake(tmp_path, sizes=(2,), behaviours=("copy",), controls=0)
    rewrite(fake, "matches", in_all(nearest_other_l2=None, ratio=None, coarse_ratio=None, adaptive_l2=None))
    marts = measured(fake)
    (row,) = marts["extractions"]
    smallest = min(fake.rows("matches"), key=lambda match: match["l2"])
    assert (row["copied"], row["extracted"], row["l2"]) == (False, True, smallest["l2"])
    assert [one["copied"] for one in marts["verdicts"]] == [False] and marts["precision_curve"] == []


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


# -- what was planted: the numbers of tests/fakes.BEHAVIOURS by hand ----------------------------------------------------

RULES = ("l2", "adaptive_l2", "ratio", "copied", "seen")
CALLED = {
    "copy": (True, True, True, True, True),
    "half_learned": (False, True, False, False, True),
    "loose": (True, False, False, False, False),
    "soft": (False, True, False, True, True),
    "unproven": (True, False, True, True, False),
    "neighbour": (False, False, False, False, False),
    "none": (False, False, False, False, False),
}
"""Which rules call a prompt's nearest generation, as in the table of ``BEHAVIOURS``."""


@pytest.fixture
def seven(tmp_path):
    """One prompt of each behaviour, the first of seven duplicates, the last of one, whose image two controls give back too."""
    return fake_lake(tmp_path, sizes=(7, 6, 5, 4, 3, 2, 1), behaviours=BEHAVIOURS, controls_that_copy=2)


def test_each_behaviour_gets_the_verdicts_that_it_was_planted_for(tmp_path):
    fake = fake_lake(tmp_path, unflagged_fraction=1.0)
    for row in measured(fake)["verdicts"]:
        planted = fake.behaviour[row["prompt_id"]].split()[0]
        by_l2, _, _, copied, seen = CALLED[planted]
        assert (row["extracted_own"], row["copied"], row["seen"]) == (by_l2, copied, seen), planted
        assert row["extracted_calibrated"] == (copied and seen), planted
        assert row["extracted"] == (by_l2 or planted == "neighbour"), planted
        assert row["copied_any"] == (copied or planted == "neighbour"), planted


def test_the_rates_by_hand(seven):
    row = next(row for row in measured(seven)["extraction_rate"] if row["dimension"] == "all")
    counts = {
        "prompts_tried": 7, "prompts_with_image": 7, "prompts_calibrated": 7, "prompts_flagged": 7,
        "prompts_copied": 3, "prompts_copied_any": 4, "prompts_seen": 3, "prompts_extracted_calibrated": 2,
        "prompts_extracted": 4, "images_copied": 4, "images_extracted": 4,
    }  # fmt: skip
    assert {name: row[name] for name in counts} == counts
    rates = {"rate_copied": 3, "rate_seen": 3, "rate_calibrated": 2, "rate": 4}
    for name, hits in rates.items():
        assert row[name] == pytest.approx(hits / 7)
        assert (row[f"{name}_lower"], row[f"{name}_upper"]) == pytest.approx(blaker_interval(hits, 7))


def test_the_images_that_came_back_by_hand(seven):
    rows = {row["caption"]: row for row in measured(seven)["extractions"]}
    columns = ("copied", "seen", "extracted_calibrated", "extracted", "prompts_copied", "copied_by_own_caption",
               "copied_by_control_caption")  # fmt: skip
    assert {caption: tuple(row[name] for name in columns) for caption, row in rows.items()} == {
        "group 0": (True, True, True, True, 1, True, False),  # copy
        "group 2": (False, False, False, True, 0, False, False),  # loose
        "group 3": (True, True, True, False, 1, True, False),  # soft
        "group 4": (True, False, False, True, 1, True, False),  # unproven
        # none: the neighbour before it returns it, and two controls do.
        "group 6": (True, False, False, True, 3, False, True),
    }


def test_the_agreement_by_hand(seven):
    found = {(row["rule"], row["other"]): row for row in measured(seven)["agreement"]}
    rules = (*RULES, "extracted_calibrated")
    assert list(found) == list(itertools.product(rules, rules))
    calls = {what: (*called, called[3] and called[4]) for what, called in CALLED.items()}
    for (one, other), row in found.items():
        pairs = [(called[rules.index(one)], called[rules.index(other)]) for called in calls.values()]
        expected = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
        assert [row[name] for name in ("both", "only_rule", "only_other", "neither")] == expected, (one, other)
    # The two questions are two: half_learned is seen and no copy, unproven a copy and not seen.
    row = found["copied", "seen"]
    assert (row["both"], row["only_rule"], row["only_other"], row["neither"]) == (2, 1, 1, 3)


def test_a_prompt_of_the_users_agrees_with_nobody_unless_it_is_a_caption(tmp_path):
    fake = fake_lake(tmp_path, sizes=(3, 1), behaviours=("copy",), listed=["nobody's caption"])
    rows = measured(fake)["agreement"]
    assert {row["prompts"] for row in rows} == {2}
    rewrite(fake, "prompts", in_all(stratum="forgotten", stratum_order=-2))
    assert measured(fake, "again")["agreement"] == []


def test_what_is_only_seen_is_taken_down_apart(seven):
    rows = measured(seven)["takedown"]
    captions = {row["sample_id"]: row["caption"] for row in seven.rows("samples")}
    counted = collections.Counter((row["kind"], captions.get(row["sample_id"]), row["why"]) for row in rows
                                  if row["kind"] != "prompt")  # fmt: skip
    assert counted == {
        ("image", "group 0", "copied"): 1, ("image", "group 0", "duplicate of a copied image"): 6,
        ("image", "group 3", "copied"): 1, ("image", "group 3", "duplicate of a copied image"): 3,
        ("image", "group 4", "copied"): 1, ("image", "group 4", "duplicate of a copied image"): 2,
        ("image", "group 6", "copied"): 1,
        # Of half_learned: it did not come back, and was learned.
        ("seen", "group 1", "the model was trained on it, and did not give it back"): 6,
    }  # fmt: skip
    assert all((row["confidence_rank"] is None) == (row["kind"] != "image") for row in rows)
    blocked = [row["prompt"] for row in rows if row["kind"] == "prompt"]
    controls = [prompt["text"] for prompt in seven.rows("prompts") if prompt["origin"] == "control"][:2]
    assert sorted(blocked) == sorted(["group 0", "group 3", "group 4", "group 5", *controls])


def test_the_filter_is_counted_not_estimated_where_every_prompt_is_judged(tmp_path):
    """Of every unflagged prompt the nearest generation is stored: what it copies of its own image is known."""
    unflagged = [f"{what} unflagged" for what in BEHAVIOURS]
    fake = fake_lake(tmp_path, sizes=(7, 6, 5, 4, 3, 2, 1), behaviours=unflagged, unflagged_fraction=0.0)
    (row,) = measured(fake)["filter_misses"]
    assert row == {
        "prompts_unflagged": 7, "prompts_missed": 3, "prompts_missed_calibrated": 2, "prompts_checked": 0,
        "prompts_missed_extracted": 3, "prompts_missed_extracted_estimate": None,
    }  # fmt: skip
    fake = fake_lake(tmp_path, sizes=(7, 6, 5, 4, 3, 2, 1), behaviours=unflagged, unflagged_fraction=1.0)
    (row,) = measured(fake, "again")["filter_misses"]
    assert row == {
        "prompts_unflagged": 7, "prompts_missed": 3, "prompts_missed_calibrated": 2, "prompts_checked": 7,
        "prompts_missed_extracted": 4, "prompts_missed_extracted_estimate": 4.0,
    }  # fmt: skip


# -- what comes back under other captions -------------------------------------------------------------------------------


def test_what_comes_back_under_a_controls_caption_came_back_and_is_in_no_prompts_rate(tmp_path):
    plain = fake_lake(tmp_path, behaviours=("none",))
    before = measured(plain)
    fake = fake_lake(tmp_path, behaviours=("none",), controls_that_copy=3, model="another")
    after = measured(fake)
    assert before["extractions"] == []
    (row,) = after["extractions"]
    assert (row["copied"], row["prompts_copied"], row["origin"]) == (True, 3, "control")
    assert (row["copied_by_own_caption"], row["copied_by_control_caption"]) == (False, True)
    # Its own caption was tried, and says that the model never saw it; the picture came back all the same.
    assert (row["seen"], row["extracted_calibrated"]) == (False, False)
    assert after["extraction_rate"] == before["extraction_rate"]
    assert {row["images_copied"] for row in after["extraction_rate"]} == {0}
    assert after["cost"][0]["images_copied"] == 1
    blocked = {row["prompt"] for row in after["takedown"] if row["kind"] == "prompt"}
    assert len(blocked) == 3 and all(text.startswith("control ") for text in blocked)


def test_an_image_that_two_prompts_give_back_counts_once(tmp_path):
    # The neighbour gives back what the next prompt, a copy, gives back as well.
    fake = fake_lake(tmp_path, sizes=(3, 4), captions=("low", "high"), behaviours=("neighbour", "copy"))
    marts = measured(fake)
    (rate,) = [row for row in marts["extraction_rate"] if row["dimension"] == "all"]
    assert (rate["prompts_extracted"], rate["images_extracted"]) == (2, 1)
    # Both return some training image, one of them its own.
    assert (rate["prompts_copied"], rate["prompts_copied_any"], rate["images_copied"]) == (1, 2, 1)
    (row,) = marts["extractions"]
    assert (row["copies"], row["caption"], row["extracted"], row["extracted_calibrated"]) == (3, "low", True, True)
    assert (row["prompts_copied"], row["copied_by_own_caption"]) == (2, True)


def test_what_only_another_prompt_gives_back_has_the_verdicts_of_its_own_prompt(tmp_path):
    fake = fake_lake(tmp_path, sizes=(9, 1), behaviours=("neighbour", "half_learned unflagged"), unflagged_fraction=0.0)
    marts = measured(fake)
    (row,) = marts["extractions"]
    assert (row["relation"], row["copied"], row["seen"], row["extracted_calibrated"]) == ("neighbour", True, True, False)
    # It isn't tried at all.
    untried = {"group_id": None, "n_duplicates": None}
    rewrite(fake, "prompts", lambda rows: [one | untried if one["n_duplicates"] == 1 else one for one in rows])
    rewrite(fake, "matches", lambda rows: [one for one in rows if one["relation"] != "own" or one["role"] == "control"])
    (row,) = measured(fake, "again")["extractions"]
    assert (row["relation"], row["copied"], row["seen"], row["extracted_calibrated"]) == ("neighbour", True, None, None)


def test_a_copy_that_was_dropped_and_made_again_counts_as_a_copy_and_not_for_the_papers_rule(tmp_path):
    knobs = {"sizes": (9, 1), "behaviours": ("neighbour unflagged", "none unflagged"), "unflagged_fraction": 0.0}
    marts = measured(fake_lake(tmp_path, **knobs))
    (row,) = marts["extractions"]
    assert (row["regenerated"], row["copied"], row["prompts_copied"]) == (True, True, 1)
    (rate,) = [row for row in marts["extraction_rate"] if row["dimension"] == "all"]
    assert (rate["prompts_copied_any"], rate["images_copied"], rate["prompts_extracted"], rate["rate"]) == (1, 1, 0, 0)
    assert {row["nearest_l2"] > 0.15 for row in marts["verdicts"]} == {True}
    not_again = measured(fake_lake(tmp_path, **knobs, regenerate=False))
    assert not_again["extractions"] == []


# -- what was kept changes no rate --------------------------------------------------------------------------------------

KEPT = (
    "prompts_with_image",
    "prompts_copied",
    "prompts_copied_any",
    "prompts_calibrated",
    "prompts_seen",
    "prompts_extracted_calibrated",
    "images_copied",
    *(f"rate_{verdict}{end}" for verdict in ("copied", "seen", "calibrated") for end in ("", "_lower", "_upper")),
)
"""Columns of ``extraction_rate`` that are no matter of what was stored."""


def test_the_rates_of_copied_and_seen_do_not_depend_on_what_was_kept(tmp_path):
    """The same generations, of which more or fewer were stored: by slice, all of them, or the nearest alone."""
    sizes = [size for size in (8, 4, 2, 1) for _ in range(15)]
    unflagged = [f"{what} unflagged" for what in BEHAVIOURS]
    knobs = {"sizes": sizes, "behaviours": (*BEHAVIOURS, *unflagged), "controls_that_copy": 2, "max_prompts": 40}
    seen, images, misses, rates = [], [], [], []
    for keep in ({"unflagged_fraction": 0.0}, {"unflagged_fraction": 0.25}, {"unflagged_fraction": 1.0}, {"keep": "all"},
                 {"keep": "nearest"}):  # fmt: skip
        marts = measured(fake_lake(tmp_path, **knobs, **keep))
        seen.append([{name: row[name] for name in KEPT} for row in marts["extraction_rate"]])
        images.append({row["group_id"] for row in marts["extractions"] if row["copied"]})
        (miss,) = marts["filter_misses"]
        misses.append((miss["prompts_missed"], miss["prompts_missed_calibrated"]))
        rates.append(next(row for row in marts["extraction_rate"] if row["dimension"] == "all")["rate"])
    assert seen[0][0]["prompts_copied"] > 0 and images[0]
    assert all(one == seen[0] for one in seen) and all(one == images[0] for one in images) and len(set(misses)) == 1
    # The paper's rule misses what the filter drops, unless a slice of it was kept.
    assert rates[4] <= rates[0] < rates[2] == rates[3]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 1.0])
def test_what_the_slice_shows_weighs_as_much_as_the_slice_is_thin(tmp_path, fraction):
    """The paper's rate is unbiased: a prompt that the slice alone shows weighs 1 / fraction, with that probability."""
    fake = fake_lake(
        tmp_path, sizes=(1,) * 120, controls=2, behaviours=("copy unflagged", "neighbour unflagged", "none unflagged"),
        unflagged_fraction=fraction,
    )  # fmt: skip
    marts = measured(fake)
    kept = {row["prompt_id"] for row in fake.rows("cliques") if row["keep_rule"] == "slice"}
    for row in marts["verdicts"]:
        planted, there = fake.behaviour[row["prompt_id"]].split()[0], row["prompt_id"] in kept
        expected = {"copy": 1.0, "neighbour": there / fraction, "none": 0.0}[planted]
        assert row["extraction_weight"] == pytest.approx(expected), planted
    shown = sum(fake.behaviour[prompt].startswith("neighbour") for prompt in kept)
    (rate,) = [row for row in marts["extraction_rate"] if row["dimension"] == "all"]
    assert rate["rate"] == pytest.approx(min(1, (40 + shown / fraction) / 120))
    interval = slice_interval([40], [shown], [1 / fraction], [120], [120]) if fraction < 1 else blaker_interval(80, 120)
    assert (rate["rate_lower"], rate["rate_upper"]) == pytest.approx(interval)
    (row,) = marts["filter_misses"]
    assert (row["prompts_checked"], row["prompts_missed"]) == (len(kept - set(control_prompts(fake))), 40)
    assert row["prompts_missed_extracted_estimate"] == pytest.approx(40 + shown / fraction)


def control_prompts(fake):
    return [row["prompt_id"] for row in fake.rows("prompts") if row["origin"] == "control"]


def test_where_none_was_kept_nobody_knows(tmp_path):
    """A rate of zero would be a claim."""
    marts = measured(fake_lake(tmp_path, keep="none"))
    assert {(row["copied"], row["seen"], row["extracted_calibrated"]) for row in marts["verdicts"]} == {(None, None, None)}
    names = ("rate_copied", "rate_copied_lower", "rate_copied_upper", "prompts_copied", "rate_seen")
    assert {row[name] for row in marts["extraction_rate"] for name in names} == {None}
    assert marts["filter_misses"][0]["prompts_missed"] is None


def test_a_prompt_that_made_nothing_returns_nothing(tmp_path):
    """That is known, and in the denominator."""
    fake = fake_lake(tmp_path, sizes=(3, 2), behaviours=("copy",))
    failed = {row["prompt_id"] for row in fake.rows("prompts") if row["n_duplicates"] == 2}

    def of_failed(**columns):
        return lambda rows: [row | columns if row["prompt_id"] in failed else row for row in rows]

    rewrite(fake, "generations", of_failed(status="failed", image=None, own_l2=None, nearest=False, thumbnail=None))
    rewrite(fake, "cliques", of_failed(n_generated=0, n_failed=4, clique_size=0, flagged=False))
    rewrite(fake, "matches", lambda rows: [row for row in rows if row["prompt_id"] not in failed])
    marts = measured(fake)
    (row,) = [row for row in marts["verdicts"] if row["prompt_id"] in failed]
    assert (row["copied"], row["seen"], row["extracted_calibrated"], row["own_l2"]) == (False, False, False, None)
    (rate,) = [row for row in marts["extraction_rate"] if row["dimension"] == "all"]
    assert (rate["prompts_with_image"], rate["prompts_copied"], rate["rate_copied"]) == (2, 1, 0.5)


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
    assert (row["prompts_missed_extracted"], row["prompts_missed_extracted_estimate"]) == (15, 15)


# -- what new pictures and controls allow -------------------------------------------------------------------------------


def test_false_positives_are_counted_on_controls_and_decoys(tmp_path):
    fake = fake_lake(tmp_path, controls=60, controls_within_delta=5, held_out_near=4, max_false_positive_rate=0.1)
    found = [(row["tried_on"], row["verdict"], row["pictures"], row["called"]) for row in measured(fake)["false_positives"]]
    assert found == [
        # Two blocks of control generations fit into a prompt's four, so 0.1 / 2 · 61 = 3: two lie strictly below the third.
        ("controls", "seen", 60, 2),
        ("controls", "extracted, another control", 60, 0),
        ("controls", "extracted, own image", 60, 5),
        # Four held-out pictures are as near as a copy, to every rule; 0.1 · 61 = 6 would be fewer than the limits allow.
        ("held_out", "copied", 60, 4),
        ("held_out", "adaptive l2", 60, 4),
        ("held_out", "extracted", 60, 4),
        ("held_out", "ratio", 60, 4),
        ("left_out", "copied", 10, 0),
        ("left_out", "adaptive l2", 10, 0),
        ("left_out", "extracted", 10, 0),
        ("left_out", "ratio", 10, 0),
        # A blur is as near as what is half learned: the adaptive rule takes it for the image.
        ("blurred", "copied", 10, 0),
        ("blurred", "adaptive l2", 10, 10),
        ("blurred", "extracted", 10, 0),
        ("blurred", "ratio", 10, 0),
    ]
    rows = {(row["tried_on"], row["verdict"]): row for row in measured(fake, "again")["false_positives"]}
    for key, called, pictures in ((("controls", "extracted, own image"), 5, 60), (("held_out", "copied"), 4, 60),
                                  (("blurred", "copied"), 0, 10)):  # fmt: skip
        assert rows[key]["rate"] == pytest.approx(called / pictures)
        assert rows[key]["upper_bound"] == pytest.approx(beta.ppf(0.95, called + 1, pictures - called))
    assert rows["blurred", "adaptive l2"]["upper_bound"] == 1


def test_no_more_held_out_pictures_are_called_than_the_rate_allows(tmp_path):
    """However many are near: the distance's limit moves until fewer than 6 of 60 (0.1 · 61) lie below both."""
    fake = fake_lake(tmp_path, held_out_near=30, max_false_positive_rate=0.1)
    (limits,) = fake.rows("copy_calibration")
    options = MatchOptions()
    assert limits["coarse_l2_limit"] < options.delta and limits["coarse_ratio_limit"] == options.copy_ratio
    assert limits["promised_rate"] == pytest.approx(6 / 61)
    rows = {(row["tried_on"], row["verdict"]): row for row in measured(fake)["false_positives"]}
    assert rows["held_out", "copied"]["called"] == 5 and rows["held_out", "extracted"]["called"] == 30


def test_without_controls_the_calibrated_columns_are_null(tmp_path):
    marts = measured(fake_lake(tmp_path, controls=0))
    for name in ("seen", "extracted_calibrated"):
        assert {row[name] for row in marts["verdicts"] + marts["extractions"]} == {None}
    assert {row["seen_p_value"] for row in marts["verdicts"]} == {None}
    names = ("prompts_extracted_calibrated", "prompts_seen", *(f"{rate}{end}" for rate in ("rate_calibrated", "rate_seen")
                                                               for end in ("", "_lower", "_upper")))  # fmt: skip
    assert {row[name] for row in marts["extraction_rate"] for name in names} == {None}
    assert {row["rate"] for row in marts["false_positives"] if row["tried_on"] == "controls"} == {None}
    assert {row["rule"] for row in marts["agreement"]} == {"l2", "adaptive_l2", "ratio", "copied"}
    # What a copy is needs no controls: the limits are the largest that were given.
    assert {row["copied"] for row in marts["verdicts"]} == {True, False}
    assert not [row for row in marts["takedown"] if row["kind"] == "seen"]
    assert marts["filter_misses"][0]["prompts_missed"] > 0 and marts["filter_misses"][0]["prompts_missed_calibrated"] is None


def test_a_prompt_without_an_image_of_its_own_is_no_trial_of_its_verdicts(tmp_path):
    fake = fake_lake(tmp_path, listed=["group 0", "nobody's caption"])
    marts = measured(fake)
    row = next(row for row in marts["extraction_rate"] if row["bucket"] == "list")
    assert (row["prompts_tried"], row["prompts_with_image"], row["prompts_calibrated"]) == (2, 1, 1)
    for rate in ("rate_copied", "rate_seen", "rate_calibrated"):
        assert (row[rate], row[f"{rate}_lower"], row[f"{rate}_upper"]) == (0, 0, pytest.approx(0.95))
    assert row["rate_calibrated_wilson_upper"] == pytest.approx(binomtest(0, 1).proportion_ci(method="wilson").high)
    (nobodys,) = [one for one in marts["verdicts"] if one["prompt"] == "nobody's caption"]
    assert [nobodys[name] for name in ("copied", "seen", "extracted_calibrated", "seen_p_value", "copied_any")] == [
        None, None, None, None, False,
    ]  # fmt: skip


@pytest.mark.parametrize("per_prompt", [1, 2, 4])
def test_the_p_value_of_seen_is_its_rank_among_the_controls(tmp_path, per_prompt):
    """By hand: five controls with ties, one without a distance; a prompt that gets twice their generations has two chances."""
    fake = fake_lake(tmp_path, sizes=(6, 5, 4, 3, 2, 1), behaviours=("none",), controls=6, keep="all")
    controls, drawn = control_prompts(fake), list(fake.behaviour)
    distance = dict(zip(controls, (0.2, 0.4, 0.4, 0.4, 0.6, None), strict=True))
    distance |= dict(zip(drawn, (0.1, 0.2, 0.3, 0.4, 0.5, 0.7), strict=True))

    def plant(rows):
        return [row | {"adaptive_l2": distance.get(row["prompt_id"])} if row["relation"] == "own" and row["nearest"] else row
                for row in rows]  # fmt: skip

    rewrite(fake, "matches", plant)
    rewrite(fake, "calibration", in_all(generations_per_prompt=per_prompt, generations_per_control=2))
    rows = {row["prompt_id"]: row for row in measured(fake)["verdicts"]}
    times = {1: 1, 2: 1, 4: 2}[per_prompt]
    as_near = [0, 1, 1, 4, 4, 5]
    assert [rows[prompt]["seen_p_value"] for prompt in drawn] == pytest.approx(
        [min(1, times * (1 + count) / 6) for count in as_near]
    )
    assert [rows[prompt]["seen_p_value"] for prompt in drawn] == [
        ByLoops(fake).verdicts[prompt]["seen_p_value"] for prompt in drawn
    ]


def test_what_is_seen_has_a_p_value_within_the_rate(tmp_path):
    """The threshold is a rank among the controls: the two can't contradict each other."""
    for distance, rate in (("adaptive_l2", 0.1), ("l2", 0.3), ("tiled_l2", 0.05)):
        fake = fake_lake(
            tmp_path, base_seed=3, controls_within_delta=7, calibrated_distance=distance, max_false_positive_rate=rate
        )
        rows = measured(fake, f"by {distance}")["verdicts"]
        assert {row["seen"] for row in rows} == {True, False}
        for row in rows:
            assert row["seen"] == (row["seen_p_value"] <= rate + 1e-12), (row["own_distance"], row["seen_p_value"])


def test_only_the_nearest_generation_speaks_for_its_prompt(tmp_path):
    """Another stored one of the same prompt may be a copy by chance of its ratio: the verdict is not the best of all."""
    fake = fake_lake(tmp_path, sizes=(4, 1), behaviours=("none",), controls=40)
    near = {"l2": 0.01, "tiled_l2": 0.01, "adaptive_l2": 0.01, "ratio": 0.01, "coarse_l2": 0.01, "coarse_ratio": 0.01}

    def plant(nearest):
        return lambda rows: [row | near | {"extracted": True} if row["relation"] == "own" and row["role"] == "training"
                             and row["nearest"] == nearest else row for row in rows]  # fmt: skip

    rewrite(fake, "matches", plant(nearest=False))
    counts = [{**{name: fake.rows("audits")[0][name] for name in AUDIT}, "sample_id": row["sample_id"], "eidetic_delta": 0.1,
               "k": 1} for row in fake.rows("duplicate_groups")]  # fmt: skip
    rewrite(fake, "eidetic_counts", lambda _: counts)
    marts = measured(fake)
    assert {(row["copied"], row["seen"], row["extracted_own"]) for row in marts["verdicts"]} == {(False, False, False)}
    # They came back all the same.
    assert {(row["copied_any"], row["extracted"]) for row in marts["verdicts"]} == {(True, True)}
    assert {(row["copied"], row["seen"], row["extracted_calibrated"]) for row in marts["extractions"]} == {(True, False, False)}
    rewrite(fake, "matches", plant(nearest=True))
    marts = measured(fake, "again")
    assert {(row["copied"], row["seen"], row["extracted_own"]) for row in marts["verdicts"]} == {(True, True, True)}


@pytest.mark.parametrize("distance", ["l2", "tiled_l2", "adaptive_l2"])
def test_the_best_generation_is_one_that_was_called(tmp_path, distance):
    """Another generation of the prompt may be nearer by some distance and yet be no copy, nor have its k counted."""
    fake = fake_lake(tmp_path, sizes=(4,), behaviours=("none",), calibrated_distance=distance)
    members = sorted(row["sample_id"] for row in fake.rows("duplicate_groups"))
    (prompt,) = fake.behaviour
    planted = {
        0: {"sample_id": members[0], "l2": 0.12, "coarse_l2": 0.1, "coarse_ratio": 0.3},
        # Nearer by every distance, and no copy: as near to other images.
        1: {"sample_id": members[1], "l2": 0.11, "coarse_l2": 0.05, "coarse_ratio": 0.9, "adaptive_l2": 0.1, "tiled_l2": 0.1},
        2: {"sample_id": members[2], "l2": 0.2, "coarse_l2": 0.3, "coarse_ratio": 0.2},
    }
    rewrite(fake, "matches", lambda rows: [
        row | planted[row["sample_index"]] | {"extracted": planted[row["sample_index"]]["l2"] <= 0.15}
        if row["prompt_id"] == prompt and row["relation"] == "own" else row
        for row in rows
    ])  # fmt: skip
    audit = {name: fake.rows("audits")[0][name] for name in AUDIT}
    rewrite(fake, "eidetic_counts", lambda _: [{**audit, "sample_id": members[0], "eidetic_delta": 0.1, "k": 4}])
    (row,) = measured(fake)["extractions"]
    assert (row["sample_id"], row["sample_index"], row["k"], row["l2"]) == (members[0], 0, 4, 0.12)


def test_duplication_counts_groups_and_images(tmp_path):
    rows = measured(fake_lake(tmp_path, sizes=(12, 5, 4, 3, 2, 2, 1, 1, 1, 1)))["duplication"]
    counted = {row["duplicates"]: (row["groups"], row["images"]) for row in rows}
    assert counted == {"1": (4, 4), "2": (2, 4), "3-4": (2, 7), "5-8": (1, 5), "9-16": (1, 12)}
    assert sum(row["share_of_images"] for row in rows) == pytest.approx(1)
    assert next(row for row in rows if row["duplicates"] == "9-16")["lowest_cosine"] == pytest.approx(0.97)
    assert {row["duplicates"]: row["diameter"] for row in rows} == {"1": 0, "2": 1, "3-4": 1, "5-8": 1, "9-16": 1}


def test_the_precision_curve_by_hand(tmp_path):
    """Four prompts whose generations are near their image, and two of ten held-out pictures that are near one."""
    fake = fake_lake(tmp_path, sizes=(5, 4, 3, 2, 1), behaviours=("copy", "copy", "copy", "loose", "none"), controls=10)
    (limits,) = fake.rows("copy_calibration")
    ratios = [share * limits["coarse_ratio_limit"] for share in (0.2, 0.4, 0.6, 1.2)]
    by_prompt = dict(zip(fake.behaviour, [*ratios, None], strict=True))
    rewrite(fake, "matches", lambda rows: [
        row | {"coarse_ratio": by_prompt[row["prompt_id"]] or row["coarse_ratio"]}
        if row["relation"] == "own" and row["prompt_id"] in by_prompt else row
        for row in rows
    ])  # fmt: skip
    # Of a tie the held-out picture comes first. A third one has a small ratio, and is too far.
    near = [(ratios[1], 0.5), (1.1 * limits["coarse_ratio_limit"], 0.5), (ratios[0], 1.5)]

    def plant(rows):
        held_out = iter([(ratio, share * limits["coarse_l2_limit"]) for ratio, share in near])
        return [row | dict(zip(("coarse_ratio", "coarse_l2"), next(held_out, (row["coarse_ratio"], row["coarse_l2"])),
                               strict=True)) if row["kind"] == "held_out" else row for row in rows]  # fmt: skip

    rewrite(fake, "decoys", plant)
    rows = measured(fake)["precision_curve"]
    assert [row["coarse_ratio"] for row in rows] == pytest.approx(ratios)
    assert [row["prompt_id"] for row in rows] == list(fake.behaviour)[:4]
    assert [row["copied"] for row in rows] == [True, True, True, False]
    assert [row["held_out_called"] for row in rows] == [0, 1, 1, 2] and {row["n_held_out"] for row in rows} == {10}
    # Five images were tried.
    assert [row["expected_false"] for row in rows] == pytest.approx([0, 0.5, 0.5, 1])
    assert [row["precision"] for row in rows] == pytest.approx([1, 0.75, 1 - 0.5 / 3, 0.75])


def test_a_forgotten_held_out_picture_says_nothing_of_the_precision_any_more(tmp_path):
    fake = fake_lake(tmp_path, controls=60, held_out_near=5)
    before = measured(fake)["precision_curve"][-1]
    assert (before["held_out_called"], before["n_held_out"]) == (5, 60)
    held_out = [row["sample_id"] for row in fake.rows("decoys") if row["kind"] == "held_out"]
    rewrite(fake, "decoys", lambda rows: [row for row in rows if row["sample_id"] not in held_out[:30]])
    after = measured(fake, "again")["precision_curve"][-1]
    assert (after["held_out_called"], after["n_held_out"], after["expected_false"]) == (0, 30, 0)


def test_without_held_out_pictures_no_precision_is_claimed(tmp_path):
    rows = measured(fake_lake(tmp_path, controls=0))["precision_curve"]
    assert rows and {row["precision"] for row in rows} == {None} == {row["expected_false"] for row in rows}


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_the_sweep_of_delta_holds_the_audits_own(tmp_path, fraction):
    fake = fake_lake(tmp_path, delta=0.123, controls_within_delta=3, unflagged_fraction=fraction, controls_that_copy=1)
    marts, loops = measured(fake), ByLoops(fake)
    rows = {row["delta"]: row for row in marts["delta_sweep"]}
    assert len(rows) == 31 and [row["delta"] for row in rows.values() if row["used"]] == [0.123]
    own = next(row for row in marts["extraction_rate"] if row["dimension"] == "all")
    for name in ("prompts_tried", "prompts_extracted", "rate", "rate_lower", "rate_upper", "images_extracted"):
        assert rows[0.123][name] == own[name], name
    assert (rows[0.123]["controls_called"], rows[0.123]["n_controls"]) == (3, 60)
    of_prompts = [row for row in loops.matches if row["prompt_id"] in loops.verdicts]
    for delta, row in rows.items():
        near = [match for match in of_prompts if match["l2"] <= delta]
        loops.delta = delta
        verdicts = [loops.verdict(prompt) for prompt in loops.prompts]
        assert row["prompts_extracted"] == sum(verdict["extracted"] for verdict in verdicts)
        each = [1 / prompt["inclusion_probability"] for prompt in loops.prompts]
        found = sum(times * verdict["extraction_weight"] for times, verdict in zip(each, verdicts, strict=True))
        assert row["rate"] == pytest.approx(min(1, found / sum(each)))
        assert row["images_extracted"] == len({match["group_id"] for match in near})
        assert row["images_copied"] == len({match["group_id"] for match in near if loops.is_copy(match)})
        assert row["controls_called"] == sum(match["l2"] <= delta for match in loops.control_rows)


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
    found = sum(one["copied"] for one in marts["extractions"])
    assert 0 < found < len(marts["extractions"])
    assert (row["attempts"], row["images_made"], row["images_copied"]) == (len(made), len(succeeded), found)
    assert row["images_stored"] == sum(one["image"] is not None for one in made)
    # Eight steps with guidance, two evaluations each.
    assert row["network_evaluations"] == 16 * len(succeeded)
    assert row["network_evaluations_per_copied_image"] == pytest.approx(16 * len(succeeded) / found)
    assert row["images_made_per_copied_image"] == pytest.approx(len(succeeded) / found)
    assert row["device_seconds"] == pytest.approx(0.1 * len(made))


def test_the_cost_of_nothing_found_is_not_known(tmp_path):
    # What the paper's rule alone calls did not come back as a copy.
    (row,) = measured(fake_lake(tmp_path, behaviours=("none", "loose")))["cost"]
    assert row["images_copied"] == 0 and row["device_seconds"] > 0 and row["device_seconds_per_copied_image"] is None


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
    with scan.connect() as connection:
        assert connection.execute("SELECT domain_of($url)", {"url": url}).fetchall() == [(domain,)]


def test_the_takedown_has_the_url_and_rank_of_every_image(tmp_path):
    fake = fake_lake(tmp_path)
    marts = measured(fake)
    urls = {row["sample_id"]: row["url"] for row in fake.rows("samples")}
    rank = {row["group_id"]: row["confidence_rank"] for row in marts["extractions"] if row["copied"]}
    rows = [row for row in marts["takedown"] if row["kind"] != "prompt"]
    assert {row["kind"] for row in rows} == {"image", "seen"}
    for row in rows:
        assert row["url"] == urls[row["sample_id"]]
        assert row["confidence_rank"] == (rank[row["group_id"]] if row["kind"] == "image" else None)


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
    assert (row["url"], row["group_id"], row["why"]) == (url, group, "same url, not downloaded")


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
        for verdict in ("copied", "extracted", "extracted_calibrated"):
            there = [row for row in marts["extractions"] if row["k"] <= k and row[verdict]]
            assert rows[k][f"images_{verdict}"] == len(there)
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
    assert marts["agreement"] == marts["precision_curve"] == []
    assert marts["filter_misses"][0]["prompts_missed_extracted_estimate"] == 0
    assert marts["filter_misses"][0]["prompts_missed"] is None


def test_the_order_and_the_parts_of_the_rows_change_nothing(tmp_path):
    fake = fake_lake(tmp_path)
    before = measured(fake)
    for table in ("matches", "prompts", "duplicate_groups", "samples", "cliques", "decoys"):
        rewrite(fake, table, lambda rows: rows[::-1])
    assert measured(fake, "again") == before


def test_no_verdict_depends_on_a_cosine(tmp_path):
    """CLIP's products come out 1.2e-4 apart with one thread and with two: what a mart says must not hang on that."""
    fake = fake_lake(tmp_path)
    before = measured(fake)

    def other(rows):
        return [{**row, "cosine": None if number % 3 == 0 else number % 5 / 5 - 0.4} for number, row in enumerate(rows)]

    rewrite(fake, "matches", other)
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
    ("copies_have_limits", "copy_calibration", lambda rows: []),
    ("copies_have_limits", "copy_calibration", first_again),
    ("every_attempt_is_a_row", "generations", without_first),
    ("every_extraction_has_its_k", "eidetic_counts", lambda rows: []),
    ("every_kept_generation_was_matched", "matches", lambda rows: [row for row in rows if row["sample_index"]]),
    ("every_match_has_its_generation", "matches", in_first(sample_index=99)),
    ("every_match_has_its_generation", "generations", in_all(image=None)),
    ("every_match_has_its_generation", "regenerations", in_all(image=None)),
    ("every_match_has_its_generation", "regenerations", lambda rows: []),
    ("every_match_has_its_group", "matches", in_all(group_id="elsewhere")),
    ("every_prompt_is_counted_once", "cliques", first_again),
    ("every_prompt_was_tried", "cliques", without_first),
    ("every_success_has_its_picture", "images", without_first),
    ("every_success_has_its_picture", "samples", in_first(status="failed_to_download")),
    ("group_sizes_are_right", "duplicate_groups", in_first(size=77)),
    ("identical_images_share_a_group", "duplicate_groups", in_first(identical_to="elsewhere")),
    ("matches_are_unique", "matches", first_again),
    ("no_extraction_is_lost", "samples", lambda rows: [row for row in rows if row["caption"] != "group 0"]),
    ("one_distance_is_chosen", "calibration", in_all(chosen=False)),
    ("one_distance_is_chosen", "calibration", in_all(chosen=True)),
    ("one_generation_speaks_for_a_prompt", "generations", in_all(nearest=True)),
    ("one_generation_speaks_for_a_prompt", "generations", in_all(nearest=False)),
    ("one_of_each_group_is_kept", "keep_list", without_first),
    ("one_of_each_group_is_kept", "keep_list", first_again),
    ("prompts_are_unique", "prompts", first_again),
    ("samples_are_unique", "samples", first_again),
    ("takedown_is_complete", "duplicate_groups", first_again),
]


@pytest.mark.parametrize(("check", "table", "change"), FAULTS, ids=[f"{check}-{table}" for check, table, _ in FAULTS])
def test_a_check_finds_what_it_is_there_for(tmp_path, check, table, change):
    fake = fake_lake(tmp_path, controls=4, unflagged_fraction=0.0)
    rewrite(fake, table, change)
    with pytest.raises(RuntimeError, match=rf"checks failed: .*{check}: \d+ rows, the first is"):
        marts.run(fake.lake, fake.match, "measured")
    # Nothing half-written: no mart of an audit that failed its checks.
    assert not any(fake.lake.parts(mart, "measured") for mart in marts.MARTS)


def test_what_could_not_be_decoded_is_no_fault_of_the_audit_and_nothing_is_said_of_it(tmp_path):
    """Neither that a generation is no copy, nor how many images are near to one whose own picture is gone."""
    fake = fake_lake(tmp_path, sizes=(4, 4), controls=4, behaviours=("copy",), unflagged_fraction=0.0)
    first, second = measured(fake)["extractions"]
    lost, prompt = first["sample_id"], second["prompt_id"]
    audit = {name: fake.rows("audits")[0][name] for name in AUDIT}
    said = {
        **audit, "sample_id": None, "prompt_id": None, "sample_index": None, "status": "failed_to_decode", "reason": "gone",
    }  # fmt: skip
    generations = [row["sample_index"] for row in fake.rows("generations") if row["prompt_id"] == prompt and row["image"]]
    rewrite(fake, "unreadable", lambda _: [
        {**said, "source": "images", "sample_id": lost},
        *({**said, "source": "generations", "prompt_id": prompt, "sample_index": index} for index in generations),
    ])  # fmt: skip
    rewrite(fake, "eidetic_counts", lambda rows: [{**row, "k": None} if row["sample_id"] == lost else row for row in rows])
    rewrite(fake, "matches", lambda rows: [row for row in rows if row["prompt_id"] != prompt])
    made = measured(fake)
    assert first["k"] == 4 and [(row["sample_id"], row["k"]) for row in made["extractions"]] == [(lost, None)]
    (verdict,) = (row for row in made["verdicts"] if row["prompt_id"] == prompt)
    assert (verdict["copied"], verdict["seen"]) == (None, None)


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 1.2}, {"rate_lower": 0.5}, {"rate_calibrated_upper": 1.1}, {"rate_copied": 0.4}, {"rate_seen_lower": -0.1}],
)
def test_a_rate_outside_its_interval_is_found(wrong):
    right = {f"{rate}{end}": value for rate in ("rate", "rate_copied", "rate_seen", "rate_calibrated")
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
    marts.run(fake.lake, fake.match, snapshot)
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
        marts.run(fake.lake, fake.match, "measured")


def test_the_database_has_a_view_for_every_table_and_mart(tmp_path):
    fake = fake_lake(tmp_path, unflagged_fraction=0.0)
    finish(fake, "measured")
    assert database.build_database(fake.lake) == fake.lake.path("audit.duckdb")
    assert "lake_root" in ask(fake.lake, "SELECT sql FROM duckdb_views() WHERE view_name = 'matches'")[0][0]
    views = {name for (name,) in ask(fake.lake, "SELECT view_name FROM duckdb_views() WHERE NOT internal")}
    expected = {"samples", "images", "embeddings", "duplicate_pairs", "duplicate_groups", "group_sizes", "sampled_pairs",
                "keep_list", "prompts", "generations", "cliques", "matches", "decoys", "copy_calibration", "regenerations",
                "calibration", "eidetic_counts", "unreadable", "audits", *marts.MARTS}  # fmt: skip
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
    database.build_database(first.lake)
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
    path = database.build_database(fake.lake)
    with duckdb.connect(path, read_only=True) as reader:
        database.build_database(fake.lake)
        assert reader.execute("SELECT count(*) FROM verdicts").fetchall() == [(10,)]
    assert ask(fake.lake, "SELECT count(*) FROM verdicts") == [(10,)]
    assert not [name for name in os.listdir(tmp_path) if name.startswith("tmp")]


def test_a_lake_that_was_moved_is_told_so_once(tmp_path, monkeypatch):
    fake = fake_lake(tmp_path / "before")
    finish(fake, "measured")
    database.build_database(fake.lake)
    (tmp_path / "it's [there] *now").mkdir()
    (tmp_path / "before").rename(tmp_path / "it's [there] *now" / "lake")
    # A lake's own path is no pattern; where it is relative, what is above may look like one.
    monkeypatch.chdir(tmp_path / "it's [there] *now")
    moved = Lake("lake")
    with pytest.raises(duckdb.Error, match="No files found"):
        ask(moved, "SELECT count(*) FROM verdicts")
    assert database.relocate(moved) == moved.path("audit.duckdb")
    for table, rows in (("verdicts", 10), ("matches", fake.match.rows["matches"])):
        assert ask(moved, f"SELECT count(*) FROM {table}") == [(rows,)]


def test_a_lake_without_a_database_can_not_be_told(tmp_path):
    with pytest.raises(UserError, match=r"has no audit\.duckdb yet; run 'eidetic measure' or 'eidetic compare' first"):
        database.relocate(fake_lake(tmp_path).lake)


@pytest.mark.parametrize("fault", ["open", "damaged"])
def test_a_database_that_can_not_be_written_is_the_users_to_free(tmp_path, fault):
    lake = Lake(str(tmp_path))
    if fault == "damaged":
        (tmp_path / "audit.duckdb").write_bytes(b"no database" * 1000)
        with pytest.raises(UserError, match=r"cannot write to .* make it anew with 'eidetic measure'"):
            database.relocate(lake)
        return
    path = lake.path("audit.duckdb")
    reading = "import duckdb, sys; reader = duckdb.connect(sys.argv[1], read_only=True); print(flush=True); input()"
    duckdb.connect(path).close()
    with subprocess.Popen([sys.executable, "-c", reading, path], stdin=-1, stdout=-1) as reader:
        assert reader.stdout.readline()
        with pytest.raises(UserError, match=r"Conflicting lock .* end the program that has it open"):
            database.relocate(lake)
        reader.communicate(b"\n")
    assert database.relocate(lake) == path


@pytest.mark.parametrize("again", [True, False])
def test_a_remote_lake_gets_the_same_marts_and_a_database_without_pictures(tmp_path, monkeypatch, again):
    fake = fake_lake(tmp_path, unflagged_fraction=0.0, regenerate=again)
    local = measured(fake)
    monkeypatch.setattr(Lake, "is_local", False)
    assert measured(fake, "remote") == local
    fake.lake.complete("measure", "remote", {}, {"match": fake.match.snapshot_id}, {"audit_id": "one"})
    database.build_database(fake.lake)
    for table in ("generations", "regenerations"):
        columns = [name for (name,) in ask(fake.lake, f"SELECT column_name FROM (DESCRIBE {table})")]
        assert "image" not in columns and "kept" in columns, table
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
    monkeypatch.setattr(Lake, "is_local", False)
    database.build_database(fake.lake)
    found = ask(fake.lake, "SELECT snapshot_id, device_seconds IS NULL FROM cost ORDER BY 1")
    assert found == [("earlier", True), ("now", False)]
    assert ask(fake.lake, "SELECT DISTINCT snapshot_id FROM samples") == [(fake.ingest.snapshot_id,)]


def test_a_lake_with_a_quote_in_its_path(tmp_path):
    fake = fake_lake(tmp_path / "it's a lake")
    finish(fake, "measured")
    database.build_database(fake.lake)
    assert ask(fake.lake, "SELECT count(*) FROM verdicts") == [(10,)]


# -- is it the picture that was trained on? ---------------------------------------------------------------------------


def test_drift_is_counted_by_host(tmp_path):
    hosts = ["https://www.a.example/{}", "https://a.example/{}", "https://b.example/{}", "https://c.example/{}", "no url {}"]
    urls = [hosts[number % 5].format(number) for number in range(20)]
    fake = fake_lake(tmp_path, sizes=[1] * 20, urls=urls, controls=5)
    said = ["changed", "unchanged", "unknown", "unchanged"]
    rewrite(fake, "samples", lambda rows: [
        row | {"drift": "unknown" if "c.ex" in (row["url"] or "") else said[place % 4]} for place, row in enumerate(rows)
    ])  # fmt: skip
    expected = {}
    for row in fake.rows("samples"):
        if row["role"] == "training":
            host = "a.example" if "a.ex" in row["url"] else row["url"].split("/")[2] if "//" in row["url"] else None
            expected.setdefault(host, collections.Counter())[row["drift"]] += 1
    found = measured(fake)["drift"]
    assert {row["domain"]: {name: row[name] for name in ("unchanged", "changed", "unknown")} for row in found} == {
        host: {name: counts[name] for name in ("unchanged", "changed", "unknown")}
        for host, counts in expected.items()
        if counts["unchanged"] + counts["changed"]
    }
    assert "c.example" in expected and len(found) >= 3
    for row in found:
        known = row["changed"] + row["unchanged"]
        assert row["share_changed"] == row["changed"] / known
        assert (row["share_lower"], row["share_upper"]) == wilson_interval(row["changed"], known)
