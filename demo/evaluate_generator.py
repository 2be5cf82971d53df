"""What the embedded text-to-image model has remembered: the figures and pictures of its model card.

    python -m demo.evaluate_generator --model demo/models/generator \\
        --out docs/memorisation.png --list demo/models/memorised.json

Unlike an audit, this knows the truth: it asks for each logo by its caption and compares with the logo itself. A logo is called
memorised if at least half of its generations lie within l2 0.1 of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from demo.corpus import MODEL_SIZE, Logo, draw, split, stable_number
from transforms.generators import DiffusersGenerator
from transforms.kernels.distances import l2

MEMORISED = 0.1
SHOWN = (1, 4, 16, 64, 128)
"""Copies of which generated and trained logos are shown."""

SINGLES = 60
"""Logos with one copy that are asked for; there are too many to ask for all."""


def generations(generator: DiffusersGenerator, logo: Logo, number: int) -> np.ndarray:
    """(number, 64, 64, 3) uint8. The seeds are of this command's own: none that an audit draws."""
    seeds = [stable_number("card", logo.slug, index) >> 1 for index in range(number)]
    return np.stack([attempt.image for attempt in generator.generate(logo.caption, seeds) if attempt.image is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", type=Path)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    arguments = parser.parse_args()
    generator = DiffusersGenerator(
        model=arguments.model,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        batch_size=arguments.images,
        device="cpu",
        dtype="float32",
    )
    generator.load()
    training, controls = split()
    singles = [entry for entry in training if entry[1] == 1][:SINGLES]
    asked = [entry for entry in training if entry[1] > 1] + singles + [(logo, 0) for logo in controls[:SINGLES]]
    found: dict[int, list[np.ndarray]] = {}
    memorised = []
    rows = []
    for logo, copies in asked:
        trained = np.asarray(draw(logo, MODEL_SIZE))
        made = generations(generator, logo, arguments.images)
        distances = l2(made, trained)
        if copies in SHOWN and sum(row[0] == copies for row in rows) < 2:
            rows.append((copies, [trained, *made]))
        if copies and (distances <= MEMORISED).mean() >= 0.5:
            memorised.append(logo.slug)
        found.setdefault(copies, []).append(distances)
    print("copies  logos  median l2  generations within 0.15  within 0.1  memorised")
    for copies, distances in sorted(found.items()):
        together = np.stack(distances)
        half = ((together <= MEMORISED).mean(axis=1) >= 0.5).mean()
        name = copies or "never"
        print(
            f"{name:>6}  {len(together):5}  {np.median(together):9.3f}  {(together <= 0.15).mean():23.0%}  "
            f"{(together <= 0.1).mean():10.0%}  {half:9.0%}"
        )
    if arguments.list:
        arguments.list.write_text(json.dumps(sorted(memorised), indent=0) + "\n")
    if arguments.out:
        sheet = [np.concatenate(pictures, axis=1) for _, pictures in sorted(rows, key=lambda row: row[0])]
        size = (MODEL_SIZE * 2 * (arguments.images + 1), MODEL_SIZE * 2 * len(sheet))
        Image.fromarray(np.concatenate(sheet)).resize(size).save(arguments.out)


if __name__ == "__main__":
    main()
