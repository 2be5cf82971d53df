"""Untargeted extraction (paper, section 5.1): asks models for pictures, and finds what they were trained on.

reads   models, model_members; the models of LAKE/weights; images
writes  untargeted_generations: one row a picture, with the nearest picture that the model was trained on, the nearest of as
        many that it wasn't, and what three rules say of both; untargeted_attacks: one row a model, with its pictures' quality

The rules: l2 <= delta; l2 <= alpha times the mean l2 to the n nearest (the paper's); l2 below a third of that to the second
nearest (Gu et al. 2023). Each is asked of controls as well, so that how often it calls a picture that the model never saw
stands beside what it finds. Pictures are made and compared in chunks; of them only those are kept that some rule calls.

  eidetic extract --lake lake --generations 1024
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipelines.device import DeviceOptions
from pipelines.embed import encoder
from pipelines.execution import Execution, Progress, say
from pipelines.options import Options, Parsed, option, parameters
from pipelines.stages import Planned, Stage
from pipelines.train import build, ready_pictures
from transforms.errors import UserError
from transforms.store.arrays import read_json
from transforms.store.files import delete, list_files, open_parquet
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage
from transforms.store.scan import ask

ROWS_PER_PART = 1 << 17
"""Rows of a part of ``untargeted_generations``, about."""


@dataclasses.dataclass(frozen=True)
class ExtractOptions(Options):
    """Untargeted extraction: how models are asked, and what counts."""

    generations: int = option(1024, "pictures of each model; the paper makes 65,536 of each of 16", least=1)
    chunk: int = option(4096, "of those, so many are made and compared at once", least=1)
    sampler: str = option("ddim", "how a diffusion model is asked; ddpm is the paper's", choices=("ddim", "ddpm"))
    sampling_steps: int = option(50, "times that its network is asked for a picture", least=1)
    delta: float = option(0.05, "l2 up to which the first rule calls a picture, 0 to 1", least=0, most=1)
    alpha: float = option(0.5, "factor of the adaptive l2 (paper: 0.5)", over=0)
    neighbours: int = option(50, "n of the adaptive l2 (paper: 50)", least=1)
    ratio_limit: float = option(1 / 3, "limit of the ratio of nearest and second nearest (Gu: 1/3)", over=0, most=1)
    extract_seed: int = option(0, "of the pictures: the same for all models")
    quality_pictures: int = option(1024, "generations and held-out pictures that quality is made of", least=8)
    quality_weights: str | None = option(
        None, "TorchScript file that makes the features of quality, in place of the lake's CLIP"
    )


def plan(lake: Lake, parsed: Parsed, train: str | None) -> Planned:
    """What ``extract`` would make of the models of ``train``."""
    assert train is not None, "it has an upstream"
    options: ExtractOptions = parsed[ExtractOptions]
    # A chunk changes no row, but it numbers the work files, which a restarted run must find under their numbers.
    shaping = parameters(options, leave_out=("quality_weights",))
    if options.quality_weights is not None:
        shaping["quality_weights"] = digest_of(options.quality_weights)

    def models() -> int | None:
        done = lake.manifest("train", train)
        return None if done is None else done.rows["models"]

    return Planned("extract", shaping, {"train": train}, "models", models)


def digest_of(path: str) -> str:
    """SHA-256 of a file of weights. UserError where there is none."""
    if not os.path.isfile(path):
        raise UserError(f"there is no file --quality_weights {path!r}; name a TorchScript file")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def trained(lake: Lake, train: Manifest) -> list[dict[str, Any]]:
    """The rows of the models of ``train`` that came to something."""
    return ask(lake, {"models": train.snapshot_id}, "SELECT * FROM models WHERE status = 'success' ORDER BY run_id, step")


def work(execution: Execution, parsed: Parsed, planned: Planned, train: Manifest | None) -> dict[str, Any]:
    """Makes, compares and judges the pictures of each model."""
    from transforms.attacks.untargeted import Attack, ExtractionPlace, Features, JudgeQuality, MakeAndCompare

    assert train is not None, "it has an upstream"
    lake, options, device = execution.lake, parsed[ExtractOptions], parsed[DeviceOptions]
    devices = device.devices()
    made_of = lineage(lake, train)
    deduplicate, most = made_of["deduplicate"], train.parameters["pictures"]
    targets = trained(lake, train)
    ready_pictures(execution, deduplicate, most, {one["pixels"] for one in targets})
    clip = None if options.quality_weights else encoder(made_of["embed"], device)
    name = f"{made_of['embed'].parameters['clip_model']}" if clip else f"sha256:{planned.parameters['quality_weights'][:40]}"
    features = Features(clip, options.quality_weights, name, device.resolved())
    place = ExtractionPlace(lake, planned.snapshot_id, deduplicate, most, device.resolved(), features)
    attack = Attack(
        options.generations, options.chunk, options.sampler, options.sampling_steps, options.delta, options.alpha,
        options.neighbours, options.ratio_limit, options.extract_seed, options.quality_pictures,
    )  # fmt: skip
    elements = [(target, chunk) for target in targets for chunk in range(attack.chunks)]
    folder = lake.work("extract", planned.snapshot_id, "chunks")
    progress = Progress("extract", lambda: len(list_files(folder, ".parquet")), len(elements), "chunks")

    def on(one: str) -> ExtractionPlace:
        return dataclasses.replace(place, device=one, features=features.on(one))

    ask_them = devices.step(lambda one: MakeAndCompare(on(one), attack))
    execution.run(lambda pipeline: build(pipeline, elements, ask_them, devices), progress)
    judge_them = devices.step(lambda one: JudgeQuality(on(one), attack))
    execution.run(lambda pipeline: build(pipeline, targets, judge_them, devices))
    attacks = [read_json(place.row_path(one["model_id"])) for one in targets]
    lake.write("untargeted_attacks", planned.snapshot_id, 0, attacks)
    paths = [place.chunk_path(target["model_id"], chunk) for target, chunk in elements]
    for part, some in enumerate(in_parts(paths)):
        lake.write("untargeted_generations", planned.snapshot_id, part, some)
    failed = sum(row["status"] != "success" for row in attacks)
    if failed:
        say(f"extract      {failed:,} of {len(targets):,} models made nothing; untargeted_attacks.reason says why")
    return {"models": len(targets), "failed": failed}


def in_parts(paths: Sequence[str]) -> Iterator[pa.Table]:
    """The tables of these files, some together."""
    waiting: list[pa.Table] = []
    for path in paths:
        with open_parquet(path) as file:
            waiting.append(file.read().replace_schema_metadata())
        if sum(one.num_rows for one in waiting) >= ROWS_PER_PART:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    delete(execution.lake.work("extract", manifest.snapshot_id))


def check(parsed: Parsed) -> None:
    """UserError where the weights of quality aren't there."""
    if parsed[ExtractOptions].quality_weights is not None:
        digest_of(parsed[ExtractOptions].quality_weights)


STAGE = Stage(
    name="extract",
    description=__doc__,
    upstream="train",
    options=(ExtractOptions, DeviceOptions),
    plan=plan,
    work=work,
    finish=finish,
    check=check,
)
main = STAGE.main


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
