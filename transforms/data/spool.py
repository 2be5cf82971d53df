"""Pictures that came with their rows, one after the other in a file of this run's, so that any of them is read alone.

Inside Parquet a picture lies in pages that hold many others, and a bucket's pictures lie in every file: to fetch them from
there would read all files once for each bucket. A spool holds of each picture how long it is, in 8 bytes, and then its bytes:
so whoever looks for a forgotten picture finds its way through what a killed run left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import IO, Any

import pyarrow as pa

from transforms.data.download import DownloadLimits, FetchError, TooLarge
from transforms.store.files import open_file, replacing
from transforms.store.lake import Lake

PICTURE = "picture"
"""The column, beside those of ``ROW``, in which a source yields encoded pictures."""

REFUSED = "refused"
"""The column, beside ``PICTURE``, that says of a row without one why there is none; null where there is one."""

PLACE = ("spool", "offset", "length")
"""The columns that stand in a picture's place when it is in a spool: the file, and where in it; null where there is none."""

COME_WITH_ROWS = "pictures inside files come with their rows; --no_carry_over reads all of them again"
"""Why a picture that wasn't read isn't asked for again."""

PICTURE_BYTES = 64 << 20
"""Of pictures that a source holds at once, about; one alone may be larger, and so may the page of Parquet that it is in."""

_HEAD = 8
"""Bytes before a picture that say how many it has."""


def spool_path(lake: Lake, snapshot: str, name: str) -> str:
    """Where a run of ``ingest`` keeps the pictures of one partition."""
    return lake.work("ingest", snapshot, "pictures", name)


def is_spool(inside: str) -> bool:
    """Whether a file of a lake is a spool, or was to become one, by its path inside."""
    words = inside.split("/")
    return len(words) == 5 and words[:2] == ["work", "ingest"] and words[3] == "pictures"


class Spool:
    """A file of pictures that is being written. It is made when the first table with pictures comes, and is there at the end.

    Args:
        path: of the file.
    """

    def __init__(self, path: str):
        self.path = path
        self._open = contextlib.ExitStack()
        self._file: IO[bytes] | None = None
        self._end = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.__exit__(kind, error, trace)

    def keep(self, table: pa.Table) -> pa.Table:
        """``table`` with ``PLACE`` instead of its pictures, which are written; one without pictures as it is."""
        if PICTURE not in table.column_names:
            return table
        if self._file is None:
            self._file = self._open.enter_context(replacing(self.path))
        offsets: list[int | None] = []
        lengths: list[int | None] = []
        for picture in table[PICTURE]:
            buffer = picture.as_buffer()  # no copy: a picture may be large
            offsets.append(None if buffer is None else self._end + _HEAD)
            lengths.append(None if buffer is None else buffer.size)
            if buffer is not None:
                self._file.write(buffer.size.to_bytes(_HEAD, "little"))
                self._file.write(memoryview(buffer))
                self._end += _HEAD + buffer.size
        spools = [None if one is None else self.path for one in offsets]
        places = (pa.array(spools, pa.string()), pa.array(offsets, pa.int64()), pa.array(lengths, pa.int64()))
        table = table.drop_columns(PICTURE)
        for name, values in zip(PLACE, places, strict=True):
            table = table.append_column(name, values)
        return table


def pictures_in(path: str) -> Iterator[tuple[int, bytes]]:
    """(byte at which it begins, picture) of all that are whole in a spool, or in what a killed run left of one."""
    place = 0
    with open_file(path) as file:
        while len(head := file.read(_HEAD)) == _HEAD:
            length = int.from_bytes(head, "little")
            picture = file.read(length)
            if len(picture) < length:
                return
            yield place + _HEAD, picture
            place += _HEAD + length


def fetching(
    rows: Iterable[dict[str, Any]], otherwise: Callable[[str, DownloadLimits], bytes]
) -> Callable[[str, DownloadLimits], bytes]:
    """What fetches the pictures of ``rows``, by url: from the spool what lies there, and else ``otherwise``.

    FetchError for a row that says itself why it has none.
    """
    came = {row["url"]: row for row in rows if row.get(PLACE[0]) is not None or row.get(REFUSED) is not None}
    if not came:
        return otherwise

    def fetch(url: str, limits: DownloadLimits) -> bytes:
        if url not in came:
            return otherwise(url, limits)
        if came[url].get(PLACE[0]) is None:
            raise FetchError(came[url][REFUSED])
        path, offset, length = (came[url][name] for name in PLACE)
        if length > limits.max_bytes:
            raise TooLarge(limits.max_bytes, length)
        with open_file(path) as file:
            file.seek(offset)
            return file.read(length)

    return fetch
