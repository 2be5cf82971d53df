"""The prompts of an audit: drawn from the groups, brought by the user, and the captions of the controls.

Which groups are drawn is ``sql/tables/prompts.sql``'s matter; here the three kinds become rows of one table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transforms.store.lineage import lineage
from transforms.store.quotations import quotations
from transforms.store.scan import ask, bind, connect

if TYPE_CHECKING:
    import duckdb

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa

import sql
from transforms.errors import UserError
from transforms.store.files import read_bytes, read_parquet
from transforms.store.identity import prompt_id
from transforms.store.lake import Lake, Manifest
from transforms.store.tombstones import Tombstones, sha256

CAPTION_COLUMNS = ("caption", "prompt", "text", "TEXT")
"""Where a user's list may keep its prompts, the first that is there wins."""


def read_prompt_list(path: str) -> list[str]:
    """A user's own prompts, in their order, each once.

    Args:
        path: a text file (one prompt a line), JSONL or Parquet with one of ``CAPTION_COLUMNS``.

    Raises:
        UserError: if it can't be read, or holds no prompt.
    """
    try:
        if path.endswith(".parquet"):
            prompts = _caption_column(read_parquet(path), path)
        elif path.endswith((".jsonl", ".json")):
            lines = [json.loads(line) for line in _lines(path) if line.strip()]
            prompts = _caption_column(pa.Table.from_pylist(lines), path)
        else:
            prompts = _lines(path)
    except (OSError, ValueError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise UserError(
            f"cannot read prompts from {path!r} ({error}); expected text with a prompt a line, JSONL, or Parquet"
        ) from error
    kept = list(dict.fromkeys(prompt.strip() for prompt in prompts if prompt and prompt.strip()))
    if not kept:
        raise UserError(f"{path!r} holds no prompt")
    return kept


def _lines(path: str) -> list[str]:
    """By line feeds alone: what else splitlines() takes for an end may stand in a caption, and in JSON."""
    return read_bytes(path).decode("utf-8-sig").split("\n")


def _caption_column(table: pa.Table, path: str) -> list[str]:
    for name in CAPTION_COLUMNS:
        if name in table.column_names:
            prompts = table[name].to_pylist()
            wrong = [prompt for prompt in prompts if not isinstance(prompt, str | None)]
            if wrong:
                raise UserError(f"{path!r} has {wrong[0]!r} among its prompts, expected text; mend its column {name!r}")
            return prompts
    raise UserError(f"{path!r} has columns {table.column_names}, expected one of {list(CAPTION_COLUMNS)}")


class Drawn(NamedTuple):
    """Prompts that were drawn.

    Attributes:
        rows: of ``prompts``, without the audit's columns.
        groups_left_out: groups in strata of which none was drawn: there were fewer prompts than strata.
    """

    rows: list[dict[str, Any]]
    groups_left_out: int


def drawn_prompts(lake: Lake, deduplicate: Manifest, *, max_prompts: int, images_per_prompt: int, base_seed: int) -> Drawn:
    """Captions of the groups' representatives, by strata of group size."""
    with connect() as connection:
        bind(connection, lake, "duplicate_groups", deduplicate.snapshot_id)
        bind(connection, lake, "samples", lineage(lake, deduplicate)["ingest"].snapshot_id, "all_samples")
        forgotten = {"forgotten": sorted(Tombstones.read(lake).samples)}
        connection.execute("SET VARIABLE forgotten = $forgotten::VARCHAR[]", forgotten)
        connection.execute(f"CREATE VIEW samples AS SELECT * FROM all_samples WHERE {NOT_FORGOTTEN}")
        drawn = draw(connection, max_prompts, base_seed)
    rows = [
        {**row, "prompt_id": prompt_id(row["text"], "duplicates", row["sample_id"]), "origin": "duplicates",
         "images_requested": images_per_prompt}
        for row in drawn.drop_columns("groups_left_out").to_pylist()
    ]  # fmt: skip
    return Drawn(rows, drawn["groups_left_out"][0].as_py() if rows else 0)


NOT_FORGOTTEN = "sample_id NOT IN (SELECT unnest(getvariable('forgotten')))"


def listed_prompts(lake: Lake, deduplicate: Manifest, texts: list[str], images: Callable[[str], int]) -> list[dict[str, Any]]:
    """The user's prompts. One that is a training caption stands for the largest group that has it.

    One that is a forgotten caption, or quotes one or a forgotten url, is left out where no other sample has that: what it
    brings up could be compared with nothing.

    Args:
        lake: where the groups are.
        deduplicate: their snapshot.
        texts: the prompts.
        images: how many generations to make of a prompt.
    """
    tombstones = Tombstones.read(lake)
    quoting = quotations(lake, tombstones, texts)
    tables = {"duplicate_groups": deduplicate.snapshot_id, "samples": lineage(lake, deduplicate)["ingest"].snapshot_id}
    query = """
        SELECT stripped(caption) AS text, group_id, representative, size
        FROM samples LEFT JOIN duplicate_groups USING (sample_id)
        WHERE stripped(caption) IN (SELECT unnest($texts::VARCHAR[]))
            AND sample_id NOT IN (SELECT unnest($forgotten::VARCHAR[]))
        QUALIFY row_number() OVER (PARTITION BY stripped(caption) ORDER BY size DESC NULLS LAST, group_id DESC) = 1
    """
    found = {row["text"]: row for row in ask(lake, tables, query, texts=texts, forgotten=sorted(tombstones.samples))}
    forgotten = {text for text in texts if sha256(text) in tombstones.captions and text not in found}
    largest = {text: row for text, row in found.items() if row["group_id"] is not None}
    return [
        {
            "prompt_id": prompt_id(text, "list", None),
            "text": text,
            "origin": "list",
            "sample_id": largest[text]["representative"] if text in largest else None,
            "group_id": largest[text]["group_id"] if text in largest else None,
            "n_duplicates": largest[text]["size"] if text in largest else None,
            "stratum": "list",
            "stratum_order": -1,
            "inclusion_probability": 1.0,
            "images_requested": images(text),
        }
        for text in texts
        if text not in forgotten and text not in quoting
    ]


def control_prompts(lake: Lake, embed: Manifest, images: Callable[[str], int]) -> list[dict[str, Any]]:
    """The captions of the controls that were downloaded and embedded; none where there are no controls."""
    tables = {"embeddings": embed.snapshot_id, "samples": embed.upstream["ingest"]}
    query = """
        SELECT sample_id, stripped(caption) AS text
        FROM samples SEMI JOIN embeddings
            ON embeddings.sample_id = samples.sample_id AND embeddings.role = 'control' AND embeddings.status = 'success'
        WHERE samples.role = 'control' AND samples.status = 'success' AND coalesce(stripped(caption), '') <> ''
            AND samples.sample_id NOT IN (SELECT unnest($forgotten::VARCHAR[]))
        ORDER BY sample_id
    """
    found = ask(lake, tables, query, forgotten=sorted(Tombstones.read(lake).samples))
    return [
        {
            "prompt_id": prompt_id(text, "control", sample),
            "text": text,
            "origin": "control",
            "sample_id": sample,
            "group_id": None,
            "n_duplicates": None,
            "stratum": "control",
            "stratum_order": -1,
            "inclusion_probability": 1.0,
            "images_requested": images(text),
        }
        for sample, text in ((row["sample_id"], row["text"]) for row in found)
        if images(text)
    ]


def draw(connection: duckdb.DuckDBPyConnection, max_prompts: int, seed: int) -> pa.Table:
    """The groups whose representative's caption is tried: ``sql/tables/prompts.sql``.

    Args:
        connection: of ``connect``, with duplicate_groups (sample_id, group_id, size, representative) and samples (sample_id,
            caption).
        max_prompts: how many at most; ≥ 1.
        seed: of the draw.

    Returns:
        text, sample_id, group_id, n_duplicates, stratum, stratum_order, inclusion_probability; the most duplicated first.
        groups_left_out, the same in each row: how many groups are in strata of which none was drawn.
    """
    return connection.sql(sql.read("tables", "prompts"), params={"max_prompts": max_prompts, "seed": seed}).to_arrow_table()
