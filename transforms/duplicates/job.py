"""What every worker of a search knows, and where the files of the search lie."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.store.arrays import matrix, read_arrow, read_json, read_npz, write_json, write_npz
from transforms.store.files import exists
from transforms.store.lake import Lake

SWEEP_DEPTH = 0.1
"""How far under the threshold the sampled pairs go that the sweep of thresholds is made from."""

PREPARED = "prepared.json"
"""The work file that says that a search has looked at all of its vectors; forgetting removes it before the others."""

SWEEP_STEP = 0.01
"""Between two thresholds of the sweep."""


@dataclasses.dataclass(frozen=True)
class Search:
    """One search. Small, and pickles.

    Attributes:
        lake: the lake.
        embed_snapshot: whose ``embeddings``.
        snapshot: of ``deduplicate``.
        ingest_snapshot: whose ``images`` give the second opinion; None for none.
        chain: the snapshots of the nights before that this one may build on, the oldest first; its cells are used. Empty for
            a full run.
        carried_parts: parts of ``duplicate_pairs`` of the last of them.
        rows: of ``embeddings``.
        threshold: cosine; -1 to 1; pairs over it are duplicates.
        recall: share of the pairs that must be found.
        exact_up_to: with so many vectors or fewer, all pairs are compared.
        block_rows: vectors in a block. Two blocks lie in a worker's memory at once.
        most_pairs: pairs of one image, in one comparison of two blocks, that get a row of their own, the nearest first.
        linkage: single or complete.
        pixel_band: pairs with a cosine up to so much over the threshold get the second opinion.
        pixel_distance: aligned tiled l2 up to which the pictures agree.
        pixels_decide: pairs whose pixels disagree join no groups.
        thumbnail_share: of the thumbnail in what is compared; 0 to 1.
        seed: of k-means and of what is drawn.
    """

    lake: Lake
    embed_snapshot: str
    snapshot: str
    ingest_snapshot: str | None = None
    chain: tuple[str, ...] = ()
    carried_parts: int = 0
    rows: int = 0
    threshold: float = 0.9
    recall: float = 0.99
    exact_up_to: int = 50_000
    block_rows: int = 50_000
    most_pairs: int = 1000
    linkage: str = "single"
    pixel_band: float = 0.05
    pixel_distance: float = 0.08
    pixels_decide: bool = False
    thumbnail_share: float = 0.0
    seed: int = 0

    def of(self, snapshot: str) -> Search:
        """The same search of another night."""
        return dataclasses.replace(self, snapshot=snapshot)

    def work(self, *parts: str) -> str:
        return self.lake.work("deduplicate", self.snapshot, *parts)

    def file(self, kind: str, number: int, ending: str) -> str:
        return self.work(kind, f"{number:05d}.{ending}")

    def sweep(self) -> np.ndarray:
        """The thresholds of the sweep, ascending; the search's own is among them."""
        steps = np.arange(np.ceil((self.threshold - SWEEP_DEPTH) / SWEEP_STEP), np.ceil(1 / SWEEP_STEP)) * SWEEP_STEP
        return np.unique(np.round(np.append(steps, self.threshold), 6))


class Block(NamedTuple):
    """Several parts of ``embeddings``: what one worker reads at once."""

    number: int
    parts: tuple[int, ...]


def blocks_of(rows: dict[int, int], block_rows: int) -> list[tuple[int, ...]]:
    """Numbers (number → rows), in order, together while they have up to ``block_rows`` rows, at least one each."""
    blocks: list[list[int]] = []
    filled = 0
    for number in sorted(rows):
        if not blocks or filled + rows[number] > block_rows:
            blocks.append([])
            filled = 0
        blocks[-1].append(number)
        filled += rows[number]
    return [tuple(block) for block in blocks]


def keys_of(sample_ids: Iterable[str]) -> np.ndarray:
    """(n,) int64 ≥ 0: a digest of each id, by which a search knows its vectors.

    They look random and depend on the id alone, so the smallest of them are a sample however the data are cut.
    """
    digests = b"".join(hashlib.blake2b(one.encode("utf-8", "replace"), digest_size=8).digest() for one in sample_ids)
    return (np.frombuffer(digests, ">u8") >> np.uint64(1)).astype(np.int64)


