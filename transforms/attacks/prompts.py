"""The prompts of an audit: drawn from the groups, brought by the user, and the captions of the controls.

Which groups are drawn is ``sql/tables/prompts.sql``'s matter; here the three kinds become rows of one table.
"""

from __future__ import annotations

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
    except (OSError, ValueError, AttributeError, pa.ArrowException) as error:
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
    from transforms.attacks.prompts import draw_prompts

    drawn = draw_prompts(
        lake.read("duplicate_groups", deduplicate.snapshot_id),
        _captions(lake, deduplicate),
        max_prompts=max_prompts,
        seed=base_seed,
    )
    rows = [
        {**row, "prompt_id": prompt_id(row["text"], "duplicates", row["sample_id"]), "origin": "duplicates",
         "images_requested": images_per_prompt}
        for row in drawn.drop_columns("groups_left_out").to_pylist()
    ]  # fmt: skip
    return Drawn(rows, drawn["groups_left_out"][0].as_py() if rows else 0)


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
    from transforms.store.quotations import quotations

    groups = {row["sample_id"]: row for row in lake.read("duplicate_groups", deduplicate.snapshot_id).to_pylist()}
    largest: dict[str, dict[str, Any]] = {}
    wanted = set(texts)
    tombstones = Tombstones.read(lake)
    quotes = quotations(lake, tombstones, [texts])
    forgotten = {text for text in texts if sha256(text) in tombstones.captions}
    for sample in _captions(lake, deduplicate).to_pylist():
        group = groups.get(sample["sample_id"])
        caption = (sample["caption"] or "").strip()
        forgotten.discard(caption)
        if group is None or caption not in wanted:
            continue
        best = largest.get(caption)
        if best is None or (group["size"], best["group_id"]) > (best["size"], group["group_id"]):
            largest[caption] = group
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
        if text not in forgotten and not any(quote in text for quote in quotes)
    ]


def control_prompts(lake: Lake, embed: Manifest, images: Callable[[str], int]) -> list[dict[str, Any]]:
    """The captions of the controls that were downloaded and embedded; none where there are no controls."""
    embedded = _with_status(lake.read("embeddings", embed.snapshot_id, ["sample_id", "role", "status"]), "control")
    samples = lake.read("samples", embed.upstream["ingest"], ["sample_id", "role", "caption", "status"])
    rows = []
    for sample in Tombstones.read(lake).spared(_with_status(samples, "control")).to_pylist():
        text = (sample["caption"] or "").strip()
        rows.append((sample["sample_id"], text))
    present = set(embedded["sample_id"].to_pylist())
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
        for sample, text in sorted(rows)
        if text and sample in present and images(text)
    ]


def _captions(lake: Lake, deduplicate: Manifest) -> pa.Table:
    embed = lake.manifest("embed", deduplicate.upstream["embed"])
    assert embed is not None, "a complete snapshot's upstream is complete"
    return Tombstones.read(lake).spared(lake.read("samples", embed.upstream["ingest"], ["sample_id", "caption"]))


def _with_status(table: pa.Table, role: str) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.and_(pc.equal(table["role"], role), pc.equal(table["status"], "success")))


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
