"""Compares two lakes table by table, with the tolerance that another machine or runner may need."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.execution import Execution
from transforms.forgetting.workers import FEW_FILES, Workers
from transforms.store.files import list_files, read_parquet, walk
from transforms.store.lake import Lake
from transforms.store.schema import TABLES

TIMES_AND_DEVICES = frozenset(
    {"ingested_at", "seconds", "seconds_before", "device", "finished_at", "machine", "device_seconds",
     "device_seconds_per_extraction", "device_seconds_per_copied_image", "forgotten_at"}
)  # fmt: skip
"""Columns that tell of a run and not of its result."""

GREY_LEVELS = 1
"""So far may two renderings of one picture lie apart, in any channel of any pixel."""

TOLERANCE = 1e-4
"""So far may numbers lie apart, absolutely and relative to their size."""


def tables(lake: Lake, names: Iterable[str] | None = None) -> dict[str, pa.Table]:
    """Every table of the lake that is there, marts included, by name and snapshot, with its rows in their order."""
    found = {}
    for name in names if names is not None else [*TABLES, *_marts()]:
        paths = [path for folder in _snapshots(lake, name) for path in list_files(folder, ".parquet")]
        if paths:
            # The path inside the lake is part of the comparison: parts and snapshots must agree as well.
            found |= {path.removeprefix(lake.root): read_parquet(path) for path in paths}
    return found


def differences(one: Lake, other: Lake, leave_out: frozenset[str] = TIMES_AND_DEVICES) -> list[str]:
    """What differs between two lakes, a line each; [] where they say the same."""
    first, second = tables(one), tables(other)
    found = [f"only in one lake: {path}" for path in sorted(first.keys() ^ second.keys())]
    for path in sorted(first.keys() & second.keys()):
        found += [f"{path}: {text}" for text in _compare(first[path], second[path], leave_out)]
    return found


def _marts() -> tuple[str, ...]:
    from transforms.results import marts, sweeps

    return *marts.MARTS, *sweeps.MARTS


def _snapshots(lake: Lake, table: str) -> list[str]:
    folder = lake.path(table)
    return sorted({f"{folder}/{one.path.removeprefix(f'{folder}/').partition('/')[0]}" for one in walk(folder)})


def _compare(one: pa.Table, other: pa.Table, leave_out: frozenset[str]) -> list[str]:
    if one.schema != other.schema:
        return ["the schemas differ"]
    if one.num_rows != other.num_rows:
        return [f"{one.num_rows} and {other.num_rows} rows"]
    return [
        f"column {name} differs, first in row {row}: {one[name][row]!s:.200} and {other[name][row]!s:.200}"
        for name in one.column_names
        if name not in leave_out
        for row in _first_difference(one[name], other[name])
    ]


def _first_difference(one: pa.ChunkedArray, other: pa.ChunkedArray) -> list[int]:
    """The first row where two columns differ by more than they may: one row or none."""
    for row, (left, right) in enumerate(zip(one.to_pylist(), other.to_pylist(), strict=True)):
        if not _equal(left, right, one.type):
            return [row]
    return []


def _equal(left: object, right: object, kind: pa.DataType) -> bool:
    if left is None or right is None:
        return left is right
    if pa.types.is_binary(kind):
        return left == right or _near(_pixels(left), _pixels(right), absolute=GREY_LEVELS)
    if pa.types.is_floating(kind) or (pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)):
        return _near(np.asarray(left), np.asarray(right), TOLERANCE, TOLERANCE)
    return left == right


def _near(one: np.ndarray, other: np.ndarray, absolute: float, relative: float = 0.0) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=relative, atol=absolute, equal_nan=True)


def _pixels(content: object) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.int16)  # type: ignore[arg-type]


def workers(lake: Lake, *beam_args: str, few_files: int = FEW_FILES) -> Workers:
    """Forgetting's looks at a lake, through pipelines with Beam's options where there are more than a few files."""
    return Workers(lake, Execution(lake, list(beam_args)).run, few_files)
