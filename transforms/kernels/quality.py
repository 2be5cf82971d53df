"""How near a set of generated pictures comes to real ones, by their feature vectors: the quality that leaks are compared at.

frechet   the Fréchet distance of two normal distributions (Heusel et al. 2017; with Inception's features it is called FID)
cmmd      the squared maximum mean discrepancy, which takes nothing for normal (Jayasumana et al. 2024)
manifold  precision and recall, density and coverage (Kynkäänniemi et al. 2019; Naeem et al. 2020)

Vectors are (n, d), any floating type, and finite. All is computed in float64, block by block: beside the vectors and two
copies of them in float64 no more than some ``BLOCK`` numbers are held. Every answer names both sample sizes, since all but the
unbiased cmmd depend on them: two numbers are comparable at the same sizes alone. Time goes with the product of the sizes:
cmmd and manifold take some 6 seconds of a core each for 10⁴ × 10⁴ vectors of 512 numbers, a hundred times that for 10⁵.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 1 << 22
"""Pairs that are looked at at once: 32 MiB in float64, and some of those for what is made of them."""

SIGMA = 10.0
SCALE = 1000.0
"""Jayasumana et al.'s bandwidth and factor, as their published code has them."""

NEAREST = 3
"""Kynkäänniemi et al.'s k."""

FEWEST = 8
"""Of fewer pictures the tables say nothing of quality."""

ROUNDING = 1e-12
"""Squared distances that differ by less than this share of the largest squared norm are equal."""


class Frechet(NamedTuple):
    """Attributes:
    distance: 0 or more, in the square of the features' unit.
    generated, real: sample sizes.
    full_rank: whether both are larger than the number of dimensions. Where they aren't, a covariance has directions of which
        nothing was seen; the distance is then defined all the same, but says more of the sizes than of the pictures.
    """

    distance: float
    generated: int
    real: int
    full_rank: bool


def frechet(generated: np.ndarray, real: np.ndarray) -> Frechet:
    """|m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½), of means and unbiased covariances.

    The trace of the root is the sum of the roots of the eigenvalues of C₁^½ C₂ C₁^½, which is symmetric: no complex numbers,
    nothing added to the diagonal, nothing shrunk. Eigenvalues below 0 are rounding, and count as 0. The estimate is too large
    on average, the more so the fewer vectors there are.

    Args:
        generated: (n, d), n at least 2.
        real: (m, d), m at least 2.
    """
    generated, real = _checked(generated, real, 2)
    (mean, covariance), (mean_real, covariance_real) = (_moments(each) for each in (generated, real))
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ covariance_real @ root).clip(min=0)
    distance = float(np.sum((mean - mean_real) ** 2) + np.trace(covariance) + np.trace(covariance_real))
    distance -= 2 * float(np.sqrt(crossed).sum())
    return Frechet(max(0.0, distance), len(generated), len(real), min(len(generated), len(real)) > generated.shape[1])


class Cmmd(NamedTuple):
    """Attributes:
    distance: times ``SCALE``. The unbiased estimate may be under 0: then the sets differ less than two of one kind do.
    generated, real: sample sizes.
    """

    distance: float
    generated: int
    real: int


def cmmd(generated: np.ndarray, real: np.ndarray, *, biased: bool = False) -> Cmmd:
    """The squared maximum mean discrepancy with the kernel exp(−|x − y|² / (2 · 10²)), times 1,000.

    The authors take CLIP's vectors (ViT-L/14 at 336 pixels) scaled to unit norm, as is done here; so numbers with other weights
    aren't theirs. That, the bandwidth and the factor are those of the published code, which was read in copies of it by others.

    Args:
        generated: (n, d), n at least 2, none of them zero.
        real: (m, d), m at least 2.
        biased: with each vector's kernel with itself, as in the published code: at n vectors larger by at most 20 / n for each
            set. Without (U-statistic), it is 0 on average where both sets come from one distribution, at any size.
    """
    generated, real = _checked(generated, real, 2)
    norms = [np.linalg.norm(each, axis=1, keepdims=True) for each in (generated, real)]
    if min(each.min() for each in norms) == 0:
        raise ValueError("a vector is zero, and has no direction")
    generated, real = generated / norms[0], real / norms[1]
    # The kernel less 1, by expm1: the values lie between -0.02 and 0, and their differences are what counts.
    within, within_real, across = (_kernel_sum(a, b) for a, b in ((generated, generated), (real, real), (generated, real)))
    n, m = len(generated), len(real)
    pairs, pairs_real = (n * n, m * m) if biased else (n * (n - 1), m * (m - 1))
    return Cmmd(SCALE * (within / pairs + within_real / pairs_real - 2 * across / (n * m)), n, m)


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    """Σ (k(x, y) − 1) over all pairs of unit vectors; a vector with itself adds 0 up to rounding."""
    total = 0.0
    for rows in _blocks(a, len(b)):
        squared = (2 - 2 * (a[rows] @ b.T)).clip(min=0)
        total += float(np.expm1(squared / (-2 * SIGMA**2)).sum())
    return total


