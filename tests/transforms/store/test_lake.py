"""Tables are whole or absent, snapshots are complete or not there, and faults name what to do."""

import datetime
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.errors import Damaged, UserError
from transforms.store import files
from transforms.store.lake import Lake, as_table, snapshot_id
from transforms.store.schema import SCHEMA_VERSION, TABLES

PAIR = {"sample_id_a": "a", "sample_id_b": "b", "cosine": 0.5, "pixel_distance": None, "pixels_agree": True}


@pytest.fixture
def lake(tmp_path):
    made = Lake(str(tmp_path / "lake"))
    made.create()
    return made


def test_what_is_written_is_read(lake):
    lake.write("duplicate_pairs", "s1", 0, [PAIR])
    lake.write("duplicate_pairs", "s1", 1, [PAIR, PAIR])
    assert lake.read("duplicate_pairs", "s1").to_pylist() == [PAIR] * 3
    assert lake.read("duplicate_pairs", "s1", ["cosine"]).column_names == ["cosine"]
    assert lake.count("duplicate_pairs", "s1") == 3
    assert lake.read("duplicate_pairs", "nothing").schema.names == TABLES["duplicate_pairs"].schema.names


@pytest.mark.parametrize(
    "pictures",
    [[], [b""], [None], [None, b"", b"ab"], [b"a", None, b"", None, b"bcd"], [b"x" * 70_000, None] * 5, [bytearray(b"ab")]],
)
def test_bytes_are_laid_out_as_arrow_does(pictures):
    schema = TABLES["embeddings"].schema
    filled = {"sample_id": "a", "role": "training", "model": "m", "pretrained": "p", "preprocessing": "q", "vector": None,
              "caption_cosine": None, "other_caption_cosine": None, "status": "success", "reason": None}  # fmt: skip
    rows = [{**filled, "thumbnail": picture} for picture in pictures]
    made = as_table("embeddings", rows)
    made.validate(full=True)
    assert made.equals(pa.Table.from_pylist(rows, schema=schema))
    assert made["thumbnail"].null_count == sum(picture is None for picture in pictures)


def test_meanings_travel_inside_the_files(lake):
    path = lake.write("duplicate_pairs", "s1", 0, [PAIR])
    assert files.read_parquet(path).schema.field("cosine").metadata[b"meaning"].startswith(b"of the vectors")


def test_every_column_has_a_meaning():
    for table in TABLES.values():
        for name in table.schema.names:
            assert table.meaning(name)


@pytest.mark.parametrize(
    ("row", "message"),
    [({"sample_id_a": "a"}, "has columns"), (PAIR | {"cosine": None}, "may not be null"), (PAIR | {"more": 1}, "has columns")],
)
def test_rows_that_do_not_fit(lake, row, message):
    with pytest.raises(ValueError, match=message):
        lake.write("duplicate_pairs", "s1", 0, [row])
    assert lake.parts("duplicate_pairs", "s1") == []


def test_a_snapshot_is_complete_with_its_manifest(lake):
    lake.write("duplicate_pairs", "s1", 0, [PAIR])
    assert lake.manifest("deduplicate", "s1") is None
    with pytest.raises(UserError, match="no complete 'deduplicate' yet; run 'eidetic deduplicate' first"):
        lake.latest("deduplicate")
    done = lake.complete("deduplicate", "s1", {"threshold": 0.9}, {"embed": "e"}, {"note": 1})
    assert done.rows == {"duplicate_pairs": 1, "duplicate_groups": 0, "group_sizes": 0, "sampled_pairs": 0, "keep_list": 0}
    assert lake.latest("deduplicate") == done
    lake.complete("deduplicate", "s0", {}, {})
    assert lake.latest("deduplicate").snapshot_id == "s0"  # completed last, whatever its name


