"""All marts over a made-up audit of 10 million generations; the same joins, value for value, in pandas over one of a million.

    python -m benchmarks.marts

An audit of n generations has n / 5 prompts, each the caption of a duplicate group of its own; group sizes have a heavy tail,
and there are 25 pairs for each prompt. One prompt in ten is flagged and keeps its images, one in twenty does by the slice; of
every other one the nearest to its own image is stored, and of few a copy of another image was made again. The tables are
written by DuckDB into a lake; what is timed reads them from there, checks included. Every run is a process of its own, with
memory of its own.

    python -m benchmarks.marts --generations 20000

runs it once on a small audit of so many, checks pandas' values, and writes no result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from benchmarks.duplicates_at_size import peak_memory
from benchmarks.marts_in_pandas import PandasMarts
from benchmarks.results import Row, write
from transforms.results import marts
from transforms.store import scan
from transforms.store.lake import Lake, Manifest, snapshot_id
from transforms.store.schema import TABLES

SMALL, LARGE = 1_000_000, 10_000_000
PER_PROMPT = 5
CONTROLS = 1000
DELTA, THRESHOLD = 0.15, 0.6
COARSE_L2, COARSE_RATIO = 0.15, 0.5
"""CopyLimits of a copy."""
JOINS = {"same_joins": "", "in_pandas": "pandas", "in_pandas_on_arrow": "pandas on Arrow's types"}
COMPARED = ("verdicts", "extraction_rate", "extractions")

IDENTITY = "'made' AS audit_id, 'made' AS model_revision, 'made' AS parameters_digest"

# A prompt's own image is near its generations where its fate is 0; another image is near all but the nearest of some that the
# slice kept, and of some that were dropped: of these one generation was made again.
STORED = "(control OR fate < 3 OR i = 0)"
AGAIN = "(NOT control AND fate = 3 AND number % 10 = 0 AND i = 1)"
OWN_NEAR = "(own AND fate = 0 AND NOT control)"
OTHER_NEAR = "(NOT own AND NOT control AND fate IN (2, 3) AND number % 10 = 0 AND i > 0)"
OWN_L2 = "CASE WHEN fate = 0 AND NOT control THEN 0.05 ELSE 0.3 END + i / 50 + (hash(number, i) % 1000) / 60000"
DISTANCES = """least(1, 2 * l2) AS tiled_l2, 5 * l2 AS adaptive_l2, CAST(50 AS INTEGER) AS n_others,
            l2 / ratio AS nearest_other_l2, ratio, 0.8 * l2 AS coarse_l2, 0.9 * ratio AS coarse_ratio"""

MADE = {
    # number: of the group and of its prompt; the controls come after the groups.
    "numbered": """
        SELECT number, number >= $prompts AS control, hash(number) % 100 AS dice,
            CASE WHEN dice < 70 THEN 1 WHEN dice < 85 THEN 2 WHEN dice < 93 THEN 3 + number % 2 WHEN dice < 97 THEN 8
                WHEN dice < 99 THEN 16 ELSE 32 END AS size,
            hash(number, 1) % 20 AS fate,
            md5(concat('p', number)) AS prompt_id
        FROM range($prompts + $controls) AS numbers(number)
    """,
    "members": """
        SELECT number, control, size, copy, md5(concat('s', number, '-', copy)) AS sample_id, md5(concat('s', number, '-0'))
            AS group_id
        FROM (SELECT number, control, CASE WHEN control THEN 1 ELSE size END AS size FROM numbered)
        CROSS JOIN LATERAL (SELECT unnest(range(size)) AS copy)
    """,
    "samples": """
        SELECT sample_id, CASE WHEN control THEN 'control' ELSE 'training' END AS role,
            concat('https://host', number % 5000, '.example/', number, '.jpg') AS url, concat('caption ', number) AS caption,
            NULL AS label, CAST(copy AS INTEGER) AS occurrence, 'made' AS source_file, number AS source_row,
            'success' AS status, NULL AS reason, NULL AS sha256, CAST(400 + number % 300 AS INTEGER) AS original_width,
            CAST(512 AS INTEGER) AS original_height, CAST(512 AS INTEGER) AS width, CAST(512 AS INTEGER) AS height,
            CAST(hash(number, copy) % 1000 / 1000 AS FLOAT) AS punsafe, CAST(0 AS FLOAT) AS pwatermark, NULL AS similarity,
            NULL AS metadata_hash, NULL AS metadata_width, NULL AS metadata_height, 'unknown' AS drift,
            TIMESTAMPTZ '2026-01-01' AS ingested_at
        FROM members
    """,
    "duplicate_groups": """
        SELECT sample_id, group_id, CAST(size AS INTEGER) AS size, group_id AS representative,
            CAST(0.95 AS FLOAT) AS lowest_cosine, CAST(size > 1 AS INTEGER) AS diameter, NULL AS identical_to
        FROM members WHERE NOT control
    """,
    "duplicate_pairs": """
        SELECT md5(concat('s', number, '-0')) AS sample_id_a, md5(concat('s', number, '-', pair)) AS sample_id_b,
            CAST(0.95 AS FLOAT) AS cosine, NULL AS pixel_distance, NULL AS pixels_agree
        FROM range($prompts) AS numbers(number) CROSS JOIN range(25) AS pairs(pair)
    """,
    "keep_list": """
        SELECT sample_id, NULL AS url, group_id, CAST(size AS INTEGER) AS size FROM members WHERE copy = 0 AND NOT control
    """,
    "prompts": f"""
        SELECT {IDENTITY}, prompt_id, concat('caption ', number) AS text,
            CASE WHEN control THEN 'control' ELSE 'duplicates' END AS origin, md5(concat('s', number, '-0')) AS sample_id,
            CASE WHEN NOT control THEN md5(concat('s', number, '-0')) END AS group_id,
            CASE WHEN NOT control THEN CAST(size AS INTEGER) END AS n_duplicates,
            CASE WHEN control THEN 'control' WHEN size IN (3, 4) THEN '3-4' ELSE CAST(size AS VARCHAR) END AS stratum,
            CASE WHEN control THEN -1 ELSE CAST(ceil(log2(size)) AS INTEGER) END AS stratum_order,
            CASE WHEN control THEN 1.0 ELSE least(1.0, size / 32) END AS inclusion_probability,
            CAST($per_prompt AS INTEGER) AS images_requested
        FROM numbered
    """,
    "cliques": f"""
        SELECT {IDENTITY}, prompt_id, CAST($per_prompt AS INTEGER) AS n_generated, CAST(0 AS INTEGER) AS n_failed,
            0.15 AS edge_distance, CAST(CASE WHEN fate < 2 THEN 5 ELSE 1 END AS INTEGER) AS clique_size, true AS clique_exact,
            CAST(3 AS INTEGER) AS clique_threshold, NULL AS mean_distance, fate < 2 AND NOT control AS flagged,
            CASE WHEN control THEN 'control' WHEN fate < 2 THEN 'flagged' WHEN fate < 3 THEN 'slice' ELSE 'dropped' END
                AS keep_rule,
            CASE WHEN control OR fate < 2 THEN 1.0 ELSE 1 / 18 END AS keep_probability, '{{}}' AS sizes_by_distance,
            1.0 AS seconds
        FROM numbered
    """,
    "generations": f"""
        SELECT {IDENTITY}, prompt_id, CAST(i AS INTEGER) AS sample_index, number * 8 + i AS seed, 'success' AS status,
            NULL AS reason, fate < 2 AS in_clique, {OWN_L2} AS own_l2, i = 0 AS nearest,
            CASE WHEN {STORED} THEN 'png'::BLOB END AS image, 'tiny'::BLOB AS thumbnail, CAST(512 AS INTEGER) AS width,
            CAST(512 AS INTEGER) AS height, CAST(50 AS INTEGER) AS steps, 7.5 AS guidance_scale, 0.25 AS seconds,
            'cuda' AS device, 'float16' AS dtype
        FROM numbered CROSS JOIN range($per_prompt) AS images(i)
    """,
    "regenerations": f"""
        SELECT {IDENTITY}, prompt_id, CAST(i AS INTEGER) AS sample_index,
            md5(concat('s', (number + 1) % $prompts, '-0')) AS group_id, 0.01 AS bound, 'success' AS status, NULL AS reason,
            'png'::BLOB AS image
        FROM numbered CROSS JOIN range($per_prompt) AS images(i) WHERE {AGAIN}
    """,
    "matches": f"""
        SELECT {IDENTITY}, prompt_id, CAST(i AS INTEGER) AS sample_index, i = 0 AS nearest, {AGAIN} AS regenerated,
            md5(concat('s', CASE WHEN own THEN number ELSE other END, '-0')) AS sample_id, sample_id AS group_id,
            CASE WHEN control THEN 'control' ELSE 'training' END AS role,
            CASE WHEN own THEN 'own' ELSE 'neighbour' END AS relation, CASE WHEN own THEN 'own' ELSE 'both' END AS found_by,
            CAST(0.9 AS FLOAT) AS cosine, CAST(0 AS INTEGER) AS offset, l2, {DISTANCES}, l2 <= {DELTA} AS extracted
        FROM (
            SELECT *,
                CASE WHEN control THEN $prompts + (number + 1 - $prompts) % $controls ELSE (number + 1) % $prompts END AS other,
                CASE WHEN own THEN {OWN_L2} WHEN {OTHER_NEAR} THEN 0.05 ELSE 0.45 END
                    + CASE WHEN own THEN 0 ELSE (hash(number, i, 2) % 1000) / 10000 END AS l2,
                CASE WHEN {OWN_NEAR} OR {OTHER_NEAR} THEN 0.1 ELSE 0.8 END + (hash(number, i, own) % 1000) / 5000 AS ratio
            FROM numbered CROSS JOIN range($per_prompt) AS images(i) CROSS JOIN (VALUES (true), (false)) AS sides(own)
            WHERE {STORED} OR {AGAIN}
        )
    """,
    "decoys": f"""
        SELECT {IDENTITY}, kind, md5(concat('s', number, '-0')) AS sample_id, sample_id AS group_id, l2, {DISTANCES}
        FROM (
            SELECT kind, CASE WHEN kind = 'held_out' THEN $prompts + place % $controls ELSE place % $prompts END AS number,
                0.1 + (hash(place, kind) % 1000) / 2000 AS l2, 0.4 + (hash(kind, place) % 1000) / 2000 AS ratio
            FROM range($controls) AS places(place)
            CROSS JOIN (VALUES ('held_out'), ('left_out'), ('blurred')) AS kinds(kind)
        )
    """,
    "copy_calibration": f"""
        SELECT {IDENTITY}, 0.99 AS l2_limit, {COARSE_L2} AS coarse_l2_limit, {COARSE_RATIO} AS coarse_ratio_limit,
            0.01 AS max_false_positive_rate, CAST($controls AS INTEGER) AS n_held_out,
            CAST($controls AS INTEGER) AS n_left_out, 0.01 AS promised_rate
    """,
    "calibration": f"""
        SELECT {IDENTITY}, name AS distance, name = 'adaptive_l2' AS chosen, 0.01 AS max_false_positive_rate,
            CAST($controls AS INTEGER) AS n_controls, CAST(5 AS INTEGER) AS generations_per_prompt,
            CAST(5 AS INTEGER) AS generations_per_control, {THRESHOLD} AS threshold, 0.01 AS promised_rate,
            CAST(0 AS INTEGER) AS controls_called, 0.003 AS upper_bound, CAST(0 AS INTEGER) AS controls_within_delta,
            CAST(0 AS INTEGER) AS controls_near_another_within_delta, CAST($prompts AS INTEGER) AS images_tested,
            CAST(0 AS INTEGER) AS images_called, 0.01 AS false_discovery_rate, 0.9 AS separation
        FROM (VALUES ('l2'), ('tiled_l2'), ('adaptive_l2')) AS distances(name)
    """,
    "eidetic_counts": f"""
        SELECT DISTINCT {IDENTITY}, sample_id, 0.1 AS eidetic_delta, 2 AS k
        FROM (
            SELECT md5(concat('s', CASE WHEN fate = 0 THEN number ELSE (number + 1) % $prompts END, '-0')) AS sample_id
            FROM numbered WHERE NOT control AND (fate = 0 OR fate IN (2, 3) AND number % 10 = 0)
        )
    """,
    "audits": f"""
        SELECT {IDENTITY}, 'diffusers' AS generator, 'made' AS model, 'made' AS ingest_snapshot, 'made' AS embed_snapshot,
            'made' AS deduplicate_snapshot, '{{"match": {{"delta": {DELTA}}}}}' AS parameters, '{{}}' AS versions,
            'made' AS machine, TIMESTAMPTZ '2026-01-01' AS finished_at
    """,
}
"""The tables in the order in which they are made; the first two are kept in memory only."""


def make_lake(root: str, generations: int) -> Manifest:
    """Writes the lake; returns the manifest of its matches."""
    lake = Lake(root)
    lake.create()
    ids = {"ingest": snapshot_id("ingest", {}, {})}
    for stage, above in (("embed", "ingest"), ("deduplicate", "embed"), ("generate", "deduplicate"), ("match", "generate")):
        ids[stage] = snapshot_id(stage, {}, {above: ids[above]})
    values = {"prompts": generations // PER_PROMPT, "controls": CONTROLS, "per_prompt": PER_PROMPT}
    with duckdb.connect() as connection:
        for name, select in MADE.items():
            used = {key: value for key, value in values.items() if f"${key}" in select}
            if name not in TABLES:
                connection.execute(f"CREATE TABLE {name} AS {select}", used)
                continue
            path = lake.part(name, ids[TABLES[name].stage], 0)
            Path(path).parent.mkdir(parents=True)
            connection.register("declared", TABLES[name].schema.empty_table())
            types = connection.execute("SELECT column_name, column_type FROM (DESCRIBE declared)").fetchall()
            typed = ", ".join(f'CAST("{column}" AS {type}) AS "{column}"' for column, type in types)
            connection.execute(f"COPY (SELECT {typed} FROM ({select})) TO '{path}' (FORMAT parquet)", used)
    upstream: dict[str, str] = {}
    for stage, snapshot in ids.items():
        manifest = lake.complete(stage, snapshot, {}, upstream)
        upstream = {stage: snapshot}
    return manifest


def all_marts(root: str) -> dict[str, Any]:
    """All marts and checks of the audit, as ``eidetic measure`` makes them."""
    lake = Lake(root)
    return {"rows": marts.run(lake, lake.latest("match"), "measured")}


def same_joins(root: str) -> dict[str, Any]:
    """The steps up to ``extractions``, without writing anything: what pandas does beside it."""
    lake = Lake(root)
    with scan.connect() as connection:
        marts.make(connection, lake, lake.latest("match"), last="marts/extractions")
        return {"rows": {name: connection.table(name).count("*").fetchall()[0][0] for name in COMPARED}}


def in_pandas(root: str, types: str | None = None) -> dict[str, Any]:
    """The same, in pandas."""
    pandas = PandasMarts(root, types)
    verdicts = pandas.verdicts()
    made = dict(zip(COMPARED, (verdicts, pandas.extraction_rate(verdicts), pandas.extractions(verdicts)), strict=True))
    return {"rows": {name: len(frame) for name, frame in made.items()}, "frames": made}


def in_pandas_on_arrow(root: str) -> dict[str, Any]:
    """The same, with Arrow's types in place of pandas' own."""
    return in_pandas(root, "pyarrow")


def check_same(root: str, made: dict[str, pd.DataFrame]) -> None:
    """AssertionError unless DuckDB's marts hold these rows, value for value, in this order."""
    lake = Lake(root)
    with scan.connect() as connection:
        marts.make(connection, lake, lake.latest("match"), last="marts/extractions")
        for name, frame in made.items():
            ours = connection.table(name).df()
            theirs = ours[["dimension", "bucket"]].merge(frame) if name == "extraction_rate" else frame
            for column in ours:
                one, other = ours[column].to_numpy(object), theirs[column].to_numpy(object)
                known = ~pd.isna(one)
                assert (known == ~pd.isna(other)).all(), f"nulls of {name}.{column}"
                if ours[column].dtype.kind == "f":
                    same = np.allclose(one[known].astype(float), other[known].astype(float), rtol=1e-9, atol=1e-12)
                else:
                    same = bool((one[known] == other[known]).all())
                assert same, f"values of {name}.{column}"


