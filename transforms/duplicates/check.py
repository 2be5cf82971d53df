"""Before anything is compared: vectors that have no cosine are refused, exact duplicates get a canonical image, and a sample
is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.duplicates.job import Block, Marks, Preparation, Search, Vectors, keys_of, positions, read_block, trained
from transforms.errors import UserError
from transforms.kernels.thumbnails import LENGTH, joined
from transforms.store.arrays import matrix, read_arrow, read_npz, vectors_column, write_arrow, write_npz
from transforms.store.files import list_files, read_parquet
from transforms.store.tombstones import Tombstones

NORM_TOLERANCE = 1e-4
"""How far the norm of a vector may be from 1. Ours are within 1e-7; a cosine is off by as much as the norm is."""

NAMED = 5
"""How many rows an error message names."""

QUERIES = 2048
"""Sampled training images whose pairs are found by brute force, to choose by and to verify."""

MOST_SAMPLED = 1 << 20
"""Vectors that one worker learns the cells from, at most."""

MANY_IDENTICAL = 100
"""Identical vectors beyond which one of them tells of all, in place of a row for each two."""


class Kind(NamedTuple):
    """What two vectors must share to be compared."""

    model: str
    pretrained: str
    preprocessing: str
    length: int

    def __str__(self) -> str:
        return f"{self.length} numbers by {self.model} with {self.pretrained} and {self.preprocessing}"


class Checked(NamedTuple):
    """A checked block: its training vectors, and each kind of them with one sample_id."""

    block: Block
    rows: int
    kinds: dict[Kind, str]


class CheckBlock(beam.DoFn):
    """``Block`` → ``Checked``; writes its training vectors, their keys, and its share of the sample.

    UserError for vectors that have no cosine.
    """

    def __init__(self, job: Search):
        self.job = job

    def process(self, block: Block) -> Iterator[Checked]:
        kinds: dict[Kind, str] = {}
        every, keys, digests, found = [], [], [], []
        forgotten = Tombstones.read(self.job.lake)
        paths = self.job.lake.paths("embeddings", self.job.embed_snapshot)
        for path in (paths[number] for number in block.parts):
            table = read_parquet(path, self._columns())
            ids = keys_of(table["sample_id"].to_pylist())
            every.append(ids)
            table = table.append_column("row", pa.array(np.arange(table.num_rows)))
            table = table.append_column("key", pa.array(ids))
            chosen = trained(table)
            # A copy of all vectors that can mostly be spared.
            table = forgotten.spared(table if pc.all(chosen).as_py() else table.filter(chosen))
            lengths = pc.list_value_length(table["vector"]).fill_null(0)
            _check_norms(path, table, lengths.to_numpy())
            described = table.append_column("length", lengths).group_by(["model", "pretrained", "preprocessing", "length"])
            for row in described.aggregate([("sample_id", "min")]).to_pylist():
                sample = row.pop("sample_id_min")
                kinds[Kind(**row)] = min(kinds.get(Kind(**row), sample), sample)
            if table.num_rows and len(kinds) == 1:
                vectors = self._compared(path, table)
                keys.append(table["key"].to_numpy())
                digests.append(digests_of(vectors))
                found.append(pa.table({"sample_id": table["sample_id"], "vector": vectors_column(vectors)}))
        rows = sum(map(len, keys))
        nothing = np.empty(0, np.int64)
        write_npz(
            self.job.file("keys", block.number, "npz"),
            every=np.concatenate([nothing, *every]),
            key=np.concatenate([nothing, *keys]),
            digest=np.concatenate([nothing, *digests]),
        )
        if rows:
            table = pa.concat_tables(found).append_column("key", pa.array(np.concatenate(keys)))
            write_arrow(self.job.file("vectors", block.number, "arrow"), table.select(["sample_id", "vector"]))
            write_arrow(self.job.file("sample", block.number, "arrow"), table.filter(pc.field("key") < self._cut()))
        yield Checked(block, rows, kinds)

    def _columns(self) -> list[str]:
        columns = ["sample_id", "role", "model", "pretrained", "preprocessing", "vector", "status"]
        return [*columns, "thumbnail"] if self.job.thumbnail_share else columns

    def _compared(self, path: str, table: pa.Table) -> np.ndarray:
        """(n, d) float32: CLIP's vectors, or these and the thumbnails as one."""
        vectors = matrix(table["vector"])
        if not self.job.thumbnail_share:
            return vectors
        bad = table.filter(pc.not_equal(pc.binary_length(table["thumbnail"]).fill_null(0), LENGTH))
        if bad.num_rows:
            named = ", ".join(bad["sample_id"].to_pylist()[:NAMED])
            raise UserError(
                f"{path!r} has {bad.num_rows} vectors without a thumbnail of {LENGTH} bytes: {named}; run 'eidetic embed', "
                "which makes them, or leave --thumbnail_share at 0"
            )
        thumbnails = np.frombuffer(b"".join(table["thumbnail"].to_pylist()), np.uint8).reshape(-1, LENGTH)
        return joined(vectors, thumbnails, self.job.thumbnail_share)

    def _cut(self) -> int:
        """Keys below it are the sample."""
        from transforms.kernels.cells import sample_size

        wanted = min(MOST_SAMPLED, max(8 * QUERIES, sample_size(self.job.rows)))
        return int(min(1.0, wanted / max(1, self.job.rows)) * (2**63 - 1024))


