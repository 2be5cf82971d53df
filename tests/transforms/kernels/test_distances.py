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

from transforms.kernels import distances

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


@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 29, 3), (31, 16, 3), (40, 60, 3), (9, 12, 3)])
def test_best_crop_equals_trying_every_crop(shape):
    generation, picture = pictures(16, 16, 3), pictures(*shape)
    offset, crop = distances.best_crop(generation, picture)
    resized = distances.resize_shorter_side(picture, 16)
    tall = resized.shape[0] > resized.shape[1]
    crops = [resized[i : i + 16] if tall else resized[:, i : i + 16] for i in range(max(resized.shape[:2]) - 16 + 1)]
    tried = [reference_l2(generation, other) for other in crops]
    assert crop.shape == (16, 16, 3)
    assert float(distances.l2(generation, crop)) == pytest.approx(min(tried), abs=1e-6)
    assert offset == int(np.argmin(tried))


def test_best_crop_finds_what_was_cut_out():
    picture = pictures(16, 50, 3)
    offset, crop = distances.best_crop(picture[:, 21:37], picture)
    assert (offset, float(distances.l2(crop, picture[:, 21:37]))) == (21, 0.0)


@pytest.mark.parametrize("shape", [(16, 17), (16, 300), (300, 16), (1, 50), (7, 1000), (64, 257)])
def test_every_offset_is_exact(shape):
    picture = pictures(*shape, 3)
    side = min(shape)
    square = pictures(side, side, 3)[::-1].copy()
    squares = [distances.square_at(picture, offset).astype(int) for offset in range(max(shape) - side + 1)]
    expected = [int(np.square(one - square.astype(int)).sum()) for one in squares]
    assert distances.squared_at_offsets(square, picture).tolist() == expected


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


def test_what_is_longer_than_any_picture_is_compared_with_nothing():
    assert distances.resize_shorter_side(np.zeros((1, 100, 3), np.uint8), 2).shape == (2, 200, 3)
    with pytest.raises(ValueError, match="65500 x 1 pixels, more than 100 : 1"):
        distances.resize_shorter_side(np.zeros((1, 65_500, 3), np.uint8), 512)


def test_a_generation_that_is_not_square():
    with pytest.raises(ValueError, match="expected a square one"):
        distances.best_crop(pictures(16, 20, 3), pictures(16, 16, 3))
