"""Files by path or URL: written whole or not at all, and once they are written they stay.

A local path is read and written as such; a URL goes through fsspec's file systems (gcsfs for gs, s3fs for s3), which find
credentials and endpoints where the cloud's own programs do, in the environment. They are imported where a URL is named, so that
a command that only asks a local lake starts without them. An object of a store appears whole when it was sent, or not at all.

A file of this machine is written under another name, synced, renamed, and then its folder is synced; what is removed is gone
once its folder is synced. So a power cut leaves the old file or the new one, and everything that was written before it. Work
files are synced like all others: a step that finds one takes it for whole, and telling a damaged one would need a digest for
each. Only its owner may read what is made here (files 0600, folders 0700, whatever the umask says): these are other people's
pictures.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import os
import re
import shutil
import tempfile
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.errors import MEND, Damaged, UserError, fault_of_the_machine
from transforms.store.texts import raw_name

MAX_ROW_GROUP_BYTES = 64 << 20
"""Row groups are kept near this size, so that a reader needs little memory."""

PICTURES_ROW_GROUP_BYTES = 1 << 20
"""And near this one where a column is called image: who reads one picture reads no more than the row group that it lies in."""


def is_url(path: str) -> bool:
    """Whether a path is for a store, and not of this machine."""
    return "://" in path


def _store(url: str) -> Any:
    """fsspec's file system for a URL. It keeps one a thread; nothing that it was told is kept, since others write as well."""
    import fsspec

    # gcsfs would ask about each bucket's kind with credentials that an emulator doesn't have, and say so each time.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    return fsspec.filesystem(url.partition("://")[0], use_listings_cache=False)


def exists(path: str) -> bool:
    return _store(path).exists(path) if is_url(path) else os.path.exists(path)


