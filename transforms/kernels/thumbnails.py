"""Thumbnails: pictures of 8 × 8 pixels, each the mean of its block.

Two pictures are never nearer to each other in l2 than their thumbnails are, so thumbnails say where a picture may have come
from, and rule out the rest.

Beside CLIP's vector, as one vector (``joined``), they say what a picture shows and how it looks.

A CLIP finds photographs alike that merely show the same kind of thing, most of all one that has seen few photographs; a
thumbnail tells those apart, and is far off where a picture was cropped or mirrored, where CLIP isn't. The two as one vector
of unit norm, whose dot product is the weighted mean of both cosines, can be searched like any other: with cells and sketches,
by night, beside its kind.

Measured on planted copies: docs/duplicates_by_change.md.
"""

from __future__ import annotations

import numpy as np

SIDE = 8
"""Pixels along both sides: as coarse as the perceptual hashes' pictures; recall at equal precision is no better with 16."""

LENGTH = SIDE * SIDE * 3


def unit_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails as vectors whose dot product is their correlation: brighter or darker, paler or richer makes no difference.

    Args:
        thumbnails: (n, 192) or (n, 8, 8, 3) uint8.

    Returns:
        (n, 192) float32 of unit norm and mean zero. A picture of a single gray has no such direction: it gets the one that is
        orthogonal to all others, so that all of them are alike, and like nothing else.
    """
    vectors = thumbnails.reshape(len(thumbnails), LENGTH).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    # Means of bytes are exact up to rounding; one level of difference in one number has a norm of 0.997.
    flat = norms < 0.5
    vectors[flat], norms[flat] = 1, np.sqrt(np.float32(LENGTH))
    return vectors / norms[:, None]


def joined(vectors: np.ndarray, thumbnails: np.ndarray, share: float) -> np.ndarray:
    """(n, d + 192) float32, unit norm: cosines are ``(1 - share)`` times those of CLIP plus ``share`` times the thumbnails'.

    Args:
        vectors: (n, d) float32, unit norm.
        thumbnails: (n, 192) uint8.
        share: of the thumbnail; over 0, up to 1.
    """
    parts = np.sqrt(np.float32(1 - share)) * vectors, np.sqrt(np.float32(share)) * unit_thumbnails(thumbnails)
    return np.concatenate(parts, axis=1)


def lifted(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails as vectors of unit norm whose angle is small where their l2 is: what cells can be made of.

    Flat ones have no direction of their own, so they get one: all of them share one number more.

    Args:
        thumbnails: (n, 192) float32 in 0 to 1.

    Returns:
        (n, 193) float32.
    """
    vectors = np.empty((len(thumbnails), LENGTH + 1), np.float32)
    vectors[:, :LENGTH] = thumbnails - np.float32(0.5)
    vectors[:, LENGTH] = np.float32(0.25 * LENGTH**0.5)  # about the norm of a photograph's
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def square_windows(thumbnails: np.ndarray, aspects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as generations see them.

    A picture that isn't square is in its thumbnail squeezed to one; its square crops along the longer side are taken from
    there, ``WINDOWS`` of them for a picture twice as long as high, so their distances are near those of the crops, not exact.
    The whole squeezed thumbnail is one more: that of a generation which has the picture's own shape is squeezed likewise. Which
    shapes the generations will have isn't known here, since one index serves all audits.

    Args:
        thumbnails: (n, 192) uint8.
        aspects: (n,) width over height of the pictures.

    Returns:
        (w,) int64 rows of the pictures, and (w, 192) float32 in 0 to 1: one for each window, 4 · ``WINDOWS`` + 1 a picture at
        most.
    """
    tiny = thumbnails.reshape(-1, SIDE, SIDE, 3).astype(np.float32) / np.float32(255)
    squares = np.flatnonzero(aspects == 1)
    rows, windows = [squares], [tiny[squares]]
    for one in np.flatnonzero(aspects != 1).tolist():
        made = _square_windows(tiny[one], float(aspects[one]))
        rows.append(np.full(len(made), one))
        windows.append(made)
    row, window = np.concatenate(rows), np.concatenate(windows)
    order = np.argsort(row, kind="stable")
    return row[order], np.ascontiguousarray(window[order].reshape(-1, LENGTH))


WINDOWS = 5
"""Square crops that are looked at in a picture whose longer side is twice the shorter one; of others in proportion."""


def _square_windows(tiny: np.ndarray, aspect: float) -> np.ndarray:
    """(8, 8, 3) of a picture of this width over height → (w, 8, 8, 3): its square crops along the longer side, and it."""
    wide = aspect if aspect >= 1 else 1 / aspect
    number = min(1 + round((wide - 1) * (WINDOWS - 1)), 4 * WINDOWS)
    if number == 1:
        return tiny[None]
    along = tiny if aspect >= 1 else tiny.transpose(1, 0, 2)
    share = SIDE / wide  # of the squeezed columns, under one crop
    crops = []
    for start in np.linspace(0, SIDE - share, number):
        edges = start + np.arange(SIDE + 1) * share / SIDE
        overlap = np.minimum(edges[1:, None], np.arange(SIDE) + 1) - np.maximum(edges[:-1, None], np.arange(SIDE))
        weights = (overlap.clip(min=0) * SIDE / share).astype(np.float32)
        crops.append(np.einsum("ij,rjc->ric", weights, along))
    made = np.stack(crops)
    return np.concatenate([made if aspect >= 1 else made.transpose(0, 2, 1, 3), tiny[None]])
