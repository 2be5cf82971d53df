"""Makes a CLIP vector of every picture.

reads   images
writes  embeddings: one row per picture, a vector of unit norm, or the reason why there is none

A part of embeddings holds the vectors of the part of images with the same number; parts that a killed run has finished
are kept. The model is one of open_clip's by name and tag, or a local one, which is known by the digest of its content:
a folder that was moved is the same model. Device and batch size change vectors by rounding only (about 1e-6), so the
same snapshot may be finished with another one.

  eidetic embed --lake lake --clip_model ViT-B-32 --clip_pretrained laion2b_s34b_b79k --device cuda
  eidetic embed --lake lake --clip_model demo/models/clip
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipelines.device import DeviceOptions
from pipelines.options import CommonOptions, option, parse
from pipelines.stage import Execution, Progress, Stage
from transforms.clip import ClipModel
from transforms.errors import UserError
from transforms.lake import Lake, Manifest, count_rows


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """Embedding: the CLIP model."""

    clip_model: str = option("ViT-B-32", "open_clip's name of a model, hf-hub:owner/name, or a folder in its format")
    clip_pretrained: str = option(
        "laion2b_s34b_b79k", "tag or local file of the weights; a folder and hf-hub: bring their own, and ignore this"
    )
    clip_batch_size: int = option(64, "pictures that go through CLIP at once")

    def __post_init__(self) -> None:
        if self.clip_batch_size < 1:
            raise UserError(f"--clip_batch_size is {self.clip_batch_size}, expected 1 or more")
        if not self.clip_model:
            raise UserError("--clip_model is empty; name a model of open_clip or a folder")

    def model(self, device: str) -> ClipModel:
        """The model on a device (cpu, cuda, cuda:1); ``load`` gives the encoder."""
        return ClipModel(name=self.clip_model, pretrained=self.clip_pretrained, device=device, batch_size=self.clip_batch_size)


def stage(lake: Lake, options: EmbedOptions, device: DeviceOptions, ingest: Manifest | str) -> Stage:
    """What ``embed`` would make of the images of ``ingest`` (its manifest, or its id where it hasn't run yet)."""
    model, pretrained = options.model("cpu").identity()
    done = lake.manifest("ingest", ingest) if isinstance(ingest, str) else ingest
    parameters = {"clip_model": model, "clip_pretrained": pretrained}
    return Stage(
        name="embed",
        parameters=parameters,
        upstream={"ingest": ingest if isinstance(ingest, str) else ingest.snapshot_id},
        items=None if done is None else done.rows["images"],
        unit="images",
        seconds_per_item=seconds_per_image(lake, parameters),
    )


def before(lake: Lake, planned: Stage, images: Manifest) -> Manifest | None:
    """The vectors, by the same model, of what the images lie over."""
    done = {one.upstream["ingest"]: one for one in lake.manifests("embed") if one.parameters == planned.parameters}
    earlier: Manifest | None = images
    while earlier is not None and "ingest" in earlier.upstream:
        base = earlier.upstream["ingest"]
        if base in done:
            return done[base]
        earlier = lake.manifest("ingest", base)
    return None


def seconds_per_image(lake: Lake, parameters: dict[str, Any]) -> float | None:
    """What an image took when this model last ran in this lake; None where it never did."""
    for manifest in reversed(lake.manifests("embed")):
        if manifest.parameters == parameters and manifest.facts.get("images_embedded"):
            return manifest.facts["seconds"] / manifest.facts["images_embedded"]
    return None


def build(pipeline: beam.Pipeline, numbers: Sequence[int], transform: beam.PTransform) -> None:
    """The pipeline that embeds the parts of ``images`` with these numbers; ``transform`` is an ``EmbedImages``."""
    _ = pipeline | "Parts" >> beam.Create(list(numbers)) | "EmbedImages" >> transform


def run(execution: Execution, options: EmbedOptions, device: DeviceOptions, ingest: Manifest | None = None) -> Manifest:
    """Runs the stage on the newest images, or on those of ``ingest``."""
    lake = execution.lake
    images = ingest or lake.latest("ingest")

    def work(planned: Stage) -> dict[str, Any]:
        # Here, since Beam's RunInference imports torch, which takes seconds.
        from transforms.embedding import EmbedImages, OpenClipHandler

        base = before(lake, planned, images)
        now, earlier = lake.paths("images", images.snapshot_id), {}
        if base is not None:
            lake.lay_over("embeddings", planned.snapshot_id, base.snapshot_id)
            earlier = lake.paths("images", base.upstream["ingest"])
        # Of the parts that both have, none need be embedded again.
        numbers = [number for number, path in now.items() if earlier.get(number) != path]
        clip = options.model(device.resolved())
        if numbers:
            transform = EmbedImages(OpenClipHandler(clip, lake, images.snapshot_id), planned.snapshot_id, device.hint())
            total = images.rows["images"]
            # Parts are of about the same size; to read every footer every two seconds would cost more than it tells.
            progress = Progress(
                "embed",
                lambda: round(total * (len(now) - len(numbers) + len(lake.own("embeddings", planned.snapshot_id))) / len(now)),
                total,
                "images",
            )
            execution.run(lambda pipeline: build(pipeline, numbers, transform), progress)
        status = lake.read("embeddings", planned.snapshot_id, ["status"])["status"]
        return {
            "clip_model": options.clip_model,
            "clip_pretrained": options.clip_pretrained,
            "device": clip.device,
            "batch_size": clip.batch_size,
            "images_embedded": sum(count_rows(path) for path in lake.own("embeddings", planned.snapshot_id).values()),
            "status": dict(collections.Counter(status.to_pylist())),
        }

    return execution.stage(stage(lake, options, device, images), work)


def encoder(embed: Manifest, device: DeviceOptions) -> ClipModel:
    """The model that made the vectors of ``embed``, on a device. UserError where it is not what it was."""
    clip = ClipModel(
        name=embed.facts["clip_model"],
        pretrained=embed.facts["clip_pretrained"],
        device=device.resolved(),
        batch_size=embed.facts["batch_size"],
    )
    now = dict(zip(("clip_model", "clip_pretrained"), clip.identity(), strict=True))
    if now != embed.parameters:
        raise UserError(
            f"the CLIP model {clip.name!r} is not the one that 'eidetic embed' ran with (then {embed.parameters}, now "
            f"{now}); restore it, or run 'eidetic embed' again"
        )
    return clip


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "embed", __doc__, (CommonOptions, EmbedOptions, DeviceOptions))
    common = parsed[CommonOptions]
    run(Execution(Lake(common.lake), parsed.beam, common.verbose), parsed[EmbedOptions], parsed[DeviceOptions])


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
