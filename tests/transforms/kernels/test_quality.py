"""Distances between sets of vectors against closed forms and slow references, and what must not change them."""

import math

import numpy as np
import pytest
from scipy import linalg

from transforms.kernels import quality
from transforms.kernels.quality import cmmd, frechet, manifold

RANDOM = np.random.default_rng(12)


def normal(count: int, dimensions: int = 6) -> np.ndarray:
    return RANDOM.standard_normal((count, dimensions)) + 1.5


def with_moments(mean: np.ndarray, covariance: np.ndarray, count: int = 500) -> np.ndarray:
    """Vectors whose sample mean and covariance are exactly these."""
    drawn = RANDOM.standard_normal((count, len(mean)))
    drawn -= drawn.mean(axis=0)
    drawn = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn.T))).T
    return drawn @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_normal_distributions():
    # Commuting covariances: |m|² + Σ (s₁ − s₂)².
    first = with_moments(np.array([0.0, 0, 0]), np.diag([1.0, 4, 9]))
    second = with_moments(np.array([1.0, 2, 2]), np.diag([4.0, 4, 1]))
    found = frechet(first, second)
    assert found.distance == pytest.approx(9 + 1 + 0 + 4, rel=1e-9) and found.full_rank
    # Others: by the root of the product, as SciPy takes it.
    mixed = RANDOM.standard_normal((2, 5, 5))
    a, b = (m @ m.T + 0.1 * np.eye(5) for m in mixed)
    expected = np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    found = frechet(with_moments(np.zeros(5), a), with_moments(np.zeros(5), b))
    assert found.distance == pytest.approx(expected, rel=1e-8)


def test_frechet_of_one_set_with_itself_moved_turned_and_swapped():
    some, other = normal(200), 2 * normal(150)
    assert frechet(some, some).distance == pytest.approx(0, abs=1e-9)
    assert frechet(some + 3.0, some).distance == pytest.approx(9 * 6, rel=1e-9)
    forward, back = frechet(some, other), frechet(other, some)
    assert forward.distance == pytest.approx(back.distance, rel=1e-9)
    assert (forward.generated, forward.real) == (back.real, back.generated) == (200, 150)
    turn = np.linalg.qr(RANDOM.standard_normal((6, 6)))[0]
    assert frechet(some @ turn, other @ turn).distance == pytest.approx(forward.distance, rel=1e-9)


def test_frechet_with_fewer_vectors_than_dimensions():
    some, other = normal(10, 40), normal(12, 40)
    found = frechet(some, other)
    # By singular values of the vectors themselves: tr (C₁ C₂)^½ is the sum of those of X Yᵀ, whatever the rank.
    x, y = ((each - each.mean(axis=0)) / (len(each) - 1) ** 0.5 for each in (some, other))
    expected = np.sum((some.mean(axis=0) - other.mean(axis=0)) ** 2) + np.sum(x**2) + np.sum(y**2)
    expected -= 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum()
    assert found.distance == pytest.approx(expected, rel=1e-6) and not found.full_rank


def reference_cmmd(a: np.ndarray, b: np.ndarray, biased: bool) -> float:
    a, b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b))

    def mean(one, other, itself):
        pairs = [(i, j) for i in range(len(one)) for j in range(len(other)) if itself or i != j]
        return math.fsum(math.exp(-float(((one[i] - other[j]) ** 2).sum()) / 200) for i, j in pairs) / len(pairs)

    return 1000 * (mean(a, a, biased) + mean(b, b, biased) - 2 * mean(a, b, True))


@pytest.mark.parametrize("biased", [False, True])
def test_cmmd_is_the_mean_over_pairs(biased):
    some, other = normal(30), normal(20) * [1, -1, 1, 1, 1, 1]
    found = cmmd(some, other, biased=biased)
    assert found.distance == pytest.approx(reference_cmmd(some, other, biased), rel=1e-9)
    assert (found.generated, found.real) == (30, 20)
    assert cmmd(7 * some, other, biased=biased).distance == pytest.approx(found.distance, rel=1e-9)


