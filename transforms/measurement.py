"""Runs the SQL of ``sql/`` over the lake with DuckDB: marts, checks, and the database that users query.

For one audit the names in the SQL (prompts, matches, …) are views on exactly the snapshots that the audit is made of. The
database ``audit.duckdb`` holds a view for each table and mart over all audits of the lake; a lake behind a URL gets copies
instead, without the pictures, since not every DuckDB client can open that URL.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import sql
from transforms.errors import UserError
from transforms.identity import digest
from transforms.kernels.rates import clopper_pearson_upper, wilson_interval
from transforms.lake import Lake, Manifest, open_parquet, read_parquet, snapshot_of, write_bytes, write_parquet
from transforms.schema import TABLES

if TYPE_CHECKING:
    import duckdb

MARTS = ("verdicts", "extraction_rate", "extractions", "duplication", "threshold_sweep", "false_positives", "filter_misses")
"""In the order in which they are made: a mart may read those before it."""

DATABASE = "audit.duckdb"
PICTURES = {"images": "image", "generations": "image"}


def sql_digest() -> str:
    """Digest of every SQL file: other SQL makes other marts."""
    return digest("sql", [(kind, name, sql.read(kind, name)) for kind in ("marts", "checks") for name in sql.names(kind)])


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
        for stage, manifest in chain(lake, match).items():
            for table in TABLES.values():
                if table.stage == stage:
                    bind(connection, lake, table.name, manifest.snapshot_id)
        audit = connection.execute("SELECT audit_id, model_revision, parameters_digest FROM audits").fetchall()[0]
        made = {}
        for mart in MARTS:
            connection.execute(f'CREATE TABLE "{mart}" AS {sql.read("marts", mart)}')
            made[mart] = connection.table(mart).to_arrow_table()
        check(connection)
    for mart, table in made.items():
        columns = ("audit_id", "model_revision", "parameters_digest")
        for value, name in zip(reversed(audit), reversed(columns), strict=True):
            table = table.add_column(0, name, pa.array([value] * table.num_rows, pa.string()))
        write_parquet(lake.part(mart, snapshot, 0), table)
    return {mart: table.num_rows for mart, table in made.items()}


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
    functions: dict[str, Any] = {
        "wilson_lower": lambda successes, trials: wilson_interval(successes, trials)[0],
        "wilson_upper": lambda successes, trials: wilson_interval(successes, trials)[1],
        "clopper_pearson_upper": clopper_pearson_upper,
    }
    for name, function in functions.items():
        connection.create_function(name, function, ["BIGINT", "BIGINT"], "DOUBLE")
    return connection


def bind(connection: duckdb.DuckDBPyConnection, lake: Lake, table: str, snapshot: str) -> None:
    """Makes ``table`` a view on one snapshot. Pictures are left out; ``generations.kept`` says whether there is one."""
    picture = PICTURES.get(table)
    parts = lake.parts(table, snapshot)
    if is_local(lake) and parts:
        columns = "*" if picture is None else f"* EXCLUDE ({picture}), {picture} IS NOT NULL AS kept"
        # Without hive partitions: a folder "role=…" above the lake would take the place of the column.
        files = f"read_parquet({_literal(parts)}, hive_partitioning = false)"
        connection.execute(f'CREATE VIEW "{table}" AS SELECT {columns} FROM {files}')
    else:
        connection.register(table, _without_pictures(table, parts))


def _without_pictures(table: str, parts: list[str]) -> pa.Table:
    schema = TABLES[table].schema
    picture = PICTURES.get(table)
    if picture is None:
        return pa.concat_tables([schema.empty_table(), *(read_parquet(path) for path in parts)])
    rest = [name for name in schema.names if name != picture]
    empty = schema.empty_table().select(rest).append_column("kept", pa.array([], pa.bool_()))
    tables = [empty]
    for path in parts:
        kept: list[bool] = []
        with open_parquet(path) as file:
            for batch in file.iter_batches(batch_size=256, columns=[picture]):
                kept += batch[picture].is_valid().to_pylist()
        tables.append(read_parquet(path, rest).append_column("kept", pa.array(kept, pa.bool_())))
    return pa.concat_tables(tables)


def _literal(parts: list[str]) -> str:
    """A list of paths as a SQL literal: a view's definition takes no parameters."""
    return "[" + ", ".join("'" + path.replace("'", "''") + "'" for path in parts) + "]"


def current(lake: Lake) -> list[Manifest]:
    """The newest ``measure`` of each audit of the lake."""
    newest = {manifest.facts["audit_id"]: manifest for manifest in lake.manifests("measure")}
    return list(newest.values())


def build_database(lake: Lake) -> str:
    """Writes ``audit.duckdb``: a view for each table and each mart, over all audits. Returns its path.

    The tables show what the audits are made of, each row with its ``snapshot_id``; half-done stages don't show.
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
    snapshots["tombstones"] = {snapshot_of(path) for path in lake.every_part("tombstones")}
    with tempfile.TemporaryDirectory(dir=os.path.abspath(lake.root) if is_local(lake) else None) as folder:
        path = os.path.join(folder, DATABASE)
        with duckdb.connect(path) as connection:
            for name, ids in snapshots.items():
                parts = [part for snapshot in sorted(ids) for part in lake.parts(name, snapshot)]
                if not parts:
                    continue
                if is_local(lake):
                    absolute = [os.path.abspath(part) for part in parts]
                    # The snapshot is taken from the file's own folder alone: see bind.
                    connection.execute(
                        f'CREATE VIEW "{name}" AS SELECT * EXCLUDE (filename), '
                        "regexp_extract(filename, 'snapshot_id=([^/]*)/[^/]*$', 1) AS snapshot_id "
                        f"FROM read_parquet({_literal(absolute)}, union_by_name = true, hive_partitioning = false, "
                        "filename = true)"
                    )
                else:
                    copy = _without_pictures(name, parts) if name in TABLES else pa.concat_tables(map(read_parquet, parts))
                    connection.register("copy", copy)
                    connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM copy')
                    connection.unregister("copy")
        target = lake.path(DATABASE)
        if is_local(lake):
            os.replace(path, target)
        else:
            with open(path, "rb") as file:
                write_bytes(target, file.read())
    return target


def read_mart(lake: Lake, mart: str, measure: Manifest) -> list[dict[str, Any]]:
    """The rows of one audit's mart."""
    return [row for path in lake.parts(mart, measure.snapshot_id) for row in read_parquet(path).to_pylist()]
