"""What is matched, in which portions, and where the files between the steps lie.

A **round** is some tasks that are matched together: the stored generations and the decoys first, and then what was made again.
A task is one part of ``generations`` (or of what else is judged as if it were a generation); its pictures are numbered in
their order, and are compared in blocks of so many that a worker holds all the pictures which one block is compared with.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from transforms.kernels.distances import Frame
from transforms.store.lake import Lake

REGENERATED = 100_000_000
"""Parts of ``matches`` from this number on are about ``regenerations``; the others about the part of ``generations``."""

CLIP, THUMBNAIL = "clip", "thumbnail"

PLACE_BITS = 32
"""Of the number that a picture has in a round: its task's number is above them."""


class Task(NamedTuple):
    """Some pictures that are compared with the training images.

    Attributes:
        kind: generations, regenerations or decoys.
        number: of the part of that table.
    """

    kind: str
    number: int

    @property
    def part(self) -> int:
        """The part of ``matches`` (or ``decoys``) that it becomes."""
        return self.number + REGENERATED if self.kind == "regenerations" else self.number

    @property
    def table(self) -> str:
        return "decoys" if self.kind == "decoys" else "matches"


EXACT_UP_TO = 200_000
"""With so many groups or fewer, all are compared: cells cost more than they save, and lose some."""

THUMBNAILS_EXACT_UP_TO = 5_000_000
"""The same of thumbnails, of what is judged. Half a second for 1,000 pictures and 1,000,000 groups; but each portion of groups
leaves its nearest for each picture."""


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """What ``match`` reads, by snapshot id."""

    ingest: str
    embed: str
    deduplicate: str
    generate: str


@dataclasses.dataclass(frozen=True)
class Round:
    """Tasks that are matched together. Small, and pickles.

    Attributes:
        lake: the lake.
        snapshots: what is read.
        snapshot: of ``match``.
        name: stored, again, or pointing.
        tasks: in the order of their numbers in the files.
        frame: size of the decoys, if any.
        neighbours: training images that CLIP, and the thumbnails, name for each picture.
        block: pictures that are compared at once.
        spaces: clip, thumbnail: what is searched.
        exact_thumbnails: with so many groups or fewer all thumbnails are compared. Cells find what lies near; what a ratio
            is divided by may lie anywhere.
    """

    lake: Lake
    snapshots: Snapshots
    snapshot: str
    name: str
    tasks: tuple[Task, ...]
    frame: Frame
    neighbours: int
    block: int
    spaces: tuple[str, ...] = (CLIP, THUMBNAIL)
    exact_thumbnails: int = THUMBNAILS_EXACT_UP_TO

    def work(self, *parts: str) -> str:
        """Where this round leaves something."""
        return self.lake.work("match", self.snapshot, self.name, *parts)

    def file(self, kind: str, number: int, ending: str) -> str:
        return self.work(kind, f"{number:05d}.{ending}")


def decoy_file(lake: Lake, snapshot: str) -> str:
    """Where the decoys of a match are listed: part, kind, sample_id, group_id, code."""
    return lake.work("match", snapshot, "decoys.parquet")
