"""Pairs, components, groups and neighbours against float64 brute force, and what must not change them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planted import clusters
from transforms.kernels.neighbours import (
    Nearest,
    connected_components,
    cosines,
    group_statistics,
    pairs_above,
)


def unit(*rows):
    vectors = np.asarray(rows, dtype=np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute_pairs(a, b, threshold, same):
    cosine = a.astype(np.float64) @ b.astype(np.float64).T
    return {
        (i, j): cosine[i, j] for i in range(len(a)) for j in range(len(b)) if cosine[i, j] > threshold and (not same or i < j)
    }


def as_dict(pairs):
    return {(int(i), int(j)): float(c) for i, j, c in zip(*pairs, strict=True)}


# -- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile_rows", [1, 7, 64, 8192])
def test_pairs_of_one_block_are_those_of_brute_force(tile_rows):
    vectors, _ = clusters([1, 2, 3, 5, 20, 30])
    expected = brute_pairs(vectors, vectors, 0.9, same=True)
    assert len(expected) > 400
    found = as_dict(pairs_above(vectors, vectors, 0.9, True, tile_rows=tile_rows))
    assert found.keys() == expected.keys()
    assert max(abs(found[pair] - expected[pair]) for pair in found) < 1e-12


@pytest.mark.parametrize("tile_rows", [1, 7, 8192])
def test_pairs_of_two_blocks_are_those_of_brute_force(tile_rows):
    vectors, _ = clusters([2, 3, 5, 20, 30])
    a, b = vectors[:25], vectors[25:]
    found = as_dict(pairs_above(a, b, 0.9, False, tile_rows=tile_rows))
    assert found.keys() == brute_pairs(a, b, 0.9, same=False).keys()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 25),
    dimensions=st.integers(1, 9),
    threshold=st.floats(-1, 0.999),
    tile_rows=st.integers(1, 30),
)
def test_pairs_for_any_shape_and_threshold(seed, n, dimensions, threshold, tile_rows):
    # Small whole numbers: many equal vectors and many cosines far from any threshold's rounding.
    random = np.random.default_rng(seed)
    vectors = unit(*(random.integers(-2, 3, (n, dimensions)) + np.eye(n, dimensions) * 0.5 + 0.25))
    cosine = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    found = as_dict(pairs_above(vectors, vectors, threshold, True, tile_rows=tile_rows))
    surely = {(i, j) for i in range(n) for j in range(i + 1, n) if min(cosine[i, j], 1) > threshold + 1e-12}
    maybe = {(i, j) for i in range(n) for j in range(i + 1, n) if min(cosine[i, j], 1) > threshold - 1e-12}
    assert surely <= found.keys() <= maybe


def test_pairs_at_the_threshold_are_not_over_it():
    vectors = unit([1, 0], [0, 1], [1, 0])
    assert as_dict(pairs_above(vectors, vectors, 0.0, True)) == {(0, 2): 1.0}


def test_the_threshold_is_held_in_float64():
    """float32 would decide these by its rounding, and blocks of other sizes would round otherwise."""
    random = np.random.default_rng(3)
    a = unit(*random.normal(size=(40, 512)))
    b = unit(*(a + 0.02 * random.normal(size=a.shape)))
    exact = cosines(a, b, np.arange(40), np.arange(40))
    for cosine in exact:
        for threshold in (cosine, np.nextafter(cosine, -1)):
            found = as_dict(pairs_above(a, b, float(threshold), False))
            assert found.keys() == {(int(i), int(i)) for i in np.flatnonzero(exact > threshold)}


def test_pairs_do_not_depend_on_the_order_of_rows():
    vectors, _ = clusters([3, 4, 20])
    order = np.random.default_rng(1).permutation(len(vectors))
    straight = as_dict(pairs_above(vectors, vectors, 0.8, True))
    shuffled = as_dict(pairs_above(vectors[order], vectors[order], 0.8, True))
    back = {tuple(sorted((int(order[i]), int(order[j])))): cosine for (i, j), cosine in shuffled.items()}
    assert back == straight


def test_pairs_of_nothing():
    nothing = np.empty((0, 4), np.float32)
    assert len(pairs_above(nothing, nothing, 0.5, True).i) == 0
    assert len(pairs_above(unit([1, 0, 0, 0]), nothing, 0.5, False).i) == 0


def test_cosines_stay_within_one():
    vectors = np.full((1, 3), np.float32(0.57735032))  # its norm is a little over 1
    assert cosines(vectors, vectors, np.array([0]), np.array([0]))[0] == 1.0


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


# -- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_rows", [1, 3, 2048])
def test_group_statistics_are_those_of_brute_force(block_rows):
    vectors, labels = clusters([1, 2, 5, 30], noise=0.1)
    found = group_statistics(vectors, labels, block_rows=block_rows)
    wide = vectors.astype(np.float64)
    for label in range(4):
        rows = np.flatnonzero(labels == label)
        cosine = wide[rows] @ wide[rows].T
        assert found.size[label] == len(rows)
        assert found.representative[label] == rows[np.argmax(wide[rows] @ wide[rows].mean(axis=0))]
        lowest = cosine[np.triu_indices(len(rows), 1)].min() if len(rows) > 1 else 1.0
        assert found.lowest_cosine[label] == pytest.approx(lowest, abs=1e-12)


def test_the_representative_is_the_middle_of_a_fan():
    angles = np.radians([0, 10, 22, 30, 41])
    fan = unit(*np.stack([np.cos(angles), np.sin(angles)], axis=1))
    found = group_statistics(fan, np.zeros(5, int))
    assert found.representative.tolist() == [2]
    assert found.lowest_cosine[0] == pytest.approx(np.cos(np.radians(41)))


def test_of_equal_members_the_first_represents():
    same = np.repeat(unit([0.3, 0.5, 0.7]), 9, axis=0)
    assert group_statistics(same, np.zeros(9, int)).representative.tolist() == [0]
    assert group_statistics(same, np.array([1, 0, 1, 0, 0, 1, 1, 1, 1])).representative.tolist() == [1, 0]


def test_of_a_pair_the_first_represents_whatever_its_rounding():
    random = np.random.default_rng(5)
    one = random.normal(size=(50, 64))
    vectors = unit(*np.concatenate([one, one + 0.1 * random.normal(size=one.shape)]))
    found = group_statistics(vectors, np.tile(np.arange(50), 2))
    assert found.representative.tolist() == list(range(50))


def test_labels_with_a_gap_are_refused():
    with pytest.raises(ValueError, match="label 1 has no row"):
        group_statistics(unit([1, 0], [0, 1]), np.array([0, 2]))


# -- nearest ----------------------------------------------------------------------------------------------------------


def test_nearest_are_those_of_brute_force():
    vectors, _ = clusters([5, 10, 40], noise=0.2)
    queries, _ = clusters([3, 3], noise=0.2, seed=9)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows, cosine = Nearest(vectors).search(queries, 7)
    assert rows.tolist() == np.argsort(-exact, axis=1)[:, :7].tolist()
    assert np.allclose(cosine, np.take_along_axis(exact, rows, axis=1), atol=1e-12)


def test_equal_neighbours_come_in_the_order_of_the_set():
    """60 copies: more than faiss is asked for at first, so a cut through the equals must not depend on chance."""
    far, near = unit([1, 0, 0])[0], unit([0.2, 0.5, 0.7])[0]
    vectors = np.stack([far, *[near] * 60, far])
    rows, _ = Nearest(vectors).search(near[None], 3)
    assert rows.tolist() == [[1, 2, 3]]
    rows, _ = Nearest(vectors).search(near[None], 61)
    assert rows.tolist() == [[*range(1, 61), 0]]


def test_neighbours_closer_than_float32_can_tell_are_in_order():
    random = np.random.default_rng(4)
    query = unit(random.normal(size=256))
    vectors = unit(*(query + 3e-5 * random.normal(size=(300, 256))))
    exact = cosines(vectors, query, np.arange(300), np.zeros(300, int))
    rows, _ = Nearest(vectors).search(query, 5)
    assert rows.tolist() == [np.argsort(-exact, kind="stable")[:5].tolist()]


def test_fewer_than_asked_for():
    vectors = unit([1, 0], [0, 1])
    rows, cosine = Nearest(vectors).search(unit([1, 0.1]), 5)
    assert rows.tolist() == [[0, 1]] and cosine.shape == (1, 2)
    rows, cosine = Nearest(np.empty((0, 2), np.float32)).search(unit([1, 0]), 5)
    assert rows.shape == cosine.shape == (1, 0)


def test_a_query_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        Nearest(unit([1, 0])).search(np.full((1, 2), np.nan, np.float32), 1)
