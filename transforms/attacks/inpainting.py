"""The inpainting attack (paper, section 5.3): the left half of a picture is masked, and a model makes it again.

A target is given to a model that was trained on it and to one that was not; RePaint (Lugmayr et al. 2022, diffusers' scheduler)
makes many inpaintings with the same noise for both; of those the ten are kept whose loss under the model is smallest in
proportion to that under a shadow model, which was not trained on the target either. Members are made again better.

    work/inpaint/<snapshot>/rows/<model_id>.parquet     rows of inpaintings
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import apache_beam as beam
import numpy as np

from transforms.errors import UserError
from transforms.kernels.membership_signals import loss
from transforms.store.counters import count
from transforms.store.files import exists, write_parquet
from transforms.store.identity import digest, seed, unit_interval
from transforms.store.lake import Lake, Manifest, as_table
from transforms.store.pictures import encode_png
from transforms.training import population
from transforms.training.runs import load_model, members_of

if TYPE_CHECKING:
    import torch

    from transforms.models.unconditional import DiffusionPictures

BATCH = 256
"""Pictures that are made at once."""


@dataclasses.dataclass(frozen=True)
class Inpainting:
    """How targets are inpainted.

    Attributes:
        targets: of each cohort; the paper has 100.
        inpaintings: of each target; the paper has 5,000.
        kept: of those; the paper has 10.
        timestep: of the loss; the paper has 100.
        draws: of its noise.
        steps, jump_length, jumps: of RePaint: levels of noise, and how far back and how often it goes.
        base_seed: of all noise.
    """

    targets: int
    inpaintings: int
    kept: int
    timestep: int
    draws: int
    steps: int
    jump_length: int
    jumps: int
    base_seed: int


class Job(NamedTuple):
    """What one model is asked: its row of ``models``, and for each target whether it is a member, and the row of the shadow."""

    model: dict[str, Any]
    targets: list[tuple[str, bool, dict[str, Any]]]


def jobs(lake: Lake, models: Sequence[dict[str, Any]], targets: int) -> list[Job]:
    """Which models are asked for which pictures.

    Of each cohort with models that saw different pictures, ``targets`` of what some of its models saw and some didn't, by hash;
    each goes to one model that did and one that didn't, with a third, that didn't either, as the shadow.

    Args:
        lake: the lake.
        models: rows of ``models``, the last of each training.
        targets: of each cohort.
    """
    cohorts: dict[str, list[dict[str, Any]]] = {}
    for row in models:
        if row["family"] == "diffusion" and row["labels"] == "none" and row["last"]:
            cohorts.setdefault(row["cohort"], []).append(row)
    asked: dict[str, Job] = {}
    for some in cohorts.values():
        saw = {row["model_id"]: _pictures_of(lake, row["run_id"]) for row in some}
        of_some = sorted(set.union(*saw.values()), key=lambda one: unit_interval("target", one))
        chosen = 0
        for sample in of_some:
            ranked = sorted(some, key=lambda row: digest("asked", sample, row["model_id"]))
            inside = [row for row in ranked if sample in saw[row["model_id"]]]
            outside = [row for row in ranked if sample not in saw[row["model_id"]]]
            if chosen == targets or len(outside) < 2:
                continue
            chosen += 1
            for row, member in ((inside[0], True), (outside[0], False)):
                job = asked.setdefault(row["model_id"], Job(row, []))
                job.targets.append((sample, member, outside[1]))
    return list(asked.values())


def _pictures_of(lake: Lake, run_id: str) -> set[str]:
    return {row["sample_id"] for row in members_of(lake, run_id) if row["kind"] == "picture"}


def rows_path(lake: Lake, snapshot: str, model_id: str) -> str:
    """Where the rows of a model's inpaintings wait."""
    return lake.work("inpaint", snapshot, "rows", f"{model_id}.parquet")


class Inpaint(beam.DoFn):
    """A job → its model's id, when its rows are written. What is written already is left alone."""

    def __init__(self, lake: Lake, snapshot: str, deduplicate: Manifest, most: int, device: str, how: Inpainting):
        self.lake, self.snapshot, self.deduplicate, self.most = lake, snapshot, deduplicate, most
        self.device, self.how = device, how

    def process(self, job: Job) -> Iterator[str]:
        model_id = job.model["model_id"]
        path = rows_path(self.lake, self.snapshot, model_id)
        if not exists(path):
            rows = list(self._rows(job))
            write_parquet(path, as_table("inpaintings", rows))
            count("targets inpainted", len(rows))
        yield model_id

    def _rows(self, job: Job) -> Iterator[dict[str, Any]]:
        from transforms.models.unconditional import DiffusionPictures

        pictures = population.read(self.lake, self.deduplicate, self.most, job.model["pixels"])
        place = {str(one): row for row, one in enumerate(pictures.sample_ids)}
        known = {one["model_id"]: one for one in (job.model, *(shadow for _, _, shadow in job.targets))}
        loaded = functools.lru_cache(maxsize=4)(lambda model_id: load_model(self.lake, known[model_id], self.device))
        for sample, member, shadow in job.targets:
            row = {
                **_NOTHING, "model_id": job.model["model_id"], "sample_id": sample, "member": member,
                "shadow_model_id": shadow["model_id"],
            }  # fmt: skip
            begun = time.monotonic()
            try:
                if sample not in place:
                    raise UserError("its picture isn't in the lake any more")
                model, judge = (loaded(one["model_id"]) for one in (job.model, shadow))
                assert isinstance(model, DiffusionPictures) and isinstance(judge, DiffusionPictures), "jobs has no others"
                row |= attack(model, judge, pictures.pixels[place[sample]], sample, self.how)
            except UserError as error:
                row |= {"status": "failed", "reason": str(error)}
            yield {**row, "seconds": round(time.monotonic() - begun, 3)}


