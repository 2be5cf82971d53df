"""Which images to keep for the next training run: ``sql/tables/keep_list.sql``."""

from __future__ import annotations

import pyarrow as pa

import sql
from transforms.store.lake import Lake, part_number

RULES = ("highest_resolution", "lowest_pwatermark", "most_central", "first")

ROWS_PER_PART = 1 << 20


def write_keep_list(lake: Lake, ingest_snapshot: str, deduplicate_snapshot: str, rule: str) -> int:
    """Writes ``keep_list``, one image of each group that has one left, and returns its rows. ``rule``: one of RULES."""
    from transforms.store.scan import bind, connect

    with connect() as connection:
        bind(connection, lake, "duplicate_groups", deduplicate_snapshot)
        bind(connection, lake, "samples", ingest_snapshot)
        found = connection.sql(sql.read("tables", "keep_list"), params={"keep": rule})
        rows = parts = 0
        for batch in found.to_arrow_reader(ROWS_PER_PART):
            lake.write("keep_list", deduplicate_snapshot, parts, pa.Table.from_batches([batch]))
            rows, parts = rows + batch.num_rows, parts + 1
    # A list that is made again, after some were forgotten, may be shorter.
    for path in lake.parts("keep_list", deduplicate_snapshot):
        if part_number(path) >= parts:
            lake.remove(path)
    return rows
