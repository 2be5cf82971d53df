"""Runs the whole audit: ingest, embed, deduplicate, generate, match, measure.

reads   metadata (LAION's Parquet, or a folder of pictures), a model or finished generations
writes  every table of the lake, the marts, audit.duckdb and the report

Stages that are complete for these options are skipped, so the same command again ends in seconds with the same numbers.
--plan prints what would run, on how many items, with the estimated device time, and runs nothing.

  eidetic audit --lake lake --metadata relaion2B-en/ --controls held_out.parquet \\
      --model CompVis/stable-diffusion-v1-4 --device cuda --plan
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence

from pipelines import measure
from pipelines.execution import Execution
from pipelines.options import CommonOptions, LockOptions, MachineOptions, Options, Parsed, option, parse
from pipelines.stages import Planned, alone_with, execution_of, options_of, stages
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import check_lineage


@dataclasses.dataclass(frozen=True)
class AuditOptions(Options):
    """The audit as a whole."""

    plan: bool = option(False, "print what would run and run nothing")


def options() -> tuple[type, ...]:
    """The option dataclasses of an audit: those of all stages."""
    return CommonOptions, LockOptions, MachineOptions, AuditOptions, *options_of(stages())


def plan(lake: Lake, parsed: Parsed) -> list[Planned]:
    """Every stage in order, as it would run. Ids are known before anything runs: they name the question."""
    return list(_planned(lake, parsed, {}).values())


def _planned(lake: Lake, parsed: Parsed, done: dict[str, Manifest]) -> dict[str, Planned]:
    """Stage → what it would make, of the stages that are not ``done``."""
    ids = {stage: manifest.snapshot_id for stage, manifest in done.items()}
    planned: dict[str, Planned] = {}
    for stage in stages():
        if stage.name not in ids:
            upstream = None if stage.upstream is None else ids[stage.upstream]
            complete = None if stage.upstream is None or upstream is None else lake.manifest(stage.upstream, upstream)
            if complete is not None:
                check_lineage(lake, [complete], whole=False)
            planned[stage.name] = stage.plan(lake, parsed, upstream)
            ids[stage.name] = planned[stage.name].snapshot_id
    return planned


def check(lake: Lake, parsed: Parsed, done: dict[str, Manifest]) -> None:
    """Looks at the inputs of all stages that are not ``done``, before the first of them begins.

    Raises:
        UserError: where one of them can't run: a file, model or option that isn't what it has to be.
    """
    planned = _planned(lake, parsed, done)
    for stage in stages():
        # What is complete needs its model no more.
        if stage.name in planned and lake.manifest(stage.name, planned[stage.name].snapshot_id) is None:
            stage.check(parsed)


def describe(lake: Lake, plans: Sequence[Planned]) -> str:
    """The plan as a table."""
    lines = [f"{'stage':<12} {'snapshot':<16}  {'state':<9} items"]
    for one in plans:
        complete = lake.manifest(one.stage, one.snapshot_id) is not None
        items = "known when the stages before it are complete" if one.items is None else f"{one.items:,} {one.unit}"
        seconds = None if complete else one.estimate()
        if seconds is not None and one.items is not None:
            items += f", about {one.items * seconds:,.0f} s of device time"
        elif one.stage == "generate" and not complete:
            items += ", device time unknown before a first audit of this model (or name --seconds_per_image)"
        lines.append(f"{one.stage:<12} {one.snapshot_id}  {'complete' if complete else 'to do':<9} {items}")
    return "\n".join(lines)


def run(execution: Execution, parsed: Parsed, done: dict[str, Manifest] | None = None) -> dict[str, Manifest]:
    """Runs the stages that are missing, after those that are ``done`` already; stage → manifest of all of them.

    Raises:
        UserError: before anything runs, where one of the stages can't.
    """
    found = dict(done or {})
    check(execution.lake, parsed, found)
    for stage in [stage for stage in stages() if stage.name not in found]:
        found[stage.name] = stage.run(execution, parsed, None if stage.upstream is None else found[stage.upstream])
    return found


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "audit", __doc__, options())
    with contextlib.nullcontext() if parsed[AuditOptions].plan else alone_with(parsed, "audit"):
        run_parsed(parsed)


def run_parsed(parsed: Parsed) -> None:
    """The audit of an understood command line; who else may write to the lake meanwhile is the caller's business."""
    execution = execution_of(parsed)
    if parsed[AuditOptions].plan:
        print(describe(execution.lake, plan(execution.lake, parsed)))
        return
    print(measure.summary(execution.lake, run(execution, parsed)["measure"]))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
