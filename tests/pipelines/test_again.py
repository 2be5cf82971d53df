"""The verb again: the picture of an audit comes back from what the lake knows of it, or the command says why not."""

import io
import shlex
import shutil

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

from pipelines import cli, generate
from pipelines.device import DeviceOptions
from pipelines.execution import Execution
from pipelines.generate import GenerateOptions
from pipelines.options import Parsed
from tests.fakes import fake_lake
from tests.lakes import workers
from tests.models import save_random_pipeline, short_of_memory
from transforms.forgetting import burial
from transforms.results.report import Cut, Extraction
from transforms.store.files import read_parquet
from transforms.store.lake import Lake

CAPTIONS = ("a logo, \x1b[31m'quoted'", "another logo")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lake with two audits of a tiny random model: the first kept its pictures, the second, newer one did not."""
    folder = tmp_path_factory.mktemp("again")
    save_random_pipeline(str(folder / "model"))
    fake = fake_lake(folder / "it's a lake", sizes=(2, 1), captions=CAPTIONS, controls=0)
    audits = {}
    for keep in ("all", "none"):
        options = GenerateOptions(
            model=str(folder / "model"), images_per_prompt=3, steps=2, guidance_scale=3.0, batch_size=2, keep=keep
        )
        done = generate.STAGE.run(Execution(fake.lake, []), Parsed.of(options, DeviceOptions(device="cpu")), fake.deduplicate)
        audits[keep] = done.snapshot_id
    return folder, fake.lake, audits


def generations(made, keep):
    _, lake, audits = made
    return lake.read("generations", audits[keep]).to_pylist()


def again(made, row, out, *words):
    return cli.main(
        ["again", row["prompt_id"], str(row["sample_index"]), f"--lake={made[1].root}", "--device=cpu", f"--out={out}", *words]
    )


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), int)


def test_every_picture_comes_back(made, tmp_path, capsys):
    rows = generations(made, "all")
    assert len(rows) == 6
    for row in rows:
        assert again(made, row, tmp_path / "again.png", f"--audit={made[2]['all']}") == 0
        # Made alone it may differ from the one that was made in a batch, by rounding.
        assert np.abs(pixels((tmp_path / "again.png").read_bytes()) - pixels(row["image"])).max() <= 1
        said = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
        assert float(said["l2"].split()[0]) <= 1 / 255
        assert said["made"].startswith(f"seed {row['seed']}, 2 steps, guidance scale 3,")
        assert "\x1b" not in said["prompt"]


def test_the_newest_audit_is_meant_unless_one_is_named(made, tmp_path, capsys):
    row = generations(made, "none")[0]
    assert row["image"] is None
    assert again(made, row, tmp_path / "again.png") == 0
    assert "did not keep its picture" in capsys.readouterr().out
    # The same prompt, number and seed as in the audit that kept it.
    kept = next(other for other in generations(made, "all") if other["seed"] == row["seed"])
    assert np.abs(pixels((tmp_path / "again.png").read_bytes()) - pixels(kept["image"])).max() <= 1


def test_the_reports_command_is_understood(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    row = generations(made, "all")[4]
    mart = {
        **row, "caption": "", "prompt": "", "url": None, "confidence_rank": 1, "copies": 1, "l2": 0.1, "tiled_l2": 0.1,
        "adaptive_l2": None, "ratio": None, "coarse_l2": 0.1, "coarse_ratio": None, "extracted": True, "copied": False,
        "seen": None, "extracted_calibrated": None, "regenerated": False, "punsafe": None,
    }  # fmt: skip
    command = Extraction.of(mart, made[1], made[2]["all"], Cut(left=0)).command
    assert cli.main(shlex.split(command)[1:]) == 0
    assert np.abs(pixels((tmp_path / "again.png").read_bytes()) - pixels(row["image"])).max() <= 1


@pytest.fixture
def refused(made, tmp_path, capsys):
    """Runs the verb on a generation and returns the one line that it ends with; nothing may be written."""

    def run(row, *words, out="again.png"):
        assert again(made, row, tmp_path / out, *words) == 2
        assert not (tmp_path / out).exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_a_model_of_another_revision_is_refused(made, tmp_path, refused):
    changed = tmp_path / "changed"
    shutil.copytree(made[0] / "model", changed)
    (changed / "scheduler" / "more.txt").write_text("another revision")
    line = refused(generations(made, "none")[0], f"--model={changed}")
    assert "has revision" in line and "name that one with --model" in line
    # Moved is the same.
    (changed / "scheduler" / "more.txt").unlink()
    assert again(made, generations(made, "none")[0], tmp_path / "moved.png", f"--model={changed}") == 0


def test_what_is_not_there_is_said(made, refused):
    row = generations(made, "none")[0]
    assert f"has no audit 'x'; the newest is '{made[2]['none']}'" in refused(row, "--audit=x")
    assert "has no prompt 'y'" in refused({**row, "prompt_id": "y"})
    assert "has 3 generations, so no number 3; expected 0 to 2" in refused({**row, "sample_index": 3})
    assert "there is no folder" in refused(row, out="nowhere/again.png")


def test_a_device_without_memory_for_one_picture_is_one_line(made, refused, monkeypatch):
    short_of_memory(monkeypatch, UNet2DConditionModel, "forward", 0, first=1)
    line = refused(generations(made, "all")[0], f"--audit={made[2]['all']}")
    assert "out of memory on cpu with a single picture at once; name --dtype float16, or another device" in line


def test_a_forgotten_prompt_is_not_asked_for(made, tmp_path, capsys):
    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(made[1].root, lake.root)
    prompts = lake.read("prompts", made[2]["none"]).to_pylist()
    forgotten = [prompt for prompt in prompts if prompt["text"] == CAPTIONS[0]]
    sample = forgotten[0]["sample_id"]
    assert cli.main(["forget", f"--lake={lake.root}", f"--sample_ids={sample}", "--with_duplicates"]) == 0
    row = next(
        row for row in lake.read("generations", made[2]["none"]).to_pylist() if row["prompt_id"] == forgotten[0]["prompt_id"]
    )
    capsys.readouterr()
    assert again((made[0], lake, made[2]), row, tmp_path / "again.png") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "lost its text or pictures to 'eidetic forget'" in line
    assert not (tmp_path / "again.png").exists()


@pytest.mark.parametrize("whose", ["its own", "nobody's"])
def test_a_tombstone_is_enough(whose, made, tmp_path, capsys):
    """A killed 'eidetic forget' leaves it, and the prompt as it was."""
    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(made[1].root, lake.root)
    part = lake.part("prompts", made[2]["all"], 0)
    prompts = read_parquet(part).to_pylist()
    prompt = next(prompt for prompt in prompts if prompt["text"] == CAPTIONS[0])
    burial.bury(workers(lake), {prompt["sample_id"]}, [], "why")
    if whose == "nobody's":
        prompt["sample_id"] = None
        lake.write("prompts", made[2]["all"], 0, prompts)
    row = {"prompt_id": prompt["prompt_id"], "sample_index": 0}
    assert again((made[0], lake, made[2]), row, tmp_path / "again.png", f"--audit={made[2]['all']}") == 2
    said = capsys.readouterr()
    assert "lost its text or pictures" in said.err and "a logo" not in said.out + said.err
    assert not (tmp_path / "again.png").exists()


def test_mistakes_on_the_command_line(capsys, tmp_path):
    assert cli.main(["again", "x"]) == 2
    assert "the following arguments are required: SAMPLE_INDEX" in capsys.readouterr().err
    assert cli.main(["again", "x", "first"]) == 2
    assert "invalid int value: 'first'" in capsys.readouterr().err
    assert cli.main(["again", "x", "0", f"--lake={tmp_path}/none"]) == 2
    assert "is not a lake" in capsys.readouterr().err


def test_finished_generations_have_no_seed(tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (16, 16)).save(pictures / "0.png")
    (pictures / "metadata.jsonl").write_text('{"file_name": "0.png", "prompt": "group 0"}\n')
    fake = fake_lake(tmp_path / "lake", sizes=(1,), controls=0)
    options = GenerateOptions(generations=str(pictures))
    done = generate.STAGE.run(Execution(fake.lake, []), Parsed.of(options, DeviceOptions(device="cpu")), fake.deduplicate)
    row = fake.lake.read("generations", done.snapshot_id).to_pylist()[0]
    assert cli.main(["again", row["prompt_id"], "0", f"--lake={fake.lake.root}"]) == 2
    assert "is of finished generations, which no seed makes again" in capsys.readouterr().err
