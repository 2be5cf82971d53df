"""What forgetting does on workers: in which order it is told, what it leaves behind, and that every runner does the same."""

import html
import json
import os
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.execution import Execution
from tests.fakes import fake_lake
from tests.lakes import differences, workers
from transforms.attacks.prompts import listed_prompts
from transforms.forgetting import proof
from transforms.forgetting import workers as passes
from transforms.forgetting.burial import bury
from transforms.forgetting.removal import remove
from transforms.forgetting.selection import Chosen, Named
from transforms.forgetting.workers import Workers
from transforms.store.files import read_parquet
from transforms.store.lake import Lake, part_number
from transforms.store.tombstones import sha256

CAPTIONS = ["a wedding of Anna and Bert", *(f"group {number}" for number in range(1, 10))]
URL = "https://train.example/0.png"
OTHER_PROCESSES = ("--direct_num_workers=1", "--direct_running_mode=multi_processing")


@pytest.fixture
def lake(tmp_path):
    made = Lake(str(tmp_path / "lake"))
    made.create()
    return made


@pytest.fixture
def fake(tmp_path):
    """A whole lake; each of its pictures has bytes of its own, as downloads have."""
    made = fake_lake(tmp_path / "fake", captions=CAPTIONS, listed=[f"oil painting: {CAPTIONS[0]}", URL])
    for path in made.lake.every_part("samples"):
        rows = [row | {"sha256": sha256(row["url"])} for row in read_parquet(path).to_pylist()]
        made.lake.write("samples", made.ingest.snapshot_id, part_number(path), rows)
    return made


def forget(workers):
    """Of the lake's first picture and all that are the same; returns what the command says and what the proof does."""
    chosen = Chosen(workers, Named(frozenset(), frozenset([URL])))
    bury(workers, chosen.sample_ids, [URL], "asked for")
    return remove(workers), proof.search(workers)


def name_and_size(path):
    """Of a file, and then of its folder."""
    yield os.path.basename(path), os.path.getsize(path)
    yield os.path.basename(os.path.dirname(path))


@pytest.mark.parametrize(("most", "few_files"), [(1, 0), (2, 0), (1000, 4), (1000, 5)])
def test_answers_come_in_the_order_of_the_files(most, few_files, lake, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "MOST_TASKS", most)
    paths = [tmp_path / name for name in "cadbe"]
    for size, path in enumerate(paths):
        path.write_bytes(b"." * size)
    with workers(lake, few_files=few_files) as looks:
        found = looks.each(map(str, paths), name_and_size)
    assert found == [answer for size, name in enumerate("cadbe") for answer in ([name, size], tmp_path.name)]
    assert [lake.inside(path) for path in lake.files()] == ["lake.json"]


def test_no_files_need_no_pipeline(lake):
    def run(_):
        raise AssertionError("there is nothing to do")

    assert Workers(lake, run).each([], name_and_size) == []


def test_few_files_need_no_pipeline_unless_they_are_large(lake, tmp_path, monkeypatch):
    paths, run = [tmp_path / name for name in "ab"], []
    for path in paths:
        path.write_bytes(b"....")

    def looked(*names):
        with Workers(lake, lambda build: run.append(1) or Execution(lake, []).run(build)) as looks:
            return looks.each([str(tmp_path / name) for name in names], name_and_size), len(run)

    expected = [["a", 4], tmp_path.name, ["b", 4], tmp_path.name]
    assert looked("a", "b") == (expected, 0)
    with pytest.raises(FileNotFoundError):
        looked("a", "gone")
    assert run == []
    monkeypatch.setattr(passes, "FEW_BYTES", 7)
    assert looked("a", "b") == (expected, 1)


def test_a_runner_that_does_nothing_is_no_silence(lake):
    """Else a proof of which nothing has run would find nothing."""
    with pytest.raises(FileNotFoundError), Workers(lake, lambda build: None, few_files=0) as looks:
        looks.each([lake.path("lake.json")], name_and_size)
    assert [lake.inside(path) for path in lake.files()] == ["lake.json"]


def test_what_a_killed_run_left_goes_with_the_next(lake):
    left = Path(lake.work("forget", "killed", "00001", "work.pickle"))
    left.parent.mkdir(parents=True)
    left.write_bytes(b"")
    with workers(lake) as looks:
        assert proof.search(looks).found == []  # it reads that as any other file, and takes nothing away
        assert left.exists()
        looks.tidy()
    assert not left.exists()


