"""Rows of some samples, in one part of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from transforms.store.files import open_parquet, read_parquet

BATCH_ROWS = 256
"""Rows with pictures that are held at once."""


def rows_of(path: str, sample_ids: set[str], columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of some samples in a part: ``sample_id`` and these columns."""
    if any_among(path, "sample_id", sample_ids):
        with open_parquet(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["sample_id", *columns]):
                yield from batch.filter(among(batch["sample_id"], sample_ids)).to_pylist()


def among(column: pa.ChunkedArray, values: Iterable[str]) -> pa.ChunkedArray:
    return pc.is_in(column, pa.array(sorted(values), pa.string()))


def any_among(path: str, column: str, values: Iterable[str]) -> bool:
    return bool(pc.any(among(read_parquet(path, [column])[column], values)).as_py())
