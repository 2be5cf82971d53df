"""What one night says beside another: which prompts of the panel changed, and whether the later night is worse."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from transforms.errors import UserError
from transforms.kernels.comparisons import fisher, fisher_power, holm, mcnemar, mcnemar_power, smallest_change
from transforms.store.files import read_parquet
from transforms.store.lake import Lake
from transforms.store.lineage import check_lineage, lineage
from transforms.store.scan import ask
from transforms.store.tombstones import FORGOTTEN

CALIBRATED, COPIED = "extracted_calibrated", "copied"


class NightLimits(NamedTuple):
    """What the verdicts of a night go by: a prompt's nearest generation lies strictly below.

    Attributes:
        seen: of the distance that ``seen`` goes by; None where there is no such verdict.
        coarse_l2, coarse_ratio: of a copy.
        l2: of a copy, which may lie at it.
    """

    seen: float | None
    coarse_l2: float
    coarse_ratio: float
    l2: float = math.inf


class Half(NamedTuple):
    """The panel of a night, or its rotating prompts.

    Attributes:
        match: snapshot of its matches.
        rows: of ``verdicts``, without the prompts that lost something to ``eidetic forget``.
        limits: what its own verdicts went by.
    """

    match: str
    rows: list[dict[str, Any]]
    limits: NightLimits

    def extracted(self, verdict: str, limits: NightLimits) -> dict[str, bool]:
        """prompt_id → whether it gives back its image, by ``verdict`` (CALIBRATED or COPIED) and some night's limits."""

        def below(value: float | None, limit: float | None) -> bool:
            return value is not None and limit is not None and value < limit

        return {
            row["prompt_id"]: row["own_l2"] is not None
            and row["own_l2"] <= limits.l2
            and below(row["own_coarse_l2"], limits.coarse_l2)
            and below(row["own_coarse_ratio"], limits.coarse_ratio)
            and (verdict == COPIED or below(row["own_distance"], limits.seen))
            for row in self.rows
            if row["group_id"] is not None
        }


class Night(NamedTuple):
    """The verdicts of one night."""

    panel: Half
    rotating: Half

    @property
    def verdict(self) -> str:
        """The column to go by: copied and seen where there are controls enough, and else copied, which needs none."""
        return COPIED if self.panel.limits.seen is None or self.rotating.limits.seen is None else CALIBRATED


def history(lake: Lake) -> list[dict[str, Any]]:
    """Rows of ``history`` of all complete nights, by date."""
    nights = lake.manifests("nightly")
    for night in nights:
        lake.check_snapshot(night)
    rows = [row for night in nights for row in lake.read("history", night.snapshot_id).to_pylist()]
    return sorted(rows, key=lambda row: row["date"])


