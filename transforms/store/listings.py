"""Texts of strangers: bytes to text, whatever wrote them, and lists of rows in the forms that people keep them in."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from transforms.errors import UserError

PARQUET = (".parquet", ".pq", ".parq")
"""Endings of Parquet files, in small letters."""

# UTF-32 before UTF-16, whose mark its own begins with.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def marked(content: bytes) -> tuple[int, str | None]:
    """How many bytes a byte order mark has with which they begin, and which encoding it says; (0, None) without one."""
    return next(((len(mark), encoding) for mark, encoding in _MARKS if content.startswith(mark)), (0, None))


def decode_text(content: bytes) -> str:
    """Bytes as text: by their byte order mark, which is no part of it, or else as UTF-8, UTF-16 or Windows' cp1252.

    Two that say the same are the same text, however they were stored. What fits nowhere becomes U+FFFD.
    """
    mark, encoding = marked(content)
    if encoding is not None:
        return content[mark:].decode(encoding, "replace")
    # UTF-16 without a mark: every other byte of what is mostly Latin letters is zero, and text in UTF-8 has no zeros.
    zeros = content[0::2].count(0), content[1::2].count(0)
    if len(content) % 2 == 0 and max(zeros) * 5 > len(content) and min(zeros) * 10 < max(zeros):
        return content.decode("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le", "replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("utf-8", "replace")
    # UTF-8 with a damaged place has more letters beyond ASCII that are whole; in cp1252 hardly any looks like one.
    damaged = text.count("\ufffd")
    whole = len(text) - len(text.encode("ascii", "ignore")) - damaged
    return text if whole > damaged else content.decode("cp1252", "replace")


def plain_name(name: str) -> str:
    """A column's name as it is looked for: without blanks and byte order marks around it, in small letters."""
    return name.strip("\ufeff \t\r\n").lower()


def column_named(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """Which of ``names`` is the first of ``wanted``: as it is written, or else by its ``plain_name``; None where none is."""
    plain = {plain_name(name): name for name in reversed(names)}
    for one in wanted:
        if one in names:
            return one
        if plain_name(one) in plain:
            return plain[plain_name(one)]
    return None


def first_of(row: dict[str, Any], wanted: Sequence[str]) -> Any:
    """The first value among the ``wanted`` columns of one row that says something, which is neither null nor blank.

    The row need not have the columns of others. None where no value does.
    """
    plain = {plain_name(name): value for name, value in reversed(row.items())}
    found = (plain.get(plain_name(one)) for one in wanted)
    return next((one for one in found if one is not None and not (isinstance(one, str) and not one.strip())), None)


def refuse_twice(path: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """UserError where a wanted column is there twice: a row could be read by either."""
    for one in wanted:
        name = column_named(names, (one,))
        if name is not None and list(names).count(name) > 1:
            raise UserError(f"{path!r} has columns {list(names)}, among them {name!r} twice; rename one of them")


def parse_json(text: str, place: str, expected: str) -> Any:
    """What JSON says. UserError where it is none, in one line that begins with ``place`` and ends with what was expected."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{place}: {text[:80]!r} is not JSON ({reason}); {expected}") from error


def json_lines(text: str, path: str, expected: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of each line that isn't blank. Lines end with line feeds alone: what else splitlines() takes for an end
    may stand in JSON. UserError for a line that is none."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, f"{path!r}, line {number}", expected)


def separated_rows(
    text: str, path: str, wanted: Sequence[str], expected: str, once: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of text with a header, separated by tabs, commas or semicolons: by whichever has a ``wanted`` column.

    UserError where none has, where one of these or of ``once`` is there twice, for a row with more values than the header,
    whose text was cut at a comma of its own, and for a double quote that is never closed: it would swallow all that follows.
    """
    sign, _ = separated_by(text, path, wanted, expected)
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
        names = next(rows)
        refuse_twice(path, names, (*wanted, *once))
        for values in rows:
            if len(values) > len(names):
                raise UserError(
                    f"{path!r}, line {rows.line_num}: {len(values)} values for {len(names)} columns; put texts that hold "
                    f"{sign!r} between double quotes"
                )
            if values:
                yield rows.line_num, dict(zip(names, values, strict=False))
    except csv.Error as error:
        raise UserError(f"{path!r} cannot be read as columns ({error}); {expected}") from error


def separated_by(text: str, path: str, wanted: Sequence[str], expected: str) -> tuple[str, list[str]]:
    """The sign between the columns of text that begins with a header, and the header: that which gives a ``wanted`` column.

    UserError where none does.
    """
    signs = ("\t", ",", ";") if path.lower().removesuffix(".gz").endswith(".tsv") else (",", ";", "\t")
    try:
        headers = {sign: next(csv.reader(io.StringIO(text, newline=""), delimiter=sign), []) for sign in signs}
    except csv.Error as error:
        raise UserError(f"{path!r} cannot be read as columns ({error}); {expected}") from error
    sign = next((sign for sign in signs if column_named(headers[sign], wanted) is not None), None)
    if sign is None:
        raise UserError(f"{path!r} has columns {headers[signs[0]]}; {expected}")
    return sign, headers[sign]


def readable_text(values: pa.Array) -> pa.Array:
    """``values`` with U+FFFD for what is not UTF-8: Parquet does not promise that text is."""
    try:
        values.validate(full=True)
        return values
    except pa.ArrowInvalid:
        raw = values.cast(pa.large_binary() if pa.types.is_large_string(values.type) else pa.binary()).to_pylist()
        return pa.array([None if one is None else one.decode("utf-8", "replace") for one in raw], pa.string())


def readable_texts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """``batch`` with its columns of text as ``readable_text`` makes them."""
    kinds = (pa.types.is_string, pa.types.is_large_string)
    columns = [readable_text(one) if any(kind(one.type) for kind in kinds) else one for one in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def sayable(text: str) -> str:
    """``text`` without lone surrogates, which JSON and names of files can hold and no table can."""
    return text.encode("utf-8", "replace").decode("utf-8")
