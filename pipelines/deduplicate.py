"""Finds the near-duplicates among the training images, and groups them.

reads   embeddings
writes  duplicate_pairs: every pair over the threshold; duplicate_groups: every embedded training image in its group

All pairs are compared, exactly, block by block. A group is what hangs together by such pairs; the lowest cosine inside
each group is reported, so that a chain of near pairs can be told from a set of copies. Controls take no part.
The paper gives no threshold. The default was chosen from the planted copies of the embedded corpus under the embedded
CLIP, where it finds every re-encoded and every resized copy and joins no two logos: see docs/duplicates.md. Under
another model, look at the pairs near the threshold first.

  eidetic deduplicate --lake lake --duplicate_threshold 0.9
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipelines.options import CommonOptions, option, parameters, parse
from pipelines.stage import Execution, Progress, Stage
from transforms.duplicates import FindDuplicates, number_of_block_pairs
from transforms.errors import UserError
from transforms.lake import Lake, Manifest, part_number


@dataclasses.dataclass(frozen=True)
class DeduplicateOptions:
    """Near-duplicates."""

    duplicate_threshold: float = option(0.9, "two training images with a cosine over this are duplicates")
    block_rows: int = option(50_000, "vectors in a block; a worker holds two blocks at once")

    def __post_init__(self) -> None:
        if not -1 <= self.duplicate_threshold < 1:
            raise UserError(f"--duplicate_threshold is {self.duplicate_threshold}, expected a cosine: -1 to under 1")
        if self.block_rows < 1:
            raise UserError(f"--block_rows is {self.block_rows}, expected 1 or more")


def stage(lake: Lake, options: DeduplicateOptions, embed: Manifest | str) -> Stage:
    """What ``deduplicate`` would make of the vectors of ``embed`` (its manifest, or its id where it hasn't run yet)."""
    done = lake.manifest("embed", embed) if isinstance(embed, str) else embed
    return Stage(
        name="deduplicate",
        # block_rows changes no row, but it numbers the parts, which a restarted run must find under their numbers.
        parameters=parameters(options),
        upstream={"embed": embed if isinstance(embed, str) else embed.snapshot_id},
        items=None if done is None else done.rows["embeddings"],
        unit="vectors",
    )


def build(pipeline: beam.Pipeline, numbers: Sequence[int], transform: FindDuplicates) -> None:
    """The pipeline over the parts of ``embeddings`` with these numbers: all of them."""
    _ = pipeline | "Parts" >> beam.Create(list(numbers)) | "FindDuplicates" >> transform


def run(execution: Execution, options: DeduplicateOptions, embed: Manifest | None = None) -> Manifest:
    """Runs the stage on the newest vectors, or on those of ``embed``."""
    lake = execution.lake
    vectors = embed or lake.latest("embed")

    def work(planned: Stage) -> dict[str, Any]:
        numbers = [part_number(path) for path in lake.parts("embeddings", vectors.snapshot_id)]
        if numbers:
            transform = FindDuplicates(
                lake=lake,
                embed_snapshot=vectors.snapshot_id,
                deduplicate_snapshot=planned.snapshot_id,
                threshold=options.duplicate_threshold,
                block_rows=options.block_rows,
            )
            progress = Progress(
                "deduplicate",
                lambda: len(lake.parts("duplicate_pairs", planned.snapshot_id)),
                number_of_block_pairs(lake, vectors.snapshot_id, options.block_rows),
                "pairs of blocks",
            )
            execution.run(lambda pipeline: build(pipeline, numbers, transform), progress)
        return {}

    return execution.stage(stage(lake, options, vectors), work)


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "deduplicate", __doc__, (CommonOptions, DeduplicateOptions))
    common = parsed[CommonOptions]
    run(Execution(Lake(common.lake), parsed.beam, common.verbose), parsed[DeduplicateOptions])


if __name__ == "__main__":
    from pipelines.cli import run_verb

    sys.exit(run_verb(main, sys.argv[1:]))
