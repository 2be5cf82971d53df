"""Metadata in, one row of samples for each of its rows out: wherever it lies, however it is cut, whenever it was killed."""

import datetime
import hashlib
import io
import os
import random
import shutil
import socket
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from demo import corpus
from demo.serve import serving
from pipelines import audit, deduplicate, embed, forget, generate
from pipelines import ingest as ingest_verb
from pipelines.cli import run_verb
from pipelines.execution import Execution
from pipelines.ingest import STAGE, IngestOptions, in_bins, plan, retry
from pipelines.options import Parsed
from tests.models import save_random_pipeline
from tests.planted import write_tiny_clip
from tests.servers import free_port
from tests.web import picture, serve
from transforms.data import download
from transforms.data.folders import FolderSource
from transforms.data.ingestion import IngestBucket
from transforms.data.orientation import ORIENTATION
from transforms.data.sources import ParquetSource
from transforms.data.webdataset import WebDatasetSource
from transforms.errors import UserError
from transforms.store.lake import Lake
from transforms.store.pictures import decode_array

CLIP = Path(__file__).resolve().parents[2] / "demo" / "models" / "clip"

PROVENANCE = {"source_file", "source_row", "ingested_at"}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def ingest(lake, metadata, **options):
    """The samples of a run, by id, and its manifest."""
    options = {"image_size": 16, "allow_private_hosts": True, "timeout": 5.0, "threads": 8, **options}
    manifest = STAGE.run(Execution(Lake(str(lake)), []), Parsed.of(IngestOptions(metadata=str(metadata), **options)))
    return Lake(str(lake)).read("samples", manifest.snapshot_id).to_pylist(), manifest


def lasting(samples):
    kept = [{name: value for name, value in row.items() if name not in PROVENANCE} for row in samples]
    return sorted(kept, key=lambda row: row["sample_id"])


def planted(web, number):
    """Rows with repeats: every third is one of five that come again and again, some of them without a file."""
    rows = []
    for i in range(number):
        name = f"/{i % 5 if i % 3 == 0 else i}.png"
        if i % 7:
            web.answer(name, picture(i % 5 if i % 3 == 0 else i))
        rows.append({"URL": web.url + name, "TEXT": f"caption {name}", "punsafe": (i % 4) / 100})
    return rows


@pytest.fixture
def web():
    with serve() as server:
        yield server


def test_moved_cut_and_shuffled_metadata_give_the_same_samples(web, tmp_path):
    rows = planted(web, 24)
    first, _ = ingest(tmp_path / "one", write(tmp_path / "m.parquet", rows), rows_per_part=10)
    random.Random(0).shuffle(rows)
    for number, start in enumerate((0, 1, 15)):
        write(tmp_path / "cut" / f"{9 - number}.parquet", rows[start : [1, 15, 24][number]])
    second, _ = ingest(tmp_path / "two", tmp_path / "cut", rows_per_part=10)
    assert len(first) == 24
    assert lasting(first) == lasting(second)
    # The order in the table is the same too.
    assert [row["sample_id"] for row in first] == [row["sample_id"] for row in second]
    repeats = {}
    for row in first:
        repeats.setdefault((row["url"], row["caption"]), []).append(row["occurrence"])
    assert all(sorted(numbers) == list(range(len(numbers))) for numbers in repeats.values())
    assert max(map(len, repeats.values())) > 1


def test_a_killed_run_asks_for_nothing_that_it_has(web, tmp_path):
    rows = [{"URL": web.answer(f"/{i}.png", picture(i)), "TEXT": str(i)} for i in range(20)]
    path = write(tmp_path / "m.parquet", rows)
    first, manifest = ingest(tmp_path / "lake", path, rows_per_part=5)
    lake = Lake(str(tmp_path / "lake"))
    assert set(web.hits.values()) == {1}
    parts = lake.parts("samples", manifest.snapshot_id)
    assert len(parts) == 4
    lost = {row["url"].removeprefix(web.url) for row in pq.read_table(parts[2]).to_pylist()}
    assert lost
    kept = {part: Path(part).stat().st_mtime_ns for part in parts if part != parts[2]}
    # As a kill leaves it: no manifest, and a bucket whose images are there and whose samples are not.
    os.remove(parts[2])
    os.remove(lake.path("manifests", "ingest", f"{manifest.snapshot_id}.json"))
    web.hits.clear()
    second, _ = ingest(tmp_path / "lake", path, rows_per_part=5)
    assert web.hits == dict.fromkeys(lost, 1)
    assert lasting(second) == lasting(first)
    assert {part: Path(part).stat().st_mtime_ns for part in kept} == kept
    web.hits.clear()
    ingest(tmp_path / "lake", path, rows_per_part=5)
    assert not web.hits
    assert not os.path.exists(lake.work("ingest", manifest.snapshot_id))


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(web, tmp_path):
    def busy_at_first(handler):
        status, content = (503, b"") if web.hits[handler.path] == 1 else (200, picture())
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    web.pages["/busy.png"] = busy_at_first
    web.answer("/out.png", picture(), headers=[("X-Robots-Tag", "noai")])
    rows = [{"URL": f"{web.url}/{name}.png", "TEXT": "t"} for name in ("busy", "out", "gone")]
    samples, _ = ingest(tmp_path / "lake", write(tmp_path / "m.parquet", rows), retries=3)
    found = {row["url"].removeprefix(web.url): row["status"] for row in samples}
    assert found == {"/busy.png": "success", "/out.png": "opted_out", "/gone.png": "failed_to_download"}
    assert web.hits == {"/busy.png": 2, "/out.png": 1, "/gone.png": 1}


def test_what_robots_txt_withholds_is_a_row_and_what_it_keeps_from_is_tried_again(web, tmp_path):
    web.answer("/robots.txt", b"User-agent: *\nDisallow: /private/")
    rows = [{"URL": web.answer(f"/{name}.png", picture()), "TEXT": "t"} for name in ("open", "private/a")]
    with serve() as busy:
        busy.answer("/robots.txt", status=503)
        rows.append({"URL": busy.answer("/busy.png", picture(1)), "TEXT": "t"})
        path = write(tmp_path / "m.parquet", rows)
        samples, _ = ingest(tmp_path / "lake", path)
        assert {(row["url"].rpartition("/")[2], row["status"], row["reason"]) for row in samples} == {
            ("open.png", "success", None),
            ("a.png", "opted_out", "disallowed by robots.txt"),
            ("busy.png", "failed_to_download", "robots.txt: HTTP 503"),
        }
        assert web.robots == 1 and not busy.hits and web.hits == {"/open.png": 1}
        del busy.pages["/robots.txt"]
        download.ROBOTS.clear()
        options = IngestOptions(metadata=path, image_size=16, allow_private_hosts=True, timeout=5.0, retry_failed=True)
        execution = Execution(Lake(str(tmp_path / "lake")), [])
        STAGE.run(execution, Parsed.of(options))
        statuses = [
            row["status"]
            for row in execution.lake.read("samples", STAGE.run(execution, Parsed.of(options)).snapshot_id).to_pylist()
        ]
        assert sorted(statuses) == ["opted_out", "success", "success"]
    careless, _ = ingest(tmp_path / "careless", write(tmp_path / "two.parquet", rows[:2]), honour_robots=False)
    assert {row["status"] for row in careless} == {"success"}


