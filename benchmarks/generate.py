"""Generation in the embedded default beside bare diffusers: the same model, captions, seeds, steps and guidance.

    python -m benchmarks.generate

Ours is all that is done to a prompt: its images are made, compared with one another and with the image whose caption it is, and
its rows are written. The peer is ``StableDiffusionPipeline``, called with as many captions at once as is best for it, and
nothing else. Both have loaded the model before, and take short turns; of each the fastest turn counts.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging

from benchmarks.results import Row, write
from demo.corpus import draw, logos
from pipelines.generate import GenerateOptions, generator
from tests.planted import embedding_rows, write_embeddings, write_images
from transforms.attacks.attempts import GeneratorHandler, groups_of, result_folder
from transforms.data.images import ImageStore
from transforms.store.identity import prompt_id, seed
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png

DEMO = Path(__file__).resolve().parent.parent / "demo"
AUDIT = "audit"
PROMPTS, CONTROLS = 8, 24
BATCH_SIZES = (8, 16, 32)
TURNS = 4


def options() -> GenerateOptions:
    """The embedded default's."""
    stated = tomllib.loads((DEMO / "demo.toml").read_text())
    names = GenerateOptions.__dataclass_fields__
    return GenerateOptions(model=str(DEMO / "models" / "generator"), **{n: v for n, v in stated.items() if n in names})


def prompts(options: GenerateOptions) -> list[dict[str, Any]]:
    """Rows of ``prompts``: captions of the first logos, of which the last are controls."""
    rows = []
    for place, logo in enumerate(logos()[: PROMPTS + CONTROLS]):
        origin = "duplicates" if place < PROMPTS else "control"
        rows.append(
            {
                "audit_id": AUDIT,
                "model_revision": "",
                "parameters_digest": "",
                "prompt_id": prompt_id(logo.caption, origin, logo.slug),
                "text": logo.caption,
                "origin": origin,
                "sample_id": logo.slug,
                "images_requested": options.images_per_prompt if origin == "duplicates" else options.control_images,
            }
        )
    return rows


def store(lake: Lake) -> ImageStore:
    """The logos whose captions the prompts are."""
    chosen = logos()[: PROMPTS + CONTROLS]
    ingest = write_images(lake, [[(logo.slug, "training", encode_png(draw(logo, 64))) for logo in chosen]], (64, 64))
    vectors = np.ones((len(chosen), 2), np.float32)
    embed = write_embeddings(lake, [embedding_rows([logo.slug for logo in chosen], vectors)], ingest.snapshot_id)
    return ImageStore(lake, ingest.snapshot_id, embed.snapshot_id)


def bare(options: GenerateOptions, rows: list[dict[str, Any]]) -> Callable[[int], None]:
    """Diffusers called by hand: batch size → all images of all prompts."""
    logging.set_verbosity_error()
    pipeline = StableDiffusionPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    asked = [
        (row["text"], seed(options.seed, row["prompt_id"], index)) for row in rows for index in range(row["images_requested"])
    ]

    def run(batch_size: int) -> None:
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            pipeline(
                prompt=[text for text, _ in batch],
                generator=[torch.Generator("cpu").manual_seed(number) for _, number in batch],
                num_inference_steps=options.steps,
                guidance_scale=options.guidance_scale,
                output_type="np",
            )

    return run


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    asked = options()
    rows = prompts(asked)
    images = sum(row["images_requested"] for row in rows)
    peer = bare(asked, rows)
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(folder)
        lake.create()
        model = generator(asked, "cpu")
        handler = GeneratorHandler(lake, AUDIT, model, asked.filter, asked.seed, store(lake))
        handler.load_model()
        groups = list(groups_of(rows, model.batch_size))

        def ours() -> None:
            shutil.rmtree(result_folder(lake, AUDIT), ignore_errors=True)
            list(handler.run_inference(groups, model))

        mine: list[float] = []
        theirs: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
        for _ in range(TURNS):
            for size, times in theirs.items():
                times.append(seconds(lambda size=size: peer(size)))  # type: ignore[misc]
            mine.append(seconds(ours))
    best = min(theirs, key=lambda size: min(theirs[size]))
    for size, times in theirs.items():
        print(f"bare diffusers in batches of {size}: {images / min(times):.1f} images/s")
    print(f"generate in batches of {asked.batch_size}: {images / min(mine):.1f} images/s")
    # 0.97 of the peer's images in the same time.
    write(
        "generate",
        [
            Row(
                f"generate, embedded default, {images} images of {len(rows)} prompts, with filter and files: an image",
                min(mine) / images,
                "s",
                goal=1.031,
                peer=f"bare diffusers in batches of {best}, its best of {', '.join(map(str, BATCH_SIZES))}",
                peer_value=min(theirs[best]) / images,
            )
        ],
    )


if __name__ == "__main__":
    main()
