"""The question of the owner of a picture: is it there, how often, and does the model give it back?"""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import cli, deduplicate, embed
from pipelines.deduplicate import DeduplicateOptions
from pipelines.device import DeviceOptions
from pipelines.embed import EmbedOptions
from pipelines.execution import Execution
from pipelines.lookup import brought
from pipelines.options import Parsed
from tests.models import short_of_memory
from tests.planted import picture, write_images, write_tiny_clip
from transforms.data.orientation import ORIENTATION
from transforms.matching import candidates
from transforms.models.clip import OpenClipEncoder
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png

COUNT, COPIES = 30, 4


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """30 pictures, of which the first stands four times, and a control; embedded by a tiny CLIP, and grouped."""
    made = Lake(str(tmp_path_factory.mktemp("lake")))
    rows = [(f"{number:032x}", "training", encode_png(picture(number))) for number in range(COUNT)]
    rows += [(f"{100 + copy:032x}", "training", encode_png(picture(0))) for copy in range(1, COPIES)]
    write_images(made, [rows[::2], rows[1::2], [(f"{200:032x}", "control", encode_png(picture(500)))]])
    execution = Execution(made, [])
    clip = write_tiny_clip(tmp_path_factory.mktemp("clip"))
    embed.STAGE.run(execution, Parsed.of(EmbedOptions(clip_model=clip), DeviceOptions("cpu")))
    deduplicate.STAGE.run(execution, Parsed.of(DeduplicateOptions(duplicate_threshold=0.9999)))
    return made


@pytest.fixture
def files(tmp_path):
    """A copy that was saved as JPEG, one at another size, a new picture, and what is no picture."""
    for number, name in ((0, "copy.jpg"), (7, "small.png"), (900, "new.png"), (500, "control.png")):
        image = Image.fromarray(picture(number))
        if name == "small.png":
            image = image.resize((30, 24), Image.Resampling.LANCZOS)
        image.save(tmp_path / name, quality=92)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def looked_up(lake, *words):
    out = words[0].parent / "found.json" if hasattr(words[0], "parent") else None
    assert cli.main(["lookup", *map(str, words), f"--lake={lake.root}", f"--out={out}", "--device=cpu"]) == 0
    return json.loads(out.read_text())


def test_a_picture_that_is_there_is_found_with_its_copies(lake, files):
    rows = looked_up(lake, files / "copy.jpg", files / "small.png")
    first, second = rows[0], next(row for row in rows if row["picture"].endswith("small.png"))
    assert (first["status"], first["same"], first["copies"], first["rank"]) == ("in the training set", True, COPIES, 1)
    assert first["pixel_distance"] < 0.05 and first["copied_in"] == first["seen_in"] == []
    assert (second["same"], second["copies"], second["sample_id"]) == (True, 1, f"{7:032x}")


def test_what_is_new_isnt_and_controls_are_no_training_images(lake, files):
    for name in ("new.png", "control.png"):
        rows = looked_up(lake, files / name)
        assert {row["status"] for row in rows} == {"not found"} and not any(row["same"] for row in rows)
        assert all(row["sample_id"] != f"{200:032x}" for row in rows)
        distances = [row["pixel_distance"] for row in rows]
        assert distances == sorted(distances) and len(rows) >= 3


def test_folders_and_parquet_and_what_cant_be_read(lake, files):
    table = pa.table({"image": [{"bytes": encode_png(picture(3)), "path": None}, {"bytes": None, "path": "x"}]})
    pq.write_table(table, files / "more.parquet")
    folder = files / "folder"
    folder.mkdir()
    for name in ("copy.jpg", "broken.png"):
        (files / name).rename(folder / name)
    (folder / ".hidden.png").write_bytes(b"")
    rows = looked_up(lake, files / "more.parquet", folder)
    by_picture = {}
    for row in rows:
        by_picture.setdefault(row["picture"].rsplit("/", 1)[-1], row)
    assert by_picture["more.parquet, row 0"]["sample_id"] == f"{3:032x}" and by_picture["more.parquet, row 0"]["same"]
    assert by_picture["more.parquet, row 1"]["status"] == "failed: no picture"
    assert by_picture["broken.png"]["status"].startswith("failed: cannot decode the picture")
    assert by_picture["copy.jpg"]["same"] and len(by_picture) == 4


