"""Compares the models of a sweep: its marts, audit.duckdb, and its report.

reads   models, model_members, and what the stages after train made of them, as far as they are complete: extract (which must
        be), infer, inpaint
writes  the marts of a sweep (leakage, leakage_effects, learning_curve, diffusion_and_gans and others: docs/sweep.md),
        audit.duckdb, reports/sweep-<train>.html and sweep.html, which is the newest

DuckDB runs the files of sql/ on the machine that the command runs on. The sweep's own checks (sql/sweep_checks) must return
nothing, or the stage fails with their names.

  eidetic compare --lake lake
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from pipelines.execution import Execution
from pipelines.measure import moment
from pipelines.options import Options, Parsed, option, parameters
from pipelines.query import as_table
from pipelines.stages import Planned, Stage, alone_with
from pipelines.train import ready_pictures
from transforms.errors import UserError
from transforms.results import database, report, sweep_report, sweeps
from transforms.store.files import exists, stat, write_bytes
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import check_lineage, lineage
from transforms.store.scan import ask


@dataclasses.dataclass(frozen=True)
class CompareOptions(Options):
    """Comparing: the report."""

    sweep_pictures: int = option(200, "training pictures that came back which the report of a sweep shows", least=0)


def newest(lake: Lake, train: str) -> dict[str, str]:
    """Stage → snapshot that was asked for last, of those stages that have looked at the models of ``train``."""
    found = {}
    for stage in sweeps.STAGES[1:]:
        made = [one for one in lake.manifests(stage) if one.upstream.get("train") == train]
        if made:
            found[stage] = max(made, key=lambda manifest: manifest.last_asked).snapshot_id
    return found


def plan(lake: Lake, parsed: Parsed, train: str | None) -> Planned:
    """What ``compare`` would make of the models of ``train`` and of what has been asked of them."""
    assert train is not None, "it has an upstream"
    shaping = {
        **parameters(parsed[CompareOptions]),
        "sql": sweeps.sql_digest(),
        "report": sweep_report.digest_of_template(),
    }

    def models() -> int | None:
        done = lake.manifest("train", train)
        return None if done is None else done.rows["models"]

    return Planned("compare", shaping, {"train": train, **newest(lake, train)}, "models", models)


def work(execution: Execution, parsed: Parsed, planned: Planned, train: Manifest | None) -> dict[str, Any]:
    """Makes the marts and the report."""
    assert train is not None, "it has an upstream"
    lake = execution.lake
    taken = _taken(lake, planned.upstream)
    if "extract" not in taken:
        raise UserError(
            f"nobody has asked the models of train {train.snapshot_id} for pictures yet; run 'eidetic extract' first"
        )
    check_lineage(lake, taken.values())
    _ready(execution, train)
    rows = sweeps.run(lake, taken, planned.snapshot_id)
    write_report(lake, parsed[CompareOptions], taken, planned.snapshot_id)
    return {"marts": rows}


def _taken(lake: Lake, upstream: dict[str, str]) -> dict[str, Manifest]:
    found = {stage: lake.manifest(stage, snapshot) for stage, snapshot in upstream.items()}
    return {stage: manifest for stage, manifest in found.items() if manifest is not None}


def _ready(execution: Execution, train: Manifest) -> None:
    """Makes the small pictures again that marts and report look at, where they are gone."""
    lake = execution.lake
    rows = ask(lake, {"models": train.snapshot_id}, "SELECT DISTINCT pixels FROM models WHERE status = 'success'")
    sizes = {row["pixels"] for row in rows}
    ready_pictures(execution, lineage(lake, train)["deduplicate"], train.parameters["pictures"], sizes)


def found(execution: Execution, parsed: Parsed, done: Manifest) -> None:
    """Writes the report again where it shows something else than this comparison, or was deleted."""
    lake = execution.lake
    if not exists(page_of(lake, done.upstream["train"])) or done not in sweeps.current(lake):
        taken = _taken(lake, done.upstream)
        _ready(execution, taken["train"])
        write_report(lake, parsed[CompareOptions], taken, done.snapshot_id)


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    """Makes the database, as ``measure`` does."""
    lake = execution.lake
    path = lake.path(database.DATABASE)
    if lake.is_local or not exists(path) or stat(path).modified < moment(manifest.finished_at):
        database.build_database(lake)


def page_of(lake: Lake, train: str) -> str:
    """Where the report of a sweep lies."""
    return lake.path("reports", f"sweep-{train}.html")


def write_report(lake: Lake, options: CompareOptions, taken: dict[str, Manifest], snapshot: str) -> None:
    """Writes the report of a sweep, by its number and as the newest."""
    content = sweep_report.render(lake, taken, snapshot, options.sweep_pictures)
    write_bytes(page_of(lake, taken["train"].snapshot_id), content)
    write_bytes(lake.path("sweep.html"), content)


def summary(lake: Lake, compare: Manifest) -> str:
    """What the command ends with: a line for each experiment, and where report and database are."""
    names = ["experiment", "trainings", "asked", *(name for rule in sweeps.RULES for name in (rule, "controls")), "Fréchet"]
    rows = [
        (
            one.name,
            one.trainings,
            one.asked,
            *(sweep_report.share(some[rule]) for rule in sweeps.RULES for some in (one.extracted, one.controls)),
            "-" if one.frechet is None else f"{one.frechet:.3g}",
        )
        for one in sweep_report.experiments(sweep_report.rows_of(lake, "leakage", compare.snapshot_id))
    ]
    return "\n".join(
        [
            "",
            as_table(names, rows),
            "",
            "share of their training pictures that models gave back unasked, by rule, at the end of their training: mean over "
            "trainings;",
            "controls: of as many pictures that they never saw, which is false",
            f"report    {page_of(lake, compare.upstream['train'])}",
            f"database  {lake.path(database.DATABASE)}",
            'query     eidetic query "SELECT axis, level, reference, effect, effect_lower, effect_upper FROM leakage_effects '
            f"WHERE setting = 'all' AND measure = 'extracted_by_adaptive_l2_share'\" --lake {report.quoted(lake.root)}",
        ]
    )


STAGE = Stage(
    name="compare",
    description=__doc__,
    upstream="train",
    options=(CompareOptions,),
    plan=plan,
    work=work,
    found=found,
    finish=finish,
)


def main(argv: Sequence[str]) -> None:
    execution, parsed = STAGE.parse(argv)
    with alone_with(parsed, "compare"):
        print(summary(execution.lake, STAGE.run(execution, parsed)))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
