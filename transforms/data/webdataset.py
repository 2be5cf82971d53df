"""Pictures in tars, as WebDataset has them: files of one key follow one another, and are one sample.

Read by Python's ``tarfile``, as ``webdataset`` itself does. That library reads members of any size into memory, ends at a
damaged header without a word, and takes a name that begins with ``pipe:`` for a command.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import re
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa

from transforms.data.download import DownloadLimits, FetchError, TooLarge
from transforms.data.folders import CAPTION_COLUMNS, MAX_CAPTION_BYTES, PICTURES, is_data
from transforms.data.shards import READ_WHOLE, files_with
from transforms.data.spool import COME_WITH_ROWS, PICTURE, PICTURE_BYTES, REFUSED
from transforms.data.survey import BATCH_ROWS, LABEL_COLUMNS, ROW, FileRange, Partition, Survey, in_ranges
from transforms.errors import Damaged, UserError
from transforms.store.counters import count
from transforms.store.files import open_file
from transforms.store.identity import digest, url_by_bytes
from transforms.store.listings import decode_text, sayable
from transforms.store.texts import printable, written_name

TAR = ".tar"

CAPTION, LABEL, FIELDS = "txt", "cls", "json"
"""Endings of what is said of a picture, as ``webdataset`` and img2dataset write them: its caption, its class, and both."""

MOST_BYTES = 1 << 30
"""Of a picture; a larger one is never read, whatever ``--max_bytes`` says: a header may claim anything."""

MOST_OF_A_HEADER = 1 << 20
"""Bytes of a header: a path, and what else a tar may say of a file."""

EXPECTED_TARS = (
    "expected tars of WebDataset, not compressed, with a picture, and .txt, .json or .cls beside it, under each key: a file, a "
    "folder with *.tar, or a glob"
)

_GET_ANEW = "get it anew, or remove it; --allow_cut_tars takes what lies before"

_META = re.compile(r"__[^/]*__($|/)")
"""Members that ``webdataset`` leaves out: what its writer says of the tar itself."""


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
        key: of its sample.
        ending: behind the key's dot, in small letters.
        info: where it lies, and how large it is.
    """

    key: str
    ending: str
    info: tarfile.TarInfo


class Keyed(NamedTuple):
    """What lies in a tar under one key.

    Attributes:
        key: it.
        pictures: how many.
        endings: of its files: all, where they aren't many.
        members: the first of each ending that is read.
        offset: of the first of them in the tar.
    """

    key: str
    pictures: int
    endings: list[str]
    members: dict[str, tarfile.TarInfo]
    offset: int


