"""Tries what keeps a model from copying while it makes pictures, and attacks it with DoRI, which looks for what is only hidden.

reads   prompts, matches and copy_calibration of the newest audit, its images and groups; the model
writes  mitigations (one row a prompt under a mitigation), mitigation_effects (leak before, after, and after DoRI)

Prompts that the audit calls copied, as many that it doesn't, and as many captions of controls are asked again, under each
mitigation with the same noise, and their pictures judged as match judges. DoRI then looks for an embedding that makes the model
draw a prompt's own image, and pictures of that are made and judged likewise; those of controls say what it brings back of
pictures that the model never saw. Needs a pipeline of Stable Diffusion's shape. docs/mitigations.md says what each one does.

  eidetic mitigate --lake lake --prompts_per_class 50 --images 4
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

import sql
from pipelines import measure
from pipelines.device import DeviceOptions
from pipelines.embed import encoder
from pipelines.execution import Execution, Progress, say
from pipelines.generate import generator_again
from pipelines.match import ModelOptions
from pipelines.options import Options, Parsed, option, parameters
from pipelines.query import as_table
from pipelines.stages import Planned, Stage, alone_with
from transforms.attacks.mitigating import MakeMitigated, MitigateHandler, drawn_file, pictures_folder
from transforms.data.images import ImageStore
from transforms.errors import UserError
from transforms.kernels import quality
from transforms.kernels.copies import CopyLimits
from transforms.kernels.distances import Frame
from transforms.matching.candidates import IndexGroups
from transforms.matching.comparison import Measure
from transforms.matching.directory import Directory
from transforms.matching.lookup import is_indexed
from transforms.matching.mitigated import PROMPTS_AT_ONCE, JudgeHandler, JudgeMitigated, Mitigated
from transforms.matching.tasks import Round, Snapshots
from transforms.models.diffusion import DiffusersGenerator
from transforms.models.mitigations import MITIGATIONS, DoRI, MitigatedGenerator, NoMitigation
from transforms.models.processes import Devices
from transforms.store.files import count_rows, delete, exists, list_files, read_rows, write_parquet
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage
from transforms.store.scan import ask
from transforms.store.tombstones import Tombstones


@dataclasses.dataclass(frozen=True)
class MitigateOptions(Options):
    """Mitigations: which, and on how much."""

    prompts_per_class: int = option(
        50, "prompts of each class, drawn by hash: copied, not copied, and captions of controls", least=1
    )
    images: int = option(4, "pictures of each prompt under each mitigation", least=1)
    mitigations: tuple[str, ...] = option((), f"those that are tried (default: all of {', '.join(MITIGATIONS)})")
    dori: bool = option(True, "attack each mitigation with DoRI (--no_dori: not)")
    dori_steps: int = option(50, "steps of DoRI's search (paper: 50)", least=1)
    dori_batch: int = option(8, "draws of noise in each of them (paper: 8)", least=1)
    dori_rate: float = option(0.1, "learning rate of Adam in it (paper: 0.1)", over=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.mitigations:
            if name not in MITIGATIONS:
                raise UserError(f"--mitigations names {name!r}, expected some of {', '.join(MITIGATIONS)}")

    @property
    def tried(self) -> list[NoMitigation]:
        """In order; ``none``, which the others are held against, always."""
        return [one for name, one in MITIGATIONS.items() if name == "none" or not self.mitigations or name in self.mitigations]

    @property
    def attack(self) -> DoRI | None:
        return DoRI(self.dori_steps, self.dori_batch, self.dori_rate) if self.dori else None


@dataclasses.dataclass(frozen=True)
class BatchOptions(Options):
    """How the model runs."""

    batch_size: int | None = option(None, "pictures made at once, of one prompt (default: as in the audit)", least=1)


def plan(lake: Lake, parsed: Parsed, match: str | None) -> Planned:
    """What ``mitigate`` would make of the matches of snapshot ``match``."""
    assert match is not None, "it has an upstream"
    options: MitigateOptions = parsed[MitigateOptions]
    shaping = {
        **parameters(options, leave_out=("mitigations",)),
        # Another parameter of one of them makes other pictures.
        "mitigations": {one.name: dataclasses.asdict(one) for one in options.tried},
        "sql": digest("sql", [sql.read("tables", name) for name in ("mitigated_prompts", "mitigation_effects")]),
    }
    return Planned("mitigate", shaping, {"match": match}, "prompts")


def work(execution: Execution, parsed: Parsed, planned: Planned, match: Manifest | None) -> dict[str, Any]:
    """Draws the prompts, makes their pictures, and judges them."""
    assert match is not None, "it has an upstream"
    lake, options, device = execution.lake, parsed[MitigateOptions], parsed[DeviceOptions]
    made_of, snapshot = lineage(lake, match), planned.snapshot_id
    generate = made_of["generate"]
    if generate.parameters["generator"] != DiffusersGenerator.kind:
        raise UserError(
            f"the audit {generate.snapshot_id} is of finished generations, and mitigations need the model; "
            "audit one with --model"
        )
    found = generator_again(generate, parsed[ModelOptions].model, device.resolved(), parsed[BatchOptions].batch_size)
    assert isinstance(found, DiffusersGenerator)
    generator = MitigatedGenerator.of(found)
    generator.check()
    snapshots = Snapshots(
        **{stage: made_of[stage].snapshot_id for stage in ("ingest", "embed", "deduplicate")}, generate=generate.snapshot_id
    )
    neighbours = max(match.parameters["neighbours"], match.parameters["adaptive_others"])
    round = Round(lake, snapshots, snapshot, "mitigate", (), Frame(0, 0), neighbours, 1)
    directory = Directory(lake, snapshots.deduplicate)
    directory.write(snapshots.ingest, snapshots.embed)
    if not is_indexed(round):
        execution.run(lambda pipeline: pipeline | IndexGroups(round))
    drawn = drawn_file(lake, snapshot)
    if not exists(drawn):
        write_parquet(drawn, draw(lake, match, directory, options.prompts_per_class))
    prompts = count_rows(drawn)
    store = ImageStore(lake, snapshots.ingest, snapshots.embed)
    base_seed = generate.parameters["seed"]
    handler = MitigateHandler(generator, lake, snapshot, store, options.tried, options.images, base_seed, options.attack)
    folder = pictures_folder(lake, snapshot)
    progress = Progress("mitigate", lambda: len(list_files(folder, ".parquet")), prompts, "prompts")
    execution.run(lambda pipeline: build(pipeline, prompts, handler, device.devices()), progress)
    audit = {
        "audit_id": generate.snapshot_id,
        "model_revision": generate.parameters["model_revision"],
        "parameters_digest": digest("parameters", planned.parameters, planned.upstream, length=16),
    }
    (limits,) = ask(lake, {"copy_calibration": match.snapshot_id}, "SELECT * FROM copy_calibration")
    vectors = lake.work("mitigate", snapshot, "vectors")
    job = Mitigated(round, measure_of(match), CopyLimits.of(limits), drawn, folder, vectors, audit)
    judge = JudgeHandler(encoder(made_of["embed"], device), job)
    execution.run(lambda pipeline: build_judging(pipeline, prompts, judge, device.devices()))
    statuses = _statuses(lake, snapshot)
    write_effects(lake, snapshot, vectors, held_out(lake, snapshots.embed, drawn))
    return {"model": generator.model, "status": statuses}


def measure_of(match: Manifest) -> Measure:
    """How an audit's generations were compared."""
    asked = match.parameters
    return Measure(
        delta=asked["delta"],
        others=asked["adaptive_others"],
        alpha=asked["adaptive_alpha"],
        copy_ratio=asked["copy_ratio"],
    )