_NOTHING: dict[str, Any] = {
    "inpaintings": 0, "kept": 0, "score": None, "kept_l2": None, "all_l2": None, "nearest_l2": None, "image": None,
    "evaluations": 0, "status": "success", "reason": None,
}  # fmt: skip


def attack(
    model: DiffusionPictures, shadow: DiffusionPictures, target: np.ndarray, name: str, how: Inpainting
) -> dict[str, Any]:
    """What a model makes of a target whose left half it doesn't see.

    Args:
        model: that is attacked.
        shadow: that was not trained on the target.
        target: (H, W, 3) uint8.
        name: of the target: noise depends on it alone, so that it is the same for every model.
        how: the parameters.

    Returns:
        columns of ``inpaintings``.
    """
    import torch

    from transforms.models.unconditional import as_numbers, as_pictures, as_shares

    made, evaluations = inpaint(model, as_numbers(target[None], model.device), name, how)
    noises = torch.stack([
        torch.randn(made.shape[1:], generator=torch.Generator().manual_seed(seed(how.base_seed, f"judge {name}", draw)))
        for draw in range(how.draws)
    ]).to(model.device)  # fmt: skip
    scores = []
    with torch.inference_mode():
        for some in made.split(BATCH):
            drawn = noises[:, None].expand(-1, len(some), -1, -1, -1)
            mine, its = (
                loss(one.noise, some, one.levels, [min(how.timestep, len(one.levels) - 1)], drawn).mean((0, 1, 2))
                for one in (model, shadow)
            )
            scores.append(mine / its)
    evaluations += 2 * how.draws * len(made)
    score = torch.cat(scores).double().cpu().numpy()
    pictures = as_pictures(as_shares(made))
    half = target.shape[1] // 2
    difference = (pictures[:, :, :half].astype(np.float64) - target[:, :half]) / 255
    l2 = np.sqrt((difference**2).mean((1, 2, 3)))
    # What is no number says nothing, and comes last.
    best = np.argsort(np.where(np.isfinite(score), score, np.inf), kind="stable")[: how.kept]
    return {
        "inpaintings": len(made), "kept": len(best), "score": float(score[best].mean()), "kept_l2": float(l2[best].mean()),
        "all_l2": float(l2.mean()), "nearest_l2": float(l2.min()), "image": encode_png(pictures[best[0]]),
        "evaluations": evaluations,
    }  # fmt: skip


def inpaint(model: DiffusionPictures, target: torch.Tensor, name: str, how: Inpainting) -> tuple[torch.Tensor, int]:
    """Inpaintings of the left half of ``target``, (1, 3, H, W) in -1 to 1, by RePaint: (inpaintings, 3, H, W), whose right half
    is the target's own; and how often the network was asked.
    """
    import torch
    from diffusers import RePaintScheduler

    mask = torch.ones_like(target)
    mask[..., : target.shape[3] // 2] = 0  # 0 is what is made
    made, evaluations = [], 0
    with torch.inference_mode():
        for start in range(0, how.inpaintings, BATCH):
            numbers = range(start, min(start + BATCH, how.inpaintings))
            sources = [torch.Generator().manual_seed(seed(how.base_seed, f"inpaint {name}", number)) for number in numbers]
            scheduler = RePaintScheduler.from_config(model.scheduler.config)
            scheduler.set_timesteps(how.steps, how.jump_length, how.jumps)
            x = torch.stack([torch.randn(model.shape, generator=one) for one in sources]).to(target.device)
            original, kept = target.expand_as(x), mask.expand_as(x)
            last = int(scheduler.timesteps[0]) + 1
            for one in scheduler.timesteps:
                at = int(one)
                if at < last:
                    noise = model.noise(x, torch.full((len(x),), at, device=x.device))
                    x = scheduler.step(noise, at, x, original, kept, sources).prev_sample
                    evaluations += len(x)
                else:
                    x = scheduler.undo_step(x, last, sources)
                last = at
            made.append(kept * original + (1 - kept) * x)
    return torch.cat(made).clamp(-1, 1), evaluations