@dataclasses.dataclass(frozen=True)
class WebDatasetSource:
    """Pictures in tars with their captions and labels, as ``webdataset`` and img2dataset write them.

    Files that follow one another with the same path up to the first dot of the name are one sample: a picture
    (``a.jpg``), its caption (``a.txt``, or in the object of ``a.json``), its class (``a.cls``, or likewise). Nothing is
    unpacked, so paths that lead anywhere are keys like others. The url of a sample is ``sha256:`` and the digest of the
    picture's bytes, as inside Parquet; where there is no picture, the tar and the key.

    Attributes:
        path: a tar, a folder (the tars in it and below), or a glob; or a gs:// or s3:// URL of one.
        image_column: the picture's ending, without the dot; None for any of a picture.
        caption_column, label_column: an ending, or else a name in the object of ``.json``; None for the usual ones.
        allow_cut: whether of a tar that is cut, or damaged between two files, what lies before is taken; else it is an error.
    """

    path: str
    image_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None
    allow_cut: bool = False

    # ``webdataset`` decodes by Pillow and leaves them as they are stored, so whoever trains on them sees them so.
    turns = False

    def survey(self, splits: Sequence[str] = ()) -> Survey:
        try:
            files, left_out = files_with(TAR, self.path, EXPECTED_TARS)
            found = [self._look(file) for file in files]
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cannot read {self.path!r} ({reason}); {EXPECTED_TARS}") from error
        every = sum((one.left_out for one in found), collections.Counter(left_out))
        survey = Survey([Partition(one.file, one.rows, (one.fingerprint,), one.ranges) for one in found], dict(every))
        if not survey.rows:
            told = f"nothing in the tars at {self.path!r} has a key and an ending" if files else f"no tar at {self.path!r}"
            raise UserError(f"{told}; {EXPECTED_TARS}")
        endings = {f".{one}" for each in found for one in each.endings}
        told = f"of {survey.rows:,} keys in the tars at {self.path!r}, which have {printable(', '.join(sorted(endings)[:20]))},"
        if not any(one.with_picture for one in found):
            wanted = f".{self.image_column}" if self.image_column else "a picture"
            raise UserError(f"none {told} has {wanted}; say with --image_column which ending is the picture's")
        for name in ("caption", "label"):
            column = getattr(self, f"{name}_column")
            if column is not None and not {f".{column.lower()}", f".{FIELDS}"} & endings:
                raise UserError(f"none {told} has .{column} or .{FIELDS}; mend --{name}_column")
        return survey

    def _look(self, file: str) -> _Look:
        headers = hashlib.sha256()
        look = _Look(file)
        with open_file(file) as content:
            tar = Tar(file, content, self.allow_cut)
            look.ranges = in_ranges(self._pieces(tar, look, headers.update))
            if tar.sets_for_all:
                # What a header says of all files that follow is known to who reads from the beginning.
                look.ranges = ()
            if tar.cut is not None:
                look.left_out[f"tars that are cut or damaged, behind that place ({printable(os.path.basename(file))})"] += 1
            size = content.seek(0, os.SEEK_END)
            if size <= READ_WHOLE:
                content.seek(0)
                headers.update(content.read())
        # By what is in it, not by its name.
        look.fingerprint = digest("webdataset", size, headers.hexdigest())
        return look

    def _pieces(self, tar: Tar, look: _Look, note: Callable[[bytes], object]) -> Iterator[tuple[int, int, int]]:
        """(where it ends, bytes, 1) of each sample, which is told to ``look``."""
        begins: int | None = None
        for sample in self._samples(tar.members(look.left_out, note)):
            if begins is not None:
                yield sample.offset, sample.offset - begins, 1
            begins = sample.offset
            look.rows += 1
            look.with_picture += sample.pictures > 0
            if len(look.endings) < MANY:
                look.endings.update(sample.endings)
        if begins is not None:
            yield sys.maxsize, 0, 1

    def _samples(self, members: Iterator[Member]) -> Iterator[Keyed]:
        """The samples of a tar's members, in order."""
        read = {FIELDS, self._ending("caption", CAPTION), self._ending("label", LABEL)}
        sample: Keyed | None = None
        for key, ending, info in members:
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = Keyed(key, 0, [], {}, info.offset)
            picture = self._is_picture(ending)
            if picture:
                sample = sample._replace(pictures=sample.pictures + 1)
            if len(sample.endings) < MANY:
                sample.endings.append(ending)
            if picture or ending in read:
                sample.members.setdefault(PICTURE if picture else ending, info)
        if sample is not None:
            yield sample

    def _ending(self, name: str, usual: str) -> str:
        return (getattr(self, f"{name}_column") or usual).lower()

    def _is_picture(self, ending: str) -> bool:
        return f".{ending}" in PICTURES if self.image_column is None else ending == self.image_column.lower()

    def read(self, partition: Partition) -> Iterator[pa.Table]:
        file = partition.name
        for part in partition.ranges or (FileRange(0, sys.maxsize, 0, partition.rows),):
            rows: list[dict[str, Any]] = []
            held, number = 0, part.first_row
            with open_file(file) as content:
                content.seek(part.start)
                tar = Tar(file, content, self.allow_cut)
                for sample in self._samples(tar.members(collections.Counter(), end=part.end)):
                    rows.append({"source_row": number, **self._row(tar, sample)})
                    number += 1
                    held += len(rows[-1][PICTURE] or b"")
                    if held >= PICTURE_BYTES or len(rows) >= BATCH_ROWS:
                        yield pa.Table.from_pylist(rows, schema=_SCHEMA)
                        rows, held = [], 0
            if number - part.first_row != part.rows:
                raise UserError(f"the tar {file!r} changed while it was read; run the same command again")
            if rows:
                yield pa.Table.from_pylist(rows, schema=_SCHEMA)

    def _row(self, tar: Tar, sample: Keyed) -> dict[str, Any]:
        picture, refused = None, self._refused(tar, sample)
        url = written_name(f"{os.path.basename(tar.file)}#{sample.key}")
        if refused is None:
            picture = tar.content(sample.members[PICTURE])
            url = url_by_bytes(hashlib.sha256(picture).hexdigest())
        said = {
            "caption": (self._ending("caption", CAPTION), (self.caption_column,) if self.caption_column else CAPTION_COLUMNS),
            "label": (self._ending("label", LABEL), (self.label_column,) if self.label_column else LABEL_COLUMNS),
        }
        if not all(tar.holds(info) for ending, info in sample.members.items() if ending != PICTURE):
            # Who allows a cut has no text that is half of one.
            sample = sample._replace(members={ending: info for ending, info in sample.members.items() if tar.holds(info)})
            count("captions and labels that a tar is cut in", 1)
        fields = tar.fields(sample.members.get(FIELDS))
        texts = {name: _said(tar, sample, fields, name, ending, names) for name, (ending, names) in said.items()}
        return {"url": url, **texts, PICTURE: picture, REFUSED: refused}

    def _refused(self, tar: Tar, sample: Keyed) -> str | None:
        """Why there is no picture; None where there is one."""
        endings = printable(", ".join(f".{one}" for one in sample.endings[:10]))
        if sample.pictures == 0:
            return f"no picture under this key (it has {endings}); files of one key must follow one another in the tar"
        if sample.pictures > 1:
            return f"{sample.pictures} pictures under one key (it has {endings}); --image_column says which ending is meant"
        if sample.members[PICTURE].size > MOST_BYTES:
            return str(TooLarge(MOST_BYTES))
        if not tar.holds(sample.members[PICTURE]):
            return "the tar is cut inside this picture; get the tar anew"
        return None

    def fetch(self, url: str, limits: DownloadLimits) -> bytes:
        """Never a picture: they come with the rows."""
        raise FetchError(COME_WITH_ROWS)