def draw(lake: Lake, match: Manifest, directory: Directory, prompts_per_class: int) -> pa.Table:
    """The prompts that are asked, and what stands for the image of each.

    UserError where the audit calls no prompt copied.
    """
    tables = {"prompts": match.upstream["generate"], "matches": match.snapshot_id, "copy_calibration": match.snapshot_id}
    query = sql.read("tables", "mitigated_prompts")
    forgotten = Tombstones.read(lake).samples
    rows = [row for row in ask(lake, tables, query, prompts_per_class=prompts_per_class) if row["sample_id"] not in forgotten]
    own = {
        "never_seen": directory.representatives([row["own_group"] for row in rows], "control"),
        "training": directory.representatives([row["own_group"] for row in rows], "training"),
    }
    listed = []
    for row in rows:
        stands = own["never_seen" if row["class"] == "never_seen" else "training"].get(row["own_group"])
        if stands is not None:
            listed.append({**row, **{f"own_{new}": stands[name] for new, name in OWN.items()}})
    classes = collections.Counter(row["class"] for row in listed)
    if not classes["copied"]:
        raise UserError(
            f"the audit {match.upstream['generate']} calls no prompt copied, so there is nothing to mitigate; audit more "
            "prompts (--max_prompts), or another model"
        )
    say(f"mitigate     {', '.join(f'{number} {name}' for name, number in sorted(classes.items()))} prompts")
    if not classes["never_seen"]:
        say("mitigate     there are no controls: what DoRI brings back of pictures that the model never saw is not known")
    return pa.Table.from_pylist(listed)


HELD_OUT = 2048
"""Held-out pictures that those under a mitigation are compared with, at most."""

OWN = {"code": "code", "sample": "sample_id", "size": "size"}
"""Columns of the drawn prompts after own_, and those of the directory that they are."""


