"""Cosines against float64 brute force."""

import numpy as np

from tests.planted import clusters
from transforms.kernels.neighbours import cosines


def test_cosines_stay_within_one():
    vectors = np.full((1, 3), np.float32(0.57735032))  # its norm is a little over 1
    assert cosines(vectors, vectors, np.array([0]), np.array([0]))[0] == 1.0


def test_cosines_are_those_of_brute_force():
    vectors, _ = clusters([5, 10, 40], noise=0.2)
    others, _ = clusters([3, 3], noise=0.2, seed=9)
    i, j = (one.ravel() for one in np.meshgrid(np.arange(55), np.arange(6), indexing="ij"))
    exact = (vectors.astype(np.float64) @ others.astype(np.float64).T).ravel()
    assert np.allclose(cosines(vectors, others, i, j), exact, atol=1e-12)
