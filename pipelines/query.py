"""Prints the answer to a SELECT over the lake.

reads   audit.duckdb: a view for each table of the lake (samples, matches, …) and each mart (extraction_rate, …)
writes  the answer to stdout, or with COPY (SELECT …) TO 'file' to a file outside the lake

One statement that reads. Nothing in the lake is changed by it, and DuckDB loads no extensions. Ctrl-C ends it.

  eidetic query "SELECT bucket, prompts_tried, prompts_copied, rate_copied FROM extraction_rate" --lake lake
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import math
import os
import queue
import re
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.options import CommonOptions, Options, option, parse
from pipelines.terminal import unguarded
from transforms.errors import UserError
from transforms.results import database
from transforms.store.files import exists, read_bytes
from transforms.store.lake import Lake
from transforms.store.scan import NO_EXTENSIONS, register_functions
from transforms.store.texts import printable

if TYPE_CHECKING:
    import duckdb


@dataclasses.dataclass(frozen=True)
class QueryOptions(Options):
    """The question."""

    sql: str = option("", "one SELECT, or a COPY (SELECT …) TO 'a file outside the lake'")
    format: str = option("table", "how the answer is printed", choices=("table", "csv", "json"))
    memory: int = option(
        4096,
        "MiB that DuckDB may take before it goes on in files of the temporary folder, and the printed table; what needs "
        "more ends",
        least=64,
    )


BESIDE = 512 << 20
"""Bytes that a query may take beside ``--memory``: the stacks of threads, and what is printed."""


@contextlib.contextmanager
def bounded(memory: int) -> Iterator[None]:
    """Meanwhile this process gets no more than ``memory`` MiB and ``BESIDE``: DuckDB's own limit knows neither long texts nor
    the files that it reads. DuckDB says of what it can't get that it is out of memory. Where the system has no such limit, that
    one alone holds.
    """
    try:
        import resource

        with open("/proc/self/status") as file:
            now = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
        before = resource.getrlimit(resource.RLIMIT_DATA)
    except (ImportError, OSError, StopIteration):
        yield
        return
    most = now + (memory << 20) + BESIDE + (os.cpu_count() or 1) * (16 << 20)
    known = [limit for limit in (most, *before) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), before[1]))
    try:
        yield
    except MemoryError as error:
        raise UserError(f"the answer takes more than --memory {memory} (MiB) allows; ask for less, or allow more") from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


ADVICE = 'give one SELECT, as in: eidetic query "SELECT * FROM extraction_rate"'
ROWS_AT_ONCE = 1000
BYTES_OF_A_CELL = 100
"""What a cell of an answer takes in memory beside its letters, about."""


@contextlib.contextmanager
def asked(lake: Lake, sql: str, memory: int = QueryOptions.memory) -> Iterator[tuple[list[str], Iterator[tuple[Any, ...]]]]:
    """(names of the columns, rows as they come). The rows are to be read inside the block.

    UserError where there is no database yet, where DuckDB refuses the SQL, and where it is more than a question.
    """
    import duckdb

    path = lake.path(database.DATABASE)
    if not exists(path):
        raise UserError(
            f"the lake {lake.root!r} has no {database.DATABASE} yet; run 'eidetic measure' or 'eidetic compare' first"
        )
    check_question(lake, sql)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if not lake.is_local:
            copy = os.path.join(folder, database.DATABASE)
            with open(copy, "wb") as file:
                file.write(read_bytes(path))
            path = copy
        limits = {
            **NO_EXTENSIONS,
            "memory_limit": f"{memory}MiB",
            # By default beside the database, which is in the lake.
            "temp_directory": os.path.join(folder, "temporary"),
            # Variables of this program are no tables.
            "python_enable_replacements": False,
        }
        try:
            if lake.is_local:
                database.check(lake)
            # Attached, and not opened: a process has one DuckDB for a file, with one configuration.
            connection = duckdb.connect(config=limits)
            register_functions(connection)
            connection.execute(f"ATTACH '{path.replace(chr(39), 2 * chr(39))}' AS audit (READ_ONLY)")
            connection.execute("USE audit")
        except duckdb.Error as error:
            raise UserError(f"cannot open {path!r} ({_first_line(error)}); make it anew with 'eidetic measure'") from error
        try:
            if lake.is_local:
                # The lake may be a copy, whose database still names the place of the first one.
                database.place(connection, lake, stored=False)
            connection.execute("SET lock_configuration = true")
            found = _interruptibly(connection, lambda: connection.execute(sql))
            yield [column[0] for column in found.description or []], _rows(connection, found)
        except duckdb.OutOfMemoryException as error:
            raise UserError(
                f"the query needs more than --memory {memory} (MiB) allows ({_first_line(error)}); ask for less, or allow more"
            ) from error
        except duckdb.Error as error:
            raise UserError(f"DuckDB refuses the query: {error}") from error
        except KeyboardInterrupt:
            # What DuckDB is at may not end for minutes, and would be waited for: the process ends without it.
            raise
        except BaseException:
            connection.close()
            raise
        else:
            connection.close()


def answer(lake: Lake, sql: str, memory: int = QueryOptions.memory) -> tuple[list[str], list[tuple[Any, ...]]]:
    """(names of the columns, all rows). UserError as ``asked``, and where the rows take more than ``memory`` MiB."""
    with asked(lake, sql, memory) as (names, rows):
        found: list[tuple[Any, ...]] = []
        size = 0
        for row in rows:
            size += sum(BYTES_OF_A_CELL + (len(value) if isinstance(value, str | bytes) else 0) for value in row)
            if size > memory << 20:
                raise UserError(
                    f"the answer takes more than --memory {memory} (MiB) allows after {len(found):,} rows; ask for fewer with "
                    "LIMIT, or take them with --format csv, or with COPY (SELECT …) TO 'a file'"
                )
            found.append(row)
        return names, found


def check_question(lake: Lake, sql: str) -> None:
    """UserError unless this is one statement that reads: a SELECT (or EXPLAIN of one), or a COPY to a file outside the lake."""
    import duckdb

    try:
        sql.encode()
    except UnicodeEncodeError as error:  # the shell gave bytes of another encoding
        raise UserError(f"the query {sql!a} is not UTF-8; give it in that encoding") from error
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(f"DuckDB refuses the query: {error}") from error
    if not statements:
        raise UserError(f"there is no query; {ADVICE}")
    if len(statements) > 1:
        raise UserError(f"these are {len(statements)} statements, expected one; {ADVICE}")
    kinds = duckdb.StatementType
    # MULTI is PIVOT, which DuckDB takes in two steps.
    if statements[0].type not in (kinds.SELECT, kinds.EXPLAIN, kinds.COPY, kinds.MULTI):
        raise UserError(f"this is a statement of the kind {statements[0].type.name}, and a query reads; {ADVICE}")
    words = _words(sql)
    first = words[0].lower()
    if first not in READS:
        raise UserError(f"a query begins with one of {', '.join(READS)}, this one with {words[0]!r}; {ADVICE}")
    # DuckDB takes COPY inside WITH and after EXPLAIN as well.
    if any("copy" in re.split(r"\W+", word.lower()) for word in words[1:] if word[0] not in "'\""):
        raise UserError('COPY stands at the beginning of a query or nowhere; a column of that name is "copy"')
    if first == "copy":
        _check_target(lake, words)


READS = (
    "select",
    "with",
    "from",
    "values",
    "table",
    "describe",
    "desc",
    "summarize",
    "show",
    "explain",
    "pivot",
    "unpivot",
    "(",
    "copy",
)
"""What a query may begin with."""


def _words(sql: str) -> list[str]:
    """SQL cut as DuckDB cuts it, without comments; each word with its quotes."""
    import duckdb

    whole = sql.encode("utf-8", "replace")
    cuts = [(place, str(kind)) for place, kind in duckdb.tokenize(sql)]
    ends = [place for place, _ in cuts[1:]] + [len(whole)]
    # A letter that DuckDB takes for a blank may stand at the end of a word, or before it.
    words = [whole[start:end].decode().strip() for (start, kind), end in zip(cuts, ends, strict=True) if "comment" not in kind]
    return [word for word in words if word]


def _check_target(lake: Lake, words: list[str]) -> None:
    """UserError unless a COPY goes to a file (or folder) that isn't the lake's, nor around it."""
    expected = "expected COPY (SELECT …) TO 'a file outside the lake'"
    depth, target = 0, None
    for place, word in enumerate(words):
        depth += (word == "(") - (word == ")")
        if word.lower() == "to" and depth == 0:
            target = place + 1
            break
    if target is None or target >= len(words):
        raise UserError(f"this COPY names no target; {expected}")
    text = words[target]
    rest = words[target + 1 :]
    if re.fullmatch(r"'(?:[^']|'')*'", text) is None or (rest and rest[0][0] in "'|"):
        raise UserError(f"the target of this COPY is {text}, and must be one text in single quotes; {expected}")
    path = text[1:-1].replace("''", "'")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path) or "\0" in path:
        raise UserError(f"the target of this COPY is {path!r}, and must be a path of this machine; {expected}")
    leads_out = {"filename_pattern", "file_extension"} & {word.lower().strip("\"'") for word in rest}
    if leads_out:
        raise UserError(f"{leads_out.pop().upper()} can lead out of the folder that a COPY goes to; leave it out")
    if lake.is_local and _touches(os.path.expanduser(path), lake.root):
        raise UserError(f"the target of this COPY, {path!r}, is the lake's own, and a query only reads that; {expected}")


def _touches(path: str, root: str) -> bool:
    """Whether writing to ``path`` could change something in the folder ``root``: below, above, by links of either kind."""
    path, root = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath([path, root]) in (path, root):
        return True
    # The lake under another name, as a mount gives it.
    parent = path
    while (parent := os.path.dirname(parent)) != os.path.dirname(parent):
        if os.path.exists(parent) and os.path.samefile(parent, root):
            return True
    with contextlib.suppress(OSError):
        found = os.stat(path)
        if found.st_nlink > 1 and os.path.isfile(path):
            return any(
                os.path.samestat(found, os.lstat(os.path.join(folder, name)))
                for folder, _, names in os.walk(root)
                for name in names
            )
    return False


def _rows(connection: duckdb.DuckDBPyConnection, found: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while some := _interruptibly(connection, lambda: found.fetchmany(ROWS_AT_ONCE)):
        yield from some


def _interruptibly(connection: duckdb.DuckDBPyConnection, work: Callable[[], Any]) -> Any:
    """``work`` in a thread of its own, so that Ctrl-C is heard at once: DuckDB itself looks for it between its steps alone."""
    done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # travels to the thread that waits
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = done.get()
    except KeyboardInterrupt:
        connection.interrupt()
        raise
    if error is not None:
        raise error
    return value


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


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


def as_json(names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """A list of objects, in pieces. What JSON has no type for is text; a number that is none (NaN, infinity) is null.

    An object has a name once: of columns of one name, as joins give them, the second is name_2, the third name_3.
    """
    unique: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        unique.append(next(one for one in itertools.chain([name], numbered) if one not in unique))
    before = "[\n"
    for row in rows:
        record = {name: _json_value(value) for name, value in zip(unique, row, strict=True)}
        text = textwrap.indent(json.dumps(record, default=str, indent=2, ensure_ascii=False), "  ", lambda _: True)
        # JSON itself escapes the control characters under U+0020 alone; others, too, can rewrite a terminal.
        yield before + "".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _json_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_json_value(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _json_value(one) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "query", __doc__, (CommonOptions, QueryOptions), positional=("sql",))
    with bounded(parsed[QueryOptions].memory):
        show(Lake(parsed[CommonOptions].lake), parsed[QueryOptions])


def show(lake: Lake, options: QueryOptions) -> None:
    """Prints the answer as it was asked for."""
    if options.format == "table":
        print(as_table(*answer(lake, options.sql, options.memory)))
        return
    with asked(lake, options.sql, options.memory) as (names, rows):
        if options.format == "json":
            sys.stdout.writelines(as_json(names, rows))
            return
        # A file gets the data as they are; a terminal must not be rewritten by them.
        terminal = sys.stdout.isatty()
        writer = csv.writer(sys.stdout if terminal else unguarded(sys.stdout))
        for row in itertools.chain([names], rows):
            writer.writerow([printable(value) if terminal and isinstance(value, str) else value for value in row])


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
