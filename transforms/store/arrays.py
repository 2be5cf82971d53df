"""Arrays in work files: what one step leaves for the next, and no table of the lake."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.store.files import is_url, read_bytes, replacing, write_bytes


def vectors_column(vectors: np.ndarray) -> pa.Array:
    """(n, d) as a column of lists of fixed length, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), vectors.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of one length, none null, as (n, d)."""
    return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)


def write_arrow(path: str, table: pa.Table) -> None:
    """Writes a file for ``read_arrow``: of vectors nothing can be compressed, and Parquet would take its time to find out."""
    with replacing(path) as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table.combine_chunks())


def read_arrow(path: str) -> pa.Table:
    return pa.ipc.open_file(pa.py_buffer(read_bytes(path))).read_all()


def write_npz(path: str, **arrays: Any) -> None:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    write_bytes(path, sink.getvalue())


def read_npz(path: str) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(read_bytes(path))) as stored:
        return dict(stored)


def write_json(path: str, value: Any) -> None:
    write_bytes(path, json.dumps(value).encode())


def read_json(path: str) -> Any:
    return json.loads(read_bytes(path))


def write_npy(path: str, values: np.ndarray) -> None:
    sink = io.BytesIO()
    np.save(sink, values)
    write_bytes(path, sink.getvalue())


def read_npy(path: str, *, mapped: bool = False) -> np.ndarray:
    """An array; ``mapped``: of a local file no more is read than is looked at."""
    if mapped and not is_url(path):
        return np.load(path, mmap_mode="r")
    return np.load(io.BytesIO(read_bytes(path)))
