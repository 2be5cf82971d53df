"""Is a generation a copy: nearer to one training image, absolutely and against every other, than new pictures ever are?

What is compared are coarse pictures (``distances.coarse_l2``): a few block means along each side, in which what an autoencoder
can't draw doesn't count. The argument, the search for this statistic, and what it is worth: ``docs/calibration.md``.

Sources: the ratio to the nearest other training image is Yoon et al. 2023's and Gu et al. 2023's, who ask for 1/3 of plain l2;
the null of held-out pictures is that of data-copying tests (Meehan et al. 2020); thresholds by rank: Vovk et al. 2005.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

GU_RATIO = 1 / 3
"""The rule of Yoon and Gu: memorised where the l2 to the nearest training image is under this share of that to the next."""

MAX_TWINS = 8
"""So many other images may stand so near to one that they are one memory with it."""

BLUR = 4
"""Blocks along each side of what is left of a picture in a decoy: its colours and layout, and a blob for its shape."""


def ratio(distance: float, nearest_other: float | None) -> float | None:
    """How far a picture lies from one training image, in terms of how far it lies from the nearest other one.

    Returns:
        ≥ 0; None where there is no other one; 1 where both distances are 0.
    """
    if nearest_other is None:
        return None
    if nearest_other == 0.0:
        return 1.0 if distance == 0.0 else math.inf
    return distance / nearest_other


def twins(distances: Sequence[float], within: float, ratio: float) -> int:
    """How many of an image's neighbours are its twins: a crop, another colour, the same thing again.

    An image and its twins stand apart from all others: the last of them is nearer than ``ratio`` times the next neighbour.
    A twin would make a copy's ratio 1 however exact the copy, so it doesn't count as another image. In a crowd of like
    pictures (skies) none stands apart, and none is a twin.

    Args:
        distances: from the image to its neighbours outside its group, rising.
        within: a twin is not farther than this.
        ratio: of the last twin's distance to the next neighbour's.

    Returns:
        0 to ``MAX_TWINS``: so many of the first are twins. The last neighbour that is known is none.
    """
    for count in range(min(MAX_TWINS, len(distances) - 1), 0, -1):
        if distances[count - 1] <= within and distances[count - 1] < ratio * distances[count]:
            return count
    return 0


SELDOM = 0.05
"""Share of new pictures that come nearer to a training image than a copy must lie.

Those that do have the ratio against them; what is promised doesn't go by this. At 1% a corpus in which a few pictures are
nearly alike takes real copies away from the others: docs/calibration.md."""


class CopyLimits(NamedTuple):
    """A picture is a copy of a training image where it lies below the first two, and not over the last.

    Attributes:
        coarse_l2: of the coarse distance.
        coarse_ratio: of the ratio.
        promised_rate: the bound on the chance that a new picture is called a copy; None where the held-out pictures are too
            few for the rate that was asked for.
        l2: of the distance between the pictures as they are.
    """

    coarse_l2: float
    coarse_ratio: float
    promised_rate: float | None
    l2: float = math.inf

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> CopyLimits:
        """Those that a row of ``copy_calibration`` tells."""
        return cls(row["coarse_l2_limit"], row["coarse_ratio_limit"], row["promised_rate"], row["l2_limit"])


class Distances(NamedTuple):
    """Of pictures that are no copies, (c,) each: the coarse l2 to the nearest training image, and its ratio to that of the
    nearest other one, infinite where there is none."""

    coarse_l2: np.ndarray
    coarse_ratio: np.ndarray


def limits(held_out: Distances, left_out: Distances, *, most_l2: float, ratio: float, rate: float) -> CopyLimits:
    """How near a copy must lie.

    The ratio's limit is given: it has a meaning of its own. The distance's is the smallest of three:

    - ``most_l2``;
    - what new pictures seldom come below: the k-th smallest distance, k = floor(``SELDOM`` · (c + 1)), of held-out pictures and
      of training images against all the others. Those under the ratio are left aside: they have a twin, and are as near to it
      as only twins are;
    - what the promise asks: the k-th smallest distance of the held-out pictures under the ratio, those over it counting as
      infinitely far. A new picture like the held-out ones is called with a probability of at most k / (c + 1), twins and all.

    Args:
        held_out: of pictures that no model saw.
        left_out: of training images, each as if it were not one.
        most_l2: the largest limit.
        ratio: a copy's ratio is below this.
        rate: per picture, in (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"the rate is {rate}, expected between 0 and 1")
    for some in (*held_out, *left_out):
        if np.isnan(some).any():
            raise ValueError("distances or ratios hold NaN; leave out what has none, and count it out")
    new = np.concatenate([some.coarse_l2[some.coarse_ratio >= ratio] for some in (held_out, left_out)])
    seldom, _ = _kth_smallest(new, SELDOM)
    like_copies = np.where(held_out.coarse_ratio < ratio, held_out.coarse_l2, np.inf)
    promised, rank = _kth_smallest(like_copies, rate)
    return CopyLimits(min(most_l2, seldom, promised), ratio, rank / (len(like_copies) + 1) if rank else None)


def _kth_smallest(values: np.ndarray, rate: float) -> tuple[float, int]:
    """(the k-th smallest, k) with k = floor(rate · (c + 1)); (infinity, 0) where there are too few."""
    # The small term forgives rounding where rate · (c + 1) is a whole number.
    rank = math.floor(rate * (len(values) + 1) + 1e-9)
    if rank < 1:
        return math.inf, 0
    return float(np.sort(values)[min(rank, len(values)) - 1]), rank


def is_copy(row: Mapping[str, Any], limits: CopyLimits) -> bool:
    """Whether a row of ``matches`` or ``decoys`` is a copy; ``sql/staging/training_matches.sql`` says the same."""
    apart = row["coarse_ratio"] is not None and row["coarse_ratio"] < limits.coarse_ratio
    return apart and row["coarse_l2"] < limits.coarse_l2 and row["l2"] <= limits.l2


def blurred(picture: np.ndarray) -> np.ndarray:
    """What a half-learned picture looks like: (H, W, 3) uint8 → the same size, from ``BLUR`` × ``BLUR`` block means alone."""
    from PIL import Image

    from transforms.kernels.distances import block_means

    means = np.rint(block_means(picture, BLUR) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(means).resize(picture.shape[1::-1], Image.Resampling.BILINEAR))
