"""Planted copies are found, all of them and nothing else, however they are spread; vectors that lie are refused."""

import os

import apache_beam as beam
import numpy as np
import pytest

from pipelines.stage import Execution
from tests.planted import clusters, embedding_rows, write_embeddings
from transforms.duplicates import FindDuplicates, Job, blocks, to_compare
from transforms.duplicates.job import blocks_of
from transforms.errors import UserError
from transforms.lake import Lake

SIZES = [1, 1, 1, 2, 3, 5, 17]


def find(lake, embed, block_rows=1000, threshold=0.9, snapshot="d", **options):
    job = Job(
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
