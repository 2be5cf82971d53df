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
from transforms.store.lake import Lake
from transforms.store.scan import ask, scan

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


def nearest_to_own(lake: Lake, match: str, generate: str) -> tuple[pa.Table | None, dict[str, Any]]:
    """What ``calibration_rows`` goes by, of one audit: its first two arguments."""
    query = """
        SELECT prompts.origin, prompts.group_id IS NOT NULL AS has_group, matches.*
        FROM matches INNER JOIN prompts USING (prompt_id)
        WHERE relation = 'own' AND nearest OR relation = 'neighbour' AND matches.role = 'control' AND extracted
    """
    batches = list(scan(lake, {"matches": match, "prompts": generate}, query))
    (prompts,) = ask(lake, {"prompts": generate}, """
        SELECT count(*) FILTER (origin <> 'control' AND group_id IS NOT NULL) AS images_tested,
            max(images_requested) FILTER (origin <> 'control') AS per_prompt,
            min(images_requested) FILTER (origin = 'control') AS per_control
        FROM prompts
    """)  # fmt: skip
    return pa.Table.from_batches(batches) if batches else None, prompts


def calibration_rows(own: pa.Table | None, prompts: dict[str, Any], asked: Asked) -> list[dict[str, Any]]:
    """Rows of ``calibration``, without the audit's columns: one per distance.

    Prompts and controls alike are judged by the generation that lies nearest to their own image in l2, whatever else was
    stored, and by that generation's distance.

    Args:
        own: rows of ``matches`` with origin and has_group of their prompts, in any order: those of each prompt's nearest
            generation against its own image, and those of controls within delta of another control. None: there is none.
        prompts: images_tested, prompts with a group of their own; per_prompt and per_control, generations of each, None where
            there are no such prompts.
        asked: the rate that is asked for, and the distance that is chosen.
    """

    def column(table: pa.Table, name: str) -> np.ndarray:
        return table[name].to_numpy(zero_copy_only=False)

    nothing = np.empty(0)
    is_own = np.empty(0, bool) if own is None else (column(own, "relation") == "own") & column(own, "nearest")
    is_control = np.empty(0, bool) if own is None else column(own, "origin") == "control"
    extracted = np.empty(0, bool) if own is None else column(own, "extracted")
    tested = np.empty(0, bool) if own is None else ~is_control & column(own, "has_group")
    near_another = 0
    if own is not None:
        others = own.filter(pa.array(~(column(own, "relation") == "own") & extracted))
        near_another = len(others["prompt_id"].unique())
    per_prompt = prompts["per_prompt"] or 1
    per_control = prompts["per_control"] or per_prompt
    result = []
    for distance in DISTANCES:
        values = nothing if own is None else column(own, distance).astype(np.float64)
        known = is_own & ~np.isnan(values)
        null, found = values[known & is_control], values[known & tested]
        limit = calibration.threshold(
            null,
            max_false_positive_rate=asked.max_false_positive_rate,
            generations_per_prompt=per_prompt,
            generations_per_control=per_control,
        )
        called = None if limit.value is None else int((found < limit.value).sum())
        discovery = None
        if called and limit.promised_rate is not None:
            discovery = calibration.false_discovery_rate(limit.promised_rate, prompts["images_tested"], called)
        upper = None
        if limit.controls_called is not None:
            upper = clopper_pearson_upper(limit.controls_called, len(null))
        separation = calibration.separation(found, null)
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
                "controls_within_delta": int((is_own & is_control & extracted).sum()),
                "controls_near_another_within_delta": near_another,
                "images_tested": prompts["images_tested"],
                "images_called": called,
                "false_discovery_rate": discovery,
                "separation": None if np.isnan(separation) else separation,
            }
        )
    return result
