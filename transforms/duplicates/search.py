"""How the vectors are spread for the comparison: by what brute force says of a sample.

The method is that of ``kernels/cells.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms.duplicates.check import training_sample
from transforms.duplicates.job import SWEEP_DEPTH, Block, Preparation, Search, Vectors, blocks_of, read_block
from transforms.kernels import cells as kernel
from transforms.store.arrays import matrix, read_arrow, read_json, read_npz, vectors_column, write_arrow, write_json, write_npz
from transforms.store.files import exists, list_files
from transforms.store.sharing import Shared

PAIRS_OF_A_QUERY = 200
"""Pairs with one block that are kept of a sampled image, over the threshold and under it each. More are drawn from."""

MOST_KNOWN = 1 << 16
"""Pairs of the sampled images that are kept in all, over the threshold and under it each: enough to tell a recall of 0.9999."""

CHOSEN_BY = 1 << 13
"""Pairs, at most, that the cells are chosen by: of every second sampled image, so many of each that all have their say."""

COMPARE, SPILL, CARRY = "compare", "spill", "carry"


# -- what brute force says of the sample ----------------------------------------------------------------------------


class QueryBlock(beam.DoFn):
    """``Block`` → itself; writes the sampled images' pairs with it, down to where the sweep of thresholds begins."""

    def __init__(self, job: Search):
        self.job = job

    def process(self, block: Block) -> Iterator[Block]:
        path = self.job.file("known", block.number, "arrow")
        if not exists(path):
            prepared = Preparation.read(self.job)
            vectors, marks = read_block(self.job, block.number)
            vectors = vectors.take(np.flatnonzero(marks.is_canonical))
            write_arrow(path, self._known(block.number, prepared, vectors))
        yield block

    def _known(self, number: int, prepared: Preparation, block: Vectors) -> pa.Table:
        floor = self.job.threshold - SWEEP_DEPTH
        query, other, cosine = pairs_of_queries(prepared.queries, block.vector, prepared.basis, floor)
        apart = prepared.query_keys[query] != block.key[other]
        query, other, cosine = query[apart], other[apart], cosine[apart]
        over = cosine > self.job.threshold
        random = np.random.default_rng([self.job.seed, number])
        most = max(256, 4 * MOST_KNOWN // len(prepared.blocks))
        kept, stands_for = zip(*(_drawn(np.flatnonzero(side), query, most, random) for side in (over, ~over)), strict=True)
        places = np.concatenate(kept)
        return pa.table(
            {
                "query": query[places].astype(np.int32),
                "key": block.key[other[places]],
                "sample_id": pa.array(block.sample_id[other[places]], pa.string()),
                "cosine": cosine[places],
                "stands_for": np.concatenate(stands_for),
                "vector": vectors_column(block.vector[other[places]]),
            }
        )


def pairs_of_queries(
    queries: np.ndarray, vectors: np.ndarray, basis: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(query, row, cosine) of all pairs over the threshold: every query is compared with every vector, by sketches first."""
    one, other = (
        kernel.Spread(some, kernel.sketch(some, basis), np.zeros((len(some), 1), np.int32)) for some in (queries, vectors)
    )
    found = list(kernel.pairs_in_cells(one, other, threshold, False))
    query, row, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
    return query, row, cosine


def _drawn(places: np.ndarray, query: np.ndarray, most: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Up to PAIRS_OF_A_QUERY places of each query and ``most`` in all, at random; and how many places each stands for."""
    shuffled = random.permutation(places)
    shuffled = shuffled[np.argsort(query[shuffled], kind="stable")]
    mine = query[shuffled]
    first = np.searchsorted(mine, mine)
    count = np.searchsorted(mine, mine, side="right") - first
    kept = np.arange(len(mine)) - first < PAIRS_OF_A_QUERY
    stands_for = (count / np.minimum(count, PAIRS_OF_A_QUERY))[kept]
    places = shuffled[kept]
    if len(places) > most:
        chosen = np.sort(random.permutation(len(places))[:most])
        return places[chosen], stands_for[chosen] * len(places) / most
    return places, stands_for


class Cells(NamedTuple):
    """How the vectors are spread.

    Attributes:
        quantiser: None where all pairs are compared.
        assignments: cells for each vector, at most.
        margin: radians; see ``Quantiser.assign``.
        shard: (cells,) int64: the shard of each cell.
    """

    quantiser: kernel.Quantiser | None
    assignments: int
    margin: float
    shard: np.ndarray

    @staticmethod
    def write(job: Search, choice: kernel.Choice, vectors: int) -> None:
        stored: dict[str, Any] = {"assignments": np.int64(choice.assignments), "margin": np.float64(choice.margin)}
        if choice.quantiser is not None:
            # A vector goes to as many shards as its cells lie in, one or two; a shard should fill a block.
            shards = -(-2 * vectors // job.block_rows)
            stored |= {"shard": choice.quantiser.shards(shards)}
            stored |= {name: getattr(choice.quantiser, name) for name in ("basis", "coarse", "fine", "starts")}
        write_npz(job.work("cells.npz"), **stored)

    @classmethod
    def read(cls, job: Search) -> Cells:
        stored = read_npz(job.work("cells.npz"))
        assignments, margin = int(stored.pop("assignments")), float(stored.pop("margin"))
        shard = stored.pop("shard", np.empty(0, np.int64))
        return cls(kernel.Quantiser(**stored) if stored else None, assignments, margin, shard)


class Piece(NamedTuple):
    """Where some vectors lie that are compared with others.

    Attributes:
        snapshot: of the night that spilled them to a shard; empty where they are read from ``embeddings``.
        block: what was spilled, or the block to read.
        new: tonight's vectors of that block, or those of before.
    """

    snapshot: str
    block: int
    new: bool


class Comparison(NamedTuple):
    """Two sets of vectors to compare.

    Attributes:
        number: of their part of ``duplicate_pairs``.
        shard: whose cells; -1 where all vectors meet.
        first, second: the same twice where a set is compared with itself.
    """

    number: int
    shard: int
    first: tuple[Piece, ...]
    second: tuple[Piece, ...]


def comparisons(job: Search, shard: int, new: dict[Piece, int], old: dict[Piece, int], number: int) -> Iterator[Comparison]:
    """Every two of the new, and every new with every old, block by block; numbered from ``number`` on.

    Args:
        job: the search.
        shard: see ``Comparison``.
        new, old: piece → vectors.
        number: of the first.
    """
    # What is compared with itself alone may be twice as large.
    alone = sum(new.values()) <= 2 * job.block_rows and not old
    blocks = []
    for pieces in (new, old):
        names = sorted(pieces)
        rows = {place: pieces[name] for place, name in enumerate(names)}
        together = blocks_of(rows, 2 * job.block_rows if alone else job.block_rows)
        blocks.append([tuple(names[place] for place in places) for places in together])
    for i, first in enumerate(blocks[0]):
        for second in blocks[0][i:] + blocks[1]:
            yield Comparison(number, shard, first, second)
            number += 1


class Choose(beam.DoFn):
    """All ``Block`` → what to do next: ``Comparison`` (COMPARE), ``Block`` to spill (SPILL), old parts to carry over (CARRY).

    Writes the cells.
    """

    def __init__(self, job: Search):
        self.job = job

    def process(self, blocks: Sequence[Block]) -> Iterator[beam.pvalue.TaggedOutput]:
        job, prepared = self.job, Preparation.read(self.job)
        known = known_pairs(job, blocks)
        if not exists(job.work("cells.npz")):
            if prepared.chain:
                before = job.of(prepared.chain[-1])
                write_npz(job.work("cells.npz"), **read_npz(before.work("cells.npz")))
            else:
                Cells.write(job, self._choose(prepared, known), prepared.vectors)
        if prepared.chain:
            yield from (beam.pvalue.TaggedOutput(CARRY, number) for number in range(job.carried_parts))
        if Cells.read(job).quantiser is None:
            new, old = (
                {Piece("", block, new): rows for block, rows in counts.items()}
                for new, counts in ((True, prepared.new), (False, prepared.old))
            )
            planned = list(comparisons(job, -1, new, old, job.carried_parts))
            write_total(job, prepared, len(planned))
            yield from (beam.pvalue.TaggedOutput(COMPARE, one) for one in planned)
        else:
            yield from (beam.pvalue.TaggedOutput(SPILL, block) for block in prepared.blocks if block.number in prepared.new)

    def _choose(self, prepared: Preparation, known: pa.Table) -> kernel.Choice:
        if prepared.vectors <= self.job.exact_up_to:
            return kernel.Choice(None, 0, 0.0, 1.0)
        query = known["query"].to_numpy()
        places, weight = chosen_by(query, known["cosine"].to_numpy() > self.job.threshold, known["stands_for"].to_numpy())
        query = query[places]
        pairs = (
            kernel.Known(prepared.queries[query], matrix(known["vector"].take(places)), query, weight) if len(places) else None
        )
        return kernel.choose(
            training_sample(self.job),
            prepared.basis,
            sum(prepared.new.values()),
            pairs,
            self.job.threshold,
            self.job.recall,
            self.job.seed,
        )


def known_pairs(job: Search, blocks: Sequence[Block]) -> pa.Table:
    """The known pairs of all blocks, those over the threshold first, in an order that is random; written when first asked for.

    Cut to ``MOST_KNOWN`` over the threshold and under it each.
    """
    path = job.work("known.arrow")
    if exists(path):
        return read_arrow(path)
    known = pa.concat_tables([read_arrow(job.file("known", block.number, "arrow")) for block in blocks])
    # Whatever the blocks were, the same pairs come in the same order.
    known = known.take(np.lexsort((known["key"].to_numpy(), known["query"].to_numpy())))
    over = known["cosine"].to_numpy() > job.threshold
    random = np.random.default_rng(job.seed)
    kept = []
    for side in (over, ~over):
        places = random.permutation(np.flatnonzero(side))
        stands_for = known["stands_for"].to_numpy()[places] * max(1.0, len(places) / MOST_KNOWN)
        drawn = known.take(places[:MOST_KNOWN])
        kept.append(drawn.set_column(drawn.column_names.index("stands_for"), "stands_for", pa.array(stands_for[:MOST_KNOWN])))
    known = pa.concat_tables(kept)
    write_arrow(path, known)
    return known


def judged(query: np.ndarray) -> np.ndarray:
    """(k,) bool: whose pairs tell the recall; the cells are chosen by those of the other sampled images."""
    return query % 2 == 1


def chosen_by(query: np.ndarray, over: np.ndarray, stands_for: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the pairs that the cells are chosen by, the first of each image before the second of any; and their weights.

    Args:
        query: (k,) number of the sampled image.
        over: (k,) bool: over the threshold.
        stands_for: (k,) pairs that each stands for.
    """
    places = np.flatnonzero(over & ~judged(query))
    order = places[np.argsort(query[places], kind="stable")]
    rank = np.arange(len(order)) - np.searchsorted(query[order], query[order])
    chosen = order[np.argsort(rank, kind="stable")][:CHOSEN_BY]
    images = int(query.max(initial=-1)) + 1
    of_all, of_chosen = (np.bincount(query[some], stands_for[some], images) for some in (places, chosen))
    return chosen, stands_for[chosen] * of_all[query[chosen]] / of_chosen[query[chosen]]


def write_total(job: Search, prepared: Preparation, planned: int) -> None:
    """How many parts ``duplicate_pairs`` will have: for the progress line."""
    write_json(job.work("total.json"), planned + (job.carried_parts if prepared.chain else 0))


# -- spreading ------------------------------------------------------------------------------------------------------


class Spilled(NamedTuple):
    """What one block gave to one shard."""

    shard: int
    block: int
    rows: int


class SpillBlock(beam.DoFn):
    """``Block`` → a ``Spilled`` for each shard that got some of its new vectors."""

    def __init__(self, job: Search):
        self.job = job
        self._cells = Shared(lambda: Cells.read(job))

    def process(self, block: Block) -> Iterator[Spilled]:
        done = self.job.file("spilled", block.number, "json")
        if not exists(done):
            vectors, marks = read_block(self.job, block.number)
            write_json(done, self._spill(block.number, vectors.take(np.flatnonzero(marks.new & marks.is_canonical))))
        for shard, rows in read_json(done):
            yield Spilled(shard, block.number, rows)

    def _spill(self, number: int, block: Vectors) -> list[tuple[int, int]]:
        cells = self._cells.get()
        assert cells.quantiser is not None, "only what is spread over cells is spilled"
        assigned = cells.quantiser.assign(kernel.sketch(block.vector, cells.quantiser.basis), cells.assignments, cells.margin)
        shards = np.where(assigned >= 0, cells.shard[assigned], -1)
        counts = []
        for shard in np.unique(shards[shards >= 0]).tolist():
            rows = np.flatnonzero((shards == shard).any(axis=1))
            table = pa.table(
                {
                    "key": block.key[rows],
                    "sample_id": pa.array(block.sample_id[rows], pa.string()),
                    "cells": vectors_column(assigned[rows]),
                    "vector": vectors_column(block.vector[rows]),
                }
            )
            write_arrow(shard_file(self.job, self.job.snapshot, shard, number), table)
            counts.append((shard, len(rows)))
        return counts


def shard_file(job: Search, snapshot: str, shard: int, block: int) -> str:
    return job.lake.work("deduplicate", snapshot, "shards", f"{shard:05d}", f"{block:05d}.arrow")


class PlanShards(beam.DoFn):
    """All ``Spilled`` → the ``Comparison`` in each shard; one that is too large for a worker is compared block by block."""

    def __init__(self, job: Search):
        self.job = job

    def process(self, spilled: Sequence[Spilled]) -> Iterator[Comparison]:
        prepared = Preparation.read(self.job)
        new: dict[int, dict[Piece, int]] = {}
        old: dict[int, dict[Piece, int]] = {}
        for one in spilled:
            new.setdefault(one.shard, {})[Piece(self.job.snapshot, one.block, True)] = one.rows
        for snapshot in prepared.chain:
            for path in list_files(self.job.lake.work("deduplicate", snapshot, "spilled"), ".json"):
                for shard, rows in read_json(path):
                    old.setdefault(shard, {})[Piece(snapshot, int(path[-10:-5]), False)] = rows
        planned: list[Comparison] = []
        for shard in sorted(new):
            number = self.job.carried_parts + len(planned)
            planned += comparisons(self.job, shard, new[shard], old.get(shard, {}), number)
        write_total(self.job, prepared, len(planned))
        yield from planned
