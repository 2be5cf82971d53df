"""Cosines and nearest neighbours of unit vectors: exact, on numbers alone.

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


class Nearest:
    """The nearest of a set of unit vectors by cosine, exact.

    Args:
        vectors: (n, d) float32, unit norm.
    """

    def __init__(self, vectors: np.ndarray):
        import faiss

        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._index = faiss.IndexFlatIP(self.vectors.shape[1])
        self._index.add(self.vectors)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` nearest to each query, nearest first; equals in the order of the set.

        Args:
            queries: (m, d) float32, unit norm.
            k: how many; where the set has fewer, all of them.

        Returns:
            (m, k) int64 rows of the set, and (m, k) float64 cosines.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if not np.isfinite(queries).all():
            raise ValueError("a query is not finite: it has no nearest neighbour")
        n, m = len(self.vectors), len(queries)
        k = min(k, n)
        if k == 0 or m == 0:
            return np.empty((m, k), np.int64), np.empty((m, k))
        fetched = min(n, k + 16)
        while True:
            rough, rows = self._index.search(queries, fetched)
            # Enough once the last one fetched is surely farther than the k-th: else equals may have been left out.
            if fetched == n or (rough[:, k - 1] - rough[:, -1] > 2 * CANDIDATE_MARGIN).all():
                break
            fetched = min(n, 2 * fetched)
        exact = cosines(queries, self.vectors, np.repeat(np.arange(m), fetched), rows.ravel()).reshape(m, fetched)
        order = np.lexsort((rows, -exact), axis=1)[:, :k]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(exact, order, axis=1)
