"""Which pictures can't be near, by their thumbnails alone.

The mean of a block is never further apart in two pictures than the pixels of that block are, in the mean square (Jensen). So
the l2 of two pictures of one size is at least that of their block means; and that of a generation and a crop of a picture is at
least what those blocks of the thumbnail say that lie inside the crop: all of them where both have one shape, since a thumbnail
is a squeezed picture. ``SLACK`` is what rounding and resizing may add.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from transforms.kernels.distances import Frame
from transforms.kernels.thumbnails import SIDE

SLACK = 0.03
"""More than thumbnails of stored pictures, in bytes, are off from the block means of the same pictures resized: 0.026 was the
most that was seen, of pictures under 64 pixels; see the test.
"""

ROUNDING = 1.5 / 255
"""The same where nothing is resized and blocks are whole pixels: a thumbnail is rounded twice, along and across."""

STRIP = 1024
"""Pictures whose products are held at once: what a processor has at hand."""


class BandSums(NamedTuple):
    """What ``within_reach`` needs to know of t generations of one size: of both ways that a training image may be longer than
    they are (along the width, along the height) the means of ``SIDE`` bands across it, summed up along it.

    Attributes:
        along_width: (t, SIDE, W + 1, 3) float32.
        along_height: (t, SIDE, H + 1, 3) float32.
    """

    along_width: np.ndarray
    along_height: np.ndarray

    def some(self, chosen: slice) -> BandSums:
        """Those of some of the generations."""
        return BandSums(self.along_width[chosen], self.along_height[chosen])

    @property
    def nbytes(self) -> int:
        return self.along_width.nbytes + self.along_height.nbytes


def band_sums(generations: np.ndarray) -> BandSums:
    """(t, H, W, 3) uint8 → what is known of them."""
    pixels = generations.astype(np.float32) / np.float32(255)
    return BandSums(_band_sums(pixels), _band_sums(pixels.transpose(0, 2, 1, 3)))


def _band_sums(laid: np.ndarray) -> np.ndarray:
    """(t, across, along, 3) float32 → (t, SIDE, along + 1, 3) float32."""
    t, across, along = laid.shape[:3]
    made = np.zeros((t, SIDE, along + 1, 3), np.float32)
    bands = _box_sums(np.cumsum(laid, axis=1, dtype=np.float64), np.arange(SIDE + 1) * across / SIDE) / (across / SIDE)
    made[:, :, 1:] = np.cumsum(bands, axis=2)
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
    sums: BandSums, thumbnails: np.ndarray, width: int, height: int, reach: np.ndarray, frame: Frame | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which generations may lie near a crop of which pictures; for all that aren't named it is certain that none does.

    Args:
        sums: ``band_sums`` of t generations.
        thumbnails: (n, 192) uint8, of pictures that all have
        width, height: pixels.
        reach: (t,) l2 that is near, to the crops of the picture where it just covers the generation; may be infinite.
        frame: size of the generations where ``sums`` are those of their block means, which are squeezed.

    Returns:
        (p,) int64 generations and (p,) int64 pictures of the pairs, by generation and picture.
    """
    compared = Frame(sums.along_height.shape[2] - 1, sums.along_width.shape[2] - 1)
    frame = frame or compared
    wide = width * frame.height >= height * frame.width
    mine = sums.along_width if wide else sums.along_height
    along, across = compared.width if wide else compared.height, compared.height if wide else compared.width
    longer, shorter = (width * frame.height, height * frame.width) if wide else (height * frame.width, width * frame.height)
    # Block means are squeezed: the picture has no whole number of their pixels, and its middle lies between two of them.
    length = along * longer / shorter if compared != frame else max(along, round(along * longer / shorter))
    slides = length - along
    offsets = np.unique([*range(int(slides) + 1), slides / 2, slides] if compared != frame else range(int(slides) + 1))
    tiny = thumbnails.reshape(-1, SIDE, SIDE, 3).astype(np.float32) / np.float32(255)
    # Laid so that axis 2 runs along the side that is longer than the generation's.
    laid = tiny if wide else tiny.transpose(0, 2, 1, 3)
    column = length / SIDE
    # A block is column / along of the crop along, and 1 / SIDE of it across. No l2 is over 1.
    whole_pixels = (height, width) == frame == compared and along % SIDE == across % SIDE == 0
    slack = ROUNDING if whole_pixels else SLACK
    limits = (np.square(np.minimum(reach, 1) + slack) * (along * SIDE * 3 / column)).astype(np.float32)
    pairs = np.zeros((len(mine), len(tiny)), bool)
    for offset in offsets.tolist():
        first = math.ceil(offset / column - 1e-9)
        last = math.floor((offset + along) / column + 1e-9)
        if last <= first:
            pairs[:] = True
            break
        edges = np.clip(np.arange(first, last + 1) * column - offset, 0, along)
        low = np.minimum(np.floor(edges).astype(np.int64), along)
        share = (edges - low).astype(np.float32)[None, None, :, None]
        at = mine[:, :, low] * (1 - share) + mine[:, :, np.minimum(low + 1, along)] * share
        means = ((at[:, :, 1:] - at[:, :, :-1]) / np.float32(column)).reshape(len(mine), -1)
        theirs = laid[:, :, first:last].reshape(len(tiny), -1)
        # |a|² + |b|² - 2 a·b less the limit, as one product.
        left = np.column_stack([means, np.square(means).sum(1) - limits, np.ones(len(means), np.float32)])
        right = np.column_stack([-2 * theirs, np.ones(len(theirs), np.float32), np.square(theirs).sum(1)])
        for start in range(0, len(right), STRIP):
            pairs[:, start : start + STRIP] |= left @ right[start : start + STRIP].T <= 0
    generations, pictures = np.nonzero(pairs)
    return generations, pictures
