"""Draws prompts from the duplicate groups and makes images of them.

reads   duplicate_groups, samples (and embeddings, for the controls); a diffusers model or a folder of generations
writes  prompts, generations, cliques

The prompts are captions of the groups, drawn by strata of group size (the representative's, or where that has none the one that
most of the group's images have), and those of all controls; or
the user's own (--prompts). As soon as a prompt's images are made they are compared with the image whose caption it is and with
one another (the clique test), and kept or dropped; a run that is killed and started again repeats none of the finished prompts.
Of what is dropped a thumbnail stays, by which match finds what else it may show.

  eidetic generate --lake lake --model CompVis/stable-diffusion-v1-4 --device cuda --dtype float16 --max_prompts 100
"""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

import apache_beam as beam

from pipelines.costs import LOCAL_RUNNERS, Cost, Size, rated
from pipelines.device import DeviceOptions
from pipelines.execution import Execution, Progress, say
from pipelines.options import Options, Parsed, check_url, option, parameters
from pipelines.stages import Planned, Stage
from transforms.attacks import prompts as prompt_rows
from transforms.errors import UserError
from transforms.models.base import Generator
from transforms.models.devices import cores
from transforms.models.diffusion import DiffusersGenerator
from transforms.models.folder import FolderGenerator
from transforms.models.processes import Devices
from transforms.store.files import delete, list_files, read_rows
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage
from transforms.store.scan import ask

if TYPE_CHECKING:
    # Beam's RunInference imports torch; a verb that has nothing to do must not wait for it.
    from transforms.attacks.attempts import Filter, GeneratorHandler


LARGE = 100_000
"""Images of an audit from which on one picture a prompt is stored, unless --keep says otherwise: all of them fill disks."""


