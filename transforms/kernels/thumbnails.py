"""CLIP's vector and a thumbnail in one vector: what a picture shows, and how it looks.

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
