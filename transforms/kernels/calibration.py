"""A threshold for "extracted" that pictures which the model never saw seldom pass.

The argument is in ``docs/calibration.md``. In short: a control is tried as a training image is, so under the null (the
model has not seen x) the distance between x and the nearest generation of its own caption is exchangeable with those of
the controls. The rank of a distance among the controls' is then a conformal p-value (Vovk et al. 2005; for detection
Bates et al. 2023): p = (1 + controls at or below) / (controls + 1).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Threshold:
    """What the controls allow.

    Attributes:
        value: call an image extracted where its smallest distance is below this; None where the controls are too few
            for the rate that was asked for.
        promised_rate: the bound on the chance that a control-like image is called; None with ``value``.
        controls_called: controls below the value; None with ``value``.
    """

    value: float | None
    promised_rate: float | None
    controls_called: int | None


def threshold(
    control_distances: np.ndarray,
    *,
    max_false_positive_rate: float,
    generations_per_prompt: int,
    generations_per_control: int,
) -> Threshold:
    """The largest threshold that keeps the false-positive rate per image.

    What is compared is the distance of the nearest generation, nearest in l2. Where a control gets m generations and a prompt
    n > m, the nearest of n is nearer than the nearest of m. ceil(n / m) blocks of m cover the n generations (they may overlap),
    the nearest of all is the nearest of its block, and each block's is distributed as a control's; so by the union bound the
    chance is at most ceil(n / m) times that of a control. No independence is assumed. Where n < m, a control's lies nearer than
    a prompt's.

    Args:
        control_distances: (c,) for each control the distance of the nearest of its m generations to the control itself.
        max_false_positive_rate: per image, in (0, 1).
        generations_per_prompt: n ≥ 1.
        generations_per_control: m ≥ 1.

    Returns:
        With blocks = ceil(n / m): the k-th smallest control distance, k = floor(rate / blocks · (c + 1)); a new
        control-like image lies strictly below it with a probability of at most blocks · k / (c + 1).
    """
    distances = np.sort(np.asarray(control_distances, dtype=np.float64))
    if np.isnan(distances).any():
        raise ValueError("control distances hold NaN; leave out controls that have no distance, and count them out")
    if not 0 < max_false_positive_rate < 1:
        raise ValueError(f"max_false_positive_rate is {max_false_positive_rate}, expected between 0 and 1")
    blocks = math.ceil(generations_per_prompt / generations_per_control)
    count = len(distances)
    # The small term forgives rounding where rate · (c + 1) / blocks is a whole number.
    rank = math.floor(max_false_positive_rate / blocks * (count + 1) + 1e-9)
    if rank < 1:
        return Threshold(None, None, None)
    value = float(distances[min(rank, count) - 1])
    return Threshold(value, blocks * rank / (count + 1), int((distances < value).sum()))


def false_discovery_rate(promised_rate: float, tested: int, called: int) -> float:
    """Share of false ones among the images called, estimated with pi0 = 1 (Storey 2002, "A direct approach").

    Args:
        promised_rate: chance that a control-like image is called.
        tested: training images that were tried.
        called: of those, the ones that were called.

    Returns:
        min(1, promised_rate · tested / called); NaN where none was called. Taking every tested image for a possible
        false one (pi0 = 1) makes it an overestimate.
    """
    return min(1.0, promised_rate * tested / called) if called else float("nan")


def separation(training: np.ndarray, controls: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a tried image lies nearer than a control (ties count half).

    Args:
        training: (t,) distances of tried training images, each of its nearest generation.
        controls: (c,) those of the controls.

    Returns:
        In [0, 1]; 0.5 says that the distance can't tell them apart. NaN where one side is empty.
    """
    from scipy.stats import mannwhitneyu

    if len(training) == 0 or len(controls) == 0:
        return float("nan")
    return float(mannwhitneyu(controls, training).statistic / (len(training) * len(controls)))
