"""Prints the answer to a SELECT over the lake.

reads   audit.duckdb: a view for each table of the lake (samples, matches, …) and each mart (extraction_rate, …)
writes  the answer to stdout

  eidetic query "SELECT duplicates, prompts_tried, prompts_extracted, rate FROM extraction_rate" --lake lake
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from pipelines.options import CommonOptions, option, parse
from transforms import measurement
from transforms.errors import UserError
from transforms.lake import Lake, exists, read_bytes


@dataclasses.dataclass(frozen=True)
class QueryOptions:
    """The question."""

    sql: str = option("", "a SELECT statement")
    format: str = option("table", "how the answer is printed", choices=("table", "csv", "json"))


def answer(lake: Lake, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """(names of the columns, rows). UserError where there is no database yet, or DuckDB refuses the SQL."""
    import duckdb

    path = lake.path(measurement.DATABASE)
    if not exists(path):
        raise UserError(f"the lake {lake.root!r} has no {measurement.DATABASE} yet; run 'eidetic measure' first")
    with tempfile.TemporaryDirectory() as folder:
        if not measurement.is_local(lake):
            copy = os.path.join(folder, measurement.DATABASE)
            with open(copy, "wb") as file:
                file.write(read_bytes(path))
            path = copy
        try:
            with measurement.connect(path, read_only=True) as connection:
                found = connection.execute(sql)
                return [column[0] for column in found.description or []], found.fetchall()
        except duckdb.Error as error:
            raise UserError(f"DuckDB refuses the query: {error}") from error


def as_table(names: list[str], rows: list[tuple[Any, ...]]) -> str:
    """Aligned columns; numbers to the right, null as an empty field."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(names)]
    numbers = [all(isinstance(row[i], int | float) or row[i] is None for row in rows) for i in range(len(names))]
    lines = []
    for line in (names, ["-" * width for width in widths], *cells):
        fields = zip(line, widths, numbers, strict=True)
        lines.append("  ".join(text.rjust(width) if right else text.ljust(width) for text, width, right in fields).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    # A caption can hold control characters that would rewrite the terminal.
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return text if len(text) <= 60 else text[:59] + "…"


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "query", __doc__, (CommonOptions, QueryOptions), positional="sql")
    options = parsed[QueryOptions]
    names, rows = answer(Lake(parsed[CommonOptions].lake), options.sql)
    if options.format == "json":
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], default=str, indent=2, ensure_ascii=False))
    elif options.format == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(names)
        writer.writerows(rows)
    else:
        print(as_table(names, rows))


if __name__ == "__main__":
    from pipelines.cli import run_verb

    sys.exit(run_verb(main, sys.argv[1:]))