MANY = 100
"""So many endings of files are remembered, of one key and of a tar."""

_SCHEMA = pa.schema([*ROW, pa.field(PICTURE, pa.binary()), pa.field(REFUSED, pa.string())])


@dataclasses.dataclass
class _Look:
    """What there is in a tar.

    Attributes:
        file: its path.
        rows, with_picture: how many keys, and how many of them have a picture.
        left_out: what isn't read → how often.
        endings: of files.
        fingerprint: by which it is known again.
        ranges: of bytes in which it can be read; () where only as a whole.
    """

    file: str
    rows: int = 0
    with_picture: int = 0
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    endings: set[str] = dataclasses.field(default_factory=set)
    fingerprint: str = ""
    ranges: tuple[FileRange, ...] = ()


def _said(tar: Tar, sample: Keyed, fields: dict[str, Any], name: str, ending: str, names: tuple[str, ...]) -> str | None:
    """The caption or the label of a sample: what its own file says, or else the first of some fields; None where none does."""
    lost = False
    if ending in sample.members and ending != FIELDS:
        if text := tar.text(sample.members[ending]):
            return text
        lost = text is None
    said = next((fields[one] for one in names if fields.get(one) is not None), None)
    if isinstance(said, int | float):
        said = str(said)
    if isinstance(said, str):
        return sayable(said).strip() or None
    if lost or said is not None:
        count(f"metadata values of {name} that are none", 1)
    return None


_NONSENSE = (ValueError, LookupError, TypeError, ArithmeticError, RecursionError)
"""What ``tarfile`` makes of headers that hold what no header may, beside its own errors."""


class _Headers:
    """A file of which ``tarfile`` reads headers alone: it reads as much at once as they claim to have.

    Args:
        content: the file.
    """

    def __init__(self, content: IO[bytes]):
        self._content = content
        self.seek, self.tell = content.seek, content.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MOST_OF_A_HEADER:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._content.read(size)


