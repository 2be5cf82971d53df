"""Runs a whole sweep: trains models, attacks each, and compares them; with --metadata, ingest, embed and deduplicate first.

reads   a sweep's file, and the lake's pictures (or --metadata, as 'eidetic ingest' reads it)
writes  every table of a sweep

Stages that are complete for these options are skipped, so the same command again goes on where it was killed.

  eidetic sweep --lake lake --sweep demo/sweeps/small.toml
  eidetic sweep --lake lake --source parquet --metadata cifar10_train.parquet --image_size 32 --resize_mode no \\
      --encode_format png --duplicate_threshold 0.985 --sweep demo/sweeps/cifar10.toml --device cuda
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipelines import compare
from pipelines.execution import Execution
from pipelines.ingest import IngestOptions
from pipelines.options import CommonOptions, LockOptions, MachineOptions, Parsed, parse
from pipelines.stages import Stage, alone_with, execution_of, options_of, stages, sweep_stages
from transforms.store.lake import Manifest


def pictures() -> list[Stage]:
    """The stages of an audit that a sweep begins with."""
    return [stage for stage in stages() if stage.name in ("ingest", "embed", "deduplicate")]


def options() -> tuple[type, ...]:
    """The option dataclasses of a sweep: those of all its stages."""
    return CommonOptions, LockOptions, MachineOptions, *options_of([*pictures(), *sweep_stages()])


def run(execution: Execution, parsed: Parsed) -> dict[str, Manifest]:
    """Runs the stages that are missing; stage → manifest.

    Raises:
        UserError: before anything runs, where one of the stages can't.
    """
    anew = parsed[IngestOptions].metadata is not None
    wanted = [*(pictures() if anew else ()), *sweep_stages()]
    for stage in wanted:
        stage.check(parsed)
    found = {} if anew else {"deduplicate": execution.lake.latest("deduplicate")}
    for stage in wanted:
        found[stage.name] = stage.run(execution, parsed, None if stage.upstream is None else found[stage.upstream])
    return found


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "sweep", __doc__, options())
    with alone_with(parsed, "sweep"):
        run_parsed(parsed)


def run_parsed(parsed: Parsed) -> None:
    """The sweep of an understood command line; who else may write to the lake meanwhile is the caller's business."""
    execution = execution_of(parsed)
    print(compare.summary(execution.lake, run(execution, parsed)["compare"]))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
