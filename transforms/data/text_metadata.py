"""Metadata as text: CSV, TSV and JSON Lines, compressed by gzip or not; where their rows begin, and what they say.

A row of CSV may hold line feeds between double quotes, so from the middle of a file nobody can tell where one begins. When a
file is looked at it is read through once, which counts its rows and finds such places; then each range between two of them is
read by itself, wherever there is a worker. What is compressed can only be read from its beginning, and is one range.

Double quotes are those of RFC 4180: around a whole text, doubled inside. A line whose quotes are no such ones is a row by
itself, in which they are letters like others: of a list that was written without quoting nothing is swallowed.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import functools
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple, cast

import numpy as np

from transforms.data.survey import FileRange, in_ranges
from transforms.errors import Damaged, UserError
from transforms.store.files import open_file
from transforms.store.listings import decode_text, marked, parse_json, sayable, separated_by
from transforms.store.texts import printable

SEPARATED = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")

MOST_BYTES = 1 << 20
"""Of a row; nothing that is said of a picture is longer."""

BLOCK_BYTES = 1 << 20
"""Of a file that are read at once; its columns are known by the first so many."""


class TextRow(NamedTuple):
    """A row of metadata.

    Attributes:
        values: of the columns that were asked for: a text; None where there is none; a list or an object, where JSON has one.
        refused: why it can't be read; None where it can.
    """

    values: list[Any]
    refused: str | None = None


class TextContent(NamedTuple):
    """What there is in a file.

    Attributes:
        rows: in it.
        ranges: in which it can be read.
        recognised_by: its name, size in bytes, and hash.
    """

    rows: int
    ranges: tuple[FileRange, ...]
    recognised_by: list[str | int]


@dataclasses.dataclass(frozen=True)
class TextMetadata:
    """A file of metadata as text.

    Attributes:
        path: of the file.
        names: of its columns: of the header, or all that the objects in the first ``BLOCK_BYTES`` have.
        sign: what stands between the columns; None for JSON Lines.
        header: bytes of text, behind a byte order mark, before the first row.
    """

    path: str
    names: list[str]
    sign: str | None
    header: int

    @classmethod
    def open(cls, path: str, wanted: Sequence[str], expected: str) -> TextMetadata:
        """A file by its name's ending. UserError where its columns can't be told.

        Args:
            path: of the file.
            wanted: names of the url's column: what stands between the columns is the sign that gives one.
            expected: what the error says.
        """
        with _opened(path) as text:
            head = text.read(BLOCK_BYTES)
        if len(head) == BLOCK_BYTES and b"\n" not in head:
            raise _too_long(path)
        final = len(head) < BLOCK_BYTES
        if not final:  # or a letter may be cut at its end
            head = head[: head.rfind(b"\n") + 1]
        if path.lower().endswith(JSON_LINES):
            return cls(path, _keys(path, head, expected), None, 0)
        sign, names = separated_by(decode_text(head), path, wanted, expected)
        ends, _ = _ends(head, sign, final)
        return cls(path, names, sign, int(ends[0]) if len(ends) else len(head))

    def look(self) -> TextContent:
        """Reads the file through once. Damaged where it is cut; UserError where a line is no row of any metadata."""
        digest = hashlib.sha256()
        with _opened(self.path, digest) as text:
            text.skip(self.header)
            ranges = in_ranges(self._pieces(text), self.header)
        with open_file(self.path) as file:
            size = file.seek(0, os.SEEK_END)
        return TextContent(sum(one.rows for one in ranges), ranges, [os.path.basename(self.path), size, digest.hexdigest()])

    def _pieces(self, text: _Text) -> Iterator[tuple[int, int, int]]:
        end = self.header
        for content, starts, _ in self._blocks(text, None):
            end += len(content)
            # Of no size where nobody can begin to read.
            yield end, len(content) if text.splits else 0, len(starts)

    def rows(self, columns: Sequence[str], of: FileRange | None = None) -> Iterator[list[TextRow]]:
        """The rows in their order, some at a time.

        Args:
            columns: which of ``names`` are wanted.
            of: a range that ``look`` gave; None for all.
        """
        places = [self.names.index(name) for name in columns]
        with _opened(self.path) as text:
            text.skip(self.header if of is None else of.start)
            for content, starts, ends in self._blocks(text, None if of is None else of.end - of.start):
                lines = [_decoded(content[start:end]) for start, end in zip(starts, ends, strict=True)]
                if self.sign is None:
                    yield [self._object(line, columns) for line in lines]
                else:
                    yield [self._separated(values, places) for values in self._values(lines)]

    def _blocks(self, text: _Text, size: int | None) -> Iterator[tuple[bytes, list[int], list[int]]]:
        """(whole rows, where in them each begins, where each ends) of what follows, or of the next ``size`` bytes of it."""
        ahead = b""
        final = False
        while not final:
            wanted = BLOCK_BYTES if size is None else min(BLOCK_BYTES, size)
            read = text.read(wanted)
            if size is not None:
                size -= len(read)
            final = len(read) < wanted or size == 0
            ahead += read
            ends, rows = _ends(ahead, self.sign, final)
            whole = int(ends[-1]) if len(ends) else 0
            if len(ahead) - whole > 2 * MOST_BYTES:
                raise _too_long(self.path)
            if whole:
                starts = np.concatenate(([0], ends[:-1]))
                yield ahead[:whole], starts[rows].tolist(), ends[rows].tolist()
            ahead = ahead[whole:]

    def _values(self, lines: list[str]) -> Iterator[list[str] | str]:
        """Of each line its values, or why it has none."""
        sign = cast(str, self.sign)
        with contextlib.suppress(csv.Error):
            # All at once, which is faster: with a line less where one takes another for its own.
            if len(values := list(csv.reader(lines, delimiter=sign, strict=True))) == len(lines):
                yield from values
                return
        for line in lines:
            try:
                yield next(csv.reader((line,), delimiter=sign, strict=True))
            except csv.Error as error:
                # Quotes that are none of RFC 4180's are letters, where the row is whole with them.
                split = line.rstrip("\r\n").split(sign)
                whole = len(split) == len(self.names) and len(line) <= csv.field_size_limit()
                yield split if whole else f"the row can't be read as columns ({error})"

    def _separated(self, values: list[str] | str, places: list[int]) -> TextRow:
        if isinstance(values, str):
            return TextRow([None] * len(places), values)
        if len(values) > len(self.names):
            told = (
                f"{len(values)} values for {len(self.names)} columns; put texts that hold {self.sign!r} between double quotes"
            )
            return TextRow([None] * len(places), told)
        # In CSV null and the empty text are the same.
        if len(values) == len(self.names):
            return TextRow([values[place] or None for place in places])
        return TextRow([values[place] or None if place < len(values) else None for place in places])

    def _object(self, line: str, names: Sequence[str]) -> TextRow:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            return TextRow([None] * len(names), f"the row is not JSON ({printable(str(error))})")
        if not isinstance(row, dict):
            return TextRow([None] * len(names), f"the row is a JSON {type(row).__name__}, expected an object")
        return TextRow([_said(row.get(name)) for name in names])


def _said(value: Any) -> Any:
    """A value of JSON as text, unless it is a list or an object."""
    if isinstance(value, str):
        return sayable(value)
    return value if value is None or isinstance(value, list | dict) else json.dumps(value)


def _too_long(path: str) -> UserError:
    return UserError(f"{path!r} has a line of over {MOST_BYTES:,} bytes, expected a row of metadata; mend it")


def _keys(path: str, head: bytes, expected: str) -> list[str]:
    """All keys of the objects in the first lines."""
    names: dict[str, None] = {}
    lines = [line for line in head.split(b"\n") if line.strip()]
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(_decoded(line))
            names.update(dict.fromkeys(row) if isinstance(row, dict) else {})
    if lines and not names:
        row = parse_json(_decoded(lines[0]), f"{path!r}, first row", expected)
        raise UserError(f"{path!r}, first row, is a JSON {type(row).__name__}, expected objects; {expected}")
    return list(names)


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return decode_text(line)


# -- where rows end ----------------------------------------------------------------------------------------------------


def _ends(content: bytes, sign: str | None, final: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where the rows end of bytes that begin with one.

    Args:
        content: the bytes.
        sign: between columns; None for JSON Lines, where every line is a row.
        final: whether nothing follows; else what may go on is left.

    Returns:
        of each row, and each blank line, the place behind it, and whether it is a row.
    """
    closed = content + b"\n" if final and content and not content.endswith(b"\n") else content
    letters = np.frombuffer(closed, np.uint8)
    ends = np.flatnonzero(letters == _LINE_FEED) + 1
    if sign is not None and b'"' in closed:
        quoted = _ends_of_quoted(letters, ends, ord(sign), final)
        ends = _ends_by_line(closed, sign, final) if quoted is None else quoted
    starts = np.concatenate(([0], ends[:-1]))[: len(ends)]
    if sign is None:
        rows = np.array([bool(closed[start:end].strip()) for start, end in zip(starts, ends, strict=True)], bool)
    else:
        empty = starts + (letters[starts] == _RETURN) == ends - 1
        rows = ~(empty & (letters[ends - 1] == _LINE_FEED))
    return np.minimum(ends, len(content)), rows