@pytest.mark.parametrize("column", ["md5", "sha256", "SHA256", "hash"])
def test_whether_a_picture_is_the_one_that_was_trained_on(web, tmp_path, column):
    """Each row beside its own digest, in whatever order downloads end, and of what comes at a later try as well."""
    algorithm = "md5" if column == "hash" else column.lower()
    expected, rows = {}, []
    for number in range(40):
        was = picture(number)
        now, verdict = {0: (was, "unchanged"), 1: (picture(number + 100), "changed"), 2: (None, "unknown")}.get(
            number % 4, (b"no picture at all", "changed")
        )
        claimed = hashlib.new(algorithm, was).hexdigest()
        if number % 8 == 4:
            claimed, verdict = "-4986932459263951461", "unknown"
        url = f"{web.url}/{number}.png"
        if now is not None:
            web.answer(f"/{number}.png", now)
        rows.append({"URL": url, "TEXT": "t", column: claimed})
        expected[url] = verdict
    samples, _ = ingest(tmp_path / "lake", path := write(tmp_path / "m.parquet", rows), rows_per_part=20)
    assert {row["url"]: row["drift"] for row in samples} == expected
    assert set(expected.values()) == {"unchanged", "changed", "unknown"}
    for number in range(2, 40, 4):
        url = web.answer(f"/{number}.png", picture(number if number % 8 == 2 else 200))
        expected[url] = "unchanged" if number % 8 == 2 else "changed"
    again, _ = ingest(tmp_path / "lake", path, rows_per_part=20, retry_failed=True)
    assert {row["url"]: row["drift"] for row in again} == expected


def test_of_two_columns_the_digest_is_heeded(web, tmp_path):
    url = web.answer("/a.png", picture())
    rows = [{"URL": url, "TEXT": "t", "hash": -4986932459263951461, "md5": hashlib.md5(picture()).hexdigest()}]
    samples, _ = ingest(tmp_path / "lake", write(tmp_path / "m.parquet", rows))
    assert [row["drift"] for row in samples] == ["unchanged"]


def test_two_workers_in_one_process_leave_the_terminal_alone(web, tmp_path):
    """img2dataset points descriptors 1 and 2 elsewhere while it resizes; two at once would leave them there."""
    rows = [{"URL": web.answer(f"/{i}.png", picture(i)), "TEXT": str(i)} for i in range(40)]
    options = IngestOptions(
        metadata=write(tmp_path / "m.parquet", rows), image_size=16, allow_private_hosts=True, threads=4, rows_per_part=4
    )
    before = [os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)]
    lake = Lake(str(tmp_path / "lake"))
    manifest = STAGE.run(
        Execution(lake, ["--direct_running_mode=multi_threading", "--direct_num_workers=2"]), Parsed.of(options)
    )
    assert [os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)] == before
    assert manifest.rows == {"samples": 40, "images": 40}


def test_controls_have_a_role_and_parts_of_their_own(web, tmp_path):
    rows = planted(web, 6)
    controls = [{"URL": web.answer(f"/control{i}.png", picture(i)), "TEXT": "c"} for i in range(3)]
    samples, manifest = ingest(
        tmp_path / "lake",
        write(tmp_path / "m.parquet", rows),
        controls=write(tmp_path / "c.parquet", controls),
        rows_per_part=6,
    )
    lake = Lake(str(tmp_path / "lake"))
    for table in ("samples", "images"):
        roles = [set(pq.read_table(part)["role"].to_pylist()) for part in lake.parts(table, manifest.snapshot_id)]
        assert roles == [{"training"}, {"control"}]
    assert sum(row["role"] == "control" for row in samples) == 3
    assert all(("control" in row["url"]) == (row["role"] == "control") for row in samples)


def test_a_folder_of_pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(picture())
        (folder / f"{name}.txt").write_text(f"caption {name}")
    (tmp_path / "secret.png").write_bytes(picture())
    beside, _ = ingest(tmp_path / "one", folder, source="folder")
    assert {(row["url"], row["caption"], row["status"]) for row in beside} == {
        ("a.png", "caption a", "success"),
        ("b.png", "caption b", "success"),
    }
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{"file_name": "../secret.png"}\n')
    listed, _ = ingest(tmp_path / "two", folder, source="folder")
    assert {(row["url"], row["status"], row["reason"]) for row in listed} == {
        ("a.png", "success", None),
        ("../secret.png", "failed_to_download", "the path leads out of the folder"),
    }


@pytest.mark.parametrize("role", ["metadata", "controls"])
@pytest.mark.parametrize("what", ["columns", "empty", "rows", "text", "nowhere"])
def test_wrong_metadata_leaves_no_lake(role, what, tmp_path):
    bad = tmp_path / "bad.parquet"
    if what == "columns":
        write(bad, [{"link": "u", "TEXT": "t"}])
    elif what == "empty":
        bad.write_bytes(b"")
    elif what == "rows":
        pq.write_table(pa.table({"URL": pa.array([], pa.string()), "TEXT": pa.array([], pa.string())}), bad)
    elif what == "text":
        bad.write_text("URL,TEXT\n")
    good = write(tmp_path / "good.parquet", [{"URL": "u", "TEXT": "t"}])
    paths = {"metadata": good, "controls": good, role: str(bad)}
    with pytest.raises(UserError) as caught:
        ingest(tmp_path / "lake", **paths)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--{role}: ")
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize("what", ["no pictures", "a file", "nowhere", "listing"])
def test_a_wrong_folder_leaves_no_lake(what, tmp_path):
    folder = tmp_path / "pictures"
    if what == "a file":
        folder.write_bytes(picture())
    elif what != "nowhere":
        folder.mkdir()
    if what == "listing":
        (folder / "metadata.jsonl").write_text("nonsense\n")
    with pytest.raises(UserError, match=r"--metadata: .*expected"):
        ingest(tmp_path / "lake", folder, source="folder")
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 0},
        {"max_bytes": -1},
        {"max_pixels": 0},
        {"max_pixels": 1 << 40},
        {"threads": 0},
        {"threads": 99_999_999},
        {"rows_per_part": 0},
        {"retries": -1},
        {"timeout": 0.0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"punsafe_max": -0.1},
        {"punsafe_max": float("nan")},
        {"encode_quality": 101},
        {"encode_format": "png", "encode_quality": 10},
        {"user_agent_token": ""},
        {"user_agent_token": "a: b"},
        {"user_agent_token": "a\r\nX-Header: b"},
    ],
)
def test_wrong_options_are_told(options):
    with pytest.raises(UserError, match=f"--{list(options)[-1]} is .*expected"):
        IngestOptions(**options)


