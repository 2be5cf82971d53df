"""The lake: Parquet tables, and manifests that say which of them are complete.

    LAKE/lake.json                                          the schema version
    LAKE/<table>/snapshot_id=<id>/part-00000.parquet        rows
    LAKE/<table>/snapshot_id=<id>/base.json                 which parts are another snapshot's: see ``Lake.lay_over``
    LAKE/manifests/<stage>/<id>.json                        a stage's snapshot is complete when this exists
    LAKE/work/<stage>/<id>/…                                what a stage leaves for its own restart
    LAKE/tombstones/snapshot_id=<id>/part-00000.parquet     what must not come back: holds from the moment it is written

A snapshot is what one stage makes of given parameters and given upstream snapshots; its id is the digest of those, so
the same question finds the same answer, and another question lies beside it. Parts are written under a temporary name
and renamed, so a part that exists is whole. A lake is a local folder, or any URL that Beam knows (see files.py).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from transforms.errors import UserError
from transforms.store.files import (
    count_rows,
    exists,
    is_url,
    list_files,
    read_bytes,
    read_parquet,
    walk,
    write_bytes,
    write_parquet,
)
from transforms.store.identity import digest
from transforms.store.schema import SCHEMA_VERSION, TABLES
from transforms.store.texts import public_url, redacted


@dataclasses.dataclass(frozen=True)
class Manifest:
    """That a stage's snapshot is complete, and how it came about.

    Attributes:
        stage: the verb.
        snapshot_id: digest of parameters and upstream.
        parameters: every option that shaped the rows.
        upstream: stage → snapshot_id of what was read.
        rows: table → number of rows.
        finished_at: ISO time, UTC.
        facts: whatever else the stage wants to tell (versions, counts, a model's revision).
        asked_at: ISO time, UTC: when it was last asked for, after it was finished; "" if never.
    """

    stage: str
    snapshot_id: str
    parameters: dict[str, Any]
    upstream: dict[str, str]
    rows: dict[str, int]
    finished_at: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    asked_at: str = ""

    @property
    def last_asked(self) -> tuple[str, str]:
        """What sorts snapshots by when they were wanted last: the newest is what the next stage goes by."""
        return max(self.finished_at, self.asked_at), self.snapshot_id


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


def snapshot_id(stage: str, parameters: dict[str, Any], upstream: dict[str, str]) -> str:
    """The identity of what ``stage`` makes of ``parameters`` and ``upstream`` (stage → snapshot id)."""
    return digest("snapshot", SCHEMA_VERSION, stage, parameters, upstream, length=16)


@dataclasses.dataclass(frozen=True)
class Lake:
    """A lake by its root: a local path or a URL of a Beam filesystem. Cheap to pickle; holds no connection."""

    root: str

    def __post_init__(self) -> None:
        if set("*?[") & set(self.root):
            # Beam looks for files by patterns, and a lake's own path would be one.
            raise UserError(f"the lake's path is {self.root!r}, expected one without *, ? and [; rename it, or name another")
        object.__setattr__(self, "root", self.root.rstrip("/") or self.root)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine, and not a URL."""
        return not is_url(self.root)

    # -- places ------------------------------------------------------------------------------------------------

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def folder(self, table: str, snapshot: str) -> str:
        return self.path(table, f"snapshot_id={snapshot}")

    def part(self, table: str, snapshot: str, number: int) -> str:
        """Where a part of this snapshot's own lies; ``paths`` knows those of what it lies over as well."""
        return self.path(table, f"snapshot_id={snapshot}", f"part-{number:05d}.parquet")

    def work(self, stage: str, snapshot: str, *parts: str) -> str:
        return self.path("work", stage, snapshot, *parts)

    # -- life --------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Makes the lake if it isn't there; checks its version if it is. UserError where it can't be written."""
        if self._version() is not None:
            self.check()
            return
        try:
            write_bytes(self.path("lake.json"), json.dumps({"schema_version": SCHEMA_VERSION}).encode())
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot write to the lake {self.root!r} ({error}); name a folder or URL that can be written with --lake"
            ) from error

    def check(self) -> None:
        """UserError unless this is a lake of the version that this code reads."""
        version = self._version()
        if version is None:
            raise UserError(f"{self.root!r} is not a lake (it has no lake.json); run 'eidetic ingest' first, or mend --lake")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"the lake {self.root!r} has schema version {version}, this eidetic reads version {SCHEMA_VERSION}; "
                "use the eidetic that wrote it, or audit into a new --lake"
            )

    def _version(self) -> int | None:
        path = self.path("lake.json")
        if not exists(path):
            return None
        try:
            return json.loads(read_bytes(path))["schema_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path!r} is damaged ({error}); restore it, or audit into a new --lake") from error

    # -- snapshots ---------------------------------------------------------------------------------------------

    def manifest(self, stage: str, snapshot: str) -> Manifest | None:
        """The manifest of a complete snapshot, or None while it is not complete."""
        path = self.path("manifests", stage, f"{snapshot}.json")
        return Manifest(**json.loads(read_bytes(path))) if exists(path) else None

    def manifests(self, stage: str) -> list[Manifest]:
        """All complete snapshots of a stage, the oldest first."""
        paths = list_files(self.path("manifests", stage), ".json")
        found = [Manifest(**json.loads(read_bytes(path))) for path in paths]
        return sorted(found, key=lambda manifest: (manifest.finished_at, manifest.snapshot_id))

    def latest(self, stage: str) -> Manifest:
        """The snapshot of ``stage`` that was asked for last. UserError where there is none."""
        self.check()
        found = self.manifests(stage)
        if not found:
            raise UserError(f"the lake {self.root!r} has no complete {stage!r} yet; run 'eidetic {stage}' first")
        return max(found, key=lambda manifest: manifest.last_asked)

    def ask_for(self, manifest: Manifest) -> Manifest:
        """Makes a complete snapshot the latest of its stage again; returns its manifest as it is then."""
        if self.latest(manifest.stage).snapshot_id == manifest.snapshot_id:
            return manifest
        asked = dataclasses.replace(manifest, asked_at=_now())
        self._write_manifest(asked)
        return asked

    def complete(
        self,
        stage: str,
        snapshot: str,
        parameters: dict[str, Any],
        upstream: dict[str, str],
        facts: dict[str, Any] | None = None,
    ) -> Manifest:
        """Counts the rows of the stage's tables and writes the manifest: from here on readers accept the snapshot."""
        tables = [table.name for table in TABLES.values() if table.stage == stage]
        manifest = Manifest(
            stage=stage,
            snapshot_id=snapshot,
            parameters=parameters,
            upstream=upstream,
            rows={table: self.count(table, snapshot) for table in tables},
            finished_at=_now(),
            facts=facts or {},
        )
        self._write_manifest(manifest)
        return manifest

    def recount(self, manifest: Manifest, rows: Mapping[str, int]) -> None:
        """Has a complete snapshot say how many rows some of its tables have, after some were removed."""
        if not rows.items() <= manifest.rows.items():
            self._write_manifest(dataclasses.replace(manifest, rows={**manifest.rows, **rows}))

    def _write_manifest(self, manifest: Manifest) -> None:
        content = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
        write_bytes(self.path("manifests", manifest.stage, f"{manifest.snapshot_id}.json"), content.encode())

    # -- rows --------------------------------------------------------------------------------------------------

    def lay_over(self, table: str, snapshot: str, base: str) -> None:
        """Lets a snapshot have the parts of ``base``, but for those numbers of which it has a part of its own.

        So what one night adds is all that it writes. Which snapshot each part lies in is noted now: nights lie over nights,
        and nobody need go through all of them.
        """
        parts = {number: path.rsplit("snapshot_id=", 1)[1].split("/")[0] for number, path in self.paths(table, base).items()}
        write_bytes(f"{self.folder(table, snapshot)}/base.json", json.dumps(parts).encode())

    def own(self, table: str, snapshot: str) -> dict[int, str]:
        """Number → path of the parts that were written for this snapshot."""
        return {part_number(path): path for path in list_files(self.folder(table, snapshot), ".parquet")}

    def paths(self, table: str, snapshot: str) -> dict[int, str]:
        """Number → path of each part of a table, in order: its own, and those of what it lies over."""
        path = f"{self.folder(table, snapshot)}/base.json"
        base = json.loads(read_bytes(path)) if exists(path) else {}
        found = {int(number): self.part(table, one, int(number)) for number, one in base.items()}
        return dict(sorted((found | self.own(table, snapshot)).items()))

    def parts(self, table: str, snapshot: str) -> list[str]:
        """The parts of a table in order of their numbers."""
        return list(self.paths(table, snapshot).values())

    def inside(self, path: str) -> str:
        """samples/snapshot_id=a1b2/part-00000.parquet for a path of this lake."""
        return path.removeprefix(self.path("")).lstrip("/")

    def every_part(self, table: str) -> list[str]:
        """The parts of a table in all snapshots, complete or not."""
        return [
            file.path for file in walk(self.path(table)) if re.search(r"/snapshot_id=[^/]*/part-[^/]*\.parquet$", file.path)
        ]

    def files(self) -> list[str]:
        """Every file of the lake, whatever it is."""
        return [file.path for file in walk(self.root)]

    def write(self, table: str, snapshot: str, number: int, rows: Iterable[dict[str, Any]] | pa.Table) -> str:
        """Writes one part and returns its path. Rows that don't fit the table's schema are a ValueError."""
        path = self.part(table, snapshot, number)
        write_parquet(path, as_table(table, rows))
        return path

    def read(self, table: str, snapshot: str, columns: list[str] | None = None) -> pa.Table:
        """A whole table in memory: for tables that are small, or for a few columns of one that is not."""
        parts = [read_parquet(path, columns) for path in self.parts(table, snapshot)]
        if parts:
            # An older part may forbid nulls in a column that has them since: in images.image of what was forgotten.
            return pa.concat_tables(parts, promote_options="default")
        schema = TABLES[table].schema
        return (schema if columns is None else pa.schema([schema.field(name) for name in columns])).empty_table()

    def count(self, table: str, snapshot: str) -> int:
        """Rows of a table, from the Parquet footers alone."""
        return sum(count_rows(path) for path in self.parts(table, snapshot))


