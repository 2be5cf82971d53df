"""Groups of near vectors: what hangs together by pairs, at every threshold; and what there is to know about each group.

Pairs come in portions and may be very many; what is kept of them is a spanning forest of the highest cosines, which has at
most one edge for each vector and tells the groups of every threshold: two vectors are in one group at threshold t exactly
where the forest joins them by edges over t.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

TIE = 1e-6
"""Members whose cosines to their centroid differ by less are equally near: float32 vectors know their own norm no better.
So of the two members of a pair the first is chosen, and not the one whose norm was rounded up."""

LARGE = 10_000
"""Members of a group beyond which its statistics are those of as many members: the ones farthest from its centroid."""

LINKAGE_LIMIT = 4_000
"""Members beyond which complete linkage is not built merge by merge, which needs all distances at once."""


class Edges(NamedTuple):
    """Pairs of nodes with their cosine.

    Attributes:
        i, j: (e,) int64 nodes.
        cosine: (e,) float64 or float32.
    """

    i: np.ndarray
    j: np.ndarray
    cosine: np.ndarray


def no_edges() -> Edges:
    return Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))


def spanning_forest(edges: Edges) -> Edges:
    """The edges of a spanning forest of the highest cosines: at most one for each node, and as connected as all.

    Memory is that of the edges: nodes may have any numbers.
    """
    if len(edges.i) == 0:
        return no_edges()
    nodes, short = np.unique(np.concatenate([edges.i, edges.j]), return_inverse=True)
    i, j = short[: len(edges.i)], short[len(edges.i) :]
    # Each once: scipy adds up what is given twice.
    low, high = np.minimum(i, j), np.maximum(i, j)
    order = np.lexsort((-edges.cosine, high, low))
    low, high, cosine = low[order], high[order], np.asarray(edges.cosine, np.float64)[order]
    first = np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])] & (low != high)
    tree = spanning_forest_of_rows(len(nodes), Edges(low[first], high[first], cosine[first]))
    return Edges(nodes[tree.i], nodes[tree.j], tree.cosine)


def spanning_forest_of_rows(n: int, edges: Edges) -> Edges:
    """As ``spanning_forest``, of nodes from 0 to n - 1, and edges in the order of i, then j, each once with i < j."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    ends = np.searchsorted(edges.i, np.arange(n + 1))
    # scipy takes a weight of 0 for no edge: so all are over 0.
    graph = csr_array((2.0 - np.asarray(edges.cosine, np.float64), edges.j, ends), shape=(n, n))
    tree = minimum_spanning_tree(graph).tocoo()
    return Edges(tree.row.astype(np.int64), tree.col.astype(np.int64), 2.0 - tree.data)


def merge_forests(portions: Iterable[Edges], *, at_once: int = 1 << 24) -> Edges:
    """One spanning forest of all portions.

    Args:
        portions: edges, in any number of pieces.
        at_once: edges that are gathered before they are reduced; more is faster and needs more memory (about 100 bytes an
            edge). What is kept never exceeds one edge for each node.
    """
    forest = no_edges()
    gathered: list[Edges] = []
    count = 0
    for portion in portions:
        gathered.append(portion)
        count += len(portion.i)
        if count >= max(at_once, len(forest.i)):
            forest, gathered, count = spanning_forest(_joined([forest, *gathered])), [], 0
    return spanning_forest(_joined([forest, *gathered])) if gathered else forest


def _joined(portions: list[Edges]) -> Edges:
    return Edges(*(np.concatenate(columns) for columns in zip(*portions, strict=True)))


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


class ExactSets(NamedTuple):
    """Identical vectors that one of them tells of.

    Attributes:
        node: (c,) int64, ascending: the canonical node of each set.
        size: (c,) int64 vectors in it, itself included.
    """

    node: np.ndarray
    size: np.ndarray


class Groups(NamedTuple):
    """What hangs together: groups of two vectors and more.

    Attributes:
        node: (n,) int64, ascending: every node that is in a group.
        label: (n,) int64: the group of each, from 0, numbered by each group's first node.
        size: (g,) int64 vectors in each group, exact-duplicate sets counted in full.
    """

    node: np.ndarray
    label: np.ndarray
    size: np.ndarray


