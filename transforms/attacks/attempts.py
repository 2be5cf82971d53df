"""Generates the images of each prompt, judges and filters them where they were made, and keeps what is needed.

A batch of images may hold several prompts. As soon as a prompt's last image is made, all of them are compared and kept or
dropped, and its rows are durable (``work/generate/<id>/prompts/<prompt_id>.parquet``). At the end the little files are
compacted, one part of ``generations`` and ``cliques`` for each part of ``prompts``.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from transforms.data.images import ImageStore
from transforms.errors import UserError
from transforms.kernels.cliques import SWEEP, largest_clique
from transforms.models.base import Attempt, Generator, Wanted
from transforms.models.processes import AS_IT_IS, Devices
from transforms.store.counters import count
from transforms.store.files import list_files, open_parquet, read_rows, write_bytes, write_parquet
from transforms.store.identity import seed, unit_interval
from transforms.store.lake import Lake, as_table, part_number
from transforms.store.pictures import encode_png, thumbnail

PROMPTS_PER_PART = 256
"""Prompts in one part of ``prompts``, and so in one part of ``cliques``."""

MAX_PART_BYTES = 256 << 20
"""A part of ``generations`` is closed when its pictures reach this size."""

PARTS_PER_PROMPTS_PART = 1000
"""Part numbers of ``generations`` that belong to one part of ``prompts``."""

MOST_BATCHES = 32
"""A group of prompts is closed when its images are more than so many batches: by then one that isn't full costs little."""

GIVE_UP_AFTER = 3
"""After so many prompts in a row without a single image the model is asked for ``PLAIN``: it may be broken, or they are odd."""

PLAIN = "a photograph"
"""A prompt that every model takes."""

AUDIT_COLUMNS = ("audit_id", "model_revision", "parameters_digest")


@dataclasses.dataclass(frozen=True)
class Filter:
    """The clique test and what is kept after it.

    Attributes:
        clique_distance: two generations are joined where their tiled l2 is below this.
        clique_size: flagged from this many nodes on.
        keep: flagged, nearest, all or none: which images are stored.
        unflagged_fraction: share of the unflagged prompts (by the prompt's hash) whose images are stored all the same.
    """

    clique_distance: float
    clique_size: int
    keep: str
    unflagged_fraction: float

    def decide(self, prompt: dict[str, Any], flagged: bool) -> tuple[str, float, bool]:
        """(why, with which probability, whether) all images of a prompt are kept, not the nearest and central ones alone."""
        if self.keep == "none":
            return "dropped", 0.0, False
        if self.keep == "nearest":
            return "nearest", 0.0, False
        if prompt["origin"] == "control":
            return "control", 1.0, True
        if self.keep == "all":
            return "all", 1.0, True
        if flagged:
            return "flagged", 1.0, True
        drawn = unit_interval("slice", prompt["prompt_id"]) < self.unflagged_fraction
        return ("slice" if drawn else "dropped"), self.unflagged_fraction, drawn


class Judged(NamedTuple):
    """One prompt's generations after the clique test.

    Attributes:
        clique: a row of ``cliques``.
        members: indices of the attempts in the clique.
        own_l2: index → l2 to the prompt's own image; of all attempts with a picture, {} where the prompt has no image.
        nearest: index of the smallest of those; None without any.
        kept: indices of the attempts whose pictures are stored.
    """

    clique: dict[str, Any]
    members: set[int]
    own_l2: dict[int, float]
    nearest: int | None
    kept: set[int]


