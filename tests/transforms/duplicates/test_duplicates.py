"""Planted copies are found, all of them and nothing else, however they are spread; vectors that lie are refused."""

import os

import apache_beam as beam
import numpy as np
import pytest

from pipelines.execution import Execution
from tests.planted import clusters, embedding_rows, write_embeddings
from transforms.duplicates import FindDuplicates, Search, blocks, facts, search, to_compare
from transforms.duplicates.job import blocks_of
from transforms.errors import UserError
from transforms.kernels import cells
from transforms.store.lake import Lake

SIZES = [1, 1, 1, 2, 3, 5, 17]


def find(lake, embed, block_rows=1000, threshold=0.9, snapshot="d", **options):
    job = Search(
        lake, embed.snapshot_id, snapshot, rows=embed.rows["embeddings"], threshold=threshold, block_rows=block_rows, **options
    )
    Execution(lake, []).run(lambda pipeline: pipeline | beam.Create(blocks(job)) | "FindDuplicates" >> FindDuplicates(job))
    return job


def plant(tmp_path, parts, seed=0, name="lake"):
    """The clusters of SIZES in ``parts`` parts, with controls and a failure that copy training images."""
    vectors, label = clusters(SIZES, seed=seed)
    ids = [f"{(7919 * number) % 10007:05d}" for number in range(len(vectors))]
    rows = embedding_rows(ids, vectors)
    cut = [rows[i::parts] for i in range(parts)]
    cut[0] += embedding_rows(["c1", "c2"], vectors[:2], role="control")
    failed = embedding_rows(["f1"], vectors[:1], status="failed_to_decode", reason="no picture")[0]
    cut[-1] += [{**failed, "vector": None}]
    lake = Lake(str(tmp_path / name))
    return lake, write_embeddings(lake, cut), dict(zip(ids, vectors, strict=True)), dict(zip(ids, label, strict=True))


def tables(lake, snapshot="d"):
    pairs = lake.read("duplicate_pairs", snapshot).to_pylist()
    groups = lake.read("duplicate_groups", snapshot).to_pylist()
    return sorted(pairs, key=str), sorted(groups, key=lambda row: row["sample_id"])


@pytest.mark.parametrize(("parts", "block_rows"), [(1, 1000), (4, 1000), (4, 8), (7, 1)])
def test_what_was_planted_is_found(tmp_path, parts, block_rows):
    lake, embed, vectors, label = plant(tmp_path, parts)
    find(lake, embed, block_rows)
    pairs, groups = tables(lake)
    planted = {(a, b) for a in label for b in label if a < b and label[a] == label[b]}
    assert {(row["sample_id_a"], row["sample_id_b"]) for row in pairs} == planted
    assert len(pairs) == len(planted)
    for row in pairs:
        exact = vectors[row["sample_id_a"]].astype(np.float64) @ vectors[row["sample_id_b"]]
        assert row["cosine"] == pytest.approx(exact, abs=1e-6)
    assert [row["sample_id"] for row in groups] == sorted(label)
    for row in groups:
        members = sorted(other for other in label if label[other] == label[row["sample_id"]])
        inside = np.stack([vectors[member] for member in members]).astype(np.float64)
        assert row["group_id"] == members[0] and row["size"] == len(members)
        nearness = inside @ inside.sum(axis=0) / len(members)
        assert row["representative"] == members[int(np.flatnonzero(nearness > nearness.max() - 1e-6)[0])]
        assert row["lowest_cosine"] == pytest.approx((inside @ inside.T).min() if len(members) > 1 else 1, abs=1e-6)


def test_parts_and_blocks_change_nothing(tmp_path):
    results = []
    for parts, block_rows in ((1, 1000), (5, 4), (3, 1)):
        lake, embed, _, _ = plant(tmp_path, parts, name=f"lake{parts}")
        find(lake, embed, block_rows)
        results.append(tables(lake))
    assert results[0] == results[1] == results[2]


def test_a_chain_is_one_group_and_shows_in_its_lowest_cosine(tmp_path):
    angles = np.radians([0, 20, 40, 60])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    lake = Lake(str(tmp_path / "lake"))
    embed = write_embeddings(lake, [embedding_rows(["d", "a", "c", "b"], vectors)])
    find(lake, embed, threshold=0.9)
    pairs, groups = tables(lake)
    assert [(row["sample_id_a"], row["sample_id_b"]) for row in pairs] == [("a", "c"), ("a", "d"), ("b", "c")]
    assert {row["group_id"] for row in groups} == {"a"}
    assert groups[0]["lowest_cosine"] == pytest.approx(0.5, abs=1e-6)


