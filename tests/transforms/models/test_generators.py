"""Generators: pictures depend on the seed alone, and what is missing is said in one line."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from tests.faults.pictures import eps, many_scans
from tests.models import save_random_pipeline
from transforms.errors import UserError
from transforms.models.base import Wanted
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


def images(made, *wanted):
    """The pictures of (text, seeds) each, one list a prompt, in whatever batches they come."""
    asked = [Wanted(text, dict(enumerate(seeds))) for text, seeds in wanted]
    found = list(made.generate(asked))
    assert [list(attempts) for attempts in found] == [list(range(len(seeds))) for _, seeds in wanted]
    assert {attempt.status for attempts in found for attempt in attempts.values()} == {"success"}
    return [[attempt.image for attempt in attempts.values()] for attempts in found]


def apart(one, other):
    """The most gray levels that two lists of pictures are apart."""
    return max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(one, other, strict=True))


def test_a_picture_depends_on_its_text_and_seed_alone(folder):
    made = generator(folder)
    seeds = [5, 6, 7, 8, 9, 10]
    (all_six,) = images(made, ("a logo", seeds))
    assert all_six[0].shape == (32, 32, 3)
    assert all_six[0].dtype == np.uint8
    # Other neighbours, another place in the batch, a last batch that was filled up: the same within a grey level.
    for picked in ([9, 5, 10, 6], [6]):
        (some,) = images(made, ("a logo", picked))
        assert apart(some, [all_six[seeds.index(seed)] for seed in picked]) <= 1
    first, own, second = images(made, ("one more", [5, 6, 7]), ("a logo", seeds), ("another logo", [5]))
    assert apart(own, all_six) <= 1
    assert apart(first, images(made, ("one more", [5, 6, 7]))[0]) <= 1
    assert apart(second, images(made, ("another logo", [5]))[0]) <= 1
    assert len({picture.tobytes() for picture in (all_six[0], all_six[1], first[0], second[0])}) == 4


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pictures_are_those_of_bare_diffusers(folder, guidance_scale):
    """The pipeline called prompt by prompt with the same seeds; of no prompt, and of one that is too long, as well."""
    texts = {"a logo": [1, 2, 3], "another logo": [4, 5, 6, 7, 8], "": [9], "one more logo " * 40: [10, 11]}
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    made = images(generator(folder, guidance_scale=guidance_scale), *texts.items())
    for (text, seeds), mine in zip(texts.items(), made, strict=True):
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        asked = {"num_inference_steps": 2, "guidance_scale": guidance_scale, "output_type": "np"}
        bare = pipeline([text] * len(seeds), generator=noise, **asked).images
        assert apart(mine, np.rint(bare * 255)) <= 1


def test_every_batch_has_the_same_size_and_a_prompt_is_given_as_soon_as_it_is_made(folder, monkeypatch):
    made = generator(folder)
    sizes, real = [], made._pipeline

    def watched(**asked):
        sizes.append((len(asked["prompt_embeds"]), len(asked["generator"])))
        return real(**asked)

    for name in ("encode_prompt", "device"):
        setattr(watched, name, getattr(real, name))
    monkeypatch.setattr(made, "_pipeline", watched)
    wanted = [
        Wanted("none", {}),
        *(Wanted(text, {4: 1, 2: 2, 7: None}) for text in ("a", "b", "c")),
        Wanted("finished", {0: None}),
    ]
    seen = [(list(attempts), len(sizes)) for attempts in made.generate(wanted)]
    # Six pictures in batches of four: the first two prompts are done after one of them.
    assert seen == [([], 1), ([4, 2], 1), ([4, 2], 1), ([4, 2], 2), ([], 2)]
    assert sizes == [(4, 4), (4, 4)]
    assert list(made.generate([])) == []


def test_a_prompt_that_the_model_can_not_take_fails_alone(folder, monkeypatch):
    made = generator(folder)
    alike = images(made, ("a logo", [1, 2]), ("one more", [5]))
    real = made._pipeline.encode_prompt

    def encode(text, *rest, **named):
        if text == "bad":
            raise ValueError("no such\nprompt")
        return real(text, *rest, **named)

    monkeypatch.setattr(made._pipeline, "encode_prompt", encode)
    first, bad, last = made.generate([Wanted("a logo", {0: 1, 1: 2}), Wanted("bad", {0: 3, 1: 4}), Wanted("one more", {0: 5})])
    assert {(one.status, one.reason, one.image) for one in bad.values()} == {("failed", "ValueError: no such", None)}
    for attempts, before in zip((first, last), alike, strict=True):
        assert apart([attempt.image for attempt in attempts.values()], before) <= 1


def test_out_of_memory_is_said_and_no_fact_about_a_prompt(folder, monkeypatch):
    made = generator(folder)

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(made._pipeline.unet, "forward", full)
    with pytest.raises(UserError, match="out of GPU memory with --batch_size 4"):
        list(made.generate([Wanted("a logo", {0: 1}), Wanted("one more", {0: 1})]))


def test_what_the_safety_checker_takes_is_an_attempt(folder, monkeypatch):
    made = generator(folder)

    def checker(image, device, dtype):
        return image, [True, False, False, True]

    monkeypatch.setattr(made._pipeline, "run_safety_checker", checker)
    first, second = made.generate([Wanted("a logo", {0: 1, 1: 2}), Wanted("one more", {0: 3})])
    assert [one.status for one in (*first.values(), *second.values())] == ["safety_filtered", "success", "success"]
    assert first[0].image is None


def test_other_pipelines_get_the_texts_themselves(folder):
    made, other = generator(folder), generator(folder)
    other._encodes = False
    asked = ("a logo", [1, 2, 3]), ("one more", [4, 5])
    for one, two in zip(images(made, *asked), images(other, *asked), strict=True):
        assert apart(one, two) <= 1


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
    a, b, unknown = made.generate([Wanted("a", {0: 1, 1: 2, 2: 3, 3: 4}), Wanted("b", {0: None}), Wanted("unknown", {0: 1})])
    assert [attempt.status for attempt in a.values()] == ["success", "success", "failed"]
    assert a[1].image[0, 0].tolist() == [100, 0, 0]
    assert a[2].reason.startswith("3.png: ")
    assert list(b) == [0] and unknown == {}
    (some,) = made.generate([Wanted("a", {1: None, 7: None})])
    assert list(some) == [1] and (some[1].image == a[1].image).all()
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
        ('{"prompt": "a", "file_name": "/etc/passwd"}', "leads out"),
        ('{"prompt": "a", "file_name": null}', "line 1.*expected a JSON object a line"),
        ('{"prompt": "a", "file_name": 7}', "line 1.*expected a JSON object a line"),
        ('{"prompt": "a", "file_name": ["x.png"]}', "line 1.*expected a JSON object a line"),
        ('{"prompt": "a", "file_name": "\\ud800.png"}', "line 1.*expected a JSON object a line"),
        ('{"prompt": "a", "file_name": "a\\u0000.png"}', "line 1.*expected a JSON object a line"),
        ('{"prompt": ["a"], "file_name": "x.png"}', "line 1.*expected a JSON object a line"),
        ('{"prompt": {"a": 1}, "file_name": "x.png"}', "line 1.*expected a JSON object a line"),
        ('{"prompt": "\\udfff", "file_name": "x.png"}', "line 1.*expected a JSON object a line"),
        ('{"prompt": "a", "file_name": "x.png"}\n[1, 2]', "line 2.*expected a JSON object a line"),
        ('{"prompt": "a", "x": ' + "[" * 100_000, "line 1.*expected a JSON object a line"),
    ],
)
def test_finished_generations_that_are_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        FolderGenerator(str(tmp_path)).revision()


def test_lines_of_finished_generations_end_at_line_feeds(tmp_path):
    prompts = ["a\u2028b", "c\x85d", "e\x0bf", "plain"]
    lines = [json.dumps({"file_name": "x.png", "prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\n\n")
    assert list(FolderGenerator(str(tmp_path)).prompts()) == prompts


def test_a_list_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(UserError, match="is no file"):
        FolderGenerator(str(tmp_path)).revision()


def test_finished_generations_are_pictures_in_the_folder_and_nothing_else(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    Image.new("RGB", (16, 16), (50, 0, 0)).save(tmp_path / "outside.png")
    Image.new("RGB", (16, 16), (70, 0, 0)).save(folder / "inner" / "whole.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "inside.png").symlink_to(folder / "inner" / "whole.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "eps.png").write_bytes(eps())
    (folder / "scans.jpg").write_bytes(many_scans(20_000, 64))
    with open(folder / "large.png", "wb") as file:
        file.truncate(1 << 40)
    expected = {
        "inner/whole.png": None,
        "inside.png": None,
        "link.png": "a link that leads out of the folder",
        "gone.png": "No such file or directory",
        "pipe.png": "no file",
        "inner": "no file",
        "eps.png": "no format that is read here",
        "scans.jpg": "more than 100 scans",
        "large.png": "more than 256 MiB",
    }
    lines = [json.dumps({"file_name": name, "prompt": name}) for name in expected]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    made = FolderGenerator(str(folder))
    attempts = {
        name: one[0] for name, one in zip(expected, made.generate([Wanted(n, {0: None}) for n in expected]), strict=True)
    }
    for name, reason in expected.items():
        assert attempts[name].status == ("success" if reason is None else "failed"), name
        assert reason is None or (reason in attempts[name].reason and attempts[name].reason.startswith(f"{name}: "))
    assert attempts["inside.png"].image[0, 0].tolist() == [70, 0, 0]


def test_generators_travel_without_their_model(folder):
    import pickle

    made = generator(folder)
    assert len(pickle.dumps(made)) < 2000
    assert dataclasses.asdict(pickle.loads(pickle.dumps(made))) == dataclasses.asdict(made)
