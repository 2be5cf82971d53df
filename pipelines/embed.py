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

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

import sql
from pipelines.costs import Cost, Size, lines, rated, run_of
from pipelines.device import DeviceOptions
from pipelines.execution import Execution, Progress, say
from pipelines.options import Options, Parsed, check_url, option
from pipelines.stages import Planned, Stage
from transforms.errors import UserError
from transforms.models.clip import ClipModel
from transforms.store.files import count_rows
from transforms.store.lake import Lake, Manifest
from transforms.store.scan import ask

MEASURED_CLIP = "ViT-B-32"
"""The model whose time on a CPU ``rates.json`` has."""


@dataclasses.dataclass(frozen=True)
class EmbedOptions(Options):
    """Embedding: the CLIP model."""

    clip_model: str = option(
        MEASURED_CLIP, "open_clip's name of a model, hf-hub:owner/name, or a folder in its format (a URL's is copied here)"
    )
    clip_pretrained: str = option(
        "laion2b_s34b_b79k", "tag or local file of the weights; a folder and hf-hub: bring their own, and ignore this"
    )
    clip_batch_size: int = option(64, "pictures that go through CLIP at once", least=1)
    compare_captions: bool = option(
        False, "compare pictures with their captions where the metadata have LAION's similarity: it tells those that changed"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clip_model:
            raise UserError("--clip_model is empty; name a model of open_clip or a folder")
        check_url("--clip_model", self.clip_model)

    @functools.cached_property
    def identity(self) -> tuple[str, str]:
        """(model, pretrained) as the lake's rows have them: its files are read once a command."""
        return self.model("cpu").identity()

    def model(self, device: str) -> ClipModel:
        """The model on a device (cpu, cuda, cuda:1); ``load`` gives the encoder."""
        return ClipModel(name=self.clip_model, pretrained=self.clip_pretrained, device=device, batch_size=self.clip_batch_size)


def _parameters(options: EmbedOptions) -> dict[str, Any]:
    """What the rows depend on."""
    model, pretrained = options.identity
    compared = {"compare_captions": True} if options.compare_captions else {}
    return {"clip_model": model, "clip_pretrained": pretrained, **compared}


def plan(lake: Lake, parsed: Parsed, ingest: str | None) -> Planned:
    """What ``embed`` would make of the images of ``ingest``."""
    assert ingest is not None, "it has an upstream"
    parameters = _parameters(parsed[EmbedOptions])

    def images() -> int | None:
        done = lake.manifest("ingest", ingest)
        return None if done is None else done.rows["images"]

    return Planned(
        stage="embed",
        parameters=parameters,
        upstream={"ingest": ingest},
        unit="images",
        count=images,
    )


def base_run(lake: Lake, planned: Planned, images: Manifest) -> Manifest | None:
    """The vectors, by the same model, of what the images lie over."""
    done = {one.upstream["ingest"]: one for one in lake.manifests("embed") if one.parameters == planned.parameters}
    earlier: Manifest | None = images
    while earlier is not None and "ingest" in earlier.upstream:
        base = earlier.upstream["ingest"]
        if base in done:
            return done[base]
        earlier = lake.manifest("ingest", base)
    return None


def costs(lake: Lake, parsed: Parsed, size: Size) -> list[Cost]:
    """What CLIP takes, of the training set and the controls."""
    return [cost(lake, parsed, "CLIP of the pictures", size.images + size.controls)]


def cost(lake: Lake, parsed: Parsed, work: str, images: int) -> Cost:
    """What CLIP takes of ``images`` pictures."""
    options, on_gpu = parsed[EmbedOptions], parsed[DeviceOptions].resolved().startswith("cuda")
    same = [one for one in lake.manifests("embed") if one.parameters == _parameters(options)]
    rate = run_of(same, "embed", "images_embedded", on_gpu)
    if rate is None and not on_gpu and options.clip_model == MEASURED_CLIP and not options.compare_captions:
        return lines()["embed"].cost(work, images, images, "images")
    else_do = (
        f"not measured: run 'eidetic embed' with --clip_model {options.clip_model}"
        f"{' --compare_captions' if options.compare_captions else ''} on some pictures of this lake, on a machine "
        f"with {'such a GPU' if on_gpu else 'such cores'}"
    )
    return rated(work, images, "images", on_gpu, rate, else_do)


def build(pipeline: beam.Pipeline, numbers: Sequence[int], transform: beam.PTransform) -> None:
    """The pipeline that embeds the parts of ``images`` with these numbers; ``transform`` is an ``EmbedImages``."""
    _ = pipeline | "Parts" >> beam.Create(list(numbers)) | "EmbedImages" >> transform


def work(execution: Execution, parsed: Parsed, planned: Planned, images: Manifest | None) -> dict[str, Any]:
    """Embeds the parts of ``images`` that no night before has."""
    assert images is not None, "it has an upstream"
    lake, options, device = execution.lake, parsed[EmbedOptions], parsed[DeviceOptions]
    # Here, since Beam's RunInference imports torch, which takes seconds.
    from transforms.data.embedding import EmbedImages, OpenClipHandler

    base = base_run(lake, planned, images)
    now, earlier = lake.paths("images", images.snapshot_id), {}
    if base is not None:
        lake.lay_over("embeddings", planned.snapshot_id, base.snapshot_id)
        earlier = lake.paths("images", base.upstream["ingest"])
    # Of the parts that both have, none need be embedded again.
    numbers = [number for number, path in now.items() if earlier.get(number) != path]
    clip = options.model(device.resolved())
    if numbers:
        handler = OpenClipHandler(clip, lake, images.snapshot_id, options.compare_captions)
        transform = EmbedImages(handler, planned.snapshot_id, device.devices())
        total = images.rows["images"]
        # Parts are of about the same size; to read every footer every two seconds would cost more than it tells.
        progress = Progress(
            "embed",
            lambda: round(total * (len(now) - len(numbers) + len(lake.own("embeddings", planned.snapshot_id))) / len(now)),
            total,
            "images",
        )
        execution.run(lambda pipeline: build(pipeline, numbers, transform), progress)
    statuses = ask(
        lake, {"embeddings": planned.snapshot_id}, "SELECT status, count(*) AS rows FROM embeddings GROUP BY ALL ORDER BY ALL"
    )
    facts: dict[str, Any] = {}
    if options.compare_captions:
        tables = {"samples": images.snapshot_id, "embeddings": planned.snapshot_id}
        (facts["captions"],) = ask(lake, tables, sql.read("staging", "drift_rule"))
    return {
        **facts,
        "clip_model": options.clip_model,
        "clip_pretrained": options.clip_pretrained,
        "device": clip.device,
        "batch_size": clip.batch_size,
        "images_embedded": sum(count_rows(path) for path in lake.own("embeddings", planned.snapshot_id).values()),
        "status": {row["status"]: row["rows"] for row in statuses},
    }


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    """Says whether captions tell which pictures changed. UserError where there is no vector: then later stages have nothing."""
    statuses = manifest.facts["status"]
    if "captions" in manifest.facts:
        say(f"embed        {_captions(manifest.facts['captions'])}")
    if not statuses.get("success"):
        query = """
            SELECT reason, count(*) AS rows FROM embeddings WHERE reason IS NOT NULL
            GROUP BY reason ORDER BY rows DESC, reason LIMIT 1
        """
        found = ask(execution.lake, {"embeddings": manifest.snapshot_id}, query)
        numbers = ", ".join(f"{status} {number:,}" for status, number in statuses.items()) or "there was none"
        often = f"; most often {found[0]['reason']!r}, {found[0]['rows']:,}" if found else ""
        raise UserError(
            f"no picture was embedded ({numbers}{often}), so there is nothing to audit; mend the pictures, and run 'eidetic "
            "ingest' again"
        )


def _captions(rule: dict[str, Any]) -> str:
    """What came of comparing with captions: a row of ``drift_rule``."""
    if not rule["compared"]:
        return "no picture has a similarity in the metadata, so captions don't tell which of them changed"
    power = 0 if rule["power"] is None else rule["power"]
    verdict = "the mart drift says which did"
    if rule["lowest_gap"] is None:
        verdict = "too little to tell those that did, which takes 100 pictures and a CLIP that finds nine of ten"
    return (
        f"{rule['compared']:,} pictures were compared with their captions; under another picture's caption {power:.0%} would "
        f"be seen to have changed: {verdict}"
    )


def encoder(embed: Manifest, device: DeviceOptions) -> ClipModel:
    """The model that made the vectors of ``embed``, on a device. UserError where it is not what it was."""
    clip = ClipModel(
        name=embed.facts["clip_model"],
        pretrained=embed.facts["clip_pretrained"],
        device=device.resolved(),
        batch_size=embed.facts["batch_size"],
    )
    now = dict(zip(("clip_model", "clip_pretrained"), clip.identity(), strict=True))
    then = {name: embed.parameters[name] for name in now}
    if now != then:
        raise UserError(
            f"the CLIP model {clip.name!r} is not the one that 'eidetic embed' ran with (then {then}, now "
            f"{now}); restore it, or run 'eidetic embed' again"
        )
    return clip


def check(parsed: Parsed) -> None:
    """UserError where the CLIP model isn't there, or is none."""
    parsed[EmbedOptions].model("cpu").check()


STAGE = Stage(
    name="embed",
    description=__doc__,
    upstream="ingest",
    options=(EmbedOptions, DeviceOptions),
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