def test_identical_vectors_are_pairs_at_cosine_one(tmp_path):
    vectors = np.repeat(clusters([1])[0], 3, axis=0)
    lake = Lake(str(tmp_path / "lake"))
    embed = write_embeddings(lake, [embedding_rows(["b", "c", "a"], vectors)])
    find(lake, embed, threshold=0.999)
    pairs, groups = tables(lake)
    assert len(pairs) == 3 and {row["cosine"] for row in pairs} == {1.0}
    assert {(row["group_id"], row["representative"], row["size"]) for row in groups} == {("a", "a", 3)}


def test_a_run_that_was_killed_goes_on(tmp_path):
    lake, embed, _, _ = plant(tmp_path, 4)
    job = find(lake, embed, 8)
    whole = tables(lake)
    paths = lake.parts("duplicate_pairs", "d")
    assert len(paths) == to_compare(job) > 3
    os.remove(paths[1])
    os.remove(lake.part("duplicate_groups", "d", 0))
    written = {path: os.stat(path).st_mtime_ns for path in paths if os.path.exists(path)}
    find(lake, embed, 8)
    assert tables(lake) == whole
    assert {path: os.stat(path).st_mtime_ns for path in written} == written


def test_without_training_images_nothing_is_written(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    embed = write_embeddings(lake, [embedding_rows(["c"], clusters([1])[0], role="control"), []])
    find(lake, embed)
    assert tables(lake) == ([], [])


def test_blocks_hold_up_to_their_rows_in_order():
    assert blocks_of({2: 5, 0: 3, 1: 4}, 7) == [(0, 1), (2,)]
    assert blocks_of({0: 30, 1: 1, 2: 1}, 7) == [(0,), (1, 2)]
    assert blocks_of({}, 7) == []


# -- bad input --------------------------------------------------------------------------------------------------------


def refuse(tmp_path, parts, *words):
    lake = Lake(str(tmp_path / "lake"))
    embed = write_embeddings(lake, parts)
    with pytest.raises(UserError) as caught:
        find(lake, embed)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    assert tables(lake) == ([], [])


def test_vectors_that_are_not_unit_length_are_named(tmp_path):
    vectors, _ = clusters([1] * 4)
    vectors[2] *= 1.01
    refuse(tmp_path, [[], embedding_rows(list("abcd"), vectors)], "part-00001", "row 2", "sample_id c", "norm 1.01")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_named(tmp_path, value):
    vectors, _ = clusters([1] * 3)
    vectors[1, 5] = value
    refuse(tmp_path, [embedding_rows(list("abc"), vectors)], "1 vectors", "sample_id b", f"norm {value}")


def test_a_success_without_a_vector_is_named(tmp_path):
    rows = embedding_rows(list("ab"), clusters([1] * 2)[0])
    rows[1]["vector"] = None
    refuse(tmp_path, [rows], "sample_id b", "norm 0")


@pytest.mark.parametrize("together", [True, False])
def test_several_models_in_one_table_are_named(tmp_path, together):
    vectors, _ = clusters([1] * 2)
    rows = [embedding_rows(["a"], vectors[:1]), embedding_rows(["b"], vectors[1:], model="ViT-B-32")]
    parts = [rows[0] + rows[1]] if together else rows
    refuse(tmp_path, parts, "2 kinds", "sample_id a has", "sample_id b has", "ViT-B-32")


@pytest.mark.parametrize("together", [True, False])
def test_several_lengths_in_one_table_are_named(tmp_path, together):
    rows = [embedding_rows(["a"], clusters([1])[0]), embedding_rows(["b"], clusters([1], dimensions=8)[0])]
    refuse(tmp_path, [rows[0] + rows[1]] if together else rows, "2 kinds", "32 numbers", "8 numbers")


@pytest.mark.parametrize("together", [True, False])
def test_an_id_twice_is_named(tmp_path, together):
    rows = [embedding_rows(list("ab"), clusters([1] * 2)[0]), embedding_rows(list("cb"), clusters([1] * 2)[0])]
    place = "part 0 row 3" if together else "part 1 row 1"
    refuse(tmp_path, [rows[0] + rows[1]] if together else rows, "1 sample_ids", "b (part 0 row 1", place)


# -- at size ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cells_cost_nothing(monkeypatch):
    """For so few vectors as in a test cells don't pay."""
    monkeypatch.setattr(cells, "EACH_ASSIGNMENT", 0)


def many(count=1500, seed=5, dimensions=48):
    """Clusters of heavy-tailed sizes whose pairs lie on both sides of the threshold 0.9."""
    sizes = np.minimum(np.random.default_rng(seed).zipf(1.8, count), 40)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), count))].tolist()
    vectors, _ = clusters(sizes, dimensions=dimensions, noise=0.035, seed=seed)
    return [f"{(7919 * number) % 10007:05d}" for number in range(len(vectors))], vectors


def in_parts(ids, vectors, parts):
    rows = embedding_rows(ids, vectors)
    return [rows[i::parts] for i in range(parts)]