def positions(ascending: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in ``ascending`` each is (any place where it isn't), and whether it is there."""
    place = np.minimum(np.searchsorted(ascending, wanted), max(0, len(ascending) - 1))
    return place, (ascending[place] == wanted) if len(ascending) else np.zeros(len(wanted), bool)


class Vectors(NamedTuple):
    """Training vectors.

    Attributes:
        key: (n,) int64.
        sample_id: (n,) object.
        vector: (n, d) float32.
    """

    key: np.ndarray
    sample_id: np.ndarray
    vector: np.ndarray

    def take(self, rows: np.ndarray) -> Vectors:
        return Vectors(*(column[rows] for column in self))


def trained(table: pa.Table) -> pa.ChunkedArray:
    """Which rows of ``embeddings`` are training images that have a vector."""
    return pc.and_(pc.equal(table["role"], "training"), pc.equal(table["status"], "success"))


def read_block(job: Search, block: int) -> tuple[Vectors, Marks]:
    """The training vectors of a block, in the order of their rows, and what is known about each."""
    table = read_arrow(job.file("vectors", block, "arrow"))
    marks = Marks.read(job, block)
    return Vectors(marks.key, table["sample_id"].to_numpy(), matrix(table["vector"])), marks


# -- what Prepare leaves ----------------------------------------------------------------------------------------------


class Marks(NamedTuple):
    """What there is to know about the training vectors of one block before they are compared.

    Attributes:
        key: (n,) int64.
        canonical: (n,) int64: of a vector in a set of exact duplicates, the key of its canonical image; else its own.
        new: (n,) bool: not among those of the night before.
    """

    key: np.ndarray
    canonical: np.ndarray
    new: np.ndarray

    @classmethod
    def read(cls, job: Search, block: int) -> Marks:
        return cls(**read_npz(job.file("marks", block, "npz")))

    @property
    def is_canonical(self) -> np.ndarray:
        """(n,) bool: compared with others; for the rest their canonical image is."""
        return self.canonical == self.key


class Preparation(NamedTuple):
    """What there is to know about all vectors before they are compared.

    Attributes:
        chain: the snapshots that this search builds on; empty where it starts anew.
        why_anew: why it does; empty where it builds on the night before, or where there is none.
        vectors: training vectors in all.
        blocks: those with training vectors.
        new, old: block → vectors that are compared, those of tonight and those of before.
        query_ids: their sample_ids.
        basis: (d, s) float32 principal directions.
        query_keys: (q,) int64.
        queries: (q, d) float32: the sampled images.
        canonical_keys: (c,) int64, ascending: the canonical images.
        set_sizes: (c,) int64.
    """

    chain: tuple[str, ...]
    why_anew: str
    vectors: int
    blocks: list[Block]
    new: dict[int, int]
    old: dict[int, int]
    query_ids: list[str]
    basis: np.ndarray
    query_keys: np.ndarray
    queries: np.ndarray
    canonical_keys: np.ndarray
    set_sizes: np.ndarray

    def write(self, job: Search) -> None:
        plain = {
            "chain": self.chain,
            "why_anew": self.why_anew,
            "vectors": self.vectors,
            "blocks": self.blocks,
            "new": sorted(self.new.items()),
            "old": sorted(self.old.items()),
            "query_ids": self.query_ids,
        }
        write_npz(job.work("prepared.npz"), **{name: getattr(self, name) for name in self._fields[7:]})
        write_json(job.work(PREPARED), plain)

    @classmethod
    def read(cls, job: Search) -> Preparation:
        plain = read_json(job.work(PREPARED))
        return cls(
            chain=tuple(plain["chain"]),
            why_anew=plain["why_anew"],
            vectors=plain["vectors"],
            blocks=[Block(number, tuple(parts)) for number, parts in plain["blocks"]],
            new=dict(plain["new"]),
            old=dict(plain["old"]),
            query_ids=plain["query_ids"],
            **read_npz(job.work("prepared.npz")),
        )

    @staticmethod
    def exists(job: Search) -> bool:
        return exists(job.work(PREPARED))
