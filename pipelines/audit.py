"""Runs the whole audit: ingest, embed, deduplicate, generate, match, measure.

reads   metadata (LAION's Parquet, or a folder of pictures), a model or finished generations
writes  every table of the lake, the marts, audit.duckdb and the report

Stages that are complete for these options are skipped, so the same command again ends in seconds with the same numbers.
--plan prints what would run, on how many items, with the worker-hours that it takes and, with --prices, the money, and runs
nothing. With --plan_images it needs neither metadata nor model: it is then the plan of training sets of these sizes.

  eidetic audit --lake lake --metadata relaion2B-en/ --controls held_out.parquet \\
      --model CompVis/stable-diffusion-v1-4 --device cuda --plan
  eidetic audit --lake lake --device cuda --plan --plan_images 1e5 1e7 1.6e8 --max_prompts 350000 --images_per_prompt 500
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Collection, Sequence

from pipelines import measure
from pipelines.costs import Costs, Prices, Size, rated, tables
from pipelines.execution import Execution
from pipelines.generate import GenerateOptions
from pipelines.ingest import IngestOptions
from pipelines.options import CommonOptions, LockOptions, MachineOptions, Options, Parsed, option, parse
from pipelines.stages import Planned, alone_with, execution_of, options_of, stages
from transforms.attacks.prompts import read_prompt_list
from transforms.errors import UserError
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import check_lineage

MOST_IMAGES = 10**12
"""What is more is no training set."""


@dataclasses.dataclass(frozen=True)
class AuditOptions(Options):
    """The audit as a whole."""

    plan: bool = option(False, "print what would run, and how many hours it takes, and run nothing")
    plan_images: tuple[str, ...] = option(
        (), "with --plan: plan for training sets of so many images (1e5 1e7 1.6e8) and not for --metadata"
    )
    prices: str | None = option(
        None, "with --plan: a TOML file with your prices of a machine-hour and a GPU-hour, like deploy/dataflow/prices.toml"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("plan_images", "prices"):
            if getattr(self, name) and not self.plan:
                raise UserError(
                    f"--{name} says how to plan, and without --plan the audit would run; name --plan, or leave it out"
                )
        _ = self.sizes

    @property
    def sizes(self) -> list[int]:
        """``plan_images`` as numbers."""
        found = []
        for text in self.plan_images:
            try:
                number = float(text)
            except ValueError:
                number = math.nan
            if not 1 <= number <= MOST_IMAGES or number % 1:
                raise UserError(
                    f"--plan_images is {text!r}, expected whole numbers from 1 to {MOST_IMAGES:,}, such as 160000000 or 1.6e8"
                )
            found.append(int(number))
        return found


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


def describe(lake: Lake, parsed: Parsed, plans: Sequence[Planned]) -> str:
    """The plan as a table, and what is to do as hours and money."""
    lines = [f"{'stage':<12} {'snapshot':<16}  {'state':<9} items"]
    to_do = set()
    for one in plans:
        complete = lake.manifest(one.stage, one.snapshot_id) is not None
        if not complete:
            to_do.add(one.stage)
        items = "known when the stages before it are complete" if one.items is None else f"{one.items:,} {one.unit}"
        lines.append(f"{one.stage:<12} {one.snapshot_id}  {'complete' if complete else 'to do':<9} {items}")
    if to_do:
        size, prices = planned_size(parsed, plans), Prices.read(parsed[AuditOptions].prices)
        lines += ["", tables([(f"to do, for up to {said(size)}", costs(lake, parsed, size, to_do))], prices)]
    return "\n".join(lines)


def planned_size(parsed: Parsed, plans: Sequence[Planned]) -> Size:
    """How large the planned audit is, by what is known now: all rows of the metadata may become images."""
    items = {one.stage: one.items for one in plans}
    rows = {role: survey.rows for role, survey in parsed[IngestOptions].surveys.items()}
    controls = rows.get("control", 0)
    pictures = next((items[stage] for stage in ("deduplicate", "embed") if items.get(stage) is not None), None)
    images = rows["training"] if pictures is None else max(0, pictures - controls)
    options: GenerateOptions = parsed[GenerateOptions]
    prompts = None if options.prompts is None else len(read_prompt_list(options.prompts))
    return options.size(images, controls, prompts, items.get("generate"))


def costs(lake: Lake, parsed: Parsed, size: Size, wanted: Collection[str]) -> Costs:
    """(stage, piece of its work) of the stages that are wanted, in order."""
    found = []
    for stage in stages():
        if stage.name in wanted:
            made = [] if stage.costs is None else stage.costs(lake, parsed, size)
            why = f"not measured: {stage.name} does not say what it takes"
            found += [(stage.name, one) for one in made or [rated("all of it", size.images, "images", False, None, why)]]
    return found


def describe_sizes(lake: Lake, parsed: Parsed) -> str:
    """Hours and money of an audit of training sets of the sizes that were asked for, a table for each."""
    options = parsed[AuditOptions]
    every = [stage.name for stage in stages()]
    sizes = [parsed[GenerateOptions].size(images) for images in options.sizes]
    return tables([(said(size), costs(lake, parsed, size, every)) for size in sizes], Prices.read(options.prices))


def said(size: Size) -> str:
    """The size in words."""
    controls = f" and {size.controls:,} controls" if size.controls else ""
    return f"{size.images:,} images{controls}, {size.prompts:,} prompts and {size.generations:,} generations"


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
    if parsed[AuditOptions].sizes:
        print(describe_sizes(execution.lake, parsed))
        return
    if parsed[AuditOptions].plan:
        print(describe(execution.lake, parsed, plan(execution.lake, parsed)))
        return
    print(measure.summary(execution.lake, run(execution, parsed)["measure"]))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
