"""Files by path or URL: written whole or not at all.

A local path is read and written as such; a URL goes through Beam's FileSystems, whichever it knows (gs, s3, hdfs, …). Beam is
imported where a URL is named, so that a command that only asks a local lake starts without it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.errors import UserError

MAX_ROW_GROUP_BYTES = 64 << 20
"""Row groups are kept near this size, so that a reader needs little memory."""

PICTURES_ROW_GROUP_BYTES = 1 << 20
"""And near this one where a column is called image: who reads one picture reads no more than the row group that it lies in."""


def is_url(path: str) -> bool:
    """Whether a path is for Beam's FileSystems, and not of this machine."""
    return "://" in path


def _beam() -> Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def exists(path: str) -> bool:
    return _beam().exists(path) if is_url(path) else os.path.exists(path)


def list_files(folder: str, suffix: str) -> list[str]:
    """The files right inside ``folder`` that end in ``suffix``, sorted; [] where there is no such folder."""
    if is_url(folder):
        return sorted(metadata.path for metadata in _beam().match([f"{folder}/*{suffix}"])[0].metadata_list)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return sorted(os.path.join(folder, one.name) for one in entries if one.name.endswith(suffix) and one.is_file())
    return []


class File(NamedTuple):
    """A file that is there.

    Attributes:
        path: of the file.
        size: bytes.
        modified: seconds since 1970.
    """

    path: str
    size: int
    modified: float


def walk(folder: str) -> list[File]:
    """All files below ``folder``, whatever they are called, sorted; [] where there is no such folder."""
    if is_url(folder):
        matched = _beam().match([f"{folder}/**"])[0].metadata_list
        return sorted(File(one.path, one.size_in_bytes, one.last_updated_in_seconds) for one in matched)
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with contextlib.suppress(FileNotFoundError):  # a writer gave it another name meanwhile
                found.append(stat(path))
    return sorted(found)


def stat(path: str) -> File:
    """One file. FileNotFoundError where there is none."""
    if not is_url(path):
        found = os.stat(path)
        return File(path, found.st_size, found.st_mtime)
    matched = _beam().match([path])[0].metadata_list
    if not matched:
        raise FileNotFoundError(path)
    return File(path, matched[0].size_in_bytes, matched[0].last_updated_in_seconds)


def read_bytes(path: str) -> bytes:
    with open_file(path) as file:
        return file.read()


def open_file(path: str) -> IO[bytes]:
    """A file to read from; seeks."""
    if not is_url(path):
        return open(path, "rb")
    from apache_beam.io.filesystem import CompressionTypes

    return _beam().open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def write_bytes(path: str, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A file to write to, that takes the name ``path`` once it is whole: it's written under another name, then renamed."""
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}" if folder else f".{name}.{uuid.uuid4().hex}"
    if not is_url(path):
        os.makedirs(folder or ".", exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
        return
    from apache_beam.io.filesystem import CompressionTypes

    if not exists(folder):
        try:
            _beam().mkdirs(folder)
        except OSError:
            if not exists(folder):  # another worker may have made it meanwhile
                raise
    with _beam().create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        yield file
    _beam().rename([temporary], [path])


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one of ``replacing`` that never was whole: its writer was killed."""
    return re.fullmatch(r"\..+\.[0-9a-f]{32}", name) is not None


def delete(path: str) -> None:
    """Removes a file or a whole folder; nothing happens where there is none."""
    if exists(path):
        delete_all([path])
    elif is_url(path):
        # An object store has no folders: what is in one is what has a name that begins so.
        delete_all([file.path for file in walk(path)])


def delete_all(paths: Iterable[str]) -> None:
    """Removes files and folders that are there."""
    urls = []
    for path in paths:
        if is_url(path):
            urls.append(path)
        elif os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
    if urls:
        _beam().delete(urls)


def write_parquet(path: str, table: pa.Table, rows: int | None = None) -> None:
    """Writes ``table`` as one Parquet file, whole or not at all; ``rows`` in a row group, by default what is a good size."""
    sink = io.BytesIO()
    bytes_per_row = max(1, table.nbytes // max(1, table.num_rows))
    most = PICTURES_ROW_GROUP_BYTES if "image" in table.column_names else MAX_ROW_GROUP_BYTES
    rows = rows or max(1, min(1 << 20, most // bytes_per_row))
    pq.write_table(table, sink, compression="zstd", row_group_size=rows)
    write_bytes(path, sink.getvalue())


def read_parquet(path: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file, or some of its columns. A file that is not Parquet is a UserError."""
    with open_parquet(path) as file:
        return file.read(columns=columns)


def open_parquet(path: str) -> pq.ParquetFile:
    """A Parquet file, to be read by row group. A file that is not Parquet is a UserError."""
    # Arrow itself reads what it can reach: its threads that read by way of Python may still hold some of it when the
    # interpreter ends, which aborts the process, and its exit code is lost.
    source = open_file(path) if is_url(path) else path
    try:
        return pq.ParquetFile(source)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path!r} is not a Parquet file ({error}); mend or remove it") from error


def read_rows(path: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of one Parquet file as dicts, a batch at a time."""
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield from batch.to_pylist()


def count_rows(path: str) -> int:
    with open_parquet(path) as file:
        return file.metadata.num_rows
