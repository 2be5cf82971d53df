"""What ``eidetic generate`` says of the prompts that it draws, and what it stores; more of that in tests/test_demo.py."""

import pytest

from pipelines import generate
from pipelines.device import DeviceOptions
from pipelines.execution import Execution
from pipelines.generate import LARGE, GenerateOptions
from pipelines.options import Parsed
from tests.fakes import fake_lake
from tests.models import save_random_pipeline


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
