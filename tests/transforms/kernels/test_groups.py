"""What hangs together, and what is said of each group, against float64 brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planted import clusters
from transforms.kernels import groups
from transforms.kernels.groups import (
    Edges,
    ExactSets,
    complete_linkage,
    connected_components,
    cut_by_complete_linkage,
    group_statistics,
    groups_of,
    merge_forests,
    sizes_by_threshold,
    spanning_forest,
    spanning_forest_of_rows,
)

NO_SETS = ExactSets(np.empty(0, np.int64), np.empty(0, np.int64))


def unit(*rows):
    vectors = np.asarray(rows, dtype=np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fan(*degrees):
    angles = np.radians(degrees)
    return unit(*np.stack([np.cos(angles), np.sin(angles)], axis=1))


# -- components -------------------------------------------------------------------------------------------------------


def brute_components(n, pairs):
    label = list(range(n))
    changed = True
    while changed:
        changed = False
        for i, j in pairs:
            low = min(label[i], label[j])
            if label[i] != low or label[j] != low:
                label[i] = label[j] = low
                changed = True
    numbered = {old: new for new, old in enumerate(sorted(set(label)))}
    return [numbered[one] for one in label]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20).flatmap(lambda n: st.tuples(
    st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=25)
)))  # fmt: skip
def test_components_are_what_hangs_together(graph):
    n, pairs = graph
    found = connected_components(n, np.array(pairs, dtype=np.int64).reshape(-1, 2))
    assert found.tolist() == brute_components(n, pairs)


def test_a_chain_is_one_component_and_labels_count_from_the_first_node():
    assert connected_components(6, np.array([[4, 5], [3, 4], [1, 2]])).tolist() == [0, 1, 1, 2, 2, 2]


def test_a_pair_named_256_times_is_still_a_pair():
    assert connected_components(2, np.array([[0, 1]] * 256)).tolist() == [0, 0]


def test_no_pairs():
    assert connected_components(3, np.empty((0, 2))).tolist() == [0, 1, 2]


# -- forests ----------------------------------------------------------------------------------------------------------


def random_edges(seed, nodes=60, count=300):
    """Edges between nodes that have large numbers, some of them twice; some cosines are equal."""
    random = np.random.default_rng(seed)
    names = random.integers(0, 1 << 62, nodes)
    i, j = random.integers(0, nodes, (2, count))
    return Edges(names[i[i != j]], names[j[i != j]], random.integers(80, 100, count)[i != j] / 100)


def sets_over(edges, threshold):
    """The groups at a threshold, as a set of frozen sets, by brute force."""
    over = edges.cosine > threshold
    names = sorted({*edges.i[over].tolist(), *edges.j[over].tolist()})
    place = {name: number for number, name in enumerate(names)}
    pairs = [(place[i], place[j]) for i, j in zip(edges.i[over].tolist(), edges.j[over].tolist(), strict=True)]
    found = {}
    for name, label in zip(names, brute_components(len(names), pairs), strict=True):
        found.setdefault(label, set()).add(name)
    return {frozenset(group) for group in found.values()}


@pytest.mark.parametrize("seed", range(5))
def test_a_forest_tells_the_groups_of_every_threshold(seed):
    edges = random_edges(seed)
    forest = spanning_forest(edges)
    assert len(forest.i) < len(np.unique(np.concatenate([edges.i, edges.j])))
    for threshold in (0.79, 0.85, 0.9, 0.95, 0.98):
        assert sets_over(forest, threshold) == sets_over(edges, threshold)


@pytest.mark.parametrize("at_once", [1, 50, 1 << 24])
def test_portions_of_edges_make_the_forest_of_the_whole(at_once):
    edges = random_edges(7)
    portions = [Edges(*(column[start : start + 37] for column in edges)) for start in range(0, len(edges.i), 37)]
    merged = merge_forests(portions, at_once=at_once)
    for threshold in (0.79, 0.9, 0.95):
        assert sets_over(merged, threshold) == sets_over(edges, threshold)
    assert merged.cosine.sum() == pytest.approx(spanning_forest(edges).cosine.sum())


def test_a_forest_of_sorted_rows_is_the_same():
    random = np.random.default_rng(3)
    pairs = np.array(sorted({tuple(sorted(pair)) for pair in random.integers(0, 40, (200, 2)).tolist() if pair[0] != pair[1]}))
    edges = Edges(pairs[:, 0], pairs[:, 1], random.random(len(pairs)))
    one, other = spanning_forest_of_rows(40, edges), spanning_forest(edges)
    np.testing.assert_allclose(sorted(zip(*one, strict=True)), sorted(zip(*other, strict=True)))


def test_nothing_makes_no_forest_and_no_group():
    assert len(merge_forests([]).i) == 0
    assert len(groups_of(merge_forests([]), NO_SETS).size) == 0
    assert sizes_by_threshold(merge_forests([]), NO_SETS, [0.9]) == [(0.9, 0, 0, 1)]


def test_crowds_count_in_full():
    edges = Edges(np.array([10, 20]), np.array([20, 30]), np.array([0.95, 0.92]))
    sets = ExactSets(np.array([20, 90]), np.array([500, 101]))
    found = groups_of(edges, sets)
    assert found.node.tolist() == [10, 20, 30, 90]
    assert found.label.tolist() == [0, 0, 0, 1] and found.size.tolist() == [502, 101]
    sizes = sizes_by_threshold(edges, sets, [0.9, 0.93, 0.99])
    assert sizes == [(0.9, 2, 603, 502), (0.93, 2, 602, 501), (0.99, 2, 601, 500)]


# -- statistics -------------------------------------------------------------------------------------------------------


def brute_diameter(near):
    steps = np.where(near, 1.0, np.inf)
    np.fill_diagonal(steps, 0)
    for k in range(len(near)):
        steps = np.minimum(steps, steps[:, k, None] + steps[None, k])
    return int(steps[np.isfinite(steps)].max())


def statistics_of(sizes, threshold=0.9):
    vectors, labels = clusters(sizes, noise=0.1)
    vectors = vectors[np.argsort(labels, kind="stable")]
    starts = np.cumsum([0, *sizes[:-1]])
    return vectors, starts, group_statistics(vectors, starts, np.ones(len(vectors), np.int64), threshold)


@pytest.mark.parametrize("small", [1, 64])
def test_statistics_are_those_of_brute_force(small, monkeypatch):
    monkeypatch.setattr(groups, "SMALL", small)
    sizes = [1, 2, 2, 5, 5, 30, 1, 70]
    vectors, starts, found = statistics_of(sizes, threshold=0.75)
    for group, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        wide = vectors[start : start + size].astype(np.float64)
        cosine = wide @ wide.T
        assert found.size[group] == size
        nearness = wide @ wide.sum(axis=0)
        assert found.representative[group] == start + np.flatnonzero(nearness > nearness.max() - 1e-6 * size)[0]
        assert found.lowest_cosine[group] == pytest.approx(cosine.min() if size > 1 else 1, abs=1e-9)
        expected = brute_diameter(cosine > 0.75)
        if size <= small:
            assert found.diameter[group] == expected
        else:  # a double sweep may fall short where a group is neither a chain nor full
            assert expected - 1 <= found.diameter[group] <= expected
    assert found.diameter.max() > 1


def test_groups_of_one_size_are_cut_into_portions(monkeypatch):
    whole = statistics_of([3] * 40)[2]
    monkeypatch.setattr(groups, "TOGETHER", 1)
    for one, other in zip(whole, statistics_of([3] * 40)[2], strict=True):
        np.testing.assert_allclose(one, other)


@pytest.mark.parametrize("small", [1, 64])
def test_a_chain_has_as_many_steps_as_links(small, monkeypatch):
    monkeypatch.setattr(groups, "SMALL", small)
    chain = fan(20, 0, 40, 60)
    found = group_statistics(chain, np.array([0]), np.ones(4, np.int64), float(np.cos(np.radians(25))))
    assert found.diameter.tolist() == [3]
    assert found.lowest_cosine[0] == pytest.approx(0.5, abs=1e-6)


def test_the_representative_is_the_middle_of_a_fan_and_crowds_pull_it():
    vectors = fan(0, 10, 22, 30, 41)
    assert group_statistics(vectors, np.array([0]), np.ones(5, np.int64), 0.5).representative.tolist() == [2]
    found = group_statistics(vectors, np.array([0]), np.array([1, 1, 1, 1, 500]), 0.5)
    assert found.representative.tolist() == [4] and found.size.tolist() == [504]


def test_of_equal_members_the_first_represents():
    same = np.repeat(unit([0.3, 0.5, 0.7]), 11, axis=0)
    found = group_statistics(same, np.array([0, 9]), np.ones(11, np.int64), 0.9)
    assert found.representative.tolist() == [0, 9]
    assert found.lowest_cosine.tolist() == pytest.approx([1, 1])
    # Of a pair the first, whatever the rounding of its norm.
    pair = unit([1, 0.2], [1, 0.1])
    for factor in (1 - 6e-8, 1 + 6e-8):
        scaled = pair * np.array([[1], [factor]], np.float32)
        assert group_statistics(scaled, np.array([0]), np.ones(2, np.int64), 0.9).representative.tolist() == [0]


def test_one_vector_that_tells_of_many_is_a_group():
    found = group_statistics(unit([1, 0]), np.array([0]), np.array([1000]), 0.9)
    assert [column.tolist() for column in found] == [[1000], [0], [1.0], [1]]


def test_a_group_too_large_is_told_by_its_farthest_members(monkeypatch):
    monkeypatch.setattr(groups, "LARGE", 20)
    monkeypatch.setattr(groups, "SMALL", 10)
    vectors = np.concatenate([np.repeat(fan(0), 60, axis=0), fan(20, -20)])
    found = group_statistics(vectors, np.array([0]), np.ones(62, np.int64), 0.9)
    assert found.lowest_cosine[0] == pytest.approx(np.cos(np.radians(40)), abs=1e-6)
    assert found.diameter.tolist() == [2]


# -- complete linkage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 4000])
@pytest.mark.parametrize("seed", range(3))
def test_inside_a_piece_all_are_pairs(limit, seed, monkeypatch):
    monkeypatch.setattr(groups, "LINKAGE_LIMIT", limit)
    vectors, _ = clusters([40, 30, 1], dimensions=8, noise=0.12, seed=seed)
    labels = complete_linkage(vectors, 0.8)
    cosine = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    assert len(set(labels)) > 3
    for i, j in itertools.combinations(range(len(vectors)), 2):
        if labels[i] == labels[j]:
            assert cosine[i, j] > 0.8


def test_complete_linkage_leaves_whole_what_is_whole_and_cuts_chains():
    assert complete_linkage(fan(0, 3, 6), 0.9).tolist() == [0, 0, 0]
    assert len(set(complete_linkage(fan(0, 20, 40, 60), 0.9).tolist())) == 2
    assert complete_linkage(np.repeat(fan(7), 5, axis=0), 0.9).tolist() == [0] * 5


def test_pieces_of_several_groups_lie_one_after_another():
    vectors = np.concatenate([fan(0, 60, 1, 61), fan(10, 11)])
    order, starts = cut_by_complete_linkage(vectors, np.array([0, 4]), 0.9)
    assert order.tolist() == [0, 2, 1, 3, 4, 5]
    assert starts.tolist() == [0, 2, 4]
