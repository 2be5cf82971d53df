"""The audit looks at the inputs of all its stages before the first one begins."""

import io
import json
import os

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from pipelines import cli
from pipelines.query import answer
from tests.models import save_random_pipeline
from tests.planted import picture, write_tiny_clip
from transforms.models.clip import ClipModel
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, a CLIP model and a folder of pictures."""
    root = tmp_path_factory.mktemp("audit")
    save_random_pipeline(str(root / "model"))
    write_tiny_clip(root / "clip")
    (root / "pictures").mkdir()
    for number in range(2):
        content = io.BytesIO()
        Image.new("RGB", (32, 32), (number * 100, 0, 0)).save(content, "PNG")
        (root / "pictures" / f"{number}.png").write_bytes(content.getvalue())
        (root / "pictures" / f"{number}.txt").write_text(f"a logo {number}")
    return root


def words(made, lake, **changes):
    options = {
        "lake": lake, "metadata": made / "pictures", "source": "folder", "model": made / "model", "clip_model": made / "clip",
        "device": "cpu", "max_prompts": 2, "images_per_prompt": 1, "steps": 1,
    }  # fmt: skip
    return ["audit", *(f"--{name}={value}" for name, value in (options | changes).items() if value is not None)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": "/nowhere"}, "/nowhere"),
        ({"clip_model": "ViT-B-33"}, "did you mean 'ViT-B-32'"),
        ({"clip_model": "ViT-B-32", "clip_pretrained": "laion3b"}, "has no weights 'laion3b'"),
        ({"clip_model": "ViT-B-32", "clip_pretrained": "/nowhere.pt"}, "no file '/nowhere.pt'"),
        ({"clip_model": "hf-hub:my model"}, "--clip_model is 'my model'"),
        ({"clip_model": "/nowhere"}, "'/nowhere'"),
        ({"prompts": "/nowhere.txt"}, "/nowhere.txt"),
        ({"model": None}, "nothing makes images"),
        ({"model": "/nowhere"}, "there is no folder '/nowhere'"),
        ({"model": None, "generations": "/nowhere"}, "has no metadata.jsonl"),
    ],
)
def test_a_wrong_input_of_any_stage_is_found_before_the_first(made, tmp_path, capsys, changes, message):
    assert cli.main(words(made, tmp_path / "lake", **changes)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("eidetic: ") and message in said and len(said.splitlines()) == 1
    assert not os.path.exists(tmp_path / "lake" / "manifests")


def test_a_model_that_can_not_be_asked_is_found_before_the_first(made, tmp_path, capsys):
    save_random_pipeline(str(tmp_path / "model"))
    index = tmp_path / "model" / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"StableDiffusionControlNetPipeline"'))
    assert cli.main(words(made, tmp_path / "lake", model=tmp_path / "model")) == 2
    assert "which takes a picture beside the prompt" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "lake" / "manifests")


def test_what_is_complete_is_not_looked_at_again(made, tmp_path, monkeypatch):
    """Names and files are asked for each time: they make the snapshot's id. What takes seconds more is not."""
    asked = []
    monkeypatch.setattr(ClipModel, "check", lambda self: asked.append(self.name))
    assert cli.main(words(made, tmp_path / "lake")) == 0
    assert asked == [str(made / "clip")]
    assert cli.main(words(made, tmp_path / "lake")) == 0
    assert asked == [str(made / "clip")]
    assert Lake(str(tmp_path / "lake")).latest("measure") is not None


def test_a_model_whose_safety_checker_takes_everything_gives_nothing_back(made, tmp_path, monkeypatch):
    checked = lambda self, image, *_: (image, [True] * len(image))  # noqa: E731
    monkeypatch.setattr(StableDiffusionPipeline, "run_safety_checker", checked)
    assert cli.main(words(made, tmp_path / "lake")) == 0
    lake = Lake(str(tmp_path / "lake"))
    assert lake.latest("generate").facts["status"] == {"safety_filtered": 2}
    names, (row,) = answer(lake, "SELECT prompts_tried, prompts_copied FROM extraction_rate WHERE dimension = 'all'")
    assert dict(zip(names, row, strict=True)) == {"prompts_tried": 2, "prompts_copied": 0}


def test_folders_and_files_whose_names_are_no_text(made, tmp_path):
    """Old disks and archives have names in Latin-1: they are read, and stand in the tables with escapes."""
    here = os.fsencode(tmp_path)
    places = {}
    for kind in ("pictures", "generations"):
        places[kind] = os.path.join(here, kind.encode() + b"\xe9")
        os.mkdir(places[kind])
        for number in range(3):
            with open(os.path.join(places[kind], b"%d\xff.png" % number), "wb") as file:
                file.write(encode_png(picture(number, 32, 32)))
    with open(os.path.join(places["generations"], b"metadata.jsonl"), "w") as file:
        for number in range(3):
            file.write(json.dumps({"file_name": os.fsdecode(b"%d\xff.png" % number), "prompt": f"a logo {number}"}) + "\n")
    for number in range(3):
        with open(os.path.join(places["pictures"], b"%d\xff.txt" % number), "w") as file:
            file.write(f"a logo {number}")
    lake = Lake(str(tmp_path / "lake"))
    folders = {name: os.fsdecode(place) for name, place in places.items()}
    given = {"metadata": folders["pictures"], "generations": folders["generations"], "model": None, "steps": None}
    assert cli.main(words(made, lake.root, image_size=32, encode_format="png", max_prompts=3, **given)) == 0
    samples = lake.read("samples", lake.latest("ingest").snapshot_id).to_pylist()
    assert sorted((row["url"], row["caption"], row["source_file"]) for row in samples) == [
        (f"{number}\\xff.png", f"a logo {number}", f"{tmp_path}/pictures\\xe9") for number in range(3)
    ]
    (audit,) = lake.read("audits", lake.latest("match").snapshot_id).to_pylist()
    assert audit["model"] == f"{tmp_path}/generations\\xe9"
    assert answer(lake, "SELECT count(*) FROM extractions WHERE copied")[1] == [(3,)]
