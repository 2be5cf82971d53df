"""Folders as people keep them: which names in them are data, and pictures with captions in the forms that trainers write."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from transforms.data.download import DownloadLimits, FetchError, TooLarge
from transforms.data.survey import BATCH_ROWS, ROW, SPLIT, Partition, Survey, split_named
from transforms.errors import UserError
from transforms.store.files import name_here, open_parquet, read_bytes
from transforms.store.identity import digest
from transforms.store.listings import (
    column_named,
    decode_text,
    first_of,
    json_lines,
    parse_json,
    readable_texts,
    refuse_twice,
    sayable,
    separated_rows,
)
from transforms.store.texts import written_name

PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm",
)  # fmt: skip
"""Endings of what can be decoded here, in small letters: what Pillow and OpenCV both read, without any more packages."""

CAPTIONS = (".txt", ".caption")
"""Endings of a caption beside its picture: a.jpg.txt or a.txt. kohya's trainers read .caption unless told otherwise."""

LISTINGS = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
"""Files that list the pictures of a folder and of those below it, as ``datasets`` reads them; the first that is there."""

KOHYA = ("meta_lat.json", "meta_clean.json", "meta_cap_dd.json", "meta_cap.json")
"""Captions by picture, as kohya's scripts write them, the last step's first."""

NO_DATA = ("__macosx", "@eadir", "#recycle", "$recycle.bin")
"""Names, beside all that begin with a dot, of what systems put beside people's files."""

NO_FILES = "pipes, devices and sockets"

MAX_CAPTION_BYTES = 1 << 20
"""A longer file beside a picture is no caption."""

FILE_COLUMNS = ("file_name",)
CAPTION_COLUMNS = ("text", "caption", "prompt")


# -- which names are data ----------------------------------------------------------------------------------------------


class Folder(NamedTuple):
    """A folder that is walked through.

    Attributes:
        inside: its path inside the root; "" for the root itself.
        names: of its files, sorted.
        left_out: what else is in it → how often.
    """

    inside: str
    names: list[str]
    left_out: dict[str, int]


def is_data(name: str) -> bool:
    """Whether a file or folder of this name is the user's own, and not a system's or an editor's."""
    return not name.startswith(".") and name.lower() not in NO_DATA


