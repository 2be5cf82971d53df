"""Runs the SQL of ``sql/`` over one sweep: its staging, marts and checks.

The names in the SQL (models, untargeted_generations, …) are views on exactly the snapshots that were taken: of ``train``, and
of the stages after it that are there. Two tables are made here, since they come of pictures: ``densities`` and
``half_distances``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from transforms.kernels.effects import mean_interval
from transforms.results import marts
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage
from transforms.store.scan import bind, connect, scan
from transforms.store.schema import TABLES

if TYPE_CHECKING:
    import duckdb

STAGES = ("train", "extract", "infer", "inpaint")
"""The stages whose tables a sweep's marts are made of; of those after ``train`` the ones that are there."""

STEPS = (
    "staging/attacked",
    "staging/leaks",
    "staging/settings",
    "marts/membership",
    "marts/leakage",
    "marts/leakage_by_copies",
    "marts/leakage_effects",
    "marts/learning_curve",
    "marts/rule_agreement",
    "marts/diffusion_and_gans",
    "marts/largest_memorised",
    "marts/onset",
    "marts/onset_slopes",
    "marts/disjoint_halves",
    "marts/memorised_first",
    "marts/membership_roc",
    "marts/inpainting",
)
"""The files of ``sql/`` in the order in which they are run: each may read what is before it."""

MARTS = tuple(step.removeprefix("marts/") for step in STEPS if step.startswith("marts/"))

FIRST_COLUMN = "train_id"
"""Every mart of a sweep begins with this."""

RULES = ("adaptive_l2", "ratio", "l2")
"""Of untargeted extraction, the paper's first."""

DENSITY_NEIGHBOURS = 5
"""Training pictures that a training picture's local density is the mean distance to (our choice)."""

DENSITIES = pa.schema([("run_id", pa.string()), ("sample_id", pa.string()), ("mean_l2", pa.float64())])
HALF_DISTANCES = pa.schema(
    [
        *((name, pa.string()) for name in ("inside_model_id", "outside_model_id")),
        ("generations", pa.int64()),
        *((name, pa.float64()) for name in ("same_l2", "same_l2_lower", "same_l2_upper", "other_l2")),
    ]
)


def sql_digest() -> str:
    """Digest of the SQL of a sweep."""
    return marts.sql_digest(STEPS, "sweep_checks")


def run(lake: Lake, taken: Mapping[str, Manifest], snapshot: str) -> dict[str, int]:
    """Makes the marts of one sweep and checks them.

    Args:
        lake: the lake; the small pictures of its models must be there.
        taken: stage → manifest, of ``STAGES``: train, extract, and others that are there.
        snapshot: of ``compare``; where the marts are written.

    Returns:
        mart → rows.

    Raises:
        RuntimeError: if a check finds rows, with the checks' names and the first row of each.
    """
    with connect() as connection:
        make(connection, lake, taken)
        marts.check(connection, "sweep_checks", "sweep")
        first = {FIRST_COLUMN: taken["train"].snapshot_id}
        return {mart: marts.store(connection, lake, mart, snapshot, first) for mart in MARTS}


def make(connection: duckdb.DuckDBPyConnection, lake: Lake, taken: Mapping[str, Manifest]) -> None:
    """Binds the tables of one sweep (those of stages that aren't there are empty), and makes those of ``STEPS`` from them."""
    for table in TABLES.values():
        if table.stage in STAGES:
            bind(connection, lake, table.name, taken[table.stage].snapshot_id if table.stage in taken else "none")
    tables = ((DENSITIES, densities), (HALF_DISTANCES, half_distances))
    made = [pa.Table.from_batches(rows(lake, taken), schema) for schema, rows in tables]
    for name, table in zip(("densities", "half_distances"), made, strict=True):
        connection.register(name, table)
    marts.take(connection, STEPS)


def current(lake: Lake) -> list[Manifest]:
    """Of each sweep of the lake the ``compare`` that was asked for last."""
    by_time = sorted(lake.manifests("compare"), key=lambda manifest: manifest.last_asked)
    return list({manifest.upstream["train"]: manifest for manifest in by_time}.values())


