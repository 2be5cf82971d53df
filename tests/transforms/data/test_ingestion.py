"""Rows are numbered by what they say, and every one of them becomes an outcome with a reason."""

import hashlib

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.execution import Execution
from tests.faults.pictures import flat_png
from tests.web import picture, serve
from transforms.data import ingestion
from transforms.data.download import DownloadLimits
from transforms.data.img2dataset_modules import img2dataset_module
from transforms.data.ingestion import (
    CHANGED,
    LOST,
    UNCHANGED,
    UNKNOWN,
    Buckets,
    Ingest,
    IngestBucket,
    SpreadRows,
    Storage,
    drift,
    number_occurrences,
)
from transforms.data.resizing import ConfinedResizer
from transforms.data.sources import FolderSource, LaionSource
from transforms.data.survey import ROW, Partition
from transforms.errors import UserError
from transforms.store.files import read_parquet
from transforms.store.identity import sample_id
from transforms.store.lake import Lake
from transforms.store.pictures import FORMATS, decode

LIMITS = DownloadLimits(seconds=5, allow_private_hosts=True)

NO_FORMAT = f"cannot decode the picture: it has no format that is read here ({', '.join(FORMATS)})"


def row(url, caption="t", file="a.parquet", number=0, **columns):
    said = {"url": url, "caption": caption, "source_row": number, "source_file": file, "sample_id": sample_id(url, caption, 0)}
    return {**dict.fromkeys(ROW.names), **said, **columns}


def bucket(lake, source, limits=LIMITS):
    storage = Storage(image_size=12, resize_mode="keep_ratio", upscale=False, encode_format="png", encode_quality=6)
    populations = [Buckets("training", source, 0, 1)]
    return IngestBucket(lake, "s", populations, storage, limits, punsafe_max=0.1, threads=4, retries=0)


def test_repeated_rows_are_numbered_from_zero():
    found = number_occurrences([row("b"), row("a"), row("b"), row("b", "other"), row(None), row(None), row("b")])
    assert sorted(one["occurrence"] for one in found if (one["url"], one["caption"]) == ("b", "t")) == [0, 1, 2]
    assert sorted(one["occurrence"] for one in found if one["url"] is None) == [0, 1]
    assert len({one["sample_id"] for one in found}) == len(found)
    assert all(one["sample_id"] == sample_id(one["url"], one["caption"], one["occurrence"]) for one in found)


def test_the_number_follows_from_the_rows_content_not_from_its_place():
    rows = [row("a", punsafe=0.01 * number, number=number) for number in range(5)]
    moved = [row("a", punsafe=0.01 * (4 - number), number=number, file="z/b.parquet") for number in range(5)]
    by_content = [[(one["punsafe"], one["sample_id"]) for one in number_occurrences(these)] for these in (rows, moved)]
    assert by_content[0] == by_content[1]


def test_a_buckets_rows_are_those_whose_content_falls_into_it(tmp_path):
    path = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"URL": [f"u{i}" for i in range(50)], "TEXT": ["t"] * 50}), path)
    population = Buckets("control", LaionSource(path), first_bucket=7, buckets=4)
    spread = list(SpreadRows(Lake(str(tmp_path / "lake")), "s").process((population, 0, Partition(path, 50, ()))))
    assert [number for number, _ in spread] == [7, 8, 9, 10]
    found = [row for _, part in spread for row in read_parquet(part).to_pylist()]
    assert sorted(row["url"] for row in found) == sorted(f"u{i}" for i in range(50))
    assert all((row["url"], row["source_file"]) == (f"u{row['source_row']}", path) for row in found)


def test_a_bucket_gets_one_file_from_many_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("transforms.data.sources.BATCH_ROWS", 5)
    path = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"URL": [f"u{i}" for i in range(50)], "TEXT": ["t"] * 50}), path)
    population = Buckets("training", LaionSource(path), first_bucket=0, buckets=3)

    def spread():
        parts = list(SpreadRows(Lake(str(tmp_path / "lake")), "s").process((population, 0, Partition(path, 50, ()))))
        assert len({part for _, part in parts}) == len(parts)
        return parts, sorted((bucket, url) for bucket, part in parts for url in read_parquet(part)["url"].to_pylist())

    parts, rows = spread()
    assert [bucket for bucket, _ in parts] == [0, 1, 2]
    # Metadata that are too much to be held at once are spread piece by piece, to the same buckets.
    monkeypatch.setattr(ingestion, "SPREAD_BYTES", 1)
    pieces, same = spread()
    assert len(pieces) > 3 and same == rows


