"""Runs the SQL of ``sql/`` over the lake with DuckDB: marts, checks, and the database that users query.

For one audit the names in the SQL (prompts, matches, …) are views on exactly the snapshots that the audit is made of. The
database ``audit.duckdb`` holds a view for each table and mart over all audits of the lake, for any DuckDB client. Where the
lake lies is said in it once, by the macro ``lake_root()``: after a move, ``eidetic measure --relocate`` replaces that, as does
``CREATE OR REPLACE MACRO lake_root() AS '/where/it/is/now'``. A lake behind a URL gets copies instead, without the pictures,
since not every DuckDB client can open that URL.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import sql
from transforms.errors import UserError
from transforms.identity import digest
from transforms.kernels.rates import (
    blaker_interval,
    clopper_pearson_upper,
    slice_interval,
    stratified_interval,
    wilson_interval,
)
from transforms.lake import Lake, Manifest, exists, open_parquet, read_parquet, snapshot_of, write_bytes, write_parquet
from transforms.schema import TABLES

if TYPE_CHECKING:
    import duckdb

STEPS = (
    "staging/training_matches",
    "staging/control_distances",
    "staging/decoy_verdicts",
    "marts/verdicts",
    "staging/buckets",
    "marts/extraction_rate",
    "marts/extractions",
    "marts/agreement",
    "marts/eidetic_memorisation",
    "marts/precision_curve",
    "marts/delta_sweep",
    "marts/false_positives",
    "marts/filter_misses",
    "marts/takedown",
    "marts/cost",
    "marts/yield",
    "marts/duplication",
    "marts/threshold_sweep",
)
"""The files of ``sql/`` in the order in which they are run: each may read what is before it."""

MARTS = tuple(step.removeprefix("marts/") for step in STEPS if step.startswith("marts/"))

AUDIT_COLUMNS = ("audit_id", "model_revision", "parameters_digest")
"""Every mart begins with these."""

DATABASE = "audit.duckdb"
PICTURES = {"images": "image", "generations": "image", "regenerations": "image"}


def sql_digest() -> str:
    """Digest of every SQL file: other SQL makes other marts."""
    kinds = ("functions", "staging", "marts", "checks")
    return digest("sql", [(kind, name, sql.read(kind, name)) for kind in kinds for name in sql.names(kind)])


def chain(lake: Lake, match: Manifest) -> dict[str, Manifest]:
    """Stage → manifest of everything that ``match`` is made of, itself included."""
    found = {"match": match}
    for stage, below in (("generate", "match"), ("deduplicate", "generate"), ("embed", "deduplicate"), ("ingest", "embed")):
        manifest = lake.manifest(stage, found[below].upstream[stage])
        if manifest is None:
            raise UserError(f"the lake {lake.root!r} lacks the manifest of {stage} {found[below].upstream[stage]}; restore it")
        found[stage] = manifest
    return found


def is_local(lake: Lake) -> bool:
    return "://" not in lake.root


def run(lake: Lake, match: Manifest, snapshot: str) -> dict[str, int]:
    """Makes the marts of one audit and checks them.

    Args:
        lake: the lake.
        match: the audit's newest matches.
        snapshot: of ``measure``; where the marts are written.

    Returns:
        mart → rows.

    Raises:
        RuntimeError: if a check finds rows, with the checks' names and the first row of each.
    """
    with connect() as connection:
        make(connection, lake, match)
        audit = connection.execute("SELECT audit_id, model_revision, parameters_digest FROM audits").fetchall()[0]
        check(connection)
        rows = {}
        for mart in MARTS:
            table = connection.table(mart).to_arrow_table()
            for value, name in zip(reversed(audit), reversed(AUDIT_COLUMNS), strict=True):
                table = table.add_column(0, name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
            write_parquet(lake.part(mart, snapshot, 0), table)
            rows[mart] = table.num_rows
    return rows


def make(connection: duckdb.DuckDBPyConnection, lake: Lake, match: Manifest, last: str = STEPS[-1]) -> None:
    """Binds the tables of one audit, and makes those of ``STEPS`` from them, up to ``last``."""
    for stage, manifest in chain(lake, match).items():
        for table in TABLES.values():
            if table.stage == stage:
                bind(connection, lake, table.name, manifest.snapshot_id)
    for step in STEPS[: STEPS.index(last) + 1]:
        kind, name = step.split("/")
        connection.execute(f'CREATE TABLE "{name}" AS {sql.read(kind, name)}')


def check(connection: duckdb.DuckDBPyConnection) -> None:
    """RuntimeError unless every file of ``sql/checks`` returns no rows."""
    failed = []
    for name in sql.names("checks"):
        rows = connection.execute(sql.read("checks", name)).fetchall()
        if rows:
            failed.append(f"{name}: {len(rows)} rows, the first is {rows[0]}")
    if failed:
        raise RuntimeError(f"the audit's own checks failed: {'; '.join(failed)}")


def connect() -> duckdb.DuckDBPyConnection:
    """A DuckDB connection, in memory, with the functions that the SQL uses."""
    import duckdb

    connection = duckdb.connect()
    for name in sql.names("functions"):
        connection.execute(sql.read("functions", name))
    connection.create_function("clopper_pearson_upper", clopper_pearson_upper, ["BIGINT", "BIGINT"], "DOUBLE")
    connection.create_function("wilson_interval", wilson_interval_of, ["BIGINT", "BIGINT"], "DOUBLE[]")
    connection.create_function("exact_interval", exact_interval, ["BIGINT[]", "BIGINT[]", "DOUBLE[]"], "DOUBLE[]")
    connection.create_function(
        "slice_interval", slice_interval_of, ["BIGINT[]", "BIGINT[]", "DOUBLE[]", "BIGINT[]", "DOUBLE[]"], "DOUBLE[]"
    )
    return connection


def wilson_interval_of(successes: int, trials: int) -> list[float]:
    """[lower, upper] of the rate, by Wilson."""
    return list(wilson_interval(successes, trials))


def exact_interval(successes: list[int], trials: list[int], weights: list[float]) -> list[float]:
    """[lower, upper] of the rate of a population, of which strata were tried: Blaker's where all prompts weigh the same."""
    each = [weight / tried for weight, tried in zip(weights, trials, strict=True)]
    if max(each) - min(each) <= 1e-9 * max(each):
        return list(blaker_interval(sum(successes), sum(trials)))
    return list(stratified_interval(successes, trials, weights))