def brute_force(ids, vectors, threshold=0.9):
    cosine = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    i, j = np.nonzero(np.triu(cosine > threshold, 1))
    return {tuple(sorted((ids[a], ids[b]))): cosine[a, b] for a, b in zip(i.tolist(), j.tolist(), strict=True)}


def as_pairs(rows):
    found = {(row["sample_id_a"], row["sample_id_b"]): row["cosine"] for row in rows}
    assert len(found) == len(rows) and all(a < b for a, b in found)
    return found


def as_groups(rows):
    groups = {}
    for row in rows:
        groups.setdefault(row["group_id"], set()).add(row["sample_id"])
    assert all(name == min(members) for name, members in groups.items())
    return {frozenset(members) for members in groups.values()}


@pytest.mark.usefixtures("cells_cost_nothing")
@pytest.mark.parametrize(("parts", "block_rows"), [(3, 10_000), (7, 300), (4, 100)])
def test_cells_find_as_many_pairs_as_was_asked_for_and_nothing_else(tmp_path, parts, block_rows):
    ids, vectors = many()
    truth = brute_force(ids, vectors)
    lake = Lake(str(tmp_path / "lake"))
    embed = write_embeddings(lake, in_parts(ids, vectors, parts))
    job = find(lake, embed, block_rows, exact_up_to=0, recall=0.95)
    pairs, groups = tables(lake)
    found = as_pairs(pairs)
    assert found.keys() <= truth.keys() and len(found) > 0.95 * len(truth) > 1000
    told = facts(job)
    assert (told["method"], told["vectors"], told["pairs"]) == ("cells", len(ids), len(found)) and told["cells"] > 1
    # What it says of itself is true: the pairs that the cells were not chosen by.
    sampled = lake.read("sampled_pairs", "d").to_pylist()
    judged = [row for row in sampled if row["judged"]]
    assert 0 < len(judged) == told["recall_pairs"] < sum(row["found"] is not None for row in sampled)
    kept = [tuple(sorted((row["sample_id_a"], row["sample_id_b"]))) in found for row in judged]
    assert kept == [row["found"] for row in judged] and told["recall"] == pytest.approx(np.mean(kept))
    assert told["recall_at_least"] < told["recall"] or told["recall"] == 1
    # Groups are what hangs together by the pairs that were found.
    graph = {one: {one} for one in ids}
    for a, b in found:
        if graph[a] is not graph[b]:
            graph[a] |= graph[b]
            for member in graph[b]:
                graph[member] = graph[a]
    assert as_groups(groups) == {frozenset(group) for group in graph.values()}


@pytest.mark.usefixtures("cells_cost_nothing")
def test_blocks_and_shards_change_nothing_about_cells(tmp_path):
    ids, vectors = many(900)
    results = []
    for parts, block_rows in ((1, 10_000), (5, 150), (3, 60)):
        lake = Lake(str(tmp_path / f"lake{parts}"))
        embed = write_embeddings(lake, in_parts(ids, vectors, parts))
        find(lake, embed, block_rows, exact_up_to=0, recall=0.9)
        results.append(tables(lake))
    assert len(results[0][0]) > 500
    assert results[0] == results[1] == results[2]


def test_the_sampled_pairs_are_those_of_brute_force_with_every_image(tmp_path):
    ids, vectors = many(400)
    lake = Lake(str(tmp_path / "lake"))
    find(lake, write_embeddings(lake, in_parts(ids, vectors, 3)), 150)
    rows = lake.read("sampled_pairs", "d").to_pylist()
    sampled = {row["sample_id_a"] for row in rows}
    # So few images are all sampled.
    expected = brute_force(ids, vectors, 0.8)
    found = {(row["sample_id_a"], row["sample_id_b"]): row for row in rows}
    assert found.keys() == {way for pair in expected for way in (pair, pair[::-1])} and len(sampled) > 100
    for pair, row in found.items():
        assert row["cosine"] == pytest.approx(expected[tuple(sorted(pair))], abs=1e-6)
        assert row["found"] is (True if row["cosine"] > 0.9 else None)
        assert row["stands_for"] == 1


def test_what_is_drawn_of_many_sampled_pairs_stands_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "PAIRS_OF_A_QUERY", 4)
    monkeypatch.setattr(search, "MOST_KNOWN", 300)
    ids, vectors = many(400)
    lake = Lake(str(tmp_path / "lake"))
    find(lake, write_embeddings(lake, in_parts(ids, vectors, 3)), 150)
    rows = lake.read("sampled_pairs", "d").to_pylist()
    over = [row["stands_for"] for row in rows if row["found"] is not None]
    truth = 2 * len(brute_force(ids, vectors))
    assert len(over) <= 300 < truth
    assert sum(over) == pytest.approx(truth, rel=0.15)