def test_a_bucket_without_rows_is_a_part_too(tmp_path):
    path = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"URL": ["no url"], "TEXT": ["t"]}), path)
    populations = [Buckets(role, LaionSource(path), first, 3) for role, first in (("training", 0), ("control", 3))]
    lake = Lake(str(tmp_path / "lake"))
    storage = Storage(image_size=12, resize_mode="keep_ratio", upscale=False, encode_format="png", encode_quality=6)
    work = IngestBucket(lake, "s", populations, storage, LIMITS, punsafe_max=0.1, threads=4, retries=0)
    partitions = [(one, 0, Partition(path, 1, ())) for one in populations]
    Execution(lake, []).run(lambda pipeline: pipeline | beam.Create(partitions) | Ingest(lake, "s", work))
    for table, rows in (("samples", 2), ("images", 0)):
        assert len(lake.parts(table, "s")) == 6
        assert lake.count(table, "s") == rows


def test_the_graph_is_small_however_many_buckets_there_are():
    populations = [Buckets("training", LaionSource("m"), 0, 1_000_000)]
    storage = Storage(image_size=12, resize_mode="keep_ratio", upscale=False, encode_format="png", encode_quality=6)
    work = IngestBucket(Lake("unused"), "s", populations, storage, LIMITS, punsafe_max=0.1, threads=4, retries=0)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    _ = pipeline | beam.Create([(populations[0], 0, Partition("m", 1, ()))]) | Ingest(Lake("unused"), "s", work)
    steps = pipeline.to_runner_api().components.transforms
    assert {name: len(step.spec.payload) for name, step in steps.items() if len(step.spec.payload) > 8_000} == {}


def test_what_has_16_bits_is_stored_as_it_looks(tmp_path):
    for number, level in enumerate((0, 90, 116, 255)):
        Image.fromarray(np.full((24, 24), level * 257, np.uint16)).save(tmp_path / f"{number}.png")
        Image.fromarray(np.full((24, 24), level / 255, np.float32)).save(tmp_path / f"{number + 4}.tiff")
    names = [f"{number}.{'png' if number < 4 else 'tiff'}" for number in range(8)]
    outcomes = bucket(Lake("unused"), None).outcomes([row(name) for name in names], FolderSource(str(tmp_path)))
    assert [decode(one["image"]).getpixel((5, 5)) for one in outcomes] == [(level,) * 3 for level in (0, 90, 116, 255)] * 2


def test_a_picture_that_takes_too_long_is_a_row_and_the_next_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("transforms.data.ingestion.ConfinedResizer", _Hurried)
    (tmp_path / "slow.png").write_bytes(flat_png(7000, 7000))
    (tmp_path / "then.png").write_bytes(picture())
    outcomes = bucket(Lake("unused"), None).outcomes([row("slow.png"), row("then.png")], FolderSource(str(tmp_path)))
    assert [(one["status"], one["reason"]) for one in outcomes] == [
        ("failed_to_resize", "took longer than allowed"),
        ("success", None),
    ]


class _Hurried(ConfinedResizer):
    def __call__(self, stream, _=None):
        if len(stream.getvalue()) > 10_000:
            stream.seconds = 0.2
        return super().__call__(stream)


def test_a_row_that_the_downloader_loses_is_a_row_with_a_reason(tmp_path, monkeypatch, capfd):
    downloader = img2dataset_module("downloader")

    keep = downloader.compute_key

    def lose_the_second(key, *rest):
        if key == 1:
            raise KeyError("lost")
        return keep(key, *rest)

    monkeypatch.setattr(downloader, "compute_key", lose_the_second)
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(picture())
    outcomes = bucket(Lake("unused"), None).outcomes([row(f"{name}.png") for name in "abc"], FolderSource(str(tmp_path)))
    assert [outcome["status"] for outcome in outcomes] == ["success", "failed_to_download", "success"]
    assert outcomes[1]["reason"] == LOST