def test_what_shapes_the_rows_names_the_snapshot(tmp_path):
    metadata = write(tmp_path / "m.parquet", [{"URL": "u", "TEXT": "t"}])
    lake = Lake(str(tmp_path / "lake"))
    base = plan(lake, Parsed.of(IngestOptions(metadata=metadata))).snapshot_id
    shaping = {
        "image_size": 64, "resize_mode": "border", "upscale": True, "encode_format": "png", "encode_quality": 80,
        "punsafe_max": 0.5, "allow_private_hosts": True, "timeout": 1.0, "max_bytes": 10, "max_pixels": 10, "retries": 2,
        "user_agent_token": "other", "honour_opt_outs": False, "honour_robots": False, "rows_per_part": 5, "controls": metadata,
    }  # fmt: skip
    ids = {
        name: plan(lake, Parsed.of(IngestOptions(metadata=metadata, **{name: value}))).snapshot_id
        for name, value in shaping.items()
    }
    assert len({base, *ids.values()}) == len(shaping) + 1
    assert plan(lake, Parsed.of(IngestOptions(metadata=metadata, threads=1))).snapshot_id == base
    elsewhere = write(tmp_path / "elsewhere" / "m.parquet", [{"URL": "u", "TEXT": "t"}])
    assert plan(lake, Parsed.of(IngestOptions(metadata=elsewhere))).snapshot_id == base


def test_no_training_set_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(UserError, match="--metadata"):
        plan(Lake(str(tmp_path / "lake")), Parsed.of(IngestOptions()))


def test_rows_of_laion_with_no_host_in_reach(tmp_path, monkeypatch):
    shared = Path(os.environ.get("EIDETIC_SHARED", Path(__file__).parents[3] / "shared"))
    metadata = shared / "data" / "laion_metadata_1000.parquet"
    if not metadata.exists():
        pytest.skip(f"there is no {metadata}; EIDETIC_SHARED names the folder with shared data")

    def unreachable(host, port):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(download, "look_up", unreachable)
    with pytest.raises(
        UserError, match=r"^0 of 1,000 training rows became pictures .failed_to_download 1,000; most often"
    ) as caught:
        ingest(tmp_path / "lake", metadata, allow_private_hosts=False)
    assert "\n" not in str(caught.value) and "--retry_failed" in str(caught.value)
    # The rows are there, with their reasons.
    lake = Lake(str(tmp_path / "lake"))
    manifest = lake.latest("ingest")
    samples = lake.read("samples", manifest.snapshot_id).to_pylist()
    assert len(samples) == len({row["sample_id"] for row in samples}) == 1000
    assert all(row["status"] != "success" and row["reason"] for row in samples)
    assert manifest.rows == {"samples": 1000, "images": 0}


STATUS = {
    "dead": "failed_to_download",
    "slow": "failed_to_download",
    "not_an_image": "failed_to_download",
    "not_http": "failed_to_download",
    "opted_out": "opted_out",
    "unsafe": "filtered",
}
"""What becomes of the corpus's faulty links; of anything else, a success."""


def test_the_corpus_with_its_planted_faults(tmp_path):
    port = free_port()
    site = tmp_path / "site"
    corpus.build(site, f"http://127.0.0.1:{port}", scale=0.02)
    with serving(site, port):
        samples, _ = ingest(tmp_path / "lake", site / "metadata.parquet", controls=str(site / "controls.parquet"), timeout=3.0)
    truth = pq.read_table(site / "truth.parquet").to_pylist()
    expected = sorted((row["URL"], row["TEXT"], STATUS.get(row["kind"], "success")) for row in truth)
    assert {row["kind"] for row in truth} >= {*STATUS, "redirected", "control"}
    assert sorted((row["url"], row["caption"], row["status"]) for row in samples) == expected
    assert all((row["reason"] is None) == (row["status"] == "success") for row in samples)
    slow = next(row for row in samples if "/slow/" in row["url"])
    assert slow["reason"] == "took longer than allowed"


# -- night after night ------------------------------------------------------------------------------------------------


def metadata_of(web, names, caption="a picture"):
    return [{"URL": f"{web.url}/{name}.png", "TEXT": caption} for name in names]


def test_only_the_metadata_files_that_are_new_are_downloaded(web, tmp_path):
    for number in range(6):
        web.answer(f"/{number}.png", picture(number))
    folder = tmp_path / "metadata"
    write(folder / "monday.parquet", metadata_of(web, [0, 1, 2, 2]))
    first, monday = ingest(tmp_path / "lake", folder, rows_per_part=2)
    # One of them comes again under the same caption, and one is there twice from the beginning.
    write(folder / "tuesday.parquet", metadata_of(web, [2, 3, 4]))
    write(folder / "wednesday.parquet", metadata_of(web, [5, "gone"]))
    both, tuesday = ingest(tmp_path / "lake", folder, rows_per_part=2)
    lake = Lake(str(tmp_path / "lake"))
    assert tuesday.upstream == {"ingest": monday.snapshot_id} and monday.upstream == {}
    assert {path: hits for path, hits in web.hits.items() if path != "/2.png"} == {
        "/0.png": 1, "/1.png": 1, "/3.png": 1, "/4.png": 1, "/5.png": 1, "/gone.png": 1
    }  # fmt: skip
    assert web.hits["/2.png"] == 3
    # Everything is there, the old rows as they were, in files that nobody copied.
    assert len(both) == 9 and tuesday.rows == {"samples": 9, "images": 8}
    assert [row for row in both if row["sample_id"] in {row["sample_id"] for row in first}] == first
    assert set(lake.parts("images", monday.snapshot_id)) < set(lake.parts("images", tuesday.snapshot_id))
    # The same samples as from all metadata at once.
    whole, _ = ingest(tmp_path / "another", folder, rows_per_part=2)
    assert {row["sample_id"] for row in whole} == {row["sample_id"] for row in both}
    assert sorted(row["occurrence"] for row in both if row["url"].endswith("/2.png")) == [0, 1, 2]
    # Again, nothing; and with other options, everything.
    assert ingest(tmp_path / "lake", folder, rows_per_part=2)[1] == tuesday
    assert ingest(tmp_path / "lake", folder, rows_per_part=2, image_size=8)[1].upstream == {}