def test_the_latest_is_what_was_asked_for_last(lake):
    first, second = (lake.complete("ingest", snapshot, {}, {}) for snapshot in ("b", "a"))
    assert lake.latest("ingest") == second == lake.ask_for(second)
    asked = lake.ask_for(first)
    assert lake.latest("ingest") == asked and asked.finished_at == first.finished_at
    # Their order is that in which they were finished.
    assert [manifest.snapshot_id for manifest in lake.manifests("ingest")] == ["b", "a"]


def test_snapshot_ids_depend_on_everything():
    ids = {
        snapshot_id("match", {"delta": 0.15}, {"generate": "g"}),
        snapshot_id("match", {"delta": 0.1}, {"generate": "g"}),
        snapshot_id("match", {"delta": 0.15}, {"generate": "h"}),
        snapshot_id("embed", {"delta": 0.15}, {"generate": "g"}),
    }
    assert len(ids) == 4


def test_a_write_that_fails_leaves_nothing_under_the_name(lake, monkeypatch):
    def broken(sources, destinations):
        raise OSError("the disk is full")

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="disk is full"):
        lake.write("duplicate_pairs", "s1", 0, [PAIR])
    assert lake.parts("duplicate_pairs", "s1") == []


def test_a_lake_of_another_version(lake):
    files.write_bytes(lake.path("lake.json"), json.dumps({"schema_version": 99}).encode())
    reads = f"this eidetic reads version {SCHEMA_VERSION}; use the eidetic that wrote it"
    with pytest.raises(UserError, match=f"schema version 99, {reads}"):
        lake.create()


def test_a_lake_that_is_damaged(lake):
    files.write_bytes(lake.path("lake.json"), b"{")
    with pytest.raises(UserError, match="is damaged"):
        lake.check()


def test_a_folder_that_is_no_lake(tmp_path):
    with pytest.raises(UserError, match="is not a lake"):
        Lake(str(tmp_path)).check()


def test_a_path_that_is_a_pattern(tmp_path):
    for name in ("lake[1]", "la?ke", "back\\slash"):
        with pytest.raises(UserError, match=r"without \*, \?, \[ and "):
            Lake(str(tmp_path / name))
    with pytest.raises(UserError, match="expected one in UTF-8"):
        Lake(os.fsdecode(b"/tmp/lake\xff"))


@pytest.mark.parametrize("spelt", ["{}", "{}/", "{}//", "{}/."])
def test_every_file_is_found_however_the_path_is_spelt(spelt, lake):
    lake = Lake(spelt.format(lake.root))
    lake.create()
    lake.write("tombstones", "one", 0, [])
    assert [lake.inside(path) for path in lake.files()] == ["lake.json", "tombstones/snapshot_id=one/part-00000.parquet"]


def test_paths_that_lead_elsewhere(tmp_path):
    """An unset variable of a shell leaves '', which would be the root of the machine."""
    for path in ("", "a\0b"):
        with pytest.raises(UserError, match="expected a folder; name it with --lake"):
            Lake(path)
    assert Lake(f"{tmp_path}/not there/../b/").root == f"{tmp_path}/b"
    assert Lake("../b").root == "../b" and Lake("/").root == "/" and Lake("gs://b/x/../y/").root == "gs://b/x/../y"