def test_every_row_has_a_status_and_a_reason(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    with serve() as web:
        web.answer("/good.png", picture())
        web.answer("/garbage.png", b"no picture at all")
        web.answer("/cut.png", picture()[:60])
        web.answer("/out.png", picture(), headers=[("X-Robots-Tag", "noai")])
        web.answer("/page.png", b"<html>", headers=[("Content-Type", "text/html")])
        web.answer("/huge.png", picture(0, 200, 200))
        web.answer("/text.png", picture(), status=203, headers=[("Content-Type", "text/plain")])
        web.answer("/strip.png", picture(0, 100, 2))
        expected = {
            "/good.png": ("success", None),
            "/garbage.png": ("failed_to_resize", NO_FORMAT),
            "/cut.png": ("failed_to_resize", "how much a decoder forgives is its own affair"),
            "/out.png": ("opted_out", "opted out by X-Robots-Tag"),
            "/page.png": ("failed_to_download", "not an image: text/html"),
            "/huge.png": ("failed_to_resize", "cannot decode the picture: 200 x 200 pixels are more than 1,000"),
            "/gone.png": ("failed_to_download", "HTTP 404"),
            "/unsafe.png": ("filtered", "punsafe 0.50 is over 0.1"),
            "/text.png": ("success", None),
            "/strip.png": ("failed_to_resize", "100 x 2 pixels are 50 : 1, more than 16 : 1"),
        }
        rows = [row(web.url + path, punsafe=0.5 if "unsafe" in path else 0.1) for path in expected]
        # One row that no client can ask for must not take the others with it.
        rows += [row(None), row(""), row("http://a b/"), row("http://[::1"), row("file:///etc/passwd"), row("http://a\0/")]
        limits = DownloadLimits(seconds=5, max_pixels=1000, allow_private_hosts=True)
        web_source = LaionSource("unused")
        outcomes = bucket(lake, web_source, limits).outcomes(rows, web_source)
        assert web.hits["/unsafe.png"] == 0
    found = [(outcome["status"], outcome["reason"]) for outcome in outcomes]
    assert found[:2] + found[3:10] == list(expected.values())[:2] + list(expected.values())[3:]
    assert found[2][0] in ("success", "failed_to_resize")  # how much a decoder forgives is its own affair
    assert all(status == "failed_to_download" and reason for status, reason in found[10:])
    good = outcomes[0]
    assert (good["original_width"], good["original_height"]) == (24, 16)
    assert min(good["width"], good["height"]) == 12 or max(good["width"], good["height"]) == 12


def test_as_unsafe_as_allowed_is_not_over_it():
    # The table holds 32-bit numbers: its 0.1 is a little more than Python's.
    allowed = pa.scalar(0.1, pa.float32()).as_py()
    assert allowed > 0.1
    before = bucket(Lake("unused"), None)._before
    assert before(row("u", punsafe=allowed))["status"] == "wanted"
    assert before(row("u", punsafe=0.1001))["status"] == "filtered"
    assert before(row("u", punsafe=None))["status"] == "wanted"
    assert before(row("u", punsafe=float("nan")))["status"] == "wanted"


def test_a_source_that_is_a_folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(picture())
    (pictures / "a.txt").write_text("a caption")
    lake = Lake(str(tmp_path / "lake"))
    rows = [row("a.png"), row("../a.png"), row("b.png")]
    outcomes = bucket(lake, None).outcomes(rows, FolderSource(str(pictures)))
    assert [outcome["status"] for outcome in outcomes] == ["success", "failed_to_download", "failed_to_download"]
    assert [outcome["reason"] for outcome in outcomes[1:]] == [
        "the path leads out of the folder",
        "No such file or directory",
    ]


def test_a_bucket_of_repeats_that_no_memory_holds_is_refused(tmp_path):
    path = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"URL": pa.array([None] * 50 + ["u"], pa.string()), "TEXT": pa.nulls(51, pa.string())}), path)
    lake = Lake(str(tmp_path / "lake"))
    population = Buckets("training", LaionSource(path), 0, 2)
    storage = Storage(image_size=12, resize_mode="keep_ratio", upscale=False, encode_format="png", encode_quality=6)
    work = IngestBucket(lake, "s", [population], storage, LIMITS, punsafe_max=0.1, threads=4, retries=0, most_rows=49)
    spread = list(SpreadRows(lake, "s").process((population, 0, Partition(path, 51, ()))))
    with pytest.raises(UserError, match=r"rows that nearly all say the same .*expected 49 at most"):
        for bucket_number, part in spread:
            list(work.process((bucket_number, [part])))


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
def test_a_digest_says_whether_a_file_is_the_one_that_was_meant(algorithm):
    there = hashlib.new(algorithm, b"the file").hexdigest()
    assert drift(there, b"the file") == drift(f" {there.upper()}\n", b"the file") == UNCHANGED
    assert drift(there, b"the filf") == CHANGED
    # What is cut, or has other letters, is no digest.
    assert drift(there[:-1], b"the file") == drift(f"x{there[1:]}", b"the file") == UNKNOWN


@pytest.mark.parametrize("claimed", [None, "", " ", "-4986932459263951461", "dHJ1ZQ==", "\u0665" * 32])
def test_what_is_no_digest_says_nothing(claimed):
    assert drift(claimed, b"the file") == UNKNOWN