def test_rows_as_parquet_and_a_table_for_the_terminal(lake, files, capsys):
    out = files / "found.parquet"
    assert cli.main(["lookup", str(files / "copy.jpg"), f"--lake={lake.root}", f"--out={out}", "--most=1"]) == 0
    assert pq.read_table(out).column_names[:4] == ["picture", "status", "rank", "same"]
    shown = capsys.readouterr().out
    assert "in the training set" in shown and f"{COPIES}" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no picture is named"),
        (["nowhere.png"], "there is no picture, folder or Parquet file 'nowhere.png'"),
        (["x.png", "--out=found.txt"], "expected a file that ends in .json or .parquet"),
        (["x.png", "--most=0"], "--most is 0, expected 1 or more"),
    ],
)
def test_mistakes_are_one_line(lake, words, said, capsys):
    assert cli.main(["lookup", *words, f"--lake={lake.root}"]) == 2
    assert said in capsys.readouterr().err


def test_parquet_without_pictures(lake, tmp_path, capsys):
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "m.parquet")
    assert cli.main(["lookup", str(tmp_path / "m.parquet"), f"--lake={lake.root}"]) == 2
    assert "expected one called image" in capsys.readouterr().err


def test_a_picture_is_turned_where_the_lakes_are(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(picture(1)[:20]).save(tmp_path / "a.png", exif=exif)
    ((_, stored),) = brought([str(tmp_path / "a.png")])
    ((_, upright),) = brought([str(tmp_path)], turns=True)
    assert np.array_equal(stored, picture(1)[:20]) and np.array_equal(upright, np.rot90(stored, -1))


def test_through_the_index_the_same_is_found(lake, files, monkeypatch):
    exact = looked_up(lake, files / "copy.jpg", files / "small.png")
    monkeypatch.setattr("transforms.matching.tasks.EXACT_UP_TO", 3)
    monkeypatch.setattr(candidates, "GROUPS_PER_CELL", 4)
    for _ in range(2):  # the first makes it
        found = looked_up(lake, files / "copy.jpg", files / "small.png")
        assert [row["sample_id"] for row in found if row["same"]] == [row["sample_id"] for row in exact if row["same"]]


def test_on_a_device_that_is_short_of_memory_the_same_is_found(lake, files, monkeypatch, capsys):
    words = [files / name for name in ("copy.jpg", "small.png", "new.png", "control.png")]
    enough = looked_up(lake, *words)
    sizes = short_of_memory(monkeypatch, OpenClipEncoder, "_features", 1, first=1)
    found = looked_up(lake, *words)
    assert [(row["picture"], row["sample_id"]) for row in found] == [(row["picture"], row["sample_id"]) for row in enough]
    # 64 at once, as in embed; a batch is filled up, whatever is in it.
    assert sizes == [4, 4, 4, 4, 4, 2, 1, 1, 1, 1]
    monkeypatch.undo()
    short_of_memory(monkeypatch, OpenClipEncoder, "_features", 0, first=1)
    capsys.readouterr()
    assert cli.main(["lookup", *map(str, words), f"--lake={lake.root}", "--device=cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory on cpu with a single picture in CLIP; name another device" in line


def test_names_that_are_no_text_are_shown_with_escapes(lake, tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(folder)
    for number in (0, 900):
        with open(os.path.join(folder, b"%d\xff.png" % number), "wb") as file:
            file.write(encode_png(picture(number)))
    word = os.fsdecode(os.path.join(folder, b"0\xff.png"))
    for ending in ("json", "parquet"):
        out = tmp_path / f"found.{ending}"
        assert cli.main(["lookup", os.fsdecode(folder), word, f"--lake={lake.root}", f"--out={out}", "--device=cpu"]) == 0
        rows = json.loads(out.read_text()) if ending == "json" else pq.read_table(out).to_pylist()
        assert {row["picture"] for row in rows} == {f"{tmp_path}/caf\\xe9/{number}\\xff.png" for number in (0, 900)}
        assert rows[0]["same"]
