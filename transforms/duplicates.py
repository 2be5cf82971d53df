"""Near-duplicates among the training images: exact all-pairs over blocks of vectors, then groups.

A block is several parts of ``embeddings``, by their numbers; every two blocks (and each with itself) are one element,
whose pairs are written as one part of ``duplicate_pairs`` where they are found. What Beam groups are the numbers of
those parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.clip import read_vectors
from transforms.errors import UserError
from transforms.lake import Lake, count_rows, exists, part_number, read_parquet

NORM_TOLERANCE = 1e-4
"""How far the norm of a vector may be from 1. Ours are within 1e-7; a cosine is off by as much as the norm is."""

NAMED = 5
"""How many rows an error message names."""

GROUP_ROWS_PER_PART = 1 << 20


class BlockPair(NamedTuple):
    """Two blocks to compare: the number of their part of ``duplicate_pairs``, and their parts of ``embeddings``."""

    number: int
    first: tuple[int, ...]
    second: tuple[int, ...]


class Kind(NamedTuple):
    """What two vectors must share to be compared."""

    model: str
    pretrained: str
    preprocessing: str
    length: int

    def __str__(self) -> str:
        return f"{self.length} numbers by {self.model} with {self.pretrained} and {self.preprocessing}"


class PartSummary(NamedTuple):
    """A checked part of ``embeddings``: its number, training vectors, and each kind of them with one sample_id."""

    number: int
    rows: int
    kinds: dict[Kind, str]


def blocks_of(rows: dict[int, int], block_rows: int) -> list[tuple[int, ...]]:
    """Parts of ``embeddings`` (number → rows), in order, in blocks of up to ``block_rows`` rows or of one part."""
    blocks: list[list[int]] = []
    filled = 0
    for number in sorted(rows):
        if not blocks or filled + rows[number] > block_rows:
            blocks.append([])
            filled = 0
        blocks[-1].append(number)
        filled += rows[number]
    return [tuple(block) for block in blocks]


def number_of_block_pairs(lake: Lake, embed_snapshot: str, block_rows: int) -> int:
    """Elements that ``FindDuplicates`` will work on, at most: for the progress line."""
    rows = {part_number(path): count_rows(path) for path in lake.parts("embeddings", embed_snapshot)}
    blocks = len(blocks_of(rows, block_rows))
    return blocks * (blocks + 1) // 2


@dataclasses.dataclass
class CheckPart(beam.DoFn):
    """Number of a part of ``embeddings`` → its ``PartSummary``. UserError for vectors that have no cosine."""

    lake: Lake
    embed_snapshot: str

    def process(self, number: int) -> Iterator[PartSummary]:
        path = self.lake.part("embeddings", self.embed_snapshot, number)
        table = read_parquet(path, ["sample_id", "role", "model", "pretrained", "preprocessing", "vector", "status"])
        table = table.append_column("row", pa.array(np.arange(table.num_rows)))
        table = table.filter((pc.field("role") == "training") & (pc.field("status") == "success"))
        lengths = pc.list_value_length(table["vector"]).fill_null(0).to_numpy()
        values = table["vector"].combine_chunks().flatten().to_numpy().astype(np.float64)
        rows = np.repeat(np.arange(table.num_rows), lengths)
        norms = np.sqrt(np.bincount(rows, weights=values**2, minlength=table.num_rows))
        bad = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))
        if len(bad):
            named = ", ".join(
                f"row {table['row'][i].as_py()} (sample_id {table['sample_id'][i].as_py()}, norm {norms[i]:.6g})"
                for i in map(int, bad[:NAMED])
            )
            more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
            raise UserError(
                f"{path!r} holds {len(bad)} vectors that are not of unit length: {named}{more}; mend those rows, or "
                "let 'eidetic embed' make them"
            )
        kinds: dict[Kind, str] = {}
        for i, row in enumerate(table.select(["model", "pretrained", "preprocessing", "sample_id"]).to_pylist()):
            kind = Kind(row["model"], row["pretrained"], row["preprocessing"], int(lengths[i]))
            kinds.setdefault(kind, row["sample_id"])
        yield PartSummary(number, table.num_rows, kinds)


@dataclasses.dataclass
class PlanPairs(beam.DoFn):
    """All ``PartSummary`` → the ``BlockPair`` to compare. UserError where the table as a whole can't be compared."""

    lake: Lake
    embed_snapshot: str
    block_rows: int

    def process(self, grouped: tuple[None, Iterable[PartSummary]]) -> Iterator[BlockPair]:
        summaries = sorted(grouped[1], key=lambda summary: summary.number)
        kinds: dict[Kind, str] = {}
        for summary in summaries:
            for kind, sample in summary.kinds.items():
                kinds.setdefault(kind, sample)
        if len(kinds) > 1:
            named = "; ".join(f"sample_id {sample} has {kind}" for kind, sample in list(kinds.items())[:NAMED])
            raise UserError(
                f"the embeddings {self.embed_snapshot!r} mix {len(kinds)} kinds of vectors that have no cosine between "
                f"them: {named}; embed all images with one model"
            )
        self._check_ids([summary.number for summary in summaries])
        blocks = blocks_of({summary.number: summary.rows for summary in summaries if summary.rows}, self.block_rows)
        number = 0
        for i, first in enumerate(blocks):
            for second in blocks[i:]:
                yield BlockPair(number, first, second)
                number += 1

    def _check_ids(self, numbers: Sequence[int]) -> None:
        columns = {
            number: read_parquet(self.lake.part("embeddings", self.embed_snapshot, number), ["sample_id"])["sample_id"]
            for number in numbers
        }
        chunks = [chunk for column in columns.values() for chunk in column.chunks]
        counts = pc.value_counts(pa.chunked_array(chunks, pa.string()))
        repeated = [entry["values"].as_py() for entry in counts.filter(pc.greater(counts.field("counts"), 1))]
        if repeated:
            places = []
            for sample in sorted(repeated)[:NAMED]:
                rows = [
                    f"part {number} row {row}"
                    for number, column in columns.items()
                    for row in np.flatnonzero(column.to_numpy(zero_copy_only=False) == sample)
                ]
                places.append(f"{sample} ({', '.join(rows[:NAMED])})")
            raise UserError(
                f"the embeddings {self.embed_snapshot!r} hold {len(repeated)} sample_ids more than once: "
                f"{'; '.join(places)}; a sample has one vector: remove the others"
            )


