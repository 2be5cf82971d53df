"""The distances of the paper, and the alignment that has to come before them.

Pictures are (H, W, 3); ``uint8`` arrays mean 0 to 255 and are scaled to [0, 1] here, floating ones are in [0, 1] already.
Distances are dimensionless, in [0, 1].

Source: Carlini et al. 2023, "Extracting Training Data from Diffusion Models": l2 and its scaling in section 4.2, tiles in
section 4.2.2, the adaptive distance in section 5.1.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

TILES = 4
"""Tiles along each side: 16 in all, 128 × 128 pixels each for the paper's 512 × 512."""

COARSE = 20
"""Blocks along each side of a coarse picture. What an autoencoder can't draw is finer, and says nothing of memory.

Of 12 to 64 blocks, 20 told copies from half-learned logos best, and photographs as well as any from 16 on: docs/calibration.md.
"""

MAX_ASPECT_RATIO = 100.0
"""A picture whose sides differ by more than this is compared with nothing, nor one that is so many times longer or higher than
the frame that it is to cover: at that size it would take gigabytes. ``ingest --max_aspect_ratio`` keeps narrower ones out."""


class Frame(NamedTuple):
    """The size of a generation, in pixels: what a training image is resized and cropped to."""

    height: int
    width: int


def frame_of(picture: np.ndarray) -> Frame:
    """The frame that a picture, (H, W, 3), fills."""
    return Frame(picture.shape[0], picture.shape[1])


def scaled(pictures: np.ndarray) -> np.ndarray:
    """Pictures as float32 in [0, 1]; those that are so already, themselves. ValueError unless the last dimension holds three
    colours.
    """
    if pictures.ndim < 3 or pictures.shape[-1] != 3:
        raise ValueError(f"pictures have shape {pictures.shape}, expected (…, height, width, 3)")
    return (
        pictures.astype(np.float32) / np.float32(255) if pictures.dtype == np.uint8 else pictures.astype(np.float32, copy=False)
    )


def l2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root of the mean squared difference over height, width and colours.

    Args:
        a, b: (…, H, W, 3), broadcast against each other.

    Returns:
        (…) float64 in [0, 1].
    """
    difference = scaled(a) - scaled(b)
    return np.sqrt(np.mean(np.square(difference, dtype=np.float64), axis=(-3, -2, -1)))


def squared_bytes(a: np.ndarray, b: np.ndarray) -> float:
    """The sum of the squared differences of two pictures, (H, W, 3) uint8 each: a whole number, without rounding.

    Threads may do this side by side. l2 is the root of its share of H · W · 3, over 255.
    """
    import cv2

    return cv2.norm(a, b, cv2.NORM_L2SQR)


def _tiled(pictures: np.ndarray) -> np.ndarray:
    """(…, H, W, 3) → (…, 16, H/4, W/4, 3). ValueError unless both sides divide by four."""
    *leading, height, width, colours = pictures.shape
    if height % TILES or width % TILES:
        raise ValueError(f"pictures of {height} × {width} pixels can't be cut into {TILES} × {TILES} equal tiles")
    cut = pictures.reshape(*leading, TILES, height // TILES, TILES, width // TILES, colours)
    cut = np.moveaxis(cut, -4, -3)
    return cut.reshape(*leading, TILES * TILES, height // TILES, width // TILES, colours)


def tiled_l2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest l2 among the 16 tiles in the same position (paper, section 4.2.2).

    The maximum keeps two pictures apart that share nothing but a background.

    Args:
        a, b: (…, H, W, 3) with H and W divisible by four, broadcast against each other.

    Returns:
        (…) float64 in [0, 1].
    """
    return l2(_tiled(scaled(a)), _tiled(scaled(b))).max(axis=-1)


