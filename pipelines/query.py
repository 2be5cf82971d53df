"""Prints the answer to a SELECT over the lake.

reads   audit.duckdb: a view for each table of the lake (samples, matches, …) and each mart (extraction_rate, …)
writes  the answer to stdout

  eidetic query "SELECT bucket, prompts_tried, prompts_copied, rate_copied FROM extraction_rate" --lake lake
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from pipelines.options import CommonOptions, Options, option, parse
from transforms.errors import UserError
from transforms.results import database
from transforms.store.files import exists, read_bytes
from transforms.store.lake import Lake


@dataclasses.dataclass(frozen=True)
class QueryOptions(Options):
    """The question."""

    sql: str = option("", "a SELECT statement")
    format: str = option("table", "how the answer is printed", choices=("table", "csv", "json"))


def answer(lake: Lake, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """(names of the columns, rows). UserError where there is no database yet, or DuckDB refuses the SQL."""
    import duckdb

    path = lake.path(database.DATABASE)
    if not exists(path):
        raise UserError(f"the lake {lake.root!r} has no {database.DATABASE} yet; run 'eidetic measure' first")
    with tempfile.TemporaryDirectory() as folder:
        if not lake.is_local:
            copy = os.path.join(folder, database.DATABASE)
            with open(copy, "wb") as file:
                file.write(read_bytes(path))
            path = copy
        try:
            with duckdb.connect(path, read_only=True) as connection:
                if lake.is_local:
                    database.check(lake)
                    # The lake may be a copy, whose database still names the place of the first one.
                    database.place(connection, lake, stored=False)
                found = connection.execute(sql)
                if found is None:  # DuckDB's answer to no statement at all
                    raise UserError('there is no query; give one, as in: eidetic query "SELECT * FROM extraction_rate"')
                return [column[0] for column in found.description or []], found.fetchall()
        except duckdb.Error as error:
            # The message can quote a caption, and goes to the terminal.
            raise UserError(f"DuckDB refuses the query: {printable(str(error))}") from error


def as_table(names: list[str], rows: list[tuple[Any, ...]]) -> str:
    """Aligned columns; numbers to the right, null as an empty field."""
    names = [_cell(name) for name in names]  # PIVOT makes names of captions
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
    text = printable(str(value))
    return text if len(text) <= 60 else text[:59] + "…"


def as_json(names: list[str], rows: list[tuple[Any, ...]]) -> str:
    """A list of objects. What JSON has no type for is text; a number that is none (NaN, infinity) is null.

    An object has a name once: of columns of one name, as joins give them, the second is name_2, the third name_3.
    """
    unique: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        unique.append(next(one for one in itertools.chain([name], numbered) if one not in unique))
    records = [{name: _json_value(value) for name, value in zip(unique, row, strict=True)} for row in rows]
    text = json.dumps(records, default=str, indent=2, ensure_ascii=False)
    # JSON itself escapes the control characters under U+0020 alone; others, too, can rewrite a terminal.
    return "".join(letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1] for letter in text)


def _json_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_json_value(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _json_value(one) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def printable(text: str) -> str:
    """Text with spaces for the control characters, which would rewrite the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "query", __doc__, (CommonOptions, QueryOptions), positional=("sql",))
    options = parsed[QueryOptions]
    names, rows = answer(Lake(parsed[CommonOptions].lake), options.sql)
    if options.format == "json":
        print(as_json(names, rows))
    elif options.format == "csv":
        writer = csv.writer(sys.stdout)
        # A file gets the data as they are; a terminal must not be rewritten by them.
        terminal = sys.stdout.isatty()
        for row in (names, *rows):
            writer.writerow([printable(value) if terminal and isinstance(value, str) else value for value in row])
    else:
        print(as_table(names, rows))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