def _check_norms(path: str, table: pa.Table, lengths: np.ndarray) -> None:
    values = table["vector"].combine_chunks().flatten().to_numpy()
    if len(values) and (lengths == lengths[0]).all():
        some = values.reshape(table.num_rows, -1)
        if (np.abs(np.sqrt(np.einsum("nd,nd->n", some, some)) - 1) <= NORM_TOLERANCE).all():
            return
    rows = np.repeat(np.arange(table.num_rows), lengths)
    norms = np.sqrt(np.bincount(rows, weights=values.astype(np.float64) ** 2, minlength=table.num_rows))
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


def digests_of(vectors: np.ndarray) -> np.ndarray:
    """(n,) int64, equal where the vectors are."""
    content, size = np.ascontiguousarray(vectors).data.cast("B"), vectors.shape[1] * vectors.itemsize
    digests = b"".join(
        hashlib.blake2b(content[start : start + size], digest_size=8).digest() for start in range(0, len(content), size)
    )
    return np.frombuffer(digests, np.int64)


class _Base(NamedTuple):
    """The night before: keys (ascending) and digests of its vectors, and the keys of its canonical images."""

    key: np.ndarray
    digest: np.ndarray
    leaders: np.ndarray


class Prepare(beam.DoFn):
    """All ``Checked`` → the blocks with training vectors; writes ``Preparation`` and the blocks' ``Marks``.

    UserError where the table as a whole can't be compared. Nothing comes out where there is no training vector.
    """

    def __init__(self, job: Search):
        self.job = job

    def process(self, checked: Sequence[Checked]) -> Iterator[Block]:
        self._check_kinds(checked)
        blocks = sorted(one.block for one in checked)
        files = {block.number: read_npz(self.job.file("keys", block.number, "npz")) for block in blocks}
        self._check_ids(blocks, files)
        blocks = [block for block in blocks if len(files[block.number]["key"])]
        if blocks and not Preparation.exists(self.job):
            self._prepare(blocks, files)
        yield from blocks

    def _check_kinds(self, checked: Iterable[Checked]) -> None:
        kinds: dict[Kind, str] = {}
        for one in checked:
            for kind, sample in one.kinds.items():
                kinds[kind] = min(kinds.get(kind, sample), sample)
        if len(kinds) > 1:
            named = "; ".join(f"sample_id {sample} has {kind}" for kind, sample in sorted(kinds.items())[:NAMED])
            raise UserError(
                f"the embeddings {self.job.embed_snapshot!r} mix {len(kinds)} kinds of vectors that have no cosine between "
                f"them: {named}; embed all images with one model"
            )

    def _check_ids(self, blocks: Sequence[Block], files: dict[int, dict[str, np.ndarray]]) -> None:
        keys = np.sort(np.concatenate([np.empty(0, np.int64), *(file["every"] for file in files.values())]))
        repeated = np.unique(keys[1:][keys[1:] == keys[:-1]])
        if not len(repeated):
            return
        places: dict[str, list[str]] = {}
        paths = self.job.lake.paths("embeddings", self.job.embed_snapshot)
        for block in blocks:
            if not np.isin(files[block.number]["every"], repeated).any():
                continue
            for number in block.parts:
                ids = read_parquet(paths[number], ["sample_id"])["sample_id"].to_pylist()
                for row in np.flatnonzero(np.isin(keys_of(ids), repeated)).tolist():
                    places.setdefault(ids[row], []).append(f"part {number} row {row}")
        twice = {sample: rows for sample, rows in sorted(places.items()) if len(rows) > 1}
        if twice:
            named = "; ".join(f"{sample} ({', '.join(rows[:NAMED])})" for sample, rows in list(twice.items())[:NAMED])
            raise UserError(
                f"the embeddings {self.job.embed_snapshot!r} hold {len(twice)} sample_ids more than once: {named}; "
                "a sample has one vector: remove the others"
            )
        raise UserError(
            f"two sample_ids of the embeddings {self.job.embed_snapshot!r} have the same 63-bit digest: "
            f"{', '.join(list(places)[:2])}; rename one of them"
        )

    def _prepare(self, blocks: list[Block], files: dict[int, dict[str, np.ndarray]]) -> None:
        from transforms.kernels.cells import principal_basis

        key = np.concatenate([files[block.number]["key"] for block in blocks])
        digest = np.concatenate([files[block.number]["digest"] for block in blocks])
        base, why_anew = self._base(key, digest)
        new = np.ones(len(key), bool) if base is None else ~np.isin(key, base.key)
        # A set keeps the canonical image of the night before, whose pairs are known; a new set takes an old vector.
        rank = new.astype(np.int8) + 1
        if base is not None:
            rank[np.isin(key, base.leaders)] = 0
        canonical, canonical_keys, set_sizes = exact_sets_of(key, digest, rank)
        counts: list[dict[int, int]] = [{}, {}]
        start = 0
        for block in blocks:
            here = slice(start, start := start + len(files[block.number]["key"]))
            marks = Marks(key[here], canonical[here], new[here])
            write_npz(self.job.file("marks", block.number, "npz"), **marks._asdict())
            for count, chosen in zip(counts, (marks.new, ~marks.new), strict=True):
                if rows := int((chosen & marks.is_canonical).sum()):
                    count[block.number] = rows
        # A sampled vector that doesn't speak for itself would be compared by its canonical.
        sample = self._sample(blocks, key[canonical != key])
        Preparation(
            chain=self.job.chain if base is not None else (),
            why_anew=why_anew,
            vectors=len(key),
            blocks=blocks,
            new=counts[0],
            old=counts[1],
            query_ids=sample.sample_id[:QUERIES].tolist(),
            basis=principal_basis(sample.vector, self.job.threshold),
            query_keys=sample.key[:QUERIES],
            queries=sample.vector[:QUERIES],
            canonical_keys=canonical_keys,
            set_sizes=set_sizes,
        ).write(self.job)

    def _base(self, key: np.ndarray, digest: np.ndarray) -> tuple[_Base | None, str]:
        """The night before, or None and why it can't be built on."""
        if not self.job.chain:
            return None, ""
        first, last = self.job.of(self.job.chain[0]), self.job.of(self.job.chain[-1])
        if not (Preparation.exists(first) and Preparation.exists(last)):
            return None, "the work files of the night before are gone"
        began, before = Preparation.read(first), Preparation.read(last)
        # What was chosen for few vectors doesn't suit many.
        if len(key) > 2 * began.vectors:
            return None, f"there are {len(key):,} vectors, more than twice the {began.vectors:,} that the cells were made for"
        if (len(key) > self.job.exact_up_to) != (began.vectors > self.job.exact_up_to):
            return None, f"there are {len(key):,} vectors, and --exact_up_to {self.job.exact_up_to:,} lies between"
        stored = [read_npz(path) for path in list_files(last.work("keys"), ".npz")]
        old_key, old_digest = (np.concatenate([one[name] for one in stored]) for name in ("key", "digest"))
        order, old_order = np.argsort(key), np.argsort(old_key)
        old_key, old_digest = old_key[old_order], old_digest[old_order]
        places, there = positions(key[order], old_key)
        same = there & (digest[order][places] == old_digest)
        if not same.all():
            return None, f"{int((~same).sum()):,} vectors of the night before are gone or changed"
        return _Base(old_key, old_digest, before.canonical_keys), ""

    def _sample(self, blocks: list[Block], silent: np.ndarray) -> Vectors:
        """The sample in the order of its keys (any first so many are a sample too), those left out that don't speak."""
        table = pa.concat_tables([read_arrow(self.job.file("sample", block.number, "arrow")) for block in blocks])
        sample = Vectors(table["key"].to_numpy(), table["sample_id"].to_numpy(), matrix(table["vector"]))
        if np.isin(sample.key, silent).all():
            # So few speak that none of them was drawn: then the first block with some will do.
            for block in blocks:
                sample, _ = read_block(self.job, block.number)
                if not np.isin(sample.key, silent).all():
                    break
        order = np.argsort(sample.key)
        sample = sample.take(order[~np.isin(sample.key[order], silent)])
        write_arrow(self.job.work("sample.arrow"), pa.table({"vector": vectors_column(sample.vector)}))
        return sample


def exact_sets_of(key: np.ndarray, digest: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) canonical of each vector; and the keys (ascending) and sizes of the sets.

    Args:
        key, digest: (n,) int64.
        rank: (n,) the lowest of a set is canonical; of several, the smallest key.
    """
    canonical = key.copy()
    order = np.lexsort((key, rank, digest))
    starts = np.flatnonzero(np.r_[True, digest[order][1:] != digest[order][:-1]])
    sizes = np.diff(np.r_[starts, len(order)])
    many = np.flatnonzero(sizes > MANY_IDENTICAL)
    for start, size in zip(starts[many], sizes[many], strict=True):
        canonical[order[start : start + size]] = key[order[start]]
    first = key[order[starts[many]]]
    by_key = np.argsort(first)
    return canonical, first[by_key], sizes[many][by_key]


def training_sample(job: Search) -> np.ndarray:
    """(m, d) float32: the sampled vectors that cells are learned from, in the order of their keys.

    Without the images whose pairs they are judged by, unless there are few others: centroids lie near what they were made of.
    """
    sample = matrix(read_arrow(job.work("sample.arrow"))["vector"])
    return sample[QUERIES:] if len(sample) > 4 * QUERIES else sample
