"""All of a lake held against what its manifests say, and what becomes of what is damaged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

from transforms.errors import Damaged, UserError
from transforms.store.files import check_body, delete, delete_all, exists, walk
from transforms.store.lake import Lake, Manifest, part_number, read_manifest, snapshot_of, table_of
from transforms.store.schema import TABLES


@dataclasses.dataclass
class Verified:
    """What was looked at, and what is wrong.

    Attributes:
        manifests: how many.
        parts: of tables and marts, each once.
        size: bytes of those.
        unknown: parts without a digest.
        damages: one for each file.
    """

    manifests: int = 0
    parts: int = 0
    size: int = 0
    unknown: int = 0
    damages: list[Damaged] = dataclasses.field(default_factory=list)


def verify(lake: Lake) -> Verified:
    """Reads all manifests, and every byte of the tables' parts, those of snapshots that aren't complete too."""
    found = Verified()
    damages: dict[str, Damaged] = {}
    for path in manifest_paths(lake):
        found.manifests += 1
        try:
            manifest = read_manifest(path)
        except Damaged as damage:
            damages.setdefault(path, damage)
            continue
        for one in [*lake.damages(manifest, 0), *_without_upstream(lake, manifest)]:
            damages.setdefault(one.path, one)
    for file in walk(lake.root):
        if re.search(r"/snapshot_id=[^/]*/part-[^/]*\.parquet$", file.path):
            found.parts += 1
            found.size += file.size
            try:
                found.unknown += not check_body(file.path)
            except Damaged as damage:
                damages.setdefault(file.path, damage)
    found.damages = [damages[path] for path in sorted(damages)]
    return found


def manifest_paths(lake: Lake) -> list[str]:
    """Every file that is a manifest by its place."""
    return [file.path for file in walk(lake.path("manifests")) if file.path.endswith(".json")]


def _without_upstream(lake: Lake, manifest: Manifest) -> Iterator[Damaged]:
    for stage, snapshot in manifest.upstream.items():
        path = lake.manifest_path(stage, snapshot)
        if not exists(path):
            yield Damaged(path, f"it is missing, and {manifest.stage} {manifest.snapshot_id} was made of it")


class Removed(NamedTuple):
    """How much was removed."""

    snapshots: int
    parts: int


COMMITTED_BY_PART = {"samples": ("images", "samples"), "images": ("images", "samples"), "embeddings": ("embeddings",)}
"""Table → the tables whose parts of one number are made together, by stages that go on from what parts there are."""


def mend(lake: Lake, damages: list[Damaged]) -> Removed:
    """Removes what is damaged, and every snapshot that was made of it, so that the stages make them again.

    Raises:
        UserError: if tombstones are damaged: nothing makes them again.
    """
    lost = [damage.path for damage in damages if lake.inside(damage.path).startswith("tombstones/")]
    if lost:
        raise UserError(
            f"{lost[0]!r} is damaged, and nothing makes tombstones again; restore it from a backup, or forget again"
        )
    stages = {table.name: table.stage for table in TABLES.values()}
    hurt: set[tuple[str, str]] = set()
    parts: set[str] = set()
    for damage in damages:
        place = lake.inside(damage.path).split("/")
        if place[0] == "manifests":
            hurt.add((place[1], place[2].removesuffix(".json")))
            continue
        table, snapshot = table_of(damage.path), snapshot_of(damage.path)
        # What is no table is a mart.
        hurt.add((stages.get(table, "measure"), snapshot))
        if table in COMMITTED_BY_PART and damage.path.endswith(".parquet"):
            parts.update(lake.part(one, snapshot, part_number(damage.path)) for one in COMMITTED_BY_PART[table])
    first = set(hurt)
    manifests = [one for path in manifest_paths(lake) for one in _readable(path)]
    while more := {
        (one.stage, one.snapshot_id)
        for one in manifests
        if hurt & set(one.upstream.items()) and (one.stage, one.snapshot_id) not in hurt
    }:
        hurt |= more
    # Manifests first: what they name is about to go.
    delete_all([path for stage, snapshot in sorted(hurt) if exists(path := lake.manifest_path(stage, snapshot))])
    delete_all([path for path in sorted(parts) if exists(path)])
    marts = {table_of(file.path) for file in walk(lake.root) if "/snapshot_id=" in file.path} - TABLES.keys()
    for stage, snapshot in sorted(hurt):
        # Of those that go on from their parts the others stay: they are what was downloaded, or took long to compute. What was
        # made of pictures that may come back as others goes.
        if stage == "ingest" or (stage == "embed" and (stage, snapshot) in first):
            continue
        for table in (*(name for name, of in stages.items() if of == stage), *(marts if stage == "measure" else ())):
            delete(lake.folder(table, snapshot))
        delete(lake.work(stage, snapshot))
    return Removed(len(hurt), len(parts))


def _readable(path: str) -> list[Manifest]:
    try:
        return [read_manifest(path)]
    except Damaged:
        return []
