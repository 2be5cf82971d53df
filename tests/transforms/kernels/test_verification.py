"""The pixel distance against hand values, for crops, sizes and mirror images, and against pictures that are no copies."""

import io

import numpy as np
import pytest
from PIL import Image

from transforms.kernels.distances import tiled_l2
from transforms.kernels.verification import FINER, PIXEL_DISTANCE, align, aligned_tiled_l2, prepare


def scene(seed: int, height: int = 120, width: int = 120) -> np.ndarray:
    """(height, width, 3) uint8: smooth as a photograph is, and unlike every other one."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def unrelated(picture: np.ndarray) -> float:
    """The smallest distance to twelve other scenes."""
    return min(aligned_tiled_l2(picture, scene(seed)).distance for seed in range(100, 112))


# -- hand values ------------------------------------------------------------------------------------------------------


def test_hand_values():
    black, white = np.zeros((40, 40, 3), np.uint8), np.full((30, 50, 3), 255, np.uint8)
    assert aligned_tiled_l2(black, white).distance == pytest.approx(1, abs=1e-5)
    assert aligned_tiled_l2(black, black).distance == 0
    # However it is cut, gray 51 of 255 is a fifth away from black.
    assert aligned_tiled_l2(black, np.full((40, 40, 3), 51, np.uint8)).distance == pytest.approx(0.2, abs=1e-4)


def test_one_tile_that_differs_is_enough():
    a = scene(1)
    b = a.copy()
    b[45:75, 45:75] = 255 - b[45:75, 45:75]
    assert aligned_tiled_l2(a, b).distance > 2 * PIXEL_DISTANCE


@pytest.mark.parametrize("seed", range(5))
def test_a_picture_and_itself(seed):
    whole = (0.0, 1.0, 0.0, 1.0)
    assert aligned_tiled_l2(scene(seed), scene(seed)) == (0.0, False, whole, whole)


# -- what was cut off -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("sides", ["left", "right and top", "around"])
def test_a_crop_lies_much_nearer_than_another_picture(share, sides):
    cuts = {"left": (0, 0, share, 0), "right and top": (share, 0, 0, share), "around": (share / 2,) * 4}[sides]
    for seed in range(3):
        picture = scene(seed)
        top, bottom, left, right = (round(120 * cut) for cut in cuts)
        found = aligned_tiled_l2(picture, picture[top : 120 - bottom, left : 120 - right])
        assert found.distance < 0.5 * PIXEL_DISTANCE
        assert found.distance < 0.2 * unrelated(picture)
        assert not found.mirrored
        expected = (cuts[0], 1 - cuts[1], cuts[2], 1 - cuts[3])
        assert found.window_a == pytest.approx(expected, abs=0.025)
        assert found.window_b == pytest.approx((0, 1, 0, 1), abs=0.025)


def test_two_crops_of_one_picture_are_laid_over_each_other():
    picture = scene(4)
    found = aligned_tiled_l2(picture[:, :102], picture[:, 18:])
    assert found.distance < 0.5 * PIXEL_DISTANCE
    assert found.window_a == pytest.approx((0, 1, 18 / 102, 1), abs=0.025)
    assert found.window_b == pytest.approx((0, 1, 0, 84 / 102), abs=0.025)


def test_a_mirrored_crop_is_found_and_said_to_be_mirrored():
    picture = scene(5)
    for copy in (picture[:, ::-1], picture[12:, ::-1]):
        found = aligned_tiled_l2(picture, copy)
        assert found.mirrored and found.distance < 0.5 * PIXEL_DISTANCE


def test_what_lost_half_is_no_longer_the_same():
    assert aligned_tiled_l2(scene(6), scene(6)[:60, :60]).distance > PIXEL_DISTANCE


# -- what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(60, 60), (64, 64), (300, 300), (200, 120)])
def test_the_size_of_the_stored_copy_does_not_matter(width, height):
    picture = scene(7)
    copy = resized(picture, width, height)
    assert aligned_tiled_l2(picture, copy).distance < 0.02
    # Nor does it to the distance from a third one.
    other = picture[:, :105]
    assert aligned_tiled_l2(other, copy).distance == pytest.approx(aligned_tiled_l2(other, picture).distance, abs=0.015)


@pytest.mark.parametrize("quality", [40, 90])
def test_an_encoder_does_not_matter(quality):
    buffer = io.BytesIO()
    Image.fromarray(scene(8)).save(buffer, "JPEG", quality=quality)
    copy = np.asarray(Image.open(buffer).convert("RGB"))
    assert aligned_tiled_l2(scene(8), copy).distance < 0.5 * PIXEL_DISTANCE


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_two_does_not_matter(seed):
    pictures = [scene(seed), scene(seed)[6:, 12:], scene(seed)[:, ::-1], scene(seed + 50, 80, 140)]
    for a in pictures:
        for b in pictures:
            one, other = aligned_tiled_l2(a, b), aligned_tiled_l2(b, a)
            assert one.distance == pytest.approx(other.distance, abs=1e-4)
            assert one.mirrored == other.mirrored


def test_distances_are_bounded_and_never_over_that_of_the_whole_pictures():
    side = FINER[-1].side
    for seed in range(8):
        # Near ones, since far ones are not followed to the end.
        a = scene(seed, side, side)
        b = np.clip(a.astype(int) + np.random.default_rng(seed).integers(-30, 31, (4, 4, 3)).repeat(8, 0).repeat(8, 1), 0, 255)
        b = b.astype(np.uint8)
        found = aligned_tiled_l2(a, b).distance
        assert 0 <= found <= 1
        assert found <= tiled_l2(a, b) + 0.02  # the two resizes to this side round differently
        assert 0 <= aligned_tiled_l2(a, scene(seed + 20)).distance <= 1


def test_prepared_pictures_give_the_same():
    a, b = scene(9), scene(9)[:, 10:]
    assert align(prepare(a), prepare(b)) == aligned_tiled_l2(a, b)


# -- what is no picture -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
    ],
)
def test_shapes_that_are_no_picture(wrong):
    for pair in ((wrong, scene(0)), (scene(0), wrong)):
        with pytest.raises(ValueError, match=r"expected uint8 \(height, width, 3\)"):
            aligned_tiled_l2(*pair)
