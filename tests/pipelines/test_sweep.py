"""The verb sweep: all stages of a sweep in one command, on pictures that are there or that it takes in first."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import stages, sweep
from pipelines.cli import run_verb
from tests.pipelines.test_train import data, lake, weights  # noqa: F401  # fixtures
from tests.planted import picture, write_tiny_clip
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png

SMALL = """
[common]
steps = 2
width = 8
batch_size = 4
[[grid]]
images = 4
pool = 8
split = [0, 1, 2]
"""

QUICK = (
    "--device=cpu", "--generations=8", "--sampling_steps=2", "--quality_pictures=8", "--inpaintings=2", "--repaint_steps=2",
    "--jump_length=1", "--jumps=1", "--targets=1", "--draws=1",
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    (tmp_path / "sweep.toml").write_text(SMALL)
    return str(tmp_path / "sweep.toml")


def test_it_goes_on_from_the_groups_that_are_there(lake, path, weights):  # noqa: F811
    words = [f"--lake={lake.root}", f"--sweep={path}", f"--quality_weights={weights}", *QUICK]
    assert run_verb(sweep.main, words) == 0
    found = {name: lake.latest(name) for name in stages.SWEEP}
    assert found["train"].rows["models"] == 3
    assert found["extract"].rows == {"untargeted_generations": 24, "untargeted_attacks": 3}
    assert found["infer"].rows["membership_attacks"] == 3
    assert found["inpaint"].rows["inpaintings"] == 2
    assert run_verb(sweep.main, words) == 0
    assert {name: lake.latest(name) for name in stages.SWEEP} == found


def test_it_takes_pictures_in_first(tmp_path, path):
    table = pa.table({"image": [encode_png(picture(number, 16, 16)) for number in range(20)], "label": ["a", "b"] * 10})
    pq.write_table(table, tmp_path / "pictures.parquet")
    words = [
        f"--lake={tmp_path / 'lake'}", f"--sweep={path}", "--source=parquet", f"--metadata={tmp_path / 'pictures.parquet'}",
        "--image_size=16", "--resize_mode=no", "--encode_format=png", f"--clip_model={write_tiny_clip(tmp_path / 'clip')}",
        "--clip_pretrained=", *QUICK,
    ]  # fmt: skip
    assert run_verb(sweep.main, words) == 0
    made = Lake(str(tmp_path / "lake"))
    assert made.latest("ingest").rows["images"] == 20
    row = made.read("untargeted_attacks", made.latest("extract").snapshot_id).to_pylist()[0]
    assert row["quality_features"].startswith("sha256:") and row["frechet"] is not None


def test_a_sweep_that_cannot_be_read_is_said_before_anything_is_taken_in(tmp_path, capfd):
    (tmp_path / "sweep.toml").write_text("[[model]]\nwidht = 8")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(encode_png(picture(0, 16, 16)))
    given = [f"--metadata={tmp_path / 'pictures'}", "--source=folder", f"--clip_model={write_tiny_clip(tmp_path / 'clip')}"]
    words = [f"--lake={tmp_path / 'lake'}", f"--sweep={tmp_path / 'sweep.toml'}", *given]
    assert run_verb(sweep.main, words) == 2
    assert "there is no axis 'widht' (did you mean 'width'?)" in capfd.readouterr().err
    assert not (tmp_path / "lake" / "samples").exists()
