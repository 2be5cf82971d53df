"""Draws the prompts of an audit with ``sql/tables/prompts.sql``."""

from __future__ import annotations

import pyarrow as pa

import sql


def draw_prompts(duplicate_groups: pa.Table, samples: pa.Table, *, max_prompts: int, seed: int) -> pa.Table:
    """The groups whose representative's caption is tried.

    Args:
        duplicate_groups: sample_id, group_id, size, representative.
        samples: sample_id, caption.
        max_prompts: how many at most; ≥ 1.
        seed: of the draw.

    Returns:
        text, sample_id, group_id, n_duplicates, stratum, stratum_order, inclusion_probability; the most duplicated first.
        groups_left_out, the same in each row: how many groups are in strata of which none was drawn.
    """
    import duckdb

    with duckdb.connect() as connection:
        connection.register("duplicate_groups", duplicate_groups)
        connection.register("samples", samples)
        parameters = {"max_prompts": max_prompts, "seed": seed}
        return connection.sql(sql.read("tables", "prompts"), params=parameters).to_arrow_table()