def name_here(folder: str, name: str) -> str:
    """What a file in a local folder is called, whose name came as text: as it is, or as the machine that made it wrote it.

    Names are bytes, and a list of them was often written elsewhere: in the other form of Unicode, with bytes of cp1252, or with
    escapes for bytes that are no text (``texts.written_name``). ``name`` itself where there is none.
    """
    if os.path.lexists(os.path.join(folder, name)) or (name.isascii() and "\\" not in name):
        return name
    forms = [raw_name(name), *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    with contextlib.suppress(UnicodeEncodeError):
        forms.append(name.encode("cp1252").decode("utf-8", "surrogateescape"))
    return next((one for one in forms if os.path.lexists(os.path.join(folder, one))), name)


def list_files(folder: str, suffix: str) -> list[str]:
    """The files right inside ``folder`` that end in ``suffix``, sorted; [] where there is no such folder."""
    if is_url(folder):
        return [path for path in files_in(folder) if path.endswith(suffix)]
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


def files_in(folder: str) -> dict[str, File]:
    """Path → file, of those right inside ``folder``, sorted; {} where there is no such folder. Behind a URL one request."""
    found = []
    if is_url(folder):
        store = _store(folder)
        with contextlib.suppress(FileNotFoundError):
            # Not by ``find`` with a depth, to which a folder that may not be looked into is an empty one.
            there = [one for one in store.ls(folder, detail=True) if one["type"] == "file"]
            found = [_object(store.unstrip_protocol(one["name"]), one) for one in there]
        # The folder itself may be an object as well.
        found = [one for one in found if one.path.rpartition("/")[0] == folder.rstrip("/")]
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for one in entries:
                with contextlib.suppress(FileNotFoundError):  # a writer gave it another name meanwhile
                    if one.is_file():
                        found.append(stat(os.path.join(folder, one.name)))
    return {one.path: one for one in sorted(found)}


def walk(folder: str) -> list[File]:
    """All files below ``folder``, whatever they are called, sorted; [] where there is no such folder.

    Raises:
        OSError: if a folder can't be read: what lies there would pass for not there.
    """
    if is_url(folder):
        return _listed(folder)
    found = []
    for parent, _, names in os.walk(folder, onerror=_unless_gone):
        for name in names:
            path = os.path.join(parent, name)
            with contextlib.suppress(FileNotFoundError):  # a writer gave it another name meanwhile
                found.append(stat(path))
    return sorted(found)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def stat(path: str) -> File:
    """One file. FileNotFoundError where there is none."""
    if not is_url(path):
        found = os.stat(path)
        return File(path, found.st_size, found.st_mtime)
    found = _store(path).info(path)
    if found["type"] != "file":
        raise FileNotFoundError(path)
    return _object(path, found)


def _listed(folder: str) -> list[File]:
    """The objects whose names begin with this folder's, sorted."""
    store = _store(folder)
    found = store.find(folder, detail=True)
    return sorted(_object(store.unstrip_protocol(name), one) for name, one in found.items() if one["type"] == "file")


def _object(path: str, found: dict[str, Any]) -> File:
    # What each store calls the time: S3's, Google's, and fsspec's own in memory.
    changed = next(
        (found[name] for name in ("LastModified", "mtime", "updated", "last_modified", "created") if found.get(name)), 0
    )
    if isinstance(changed, str):
        changed = datetime.datetime.fromisoformat(changed)
    return File(path, found["size"], changed.timestamp() if isinstance(changed, datetime.datetime) else float(changed))


def matching(pattern: str) -> list[str]:
    """The files that a URL with ``*``, ``?`` or ``[…]`` stands for, sorted."""
    store = _store(pattern)
    return sorted(
        store.unstrip_protocol(name) for name, one in store.glob(pattern, detail=True).items() if one["type"] == "file"
    )


def read_bytes(path: str) -> bytes:
    if is_url(path):
        # s3fs would first ask how large it is, to have a large one in pieces.
        return _store(path).cat_file(path, **({"max_concurrency": 1} if path.startswith("s3://") else {}))
    with open_file(path) as file:
        return file.read()


def read_if_there(path: str) -> bytes | None:
    """What a file holds, or None where there is none. Behind a URL one request."""
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def open_file(path: str, size: int | None = None) -> IO[bytes]:
    """A file to read from; seeks. With its ``size``, where that is known, nobody need ask a store for it."""
    # gcsfs of itself reads ahead in tasks, and complains of those that nobody waited for.
    return _store(path).open(path, "rb", cache_type="readahead", size=size) if is_url(path) else open(path, "rb")


def write_bytes(path: str, content: bytes) -> None:
    """Writes a file whole or not at all."""
    if is_url(path):
        _store(path).pipe_file(path, content)
        return
    with replacing(path) as file:
        file.write(content)


def create(path: str, content: bytes) -> bool:
    """Writes a file, whole or not at all, where there is none of that name: whether it did. Of several at once one does, where
    no two write the same bytes."""
    if is_url(path):
        try:
            _store(path).pipe_file(path, content, mode="create")
        except FileExistsError:
            # A store's answer that is lost is asked for again, and then it's our own file that is there.
            return read_bytes(path) == content
        return True
    make_folder(os.path.dirname(path) or ".")
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb", opener=_private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a new name, is refused where there is a file.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
    sync_folder(os.path.dirname(path))
    return True


def move(source: str, path: str) -> None:
    """Gives a file another name: of the same disk here, or of the same store. FileNotFoundError where there is none."""
    if is_url(path):
        # The old name goes last: whoever finds no file there finds it under the new one.
        _store(path).copy(source, path)
        _store(path).rm_file(source)
        return
    make_folder(os.path.dirname(path) or ".")
    os.replace(source, path)
    sync_folder(os.path.dirname(path))
    with contextlib.suppress(FileNotFoundError):
        sync_folder(os.path.dirname(source))


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def make_folder(folder: str) -> None:
    """Makes a folder of this machine, and those above it, where they aren't there; they outlast a power cut."""
    folder = os.path.abspath(folder)
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for one in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another worker may have made it meanwhile
            os.mkdir(one, 0o700)
        sync_folder(os.path.dirname(one))


def sync_folder(folder: str) -> None:
    """Has the names in a folder of this machine outlast a power cut."""
    descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(temporary: str, path: str) -> None:
    """Gives a file of this machine, whole and closed, the name ``path``: it outlasts a power cut, or what had the name."""
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path))