class ComparePair(beam.DoFn):
    """``BlockPair`` → the number of its part of ``duplicate_pairs``, which is written unless it's there already.

    Args:
        lake: the lake.
        embed_snapshot: whose ``embeddings``, checked.
        deduplicate_snapshot: whose ``duplicate_pairs``.
        threshold: cosine; pairs over it are written.
    """

    def __init__(self, lake: Lake, embed_snapshot: str, deduplicate_snapshot: str, threshold: float):
        self.lake, self.embed_snapshot, self.deduplicate_snapshot = lake, embed_snapshot, deduplicate_snapshot
        self.threshold = threshold

    def process(self, pair: BlockPair) -> Iterator[int]:
        from transforms.kernels.neighbours import pairs_above

        if not exists(self.lake.part("duplicate_pairs", self.deduplicate_snapshot, pair.number)):
            ids_a, vectors_a = read_vectors(self.lake, self.embed_snapshot, pair.first, "training")
            same = pair.first == pair.second
            if same:
                ids_b, vectors_b = ids_a, vectors_a
            else:
                ids_b, vectors_b = read_vectors(self.lake, self.embed_snapshot, pair.second, "training")
            found = pairs_above(vectors_a, vectors_b, self.threshold, same)
            one, other = ids_a[found.i], ids_b[found.j]
            swap = one > other
            rows = pa.table(
                {
                    "sample_id_a": pa.array(np.where(swap, other, one), pa.string()),
                    "sample_id_b": pa.array(np.where(swap, one, other), pa.string()),
                    "cosine": pa.array(found.cosine.astype(np.float32)),
                }
            )
            rows = rows.sort_by([("sample_id_a", "ascending"), ("sample_id_b", "ascending")])
            self.lake.write("duplicate_pairs", self.deduplicate_snapshot, pair.number, rows)
        yield pair.number


