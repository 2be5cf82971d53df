"""Runs the SQL of ``sql/`` over one audit: staging, marts and checks.

The names in the SQL (prompts, matches, …) are views on exactly the snapshots that the audit is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import sql
from transforms.store.files import read_parquet, write_parquet
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage
from transforms.store.scan import bind, connect
from transforms.store.schema import TABLES

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
    "staging/drift_rule",
    "marts/drift",
    "marts/placeholders",
    "marts/duplication",
    "marts/threshold_sweep",
)
"""The files of ``sql/`` in the order in which they are run: each may read what is before it."""

MARTS = tuple(step.removeprefix("marts/") for step in STEPS if step.startswith("marts/"))

AUDIT_COLUMNS = ("audit_id", "model_revision", "parameters_digest")
"""Every mart of an audit begins with these."""


def sql_digest(steps: Sequence[str] = STEPS, checks: str = "checks") -> str:
    """Digest of the SQL that makes and checks these: other SQL makes other marts."""
    files = [
        *(tuple(step.split("/")) for step in steps),
        *((kind, name) for kind in ("functions", checks) for name in sql.names(kind)),
    ]
    return digest("sql", [(kind, name, sql.read(kind, name)) for kind, name in files])


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
        first = dict(zip(AUDIT_COLUMNS, audit, strict=True))
        return {mart: store(connection, lake, mart, snapshot, first) for mart in MARTS}


def make(connection: duckdb.DuckDBPyConnection, lake: Lake, match: Manifest, last: str = STEPS[-1]) -> None:
    """Binds the tables of one audit, and makes those of ``STEPS`` from them, up to ``last``."""
    made_of = lineage(lake, match)
    for table in TABLES.values():
        if table.stage in made_of:
            bind(connection, lake, table.name, made_of[table.stage].snapshot_id)
    take(connection, STEPS[: STEPS.index(last) + 1])


def take(connection: duckdb.DuckDBPyConnection, steps: Sequence[str]) -> None:
    """Makes the table of each step, in order."""
    for step in steps:
        kind, name = step.split("/")
        connection.execute(f'CREATE TEMP TABLE "{name}" AS {sql.read(kind, name)}')


def check(connection: duckdb.DuckDBPyConnection, kind: str = "checks", whose: str = "audit") -> None:
    """RuntimeError unless every file of ``sql/<kind>`` returns no rows."""
    failed = []
    for name in sql.names(kind):
        rows = connection.execute(sql.read(kind, name)).fetchall()
        if rows:
            failed.append(f"{name}: {len(rows)} rows, the first is {rows[0]}")
    if failed:
        raise RuntimeError(f"the {whose}'s own checks failed: {'; '.join(failed)}")


def store(connection: duckdb.DuckDBPyConnection, lake: Lake, mart: str, snapshot: str, first: Mapping[str, str]) -> int:
    """Writes a mart that was made, with columns in front that have one value each. Returns its rows."""
    table = connection.table(mart).to_arrow_table()
    for name, value in reversed(list(first.items())):
        table = table.add_column(0, name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    write_parquet(lake.part(mart, snapshot, 0), table)
    return table.num_rows


def current(lake: Lake) -> list[Manifest]:
    """Of each audit of the lake the ``measure`` that was asked for last."""
    by_time = sorted(lake.manifests("measure"), key=lambda manifest: manifest.last_asked)
    newest = {manifest.facts["audit_id"]: manifest for manifest in by_time}
    return list(newest.values())


def read_mart(lake: Lake, mart: str, measure: Manifest) -> list[dict[str, Any]]:
    """The rows of one audit's mart."""
    return [row for path in lake.parts(mart, measure.snapshot_id) for row in read_parquet(path).to_pylist()]