def temporary_name(path: str) -> str:
    """A name beside ``path`` for what is to take its place: ``is_temporary`` knows it."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{uuid.uuid4().hex}" if folder else f".{name}.{uuid.uuid4().hex}"


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A file to write to, that takes the name ``path`` once it is whole: it's written under another name, then renamed. For
    a store it's written on this machine (TMPDIR), then sent."""
    folder, temporary = path.rpartition("/")[0], temporary_name(path)
    if not is_url(path):
        make_folder(folder or ".")
        try:
            with open(temporary, "wb", opener=_private) as file:
                yield file
            put_in_place(temporary, path)
        except Exception:
            # A killed writer leaves it; one that fails (the disk is full) takes it away.
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise
        return
    with tempfile.NamedTemporaryFile() as file:
        yield cast(IO[bytes], file)
        file.flush()
        _store(path).put_file(file.name, path)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one of ``replacing`` that never was whole: its writer was killed."""
    return re.fullmatch(r"\..+\.[0-9a-f]{32}(\.wal)?", name) is not None


def delete(path: str) -> None:
    """Removes a file or a whole folder; nothing happens where there is none."""
    if is_url(path):
        # An object store has no folders: what is in one is what has a name that begins so.
        delete_all([file.path for file in walk(path)])
    elif exists(path):
        delete_all([path])


def delete_all(paths: Iterable[str]) -> None:
    """Removes files and folders that are there, in this order; they stay away after a power cut."""
    urls = []
    folders: dict[str, None] = {}
    for path in paths:
        if is_url(path):
            urls.append(path)
            continue
        folder = os.path.dirname(path)
        if folder not in folders:
            # What is to go before this is gone for good: whoever orders by folders can rely on it.
            _sync_all(folders)
            folders = {folder: None}
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
    _sync_all(folders)
    if urls:
        _store(urls[0]).rm(urls)


def _sync_all(folders: Iterable[str]) -> None:
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            sync_folder(folder)


BODY = b"eidetic.body"
"""Key of a Parquet file's metadata: SHA-256 of all that stands before the footer."""

UNREADABLE = (pa.ArrowException, ValueError, OSError)
"""What pyarrow raises over a damaged file: one bit makes a name no text, or names an encoding that there isn't."""

_MAGIC = b"PAR1"
"""A Parquet file begins and ends with it."""

_TAIL = 8
"""Bytes at the end of a Parquet file: the footer's length, and PAR1."""


class Part(NamedTuple):
    """What a Parquet file is known by.

    Attributes:
        rows: how many it has.
        size: bytes.
        digest: SHA-256 of its footer. The footer names that of the rest (``BODY``), so whoever has looked at the footers alone
            knows what every byte must be.
    """

    rows: int
    size: int
    digest: str


def write_parquet(path: str, table: pa.Table, rows: int | None = None) -> None:
    """Writes ``table`` as one Parquet file, whole or not at all; ``rows`` in a row group, by default what is a good size."""
    write_bytes(path, parquet_bytes(table, rows))


