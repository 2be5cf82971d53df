"""The lake: Parquet tables, and manifests that say which of them are complete.

    LAKE/lake.json                                          the schema version
    LAKE/<table>/snapshot_id=<id>/part-00000.parquet        rows
    LAKE/<table>/snapshot_id=<id>/base.json                 which parts are another snapshot's: see ``Lake.lay_over``
    LAKE/manifests/<stage>/<id>.json                        a stage's snapshot is complete when this exists
    LAKE/work/<stage>/<id>/…                                what a stage leaves for its own restart
    LAKE/tombstones/snapshot_id=<id>/part-00000.parquet     what must not come back: holds from the moment it is written

A snapshot is what one stage makes of given parameters and given upstream snapshots; its id is the digest of those, so
the same question finds the same answer, and another question lies beside it. Parts are written under a temporary name
and renamed, so a part that exists is whole. A lake is a local folder, or a gs:// or s3:// URL (see files.py).

A manifest names each part that was written for its snapshot, with its rows, its size and the digest of its footer, which names
that of all the rest (files.py, ``Part``); of parts that are another snapshot's it says whose, and that one's manifest names
them. So each part is described once. ``check_snapshot`` holds the files against it. A part that is to change (``forget``) is
announced first, in a file beside it, and is right as it was and as it is to be; ``settle`` takes that into the manifest.
"""

from __future__ import annotations

import array
import concurrent.futures
import dataclasses
import datetime
import functools
import itertools
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pyarrow as pa

