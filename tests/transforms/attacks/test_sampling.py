"""The draw of the prompts: against a plain loop, and what must hold for every budget."""

import collections
import hashlib
import random
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.attacks import prompts
from transforms.store.scan import connect


def tables(sizes, captions=None):
    """Groups of these sizes: (duplicate_groups, samples)."""
    groups, samples = [], []
    for number, size in enumerate(sizes):
        ids = [f"{number:04d}-{member:03d}" for member in range(size)]
        for sample in ids:
            groups.append({"sample_id": sample, "group_id": ids[0], "size": size, "representative": ids[-1]})
            samples.append({"sample_id": sample, "caption": f"caption {sample}" if captions is None else captions[number]})
    return (
        pa.Table.from_pylist(groups, pa.schema([("sample_id", pa.string()), ("group_id", pa.string()),
                                                ("size", pa.int32()), ("representative", pa.string())])),
        pa.Table.from_pylist(samples, pa.schema([("sample_id", pa.string()), ("caption", pa.string())])),
    )  # fmt: skip


def draw_prompts(duplicate_groups, samples, max_prompts, seed):
    with connect() as connection:
        connection.register("duplicate_groups", duplicate_groups)
        connection.register("samples", samples)
        return prompts.draw(connection, max_prompts, seed)


def draw(sizes, max_prompts, seed=0, captions=None):
    return draw_prompts(*tables(sizes, captions), max_prompts=max_prompts, seed=seed).to_pylist()


def order_of(size):
    """0 for 1, 1 for 2, 2 for 3-4, 3 for 5-8, …"""
    return (size - 1).bit_length()


def by_loop(sizes, max_prompts, seed):
    """group_id → probability, by the words of the header of prompts.sql."""
    strata = collections.defaultdict(list)
    for number, size in enumerate(sizes):
        strata[order_of(size)].append(f"{number:04d}-000")
    remaining, chosen = max_prompts, {}
    fair = max_prompts >= len(strata)
    for place, order in enumerate(sorted(strata, key=lambda order: (len(strata[order]) if fair else 0, -order))):
        quota = remaining // (len(strata) - place)
        if remaining > 0:
            quota = max(1, quota)
        members = sorted(strata[order], key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).hexdigest())
        taken = members[:quota]
        remaining -= len(taken)
        chosen |= {group: len(taken) / len(members) for group in taken}
    return chosen


sizes_strategy = st.lists(st.one_of(st.just(1), st.integers(1, 40)), min_size=1, max_size=40)


