"""The training and control pictures of one ingest, by ``sample_id``."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from transforms.store.arrays import read_npy, write_npy
from transforms.store.counters import count
from transforms.store.files import exists, open_parquet
from transforms.store.lake import Lake
from transforms.store.pictures import stored_array
from transforms.store.remote import readable
from transforms.store.scan import connect
from transforms.store.tombstones import Tombstones


class PicturesByCode:
    """Pictures of one ingest by where they stand: part and row, as one number (part · 2³² + row).

    A picture is read with the row group that it lies in. What was read is kept, the least recently used goes first. Cheap to
    pickle: the caches stay behind.

    Args:
        lake: the lake.
        ingest_snapshot: whose ``images``.
        cache_bytes: limit of the caches; half of it for encoded row groups, half for decoded pictures.
    """

    def __init__(self, lake: Lake, ingest_snapshot: str, *, cache_bytes: int = 256 << 20):
        self.lake, self.ingest_snapshot, self.cache_bytes = lake, ingest_snapshot, cache_bytes
        self._start()

    def _start(self) -> None:
        self._row_groups: ByteLimitedCache[tuple[int, int], pa.Table] = ByteLimitedCache(self.cache_bytes // 2)
        self._pictures: ByteLimitedCache[int, np.ndarray] = ByteLimitedCache(self.cache_bytes // 2)
        self._starts: dict[int, np.ndarray] = {}
        self._paths: dict[int, str] = {}
        self._tombstones: Tombstones | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("lake", "ingest_snapshot", "cache_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def get(self, code: int, sample_id: str) -> np.ndarray:
        """The picture as (H, W, 3) uint8, not to be written to. ValueError: forgotten, or another sample's;
        DamagedPicture, which is one: undecodable.
        """
        picture = self._pictures.get(code)
        if picture is None:
            picture = stored_array(self.encoded(code, sample_id))
            picture.flags.writeable = False
            self._pictures.put(code, picture, picture.nbytes)
        return picture

    def encoded(self, code: int, sample_id: str) -> bytes:
        """The picture as it is stored. ValueError: it was forgotten, or the row is another sample's."""
        if self._tombstones is None:
            self._tombstones = Tombstones.read(self.lake)
        if sample_id in self._tombstones.samples:
            raise ValueError(f"sample {sample_id!r} was forgotten: {self._tombstones.samples[sample_id]}")
        part, row = code >> ROW_BITS, code & LAST_ROW
        if not self._paths:
            self._paths = self.lake.paths("images", self.ingest_snapshot)
        if part not in self._starts:
            with open_parquet(self._paths[part]) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            self._starts[part] = np.cumsum([0, *sizes])
        starts = self._starts[part]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        table = self._row_groups.get((part, group))
        if table is None:
            count("row groups of pictures read")
            with open_parquet(self._paths[part]) as file:
                table = file.read_row_group(group, columns=["sample_id", "image"])
            self._row_groups.put((part, group), table, table.nbytes)
        inside = row - int(starts[group])
        # The position only says where to look; the id in the row says whether it is the one.
        if table["sample_id"][inside].as_py() != sample_id:
            raise ValueError(
                f"images part {part} of {self.ingest_snapshot!r} holds another sample in row {row} than {sample_id!r}"
            )
        return table["image"][inside].as_py()


ROW_BITS = 32
"""Of a picture's number: its part is above them."""

LAST_ROW = (1 << ROW_BITS) - 1
"""The bits of its row."""


