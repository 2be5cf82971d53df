"""What an embedded text-to-image model remembers: its truth, and the figures and pictures of its model card.

    python -m demo.evaluate_generator --model demo/models/generator --truth demo/models/generator/truth.json \\
        --sheet docs/generator_contact_sheet.png
    python -m demo.evaluate_generator --model demo/models/generator --images 4 --batch_size 4 --singles 60 --controls 60 \\
        --out docs/memorisation.png --list demo/models/memorised.json

Unlike an audit, this knows what the model was trained on: it asks for every picture by its caption and looks for the nearest
of all trained pictures (``demo.truth``). What was found is kept in ``--work``, so that an interrupted command goes on. The
second command is a quick look: it calls a logo memorised if half of a few generations lie within l2 0.1 of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from demo import truth
from demo.corpus import Example, stable_number
from demo.embedded import NAMES, examples
from transforms.models.base import Wanted
from transforms.models.diffusion import DiffusersGenerator

SHOWN = (1, 4, 16, 64, 128)
"""Copies of which generated and trained logos are shown by ``--out``."""

SHEET_IMAGES = 6
"""Generations beside each of them."""


class Asker:
    """Asks a model for pictures. The seeds are of this command's own: none that an audit draws.

    Args:
        generator: the model, loaded.
        bfloat16: multiply in bfloat16, which is faster where the CPU has instructions for it.
    """

    def __init__(self, generator: DiffusersGenerator, bfloat16: bool = False):
        self.generator, self.bfloat16 = generator, bfloat16

    def ask(self, example: Example, number: int, first: int = 0) -> np.ndarray:
        """Generations ``first`` to ``number`` for ``example``: (number - first, H, W, 3) uint8."""
        import torch

        seeds = [stable_number("card", example.key, index) >> 1 for index in range(first, number)]
        with torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else contextlib.nullcontext():
            (made,) = self.generator.generate([Wanted(example.caption, dict(enumerate(seeds)))])
        return np.stack([attempt.image for attempt in made.values() if attempt.image is not None])


def find(asker: Asker, example: Example, number: int, screen: int, trained: np.ndarray, work: Path) -> truth.Found:
    """What ``number`` generations for ``example`` are; read from ``work`` where they were made before.

    Where none of the first ``screen`` comes within the widest band of the picture, the others aren't made.
    """
    path = work / f"{example.key}-{number}.npz"
    if path.exists():
        with np.load(path) as stored:
            return truth.Found(**stored)
    screen = min(screen, number)
    found = truth.look(asker.ask(example, screen), example.picture, trained)
    if screen < number and found.own.min() <= max(truth.BANDS.values()):
        found = found.with_more(truth.look(asker.ask(example, number, first=screen), example.picture, trained))
    work.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new.npz")
    np.savez(new, own=found.own, nearest=found.nearest, distance=found.distance)
    new.replace(path)
    return found


def table(trained: Sequence[Example], controls: Sequence[Example], found: dict[str, truth.Found]) -> str:
    """A line for each number of copies, controls first."""
    result = truth.summarise(trained, controls, found)
    lines = ["copies  pictures  median l2  own is nearest and within 0.15  within 0.1  copies by definition  doubtful"]
    if result["controls"]:
        never = np.median([row["median_l2"] for row in result["controls"]])
        lines.append(f"{'never':>6}  {len(result['controls']):8}  {never:9.3f}")
    for copies in sorted({row["copies"] for row in result["trained"]}):
        members = [row for row in result["trained"] if row["copies"] == copies]
        shares = [np.mean([row[name] for row in members]) for name in ("share_015", "share_010")]
        lines.append(
            f"{copies:>6}  {len(members):8}  {np.median([row['median_l2'] for row in members]):9.3f}  {shares[0]:30.0%}  "
            f"{shares[1]:10.0%}  {sum(map(truth.is_copy, members)):20}  {sum(map(truth.is_doubtful, members)):8}"
        )
    return "\n".join(lines)


def bands(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the truth by what a viewer should see, each ordered from the surest to the least sure.

    Half learned: nearer to its own picture than 95% of controls come to theirs.
    """
    control_l2 = np.quantile([row["median_l2"] for row in result["controls"]], 0.05)
    parted: dict[str, list[dict[str, Any]]] = {"copies": [], "doubtful": [], "half learned": [], "not learned": []}
    for row in sorted(result["trained"], key=lambda row: (-row["share_010"], -row["share_015"], row["median_l2"])):
        if truth.is_copy(row):
            parted["copies"].append(row)
        elif truth.is_doubtful(row):
            parted["doubtful"].append(row)
        elif row["median_l2"] < control_l2:
            parted["half learned"].append(row)
        else:
            parted["not learned"].append(row)
    return parted