def test_metadata_that_went_away_are_no_base(web, tmp_path):
    web.answer("/0.png", picture(0))
    folder = tmp_path / "metadata"
    write(folder / "a.parquet", metadata_of(web, [0]))
    ingest(tmp_path / "lake", folder)
    os.remove(folder / "a.parquet")
    write(folder / "b.parquet", metadata_of(web, [0], "another caption"))
    samples, manifest = ingest(tmp_path / "lake", folder)
    assert manifest.upstream == {} and [row["caption"] for row in samples] == ["another caption"]
    write(folder / "c.parquet", metadata_of(web, [0]))
    assert ingest(tmp_path / "lake", folder, carry_over=False)[1].upstream == {}


def test_a_killed_night_goes_on(web, tmp_path, monkeypatch):
    for number in range(4):
        web.answer(f"/{number}.png", picture(number))
    folder = tmp_path / "metadata"
    write(folder / "a.parquet", metadata_of(web, [0]))
    ingest(tmp_path / "lake", folder, rows_per_part=1)
    write(folder / "b.parquet", metadata_of(web, [1, 2, 3]))
    real, written = IngestBucket.write, []

    def dies(self, bucket, *rest):
        if written:
            raise RuntimeError("killed here")
        written.append(bucket)
        real(self, bucket, *rest)

    monkeypatch.setattr(IngestBucket, "write", dies)
    with pytest.raises(RuntimeError, match="killed here"):
        ingest(tmp_path / "lake", folder, rows_per_part=1)
    monkeypatch.setattr(IngestBucket, "write", real)
    samples, manifest = ingest(tmp_path / "lake", folder, rows_per_part=1)
    assert len(samples) == 4 and manifest.rows == {"samples": 4, "images": 4}


@pytest.mark.parametrize("rows_per_part", [10_000, 2, 1])
def test_what_failed_is_tried_again_and_nothing_else(web, tmp_path, rows_per_part):
    web.answer("/0.png", picture(0))
    path = write(tmp_path / "metadata.parquet", metadata_of(web, [0, "late", "gone"]))
    first, manifest = ingest(tmp_path / "lake", path, rows_per_part=rows_per_part)
    options = {"image_size": 16, "allow_private_hosts": True, "timeout": 5.0, "threads": 8, "metadata": path}
    options["rows_per_part"] = rows_per_part
    execution, lake = Execution(Lake(str(tmp_path / "lake")), []), Lake(str(tmp_path / "lake"))
    begun = min(row["ingested_at"] for row in first)

    def again(label, since=begun):
        return retry(execution, IngestOptions(**options), lake.latest("ingest"), since, label)

    # Nothing has come back: no snapshot.
    assert again("2026-01-02") == manifest and len(lake.manifests("ingest")) == 1
    assert web.hits == {"/0.png": 1, "/late.png": 2, "/gone.png": 2}
    web.answer("/late.png", picture(1))
    # Not of that night.
    assert again("2026-01-03", max(row["ingested_at"] for row in first) + datetime.timedelta(seconds=1)) == manifest
    better = again("2026-01-03")
    assert better.upstream == {"ingest": manifest.snapshot_id} and better.rows == {"samples": 3, "images": 2}
    now = {row["url"].rsplit("/")[-1]: row for row in lake.read("samples", better.snapshot_id).to_pylist()}
    before = {row["url"].rsplit("/")[-1]: row for row in first}
    assert now["0.png"] == before["0.png"] and now["late.png"]["status"] == "success"
    assert now["gone.png"] == before["gone.png"]
    pictures = {row["sample_id"]: row["image"] for row in lake.read("images", better.snapshot_id).to_pylist()}
    assert set(pictures) == {now["0.png"]["sample_id"], now["late.png"]["sample_id"]}
    assert web.hits["/0.png"] == 1
    # From here on it is what the metadata have.
    assert STAGE.run(execution, Parsed.of(IngestOptions(**options))) == better and lake.latest("ingest") == better


def test_parts_are_tried_again_together_up_to_a_number_of_rows():
    assert in_bins({}, 10) == []
    assert in_bins({3: 5, 4: 5, 7: 1, 8: 20, 9: 1}, 10) == [[3, 4], [7], [8], [9]]


def test_what_was_forgotten_stays_so_when_its_metadata_come_again(web, tmp_path):
    for number in range(3):
        web.answer(f"/{number}.png", picture(number))
    folder = tmp_path / "metadata"
    write(folder / "a.parquet", metadata_of(web, [0, 1]))
    first, _ = ingest(tmp_path / "lake", folder)
    (gone,) = (row["sample_id"] for row in first if row["url"].endswith("/0.png"))
    assert run_verb(forget.main, [f"--lake={tmp_path}/lake", f"--sample_ids={gone}"]) == 0
    write(folder / "b.parquet", metadata_of(web, [0, 2]))
    samples, manifest = ingest(tmp_path / "lake", folder)
    assert manifest.upstream and web.hits["/0.png"] == 1
    # Both rows are there, under ids of their own, and say nothing.
    assert len({row["sample_id"] for row in samples}) == 4
    assert [row["status"] for row in samples].count("forgotten") == 2
    assert {row["url"] for row in samples} == {f"{web.url}/1.png", f"{web.url}/2.png", None}


def test_what_signs_a_url_is_used_and_not_kept(web, tmp_path, capfd):
    secret = "s3cr3tV4lue"
    content = picture(3)
    signed = web.answer(f"/a.png?X-Amz-Expires=60&X-Amz-Signature={secret}", content)
    other = web.answer(f"/a.png?X-Amz-Expires=60&X-Amz-Signature={secret[::-1]}", picture(4))
    user = web.answer("/b.png", picture(5)).replace("://", f"://somebody:{secret}@")
    gone = f"{web.url}/gone.png?token={secret}"
    rows = [{"URL": url, "TEXT": "t"} for url in (signed, other, user, gone)]
    path = tmp_path / "metadata"
    write(path / "a.parquet", rows)
    samples, manifest = ingest(tmp_path / "lake", path)
    lake = Lake(str(tmp_path / "lake"))
    assert sorted(row["status"] for row in samples) == ["failed_to_download", "success", "success", "success"]
    urls = sorted(row["url"] for row in samples)
    assert len(set(urls)) == 4 and f"http://redacted@{web.url[7:]}/b.png" in urls
    assert all("X-Amz-Expires=60&X-Amz-Signature=redacted-" in url for url in urls if "/a.png" in url)
    said = capfd.readouterr()
    kept = [str(samples), said.out, said.err, *(Path(file).read_bytes().decode("latin-1") for file in lake.files())]
    assert not any(secret in text or secret[::-1] in text or "somebody" in text for text in kept)
    # Without what signs it, it can't be asked for again.
    web.hits.clear()
    options = IngestOptions(metadata=str(path), image_size=16, allow_private_hosts=True, timeout=5.0, threads=8)
    assert (
        retry(Execution(lake, []), options, manifest, datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC), "again") == manifest
    )
    assert not web.hits
    # The same row in a new file is the second of its kind, as it is with any url.
    write(path / "b.parquet", rows[:1])
    grown, _ = ingest(tmp_path / "lake", path)
    assert len({row["sample_id"] for row in grown}) == 5
    assert sorted(row["occurrence"] for row in grown) == [0, 0, 0, 0, 1]
    # Its owner asks by the url as it was.
    assert run_verb(forget.main, [f"--lake={lake.root}", "--urls", signed, "--reason=asked for"]) == 0
    left = lake.read("samples", lake.latest("ingest").snapshot_id).to_pylist()
    assert sorted(row["status"] for row in left).count("forgotten") == 2
    assert secret not in capfd.readouterr().out


