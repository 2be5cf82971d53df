"""Trains small models on the lake's own pictures, by the hundred: what a sweep's file says, each once.

reads   images, duplicate_groups, keep_list, labels of samples
writes  models: one row a model (a training at one of its steps), with every axis, its loss and status; model_members: which
        pictures it was trained on, how many times each; LAKE/weights: the models, as diffusers writes them

A sweep's file is TOML: [common] holds what all have, a [[grid]] every combination of its lists, a [[model]] one configuration;
docs/sweep.md has the axes. One Beam element is one training. A killed command goes on where it was, and what another sweep has
trained already isn't trained again.

  eidetic train --lake lake --sweep demo/sweeps/small.toml
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipelines.device import DeviceOptions
from pipelines.execution import Execution, Progress, say
from pipelines.options import Options, Parsed, option
from pipelines.stages import Planned, Stage
from transforms.errors import UserError
from transforms.models import configuration
from transforms.models.configuration import TRAINING_VERSION, read_sweep
from transforms.models.processes import AS_IT_IS, Devices
from transforms.store.arrays import read_json
from transforms.store.files import delete, list_files
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest
from transforms.store.schema import TABLES

RUNS_PER_PART = 100
"""Trainings whose rows are one part of ``models`` and ``model_members``."""


@dataclasses.dataclass(frozen=True)
class TrainOptions(Options):
    """Training: what, and on which pictures."""

    sweep: str | None = option(None, "TOML file of the sweep: [common], [[grid]], [[model]], [[brought]]")
    bring: tuple[str, ...] = option((), "models that are there: folders, TorchScript files, package.module:name")
    pictures: int = option(50_000, "training pictures that are drawn from, by hash of their ids", least=1)
    save_every: float = option(60.0, "seconds between two states that a killed training can go on from", over=0)

    def configurations(self) -> list[configuration.SweptConfiguration]:
        """What the sweep's file says."""
        if self.sweep is None and not self.bring:
            raise UserError(
                "nothing says what to train: name a sweep's file with --sweep, such as demo/sweeps/small.toml, or models that "
                "are there with --bring"
            )
        found = {} if self.sweep is None else dict(read_sweep(self.sweep))
        for place in self.bring:
            one = configuration.BroughtModel(place)
            found[one] = (*found.get(one, ()), "brought")
        return [configuration.SweptConfiguration(*one) for one in found.items()]


def plan(lake: Lake, parsed: Parsed, deduplicate: str | None) -> Planned:
    """What ``train`` would make of the pictures of ``deduplicate``."""
    assert deduplicate is not None, "it has an upstream"
    options: TrainOptions = parsed[TrainOptions]
    wanted = options.configurations()
    shaping = {
        "configurations": digest("sweep", [(dataclasses.asdict(one.configuration), one.experiments) for one in wanted]),
        **({"brought": brought} if (brought := [_revision(one.configuration) for one in wanted if _is_there(one)]) else {}),
        "pictures": options.pictures,
        "version": TRAINING_VERSION,
    }
    return Planned("train", shaping, {"deduplicate": deduplicate}, "trainings", lambda: len(wanted))


def _is_there(one: configuration.SweptConfiguration) -> bool:
    return isinstance(one.configuration, configuration.BroughtModel)


def _revision(one: Any) -> str:
    """Of a model that is brought, "" where there is none: that becomes a row."""
    from transforms.models.brought import revision

    try:
        return revision(one)
    except UserError:
        return ""


def build(pipeline: beam.Pipeline, elements: Sequence[Any], step: beam.DoFn, devices: Devices = AS_IT_IS) -> None:
    """A pipeline that does one step with each element: what every pipeline of a sweep is."""
    work = devices.hinted(beam.ParDo(step))
    _ = pipeline | "Elements" >> beam.Create(list(elements)) | "Spread" >> beam.Reshuffle() | type(step).__name__ >> work


def ready_pictures(execution: Execution, deduplicate: Manifest, most: int, sizes: set[int]) -> None:
    """Makes the small pictures of these sizes, as far as they aren't there."""
    from transforms.training import population

    lake = execution.lake
    total = population.find(lake, deduplicate, most)
    folder = population.folder_of(lake, deduplicate, most)
    there = {size: len(list_files(f"{folder}/{size}", ".npz")) for size in sizes}
    chunks = [(size, number) for size in sorted(sizes) for number in range(population.chunks_of(total))
              if there[size] < population.chunks_of(total)]  # fmt: skip
    if chunks:
        shrink = population.ShrinkPictures(lake, deduplicate, most)
        execution.run(lambda pipeline: build(pipeline, chunks, shrink))


def work(execution: Execution, parsed: Parsed, planned: Planned, deduplicate: Manifest | None) -> dict[str, Any]:
    """Trains what isn't trained yet."""
    from transforms.training.runs import TrainingPlace, TrainModels, members_of

    assert deduplicate is not None, "it has an upstream"
    lake, options, device = execution.lake, parsed[TrainOptions], parsed[DeviceOptions]
    devices = device.devices()
    wanted = options.configurations()
    each = [one.configuration for one in wanted]
    ready_pictures(
        execution, deduplicate, options.pictures, {one.pixels for one in each if isinstance(one, configuration.Configuration)}
    )
    place = TrainingPlace(lake, planned.snapshot_id, deduplicate, options.pictures, device.resolved(), options.save_every)
    step = devices.step(lambda one: TrainModels(dataclasses.replace(place, device=one)))
    folder = lake.work("train", planned.snapshot_id, "runs")
    progress = Progress("train", lambda: len(list_files(folder, ".json")), len(each), "trainings")
    execution.run(lambda pipeline: build(pipeline, each, step, devices), progress)
    blank = dict.fromkeys(TABLES["models"].schema.names)
    statuses: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    for part, start in enumerate(range(0, len(wanted), RUNS_PER_PART)):
        models, members = [], []
        for one in wanted[start : start + RUNS_PER_PART]:
            rows = read_json(place.rows_path(one.configuration))
            models += [{**blank, **row, "experiments": list(one.experiments)} for row in rows]
            members += members_of(lake, rows[-1]["run_id"])
        statuses.update(row["status"] for row in models)
        reasons.update(row["reason"] for row in models if row["status"] == "failed")
        lake.write("models", planned.snapshot_id, part, models)
        lake.write("model_members", planned.snapshot_id, part, members)
    for reason, times in reasons.most_common(5):
        say(f"train        {times:,} could not be trained: {reason}")
    if not statuses["success"]:
        # Else they would pass for finished when the command is given again.
        delete(lake.work("train", planned.snapshot_id))
        raise UserError(f"not one of {len(wanted):,} configurations could be trained; mend the sweep and start again")
    return {"sweep": options.sweep, "trainings": len(wanted), "status": dict(statuses)}


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    delete(execution.lake.work("train", manifest.snapshot_id))


def check(parsed: Parsed) -> None:
    """UserError for a sweep that can't be read."""
    parsed[TrainOptions].configurations()


STAGE = Stage(
    name="train",
    description=__doc__,
    upstream="deduplicate",
    options=(TrainOptions, DeviceOptions),
    plan=plan,
    work=work,
    finish=finish,
    check=check,
)
main = STAGE.main


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
