"""Whether two pictures are one picture, by their pixels: the second opinion where CLIP isn't sure.

CLIP calls two photographs of one product duplicates; their pixels don't agree however they are laid over each other. Those of
a copy do, once it is known what was cut off. So the tiled l2 of the paper (``distances.tiled_l2``) is minimised over what
may have been cut off either picture, coarse to fine: every combination of long steps on tiny pictures, then shorter steps
on larger pictures around the best of them. Two pictures that are far apart on the way are left there.

What is found: other formats and sizes, stretched pictures, crops by up to ``MOST_CUT`` of either picture or of both (two
crops of one picture are laid over each other where they overlap), and the mirror image of all these, since CLIP calls it a
copy too: that costs one more product of small matrices; of the 17 of 4,000 different photographs that came within 0.1,
6 did so mirrored.

What isn't: other colours, more than a faint watermark, a crop that left less. And a picture without contrast is near to
every other one of its colour, as in any l2.

The matrices are so small that threads of numpy's BLAS only wait for each other: held to one thread (threadpoolctl) a pair takes
1 to 6 ms, else several times as long on a busy machine. Spread the pairs over processes instead.

Source of the distance: Carlini et al. 2023, "Extracting Training Data from Diffusion Models", section 4.2.2.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from transforms.kernels.distances import TILES

STEPS = 80
"""Cuts are whole numbers of this part of a side: 1.25%, less than half a pixel of the largest side that is compared."""

MOST_CUT = 18
"""Most that a picture may lose along one axis, both ends together, in steps: 22.5%."""

PIXEL_DISTANCE = 0.08
"""Two pictures are one where their distance is at most this.