@given(sizes=sizes_strategy, max_prompts=st.integers(1, 60), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_the_draw_is_the_loops(sizes, max_prompts, seed):
    rows = draw(sizes, max_prompts, seed)
    assert {row["group_id"]: row["inclusion_probability"] for row in rows} == pytest.approx(by_loop(sizes, max_prompts, seed))
    assert len(rows) == len({row["group_id"] for row in rows}) == min(max_prompts, len(sizes))
    # The most duplicated first.
    assert [row["n_duplicates"] for row in rows] == sorted((row["n_duplicates"] for row in rows), reverse=True)
    for row in rows:
        assert row["n_duplicates"] == sizes[int(row["group_id"][:4])]
        assert row["sample_id"] == f"{row['group_id'][:4]}-{row['n_duplicates'] - 1:03d}"  # the representative
        assert row["text"] == f"caption {row['sample_id']}"
        assert row["stratum_order"] == order_of(row["n_duplicates"])
        first, last = (int(end) for end in (row["stratum"].split("-") * 2)[:2])
        assert first <= row["n_duplicates"] <= last
    # The probabilities weigh each stratum back to what it holds.
    for order in {row["stratum_order"] for row in rows}:
        weights = [1 / row["inclusion_probability"] for row in rows if row["stratum_order"] == order]
        assert sum(weights) == pytest.approx(sum(order_of(size) == order for size in sizes))


def test_a_budget_for_all_takes_all():
    assert {row["inclusion_probability"] for row in draw([1, 1, 2, 3, 9, 130], 6)} == {1.0}
    assert [row["stratum"] for row in draw([1, 1, 2, 3, 9, 130], 600)] == ["129-256", "9-16", "3-4", "2", "1", "1"]


def test_a_budget_under_the_strata_goes_to_the_most_duplicated():
    rows = draw([1, 1, 2, 3, 9, 130], 2)
    assert [row["n_duplicates"] for row in rows] == [130, 9]
    # Of the twos, of the threes and of the ones nothing will be known.
    assert {row["groups_left_out"] for row in rows} == {4}
    assert {row["groups_left_out"] for row in draw([1, 1, 2, 3, 9, 130], 5)} == {0}


def test_what_small_strata_leave_falls_to_the_lower_ones():
    rows = draw([1] * 100 + [2] * 100 + [100], 21)
    # 21 // 3 = 7 for the top, which has 1; then 20 // 2 = 10 for the twos; 10 are left for the ones.
    assert collections.Counter(row["n_duplicates"] for row in rows) == {100: 1, 2: 10, 1: 10}
    assert {row["n_duplicates"]: row["inclusion_probability"] for row in rows} == {100: 1.0, 2: 0.1, 1: 0.1}


def test_another_seed_draws_others_and_the_same_seed_the_same():
    first, again, other = (draw([1] * 200, 20, seed) for seed in (0, 0, 1))
    assert first == again
    assert {row["group_id"] for row in first} != {row["group_id"] for row in other}


def test_the_order_of_the_rows_changes_nothing():
    groups, samples = tables([1] * 30 + [3] * 10)
    shuffled = list(range(groups.num_rows))
    random.Random(0).shuffle(shuffled)
    assert (
        draw_prompts(groups.take(shuffled), samples.take(shuffled[::-1]), max_prompts=7, seed=0).to_pylist()
        == draw_prompts(groups, samples, max_prompts=7, seed=0).to_pylist()
    )


def test_blank_captions_are_not_tried_and_the_others_are_stripped():
    blank = [None, "", "  ", "\t\n", "\u00a0\u2003", "\r"]
    rows = draw([1] * 8, 100, captions=[*blank, " \tkept\u00a0\n", "two\nlines"])
    assert {row["text"] for row in rows} == {"kept", "two\nlines"}
    # A group that can't be tried is no part of the stratum that is drawn from.
    assert {row["inclusion_probability"] for row in rows} == {1.0}


def test_captions_are_stripped_as_everywhere_else():
    """Of every character that Python's strip() takes away; by that rule prompts are captions again."""
    blanks = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    rows = draw([1] * len(blanks), 100, captions=[f"{blank}{number}{blank}" for number, blank in enumerate(blanks)])
    assert {row["text"] for row in rows} == {str(number) for number in range(len(blanks))}
    assert {row["text"] for row in draw([1] * 2, 100, captions=["\u200b", "\x1b"])} == {"\u200b", "\x1b"}


def test_without_groups_there_is_nothing():
    assert draw([], 10) == []


def members(*groups):
    """Groups by the captions of their members, the first of which is the representative: (duplicate_groups, samples)."""
    rows, samples = [], []
    for number, captions in enumerate(groups):
        ids = [f"{number:04d}-{member:03d}" for member in range(len(captions))]
        for sample, caption in zip(ids, captions, strict=True):
            rows.append({"sample_id": sample, "group_id": ids[0], "size": len(ids), "representative": ids[0]})
            samples.append({"sample_id": sample, "caption": caption})
    return pa.Table.from_pylist(rows), pa.Table.from_pylist(
        samples, pa.schema([("sample_id", pa.string()), ("caption", pa.string())])
    )


def test_a_group_whose_representative_has_no_caption_is_asked_for_by_its_most_frequent_one():
    groups, samples = members(
        ["own", "other", "other"],
        [None, "rare", "often", " often\n", None],
        ["", "b", "a"],
        [None, " "],
        [None],
    )
    with connect() as connection:
        connection.register("duplicate_groups", groups)
        connection.register("samples", samples)
        rows = prompts.draw(connection, 100, 0).to_pylist()
        without = connection.sql("SELECT group_id FROM group_captions WHERE text IS NULL ORDER BY 1").fetchall()
    # Its own comes first; of equally frequent ones that of the smaller id.
    assert {(row["text"], row["sample_id"], row["n_duplicates"]) for row in rows} == {
        ("own", "0000-000", 3), ("often", "0001-002", 5), ("b", "0002-001", 3)
    }  # fmt: skip
    assert {row["inclusion_probability"] for row in rows} == {1.0}
    assert without == [("0003-000",), ("0004-000",)]


def test_a_group_is_asked_for_after_its_representative_was_forgotten():
    groups, samples = members(["forgotten", "left", "left"], ["other"])
    gone = pc.not_equal(samples["sample_id"], "0000-000")
    # Before its row is removed, and after.
    for rows in (groups, groups.filter(pc.not_equal(groups["sample_id"], "0000-000"))):
        drawn = draw_prompts(rows, samples.filter(gone), 10, 0).to_pylist()
        assert [(row["text"], row["sample_id"]) for row in drawn] == [("left", "0000-001"), ("other", "0001-000")]