@dataclasses.dataclass
class WriteGroups(beam.DoFn):
    """Numbers of all parts of ``duplicate_pairs`` → the number of groups; writes ``duplicate_groups``."""

    lake: Lake
    embed_snapshot: str
    deduplicate_snapshot: str

    def process(self, grouped: tuple[None, Iterable[int]]) -> Iterator[int]:
        from transforms.kernels.neighbours import connected_components, group_statistics

        numbers = [part_number(path) for path in self.lake.parts("embeddings", self.embed_snapshot)]
        ids = self._ids(numbers)
        # Sorted, so that a group's name, and whom ties favour, depend on ids and not on the order of the parts.
        ids.sort()
        pairs = [self._pairs(number, ids) for number in sorted(grouped[1])]
        labels = connected_components(len(ids), np.concatenate([np.empty((0, 2), np.int64), *pairs]))
        sizes = np.bincount(labels)
        _, first = np.unique(labels, return_index=True)
        representative, lowest = first.copy(), np.ones(len(sizes))
        # Vectors are needed of those in a group only; groups of one are most of a real training set.
        in_group = np.flatnonzero(sizes[labels] > 1)
        if len(in_group):
            vectors = self._vectors(numbers, ids, in_group)
            several, short_labels = np.unique(labels[in_group], return_inverse=True)
            statistics = group_statistics(vectors, short_labels)
            representative[several] = in_group[statistics.representative]
            lowest[several] = statistics.lowest_cosine
        groups = pa.table(
            {
                "sample_id": pa.array(ids, pa.string()),
                # Ids are sorted, so the first of a group is its smallest.
                "group_id": pa.array(ids[first[labels]], pa.string()),
                "size": pa.array(sizes[labels].astype(np.int32)),
                "representative": pa.array(ids[representative[labels]], pa.string()),
                "lowest_cosine": pa.array(lowest[labels].astype(np.float32)),
            }
        )
        for part, start in enumerate(range(0, groups.num_rows, GROUP_ROWS_PER_PART)):
            rows = groups.slice(start, GROUP_ROWS_PER_PART)
            self.lake.write("duplicate_groups", self.deduplicate_snapshot, part, rows)
        yield len(sizes)

    def _ids(self, numbers: Sequence[int]) -> np.ndarray:
        found = [np.empty(0, object)]
        for number in numbers:
            path = self.lake.part("embeddings", self.embed_snapshot, number)
            table = read_parquet(path, ["sample_id", "role", "status"])
            table = table.filter((pc.field("role") == "training") & (pc.field("status") == "success"))
            found.append(table["sample_id"].to_numpy(zero_copy_only=False))
        return np.concatenate(found)

    def _pairs(self, number: int, ids: np.ndarray) -> np.ndarray:
        table = read_parquet(self.lake.part("duplicate_pairs", self.deduplicate_snapshot, number))
        sides = [table[name].to_numpy(zero_copy_only=False) for name in ("sample_id_a", "sample_id_b")]
        return np.stack([np.searchsorted(ids, side) for side in sides], axis=1).astype(np.int64)

    def _vectors(self, numbers: Sequence[int], ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """(w, d) float32 of the ids at the positions ``wanted`` (ascending), read part by part."""
        result: np.ndarray | None = None
        for number in numbers:
            part_ids, vectors = read_vectors(self.lake, self.embed_snapshot, [number], "training")
            if not len(part_ids):
                continue
            if result is None:
                result = np.empty((len(wanted), vectors.shape[1]), np.float32)
            positions = np.searchsorted(ids, part_ids)
            places = np.searchsorted(wanted, positions)
            here = (places < len(wanted)) & (wanted[np.minimum(places, len(wanted) - 1)] == positions)
            result[places[here]] = vectors[here]
        assert result is not None, "groups have members, and members have vectors"
        return result


@dataclasses.dataclass
class FindDuplicates(beam.PTransform):
    """Numbers of all parts of ``embeddings`` → the number of groups (one number, or nothing without any vector).

    Writes ``duplicate_pairs`` and ``duplicate_groups``, of the role training alone. Parts of pairs that exist are left
    alone, so a run that was killed goes on.

    Attributes:
        lake: the lake.
        embed_snapshot: whose ``embeddings``.
        deduplicate_snapshot: whose pairs and groups.
        threshold: cosine; -1 to 1; pairs over it are duplicates.
        block_rows: vectors in a block. Two blocks lie in a worker's memory at once.
    """

    lake: Lake
    embed_snapshot: str
    deduplicate_snapshot: str
    threshold: float
    block_rows: int

    def expand(self, numbers: beam.PCollection) -> beam.PCollection:
        return (
            numbers
            | "CheckPart" >> beam.ParDo(CheckPart(self.lake, self.embed_snapshot))
            | "KeySummaries" >> beam.Map(lambda summary: (None, summary))
            | "AllChecked" >> beam.GroupByKey()
            | "PlanPairs" >> beam.ParDo(PlanPairs(self.lake, self.embed_snapshot, self.block_rows))
            | "SpreadPairs" >> beam.Reshuffle()
            | "ComparePair"
            >> beam.ParDo(ComparePair(self.lake, self.embed_snapshot, self.deduplicate_snapshot, self.threshold))
            | "KeyParts" >> beam.Map(lambda number: (None, number))
            | "AllCompared" >> beam.GroupByKey()
            | "WriteGroups" >> beam.ParDo(WriteGroups(self.lake, self.embed_snapshot, self.deduplicate_snapshot))
        )