class Manifold(NamedTuple):
    """Attributes:
    precision: the share of generated pictures that lie among the real ones.
    recall: the share of real ones that lie among the generated.
    density: how many real pictures' neighbourhoods a generated one lies in, over k: over 1 where they lie close together.
    coverage: the share of real ones with a generated one in their neighbourhood.
    generated, real: sample sizes. Precision falls and recall rises with the number of generated ones.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    generated: int
    real: int


def manifold(generated: np.ndarray, real: np.ndarray, k: int = NEAREST) -> Manifold:
    """Whether pictures lie in the union of balls around the others, each out to its own k-th nearest of its kind.

    What lies on the edge of a ball is inside.

    Args:
        generated: (n, d), n over ``k``.
        real: (m, d), m over ``k``.
        k: 1 or more.
    """
    if k < 1:
        raise ValueError(f"the nearest {k}, expected 1 or more")
    generated, real = _checked(generated, real, k + 1)
    # Moving both alike changes no distance, and near the middle they are rounded least.
    middle = real.mean(axis=0)
    generated, real = generated - middle, real - middle
    margin = ROUNDING * max(np.einsum("ij,ij->i", each, each).max() for each in (generated, real))
    radius, radius_real = (_radii(each, k) + margin for each in (generated, real))
    among, inside = np.zeros(len(generated), np.int64), np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    for rows, squared in _squared_distances(real, generated):
        hits = squared <= radius_real[rows, None]
        among += hits.sum(axis=0)
        covered[rows] = hits.any(axis=1)
        inside[rows] = (squared <= radius[None, :]).any(axis=1)
    return Manifold(
        float((among > 0).mean()),
        float(inside.mean()),
        float(among.mean() / k),
        float(covered.mean()),
        len(generated),
        len(real),
    )


def _radii(vectors: np.ndarray, k: int) -> np.ndarray:
    """(n,) the squared distance of each vector to its k-th nearest other one."""
    found = np.empty(len(vectors))
    for rows, squared in _squared_distances(vectors, vectors):
        squared[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = np.inf
        found[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return found


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows of the first set, and their squared distances to all of the second."""
    norms, others = np.einsum("ij,ij->i", a, a), np.einsum("ij,ij->i", b, b)
    for rows in _blocks(a, len(b)):
        yield rows, (norms[rows, None] + others[None, :] - 2 * (a[rows] @ b.T)).clip(min=0)


def _blocks(vectors: np.ndarray, width: int) -> Iterator[slice]:
    """Rows that make ``BLOCK`` numbers with so many to each."""
    step = max(1, BLOCK // width)
    for start in range(0, len(vectors), step):
        yield slice(start, min(start + step, len(vectors)))


def _moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and unbiased covariance (d, d)."""
    mean = vectors.mean(axis=0)
    products = np.zeros((vectors.shape[1], vectors.shape[1]))
    for rows in _blocks(vectors, vectors.shape[1]):
        centred = vectors[rows] - mean
        products += centred.T @ centred
    return mean, products / (len(vectors) - 1)


def _checked(generated: np.ndarray, real: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    generated, real = np.asarray(generated, np.float64), np.asarray(real, np.float64)
    if generated.ndim != 2 or real.ndim != 2 or generated.shape[1] != real.shape[1]:
        raise ValueError(f"vectors {generated.shape} and {real.shape}, expected (n, d) and (m, d)")
    if min(len(generated), len(real)) < fewest:
        raise ValueError(f"{len(generated)} generated and {len(real)} real vectors, expected {fewest} of each at least")
    if not (np.isfinite(generated).all() and np.isfinite(real).all()):
        raise ValueError("a vector isn't finite")
    return generated, real
