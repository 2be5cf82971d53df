"""Judges the pictures of one task, block by block, and writes its part of ``matches`` or ``decoys``.

A worker holds the pictures that one block is compared with, as they are stored, and as many of them decoded as fit into its
cache.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from transforms.data.images import ROW_BITS, ByteLimitedCache, PicturesByCode
from transforms.kernels.bounds import SLACK
from transforms.kernels.distances import Frame, covering, frame_of
from transforms.kernels.thumbnails import LENGTH
from transforms.matching.candidates import block_of, candidates_file
from transforms.matching.comparison import ComparedPicture, Group, Matcher, Measure
from transforms.matching.directory import Directory
from transforms.matching.gathering import Gathered, read_block
from transforms.matching.queries import JudgedPicture, read_task
from transforms.matching.tasks import PLACE_BITS, Round, Task
from transforms.matching.unreadable import note
from transforms.store.counters import count
from transforms.store.files import exists, list_files, read_parquet, write_parquet
from transforms.store.identity import unit_interval
from transforms.store.lake import Lake
from transforms.store.pictures import DamagedPicture, stored_array, thumbnail
from transforms.store.sharing import Shared

NO_DECOYS_COLUMNS = ("role", "relation", "found_by", "cosine", "offset", "extracted")
"""Columns of ``matches`` that ``decoys`` lack."""

CACHED_BYTES = 256 << 20
"""Of decoded pictures, in a worker."""


class MatchTask(beam.DoFn):
    """(number, task) → the task, when its part of ``matches`` or ``decoys`` is written.

    Some of the generations, drawn by hash, are left in ``sampled_folder``, to measure the candidates' recall on.

    Args:
        round: what is matched; its candidates are found and their pictures gathered.
        measure: how.
        audit: the audit's columns.
        sampled: share of the generations that are left.
    """

    def __init__(self, round: Round, measure: Measure, audit: dict[str, str], sampled: float):
        self.round, self.measure, self.audit, self.sampled = round, measure, audit, sampled
        self._worker = Shared(lambda: _Worker(round))

    def setup(self) -> None:
        self._directory = Directory(self.round.lake, self.round.snapshots.deduplicate)
        self._pictures = _Pictures(self._worker.get())
        self._matcher = Matcher(self._pictures.get, self.measure)

    def process(self, element: tuple[int, Task]) -> Iterator[Task]:
        number, task = element
        lake = self.round.lake
        if not exists(lake.part(task.table, self.round.snapshot, task.part)):
            sampled: list[dict[str, Any]] = []
            rows = list(self._rows(number, task, sampled))
            if sampled:
                path = lake.work("match", self.round.snapshot, "sampled", f"part-{task.part:05d}.parquet")
                write_parquet(path, pa.Table.from_pylist(sampled))
            lake.write(task.table, self.round.snapshot, task.part, rows)
            count(f"rows of {task.table}", len(rows))
        yield task

    def _rows(self, number: int, task: Task, sampled: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        embedded = set(read_parquet(self.round.file("queries", number, "parquet"), ["place"])["place"].to_pylist())
        # What couldn't be decoded when it was embedded has been noted, and has no candidates: it isn't judged by half.
        judged = (one for one in read_task(self.round, task) if one.place in embedded)
        found = _candidates(self.round, number)
        for _, some in itertools.groupby(judged, lambda one: one.place // self.round.block):
            block = list(some)
            mine = {one.place: found.get((number << PLACE_BITS) + one.place, []) for one in block}
            parts = sorted({code >> ROW_BITS for some in mine.values() for _, code, _, _ in some})
            first = (number << PLACE_BITS) + block[0].place
            self._pictures.gathered = read_block(self.round, block_of(self.round, first), parts)
            yield from self._block(task, block, mine, sampled)
            # Two blocks at once would take twice the memory.
            self._pictures.gathered = {}

    def _block(
        self,
        task: Task,
        block: list[JudgedPicture],
        candidates: dict[int, list[tuple[str, int, str, float | None]]],
        sampled: list[dict[str, Any]],
    ) -> Iterator[dict[str, Any]]:
        matcher, gathered = self._matcher, self._pictures.gathered

        def compare(one: JudgedPicture) -> tuple[JudgedPicture, ComparedPicture, Group | None]:
            groups: dict[str, list[Group]] = {"training": [], "control": []}
            for role, code, found_by, cosine in candidates[one.place]:
                there = gathered[code]
                if there.group_id != one.without or role != "training":
                    known = (there.group_id, code, there.sample_id, there.size, found_by, cosine)
                    groups[role].append(Group(*known))
            bounds = _bounds(one.picture, [gathered[group.code] for group in groups["training"]])
            own = None if one.prompt is None else own_group(one.prompt)
            near = matcher.compare(one.picture, groups["training"], groups["control"], bounds, own and own.group)
            if own is not None:
                # CLIP may have looked at it as well.
                cosines = {group.group: group.cosine for some in groups.values() for group in some}
                own = own._replace(cosine=cosines.get(own.group))
            return one, near, own

        # Decoders and numpy let go of Python's lock: so many pictures at once as there are cores.
        with threadpool_limits(1, user_api="blas"):
            compared = list(self._worker.get().pool.map(compare, block))
        wanted = {group for _, near, own in compared for group in matcher.wanted(near, own)}
        members = self._directory.members(wanted)
        for one, near, own in compared:
            if one.prompt is None:
                if near.training:
                    yield {**self.audit, **one.identity, **self._nearest(near, members)}
                continue
            identity = {**self.audit, **one.identity}
            rows = matcher.rows(near, own, one.prompt["origin"] == "control", members)
            yield from ({**identity, **row} for row in rows)
            drawn = unit_interval("recall", one.identity["prompt_id"], one.identity["sample_index"]) < self.sampled
            if drawn and task.kind == "generations" and near.training:
                sampled.append(_sampled(one, near))

    def _nearest(self, near: ComparedPicture, members: Any) -> dict[str, Any]:
        """The columns of ``decoys`` on the training group that lies nearest by coarse l2."""
        nearest = min(near.training, key=lambda one: (one.coarse_l2, one.group.group))
        row = self._matcher.row(near, nearest.group, "training", "neighbour", members)
        assert row is not None, "it has a distance"
        return {name: value for name, value in row.items() if name not in (*NO_DECOYS_COLUMNS, "sample_id")}


def _bounds(picture: np.ndarray, gathered: Sequence[Gathered]) -> np.ndarray:
    """(n,) float: what the l2 of a picture to each of these is not below; 0 where nothing is known."""
    if not gathered:
        return np.empty(0)
    mine = np.frombuffer(thumbnail(picture), np.uint8).astype(np.float32)
    nothing = bytes(LENGTH)
    theirs = np.frombuffer(b"".join(one.thumbnail or nothing for one in gathered), np.uint8).reshape(-1, LENGTH)
    distances = np.sqrt(np.square(theirs.astype(np.float32) - mine).mean(axis=1)) / 255
    # A thumbnail is squeezed: that of a picture of another shape is no bound of its crops'.
    frame = frame_of(picture)
    whole = np.array([one.thumbnail is not None and _fills(one.aspect, frame) for one in gathered])
    return np.where(whole, np.maximum(distances - SLACK, 0), 0)


def _fills(aspect: float, frame: Frame) -> bool:
    """Whether all of a picture of this width over height is the crop that fills a frame: up to less than half a pixel."""
    wider = aspect * frame.height / frame.width
    return wider - 1 < 0.49 / frame.width and 1 / wider - 1 < 0.49 / frame.height


def own_group(prompt: dict[str, Any]) -> Group | None:
    """The group, or the control, whose caption a prompt is: from its row of the directory's ``own_file``."""
    if prompt["own_code"] is None:
        return None
    control = prompt["origin"] == "control"
    name = prompt["sample_id"] if control else prompt["group_id"]
    return Group(name, prompt["own_code"], prompt["own_sample"], 1 if control else prompt["own_size"])


