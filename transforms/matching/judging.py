"""Judges pictures that somebody brings as ``match`` judges an audit's generations: the same distances, to the same images.

What lies near a picture is looked for by CLIP and by thumbnail in the index of matching (``lookup.near_groups``), and compared
by the same ``Matcher``; so a verdict here is the one that ``match`` would give.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transforms.data.images import ByteLimitedCache, PicturesByCode
from transforms.kernels.copies import CopyLimits, is_copy
from transforms.kernels.distances import Frame, covering
from transforms.kernels.thumbnails import LENGTH
from transforms.matching.candidates import Queries
from transforms.matching.comparison import Group, Matcher, Measure
from transforms.matching.directory import Directory
from transforms.matching.lookup import near_groups
from transforms.matching.tasks import CLIP, THUMBNAIL, Round
from transforms.store.pictures import DamagedPicture, thumbnail

CACHED_BYTES = 256 << 20
"""Of decoded pictures."""


class Brought(NamedTuple):
    """A picture that is judged.

    Attributes:
        picture: (H, W, 3) uint8.
        vector: (d,) float32 of CLIP, unit norm; not finite where CLIP makes nothing of it.
        own: the training group, or the control, that it may be a copy of.
        control: whether that is a control.
    """

    picture: np.ndarray
    vector: np.ndarray
    own: Group
    control: bool


class Judgement(NamedTuple):
    """What is said of a picture and its own image.

    Attributes:
        l2: to the nearest member of the group.
        copied: whether it is a copy, by the limits of the audit.
    """

    l2: float
    copied: bool


class Judge:
    """Compares pictures with their own image and with what lies near them.

    Args:
        round: says which groups, and how many neighbours; they are indexed (``lookup.is_indexed``).
        measure: as the audit was matched.
        limits: of a copy.
    """

    def __init__(self, round: Round, measure: Measure, limits: CopyLimits):
        self.round, self.measure, self.limits = round, measure, limits
        self.directory = Directory(round.lake, round.snapshots.deduplicate)
        self._store = PicturesByCode(round.lake, round.snapshots.ingest)
        self._covering: ByteLimitedCache[tuple[int, Frame], np.ndarray] = ByteLimitedCache(CACHED_BYTES)
        self._matcher = Matcher(self._picture, measure)

    def _picture(self, code: int, sample_id: str, frame: Frame) -> np.ndarray:
        """See ``comparison.Pictures``."""
        picture = self._covering.get((code, frame))
        if picture is None:
            try:
                picture = covering(self._store.get(code, sample_id), frame)
            except ValueError as error:  # forgotten, damaged, or far too long for the frame
                raise DamagedPicture(str(error)) from error
            self._covering.put((code, frame), picture, picture.nbytes)
        return picture

    def judge(self, brought: Sequence[Brought]) -> list[Judgement | None]:
        """Of each picture; None where its own image can't be looked at any more."""
        from threadpoolctl import threadpool_limits

        near = self._near(brought)
        members = self.directory.members({one.own.group for one in brought if not one.control})

        def compare(place: int) -> Judgement | None:
            one = brought[place]
            compared = self._matcher.compare(one.picture, near[place], own=None if one.control else one.own.group)
            row = self._matcher.row(compared, one.own, "control" if one.control else "training", "own", members)
            return None if row is None else Judgement(row["l2"], is_copy(row, self.limits))

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool, threadpool_limits(1, user_api="blas"):
            return list(pool.map(compare, range(len(brought))))

    def _near(self, brought: Sequence[Brought]) -> list[list[Group]]:
        """The training groups that CLIP or thumbnails name for each picture."""
        if not brought:
            return []
        vectors = np.stack([one.vector for one in brought])
        finite = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        thumbnails = b"".join(thumbnail(one.picture) for one in brought)
        tiny = np.frombuffer(thumbnails, np.uint8).reshape(-1, LENGTH).astype(np.float32) / np.float32(255)
        everyone = np.arange(len(brought), dtype=np.int64)
        cosines: list[dict[int, float | None]] = [{} for _ in brought]
        for space, queries in (
            (THUMBNAIL, Queries(everyone, tiny)),
            (CLIP, Queries(finite.astype(np.int64), vectors[finite])),
        ):
            for row in near_groups(self.round, queries, space, self.round.neighbours).to_pylist():
                cosines[row["query"]][row["code"]] = 1 - row["distance"] if space == CLIP else None
        rows = self.directory.rows({code for some in cosines for code in some})
        return [
            [
                Group(rows[code]["group_id"], code, rows[code]["sample_id"], rows[code]["size"], "both", cosine)
                for code, cosine in some.items()
            ]
            for some in cosines
        ]
