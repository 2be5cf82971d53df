"""The inpainting attack (paper, section 5.3): models make the left half of pictures again, that they saw or did not see.

reads   models, model_members; the models of LAKE/weights; images
writes  inpaintings: one row a target and model, with how near its ten best inpaintings come, and whether it was a member

Each target goes to one model of a cohort that was trained on it and to one that was not; a third one, that was not either,
judges: the inpaintings with the smallest loss in proportion to its own are kept. Cohorts of fewer than three models,
class-conditional models and GANs have no rows.

  eidetic inpaint --lake lake --targets 10 --inpaintings 64
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from pipelines.device import DeviceOptions
from pipelines.execution import Execution, Progress, say
from pipelines.extract import trained
from pipelines.options import Options, Parsed, option, parameters
from pipelines.stages import Planned, Stage
from pipelines.train import build, ready_pictures
from transforms.store.files import delete, list_files, read_parquet
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage


@dataclasses.dataclass(frozen=True)
class InpaintOptions(Options):
    """Inpainting: how many, and how."""

    targets: int = option(10, "pictures of each cohort that are made again; the paper has 100", least=1)
    inpaintings: int = option(64, "of each by each model; the paper has 5,000", least=1)
    kept: int = option(10, "of those, the ones that the score likes best (paper: 10)", least=1)
    inpaint_timestep: int = option(100, "of the loss that the score is made of (paper: 100)", least=0)
    inpaint_draws: int = option(4, "of the noise of that loss", least=1)
    repaint_steps: int = option(50, "levels of noise", least=2)
    jump_length: int = option(5, "RePaint: steps that it goes back", least=1)
    jumps: int = option(3, "RePaint: how often it goes back", least=1)
    inpaint_seed: int = option(0, "of all noise: the same for all models")


def plan(lake: Lake, parsed: Parsed, train: str | None) -> Planned:
    """What ``inpaint`` would make of the models of ``train``."""
    assert train is not None, "it has an upstream"
    return Planned("inpaint", parameters(parsed[InpaintOptions]), {"train": train}, "models")


def work(execution: Execution, parsed: Parsed, planned: Planned, train: Manifest | None) -> dict[str, Any]:
    """Makes the inpaintings and judges them."""
    from transforms.attacks.inpainting import Inpaint, Inpainting, jobs, rows_path

    assert train is not None, "it has an upstream"
    lake, options, device = execution.lake, parsed[InpaintOptions], parsed[DeviceOptions]
    devices = device.devices()
    deduplicate, most = lineage(lake, train)["deduplicate"], train.parameters["pictures"]
    wanted = jobs(lake, trained(lake, train), options.targets)
    if not wanted:
        say("inpaint      no cohort has three models of which two were not trained on a picture of the third: nothing to do")
        return {"models": 0}
    ready_pictures(execution, deduplicate, most, {job.model["pixels"] for job in wanted})
    how = Inpainting(
        options.targets, options.inpaintings, options.kept, options.inpaint_timestep, options.inpaint_draws,
        options.repaint_steps, options.jump_length, options.jumps, options.inpaint_seed,
    )  # fmt: skip
    step = devices.step(lambda one: Inpaint(lake, planned.snapshot_id, deduplicate, most, one, how))
    folder = lake.work("inpaint", planned.snapshot_id, "rows")
    progress = Progress("inpaint", lambda: len(list_files(folder, ".parquet")), len(wanted), "models")
    execution.run(lambda pipeline: build(pipeline, wanted, step, devices), progress)
    for part, job in enumerate(wanted):
        path = rows_path(lake, planned.snapshot_id, job.model["model_id"])
        lake.write("inpaintings", planned.snapshot_id, part, read_parquet(path))
    return {"models": len(wanted)}


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    delete(execution.lake.work("inpaint", manifest.snapshot_id))


STAGE = Stage(
    name="inpaint",
    description=__doc__,
    upstream="train",
    options=(InpaintOptions, DeviceOptions),
    plan=plan,
    work=work,
    finish=finish,
)
main = STAGE.main


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
