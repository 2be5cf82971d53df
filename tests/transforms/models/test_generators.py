"""Generators: pictures depend on the seed alone, and what is missing is said in one line."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.models import save_random_pipeline
from transforms.errors import UserError
from transforms.models.diffusion import DiffusersGenerator, check_pipeline_folder
from transforms.models.folder import FolderGenerator
from transforms.store.identity import folder_digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "random"
    save_random_pipeline(str(path))
    return path


def generator(folder, **changes):
    settings = {"steps": 2, "guidance_scale": 3.0, "batch_size": 4, "device": "cpu", "dtype": "float32"}
    made = DiffusersGenerator(model=str(folder), **{**settings, **changes})
    made.load()
    return made


def test_a_picture_depends_on_its_seed_alone(folder):
    made = generator(folder)
    seeds = [5, 6, 7, 8, 9, 10]
    all_six = made.generate("a logo", seeds)
    assert [attempt.status for attempt in all_six] == ["success"] * 6
    assert all_six[0].image.shape == (32, 32, 3)
    assert all_six[0].image.dtype == np.uint8
    # Other neighbours, another place in the batch, a last batch that was filled up: the same within a grey level.
    for picked in ([9, 5, 10, 6], [6]):
        for seed, attempt in zip(picked, made.generate("a logo", picked), strict=True):
            difference = attempt.image.astype(int) - all_six[seeds.index(seed)].image
            assert np.abs(difference).max() <= 1
    assert (made.generate("a logo", [11])[0].image != all_six[0].image).any()
    assert (made.generate("one more", [5])[0].image != all_six[0].image).any()


def test_a_gpu_that_is_not_there_is_an_error(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda was asked for and there is no GPU here"):
        generator(folder, device="cuda")


def test_revision_is_the_content_not_the_place(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert folder_digest(str(moved)) == folder_digest(str(folder))
    (moved / "README.md").write_text("a model card changes nothing")
    assert folder_digest(str(moved)) == folder_digest(str(folder))
    (moved / "unet" / "config.json").write_text("{}")
    assert folder_digest(str(moved)) != folder_digest(str(folder))


def _without(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    return str(copy)


def test_model_folders_that_are_none(folder, tmp_path):
    check_pipeline_folder(str(folder))

    def forget_autoencoder(copy):
        index = json.loads((copy / "model_index.json").read_text())
        del index["vae"]
        (copy / "model_index.json").write_text(json.dumps(index))

    for change, message in (
        (lambda copy: (copy / "model_index.json").unlink(), "has no model_index.json"),
        (lambda copy: (copy / "model_index.json").write_text("{"), "is not JSON"),
        (lambda copy: shutil.rmtree(copy / "vae"), r"lacks its part\(s\) vae"),
        (forget_autoencoder, "names no autoencoder"),
    ):
        with pytest.raises(UserError, match=message):
            DiffusersGenerator(_without(folder, tmp_path, change), 2, 3.0, 4, "cpu", "float32").revision()
        shutil.rmtree(tmp_path / "copy")


def test_weights_that_do_not_load(folder, tmp_path):
    broken = _without(folder, tmp_path, lambda copy: (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no"))
    with pytest.raises(Exception, match="") as caught:
        generator(broken)
    assert isinstance(caught.value, UserError)


def test_a_model_that_is_nowhere(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="neither a local folder nor to be had from the hub"):
        DiffusersGenerator("nobody/nothing", 2, 3.0, 4, "cpu", "float32").revision()


@pytest.fixture
def finished(tmp_path):
    for number in range(3):
        Image.new("RGB", (16, 16), (number * 50, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    rows = [("a", 0), ("b", 1), ("a", 2), ("a", 3)]
    lines = [json.dumps({"file_name": f"{number}.png", "prompt": prompt}) for prompt, number in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_finished_generations(finished):
    made = FolderGenerator(str(finished))
    assert list(made.prompts()) == ["a", "b"]
    made.load()
    attempts = made.generate("a", [1, 2, 3])
    assert [attempt.status for attempt in attempts] == ["success", "success", "failed"]
    assert attempts[1].image[0, 0].tolist() == [100, 0, 0]
    assert attempts[2].reason.startswith("3.png: ")
    assert len(made.generate("a", [1])) == 1
    assert made.generate("unknown", [1]) == []
    before = made.revision()
    (finished / "1.png").unlink()
    assert FolderGenerator(str(finished)).revision() != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no metadata.jsonl"),
        ("", "is empty"),
        ("{}", "line 1"),
        ('{"prompt": "a", "file_name": "../x"}', "leads out"),
    ],
)
def test_finished_generations_that_are_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        FolderGenerator(str(tmp_path)).revision()


def test_generators_travel_without_their_model(folder):
    import pickle

    made = generator(folder)
    assert len(pickle.dumps(made)) < 2000
    assert dataclasses.asdict(pickle.loads(pickle.dumps(made))) == dataclasses.asdict(made)