@dataclasses.dataclass(frozen=True)
class GenerateOptions(Options):
    """Generation: prompts, the model, and the filter."""

    model: str | None = option(None, "a text-to-image pipeline of diffusers: hub id or folder (a URL's is copied here)")
    revision: str | None = option(None, "branch, tag or commit of the model on the hub")
    variant: str | None = option(None, "variant of the weights, such as fp16 (default: none, or the only one that there is)")
    allow_pickle: bool = option(
        False, "load weights that are pickled (.bin) where there are no safetensors: they can execute code"
    )
    safety_checker: str = option(
        "on", "whether a safety checker that belongs to the model may take pictures; off: you answer for what is made",
        choices=("on", "off"),
    )  # fmt: skip
    generations: str | None = option(None, "instead of --model: a folder of finished generations with a metadata.jsonl")
    prompts: str | None = option(None, "try these instead of drawn ones: text (a prompt a line), CSV, TSV, JSONL or Parquet")
    max_prompts: int = option(1000, "prompts to draw from the groups", least=1)
    skip_changed: bool = option(False, "draw no caption of a picture that changed since the metadata were made (mart drift)")
    skip_placeholders: bool = option(
        True, "draw no caption of a placeholder: one picture on many hosts, under unlike captions (mart placeholders)"
    )
    images_per_prompt: int = option(500, "images to make of each prompt (paper: 500)", least=1)
    images_per_control: int | None = option(None, "images to make of each control's caption (default: as of a prompt)", least=1)
    steps: int = option(50, "denoising steps", least=1)
    guidance_scale: float = option(7.5, "classifier-free guidance")
    batch_size: int = option(8, "images made at once, of one prompt or several", least=1)
    dtype: str = option("float32", "number type of the model", choices=("float32", "float16", "bfloat16"))
    seed: int = option(0, "base seed; each image's own seed is a hash of it, its prompt and its number")
    clique_distance: float = option(0.15, "generations are joined where their tiled l2 is below this", over=0, most=1)
    clique_size: int = option(10, "flagged from this many nodes on (paper: 10 of 500)", least=1)
    keep: str | None = option(
        None,
        "which images are stored: all of the flagged prompts and of the controls, and of every other prompt the nearest to its "
        "own image (flagged); that one of every prompt, and the clique's central one (nearest); all; or none "
        f"(default: nearest from {LARGE:,} images on, else flagged)",
        choices=("flagged", "nearest", "all", "none"),
    )
    unflagged_fraction: float = option(
        0.05, "with flagged: share of the unflagged prompts of which all images are stored", least=0, most=1
    )
    seconds_per_image: float | None = option(
        None, "for --plan: expected time of one image in seconds, of a GPU, or of all cores of a machine like this one", least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.generations is not None:
            raise UserError("--model and --generations exclude each other: name the one that makes the images")
        for name in ("model", "prompts", "generations"):
            check_url(f"--{name}", getattr(self, name) or "")

    @property
    def filter(self) -> Filter:
        from transforms.attacks.attempts import Filter

        return Filter(
            clique_distance=self.clique_distance,
            clique_size=self.clique_size,
            keep=self.kept,
            unflagged_fraction=self.unflagged_fraction,
        )

    @property
    def kept(self) -> str:
        """``keep``, or what it is by default."""
        return self.keep or ("nearest" if self.max_prompts * self.images_per_prompt >= LARGE else "flagged")

    def size(self, images: int, controls: int = 0, prompts: int | None = None, generations: int | None = None) -> Size:
        """Of an audit of so many pictures; of prompts and images as many as there may be where that isn't known.

        What is kept is told without flagged prompts, which are known afterwards: the nearest image of each, and whole prompts.
        """
        # A prompt is drawn from a group.
        prompts = min(self.max_prompts, images) if prompts is None else prompts
        own, of_controls = prompts * self.images_per_prompt, controls * self.control_images
        generations = own + of_controls if generations is None else generations
        kept = {
            "none": 0,
            "all": generations,
            "nearest": prompts + controls,
            "flagged": prompts + round(self.unflagged_fraction * own) + of_controls,
        }
        return Size(images, controls, prompts, generations, min(kept[self.kept], generations))

    @property
    def control_images(self) -> int:
        return self.images_per_prompt if self.images_per_control is None else self.images_per_control


# What doesn't shape the rows. Batch size may move a picture by a grey level, as devices do; a run that ran out of memory
# must be free to go on with a smaller one.
NO_PARAMETERS = ("model", "revision", "allow_pickle", "generations", "prompts", "batch_size", "seconds_per_image")


def generator(options: GenerateOptions, device: str, revision: str | None = None) -> FolderGenerator | DiffusersGenerator:
    """What makes the images. UserError where neither a model nor generations were named.

    Args:
        options: which, and how.
        device: where it runs.
        revision: the exact weights, as ``Generator.revision`` named them; None for those that the options mean now.
    """
    if options.generations is not None:
        return FolderGenerator(options.generations)
    if options.model is None:
        raise UserError("nothing makes images: name a model with --model, or finished generations with --generations")
    return DiffusersGenerator(
        # A shell leaves the ~ of --model=~/x as it is.
        model=os.path.expanduser(options.model),
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        batch_size=options.batch_size,
        device=device,
        dtype=options.dtype,
        hub_revision=revision or options.revision,
        variant=options.variant,
        allow_pickle=options.allow_pickle,
        safety_checker=options.safety_checker,
    )


def generator_again(audit: Manifest, model: str | None, device: str, batch_size: int | None = None) -> Generator:
    """What made an audit's images, with its parameters. UserError where the model is another one.

    Args:
        audit: of ``generate``.
        model: where it is now; None for where it was.
        device: where it runs now.
        batch_size: images made at once; None for as many as in the audit.
    """
    wanted = audit.parameters["model_revision"]
    where = model or audit.facts["model"]
    made: Generator
    if audit.parameters["generator"] == FolderGenerator.kind:
        made = FolderGenerator(where)
    else:
        made = DiffusersGenerator(
            model=where,
            steps=audit.parameters["steps"],
            guidance_scale=audit.parameters["guidance_scale"],
            batch_size=batch_size or audit.facts["batch_size"],
            device=device,
            dtype=audit.parameters["dtype"],
            hub_revision=wanted,
            variant=audit.parameters.get("variant"),
            # They were taken once, and are the same.
            allow_pickle=audit.facts.get("allow_pickle", False),
            safety_checker=audit.parameters.get("safety_checker", "on"),
        )
    found = made.revision()
    if found != wanted:
        raise UserError(
            f"the model {where!r} has revision {found}, the audit {audit.snapshot_id} was made with {wanted}; "
            "name that one with --model"
        )
    return made


def plan(lake: Lake, parsed: Parsed, deduplicate: str | None) -> Planned:
    """What ``generate`` would make of the groups of snapshot ``deduplicate``."""
    assert deduplicate is not None, "it has an upstream"
    options: GenerateOptions = parsed[GenerateOptions]
    images = generator(options, parsed[DeviceOptions].resolved())
    shaping = parameters(options, leave_out=NO_PARAMETERS)
    if options.prompts is not None:
        shaping["prompts_digest"] = digest("prompts", prompt_rows.read_prompt_list(options.prompts))
    shaping["keep"] = options.kept
    shaping["generator"] = images.kind
    shaping["model_revision"] = images.revision()

    def to_make() -> int | None:
        done = lake.manifest("deduplicate", deduplicate)
        return None if done is None else sum(row["images_requested"] for row in _prompts(lake, done, options, images).rows)

    return Planned(
        stage="generate",
        parameters=shaping,
        upstream={"deduplicate": deduplicate},
        unit="images",
        count=to_make,
    )


def costs(lake: Lake, parsed: Parsed, size: Size) -> list[Cost]:
    """What the model takes, with the comparison and the filter that its images go through."""
    options, on_gpu = parsed[GenerateOptions], parsed[DeviceOptions].resolved().startswith("cuda")
    return [
        rated(
            "make, compare and filter", size.generations, "images", on_gpu, _rate(lake, options, on_gpu),
            "not measured: name --seconds_per_image, or audit a few prompts of this model in this lake first",
        )
    ]  # fmt: skip


def _rate(lake: Lake, options: GenerateOptions, on_gpu: bool) -> tuple[float, str] | None:
    """Seconds of an image, of a GPU or of a core, and where they were measured."""
    if options.seconds_per_image is not None:
        shared = 1 if on_gpu else cores()
        return options.seconds_per_image * shared, f"--seconds_per_image {options.seconds_per_image:g}"
    if options.model is None:
        return None
    found = measured(lake, generator(options, "cpu").revision())
    if found is None:
        return None
    manifest, seconds = found
    facts = manifest.facts
    devices = facts.get("devices", [])
    if on_gpu != any(one.startswith("cuda") for one in devices):
        return None
    if not on_gpu:
        # The cores of a cluster's workers are not known.
        if facts.get("runner") not in LOCAL_RUNNERS:
            return None
        seconds *= facts["cores"] / len(devices)
    source = f"this lake: generate {manifest.snapshot_id}, its prompts' own seconds, {facts['machine']}"
    return seconds, f"{source}, {manifest.finished_at[:10]}"


def seconds_per_image(lake: Lake, model_revision: str) -> float | None:
    """What an image of this model took in an earlier audit of this lake; None where there was none."""
    found = measured(lake, model_revision)
    return None if found is None else found[1]


def measured(lake: Lake, model_revision: str) -> tuple[Manifest, float] | None:
    """The newest audit of this model in this lake, and the seconds of a device that an image took; None where there was none.

    By the prompts' own seconds: those of the command are of its last try alone where it was killed and went on.
    """
    for manifest in reversed(lake.manifests("generate")):
        if manifest.parameters["model_revision"] == model_revision and manifest.rows["generations"]:
            query = "SELECT sum(seconds) / sum(n_generated + n_failed) AS seconds FROM cliques"
            return manifest, ask(lake, {"cliques": manifest.snapshot_id}, query)[0]["seconds"]
    return None


def _prompts(lake: Lake, deduplicate: Manifest, options: GenerateOptions, images: Generator) -> prompt_rows.Drawn:
    """Rows of ``prompts``, and how many groups none of them asks for."""
    embed = lake.manifest("embed", deduplicate.upstream["embed"])
    assert embed is not None, "a complete snapshot's upstream is complete"

    def controls(text: str) -> int:
        if isinstance(images, FolderGenerator):
            return min(options.control_images, len(images.files.get(text, [])))
        return options.control_images

    def listed(text: str) -> int:
        if isinstance(images, FolderGenerator):
            return min(options.images_per_prompt, len(images.files[text]))
        return options.images_per_prompt

    rows = prompt_rows.control_prompts(lake, embed, controls)
    control_texts = {row["text"] for row in rows}
    if isinstance(images, FolderGenerator):
        wanted = prompt_rows.read_prompt_list(options.prompts) if options.prompts is not None else list(images.files)
        texts = [text for text in wanted if text in images.files and text not in control_texts]
        return prompt_rows.Drawn(prompt_rows.listed_prompts(lake, deduplicate, texts, listed) + rows)
    if options.prompts is not None:
        texts = prompt_rows.read_prompt_list(options.prompts)
        return prompt_rows.Drawn(prompt_rows.listed_prompts(lake, deduplicate, texts, listed) + rows)
    drawn = prompt_rows.drawn_prompts(
        lake,
        deduplicate,
        max_prompts=options.max_prompts,
        images_per_prompt=options.images_per_prompt,
        base_seed=options.seed,
        skip_changed=options.skip_changed,
        skip_placeholders=options.skip_placeholders,
    )
    return drawn._replace(rows=drawn.rows + rows)


def build(pipeline: beam.Pipeline, parts: int, handler: GeneratorHandler, devices: Devices) -> None:
    """The pipeline that makes the images of ``parts`` parts of ``prompts``."""
    from transforms.attacks.attempts import GenerateImages

    make = GenerateImages(handler, devices)
    _ = pipeline | "Parts" >> beam.Create(range(parts)) | "GenerateImages" >> make


def build_compaction(pipeline: beam.Pipeline, lake: Lake, audit: str, parts: int) -> None:
    """The pipeline that turns one small file a prompt into tables."""
    from transforms.attacks.attempts import Compact

    _ = (
        pipeline
        | "Parts" >> beam.Create(range(parts))
        | "SpreadParts" >> beam.Reshuffle()
        | "Compact" >> beam.ParDo(Compact(lake, audit))
    )


def work(execution: Execution, parsed: Parsed, planned: Planned, groups: Manifest | None) -> dict[str, Any]:
    """Draws the prompts, and makes and filters their images."""
    from transforms.attacks.attempts import GeneratorHandler, fitting_batch, result_folder
    from transforms.data.images import ImageStore

    assert groups is not None, "it has an upstream"
    lake, options, device = execution.lake, parsed[GenerateOptions], parsed[DeviceOptions]
    images = generator(options, device.resolved(), planned.parameters["model_revision"])
    if isinstance(images, DiffusersGenerator):
        for name in images.unused():
            say(f"generate     the pipeline of {images.model!r} takes no notice of --{name}; in generations it is null")
    audit = planned.snapshot_id
    rows, left_out, without_caption, placeholders = _prompts(lake, groups, options, images)
    if placeholders:
        say(
            f"generate     {placeholders:,} groups are placeholders, and are not asked for: the mart placeholders names them, "
            "and --no_skip_placeholders asks for them"
        )
    if without_caption:
        unchanged = " that didn't change" if options.skip_changed else ""
        say(f"generate     {without_caption:,} groups have no image{unchanged} with a caption, and are not asked for")
    if not rows:
        raise UserError("there is no prompt to try: no group has a caption, and there are no controls and no --prompts")
    if left_out:
        say(
            f"generate     {options.max_prompts} prompts are fewer than there are strata: the rates say nothing of the "
            f"{left_out:,} groups that are duplicated least; raise --max_prompts, or --budget of a night, to hear of them"
        )
    parts = write_prompts(lake, audit, rows, planned)
    made_of = lineage(lake, groups)
    store = ImageStore(lake, made_of["ingest"].snapshot_id, made_of["embed"].snapshot_id)
    handler = GeneratorHandler(lake, audit, images, options.filter, options.seed, store)
    folder = result_folder(lake, audit)
    progress = Progress("generate", lambda: len(list_files(folder, ".parquet")), len(rows), "prompts")
    execution.run(lambda pipeline: build(pipeline, parts, handler, device.devices()), progress)
    refuse_without_attempts(lake, audit)
    execution.run(lambda pipeline: build_compaction(pipeline, lake, audit, parts))
    statuses = ask(lake, {"generations": audit}, "SELECT status, count(*) AS rows FROM generations GROUP BY ALL ORDER BY ALL")
    status = {row["status"]: row["rows"] for row in statuses}
    if taken := status.get("safety_filtered", 0):
        say(
            f"generate     the model's safety checker took {taken:,} of {sum(status.values()):,} pictures, which count as "
            "tried and not returned; --safety_checker off leaves it out"
        )
    fitting = fitting_batch(lake, audit)
    if fitting is not None:
        say(f"generate     the device had memory for {fitting} images at once, of the {options.batch_size} of --batch_size")
    return {
        "model": images.model,
        "model_revision": planned.parameters["model_revision"],
        "batch_size": fitting or options.batch_size,
        "allow_pickle": options.allow_pickle,
        "status": status,
    }


def refuse_without_attempts(lake: Lake, audit: str) -> None:
    """UserError where every attempt failed: nothing can be said of the model. What a safety checker took did not fail."""
    from transforms.attacks.attempts import result_folder

    reasons: collections.Counter[str] = collections.Counter()
    # The first file says it, unless there is something to say.
    for path in list_files(result_folder(lake, audit), ".parquet"):
        for row in read_rows(path, ["status", "reason"]):
            if row["status"] != "failed":
                return
            reasons[row["reason"]] += 1
    ((reason, times),) = reasons.most_common(1) or [("there are no generations", 0)]
    # Else they would pass for finished when the command is given again.
    delete(lake.work("generate", audit))
    raise UserError(
        f"none of {reasons.total():,} generations is a picture ({times:,} times: {reason}); mend the model or the generations "
        "and start again"
    )


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    delete(execution.lake.work("generate", manifest.snapshot_id))


def write_prompts(lake: Lake, audit: str, rows: list[dict[str, Any]], planned: Planned) -> int:
    """Writes the table ``prompts`` in parts of a fixed number of rows; returns the number of parts."""
    from transforms.attacks.attempts import PROMPTS_PER_PART

    columns = {
        "audit_id": audit,
        "model_revision": planned.parameters["model_revision"],
        "parameters_digest": digest("parameters", planned.parameters, planned.upstream, length=16),
    }
    starts = range(0, len(rows), PROMPTS_PER_PART)
    for part, start in enumerate(starts):
        lake.write("prompts", audit, part, [{**columns, **row} for row in rows[start : start + PROMPTS_PER_PART]])
    return len(starts)


def check(parsed: Parsed) -> None:
    """UserError for a model that is not one to ask with prompts: before hours of download, and not after."""
    images = generator(parsed[GenerateOptions], "cpu")
    if isinstance(images, DiffusersGenerator):
        images.check()


STAGE = Stage(
    name="generate",
    description=__doc__,
    upstream="deduplicate",
    options=(GenerateOptions, DeviceOptions),
    plan=plan,
    work=work,
    finish=finish,
    check=check,
    costs=costs,
)
main = STAGE.main


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
