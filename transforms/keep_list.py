"""Which images to keep for the next training run: ``sql/tables/keep_list.sql``."""

from __future__ import annotations

import pyarrow as pa

import sql
from transforms.lake import Lake

RULES = ("highest_resolution", "lowest_pwatermark", "most_central", "first")

ROWS_PER_PART = 1 << 20


def write_keep_list(lake: Lake, ingest_snapshot: str, deduplicate_snapshot: str, rule: str) -> int:
    """Writes ``keep_list``, one image of each group of ``duplicate_groups``, and returns its rows. ``rule``: one of RULES."""
    from transforms.measurement import bind, connect

    with connect() as connection:
        bind(connection, lake, "duplicate_groups", deduplicate_snapshot)
        bind(connection, lake, "samples", ingest_snapshot)
        found = connection.sql(sql.read("tables", "keep_list"), params={"keep": rule})
        rows = 0
        for number, batch in enumerate(found.to_arrow_reader(ROWS_PER_PART)):
            lake.write("keep_list", deduplicate_snapshot, number, pa.Table.from_batches([batch]))
            rows += batch.num_rows
    return rows
