"""A thumbnail beside CLIP in one vector: what its cosine is, by hand and by numpy's own correlation."""

import numpy as np
import pytest
from PIL import Image

from transforms.kernels.thumbnails import LENGTH, WINDOWS, joined, square_windows, unit_thumbnails
from transforms.store.pictures import thumbnail


def random_thumbnails(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, LENGTH), dtype=np.uint8)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_products_are_correlations():
    tiny = random_thumbnails(20)
    found = unit_thumbnails(tiny)
    assert found.dtype == np.float32 and found.shape == (20, 192)
    assert np.abs(found @ found.T - np.corrcoef(tiny.astype(float))).max() < 1e-6
    assert (unit_thumbnails(tiny.reshape(20, 8, 8, 3)) == found).all()


def test_brighter_or_paler_makes_no_difference():
    tiny = random_thumbnails(5) // 2
    for changed in (tiny + 100, 2 * tiny, 2 * tiny + 1):
        assert np.abs((unit_thumbnails(tiny) * unit_thumbnails(changed)).sum(axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_a_single_gray_is_like_every_other_and_like_nothing_else(level):
    flat = np.full((1, LENGTH), level, np.uint8)
    speck = flat.copy()
    speck[0, 5] = level - 1 if level else 1
    others = np.concatenate([random_thumbnails(5), speck])
    found = unit_thumbnails(np.concatenate([flat, np.full((1, LENGTH), 60, np.uint8), others]))
    assert np.abs(np.linalg.norm(found.astype(float), axis=1) - 1).max() < 1e-6
    assert found[0] @ found[1] == pytest.approx(1)
    assert np.abs(found[0] @ found[2:].T).max() < 1e-4


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_a_joined_cosine_is_the_mean_of_both(share):
    random = np.random.default_rng(1)
    vectors, tiny = unit(random.normal(size=(30, 16))), random_thumbnails(30, seed=2)
    both = joined(vectors, tiny, share)
    assert both.dtype == np.float32 and both.shape == (30, 16 + 192)
    expected = (1 - share) * (vectors.astype(float) @ vectors.T) + share * np.corrcoef(tiny.astype(float))
    assert np.abs(both @ both.T - expected).max() < 1e-5
    assert np.abs(np.linalg.norm(both.astype(float), axis=1) - 1).max() < 1e-6


def test_a_thumbnail_is_the_mean_of_each_share_of_the_picture():
    picture = np.random.default_rng(3).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    means = picture.reshape(8, 3, 8, 2, 3).mean(axis=(1, 3))
    found = np.frombuffer(thumbnail(Image.fromarray(picture)), np.uint8).reshape(8, 8, 3)
    assert np.abs(found - means).max() <= 1
    # However large, wide or small it is: so many bytes.
    assert {len(thumbnail(Image.new("RGB", size))) for size in ((1, 1), (500, 3), (4000, 3000))} == {LENGTH}


def test_windows_are_square_crops_and_all_of_what_is_not_square():
    random = np.random.default_rng(4)
    large = np.asarray(Image.fromarray(random.integers(0, 256, (4, 6, 3), np.uint8)).resize((768, 512)))
    tiny = np.frombuffer(thumbnail(large), np.uint8)[None]
    upright = tiny.reshape(8, 8, 3).transpose(1, 0, 2).reshape(1, LENGTH)
    rows, windows = square_windows(np.concatenate([tiny, tiny, upright]), np.array([1.0, 1.5, 1 / 1.5]))
    assert rows.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2] and windows.dtype == np.float32
    assert np.array_equal(windows[[0, 4, 8]], np.concatenate([tiny, tiny, upright]) / np.float32(255))
    for place, left in ((1, 0), (2, 128), (3, 256)):
        crop = np.frombuffer(thumbnail(large[:, left : left + 512]), np.uint8) / 255
        assert np.sqrt(np.square(windows[place] - crop).mean()) < 0.06
        assert np.allclose(windows[place + 4].reshape(8, 8, 3), windows[place].reshape(8, 8, 3).transpose(1, 0, 2))
    # However long a picture is.
    assert len(square_windows(tiny, np.array([90.0]))[0]) == 4 * WINDOWS + 1
    assert len(square_windows(tiny, np.array([1.001]))[0]) == 1
