"""Where training samples come from, behind one interface: LAION-style metadata, or a folder of pictures with captions.

Another kind (WebDataset tars, say) is one more class with the methods of ``Source``: it lists its partitions, reads one as
rows of ``ROW``, and fetches one picture's bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from transforms.download import FetchError, Limits, fetch_http
from transforms.errors import UserError
from transforms.identity import digest
from transforms.lake import list_files, open_parquet, read_bytes

BATCH_ROWS = 10_000
"""Rows of metadata that are held at once."""

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


class Source(Protocol):
    """Training samples. Instances are small and pickle."""

    def partitions(self) -> list[str]:
        """Names of the pieces that one worker reads. UserError, before anything is written, where something is wrong."""

    def fingerprint(self) -> str:
        """Names the content, wherever it lies; cheap, so that a complete stage is recognised at once."""

    def rows(self) -> int:
        """How many samples there are."""

    def read(self, partition: str) -> Iterator[pa.Table]:
        """The rows of a partition as tables of ``ROW``, in order."""

    def fetch(self, url: str, limits: Limits) -> bytes:
        """One picture's bytes. FetchError says why not."""


@dataclasses.dataclass(frozen=True)
class LaionSource:
    """Metadata in Parquet with LAION's columns: URL and TEXT (or caption), and more where present.

    Attributes:
        path: a file, a folder (its ``*.parquet``), or a glob; of any filesystem that Beam knows.
    """

    path: str

    def partitions(self) -> list[str]:
        if any(sign in self.path for sign in "*?["):
            files = sorted(found.path for found in FileSystems.match([self.path])[0].metadata_list)
        elif FileSystems.exists(self.path) and list_files(self.path, ".parquet"):
            files = list_files(self.path, ".parquet")
        else:
            files = [self.path] if FileSystems.exists(self.path) and not os.path.isdir(self.path) else []
        if not files:
            raise UserError(f"no metadata at {self.path!r}; expected a Parquet file, a folder with some, or a glob")
        total = 0
        for file in files:
            with open_parquet(file) as parquet:
                _columns(file, parquet.schema_arrow.names)
                total += parquet.metadata.num_rows
        if total == 0:
            raise UserError(f"the metadata at {self.path!r} has no rows; expected one row for each training sample")
        return files

    def fingerprint(self) -> str:
        # A Parquet footer names every column chunk's place, size and statistics: it changes when the content does, and
        # is read in no time. Folders are left out: moved metadata are the same metadata.
        return digest("laion", sorted(_footer(file) for file in self.partitions()))

    def rows(self) -> int:
        total = 0
        for file in self.partitions():
            with open_parquet(file) as parquet:
                total += parquet.metadata.num_rows
        return total

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

    def fetch(self, url: str, limits: Limits) -> bytes:
        return fetch_http(url, limits)


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
            raise UserError(f"{file!r} has columns {names}, expected one called {expected}; rename it, or mend --metadata")
    return found


def _cast(values: pa.Array, field: pa.Field, file: str) -> pa.Array:
    try:
        return pc.cast(values, field.type, safe=False)
    except pa.ArrowException as error:
        raise UserError(f"{file!r}: column for {field.name} is {values.type}, expected {field.type} ({error})") from error


def _footer(file: str) -> list[str | int]:
    with FileSystems.open(file, compression_type=CompressionTypes.UNCOMPRESSED) as source:
        source.seek(0, os.SEEK_END)
        size = source.tell()
        source.seek(max(0, size - 8))
        length = int.from_bytes(source.read(4), "little")
        source.seek(max(0, size - 8 - length))
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

    def partitions(self) -> list[str]:
        if not os.path.isdir(self.path):
            raise UserError(f"there is no folder {self.path!r}; expected pictures with captions")
        if not self._samples():
            raise UserError(f"the folder {self.path!r} holds no pictures ({', '.join(PICTURES)}); mend --metadata")
        return [self.path]

    def fingerprint(self) -> str:
        # Sizes and captions, not content: a folder may hold terabytes, and a picture that changes mostly changes size.
        sizes = []
        for name, caption in self._samples():
            path = os.path.join(self.path, name)
            sizes.append((name, caption, os.path.getsize(path) if os.path.isfile(path) else -1))
        return digest("folder", sizes)

    def rows(self) -> int:
        return len(self._samples())

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
                    found.append((os.path.relpath(path, self.path), _sidecar(path)))
        return sorted(found)

    def _listed(self, listing: str) -> Iterator[tuple[str, str | None]]:
        for number, line in enumerate(read_bytes(listing).decode("utf-8", "replace").splitlines(), start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                    yield row["file_name"], row.get("text", row.get("caption"))
                except (ValueError, KeyError, AttributeError, TypeError) as error:
                    raise UserError(
                        f"{listing!r}, line {number}: {line[:80]!r}; expected a JSON object with file_name and text"
                    ) from error

    def fetch(self, url: str, limits: Limits) -> bytes:
        path = os.path.realpath(os.path.join(self.path, url))
        if not path.startswith(os.path.realpath(self.path) + os.sep):
            raise FetchError("the path leads out of the folder")
        try:
            if os.path.getsize(path) > limits.max_bytes:
                raise FetchError(f"more than {limits.max_bytes} bytes")
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise FetchError(error.strerror or str(error)) from error


def _sidecar(picture: str) -> str | None:
    path = os.path.splitext(picture)[0] + ".txt"
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()


def source(kind: str, path: str) -> Source:
    """The source of a kind: laion or folder."""
    return LaionSource(path) if kind == "laion" else FolderSource(path)
