"""What people have, through the verb: metadata as text, in ranges, splits of a data set as controls, tars that are cut."""

import collections
import csv
import gzip
import io
import json
import os
import random
import re
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import ingest as ingest_verb
from pipelines.cli import run_verb
from pipelines.execution import Execution
from pipelines.ingest import IngestOptions
from pipelines.options import Parsed
from tests.pipelines.test_ingest import in_a_tar, ingest, inside, lasting, write
from tests.web import picture, serve
from transforms.data import ingestion, survey, text_metadata, webdataset
from transforms.errors import UserError
from transforms.store.lake import Lake


@pytest.fixture
def web():
    with serve() as server:
        yield server


def planted(web, number):
    """Rows that repeat, fail, are unsafe, and whose captions hold what separates rows and columns."""
    rows = []
    for i in range(number):
        name = f"/{i % 7}.png" if i % 3 == 0 else f"/{i}.png"
        if i % 5:
            web.answer(name, picture(i % 7 if i % 3 == 0 else i))
        caption = random.Random(name).choice(['a "quoted", one', "two\nlines", "tab\there", "plain", None, '5" x; é'])
        rows.append({"URL": web.url + name, "TEXT": caption, "punsafe": [0.0, 0.5][i % 11 == 0], "WIDTH": 20 + i % 3})
    return rows


