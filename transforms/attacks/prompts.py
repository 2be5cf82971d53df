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

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

import sql
from transforms.errors import UserError
from transforms.store.files import is_url, open_parquet, read_bytes
from transforms.store.identity import prompt_id
from transforms.store.lake import Lake, Manifest
from transforms.store.listings import (
    PARQUET,
    column_named,
    decode_text,
    first_of,
    json_lines,
    parse_json,
    readable_texts,
    refuse_twice,
    sayable,
    separated_rows,
)
from transforms.store.tombstones import Tombstones, sha256

CAPTION_COLUMNS = ("caption", "prompt", "text")
"""Where a user's list may keep its prompts, in whatever letters; the first that a row has wins."""

EXPECTED_PROMPTS = (
    "expected text with a prompt a line (.txt, or no ending), or .csv, .tsv, .jsonl, .ndjson, .json or .parquet with a column "
    f"{', '.join(CAPTION_COLUMNS[:-1])} or {CAPTION_COLUMNS[-1]}"
)


def read_prompt_list(path: str) -> list[str]:
    """A user's own prompts, in their order, each once.

    Args:
        path: a text file (one prompt a line), or JSON lines, JSON, CSV or Parquet with one of ``CAPTION_COLUMNS``, by its
            ending in whatever letters.

    Raises:
        UserError: if it can't be read, or holds no prompt.
    """
    if not is_url(path) and os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path!r} is a folder, a pipe or a device; {EXPECTED_PROMPTS}")
    try:
        prompts = list(dict.fromkeys(sayable(prompt.strip()) for prompt in _prompts_of(path) if prompt.strip()))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"cannot read prompts from {path!r} ({error}); {EXPECTED_PROMPTS}") from error
    if not prompts:
        raise UserError(f"{path!r} holds no prompt; {EXPECTED_PROMPTS}")
    return prompts


def _prompts_of(path: str) -> Iterator[str]:
    ending = os.path.splitext(path)[1].lower()
    if ending in ("", ".txt", ".text", ".caption"):
        # By line feeds alone: what else splitlines() takes for an end may stand in a caption.
        yield from decode_text(read_bytes(path)).split("\n")
    elif ending in PARQUET:
        yield from _of_parquet(path)
    elif ending in (".csv", ".tsv"):
        text = decode_text(read_bytes(path))
        yield from _of_rows(separated_rows(text, path, CAPTION_COLUMNS, EXPECTED_PROMPTS), path)
    elif ending in (".jsonl", ".ndjson", ".json"):
        text = decode_text(read_bytes(path))
        if ending == ".json" and text.lstrip().startswith("["):
            yield from _of_rows(enumerate(parse_json(text, repr(path), EXPECTED_PROMPTS), start=1), path)
        else:
            yield from _of_rows(json_lines(text, path, EXPECTED_PROMPTS), path)
    else:
        raise UserError(f"cannot read prompts from {path!r}, whose ending is {ending!r}; {EXPECTED_PROMPTS}")


def _of_rows(rows: Iterable[tuple[int, Any]], path: str) -> Iterator[str]:
    """The prompts of rows, each for itself: a row that has none is passed over, where another has one."""
    seen: dict[str, None] = {}
    found = False
    for number, row in rows:
        if isinstance(row, dict):
            seen.update(dict.fromkeys(row))
            prompt = first_of(row, CAPTION_COLUMNS)
            found = found or column_named(list(row), CAPTION_COLUMNS) is not None
        else:
            prompt = row
            found = True
        if not isinstance(prompt, str | None):
            raise UserError(f"{path!r}, line {number}: {str(prompt)[:80]!r} is no text; {EXPECTED_PROMPTS}")
        if prompt is not None:
            yield prompt
    if seen and not found:
        raise UserError(f"{path!r} has columns {list(seen)}; {EXPECTED_PROMPTS}")


def _of_parquet(path: str) -> Iterator[str]:
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        name = column_named(names, CAPTION_COLUMNS)
        if name is None:
            raise UserError(f"{path!r} has columns {names}; {EXPECTED_PROMPTS}")
        refuse_twice(path, names, (name,))
        for batch in file.iter_batches(columns=[name]):
            for prompt in readable_texts(batch).column(0).drop_null().to_pylist():
                if not isinstance(prompt, str):
                    raise UserError(f"{path!r} has {prompt!r} among its prompts, expected text; mend its column {name!r}")
                yield prompt


