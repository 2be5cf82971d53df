"""What hangs together by the pairs: the groups, what there is to know about each, and how sure the search is of itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms.duplicates.compare import Compared, SecondOpinion, all_marks, pictures_of
from transforms.duplicates.job import Block, Preparation, Search, positions, read_block
from transforms.duplicates.search import Cells, judged
from transforms.kernels import groups as kernel
from transforms.store.arrays import read_arrow, read_json, read_npz, write_arrow, write_json, write_npz
from transforms.store.files import exists, list_files

SWEPT = 1000
"""Known pairs over the threshold, and as many under it, whose pixels are looked at for the sweep of thresholds."""


class MergeGroups(beam.DoFn):
    """Numbers of all comparisons → the blocks; writes the spanning forest, who is in which group, and ``group_sizes``."""

    def __init__(self, job: Search):
        self.job = job

    def process(self, numbers: Sequence[int]) -> Iterator[Block]:
        prepared = Preparation.read(self.job)
        if not exists(self.job.work("merged.json")):
            self._merge(prepared, sorted(numbers))
        yield from prepared.blocks

    def _merge(self, prepared: Preparation, numbers: list[int]) -> None:
        job = self.job
        pairs = left_out = 0

        def forests() -> Iterator[kernel.Edges]:
            nonlocal pairs, left_out
            if prepared.chain:
                yield self._forest_of_before(prepared)
            for number in numbers:
                compared = Compared.read(job, number)
                pairs += int(compared.pairs)
                left_out += int(compared.left_out)
                yield compared.forest

        forest = kernel.merge_forests(forests())
        sets = kernel.ExactSets(prepared.canonical_keys, prepared.set_sizes)
        groups = kernel.groups_of(forest, sets)
        # A batch holds whole groups, together as many vectors as a block where no group is larger.
        vectors = np.bincount(groups.label, minlength=len(groups.size))
        batch = (np.cumsum(vectors) - vectors) // job.block_rows
        write_npz(job.work("forest.npz"), **forest._asdict())
        write_npz(job.work("groups.npz"), node=groups.node, label=groups.label, batch=batch)
        columns = ("threshold", "groups", "images_in_groups", "largest")
        # Of pairs under the search's own threshold only the sampled ones are known.
        unknown = [(threshold, None, None, None) for threshold in job.sweep() if threshold < job.threshold]
        sizes = kernel.sizes_by_threshold(forest, sets, [one for one in job.sweep() if one >= job.threshold])
        rows = [dict(zip(columns, one, strict=True)) for one in (*unknown, *sizes)]
        job.lake.write("group_sizes", job.snapshot, 0, rows)
        if prepared.chain:
            before = read_json(job.of(prepared.chain[-1]).work("merged.json"))
            pairs, left_out = pairs + before["pairs_without_a_row"], left_out + before["pairs_without_a_row"]
        inside = int((sets.size * (sets.size - 1) // 2).sum())
        merged = {"pairs": pairs + inside, "pairs_without_a_row": left_out, "batches": int(batch.max(initial=-1)) + 1}
        write_json(job.work("merged.json"), merged)

    def _forest_of_before(self, prepared: Preparation) -> kernel.Edges:
        """Last night's forest; images that an exact-duplicate set has taken up since are replaced by its canonical image."""
        before = kernel.Edges(**read_npz(self.job.of(prepared.chain[-1]).work("forest.npz")))
        if not len(prepared.canonical_keys):
            return before
        silent, canonical = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for marks in all_marks(self.job, prepared):
            silent.append(marks.key[~marks.is_canonical])
            canonical.append(marks.canonical[~marks.is_canonical])
        keys, leaders = np.concatenate(silent), np.concatenate(canonical)
        order = np.argsort(keys)
        keys, leaders = keys[order], leaders[order]

        def told_by(nodes: np.ndarray) -> np.ndarray:
            place, there = positions(keys, nodes)
            return np.where(there, leaders[place], nodes)

        i, j = told_by(before.i), told_by(before.j)
        return kernel.Edges(i[i != j], j[i != j], before.cosine[i != j])


