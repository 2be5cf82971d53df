"""Near pairs, groups and nearest neighbours of unit vectors: exact, on numbers alone.

faiss finds candidates in float32; what decides (the threshold, the order) is the cosine in float64, which depends on
the two vectors only. So neither block size nor order nor machine changes which pairs are found.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CANDIDATE_MARGIN = 1e-5
"""By how much a float32 dot product of unit vectors may be off, with room to spare."""

TIE = 1e-6
"""Members whose cosines to their centroid differ by less are equally near: float32 vectors know their own norm no better.
So of the two members of a pair the first is chosen, and not the one whose norm was rounded up."""


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


def pairs_above(
    vectors_a: np.ndarray, vectors_b: np.ndarray, threshold: float, same_block: bool, *, tile_rows: int = 8192
) -> Pairs:
    """All pairs with a cosine over ``threshold``.

    Args:
        vectors_a: (n, d) float32, unit norm.
        vectors_b: (m, d) float32, unit norm.
        threshold: pairs at it are not over it.
        same_block: the two sets are one: each pair once, i < j, and no row with itself.
        tile_rows: rows of ``vectors_b`` that are searched at once; changes memory and time, never the result.
    """
    import faiss

    found = []
    for start in range(0, len(vectors_b), tile_rows):
        tile = np.ascontiguousarray(vectors_b[start : start + tile_rows])
        queries = vectors_a[: start + len(tile)] if same_block else vectors_a
        index = faiss.IndexFlatIP(tile.shape[1])
        index.add(tile)
        for first in range(0, len(queries), tile_rows):
            block = np.ascontiguousarray(queries[first : first + tile_rows])
            limits, _, columns = index.range_search(block, threshold - CANDIDATE_MARGIN)
            i = first + np.repeat(np.arange(len(block)), (limits[1:] - limits[:-1]).astype(np.int64))
            j = start + columns
            if same_block:
                i, j = i[i < j], j[i < j]
            cosine = cosines(vectors_a, vectors_b, i, j)
            over = cosine > threshold
            found.append((i[over], j[over], cosine[over]))
    if not found:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    i, j, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((j, i))
    return Pairs(i[order].astype(np.int64), j[order].astype(np.int64), cosine[order])


def cosines(vectors_a: np.ndarray, vectors_b: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(p,) float64 cosines of rows ``i`` of the first set and ``j`` of the second, within -1 to 1. Unit vectors."""
    result = np.empty(len(i))
    for start in range(0, len(i), 16384):
        here = slice(start, start + 16384)
        left, right = vectors_a[i[here]].astype(np.float64), vectors_b[j[here]].astype(np.float64)
        result[here] = np.einsum("pd,pd->p", left, right)
    return result.clip(-1, 1)


def connected_components(n: int, pairs: np.ndarray) -> np.ndarray:
    """Which of ``n`` nodes hang together.

    Args:
        n: number of nodes.
        pairs: (p, 2) integers from 0 to n - 1.

    Returns:
        (n,) int64 labels from 0, numbered by each component's first node.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components as components

    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, labels = components(graph, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


class GroupStatistics(NamedTuple):
    """What there is to know about each group; row g is label g.

    Attributes:
        size: (g,) int64 members.
        representative: (g,) int64, the row nearest to the centroid by cosine; of several, the first.
        lowest_cosine: (g,) float64 over all pairs inside; 1 for a group of one.
    """

    size: np.ndarray
    representative: np.ndarray
    lowest_cosine: np.ndarray


def group_statistics(vectors: np.ndarray, labels: np.ndarray, *, block_rows: int = 2048) -> GroupStatistics:
    """Size, representative and lowest cosine of groups.

    Args:
        vectors: (n, d) float32, unit norm.
        labels: (n,) integers from 0 without gaps: the group of each row.
        block_rows: rows compared at once inside a group: a large group needs block_rows² numbers, not its size².
    """
    size = np.bincount(labels)
    if len(size) and size.min() == 0:
        raise ValueError(f"label {int(size.argmin())} has no row; labels must have no gaps")
    # Stable: inside a group the rows keep their order, which is what decides between equals.
    by_label = np.argsort(labels, kind="stable")
    ends = np.cumsum(size)
    representative = np.empty(len(size), dtype=np.int64)
    lowest = np.ones(len(size))
    for label, (start, end) in enumerate(zip(ends - size, ends, strict=True)):
        rows = by_label[start:end]
        if len(rows) == 1:
            representative[label] = rows[0]
            continue
        members = vectors[rows].astype(np.float64)
        nearness = members @ members.sum(axis=0)
        nearness /= max(1.0, float(np.abs(nearness).max()))
        representative[label] = rows[int(np.flatnonzero(nearness >= nearness.max() - TIE)[0])]
        lowest[label] = min(
            float((members[i : i + block_rows] @ members[j : j + block_rows].T).min())
            for i in range(0, len(rows), block_rows)
            for j in range(i, len(rows), block_rows)
        )
    return GroupStatistics(size, representative, lowest.clip(-1, 1))


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