def data_folders(root: str) -> Iterator[Folder]:
    """A local folder and those below it, each once. Links are followed, to folders too, and never in a circle.

    What is neither file nor folder (pipes, devices, sockets) is never opened: it could keep its reader waiting for ever.
    """
    waiting, linked = collections.deque([""]), collections.deque[str]()
    entered: set[tuple[int, int]] = set()
    while waiting or linked:
        # Linked ones at the end: where a name of its own leads to a folder as well, it is known by that.
        inside = waiting.popleft() if waiting else linked.popleft()
        path = os.path.join(root, inside)
        left_out: collections.Counter[str] = collections.Counter()
        names = []
        try:
            found = os.stat(path)
            if (found.st_dev, found.st_ino) in entered:
                continue
            entered.add((found.st_dev, found.st_ino))
            with os.scandir(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if is_data(entry.name):
                        kind = _kind(entry)
                        if kind == "file":
                            names.append(entry.name)
                        elif kind == "folder":
                            (linked if entry.is_symlink() else waiting).append(os.path.join(inside, entry.name))
                        else:
                            left_out[kind] += 1
        except OSError:
            left_out["folders that may not be read"] += 1
        yield Folder(inside, names, left_out)


def _kind(entry: os.DirEntry) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        entry.stat()
    except OSError:
        return "broken links"
    return NO_FILES


def ending_of(name: str) -> str:
    """.png for a.PNG; "files without an ending" where there is none."""
    return os.path.splitext(name)[1].lower() or "files without an ending"


def pictures_below(folder: str) -> list[str]:
    """The paths of the pictures in a local folder and below, sorted."""
    return sorted(
        os.path.join(folder, one.inside, name)
        for one in data_folders(folder)
        for name in one.names
        if name.lower().endswith(PICTURES)
    )


def read_file(path: str, most: int) -> bytes:
    """A local file of up to ``most`` bytes. FetchError for a longer one and for what is no file; OSError as usual."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise FetchError("not a file")
    # Another one may have taken its place since: a pipe must not keep this waiting either.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        # What it said to hold, first: a buffer for the most would take longer than most files.
        content = file.read(min(found.st_size, most) + 1)
        if found.st_size < len(content) <= most:
            content += file.read(most + 1 - len(content))
    if len(content) > most:
        raise TooLarge(most, found.st_size)
    return content


# -- pictures with captions --------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """A picture of a folder.

    Attributes:
        url: its path inside the folder.
        caption: None where there is none.
        size: bytes; -1 where there is no such file.
        split: of the data set, where a metadata file says it; else "".
    """

    url: str
    caption: str | None
    size: int
    split: str = ""

    @property
    def fingerprint(self) -> str:
        # Sizes and captions, not content: a folder may hold terabytes, and a picture that changes mostly changes size. Short,
        # since a manifest holds one for each picture.
        return digest("picture", self.url, self.caption, self.size, length=16)


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Pictures with captions in a local folder, as trainers keep them. The url of a sample is the path inside the folder.

    A ``metadata.jsonl``, ``.csv`` or ``.parquet`` with ``file_name`` and ``text`` (or ``caption``, ``prompt``) says what there
    is in its folder and those below it. Where there is none every picture counts, and its caption is what kohya's
    ``meta_cap.json`` says of it, or else in a ``.txt`` or ``.caption`` beside it. Pictures are turned as their EXIF
    orientation says: so trainers see them.

    Attributes:
        path: the folder.
        url_column, caption_column: of the metadata files; None for the names above.
    """

    path: str
    url_column: str | None = None
    caption_column: str | None = None

    turns = True

    def survey(self, splits: Sequence[str] = ()) -> Survey:
        if not os.path.isdir(self.path):
            raise UserError(f"there is no folder {self.path!r}; expected one with pictures and their captions")
        samples, left_out = self._scan()
        if not samples:
            told = f" (it holds {told_left_out(left_out)})" if left_out else ""
            raise UserError(
                f"the folder {self.path!r} holds no pictures{told}; expected one of {', '.join(LISTINGS)}, or files like "
                f"{', '.join(PICTURES[:8])}"
            )
        found: dict[str, list[str]] = {}
        for one in samples:
            found.setdefault(_split(one, splits) if splits else "", []).append(one.fingerprint)
        # A partition of each split: which pictures are read follows from the fingerprints.
        partitions = [
            Partition(self.path, len(prints), tuple(prints), splits={split: len(prints)} if splits else {})
            for split, prints in found.items()
        ]
        return Survey(partitions, left_out)

    def read(self, partition: Partition) -> Iterator[pa.Table]:
        wanted = collections.Counter(partition.fingerprints)
        rows = []
        for number, one in enumerate(dataclasses.replace(self, path=partition.name)._scan()[0]):
            if wanted[one.fingerprint] > 0:
                wanted[one.fingerprint] -= 1
                rows.append({"url": one.url, "caption": one.caption, "source_row": number})
        if wanted.total():
            raise UserError(f"the folder {partition.name!r} changed while it was read; run the same command again")
        for start in range(0, len(rows), BATCH_ROWS):
            yield pa.Table.from_pylist(rows[start : start + BATCH_ROWS], schema=ROW)

    def fetch(self, url: str, limits: DownloadLimits) -> bytes:
        if "\0" in url:
            raise FetchError("not a path: it holds a null character")
        # By its words alone: a link was made by whoever keeps the folder, metadata may be a stranger's.
        words = url.split("/")
        if os.path.isabs(url) or ".." in words or not set(words) - {"", "."}:
            raise FetchError("the path leads out of the folder")
        try:
            return read_file(self._place(url), limits.max_bytes)
        except (OSError, ValueError) as error:
            raise FetchError(getattr(error, "strerror", None) or str(error)) from error

    def _scan(self) -> tuple[list[Sample], dict[str, int]]:
        """Every sample, in an order that follows from what there is, and what was left out → how often."""
        folders = list(data_folders(self.path))
        left_out: collections.Counter[str] = collections.Counter()
        for folder in folders:
            left_out.update(folder.left_out)
        listings = _files_named(folders, LISTINGS)
        spoken = _files_named([one for one in folders if _nearest(listings, one.inside) is None], KOHYA)
        listed = self._listed(listings)
        named = {one.url for one in listed}
        captions = {inside: _Kohya(self.path, inside, name) for inside, name in spoken.items()}
        found = []
        for folder in folders:
            covered = _nearest(listings, folder.inside) is not None
            kohya = captions.get(_nearest(spoken, folder.inside) or "")
            beside = {(os.path.splitext(name)[0], ending_of(name)): name for name in folder.names}
            used = {listings.get(folder.inside), spoken.get(folder.inside)}
            pictures = [name for name in folder.names if name.lower().endswith(PICTURES)]
            for name in pictures:
                inside = os.path.join(folder.inside, name)
                if covered:
                    left_out["pictures that the metadata do not name"] += written_name(inside) not in named
                    continue
                texts = [beside[key] for key in _caption_files(name) if key in beside]
                caption = kohya.of(inside) if kohya is not None else None
                for one in texts:
                    caption = caption or self._caption(os.path.join(folder.inside, one), left_out)
                used.update((name, *texts))
                found.append(self._sample(written_name(inside), caption))
            left_out.update(ending_of(name) for name in folder.names if name not in used and name not in pictures)
        for inside, said in captions.items():
            left_out[f"entries of {os.path.join(inside, spoken[inside])} without a picture"] += said.unused()
        return listed + sorted(found, key=lambda one: one.url), dict(sorted((+left_out).items()))

    def _place(self, url: str) -> str:
        """Where the picture of a url lies."""
        return os.path.join(self.path, name_here(self.path, url))

    def _sample(self, url: str, caption: str | None, split: str = "") -> Sample:
        try:
            found = os.stat(self._place(url))
        except (OSError, ValueError):  # there is none, or its name holds a null character
            return Sample(url, caption, -1, split)
        return Sample(url, caption, found.st_size if stat.S_ISREG(found.st_mode) else -1, split)

    def _caption(self, inside: str, left_out: collections.Counter[str]) -> str | None:
        try:
            return sayable(decode_text(read_file(os.path.join(self.path, inside), MAX_CAPTION_BYTES)).strip()) or None
        except (FetchError, OSError):
            left_out["captions that cannot be read"] += 1
            return None

    def _listed(self, listings: dict[str, str]) -> list[Sample]:
        """What the metadata files name, in their order. Of a picture that two of them name the nearer one speaks."""
        speaks: dict[str, str] = {}
        found = []
        for inside in sorted(listings, key=lambda inside: (-len(inside.split("/")) if inside else 0, inside)):
            path = os.path.join(self.path, inside, listings[inside])
            for name, caption, split in self._rows_of(path):
                # Their paths begin where they lie.
                url = written_name(os.path.join(inside, self._as_here(inside, name)))
                if speaks.setdefault(url, inside) == inside:
                    found.append(self._sample(url, None if caption is None else sayable(caption), split))
        return found

    def _as_here(self, inside: str, name: str) -> str:
        """A name in a metadata file that may have been written under Windows, or where names are spelt otherwise."""
        folder = os.path.join(self.path, inside)
        here = name_here(folder, name)
        if "\\" in name and "\0" not in name and not os.path.exists(os.path.join(folder, here)):
            here = name_here(folder, name.replace("\\", "/"))
        return here.removeprefix("./")

    def _rows_of(self, path: str) -> Iterator[tuple[str, str | None, str]]:
        """(name, caption, split) of each row of a metadata file."""
        files = (self.url_column,) if self.url_column else FILE_COLUMNS
        texts = (self.caption_column,) if self.caption_column else CAPTION_COLUMNS
        expected = f"expected {files[0]} and {texts[0]}"
        rows: Iterable[tuple[int, Any]]
        if path.lower().endswith(".parquet"):
            rows = _parquet_rows(
                path, (*files, *texts, SPLIT), f"{expected}, or name them with --url_column and --caption_column"
            )
        elif path.lower().endswith(".jsonl"):
            rows = json_lines(decode_text(read_bytes(path)), path, f"expected a JSON object with {files[0]} and {texts[0]}")
        else:
            advice = f"{expected}, or name them with --url_column and --caption_column"
            rows = separated_rows(decode_text(read_bytes(path)), path, files, advice, once=texts)
        for number, row in rows:
            name, caption = (first_of(row, files), first_of(row, texts)) if isinstance(row, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(caption, str | None):
                raise UserError(
                    f"{path!r}, line {number}: {json.dumps(row, default=str)[:80]}; expected a JSON object or a row with "
                    f"{files[0]} and {texts[0]}, which are texts"
                )
            split = first_of(row, (SPLIT,))
            yield name, caption, split if isinstance(split, str) else ""


def _split(sample: Sample, splits: Sequence[str]) -> str:
    """The split that a picture is of: as its listing says, or else its folders. What a picture is called says nothing of it."""
    return sample.split or split_named(f"{os.path.dirname(sample.url)}/", splits)


def told_left_out(left_out: dict[str, int], most: int = 8) -> str:
    """.heic 3, .md 1: what was left out, the most frequent first."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(number for _, number in ordered[most:])
    return ", ".join([f"{what} {number:,}" for what, number in ordered[:most]] + ([f"others {rest:,}"] if rest else []))


def _files_named(folders: list[Folder], wanted: tuple[str, ...]) -> dict[str, str]:
    """Folder → the first of the wanted files that is in it, whatever the case of its letters."""
    found: dict[str, str] = {}
    for folder in folders:
        names = {name.lower(): name for name in reversed(folder.names)}
        for one in wanted:
            if one in names:
                found.setdefault(folder.inside, names[one])
    return found


def _nearest(files: dict[str, str], inside: str) -> str | None:
    """The folder, this one or one above it, that has one of the files."""
    while inside not in files:
        if not inside:
            return None
        inside = os.path.dirname(inside)
    return inside


def _caption_files(picture: str) -> Iterator[tuple[str, str]]:
    """(name, ending in small letters) of the files that may hold a picture's caption: a.jpg.txt says more than a.txt."""
    for name in (picture, os.path.splitext(picture)[0]):
        for ending in CAPTIONS:
            yield name, ending


class _Kohya:
    """What a file of kohya's says of pictures: path or name without its ending → an object with caption and tags."""

    def __init__(self, root: str, inside: str, name: str):
        self.root, self.inside = root, inside
        path = os.path.join(root, inside, name)
        expected = "expected an object with a caption for each picture"
        entries = parse_json(decode_text(read_bytes(path)), repr(path), expected)
        if not isinstance(entries, dict):
            raise UserError(f"{path!r} is a JSON {type(entries).__name__}; {expected}")
        self._entries = {_without_ending(key): value for key, value in entries.items()}
        # Whole paths may be of another machine: then the name says which it is, where it is the only one.
        often = collections.Counter(os.path.basename(key) for key in self._entries)
        self._by_name = {os.path.basename(key): key for key in self._entries if often[os.path.basename(key)] == 1}
        self._used: set[str] = set()

    def of(self, inside: str) -> str | None:
        path = os.path.join(self.root, inside)
        keys = [os.path.relpath(inside, self.inside or "."), path, os.path.abspath(path)]
        plain = [_without_ending(key) for key in keys]
        key = next((one for one in plain if one in self._entries), None) or self._by_name.get(os.path.basename(plain[0]))
        if key is None:
            return None
        self._used.add(key)
        entry = self._entries[key]
        said = [entry] if isinstance(entry, str) else []
        if isinstance(entry, dict):
            # As its trainer puts them together.
            said = [text for text in (entry.get("caption"), entry.get("tags")) if isinstance(text, str) and text.strip()]
        return sayable(", ".join(text.strip() for text in said)) or None

    def unused(self) -> int:
        return len(self._entries) - len(self._used)


def _without_ending(path: str) -> str:
    path = path.replace("\\", "/")
    return os.path.splitext(path)[0] if path.lower().endswith(PICTURES) else path


def _parquet_rows(path: str, wanted: tuple[str, ...], expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        columns = list(dict.fromkeys(found for one in wanted if (found := column_named(names, (one,))) is not None))
        if column_named(names, wanted[:1]) is None:
            raise UserError(f"{path!r} has columns {names}; {expected}")
        refuse_twice(path, names, wanted)
        number = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            for row in readable_texts(batch).to_pylist():
                number += 1
                yield number, row
