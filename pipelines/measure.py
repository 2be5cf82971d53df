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
import datetime
import sys
from collections.abc import Sequence
from typing import Any

from pipelines.costs import Cost, Size, lines
from pipelines.execution import Execution
from pipelines.options import Options, Parsed, option, parameters
from pipelines.query import as_table
from pipelines.stages import Planned, Stage, alone_with
from transforms.results import database, marts, nights, report
from transforms.store.files import exists, stat, write_bytes
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage


@dataclasses.dataclass(frozen=True)
class MeasureOptions(Options):
    """Measuring: the report."""

    report_limit: int = option(1000, "extractions that the report shows as pictures, the most confident first", least=0)


@dataclasses.dataclass(frozen=True)
class RelocateOptions(Options):
    """After the lake was moved."""

    relocate: bool = option(False, "only tell audit.duckdb where the lake lies now")


def plan(lake: Lake, parsed: Parsed, match: str | None) -> Planned:
    """What ``measure`` would make of the matches of snapshot ``match``."""
    assert match is not None, "it has an upstream"

    def matches() -> int | None:
        done = lake.manifest("match", match)
        return None if done is None else done.rows["matches"]

    shaping = {
        **parameters(parsed[MeasureOptions]),
        "sql": marts.sql_digest(),
        "report": report.digest_of_template(),
    }
    return Planned("measure", shaping, {"match": match}, "matches", matches)


def costs(lake: Lake, parsed: Parsed, size: Size) -> list[Cost]:
    """What the marts take, on the one machine where the command runs."""
    return [lines()["measure"].cost("marts, where the command runs", size.generations, size.generations, "generations")]


def work(execution: Execution, parsed: Parsed, planned: Planned, match: Manifest | None) -> dict[str, Any]:
    """Makes the marts and the report."""
    assert match is not None, "it has an upstream"
    rows = marts.run(execution.lake, match, planned.snapshot_id)
    write_report(execution.lake, parsed[MeasureOptions], match, planned.snapshot_id)
    return {"audit_id": match.upstream["generate"], "marts": rows}


def found(execution: Execution, parsed: Parsed, done: Manifest) -> None:
    """Writes the report again where it shows something else than this measure of the audit, or was deleted."""
    lake = execution.lake
    page = lake.path("reports", f"{done.facts['audit_id']}.html")
    # Since it was made, the audit may have been matched or measured in another way, and its report with it.
    if not exists(page) or done not in marts.current(lake):
        write_report(lake, parsed[MeasureOptions], lineage(lake, done)["match"], done.snapshot_id)


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    """Makes the database."""
    lake = execution.lake
    # A local one holds views alone: made anew in no time, it also fits after a run that was killed before it came so far,
    # and after the lake was moved. Behind a URL it holds copies: the newest measure is in it once it was made after that.
    path = lake.path(database.DATABASE)
    if lake.is_local or not exists(path) or stat(path).modified < moment(manifest.finished_at):
        database.build_database(lake)


def moment(text: str) -> float:
    """Seconds since 1970, of a manifest's ISO time."""
    return datetime.datetime.fromisoformat(text).timestamp()


def write_report(lake: Lake, options: MeasureOptions, match: Manifest, snapshot: str, newest: bool = True) -> None:
    """Writes the report of an audit, by its number and as the ``newest``, with the nights up to the last that it was in."""
    audit = match.upstream["generate"]
    content = report.render(lake, match, snapshot, options.report_limit, *nights.up_to(lake, audit))
    write_bytes(lake.path("reports", f"{audit}.html"), content)
    if newest:
        write_bytes(lake.path("report.html"), content)


def summary(lake: Lake, measure: Manifest) -> str:
    """What the command ends with: the rates, the two numbers, where report and database are, and a query to go on with."""
    rates = marts.read_mart(lake, "extraction_rate", measure)
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
            f"database  {lake.path(database.DATABASE)}",
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
    came = report.CameBack.of(marts.read_mart(lake, "extractions", measure))
    lines.append(
        f"training images that came back at all: {came.copied} ({came.own} by their own caption, {came.others} by others "
        f"alone, {came.controls} by captions of controls)"
    )
    return lines


STAGE = Stage(
    name="measure",
    description=__doc__,
    upstream="match",
    options=(MeasureOptions,),
    alone=(RelocateOptions,),
    plan=plan,
    work=work,
    found=found,
    finish=finish,
    costs=costs,
)


def main(argv: Sequence[str]) -> None:
    execution, parsed = STAGE.parse(argv)
    with alone_with(parsed, "measure"):
        if parsed[RelocateOptions].relocate:
            print(f"database  {database.relocate(execution.lake)}")
        else:
            print(summary(execution.lake, STAGE.run(execution, parsed)))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