@pytest.mark.parametrize("name", ["s3:", "a:b"])
def test_a_folder_may_be_called_as_urls_begin(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    pq.write_table(pa.table({"a": [1]}), f"{tmp_path}/{name}/x.parquet")
    assert list(files.read_rows(f"{name}/x.parquet")) == [{"a": 1}]
    with pytest.raises(FileNotFoundError):
        list(files.read_rows(f"{name}/y.parquet"))


def test_a_lake_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to the lake"):
        Lake(str(tmp_path / "file" / "lake")).create()


def test_not_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_text("no")
    with pytest.raises(UserError, match="is not a Parquet file"):
        files.read_parquet(str(path))


def test_rows_come_in_order_over_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ROW_GROUP_BYTES", 100)
    path = str(tmp_path / "many.parquet")
    files.write_parquet(path, pa.table({"number": list(range(500))}))
    with files.open_parquet(path) as file:
        assert file.num_row_groups > 10
    assert [row["number"] for row in files.read_rows(path)] == list(range(500))


OTHER = PAIR | {"sample_id_b": "c"}


@pytest.fixture
def complete(lake):
    """A snapshot with two parts of duplicate_pairs; its manifest."""
    lake.write("duplicate_pairs", "s1", 0, [PAIR, OTHER])
    lake.write("duplicate_pairs", "s1", 1, [PAIR])
    return lake.complete("deduplicate", "s1", {}, {})


def test_a_manifest_names_its_parts(lake, complete):
    assert complete.parts["duplicate_pairs"]["0"] == list(files.describe(lake.part("duplicate_pairs", "s1", 0)))
    assert complete.parts["duplicate_pairs"]["0"][0] == 2 and complete.rows["duplicate_pairs"] == 3
    lake.check_snapshot(complete)


def test_a_part_that_changes_is_right_before_and_after(lake, complete):
    path = lake.part("duplicate_pairs", "s1", 0)
    before = files.read_bytes(path)
    lake.rewrite(path, files.read_parquet(path).slice(0, 1))
    lake.check_snapshot(complete)
    after = files.read_bytes(path)
    # Killed between announcing and writing.
    files.write_bytes(path, before)
    lake.check_snapshot(complete)
    files.write_bytes(path, after)
    # And again, between announcing what it becomes next and writing that.
    lake.announce(path, files.Part(0, 1, "what it becomes next"))
    lake.check_snapshot(complete)
    lake.remove(lake.part("duplicate_pairs", "s1", 1))
    lake.check_snapshot(complete)
    lake.settle(complete)
    settled = lake.manifest("deduplicate", "s1")
    assert settled.rows["duplicate_pairs"] == 1 and list(settled.parts["duplicate_pairs"]) == ["0"]
    assert files.list_files(lake.folder("duplicate_pairs", "s1"), ".json") == []
    lake.check_snapshot(settled)
    files.write_bytes(path, before)
    with pytest.raises(Damaged, match="it has 2 rows, and the manifest says 1"):
        lake.check_snapshot(settled)


def test_a_part_that_was_damaged_stays_so_when_it_changes(lake, complete):
    path = lake.part("duplicate_pairs", "s1", 0)
    files.write_parquet(path, files.read_parquet(path).slice(1))
    lake.rewrite(path, files.read_parquet(path).slice(0, 0))
    lake.settle(complete)
    with pytest.raises(Damaged, match="it has 0 rows, and the manifest says 2"):
        lake.check_snapshot(lake.manifest("deduplicate", "s1"))


def test_parts_of_another_snapshot_are_described_there(lake):
    for number in (0, 1):
        lake.write("samples", "old", number, a_sample(number))
    lake.complete("ingest", "old", {}, {})
    lake.lay_over("samples", "new", "old")
    lake.write("samples", "new", 1, a_sample(7))
    new = lake.complete("ingest", "new", {}, {"ingest": "old"})
    assert new.borrowed["samples"] == {"0": "old"} and list(new.parts["samples"]) == ["1"] and new.rows["samples"] == 2
    lake.check_snapshot(new)
    files.write_parquet(lake.part("samples", "old", 0), as_table("samples", a_sample(3)))
    with pytest.raises(Damaged, match=r"snapshot_id=old/part-00000\.parquet' is damaged"):
        lake.check_snapshot(new)
    files.delete(f"{lake.folder('samples', 'new')}/base.json")
    with pytest.raises(Damaged, match="doesn't name the parts that the manifest says"):
        lake.check_snapshot(new)


def a_sample(number):
    """One row of ``samples``, told apart by its number."""
    row = dict.fromkeys(TABLES["samples"].schema.names)
    moment = datetime.datetime.now(datetime.UTC)
    given = {"sample_id": f"s{number}", "role": "training", "occurrence": 0, "source_file": "f", "source_row": number}
    return [row | given | {"status": "filtered", "drift": "unknown", "ingested_at": moment}]
