"""Finds the near-duplicates among the training images, groups them, and says which to keep for the next training run.

reads   embeddings (and images, for the second opinion; samples, for the keep list)
writes  duplicate_pairs: every pair over the threshold; duplicate_groups: every embedded training image in its group;
        keep_list: one image of each group; group_sizes and sampled_pairs: what another threshold would do

Up to --exact_up_to vectors all pairs are compared. Beyond, only vectors that share a cell of a trained quantiser, each in as
many cells as --recall needs; the recall is measured against brute force on a sample in every run, and is in the manifest.
Where the lake has the vectors of an earlier run with the same options, only the new ones are compared, with the old and with
each other. A group is what hangs together by pairs (--linkage single), or what all are pairs in (complete); its lowest cosine
and its diameter tell a chain from a set of copies. Controls take no part.
The paper gives no threshold. The default was chosen from the planted copies of the embedded corpus under the embedded
CLIP, where it finds every re-encoded and every resized copy and joins no two logos: see docs/duplicates.md. Under
another model, look at the sweep of thresholds in the report first.

  eidetic deduplicate --lake lake --duplicate_threshold 0.9
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipelines.costs import Cost, Size, lines
from pipelines.execution import Execution, Progress, say
from pipelines.options import Options, Parsed, option, parameters
from pipelines.stages import Planned, Stage
from transforms.duplicates import (
    Block,
    FindDuplicates,
    Search,
    blocks,
    compared,
    contained,
    facts,
    tidy,
    to_compare,
    training_keys,
)
from transforms.duplicates.keep_list import RULES, write_keep_list
from transforms.errors import UserError
from transforms.matching.tasks import EXACT_UP_TO
from transforms.store.lake import Lake, Manifest


@dataclasses.dataclass(frozen=True)
class DeduplicateOptions(Options):
    """Near-duplicates."""

    duplicate_threshold: float = option(0.9, "two training images with a cosine over this are duplicates", least=-1, under=1)
    thumbnail_share: float = option(
        0.0, "of an 8 x 8 thumbnail in the cosine, beside CLIP; 0: CLIP alone, as in the paper", least=0, most=1
    )
    recall: float = option(
        0.99,
        "share of the pairs that must be found; with more vectors than --exact_up_to the cells are chosen by it",
        over=0,
        under=1,
    )
    exact_up_to: int = option(50_000, "with so many vectors or fewer all pairs are compared", least=0)
    linkage: str = option("single", "a group is what hangs together (single), or what all are pairs in (complete)",
                          choices=("single", "complete"))  # fmt: skip
    keep_one: str = option("highest_resolution", "which image of a group keep_list keeps", choices=RULES)
    pixel_band: float = option(0.1, "pairs with a cosine up to so much over the threshold are looked at; 0: none is", least=0)
    pixel_distance: float = option(0.08, "aligned tiled l2 of two pictures up to which their pixels agree, 0 to 1", least=0)
    pixels_decide: bool = option(
        True, "pairs whose pixels disagree join no group; with --no_pixels_decide CLIP alone decides, as in the paper"
    )
    most_pairs: int = option(
        1000, "pairs of one image, in one comparison of two blocks, that get a row, the nearest first", least=1
    )
    block_rows: int = option(100_000, "vectors in a block; a worker holds two blocks at once", least=1)
    incremental: bool = option(True, "build on an earlier run over some of the same vectors; --no_incremental: start anew")
    duplicate_seed: int = option(0, "of the quantiser's training and of what is sampled")


WHO_IS_A_DUPLICATE = ("duplicate_threshold", "thumbnail_share", "linkage", "pixels_decide", "pixel_distance")
"""Options by which the groups are told apart; the others say how they are searched for, and which image stands for them."""

NOT_OF_THE_SEARCH = ("keep_one",)
"""Options that a run may build on another for that has them otherwise."""


def plan(lake: Lake, parsed: Parsed, embed: str | None) -> Planned:
    """What ``deduplicate`` would make of the vectors of ``embed``."""
    assert embed is not None, "it has an upstream"
    options: DeduplicateOptions = parsed[DeduplicateOptions]
    vectors = lake.manifest("embed", embed)
    # block_rows changes no row, but it numbers the parts, which a restarted run must find under their numbers.
    given, upstream = parameters(options), {"embed": embed}
    done = [one for one in lake.manifests("deduplicate") if one.parameters == given and one.upstream["embed"] == embed]
    if done:
        upstream = done[-1].upstream
    elif vectors is not None and options.incremental:
        earlier = base_run(lake, options, vectors)
        # What was found depends on the cells, and so on the night whose cells these are.
        upstream |= {"deduplicate": earlier.snapshot_id} if earlier else {}
    return Planned(
        stage="deduplicate",
        parameters=given,
        upstream=upstream,
        unit="vectors",
        count=lambda: None if vectors is None else vectors.rows["embeddings"],
    )


def costs(lake: Lake, parsed: Parsed, size: Size) -> list[Cost]:
    """What pairs, groups, the keep list and the index of matching take."""
    made = [lines()["deduplicate"].cost("pairs and groups", size.images, size.images, "vectors")]
    if size.images > EXACT_UP_TO:
        made.append(lines()["index"].cost("index", size.images, size.images, "vectors"))
    return made


def base_run(lake: Lake, options: DeduplicateOptions, embed: Manifest) -> Manifest | None:
    """The newest run with the same options over some of the same images under the same model, to build on."""
    wanted, keys = parameters(options, NOT_OF_THE_SEARCH), None
    for earlier in reversed(lake.manifests("deduplicate")):
        same = {name: value for name, value in earlier.parameters.items() if name not in NOT_OF_THE_SEARCH} == wanted
        vectors = lake.manifest("embed", earlier.upstream["embed"])
        if not same or vectors is None or vectors.parameters != embed.parameters:
            continue
        # One that lost more than it was allowed to is no base.
        recall = earlier.facts.get("recall")
        if recall is None or recall >= options.recall:
            keys = training_keys(lake, embed.snapshot_id) if keys is None else keys
            if contained(lake, earlier.snapshot_id, keys):
                return earlier
    return None


def build(pipeline: beam.Pipeline, work: Sequence[Block], transform: FindDuplicates) -> None:
    """The pipeline over ``work``: all blocks of the search."""
    _ = pipeline | "Blocks" >> beam.Create(list(work)) | "FindDuplicates" >> transform


def search(lake: Lake, options: DeduplicateOptions, embed: Manifest, planned: Planned) -> Search:
    """The search that makes ``planned``."""
    ingest = embed.upstream["ingest"]
    base = planned.upstream.get("deduplicate")
    earlier = None if base is None else lake.manifest("deduplicate", base)
    return Search(
        lake=lake,
        embed_snapshot=embed.snapshot_id,
        snapshot=planned.snapshot_id,
        ingest_snapshot=ingest if options.pixel_band > 0 and lake.manifest("ingest", ingest) else None,
        chain=() if earlier is None else (*earlier.facts["built_on"], earlier.snapshot_id),
        carried_parts=0 if earlier is None else len(lake.parts("duplicate_pairs", earlier.snapshot_id)),
        rows=embed.rows["embeddings"],
        threshold=options.duplicate_threshold,
        recall=options.recall,
        exact_up_to=options.exact_up_to,
        block_rows=options.block_rows,
        most_pairs=options.most_pairs,
        linkage=options.linkage,
        pixel_band=options.pixel_band,
        pixel_distance=options.pixel_distance,
        pixels_decide=options.pixels_decide,
        thumbnail_share=options.thumbnail_share,
        seed=options.duplicate_seed,
    )


def work(execution: Execution, parsed: Parsed, planned: Planned, vectors: Manifest | None) -> dict[str, Any]:
    """Searches, groups, and writes the list of what to keep."""
    assert vectors is not None, "it has an upstream"
    lake, options = execution.lake, parsed[DeduplicateOptions]
    job = search(lake, options, vectors, planned)
    to_do = blocks(job)
    if to_do:
        transform = FindDuplicates(job, execution.spread)
        progress = Progress("deduplicate", lambda: compared(job), lambda: to_compare(job), "comparisons")
        execution.run(lambda pipeline: build(pipeline, to_do, transform), progress)
    found = facts(job)
    if found:
        kept = write_keep_list(lake, vectors.upstream["ingest"], planned.snapshot_id, options.keep_one)
        found["share_removed"] = 1 - kept / found["vectors"]
        say(summary(found, options))
        index(execution, vectors, planned.snapshot_id)
    return found


def index(execution: Execution, vectors: Manifest, snapshot: str) -> None:
    """Makes the index of the groups that ``match`` and ``lookup`` search, where they are too many to be compared directly."""
    from transforms.kernels.distances import Frame
    from transforms.matching.candidates import IndexGroups
    from transforms.matching.directory import Directory
    from transforms.matching.lookup import is_indexed
    from transforms.matching.tasks import Round, Snapshots

    lake, ingest = execution.lake, vectors.upstream["ingest"]
    if lake.manifest("ingest", ingest) is None:
        return
    Directory(lake, snapshot).write(ingest, vectors.snapshot_id)
    groups = Round(lake, Snapshots(ingest, vectors.snapshot_id, snapshot, ""), "", "index", (), Frame(0, 0), 1, 1)
    if not is_indexed(groups):
        execution.run(lambda pipeline: pipeline | "IndexGroups" >> IndexGroups(groups))


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    """UserError where there is no group: then there is nothing for the later stages."""
    tidy(execution.lake, manifest.snapshot_id)
    if not manifest.rows["duplicate_groups"]:
        raise UserError(
            "no training picture has a vector, so there is nothing to group; 'eidetic embed' and 'eidetic ingest' say why"
        )


def summary(found: dict[str, Any], options: DeduplicateOptions) -> str:
    """One line about a search, for the terminal; with a second one where it lost more than was asked for."""
    how = "all pairs compared"
    if found["method"] == "cells":
        how = f"{found['cells']:,} cells, each vector in {found['assignments']}"
    if found["recall"] is None:
        measured = "no sampled image has a duplicate, so the recall is not known"
    else:
        pairs, images = f"{found['recall_pairs']:,} sampled pairs", f"{found['recall_images']:,} sampled images"
        measured = f"recall {found['recall']:.4f} of {pairs} (at least {found['recall_at_least']:.4f})"
        measured += f" and {found['recall_of_images']:.4f} of {images}"
    lines = [
        f"deduplicate  {how}; {measured}; {found['pairs']:,} pairs; keep_list removes {100 * found['share_removed']:.1f}%",
    ]
    if found["built_on"]:
        lines.append(f"deduplicate  {found['new_vectors']:,} new vectors compared with those of {found['built_on'][-1]}")
    elif found["why_anew"]:
        lines.append(f"deduplicate  started anew: {found['why_anew']}")
    if found["recall"] is not None and found["recall"] < options.recall:
        lines.append(
            f"deduplicate  the recall is under --recall {options.recall}: the cells were chosen by other sampled pairs; "
            "ask for more, or raise --exact_up_to to compare all pairs"
        )
    return "\n".join(lines)


STAGE = Stage(
    name="deduplicate",
    description=__doc__,
    upstream="embed",
    options=(DeduplicateOptions,),
    plan=plan,
    work=work,
    finish=finish,
    costs=costs,
)
main = STAGE.main


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
