"""Pictures that came with their rows, one after the other in a file of this run's, so that any of them is read alone.

Inside Parquet a picture lies in pages that hold many others, and a bucket's pictures lie in every file: to fetch them from
there would read all files once for each bucket.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import IO, Any

import pyarrow as pa

from transforms.data.download import DownloadLimits, TooLarge
from transforms.store.files import open_file, replacing

PICTURE = "picture"
"""The column, beside those of ``ROW``, in which a source yields encoded pictures."""

PLACE = ("spool", "offset", "length")
"""The columns that stand in its place when the pictures are in a spool: the file, and where in it; null where there is none."""


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
            offsets.append(None if buffer is None else self._end)
            lengths.append(None if buffer is None else buffer.size)
            if buffer is not None:
                self._file.write(memoryview(buffer))
                self._end += buffer.size
        spools = [None if one is None else self.path for one in offsets]
        places = (pa.array(spools, pa.string()), pa.array(offsets, pa.int64()), pa.array(lengths, pa.int64()))
        table = table.drop_columns(PICTURE)
        for name, values in zip(PLACE, places, strict=True):
            table = table.append_column(name, values)
        return table


def fetching(
    rows: Iterable[dict[str, Any]], otherwise: Callable[[str, DownloadLimits], bytes]
) -> Callable[[str, DownloadLimits], bytes]:
    """What fetches the pictures of ``rows``, by url: from the spool what lies there, and else ``otherwise``."""
    places = {row["url"]: tuple(row[name] for name in PLACE) for row in rows if row.get(PLACE[0]) is not None}
    if not places:
        return otherwise

    def fetch(url: str, limits: DownloadLimits) -> bytes:
        if url not in places:
            return otherwise(url, limits)
        path, offset, length = places[url]
        if length > limits.max_bytes:
            raise TooLarge(limits.max_bytes, length)
        with open_file(path) as file:
            file.seek(offset)
            return file.read(length)

    return fetch