def judge(
    prompt: dict[str, Any],
    attempts: Sequence[Attempt],
    own: np.ndarray | None,
    filter: Filter,
    device: str,
    seconds: float,
) -> Judged:
    """The clique test over one prompt's generations, and how far each lies from the image whose caption the prompt is.

    That distance is taken of every attempt, before anything is dropped, and the nearest one is stored whatever the filter
    says: so what is said of a prompt and its own image doesn't wait for the clique test's leave.

    Args:
        prompt: a row of ``prompts``.
        attempts: what became of each; those without an image take no part. Images of different sizes are in no clique
            together, and each is compared with the prompt's own image as it is.
        own: (H, W, 3) uint8, the image whose caption the prompt is; None where there is none.
        filter: thresholds.
        device: where the distances between generations are computed.
        seconds: what the generation took.
    """
    from transforms.kernels.distances import aligned_l2, covering, frame_of

    begun = time.perf_counter()
    images = {index: attempt.image for index, attempt in enumerate(attempts) if attempt.image is not None}
    usable = list(images)
    distances = _distances(list(images.values()), device)
    cliques = {edge: largest_clique(distances, edge) for edge in {filter.clique_distance, *SWEEP}}
    clique = cliques[filter.clique_distance]
    sweep = {str(edge): len(cliques[edge].members) for edge in SWEEP}
    flagged = len(clique.members) >= filter.clique_size
    rule, probability, all_kept = filter.decide(prompt, flagged)
    own_l2: dict[int, float] = {}
    if own is not None and images:
        resized: dict[tuple[int, int], np.ndarray] = {}
        for index, image in images.items():
            frame = frame_of(image)
            # One that is far too long for the frame is near to nothing; ``match`` notes it.
            with contextlib.suppress(ValueError):
                if frame not in resized:
                    resized[frame] = covering(own, frame)
                own_l2[index] = aligned_l2(image, resized[frame])
    nearest = min(own_l2, key=lambda index: (own_l2[index], index)) if own_l2 else None
    kept = set(usable) if all_kept else set()
    if filter.keep != "none" and not all_kept:
        centre = [usable[_central(distances, clique.members)]] if flagged else []
        kept = {index for index in (nearest, *centre) if index is not None}
    row = {
        **{name: prompt[name] for name in AUDIT_COLUMNS},
        "prompt_id": prompt["prompt_id"],
        "n_generated": len(usable),
        "n_failed": len(attempts) - len(usable),
        "edge_distance": filter.clique_distance,
        "clique_size": len(clique.members),
        "clique_exact": clique.exact,
        "clique_threshold": filter.clique_size,
        "mean_distance": None if np.isnan(clique.mean_distance) else clique.mean_distance,
        "flagged": flagged,
        "keep_rule": rule,
        "keep_probability": probability,
        "sizes_by_distance": json.dumps(sweep),
        "seconds": seconds + time.perf_counter() - begun,
    }
    return Judged(row, {usable[member] for member in clique.members}, own_l2, nearest, kept)


def _distances(images: Sequence[np.ndarray], device: str) -> np.ndarray:
    """(n, n) float32: tiled l2 between pictures; infinite between those of different sizes."""
    import torch

    from transforms.kernels.distances import pairwise_tiled_l2

    distances = np.full((len(images), len(images)), np.inf, np.float32)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(place)
    for places in by_shape.values():
        # As bytes: exact in the products, and a quarter of what floats take here and on the way to the device.
        pictures = torch.from_numpy(np.stack([images[place] for place in places])).to(device).permute(0, 3, 1, 2)
        distances[np.ix_(places, places)] = pairwise_tiled_l2(pictures).cpu().numpy()
    return distances


def _central(distances: np.ndarray, members: Sequence[int]) -> int:
    """The clique's member that lies nearest to the others: (n, n) distances, members' rows → one of those."""
    inside = distances[np.ix_(members, members)].sum(axis=1)
    return members[int(np.argmin(inside))]


