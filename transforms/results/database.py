"""The database that users query: ``audit.duckdb``, with a view for each table and mart over all audits and sweeps of the lake.

Any DuckDB client opens it. Where the lake lies is said in it once, by the macro ``lake_root()``: after a move, ``eidetic
measure --relocate`` replaces that, as does ``CREATE OR REPLACE MACRO lake_root() AS '/where/it/is/now'``. A lake behind a URL
gets copies instead, without the pictures, since not every DuckDB client can open that URL.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from transforms.errors import UserError
from transforms.results import sweeps
from transforms.results.marts import MARTS, current
from transforms.store.files import delete, exists, put_in_place, temporary_name, write_bytes
from transforms.store.lake import Lake, Manifest, snapshot_of
from transforms.store.lineage import check_lineage, lineage
from transforms.store.remote import StoredFiles, readable
from transforms.store.scan import NO_EXTENSIONS, columns_of, empty
from transforms.store.schema import TABLES

if TYPE_CHECKING:
    import duckdb

DATABASE = "audit.duckdb"


def build_database(lake: Lake) -> str:
    """Writes ``audit.duckdb``. Returns its path.

    The tables show what audits and sweeps are made of, each row once, with the ``snapshot_id`` under which it is stored;
    half-done stages don't show.
    """
    import duckdb

    target = lake.path(DATABASE)
    with tempfile.TemporaryDirectory() as folder:
        # Beside its place, from where it can be renamed; a name of its kind, so that what a killed run left is known.
        path = temporary_name(target) if lake.is_local else os.path.join(folder, DATABASE)
        with duckdb.connect(path, config=NO_EXTENSIONS) as connection:
            connection.register_filesystem(StoredFiles())
            place(connection, lake)
            for name, ids in _snapshots(lake).items():
                # Snapshots may share parts.
                parts = list(dict.fromkeys(part for snapshot in sorted(ids) for part in lake.parts(name, snapshot)))
                if parts:
                    _show(connection, lake, name, parts)
                elif name in TABLES:
                    # What there is none of yet (nights, tombstones) can be asked for too.
                    none = TABLES[name].schema.empty_table() if lake.is_local else empty(name)
                    connection.register("none", none.append_column("snapshot_id", pa.array([], pa.string())))
                    connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM none')
                    connection.unregister("none")
        if lake.is_local:
            # What a client that was killed had still to write into the old one would be taken for the new one's.
            delete(f"{target}.wal")
            put_in_place(path, target)
        else:
            with open(path, "rb") as file:
                write_bytes(target, file.read())
    return target


def check(lake: Lake) -> None:
    """Damaged unless the parts that ``audit.duckdb`` shows are what was written. DuckDB itself doesn't look."""
    check_lineage(lake, [*current(lake), *sweeps.current(lake)])
    for one in _beside(lake):
        lake.check_snapshot(one)


def _beside(lake: Lake) -> list[Manifest]:
    """What is shown beside the audits: their nights, and what was tried on their models."""
    return [*lake.manifests("nightly"), *lake.manifests("mitigate")]


def _snapshots(lake: Lake) -> dict[str, set[str]]:
    """Table or mart → the snapshots that are shown."""
    snapshots: dict[str, set[str]] = {table: set() for table in (*TABLES, *MARTS, *sweeps.MARTS)}
    for made in (*current(lake), *sweeps.current(lake)):
        made_of = lineage(lake, made)
        for table in TABLES.values():
            if table.stage in made_of:
                snapshots[table.name].add(made_of[table.stage].snapshot_id)
        for mart in MARTS if made.stage == "measure" else sweeps.MARTS:
            snapshots[mart].add(made.snapshot_id)
    for one in _beside(lake):
        for name in one.rows:
            snapshots[name].add(one.snapshot_id)
    snapshots["tombstones"] = {snapshot_of(path) for path in lake.every_part("tombstones")}
    return snapshots


def _show(connection: duckdb.DuckDBPyConnection, lake: Lake, name: str, parts: Sequence[str]) -> None:
    """Makes a view on the parts of a local lake, or a copy of those behind a URL."""
    # Tables, snapshots and parts have names without a quote.
    if lake.is_local:
        files = ", ".join(f"lake_root() || '/{lake.inside(part)}'" for part in parts)
        columns = "* EXCLUDE (filename)"
    else:
        files = ", ".join(f"'{readable(part)}'" for part in parts)
        columns = columns_of(name, "filename") if name in TABLES else "* EXCLUDE (filename)"
    # Marts of an earlier version may have other columns. The snapshot is taken from the file's own folder alone: see bind.
    connection.execute(
        f'CREATE {"VIEW" if lake.is_local else "TABLE"} "{name}" AS SELECT {columns}, '
        "regexp_extract(filename, 'snapshot_id=([^/]*)/[^/]*$', 1) AS snapshot_id "
        f"FROM read_parquet([{files}], union_by_name = true, hive_partitioning = false, filename = true)"
    )


def place(connection: duckdb.DuckDBPyConnection, lake: Lake, *, stored: bool = True) -> None:
    """Says in the database where the lake lies, or, if not ``stored``, on this connection alone.

    A macro's body takes no parameters, so the path is quoted here. A glob would find nothing in a folder whose own name has a *
    or a bracket in it; there each stands for itself.
    """
    root = os.path.abspath(lake.root) if lake.is_local else lake.root
    for letter in "[?*":
        root = root.replace(letter, f"[{letter}]")
    kind = "MACRO" if stored else "TEMP MACRO"
    connection.execute(f"CREATE OR REPLACE {kind} lake_root() AS '{root.replace(chr(39), 2 * chr(39))}'")


def relocate(lake: Lake) -> str:
    """Tells ``audit.duckdb`` where its lake lies now; returns the database's path. UserError where there is none."""
    import duckdb

    target = lake.path(DATABASE)
    if not lake.is_local:
        raise UserError(f"the lake {lake.root!r} is no local folder: its {DATABASE} holds copies, which need no place")
    if not exists(target):
        raise UserError(f"the lake {lake.root!r} has no {DATABASE} yet; run 'eidetic measure' or 'eidetic compare' first")
    try:
        with duckdb.connect(target, config=NO_EXTENSIONS) as connection:
            place(connection, lake)
    except duckdb.Error as error:
        raise UserError(
            f"cannot write to {target!r} ({error}); end the program that has it open, or make it anew with 'eidetic measure'"
        ) from error
    return target
