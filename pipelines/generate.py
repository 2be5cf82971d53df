"""Draws prompts from the duplicate groups and makes images of them.

reads   duplicate_groups, samples (and embeddings, for the controls); a diffusers model or a folder of generations
writes  prompts, generations, cliques

The prompts are the captions of the groups' representatives, drawn by strata of group size, and those of all controls; or
the user's own (--prompts). The images of one prompt are made, compared with the image whose caption it is and with one another
(the clique test), and kept or dropped before the next prompt begins; a run that is killed and started again repeats none of the
finished prompts. Of what is dropped a thumbnail stays, by which match finds what else it may show.

  eidetic generate --lake lake --model CompVis/stable-diffusion-v1-4 --device cuda --dtype float16 --max_prompts 100
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import apache_beam as beam

from pipelines.device import DeviceOptions
from pipelines.options import CommonOptions, option, parameters, parse
from pipelines.stage import Execution, Progress, Stage, say
from transforms import prompts as prompt_rows
from transforms.errors import UserError
from transforms.generators import DiffusersGenerator, FolderGenerator, Generator
from transforms.identity import digest
from transforms.lake import Lake, Manifest, delete, list_files

if TYPE_CHECKING:
    # Beam's RunInference imports torch; a verb that has nothing to do must not wait for it.
    from transforms.generation import Filter, GeneratorHandler


LARGE = 100_000
"""Images of an audit from which on one picture a prompt is stored, unless --keep says otherwise: all of them fill disks."""


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """Generation: prompts, the model, and the filter."""

    model: str | None = option(None, "a text-to-image pipeline of diffusers: hub id or local folder")
    revision: str | None = option(None, "branch, tag or commit of the model on the hub")
    generations: str | None = option(None, "instead of --model: a folder of finished generations with a metadata.jsonl")
    prompts: str | None = option(None, "try these instead of drawn ones: text (a prompt a line), JSONL or Parquet")
    max_prompts: int = option(1000, "prompts to draw from the groups")
    images_per_prompt: int = option(500, "images to make of each prompt (paper: 500)")
    images_per_control: int | None = option(None, "images to make of each control's caption (default: as of a prompt)")
    steps: int = option(50, "denoising steps")
    guidance_scale: float = option(7.5, "classifier-free guidance")
    batch_size: int = option(8, "images of one prompt made at once")
    dtype: str = option("float32", "number type of the model", choices=("float32", "float16", "bfloat16"))
    seed: int = option(0, "base seed; each image's own seed is a hash of it, its prompt and its number")
    clique_distance: float = option(0.15, "generations are joined where their tiled l2 is below this")
    clique_size: int = option(10, "flagged from this many nodes on (paper: 10 of 500)")
    keep: str | None = option(
        None,
        "which images are stored: all of the flagged prompts and of the controls, and of every other prompt the nearest to its "
        "own image (flagged); that one of every prompt, and the clique's central one (nearest); all; or none "
        f"(default: nearest from {LARGE:,} images on, else flagged)",
        choices=("flagged", "nearest", "all", "none"),
    )
    unflagged_fraction: float = option(0.05, "with flagged: share of the unflagged prompts of which all images are stored")
    seconds_per_image: float | None = option(None, "for --plan: expected device time of one image")

    def __post_init__(self) -> None:
        positive = ("max_prompts", "images_per_prompt", "images_per_control", "steps", "batch_size", "clique_size")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}, expected 1 or more")
        if not 0 < self.clique_distance <= 1:
            raise UserError(f"--clique_distance is {self.clique_distance}, expected over 0, up to 1")
        if not 0 <= self.unflagged_fraction <= 1:
            raise UserError(f"--unflagged_fraction is {self.unflagged_fraction}, expected 0 to 1")
        if self.model is not None and self.generations is not None:
            raise UserError("--model and --generations exclude each other: name the one that makes the images")

    @property
    def filter(self) -> Filter:
        from transforms.generation import Filter

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

    @property
    def control_images(self) -> int:
        return self.images_per_prompt if self.images_per_control is None else self.images_per_control


# What doesn't shape the rows. Batch size may move a picture by a grey level, as devices do; a run that ran out of memory
# must be free to go on with a smaller one.
NO_PARAMETERS = ("model", "revision", "generations", "prompts", "batch_size", "seconds_per_image")


def generator(options: GenerateOptions, device: str) -> Generator:
    """What makes the images. UserError where neither a model nor generations were named."""
    if options.generations is not None:
        return FolderGenerator(options.generations)
    if options.model is None:
        raise UserError("nothing makes images: name a model with --model, or finished generations with --generations")
    return DiffusersGenerator(
        model=options.model,
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        batch_size=options.batch_size,
        device=device,
        dtype=options.dtype,
        hub_revision=options.revision,
    )


def generator_again(audit: Manifest, model: str | None, device: str) -> Generator:
    """What made an audit's images, with its parameters; ``model`` is where it is now. UserError where it is another one."""
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
            batch_size=1,
            device=device,
            dtype=audit.parameters["dtype"],
            hub_revision=wanted,
        )
    found = made.revision()
    if found != wanted:
        raise UserError(
            f"the model {where!r} has revision {found}, the audit {audit.snapshot_id} was made with {wanted}; "
            "name that one with --model"
        )
    return made


