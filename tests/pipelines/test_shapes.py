"""Audits of generations that aren't square, on planted truth: what is a copy is found where it lies, and nothing else is."""

import json
import re

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from pipelines import cli
from pipelines.query import answer
from tests.models import save_random_pipeline
from tests.planted import write_tiny_clip
from transforms.kernels.distances import Frame, covering, crop_at, l2, room
from transforms.store.lake import Lake

SHAPES = {"upright": (192, 288), "wide": (288, 192), "square": (192, 192), "long": (336, 192)}
"""Width and height of training images: 2:3, 3:2, 1:1, 16:9 (nearly)."""

FRAMES = {"upright": Frame(304, 208), "wide": Frame(208, 304), "square": Frame(208, 208)}
"""A quarter of 832 × 1216, of 1216 × 832, and a square."""


def photograph(seed, width, height):
    """Large shapes, whose crops at any size are as they were."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path, picture, text):
    Image.fromarray(picture).save(path)
    path.with_suffix(".txt").write_text(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Training images of each shape, for each frame one, twice each, and controls."""
    root = tmp_path_factory.mktemp("shapes")
    write_tiny_clip(root / "clip")
    for folder in ("pictures", "controls", "made"):
        (root / folder).mkdir()
    pictures = {}
    for number, (shape, frame) in enumerate((shape, frame) for shape in SHAPES for frame in FRAMES):
        name = f"{shape} in {frame}"
        pictures[name] = photograph(number, *SHAPES[shape])
        for copy in range(2):
            save(root / "pictures" / f"{number}-{copy}.png", pictures[name], name)
    for number in range(12):
        save(root / "controls" / f"{number}.png", photograph(500 + number, *list(SHAPES.values())[number % 4]), f"c{number}")
    return root, pictures


def rows_of(lake, sql):
    names, rows = answer(lake, sql)
    return [dict(zip(names, row, strict=True)) for row in rows]


def audit(root, lake, **options):
    words = {
        "lake": lake, "metadata": root / "pictures", "source": "folder", "controls": root / "controls", "image_size": 192,
        "encode_format": "png", "clip_model": root / "clip", "device": "cpu", "images_per_prompt": 3, "clique_size": 2,
        "keep": "all",
    } | options  # fmt: skip
    assert cli.main(["audit", *(f"--{name}={value}" for name, value in words.items())]) == 0


def test_copies_of_every_shape_are_found_in_one_folder(world, tmp_path):
    root, pictures = world
    random = np.random.default_rng(1)
    lines, expected = [], {}

    def add(name, prompt, picture):
        Image.fromarray(picture).save(root / "made" / name)
        lines.append({"file_name": name, "prompt": prompt})

    for number, (name, picture) in enumerate(pictures.items()):
        frame = FRAMES[name.split()[-1]]
        whole = covering(picture, frame)
        offset = room(whole, frame) // 3
        crop = crop_at(whole, frame, offset)
        copy = (crop + random.integers(-4, 5, crop.shape)).clip(0, 255).astype(np.uint8)
        # A copy, something new, and something new of another size.
        add(f"{number}-0.png", name, copy)
        add(f"{number}-1.png", name, photograph(900 + number, frame.width, frame.height))
        add(f"{number}-2.png", name, photograph(950 + number, 96, 160))
        expected[name] = offset, float(l2(copy, crop))
    for number in range(12):
        frame = list(FRAMES.values())[number % 3]
        add(f"c{number}.png", f"c{number}", photograph(700 + number, frame.width, frame.height))
    (root / "made" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    audit(root, tmp_path / "lake", generations=root / "made")
    lake = Lake(str(tmp_path / "lake"))

    attempts = rows_of(lake, "SELECT status, reason, count(*) AS n FROM generations WHERE width IS NOT NULL GROUP BY ALL")
    assert attempts == [{"status": "success", "reason": None, "n": 48}]
    rows = rows_of(lake, """
        SELECT prompts.text, matches.* FROM matches JOIN prompts USING (prompt_id)
        WHERE relation = 'own' AND nearest AND matches.role = 'training'
    """)  # fmt: skip
    found = {row["text"]: row for row in rows}
    assert found.keys() == expected.keys()
    for name, (offset, distance) in expected.items():
        row = found[name]
        assert row["sample_index"] == 0 and row["extracted"], name
        # What ingest stored is what was planted, to the last bit.
        assert (row["offset"], row["l2"]) == (offset, pytest.approx(distance, abs=1e-6)), name
    query = "SELECT prompts.text FROM verdicts JOIN prompts USING (prompt_id) WHERE copied AND verdicts.extracted"
    assert {row["text"] for row in rows_of(lake, query)} == expected.keys()
    counts = rows_of(lake, "SELECT DISTINCT k FROM extractions")
    # Each picture is there twice.
    assert counts == [{"k": 2}]
    foreign = rows_of(lake, "SELECT count(*) AS n FROM matches WHERE relation = 'neighbour' AND extracted")
    assert foreign == [{"n": 0}]
    with open(next((tmp_path / "lake" / "reports").glob("*.html"))) as file:
        page = file.read()
    shapes = {round(int(width) / int(height), 1) for width, height in re.findall(r"--shape:(\d+)/(\d+)}", page)}
    assert shapes == {0.7, 1.5} and page.count("--generated:") == 12


def test_a_pipeline_that_makes_upright_pictures(world, tmp_path):
    root, _ = world
    save_random_pipeline(str(tmp_path / "square"))
    pipeline = StableDiffusionPipeline.from_pretrained(str(tmp_path / "square"))
    pipeline.register_modules(unet=UNet2DConditionModel.from_config({**pipeline.unet.config, "sample_size": [12, 8]}))
    pipeline.save_pretrained(str(tmp_path / "model"))
    audit(root, tmp_path / "lake", model=tmp_path / "model", steps=1, max_prompts=3, images_per_prompt=2)
    lake = Lake(str(tmp_path / "lake"))
    shapes = rows_of(lake, "SELECT DISTINCT status, height > width AS upright FROM generations")
    assert shapes == [{"status": "success", "upright": True}]
    kept = rows_of(lake, "SELECT count(DISTINCT (prompt_id, sample_index)) AS n FROM matches")
    made = rows_of(lake, "SELECT count(*) AS n FROM generations")
    assert kept == made and made[0]["n"] > 0