# -- folders that grow, and networks that were away -----------------------------------------------------------------------


def test_of_a_folder_that_grew_only_what_is_new_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"caption {number}")
    first, before = ingest(tmp_path / "lake", folder, source="folder", rows_per_part=2)
    (folder / "00.png").write_bytes(picture(9))
    asked = []
    fetch = FolderSource.fetch

    def counting(self, url, limits):
        asked.append(url)
        return fetch(self, url, limits)

    monkeypatch.setattr(FolderSource, "fetch", counting)
    both, after = ingest(tmp_path / "lake", folder, source="folder", rows_per_part=2)
    assert asked == ["00.png"]
    assert after.upstream == {"ingest": before.snapshot_id} and after.rows == {"samples": 6, "images": 6}
    lake = Lake(str(tmp_path / "lake"))
    # Each in the file that it was in.
    assert set(lake.parts("images", before.snapshot_id)) < set(lake.parts("images", after.snapshot_id))
    assert [row for row in both if row["url"] != "00.png"] == first
    # And the same as all at once.
    whole, _ = ingest(tmp_path / "another", folder, source="folder")
    assert {row["sample_id"] for row in whole} == {row["sample_id"] for row in both}
    assert ingest(tmp_path / "lake", folder, source="folder", rows_per_part=2)[1] == after
    # One that went is no base for what is left.
    os.remove(folder / "0.png")
    assert ingest(tmp_path / "lake", folder, source="folder", rows_per_part=2)[1].upstream == {}


def test_pictures_without_captions_and_what_was_left_out_are_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(ingest_verb, "say", said.append)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, caption in (("a", "caption"), ("b", " "), ("c", None)):
        (folder / f"{name}.png").write_bytes(picture())
        if caption is not None:
            (folder / f"{name}.caption").write_text(caption)
    (folder / "d.heic").write_bytes(b"x")
    _, manifest = ingest(tmp_path / "lake", folder, source="folder")
    assert manifest.facts["without_caption"] == {"training": 2}
    assert manifest.facts["left_out"] == {"training": {".heic": 1}}
    assert said == [
        "ingest       training: left out as nothing that is read here: .heic 1",
        "ingest       2 of 3 training pictures have no caption, by which they could be asked for",
    ]