def groups_of(edges: Edges, sets: ExactSets) -> Groups:
    """The groups that edges and exact-duplicate sets make; single linkage."""
    node = np.unique(np.concatenate([edges.i, edges.j, sets.node]))
    pairs = np.stack([np.searchsorted(node, edges.i), np.searchsorted(node, edges.j)], axis=1)
    label = connected_components(len(node), pairs)
    weight = np.ones(len(node), np.int64)
    weight[np.searchsorted(node, sets.node)] = sets.size
    return Groups(node, label, np.bincount(label, weights=weight).astype(np.int64))


class Sizes(NamedTuple):
    """How the groups are at one threshold.

    Attributes:
        threshold: pairs over it join.
        groups: of two members and more.
        members: in those groups.
        largest: members of the largest; 1 where there is none.
    """

    threshold: float
    groups: int
    members: int
    largest: int


def sizes_by_threshold(forest: Edges, sets: ExactSets, thresholds: Iterable[float]) -> list[Sizes]:
    """Groups at each threshold, by a spanning forest of the highest cosines. Right from the pairs' own threshold on."""
    found = []
    for threshold in thresholds:
        over = forest.cosine > threshold
        groups = groups_of(Edges(forest.i[over], forest.j[over], forest.cosine[over]), sets)
        found.append(Sizes(float(threshold), len(groups.size), int(groups.size.sum()), int(groups.size.max(initial=1))))
    return found


# -- inside a group ---------------------------------------------------------------------------------------------------


class GroupStatistics(NamedTuple):
    """What there is to know about each group.

    Attributes:
        size: (g,) int64 images: the sum of the weights.
        representative: (g,) int64: the row nearest to the group's centroid by cosine; of several, the first.
        lowest_cosine: (g,) float64 over all pairs inside; 1 for a group of one vector.
        diameter: (g,) int64 steps from pair to pair between the two members that need the most of them; 0 for a group of one
            image, 1 where all are duplicates of one another. Of a group of more than ``SMALL`` vectors by a double sweep:
            exact for chains, else at least.
    """

    size: np.ndarray
    representative: np.ndarray
    lowest_cosine: np.ndarray
    diameter: np.ndarray


SMALL = 64
"""Vectors of a group up to which groups of one size are worked on together."""

TOGETHER = 1 << 22
"""Numbers of a matrix for which so many groups are taken together."""