class Drawn(NamedTuple):
    """Prompts that were drawn.

    Attributes:
        rows: of ``prompts``, without the audit's columns.
        groups_left_out: groups in strata of which none was drawn: there were fewer prompts than strata.
        groups_without_caption: groups of which no image has a caption, and that nobody can ask for.
        placeholders: groups that were not drawn from, since they are no picture of what their captions say.
    """

    rows: list[dict[str, Any]]
    groups_left_out: int = 0
    groups_without_caption: int = 0
    placeholders: int = 0


def drawn_prompts(
    lake: Lake,
    deduplicate: Manifest,
    *,
    max_prompts: int,
    images_per_prompt: int,
    base_seed: int,
    skip_changed: bool = False,
    skip_placeholders: bool = True,
) -> Drawn:
    """Captions of the groups, by strata of group size.

    Args:
        lake: where the groups are.
        deduplicate: their snapshot.
        max_prompts: how many at most.
        images_per_prompt: how many generations to make of each.
        base_seed: of the draw.
        skip_changed: whether captions of pictures that changed are left out. A group keeps its size, and is asked for by
            another of its images that has a caption, if there is one.
        skip_placeholders: whether groups that ``sql/marts/placeholders.sql`` finds are left out.
    """
    with connect() as connection:
        bind(connection, lake, "duplicate_groups", deduplicate.snapshot_id)
        bind(connection, lake, "samples", lineage(lake, deduplicate)["ingest"].snapshot_id, "all_samples")
        forgotten = {"forgotten": sorted(Tombstones.read(lake).samples)}
        connection.execute("SET VARIABLE forgotten = $forgotten::VARCHAR[]", forgotten)
        connection.execute(f"CREATE TEMP VIEW samples AS {REMAINING}")
        placeholders = 0
        if skip_placeholders:
            connection.execute(f"CREATE TEMP TABLE placeholders AS {sql.read('marts', 'placeholders')}")
            placeholders = connection.sql("SELECT count(*) FROM placeholders").fetchall()[0][0]
            bind(connection, lake, "duplicate_groups", deduplicate.snapshot_id, "all_groups")
            left = "SELECT * FROM all_groups ANTI JOIN placeholders USING (group_id)"
            connection.execute(f"CREATE OR REPLACE TEMP VIEW duplicate_groups AS {left}")
        if skip_changed:
            # Not before: a picture that isn't found any more is one that changed, and by all its captions a placeholder.
            bind(connection, lake, "embeddings", lineage(lake, deduplicate)["embed"].snapshot_id)
            connection.execute(f"CREATE TEMP TABLE drift_rule AS {sql.read('staging', 'drift_rule')}")
            connection.execute(f"CREATE OR REPLACE TEMP VIEW samples AS {UNCHANGED}")
        drawn = draw(connection, max_prompts, base_seed)
        without = connection.sql("SELECT count(*) FROM group_captions WHERE text IS NULL").fetchall()[0][0]
    rows = [
        {**row, "prompt_id": prompt_id(row["text"], "duplicates", row["sample_id"]), "origin": "duplicates",
         "images_requested": images_per_prompt}
        for row in drawn.drop_columns("groups_left_out").to_pylist()
    ]  # fmt: skip
    return Drawn(rows, drawn["groups_left_out"][0].as_py() if rows else 0, without, placeholders)


REMAINING = "SELECT * FROM all_samples WHERE sample_id NOT IN (SELECT unnest(getvariable('forgotten')))"
"""The samples that nobody asked to forget."""

UNCHANGED = f"""
    SELECT remaining.*
    FROM ({REMAINING}) AS remaining
    LEFT JOIN (SELECT sample_id, caption_cosine FROM embeddings WHERE caption_cosine IS NOT NULL) AS cosines USING (sample_id)
    CROSS JOIN drift_rule
    WHERE drift_of(drift, caption_cosine - similarity, lowest_gap) <> 'changed'
"""
"""Those of them of which nothing says that the picture changed."""


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
    """The groups whose caption is tried: ``sql/tables/prompts.sql``. Leaves the table ``group_captions`` behind.

    Args:
        connection: of ``connect``, with duplicate_groups (sample_id, group_id, size, representative) and samples (sample_id,
            caption).
        max_prompts: how many at most; ≥ 1.
        seed: of the draw.

    Returns:
        text, sample_id, group_id, n_duplicates, stratum, stratum_order, inclusion_probability; the most duplicated first.
        groups_left_out, the same in each row: how many groups are in strata of which none was drawn.
    """
    connection.execute(f"CREATE OR REPLACE TEMP TABLE group_captions AS {sql.read('tables', 'group_captions')}")
    return connection.sql(sql.read("tables", "prompts"), params={"max_prompts": max_prompts, "seed": seed}).to_arrow_table()
