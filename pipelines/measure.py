"""Turns the matches into rates: the marts, audit.duckdb, and the report.

reads   every table of one audit
writes  the marts (verdicts, extraction_rate, extractions, takedown, cost and others: docs/sql.md), audit.duckdb,
        reports/<audit>.html and report.html, which is the newest

DuckDB runs the files of sql/ on the machine that the command runs on: there is no Beam pipeline in this stage. The audit's
own checks (sql/checks) must return nothing, or the stage fails with their names.

  eidetic measure --lake lake
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from pipelines.options import CommonOptions, option, parameters, parse
from pipelines.query import as_table
from pipelines.stage import Execution, Stage
from transforms import measurement, nights, report
from transforms.errors import UserError
from transforms.lake import Lake, Manifest, exists, write_bytes


@dataclasses.dataclass(frozen=True)
class MeasureOptions:
    """Measuring: the report."""

    report_limit: int = option(1000, "extractions that the report shows as pictures, the most confident first")

    def __post_init__(self) -> None:
        if self.report_limit < 0:
            raise UserError(f"--report_limit is {self.report_limit}, expected 0 or more")


@dataclasses.dataclass(frozen=True)
class RelocateOptions:
    """After the lake was moved."""

    relocate: bool = option(False, "only tell audit.duckdb where the lake lies now")


def stage(lake: Lake, options: MeasureOptions, match: str) -> Stage:
    """What ``measure`` would make of the matches of snapshot ``match``."""
    done = lake.manifest("match", match)
    return Stage(
        name="measure",
        parameters={
            **parameters(options),
            "sql": measurement.sql_digest(),
            "report": report.digest_of_template(),
        },
        upstream={"match": match},
        items=None if done is None else done.rows["matches"],
        unit="matches",
    )


def run(execution: Execution, options: MeasureOptions, match: Manifest | None = None) -> Manifest:
    """Runs the stage on the newest matches, or on those of ``match``."""
    lake = execution.lake
    done = match or lake.latest("match")
    planned = stage(lake, options, done.snapshot_id)

    audit = done.upstream["generate"]
    page = lake.path("reports", f"{audit}.html")

    def work(planned: Stage) -> dict[str, Any]:
        rows = measurement.run(lake, done, planned.snapshot_id)
        write_report(lake, options, done, planned.snapshot_id)
        return {"audit_id": audit, "marts": rows}

    before = lake.manifest("measure", planned.snapshot_id)
    shown = before is not None and exists(page) and before in measurement.current(lake)
    manifest = execution.stage(planned, work)
    if before is not None and not shown:
        # Since it was made, the audit was matched or measured in another way, and its report with it; or that was deleted.
        write_report(lake, options, done, planned.snapshot_id)
    # A local one holds views alone: made anew in no time, it also fits after a run that was killed before it came so far,
    # and after the lake was moved.
    if before is None or measurement.is_local(lake) or not exists(lake.path(measurement.DATABASE)):
        measurement.build_database(lake)
    return manifest


def write_report(lake: Lake, options: MeasureOptions, match: Manifest, snapshot: str, newest: bool = True) -> None:
    """Writes the report of an audit, by its number and as the ``newest``, with the nights up to the last that it was in."""
    audit = match.upstream["generate"]
    content = report.render(lake, match, snapshot, options.report_limit, *nights.up_to(lake, audit))
    write_bytes(lake.path("reports", f"{audit}.html"), content)
    if newest:
        write_bytes(lake.path("report.html"), content)


def summary(lake: Lake, measure: Manifest) -> str:
    """What the command ends with: the rates, the two numbers, where report and database are, and a query to go on with."""
    rates = measurement.read_mart(lake, "extraction_rate", measure)
    rate = ["rate", "95% interval"]
    names = ["duplicates", "tried", "flagged", "copied", *rate, "seen", "rate", "extracted", *rate]
    rows = []
    # The whole population, then by number of duplicates; the other dimensions are in the mart.
    for row in (row for row in rates if row["dimension"] in ("all", "duplicates")):
        rows.append(
            (
                row["bucket"] if row["dimension"] == "duplicates" else f"all {row['bucket']}",
                row["prompts_tried"],
                row["prompts_flagged"],
                row["prompts_copied"],
                _share(row["rate_copied"]),
                _interval(row, "rate_copied"),
                row["prompts_seen"],
                _share(row["rate_seen"]),
                row["prompts_extracted"],
                _share(row["rate"]),
                _interval(row, "rate"),
            )
        )
    return "\n".join(
        [
            "",
            as_table(names, rows),
            "",
            *_two_numbers(lake, measure, [row for row in rates if row["dimension"] == "all"]),
            f"report    {lake.path('reports', measure.facts['audit_id'] + '.html')}",
            f"database  {lake.path(measurement.DATABASE)}",
            'query     eidetic query "SELECT caption, copies, k, coarse_ratio, copied, seen, extracted FROM extractions '
            f'ORDER BY confidence_rank LIMIT 10" --lake {report.quoted(lake.root)}',
        ]
    )


def _share(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def _interval(row: dict[str, Any], name: str) -> str:
    return "-" if row[name] is None else f"{row[f'{name}_lower']:.1%} to {row[f'{name}_upper']:.1%}"


def _two_numbers(lake: Lake, measure: Manifest, rates: list[dict[str, Any]]) -> list[str]:
    """A line with the rate of prompts that return their own image, and one with the images that came back at all."""
    found = report.headline(rates)
    lines = []
    if found is not None:
        what = "prompts that return their own image" if found.own else "prompts that return some training image"
        line = f"{what}: {found.copied.rate:.1%} ({found.copied.lower:.1%} to {found.copied.upper:.1%})"
        if found.seen is not None:
            line += f"; trained on, by the evidence: {found.seen.rate:.1%} ({found.seen.lower:.1%} to {found.seen.upper:.1%})"
        lines.append(line)
    came = report.CameBack.of(measurement.read_mart(lake, "extractions", measure))
    lines.append(
        f"training images that came back at all: {came.copied} ({came.own} by their own caption, {came.others} by others "
        f"alone, {came.controls} by captions of controls)"
    )
    return lines


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "measure", __doc__, (CommonOptions, MeasureOptions, RelocateOptions))
    common = parsed[CommonOptions]
    lake = Lake(common.lake)
    if parsed[RelocateOptions].relocate:
        print(f"database  {measurement.relocate(lake)}")
        return
    print(summary(lake, run(Execution(lake, parsed.beam, common.verbose), parsed[MeasureOptions])))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
