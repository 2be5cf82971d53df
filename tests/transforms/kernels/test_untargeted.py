"""The nearest training pictures against a slow reference, and the rules of untargeted extraction by hand values."""

import numpy as np
import pytest

from transforms.kernels import untargeted
from transforms.kernels.untargeted import TrainingPictures, adaptive_l2, distinct, nearest_pictures, nearest_ratio, verdicts

RANDOM = np.random.default_rng(3)


def pictures(count: int, height: int = 8, width: int = 8) -> np.ndarray:
    """Pictures of differing brightness and contrast: some smooth, some noise."""
    brightness, contrast = RANDOM.uniform(0, 255, (count, 1, 1, 3)), RANDOM.uniform(0, 120, (count, 1, 1, 1))
    return (brightness + contrast * RANDOM.standard_normal((count, height, width, 3))).clip(0, 255).astype(np.uint8)


def reference(generated: np.ndarray, training: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By the definition, one pair at a time, in float64; equal distances by place."""
    far = np.empty((len(generated), len(training)))
    for i, one in enumerate(generated.astype(np.float64)):
        for j, other in enumerate(training.astype(np.float64)):
            far[i, j] = np.mean((one / 255 - other / 255) ** 2) ** 0.5
    # What is equal in whole numbers is equal, whatever the last digit of a sum of fractions.
    far = far.round(12)
    order = np.argsort(far, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(far, order, axis=1)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(untargeted, "COLUMNS", 64)
    monkeypatch.setattr(untargeted, "ROWS", 16)


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (3, 5), (64, 8), (203, 8), (203, 1), (203, 40), (203, 300)])
def test_the_nearest_are_those_of_the_reference(small_blocks, monkeypatch, count, k, floats):
    if floats:
        monkeypatch.setattr(untargeted, "_multiplies_bytes", lambda: False)
    training = pictures(count)
    generated = np.concatenate([pictures(30), training[:7], training[-1:] ^ 1])
    index, l2 = nearest_pictures(generated, training, k)
    expected_index, expected_l2 = reference(generated, training, k)
    assert index.shape == (len(generated), min(k, count)) and index.dtype == np.int64 and l2.dtype == np.float64
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_allclose(l2, expected_l2, atol=1e-11)
    assert l2[30, 0] == 0.0


def test_blocks_chunks_and_order_change_no_digit(monkeypatch):
    training, generated = pictures(700), pictures(90)
    index, l2 = nearest_pictures(generated, training, 11)
    for columns, rows in ((8, 16), (200, 32), (4096, 4096)):
        monkeypatch.setattr(untargeted, "COLUMNS", columns)
        monkeypatch.setattr(untargeted, "ROWS", rows)
        prepared = TrainingPictures(training, memory=1 if rows == 16 else 1 << 20)
        parts = [prepared.nearest(generated[start : start + 40], 11) for start in range(0, 90, 40)]
        np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), index)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), l2)
    order = RANDOM.permutation(90)
    np.testing.assert_array_equal(prepared.nearest(generated[order], 11)[0], index[order])


def test_equal_distances_come_by_place(small_blocks):
    training = np.repeat(pictures(3), 100, axis=0)
    index, l2 = nearest_pictures(training[[250, 0, 120]], training, 5)
    np.testing.assert_array_equal(index, [np.arange(200, 205), np.arange(5), np.arange(100, 105)])
    np.testing.assert_array_equal(l2, np.zeros((3, 5)))
    # More equally near than a block of what is kept has room for.
    index, _ = nearest_pictures(training[[250]], training, 150)
    np.testing.assert_array_equal(index[0, :100], np.arange(200, 300))
    assert (np.diff(index[0, 100:]) == 1).all()


def test_extremes_and_large_pictures_are_exact():
    black, white = np.zeros((1, 300, 300, 3), np.uint8), np.full((1, 300, 300, 3), 255, np.uint8)
    almost = white.copy()
    almost[0, 0, 0, 0] = 254
    index, l2 = nearest_pictures(np.concatenate([white, black]), np.concatenate([black, almost, white]), 3)
    np.testing.assert_array_equal(index, [[2, 1, 0], [0, 1, 2]])
    assert l2[0].tolist() == [0.0, (1 / 270_000) ** 0.5 / 255, 1.0]
    assert l2[1, 2] == 1.0 and l2[1, 1] < 1.0


def test_large_pictures_of_large_norms_are_exact(small_blocks):
    # Squared norms over 2³¹, in several blocks of more groups than are asked for.
    training = np.repeat(RANDOM.choice([0, 255], (70, 1, 1, 1)), 256 * 256 * 3).reshape(70, 256, 256, 3).astype(np.uint8)
    levels = RANDOM.permutation(70)
    training ^= levels[:, None, None, None].astype(np.uint8)
    generated = np.stack([np.full((256, 256, 3), level, np.uint8) for level in (0, 3, 90, 255)])
    index, l2 = nearest_pictures(generated, training, 4)
    far = np.abs(generated[:, :1, 0, 0].astype(int) - training[None, :, 0, 0, 0]) / 255
    np.testing.assert_array_equal(index, np.argsort(far, axis=1, kind="stable")[:, :4])
    np.testing.assert_allclose(l2, np.sort(far, axis=1)[:, :4], rtol=1e-12)


@pytest.mark.parametrize("what", [np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 9, 3), np.uint8)])
def test_other_types_and_sizes_are_refused(what):
    with pytest.raises(ValueError, match="shape"):
        nearest_pictures(what, pictures(4), 2)


def test_nothing_generated_is_an_empty_answer():
    index, l2 = nearest_pictures(pictures(0), pictures(4), 2)
    assert index.shape == l2.shape == (0, 2)
    with pytest.raises(ValueError, match="no training pictures"):
        nearest_pictures(pictures(4), pictures(0), 2)


def test_distinct_names_the_first_of_equal_pictures():
    some = pictures(4)
    assert distinct(some[[0, 1, 0, 2, 1, 3]]).tolist() == [0, 1, 0, 3, 1, 5]
    assert distinct(some[:0]).tolist() == []
    # A view whose bytes don't lie in a row.
    assert distinct(np.asfortranarray(some[[0, 1, 0]])).tolist() == [0, 1, 0]


def test_rules_by_hand():
    l2 = np.array([[0.1, 0.4, 0.6], [0.0, 0.0, 0.0], [0.2, 0.2, 0.2], [0.0, 0.3, 0.3]])
    np.testing.assert_allclose(adaptive_l2(l2), [0.4, np.nan, 2.0, 0.0])
    np.testing.assert_allclose(adaptive_l2(l2, alpha=1.0), [0.2, np.nan, 1.0, 0.0])
    np.testing.assert_allclose(nearest_ratio(l2), [0.25, np.nan, 1.0, 0.0])
    found = verdicts(l2, delta=0.1)
    assert found.l2.tolist() == [True, True, False, True]
    assert found.adaptive.tolist() == [True, False, False, True]
    assert found.ratio.tolist() == [True, False, False, True]
    # The limits themselves: at most for l2 and adaptive l2, under for the ratio.
    assert [bool(each[0]) for each in verdicts(np.array([[0.25, 0.5]]), 0.25, ratio=0.5)] == [True, True, False]


def test_without_others_only_l2_speaks():
    found = verdicts(np.array([[0.01], [0.5]]), delta=0.1)
    assert np.isnan(adaptive_l2(np.array([[0.01]]))).all() and np.isnan(nearest_ratio(np.array([[0.01]]))).all()
    assert found.l2.tolist() == [True, False] and not found.adaptive.any() and not found.ratio.any()
    with pytest.raises(ValueError, match="shape"):
        adaptive_l2(np.zeros((3, 0)))
