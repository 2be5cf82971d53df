"""What verdicts go by: the limits of a copy, from decoys, and of what was seen, from controls. docs/calibration.md has why."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.kernels import calibration
from transforms.kernels.copies import Distances, limits
from transforms.kernels.rates import clopper_pearson_upper

DISTANCES = ("l2", "tiled_l2", "adaptive_l2")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a user asks of the verdicts.

    Attributes:
        delta: the paper's: extracted from this l2 down.
        copy_l2: a copy lies within this l2.
        copy_ratio: and nearer to its image than this share of the distance to any other.
        max_false_positive_rate: chance that what isn't so is called seen, or a copy.
        calibrated_distance: the distance that ``seen`` goes by, one of DISTANCES.
    """

    delta: float
    copy_l2: float
    copy_ratio: float
    max_false_positive_rate: float
    calibrated_distance: str


def copy_calibration_row(decoys: pa.Table, asked: Asked) -> dict[str, Any]:
    """The row of ``copy_calibration``, without the audit's columns.

    Args:
        decoys: the audit's table ``decoys``; those that are held out or left out say how near a new picture comes.
        asked: the largest distance, the ratio, and the rate that is asked for.
    """

    def of(kind: str) -> Distances:
        mine = decoys.filter(pc.equal(decoys["kind"], kind))
        return Distances(mine["coarse_l2"].to_numpy(), pc.fill_null(mine["coarse_ratio"], np.inf).to_numpy())

    held_out, left_out = of("held_out"), of("left_out")
    found = limits(held_out, left_out, most_l2=asked.delta, ratio=asked.copy_ratio, rate=asked.max_false_positive_rate)
    return {
        "l2_limit": asked.copy_l2,
        "coarse_l2_limit": found.coarse_l2,
        "coarse_ratio_limit": found.coarse_ratio,
        "max_false_positive_rate": asked.max_false_positive_rate,
        "n_held_out": len(held_out.coarse_l2),
        "n_left_out": len(left_out.coarse_l2),
        "promised_rate": found.promised_rate,
    }


def calibration_rows(matches: pa.Table, prompts: pa.Table, asked: Asked) -> list[dict[str, Any]]:
    """Rows of ``calibration``, without the audit's columns: one per distance.

    Prompts and controls alike are judged by the generation that lies nearest to their own image in l2, whatever else was
    stored, and by that generation's distance.

    Args:
        matches: the audit's table ``matches``.
        prompts: the audit's table ``prompts``.
        asked: the rate that is asked for, and the distance that is chosen.
    """
    by_id = {row["prompt_id"]: row for row in prompts.to_pylist()}
    controls = [row for row in by_id.values() if row["origin"] == "control"]
    tried = [row for row in by_id.values() if row["origin"] != "control"]
    tested = [row for row in tried if row["group_id"] is not None]
    rows = matches.to_pylist()
    own = {row["prompt_id"]: row for row in rows if row["relation"] == "own" and row["nearest"]}
    near = [row for row in rows if row["relation"] == "neighbour" and row["role"] == "control"]
    per_prompt = max((row["images_requested"] for row in tried), default=1)
    per_control = min((row["images_requested"] for row in controls), default=per_prompt)
    result = []
    for distance in DISTANCES:
        nearest = {prompt: row[distance] for prompt, row in own.items() if row[distance] is not None}
        null = np.array([nearest[row["prompt_id"]] for row in controls if row["prompt_id"] in nearest])
        found = np.array([nearest[row["prompt_id"]] for row in tested if row["prompt_id"] in nearest])
        limit = calibration.threshold(
            null,
            max_false_positive_rate=asked.max_false_positive_rate,
            generations_per_prompt=per_prompt,
            generations_per_control=per_control,
        )
        called = None if limit.value is None else int((found < limit.value).sum())
        discovery = None
        if called and limit.promised_rate is not None:
            discovery = calibration.false_discovery_rate(limit.promised_rate, len(tested), called)
        upper = None
        if limit.controls_called is not None:
            upper = clopper_pearson_upper(limit.controls_called, len(null))
        separation = calibration.separation(found, null)
        within = {prompt for prompt, row in own.items() if row["role"] == "control" and row["extracted"]}
        near_another = {row["prompt_id"] for row in near if row["extracted"]}
        result.append(
            {
                "distance": distance,
                "chosen": distance == asked.calibrated_distance,
                "max_false_positive_rate": asked.max_false_positive_rate,
                "n_controls": len(null),
                "generations_per_prompt": per_prompt,
                "generations_per_control": per_control,
                "threshold": limit.value,
                "promised_rate": limit.promised_rate,
                "controls_called": limit.controls_called,
                "upper_bound": upper,
                "controls_within_delta": len(within),
                "controls_near_another_within_delta": len(near_another),
                "images_tested": len(tested),
                "images_called": called,
                "false_discovery_rate": discovery,
                "separation": None if np.isnan(separation) else separation,
            }
        )
    return result