def slice_interval_of(
    surely: list[int], in_slice: list[int], slice_weights: list[float], trials: list[int], weights: list[float]
) -> list[float]:
    """[lower, upper] of the rate of a population, where of some prompts only a slice kept its images."""
    return list(slice_interval(surely, in_slice, slice_weights, trials, weights))


def bind(connection: duckdb.DuckDBPyConnection, lake: Lake, table: str, snapshot: str) -> None:
    """Makes ``table`` a view on one snapshot. Pictures are left out; ``generations.kept`` says whether there is one."""
    picture = PICTURES.get(table)
    parts = lake.parts(table, snapshot)
    if is_local(lake) and parts:
        columns = "*" if picture is None else f"* EXCLUDE ({picture}), {picture} IS NOT NULL AS kept"
        connection.execute(f"SET VARIABLE parts_of_{table} = $parts", {"parts": parts})
        # Without hive partitions: a folder "role=…" above the lake would take the place of the column.
        files = f"read_parquet(getvariable('parts_of_{table}'), hive_partitioning = false)"
        connection.execute(f'CREATE VIEW "{table}" AS SELECT {columns} FROM {files}')
    else:
        connection.register(table, _without_pictures(table, parts))


def _without_pictures(table: str, parts: list[str]) -> pa.Table:
    schema = TABLES[table].schema
    picture = PICTURES.get(table)
    if picture is None:
        return pa.concat_tables([schema.empty_table(), *map(read_parquet, parts)], promote_options="default")
    rest = [name for name in schema.names if name != picture]
    empty = schema.empty_table().select(rest).append_column("kept", pa.array([], pa.bool_()))
    tables = [empty]
    for path in parts:
        kept: list[bool] = []
        with open_parquet(path) as file:
            for batch in file.iter_batches(batch_size=256, columns=[picture]):
                kept += batch[picture].is_valid().to_pylist()
        tables.append(read_parquet(path, rest).append_column("kept", pa.array(kept, pa.bool_())))
    # An older part may forbid nulls in a column that has them since.
    return pa.concat_tables(tables, promote_options="default")


def current(lake: Lake) -> list[Manifest]:
    """Of each audit of the lake the ``measure`` that was asked for last."""
    by_time = sorted(lake.manifests("measure"), key=lambda manifest: manifest.last_asked)
    newest = {manifest.facts["audit_id"]: manifest for manifest in by_time}
    return list(newest.values())


