"""Pictures of the lake that can't be decoded while they are matched: damaged since they were stored. Each becomes a row.

A worker leaves a small file for each, named by which picture it is, so that one that is met twice is one row.
"""

from __future__ import annotations

import json
from typing import Any

from transforms.store.counters import count
from transforms.store.files import list_files, read_bytes, write_bytes
from transforms.store.identity import digest
from transforms.store.lake import Lake


def note(
    lake: Lake, snapshot: str, table: str, error: Exception, *, sample_id: str | None = None,
    prompt_id: str | None = None, sample_index: int | None = None,
) -> None:  # fmt: skip
    """Leaves a row of ``unreadable``, without the audit's columns.

    Args:
        lake, snapshot: of the match.
        table: that holds the picture.
        error: what the decoder said.
        sample_id: which picture it is, of ``images``.
        prompt_id, sample_index: likewise, of a generation.
    """
    row = {"source": table, "sample_id": sample_id, "prompt_id": prompt_id, "sample_index": sample_index}
    name = digest("unreadable", *row.values(), length=32)
    said = {**row, "status": "failed_to_decode", "reason": str(error)}
    write_bytes(f"{_folder(lake, snapshot)}/{name}.json", json.dumps(said).encode())
    count(f"{table} that can't be decoded")


def noted(lake: Lake, snapshot: str) -> list[dict[str, Any]]:
    """What was left, in the same order always."""
    return [json.loads(read_bytes(path)) for path in list_files(_folder(lake, snapshot), ".json")]


def _folder(lake: Lake, snapshot: str) -> str:
    return lake.work("match", snapshot, "unreadable")
