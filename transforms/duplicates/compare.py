"""The comparison itself: the pairs over the threshold, what their pixels say, and what hangs together by them."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.data.images import ByteLimitedCache, ImageStore
from transforms.duplicates.job import Block, Marks, Preparation, Search, Vectors, keys_of, positions, read_block
from transforms.duplicates.search import Cells, Comparison, Piece, known_pairs, shard_file
from transforms.errors import UserError
from transforms.kernels import cells as kernel
from transforms.kernels import verification
from transforms.kernels.groups import Edges, merge_forests, no_edges, spanning_forest_of_rows
from transforms.store.arrays import matrix, read_arrow, read_npz, write_npz
from transforms.store.counters import count
from transforms.store.files import exists, read_parquet
from transforms.store.sharing import Shared

PREPARED_PICTURES = 1024
"""Pictures that are kept ready for the second opinion: 0.15 MB each."""

DISTANCES_BYTES, DISTANCE_BYTES = 256 << 20, 400
"""Of what was found of pairs of pictures: some 700,000, and what one of them takes. What is asked again is looked at again."""

DIGESTS_BYTES = 16 << 20
"""Of ids and of what tells their pictures apart, in the second opinion: some 300,000 samples."""


MOST_LOOKS, LOOKS_OF_A_PICTURE = 2_000_000, 50
"""Pairs whose pixels may be looked at in vain, in all and of each picture: more of both are hours of one core at the least."""

LOOKED_BEFORE = 64
"""Sampled pairs that are looked at before the others, to tell what those would cost."""


class Outlook(beam.DoFn):
    """All ``Block`` → the same, where the pixels of the pairs can be looked at in reasonable time.

    UserError where the sampled images have so many pairs that disagree that it is the threshold which is not fit for this CLIP.
    """

    def __init__(self, job: Search):
        self.job = job

    def process(self, blocks: Sequence[Block]) -> Iterator[Sequence[Block]]:
        if self.job.ingest_snapshot is not None:
            self._look(Preparation.read(self.job), known_pairs(self.job, blocks))
        yield blocks

    def _look(self, prepared: Preparation, known: pa.Table) -> None:
        job, cosine, weight = self.job, known["cosine"].to_numpy(), known["stands_for"].to_numpy()
        over = np.flatnonzero((cosine > job.threshold) & (cosine <= job.threshold + job.pixel_band))
        of_each = weight[over].sum() / max(1, len(prepared.queries))
        pairs = of_each * sum(prepared.new.values()) / 2
        if pairs <= MOST_LOOKS or of_each <= LOOKS_OF_A_PICTURE:
            return
        # They are in random order, but stand for several each.
        some = np.random.default_rng(job.seed).choice(over, LOOKED_BEFORE, p=weight[over] / weight[over].sum())
        opinion, begun = SecondOpinion(job, pictures_of(job)), time.perf_counter()
        queries = [prepared.query_ids[query] for query in known["query"].to_numpy()[some]]
        distance = opinion.distances(queries, known["sample_id"].take(pa.array(some)).to_pylist())
        hours = (time.perf_counter() - begun) / LOOKED_BEFORE * pairs / 3600
        # What agrees is one picture soon, and nobody asks again.
        apart = int((distance > job.pixel_distance).sum())
        if pairs * apart / LOOKED_BEFORE > MOST_LOOKS and of_each * apart / LOOKED_BEFORE > LOOKS_OF_A_PICTURE:
            higher = np.argsort(-cosine[over])
            enough = higher[np.cumsum(weight[over][higher]) <= LOOKS_OF_A_PICTURE / 10 * len(prepared.queries)]
            raised = np.ceil(1000 * cosine[over][enough].min(initial=1.0)) / 1000
            raise UserError(
                f"some {pairs:,.0f} pairs are over --duplicate_threshold {job.threshold}, {of_each:,.0f} of each picture, and "
                f"of {LOOKED_BEFORE} the pixels of {apart} disagree: to this CLIP unlike pictures are alike, and a look at all "
                f"would take some {hours:,.0f} hours of one core; choose a higher threshold (over {raised:.3f} are "
                f"{LOOKS_OF_A_PICTURE // 10} of each), --thumbnail_share 0.5 beside it, or --pixel_band 0, with which CLIP "
                "alone decides"
            )


class ComparePieces(beam.DoFn):
    """``Comparison`` → its number; writes its part of ``duplicate_pairs``, and ``Compared``, unless they're there."""

    def __init__(self, job: Search):
        self.job = job
        self._plan = Shared(lambda: (Preparation.read(job), Cells.read(job)))
        self._pictures = Shared(lambda: pictures_of(job))

    def setup(self) -> None:
        self.opinion = None if self.job.ingest_snapshot is None else SecondOpinion(self.job, self._pictures.get())

    def process(self, comparison: Comparison) -> Iterator[int]:
        if not exists(self.job.lake.part("duplicate_pairs", self.job.snapshot, comparison.number)):
            self._compare(comparison)
        yield comparison.number

    def _compare(self, comparison: Comparison) -> None:
        job, shard = self.job, comparison.shard
        prepared, cells = self._plan.get()
        same = comparison.first == comparison.second
        first, lists_a = self._load(shard, comparison.first)
        second, lists_b = (first, lists_a) if same else self._load(shard, comparison.second)
        elsewhere_a, elsewhere_b = (_elsewhere(cells, shard, lists) for lists in (lists_a, lists_b))
        block_a = _block(prepared, cells, shard, first, lists_a)
        block_b = block_a if same else _block(prepared, cells, shard, second, lists_b)
        # Both sets as one, in which a pair is i and j: those of a second set come after the first.
        offset = 0 if same else len(first.key)
        keys = first.key if same else np.concatenate([first.key, second.key])
        ids = pa.array(first.sample_id if same else np.concatenate([first.sample_id, second.sample_id]), pa.string())
        place = np.empty(len(ids), np.int64)
        place[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
        sizes = _set_sizes(prepared, keys)
        known = _KnownPairs.read(job, prepared, keys)
        # Where pixels decide, what is one picture by pairs that agree need not be looked at again.
        joined = Joined() if job.pixels_decide else None
        tables, forests, found, pairs, left_out = [_no_pairs()], [no_edges()], [np.empty(0, np.int64)], 0, 0
        for i, j, cosine in kernel.pairs_in_cells(block_a, block_b, job.threshold, same):
            # Two that may meet in several shards count in that of the first cell that they have in common.
            twice = np.flatnonzero(elsewhere_a[i] & elsewhere_b[j])
            if len(twice):
                here = np.ones(len(i), bool)
                here[twice] = cells.shard[kernel.first_common(lists_a[i[twice]], lists_b[j[twice]])] == shard
                i, j, cosine = i[here], j[here], cosine[here]
            j = j + offset
            found.append(known.among(i, j))
            kept = _nearest_pairs(i, cosine, job.most_pairs)
            images = sizes[i] * sizes[j]
            pairs += int(images.sum())
            left_out += int(images.sum() - images[kept].sum())
            swap = place[i[kept]] > place[j[kept]]
            one, other = (ids.take(pa.array(np.where(swap, x[kept], y[kept]))) for x, y in ((j, i), (i, j)))
            distance, agree = self._second_opinion(one, other, cosine[kept], joined)
            tables.append(_pairs_table(one, other, cosine[kept], distance, agree))
            joins = np.ones(len(i), bool)
            if job.pixels_decide:
                joins[kept[agree == 0]] = False
            forests.append(spanning_forest_of_rows(len(keys), Edges(i[joins], j[joins], cosine[joins])))
        forest = merge_forests(forests)
        Compared(
            keys[forest.i], keys[forest.j], forest.cosine, np.concatenate(found), np.int64(pairs), np.int64(left_out)
        ).write(job, comparison.number)
        job.lake.write("duplicate_pairs", job.snapshot, comparison.number, pa.concat_tables(tables))
        count("duplicate pairs", pairs)
        count("duplicate pairs without a row", left_out)

    def _load(self, shard: int, pieces: tuple[Piece, ...]) -> tuple[Vectors, np.ndarray]:
        """The vectors that are compared, and the cells of each; without cells all are in one."""
        loaded, lists = [], []
        for piece in pieces:
            if piece.snapshot:
                table = read_arrow(shard_file(self.job, piece.snapshot, shard, piece.block))
                vectors = Vectors(table["key"].to_numpy(), table["sample_id"].to_numpy(), matrix(table["vector"]))
                lists.append(matrix(table["cells"]))
            else:
                vectors, marks = read_block(self.job, piece.block)
                vectors = vectors.take(np.flatnonzero(marks.is_canonical & (marks.new == piece.new)))
                lists.append(np.zeros((len(vectors.key), 1), np.int32))
            loaded.append(vectors)
        return Vectors(*(np.concatenate(column) for column in zip(*loaded, strict=True))), np.concatenate(lists)

    def _second_opinion(
        self, one: pa.Array, other: pa.Array, cosine: np.ndarray, joined: Joined | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(p,) float32 aligned tiled l2, NaN where nobody looked; (p,) int8: 1 agree, 0 don't, -1 not looked at."""
        distance, agree = np.full(len(one), np.nan, np.float32), np.full(len(one), -1, np.int8)
        if self.opinion is not None:
            near = np.flatnonzero(cosine <= self.job.threshold + self.job.pixel_band)
            if joined is not None:
                near = near[np.argsort(-cosine[near], kind="stable")]
            distance[near] = self.opinion.distances(
                one.take(pa.array(near)).to_pylist(), other.take(pa.array(near)).to_pylist(), joined
            )
            # A picture that can't be looked at leaves its pairs without an opinion.
            looked = near[~np.isnan(distance[near])]
            agree[looked] = distance[looked] <= self.job.pixel_distance
        return distance, agree


def _block(prepared: Preparation, cells: Cells, shard: int, vectors: Vectors, lists: np.ndarray) -> kernel.Spread:
    """What is to be compared: in a shard, its own cells alone."""
    mine = lists if shard < 0 else np.where((lists >= 0) & (cells.shard[lists] == shard), lists, -1)
    basis = prepared.basis if cells.quantiser is None else cells.quantiser.basis
    return kernel.Spread(vectors.vector, kernel.sketch(vectors.vector, basis), mine)


def _elsewhere(cells: Cells, shard: int, lists: np.ndarray) -> np.ndarray:
    """(n,) bool: has a cell outside this shard, too."""
    return ((lists >= 0) & (cells.shard[lists] != shard)).any(axis=1) if shard >= 0 else np.zeros(len(lists), bool)


def _set_sizes(prepared: Preparation, keys: np.ndarray) -> np.ndarray:
    """(n,) int64: how many images each vector tells of, itself included."""
    place, there = positions(prepared.canonical_keys, keys)
    return np.where(there, prepared.set_sizes[place] if len(prepared.set_sizes) else 1, 1)


def _nearest_pairs(i: np.ndarray, cosine: np.ndarray, most: int) -> np.ndarray:
    """Positions, ascending, of the ``most`` nearest pairs of each i; i is ascending."""
    start = np.searchsorted(i, i)
    if len(i) == 0 or int((np.searchsorted(i, i, side="right") - start).max()) <= most:
        return np.arange(len(i))
    order = np.lexsort((-cosine, i))
    return np.sort(order[np.arange(len(i)) - start < most])


def _pairs_table(one: pa.Array, other: pa.Array, cosine: np.ndarray, distance: np.ndarray, agree: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "sample_id_a": one,
            "sample_id_b": other,
            "cosine": pa.array(cosine, pa.float32()),
            "pixel_distance": pa.array(distance, pa.float32(), mask=np.isnan(distance)),
            "pixels_agree": pa.array(agree == 1, pa.bool_(), mask=agree < 0),
        }
    )


def _no_pairs() -> pa.Table:
    ids, numbers = pa.array([], pa.string()), np.empty(0)
    return _pairs_table(ids, ids, numbers, numbers, numbers)


class Compared(NamedTuple):
    """What a comparison leaves beside its pairs.

    Attributes:
        i, j, cosine: a spanning forest of the highest cosines, by keys.
        known: (k,) int64 numbers of the known pairs that were found.
        pairs: of images, over the threshold, exact-duplicate sets counted in full.
        left_out: of those, pairs without a row.
    """

    i: np.ndarray
    j: np.ndarray
    cosine: np.ndarray
    known: np.ndarray
    pairs: np.int64
    left_out: np.int64

    def write(self, job: Search, number: int) -> None:
        write_npz(job.file("compared", number, "npz"), **self._asdict())

    @classmethod
    def read(cls, job: Search, number: int) -> Compared:
        stored: dict[str, Any] = read_npz(job.file("compared", number, "npz"))
        return cls(**stored)

    @property
    def forest(self) -> Edges:
        return Edges(self.i, self.j, self.cosine)


class _KnownPairs:
    """The sampled pairs, to be found again among the pairs of a set of vectors.

    Args:
        query, other: (k,) int64 keys of the known pairs.
        keys: (n,) int64 of the set.
    """

    def __init__(self, query: np.ndarray, other: np.ndarray, keys: np.ndarray):
        self.keys, self.sampled = keys, np.isin(keys, query)
        self.numbers: dict[tuple[int, int], list[int]] = {}
        for number in np.flatnonzero(np.isin(query, keys) & np.isin(other, keys)).tolist():
            pair = int(query[number]), int(other[number])
            # Of two sampled images each is the other's known pair.
            for way in (pair, pair[::-1]):
                self.numbers.setdefault(way, []).append(number)

    @classmethod
    def read(cls, job: Search, prepared: Preparation, keys: np.ndarray) -> _KnownPairs:
        known = read_arrow(job.work("known.arrow"))
        # The others are no pairs of the search; they come after these.
        over = int((known["cosine"].to_numpy() > job.threshold).sum())
        return cls(prepared.query_keys[known["query"].to_numpy()[:over]], known["key"].to_numpy()[:over], keys)

    def among(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Numbers of the known pairs that are among the pairs (i, j)."""
        here = np.flatnonzero(self.sampled[i] | self.sampled[j])
        pairs = zip(self.keys[i[here]].tolist(), self.keys[j[here]].tolist(), strict=True)
        return np.array([number for pair in pairs for number in self.numbers.get(pair, ())], np.int64)


class Joined:
    """Pictures, by their digests, that are one by pairs whose pixels agree."""

    def __init__(self) -> None:
        self._parent: dict[bytes, bytes] = {}
        self._distances: ByteLimitedCache[tuple[bytes, bytes], float] = ByteLimitedCache(DISTANCES_BYTES)

    def root(self, picture: bytes) -> bytes:
        """The one that stands for all it is joined with."""
        parent = self._parent
        while (above := parent.setdefault(picture, picture)) != picture:
            parent[picture] = parent[above]
            picture = parent[picture]
        return picture

    def join(self, one: bytes, other: bytes) -> None:
        self._parent[self.root(one)] = self.root(other)

    def known(self, one: bytes, other: bytes) -> float | None:
        """What was found of these two pictures a while ago, be it by other samples; None where that isn't known."""
        return self._distances.get((one, other) if one < other else (other, one))

    def tell(self, one: bytes, other: bytes, distance: float) -> None:
        self._distances.put((one, other) if one < other else (other, one), distance, DISTANCE_BYTES)


def pictures_of(job: Search) -> ImageStore:
    """The training images of a search that has pictures."""
    assert job.ingest_snapshot is not None, "without pictures there is no second opinion"
    return ImageStore(job.lake, job.ingest_snapshot, job.embed_snapshot)


class SecondOpinion:
    """What pixels say of pairs; see ``kernels/verification.py``.

    Args:
        job: the search.
        store: its pictures, as ``pictures_of`` gives them.
    """

    def __init__(self, job: Search, store: ImageStore):
        self.store, self.agree = store, job.pixel_distance
        self._ready: OrderedDict[bytes, verification.PreparedPicture] = OrderedDict()
        self._digests: ByteLimitedCache[str, bytes] = ByteLimitedCache(DIGESTS_BYTES)

    def distances(self, one: Sequence[str], other: Sequence[str], joined: Joined | None = None) -> np.ndarray:
        """(p,) sample_ids twice → (p,) float32 aligned tiled l2; NaN where a picture can't be decoded, or was forgotten.

        With ``joined`` also NaN where both are one picture already, by pairs before that agreed; the pairs here are added.
        """
        from threadpoolctl import threadpool_limits

        result = np.full(len(one), np.nan, np.float32)
        with threadpool_limits(1, user_api="blas"):
            for place, (a, b) in enumerate(zip(one, other, strict=True)):
                first, second = self._digest(a), self._digest(b)
                if not first or not second:
                    continue
                if joined is None:
                    result[place] = self._align(a, b, first, second)
                elif joined.root(first) != joined.root(second):
                    distance = joined.known(first, second)
                    if distance is None:
                        distance = self._align(a, b, first, second)
                        joined.tell(first, second, distance)
                    if distance <= self.agree:
                        joined.join(first, second)
                    result[place] = distance
        return result

    def _align(self, a: str, b: str, first: bytes, second: bytes) -> float:
        return verification.align(self._prepare(a, first), self._prepare(b, second)).distance

    def _digest(self, sample_id: str) -> bytes:
        """Of the picture's pixels; empty where there are none."""
        digest = self._digests.get(sample_id)
        if digest is None:
            try:
                picture = self.store.get(sample_id)
            except ValueError:
                digest = b""
            else:
                shape = ",".join(map(str, picture.shape)).encode()
                digest = hashlib.blake2b(shape + picture.tobytes(), digest_size=16).digest()
            self._digests.put(sample_id, digest, len(sample_id) + len(digest))
        return digest

    def _prepare(self, sample_id: str, digest: bytes) -> verification.PreparedPicture:
        ready = self._ready.get(digest)
        if ready is None:
            ready = self._ready[digest] = verification.prepare(self.store.get(sample_id))
            if len(self._ready) > PREPARED_PICTURES:
                self._ready.popitem(last=False)
        else:
            self._ready.move_to_end(digest)
        return ready


class CarryOver(beam.DoFn):
    """Number of a part of last night's ``duplicate_pairs`` → itself; writes it as tonight's, and ``Compared``.

    Pairs of images that an exact-duplicate set has taken up since are left out: its canonical image has them too.
    """

    def __init__(self, job: Search):
        self.job = job

    def process(self, number: int) -> Iterator[int]:
        if not exists(self.job.lake.part("duplicate_pairs", self.job.snapshot, number)):
            self._carry(number)
        yield number

    def _carry(self, number: int) -> None:
        job, prepared = self.job, Preparation.read(self.job)
        rows = read_parquet(job.lake.part("duplicate_pairs", job.chain[-1], number))
        if len(prepared.canonical_keys):
            silent = np.concatenate([marks.key[~marks.is_canonical] for marks in all_marks(job, prepared)])
            one, other = (keys_of(rows[name].to_pylist()) for name in ("sample_id_a", "sample_id_b"))
            speak = ~(np.isin(one, silent) | np.isin(other, silent))
            rows = rows.filter(pa.array(speak))
            pairs = int((_set_sizes(prepared, one[speak]) * _set_sizes(prepared, other[speak])).sum())
        else:
            pairs = rows.num_rows
        queries = pa.array(prepared.query_ids)
        sampled = rows.filter(pc.or_(*(pc.is_in(rows[name], value_set=queries) for name in ("sample_id_a", "sample_id_b"))))
        one, other = (keys_of(sampled[name].to_pylist()) for name in ("sample_id_a", "sample_id_b"))
        places = np.arange(len(one))
        known = _KnownPairs.read(job, prepared, np.concatenate([one, other])).among(places, places + len(one))
        Compared(*no_edges(), known, np.int64(pairs), np.int64(0)).write(job, number)
        job.lake.write("duplicate_pairs", job.snapshot, number, rows)


def all_marks(job: Search, prepared: Preparation) -> Iterator[Marks]:
    return (Marks.read(job, block.number) for block in prepared.blocks)
