"""What ``eidetic generate`` says of the prompts that it draws, and what it stores; more of that in tests/test_demo.py."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from pipelines import generate
from pipelines.cli import run_verb
from pipelines.device import DeviceOptions
from pipelines.execution import Execution
from pipelines.generate import LARGE, GenerateOptions
from pipelines.options import Parsed
from tests.fakes import fake_lake
from tests.models import save_random_pipeline
from transforms.errors import UserError
from transforms.models import diffusion
from transforms.models.diffusion import DiffusersGenerator


def test_fewer_prompts_than_strata_are_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(generate, "say", said.append)
    save_random_pipeline(str(tmp_path / "model"))
    fake = fake_lake(tmp_path / "lake", sizes=(4, 2, 1, 1, 1), controls=0)
    for prompts, told in ((2, 1), (3, 0)):
        said.clear()
        options = GenerateOptions(model=str(tmp_path / "model"), images_per_prompt=1, steps=1, max_prompts=prompts)
        generate.STAGE.run(Execution(fake.lake, []), Parsed.of(options, DeviceOptions(device="cpu")), fake.deduplicate)
        assert sum("nothing of the 3 groups that are duplicated least" in line for line in said) == told


def test_groups_that_nobody_can_ask_for_are_counted(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(generate, "say", said.append)
    save_random_pipeline(str(tmp_path / "model"))
    captions = ["a caption", None, " "]
    fake = fake_lake(tmp_path / "lake", sizes=(2, 1, 1), captions=captions, controls=1)
    options = GenerateOptions(model=str(tmp_path / "model"), images_per_prompt=1, steps=1)
    generate.STAGE.run(Execution(fake.lake, []), Parsed.of(options, DeviceOptions(device="cpu")), fake.deduplicate)
    assert [line for line in said if "caption" in line] == [
        "generate     2 groups have no image with a caption, and are not asked for"
    ]


def made(lake, folder, **options):
    """The rows of ``generations`` of an audit with a random model, and those of its prompts and cliques by prompt."""
    asked = GenerateOptions(model=str(folder), images_per_prompt=2, steps=1, max_prompts=4, **options)
    done = generate.STAGE.run(Execution(lake, []), Parsed.of(asked, DeviceOptions(device="cpu")), lake.latest("deduplicate"))
    tables = {name: lake.read(name, done.snapshot_id).to_pylist() for name in ("generations", "prompts", "cliques")}
    return done, tables["generations"], *({row["prompt_id"]: row for row in tables[name]} for name in ("prompts", "cliques"))


@pytest.mark.parametrize("keep", ["none", "nearest", "flagged", "all"])
def test_every_prompt_stores_the_picture_nearest_to_its_image_unless_none_is_wanted(tmp_path, keep):
    save_random_pipeline(str(tmp_path / "model"))
    fake = fake_lake(tmp_path / "lake", sizes=(4, 2, 1, 1), controls=3)
    done, generations, prompts, cliques = made(fake.lake, tmp_path / "model", keep=keep, unflagged_fraction=0.0)
    assert done.parameters["keep"] == keep and len(prompts) == 7
    for prompt, row in prompts.items():
        mine = [one for one in generations if one["prompt_id"] == prompt]
        assert [one["nearest"] for one in mine].count(True) == 1
        (nearest,) = [one for one in mine if one["nearest"]]
        assert nearest["own_l2"] == min(one["own_l2"] for one in mine)
        assert all(len(one["thumbnail"]) == 192 for one in mine)
        whole = keep == "all" or (keep == "flagged" and row["origin"] == "control")
        assert not cliques[prompt]["flagged"]
        stored = [one["image"] is not None for one in mine]
        assert stored == [keep != "none" and (whole or one["nearest"]) for one in mine]


def test_a_large_audit_stores_one_picture_a_prompt_unless_it_is_told_otherwise():
    assert GenerateOptions(max_prompts=1000, images_per_prompt=LARGE // 1000).kept == "nearest"
    assert GenerateOptions(max_prompts=1000, images_per_prompt=LARGE // 1000 - 1).kept == "flagged"
    assert GenerateOptions(max_prompts=1000, images_per_prompt=LARGE // 1000, keep="flagged").kept == "flagged"
    # What is kept is what counts: said or not, it is the same audit.
    few = GenerateOptions(max_prompts=1, images_per_prompt=1)
    assert few.filter == GenerateOptions(max_prompts=1, images_per_prompt=1, keep="flagged").filter


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(generate, "say", lines.append)
    return lines


def test_an_audit_without_a_single_picture_stops_and_begins_anew(tmp_path, monkeypatch, said):
    save_random_pipeline(str(tmp_path / "model"))
    lake = fake_lake(tmp_path / "lake", sizes=(2, 1), controls=0).lake
    real = DiffusersGenerator._attempts

    def broken(self, batch, size, encoded):
        raise ValueError("no such thing")

    monkeypatch.setattr(DiffusersGenerator, "_attempts", broken)
    with pytest.raises(UserError, match=r"none of 4 generations is a picture \(4 times: ValueError: no such thing\)"):
        made(lake, tmp_path / "model")
    monkeypatch.setattr(DiffusersGenerator, "_attempts", real)
    done, generations, *_ = made(lake, tmp_path / "model")
    assert done.facts["status"] == {"success": 4} and len(generations) == 4


def test_what_the_safety_checker_takes_is_said(tmp_path, monkeypatch, said):
    save_random_pipeline(str(tmp_path / "model"))
    lake = fake_lake(tmp_path / "lake", sizes=(2, 1), controls=0).lake
    checked = lambda self, image, *_: (image, [True] * len(image))  # noqa: E731
    monkeypatch.setattr(StableDiffusionPipeline, "run_safety_checker", checked)
    done, *_ = made(lake, tmp_path / "model")
    assert done.facts["status"] == {"safety_filtered": 4}
    assert any("safety checker took 4 of 4 pictures" in line for line in said)


def test_what_a_device_has_memory_for_is_kept_and_said(tmp_path, monkeypatch, said):
    save_random_pipeline(str(tmp_path / "model"))
    lake = fake_lake(tmp_path / "lake", sizes=(2, 1), controls=0).lake
    real = UNet2DConditionModel.forward

    def forward(self, sample, *rest, **named):
        if len(sample) > 4:
            raise torch.cuda.OutOfMemoryError
        return real(self, sample, *rest, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    done, generations, *_ = made(lake, tmp_path / "model", batch_size=8)
    # Guided, a picture takes two places.
    assert done.facts["batch_size"] == 2 and {row["status"] for row in generations} == {"success"}
    assert any("memory for 2 images at once, of the 8 of --batch_size" in line for line in said)
    assert generate.generator_again(done, None, "cpu").batch_size == 2


def test_what_a_pipeline_takes_no_notice_of_is_said(tmp_path, monkeypatch, said):
    save_random_pipeline(str(tmp_path / "model"))
    lake = fake_lake(tmp_path / "lake", sizes=(2, 1), controls=0).lake
    monkeypatch.setattr(diffusion, "unused_options", lambda *_, **__: ["guidance_scale"])
    _, generations, *_ = made(lake, tmp_path / "model")
    assert {(row["steps"], row["guidance_scale"]) for row in generations} == {(1, None)}
    assert any("takes no notice of --guidance_scale" in line for line in said)


def test_the_revision_that_was_planned_is_loaded():
    """Whatever the branch means when the workers come to it."""
    options = GenerateOptions(model="owner/name", revision="main", variant="fp16", allow_pickle=True, safety_checker="off")
    assert generate.generator(options, "cpu").hub_revision == "main"
    made = generate.generator(options, "cpu", "a" * 40)
    assert (made.hub_revision, made.variant, made.allow_pickle, made.safety_checker) == ("a" * 40, "fp16", True, "off")


def test_a_home_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert generate.generator(GenerateOptions(model="~/x"), "cpu").model == str(tmp_path / "x")


@pytest.mark.parametrize("name", ["/data/checkpoints/latest", "./x", "~/x", "my model", "x.safetensors"])
def test_a_model_that_is_not_there_is_one_line(tmp_path, capsys, name):
    lake = fake_lake(tmp_path / "lake", sizes=(2, 1), controls=0).lake
    assert run_verb(generate.main, [f"--lake={lake.root}", f"--model={name}", "--device=cpu"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("eidetic: ") and len(said.splitlines()) == 1 and "mend" in said