def parquet_bytes(table: pa.Table, rows: int | None = None) -> bytes:
    """What ``write_parquet`` writes: pages with checksums, and a footer that names the digest of what stands before it."""
    sink = io.BytesIO()
    # What was read from another file has that one's digest.
    table = table.replace_schema_metadata({k: v for k, v in (table.schema.metadata or {}).items() if k != BODY} or None)
    bytes_per_row = max(1, table.nbytes // max(1, table.num_rows))
    most = PICTURES_ROW_GROUP_BYTES if "image" in table.column_names else MAX_ROW_GROUP_BYTES
    rows = rows or max(1, min(1 << 20, most // bytes_per_row))
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as file:
        file.write_table(table, row_group_size=rows)
        # A row group is in the file once it was written: what is left is the footer.
        file.add_key_value_metadata({BODY: hashlib.sha256(sink.getbuffer()).hexdigest()})
    return sink.getvalue()


def describe(source: str | bytes, size: int | None = None) -> Part:
    """What a Parquet file is known by, from its footer alone: of a path (and its size, where that is known), or of the bytes
    that are about to be written.

    Raises:
        FileNotFoundError: where there is none.
        Damaged: if it has no footer.
    """
    if isinstance(source, bytes):
        return _described("", io.BytesIO(source), len(source))
    with open_file(source, size) as file:
        return _described(source, file, file.seek(0, os.SEEK_END))


def _described(path: str, file: IO[bytes], size: int) -> Part:
    footer = _footer(path, file, size)
    try:
        rows = pq.read_metadata(pa.BufferReader(_MAGIC + footer)).num_rows
    except UNREADABLE as error:
        raise Damaged(path, f"its footer can't be read ({' '.join(str(error).split())[:80]})") from error
    return Part(rows, size, hashlib.sha256(footer).hexdigest())


def _footer(path: str, file: IO[bytes], size: int) -> bytes:
    """The footer with the tail behind it."""
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    length = int.from_bytes(tail[:4], "little") + _TAIL
    if tail[4:] != _MAGIC or length > size - len(_MAGIC):
        raise Damaged(path, "it is no Parquet file")
    file.seek(size - length)
    return file.read(length)


def check_body(path: str) -> bool:
    """Reads a Parquet file whole. Returns whether its footer names a digest, as those of older versions don't.

    Raises:
        Damaged: if the bytes before the footer aren't those that were written.
    """
    with open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        footer = _footer(path, file, size)
        try:
            said = (pq.read_metadata(pa.BufferReader(_MAGIC + footer)).metadata or {}).get(BODY)
        except UNREADABLE as error:
            raise Damaged(path, f"its footer can't be read ({' '.join(str(error).split())[:80]})") from error
        if said is None:
            return False
        file.seek(0)
        found, left = hashlib.sha256(), size - len(footer)
        while left and (piece := file.read(min(left, 1 << 20))):
            found.update(piece)
            left -= len(piece)
    if found.hexdigest().encode() != said:
        raise Damaged(path, "its bytes are not those that were written")
    return True


def check_columns(path: str, without: Iterable[str]) -> None:
    """Damaged unless the pages of all columns but those ``without`` have their checksums."""
    with open_parquet(path) as file:
        columns = [name for name in file.schema_arrow.names if name not in set(without)]
        for _ in file.iter_batches(columns=columns):
            pass


def is_part(path: str) -> bool:
    """Whether a file is a part of a lake's table by its place, and not one of the user's."""
    return "/snapshot_id=" in path


class CheckedFile(pq.ParquetFile):
    """A Parquet file whose pages are held against their checksums when they're read: ``Damaged`` where one isn't as written."""

    def __init__(self, source: Any, path: str, buffer_size: int = 0):
        super().__init__(source, page_checksum_verification=True, buffer_size=buffer_size, pre_buffer=not buffer_size)
        self._path = path

    def iter_batches(self, *args: Any, **kwargs: Any) -> Iterator[pa.RecordBatch]:
        with self._told():
            yield from super().iter_batches(*args, **kwargs)

    def read(self, *args: Any, **kwargs: Any) -> pa.Table:
        with self._told():
            return super().read(*args, **kwargs)

    def read_row_group(self, *args: Any, **kwargs: Any) -> pa.Table:
        with self._told():
            return super().read_row_group(*args, **kwargs)

    def read_row_groups(self, *args: Any, **kwargs: Any) -> pa.Table:
        with self._told():
            return super().read_row_groups(*args, **kwargs)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except UNREADABLE as error:
            if fault_of_the_machine(error) is not None:
                raise
            advice = MEND if is_part(self._path) else "get it anew, or remove it"
            raise Damaged(self._path, f"it can't be read ({' '.join(str(error).split())[:80]})", advice) from error


def read_parquet(path: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file, or some of its columns. A file that is not Parquet is a UserError."""
    with open_parquet(path) as file:
        return file.read(columns=columns)


def open_parquet(path: str, buffer_size: int = 0) -> CheckedFile:
    """A Parquet file, to be read by row group. A file that is not Parquet is a UserError.

    With a ``buffer_size`` so many bytes of a column are read at once, and otherwise all that a row group has of it.
    """
    # Arrow itself reads what it can reach: its threads that read by way of Python may still hold some of it when the
    # interpreter ends, which aborts the process, and its exit code is lost.
    # By its absolute path: it takes a relative one that begins like a:b for a URL.
    source = open_file(path) if is_url(path) else os.path.abspath(path)
    try:
        return CheckedFile(source, path, buffer_size)
    except FileNotFoundError as error:
        if is_part(path):  # whoever asks for it was told that it is there
            raise Damaged(path, "it is missing") from error
        raise
    except UNREADABLE as error:
        if fault_of_the_machine(error) is not None:
            raise
        raise UserError(f"{path!r} is not a Parquet file ({error}); mend or remove it") from error


def read_rows(path: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of one Parquet file as dicts, a batch at a time."""
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield from batch.to_pylist()


def count_rows(path: str) -> int:
    with open_parquet(path) as file:
        return file.metadata.num_rows