def test_cmmd_of_like_and_of_opposite_sets():
    # All of a set in one direction, the other one opposite: 2 · (1 − exp(−4 / 200)).
    one = np.tile([1.0, 0, 0], (9, 1))
    assert cmmd(one, -one).distance == pytest.approx(2000 * (1 - math.exp(-4 / 200)), rel=1e-12)
    assert cmmd(one, one).distance == pytest.approx(0, abs=1e-10)
    same = normal(40)
    assert cmmd(same, same, biased=True).distance == pytest.approx(0, abs=1e-9)
    # Without bias, 0 on average at any size.
    drawn = [cmmd(normal(8), normal(8)).distance for _ in range(300)]
    assert abs(np.mean(drawn)) < 4 * np.std(drawn) / 300**0.5 and min(drawn) < 0
    assert np.mean([cmmd(normal(8), normal(8), biased=True).distance for _ in range(50)]) > 5 * np.std(drawn) / 50**0.5


def reference_manifold(generated: np.ndarray, real: np.ndarray, k: int) -> tuple[float, ...]:
    def far(a, b):
        return np.array([[np.linalg.norm(x - y) for y in b] for x in a])

    def radii(a):
        return np.sort(far(a, a), axis=1)[:, k]

    between = far(real, generated)
    hits = between <= radii(real)[:, None] + 1e-9
    return (
        hits.any(axis=0).mean(),
        (between <= radii(generated)[None, :] + 1e-9).any(axis=1).mean(),
        hits.sum(axis=0).mean() / k,
        hits.any(axis=1).mean(),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifold_is_the_union_of_balls(k):
    generated, real = 0.6 * normal(50, 3) + 0.5, normal(70, 3)
    found = manifold(generated, real, k)
    assert found[:4] == pytest.approx(reference_manifold(generated, real, k)) and found[4:] == (50, 70)
    assert 0 < found.recall < 1 and 0 < found.coverage < 1


def test_manifold_of_equal_far_and_collapsed_sets():
    some = normal(40)
    assert manifold(some, some)[:2] == (1, 1) and manifold(some, some).coverage == 1
    # Copies of one picture: radii of 0, in which they still lie.
    copies = np.tile(some[:1], (12, 1)) * 1e3 + 0.1
    assert manifold(copies, copies)[:4] == (1, 1, 4, 1)
    assert manifold(some + 1e6, some)[:4] == (0, 0, 0, 0)
    # Five copies each of many pictures: each lies in the balls of its five, whatever the last digits of their radii, all 0.
    many = np.repeat(normal(60, 37), 5, axis=0)[RANDOM.permutation(300)]
    assert manifold(many[:211], many)[:2] == (1, 1)
    assert manifold(many, many).density == pytest.approx(5 / 3)
    # All generations in one place among the real ones: precise, and of little recall.
    line = np.arange(40.0)[:, None]
    found = manifold(20 + np.arange(5.0)[:, None] / 1000, line)
    assert found.precision == 1 and found.recall == 1 / 40 and found.coverage == pytest.approx(5 / 40)


def test_blocks_order_and_precision_change_nothing(monkeypatch):
    generated, real = normal(90).astype(np.float32), (normal(70) * 1.2).astype(np.float32)
    whole = [call(generated, real) for call in (frechet, cmmd, manifold)]
    order, order_real = RANDOM.permutation(90), RANDOM.permutation(70)
    monkeypatch.setattr(quality, "BLOCK", 500)
    for call, expected in zip((frechet, cmmd, manifold), whole, strict=True):
        assert call(generated, real) == pytest.approx(expected, rel=1e-9)
        assert call(generated[order], real[order_real].astype(np.float64)) == pytest.approx(expected, rel=1e-9)


def test_what_cant_be_compared_is_refused():
    some = normal(5)
    for call in (frechet, cmmd, manifold):
        with pytest.raises(ValueError, match="vectors"):
            call(some, some[:, :2])
        with pytest.raises(ValueError, match="finite"):
            call(np.where(some > some.min(), some, np.nan), some)
        with pytest.raises(ValueError, match="1 generated and 5 real vectors"):
            call(some[:1], some)
    with pytest.raises(ValueError, match="expected 6"):
        manifold(some, some, 5)
    with pytest.raises(ValueError, match="direction"):
        cmmd(0 * some, some)