_LINE_FEED, _RETURN, _QUOTE = b'\n\r"'


def _ends_of_quoted(letters: np.ndarray, lines: np.ndarray, sign: int, final: bool) -> np.ndarray | None:
    """Those ends of lines that no double quotes stand around; None where not all quotes before the last are RFC 4180's."""
    quotes = np.flatnonzero(letters == _QUOTE)
    ends = lines[np.searchsorted(quotes, lines) % 2 == 0]
    whole = int(ends[-1]) if len(ends) else 0
    # Of quotes that are open for so long, or at the end, nobody knows whether they are meant.
    if len(letters) - whole > (0 if final else MOST_BYTES) or np.diff(ends, prepend=0).max(initial=0) > MOST_BYTES:
        return None
    opening, closing = quotes[quotes < whole].reshape(-1, 2).T
    before = np.where(opening > 0, letters[opening - 1], _LINE_FEED)
    behind = letters[closing + 1]
    line_ends = (behind == _RETURN) & (letters[np.minimum(closing + 2, len(letters) - 1)] == _LINE_FEED)
    signs = (sign, _LINE_FEED, _QUOTE)
    return ends if np.isin(before, signs).all() and (np.isin(behind, signs) | line_ends).all() else None


def _ends_by_line(content: bytes, sign: str, final: bool) -> np.ndarray:
    """The same, row by row: a line whose quotes are none of RFC 4180's, or aren't closed, is a row by itself."""
    whole, begun = _patterns(sign)
    ends = []
    row = 0
    while row < len(content):
        found = whole.match(content, row)
        if found is not None and found.end() - row <= MOST_BYTES:
            row = found.end()
        else:
            goes_on = not final and len(content) - row <= MOST_BYTES and begun.match(content, row)
            row = 0 if goes_on else content.find(b"\n", row) + 1
            if not row:
                break
        ends.append(row)
    return np.array(ends, np.int64)


