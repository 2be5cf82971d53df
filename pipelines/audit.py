"""Runs the whole audit: ingest, embed, deduplicate, generate, match, measure.

reads   metadata (LAION's Parquet, or a folder of pictures), a model or finished generations
writes  every table of the lake, the marts, audit.duckdb and the report

Stages that are complete for these options are skipped, so the same command again ends in seconds with the same numbers.
--plan prints what would run, on how many items, with the estimated device time, and runs nothing.

  eidetic audit --lake lake --metadata relaion2B-en/ --controls held_out.parquet \\
      --model CompVis/stable-diffusion-v1-4 --device cuda --plan
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from pipelines import deduplicate, embed, generate, ingest, match, measure
from pipelines.device import DeviceOptions
from pipelines.options import CommonOptions, Parsed, option, parse
from pipelines.stage import Execution, Stage
from transforms.lake import Lake


@dataclasses.dataclass(frozen=True)
class AuditOptions:
    """The audit as a whole."""

    plan: bool = option(False, "print what would run and run nothing")


OPTIONS = (
    CommonOptions,
    AuditOptions,
    ingest.IngestOptions,
    embed.EmbedOptions,
    deduplicate.DeduplicateOptions,
    generate.GenerateOptions,
    match.MatchOptions,
    measure.MeasureOptions,
    DeviceOptions,
)


def plan(lake: Lake, parsed: Parsed) -> list[Stage]:
    """Every stage in order, as it would run. Ids are known before anything runs: they name the question."""
    device = parsed[DeviceOptions]
    taken = ingest.stage(lake, parsed[ingest.IngestOptions])
    embedded = embed.stage(lake, parsed[embed.EmbedOptions], device, taken.snapshot_id)
    grouped = deduplicate.stage(lake, parsed[deduplicate.DeduplicateOptions], embedded.snapshot_id)
    options = parsed[generate.GenerateOptions]
    made = generate.stage(lake, options, grouped.snapshot_id, generate.generator(options, device.resolved()))
    matched = match.stage(lake, parsed[match.MatchOptions], made.snapshot_id)
    measured = measure.stage(lake, parsed[measure.MeasureOptions], matched.snapshot_id)
    return [taken, embedded, grouped, made, matched, measured]


def describe(lake: Lake, stages: Sequence[Stage]) -> str:
    """The plan as a table."""
    lines = [f"{'stage':<12} {'snapshot':<16}  {'state':<9} items"]
    for stage in stages:
        complete = lake.manifest(stage.name, stage.snapshot_id) is not None
        items = "known when the stages before it are complete" if stage.items is None else f"{stage.items:,} {stage.unit}"
        if stage.seconds_per_item is not None and stage.items is not None and not complete:
            items += f", about {stage.items * stage.seconds_per_item:,.0f} s of device time"
        elif stage.name == "generate" and not complete:
            items += ", device time unknown before a first audit of this model (or name --seconds_per_image)"
        lines.append(f"{stage.name:<12} {stage.snapshot_id}  {'complete' if complete else 'to do':<9} {items}")
    return "\n".join(lines)


def run(execution: Execution, parsed: Parsed) -> None:
    """Runs what is missing and prints the summary."""
    device = parsed[DeviceOptions]
    # What can be wrong with the model is found before hours of download, not after.
    images = generate.generator(parsed[generate.GenerateOptions], device.resolved())
    images.revision()
    taken = ingest.run(execution, parsed[ingest.IngestOptions])
    embedded = embed.run(execution, parsed[embed.EmbedOptions], device, taken)
    grouped = deduplicate.run(execution, parsed[deduplicate.DeduplicateOptions], embedded)
    made = generate.run(execution, parsed[generate.GenerateOptions], device, grouped)
    matched = match.run(execution, parsed[match.MatchOptions], device, made, images)
    measured = measure.run(execution, parsed[measure.MeasureOptions], matched)
    print(measure.summary(execution.lake, measured))


def main(argv: Sequence[str]) -> None:
    run_parsed(parse(argv, "audit", __doc__, OPTIONS))


def run_parsed(parsed: Parsed) -> None:
    """The audit of an understood command line."""
    common = parsed[CommonOptions]
    lake = Lake(common.lake)
    if parsed[AuditOptions].plan:
        print(describe(lake, plan(lake, parsed)))
        return
    run(Execution(lake, parsed.beam, common.verbose), parsed)


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