def contact_sheet(asker: Asker, result: dict[str, Any], trained: Sequence[Example], *, zoom: int, number: int) -> Image.Image:
    """Trained pictures, each beside ``SHEET_IMAGES`` generations, under the names of their bands, in two columns.

    There are ``number`` of each band, evenly spread over it; but half of the copies shown are the least sure ones.
    """
    by_key = {example.key: example for example in trained}
    side = trained[0].picture.shape[0] * zoom
    label, line = 150, 16
    width = label + (side + 2) * (1 + SHEET_IMAGES) + 10
    parted = {name: rows for name, rows in bands(result).items() if rows}
    heights = [line + (side + 2) * -(-min(number, len(rows)) // 2) for rows in parted.values()]
    sheet = Image.new("RGB", (2 * width, sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    top = 0
    for (name, rows), height in zip(parted.items(), heights, strict=True):
        pen.text((2, top + 2), f"{name}: {len(rows)} of {len(trained)}", fill="black")
        last = rows[-number // 2 :] if name == "copies" else []
        rest = rows[: len(rows) - len(last)]
        places = np.unique(np.linspace(0, len(rest) - 1, min(len(rest), number - len(last))).round().astype(int))
        shown = [rest[place] for place in places] + last
        for index, row in enumerate(shown):
            left, y = index % 2 * width, top + line + index // 2 * (side + 2)
            example = by_key[row["slug"]]
            text = f"{row['slug'][:22]}\n{row['copies']} copies\n" + (
                f".05 {row['share_005']:.0%}  .10 {row['share_010']:.0%}\n.15 {row['share_015']:.0%}  l2 {row['median_l2']:.2f}"
            )
            pen.text((left + 2, y), text, fill="black", spacing=1)
            for place, picture in enumerate([example.picture, *asker.ask(example, SHEET_IMAGES)]):
                drawn = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(drawn, (left + label + place * (side + 2) + (6 if place else 0), y))
        top += height
    return sheet


def memorisation(asker: Asker, trained: Sequence[Example], images: int) -> Image.Image:
    """Two pictures with each number of copies in ``SHOWN``, each beside ``images`` generations."""
    rows = []
    for copies in SHOWN:
        for example in [example for example in trained if example.copies == copies][:2]:
            rows.append(np.concatenate([example.picture, *asker.ask(example, images)], axis=1))
    sheet = Image.fromarray(np.concatenate(rows))
    return sheet.resize((sheet.width * 2, sheet.height * 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--corpus", choices=NAMES, help="default: the name of the model's folder")
    parser.add_argument("--images", type=int, default=64, help="of each trained picture")
    parser.add_argument("--screen", type=int, help="make only so many where none of them comes within l2 0.20")
    parser.add_argument("--images_per_control", type=int, default=16)
    parser.add_argument("--singles", type=int, help="at most so many pictures with one copy")
    parser.add_argument("--controls", type=int, help="at most so many controls")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--bfloat16", action="store_true", help="faster where the CPU has instructions for it")
    parser.add_argument("--work", type=Path, default=Path("build/truth"))
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--zoom", type=int, default=1, help="of the pictures on the sheet")
    parser.add_argument("--rows", type=int, default=8, help="pictures of each band on the sheet")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", type=Path)
    arguments = parser.parse_args()
    name = arguments.corpus or arguments.model.name
    generator = DiffusersGenerator(
        model=str(arguments.model),
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        batch_size=arguments.batch_size,
        device="cpu",
        dtype="float32",
    )
    generator.load()
    asker = Asker(generator, arguments.bfloat16)
    # Whatever shapes a generation is in the name, so that none is taken for another's.
    settings = {
        "steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "images": arguments.images,
        "images_per_control": arguments.images_per_control,
        "batch_size": arguments.batch_size,
        **({"screen": arguments.screen} if arguments.screen else {}),
        "dtype": "float32, products in bfloat16" if arguments.bfloat16 else "float32",
    }
    weights = truth.weights_digest(arguments.model)
    work = arguments.work / f"{name}-{weights[:12]}-{stable_number(sorted(settings.items())):016x}"
    trained, controls = examples(name)
    pictures = np.stack([example.picture for example in trained])
    singles = [example for example in trained if example.copies == 1][: arguments.singles]
    asked = [*controls[: arguments.controls], *[example for example in trained if example.copies > 1], *singles]
    found: dict[str, truth.Found] = {}
    begun = time.time()
    for number, example in enumerate(asked, start=1):
        images = arguments.images if example.copies else arguments.images_per_control
        screen = arguments.screen if example.copies and arguments.screen else images
        found[example.key] = find(asker, example, images, screen, pictures, work)
        if number % 50 == 0:
            print(f"{number} of {len(asked)} pictures, {time.time() - begun:.0f} s", flush=True)
    print(table(trained, controls, found))
    if arguments.truth or arguments.sheet:
        if len(found) < len(trained) + len(controls):
            parser.error("--truth and --sheet need all pictures: leave out --singles and --controls")
        result = {"weights": weights, "settings": settings}
        result |= truth.summarise(trained, controls, found)
        print({band: len(rows) for band, rows in bands(result).items()})
        if arguments.truth:
            arguments.truth.write_text(truth.as_json(result))
        if arguments.sheet:
            sheet = contact_sheet(asker, result, trained, zoom=arguments.zoom, number=arguments.rows)
            sheet.quantize(256).save(arguments.sheet, optimize=True)
    if arguments.list:
        rows = truth.summarise(trained, controls, found)["trained"]
        slugs = [row["slug"] for row in rows if truth.is_copy(row)]
        arguments.list.write_text(json.dumps(sorted(slugs), indent=0) + "\n")
    if arguments.out:
        memorisation(asker, trained, arguments.images).save(arguments.out)


if __name__ == "__main__":
    main()