@functools.cache
def _patterns(sign: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """What a whole row is, with the end of its line, and what the beginning of one may be."""
    between = re.escape(sign)
    quotes = '"[^"]*+(?:""[^"]*+)*+'
    plain = f'[^"\\n{between}][^\\n{between}]*+'
    value = f'(?:{quotes}"(?=\\r?\\n|{between})|{plain})?+'
    whole = f"{value}(?:{between}{value})*+\\r?\\n"
    begun = f'(?:{value}{between})*+(?:{quotes}"?+\\r?|{plain})?+\\Z'
    return re.compile(whole.encode()), re.compile(begun.encode())


# -- bytes of text -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: str, digest: Any = None) -> Iterator[_Text]:
    """The text of a file. ``digest`` is updated with all bytes of the file that are read, in order."""
    try:
        with open_file(path) as file:
            yield _Text(path, file, digest)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Damaged(path, f"it can't be unpacked ({error})", "get it anew, or remove it") from error


class _Text:
    """The text of a file as UTF-8, from its beginning: unpacked, and without a byte order mark.

    Args:
        path: of the file.
        file: it, open.
        digest: of the file's bytes; None where nobody asks.
    """

    def __init__(self, path: str, file: IO[bytes], digest: Any = None):
        self._file, self._digest = file, digest
        packed = path.lower().endswith(".gz")
        self._source: Any = gzip.GzipFile(fileobj=cast(Any, _Read(self._bytes))) if packed else _Read(self._bytes)
        self._ahead = self._source.read(4)
        self._mark, encoding = marked(self._ahead)
        self._ahead = self._ahead[self._mark :]
        self._decoder = None
        if encoding is not None and encoding != "utf-8":
            self._decoder = codecs.getincrementaldecoder(encoding)("replace")
            self._ahead = self._decoder.decode(self._ahead).encode()
        self.splits = not packed and self._decoder is None

    def _bytes(self, size: int = -1) -> bytes:
        read = self._file.read(size)
        if self._digest is not None:
            self._digest.update(read)
        return read

    def skip(self, size: int) -> None:
        """Leaves out some bytes of text."""
        if self.splits and self._digest is None:
            self._file.seek(self._mark + size)
            self._ahead = b""
        else:
            self.read(size)

    def read(self, size: int) -> bytes:
        """So many bytes of text; fewer at its end."""
        pieces, held = [self._ahead], len(self._ahead)
        while held < size and (piece := self._source.read(size - held)):
            if self._decoder is not None:
                piece = self._decoder.decode(piece).encode()
            pieces.append(piece)
            held += len(piece)
        read = b"".join(pieces)
        self._ahead = read[size:]
        return read[:size]


class _Read:
    """What has a method ``read`` and no more."""

    def __init__(self, read: Any):
        self.read = read