class GatherBlock(beam.DoFn):
    """``Block`` → the batches that it has members of groups for, as a list; writes those, and the block's groups of one."""

    def __init__(self, job: Search):
        self.job = job

    def process(self, block: Block) -> Iterator[list[int]]:
        done = self.job.file("gathered", block.number, "json")
        if not exists(done):
            write_json(done, self._gather(block))
        yield read_json(done)

    def _gather(self, block: Block) -> list[int]:
        job = self.job
        vectors, marks = read_block(job, block.number)
        groups = read_npz(job.work("groups.npz"))
        node, label, batch = (groups[name] for name in ("node", "label", "batch"))
        place, grouped = positions(node, marks.canonical)
        batches = read_json(job.work("merged.json"))["batches"]
        alone = np.sort(vectors.sample_id[~grouped])
        ones = np.ones(len(alone))
        rows = _groups_table(alone, alone, ones, alone, ones, np.zeros(len(alone)), np.full(len(alone), None))
        job.lake.write("duplicate_groups", job.snapshot, batches + block.number, rows)
        rows = np.flatnonzero(grouped)
        mine = label[place[rows]]
        found = batch[mine]
        for number in np.unique(found).tolist():
            here = rows[found == number]
            # Who isn't canonical has the canonical image's vector.
            speaks = marks.is_canonical[here]
            lengths = np.where(speaks, vectors.vector.shape[1], 0)
            column = pa.ListArray.from_arrays(
                pa.array(np.cumsum([0, *lengths]), pa.int32()), pa.array(vectors.vector[here[speaks]].ravel())
            )
            table = pa.table(
                {
                    "key": marks.key[here],
                    "canonical": marks.canonical[here],
                    "sample_id": pa.array(vectors.sample_id[here], pa.string()),
                    "label": mine[found == number],
                    "vector": column,
                }
            )
            write_arrow(batch_file(job, number, block.number), table)
        return np.unique(found).tolist()


def batch_file(job: Search, batch: int, block: int) -> str:
    return job.work("batches", f"{batch:05d}", f"{block:05d}.arrow")


class WriteBatch(beam.DoFn):
    """Number of a batch → itself; writes its part of ``duplicate_groups``."""

    def __init__(self, job: Search):
        self.job = job

    def process(self, number: int) -> Iterator[int]:
        if not exists(self.job.lake.part("duplicate_groups", self.job.snapshot, number)):
            paths = list_files(self.job.work("batches", f"{number:05d}"), ".arrow")
            self.job.lake.write("duplicate_groups", self.job.snapshot, number, self._groups(paths))
        yield number

    def _groups(self, paths: list[str]) -> pa.Table:
        table = pa.concat_tables([read_arrow(path) for path in paths])
        ids = table["sample_id"].to_numpy(zero_copy_only=False)
        key, canonical, label = (table[name].to_numpy() for name in ("key", "canonical", "label"))
        # Not as one Arrow list, whose offsets end at 2 billion numbers: a group may have more.
        vectors = np.concatenate([chunk.flatten().to_numpy() for chunk in table["vector"].chunks])
        speaks = np.flatnonzero(key == canonical)
        vectors = vectors.reshape(len(speaks), -1)
        # In the order of their ids inside each group: it decides between equals, whatever the blocks were.
        order = np.lexsort((ids[speaks], label[speaks]))
        speaks, vectors = speaks[order], vectors[order]
        of_key = np.argsort(key[speaks])
        told_by = of_key[np.searchsorted(key[speaks][of_key], canonical)]
        weight = np.bincount(told_by, minlength=len(speaks))
        starts = np.flatnonzero(np.r_[True, label[speaks][1:] != label[speaks][:-1]])
        if self.job.linkage == "complete":
            order, starts = kernel.cut_by_complete_linkage(vectors, starts, self.job.threshold)
            speaks, vectors, weight = speaks[order], vectors[order], weight[order]
            moved = np.empty_like(order)
            moved[order] = np.arange(len(order))
            told_by = moved[told_by]
        statistics = kernel.group_statistics(vectors, starts, weight, self.job.threshold)
        group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(speaks)]))[told_by]
        by_group = np.lexsort((ids, group))
        first = by_group[np.searchsorted(group[by_group], np.arange(len(starts)))]
        mine = group[by_group]
        silent = key[by_group] != canonical[by_group]
        return _groups_table(
            ids[by_group],
            ids[first][mine],
            statistics.size[mine],
            ids[speaks[statistics.representative]][mine],
            statistics.lowest_cosine[mine],
            statistics.diameter[mine],
            np.where(silent, ids[speaks[told_by[by_group]]], np.array(None)),
        )