def as_text(path, rows):
    """Rows as a metadata file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = io.StringIO(newline="")
    if ".json" in path.name:
        made.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        writer = csv.DictWriter(made, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(rows)
    content = made.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.name.lower().endswith(".gz") else content)
    return path


@pytest.fixture
def elements(monkeypatch):
    """What is read, an element each."""
    read, process = [], ingestion.SpreadRows.process

    def watched(self, element):
        read.append(element[2])
        return process(self, element)

    monkeypatch.setattr(ingestion.SpreadRows, "process", watched)
    return read


def images(lake, manifest):
    return sorted(Lake(str(lake)).read("images", manifest.snapshot_id).to_pylist(), key=lambda row: row["sample_id"])


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl", "m.csv.gz"])
def test_text_gives_the_samples_of_parquet_in_any_number_of_ranges(web, tmp_path, monkeypatch, elements, name):
    rows = planted(web, 60)
    right, first = ingest(tmp_path / "parquet", write(tmp_path / "m.parquet", rows), rows_per_part=20)
    assert {row["status"] for row in right} == {"success", "failed_to_download", "filtered"} and len(right) == 60
    path = as_text(tmp_path / name, rows)
    for block, size in ((1 << 20, 1 << 30), (150, 1), (300, 900)):
        monkeypatch.setattr(text_metadata, "BLOCK_BYTES", block)
        monkeypatch.setattr(survey, "RANGE_BYTES", size)
        elements.clear()
        lake = tmp_path / f"{name} {size}"
        found, manifest = ingest(lake, path, rows_per_part=20)
        assert lasting(found) == lasting(right)
        assert sorted(row["source_row"] for row in found) == list(range(60))
        assert images(lake, manifest) == images(tmp_path / "parquet", first)
        assert (len(elements) > 2) == (block < 1 << 20 and not name.endswith(".gz"))
        # What it is cut in names nothing.
        assert manifest.parameters == ingest(lake, path, rows_per_part=20)[1].parameters


def test_two_ranges_of_one_file_are_two_elements_that_any_worker_may_read(web, tmp_path, monkeypatch):
    """Through the runner with two processes, which share nothing but the disk."""
    rows = planted(web, 30)
    right, _ = ingest(tmp_path / "one", as_text(tmp_path / "m.csv", rows))
    monkeypatch.setattr(text_metadata, "BLOCK_BYTES", 200)
    monkeypatch.setattr(survey, "RANGE_BYTES", 500)
    lake = Lake(str(tmp_path / "two"))
    options = IngestOptions(metadata=str(tmp_path / "m.csv"), image_size=16, allow_private_hosts=True, timeout=5.0, threads=8)
    manifest = ingest_verb.STAGE.run(
        Execution(lake, ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]),
        Parsed.of(options),
    )
    assert lasting(lake.read("samples", manifest.snapshot_id).to_pylist()) == lasting(right)


def test_rows_of_text_that_cannot_be_read_are_rows_with_reasons(web, tmp_path, monkeypatch):
    good = web.answer("/0.png", picture(0))
    path = tmp_path / "m.csv"
    path.write_text(f'url,caption\n{good},a\nhttp://h/1.png,b,c\n{good},"e"f,g\n\n,no url\n{good},"x, y"\n')
    for size in (1 << 30, 1):
        monkeypatch.setattr(survey, "RANGE_BYTES", size)
        monkeypatch.setattr(text_metadata, "BLOCK_BYTES", 1 << 20 if size > 1 else 70)
        samples, _ = ingest(tmp_path / f"lake{size}", path)
        found = {row["source_row"]: (row["status"], row["url"], row["caption"]) for row in samples}
        assert found == {
            0: ("success", good, "a"),
            1: ("failed_to_download", "m.csv#1", None),
            2: ("failed_to_download", "m.csv#2", None),
            3: ("failed_to_download", None, "no url"),
            4: ("success", good, "x, y"),
        }
        reasons = {row["source_row"]: row["reason"] for row in samples}
        assert reasons[1] == "3 values for 2 columns; put texts that hold ',' between double quotes"
        assert reasons[2].startswith("the row can't be read as columns (")
        assert reasons[3] == "the metadata has no url"
    lines = [json.dumps({"url": good, "caption": "a", "hash": [1]}), '{"url": ', json.dumps({"url": good, "caption": ["a"]})]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    samples, _ = ingest(tmp_path / "json", tmp_path / "m.jsonl")
    found = {row["source_row"]: (row["status"], row["url"], row["metadata_hash"]) for row in samples}
    assert found == {
        0: ("success", good, None),
        1: ("failed_to_download", "m.jsonl#1", None),
        2: ("failed_to_download", "m.jsonl#2", None),
    }
    assert {row["reason"] for row in samples} >= {"the caption is a JSON list, expected text"}
    # Nothing is asked for when what failed is tried again.
    again, _ = ingest(tmp_path / "json", tmp_path / "m.jsonl", retry_failed=True)
    assert lasting(again) == lasting(samples)


def test_a_folder_is_read_in_one_kind_and_with_columns_that_are_named(web, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(ingest_verb, "say", said.append)
    rows = [{"image_link": web.answer(f"/{i}.png", picture(i)), "alt": f"t{i}", "TEXT": "no"} for i in range(4)]
    as_text(tmp_path / "d" / "0.csv", rows[:2])
    as_text(tmp_path / "d" / "sub" / "1.CSV.GZ", rows[2:])
    as_text(tmp_path / "d" / "both.jsonl", rows)
    samples, _ = ingest(tmp_path / "lake", tmp_path / "d", url_column="image_link", caption_column="alt")
    assert sorted((row["caption"], row["status"]) for row in samples) == [(f"t{i}", "success") for i in range(4)]
    assert said[0] == "ingest       training: left out as nothing that is read here: .jsonl 1"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.csv", "link,caption\nu,t\n", "m.csv' has columns ['link', 'caption']; expected metadata with the columns URL"),
        ("m.tsv", "caption one\thttp://h/1.jpg\n", "m.tsv' has columns ['caption one', 'http://h/1.jpg']; expected"),
        ("m.csv", "url,text,url\nu,t,u\n", "among them 'url' twice; rename one of them"),
        ("m.csv", "url,text\n", "has no rows; expected one row for each sample"),
        ("m.jsonl", '{"url": "u"}\n', "m.jsonl' has columns ['url'], expected one called TEXT, text or caption; say with"),
        ("m.jsonl", "", "has columns [], expected one called URL or url"),
        ("m.csv.gz", "url,text\nu,t\n", "m.csv.gz' is damaged: it can't be unpacked (Not a gzipped file"),
    ],
)
def test_text_that_is_no_metadata_leaves_no_lake(tmp_path, capsys, name, content, told):
    (tmp_path / name).write_text(content)
    assert run_verb(ingest_verb.main, [f"--lake={tmp_path}/lake", f"--metadata={tmp_path}/{name}"]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "lake" / "samples").exists()


def test_one_more_text_file_is_read_alone(web, tmp_path, elements):
    rows = planted(web, 20)
    as_text(tmp_path / "d" / "0.csv", rows[:12])
    first, before = ingest(tmp_path / "lake", tmp_path / "d")
    as_text(tmp_path / "d" / "1.csv", rows[12:])
    elements.clear()
    both, after = ingest(tmp_path / "lake", tmp_path / "d")
    assert [os.path.basename(one.name) for one in elements] == ["1.csv"] and after.upstream == {"ingest": before.snapshot_id}
    assert len(both) == 20 and [row for row in both if row in first] == first


@pytest.mark.parametrize("source", ["laion", "parquet", "webdataset"])
def test_parquet_and_tars_in_ranges_are_the_same_tables(web, tmp_path, monkeypatch, elements, source):
    pictures = [picture(number % 9) for number in range(14)]
    texts = [f"caption {number % 9}" for number in range(14)]
    if source == "laion":
        rows = planted(web, 14)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m", row_group_size=2)
    elif source == "parquet":
        inside(tmp_path / "m", [*pictures[:13], None], text=texts)
    else:
        in_a_tar(tmp_path / "m", [*pictures[:13], None], txt=[one.encode() for one in texts])
    right, first = ingest(tmp_path / "one", tmp_path / "m", source=source, rows_per_part=5)
    assert len(elements) == 1 and len(right) == 14
    monkeypatch.setattr(survey, "RANGE_BYTES", 1)
    elements.clear()
    found, manifest = ingest(tmp_path / "two", tmp_path / "m", source=source, rows_per_part=5)
    assert len(elements) == {"laion": 7, "parquet": 5, "webdataset": 14}[source]
    assert lasting(found) == lasting(right) and manifest.parameters == first.parameters
    places = [{row["sample_id"]: row["source_row"] for row in samples} for samples in (found, right)]
    assert places[0] == places[1] and sorted(places[0].values()) == list(range(14))
    assert images(tmp_path / "two", manifest) == images(tmp_path / "one", first)


# -- splits of a data set ----------------------------------------------------------------------------------------------


def roles(samples):
    """Caption → role."""
    return {row["caption"]: row["role"] for row in samples}


SPLITS = ["train", "test", "train", None, "validation", "test", "train"]
TRUTH = {f"t{i}": "control" if split == "test" else "training" for i, split in enumerate(SPLITS)}


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl"])
def test_a_column_says_which_rows_are_controls(web, tmp_path, monkeypatch, name):
    said = []
    monkeypatch.setattr(ingest_verb, "say", said.append)
    rows = [{"URL": web.answer(f"/{i}.png", picture(i)), "TEXT": f"t{i}", "split": split} for i, split in enumerate(SPLITS)]
    path = write(tmp_path / name, rows) if name == "m.parquet" else as_text(tmp_path / name, rows)
    samples, manifest = ingest(tmp_path / "lake", path, controls_split="Test")
    assert roles(samples) == TRUTH and len(samples) == 7 and {row["status"] for row in samples} == {"success"}
    assert said == [
        "ingest       training: rows by split: train 3, none said 1, validation 1",
        "ingest       control: rows by split: test 2",
    ]
    # The same roles in ranges.
    monkeypatch.setattr(survey, "RANGE_BYTES", 1)
    monkeypatch.setattr(text_metadata, "BLOCK_BYTES", 60 if name != "m.jsonl" else 100)
    in_ranges, _ = ingest(tmp_path / "ranges", path, controls_split="test")
    assert lasting(in_ranges) == lasting(samples)
    # Several of them; and without the option every row is trained on.
    samples, other = ingest(tmp_path / "lake", path, controls_split="val,test")
    assert [role for _, role in sorted(roles(samples).items())].count("control") == 3
    assert other.snapshot_id != manifest.snapshot_id
    assert set(roles(ingest(tmp_path / "lake", path)[0]).values()) == {"training"}


def test_the_splits_of_hugging_face_by_the_names_of_files(tmp_path):
    data = tmp_path / "set" / "data"
    made = {
        "train-00000-of-00002": [0, 1],
        "train-00001-of-00002": [2],
        "test-00000-of-00001": [3, 4],
        "held_out-00000-of-00001": [5],
    }
    for name, numbers in made.items():
        inside(data / f"{name}.parquet", [picture(n) for n in numbers], text=[f"t{n}" for n in numbers])
    for split, controls in (("test", {3, 4}), ("held_out", {5})):
        samples, _ = ingest(tmp_path / split, tmp_path / "set", source="parquet", controls_split=split)
        assert roles(samples) == {f"t{n}": "control" if n in controls else "training" for n in range(6)}


@pytest.mark.parametrize("source", ["parquet", "webdataset", "folder", "laion"])
@pytest.mark.parametrize("split", ["test", "kept back"])
def test_a_folder_of_each_split(web, tmp_path, source, split):
    # Above the data set a folder may be called anything.
    root = tmp_path / "test" / "set"
    for number, folder in enumerate(["train", split, "train", split]):
        name, caption = root / folder / f"part{number}", f"t{number}"
        name.parent.mkdir(parents=True, exist_ok=True)
        if source == "parquet":
            inside(name.with_suffix(".parquet"), [picture(number)], text=[caption])
        elif source == "webdataset":
            in_a_tar(name.with_suffix(".tar"), [picture(number)], txt=[caption.encode()])
        elif source == "folder":
            name.with_suffix(".png").write_bytes(picture(number))
            name.with_suffix(".txt").write_text(caption)
        else:
            as_text(name.with_suffix(".csv"), [{"url": web.answer(f"/{number}.png", picture(number)), "text": caption}])
    if source == "folder":  # what a picture is called says nothing
        (root / "train" / f"{split}-tube.png").write_bytes(picture(0))
        (root / "train" / f"{split}-tube.txt").write_text("t0")
    samples, _ = ingest(tmp_path / "lake", root, source=source, controls_split=split)
    assert roles(samples) == {"t0": "training", "t1": "control", "t2": "training", "t3": "control"}
    assert {row["status"] for row in samples} == {"success"}


def test_the_listing_of_a_folder_may_have_a_column_of_splits(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = [f'{{"file_name": "{n}.png", "text": "t{n}", "split": "{split}"}}\n' for n, split in enumerate(["a", "b", "a", "b"])]
    (tmp_path / "metadata.jsonl").write_text("".join(rows))
    samples, _ = ingest(tmp_path / "lake", tmp_path, source="folder", controls_split="b")
    assert roles(samples) == {"t0": "training", "t1": "control", "t2": "training", "t3": "control"}


def test_new_files_of_a_split_lie_over_what_is_there(tmp_path):
    for name, number in (("train-00000-of-00001", 0), ("test-00000-of-00001", 1)):
        inside(tmp_path / "set" / f"{name}.parquet", [picture(number)], text=[f"t{number}"])
    _, before = ingest(tmp_path / "lake", tmp_path / "set", source="parquet", controls_split="test")
    inside(tmp_path / "set" / "train-00001-of-00002.parquet", [picture(2)], text=["t2"])
    samples, after = ingest(tmp_path / "lake", tmp_path / "set", source="parquet", controls_split="test")
    assert after.upstream == {"ingest": before.snapshot_id}
    assert roles(samples) == {"t0": "training", "t1": "control", "t2": "training"}


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ("tst", "of which no rows of .* are; expected one of its splits, .*; there are 'test', 'train'"),
        ("train,test", "of which all rows of .* are; expected one of its splits"),
    ],
)
def test_a_split_that_is_not_there_is_told(tmp_path, capsys, split, told):
    for name, number in (("train", 0), ("test", 1)):
        inside(tmp_path / "set" / f"{name}.parquet", [picture(number)])
    words = [f"--lake={tmp_path}/lake", f"--metadata={tmp_path}/set", "--source=parquet", f"--controls_split={split}"]
    assert run_verb(ingest_verb.main, words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(told, error)
    assert not (tmp_path / "lake" / "samples").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"controls": "c.parquet", "controls_split": "test"}, "--controls and --controls_split are both there"),
        ({"controls_split": "a,,b"}, "--controls_split is 'a,,b', expected a split's name, or several with commas"),
        ({"allow_cut_tars": True}, "--allow_cut_tars is of no use with --source laion"),
    ],
)
def test_options_that_do_not_go_together(options, told):
    with pytest.raises(UserError, match=told):
        IngestOptions(metadata="m.parquet", **options)


# -- tars that are cut -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1 << 30, 1])
def test_of_a_tar_that_is_cut_what_lies_before_is_taken_where_that_is_allowed(tmp_path, monkeypatch, capsys, size):
    monkeypatch.setattr(survey, "RANGE_BYTES", size)
    noise = [picture(number, 200, 200) for number in range(6)]
    texts = [f"t{number}".encode() for number in range(6)]
    whole = in_a_tar(tmp_path / "whole.tar", noise, txt=texts)
    with tarfile.open(whole) as tar:
        places = {info.name: (info.offset, info.offset_data, info.size) for info in tar}
    in_a_tar(tmp_path / "tars" / "0.tar", [picture(10)], txt=[b"other"])
    cut = tmp_path / "tars" / "1.tar"
    picture_3, text_3 = places["00003.png"], places["00003.txt"]
    counted = collections.Counter()
    monkeypatch.setattr(webdataset, "count", lambda name, number: counted.update({name: number}))
    for end, wanted in (
        # Inside a picture; inside its caption; inside a header; between two files.
        (picture_3[1] + picture_3[2] // 2, {"t3": None}),
        (text_3[1] + 1, {}),
        (text_3[0] + 100, {}),
        (text_3[0] + 512 + 512 + 10, {"t3": "success"}),
        (picture_3[0], {}),
    ):
        cut.write_bytes(whole.read_bytes()[:end])
        words = [f"--lake={tmp_path}/refused", f"--metadata={tmp_path}/tars", "--source=webdataset"]
        code = run_verb(ingest_verb.main, words)
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("eidetic: ")]
        if end != picture_3[0]:
            assert code == 2 and len(errors) == 1 and "1.tar' is damaged: " in errors[0], end
            assert "--allow_cut_tars takes what lies before" in errors[0]
            assert not (tmp_path / "refused" / "samples").exists()
        samples, manifest = ingest(
            tmp_path / f"{size} {end}", tmp_path / "tars", source="webdataset", allow_cut_tars=True, rows_per_part=2
        )
        assert counted.pop("captions and labels that a tar is cut in", 0) == (end == text_3[1] + 1)
        before = {row["caption"] for row in samples if row["status"] == "success"} - {None}
        assert {"other", "t0", "t1", "t2"} <= before <= {"other", "t0", "t1", "t2", "t3"}
        last = [row for row in samples if row["caption"] not in ("other", "t0", "t1", "t2")]
        if end == picture_3[1] + picture_3[2] // 2:
            (row,) = last
            assert row["status"] == "failed_to_download" and row["url"] == "1.tar#00003"
            assert row["reason"] == "the tar is cut inside this picture; get the tar anew"
        elif end == picture_3[0]:
            assert not last
        else:
            # The picture is whole; the caption is there where all of it is.
            (row,) = last
            assert (row["status"], row["caption"]) == ("success", "t3" if "t3" in wanted else None)
        told = manifest.facts["left_out"]["training"]
        assert told == ({} if end == picture_3[0] else {"tars that are cut or damaged, behind that place (1.tar)": 1})
        assert manifest.rows["images"] == sum(row["status"] == "success" for row in samples)
    # Whole again, it is another one: everything is read again.
    cut.write_bytes(whole.read_bytes())
    samples, _ = ingest(tmp_path / f"{size} {picture_3[0]}", tmp_path / "tars", source="webdataset", allow_cut_tars=True)
    assert {row["caption"] for row in samples if row["status"] == "success"} == {"other", *(f"t{n}" for n in range(6))}