class GeneratorHandler(ModelHandler[list, PredictionResult, Generator]):
    """A ``Generator`` in Beam's RunInference: a group of prompts in, their rows durable; one model per process.

    An inference is a prompt's row of ``cliques``. The results are written in here, and not by a step that follows:
    RunInference hands nothing on before the last prompt of a group, and what is finished must outlive a run that is killed.

    Args:
        lake, audit: where results are written.
        generator: what makes the images.
        filter: the clique test that follows on the same device.
        base_seed: the audit's seed.
        store: the pictures whose captions the prompts are.
    """

    def __init__(self, lake: Lake, audit: str, generator: Generator, filter: Filter, base_seed: int, store: ImageStore):
        super().__init__()
        self.lake, self.audit, self.generator = lake, audit, generator
        self.filter, self.base_seed, self.store = filter, base_seed, store
        self._without_image = 0
        self._batch_size = generator.batch_size

    def on(self, device: str) -> GeneratorHandler:
        """The same on another device."""
        return GeneratorHandler(self.lake, self.audit, self.generator.on(device), self.filter, self.base_seed, self.store)

    def load_model(self) -> Generator:
        self.generator.load()
        return self.generator

    def batch_elements_kwargs(self) -> dict[str, int]:
        return {"min_batch_size": 1, "max_batch_size": 1}

    def run_inference(
        self, batch: Sequence[list], model: Generator, inference_args: dict[str, Any] | None = None
    ) -> Iterator[PredictionResult]:
        for group in batch:
            wanted = [Wanted(prompt["text"], dict(enumerate(self._seeds(prompt)))) for prompt in group]
            for prompt, made in zip(group, model.generate(wanted), strict=True):
                generations, clique = self._rows(prompt, [made[index] for index in sorted(made)], model)
                write_result(self.lake, self.audit, generations, clique)
                if model.batch_size < self._batch_size:
                    self._batch_size = model.batch_size
                    note_fitting_batch(self.lake, self.audit, model.batch_size)
                yield PredictionResult(example=prompt, inference=clique)

    def _seeds(self, prompt: dict[str, Any]) -> list[int]:
        return [seed(self.base_seed, prompt["prompt_id"], index) for index in range(prompt["images_requested"])]

    def _rows(
        self, prompt: dict[str, Any], attempts: list[Attempt], generator: Generator
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of ``generations``, and the row of ``cliques``."""
        attempts, seeds = comparable(attempts), self._seeds(prompt)
        self._stop_if_broken(attempts, generator)
        described = generator.describe()
        own = self._own_picture(prompt)
        seconds = sum(attempt.seconds for attempt in attempts)
        judged = judge(prompt, attempts, own, self.filter, described["device"] or "cpu", seconds)
        return [
            {
                **{name: prompt[name] for name in AUDIT_COLUMNS},
                "prompt_id": prompt["prompt_id"],
                "sample_index": index,
                "seed": seeds[index] if generator.kind == "diffusers" else None,
                "status": attempt.status,
                "reason": attempt.reason,
                "in_clique": index in judged.members,
                "own_l2": judged.own_l2.get(index),
                "nearest": index == judged.nearest,
                "image": encode_png(attempt.image) if index in judged.kept and attempt.image is not None else None,
                "thumbnail": None if attempt.image is None else thumbnail(attempt.image),
                "width": None if attempt.image is None else attempt.image.shape[1],
                "height": None if attempt.image is None else attempt.image.shape[0],
                "seconds": attempt.seconds,
                **described,
            }
            for index, attempt in enumerate(attempts)
        ], judged.clique

    def _stop_if_broken(self, attempts: list[Attempt], generator: Generator) -> None:
        """UserError where the model makes nothing any more. That it takes no picture of some prompts is a result."""
        self._without_image = self._without_image + 1 if all(one.status == "failed" for one in attempts) else 0
        if self._without_image < GIVE_UP_AFTER:
            return
        self._without_image = 0
        # Finished generations make none of it, and are never broken.
        (plain,) = generator.generate([Wanted(PLAIN, {0: 0})])
        if any(attempt.status == "failed" for attempt in plain.values()):
            reasons = {str(attempt.reason) for attempt in (*attempts, *plain.values())}
            raise UserError(
                f"{GIVE_UP_AFTER} prompts in a row gave no image, nor does {PLAIN!r} ({'; '.join(sorted(reasons))}); "
                "finished prompts are kept: mend the model or the options and start again"
            )

    def _own_picture(self, prompt: dict[str, Any]) -> np.ndarray | None:
        """The image whose caption the prompt is; None for nobody's caption, or where the image can't be shown any more."""
        if prompt["sample_id"] is None:
            return None
        try:
            return self.store.get(prompt["sample_id"])
        except ValueError:  # forgotten since the prompt was drawn, or undecodable
            return None


def comparable(attempts: list[Attempt]) -> list[Attempt]:
    """Attempts that can be compared: their sides are multiples of four, and not far too different; the rest failed."""
    from transforms.kernels.distances import MAX_ASPECT_RATIO, TILES

    checked = []
    for attempt in attempts:
        if attempt.image is not None:
            height, width = attempt.image.shape[:2]
            if height % TILES or width % TILES:
                reason = f"the image has {width} × {height} pixels, expected sides divisible by {TILES}"
                attempt = Attempt(None, "failed", reason, attempt.seconds)
            elif max(height, width) > MAX_ASPECT_RATIO * min(height, width):
                reason = f"the image has {width} × {height} pixels, more than {MAX_ASPECT_RATIO:g} : 1"
                attempt = Attempt(None, "failed", reason, attempt.seconds)
        checked.append(attempt)
    return checked


# -- Beam -------------------------------------------------------------------------------------------------------------


def result_folder(lake: Lake, audit: str) -> str:
    """Where the finished prompts of an audit lie until they are compacted."""
    return lake.work("generate", audit, "prompts")


def note_fitting_batch(lake: Lake, audit: str, size: int) -> None:
    """Notes how many images at once a device had memory for, where those were fewer than it was told to make."""
    write_bytes(lake.work("generate", audit, "batches", f"{size}.txt"), b"")


def fitting_batch(lake: Lake, audit: str) -> int | None:
    """The fewest images at once that a device of this audit had memory for; None where all had for as many as were told."""
    sizes = [
        int(path.rsplit("/", 1)[1].removesuffix(".txt")) for path in list_files(lake.work("generate", audit, "batches"), ".txt")
    ]
    return min(sizes, default=None)


def write_result(lake: Lake, audit: str, generations: list[dict[str, Any]], clique: dict[str, Any]) -> None:
    """Makes one prompt's rows durable: one file, so that both tables' rows are there or neither is."""
    table = as_table("generations", generations)
    table = table.replace_schema_metadata({"clique": json.dumps(clique)})
    write_parquet(lake.path("work", "generate", audit, "prompts", f"{clique['prompt_id']}.parquet"), table)
    count("prompts tried")
    count("prompts flagged", int(clique["flagged"]))
    for status, number in collections.Counter(row["status"] for row in generations).items():
        count(f"generations {status}", number)
    count("generations kept", sum(row["image"] is not None for row in generations))


def groups_of(prompts: Iterable[dict[str, Any]], batch_size: int) -> Iterator[list[dict[str, Any]]]:
    """Cuts prompts into groups whose images fill whole batches: only a group's last batch has to be filled up.

    Args:
        prompts: rows of ``prompts``.
        batch_size: images that are made at once.

    Yields:
        prompts in their order: as few as fill their batches, or more than ``MOST_BATCHES`` of them.
    """
    group: list[dict[str, Any]] = []
    images = 0
    for prompt in prompts:
        group.append(prompt)
        images += prompt["images_requested"]
        if images % batch_size == 0 or images > MOST_BATCHES * batch_size:
            yield group
            group, images = [], 0
    if group:
        yield group


class ReadPrompts(beam.DoFn):
    """Number of a part of ``prompts`` → groups of its prompts that have no result yet."""

    def __init__(self, lake: Lake, audit: str, batch_size: int):
        self.lake, self.audit, self.batch_size = lake, audit, batch_size

    def process(self, part: int) -> Iterator[list[dict[str, Any]]]:
        done = {path.rsplit("/", 1)[1] for path in list_files(result_folder(self.lake, self.audit), ".parquet")}
        rows = read_rows(self.lake.part("prompts", self.audit, part))
        yield from groups_of((row for row in rows if f"{row['prompt_id']}.parquet" not in done), self.batch_size)


@dataclasses.dataclass
class GenerateImages(beam.PTransform):
    """Parts of ``prompts`` (numbers) → what became of the prompts that were tried now. Those with a result are left alone.

    Attributes:
        handler: the model, and where prompts and results are.
        devices: where the model runs.
    """

    handler: GeneratorHandler
    devices: Devices = AS_IT_IS

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        make = self.devices.hinted(self.devices.infer(self.handler))
        read = ReadPrompts(self.handler.lake, self.handler.audit, self.handler.generator.batch_size)
        return parts | "ReadPrompts" >> beam.ParDo(read) | "SpreadPrompts" >> beam.Reshuffle() | "MakeAndWrite" >> make


class Compact(beam.DoFn):
    """Number of a part of ``prompts`` → the parts of ``generations`` and ``cliques`` that belong to it.

    ``cliques`` is written last: a part of it that exists says that the compaction of these prompts is complete.
    """

    def __init__(self, lake: Lake, audit: str):
        self.lake, self.audit = lake, audit

    def process(self, part: int) -> Iterator[int]:
        if part in {part_number(path) for path in self.lake.parts("cliques", self.audit)}:
            return
        cliques: list[dict[str, Any]] = []
        pending: list[pa.Table] = []
        number = part * PARTS_PER_PROMPTS_PART
        for prompt in read_rows(self.lake.part("prompts", self.audit, part), ["prompt_id"]):
            path = self.lake.path("work", "generate", self.audit, "prompts", f"{prompt['prompt_id']}.parquet")
            with open_parquet(path) as file:
                table = file.read()
            cliques.append(json.loads(table.schema.metadata[b"clique"]))
            pending.append(table.replace_schema_metadata())
            if sum(rows.nbytes for rows in pending) > MAX_PART_BYTES:
                self._flush(pending, number)
                number, pending = number + 1, []
        self._flush(pending, number)
        self.lake.write("cliques", self.audit, part, cliques)
        yield part

    def _flush(self, pending: list[pa.Table], number: int) -> None:
        if pending:
            self.lake.write("generations", self.audit, number, pa.concat_tables(pending))