def _groups_table(
    sample_id: np.ndarray,
    group_id: np.ndarray,
    size: np.ndarray,
    representative: np.ndarray,
    lowest_cosine: np.ndarray,
    diameter: np.ndarray,
    identical_to: np.ndarray,
) -> pa.Table:
    return pa.table(
        {
            "sample_id": pa.array(sample_id, pa.string()),
            "group_id": pa.array(group_id, pa.string()),
            "size": pa.array(size.astype(np.int32)),
            "representative": pa.array(representative, pa.string()),
            "lowest_cosine": pa.array(lowest_cosine.astype(np.float32)),
            "diameter": pa.array(diameter.astype(np.int32)),
            "identical_to": pa.array(identical_to, pa.string()),
        }
    )


class MeasureRecall(beam.DoFn):
    """Numbers of all comparisons → how many sampled pairs there are; writes ``sampled_pairs`` and what the manifest tells."""

    def __init__(self, job: Search):
        self.job = job

    def process(self, numbers: Sequence[int]) -> Iterator[int]:
        from transforms.kernels.rates import clopper_pearson_upper

        job, prepared, cells = self.job, Preparation.read(self.job), Cells.read(self.job)
        known = read_arrow(job.work("known.arrow"))
        over = known["cosine"].to_numpy() > job.threshold
        found = np.zeros(known.num_rows, bool)
        for path in list_files(job.work("compared"), ".npz"):
            found[read_npz(path)["known"]] = True
        # Where all pairs are compared none were chosen by.
        judging = over & (judged(known["query"].to_numpy()) | (cells.quantiser is None))
        table = self._sampled(prepared, known, over, found, judging)
        job.lake.write("sampled_pairs", job.snapshot, 0, table)
        images = np.unique(known["query"].to_numpy()[judging])
        of_images = np.unique(known["query"].to_numpy()[judging & found])
        seen = int(judging.sum())
        # Of an image with very many pairs some were drawn, each of which stands for several.
        weight = known["stands_for"].to_numpy()
        recall = float(np.average(found[judging], weights=weight[judging])) if seen else None
        facts = {
            "method": "all pairs" if cells.quantiser is None else "cells",
            "cells": 0 if cells.quantiser is None else cells.quantiser.cells,
            "assignments": cells.assignments,
            "built_on": list(prepared.chain),
            "why_anew": prepared.why_anew,
            "vectors": prepared.vectors,
            "new_vectors": sum(prepared.new.values()),
            "recall": recall,
            "recall_at_least": None if recall is None else 1 - clopper_pearson_upper(round((1 - recall) * seen), seen),
            "recall_of_images": None if len(images) == 0 else len(of_images) / len(images),
            "recall_pairs": seen,
            "recall_images": len(images),
        }
        write_json(job.work("facts.json"), facts)
        yield known.num_rows

    def _sampled(
        self, prepared: Preparation, known: pa.Table, over: np.ndarray, found: np.ndarray, judging: np.ndarray
    ) -> pa.Table:
        queries, others = np.array(prepared.query_ids, object)[known["query"].to_numpy()], known["sample_id"]
        distance = np.full(known.num_rows, np.nan, np.float32)
        stands_for = known["stands_for"].to_numpy().copy()
        if self.job.ingest_snapshot is not None:
            opinion = SecondOpinion(self.job, pictures_of(self.job))
            # The pairs are in random order on either side of the threshold, so the first so many are a sample.
            for side in (np.flatnonzero(over), np.flatnonzero(~over)):
                looked = side[:SWEPT]
                ids = others.take(looked).to_pylist()
                distance[looked] = opinion.distances(queries[looked].tolist(), ids)
        return pa.table(
            {
                "sample_id_a": pa.array(queries, pa.string()),
                "sample_id_b": others,
                "cosine": known["cosine"].cast(pa.float32()),
                "stands_for": stands_for,
                "found": pa.array(found, pa.bool_(), mask=~over),
                "judged": judging,
                "pixel_distance": pa.array(distance, pa.float32(), mask=np.isnan(distance)),
                "pixels_agree": pa.array(distance <= self.job.pixel_distance, pa.bool_(), mask=np.isnan(distance)),
            }
        )