def _candidates(round: Round, number: int) -> dict[int, list[tuple[str, int, str, float | None]]]:
    """A picture's number → (role, code, found_by, cosine) of what may lie near it."""
    path = candidates_file(round, number)
    found: dict[int, list[tuple[str, int, str, float | None]]] = {}
    if exists(path):
        columns = read_parquet(path).to_pydict()
        names = ("query", "role", "code", "found_by", "cosine")
        for query, *rest in zip(*(columns[name] for name in names), strict=True):
            found.setdefault(query, []).append(tuple(rest))
    return found


def _sampled(one: JudgedPicture, near: ComparedPicture) -> dict[str, Any]:
    """What the measure of recall needs to know of a generation."""
    by_coarse = sorted(near.training, key=lambda other: (other.coarse_l2, other.group.group))
    return {
        "key": f"{one.identity['prompt_id']} {one.identity['sample_index']}",
        "height": one.picture.shape[0],
        "width": one.picture.shape[1],
        "coarse": near.coarse.astype(np.float32).tobytes(),
        "found_by": by_coarse[0].group.found_by,
        "nearest": by_coarse[0].coarse_l2,
        "next": by_coarse[1].coarse_l2 if len(by_coarse) > 1 else None,
    }


def sampled_folder(lake: Lake, snapshot: str) -> str:
    """Where the sampled generations are left, one file a part."""
    return lake.work("match", snapshot, "sampled")


def sampled_rows(lake: Lake, snapshot: str) -> list[dict[str, Any]]:
    """What was left of the sampled generations: few by nature."""
    files = list_files(sampled_folder(lake, snapshot), ".parquet")
    return [row for file in files for row in read_parquet(file).to_pylist()]


class _Worker:
    """What the threads of a worker share.

    Attributes:
        round: what is matched.
        decoded: pictures by code and frame.
        others: where a picture is read that wasn't gathered for a block.
        pool: a thread for each core, however many blocks are compared at once.
    """

    def __init__(self, round: Round):
        self.round = round
        self.decoded: ByteLimitedCache[tuple[int, Frame], np.ndarray] = ByteLimitedCache(CACHED_BYTES)
        self.others = PicturesByCode(round.lake, round.snapshots.ingest)
        self.pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1)


class _Pictures:
    """Training images as they cover a frame.

    Args:
        worker: keeps those that are decoded.

    Attributes:
        gathered: those at hand, by code; any other is read from its place.
    """

    def __init__(self, worker: _Worker):
        self.worker = worker
        self.gathered: dict[int, Gathered] = {}

    def _read(self, code: int, sample_id: str) -> np.ndarray:
        gathered = self.gathered.get(code)
        return self.worker.others.get(code, sample_id) if gathered is None else stored_array(gathered.image.as_py())

    def get(self, code: int, sample_id: str, frame: Frame) -> np.ndarray:
        """See ``comparison.Pictures``."""
        picture = self.worker.decoded.get((code, frame))
        if picture is None:
            try:
                picture = covering(self._read(code, sample_id), frame)
            except ValueError as error:  # damaged, or far too long for the frame
                round = self.worker.round
                note(round.lake, round.snapshot, "images", error, sample_id=sample_id)
                raise DamagedPicture(str(error)) from error
            self.worker.decoded.put((code, frame), picture, picture.nbytes)
        return picture
