"""Generators: pictures depend on the seed alone, and what is missing is said in one line."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import HfApi, constants
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.faults.pictures import eps, many_scans
from tests.models import save_pixel_pipeline, save_random_pipeline
from transforms.errors import UserError
from transforms.models.base import Wanted
from transforms.models.diffusion import DiffusersGenerator
from transforms.models.folder import FolderGenerator
from transforms.models.hub import hub_commit, hub_files
from transforms.store.identity import folder_digest
from transforms.store.pictures import encode_png


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


def test_settings_that_no_prompt_survives_are_failures_with_a_reason(folder, tmp_path):
    path = _without(folder, tmp_path, lambda copy: edit(copy / "unet" / "config.json", sample_size="x"))
    (attempts,) = generator(path).generate([Wanted("a logo", {0: 1, 1: 2})])
    assert {(one.status, one.reason) for one in attempts.values()} == {("failed", "IndexError: string index out of range")}


def short_of_memory(made, most, monkeypatch, error=torch.cuda.OutOfMemoryError):
    """Makes the device too small for more than ``most`` pictures at once; returns the sizes that were tried."""
    real, sizes = made._pipeline.unet.forward, []

    def forward(sample, *rest, **named):
        sizes.append(len(sample))
        if len(sample) > most:
            raise error(" out of memory.")
        return real(sample, *rest, **named)

    monkeypatch.setattr(made._pipeline.unet, "forward", forward)
    return sizes


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError])
def test_a_device_that_is_short_of_memory_gets_half_as_many_pictures_from_then_on(folder, monkeypatch, error):
    asked = ("a logo", [1, 2, 3]), ("one more", [4, 5, 6])
    enough = images(generator(folder, guidance_scale=1.0), *asked)
    made = generator(folder, guidance_scale=1.0, batch_size=16)
    sizes = short_of_memory(made, 4, monkeypatch, error)
    for few, many in zip(images(made, *asked), enough, strict=True):
        assert apart(few, many) <= 1
    # Of each batch that was made there are two steps.
    assert sizes == [16, 8, 4, 4, 4, 4] and made.batch_size == 4
    images(made, *asked)
    assert sizes[6:] == [4, 4, 4, 4]


def test_a_device_that_has_no_memory_for_one_picture_is_no_fact_about_a_prompt(folder, monkeypatch):
    made = generator(folder, guidance_scale=1.0)
    short_of_memory(made, 0, monkeypatch)
    with pytest.raises(UserError, match="out of memory on cpu with a single picture at once"):
        list(made.generate([Wanted("a logo", {0: 1}), Wanted("one more", {0: 1})]))


def test_what_the_safety_checker_takes_is_an_attempt(folder, monkeypatch):
    made = generator(folder)

    def checker(image, device, dtype):
        return image, [True, False, False, True]

    monkeypatch.setattr(made._pipeline, "run_safety_checker", checker)
    first, second = made.generate([Wanted("a logo", {0: 1, 1: 2}), Wanted("one more", {0: 3})])
    assert [one.status for one in (*first.values(), *second.values())] == ["safety_filtered", "success", "success"]
    assert first[0].image is None


@pytest.mark.parametrize("name", ["nsfw_detected", "watermark_detected"])
def test_other_names_of_a_safety_checkers_verdicts(folder, monkeypatch, name):
    made = generator(folder, batch_size=2)
    pictures = np.zeros((2, 8, 8, 3))

    class Pipeline:
        def __call__(self, **asked):
            return SimpleNamespace(images=pictures, **{name: [True, False]})

    monkeypatch.setattr(made, "_pipeline", Pipeline())
    monkeypatch.setattr(made, "_encodes", False)
    (attempts,) = made.generate([Wanted("a", {0: 1, 1: 2})])
    assert [(one.status, one.image is None) for one in attempts.values()] == [("safety_filtered", True), ("success", False)]


def test_the_safety_checker_is_left_out_where_the_user_says_so(folder, tmp_path):
    """The folder's checker has weights that are no checker's: with it, the pipeline can't even be loaded."""
    copy = tmp_path / "with"
    shutil.copytree(folder, copy)
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker" / "config.json").write_text("{}")
    index = json.loads((copy / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="the part safety_checker of"):
        generator(copy)
    assert generator(copy, safety_checker="off")._pipeline.safety_checker is None


def test_what_a_pipeline_takes_no_notice_of_is_not_passed_and_null(folder, monkeypatch):
    made = generator(folder)
    asked, real = [], made._pipeline

    def watched(**named):
        asked.append(named)
        return real(**named)

    for name in ("encode_prompt", "device"):
        setattr(watched, name, getattr(real, name))
    monkeypatch.setattr(made, "_pipeline", watched)
    list(made.generate([Wanted("a", {0: 1})]))
    assert (asked[0]["guidance_scale"], asked[0]["num_inference_steps"]) == (3.0, 2)
    assert (made.describe()["guidance_scale"], made.describe()["steps"]) == (3.0, 2)
    monkeypatch.setattr(made, "_unused", ["steps", "guidance_scale"])
    list(made.generate([Wanted("a", {0: 1})]))
    assert not {"guidance_scale", "num_inference_steps"} & set(asked[1])
    assert (made.describe()["guidance_scale"], made.describe()["steps"]) == (None, None)


def test_a_pipeline_that_needs_more_than_prompts_is_refused(folder, monkeypatch):
    made = generator(folder)

    class NeedsAPicture:
        def __call__(self, image, **asked):
            raise AssertionError

    monkeypatch.setattr(made, "_pipeline", NeedsAPicture())
    monkeypatch.setattr(made, "_encodes", False)
    with pytest.raises(UserError, match=r"the pipeline NeedsAPicture of .* makes no pictures of prompts alone"):
        list(made.generate([Wanted("a", {0: 1})]))


def test_a_model_that_works_on_pixels_is_taken(tmp_path):
    """DeepFloyd IF has no autoencoder, and another encoder of texts."""
    save_pixel_pipeline(str(tmp_path / "pixels"))
    made = generator(tmp_path / "pixels")
    DiffusersGenerator(str(tmp_path / "pixels"), 2, 3.0, 4, "cpu", "float32").check()
    (first, second), (other,) = images(made, ("a logo", [1, 2]), ("logo", [1]))
    assert first.shape == (16, 16, 3) and (first != second).any() and (first != other).any()
    assert made.describe()["guidance_scale"] == 3.0


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


def test_the_revision_sees_parts_that_are_links(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "unet").rename(tmp_path / "shared")
    (tmp_path / "model" / "unet").symlink_to(tmp_path / "shared")
    assert folder_digest(str(tmp_path / "model")) == folder_digest(str(folder))
    (tmp_path / "shared" / "config.json").write_text("{}")
    assert folder_digest(str(tmp_path / "model")) != folder_digest(str(folder))


def test_model_folders_that_never_end_are_not_read(folder, tmp_path):
    for change, message in (
        (lambda copy: os.mkfifo(copy / "unet" / "notes.md"), "notes.md' is no file"),
        (lambda copy: os.mkfifo(copy / "unet" / "notes.txt"), "part unet of .* is damaged: notes.txt is no file"),
        (
            lambda copy: (copy / "vae" / "zeros.json").symlink_to("/dev/zero"),
            "part vae of .*: zeros.json is no file",
        ),
        (lambda copy: (copy / "vae" / "again").symlink_to(copy), "again' is a link to a folder that it is in; remove it"),
        (lambda copy: (copy / "vae" / "itself").symlink_to("."), "itself' is a link to a folder that it is in; remove it"),
    ):
        with pytest.raises(UserError, match=message):
            DiffusersGenerator(_without(folder, tmp_path, change), 2, 1.0, 2, "cpu", "float32").revision()
        shutil.rmtree(tmp_path / "copy")


def _without(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    return str(copy)


def test_model_folders_that_are_none(folder, tmp_path):
    DiffusersGenerator(str(folder), 2, 3.0, 4, "cpu", "float32").check()

    def forget_autoencoder(copy):
        index = json.loads((copy / "model_index.json").read_text())
        del index["vae"]
        (copy / "model_index.json").write_text(json.dumps(index))

    for change, message in (
        (lambda copy: (copy / "model_index.json").unlink(), "has no model_index.json"),
        (lambda copy: (copy / "model_index.json").write_text("{"), "is not JSON"),
        (lambda copy: shutil.rmtree(copy / "vae"), r"lacks its part\(s\) vae"),
        (forget_autoencoder, "is a StableDiffusionPipeline and names no vae"),
    ):
        with pytest.raises(UserError, match=message):
            DiffusersGenerator(_without(folder, tmp_path, change), 2, 3.0, 4, "cpu", "float32").check()
        shutil.rmtree(tmp_path / "copy")


def test_weights_that_do_not_load_are_named(folder, tmp_path):
    def widen(copy):
        path = copy / "text_encoder" / "model.safetensors"
        weights = {name: torch.nn.functional.pad(value, (0, 1)) for name, value in load_file(path).items()}
        save_file(weights, path, {"format": "pt"})

    def forget_words(copy):
        for path in (copy / "tokenizer").iterdir():
            if path.name != "tokenizer_config.json":
                path.unlink()

    def empty_words(copy):
        (copy / "tokenizer" / "tokenizer.json").write_text("{}")

    for change, message in (
        (widen, "cannot load the part text_encoder of"),
        (empty_words, "cannot load the part tokenizer of"),
        (forget_words, "the part tokenizer of .* knows no words"),
        (lambda copy: edit(copy / "model_index.json", unet=["os", "system"]), "the part unet of .* is a system of os"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            generator(_without(folder, tmp_path, change))
        assert "\n" not in str(caught.value)
        shutil.rmtree(tmp_path / "copy")


class Touches:
    """A pickle that makes a file when it's loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path(self.path),)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


WEIGHTS = [
    ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model"),
]  # fmt: skip

ATTACKS = [
    *(("pickle", part, name, ending) for part, name in WEIGHTS for ending in (".bin", ".fp16.bin", ".safetensors")),
    ("pickle", "text_encoder", "pytorch_model", ".bin"),
    *(("part", part, library, kind) for part in ("unet", "vae", "text_encoder", "scheduler", "safety_checker")
      for library, kind in (("evil", "Evil"), (f"{part}_evil", "Evil"), ("os", "system"), ("..evil", "Evil"))),
    *(("class", part, "Evil", "") for part in ("unet", "vae", "scheduler")),
    ("pipeline", "", "evil", "Evil"), ("pipeline", "", "pipeline", "Evil"),
    ("auto_map", "text_encoder", "config.json", "AutoModel"),
    ("auto_map", "tokenizer", "tokenizer_config.json", "AutoTokenizer"),
    ("auto_map", "unet", "config.json", "AutoModel"),
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids="-".join)
def test_a_model_folder_executes_nothing(folder, tmp_path, monkeypatch, attack):
    """Whatever a folder of weights brings beside them: it loads, or it doesn't, and its code isn't run."""
    marker, copy = tmp_path / "executed", tmp_path / "copy"
    shutil.copytree(folder, copy)
    # The code lies wherever one might look for it, the working folder too.
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\nclass Evil: pass\n"
    for place in (copy, *(path for path in copy.iterdir() if path.is_dir())):
        for name in ("__init__", "evil", "pipeline", "modeling_evil", "tokenization_evil", f"{place.name}_evil"):
            (place / f"{name}.py").write_text(code)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kind, part, name, value = attack
    if kind == "pickle":
        for path in (copy / part).glob("*.safetensors"):
            path.unlink()
        torch.save({"weight": Touches(marker)}, copy / part / f"{name}{value}")
    elif kind == "part":
        (copy / part).mkdir(exist_ok=True)
        edit(copy / "model_index.json", **{part: [name, value]})
    elif kind == "class":
        config = next(path for path in (copy / part).glob("*config.json"))
        edit(config, _class_name=name)
    elif kind == "pipeline":
        edit(copy / "model_index.json", _class_name=[name, value])
    else:
        edit(copy / part / name, auto_map={value: f"modeling_evil.{value}"}, model_type="evil", _class_name="Evil")
    with contextlib.suppress(Exception):
        generator(copy)
    assert not marker.exists()


def test_the_attack_is_one(tmp_path):
    """That nothing happens is no accident of the payload."""
    torch.save({"weight": Touches(tmp_path / "executed")}, tmp_path / "weights.bin")
    torch.load(tmp_path / "weights.bin", weights_only=False)
    assert (tmp_path / "executed").exists()


def test_weights_of_a_variant_are_loaded(folder, tmp_path):
    (usual,) = images(generator(folder), ("a logo", [1]))

    def rename(copy):
        for path in copy.rglob("*.safetensors"):
            path.rename(path.with_suffix(".fp16.safetensors"))

    copy = _without(folder, tmp_path, rename)
    for variant in (None, "fp16"):
        assert apart(images(generator(copy, variant=variant), ("a logo", [1]))[0], usual) == 0
    with pytest.raises(UserError, match=r"--variant is 'fp15', and .* has fp16"):
        generator(copy, variant="fp15")


def test_pickled_weights_are_loaded_where_the_user_trusts_them(folder, tmp_path):
    def pickle(copy):
        path = copy / "text_encoder" / "model.safetensors"
        torch.save(load_file(path), copy / "text_encoder" / "pytorch_model.bin")
        path.unlink()

    copy = _without(folder, tmp_path, pickle)
    with pytest.raises(UserError, match=r"the part\(s\) text_encoder of .* have pickled weights .* name --allow_pickle"):
        generator(copy)
    (trusted,) = images(generator(copy, allow_pickle=True), ("a logo", [1]))
    assert apart(trusted, images(generator(folder), ("a logo", [1]))[0]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/data/checkpoints/latest", "there is no folder '/data/checkpoints/latest'"),
        ("./x", "there is no folder './x'"),
        ("~/x", "there is no folder '~/x'"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        ("x.safetensors", "there is no file 'x.safetensors'"),
        ("my model", "neither a folder that exists nor a hub id"),
        ("", "neither a folder that exists nor a hub id"),
        ("https://huggingface.co/x/y", "there is nothing at 'https://huggingface.co/x/y'"),
        ("nobody/nothing", "neither a local folder nor to be had from the hub"),
    ],
)
def test_a_model_that_is_nowhere(monkeypatch, tmp_path, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HfApi, "model_info", _no_network)
    for asked in (DiffusersGenerator.revision, DiffusersGenerator.check, DiffusersGenerator.load):
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            asked(DiffusersGenerator(name, 2, 3.0, 4, "cpu", "float32"))
        assert "\n" not in str(caught.value)


def _no_network(*_, **__):
    raise ConnectionError("no network\nat all")


def test_a_single_file_and_a_link_to_nothing(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"")
    (tmp_path / "latest").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"is a single file.*from_single_file\('.*x.safetensors'\)\.save_pretrained"):
        DiffusersGenerator(str(tmp_path / "x.safetensors"), 2, 3.0, 4, "cpu", "float32").revision()
    with pytest.raises(UserError, match=r"is a link to '.*gone', which isn't there"):
        DiffusersGenerator(str(tmp_path / "latest"), 2, 3.0, 4, "cpu", "float32").revision()


OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache on a machine without a network: ``hub(folder, commit)`` puts a model there, and makes it the branch's."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "cache" / "models--owner--name"

    def put(folder, commit):
        shutil.copytree(folder, model / "snapshots" / commit)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / "main").write_text(commit)

    return put


def test_the_commit_of_a_hub_model_is_loaded_and_not_its_branch(folder, tmp_path, hub):
    def unlearn(copy):
        path = copy / "unet" / "diffusion_pytorch_model.safetensors"
        save_file({name: torch.zeros_like(value) for name, value in load_file(path).items()}, path, {"format": "pt"})

    settings = ("owner/name", 2, 3.0, 4, "cpu", "float32")
    hub(folder, OLD)
    asked = DiffusersGenerator(*settings)
    commit = asked.revision()
    assert commit == OLD
    hub(_without(folder, tmp_path, unlearn), NEW)
    assert DiffusersGenerator(*settings).revision() == NEW
    (usual,) = images(generator(folder), ("a logo", [1]))
    made = DiffusersGenerator(*settings, hub_revision=commit)
    made.check()
    made.load()
    assert apart(images(made, ("a logo", [1]))[0], usual) == 0
    # So does what was resolved before the branch moved on; what is resolved now is another one.
    asked.load()
    assert apart(images(asked, ("a logo", [1]))[0], usual) == 0
    newest = DiffusersGenerator(*settings)
    newest.load()
    assert apart(images(newest, ("a logo", [1]))[0], usual) > 0


def test_a_hub_model_of_a_variant_alone_is_loaded(folder, tmp_path, hub):
    def rename(copy):
        for path in copy.rglob("*.safetensors"):
            path.rename(path.with_suffix(".fp16.safetensors"))

    hub(_without(folder, tmp_path, rename), OLD)
    made = DiffusersGenerator("owner/name", 2, 3.0, 4, "cpu", "float32")
    made.load()
    assert apart(images(made, ("a logo", [1]))[0], images(generator(folder), ("a logo", [1]))[0]) == 0


def test_the_hub_is_asked_before_the_cache(folder, monkeypatch, hub):
    hub(folder, OLD)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, revision, **__: SimpleNamespace(sha=f"commit of {revision}"))
    monkeypatch.setattr(HfApi, "list_repo_files", lambda *_, revision: [f"file of {revision}"])
    assert hub_commit("owner/name", "main") == "commit of main"
    assert hub_files("owner/name", OLD) == [f"file of {OLD}"]
    monkeypatch.setattr(HfApi, "model_info", _no_network)
    monkeypatch.setattr(HfApi, "list_repo_files", _no_network)
    assert hub_commit("owner/name", "main") == hub_commit("owner/name", None) == OLD
    assert "model_index.json" in hub_files("owner/name", OLD)
    with pytest.raises(UserError, match=r"the model 'owner/name' .* \(no network\)"):
        hub_commit("owner/name", "another branch")


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("named", [b"caf\xe9.png", "café.png".encode(), "café.png".encode()])
def test_names_of_finished_generations_are_found_however_they_and_their_list_were_written(tmp_path, encoding, named):
    picture = encode_png(np.full((16, 16, 3), 90, np.uint8))
    with open(os.path.join(os.fsencode(tmp_path), named), "wb") as file:
        file.write(picture)
    line = json.dumps({"file_name": "café.png", "prompt": "naïve"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(f"{line}\r\n".encode(encoding))
    made = FolderGenerator(str(tmp_path))
    ((attempt,),) = (one.values() for one in made.generate([Wanted("naïve", {0: None})]))
    assert attempt.status == "success" and attempt.image[0, 0].tolist() == [90, 90, 90]


def test_names_that_are_no_text_are_found_and_shown_with_escapes(tmp_path):
    """As Python lists them, and writes them as JSON."""
    for name, content in ((b"a\xff.png", encode_png(np.full((16, 16, 3), 90, np.uint8))), (b"b\xff.png", b"no picture")):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(content)
    lines = [json.dumps({"file_name": name, "prompt": "p"}) for name in sorted(os.listdir(tmp_path))]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    made = FolderGenerator(str(tmp_path))
    before = made.revision()
    (attempts,) = made.generate([Wanted("p", {0: None, 1: None})])
    assert [one.status for one in attempts.values()] == ["success", "failed"]
    assert attempts[1].reason.startswith("b\\xff.png: cannot decode the picture")
    os.remove(os.path.join(os.fsencode(tmp_path), b"b\xff.png"))
    assert FolderGenerator(str(tmp_path)).revision() != before


def test_lists_of_finished_generations_as_windows_writes_them(tmp_path):
    text = json.dumps({"file_name": "x.png", "prompt": "crème brûlée"}, ensure_ascii=False)
    for encoding in ("utf-16", "utf-16-le", "cp1252", "utf-8-sig"):
        (tmp_path / "metadata.jsonl").write_bytes(f"{text}\r\n".encode(encoding))
        assert FolderGenerator(str(tmp_path)).files == {"crème brûlée": ["x.png"]}


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