def turned(said):
    """A picture, red on the left and blue on the right, that says how it is to be turned."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :12], pixels[:, 12:] = (250, 0, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[ORIENTATION] = said
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def test_a_folders_pictures_are_turned_and_laions_are_not(web, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(turned(6))
    metadata = write(tmp_path / "m.parquet", [{"URL": web.answer("/a.png", turned(6)), "TEXT": "t"}])
    for lake, source, options in (("folder", folder, {"source": "folder"}), ("laion", metadata, {})):
        (sample,), manifest = ingest(tmp_path / lake, source, encode_format="png", **options)
        (image,) = Lake(str(tmp_path / lake)).read("images", manifest.snapshot_id).to_pylist()
        stored = Image.open(io.BytesIO(image["image"]))
        upright = lake == "folder"
        assert (sample["original_width"], sample["original_height"]) == ((16, 24) if upright else (24, 16))
        assert stored.size == ((16, 24) if upright else (24, 16))
        # By a quarter clockwise: what was on the left is at the top.
        assert stored.getpixel((2, 2)) == (250, 0, 0)
        assert stored.getpixel((2, stored.height - 3)) == ((0, 0, 250) if upright else (250, 0, 0))
        # The hash is of the file as it is.
        assert sample["sha256"] == hashlib.sha256(turned(6)).hexdigest()


def test_a_server_that_was_away_is_asked_again(web, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(ingest_verb, "say", said.append)
    path = write(tmp_path / "m.parquet", metadata_of(web, range(4)))
    with pytest.raises(
        UserError, match=r"^0 of 4 training rows became pictures .failed_to_download 4; most often 'HTTP 404', 4"
    ):
        ingest(tmp_path / "lake", path)
    # It stays so for whoever asks again without saying so, and says so each time.
    with pytest.raises(UserError, match=r"^0 of 4 training rows"):
        ingest(tmp_path / "lake", path)
    assert set(web.hits.values()) == {1}
    web.answer("/0.png", picture(0))
    samples, first = ingest(tmp_path / "lake", path, retry_failed=True)
    assert sorted(row["status"] for row in samples) == ["failed_to_download"] * 3 + ["success"]
    assert said == [
        "ingest       tried again 4 rows that had failed to download: 1 became pictures",
        "ingest       warning: 1 of 4 training rows became pictures (failed_to_download 3, success 1; most often 'HTTP 404', 3)"
        "; --retry_failed tries again what failed to download",
    ]
    for number in range(1, 4):
        web.answer(f"/{number}.png", picture(number))
    samples, second = ingest(tmp_path / "lake", path, retry_failed=True)
    assert {row["status"] for row in samples} == {"success"} and second.upstream == {"ingest": first.snapshot_id}
    assert web.hits["/0.png"] == 2
    # Nothing is left to try, and the newest is what counts without it, too.
    assert ingest(tmp_path / "lake", path, retry_failed=True)[1] == ingest(tmp_path / "lake", path)[1] == second


def test_what_failed_is_tried_again_before_new_metadata_come(web, tmp_path):
    folder = tmp_path / "metadata"
    web.answer("/0.png", picture(0))
    write(folder / "a.parquet", metadata_of(web, [0, 1]))
    ingest(tmp_path / "lake", folder)
    for number in (1, 2):
        web.answer(f"/{number}.png", picture(number))
    write(folder / "b.parquet", metadata_of(web, [2]))
    samples, manifest = ingest(tmp_path / "lake", folder, retry_failed=True)
    assert {row["status"] for row in samples} == {"success"} and manifest.rows == {"samples": 3, "images": 3}
    assert web.hits == {"/0.png": 1, "/1.png": 2, "/2.png": 1}


def test_an_audit_ends_where_nothing_was_had(web, tmp_path, capfd):
    path = write(tmp_path / "m.parquet", metadata_of(web, range(3)))
    save_random_pipeline(str(tmp_path / "model"))
    words = [f"--lake={tmp_path}/lake", f"--metadata={path}", f"--model={tmp_path}/model", f"--clip_model={CLIP}"]
    assert run_verb(audit.main, [*words, "--allow_private_hosts"]) == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("eidetic: 0 of 3 training rows became pictures")
    assert Lake(f"{tmp_path}/lake").manifests("embed") == []
    assert run_verb(embed.main, [f"--lake={tmp_path}/lake", f"--clip_model={CLIP}"]) == 2
    assert "no picture was embedded (there was none)" in capfd.readouterr().err


def test_options_of_columns(web, tmp_path):
    path = write(tmp_path / "m.parquet", [{"image_url": web.answer("/0.png", picture()), "recaption": "c"}])
    samples, _ = ingest(tmp_path / "lake", path, url_column="image_url", caption_column="recaption")
    assert [(row["caption"], row["status"]) for row in samples] == [("c", "success")]
    with pytest.raises(UserError, match="--url_column is '', expected a column's name"):
        IngestOptions(url_column="")


def inside(path, pictures, **columns):
    """A Parquet file with encoded pictures inside, in the columns of ``datasets``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array(
        [{"bytes": one, "path": None} for one in pictures], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    pq.write_table(pa.table({"image": images, **columns}), path, row_group_size=3)
    return path


def digests(pictures):
    return {f"sha256:{hashlib.sha256(one).hexdigest()}" for one in pictures}


def test_pictures_inside_parquet_become_samples_with_labels_or_rows_with_reasons(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(ingest_verb, "say", said.append)
    good = [picture(number) for number in range(5)]
    large = picture(9, 400, 400)
    pictures = [*good, good[0], None, b"", b"no picture", large]
    path = inside(tmp_path / "d" / "train.parquet", pictures, label=[*"abcdef", *"ghij"])
    samples, manifest = ingest(tmp_path / "lake", path, source="parquet", rows_per_part=3, max_bytes=len(large) - 1)
    by_label = {row["label"]: row for row in samples}
    assert sorted(by_label) == list("abcdefghij")
    assert {row["status"] for label, row in by_label.items() if label in "abcdef"} == {"success"}
    assert {row["url"] for row in samples if row["status"] == "success"} == digests(good)
    assert all(row["sha256"] == row["url"].removeprefix("sha256:") for row in samples if row["status"] == "success")
    assert (by_label["g"]["url"], by_label["g"]["status"]) == ("train.parquet#6", "failed_to_download")
    assert by_label["g"]["reason"] == "the row holds no picture: its bytes are null, and no path is followed"
    assert [by_label[label]["status"] for label in "hi"] == ["failed_to_resize"] * 2
    assert (by_label["j"]["status"], by_label["j"]["reason"]) == ("failed_to_download", f"more than {len(large) - 1} bytes")
    # The same picture twice is two samples, and each has its picture.
    assert sorted(by_label[label]["occurrence"] for label in "af") == [0, 1]
    lake = Lake(str(tmp_path / "lake"))
    images = {row["sample_id"]: row["image"] for row in lake.read("images", manifest.snapshot_id).to_pylist()}
    assert images[by_label["a"]["sample_id"]] == images[by_label["f"]["sample_id"]]
    assert len(images) == 6 and len(set(images.values())) == 5
    assert said == ["ingest       6 of 6 training pictures have no caption, by which they could be asked for"]
    # What was read for it is gone.
    assert not os.path.exists(lake.work("ingest", manifest.snapshot_id, "pictures"))


def test_moved_cut_and_shuffled_pictures_inside_parquet_are_the_same_samples(tmp_path):
    pictures = [picture(number % 6) for number in range(8)]
    texts = [f"caption {number % 6}" for number in range(8)]
    first, _ = ingest(tmp_path / "one", inside(tmp_path / "a.parquet", pictures, text=texts), source="parquet", rows_per_part=3)
    inside(tmp_path / "cut" / "z.parquet", pictures[5:], text=texts[5:])
    inside(tmp_path / "cut" / "b.parquet", pictures[4::-1], text=texts[4::-1])
    second, _ = ingest(tmp_path / "two", tmp_path / "cut", source="parquet", rows_per_part=3)
    assert len(first) == 8 and {row["status"] for row in first} == {"success"}
    assert lasting(first) == lasting(second)


def test_of_parquet_with_one_more_file_only_what_is_new_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    inside(folder / "train-00000-of-00001.parquet", [picture(number) for number in range(5)])
    first, before = ingest(tmp_path / "lake", folder, source="parquet", rows_per_part=2)
    # As ``datasets`` calls them when there is one more.
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")
    inside(folder / "train-00001-of-00002.parquet", [picture(5), picture(1)])
    asked = []
    read = ParquetSource.read

    def counting(self, partition):
        asked.append(os.path.basename(partition.name))
        return read(self, partition)

    monkeypatch.setattr(ParquetSource, "read", counting)
    both, after = ingest(tmp_path / "lake", folder, source="parquet", rows_per_part=2)
    assert asked == ["train-00001-of-00002.parquet"]
    assert after.upstream == {"ingest": before.snapshot_id} and after.rows == {"samples": 7, "images": 7}
    assert [row for row in both if row in first] == first
    assert len({row["sample_id"] for row in both}) == 7


def test_a_picture_inside_parquet_is_forgotten_by_its_url(tmp_path):
    path = inside(tmp_path / "a.parquet", [picture(number) for number in range(3)], text=list("xyz"), label=["me", "b", "c"])
    ingest(tmp_path / "lake", path, source="parquet")
    (url,) = digests([picture(0)])
    assert run_verb(forget.main, [f"--lake={tmp_path}/lake", "--urls", url, "--reason=asked for"]) == 0
    # In other words and another file, too.
    again = inside(tmp_path / "b.parquet", [picture(0), picture(1)], text=["other words", "y"])
    for metadata, there in ((path, 3), (again, 2)):
        samples, manifest = ingest(tmp_path / "lake", metadata, source="parquet", carry_over=False)
        assert [row["status"] for row in samples].count("forgotten") == 1 and len(samples) == there
        (gone,) = (row for row in samples if row["status"] == "forgotten")
        assert (gone["url"], gone["caption"], gone["label"], gone["sha256"]) == (None,) * 4
        assert manifest.rows["images"] == there - 1 or metadata == path


def killed_ingest(lake, metadata, monkeypatch):
    """An ingest of pictures inside Parquet that ends when all are read and none is stored; where it had put them."""

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(IngestBucket, "process", kill)
        ingest(lake, metadata, source="parquet", carry_over=False)
    (left,) = lake.glob("work/ingest/*/pictures/*")
    return left


def test_what_a_killed_ingest_has_read_of_a_forgotten_picture_goes_with_it(tmp_path, monkeypatch, capsys):
    lake, pictures = tmp_path / "lake", [picture(number) for number in range(3)]
    ingest(lake, inside(tmp_path / "a.parquet", pictures, text=list("xyz")), source="parquet")
    left = killed_ingest(lake, inside(tmp_path / "b.parquet", [*pictures[1:], picture(3)]), monkeypatch)
    assert pictures[1] in left.read_bytes()
    words = [f"--lake={lake}", "--urls", *digests([pictures[1]]), "--reason=asked for"]
    assert run_verb(forget.main, words) == 0
    assert not left.exists() and "found nothing" in capsys.readouterr().out
    # The same file is read again, and a kill leaves the picture where it must not stay: the proof finds it.
    left = killed_ingest(lake, tmp_path / "b.parquet", monkeypatch)
    assert pictures[1] in left.read_bytes()
    for gone in lake.glob("work/ingest/*/buckets"):
        shutil.rmtree(gone)
    place = left.read_bytes().index(pictures[1])
    assert run_verb(forget.main, [f"--lake={lake}", "--verify_only"]) == 1
    assert f"content in {left.relative_to(lake)}, byte {place:,}" in capsys.readouterr().out
    # As it does in one that was still being written.
    content = left.read_bytes()
    left.unlink()
    cut = left.with_name(f".{left.name}.{'0a' * 16}")
    cut.write_bytes(content[: place + len(pictures[1]) + 20])
    assert run_verb(forget.main, [f"--lake={lake}", "--verify_only"]) == 1
    assert f"content in {cut.relative_to(lake)}, byte {place:,}" in capsys.readouterr().out
    assert run_verb(forget.main, words) == 0 and not cut.exists()
    samples, _ = ingest(lake, tmp_path / "b.parquet", source="parquet", carry_over=False)
    assert sorted(row["status"] for row in samples) == ["forgotten", "success", "success"]
    assert run_verb(forget.main, [f"--lake={lake}", "--verify_only"]) == 0


def test_a_picture_that_was_forgotten_before_it_ever_came_is_found_where_a_killed_ingest_left_it(tmp_path, monkeypatch, capsys):
    lake, pictures = tmp_path / "lake", [picture(number) for number in range(3)]
    ingest(lake, inside(tmp_path / "a.parquet", pictures[:1]), source="parquet")
    (url,) = digests([pictures[2]])
    assert run_verb(forget.main, [f"--lake={lake}", "--urls", url]) == 0
    left = killed_ingest(lake, inside(tmp_path / "b.parquet", pictures), monkeypatch)
    capsys.readouterr()
    assert run_verb(forget.main, [f"--lake={lake}", "--verify_only"]) == 1
    assert f"url in {left.relative_to(lake)}, byte" in capsys.readouterr().out
    assert run_verb(forget.main, [f"--lake={lake}", "--urls", url]) == 0 and not left.exists()


def test_pictures_inside_parquet_are_turned(tmp_path):
    (sample,), manifest = ingest(tmp_path / "lake", inside(tmp_path / "a.parquet", [turned(6)]), source="parquet")
    assert (sample["original_width"], sample["original_height"]) == (16, 24)
    assert manifest.parameters["turns"] is True


def in_a_tar(path, pictures, **beside):
    """A tar of WebDataset with these pictures, and files beside them: ending → contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as made:
        for number, one in enumerate(pictures):
            for ending, content in (("png", one), *((ending, contents[number]) for ending, contents in beside.items())):
                if content is not None:
                    info = tarfile.TarInfo(f"{number:05d}.{ending}")
                    info.size = len(content)
                    made.addfile(info, io.BytesIO(content))
    return path


def test_pictures_in_tars_are_the_samples_that_they_are_inside_parquet(tmp_path):
    pictures = [picture(number % 6) for number in range(8)]
    texts = [f"caption {number % 6}" for number in range(8)]
    labels = [f"{number % 3}" for number in range(8)]
    first, _ = ingest(
        tmp_path / "one", inside(tmp_path / "a.parquet", pictures, text=texts, label=labels), source="parquet", rows_per_part=3
    )
    said = {"txt": [one.encode() for one in texts], "cls": [one.encode() for one in labels]}
    in_a_tar(tmp_path / "tars" / "00001.tar", pictures[5:], **{ending: values[5:] for ending, values in said.items()})
    in_a_tar(tmp_path / "tars" / "00000.tar", pictures[:5], **{ending: values[:5] for ending, values in said.items()})
    second, manifest = ingest(tmp_path / "two", tmp_path / "tars", source="webdataset", rows_per_part=3)
    assert len(first) == 8 and {row["status"] for row in first} == {"success"}
    assert lasting(first) == lasting(second)
    assert sorted(os.path.basename(row["source_file"]) for row in second) == ["00000.tar"] * 5 + ["00001.tar"] * 3
    # ``webdataset`` decodes them as they are stored.
    assert "turns" not in manifest.parameters
    (sample,), _ = ingest(tmp_path / "turned", in_a_tar(tmp_path / "turned.tar", [turned(6)]), source="webdataset")
    assert (sample["original_width"], sample["original_height"]) == (24, 16)


def test_tars_of_the_kinds_that_downloads_leave_become_rows_with_reasons(tmp_path, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(ingest_verb, "say", said.append)
    pictures = [picture(0), None, b"no picture", picture(9, 400, 400), picture(1)]
    fields = [b'{"caption": "a"}', b'{"caption": "b"}', b"{", b'{"caption": "d"}', None]
    path = in_a_tar(tmp_path / "a.tar", pictures, json=fields, webp=[None, None, None, None, picture(2)])
    samples, _ = ingest(tmp_path / "lake", path, source="webdataset", max_bytes=len(pictures[3]) - 1, rows_per_part=2)
    found = {row["source_row"]: (row["status"], row["caption"]) for row in samples}
    assert found == {
        0: ("success", "a"),
        1: ("failed_to_download", "b"),
        2: ("failed_to_resize", None),
        3: ("failed_to_download", "d"),
        4: ("failed_to_download", None),
    }
    reasons = {row["source_row"]: row["reason"] for row in samples}
    assert reasons[1].startswith("no picture under this key (it has .json)")
    assert reasons[3] == f"more than {len(pictures[3]) - 1} bytes"
    assert reasons[4].startswith("2 pictures under one key (it has .png, .webp)")
    assert [row["url"] for row in sorted(samples, key=lambda row: row["source_row"])][1] == "a.tar#00001"
    # What is cut is told before anything is written.
    (tmp_path / "cut.tar").write_bytes(path.read_bytes()[:3000])
    words = [f"--lake={tmp_path}/other", f"--metadata={tmp_path}/cut.tar", "--source=webdataset"]
    assert run_verb(ingest_verb.main, words) == 2
    assert "cut.tar' is damaged: it can't be read behind byte" in capsys.readouterr().err
    assert not (tmp_path / "other" / "samples").exists()


def test_of_tars_only_what_is_new_is_read_and_what_is_forgotten_stays_away(tmp_path, monkeypatch):
    in_a_tar(tmp_path / "tars" / "0.tar", [picture(number) for number in range(3)])
    first, before = ingest(tmp_path / "lake", tmp_path / "tars", source="webdataset", rows_per_part=2)
    in_a_tar(tmp_path / "tars" / "1.tar", [picture(3), picture(1)])
    asked = []
    read = WebDatasetSource.read

    def counting(self, partition):
        asked.append(os.path.basename(partition.name))
        return read(self, partition)

    monkeypatch.setattr(WebDatasetSource, "read", counting)
    both, after = ingest(tmp_path / "lake", tmp_path / "tars", source="webdataset", rows_per_part=2)
    assert asked == ["1.tar"] and after.upstream == {"ingest": before.snapshot_id}
    assert len({row["sample_id"] for row in both}) == 5 and [row for row in both if row in first] == first
    assert run_verb(forget.main, [f"--lake={tmp_path}/lake", "--urls", *digests([picture(1)])]) == 0
    in_a_tar(tmp_path / "tars" / "2.tar", [picture(1)], txt=[b"in other words"])
    everything, _ = ingest(tmp_path / "lake", tmp_path / "tars", source="webdataset", rows_per_part=2)
    assert sorted(row["status"] for row in everything) == ["forgotten"] * 3 + ["success"] * 3


def test_columns_of_another_source_are_refused_in_one_line():
    for options, told in (
        ({"source": "webdataset", "url_column": "a"}, "--url_column is of no use with --source webdataset"),
        ({"image_column": "a"}, "--image_column is of no use with --source laion"),
        ({"source": "folder", "label_column": "a"}, "--label_column is of no use with --source folder"),
        ({"source": "parquet", "url_column": "a"}, "--url_column is of no use with --source parquet"),
        ({"source": "parquet", "image_column": ""}, "--image_column is '', expected a column's name"),
    ):
        with pytest.raises(UserError, match=told):
            IngestOptions(**options)


def cifar(path, pictures):
    """A file as CIFAR-10's: id, split, label and jpeg."""
    names = [f"train/{number % 10}/{number:04d}" for number in range(len(pictures))]
    labels = [f"class {number % 10}" for number in range(len(pictures))]
    pq.write_table(pa.table({"id": names, "split": ["train"] * len(names), "label": labels, "jpeg": pictures}), path)
    return path


AS_THEY_ARE = {"image_size": 32, "resize_mode": "no", "encode_format": "png"}
"""How pictures of 32 pixels are stored without a change: docs/folders.md."""


def stored(lake):
    """Digest in the url → pixels of the stored picture."""
    made = Lake(str(lake))
    snapshot = made.latest("ingest").snapshot_id
    urls = {row["sample_id"]: row["url"] for row in made.read("samples", snapshot).to_pylist()}
    return {urls[row["sample_id"]]: decode_array(row["image"]) for row in made.read("images", snapshot).to_pylist()}


def through_deduplicate(lake, metadata, clip, *words):
    """Ingest, embed, deduplicate; the samples, and the rows of duplicate groups."""
    samples, _ = ingest(lake, metadata, source="parquet", rows_per_part=100, **AS_THEY_ARE)
    assert run_verb(embed.main, [f"--lake={lake}", f"--clip_model={clip}", "--device=cpu"]) == 0
    assert run_verb(deduplicate.main, [f"--lake={lake}", *words]) == 0
    made = Lake(str(lake))
    return samples, made.read("duplicate_groups", made.latest("deduplicate").snapshot_id).to_pylist()


def test_a_file_like_cifars_goes_through_deduplicate_and_generate_finds_no_prompt(tmp_path, capsys):
    pictures = [picture(number, 32, 32) for number in range(20)]
    metadata = cifar(tmp_path / "train.parquet", [*pictures, pictures[3]])
    clip = write_tiny_clip(tmp_path / "clip")
    samples, groups = through_deduplicate(tmp_path / "lake", metadata, clip, "--duplicate_threshold=0.999")
    assert {row["status"] for row in samples} == {"success"} and len(samples) == len(groups) == 21
    twins = {row["sample_id"] for row in samples if row["url"] in digests([pictures[3]])}
    assert len({row["group_id"] for row in groups if row["sample_id"] in twins}) == 1 and len(twins) == 2
    assert {row["label"] for row in samples} == {f"class {number}" for number in range(10)}
    save_random_pipeline(tmp_path / "model")
    capsys.readouterr()
    assert run_verb(generate.main, [f"--lake={tmp_path}/lake", f"--model={tmp_path}/model", "--device=cpu"]) == 2
    assert "there is no prompt to try: no group has a caption" in capsys.readouterr().err


def test_three_hundred_pictures_of_cifar_10_go_through_deduplicate(tmp_path):
    shared = Path(os.environ.get("EIDETIC_SHARED", Path(__file__).parents[3] / "shared"))
    path = shared / "data" / "cifar10_train.parquet"
    if not path.exists():
        pytest.skip(f"there is no {path}; EIDETIC_SHARED names the folder with shared data")
    some = pq.read_table(path).take(list(range(0, 45_000, 150)))
    pictures, labels = some["jpeg"].to_pylist(), some["label"].to_pylist()
    # One of them once more, as somebody else has stored it.
    buffer = io.BytesIO()
    Image.open(io.BytesIO(pictures[7])).save(buffer, "JPEG", quality=85)
    pictures.append(buffer.getvalue())
    labels.append(labels[7])
    pq.write_table(pa.table({"label": labels, "jpeg": pictures}), tmp_path / "some.parquet")
    words = ("--thumbnail_share=0.5", "--duplicate_threshold=0.9")
    samples, groups = through_deduplicate(tmp_path / "lake", tmp_path / "some.parquet", CLIP, *words)
    assert {row["status"] for row in samples} == {"success"} and len(samples) == len(groups) == 301
    assert {row["url"] for row in samples} == digests(pictures)
    assert sorted(row["label"] for row in samples) == sorted(labels)
    urls = {row["sample_id"]: row["url"] for row in samples}
    assert {urls[row["sample_id"]] for row in groups if row["size"] > 1} == digests([pictures[7], pictures[300]])
    assert {(row["original_width"], row["original_height"], row["width"], row["height"]) for row in samples} == {(32,) * 4}
    pixels = stored(tmp_path / "lake")
    for one in pictures:
        (url,) = digests([one])
        assert np.array_equal(pixels[url], np.asarray(Image.open(io.BytesIO(one)).convert("RGB")))
