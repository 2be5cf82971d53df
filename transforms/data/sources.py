"""Where training samples come from, behind one interface: LAION-style metadata, or a folder of pictures with captions.

Another kind (WebDataset tars, say) is one more class with the methods of ``Source``: it surveys what it holds, reads one
partition as rows of ``ROW``, and fetches one picture's bytes.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from transforms.data.download import DownloadLimits, FetchError, fetch_http
from transforms.errors import UserError
from transforms.store.files import list_files, open_parquet, read_bytes
from transforms.store.identity import digest

BATCH_ROWS = 10_000
"""Rows of metadata that are held at once."""

READ_WHOLE = 64 << 20
"""Metadata files of up to as many bytes are recognised by all that they hold, larger ones by their footers."""

ROW = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("punsafe", pa.float32()),
        ("pwatermark", pa.float32()),
        ("similarity", pa.float32()),
        ("metadata_hash", pa.string()),
        ("metadata_width", pa.int32()),
        ("metadata_height", pa.int32()),
        ("source_row", pa.int64()),
    ]
)
"""A row of any source. Null where the source doesn't say."""

# Our column → what LAION's releases call it, in lower case; the first that is there is taken.
_NAMES = {
    "url": ("url",),
    "caption": ("text", "caption"),
    "punsafe": ("punsafe",),
    "pwatermark": ("pwatermark",),
    "similarity": ("similarity",),
    "metadata_hash": ("hash", "md5", "sha256"),
    "metadata_width": ("width", "original_width"),
    "metadata_height": ("height", "original_height"),
}


@dataclasses.dataclass(frozen=True)
class Partition:
    """A piece of a source that one worker reads.

    Attributes:
        name: what ``Source.read`` takes.
        rows: how many samples it has.
        fingerprint: names the content, wherever it lies.
    """

    name: str
    rows: int
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a source holds: one partition or more, with at least one row in all."""

    partitions: list[Partition]

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)

    @property
    def fingerprint(self) -> str:
        """Names the content, wherever it lies."""
        return digest("survey", sorted(partition.fingerprint for partition in self.partitions))

    def without(self, fingerprints: Iterable[str]) -> Survey | None:
        """The partitions beside those, as often as they are there; None unless all of those are."""
        left = collections.Counter(fingerprints)
        others = []
        for partition in self.partitions:
            if left[partition.fingerprint] > 0:
                left[partition.fingerprint] -= 1
            else:
                others.append(partition)
        return None if left.total() else Survey(others)


class Source(Protocol):
    """Training samples. Instances are small and pickle."""

    def survey(self) -> Survey:
        """Looks at everything once, and cheaply: a complete stage is to be recognised at once.

        UserError, before anything is written, where the source can't be read or holds nothing.
        """

    def read(self, partition: str) -> Iterator[pa.Table]:
        """The rows of a partition as tables of ``ROW``, in order."""

    def fetch(self, url: str, limits: DownloadLimits) -> bytes:
        """One picture's bytes. FetchError says why not."""


@dataclasses.dataclass(frozen=True)
class LaionSource:
    """Metadata in Parquet with LAION's columns: URL and TEXT (or caption), and more where present.

    Attributes:
        path: a file, a folder (its ``*.parquet``), or a glob; of any filesystem that Beam knows.
    """

    path: str

    def survey(self) -> Survey:
        try:
            files = self._files()
            # Folders are left out: moved metadata are the same metadata.
            survey = Survey([Partition(file, _checked_rows(file), digest("laion", _recognised_by(file))) for file in files])
        except (ValueError, OSError) as error:  # a kind of URL that Beam doesn't know, or a file that may not be read
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cannot read {self.path!r} ({reason}); {EXPECTED_METADATA}") from error
        if not files:
            raise UserError(f"no metadata at {self.path!r}; {EXPECTED_METADATA}")
        if survey.rows == 0:
            raise UserError(f"the metadata at {self.path!r} has no rows; expected one row for each sample")
        return survey

    def _files(self) -> list[str]:
        if not self.path:
            return []
        if any(sign in self.path for sign in "*?["):
            return sorted(found.path for found in FileSystems.match([self.path])[0].metadata_list)
        # A folder of an object store does not exist by itself, so what is in it is looked for first.
        files = list_files(self.path, ".parquet")
        if not files and FileSystems.exists(self.path) and not os.path.isdir(self.path):
            files = [self.path]
        return files

    def read(self, partition: str) -> Iterator[pa.Table]:
        with open_parquet(partition) as parquet:
            columns = _columns(partition, parquet.schema_arrow.names)
            start = 0
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=sorted(set(columns.values()))):
                arrays = []
                for field in ROW:
                    if field.name == "source_row":
                        arrays.append(pa.array(range(start, start + batch.num_rows), pa.int64()))
                    elif field.name in columns:
                        arrays.append(_cast(batch[columns[field.name]], field, partition))
                    else:
                        arrays.append(pa.nulls(batch.num_rows, field.type))
                yield pa.Table.from_arrays(arrays, schema=ROW)
                start += batch.num_rows

    def fetch(self, url: str, limits: DownloadLimits) -> bytes:
        return fetch_http(url, limits)


EXPECTED_METADATA = "expected Parquet with the columns URL and TEXT: a file, a folder of *.parquet, or a glob"


def _checked_rows(file: str) -> int:
    """The rows of a metadata file, by its footer. UserError unless it is Parquet with columns that can be converted."""
    try:
        with open_parquet(file) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    except UserError as error:
        raise UserError(f"{error}; {EXPECTED_METADATA}") from error
    for ours, theirs in _columns(file, schema.names).items():
        # Whether a type can be converted at all is known before anything is written.
        _cast(pa.nulls(0, schema.field(schema.get_all_field_indices(theirs)[0]).type), ROW.field(ours), file)
    return rows


