"""Models that were not trained here, through the verbs of a sweep: what they give back is found, and what fails says why."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import sweep
from pipelines.cli import run_verb
from tests.fakes import fake_lake
from tests.planted import picture
from transforms.training import population
from transforms.training.runs import load_model

SWEEP = """
[common]
images = 8
width = 8
steps = 3
[[model]]
name = "trained"
[[brought]]
name = "finished"
model = "{root}/finished"
members = "{root}/members.txt"
[[brought]]
name = "pipeline"
model = "{root}/pipeline"
[[brought]]
name = "generator"
model = "{root}/generator.pt"
latent = 4
[[brought]]
name = "code"
model = "tests.pipelines.test_brought:Fails"
[[brought]]
name = "nowhere"
model = "{root}/nowhere"
[[brought]]
name = "strangers"
model = "{root}/finished"
members = "{root}/strangers.txt"
"""


class Fails:
    """A model of the user's own that never makes a picture."""

    shape, classes = (3, 8, 8), 0

    def make(self, seeds, labels, steps, sampler):
        raise ZeroDivisionError("no picture today")


class Constant(torch.nn.Module):
    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return torch.tanh(numbers).view(-1, 4, 1, 1)[:, :3].expand(-1, 3, 8, 8)


class Means(torch.nn.Module):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """A lake, and a sweep of models that are there, of which one has made three of its pictures; and the ids of those."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    root = tmp_path_factory.mktemp("brought")
    made = fake_lake(root / "lake", sizes=[1] * 30, controls=10, draw=lambda number: picture(number, 16, 16))
    lake, deduplicate = made.lake, made.lake.latest("deduplicate")
    population.find(lake, deduplicate, 50_000)
    for chunk in population.ShrinkPictures(lake, deduplicate, 50_000).process((8, 0)) or ():
        assert chunk is not None
    pictures = population.read(lake, deduplicate, 50_000, 8)
    members = np.flatnonzero(~pictures.held)
    (root / "finished").mkdir()
    for number, row in enumerate(members[:3]):
        Image.fromarray(pictures.pixels[row]).save(root / "finished" / f"{number}.png")
    others = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    np.save(root / "finished" / "noise.npy", others)
    (root / "finished" / "z.png").write_bytes(b"broken")
    (root / "members.txt").write_text("\n".join(pictures.sample_ids[members[:12]]))
    (root / "strangers.txt").write_text("nobody\n")
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, add_attention=False,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(root / "pipeline")
    torch.jit.script(Constant()).save(str(root / "generator.pt"))
    torch.jit.script(Means()).save(str(root / "means.pt"))
    (root / "sweep.toml").write_text(SWEEP.format(root=root))
    words = [
        f"--lake={lake.root}", f"--sweep={root / 'sweep.toml'}", "--device=cpu", f"--quality_weights={root / 'means.pt'}",
        "--generations=12", "--chunk=5", "--sampling_steps=2", "--delta=0.02", "--neighbours=3", "--draws=1", "--bring",
        str(root / "pipeline"),
    ]  # fmt: skip
    assert run_verb(sweep.main, words) == 0
    return root, lake, {str(one) for one in pictures.sample_ids[members[:3]]}


def rows(lake, table, stage):
    return lake.read(table, lake.latest(stage).snapshot_id).to_pylist()


def by_name(lake):
    return {one["experiments"][0]: one for one in rows(lake, "models", "train")}


def test_each_is_a_row_of_models_and_what_is_none_says_why(brought):
    root, lake, _ = brought
    found = by_name(lake)
    shown = {name: (one["family"], one["pixels"], one["images"], one["status"]) for name, one in found.items()}
    assert shown == {
        "trained": ("diffusion", 8, 8, "success"), "finished": ("other", 8, 12, "success"),
        "pipeline": ("diffusion", 8, 30, "success"), "generator": ("other", 8, 30, "success"),
        "code": ("other", 8, 30, "success"), "nowhere": ("other", 0, 0, "failed"), "strangers": ("other", 0, 0, "failed"),
    }  # fmt: skip
    assert found["nowhere"]["reason"].startswith("there is no model")
    assert (
        found["strangers"]["reason"].startswith("members ") and "names none of the 30 pictures" in found["strangers"]["reason"]
    )
    assert json.loads(found["finished"]["brought"])["model"] == f"{root}/finished"
    assert lake.latest("train").facts["status"] == {"success": 5, "failed": 2}
    assert found["trained"]["brought"] is None and found["pipeline"]["width"] is None
    # The same model by the command line is the same one.
    assert found["pipeline"]["experiments"] == ["pipeline", "brought"]


def test_what_finished_pictures_give_back_is_found_and_nothing_else(brought):
    _, lake, given_back = brought
    mine = by_name(lake)["finished"]["model_id"]
    found = [one for one in rows(lake, "untargeted_generations", "extract") if one["model_id"] == mine]
    assert [one["sample_index"] for one in found] == list(range(8))  # of twelve that were asked for there are so many
    assert {one["sample_id"] for one in found if one["by_l2"]} == given_back
    assert [one["l2"] for one in found[:3]] == [0, 0, 0] and not any(one["by_l2"] for one in found[3:])
    assert not any(one["control_by_l2"] for one in found)
    assert found[7]["status"] == "failed" and found[7]["reason"].startswith("z.png: ")
    (leak,) = [one for one in rows(lake, "leakage", "compare") if one["model_id"] == mine]
    assert (leak["extracted_by_l2"], leak["pictures"]) == (3, 12)


def test_code_that_fails_is_a_reason_and_the_others_go_on(brought):
    _, lake, _ = brought
    found = {one["model_id"]: one for one in rows(lake, "untargeted_attacks", "extract")}
    models = by_name(lake)
    assert found[models["code"]["model_id"]]["status"] == "failed"
    assert found[models["code"]["model_id"]]["reason"] == (
        "the model that was brought failed (ZeroDivisionError: no picture today)"
    )
    assert found[models["generator"]["model_id"]]["status"] == "success"


def test_a_diffusion_model_that_is_brought_is_asked_about_membership(brought):
    _, lake, _ = brought
    models = by_name(lake)
    found = {one["model_id"]: one for one in rows(lake, "membership_attacks", "infer")}
    assert found[models["pipeline"]["model_id"]]["status"] == "success"
    assert {one["model_id"] for one in rows(lake, "losses", "infer")} >= {models["pipeline"]["model_id"]}


def test_a_model_that_has_changed_since_is_refused(brought, tmp_path):
    root, lake, _ = brought
    row = by_name(lake)["finished"]
    shutil.copytree(root / "finished", tmp_path / "finished")
    changed = {**json.loads(row["brought"]), "model": str(tmp_path / "finished")}
    assert load_model(lake, {**row, "brought": json.dumps(changed)}, "cpu").count == 8
    (tmp_path / "finished" / "more.png").write_bytes(b"x")
    with pytest.raises(Exception, match="is not what it was when it was brought; run 'eidetic train' again"):
        load_model(lake, {**row, "brought": json.dumps(changed)}, "cpu")
