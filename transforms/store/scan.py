"""SQL over the parts of tables: the one place where a whole table may be looked at.

DuckDB reads the parts where they lie, only the columns that the SQL names, and streams what doesn't fit into memory through
files of its own. Answers come in batches. ``Lake.read`` is for tables that are small by nature: tests/test_layers.py holds the
list of who calls it.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import sql
from transforms.kernels import effects, membership
from transforms.kernels.rates import (
    blaker_interval,
    clopper_pearson_upper,
    slice_interval,
    stratified_interval,
    wilson_interval,
)
from transforms.store.lake import Lake
from transforms.store.remote import StoredFiles, readable
from transforms.store.schema import TABLES

if TYPE_CHECKING:
    import duckdb


PICTURES = {"images": "image", "generations": "image", "regenerations": "image", "untargeted_generations": "image"}
"""Table → its column of pictures, which SQL sees as the flag ``kept``."""

BATCH_ROWS = 1 << 16

NO_EXTENSIONS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_extension_repositories": "forbidden",
}
"""How every DuckDB is opened: what a question happens to name must not fetch and run a stranger's code."""


def scan(lake: Lake, tables: Mapping[str, str], query: str, **parameters: Any) -> Iterator[pa.RecordBatch]:
    """The answer to a SELECT, a batch of rows at a time.

    Args:
        lake: the lake.
        tables: table → snapshot; two snapshots of one table as ``{"samples AS before": …, "samples AS after": …}``.
        query: the SQL; ``$name`` stands for a parameter.
        parameters: of the query.
    """
    with connect() as connection:
        for name, snapshot in tables.items():
            table, _, alias = name.partition(" AS ")
            bind(connection, lake, table, snapshot, alias or table)
        reader: pa.RecordBatchReader = connection.sql(query, params=parameters).to_arrow_reader(BATCH_ROWS)
        yield from reader


def ask(lake: Lake, tables: Mapping[str, str], query: str, **parameters: Any) -> list[dict[str, Any]]:
    """All rows of an answer that is small by nature, such as sums by status."""
    return [row for batch in scan(lake, tables, query, **parameters) for row in batch.to_pylist()]


def connect() -> duckdb.DuckDBPyConnection:
    """A connection to this process's DuckDB, in memory, with the functions that the SQL uses.

    What a question makes for itself (views, tables, registered Arrow tables, variables) is temporary: no other connection sees
    it, and it ends with this one.
    """
    database, files = _database(os.getpid())
    files.look_again()
    return database.cursor()


@functools.cache
def _database(process: int) -> tuple[duckdb.DuckDBPyConnection, StoredFiles]:
    """The DuckDB of a process, and how it sees files behind URLs. Opening one takes as long as most questions; a connection
    to it, hardly anything."""
    import duckdb

    # Without DuckDB's cache of files, which would stay when the question ends.
    database = duckdb.connect(config={**NO_EXTENSIONS, "enable_external_file_cache": False})
    files = StoredFiles()
    database.register_filesystem(files)
    for name in sql.names("functions"):
        database.execute(sql.read("functions", name))
    register_functions(database)
    # While there still is a Python to end it: later, DuckDB's binding says that it leaks.
    atexit.register(_database.cache_clear)
    return database, files


