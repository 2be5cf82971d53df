"""Which pictures can't be near, by their thumbnails alone.

The mean of a block is never further apart in two pictures than the pixels of that block are, in the mean square (Jensen). So
the l2 of two pictures of one size is at least that of their block means; and that of a square picture and a crop of a wider
one is at least what those blocks of the thumbnail say that lie inside the crop. ``SLACK`` is what rounding and resizing may
add.
"""

from __future__ import annotations

import math

import numpy as np

from transforms.kernels.thumbnails import SIDE

SLACK = 0.02
"""More than thumbnails of stored pictures, in bytes, are off from the block means of the same pictures resized: see the
test.
"""

ROUNDING = 1.5 / 255
"""The same where nothing is resized and blocks are whole pixels: a thumbnail is rounded twice, along and across."""

STRIP = 1024
"""Pictures whose products are held at once: what a processor has at hand."""


def band_sums(squares: np.ndarray) -> np.ndarray:
    """What ``within_reach`` needs to know of square pictures.

    Args:
        squares: (t, S, S, 3) uint8.

    Returns:
        (t, 2, SIDE, S + 1, 3) float32: of both ways to lay the longer side (along the width, along the height) the means of
        ``SIDE`` bands across it, summed up along it.
    """
    t, side = squares.shape[:2]
    pixels = squares.astype(np.float32) / np.float32(255)
    made = np.zeros((t, 2, SIDE, side + 1, 3), np.float32)
    for way, laid in enumerate((pixels, pixels.transpose(0, 2, 1, 3))):
        across = _box_sums(np.cumsum(laid, axis=1, dtype=np.float64), np.arange(SIDE + 1) * side / SIDE) / (side / SIDE)
        made[:, way, :, 1:] = np.cumsum(across, axis=2)
    return made


def _box_sums(sums: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(t, n, …) running sums along axis 1, and (b + 1,) edges in 0 … n → (t, b, …) sums between the edges."""
    padded = np.concatenate([np.zeros_like(sums[:, :1]), sums], axis=1)
    low = np.minimum(np.floor(edges).astype(np.int64), sums.shape[1])
    high = np.minimum(low + 1, sums.shape[1])
    share = (edges - low).reshape(1, -1, *([1] * (sums.ndim - 2)))
    at = padded[:, low] * (1 - share) + padded[:, high] * share
    return at[:, 1:] - at[:, :-1]


def within_reach(
    sums: np.ndarray, thumbnails: np.ndarray, width: int, height: int, reach: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which square pictures may lie near a square crop of which others; for all that aren't named it is certain that none does.

    Args:
        sums: ``band_sums`` of t squares of S × S pixels.
        thumbnails: (n, 192) uint8, of pictures that all have
        width, height: pixels.
        reach: (t,) l2 that is near, to the crops of the picture resized so that its shorter side is S; may be infinite.

    Returns:
        (p,) int64 squares and (p,) int64 pictures of the pairs, by square and picture.
    """
    side = sums.shape[3] - 1
    wide = width >= height
    longer = max(side, round(side * max(width, height) / min(width, height)))
    tiny = thumbnails.reshape(-1, SIDE, SIDE, 3).astype(np.float32) / np.float32(255)
    # Laid so that axis 2 runs along the longer side.
    laid = tiny if wide else tiny.transpose(0, 2, 1, 3)
    mine = sums[:, 0 if wide else 1]
    column = longer / SIDE
    # A block is column / side of the crop along, and 1 / SIDE of it across. No l2 is over 1.
    slack = ROUNDING if width == height == side and side % SIDE == 0 else SLACK
    limits = (np.square(np.minimum(reach, 1) + slack) * (side * SIDE * 3 / column)).astype(np.float32)
    pairs = np.zeros((len(sums), len(tiny)), bool)
    for offset in range(longer - side + 1):
        first = math.ceil(offset / column - 1e-9)
        last = math.floor((offset + side) / column + 1e-9)
        if last <= first:
            pairs[:] = True
            break
        edges = np.clip(np.arange(first, last + 1) * column - offset, 0, side)
        low = np.minimum(np.floor(edges).astype(np.int64), side)
        share = (edges - low).astype(np.float32)[None, None, :, None]
        at = mine[:, :, low] * (1 - share) + mine[:, :, np.minimum(low + 1, side)] * share
        means = ((at[:, :, 1:] - at[:, :, :-1]) / np.float32(column)).reshape(len(sums), -1)
        theirs = laid[:, :, first:last].reshape(len(tiny), -1)
        # |a|² + |b|² - 2 a·b less the limit, as one product.
        left = np.column_stack([means, np.square(means).sum(1) - limits, np.ones(len(means), np.float32)])
        right = np.column_stack([-2 * theirs, np.ones(len(theirs), np.float32), np.square(theirs).sum(1)])
        for start in range(0, len(right), STRIP):
            pairs[:, start : start + STRIP] |= left @ right[start : start + STRIP].T <= 0
    squares, pictures = np.nonzero(pairs)
    return squares, pictures
