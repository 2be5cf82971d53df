"""Near pairs of very many unit vectors: cells of a trained quantiser, every vector in several, all pairs inside each.

The parts of it that make it fast, each with what it costs in exactness:

- **sketch**: the first numbers of a vector in the basis of principal components of a sample, and the norm of the rest.
  The dot product of two sketches is an upper bound of the cosine (Cauchy and Schwarz on the rest), so no pair over the
  threshold is ever lost by looking at sketches first. Costs nothing.
- **cells**: two levels of spherical k-means on the principal components. A vector goes to the cell of its nearest
  centroid, and to those that are nearly as near, so that two near vectors on the two sides of a boundary still meet
  somewhere. Pairs that meet in no cell are lost; how many is measured on pairs that are known, and by it is chosen what is
  near enough.
- **each pair once**: a pair may meet in several cells. Which pairs are near is gathered as numbers and sorted; only then are
  the cosines computed.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transforms.kernels.neighbours import CANDIDATE_MARGIN, Pairs, cosines

if TYPE_CHECKING:
    import faiss

SKETCH_NUMBERS = 128
"""Most principal components in a sketch. With as many, random directions of 512 numbers are told from pairs at 0.9."""

ROUNDING = 4e-6
"""More than a float32 sum of 128 squares of a unit vector is off by, and the vector's own norm."""

VECTORS_PER_CELL = (1024, 512, 256, 128, 64, 2048, 4096)
"""For how many vectors one cell is made, tried in this order: small cells cost less, down to a point, and large ones lose fewer
pairs: the last two are tried where no others will do."""

MAX_CELLS = 1 << 16
"""More would need a training sample of more than a gigabyte."""

MAX_ASSIGNMENTS = 8
"""Cells that a vector may go to. Beyond, larger cells cost less."""

EACH_ASSIGNMENT = 1 << 13
"""What it costs that a vector is in a cell at all (it's written, read, sketched and sorted there), in products of two sketches,
each counted from both sides."""

COARSE_PROBES = 6
"""Coarse cells in which the nearest cells are looked for."""

JUDGED = 1 << 13
"""Vectors of the sample, at most, by which it is judged what cells would cost; no centroid is made of them."""

SURELY = 50
"""Pairs more than halfway from the threshold to identity may be lost so many times more seldom than pairs at large."""

TRAINING_VECTORS_PER_CELL = 8
"""Of the sample that the centroids are learned from."""

TILE = (256, 512)
"""Vectors of a cell that are compared at once, with how many: their products stay in the processor's cache."""

SHIFT = TILE[1].bit_length() - 1

DIRECT = 1024
"""Cells up to which the nearest are looked for among all, without the upper level."""