_WITHOUT_SECRETS = {"url": public_url, "reason": redacted, "source_file": redacted}
"""Columns of any table that hold what strangers wrote about places, and how they are kept."""


def as_table(table: str, rows: Iterable[dict[str, Any]] | pa.Table) -> pa.Table:
    """``rows`` as an Arrow table of exactly the schema of ``table``; ValueError names what doesn't fit."""
    schema = TABLES[table].schema
    if not isinstance(rows, pa.Table):
        rows = list(rows)
        for row in rows:
            if row.keys() != set(schema.names):
                raise ValueError(f"a row of {table!r} has columns {sorted(row)}, expected {sorted(schema.names)}")
        rows = pa.Table.from_pylist(rows, schema=schema)
    rows = rows.select(schema.names)
    for name, without in _WITHOUT_SECRETS.items():
        if name in schema.names:
            column = pa.array([None if text is None else without(text) for text in rows[name].to_pylist()], pa.string())
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    for field in schema:
        if not field.nullable and rows[field.name].null_count:
            raise ValueError(f"{table}.{field.name} may not be null, and {rows[field.name].null_count} rows are")
    rows = rows.cast(schema)
    return rows


def snapshot_of(path: str) -> str:
    """a1b2 for …/snapshot_id=a1b2/part-00012.parquet."""
    return path.rsplit("snapshot_id=", 1)[1].split("/", 1)[0]


def table_of(path: str) -> str:
    """samples for …/samples/snapshot_id=a1b2/part-00012.parquet."""
    return path.rsplit("/snapshot_id=", 1)[0].rsplit("/", 1)[-1]


def part_number(path: str) -> int:
    """12 for …/part-00012.parquet."""
    return int(path.rsplit("-", 1)[1].removesuffix(".parquet"))