def group_statistics(vectors: np.ndarray, starts: np.ndarray, weight: np.ndarray, threshold: float) -> GroupStatistics:
    """Size, representative, lowest cosine and diameter of groups.

    Args:
        vectors: (n, d) float32, unit norm, those of a group one after another. Of a group with more than ``LARGE``, lowest
            cosine and diameter are those of the LARGE that are farthest from its centroid.
        starts: (g,) int64, ascending from 0: the first row of each group.
        weight: (n,) int64 images that each row stands for.
        threshold: over which two members are a pair.
    """
    counts = np.diff(np.r_[starts, len(vectors)])
    size = np.add.reduceat(weight, starts) if len(starts) else np.empty(0, np.int64)
    representative, lowest = starts.astype(np.int64), np.ones(len(starts))
    diameter = (size > 1).astype(np.int64)
    for count in np.unique(counts[counts > 1]).tolist():
        groups = np.flatnonzero(counts == count)
        if count > SMALL:
            for group in groups.tolist():
                mine = slice(starts[group], starts[group] + count)
                first, lowest[group], diameter[group] = _statistics(vectors[mine], weight[mine], threshold)
                representative[group] += first
            continue
        step = max(1, TOGETHER // (count * vectors.shape[1]))
        for some in (groups[begin : begin + step] for begin in range(0, len(groups), step)):
            rows = starts[some][:, None] + np.arange(count)
            members = vectors[rows].astype(np.float64)
            centroid = np.einsum("gkd,gk->gd", members, weight[rows])
            representative[some] += _nearest(np.einsum("gkd,gd->gk", members, centroid))
            cosine = members @ members.transpose(0, 2, 1)
            lowest[some] = cosine.min(axis=(1, 2))
            diameter[some] = _diameters(cosine > threshold)
    return GroupStatistics(size, representative, lowest.clip(-1, 1), diameter)


def _nearest(nearness: np.ndarray) -> np.ndarray:
    """(g, k) products with the centroid → (g,) the first of those that are as near to it as any."""
    relative = nearness / np.maximum(1.0, np.abs(nearness).max(axis=1, keepdims=True))
    return (relative >= relative.max(axis=1, keepdims=True) - TIE).argmax(axis=1)


def _diameters(near: np.ndarray) -> np.ndarray:
    """(g, k, k) who is a pair with whom → (g,) the most steps that any two need, of those that a way joins at all."""
    near = near | np.eye(near.shape[1], dtype=bool)
    steps = np.ones(len(near), np.int64)
    reached, left = near, np.arange(len(near))
    while True:
        left = left[~reached[left].all(axis=(1, 2))]
        farther = (reached[left].astype(np.float32) @ near[left].astype(np.float32)) > 0
        grown = (farther != reached[left]).any(axis=(1, 2))
        left, farther = left[grown], farther[grown]
        if len(left) == 0:
            return steps
        reached = reached.copy() if reached is near else reached
        reached[left] = farther
        steps[left] += 1


def _statistics(vectors: np.ndarray, weight: np.ndarray, threshold: float) -> tuple[int, float, int]:
    """(representative, lowest cosine, diameter) of one large group."""
    members = vectors.astype(np.float64)
    nearness = members @ (weight @ members)
    representative = int(_nearest(nearness[None])[0])
    if len(vectors) > LARGE:
        members = members[np.sort(np.argpartition(nearness, LARGE)[:LARGE])]
    least = np.concatenate([(members[i : i + 2048] @ members.T).min(axis=1) for i in range(0, len(members), 2048)])
    lowest, start = float(least.min()), int(least.argmin())
    if lowest > threshold:
        return representative, lowest, 1
    far = int(_steps(members, start, threshold).argmax())
    return representative, lowest, int(_steps(members, far, threshold).max())


def _steps(members: np.ndarray, start: int, threshold: float) -> np.ndarray:
    """(n,) steps from pair to pair to each member; -1 where none leads there. Each member is compared once."""
    steps = np.full(len(members), -1)
    steps[start] = 0
    frontier, left = np.array([start]), np.delete(np.arange(len(members)), start)
    for step in range(1, len(members)):
        reached = np.zeros(len(left), bool)
        for begin in range(0, len(frontier), 2048):
            reached |= (members[frontier[begin : begin + 2048]] @ members[left].T > threshold).any(axis=0)
        frontier, left = left[reached], left[~reached]
        steps[frontier] = step
        if len(frontier) == 0 or len(left) == 0:
            break
    return steps


def cut_by_complete_linkage(vectors: np.ndarray, starts: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Cuts groups so that all pairs inside a piece are over the threshold: no chains.

    Args:
        vectors: (n, d) float32, unit norm, those of a group one after another.
        starts: (g,) int64: the first row of each group.
        threshold: cosine.

    Returns:
        (n,) int64 rows, those of a piece one after another and in their old order; (p,) the first row of each piece.
    """
    order, pieces = [np.empty(0, np.int64)], []
    for start, end in zip(starts, np.r_[starts[1:], len(vectors)], strict=True):
        labels = complete_linkage(vectors[start:end], threshold)
        order.append(start + np.argsort(labels, kind="stable"))
        pieces += (start + np.cumsum(np.r_[0, np.bincount(labels)[:-1]])).tolist()
    return np.concatenate(order), np.array(pieces, np.int64)


def complete_linkage(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Cuts one group so that all pairs inside a piece are over the threshold: no chains.

    Up to ``LINKAGE_LIMIT`` distinct vectors by complete linkage (scipy's). Beyond, by leaders: the first vector takes all
    within half the threshold's angle, of which any two lie within the whole angle; and so on with the rest. That cuts more
    than needed, and never less.

    Args:
        vectors: (n, d) float32, unit norm.
        threshold: cosine.

    Returns:
        (n,) int64 labels from 0, numbered by each piece's first row.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    distinct, inverse = np.unique(vectors, axis=0, return_inverse=True)
    wide = distinct.astype(np.float64)
    if len(wide) == 1:
        return np.zeros(len(vectors), np.int64)
    if len(wide) <= LINKAGE_LIMIT:
        upper = np.triu_indices(len(wide), 1)
        distance = (1.0 - wide @ wide.T).clip(0)[upper]
        # A piece's height is its largest distance, and pairs at the threshold are not over it.
        labels = fcluster(linkage(distance, "complete"), np.nextafter(1.0 - threshold, 0), "distance")
    else:
        half = np.cos(np.arccos(np.clip(threshold, -1, 1)) / 2)
        labels = np.full(len(wide), -1)
        left = np.arange(len(wide))
        while len(left):
            near = wide[left] @ wide[left[0]] > half
            near[0] = True
            labels[left[near]] = left[0]
            left = left[~near]
    _, first, inverse = np.unique(labels[inverse], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)