@dataclasses.dataclass(frozen=True)
class Quantiser:
    """Tells which cells vectors go to. Small enough to travel to every worker as one file.

    Attributes:
        basis: (d, s) float32, orthonormal columns: that of the sketches.
        coarse: (c, s) float32 unit centroids of the upper level.
        fine: (cells, s) float32 unit centroids, those of one coarse cell together.
        starts: (c + 1,) int64: coarse cell g has the cells starts[g] to starts[g + 1] - 1.
    """

    basis: np.ndarray
    coarse: np.ndarray
    fine: np.ndarray
    starts: np.ndarray

    @property
    def cells(self) -> int:
        return len(self.fine)

    def shards(self, count: int) -> np.ndarray:
        """(cells,) int64: cuts the cells into ``count`` shards of about as many cells, those of one shard near each other.

        The coarse cells are halved again and again along the direction in which they spread most, so that most vectors have
        all their cells in one shard or two.
        """
        sizes = np.diff(self.starts)
        shard = np.zeros(len(self.coarse), np.int64)
        parts = [(np.arange(len(self.coarse)), count)]
        number = 0
        while parts:
            members, wanted = parts.pop()
            if wanted <= 1 or len(members) <= 1:
                shard[members] = number
                number += 1
                continue
            centred = self.coarse[members] - self.coarse[members].mean(axis=0)
            along = np.linalg.eigh(centred.T @ centred)[1][:, -1]
            order = members[np.argsort(centred @ along, kind="stable")]
            share = np.cumsum(sizes[order]) / max(1, sizes[order].sum())
            left = wanted // 2
            cut = min(1 + int(np.abs(share - left / wanted).argmin()), len(order) - 1)
            parts += [(order[cut:], wanted - left), (order[:cut], left)]
        return np.repeat(shard, sizes)

    def assign(self, sketches: np.ndarray, assignments: int, margin: float) -> np.ndarray:
        """The cells of each vector.

        Args:
            sketches: (n, s + 1) float32.
            assignments: how many cells for each, at most.
            margin: radians; a cell whose centroid is farther than the nearest by more than this is left out.

        Returns:
            (n, a) int32 cells, the nearest first; -1 at the end where fewer were found.
        """
        cells, farther = self.nearest(sketches, assignments)
        return np.where(farther <= margin, cells, -1)

    def nearest(self, sketches: np.ndarray, assignments: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest cells of each vector, and by how much their centroids are farther than the nearest.

        Args:
            sketches: (n, s + 1) float32.
            assignments: how many cells for each.

        Returns:
            (n, a) int32 cells, the nearest first, -1 at the end where fewer were found; (n, a) float32 radians, infinite there.
        """
        import faiss

        # The norm of the rest tells no direction.
        directions = _unit(sketches[:, :-1])
        assignments = min(assignments, self.cells)
        if self.cells <= DIRECT:
            nearness, cell = faiss.knn(directions, self.fine, assignments, metric=faiss.METRIC_INNER_PRODUCT)
            return cell.astype(np.int32), _farther(nearness)
        n, probes = len(sketches), min(COARSE_PROBES, len(self.coarse))
        _, near = _flat(self.coarse).search(directions, probes)
        nearness = np.full((n, probes, assignments), -np.inf, np.float32)
        cell = np.full((n, probes, assignments), -1, np.int32)
        by_coarse = np.argsort(near.ravel(), kind="stable")
        ends = np.searchsorted(near.ravel()[by_coarse], np.arange(len(self.coarse) + 1))
        for g in range(len(self.coarse)):
            rows, places = np.divmod(by_coarse[ends[g] : ends[g + 1]], probes)
            first, last = int(self.starts[g]), int(self.starts[g + 1])
            k = min(assignments, last - first)
            if k == 0 or len(rows) == 0:
                continue
            found = faiss.knn(directions[rows], self.fine[first:last], k, metric=faiss.METRIC_INNER_PRODUCT)
            nearness[rows, places, :k], cell[rows, places, :k] = found[0], found[1] + first
        far, found_cells = -nearness.reshape(n, -1), cell.reshape(n, -1)
        some = np.argpartition(far, assignments - 1, axis=1)[:, :assignments]
        order = np.argsort(np.take_along_axis(far, some, axis=1), axis=1, kind="stable")
        some = np.take_along_axis(some, order, axis=1)
        found_cells = np.take_along_axis(found_cells, some, axis=1)
        return found_cells, _farther(-np.take_along_axis(far, some, axis=1))


def _farther(nearness: np.ndarray) -> np.ndarray:
    """(n, a) cosines, the largest first, -infinity for none → (n, a) radians by which each is farther than the first."""
    angle = np.arccos(nearness.clip(-1, 1))
    return np.where(nearness == -np.inf, np.inf, angle - angle[:, :1])


def _unit(directions: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("ns,ns->n", directions, directions))
    return directions / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]


def _flat(vectors: np.ndarray) -> faiss.IndexFlatIP:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def sketch(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """(n, d) float32 of unit norm and (d, s) → (n, s + 1) float32 whose dot products bound the cosines from above."""
    n, numbers = len(vectors), basis.shape[1]
    sketches = np.empty((n, numbers + 1), np.float32)
    projected = sketches[:, :numbers]
    np.matmul(vectors, basis, out=projected)
    # The margin keeps it an upper bound whatever float32 loses in the sum.
    rest = 1.0 + ROUNDING - np.einsum("ns,ns->n", projected, projected)
    np.sqrt(rest.clip(0), out=sketches[:, numbers])
    return sketches


def sample_size(n: int) -> int:
    """How many of ``n`` vectors ``choose`` learns from; the more cells there may be, the more."""
    return min(n, -(-n // min(VECTORS_PER_CELL)) * TRAINING_VECTORS_PER_CELL + JUDGED)


def principal_basis(sample: np.ndarray, threshold: float) -> np.ndarray:
    """The principal directions that a sketch needs to tell most pairs that aren't duplicates.

    Args:
        sample: (n, d) float32, unit norm.
        threshold: cosine of duplicates.

    Returns:
        (d, s) float32, orthonormal columns: as many, by eights and up to ``SKETCH_NUMBERS``, as leave a rest whose mean
        squared norm is half of what two vectors at the threshold lie apart; then the bound is that tight.
    """
    some = sample[: 1 << 15]
    # Not centred: the bound needs the vectors as they are. A common direction becomes the first component.
    values, components = np.linalg.eigh((some.T @ some).astype(np.float64))
    rest = 1.0 - np.cumsum(values[::-1]) / values.sum()
    enough = 1 + int(np.argmax(rest <= (1.0 - threshold) / 2))
    numbers = min(-(-enough // 8) * 8, SKETCH_NUMBERS, sample.shape[1])
    return np.ascontiguousarray(components[:, ::-1][:, :numbers], dtype=np.float32)


def train(sample: np.ndarray, basis: np.ndarray, cells: int, seed: int) -> Quantiser:
    """Learns a quantiser.

    Args:
        sample: (n, d) float32, unit norm; in an order that doesn't depend on how the data were cut.
        basis: (d, s) float32: see ``principal_basis``.
        cells: how many, at most one for each vector of the sample.
        seed: of k-means.
    """
    directions = _unit(sample @ basis)
    cells = max(1, min(cells, len(sample)))
    upper = max(1, round(cells**0.5))
    coarse = _centroids(directions, upper, seed)
    _, nearest = _flat(coarse).search(directions, 1)
    members = np.argsort(nearest[:, 0], kind="stable")
    ends = np.searchsorted(nearest[members, 0], np.arange(upper + 1))
    fine = []
    for g in range(upper):
        inside = directions[members[ends[g] : ends[g + 1]]]
        # As many cells as its share of the sample asks for: so dense regions get more, and no cell gets too full.
        wanted = round(cells * len(inside) / len(sample))
        fine.append(_centroids(inside, max(1, wanted), seed) if len(inside) else coarse[g : g + 1])
    starts = np.cumsum([0, *(len(one) for one in fine)]).astype(np.int64)
    return Quantiser(basis, coarse, np.concatenate(fine), starts)


def _centroids(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    import faiss

    if len(vectors) <= k:
        return np.ascontiguousarray(vectors)
    means = faiss.Kmeans(
        vectors.shape[1],
        k,
        niter=6,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=TRAINING_VECTORS_PER_CELL * 4,
    )
    means.train(vectors)
    return np.asarray(means.centroids)


# -- how many cells ---------------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """Pairs over the threshold that brute force found: what a choice is measured on.

    Attributes:
        one, other: (p, d) float32 vectors of each pair.
        image: (p,) int64: whose pair it is. That an image keeps one of its pairs is asked for as much as that a pair is kept:
            a few images with very many pairs say little about the others.
        weight: (p,) float64 pairs that each stands for.
    """

    one: np.ndarray
    other: np.ndarray
    image: np.ndarray
    weight: np.ndarray


class Choice(NamedTuple):
    """How the vectors are spread over cells.

    Attributes:
        quantiser: the cells; None where all pairs are to be compared, since no cells would do.
        assignments: cells for each vector, at most.
        margin: radians: see ``Quantiser.assign``.
        recall: share of the known pairs that meet in a cell.
    """

    quantiser: Quantiser | None
    assignments: int
    margin: float
    recall: float


NOWHERE = int(np.iinfo(np.int32).max)
"""In place of a cell, where two vectors have none in common."""


def first_common(cells_a: np.ndarray, cells_b: np.ndarray) -> np.ndarray:
    """(p,) int32: the smallest cell that two lists of cells, (p, a) each, have in common; NOWHERE where there is none."""
    found = np.full(len(cells_a), NOWHERE, np.int32)
    for place in range(cells_a.shape[1]):
        mine = cells_a[:, place]
        common = ((mine[:, None] == cells_b) & (mine[:, None] >= 0)).any(axis=1)
        found = np.where(common, np.minimum(found, mine), found)
    return found


def meet(cells_a: np.ndarray, cells_b: np.ndarray) -> np.ndarray:
    """(p,) whether two lists of cells, (p, a) each, have one in common."""
    return first_common(cells_a, cells_b) != NOWHERE


def needed_margins(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], assignments: int) -> np.ndarray:
    """The margin from which on two vectors meet.

    Args:
        one, other: what ``Quantiser.nearest`` says of p vectors each.
        assignments: the most that is asked about.

    Returns:
        (a, p) float32: with up to 1, 2, … a cells for each vector; infinite where no margin is enough.
    """
    (cells_a, farther_a), (cells_b, farther_b) = one, other
    needed = np.full((assignments, len(cells_a)), np.inf, np.float32)
    for i in range(cells_a.shape[1]):
        for j in range(cells_b.shape[1]):
            same = (cells_a[:, i] == cells_b[:, j]) & (cells_a[:, i] >= 0)
            margin = np.where(same, np.maximum(farther_a[:, i], farther_b[:, j]), np.inf)
            needed[max(i, j)] = np.minimum(needed[max(i, j)], margin)
    return np.minimum.accumulate(needed)


def made_up(vectors: np.ndarray, cosine: float, seed: int) -> Known:
    """Each vector with one at ``cosine`` from it, in a direction in which two others of them differ."""
    random = np.random.default_rng(seed)
    difference = vectors[random.permutation(len(vectors))] - vectors[random.permutation(len(vectors))]
    difference += 1e-6 * random.standard_normal(vectors.shape).astype(np.float32)
    difference -= (difference * vectors).sum(axis=1, keepdims=True) * vectors
    difference /= np.linalg.norm(difference, axis=1, keepdims=True)
    near = (cosine * vectors + (1 - cosine**2) ** 0.5 * difference).astype(np.float32)
    return Known(vectors, near, np.arange(len(vectors)), np.ones(len(vectors)))


def choose(
    sample: np.ndarray, basis: np.ndarray, n: int, known: Known | None, threshold: float, recall: float, seed: int
) -> Choice:
    """The cheapest cells in which enough of the known pairs meet.

    Args:
        sample: (m, d) float32, unit norm, m ≤ n: what the quantiser is trained on, and costs are judged by. Without the
            images of ``known``: a centroid lies near what it was made of, which would flatter the recall.
        basis: (d, s) float32: see ``principal_basis``.
        n: vectors in all.
        known: pairs over the threshold, the more the better; None where none was found, and then pairs just over the
            threshold are made up from the sample, in the directions in which its vectors differ.
        threshold: cosine of duplicates.
        recall: share that must meet, of the pairs and of the images that have one; of those more than halfway from the
            threshold to identity almost all: see ``SURELY``. With room for chance: see ``_enough``.
        seed: of k-means.
    """
    judged, learned = np.split(sample, [min(JUDGED, len(sample) // 3)])
    known = known or made_up(judged, threshold, seed)
    sure = np.einsum("pd,pd->p", known.one, known.other) > (1 + threshold) / 2
    wanted = ((np.ones(len(sure), bool), recall), (sure, 1 - (1 - recall) / SURELY))
    # Numbers that are multiplied: whole vectors where all pairs are compared, sketches inside cells.
    best, best_cost = Choice(None, 0, 0.0, 1.0), float(n) ** 2 * sample.shape[1] / (basis.shape[1] + 1)
    tried = 0
    for per_cell in VECTORS_PER_CELL:
        cells = min(n // per_cell, MAX_CELLS, len(learned))
        if cells < 2 or cells == tried:
            continue
        if best.quantiser is not None and per_cell > VECTORS_PER_CELL[0]:
            break
        tried = cells
        quantiser = train(learned, basis, cells, seed)
        one, other, own = (quantiser.nearest(sketch(x, basis), MAX_ASSIGNMENTS) for x in (known.one, known.other, judged))
        cheapest = np.inf
        for assignments, needed in enumerate(needed_margins(one, other, own[0].shape[1]), 1):
            margin = max(_enough(needed[some], known.image[some], known.weight[some], share) for some, share in wanted)
            if margin == np.inf:
                continue
            counts = np.bincount(own[0][:, :assignments][own[1][:, :assignments] <= margin])
            cost = float((counts * (counts - 1.0)).sum()) * (n / len(judged)) ** 2
            cost += float(counts.sum()) * n / len(judged) * EACH_ASSIGNMENT
            cheapest = min(cheapest, cost)
            if cost < best_cost:
                best, best_cost = (
                    Choice(quantiser, assignments, margin, float(np.average(needed <= margin, weights=known.weight))),
                    cost,
                )
        # Beyond the point too many cells are needed for each vector.
        if best.quantiser is not None and cheapest > 2 * best_cost:
            break
    return best


def _enough(needed: np.ndarray, image: np.ndarray, weight: np.ndarray, recall: float) -> float:
    """The smallest margin at which so many pairs, and images with one of theirs, meet that the recall can be promised.

    Of the pairs half of what may be lost is left for chance, since those of one image are lost together. Of the images at most
    so many may be missing that fewer are seen once in twenty times where the recall is as asked for.
    """
    # scipy.stats, which has the quantile itself, takes a second to import.
    from scipy.special import bdtr

    if len(needed) == 0:
        return 0.0
    order = np.argsort(needed)
    kept = np.cumsum(weight[order])
    of_pairs = needed[order[np.searchsorted(kept, (1 - (1 - recall) / 2) * kept[-1] * (1 - 1e-12))]]
    order = np.lexsort((needed, image))
    of_images = np.sort(needed[order[np.flatnonzero(np.r_[True, np.diff(image[order]) != 0])]])
    missing = 0
    while bdtr(missing, len(of_images), 1 - recall) < 0.05:
        missing += 1
    return float(max(of_pairs, of_images[len(of_images) - 1 - missing]))


# -- pairs ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spread:
    """Vectors with their sketches and cells.

    Attributes:
        vectors: (n, d) float32, unit norm.
        sketches: (n, s + 1) float32.
        cells: (n, a) int32; -1 for none.
    """

    vectors: np.ndarray
    sketches: np.ndarray
    cells: np.ndarray

    def members(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(cells that have members, (cells + 1,) where their members start, (m,) int64 rows, ascending in each cell)."""
        order = np.argsort(self.cells.ravel(), kind="stable")
        flat = self.cells.ravel()[order]
        first = int(np.searchsorted(flat, 0))
        order, flat = order[first:], flat[first:]
        starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]]) if len(flat) else np.empty(0, np.int64)
        return flat[starts], np.r_[starts, len(flat)], order // self.cells.shape[1]