Of 3,000 planted copies of photographs and logos that were re-encoded, resized, mirrored or cropped by 5 to 20%, 99.9% are
nearer; the median is 0.016, the farthest at 0.101. Of 4,000 pairs of photographs that CLIP takes for alike (cosine over 0.97,
no copies) five are nearer, and three of those are one photograph that the set has twice; of the 409 pairs of logos over
cosine 0.7 none is, they begin at 0.143. Recoloured copies (median 0.15) and watermarked ones (0.14) are not told from
others. These are the pictures of ``benchmarks/duplicates_peers.py``: nothing was held out.
"""

CUT_PENALTY = 1e-5
"""What a step of a cut must gain in the coarse search: of alignments equal but for rounding, the one that cuts least."""

Ends = tuple[int, int]
"""What is cut off at the two ends of one axis, in steps. Of an alignment: above zero off the first picture, below zero off
the second; never off both, since then neither shows it."""


class Level(NamedTuple):
    """One level of the search.

    Attributes:
        side: pixels along both sides at which pictures are compared.
        step: length of a step, in ``STEPS`` of a side: less than a pixel, so that the next level can mend what is left.
        kept: alignments that the next level looks at.
        far: pictures farther apart than this are left here. Of the copies that ``PIXEL_DISTANCE`` speaks of, the farthest
            was at 0.207 on the coarse level and at 0.174 on the next.
    """

    side: int
    step: int
    kept: int
    far: float


COARSE = Level(8, 8, 6, 0.22)

FINER = (Level(16, 4, 3, 0.2), Level(32, 2, 1, 0.15), Level(32, 1, 1, 1.0))
"""32 pixels at last: more would show what an encoder did rather than the picture."""


class Way(NamedTuple):
    """One alignment and the distance at it; the nearest sorts first."""

    distance: float
    mirrored: bool
    rows: Ends
    columns: Ends


class Alignment(NamedTuple):
    """Where two pictures agree best.

    Attributes:
        distance: the tiled l2 there, 0 to 1. Where it's far over ``PIXEL_DISTANCE``, that of a coarser level.
        mirrored: the second picture was mirrored, left to right.
        window_a: (top, bottom, left, right) of the part of the first picture that was compared, 0 to 1 of its sides.
        window_b: the same of the second one, as it is after it was mirrored.
    """

    distance: float
    mirrored: bool
    window_a: tuple[float, float, float, float]
    window_b: tuple[float, float, float, float]


class PreparedPicture(NamedTuple):
    """One picture, ready to be aligned with others.

    Attributes:
        tiles: (2, 16, crops, 12) float32 in [0, 1]: the tiles of every coarse crop of the picture and of its mirror image.
        squares: (2, 16, crops) float32: their squared norms.
        finer: side → (2 · side, 2 · side, 3) float32 in [0, 1], for the levels after the coarse one.
    """

    tiles: np.ndarray
    squares: np.ndarray
    finer: dict[int, np.ndarray]


def aligned_tiled_l2(a: np.ndarray, b: np.ndarray) -> Alignment:
    """The smallest tiled l2 over crops of either picture, and where it is.

    Both are stretched to a square first: a crop changes the shape too, so a shape says nothing. Which picture is the first
    doesn't change the distance by more than rounding.

    Args:
        a, b: (H, W, 3) uint8, each of any size. ValueError for anything else.
    """
    return align(prepare(a), prepare(b))


def prepare(picture: np.ndarray) -> PreparedPicture:
    """What ``align`` takes of a picture, in under a millisecond; worth keeping where it is compared with several.

    Args:
        picture: (H, W, 3) uint8, any size. ValueError for anything else.
    """
    from PIL import Image

    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"a picture of {picture.dtype} {picture.shape}, expected uint8 (height, width, 3)")
    image = Image.fromarray(picture)

    def square(side: int) -> np.ndarray:
        # Twice the side that is compared: what a window shows is then averaged, not blown up.
        return np.asarray(image.resize((2 * side, 2 * side), Image.Resampling.BILINEAR), np.float32) / np.float32(255)

    small, cuts = square(COARSE.side), _coarse_cuts()
    views = [_tiles(_crops(view, cuts, cuts)) for view in (small, small[:, ::-1])]
    tiles = np.ascontiguousarray(np.stack(views).transpose(0, 3, 4, 1, 2, 5)).reshape(2, TILES**2, len(cuts) ** 2, -1)
    return PreparedPicture(
        tiles, np.einsum("vtcx,vtcx->vtc", tiles, tiles), {level.side: square(level.side) for level in FINER}
    )


def align(a: PreparedPicture, b: PreparedPicture) -> Alignment:
    """As ``aligned_tiled_l2``, of pictures that are prepared."""
    ways = _coarse_ways(a, b)
    far = COARSE.far
    for level in FINER:
        if ways[0].distance > far:
            break
        if level is FINER[-1]:
            # So that the result is never over the distance of the whole pictures.
            ways.append(Way(1.0, False, (0, 0), (0, 0)))
        ways = sorted({_nearest(a.finer[level.side], b.finer[level.side], way, level.step) for way in ways})[: level.kept]
        far = level.far
    distance, mirrored, rows, columns = ways[0]
    return Alignment(distance, mirrored, _window(rows, columns, 1), _window(rows, columns, -1))


def _window(rows: Ends, columns: Ends, sign: int) -> tuple[float, float, float, float]:
    (top, bottom), (left, right) = _cut(rows, sign), _cut(columns, sign)
    return top / STEPS, 1 - bottom / STEPS, left / STEPS, 1 - right / STEPS


def _cut(ends: Ends, sign: int) -> Ends:
    """What an alignment cuts off the first picture (sign 1) or off the second (sign -1), at both ends of an axis."""
    return max(0, sign * ends[0]), max(0, sign * ends[1])


# -- the coarse level -------------------------------------------------------------------------------------------------


@functools.cache
def _coarse_cuts() -> tuple[Ends, ...]:
    """What one picture may lose along one axis, in long steps."""
    steps = range(0, MOST_CUT + 1, COARSE.step)
    return tuple((first, last) for first in steps for last in steps if first + last <= MOST_CUT)


@functools.cache
def _coarse_penalty() -> np.ndarray:
    """(crops, crops) float32, to be added to squared distances: infinity where both pictures lose the same end."""
    cuts = np.array(_coarse_cuts())
    lost = cuts.sum(axis=1)
    axis = np.where(np.minimum(cuts[:, None], cuts).any(axis=-1), np.inf, CUT_PENALTY * (lost[:, None] + lost))
    return (axis[:, None, :, None] + axis[None, :, None, :]).reshape(len(cuts) ** 2, -1).astype(np.float32)


def _coarse_ways(a: PreparedPicture, b: PreparedPicture) -> list[Way]:
    """The best combinations of a crop of each, nearest first; one alone where even that is far."""
    values = a.tiles.shape[-1]
    found = np.stack(
        [
            # |x - y|² = |x|² + |y|² - 2 x·y, in each of the 16 tiles; the largest tile counts.
            (a.squares[0][:, :, None] + squares[:, None, :] - 2 * a.tiles[0] @ tiles.transpose(0, 2, 1)).max(axis=0)
            for tiles, squares in zip(b.tiles, b.squares, strict=True)
        ]
    )
    found = np.maximum(found, 0) / values + _coarse_penalty()
    kept = 1 if found.min() > COARSE.far**2 else COARSE.kept
    cuts = _coarse_cuts()
    ways = []
    for place in np.argpartition(found, kept, axis=None)[:kept]:
        mirrored, i, j = np.unravel_index(place, found.shape)
        of_a, of_b = (tuple(cuts[one] for one in divmod(int(crop), len(cuts))) for crop in (i, j))
        rows, columns = ((x[0] - y[0], x[1] - y[1]) for x, y in zip(of_a, of_b, strict=True))
        ways.append(Way(float(np.sqrt(found[mirrored, i, j])), bool(mirrored), rows, columns))
    return sorted(ways)


# -- the levels after it ----------------------------------------------------------------------------------------------


def _nearest(a: np.ndarray, b: np.ndarray, way: Way, step: int) -> Way:
    """The best within one step of ``way``: first of the rows' two ends, then of the columns'.

    Args:
        a, b: (2s, 2s, 3) float32, the whole pictures.
    """
    b = b[:, ::-1] if way.mirrored else b
    options = _around(way.rows, step)
    rows = options[int(_distances(a, b, options, (way.columns,)).argmin())]
    options = _around(way.columns, step)
    found = _distances(a, b, (rows,), options)[0]
    best = int(found.argmin())
    return Way(float(found[best]), way.mirrored, rows, options[best])


@functools.cache
def _around(ends: Ends, step: int) -> tuple[Ends, ...]:
    """``ends`` and one step to each side of each, those first that cut least."""
    moves = (0, -step, step)
    options = [(ends[0] + first, ends[1] + last) for first in moves for last in moves]
    allowed = [option for option in options if all(sum(_cut(option, sign)) <= MOST_CUT for sign in (1, -1))]
    return tuple(sorted(allowed, key=lambda option: abs(option[0]) + abs(option[1])))


def _distances(a: np.ndarray, b: np.ndarray, rows: tuple[Ends, ...], columns: tuple[Ends, ...]) -> np.ndarray:
    """(2s, 2s, 3) twice → (m, n) tiled l2 for every one of m alignments of rows with every one of n of columns."""
    first, second = (
        _crops(picture, *(tuple(_cut(ends, sign) for ends in axis) for axis in (rows, columns)))
        for picture, sign in ((a, 1), (b, -1))
    )
    difference = _tiles(first - second)
    squares = np.einsum("mntux,mntux->mntu", difference, difference)
    return np.sqrt(squares.max(axis=(2, 3)) / difference.shape[-1])


# -- crops ------------------------------------------------------------------------------------------------------------


def _crops(picture: np.ndarray, rows: tuple[Ends, ...], columns: tuple[Ends, ...]) -> np.ndarray:
    """(2s, 2s, 3) → (m, s, 3, n, s) float32: all m cuts of the rows with all n of the columns, resized to side s."""
    size = picture.shape[0]
    side = size // 2
    lines = (_samplings(rows, side) @ picture.reshape(size, -1)).reshape(-1, size, 3).transpose(0, 2, 1).reshape(-1, size)
    return (lines @ _samplings(columns, side).T).reshape(len(rows), side, 3, len(columns), side)


def _tiles(crops: np.ndarray) -> np.ndarray:
    """(m, s, 3, n, s) → (m, n, 4, 4, values of a tile)."""
    m, side, colours, n, _ = crops.shape
    tile = side // TILES
    cut = crops.reshape(m, TILES, tile * colours, n, TILES, tile)
    return cut.transpose(0, 3, 1, 4, 2, 5).reshape(m, n, TILES, TILES, -1)


@functools.lru_cache(maxsize=4096)
def _samplings(cuts: tuple[Ends, ...], side: int) -> np.ndarray:
    """(m · s, 2s) float32: the rows of weights of all m resizes, one below the other."""
    return np.concatenate([_sampling(cut, side) for cut in cuts])


@functools.cache
def _sampling(cut: Ends, side: int) -> np.ndarray:
    """(s, 2s) float32: the weights of an antialiased linear resize of what is left of 2s pixels to s."""
    size, (first, last) = 2 * side, cut
    width = size * (STEPS - first - last) / STEPS / side
    centres = size * first / STEPS + (np.arange(side) + 0.5) * width
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centres[:, None]) / width)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