def register_functions(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes the functions in Python known: intervals of rates and of means, curves and slopes."""
    connection.create_function("clopper_pearson_upper", clopper_pearson_upper, ["BIGINT", "BIGINT"], "DOUBLE")
    connection.create_function("wilson_interval", wilson_interval_of, ["BIGINT", "BIGINT"], "DOUBLE[]")
    connection.create_function("exact_interval", exact_interval, ["BIGINT[]", "BIGINT[]", "DOUBLE[]"], "DOUBLE[]")
    connection.create_function(
        "slice_interval", slice_interval_of, ["BIGINT[]", "BIGINT[]", "DOUBLE[]", "BIGINT[]", "DOUBLE[]"], "DOUBLE[]"
    )
    # Of a sweep.
    connection.create_function("blaker_interval", blaker_interval_of, ["BIGINT", "BIGINT"], "DOUBLE[]")
    connection.create_function("mean_interval", mean_interval_of, ["DOUBLE[]"], "DOUBLE[]")
    connection.create_function("rate_difference", rate_difference_of, ["BIGINT"] * 4, "DOUBLE[]")
    connection.create_function("half_point", half_point_of, ["DOUBLE[]", "BIGINT[]", "BIGINT[]"], "DOUBLE[]")
    connection.create_function("slope_within", slope_within_of, ["VARCHAR[]", "DOUBLE[]", "DOUBLE[]"], "DOUBLE[]")
    connection.create_function("odds_per_deviation", odds_per_deviation_of, ["DOUBLE[]", "BOOLEAN[]"], "DOUBLE[]")
    connection.create_function("membership_rates", membership_rates, ["DOUBLE[]", "BOOLEAN[]", "VARCHAR[]"], "DOUBLE[]")
    connection.create_function("membership_roc", membership_roc, ["DOUBLE[]", "BOOLEAN[]"], "DOUBLE[][]")


def wilson_interval_of(successes: int, trials: int) -> list[float]:
    """[lower, upper] of the rate, by Wilson."""
    return list(wilson_interval(successes, trials))


@functools.lru_cache(maxsize=1 << 16)
def _blaker(successes: int, trials: int) -> tuple[float, float]:
    # Hundreds of models have the same counts, most of them none.
    return blaker_interval(successes, trials)


def blaker_interval_of(successes: int, trials: int) -> list[float]:
    """[lower, upper] of the rate, by Blaker."""
    return list(_blaker(successes, trials))


def mean_interval_of(values: list[float]) -> list[float | None]:
    """[mean, lower, upper]."""
    return list(effects.mean_interval(values))


def rate_difference_of(successes: int, trials: int, other_successes: int, other_trials: int) -> list[float | None]:
    """[difference, lower, upper] of two rates."""
    return list(effects.rate_difference(successes, trials, other_successes, other_trials))


def slope_within_of(groups: list[str], x: list[float], y: list[float]) -> list[float | None]:
    """[slope, lower, upper], each group with a level of its own."""
    return list(effects.slope_within(groups, x, y))


def odds_per_deviation_of(x: list[float], happened: list[bool]) -> list[float | None]:
    """[log odds, lower, upper] for a standard deviation of x."""
    return list(effects.odds_per_deviation(x, happened))


def half_point_of(sizes: list[float], successes: list[int], trials: list[int]) -> list[float | None]:
    """[size, lower, upper, slope, lower, upper]: where the share is one half, and how fast it falls."""
    found = effects.half_point(sizes, successes, trials)
    return [*found.size, *found.slope]


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


def membership_rates(scores: list[float], members: list[bool], images: list[str]) -> list[float | None]:
    """[area, rate, lower, upper, rate, lower, upper]: the area under the ROC curve, and the true positive rates at 1% and 0.1%.

    Intervals are exact where each image has one score, and by resampled images where one has several.
    """
    values, inside = np.array(scores, np.float64), np.array(members, bool)
    found: list[float | None] = [membership.area(values, inside)]
    repeated = len(set(images)) < len(images)
    for rate in (0.01, 0.001):
        one = membership.true_positives_at(values, inside, rate)
        ends = one.lower, one.upper
        if repeated and one.rate is not None:
            ends = membership.resampled_true_positives(values, inside, np.array(images, np.str_), rate)
        found += [one.rate, *ends]
    return found


def membership_roc(scores: list[float], members: list[bool]) -> list[list[float]]:
    """[[false positive rate, true positive rate], …]: the corners of the curve, two at most in a twentieth of a decade."""
    false, true = membership.roc(np.array(scores, np.float64), np.array(members, bool), per_decade=20)
    return [list(one) for one in zip(false.tolist(), true.tolist(), strict=True)]


def bind(connection: duckdb.DuckDBPyConnection, lake: Lake, table: str, snapshot: str, name: str | None = None) -> None:
    """Makes ``name`` (the table's own by default) a view on one snapshot.

    Pictures are left out; ``kept`` says whether there is one.
    """
    name = name or table
    parts = [readable(path) for path in lake.parts(table, snapshot)]
    if not parts:
        connection.register(name, empty(table))
        return
    connection.execute(f'SET VARIABLE "parts_of_{name}" = $parts', {"parts": parts})
    # Without hive partitions: a folder "role=…" above the lake would take the place of the column. And without union_by_name,
    # which opens all parts at each question to learn their columns: those of a snapshot have the same.
    files = f"read_parquet(getvariable('parts_of_{name}'), hive_partitioning = false)"
    connection.execute(f'CREATE TEMP VIEW "{name}" AS SELECT {columns_of(table)} FROM {files}')


def columns_of(table: str, *without: str) -> str:
    """What SQL sees of a table's columns, ``without`` some of those that the parts have."""
    picture = PICTURES.get(table)
    left_out = ", ".join((*without, *([] if picture is None else [picture])))
    columns = f"* EXCLUDE ({left_out})" if left_out else "*"
    return columns if picture is None else f"{columns}, {picture} IS NOT NULL AS kept"


def empty(table: str) -> pa.Table:
    """What SQL sees of a table without rows."""
    schema = TABLES[table].schema
    picture = PICTURES.get(table)
    if picture is None:
        return schema.empty_table()
    rest = [column for column in schema.names if column != picture]
    return schema.empty_table().select(rest).append_column("kept", pa.array([], pa.bool_()))