def pairwise_tiled_l2(pictures: torch.Tensor) -> torch.Tensor:
    """Tiled l2 between all pairs of one prompt's generations, on the device where they are.

    The squared distance is |a|² + |b|² − 2 a·b, with the bytes of the pictures for a and b, whose products are exact: so
    nothing cancels where two pictures are near, and neither their order nor the rest of the batch nor the device changes a
    digit.

    Beside the pictures it holds a strip of a tile and some (n, n): for 500 pictures of 256 × 256 under a quarter of what they
    take.

    Args:
        pictures: (n, 3, H, W) uint8, in any layout; H and W divisible by four.

    Returns:
        (n, n) float32, symmetric, zeros on the diagonal.
    """
    import torch

    n, colours, height, width = pictures.shape
    if pictures.dtype != torch.uint8:
        raise ValueError(f"pictures of {pictures.dtype}, expected uint8")
    if height % TILES or width % TILES:
        raise ValueError(f"pictures of {height} × {width} pixels can't be cut into {TILES} × {TILES} equal tiles")
    tile_height, tile_width = height // TILES, width // TILES
    rows = max(1, STRIP // (colours * tile_width))
    largest = torch.zeros((n, n), dtype=torch.float64, device=pictures.device)
    for band in pictures.split(tile_height, dim=2):
        for tile in band.split(tile_width, dim=3):
            gram = torch.zeros_like(largest)
            for strip in tile.split(rows, dim=2):
                # Less 128, which moves all of them alike and changes no difference: signed bytes.
                signed = torch.bitwise_xor(strip, 128).flatten(1).view(torch.int8)
                gram += _products(signed)
            norms = gram.diagonal().clone()
            torch.maximum(largest, (norms[:, None] + norms[None, :]).sub_(gram, alpha=2), out=largest)
    return largest.div_(colours * tile_height * tile_width).sqrt_().div_(255).float()


STRIP = 3072
"""Bytes of each picture that are multiplied at once: a quarter of a tile of 256 × 256 pixels. More take memory and win little.

An int32 holds the sum of 2¹⁷ products of two bytes, of 2¹⁴ each at most: a strip is one line of a tile where that is longer.
"""

FLOAT_STRIP = 1024
"""Products of two bytes, of 2¹⁴ each at most, whose sum float32 holds without rounding: it has 24 bits."""


def _products(signed: torch.Tensor) -> torch.Tensor:
    """The products of all pairs of rows without any rounding: (n, k) int8 → (n, n) integers, as int32 or float64."""
    import torch

    if signed.device.type == "cpu" and _multiplies_bytes():
        return torch._int_mm(signed, signed.T)
    products = torch.zeros((len(signed), len(signed)), dtype=torch.float64, device=signed.device)
    for part in signed.split(FLOAT_STRIP, dim=1):
        # Integers below 256 stay what they are in TensorFloat-32 and bfloat16 too, should the process allow those.
        products += part.float() @ part.float().T
    return products


@functools.cache
def _multiplies_bytes() -> bool:
    """Whether this processor multiplies signed bytes exactly, and ten times faster than floats.

    Older ones add two products in 16 bits, where the largest are cut off, so oneDNN's result is wrong there; others have no
    instruction for it, and torch falls back to a loop. The look at a product is for those whose instructions the environment
    takes away (``ONEDNN_MAX_CPU_ISA``).
    """
    import torch

    able = torch.cpu.get_capabilities()
    if not (able.get("amx_int8") or able.get("avx512_vnni")):
        return False
    extremes = torch.tensor([-128, 127], dtype=torch.int8).repeat_interleave(32)[:, None].expand(64, 256).contiguous()
    return torch.equal(torch._int_mm(extremes, extremes.T).double(), extremes.double() @ extremes.double().T)


def block_means(pictures: np.ndarray, blocks: int) -> np.ndarray:
    """Each picture as ``blocks`` × ``blocks`` means over equal parts of it; along a side that is as short already, its pixels.

    Two pictures are never nearer to each other than their block means are: a mean of squares is no less than the square of
    the mean.

    Args:
        pictures: (…, H, W, 3).
        blocks: along each side, whichever is longer; a pixel that lies in two of them counts in both, by its share.

    Returns:
        (…, min(H, blocks), min(W, blocks), 3) float32 in [0, 1].
    """
    values = scaled(pictures)
    height, width = values.shape[-3:-1]
    if height <= blocks and width <= blocks:
        return values
    rows, columns = min(height, blocks), min(width, blocks)
    if height % rows == 0 and width % columns == 0:
        cut = values.reshape(*values.shape[:-3], rows, height // rows, columns, width // columns, 3)
        return cut.mean(axis=(-4, -2), dtype=np.float32)
    down = _block_weights(height, rows) @ values.reshape(*values.shape[:-2], width * 3)
    return _block_weights(width, columns) @ down.reshape(*down.shape[:-1], width, 3)


@functools.cache
def _block_weights(side: int, blocks: int) -> np.ndarray:
    """(blocks, side) float32: the share of each pixel in the mean of each block."""
    edges = np.arange(blocks + 1) * side / blocks
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(min=0) * blocks / side).astype(np.float32)


def coarse_l2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """l2 of the pictures' ``COARSE`` × ``COARSE`` block means: at most l2, and the same for pictures that are no larger.

    Args:
        a, b: (…, H, W, 3), broadcast against each other.

    Returns:
        (…) float64 in [0, 1].
    """
    return l2(block_means(a, COARSE), block_means(b, COARSE))


def adaptive_l2(distance: float, others: np.ndarray, alpha: float = 0.5) -> float:
    """l2(x̂, x) / (alpha · mean of l2(x̂, y) over the nearest others y) (paper, section 5.1).

    Below 1 means that x is nearer than a share ``alpha`` of what is usual around x̂: a plain sky is near to many skies,
    and so to none in particular.

    Args:
        distance: l2 between the generation and the candidate.
        others: (m,) l2 between the generation and its nearest other training images; the paper takes 50.
        alpha: 0.5 in the paper.

    Returns:
        ≥ 0; NaN where there are no others; infinity where the others are all at distance 0 and the candidate is not.
    """
    if len(others) == 0:
        return float("nan")
    scale = alpha * float(np.mean(others, dtype=np.float64))
    if scale == 0.0:
        return 0.0 if distance == 0.0 else float("inf")
    return float(distance) / scale


def covering(picture: np.ndarray, frame: Frame) -> np.ndarray:
    """The picture as small as it can be with the frame inside, its shape kept; (H, W, 3) uint8 → uint8.

    One of its sides is then the frame's, and the other at least as long. Of a square frame: its shorter side is the frame's.

    Antialiased bilinear (Pillow): the common resize of text-to-image training code. ValueError for a picture whose sides
    differ by more than ``MAX_ASPECT_RATIO``, or that would be so many times as long as the frame.
    """
    from PIL import Image

    height, width = picture.shape[:2]
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"{width} x {height} pixels, more than {MAX_ASPECT_RATIO:g} : 1")
    along, across = height * frame.width, width * frame.height
    if max(along, across) > MAX_ASPECT_RATIO * min(along, across):
        raise ValueError(
            f"{width} x {height} pixels over a frame of {frame.width} x {frame.height} are more than {MAX_ASPECT_RATIO:g} "
            "times as long"
        )
    scale = frame.width / width if along >= across else frame.height / height
    if scale == 1:
        return picture
    size = (max(frame.width, round(width * scale)), max(frame.height, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def crop_at(picture: np.ndarray, frame: Frame, offset: int) -> np.ndarray:
    """The part of a picture that covers a frame, (H, W, 3), which begins ``offset`` pixels along the side that is longer than
    the frame's."""
    height, width = frame
    return picture[offset : offset + height] if picture.shape[0] > height else picture[:, offset : offset + width]


def room(picture: np.ndarray, frame: Frame) -> int:
    """How many pixels a frame can slide along a picture, (H, W, 3), that covers it."""
    return max(picture.shape[0] - frame.height, picture.shape[1] - frame.width)


def central_crop(picture: np.ndarray, frame: Frame) -> np.ndarray:
    """(H, W, 3) uint8 → (height, width, 3): the middle of the picture, as training code of text-to-image models crops it."""
    whole = covering(picture, frame)
    return np.ascontiguousarray(crop_at(whole, frame, room(whole, frame) // 2))


def best_crop(generation: np.ndarray, picture: np.ndarray) -> tuple[int, np.ndarray]:
    """Where a generation lies in a training image of any shape. Nothing is stretched.

    The image is resized so that it just covers the generation; every crop along the side that is then longer is
    tried at once: the squared distance is |x̂|² + |crop|² − 2 x̂·crop, whose last term is a correlation. Of crops that are as
    near the first is taken.

    Args:
        generation: (h, w, 3) uint8.
        picture: (H, W, 3) uint8, any size.

    Returns:
        (offset in pixels of the nearest crop along the longer side, that crop: (h, w, 3) uint8).
    """
    frame = frame_of(generation)
    whole = covering(picture, frame)
    if room(whole, frame) == 0:
        return 0, whole
    offset = int(np.argmin(squared_at_offsets(generation, whole)))
    return offset, crop_at(whole, frame, offset)


def squared_at_offsets(generation: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """``squared_bytes`` of a generation and each crop of a picture that covers it: exact.

    Time grows with the side along which it slides, and memory is 32 MB, a copy of the picture, and a few numbers for each pixel
    of that side: it is cut into pieces that overlap, and their lines are added up some at a time.

    Args:
        generation: (h, w, 3) uint8.
        picture: (H, W, 3) uint8 with H = h and W ≥ w, or W = w and H ≥ h.

    Returns:
        (length of the side along which it slides - that of the generation + 1,) int64.
    """
    from scipy import fft

    (height, width), frame = picture.shape[:2], frame_of(generation)
    if min(height - frame.height, width - frame.width) != 0:
        raise ValueError(f"a picture of {width} x {height} pixels doesn't cover one of {frame.width} x {frame.height}")
    image, model = (_lines(one, height > frame.height) for one in (picture, generation))
    length, side = image.shape[1], model.shape[1]
    piece = fft.next_fast_len(min(length, 4 * side), real=True)
    step = piece - side + 1
    starts = range(0, length - side + 1, step)
    spectra = np.zeros((len(starts), piece // 2 + 1), np.complex128)
    energy, own = np.zeros(length + 1), 0.0
    at_once = max(1, SPECTRUM_BYTES // (16 * piece))
    for first in range(0, len(model), at_once):
        # Less 128, which changes no difference and keeps the sums small.
        lines = model[first : first + at_once].astype(np.float64) - 128
        own += float(np.einsum("lx,lx->", lines, lines))
        turned = np.conj(fft.rfft(lines, piece))
        for number, start in enumerate(starts):
            lines = image[first : first + at_once, start : start + piece].astype(np.float64) - 128
            spectra[number] += np.einsum("lf,lf->f", fft.rfft(lines, piece), turned)
            fresh = lines if number == len(starts) - 1 else lines[:, :step]
            energy[start + 1 : start + 1 + fresh.shape[1]] += np.einsum("lx,lx->x", fresh, fresh)
    products = fft.irfft(spectra, piece)[:, :step].ravel()[: length - side + 1]
    sums = np.cumsum(energy)
    # Sums of whole numbers are whole: what the transform adds by rounding is far below a half.
    return np.rint(sums[side:] - sums[:-side] + own - 2 * np.rint(products)).astype(np.int64)


def _lines(picture: np.ndarray, along_height: bool) -> np.ndarray:
    """(H, W, 3) uint8 → (lines, length), the length along the chosen side."""
    turned = picture.transpose(1, 2, 0) if along_height else picture.transpose(0, 2, 1)
    return np.ascontiguousarray(turned).reshape(-1, turned.shape[2])


SPECTRUM_BYTES = 8 << 20
"""Of a piece's lines, while they are multiplied."""


def aligned_l2(generation: np.ndarray, picture: np.ndarray) -> float:
    """l2 between a generation, (h, w, 3) uint8, and where it lies best in a training image, (H, W, 3) uint8."""
    return float(l2(generation, best_crop(generation, picture)[1]))