from transforms.errors import Damaged, UserError, fault_of_the_machine
from transforms.store.files import (
    File,
    Part,
    check_body,
    check_columns,
    create,
    delete,
    delete_all,
    describe,
    exists,
    files_in,
    is_url,
    list_files,
    open_parquet,
    parquet_bytes,
    read_bytes,
    read_if_there,
    read_parquet,
    stat,
    walk,
    write_bytes,
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
        order: a number that grows with each manifest that is written in its stage: clocks go back. 0: of an older version.
        asked_order: likewise, when it was last asked for; 0 if never.
        parts: table → number of the part, as text → what it is known by, as ``Part`` has it; of parts that were written for
            this snapshot. None: not known, as in what older versions wrote.
        borrowed: table → number of the part, as text → the snapshot that it was written for; of those that it lies over.
    """

    stage: str
    snapshot_id: str
    parameters: dict[str, Any]
    upstream: dict[str, str]
    rows: dict[str, int]
    finished_at: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    asked_at: str = ""
    order: int = 0
    asked_order: int = 0
    parts: dict[str, dict[str, list[Any]]] | None = None
    borrowed: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def finished(self) -> tuple[int, str, str]:
        """What sorts snapshots by when they were finished. Those of older versions, whose order is 0, go by their time."""
        return self.order, self.finished_at, self.snapshot_id

    @property
    def last_asked(self) -> tuple[int, str, str]:
        """What sorts snapshots by when they were wanted last: the newest is what the next stage goes by."""
        return max(self.order, self.asked_order), max(self.finished_at, self.asked_at), self.snapshot_id

    @property
    def tables(self) -> list[str]:
        """The tables that the snapshot has; the marts of ``measure``."""
        return [*(table.name for table in TABLES.values() if table.stage == self.stage), *self.facts.get("marts", {})]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


REQUESTS = 32
"""So many parts behind a URL are looked at at once."""

DIGESTED = 1 << 30
"""Bytes of a table with pictures or vectors up to which it is read whole before a stage reads it: a second or two."""

HEAVY = {
    "images": ("image",), "generations": ("image",), "regenerations": ("image",),
    "embeddings": ("vector",), "generation_embeddings": ("vector",),
}  # fmt: skip
"""Table → its columns that hold nearly all of its bytes. SQL doesn't read them."""


def snapshot_id(stage: str, parameters: dict[str, Any], upstream: dict[str, str]) -> str:
    """The identity of what ``stage`` makes of ``parameters`` and ``upstream`` (stage → snapshot id)."""
    return digest("snapshot", SCHEMA_VERSION, stage, parameters, upstream, length=16)


@dataclasses.dataclass(frozen=True)
class Lake:
    """A lake by its root: a local path, or a gs:// or s3:// URL. Cheap to pickle; holds no connection."""

    root: str

    def __post_init__(self) -> None:
        if not self.root or "\0" in self.root:
            # What an unset variable of a shell leaves would be the root of the machine.
            raise UserError(f"the lake's path is {self.root!r}, expected a folder; name it with --lake ('.' is the one here)")
        if set("*?[\\") & set(self.root):
            # Beam looks for files by patterns, and a lake's own path would be one.
            raise UserError(
                f"the lake's path is {self.root!r}, expected one without *, ?, [ and \\; rename it, or name another"
            )
        try:
            self.root.encode()
        except UnicodeEncodeError as error:
            # Neither Arrow nor DuckDB takes bytes for a path.
            raise UserError(f"the lake's path is {self.root!r}, expected one in UTF-8; rename it, or name another") from error
        root = self.root.rstrip("/") or self.root
        # A path that goes up again from a folder that isn't there would lead nowhere until that is made.
        object.__setattr__(self, "root", root if is_url(root) or ".." not in root.split("/") else os.path.normpath(root))

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
            fault = fault_of_the_machine(error)
            advice = f"({error}); name a folder or URL that can be written with --lake" if fault is None else f"({fault})"
            raise UserError(f"cannot write to the lake {self.root!r} {advice}") from error

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
        content = read_if_there(path)
        if content is None:
            return None
        try:
            return json.loads(content)["schema_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path!r} is damaged ({error}); restore it, or audit into a new --lake") from error

    # -- snapshots ---------------------------------------------------------------------------------------------

    def manifest_path(self, stage: str, snapshot: str) -> str:
        return self.path("manifests", stage, f"{snapshot}.json")

    def manifest(self, stage: str, snapshot: str) -> Manifest | None:
        """The manifest of a complete snapshot, or None while it isn't complete. A damaged one counts as none, and is told."""
        path = self.manifest_path(stage, snapshot)
        try:
            return read_manifest(path)
        except FileNotFoundError:
            return None
        except Damaged as error:
            _tell(f"{path!r} is damaged ({error.what}), and so counts as absent: {stage} {snapshot} is made anew")
            return None

    def manifests(self, stage: str) -> list[Manifest]:
        """All complete snapshots of a stage, the oldest first."""
        names = [path.rsplit("/", 1)[1].removesuffix(".json") for path in list_files(self.path("manifests", stage), ".json")]
        found = [self.manifest(stage, name) for name in names]
        return sorted((one for one in found if one is not None), key=lambda manifest: manifest.finished)

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
        asked = dataclasses.replace(manifest, asked_at=_now(), asked_order=self._next(manifest.stage))
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
        """Writes the manifest, with what the parts are known by: from here on readers accept the snapshot."""
        blank = Manifest(stage, snapshot, parameters, upstream, {}, _now(), facts or {}, order=self._next(stage))
        borrowed = {table: self._lain_over(table, snapshot) for table in blank.tables}
        known = {
            table: {number: describe(path) for number, path in self.own(table, snapshot).items()} for table in blank.tables
        }
        manifest = dataclasses.replace(
            blank,
            parts={table: {str(number): list(part) for number, part in parts.items()} for table, parts in known.items()},
            # What it has of its own takes the place of what it lies over.
            borrowed={
                table: {str(number): one for number, one in parts.items() if number not in known[table]}
                for table, parts in borrowed.items()
                if parts
            },
        )
        rows = {table.name: self._rows(manifest, table.name) for table in TABLES.values() if table.stage == stage}
        manifest = dataclasses.replace(manifest, rows=rows)
        self._write_manifest(manifest)
        return manifest

    def _rows(self, manifest: Manifest, table: str) -> int:
        """Rows of a table, by what is said of its parts; of those that nothing is said of, by their footers."""
        said = self.said(manifest, table)
        parts = self.paths(table, manifest.snapshot_id).items()
        return sum((said.get(number) or describe(path)).rows for number, path in parts)

    def _next(self, stage: str) -> int:
        return 1 + max((one.last_asked[0] for one in self.manifests(stage)), default=0)

    def _write_manifest(self, manifest: Manifest) -> None:
        value = json.loads(json.dumps(dataclasses.asdict(manifest)))  # as it will be read: keys are texts
        content = json.dumps({**value, "digest": digest("manifest", value)}, indent=2, ensure_ascii=False)
        write_bytes(self.manifest_path(manifest.stage, manifest.snapshot_id), content.encode("utf-8", "backslashreplace"))

    def begin_anew(self, stage: str, snapshot: str) -> None:
        """Removes a manifest that is damaged, and what else there is of its snapshot.

        What a stage that isn't complete goes on from may be gone by now. ``ingest`` and ``embed`` go on from their parts alone,
        and keep them.
        """
        delete(self.manifest_path(stage, snapshot))
        if stage not in ("ingest", "embed"):
            for folder in (
                *(self.folder(t.name, snapshot) for t in TABLES.values() if t.stage == stage),
                self.work(stage, snapshot),
            ):
                delete(folder)

    # -- what the parts are known by --------------------------------------------------------------------------------

    def said(self, manifest: Manifest, table: str) -> dict[int, Part | None]:
        """Number → what a table's part must be, by the manifest of the snapshot that it was written for; None: not known.

        Raises:
            Damaged: if that manifest isn't there.
        """
        found: dict[int, Part | None] = {int(n): Part(*known) for n, known in (manifest.parts or {}).get(table, {}).items()}
        borrowed = manifest.borrowed.get(table, {})
        for one in sorted(set(borrowed.values())):
            lender = self.manifest(manifest.stage, one)
            if lender is None:
                raise Damaged(
                    self.manifest_path(manifest.stage, one), f"{manifest.snapshot_id} has parts of it, and it isn't there"
                )
            theirs = None if lender.parts is None else lender.parts.get(table, {})
            for number in (number for number, which in borrowed.items() if which == one):
                known = None if theirs is None else theirs.get(number)
                found[int(number)] = None if known is None else Part(*known)
        return found

    def check_snapshot(self, manifest: Manifest, *, whole: bool = True) -> None:
        """Damaged, with the part's name, unless each part of a complete snapshot is what its manifest says.

        Rows, size and the footer's digest are looked at always; if ``whole``, the bytes too, of what is little and of what
        DuckDB will read, which doesn't look at checksums. What Arrow reads is held against those then (``CheckedFile``). Of a
        lake behind a URL only footers are read: its store has checksums of its own, and all bytes would come over the network.
        """
        # As it is now: since the caller read it, some may have been forgotten.
        manifest = self.manifest(manifest.stage, manifest.snapshot_id) or manifest
        for damage in self.damages(manifest, DIGESTED if whole and self.is_local else 0):
            raise damage

    def damages(self, manifest: Manifest, most: int) -> Iterator[Damaged]:
        """What is wrong with the parts of a complete snapshot.

        Args:
            manifest: its.
            most: bytes of a table with pictures or vectors up to which it is read whole; of a larger one the other columns
                are. 0: only footers are.
        """
        for table in manifest.tables:
            try:
                listed = files_in(self.folder(table, manifest.snapshot_id))
                paths = self._paths(table, manifest.snapshot_id, listed)
                if manifest.parts is not None:
                    yield from self._unlike(manifest, table, paths, listed)
            except Damaged as damage:
                yield damage
                continue
            there = [stat(path) for path in paths.values() if exists(path)] if most else []
            large = HEAVY.get(table, ()) if sum(one.size for one in there) > most else ()
            for one in there:
                try:
                    _check_once(one.path, large, one.size, one.modified)
                except Damaged as damage:
                    yield damage

    def _unlike(self, manifest: Manifest, table: str, paths: dict[int, str], listed: dict[str, File]) -> Iterator[Damaged]:
        """The parts of a table whose rows, size or footer aren't those that the manifest says, that are missing or too many."""
        borrowed = {int(number): one for number, one in manifest.borrowed.get(table, {}).items()}
        if borrowed and not borrowed.items() <= self._lain_over(table, manifest.snapshot_id).items():
            raise Damaged(self._base(table, manifest.snapshot_id), "it doesn't name the parts that the manifest says")
        said = self.said(manifest, table)

        numbers = sorted(said.keys() | paths.keys())
        places = {number: paths.get(number) or self.part(table, manifest.snapshot_id, number) for number in numbers}
        others = {os.path.dirname(path) for path in places.values()} - {self.folder(table, manifest.snapshot_id)}
        there = {**listed, **{path: one for folder in sorted(others) for path, one in files_in(folder).items()}}

        def look(number: int) -> Damaged | None:
            try:
                self._check_part(places[number], there, said.get(number), number in said)
            except Damaged as damage:
                return damage
            return None

        # Behind a URL each look is some requests, that take their time.
        with concurrent.futures.ThreadPoolExecutor(1 if self.is_local else REQUESTS) as pool:
            found = list(pool.map(look, places))
        yield from (damage for damage in found if damage is not None)

    def _check_part(self, path: str, there: dict[str, File], known: Part | None, named: bool) -> None:
        announced = self.announced(path) if _announcement(path) in there else []
        if path not in there:
            if None not in announced:
                raise Damaged(path, "it is missing")
            return
        if known is None and named:
            return  # written by an older version
        file = there[path]
        found = _described_once(path, file.size, file.modified) if self.is_local else describe(path, file.size)
        right = [one for one in (known, *announced) if one is not None]
        if not right:
            raise Damaged(path, "the manifest of its snapshot doesn't name it")
        if found not in right:
            said = right[-1]
            what = (
                f"it has {found.rows:,} rows, and the manifest says {said.rows:,}"
                if found.rows != said.rows
                else f"it has {found.size:,} bytes, and the manifest says {said.size:,}"
                if found.size != said.size
                else "its footer is not the one that was written"
            )
            raise Damaged(path, what)

    # -- parts that change ------------------------------------------------------------------------------------------

    def announce(self, path: str, part: Part | None) -> None:
        """Says what a part of a complete snapshot is about to be; None: it is about to go. Until ``settle`` both are right."""
        # What it was changed to by a run that was killed is in no manifest yet.
        now = [one for one in self.announced(path) if one is not None and exists(path) and one == describe(path)]
        write_bytes(_announcement(path), json.dumps([*now, part]).encode())

    def announced(self, path: str) -> list[Part | None]:
        """What was announced of a part: each is right."""
        content = read_if_there(_announcement(path))
        if content is None:
            return []
        try:
            return [None if one is None else Part(*one) for one in json.loads(content)]
        except (ValueError, TypeError) as error:
            raise Damaged(_announcement(path), f"it can't be read ({error})") from error

    def _is_as_said(self, path: str) -> bool:
        """Whether something is said of a part, by a manifest or by what was announced, and it is that."""
        table, stage = table_of(path), TABLES[table_of(path)].stage
        where = self.manifest_path(stage, snapshot_of(path))
        if not exists(where):
            return False
        try:
            manifest = _manifest_once(where, *stat(where)[1:])
        except Damaged:
            return False
        known = (manifest.parts or {}).get(table, {}).get(str(part_number(path)))
        return describe(path) in [*([] if known is None else [Part(*known)]), *self.announced(path)]

    def rewrite(self, path: str, rows: pa.Table) -> None:
        """Puts other rows into a part. Where it wasn't what its manifest says, that goes on saying so."""
        content = parquet_bytes(as_table(table_of(path), rows))
        if self._is_as_said(path):
            self.announce(path, describe(content))
        write_bytes(path, content)

    def remove(self, path: str) -> None:
        """Removes a part; one of a complete snapshot is announced to go."""
        if exists(self.manifest_path(TABLES[table_of(path)].stage, snapshot_of(path))):
            self.announce(path, None)
        delete(path)

    def settle(self, manifest: Manifest) -> None:
        """Takes what was announced of a snapshot's parts into its manifest, with the number of rows that are left."""
        parts = {table: dict(known) for table, known in (manifest.parts or {}).items()}
        notes = []
        for table in manifest.tables:
            for note in list_files(self.folder(table, manifest.snapshot_id), _ANNOUNCED):
                path = note.removesuffix(_ANNOUNCED)
                notes.append(note)
                now = describe(path) if exists(path) else None
                if now not in self.announced(path):
                    continue
                if now is None:
                    parts.get(table, {}).pop(str(part_number(path)), None)
                else:
                    parts.setdefault(table, {})[str(part_number(path))] = list(now)
        settled = dataclasses.replace(manifest, parts=None if manifest.parts is None else parts)
        rows = {table: self._rows(settled, table) for table in manifest.rows}
        settled = dataclasses.replace(settled, rows=rows)
        if settled != manifest:
            self._write_manifest(settled)
        delete_all(notes)

    # -- rows --------------------------------------------------------------------------------------------------

    def lay_over(self, table: str, snapshot: str, base: str) -> None:
        """Lets a snapshot have the parts of ``base``, but for those numbers of which it has a part of its own.

        So what one night adds is all that it writes. Which snapshot each part lies in is noted now: nights lie over nights,
        and nobody need go through all of them.
        """
        parts = {number: snapshot_of(path) for number, path in self.paths(table, base).items()}
        write_bytes(self._base(table, snapshot), json.dumps(parts).encode())

    def _base(self, table: str, snapshot: str) -> str:
        return f"{self.folder(table, snapshot)}/base.json"

    def _lain_over(self, table: str, snapshot: str) -> dict[int, str]:
        """Number → snapshot of the parts that a snapshot lies over."""
        path = self._base(table, snapshot)
        content = read_if_there(path)
        if content is None:
            return {}
        try:
            return {int(number): str(one) for number, one in json.loads(content).items()}
        except (ValueError, AttributeError) as error:
            raise Damaged(path, f"it can't be read ({error})") from error

    def own(self, table: str, snapshot: str) -> dict[int, str]:
        """Number → path of the parts that were written for this snapshot."""
        return _numbered(list_files(self.folder(table, snapshot), ""))

    def paths(self, table: str, snapshot: str) -> dict[int, str]:
        """Number → path of each part of a table, in order: its own, and those of what it lies over."""
        return self._paths(table, snapshot, list_files(self.folder(table, snapshot), ""))

    def _paths(self, table: str, snapshot: str, listed: Collection[str]) -> dict[int, str]:
        """``paths``, of what the snapshot's folder holds."""
        base = self._lain_over(table, snapshot) if self._base(table, snapshot) in listed else {}
        found = {number: self.part(table, one, number) for number, one in base.items()}
        return dict(sorted((found | _numbered(listed)).items()))

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
        content = parquet_bytes(as_table(table, rows))
        # A list that is made again, of a snapshot that is complete.
        if exists(self.manifest_path(TABLES[table].stage, snapshot)):
            self.announce(path, describe(content))
        write_bytes(path, content)
        return path

    def write_first(self, table: str, snapshot: str, number: int, rows: Iterable[dict[str, Any]], attempt: str) -> bool:
        """Writes one part, with the name of the attempt that made its rows, unless it is there: whether it did.

        Engines try again, and have two workers try at once: of several attempts one alone writes.
        """
        table_of_attempt = as_table(table, rows).replace_schema_metadata({_ATTEMPT: attempt})
        return create(self.part(table, snapshot, number), parquet_bytes(table_of_attempt))

    def attempt(self, table: str, snapshot: str, number: int) -> str | None:
        """Which attempt has written a part with ``write_first``; None where it doesn't say."""
        with open_parquet(self.part(table, snapshot, number)) as file:
            said = (file.schema_arrow.metadata or {}).get(_ATTEMPT)
        return None if said is None else said.decode()

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
        return sum(describe(path).rows for path in self.parts(table, snapshot))


def read_manifest(path: str) -> Manifest:
    """The manifest that lies there. Damaged where it isn't one, or not that of its name. Older versions gave it no digest."""
    try:
        value = json.loads(read_bytes(path))
        if "digest" in value and value.pop("digest") != digest("manifest", value):
            raise Damaged(path, "its values are not those that were written")
        manifest = Manifest(**value)
        for field in dataclasses.fields(Manifest):
            _check_type(path, field.name, getattr(manifest, field.name))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(
            path, f"it can't be read: {' '.join(str(error).split())[:80]}" if read_bytes(path) else "it is empty"
        ) from error
    if path.split("/")[-2:] != [manifest.stage, f"{manifest.snapshot_id}.json"]:
        raise Damaged(path, f"it is that of {manifest.stage} {manifest.snapshot_id}")
    return manifest


_TYPES: dict[str, type | tuple[type, ...]] = {
    "stage": str, "snapshot_id": str, "parameters": dict, "upstream": dict, "rows": dict, "finished_at": str, "facts": dict,
    "asked_at": str, "order": int, "asked_order": int, "parts": (dict, type(None)), "borrowed": dict,
}  # fmt: skip


def _check_type(path: str, name: str, value: Any) -> None:
    if not isinstance(value, _TYPES[name]):
        raise Damaged(path, f"its {name} is {value!r:.40}")


@functools.cache
def _tell(text: str) -> None:
    """Says something on the error channel, once."""
    print(f"eidetic: {text}", file=sys.stderr)


@functools.lru_cache(maxsize=8)
def _manifest_once(path: str, size: int, modified: float) -> Manifest:
    """A manifest for those who ask for each of its parts: read once while the file is the same."""
    return read_manifest(path)


@functools.lru_cache(maxsize=1 << 16)
def _described_once(path: str, size: int, modified: float) -> Part:
    """What a part is known by: read once in a process while the file is the same."""
    return describe(path)


@functools.lru_cache(maxsize=1 << 16)
def _check_once(path: str, without: tuple[str, ...], size: int, modified: float) -> None:
    """Reads the bytes of a part, or of its columns but those ``without``, once in a process while the file is the same."""
    if without:
        check_columns(path, without)
    else:
        check_body(path)


_ANNOUNCED = ".next.json"

_ATTEMPT = b"eidetic.attempt"
"""Key of a Parquet file's metadata: the attempt that made it."""


def _announcement(path: str) -> str:
    return f"{path}{_ANNOUNCED}"


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
        rows = pa.Table.from_arrays([_array([row[field.name] for row in rows], field.type) for field in schema], schema=schema)
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


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """``values`` in Arrow. Bytes are laid one after the other once; Arrow would move them again and again as it finds more, in
    ten times the time for pictures."""
    lengths = [0 if value is None else len(value) for value in values] if pa.types.is_binary(kind) else []
    if not 0 < sum(lengths) < 1 << 31:
        return pa.array(values, kind)
    offsets = array.array("i", itertools.accumulate(lengths, initial=0))
    content = pa.py_buffer(b"".join(b"" if value is None else value for value in values))
    there = pa.array([value is not None for value in values], pa.bool_())
    return pa.Array.from_buffers(kind, len(values), [there.buffers()[1], pa.py_buffer(offsets), content])


def snapshot_of(path: str) -> str:
    """a1b2 for …/snapshot_id=a1b2/part-00012.parquet."""
    return path.rsplit("snapshot_id=", 1)[1].split("/", 1)[0]


def table_of(path: str) -> str:
    """samples for …/samples/snapshot_id=a1b2/part-00012.parquet."""
    return path.rsplit("/snapshot_id=", 1)[0].rsplit("/", 1)[-1]


def _numbered(listed: Iterable[str]) -> dict[int, str]:
    """Number → path of the parts among the files of a folder."""
    return {part_number(path): path for path in listed if path.endswith(".parquet")}


def part_number(path: str) -> int:
    """12 for …/part-00012.parquet."""
    return int(path.rsplit("-", 1)[1].removesuffix(".parquet"))