def build_database(lake: Lake) -> str:
    """Writes ``audit.duckdb``: a view for each table and each mart, over all audits. Returns its path.

    The tables show what the audits are made of, each row once, with the ``snapshot_id`` under which it is stored; half-done
    stages don't show.
    """
    import duckdb

    snapshots: dict[str, set[str]] = {table: set() for table in (*TABLES, *MARTS)}
    for measure in current(lake):
        match = lake.manifest("match", measure.upstream["match"])
        assert match is not None, "a complete snapshot's upstream is complete"
        for stage, manifest in chain(lake, match).items():
            for table in TABLES.values():
                if table.stage == stage:
                    snapshots[table.name].add(manifest.snapshot_id)
        for mart in MARTS:
            snapshots[mart].add(measure.snapshot_id)
    for night in lake.manifests("nightly"):
        for name in night.rows:
            snapshots[name].add(night.snapshot_id)
    snapshots["tombstones"] = {snapshot_of(path) for path in lake.every_part("tombstones")}
    with tempfile.TemporaryDirectory(dir=os.path.abspath(lake.root) if is_local(lake) else None) as folder:
        path = os.path.join(folder, DATABASE)
        with duckdb.connect(path) as connection:
            place(connection, lake)
            for name, ids in snapshots.items():
                # Snapshots may share parts.
                parts = list(dict.fromkeys(part for snapshot in sorted(ids) for part in lake.parts(name, snapshot)))
                if not parts and name in TABLES:
                    # What there is none of yet (nights, tombstones) can be asked for too.
                    none = TABLES[name].schema.empty_table() if is_local(lake) else _without_pictures(name, [])
                    none = none.append_column("snapshot_id", pa.array([], pa.string()))
                    connection.register("empty", none)
                    connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM empty')
                    connection.unregister("empty")
                elif not parts:
                    continue
                elif is_local(lake):
                    # Tables, snapshots and parts have names without a quote.
                    inside = [part.removeprefix(lake.root).lstrip("/") for part in parts]
                    files = ", ".join(f"lake_root() || '/{part}'" for part in inside)
                    # The snapshot is taken from the file's own folder alone: see bind.
                    connection.execute(
                        f'CREATE VIEW "{name}" AS SELECT * EXCLUDE (filename), '
                        "regexp_extract(filename, 'snapshot_id=([^/]*)/[^/]*$', 1) AS snapshot_id "
                        f"FROM read_parquet([{files}], union_by_name = true, hive_partitioning = false, filename = true)"
                    )
                else:
                    copies = []
                    for part in parts:
                        copy = _without_pictures(name, [part]) if name in TABLES else read_parquet(part)
                        snapshot = pa.repeat(pa.scalar(snapshot_of(part)), copy.num_rows)
                        copies.append(copy.append_column("snapshot_id", snapshot))
                    # Marts of an earlier version may have other columns.
                    connection.register("copy", pa.concat_tables(copies, promote_options="default"))
                    connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM copy')
                    connection.unregister("copy")
        target = lake.path(DATABASE)
        if is_local(lake):
            os.replace(path, target)
        else:
            with open(path, "rb") as file:
                write_bytes(target, file.read())
    return target


def place(connection: duckdb.DuckDBPyConnection, lake: Lake, *, stored: bool = True) -> None:
    """Says in the database where the lake lies, or, if not ``stored``, on this connection alone.

    A macro's body takes no parameters, so the path is quoted here. A glob would find nothing in a folder whose own name has a *
    or a bracket in it; there each stands for itself.
    """
    root = os.path.abspath(lake.root) if is_local(lake) else lake.root
    for letter in "[?*":
        root = root.replace(letter, f"[{letter}]")
    kind = "MACRO" if stored else "TEMP MACRO"
    connection.execute(f"CREATE OR REPLACE {kind} lake_root() AS '{root.replace(chr(39), 2 * chr(39))}'")


def relocate(lake: Lake) -> str:
    """Tells ``audit.duckdb`` where its lake lies now; returns the database's path. UserError where there is none."""
    import duckdb

    target = lake.path(DATABASE)
    if not is_local(lake):
        raise UserError(f"the lake {lake.root!r} is no local folder: its {DATABASE} holds copies, which need no place")
    if not exists(target):
        raise UserError(f"the lake {lake.root!r} has no {DATABASE} yet; run 'eidetic measure' first")
    try:
        with duckdb.connect(target) as connection:
            place(connection, lake)
    except duckdb.Error as error:
        raise UserError(
            f"cannot write to {target!r} ({error}); end the program that has it open, or make it anew with 'eidetic measure'"
        ) from error
    return target


def read_mart(lake: Lake, mart: str, measure: Manifest) -> list[dict[str, Any]]:
    """The rows of one audit's mart."""
    return [row for path in lake.parts(mart, measure.snapshot_id) for row in read_parquet(path).to_pylist()]
