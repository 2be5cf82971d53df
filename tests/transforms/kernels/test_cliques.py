"""The clique test against brute force, planted cliques and the chains that it must not take for one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.kernels.cliques import largest_clique


def symmetric(n: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).random((n, n))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 0)
    return values


def brute_force(distances: np.ndarray, edge: float) -> int:
    n = len(distances)
    for size in range(n, 1, -1):
        for nodes in itertools.combinations(range(n), size):
            if all(distances[a, b] < edge for a, b in itertools.combinations(nodes, 2)):
                return size
    return min(n, 1)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 9), seed=st.integers(0, 10_000), edge=st.floats(0, 1))
def test_equals_brute_force(n, seed, edge):
    distances = symmetric(n, seed)
    clique = largest_clique(distances, edge)
    assert len(clique.members) == brute_force(distances, edge)
    assert clique.exact
    assert all(distances[a, b] < edge for a, b in itertools.combinations(clique.members, 2))


def test_a_chain_is_not_a_clique():
    n = 12
    distances = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) * 0.1
    assert len(largest_clique(distances, 0.15).members) == 2  # one connected component, cliques of two


def test_planted_clique_and_its_mean():
    distances = np.full((30, 30), 0.9)
    planted = [2, 5, 11, 17, 29]
    distances[np.ix_(planted, planted)] = 0.08
    np.fill_diagonal(distances, 0)
    clique = largest_clique(distances, 0.1)
    assert clique.members == tuple(planted)
    assert clique.mean_distance == pytest.approx(0.08)


def test_order_of_the_generations_changes_nothing():
    distances = symmetric(40, 3)
    order = np.random.default_rng(1).permutation(40)
    assert len(largest_clique(distances, 0.4).members) == len(largest_clique(distances[np.ix_(order, order)], 0.4).members)


def test_limits():
    assert largest_clique(np.zeros((0, 0)), 0.1).members == ()
    one = largest_clique(np.zeros((1, 1)), 0.1)
    assert one.members == (0,)
    assert np.isnan(one.mean_distance)
    everything = largest_clique(np.zeros((500, 500)), 0.1)  # all alike: where a naive search never ends
    assert everything.members == tuple(range(500))
    assert everything.exact


def test_the_edge_is_strict():
    assert len(largest_clique(np.array([[0, 0.1], [0.1, 0]]), 0.1).members) == 1


def test_a_search_that_is_cut_short_says_so():
    distances = symmetric(60, 5)
    cut = largest_clique(distances, 0.6, max_branches=10)
    assert not cut.exact
    assert len(cut.members) >= 2


def test_not_a_square_matrix():
    with pytest.raises(ValueError, match="expected a square matrix"):
        largest_clique(np.zeros((2, 3)), 0.1)
