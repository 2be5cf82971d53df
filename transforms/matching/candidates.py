"""Which training images lie near the pictures that are judged: the nearest by CLIP, and the nearest by thumbnail.

They fail on different pictures: CLIP takes any flat picture for any other, and a thumbnail no crop for what it was cropped
from. While the training images are few, all are compared, in chunks that fit a worker; beyond, both sides go to the cells of a
quantiser (CLIP's are those that ``deduplicate`` has trained), spilled by shard, and every shard is read once. Thumbnails, which
are small, are compared up to a larger number (``Round.exact_thumbnails``). What is found is merged by SQL: for each picture the
nearest by either, and for each part of ``images`` which of its pictures are wanted.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.kernels import cells
from transforms.kernels.nearest import NOTHING, nearest
from transforms.kernels.thumbnails import LENGTH, lifted, square_windows
from transforms.matching import tasks
from transforms.matching.directory import INDEX, ROW_BITS, Directory, by_part
from transforms.matching.tasks import CLIP, PLACE_BITS, THUMBNAIL, Round
from transforms.store import arrays
from transforms.store.counters import count
from transforms.store.files import delete, exists, list_files, read_parquet, replacing, write_parquet
from transforms.store.identity import digest
from transforms.store.remote import readable
from transforms.store.scan import connect
from transforms.store.sharing import Shared

CHUNK_ROWS = 100_000
"""Groups that are searched at once where nobody says how much memory there is."""

VISITED = 1 << 15
"""Training images that are looked at for one picture in its nearest cells, about."""

LEARNED_FROM = 1 << 16
"""Groups that cells are learned from, at most."""

GROUPS_PER_CELL = 256

FOUND = pa.schema(
    [
        pa.field("query", pa.int64()),
        pa.field("code", pa.int64()),
        pa.field("distance", pa.float32()),
    ]
)
"""Of what one search leaves: the picture's number in the round, the training image's code, how far they are apart."""


class Entries(NamedTuple):
    """Training images, or controls, as they are searched: one of each group.

    Attributes:
        codes: (m,) int64; an image that isn't square has several windows.
        vectors: (m, d) float32: CLIP's, or thumbnails in 0 to 1.
    """

    codes: np.ndarray
    vectors: np.ndarray


QUERIES_AT_ONCE = 4096
"""Pictures that are searched for at once, about: so many are one product for faiss."""


class Queries(NamedTuple):
    """Pictures that are judged, as they are searched for.

    Attributes:
        numbers: (q,) int64.
        vectors: (q, d) float32.
    """

    numbers: np.ndarray
    vectors: np.ndarray


def read_entries(round: Round, part: int, role: str, space: str) -> Entries:
    """The representatives of one part of ``images``."""
    table = Directory(round.lake, round.snapshots.deduplicate).part(part)
    chosen = np.flatnonzero(
        (table["role"].to_numpy(zero_copy_only=False) == role) & table["representative"].to_numpy(zero_copy_only=False)
    )
    codes = table["code"].to_numpy()[chosen]
    rows = pa.array(codes & ((1 << ROW_BITS) - 1))
    column = "vector" if space == CLIP else "thumbnail"
    path = round.lake.paths("embeddings", round.snapshots.embed)[part]
    values = read_parquet(path, [column])[column].take(rows)
    there = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    codes, values = codes[there], values.take(pa.array(there))
    if space == CLIP:
        return Entries(codes, matrix(values))
    pixels = np.frombuffer(b"".join(values.to_pylist()), np.uint8).reshape(-1, LENGTH)
    row, windows = square_windows(pixels, table["aspect"].to_numpy()[chosen][there])
    return Entries(codes[row], windows)


def read_queries(round: Round, number: int, role: str, space: str) -> Queries:
    """The pictures of a task; with the role control those alone that a control's caption made."""
    column = "vector" if space == CLIP else "thumbnail"
    table = read_parquet(round.file("queries", number, "parquet"), ["place", column, "control"])
    there = table[column].is_valid().to_numpy(zero_copy_only=False)
    if role == "control":
        there &= table["control"].to_numpy(zero_copy_only=False)
    chosen = np.flatnonzero(there)
    values = table[column].take(pa.array(chosen))
    numbers = (number << PLACE_BITS) + table["place"].to_numpy()[chosen]
    if space == CLIP:
        return Queries(numbers, matrix(values))
    pixels = np.frombuffer(b"".join(values.to_pylist()), np.uint8).reshape(-1, LENGTH)
    return Queries(numbers, pixels.astype(np.float32) / np.float32(255))


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Lists of as many numbers each → (n, d) float32; (0, 1) of none."""
    return np.ascontiguousarray(arrays.matrix(column), np.float32) if len(column) else np.zeros((0, 1), np.float32)


# -- all compared -----------------------------------------------------------------------------------------------------


class Chunk(NamedTuple):
    """Parts of ``images`` that are searched at once.

    Attributes:
        number: of what it leaves.
        role: training or control.
        parts: their numbers.
        spaces: clip, thumbnail: which are searched.
    """

    number: int
    role: str
    parts: tuple[int, ...]
    spaces: tuple[str, ...]


def chunks(totals: Sequence[dict[str, Any]], role: str, rows: int, spaces: tuple[str, ...]) -> list[Chunk]:
    """The parts that have images of a role, together while they have up to ``rows`` groups; none without spaces."""
    found: list[list[int]] = []
    filled = 0
    for total in totals:
        groups, part = total["groups"], total["part"]
        if total["role"] != role or not groups:
            continue
        if not found or filled + groups > rows:
            found.append([])
            filled = 0
        found[-1].append(part)
        filled += groups
    return [Chunk(number, role, tuple(parts), spaces) for number, parts in enumerate(found) if spaces]


class SearchChunk(beam.DoFn):
    """``Chunk`` → its number; leaves, for CLIP and for thumbnails, what lies nearest to each picture of the round."""

    def __init__(self, round: Round):
        self.round = round

    def process(self, chunk: Chunk) -> Iterator[int]:
        for space in chunk.spaces:
            path = found_file(self.round, chunk.role, space, chunk.number)
            if exists(path):
                continue
            read = [read_entries(self.round, part, chunk.role, space) for part in chunk.parts]
            entries = together(read)
            with replacing(path) as sink, pq.ParquetWriter(sink, FOUND) as file:
                for queries in self._queries(chunk.role, space) if len(entries.codes) else ():
                    file.write_table(search(entries, queries, space, self.round.neighbours))
            count(f"searches by {space}")
        yield chunk.number

    def _queries(self, role: str, space: str) -> Iterator[Queries]:
        """The pictures of all tasks in order, those of some tasks together: few at a time are mostly overhead."""
        waiting: list[Queries] = []
        for number in range(len(self.round.tasks)):
            queries = read_queries(self.round, number, role, space)
            if len(queries.numbers):
                waiting.append(queries)
            if sum(len(one.numbers) for one in waiting) >= QUERIES_AT_ONCE:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)


def _joined(several: Sequence[Queries]) -> Queries:
    return Queries(np.concatenate([one.numbers for one in several]), np.concatenate([one.vectors for one in several]))


def together(read: Sequence[Entries]) -> Entries:
    """Entries of several parts as one."""
    # One without entries doesn't know how many numbers a vector has.
    wide = [one for one in read if len(one.codes)] or list(read[:1])
    return Entries(np.concatenate([one.codes for one in wide]), np.concatenate([one.vectors for one in wide]))


def found_file(round: Round, role: str, space: str, number: int) -> str:
    return round.work("found", role, space, f"{number:05d}.parquet")


def search(entries: Entries, queries: Queries, space: str, most: int) -> pa.Table:
    """``FOUND`` of these: for each picture the ``most`` nearest images, each once."""
    codes, distances = nearest(entries.codes, entries.vectors, queries.vectors, most, by_angle=space == CLIP)
    there = codes != NOTHING
    numbers = np.broadcast_to(queries.numbers[:, None], codes.shape)
    return pa.table({"query": numbers[there], "code": codes[there], "distance": distances[there]}, schema=FOUND)


# -- through cells ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shards:
    """How one space is cut: cells, and the shard of each.

    Attributes:
        quantiser: of unit vectors: CLIP's, or lifted thumbnails.
        shard: (cells,) int64.
        probes: cells that are looked at for one picture.
    """

    quantiser: cells.Quantiser
    shard: np.ndarray
    probes: int

    @property
    def count(self) -> int:
        """Shards in all."""
        return int(self.shard.max()) + 1

    def write(self, path: str) -> None:
        """As one file, for all workers."""
        stored = {name: getattr(self.quantiser, name) for name in ("basis", "coarse", "fine", "starts")}
        arrays.write_npz(path, shard=self.shard, probes=np.int64(self.probes), **stored)

    @classmethod
    def read(cls, path: str) -> Shards:
        stored = arrays.read_npz(path)
        shard, probes = stored.pop("shard"), int(stored.pop("probes"))
        return cls(cells.Quantiser(**stored), shard, probes)

    def nearest(self, vectors: np.ndarray, probes: int) -> np.ndarray:
        """(n, d) float32 of unit norm → (n, p) int32 cells, the nearest first; -1 for none."""
        return self.quantiser.nearest(cells.sketch(vectors, self.quantiser.basis), probes)[0]


def shards_file(round: Round, space: str) -> str:
    """Where the cells of a space are told; the same for all rounds of a match."""
    return round.lake.work(INDEX, round.snapshots.deduplicate, "shards", f"{space}.npz")


def read_shards(round: Round) -> dict[str, Shards]:
    """The cells of each space."""
    return {space: Shards.read(shards_file(round, space)) for space in (CLIP, THUMBNAIL)}


def unit(space: str, vectors: np.ndarray) -> np.ndarray:
    """What cells are made of: vectors of unit norm, near where what is searched is near."""
    return vectors if space == CLIP else lifted(vectors)


def make_shards(round: Round, rows: int) -> None:
    """Tells the cells of both spaces, for shards of about ``rows`` groups."""
    totals = [one for one in Directory(round.lake, round.snapshots.deduplicate).totals() if one["role"] == "training"]
    groups = sum(one["groups"] for one in totals)
    stored = round.lake.work("deduplicate", round.snapshots.deduplicate, "cells.npz")
    for space in (CLIP, THUMBNAIL):
        path = shards_file(round, space)
        if exists(path):
            continue
        quantiser = None
        if space == CLIP and exists(stored):
            # What deduplicate has trained, where it needed cells; with --thumbnail_share they are of other vectors.
            known = {name: value for name, value in arrays.read_npz(stored).items()
                     if name in ("basis", "coarse", "fine", "starts")}  # fmt: skip
            quantiser = cells.Quantiser(**known) if known else None
            if (
                quantiser is not None
                and len(quantiser.basis) != read_entries(round, totals[0]["part"], "training", CLIP).vectors.shape[1]
            ):
                quantiser = None
        if quantiser is None:
            quantiser = _trained(round, space, totals, groups)
        per_cell = max(1, groups // quantiser.cells)
        probes = min(quantiser.cells, max(8, VISITED // per_cell))
        Shards(quantiser, quantiser.shards(-(-groups // rows)), probes).write(path)


def _trained(round: Round, space: str, totals: Sequence[dict[str, Any]], groups: int) -> cells.Quantiser:
    """Cells learned from a sample: of parts drawn by hash, until there are enough."""
    sample = [np.empty((0, 0), np.float32)]
    for part in sorted((one["part"] for one in totals), key=lambda part: digest("cells", part)):
        entries = read_entries(round, part, "training", space)
        if len(entries.codes):
            sample.append(unit(space, entries.vectors))
        if sum(map(len, sample)) >= LEARNED_FROM:
            break
    vectors = np.concatenate(sample[1:])[:LEARNED_FROM]
    basis = cells.principal_basis(vectors, 0.9)
    return cells.train(vectors, basis, max(1, min(groups // GROUPS_PER_CELL, len(vectors) // 8)), 0)


def entries_file(round: Round, space: str, shard: int, part: int) -> str:
    return round.lake.work(INDEX, round.snapshots.deduplicate, "spilled", space, f"{shard:05d}", f"{part:05d}.npz")


class SpillEntries(beam.DoFn):
    """Number of a part of ``images`` → itself; spills its groups to the shards of their cells. Once for all rounds."""

    def __init__(self, round: Round):
        self.round = round
        self._shards = Shared(lambda: read_shards(round))

    def process(self, part: int) -> Iterator[int]:
        for space in (CLIP, THUMBNAIL):
            done = self.round.lake.work(INDEX, self.round.snapshots.deduplicate, "done", space, f"{part:05d}.json")
            if exists(done):
                continue
            shards = self._shards.get()[space]
            entries = read_entries(self.round, part, "training", space)
            if len(entries.codes):
                cell = shards.nearest(unit(space, entries.vectors), 1)[:, 0]
                shard = shards.shard[cell]
                for number in np.unique(shard).tolist():
                    mine = np.flatnonzero(shard == number)
                    path = entries_file(self.round, space, number, part)
                    arrays.write_npz(path, codes=entries.codes[mine], cell=cell[mine], vectors=entries.vectors[mine])
            arrays.write_json(done, len(entries.codes))
        yield part


class SpillQueries(beam.DoFn):
    """Number of a task → itself; spills its pictures to the shards of the cells that are looked at for them."""

    def __init__(self, round: Round, spaces: Sequence[str]):
        self.round, self.spaces = round, spaces
        self._shards = Shared(lambda: read_shards(round))

    def process(self, number: int) -> Iterator[int]:
        for space in self.spaces:
            queries = read_queries(self.round, number, "training", space)
            if not len(queries.numbers):
                continue
            shards = self._shards.get()[space]
            probed = shards.nearest(unit(space, queries.vectors), shards.probes)
            shard = np.where(probed >= 0, shards.shard[probed], -1)
            for one in np.unique(shard[shard >= 0]).tolist():
                inside = shard == one
                mine = np.flatnonzero(inside.any(axis=1))
                path = self.round.work("queries_of_shards", space, f"{one:05d}", f"{number:05d}.npz")
                cell = np.where(inside[mine], probed[mine], -1)
                arrays.write_npz(path, numbers=queries.numbers[mine], cell=cell, vectors=queries.vectors[mine])
        yield number


def shard_folder(round: Round, space: str, shard: int) -> str:
    """The groups of a shard in the order of their cells: codes.npy, vectors.npy, and cells.npy (the cell of each)."""
    return round.lake.work(INDEX, round.snapshots.deduplicate, "cells", space, f"{shard:05d}")


class SortShard(beam.DoFn):
    """(space, number of a shard) → the same; puts what was spilled to it in the order of cells. Once for all rounds."""

    def __init__(self, round: Round):
        self.round = round

    def process(self, element: tuple[str, int]) -> Iterator[tuple[str, int]]:
        space, shard = element
        folder = shard_folder(self.round, space, shard)
        # The cells come last: they say that the others are there.
        if not exists(f"{folder}/cells.npy"):
            spilled = os.path.dirname(entries_file(self.round, space, shard, 0))
            entries = _together(spilled)
            order = np.empty(0, np.int64) if entries is None else np.lexsort((entries["codes"], entries["cell"]))
            for name, column in (("codes", "codes"), ("vectors", "vectors"), ("cells", "cell")):
                values = np.empty(0) if entries is None else entries[column][order]
                arrays.write_npy(f"{folder}/{name}.npy", values)
            delete(spilled)
        yield element


class SearchShard(beam.DoFn):
    """(space, number of a shard) → its number; leaves what lies nearest to each picture of the round, among its cells."""

    def __init__(self, round: Round):
        self.round = round

    def process(self, element: tuple[str, int]) -> Iterator[int]:
        space, shard = element
        path = found_file(self.round, "training", space, shard)
        if not exists(path):
            queries = _together(self.round.work("queries_of_shards", space, f"{shard:05d}"))
            found = FOUND.empty_table()
            if queries is not None:
                asked = Queries(queries["numbers"], queries["vectors"])
                found = search_cells(
                    shard_folder(self.round, space, shard), asked, queries["cell"], space, self.round.neighbours
                )
            write_parquet(path, found)
            count(f"searches by {space}")
        yield shard


def search_cells(folder: str, queries: Queries, probed: np.ndarray, space: str, most: int) -> pa.Table:
    """``FOUND`` of a shard: of the cells that are looked at for each picture; of a local shard no other cell is read.

    Args:
        folder: see ``shard_folder``.
        queries: q pictures.
        probed: (q, p) int32 cells; -1 for none.
        space: clip or thumbnail.
        most: images for each picture.
    """
    codes, cell = (arrays.read_npy(f"{folder}/{name}.npy") for name in ("codes", "cells"))
    vectors = arrays.read_npy(f"{folder}/vectors.npy", mapped=True)
    place, rank = np.nonzero(probed >= 0)
    wanted = probed[place, rank]
    order = np.argsort(wanted, kind="stable")
    place, wanted = place[order], wanted[order]
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for one in np.unique(wanted).tolist():
        rows = slice(*np.searchsorted(cell, [one, one + 1]).tolist())
        mine = place[slice(*np.searchsorted(wanted, [one, one + 1]).tolist())]
        if rows.stop > rows.start:
            near, distances = nearest(
                codes[rows], np.asarray(vectors[rows]), queries.vectors[mine], most, by_angle=space == CLIP
            )
            there = near != NOTHING
            found.append((np.broadcast_to(queries.numbers[mine][:, None], near.shape)[there], near[there], distances[there]))
    if not found:
        return FOUND.empty_table()
    columns = (np.concatenate(column) for column in zip(*found, strict=True))
    return nearest_of(pa.table(dict(zip(FOUND.names, columns, strict=True)), schema=FOUND), most)


def _together(folder: str) -> dict[str, np.ndarray] | None:
    """The arrays of all files of a folder, each name's as one; None without a file."""
    read = [arrays.read_npz(path) for path in list_files(folder, ".npz")]
    return {name: np.concatenate([one[name] for one in read]) for name in read[0]} if read else None


