"""The nearest of a set, for many queries at once: one matrix product, in float32, by faiss."""

from __future__ import annotations

import numpy as np

NOTHING = -1
"""In place of a code, where a set has fewer than were asked for."""


def nearest(
    codes: np.ndarray, vectors: np.ndarray, queries: np.ndarray, most: int, *, by_angle: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The ``most`` nearest codes to each query, each once, the nearest first and equals by code.

    Of more equals at the end than there is room for, which ones are there is faiss's matter, and the same each time.

    Args:
        codes: (m,) int64 ≥ 0; one that is there several times (the windows of a picture) counts by the nearest.
        vectors: (m, d) float32; of unit norm with ``by_angle``.
        queries: (q, d) float32, likewise.
        most: how many.
        by_angle: by the cosine, else by l2.

    Returns:
        (q, most) int64, ``NOTHING`` at the end where there are fewer; (q, most) float32 distances, rising and infinite there:
        1 - cosine, or the root of the mean squared difference.
    """
    import faiss

    found = np.full((len(queries), most), NOTHING, np.int64)
    distances = np.full((len(queries), most), np.inf, np.float32)
    if len(codes) == 0 or len(queries) == 0:
        return found, distances
    ascending = np.sort(codes)
    # A set is mostly one of different codes, and then nothing need be counted.
    windows = int(np.unique(codes, return_counts=True)[1].max()) if (ascending[1:] == ascending[:-1]).any() else 1
    fetched = min(len(codes), most * windows)
    metric = faiss.METRIC_INNER_PRODUCT if by_angle else faiss.METRIC_L2
    values, rows = faiss.knn(np.ascontiguousarray(queries), np.ascontiguousarray(vectors), fetched, metric=metric)
    far = 1 - values if by_angle else np.sqrt(values.clip(min=0) / vectors.shape[1])
    mine = codes[rows]
    order = np.lexsort((mine, far), axis=1)
    mine, far = np.take_along_axis(mine, order, axis=1), np.take_along_axis(far, order, axis=1)
    if windows > 1:
        # Of a code's several windows the nearest, which comes first.
        by_code = np.argsort(mine, axis=1, kind="stable")
        ascending = np.take_along_axis(mine, by_code, axis=1)
        first = np.ones_like(ascending, bool)
        first[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
        keep = np.empty_like(first)
        np.put_along_axis(keep, by_code, first, axis=1)
        # Those that stay, in their order, before those that go.
        stay = np.argsort(~keep, axis=1, kind="stable")
        counts = keep.sum(axis=1)
        mine, far = np.take_along_axis(mine, stay, axis=1), np.take_along_axis(far, stay, axis=1)
        beyond = np.arange(mine.shape[1])[None, :] >= counts[:, None]
        mine, far = np.where(beyond, NOTHING, mine), np.where(beyond, np.inf, far)
    width = min(most, mine.shape[1])
    found[:, :width], distances[:, :width] = mine[:, :width], far[:, :width]
    return found, distances