def build(pipeline: beam.Pipeline, prompts: int, handler: MitigateHandler, devices: Devices) -> None:
    """The pipeline that makes the pictures of so many prompts."""
    _ = pipeline | "Prompts" >> beam.Create(range(prompts)) | "MakeMitigated" >> MakeMitigated(handler, devices)


def build_judging(pipeline: beam.Pipeline, prompts: int, handler: JudgeHandler, devices: Devices) -> None:
    """The pipeline that writes ``mitigations``."""
    parts = range(-(-prompts // PROMPTS_AT_ONCE))
    _ = pipeline | "Parts" >> beam.Create(parts) | "JudgeMitigated" >> JudgeMitigated(handler, devices)


def _statuses(lake: Lake, snapshot: str) -> dict[str, int]:
    """Status → rows. UserError where nothing was made."""
    query = "SELECT status, count(*) AS rows, min(reason) AS reason FROM mitigations GROUP BY status ORDER BY status"
    found = {row["status"]: row for row in ask(lake, {"mitigations": snapshot}, query)}
    if "success" not in found:
        delete(lake.work("mitigate", snapshot))
        delete(lake.folder("mitigations", snapshot))
        reason = next((row["reason"] for row in found.values()), None)
        raise UserError(f"the model made no picture under any mitigation ({reason}); mend the model and start again")
    return {status: row["rows"] for status, row in found.items()}


def held_out(lake: Lake, embed: str, drawn: str) -> np.ndarray:
    """(n, d): vectors of at most ``HELD_OUT`` controls, the same each time, and of no drawn prompt's own image."""
    query = """
        SELECT vector FROM embeddings
        WHERE role = 'control' AND status = 'success' AND NOT list_contains($drawn, sample_id)
        ORDER BY md5(sample_id) LIMIT $most
    """
    own = [row["sample_id"] for row in read_rows(drawn)]
    return np.array([row["vector"] for row in ask(lake, {"embeddings": embed}, query, drawn=own, most=HELD_OUT)], np.float32)


def write_effects(lake: Lake, snapshot: str, vectors: str, real: np.ndarray) -> None:
    """Writes ``mitigation_effects``.

    Args:
        lake, snapshot: of ``mitigations``.
        vectors: folder of those of its pictures.
        real: (n, d), of held-out pictures.
    """
    made: dict[tuple[str, str], list[np.ndarray]] = collections.defaultdict(list)
    for path in list_files(vectors, ".parquet"):
        for one in read_rows(path):
            if not one["attacked"]:
                made[one["class"], one["mitigation"]].append(one["vector"])
    far = {
        key: quality.cmmd(np.array(some, np.float32), real).distance
        for key, some in made.items()
        if min(len(some), len(real)) >= quality.FEWEST
    }
    rows = ask(lake, {"mitigations": snapshot}, sql.read("tables", "mitigation_effects"))
    for row in rows:
        under, without = ((row["class"], name) for name in (row["mitigation"], "none"))
        row.update(cmmd=far.get(under), cmmd_before=far.get(without), cmmd_pictures=len(made[under]), cmmd_held_out=len(real))
    lake.write("mitigation_effects", snapshot, 0, rows)


def finish(execution: Execution, parsed: Parsed, manifest: Manifest) -> None:
    """Makes the database, which shows both tables."""
    delete(execution.lake.work("mitigate", manifest.snapshot_id))
    measure.finish(execution, parsed, manifest)


def summary(lake: Lake, manifest: Manifest) -> str:
    """The effects as a table for the terminal."""
    names = [
        "class", "mitigation", "prompts", "before", "after", "95% interval", "DoRI", "95% interval", "CLIP", "CMMD", "seconds",
    ]  # fmt: skip
    rows = []
    for row in ask(lake, {"mitigation_effects": manifest.snapshot_id}, "SELECT * FROM mitigation_effects"):
        rows.append(
            (
                row["class"], row["mitigation"], row["prompts"], row["before"], row["after"], _interval(row, "after"),
                row["dori"], _interval(row, "dori"), _number(row["prompt_similarity"]), _number(row["cmmd"]),
                _number(row["seconds"]),
            )
        )  # fmt: skip
    return as_table(names, rows)


def _interval(row: dict[str, Any], name: str) -> str:
    lower, upper = row[f"rate_{name}_lower"], row[f"rate_{name}_upper"]
    return "-" if lower is None else f"{lower:.0%} to {upper:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


STAGE = Stage(
    name="mitigate",
    description=__doc__,
    upstream="match",
    options=(MitigateOptions, DeviceOptions),
    alone=(ModelOptions, BatchOptions),
    plan=plan,
    work=work,
    finish=finish,
)


def main(argv: Sequence[str]) -> None:
    execution, parsed = STAGE.parse(argv)
    with alone_with(parsed, "mitigate"):
        print(summary(execution.lake, STAGE.run(execution, parsed)))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
