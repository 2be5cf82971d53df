"""The clique test: many generations of one prompt that are all alike were remembered, not invented.

Source: Carlini et al. 2023, section 4.2.2: an edge joins two generations whose tiled l2 is below a threshold; a prompt is
called memorised if the largest clique has 10 or more of its 500 generations. The edge threshold is not stated there.
"""

from __future__ import annotations

import dataclasses

import numpy as np

SWEEP = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Edge distances at which the clique's size is reported as well, since the paper states none."""


MAX_BRANCHES = 20_000
"""Branches that the search may open (about a second for 500 generations) before it settles for what it has found."""


@dataclasses.dataclass(frozen=True)
class Clique:
    """The largest clique of one prompt.

    Attributes:
        members: indices of the generations in it, ascending.
        mean_distance: mean over its pairs; NaN for less than two members. The paper ranks flagged prompts by it.
        exact: False where the search was cut short: there may be a larger one. The bound counts branches, not seconds,
            so the answer is the same on every machine.
    """

    members: tuple[int, ...]
    mean_distance: float
    exact: bool


def largest_clique(distances: np.ndarray, edge_distance: float, max_branches: int = MAX_BRANCHES) -> Clique:
    """The largest set of generations of which every two are nearer than ``edge_distance``.

    Args:
        distances: (n, n) symmetric, such as pairwise tiled l2.
        edge_distance: joined where the distance is below this.
        max_branches: where to stop searching.

    Returns:
        A maximum clique (not a connected component: chains don't count); the same one every time. () for n = 0.
    """
    n = len(distances)
    if distances.shape != (n, n):
        raise ValueError(f"distances have shape {distances.shape}, expected a square matrix")
    near = distances < edge_distance
    np.fill_diagonal(near, False)
    # Nodes with many neighbours first: the first descent is then a good greedy answer already.
    order = sorted(range(n), key=lambda node: (-int(near[node].sum()), node))
    rows = near[np.ix_(order, order)]
    search = _Search([int.from_bytes(np.packbits(row, bitorder="little").tobytes(), "little") for row in rows], max_branches)
    search.expand([], (1 << n) - 1)
    members = sorted(order[node] for node in search.best)
    inside = distances[np.ix_(members, members)][np.triu_indices(len(members), k=1)]
    mean = float(inside.mean()) if inside.size else float("nan")
    return Clique(tuple(members), mean, exact=search.branches <= max_branches)


class _Search:
    """Branch and bound over sets of nodes held as integers, one bit a node, bounded by a greedy colouring.

    Source: San Segundo, Rodríguez-Losada, Jiménez 2011, "An exact bit-parallel algorithm for the maximum clique problem"
    (after Tomita). networkx's own search needs minutes where 500 generations are all alike.
    """

    def __init__(self, neighbours: list[int], max_branches: int):
        self.neighbours, self.max_branches = neighbours, max_branches
        self.best: list[int] = []
        self.branches = 0

    def expand(self, clique: list[int], candidates: int) -> None:
        """Tries to grow ``clique`` by ``candidates``, all of which are neighbours of all its nodes."""
        if len(clique) > len(self.best):
            self.best = clique
        # Nodes of one colour are no neighbours, so a clique takes at most one of each: colours bound what's to gain.
        for node, colours in reversed(self._coloured(candidates)):
            if len(clique) + colours <= len(self.best):
                return
            self.branches += 1
            if self.branches > self.max_branches:
                return
            self.expand([*clique, node], candidates & self.neighbours[node])
            candidates &= ~(1 << node)

    def _coloured(self, candidates: int) -> list[tuple[int, int]]:
        """(node, number of colours used up to it), in the order of the colours."""
        coloured = []
        colours = 0
        while candidates:
            colours += 1
            free = candidates
            while free:
                lowest = free & -free
                node = lowest.bit_length() - 1
                candidates ^= lowest
                free &= ~lowest & ~self.neighbours[node]
                coloured.append((node, colours))
        return coloured