def nearest_of(found: pa.Table, most: int) -> pa.Table:
    """Of what the cells of a shard gave, the ``most`` nearest of each picture."""
    picture, distance = np.unique(found["query"].to_numpy(), return_inverse=True)[1], found["distance"].to_numpy()
    # One whole number a row, since those are sorted fast: the bits of a float that isn't negative rise with it.
    order = np.argsort((picture << 32) | np.maximum(distance, 0).view(np.uint32))
    query = picture[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    return found.take(pa.array(order[rank < most]))


# -- together ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class IndexGroups(beam.PTransform):
    """Nothing → (space, number of a shard) of all shards, which are sorted then. For more groups than are compared directly.

    Attributes:
        round: says which groups.
        rows: groups that a worker holds at once.
    """

    round: Round
    rows: int = CHUNK_ROWS

    def expand(self, start: beam.pvalue.PBegin) -> beam.PCollection:
        round = self.round
        make_shards(round, self.rows)
        totals = Directory(round.lake, round.snapshots.deduplicate).totals()
        parts = [one["part"] for one in totals if one["role"] == "training"]
        every = [(space, shard) for space in (CLIP, THUMBNAIL) for shard in range(Shards.read(shards_file(round, space)).count)]
        return (
            start
            | "Parts" >> beam.Create(parts, reshuffle=True)
            | "SpillEntries" >> beam.ParDo(SpillEntries(round))
            | "AllEntries" >> beam.combiners.Count.Globally()
            | "Shards" >> beam.FlatMap(lambda _, shards: shards, every)
            | "SpreadShards" >> beam.Reshuffle()
            | "SortShard" >> beam.ParDo(SortShard(round))
        )


@dataclasses.dataclass
class FindCandidates(beam.PTransform):
    """Nothing → numbers of what was searched: leaves, for each picture of a round, the nearest in its spaces.

    Attributes:
        round: what is matched; its tasks are embedded.
        rows: groups that a worker holds at once.
    """

    round: Round
    rows: int

    def expand(self, start: beam.pvalue.PBegin) -> beam.PCollection:
        round = self.round
        totals = Directory(round.lake, round.snapshots.deduplicate).totals()
        groups = sum(one["groups"] for one in totals if one["role"] == "training")
        exact = {CLIP: tasks.EXACT_UP_TO, THUMBNAIL: round.exact_thumbnails}
        by_cells = tuple(space for space in round.spaces if groups > exact[space])
        rest = tuple(space for space in round.spaces if space not in by_cells)
        every = [*chunks(totals, "control", self.rows, round.spaces), *chunks(totals, "training", self.rows, rest)]
        in_chunks = start | "Chunks" >> beam.Create(every, reshuffle=True) | "SearchChunk" >> beam.ParDo(SearchChunk(round))
        if not by_cells:
            return in_chunks
        shards = start | "IndexGroups" >> IndexGroups(round, self.rows)
        numbers = start | "Tasks" >> beam.Create(range(len(round.tasks)), reshuffle=True)
        spilled = numbers | "SpillQueries" >> beam.ParDo(SpillQueries(round, by_cells))
        # A shard is searched once all pictures are spilled.
        waits = beam.pvalue.AsIter(spilled)
        in_shards = (
            shards
            | "OfThisRound" >> beam.Filter(lambda element, _: element[0] in by_cells, waits)
            | "SpreadSearches" >> beam.Reshuffle()
            | "SearchShard" >> beam.ParDo(SearchShard(round))
        )
        return (in_shards, in_chunks) | "Searched" >> beam.Flatten()


def candidates_file(round: Round, number: int) -> str:
    """Of a task, by picture: role, query, code, found_by (clip, thumbnail or both); cosine, and l2 of the thumbnails (apart),
    null where that didn't find it."""
    return round.file("candidates", number, "parquet")


def wanted_file(round: Round, part: int) -> str:
    """Of a part of ``images``: block and row of the pictures that are compared, in this order."""
    return round.file("wanted", part, "parquet")


def block_of(round: Round, query: int) -> int:
    """The number of the block that a picture is compared in."""
    return (query >> PLACE_BITS << PLACE_BITS) + (query & ((1 << PLACE_BITS) - 1)) // round.block


def merge(round: Round) -> list[int]:
    """Makes ``candidates_file`` and ``wanted_file`` of what was found; returns the parts of ``images`` with wanted pictures."""
    low = (1 << PLACE_BITS) - 1
    sources = []
    for role in ("training", "control"):
        for space in round.spaces:
            files = [readable(path) for path in list_files(round.work("found", role, space), ".parquet")]
            if files:
                listed = ", ".join(f"'{path}'" for path in files)
                sources.append(f"SELECT '{role}' AS role, '{space}' AS space, * FROM read_parquet([{listed}])")
    if not sources:
        return []
    with connect() as connection:
        connection.execute(
            f"""
            CREATE TEMP TABLE candidates AS
            WITH found AS ({" UNION ALL ".join(sources)}),

            ranked AS (
                SELECT role, space, query, code, min(distance) AS distance,
                    row_number() OVER (PARTITION BY role, space, query ORDER BY min(distance), code) AS place
                FROM found GROUP BY role, space, query, code
            )

            SELECT role, query, code,
                CASE count(*) WHEN 2 THEN 'both' ELSE any_value(space) END AS found_by,
                1 - min(distance) FILTER (space = '{CLIP}') AS cosine,
                min(distance) FILTER (space = '{THUMBNAIL}') AS apart
            FROM ranked WHERE place <= $neighbours GROUP BY role, query, code
            """,
            {"neighbours": round.neighbours},
        )
        in_order = connection.sql(
            f"SELECT query >> {PLACE_BITS} AS part, role, query, code, found_by, cosine, apart "
            "FROM candidates ORDER BY query, role, code"
        )
        for number, table in by_part(in_order.to_arrow_reader(1 << 16)):
            write_parquet(candidates_file(round, number), table)
        wanted = connection.sql(
            f"SELECT DISTINCT code >> {ROW_BITS} AS part, "
            f"(query >> {PLACE_BITS} << {PLACE_BITS}) + (query & {low}) // {round.block} AS block, "
            f"code & {(1 << ROW_BITS) - 1} AS row FROM candidates ORDER BY part, block, row"
        )
        parts = []
        for number, table in by_part(wanted.to_arrow_reader(1 << 16)):
            write_parquet(wanted_file(round, number), table)
            parts.append(number)
    return parts