def up_to(lake: Lake, audit: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The nights up to the last that an audit was part of, and what changed in that one.

    Returns:
        rows of ``history`` by date, and rows of ``night_changes`` with prompt, url and caption as the lake has them now; both
        empty for an audit of no night.
    """
    nights = history(lake)
    dates = [row["date"] for row in nights if audit in (row["panel_audit_id"], row["rotating_audit_id"])]
    if not dates:
        return [], []
    nights = [row for row in nights if row["date"] <= dates[-1]]
    (night,) = [one for one in lake.manifests("nightly") if one.facts["date"] == dates[-1]]
    changed = lake.read("night_changes", night.snapshot_id).to_pylist()
    return nights, _with_texts(lake, nights[-1], changed) if changed else []


def _with_texts(lake: Lake, row: dict[str, Any], changed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups = lake.manifest("deduplicate", row["panel_snapshot"])
    assert groups is not None, "a complete snapshot's upstream is complete"
    ingest = lineage(lake, groups)["ingest"].snapshot_id
    tables = {"prompts": row["panel_audit_id"], "samples": ingest}
    query = """
        SELECT prompts.prompt_id, prompts.text AS prompt, sample_id, samples.url, samples.caption
        FROM prompts INNER JOIN samples USING (sample_id) WHERE list_contains($wanted, prompts.prompt_id)
    """
    told = {one["prompt_id"]: one for one in ask(lake, tables, query, wanted=[one["prompt_id"] for one in changed])}
    return [{**one, **told[one["prompt_id"]]} for one in changed]


def read_night(lake: Lake, row: dict[str, Any]) -> Night:
    """A night by its row of ``history``, with its verdicts as they are now. UserError where these are gone."""
    measured = {manifest.upstream["match"]: manifest for manifest in lake.manifests("measure")}
    halves = []
    for match in (row["panel_match"], row["rotating_match"]):
        if match not in measured:
            raise UserError(f"the night {row['date']} has no marts of its matches {match} any more; restore them")
        check_lineage(lake, [measured[match]])
        columns = ["prompt_id", "group_id", "stratum", "own_distance", "own_l2", "own_coarse_l2", "own_coarse_ratio",
                   CALIBRATED, COPIED]  # fmt: skip
        parts = lake.parts("verdicts", measured[match].snapshot_id)
        verdicts = [one for path in parts for one in read_parquet(path, columns).to_pylist()]
        (chosen,) = [one for one in lake.read("calibration", match).to_pylist() if one["chosen"]]
        (copy,) = lake.read("copy_calibration", match).to_pylist()
        limits = NightLimits(chosen["threshold"], copy["coarse_l2_limit"], copy["coarse_ratio_limit"], copy["l2_limit"])
        halves.append(Half(match, [one for one in verdicts if one["stratum"] != FORGOTTEN], limits))
    return Night(*halves)


class NightComparison(NamedTuple):
    """A night beside an earlier one.

    Attributes:
        verdict: column that it goes by.
        new, gone: rows of the panel's prompts that give back their image in the later, or the earlier, night alone.
        p_values: what was tested → p-value, adjusted by Holm for all of them.
    """

    verdict: str
    new: list[dict[str, Any]]
    gone: list[dict[str, Any]]
    p_values: dict[str, float]

    @property
    def p_value(self) -> float:
        return min(self.p_values.values())


def compare(before: Night, after: Night) -> NightComparison:
    """Is the later night worse?

    Both by the earlier night's limits, of seen and of a copy: each night's own ones move with its few controls and held-out
    pictures, and all verdicts of a night with them, which would pass for a change. The panel by McNemar's test of the prompts
    that both tried; the rotating prompts by Fisher's within their strata.
    Where both nights share matches it says nothing, and is not tested.
    """
    verdict = CALIBRATED if before.verdict == after.verdict == CALIBRATED else COPIED
    earlier, now = (night.panel.extracted(verdict, before.panel.limits) for night in (before, after))
    both = [row for row in after.panel.rows if row["prompt_id"] in earlier and row["prompt_id"] in now]
    new = [row for row in both if now[row["prompt_id"]] and not earlier[row["prompt_id"]]]
    gone = [row for row in both if earlier[row["prompt_id"]] and not now[row["prompt_id"]]]
    found = {"panel": mcnemar(len(new), len(gone))}
    if before.rotating.match != after.rotating.match:
        counts = [_by_stratum(night.rotating, verdict, before.rotating.limits) for night in (before, after)]
        shared = sorted(counts[0].keys() & counts[1].keys())
        found["rotating"] = fisher([(*counts[0][stratum], *counts[1][stratum]) for stratum in shared])
    return NightComparison(verdict, new, gone, dict(zip(found, holm(list(found.values())), strict=True)))


def _by_stratum(half: Half, verdict: str, limits: NightLimits) -> dict[str, tuple[int, int]]:
    """Stratum → (extracted, tried)."""
    extracted = half.extracted(verdict, limits)
    counts: dict[str, tuple[int, int]] = {}
    for row in half.rows:
        if row["prompt_id"] in extracted:
            hits, tried = counts.get(row["stratum"], (0, 0))
            counts[row["stratum"]] = hits + extracted[row["prompt_id"]], tried + 1
    return counts


TESTS = 2
"""Of a comparison: the panel's and that of the rotating prompts."""


class Power(NamedTuple):
    """The smallest changes that a night can see with 80% power; None where it can see none.

    Attributes:
        panel: share of the panel's prompts that must be new, if none is gone.
        rotating: by how much the rate of the rotating prompts must rise.
    """

    panel: float | None
    rotating: float | None


def power(panel_prompts: int, rotating_prompts: int, rate: float, significance: float) -> Power:
    """What a night of so many prompts can see.

    Args:
        panel_prompts, rotating_prompts: on either night.
        rate: share of the rotating prompts that gave back their image on the night before, 0 to 1. Taken as that of one
            stratum; with strata that differ the test sees a little more.
        significance: of the night as a whole.
    """
    level = significance / TESTS
    return Power(
        smallest_change(lambda change: mcnemar_power(panel_prompts, change, 0.0, level), 1.0),
        smallest_change(
            lambda change: fisher_power(rate, rate + change, rotating_prompts, rotating_prompts, level), 1.0 - rate
        ),
    )