def stage(lake: Lake, options: GenerateOptions, deduplicate: str, images: Generator) -> Stage:
    """What ``generate`` would make of the groups of snapshot ``deduplicate``."""
    shaping = parameters(options, leave_out=NO_PARAMETERS)
    if options.prompts is not None:
        shaping["prompts_digest"] = digest("prompts", prompt_rows.read_prompt_list(options.prompts))
    shaping["keep"] = options.kept
    shaping["generator"] = images.kind
    shaping["model_revision"] = images.revision()
    done = lake.manifest("deduplicate", deduplicate)
    items = None if done is None else sum(row["images_requested"] for row in _prompts(lake, done, options, images)[0])
    return Stage(
        name="generate",
        parameters=shaping,
        upstream={"deduplicate": deduplicate},
        items=items,
        unit="images",
        seconds_per_item=options.seconds_per_image or seconds_per_image(lake, shaping["model_revision"]),
    )


def seconds_per_image(lake: Lake, model_revision: str) -> float | None:
    """What an image of this model took in an earlier audit of this lake; None where there was none.

    By the prompts' own seconds: those of the command are of its last try alone where it was killed and went on.
    """
    for manifest in reversed(lake.manifests("generate")):
        if manifest.parameters["model_revision"] == model_revision and manifest.rows["generations"]:
            prompts = lake.read("cliques", manifest.snapshot_id, ["seconds", "n_generated", "n_failed"]).to_pydict()
            return sum(prompts["seconds"]) / (sum(prompts["n_generated"]) + sum(prompts["n_failed"]))
    return None


def _prompts(
    lake: Lake, deduplicate: Manifest, options: GenerateOptions, images: Generator
) -> tuple[list[dict[str, Any]], int]:
    """Rows of ``prompts``, and how many groups are in strata of which none was drawn."""
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
        return prompt_rows.listed_prompts(lake, deduplicate, texts, listed) + rows, 0
    if options.prompts is not None:
        texts = prompt_rows.read_prompt_list(options.prompts)
        return prompt_rows.listed_prompts(lake, deduplicate, texts, listed) + rows, 0
    drawn = prompt_rows.drawn_prompts(
        lake,
        deduplicate,
        max_prompts=options.max_prompts,
        images_per_prompt=options.images_per_prompt,
        base_seed=options.seed,
    )
    return drawn.rows + rows, drawn.groups_left_out


def build(
    pipeline: beam.Pipeline, lake: Lake, audit: str, parts: int, handler: GeneratorHandler, accelerator: str | None
) -> None:
    """The pipeline that makes the images of ``parts`` parts of ``prompts``."""
    from transforms.generation import GenerateImages

    make = GenerateImages(lake, audit, handler, accelerator)
    _ = pipeline | "Parts" >> beam.Create(range(parts)) | "GenerateImages" >> make


def build_compaction(pipeline: beam.Pipeline, lake: Lake, audit: str, parts: int) -> None:
    """The pipeline that turns one small file a prompt into tables."""
    from transforms.generation import Compact

    _ = (
        pipeline
        | "Parts" >> beam.Create(range(parts))
        | "SpreadParts" >> beam.Reshuffle()
        | "Compact" >> beam.ParDo(Compact(lake, audit))
    )


def run(execution: Execution, options: GenerateOptions, device: DeviceOptions, deduplicate: Manifest | None = None) -> Manifest:
    """Runs the stage on the newest groups, or on those of ``deduplicate``."""
    lake = execution.lake
    done = deduplicate or lake.latest("deduplicate")
    images = generator(options, device.resolved())
    planned = stage(lake, options, done.snapshot_id, images)

    def work(planned: Stage) -> dict[str, Any]:
        from transforms.generation import GeneratorHandler, result_folder
        from transforms.images import ImageStore

        audit = planned.snapshot_id
        rows, left_out = _prompts(lake, done, options, images)
        if not rows:
            raise UserError("there is no prompt to try: no group has a caption, and there are no controls and no --prompts")
        if left_out:
            say(
                f"generate     {options.max_prompts} prompts are fewer than there are strata: the rates say nothing of the "
                f"{left_out:,} groups that are duplicated least; raise --max_prompts, or --budget of a night, to hear of them"
            )
        parts = write_prompts(lake, audit, rows, planned)
        embed = lake.manifest("embed", done.upstream["embed"])
        assert embed is not None, "a complete snapshot's upstream is complete"
        store = ImageStore(lake, embed.upstream["ingest"], embed.snapshot_id)
        handler = GeneratorHandler(images, options.filter, options.seed, store)
        folder = result_folder(lake, audit)
        progress = Progress("generate", lambda: len(list_files(folder, ".parquet")), len(rows), "prompts")
        execution.run(lambda pipeline: build(pipeline, lake, audit, parts, handler, device.hint()), progress)
        execution.run(lambda pipeline: build_compaction(pipeline, lake, audit, parts))
        return {"model": images.model, "model_revision": planned.parameters["model_revision"]}

    manifest = execution.stage(planned, work)
    delete(lake.work("generate", manifest.snapshot_id))
    return manifest


def write_prompts(lake: Lake, audit: str, rows: list[dict[str, Any]], planned: Stage) -> int:
    """Writes the table ``prompts`` in parts of a fixed number of rows; returns the number of parts."""
    from transforms.generation import PROMPTS_PER_PART

    columns = {
        "audit_id": audit,
        "model_revision": planned.parameters["model_revision"],
        "parameters_digest": digest("parameters", planned.parameters, planned.upstream, length=16),
    }
    starts = range(0, len(rows), PROMPTS_PER_PART)
    for part, start in enumerate(starts):
        lake.write("prompts", audit, part, [{**columns, **row} for row in rows[start : start + PROMPTS_PER_PART]])
    return len(starts)


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "generate", __doc__, (CommonOptions, GenerateOptions, DeviceOptions))
    common = parsed[CommonOptions]
    run(Execution(Lake(common.lake), parsed.beam, common.verbose), parsed[GenerateOptions], parsed[DeviceOptions])


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