def test_another_threshold_makes_the_groups_that_the_table_says(tmp_path):
    ids, vectors = many(400)
    lake = Lake(str(tmp_path / "lake"))
    embed = write_embeddings(lake, in_parts(ids, vectors, 2))
    find(lake, embed)
    sizes = {round(row["threshold"], 2): row for row in lake.read("group_sizes", "d").to_pylist()}
    assert sorted(sizes) == [round(0.8 + step / 100, 2) for step in range(20)]
    # Under the search's own threshold only the sampled pairs are known.
    assert all((row["groups"] is None) == (threshold < 0.9) for threshold, row in sizes.items())
    for threshold in (0.9, 0.95):
        find(lake, embed, threshold=threshold, snapshot=f"at{threshold}")
        groups = [len(group) for group in as_groups(tables(lake, f"at{threshold}")[1]) if len(group) > 1]
        row = sizes[threshold]
        assert (row["groups"], row["images_in_groups"], row["largest"]) == (len(groups), sum(groups), max(groups))


def test_complete_linkage_makes_no_chains(tmp_path):
    angles = np.radians([0, 20, 40, 60])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    lake = Lake(str(tmp_path / "lake"))
    embed = write_embeddings(lake, [embedding_rows(["d", "a", "c", "b"], vectors)])
    find(lake, embed, linkage="complete")
    groups = tables(lake)[1]
    assert as_groups(groups) == {frozenset("ad"), frozenset("bc")}
    assert {(row["size"], row["diameter"]) for row in groups} == {(2, 1)}
    find(lake, embed, snapshot="single")
    assert {(row["size"], row["diameter"]) for row in tables(lake, "single")[1]} == {(4, 3)}


@pytest.mark.usefixtures("cells_cost_nothing")
def test_a_crowd_of_identical_images_is_told_by_one_and_counted_in_full(tmp_path):
    near = clusters([3], noise=0.02)[0]
    crowd = np.repeat(near[:1], 300, axis=0)
    apart = clusters([2, 1, 1], seed=3)[0]
    vectors = np.concatenate([crowd, near[1:], apart])
    ids = [f"{number:03d}" for number in range(len(vectors))]
    for name, options in (("exact", {}), ("cells", {"exact_up_to": 0})):
        lake = Lake(str(tmp_path / name))
        job = find(lake, write_embeddings(lake, in_parts(ids, vectors, 3)), 100, **options)
        pairs, groups = tables(lake)
        truth = brute_force(ids, vectors)
        assert facts(job)["pairs"] == len(truth) == 300 * 299 // 2 + 2 * 300 + 1 + 1
        (canonical,) = {row["identical_to"] for row in groups} - {None}
        told = [row for row in groups if row["identical_to"]]
        assert len(told) == 299 and canonical < "300" and canonical not in {row["sample_id"] for row in told}
        assert as_pairs(pairs).keys() == {
            pair for pair in truth if not set(pair) & {row["sample_id"] for row in told}
        } and len(pairs) == 4  # fmt: skip
        assert sorted(map(len, as_groups(groups))) == [1, 1, 2, 302]
        large = next(row for row in groups if row["size"] == 302)
        assert large["group_id"] == "000" and large["diameter"] == 1 and large["lowest_cosine"] > 0.9


def test_nothing_but_a_crowd(tmp_path):
    vectors = np.repeat(clusters([1])[0], 3000, axis=0)
    ids = [f"{number:04d}" for number in range(3000)]
    lake = Lake(str(tmp_path / "lake"))
    job = find(lake, write_embeddings(lake, in_parts(ids, vectors, 2)), 1000, exact_up_to=0)
    pairs, groups = tables(lake)
    assert pairs == [] and len(groups) == 3000
    assert {(row["group_id"], row["size"], row["diameter"]) for row in groups} == {("0000", 3000, 1)}
    assert facts(job)["pairs"] == 3000 * 2999 // 2 and facts(job)["recall"] is None


def test_pairs_beyond_the_most_have_no_row_but_count(tmp_path):
    vectors, _ = clusters([40], noise=0.02)
    ids = [f"{number:02d}" for number in range(40)]
    lake = Lake(str(tmp_path / "lake"))
    job = find(lake, write_embeddings(lake, in_parts(ids, vectors, 1)), most_pairs=5)
    truth = brute_force(ids, vectors)
    assert len(truth) == facts(job)["pairs"] == 780
    found = as_pairs(tables(lake)[0])
    assert len(found) == 780 - facts(job)["pairs_without_a_row"] < 40 * 5
    # Of the pairs of one image with those after it the nearest have rows.
    of_first = sorted((cosine, pair) for pair, cosine in truth.items() if pair[0] == "00")
    assert {pair for _, pair in of_first[-5:]} == {pair for pair in found if pair[0] == "00"}
    assert {row["size"] for row in tables(lake)[1]} == {40}
