"""Near-duplicates among the training images: all pairs while they are few, cells and a measured recall beyond, then groups.

Every step takes numbers, reads and writes files of the lake, and leaves alone what is there already: so Beam shuffles small
rows only, and a run that was killed goes on.

    CheckBlock     a block of embeddings: refuses what has no cosine                            → work/vectors, keys, sample
    Prepare        all of them: one model, no id twice; identical vectors; what is new tonight  → work/marks, prepared
    QueryBlock     a block: the sampled images' pairs with it, by brute force                   → work/known
    Outlook        the sample's pairs: can the pixels of so many be looked at?                  → work/known.arrow
    Choose         all pairs at once, or cells: which, by the recall on the known pairs         → work/cells.npz
    SpillBlock     a block: its new vectors to the shards of their cells                        → work/shards
    CarryOver      a part of last night's pairs                                                 → duplicate_pairs
    ComparePieces  two sets of vectors of a shard (or of all)                                   → duplicate_pairs, work/compared
    MergeGroups    all spanning forests: what hangs together                                    → group_sizes, work/groups.npz
    GatherBlock    a block: members of groups to the batch of their group; those alone          → work/batches, duplicate_groups
    WriteBatch     a batch of groups: linkage and statistics                                    → duplicate_groups
    MeasureRecall  which known pairs were found                                                 → sampled_pairs, work/facts.json
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.duplicates.check import CheckBlock, Prepare
from transforms.duplicates.compare import CarryOver, ComparePieces, Outlook
from transforms.duplicates.groups import GatherBlock, MeasureRecall, MergeGroups, WriteBatch
from transforms.duplicates.job import PREPARED, Block, Search, blocks_of, keys_of, trained
from transforms.duplicates.search import CARRY, COMPARE, SPILL, Choose, PlanShards, QueryBlock, SpillBlock
from transforms.models.processes import Spread, in_this_process
from transforms.store.arrays import read_json, read_npz
from transforms.store.files import count_rows, delete, exists, list_files, read_parquet
from transforms.store.lake import Lake, part_number
from transforms.store.tombstones import Tombstones

__all__ = [
    "Block",
    "FindDuplicates",
    "Search",
    "blocks",
    "compared",
    "contained",
    "facts",
    "tidy",
    "to_compare",
    "training_keys",
]


@dataclasses.dataclass
class FindDuplicates(beam.PTransform):
    """All ``blocks`` of a search → how many pairs were sampled; nothing without a training vector.

    Writes ``duplicate_pairs``, ``duplicate_groups``, ``group_sizes`` and ``sampled_pairs``, of the role training alone.
    """

    job: Search
    spread: Spread = in_this_process

    def expand(self, blocks: beam.PCollection) -> beam.PCollection:
        job = self.job
        chosen = (
            blocks
            | "CheckBlock" >> beam.ParDo(CheckBlock(job))
            | "AllChecked" >> _Gather()
            | "Prepare" >> beam.ParDo(Prepare(job))
            | "SpreadQueries" >> beam.Reshuffle()
            | "QueryBlock" >> beam.ParDo(self.spread(QueryBlock(job)))
            | "AllQueried" >> _Gather()
            | "Outlook" >> beam.ParDo(Outlook(job))
            | "Choose" >> beam.ParDo(Choose(job)).with_outputs(COMPARE, SPILL, CARRY)
        )
        in_shards = (
            chosen[SPILL]
            | "SpreadSpills" >> beam.Reshuffle()
            | "SpillBlock" >> beam.ParDo(SpillBlock(job))
            | "AllSpilled" >> _Gather()
            | "PlanShards" >> beam.ParDo(PlanShards(job))
        )
        compared = (
            (chosen[COMPARE], in_shards)
            | "Comparisons" >> beam.Flatten()
            | "SpreadComparisons" >> beam.Reshuffle()
            | "ComparePieces" >> beam.ParDo(self.spread(ComparePieces(job)))
        )
        carried = chosen[CARRY] | "SpreadCarried" >> beam.Reshuffle() | "CarryOver" >> beam.ParDo(CarryOver(job))
        numbers = (compared, carried) | "Parts" >> beam.Flatten() | "AllCompared" >> _Gather()
        _ = (
            numbers
            | "MergeGroups" >> beam.ParDo(MergeGroups(job))
            | "SpreadGathers" >> beam.Reshuffle()
            | "GatherBlock" >> beam.ParDo(GatherBlock(job))
            | "AllGathered" >> _Gather()
            | "Batches" >> beam.FlatMap(_distinct)
            | "SpreadBatches" >> beam.Reshuffle()
            | "WriteBatch" >> beam.ParDo(WriteBatch(job))
        )
        return numbers | "MeasureRecall" >> beam.ParDo(MeasureRecall(job))


class _Gather(beam.PTransform):
    """Small elements → one list of all of them; nothing where there are none."""

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        return (
            elements
            | "Key" >> beam.Map(lambda element: (None, element))
            | "Group" >> beam.GroupByKey()
            | "List" >> beam.Map(lambda grouped: list(grouped[1]))
        )


def _distinct(batches: Iterable[Iterable[int]]) -> Iterator[int]:
    yield from sorted({number for some in batches for number in some})


def blocks(job: Search) -> list[Block]:
    """What ``FindDuplicates`` works on: the parts of ``embeddings``, in blocks of ``block_rows``."""
    rows = {part_number(path): count_rows(path) for path in job.lake.parts("embeddings", job.embed_snapshot)}
    return [Block(number, parts) for number, parts in enumerate(blocks_of(rows, job.block_rows))]


def contained(lake: Lake, deduplicate_snapshot: str, keys: np.ndarray) -> bool:
    """Whether an earlier search left its work files, and all its images are among those with these ``training_keys``.

    That their vectors are the same is checked by ``Prepare``.
    """
    stored = list_files(lake.work("deduplicate", deduplicate_snapshot, "keys"), ".npz")
    whole = exists(lake.work("deduplicate", deduplicate_snapshot, PREPARED))
    return whole and bool(stored) and all(np.isin(read_npz(path)["key"], keys).all() for path in stored)


def training_keys(lake: Lake, embed_snapshot: str) -> np.ndarray:
    """(n,) int64: the keys of the training images that have a vector."""
    keys, forgotten = [np.empty(0, np.int64)], Tombstones.read(lake)
    for path in lake.parts("embeddings", embed_snapshot):
        table = read_parquet(path, ["sample_id", "role", "status"])
        keys.append(keys_of(forgotten.spared(table.filter(trained(table)))["sample_id"].to_pylist()))
    return np.concatenate(keys)


def compared(job: Search) -> int:
    """Comparisons that are done, last night's included: for the progress line."""
    return len(job.lake.parts("duplicate_pairs", job.snapshot))


def to_compare(job: Search) -> int | None:
    """Comparisons in all; None while it isn't known yet."""
    path = job.work("total.json")
    return read_json(path) if exists(path) else None


def facts(job: Search) -> dict[str, Any]:
    """What the manifest tells of a search; nothing of one that had no training vector."""
    if not exists(job.work("facts.json")):
        return {}
    merged = read_json(job.work("merged.json"))
    return {**read_json(job.work("facts.json")), **{name: merged[name] for name in ("pairs", "pairs_without_a_row")}}


def tidy(lake: Lake, deduplicate_snapshot: str) -> None:
    """Removes what only a restart of this search would need; what the next night builds on stays."""
    folders = ("vectors", "sample", "marks", "known", "compared", "batches", "gathered")
    for name in (*folders, "sample.arrow", "known.arrow", "groups.npz"):
        delete(lake.work("deduplicate", deduplicate_snapshot, name))