def pairs_in_cells(
    first: Spread, second: Spread, threshold: float, same: bool, *, threads: int | None = None, at_once: int = 1 << 26
) -> Iterator[Pairs]:
    """All pairs with a cosine over ``threshold`` that meet in a cell, each once.

    Args:
        first, second: the two blocks.
        threshold: pairs at it are not over it.
        same: the two blocks are one: i < j.
        threads: threads; as many as faiss would take if None.
        at_once: candidates for one portion, about, each as often as it meets; 16 bytes each while they are sorted. A portion
            that has more is cut in two, down to one row.

    Yields:
        Portions, each with all pairs of some rows i, in the order of i, then j. ``cosine`` is float32, right to 1e-6;
        whether it is over the threshold is decided in float64.
    """
    import faiss

    threads = threads or faiss.omp_get_max_threads()
    names_a, starts_a, rows_a = first.members()
    names_b, starts_b, rows_b = (names_a, starts_a, rows_a) if same else second.members()
    _, in_a, in_b = np.intersect1d(names_a, names_b, assume_unique=True, return_indices=True)
    cells = [
        (rows_a[starts_a[a] : starts_a[a + 1]], rows_b[starts_b[b] : starts_b[b + 1]])
        for a, b in zip(in_a.tolist(), in_b.tolist(), strict=True)
    ]
    portions = [(0, len(first.vectors))]
    while portions:
        low, high = portions.pop()
        most = at_once if high - low > 1 else None
        keys = _candidates(first.sketches, second.sketches, cells, (low, high), threshold, same, threads, most)
        if keys is None:
            middle = (low + high) // 2
            portions += [(middle, high), (low, middle)]
            continue
        i = keys // max(1, len(second.vectors))
        j = keys - i * len(second.vectors)
        cosine = _indexed_cosines(first.vectors, second.vectors, i, j)
        over = cosine > threshold
        unsure = np.flatnonzero(np.abs(cosine - np.float32(threshold)) <= CANDIDATE_MARGIN)
        over[unsure] = cosines(first.vectors, second.vectors, i[unsure], j[unsure]) > threshold
        yield Pairs(i[over], j[over], cosine[over])


