"""What one night says beside another: which prompts of the panel changed, and whether the later night is worse."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

from transforms import measurement
from transforms.errors import UserError
from transforms.kernels.comparisons import fisher, fisher_power, holm, mcnemar, mcnemar_power, smallest_change
from transforms.lake import Lake, read_parquet

CALIBRATED, PLAIN = "extracted_calibrated", "extracted"


class Night(NamedTuple):
    """The verdicts of one night.

    Attributes:
        panel_audit, rotating_audit: ids of its audits.
        panel, rotating: their rows of ``verdicts``.
    """

    panel_audit: str
    rotating_audit: str
    panel: list[dict[str, Any]]
    rotating: list[dict[str, Any]]


def history(lake: Lake) -> list[dict[str, Any]]:
    """Rows of ``history`` of all complete nights, by date."""
    rows = [row for night in lake.manifests("nightly") for row in lake.read("history", night.snapshot_id).to_pylist()]
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
    embedded = None if groups is None else lake.manifest("embed", groups.upstream["embed"])
    assert embedded is not None, "a complete snapshot's upstream is complete"
    wanted = {one["sample_id"] for one in changed}
    texts = {one["prompt_id"]: one["text"] for one in lake.read("prompts", row["panel_audit_id"]).to_pylist()}
    samples = lake.read("samples", embedded.upstream["ingest"], ["sample_id", "url", "caption"]).to_pylist()
    told = {one["sample_id"]: one for one in samples if one["sample_id"] in wanted}
    return [{**one, "prompt": texts[one["prompt_id"]], **told[one["sample_id"]]} for one in changed]


def read_night(lake: Lake, row: dict[str, Any]) -> Night:
    """A night by its row of ``history``, with the verdicts of its audits as they are now. UserError where these are gone."""
    measured = {manifest.facts["audit_id"]: manifest.snapshot_id for manifest in measurement.current(lake)}
    audits = row["panel_audit_id"], row["rotating_audit_id"]
    for audit in audits:
        if audit not in measured:
            raise UserError(f"the night {row['date']} has no marts of its audit {audit} any more; restore them, or match again")
    panel, rotating = (_verdicts(lake, measured[audit]) for audit in audits)
    return Night(*audits, panel, rotating)


def _verdicts(lake: Lake, measure: str) -> list[dict[str, Any]]:
    columns = ["prompt_id", "group_id", "stratum", CALIBRATED, PLAIN]
    return [row for path in lake.parts("verdicts", measure) for row in read_parquet(path, columns).to_pylist()]


def verdict_of(*nights: Night) -> str:
    """The column to go by: the calibrated verdict where all of them have it."""
    rows = [row for night in nights for row in night.panel + night.rotating]
    return CALIBRATED if all(row[CALIBRATED] is not None for row in rows) else PLAIN


class Comparison(NamedTuple):
    """A night beside an earlier one.

    Attributes:
        new, gone: prompts of the panel that are extracted in the later, or the earlier, night alone.
        p_values: what was tested → p-value, adjusted by Holm for all of them.
    """

    new: list[dict[str, Any]]
    gone: list[dict[str, Any]]
    p_values: dict[str, float]

    @property
    def p_value(self) -> float:
        return min(self.p_values.values())


def compare(before: Night, after: Night) -> Comparison:
    """Is the later night worse?

    The panel by McNemar's test of the prompts that both tried; the rotating prompts, stratum by stratum, by Fisher's. Where
    both nights share an audit it says nothing, and is not tested.
    """
    verdict = verdict_of(before, after)
    earlier = {row["prompt_id"]: row[verdict] for row in before.panel}
    both = [row for row in after.panel if row["prompt_id"] in earlier]
    new = [row for row in both if row[verdict] and not earlier[row["prompt_id"]]]
    gone = [row for row in both if earlier[row["prompt_id"]] and not row[verdict]]
    found = {"panel": mcnemar(len(new), len(gone))}
    if before.rotating_audit != after.rotating_audit:
        counts = [_by_stratum(night.rotating, verdict) for night in (before, after)]
        for stratum in sorted(counts[0].keys() & counts[1].keys()):
            found[f"rotating, {stratum}"] = fisher(*counts[0][stratum], *counts[1][stratum])
    return Comparison(new, gone, dict(zip(found, holm(list(found.values())), strict=True)))


def _by_stratum(rows: Sequence[dict[str, Any]], verdict: str) -> dict[str, tuple[int, int]]:
    tried: collections.Counter[str] = collections.Counter(row["stratum"] for row in rows)
    extracted: collections.Counter[str] = collections.Counter(row["stratum"] for row in rows if row[verdict])
    return {stratum: (extracted[stratum], number) for stratum, number in tried.items()}


class Power(NamedTuple):
    """The smallest changes that a night can see with 80% power; None where it can see none.

    Attributes:
        panel: share of the panel's prompts that must be new, if none is gone.
        rotating: by how much the rate of the rotating prompts must rise.
    """

    panel: float | None
    rotating: float | None


def power(panel_prompts: int, rotating_prompts: int, rate: float, significance: float, tests: int) -> Power:
    """What a night of so many prompts can see.

    Args:
        panel_prompts, rotating_prompts: on either night.
        rate: of the night before, 0 to 1.
        significance: of the night as a whole.
        tests: that it is shared by.
    """
    level = significance / tests
    return Power(
        smallest_change(lambda change: mcnemar_power(panel_prompts, change, 0.0, level), 1.0),
        smallest_change(
            lambda change: fisher_power(rate, rate + change, rotating_prompts, rotating_prompts, level), 1.0 - rate
        ),
    )