def _columns(file: str, names: list[str]) -> dict[str, str]:
    """Our column → the file's. UserError where url or caption is missing."""
    lower = {name.lower(): name for name in reversed(names)}
    found = {}
    for ours, candidates in _NAMES.items():
        for candidate in candidates:
            if candidate in lower:
                found[ours] = lower[candidate]
                break
    for ours, expected in (("url", "URL or url"), ("caption", "TEXT, text or caption")):
        if ours not in found:
            raise UserError(f"{file!r} has columns {names}, expected one called {expected}; rename it, or name other metadata")
    return found


def _cast(values: pa.Array, field: pa.Field, file: str) -> pa.Array:
    try:
        cast = pc.cast(values, field.type, safe=False)
        return _readable(cast) if pa.types.is_string(field.type) else cast
    except pa.ArrowException as error:
        raise UserError(f"{file!r}: column for {field.name} is {values.type}, expected {field.type} ({error})") from error


def _readable(values: pa.Array) -> pa.Array:
    """``values`` with U+FFFD for what is not UTF-8: Parquet does not promise that text is."""
    try:
        values.validate(full=True)
        return values
    except pa.ArrowInvalid:
        raw = values.cast(pa.binary()).to_pylist()
        return pa.array([None if one is None else one.decode("utf-8", "replace") for one in raw], pa.string())


def _recognised_by(file: str) -> list[str | int]:
    """Name, size and hash of a metadata file.

    A Parquet footer names every column chunk's place, size and statistics, and is read in no time; a change that leaves
    all of these as they were is missed in large files alone.
    """
    with FileSystems.open(file, compression_type=CompressionTypes.UNCOMPRESSED) as source:
        source.seek(0, os.SEEK_END)
        size = source.tell()
        source.seek(max(0, size - 8))
        length = int.from_bytes(source.read(4), "little")
        source.seek(max(0, size - 8 - length) if size > READ_WHOLE else 0)
        return [os.path.basename(file), size, hashlib.sha256(source.read()).hexdigest()]


PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Pictures with captions in a local folder, as trainers keep them.

    A ``metadata.jsonl`` (an object a line, with ``file_name`` and ``text`` or ``caption``) names both; without one, each
    picture's caption is in a ``.txt`` of the same name beside it. The url of a sample is the path inside the folder.

    Attributes:
        path: the folder.
    """

    path: str

    def survey(self) -> Survey:
        if not os.path.isdir(self.path):
            raise UserError(f"there is no folder {self.path!r}; expected one with pictures and their captions")
        samples = self._samples()
        if not samples:
            raise UserError(
                f"the folder {self.path!r} holds no pictures; expected a metadata.jsonl, or files like {', '.join(PICTURES)}"
            )
        # Sizes and captions, not content: a folder may hold terabytes, and a picture that changes mostly changes size.
        sizes = []
        for name, caption in samples:
            path = os.path.join(self.path, name)
            sizes.append((name, caption, os.path.getsize(path) if os.path.isfile(path) else -1))
        return Survey([Partition(self.path, len(samples), digest("folder", sizes))])

    def read(self, partition: str) -> Iterator[pa.Table]:
        rows = [
            {"url": name, "caption": caption, "source_row": number}
            for number, (name, caption) in enumerate(FolderSource(partition)._samples())
        ]
        yield pa.Table.from_pylist(rows, schema=ROW)

    def _samples(self) -> list[tuple[str, str | None]]:
        listing = os.path.join(self.path, "metadata.jsonl")
        if os.path.isfile(listing):
            return list(self._listed(listing))
        found = []
        for folder, _, names in os.walk(self.path):
            for name in names:
                if name.lower().endswith(PICTURES):
                    path = os.path.join(folder, name)
                    found.append((_sayable(os.path.relpath(path, self.path)), _sidecar(path)))
        return sorted(found)

    def _listed(self, listing: str) -> Iterator[tuple[str, str | None]]:
        for number, line in enumerate(read_bytes(listing).decode("utf-8-sig", "replace").split("\n"), start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                    name, caption = row["file_name"], row.get("text", row.get("caption"))
                    if not isinstance(name, str) or not isinstance(caption, str | None):
                        raise TypeError("file_name and text are not text")
                    yield _sayable(name), None if caption is None else _sayable(caption)
                except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                    raise UserError(
                        f"{listing!r}, line {number}: {line[:80]!r}; expected a JSON object with file_name and text"
                    ) from error

    def fetch(self, url: str, limits: DownloadLimits) -> bytes:
        if "\0" in url:
            raise FetchError("not a path: it holds a null character")
        path = os.path.realpath(os.path.join(self.path, url))
        if not path.startswith(os.path.realpath(self.path) + os.sep):
            raise FetchError("the path leads out of the folder")
        try:
            if os.path.getsize(path) > limits.max_bytes:
                raise FetchError(f"more than {limits.max_bytes} bytes")
            with open(path, "rb") as file:
                return file.read()
        except (OSError, ValueError) as error:
            raise FetchError(getattr(error, "strerror", None) or str(error)) from error


def _sayable(text: str) -> str:
    """``text`` without lone surrogates, which JSON and names of files can hold and no table can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _sidecar(picture: str) -> str | None:
    path = os.path.splitext(picture)[0] + ".txt"
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()


def source(kind: str, path: str) -> Source:
    """The source of a kind: laion or folder."""
    return LaionSource(path) if kind == "laion" else FolderSource(path)