def densities(lake: Lake, taken: Mapping[str, Manifest]) -> Iterator[pa.RecordBatch]:
    """How sparse training pictures lie: of each training, each of its pictures (identical ones once) with its mean l2 to the
    ``DENSITY_NEIGHBOURS`` training pictures nearest to it, of those that the lake still has.
    """
    from transforms.kernels.untargeted import TrainingPictures, distinct
    from transforms.training import members, population

    train = taken["train"]
    deduplicate, most = lineage(lake, train)["deduplicate"], train.parameters["pictures"]
    read = functools.lru_cache(maxsize=2)(functools.partial(population.read, lake, deduplicate, most))
    known: dict[tuple[int, tuple[str, ...]], tuple[np.ndarray, np.ndarray]] = {}
    for run_id, pixels, ids in _runs(lake, train):
        # Trainings of one draw have the same pictures, whatever else they are.
        key = (pixels, tuple(ids))
        if key not in known:
            rows = [{"sample_id": one, "kind": "picture"} for one in ids]
            there, pictures, _ = members.recalled(rows, read(pixels), pixels)
            first = np.flatnonzero(distinct(pictures) == np.arange(len(pictures)))
            if len(first) < 2:
                known[key] = np.zeros(0, np.str_), np.zeros(0)
            else:
                _, l2 = TrainingPictures(pictures[first]).nearest(pictures[first], DENSITY_NEIGHBOURS + 1)
                known[key] = np.array(there, np.str_)[first], l2[:, 1:].mean(1)  # the nearest one is the picture itself
        names, mean = known[key]
        if len(names):
            columns = [pa.repeat(pa.scalar(run_id), len(names)), pa.array(names.tolist(), pa.string()), pa.array(mean)]
            yield pa.record_batch(columns, schema=DENSITIES)


def _runs(lake: Lake, train: Manifest) -> Iterator[tuple[str, int, list[str]]]:
    """(run_id, pixels, ids of its training pictures) of each training that came to something."""
    query = """
        SELECT models.run_id, models.pixels, list(members.sample_id ORDER BY members.sample_id) AS ids
        FROM (SELECT DISTINCT run_id, pixels FROM models WHERE status = 'success') AS models
        JOIN model_members AS members ON members.run_id = models.run_id AND members.kind = 'picture'
        GROUP BY ALL
        ORDER BY models.pixels, models.run_id
    """
    tables = dict.fromkeys(("models", "model_members"), train.snapshot_id)
    for batch in scan(lake, tables, query):
        for row in batch.to_pylist():
            yield row["run_id"], row["pixels"], row["ids"]


def half_distances(lake: Lake, taken: Mapping[str, Manifest]) -> Iterator[pa.RecordBatch]:
    """How near two models come that were trained on disjoint halves and are alike else: l2 of the thumbnails of their
    generations of the same seeds, with Student's t interval over seeds, and of different ones (each with the next one's).
    """
    if "extract" not in taken:
        return
    tables = {"models": taken["train"].snapshot_id, "untargeted_generations": taken["extract"].snapshot_id}
    query = """
        WITH couples AS (
            SELECT inside.model_id AS inside_model_id, outside.model_id AS outside_model_id
            FROM models AS inside
            JOIN models AS outside ON outside.cohort = inside.cohort AND outside.split = inside.split
                AND outside.seed = inside.seed AND outside.step = inside.step AND outside.side = 'out'
            WHERE inside.side = 'in' AND inside.status = 'success' AND outside.status = 'success'
        )
        SELECT inside_model_id, outside_model_id,
            list(one.thumbnail ORDER BY one.sample_index) AS inside, list(other.thumbnail ORDER BY one.sample_index) AS outside
        FROM couples
        JOIN untargeted_generations AS one ON one.model_id = inside_model_id
        JOIN untargeted_generations AS other ON other.model_id = outside_model_id AND other.sample_index = one.sample_index
        WHERE one.thumbnail IS NOT NULL AND other.thumbnail IS NOT NULL
        GROUP BY ALL
        ORDER BY ALL
    """
    for batch in scan(lake, tables, query):
        rows = []
        for row in batch.to_pylist():
            halves = [np.stack([np.frombuffer(one, np.uint8) for one in row.pop(side)]) for side in ("inside", "outside")]
            rows.append({**row, **between(*halves)})
        yield pa.RecordBatch.from_pylist(rows, HALF_DISTANCES)


def between(inside: np.ndarray, outside: np.ndarray) -> dict[str, Any]:
    """The numbers of ``half_distances`` of two models' pictures, (N, d) uint8 each, the n-th of both of the same seed."""
    one, other = inside.astype(float), outside.astype(float)

    def l2(shift: int) -> np.ndarray:
        return np.sqrt(((one - np.roll(other, shift, 0)) ** 2).mean(1)) / 255

    same = mean_interval(l2(0).tolist())
    return {
        "generations": len(one), "same_l2": same.value, "same_l2_lower": same.lower, "same_l2_upper": same.upper,
        "other_l2": float(l2(1).mean()) if len(one) > 1 else None,
    }  # fmt: skip