def test_nothing_of_it_goes_through_the_lake_on_the_way(fake):
    """But for the digests that the tombstones hold."""
    lake, seen = fake.lake, {}
    sample = next(row for row in fake.rows("samples") if row["url"] == URL)
    (image,) = (row for row in fake.rows("images") if row["sample_id"] == sample["sample_id"])
    (vector,) = (row for row in fake.rows("embeddings") if row["sample_id"] == sample["sample_id"])
    secrets = [URL.encode(), sample["caption"].encode(), image["image"], np.asarray(vector["vector"], np.float32).tobytes()]

    def run(build):
        Execution(lake, []).run(build)
        seen.update({path: path.read_bytes() for path in Path(lake.path("work", "forget")).rglob("*") if path.is_file()})

    with Workers(lake, run, few_files=0) as looks:
        changed, _ = forget(looks)
        # Found again, it is told of by its digest.
        Path(lake.path("notes.txt")).write_bytes(b" ".join(secrets))
        kinds = {one.kind for one in proof.search(looks).found}
    assert changed["samples"] == changed["images"] and kinds >= {"url", "caption", "picture"}
    assert {path.suffix for path in seen} == {".pickle", ".json"}
    assert [path for path, content in seen.items() if any(secret in content for secret in secrets)] == []
    assert not [path for path in lake.files() if "/work/forget/" in path]


def test_other_processes_do_the_same(fake, tmp_path):
    """As workers elsewhere: they import the code, and have what is pickled; and as the command itself does it."""
    other = Lake(shutil.copytree(fake.lake.root, tmp_path / "other").as_posix())
    for made in (fake.lake, other):
        Path(made.path("old.html")).write_text(html.escape(f"<p>{CAPTIONS[0]}</p>"))
    with workers(fake.lake) as ours, workers(other, *OTHER_PROCESSES, few_files=1) as theirs:
        here, there = forget(ours), forget(theirs)
    assert here == there and here[0]["samples"] == here[0]["images"] and here[0]["prompts"]
    # As it is, and as it says.
    assert [(one.kind, one.path) for one in there[1].found] == [("caption", "old.html")] * 2
    assert differences(fake.lake, other, frozenset({"forgotten_at"})) == []
    assert [fake.lake.inside(path) for path in fake.lake.files()] == [other.inside(path) for path in other.files()]


def test_a_prompt_that_is_a_forgotten_url_goes(fake):
    """And comes back with no list."""
    assert forget(workers(fake.lake))[1].found == []
    texts = {row["text"] for row in fake.rows("prompts")}
    assert not texts & {URL, CAPTIONS[0], f"oil painting: {CAPTIONS[0]}"} and CAPTIONS[1] in texts
    assert [row["text"] for row in listed_prompts(fake.lake, fake.deduplicate, [URL, "aaa"], lambda _: 1)] == ["aaa"]


def in_a_footer(path, caption):
    pq.write_table(pa.table({"n": [1]}).replace_schema_metadata({"about": f"not {caption}"}), path)


def in_a_database(path, caption):
    with duckdb.connect(path) as connection:
        connection.execute(
            "CREATE TABLE old AS SELECT 'x' AS a UNION ALL SELECT $caption ORDER BY a DESC", {"caption": caption}
        )


PLANTED = {
    "more/list.parquet": (lambda path, one: pq.write_table(pa.table({"a": ["x", f"so: {one}"]}), path), {"a, row 1"}),
    "footer.parquet": (in_a_footer, set()),
    "note.json": (lambda path, one: Path(path).write_text(json.dumps({"a": [1, {one: "é"}]})), {"byte 2"}),
    "page.html": (lambda path, one: Path(path).write_text(html.escape(f"<p>{one}</p>")), {"byte 3", "byte 9"}),
    "old.duckdb": (in_a_database, {"a, row 1"}),
    "notes.bin": (lambda path, one: Path(path).write_bytes(b"." * 90 + one.encode() + b"." * 500), {"byte 90"}),
    "table.parquet": (lambda path, one: Path(path).write_bytes(one.encode()), {"byte 0"}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_proof_finds_it_wherever_it_is(name, fake, monkeypatch):
    monkeypatch.setattr(proof, "PIECE", 100)  # in other files it may reach over the end of a piece
    forget(workers(fake.lake))
    plant, places = PLANTED[name]
    path = fake.lake.path(*name.split("/"))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    plant(path, CAPTIONS[0])
    found = proof.search(workers(fake.lake)).found
    assert {(one.kind, one.path.split(",")[0], one.sha256) for one in found} == {("caption", name, sha256(CAPTIONS[0]))}
    assert places <= {one.place for one in found}
    assert len(found) == len(set(found)), "nothing is told twice"


def test_what_most_samples_have_is_told_of_by_nobody(fake, monkeypatch):
    """A caption that remains elsewhere is no find, and no place of it is looked for."""
    for path in fake.lake.every_part("samples"):
        rows = [row | {"caption": CAPTIONS[0]} for row in read_parquet(path).to_pylist()]
        fake.lake.write("samples", fake.ingest.snapshot_id, part_number(path), rows)
    monkeypatch.setattr(proof, "Tell", None)
    assert forget(workers(fake.lake))[1].found == []
