"""Pictures that came with their rows: kept, fetched, and found in what a killed run left."""

import os

import pyarrow as pa
import pytest

from transforms.data.download import DownloadLimits, FetchError, TooLarge
from transforms.data.spool import PICTURE, PLACE, REFUSED, Spool, fetching, is_spool, pictures_in, spool_path
from transforms.store.lake import Lake

PICTURES = [b"one", None, b"", b"three" * 1000]


def spooled(path, *tables):
    with Spool(str(path)) as spool:
        return [row for table in tables for row in spool.keep(table).to_pylist()]


def table(pictures):
    refused = ["there is none" if one is None else None for one in pictures]
    urls = [f"u{number}" for number in range(len(pictures))]
    schema = pa.schema([("url", pa.string()), (PICTURE, pa.binary()), (REFUSED, pa.string())])
    return pa.table([urls, pictures, refused], schema=schema)


def test_each_picture_is_fetched_alone_and_within_its_limits(tmp_path):
    rows = spooled(tmp_path / "spool", table(PICTURES[:2]), table([]), table(PICTURES[2:]))
    assert [row["spool"] for row in rows] == [str(tmp_path / "spool"), None, *[str(tmp_path / "spool")] * 2]
    for number, row in enumerate(rows):
        row["url"] = f"u{number}"
    asked = []
    fetch = fetching(rows, lambda url, _: asked.append(url) or b"elsewhere")
    limits = DownloadLimits(max_bytes=4999)
    assert fetch("u0", limits) == b"one" and fetch("u2", limits) == b""
    with pytest.raises(FetchError, match=r"^there is none$"):
        fetch("u1", limits)
    with pytest.raises(TooLarge, match="more than 4999 bytes") as caught:
        fetch("u3", limits)
    assert caught.value.claimed == 5000
    assert fetch("u3", DownloadLimits(max_bytes=5000)) == PICTURES[3]
    assert fetch("other", limits) == b"elsewhere" and asked == ["other"]


def test_rows_without_pictures_are_left_as_they_are(tmp_path):
    plain = pa.table({"url": ["a"]})
    assert spooled(tmp_path / "spool", plain) == [{"url": "a"}]
    assert not os.path.exists(tmp_path / "spool")
    assert fetching([{"url": "a"}], len) is len


def test_what_is_whole_in_a_spool_is_found_however_it_was_cut(tmp_path):
    path = tmp_path / "spool"
    rows = spooled(path, table(PICTURES))
    whole = [(row[PLACE[1]], one) for row, one in zip(rows, PICTURES, strict=True) if one is not None]
    assert list(pictures_in(str(path))) == whole
    content = path.read_bytes()
    assert [content[start : start + len(one)] for start, one in whole] == [one for _, one in whole]
    for length in (len(content) - 1, len(content) - 5000, len(content) - 5003):
        path.write_bytes(content[:length])
        assert list(pictures_in(str(path))) == whole[:2]
    path.write_bytes(b"")
    assert list(pictures_in(str(path))) == []


def test_spools_are_known_by_where_they_lie(tmp_path):
    lake = Lake(str(tmp_path))
    inside = lake.inside(spool_path(lake, "s", "training-00000"))
    assert is_spool(inside) and is_spool("work/ingest/s/pictures/.training-00000.0a0a")
    assert not is_spool("work/ingest/s/buckets/00000/a.parquet") and not is_spool("work/match/s/pictures/a")
