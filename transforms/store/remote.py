"""Lets DuckDB read a lake behind a URL where it lies; it isn't copied into memory first."""

from __future__ import annotations

import datetime
import functools
from typing import IO, Any

import fsspec

from transforms.store.files import File, files_in, is_url, open_file, stat

PROTOCOL = "eidetic"


def readable(path: str) -> str:
    """A path as DuckDB is to be told it: a URL gets the scheme that ``StoredFiles`` answers to."""
    return f"{PROTOCOL}://{path}" if is_url(path) else path


class StoredFiles(fsspec.AbstractFileSystem):
    """What lies in stores, whichever they are, under one scheme: for reading alone, while nothing is written, or after
    ``look_again``."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        # DuckDB asks for the size and for the time of every file: one request for all of a folder.
        self._folder = functools.cache(files_in)

    def look_again(self) -> None:
        """Files may have been written since."""
        self._folder.cache_clear()

    def _stat(self, path: str) -> File:
        path = self._strip_protocol(path)
        return self._folder(path.rpartition("/")[0]).get(path) or stat(path)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix(f"{PROTOCOL}://")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        found = self._stat(path)
        return {"name": path, "size": found.size, "type": "file"}

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._stat(path).modified, datetime.UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> IO[bytes]:
        return open_file(self._strip_protocol(path), self._stat(path).size)
