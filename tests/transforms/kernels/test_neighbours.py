"""Cosines and neighbours against float64 brute force, and what must not change them."""

import numpy as np
import pytest

from tests.planted import clusters
from transforms.kernels.neighbours import Nearest, cosines


def unit(*rows):
    vectors = np.asarray(rows, dtype=np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_cosines_stay_within_one():
    vectors = np.full((1, 3), np.float32(0.57735032))  # its norm is a little over 1
    assert cosines(vectors, vectors, np.array([0]), np.array([0]))[0] == 1.0


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