WORK: dict[str, Callable[[str], dict[str, Any]]] = {
    "marts": marts, "same_joins": same_joins, "in_pandas": in_pandas, "in_pandas_on_arrow": in_pandas_on_arrow,
}  # fmt: skip


def in_process(work: str, root: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.marts", "--work", work, "--lake", str(root)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
    result = json.loads(done.stdout.splitlines()[-1])
    print(work, root.name, result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=tuple(WORK))
    parser.add_argument("--lake")
    parser.add_argument("--generations", type=int)
    given = parser.parse_args()
    if given.work:
        # What is imported on first use is no part of the joins.
        scan.exact_interval([1], [2], [1.0])
        pd.read_parquet(Lake(given.lake).every_part("audits")[0])
        begun = time.monotonic()
        result = WORK[given.work](given.lake)
        told = {"rows": result["rows"], "seconds": time.monotonic() - begun, "gib": peak_memory()}
        if "frames" in result:
            check_same(given.lake, result["frames"])
        print(json.dumps(told))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if given.generations:
            make_lake(str(folder / "small"), given.generations)
            for work in WORK:
                in_process(work, folder / "small")
            return
        found = {}
        for n in (SMALL, LARGE):
            make_lake(str(folder / str(n)), n)
            found[n] = in_process("marts", folder / str(n))
        # In turns, and of each the fastest.
        seconds: dict[str, float] = {}
        for work in [*JOINS, *JOINS, *JOINS]:
            took = in_process(work, folder / str(SMALL))["seconds"]
            seconds[work] = min(took, seconds.get(work, took))
    write("marts", [
        Row(f"all marts and checks, {LARGE:,} generations: time", found[LARGE]["seconds"] / 60, "min", 3),
        Row(f"all marts and checks, {LARGE:,} generations: peak memory", found[LARGE]["gib"], "GiB", 8),
        Row(f"all marts and checks, {LARGE:,} generations: growth", found[LARGE]["seconds"], "s", 11, f"{SMALL:,}",
            found[SMALL]["seconds"]),
        *(Row(f"verdicts, rates and extractions, {SMALL:,} generations", seconds["same_joins"], "s", 0.2, peer, seconds[work])
          for work, peer in JOINS.items() if peer),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
