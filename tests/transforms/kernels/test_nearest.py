"""The nearest of a set against a plain sort in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.kernels.nearest import NOTHING, nearest


def reference(codes, vectors, query, most, by_angle):
    if by_angle:
        far = 1 - vectors.astype(np.float64) @ query.astype(np.float64)
    else:
        far = np.sqrt(((vectors.astype(np.float64) - query) ** 2).mean(axis=1))
    best = {}
    for code, distance in zip(codes.tolist(), far.tolist(), strict=True):
        best[code] = min(distance, best.get(code, np.inf))
    return sorted((distance, code) for code, distance in best.items())[:most]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(1, 4), st.integers(1, 12), st.booleans())
def test_as_a_plain_sort(seed, size, windows, most, by_angle):
    random = np.random.default_rng(seed)
    codes = random.integers(0, max(1, size // windows), size).astype(np.int64)
    vectors, queries = (random.normal(size=(n, 7)).astype(np.float32) for n in (size, 5))
    if by_angle:
        vectors, queries = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (vectors, queries))
    found, distances = nearest(codes, vectors, queries, most, by_angle=by_angle)
    assert found.shape == distances.shape == (5, most)
    for row, query in enumerate(queries):
        expected = reference(codes, vectors, query, most, by_angle)
        there = found[row] != NOTHING
        assert there.sum() == len(expected) and there[: len(expected)].all()
        # faiss takes |a|² + |b|² - 2ab in float32: near 0 its root is off by more.
        assert distances[row][there] == pytest.approx([distance for distance, _ in expected], abs=2e-3)
        assert len(set(found[row][there])) == len(expected), "each once"
        assert np.isinf(distances[row][~there]).all()


def test_equals_come_by_code():
    vectors = np.ones((6, 3), np.float32)
    found, distances = nearest(np.array([5, 3, 9, 1, 3, 7]), vectors, vectors[:1], 4, by_angle=False)
    assert found.tolist() == [[1, 3, 5, 7]] and distances.tolist() == [[0, 0, 0, 0]]


def test_of_nothing_there_is_nothing():
    none = np.empty(0, np.int64)
    found, distances = nearest(none, np.empty((0, 3), np.float32), np.ones((2, 3), np.float32), 2, by_angle=True)
    assert (found == NOTHING).all() and np.isinf(distances).all()
    assert nearest(np.array([1]), np.ones((1, 3), np.float32), np.empty((0, 3), np.float32), 2, by_angle=True)[0].shape == (
        0,
        2,
    )