def _candidates(
    sketches_a: np.ndarray,
    sketches_b: np.ndarray,
    cells: Sequence[tuple[np.ndarray, np.ndarray]],
    portion: tuple[int, int],
    threshold: float,
    same: bool,
    threads: int,
    most: int | None,
) -> np.ndarray | None:
    """Pairs whose sketches allow a cosine over the threshold, as i · rows of b + j, sorted, each once.

    Those of the rows of a in ``portion``; None once there are more than ``most``.
    """
    from threadpoolctl import threadpool_limits

    tiles = []
    for one, other in cells:
        one = one[slice(*np.searchsorted(one, portion))]
        tiles += [(one[start : start + TILE[0]], other) for start in range(0, len(one), TILE[0])]
    found = 0

    def work(tiles: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        nonlocal found
        # Memory for the products that is used again and again: to ask for it each time takes as long as they do.
        space = np.empty(TILE, np.float32), np.empty(TILE, bool)
        keys = [np.empty(0, np.int64)]
        for tile in tiles:
            if most is not None and found > most:
                break
            near = _near_in_tile(sketches_a, sketches_b, *tile, threshold, same, space)
            found += sum(map(len, near))
            keys += near
        return _distinct(keys)

    # Every thread does its own tiles with one thread of BLAS: the matrices are too small to be shared out.
    with threadpool_limits(1, user_api="blas"), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        shares = [tiles[start :: threads * 8] for start in range(threads * 8)]
        keys = _distinct([np.empty(0, np.int64), *pool.map(work, shares)])
    return None if most is not None and found > most else keys


def _near_in_tile(
    sketches_a: np.ndarray,
    sketches_b: np.ndarray,
    rows: np.ndarray,
    other: np.ndarray,
    threshold: float,
    same: bool,
    space: tuple[np.ndarray, np.ndarray],
) -> list[np.ndarray]:
    """Pairs of a few rows and all of a cell whose sketches allow a cosine over the threshold, as i · rows of b + j."""
    found = []
    mine = sketches_a[rows]
    after = int(np.searchsorted(other, rows[0], side="right")) if same else 0
    for begin in range(after, len(other), TILE[1]):
        columns = other[begin : begin + TILE[1]]
        products, near = (one.ravel()[: len(rows) * len(columns)].reshape(len(rows), -1) for one in space)
        np.matmul(mine, sketches_b[columns].T, out=products)
        np.greater(products, threshold - CANDIDATE_MARGIN, out=near)
        if same and columns[0] <= rows[-1]:
            near &= columns[None, :] > rows[:, None]
        places = np.flatnonzero(near)
        if len(places):
            # Of a full tile, whose side is a power of two, as numpy's division takes as long as the product of the tile.
            full = len(columns) == TILE[1]
            i, j = (places >> SHIFT, places & (TILE[1] - 1)) if full else np.divmod(places, len(columns))
            found.append(rows[i] * len(sketches_b) + columns[j])
    return found


def _distinct(keys: list[np.ndarray]) -> np.ndarray:
    """Sorted, each once. numpy's own ``unique`` hashes integers, which takes ten times as long here."""
    joined = np.sort(np.concatenate(keys))
    return joined[np.r_[True, joined[1:] != joined[:-1]]] if len(joined) else joined


def _indexed_cosines(vectors_a: np.ndarray, vectors_b: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(p,) float32 cosines of rows i and j, right to 1e-6, without copying the rows."""
    import faiss

    vectors_a, vectors_b = np.ascontiguousarray(vectors_a), np.ascontiguousarray(vectors_b)
    i, j = np.ascontiguousarray(i, np.int64), np.ascontiguousarray(j, np.int64)
    result = np.empty(len(i), np.float32)
    pointers = [faiss.swig_ptr(one) for one in (vectors_a, i, vectors_b, j, result)]
    faiss.pairwise_indexed_inner_product(vectors_a.shape[1], len(i), *pointers)  # type: ignore[attr-defined]
    return result.clip(-1, 1)