class ImageStore:
    """The training and control pictures of one ingest, by ``sample_id``.

    ``images`` part k and ``embeddings`` part k hold the same samples in the same order; so the places are those in
    ``embeddings``.

    Cheap to pickle: places and caches are looked for on first use and stay behind.

    Args:
        lake: the lake.
        ingest_snapshot: whose ``images``.
        embed_snapshot: whose ``embeddings``.
        cache_bytes: limit of the caches; half of it for encoded row groups, half for decoded pictures.
    """

    def __init__(self, lake: Lake, ingest_snapshot: str, embed_snapshot: str, *, cache_bytes: int = 256 << 20):
        self.lake, self.ingest_snapshot, self.embed_snapshot = lake, ingest_snapshot, embed_snapshot
        self._by_code = PicturesByCode(lake, ingest_snapshot, cache_bytes=cache_bytes)
        self._places: Places | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_places": None}

    def __contains__(self, sample_id: str) -> bool:
        return self._find(sample_id) is not None

    def get(self, sample_id: str) -> np.ndarray:
        """The picture as (H, W, 3) uint8, not to be written to.

        KeyError: there is no such sample; ValueError: undecodable, or forgotten.
        """
        return self._by_code.get(self._code(sample_id), sample_id)

    def encoded(self, sample_id: str) -> bytes:
        """The picture as it is stored. KeyError: there is no such sample; ValueError: it was forgotten."""
        return self._by_code.encoded(self._code(sample_id), sample_id)

    def _code(self, sample_id: str) -> int:
        code = self._find(sample_id)
        if code is None:
            raise KeyError(f"sample {sample_id!r} is not in the embeddings {self.embed_snapshot!r}")
        return code

    def _find(self, sample_id: str) -> int | None:
        if self._places is None:
            self._places = Places(self.lake, self.embed_snapshot)
        return self._places.find(sample_id)


class Places:
    """sample_id → code, in two sorted files of the lake: made once for these vectors, and of a local lake only looked into.

    Args:
        lake: the lake.
        embed_snapshot: whose ``embeddings``.
    """

    def __init__(self, lake: Lake, embed_snapshot: str):
        folder = lake.work("index", embed_snapshot, "places")
        # The codes come last: they say that the ids are there.
        if not exists(f"{folder}/codes.npy"):
            _write_places(lake, embed_snapshot, folder)
        self._ids, self._codes = (read_npy(f"{folder}/{name}.npy", mapped=True) for name in ("ids", "codes"))

    def find(self, sample_id: str) -> int | None:
        """The code of a sample; None where there is none."""
        key = np.bytes_(sample_id.encode("utf-8"))
        place = int(np.searchsorted(self._ids, key))
        if place == len(self._ids) or self._ids[place] != key:
            return None
        return int(self._codes[place])


def _write_places(lake: Lake, embed_snapshot: str, folder: str) -> None:
    """Sorts the samples of ``embeddings``, in files of DuckDB's where they don't fit into memory."""
    parts = [readable(path) for path in lake.parts("embeddings", embed_snapshot)]
    if not parts:
        ids, codes = np.empty(0, "S1"), np.empty(0, np.int64)
    else:
        with connect() as connection:
            connection.execute("SET VARIABLE parts = $parts", {"parts": parts})
            rows = connection.sql(
                f"SELECT sample_id, (regexp_extract(filename, 'part-([0-9]+)\\.parquet$', 1)::BIGINT << {ROW_BITS}) "
                "| file_row_number AS code FROM read_parquet(getvariable('parts'), filename = true, file_row_number = true, "
                "hive_partitioning = false) ORDER BY encode(sample_id)"
            ).to_arrow_table()
        ids = np.char.encode(rows["sample_id"].to_numpy(zero_copy_only=False).astype(str), "utf-8")
        codes = rows["code"].to_numpy()
    write_npy(f"{folder}/ids.npy", ids)
    write_npy(f"{folder}/codes.npy", codes)


Key = TypeVar("Key")
Value = TypeVar("Value")


class ByteLimitedCache(Generic[Key, Value]):
    """Keeps what was used last, up to ``limit`` bytes. A value larger than that is not kept at all. Threads may share it."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Key, value: Value, size: int) -> None:
        with self._lock:
            if key in self._values or size > self.limit:
                return
            self._values[key] = (value, size)
            self.used += size
            while self.used > self.limit:
                _, (_, freed) = self._values.popitem(last=False)
                self.used -= freed
