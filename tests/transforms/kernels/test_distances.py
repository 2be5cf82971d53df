"""The distances against hand values, slow float64 references and their invariances."""

import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transforms.kernels import distances
from transforms.kernels.distances import Frame

RANDOM = np.random.default_rng(7)


def pictures(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, size=shape, dtype=np.uint8)


def reference_l2(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, one entry at a time, in float64."""
    total, count = 0.0, 0
    for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
        total += (x / 255 - y / 255) ** 2
        count += 1
    return float((total / count) ** 0.5)


def reference_tiled_l2(a: np.ndarray, b: np.ndarray) -> float:
    height, width = a.shape[0] // 4, a.shape[1] // 4
    return max(
        reference_l2(
            a[i * height : (i + 1) * height, j * width : (j + 1) * width],
            b[i * height : (i + 1) * height, j * width : (j + 1) * width],
        )
        for i in range(4)
        for j in range(4)
    )


def test_l2_hand_values():
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    assert distances.l2(black, white) == 1.0
    assert distances.l2(black, black) == 0.0
    half = black.copy()
    half[:4] = 255
    assert distances.l2(black, half) == pytest.approx(0.5**0.5, abs=1e-7)
    assert distances.tiled_l2(black, half) == 1.0  # one tile is all that differs, and it differs wholly


@pytest.mark.parametrize("side", [4, 8, 20])
def test_distances_equal_the_reference(side):
    a, b = pictures(side, side, 3), pictures(side, side, 3)
    assert distances.l2(a, b) == pytest.approx(reference_l2(a, b), abs=1e-6)
    assert distances.tiled_l2(a, b) == pytest.approx(reference_tiled_l2(a, b), abs=1e-6)


def test_tiles_are_compared_in_the_same_position():
    a = np.zeros((8, 8, 3), np.uint8)
    b = a.copy()
    a[:2, :2], b[6:, 6:] = 255, 255
    assert distances.tiled_l2(a, b) == 1.0


def test_tiled_is_at_least_plain():
    a, b = pictures(10, 16, 16, 3), pictures(10, 16, 16, 3)
    assert (distances.tiled_l2(a, b) >= distances.l2(a, b) - 1e-12).all()


def test_distances_do_not_depend_on_the_batch():
    a, b = pictures(16, 16, 3), pictures(9, 16, 16, 3)
    together = distances.l2(a, b)
    assert together.tolist() == [float(distances.l2(a, other)) for other in b]


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 4)])
def test_shapes_that_are_no_picture(shape):
    with pytest.raises(ValueError, match=r"expected \(…, height, width, 3\)"):
        distances.l2(np.zeros(shape), np.zeros(shape))


def test_sides_that_cannot_be_tiled():
    with pytest.raises(ValueError, match="10 × 10 pixels can't be cut"):
        distances.tiled_l2(pictures(10, 10, 3), pictures(10, 10, 3))


def test_pairwise_equals_one_by_one():
    batch = pictures(6, 16, 16, 3)
    batch[3] = batch[1]
    batch[4] = np.clip(batch[1].astype(int) + 1, 0, 255)  # a grey level away: cancellation would hide it
    tensor = torch.from_numpy(batch).permute(0, 3, 1, 2)
    pairwise = distances.pairwise_tiled_l2(tensor).numpy()
    expected = np.array([[distances.tiled_l2(a, b) for b in batch] for a in batch])
    np.testing.assert_allclose(pairwise, expected, atol=1e-6)
    assert pairwise[1, 3] == 0.0
    assert (pairwise == pairwise.T).all()
    order = [4, 2, 0, 5, 1, 3]
    np.testing.assert_allclose(distances.pairwise_tiled_l2(tensor[order]).numpy(), pairwise[np.ix_(order, order)], atol=1e-6)


def test_pairwise_hand_values():
    black = torch.zeros((1, 3, 8, 8), dtype=torch.uint8)
    half = black.clone()
    half[:, :, :4] = 255
    one = black.clone()
    one[:, 1, 2, 3] = 51  # one of the twelve values of one tile, by 0.2
    found = distances.pairwise_tiled_l2(torch.cat([black, half, one]))
    expected = torch.tensor([[0, 1, 0.2 / 12**0.5], [1, 0, 1], [0.2 / 12**0.5, 1, 0]])
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


def test_pairwise_extremes_overflow_nothing():
    """Tiles of which every value is 0 or 255, wider than a strip: the largest products that there are."""
    black = torch.zeros((1, 3, 4, 32768), dtype=torch.uint8)
    found = distances.pairwise_tiled_l2(torch.cat([black, black + 255, black, black + 255]))
    assert found.tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]


@pytest.mark.parametrize("multiplies_bytes", [False, True])
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    height=st.sampled_from([4, 8, 12, 40]),
    width=st.sampled_from([4, 8, 20]),
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([1, 3, 256]),
)
def test_pairwise_equals_float64(multiplies_bytes, n, height, width, seed, spread):
    random = np.random.default_rng(seed)
    low = int(random.integers(0, 257 - spread))
    batch = random.integers(low, low + spread, (n, height, width, 3)).astype(np.uint8)
    batch[n // 2] = batch[0]
    # The processor's own product where it has one; else both ways are the same one.
    with pytest.MonkeyPatch.context() as patch:
        if not multiplies_bytes:
            patch.setattr(distances, "_multiplies_bytes", lambda: False)
        found = distances.pairwise_tiled_l2(torch.from_numpy(batch).permute(0, 3, 1, 2)).numpy()
    tiles = batch.reshape(n, 4, height // 4, 4, width // 4, 3).astype(np.float64) / 255
    expected = np.sqrt(np.square(tiles[:, None] - tiles[None]).mean(axis=(3, 5, 6))).max(axis=(2, 3))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=0)  # of float64, rounded once
    assert (found == found.T).all() and (found.diagonal() == 0).all() and found[0, n // 2] == 0


def test_pairwise_takes_bytes_alone():
    with pytest.raises(ValueError, match=r"pictures of torch\.float32, expected uint8"):
        distances.pairwise_tiled_l2(torch.zeros((2, 3, 8, 8)))


def test_pairwise_does_not_depend_on_batch_order_layout_or_strip(monkeypatch):
    batch = torch.from_numpy(pictures(20, 48, 48, 3)).permute(0, 3, 1, 2)
    batch[7] = batch[3]
    batch[8] = batch[3] ^ 1  # a level up or down everywhere
    found = distances.pairwise_tiled_l2(batch)
    assert found[3, 7] == 0 and found[3, 8] == np.float32(1 / 255)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(distances.pairwise_tiled_l2(batch[order]), found[order][:, order])
    assert torch.equal(distances.pairwise_tiled_l2(batch[3:9]), found[3:9, 3:9])
    assert torch.equal(distances.pairwise_tiled_l2(batch.contiguous()), found)
    monkeypatch.setattr(distances, "STRIP", 100)  # a few lines of a tile at a time
    assert torch.equal(distances.pairwise_tiled_l2(batch), found)


def test_pairwise_of_one_picture_and_of_none():
    assert distances.pairwise_tiled_l2(torch.zeros((1, 3, 8, 8), dtype=torch.uint8)).tolist() == [[0]]
    assert distances.pairwise_tiled_l2(torch.zeros((0, 3, 8, 8), dtype=torch.uint8)).shape == (0, 0)


@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE", "DEFAULT"])
def test_processors_that_multiply_bytes_wrongly_are_not_asked(isa):
    """Without the instructions for it oneDNN cuts sums off at 16 bits."""
    code = """if True:
        import torch
        from transforms.kernels.distances import pairwise_tiled_l2
        black = torch.zeros((32, 3, 32, 32), dtype=torch.uint8)
        print(pairwise_tiled_l2(torch.cat([black, black + 255])).unique().tolist())
    """
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[0.0, 1.0]"


def test_adaptive_hand_values_and_limits():
    assert distances.adaptive_l2(0.1, np.array([0.2, 0.4])) == pytest.approx(0.1 / (0.5 * 0.3))
    assert distances.adaptive_l2(0.1, np.array([0.2, 0.4]), alpha=1.0) == pytest.approx(0.1 / 0.3)
    assert np.isnan(distances.adaptive_l2(0.1, np.array([])))
    assert distances.adaptive_l2(0.0, np.zeros(3)) == 0.0
    assert distances.adaptive_l2(0.1, np.zeros(3)) == float("inf")


def square_best_crop(generation: np.ndarray, picture: np.ndarray) -> tuple[int, np.ndarray]:
    """What the nearest crop was when generations had to be square: the shorter side resized to theirs, every offset tried."""
    side, (height, width) = generation.shape[0], picture.shape[:2]
    scale = side / min(height, width)
    if scale != 1:
        size = (max(side, round(width * scale)), max(side, round(height * scale)))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    tall = picture.shape[0] > side
    crops = [picture[i : i + side] if tall else picture[:, i : i + side] for i in range(max(picture.shape[:2]) - side + 1)]
    squares = [int(np.square(crop.astype(int) - generation).sum()) for crop in crops]
    return int(np.argmin(squares)), crops[int(np.argmin(squares))]


@settings(max_examples=60, deadline=None)
@given(side=st.integers(1, 40), height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 2**32 - 1))
def test_of_square_generations_the_crop_is_what_it_always_was(side, height, width, seed):
    random = np.random.default_rng(seed)
    generation, picture = (random.integers(0, 256, (*size, 3), np.uint8) for size in ((side, side), (height, width)))
    offset, crop = distances.best_crop(generation, picture)
    expected_offset, expected = square_best_crop(generation, picture)
    assert offset == expected_offset and (crop == expected).all()
    resized = distances.covering(picture, Frame(side, side))
    middle = (max(resized.shape[:2]) - side) // 2
    square = resized[middle : middle + side] if resized.shape[0] > side else resized[:, middle : middle + side]
    assert (distances.central_crop(picture, Frame(side, side)) == square).all()


FRAMES = [(16, 16), (24, 16), (12, 20), (40, 4)]
"""Height and width of generations: square, upright, wide, and a strip."""


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("shape", [(16, 16), (16, 29), (31, 16), (40, 60), (9, 12), (36, 24), (24, 40), (50, 10)])
def test_best_crop_equals_trying_every_crop(frame, shape):
    height, width = frame
    generation, picture = pictures(height, width, 3), pictures(*shape, 3)
    offset, crop = distances.best_crop(generation, picture)
    # The picture keeps its shape, one of its sides is the generation's, and the other is no shorter.
    scale = max(height / shape[0], width / shape[1])
    size = round(shape[1] * scale), round(shape[0] * scale)
    resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    assert size[0] >= width and size[1] >= height and (size[0] == width or size[1] == height)
    places = [(i, j) for i in range(size[1] - height + 1) for j in range(size[0] - width + 1)]
    tried = [reference_l2(generation, resized[i : i + height, j : j + width]) for i, j in places]
    best = int(np.argmin(tried))
    assert crop.shape == (height, width, 3) and (offset, 0) in (places[best], places[best][::-1])
    assert float(distances.l2(generation, crop)) == pytest.approx(tried[best], abs=1e-6)
    assert distances.aligned_l2(generation, picture) == pytest.approx(tried[best], abs=1e-6)


def test_best_crop_finds_what_was_cut_out():
    picture = pictures(16, 50, 3)
    for width in (16, 10, 30):
        offset, crop = distances.best_crop(picture[:, 19 : 19 + width], picture)
        assert (offset, float(distances.l2(crop, picture[:, 19 : 19 + width]))) == (19, 0.0)
    upright = np.ascontiguousarray(picture.transpose(1, 0, 2))
    assert distances.best_crop(upright[7:40], upright)[0] == 7


def test_a_picture_on_its_side_lies_where_the_other_does():
    generation, picture = pictures(24, 16, 3), pictures(50, 44, 3)
    turned = [np.ascontiguousarray(one.transpose(1, 0, 2)) for one in (generation, picture)]
    (offset, crop), (turned_offset, turned_crop) = distances.best_crop(generation, picture), distances.best_crop(*turned)
    # Pillow resizes along and across in another order, and rounds between.
    assert turned_offset == offset and np.abs(crop.astype(int) - turned_crop.transpose(1, 0, 2)).max() <= 1


def test_a_picture_of_the_generations_shape_is_not_cropped():
    for height, width in [(1216, 832), (608, 416), (2432, 1664)]:
        assert distances.covering(np.zeros((height, width, 3), np.uint8), Frame(304, 208)).shape == (304, 208, 3)
    # What ingest makes of it (shorter side 512) is off by under half a pixel.
    assert distances.covering(np.zeros((748, 512, 3), np.uint8), Frame(1216, 832)).shape == (1216, 832, 3)


@pytest.mark.parametrize(
    ("frame", "shape"),
    [
        ((16, 16), (16, 17)), ((16, 16), (16, 300)), ((16, 16), (300, 16)), ((1, 1), (1, 50)), ((7, 7), (7, 1000)),
        ((64, 64), (64, 257)), ((24, 16), (24, 100)), ((24, 16), (90, 16)), ((4, 60), (4, 400)), ((4, 60), (50, 60)),
        ((60, 4), (60, 50)), ((12, 20), (12, 20)),
    ],
)  # fmt: skip
def test_every_offset_is_exact(frame, shape):
    picture, generation = pictures(*shape, 3), pictures(*frame, 3)
    number = max(shape[0] - frame[0], shape[1] - frame[1]) + 1
    crops = [distances.crop_at(picture, Frame(*frame), offset).astype(int) for offset in range(number)]
    assert {one.shape for one in crops} == {(*frame, 3)}
    expected = [int(np.square(one - generation.astype(int)).sum()) for one in crops]
    assert distances.squared_at_offsets(generation, picture).tolist() == expected


def test_of_crops_that_are_as_near_the_first_is_taken():
    for level in (0, 3, 255):
        plain = np.full((16, 400, 3), level, np.uint8)
        assert distances.best_crop(pictures(16, 16, 3), plain)[0] == 0


def test_a_banner_takes_as_long_as_its_longer_side_and_no_more_memory():
    square = pictures(256, 256, 3)
    taken = {}
    for ratio in (4, 16):
        picture = pictures(256, 256 * ratio, 3)
        tracemalloc.start()
        begun = time.process_time()
        distances.best_crop(square, picture)
        taken[ratio] = time.process_time() - begun, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # Four times as long, with some room for a busy machine.
    assert taken[16][0] < 12 * taken[4][0]
    # The longer side as 16-bit numbers twice, and what a piece takes.
    assert taken[16][1] < 64 << 20


def test_a_wide_frame_over_an_upright_picture_takes_no_more_memory():
    generation, picture = pictures(128, 512, 3), pictures(128 * 40, 512, 3)
    tracemalloc.start()
    distances.best_crop(generation, picture)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_what_is_longer_than_any_picture_is_compared_with_nothing():
    assert distances.covering(np.zeros((1, 100, 3), np.uint8), Frame(2, 2)).shape == (2, 200, 3)
    with pytest.raises(ValueError, match="65500 x 1 pixels, more than 100 : 1"):
        distances.covering(np.zeros((1, 65_500, 3), np.uint8), Frame(512, 512))
    # The limit goes by the frame too: this one would be 200 times as long.
    assert distances.covering(np.zeros((8, 400, 3), np.uint8), Frame(16, 8)).shape == (16, 800, 3)
    with pytest.raises(ValueError, match="400 x 8 pixels over a frame of 4 x 16 are more than 100 times as long"):
        distances.covering(np.zeros((8, 400, 3), np.uint8), Frame(16, 4))


def test_what_does_not_cover_a_generation_has_no_crops():
    for shape in ((15, 20), (30, 19), (40, 40)):
        with pytest.raises(ValueError, match="doesn't cover one of 20 x 16"):
            distances.squared_at_offsets(pictures(16, 20, 3), pictures(*shape, 3))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (60, 40), (40, 60), (47, 31), (16, 50), (50, 16), (1216, 832)])
@pytest.mark.parametrize("blocks", [20, 8])
def test_block_means_equal_the_reference(height, width, blocks):
    picture = pictures(height, width, 3)
    rows, columns = min(height, blocks), min(width, blocks)
    # Every pixel many times over, so that a block is a whole number of them.
    fine = picture.repeat(rows, axis=0).repeat(columns, axis=1) if height * width < 10_000 else None
    found = distances.block_means(picture, blocks)
    assert found.shape == (rows, columns, 3) and found.dtype == np.float32
    if fine is not None:
        means = fine.reshape(rows, height, columns, width, 3).mean(axis=(1, 3), dtype=np.float64) / 255
        assert np.abs(found - means).max() < 1e-6
    assert (distances.block_means(picture[None].repeat(2, axis=0), blocks) == found).all()
    other = pictures(height, width, 3)
    assert distances.coarse_l2(picture, other) <= distances.l2(picture, other) + 1e-7