class Tar:
    """A tar that is open, at its beginning or where the header of a file begins.

    UserError where it is none; Damaged, from each method, where it isn't whole.

    Args:
        file: its path.
        content: it, open.
        allow_cut: whether its files simply end where it is cut, or damaged between two of them.

    Attributes:
        cut: what is wrong there; None where nothing is, or as far as nobody has read.
    """

    def __init__(self, file: str, content: IO[bytes], allow_cut: bool = False):
        self.file, self._content, self._allow_cut = file, content, allow_cut
        self.cut: str | None = None
        here = content.tell()
        self._size = content.seek(0, os.SEEK_END)
        content.seek(here)
        try:
            # It is whoever opened the file that closes it.
            self._tar: Any = tarfile.TarFile(fileobj=cast(IO[bytes], _Headers(content)), mode="r", encoding="utf-8")
        except (tarfile.TarError, *_NONSENSE) as error:
            raise UserError(f"{file!r} is not a tar ({error}); {EXPECTED_TARS}") from error

    @property
    def sets_for_all(self) -> bool:
        """Whether a header said something of all files that follow."""
        return bool(self._tar.pax_headers)

    def holds(self, info: tarfile.TarInfo) -> bool:
        """Whether all bytes of a file are there."""
        return info.offset_data + info.size <= self._size

    def members(
        self, left_out: collections.Counter[str], note: Callable[[bytes], object] = len, end: int = sys.maxsize
    ) -> Iterator[Member]:
        """The files in it, in order.

        Args:
            left_out: is told what isn't read → how often.
            note: is called with what each header says.
            end: the first byte that nothing is read of.
        """
        try:
            yield from self._members(left_out, note, end)
        except Damaged as error:
            if not self._allow_cut or error.advice != _GET_ANEW:
                raise
            self.cut = error.what

    def _members(self, left_out: collections.Counter[str], note: Callable[[bytes], object], end: int) -> Iterator[Member]:
        before = -1
        while True:
            try:
                info = self._tar.next()
            except (tarfile.TarError, *_NONSENSE) as error:
                raise Damaged(self.file, f"it can't be read behind byte {max(before, 0):,} ({error})", _GET_ANEW) from error
            self._tar.members.clear()  # or it keeps all of them
            if info is None:
                break
            if info.offset >= end:
                return
            if info.size < 0 or self._tar.offset <= before:
                raise Damaged(self.file, f"the header at byte {info.offset:,} claims {info.size:,} bytes", _GET_ANEW)
            before = self._tar.offset
            said = (info.name, info.type.decode("latin-1"), info.size, info.mtime, info.offset)
            note(repr(said).encode("utf-8", "surrogatepass"))
            if info.isdir() or _META.match(info.name):
                continue
            key, ending = _key_of(info.name)
            # Of a sparse file hardly anything need be there, and no writer of data sets makes one.
            if not info.isreg() or info.issparse():
                left_out["links, pipes, devices and sparse files in tars"] += 1
            elif not key or not all(is_data(word) for word in key.split("/") if word not in (".", "..")):
                left_out["files in tars that have no key and ending"] += 1
            else:
                yield Member(key, ending, info)
        self._check_end()

    def _check_end(self) -> None:
        """``tarfile`` takes for the end whatever is no header."""
        self._content.seek(self._tar.offset)
        # Who was killed before it wrote the mark of the end has left nothing there.
        if self._content.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise Damaged(self.file, f"byte {self._tar.offset:,} begins neither a file nor the end", _GET_ANEW)
        while piece := self._content.read(1 << 20):
            if piece.strip(b"\0"):
                told = "something follows its end, as in several tars that were joined to one"
                raise Damaged(self.file, told, "no reader of WebDataset sees that; take them apart")

    def content(self, info: tarfile.TarInfo) -> bytes:
        """All bytes of a file."""
        self._content.seek(info.offset_data)
        content = self._content.read(info.size)
        if len(content) < info.size:
            raise Damaged(self.file, f"{info.name!r} in it ends after {len(content):,} of {info.size:,} bytes", _GET_ANEW)
        return content

    def text(self, info: tarfile.TarInfo) -> str | None:
        """A file of text, without the blanks around it; None where it is too long to say something of a picture."""
        return sayable(decode_text(self.content(info))).strip() if info.size <= MAX_CAPTION_BYTES else None

    def fields(self, info: tarfile.TarInfo | None) -> dict[str, Any]:
        """What the object in a file of JSON says; nothing where there is none, which is counted unless there is no file."""
        if info is None:
            return {}
        try:
            said = json.loads(self.text(info) or "")
        except (ValueError, RecursionError):
            said = None
        if isinstance(said, dict):
            return said
        count("metadata objects that are none", 1)
        return {}


def _key_of(name: str) -> tuple[str, str]:
    """Path in a tar → key and ending in small letters, split as ``webdataset`` does by ``base_plus_ext``; "" for none."""
    folder, slash, name = name.rpartition("/")
    base, _, ending = name.partition(".")
    return (f"{folder}{slash}{base}", ending.lower()) if base and ending else ("", "")
