"""Cosines of unit vectors: exact, on numbers alone.

faiss finds candidates in float32; what decides (the threshold, the order) is the cosine in float64, which depends on
the two vectors only. So neither block size nor order nor machine changes what is found.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CANDIDATE_MARGIN = 1e-5
"""By how much a float32 dot product of unit vectors may be off, with room to spare."""


class Pairs(NamedTuple):
    """Pairs of rows and their cosines, ordered by ``i``, then ``j``.

    Attributes:
        i: (p,) int64 rows of the first set.
        j: (p,) int64 rows of the second set.
        cosine: (p,) floating, -1 to 1.
    """

    i: np.ndarray
    j: np.ndarray
    cosine: np.ndarray


def cosines(vectors_a: np.ndarray, vectors_b: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(p,) float64 cosines of rows ``i`` of the first set and ``j`` of the second, within -1 to 1. Unit vectors."""
    result = np.empty(len(i))
    for start in range(0, len(i), 16384):
        here = slice(start, start + 16384)
        left, right = vectors_a[i[here]].astype(np.float64), vectors_b[j[here]].astype(np.float64)
        result[here] = np.einsum("pd,pd->p", left, right)
    return result.clip(-1, 1)
