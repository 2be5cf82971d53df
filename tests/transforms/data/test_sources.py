"""Metadata in every shape that strangers give it: read as it is, or refused in one line before anything is written."""

import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.servers import object_store
from transforms.data.download import DownloadLimits, FetchError
from transforms.data.sources import ROW, FolderSource, LaionSource, source
from transforms.errors import UserError
from transforms.store.files import write_parquet


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def rows(found):
    return [row for part in found.survey().partitions for table in found.read(part.name) for row in table.to_pylist()]


def test_laions_columns_under_each_of_their_names(tmp_path):
    old = parquet(tmp_path / "old.parquet", URL=["u"], TEXT=["t"], WIDTH=[3.0], HEIGHT=[4], hash=[-5], punsafe=[0.5])
    new = parquet(tmp_path / "new.parquet", url=["u"], caption=["t"], original_width=[3], original_height=[4], md5=["-5"])
    for path in (old, new):
        table = next(LaionSource(path).read(path))
        assert table.schema == ROW
        row = table.to_pylist()[0]
        assert (row["url"], row["caption"], row["source_row"]) == ("u", "t", 0)
        assert (row["metadata_width"], row["metadata_height"], row["metadata_hash"]) == (3, 4, "-5")
    assert rows(LaionSource(old))[0]["punsafe"] == 0.5
    assert rows(LaionSource(new))[0]["punsafe"] is None


def test_a_file_a_folder_and_a_glob(tmp_path):
    one = parquet(tmp_path / "a.parquet", URL=["1"], TEXT=["x"])
    two = parquet(tmp_path / "b.parquet", URL=["2"], TEXT=["x"])
    (tmp_path / "notes.txt").write_text("not metadata")
    assert [part.name for part in LaionSource(one).survey().partitions] == [one]
    for path in (str(tmp_path), str(tmp_path / "*.parquet")):
        found = source("laion", path).survey()
        assert ([part.name for part in found.partitions], found.rows) == ([one, two], 2)


def test_metadata_in_an_object_store():
    """Folders there are names' beginnings and nothing else: none of them "exists"."""
    with object_store("eidetic-sources"):
        file = "gs://eidetic-sources/metadata/a.parquet"
        write_parquet(file, pa.table({"URL": ["u"], "TEXT": ["t"]}))
        for path in (file, "gs://eidetic-sources/metadata", "gs://eidetic-sources/metadata/*.parquet"):
            assert [part.name for part in LaionSource(path).survey().partitions] == [file]
            assert [row["url"] for row in rows(LaionSource(path))] == ["u"]
        with pytest.raises(UserError, match="no metadata"):
            LaionSource("gs://eidetic-sources/nowhere").survey()


def test_the_fingerprint_is_of_the_content_not_of_the_place(tmp_path):
    path = parquet(tmp_path / "a.parquet", URL=["a", "bx", "cx", "z"], TEXT=["t"] * 4)
    first = LaionSource(path).survey().fingerprint
    os.mkdir(tmp_path / "elsewhere")
    assert LaionSource(shutil.copy(path, tmp_path / "elsewhere")).survey().fingerprint == first
    # The same sizes, the same least and greatest values: a footer tells nothing of this change.
    parquet(tmp_path / "a.parquet", URL=["a", "by", "cy", "z"], TEXT=["t"] * 4)
    assert LaionSource(path).survey().fingerprint != first


def test_text_that_is_not_utf8_is_mended(tmp_path):
    buffers = pa.array([b"ok", b"\xff\xfe"], pa.binary()).buffers()
    bad = pa.StringArray.from_buffers(2, buffers[1], buffers[2])
    path = parquet(tmp_path / "bad.parquet", URL=bad, TEXT=bad)
    assert [row["caption"] for row in rows(LaionSource(path))] == ["ok", "\ufffd\ufffd"]


def wrong_metadata(folder):
    """What is wrong → path."""
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "text.parquet").write_text("URL,TEXT\nhttp://a/,b\n")
    os.mkdir(folder / "nothing")
    return {
        "no url": parquet(folder / "no_url.parquet", TEXT=["t"]),
        "no caption": parquet(folder / "no_caption.parquet", URL=["u"]),
        "a url that is a list": parquet(folder / "list.parquet", URL=[["u"]], TEXT=["t"]),
        "no rows": parquet(folder / "no_rows.parquet", URL=pa.array([], pa.string()), TEXT=pa.array([], pa.string())),
        "empty file": str(folder / "empty.parquet"),
        "not parquet": str(folder / "text.parquet"),
        "no such path": str(folder / "nowhere.parquet"),
        "a glob without files": str(folder / "no*where.parquet"),
        "a folder without files": str(folder / "nothing"),
        "an unknown filesystem": "foo://bar/baz.parquet",
        "no name": "",
    }


WRONG = ["no url", "no caption", "a url that is a list", "no rows", "empty file", "not parquet", "no such path"]
WRONG += ["a glob without files", "a folder without files", "an unknown filesystem", "no name"]


@pytest.mark.parametrize("what", WRONG)
def test_wrong_metadata_is_told_in_one_line(what, tmp_path):
    with pytest.raises(UserError) as caught:
        LaionSource(wrong_metadata(tmp_path)[what]).survey()
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


# -- folders -------------------------------------------------------------------------------------------------------


def listing(folder, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return FolderSource(str(folder))


def test_a_folder_with_a_listing(tmp_path):
    # U+2028 and U+0085 end a line for Python, not for JSON.
    captions = ["one", "two\u2028lines\x85", None]
    found = listing(
        tmp_path,
        {"file_name": "a.png", "text": captions[0]},
        "",
        {"file_name": "sub/b.png", "caption": captions[1]},
        {"file_name": "c.png"},
    )
    assert [(row["url"], row["caption"]) for row in rows(found)] == list(
        zip(["a.png", "sub/b.png", "c.png"], captions, strict=True)
    )
    assert found.survey().rows == 3


def test_a_listing_may_hold_half_a_character(tmp_path):
    assert rows(listing(tmp_path, '{"file_name": "a.png", "text": "\\ud800"}'))[0]["caption"] == "?"


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", "5", "null", '{"text": "x"}', '{"file_name": 5}', '{"file_name": "a.png", "text": 5}']
)
def test_a_wrong_line_is_named(line, tmp_path):
    with pytest.raises(UserError, match="line 2") as caught:
        listing(tmp_path, {"file_name": "a.png", "text": "x"}, line).survey()
    assert "\n" not in str(caught.value)


def test_a_folder_with_captions_beside_the_pictures(tmp_path):
    os.mkdir(tmp_path / "sub")
    (tmp_path / "b.PNG").write_bytes(b"x")
    (tmp_path / "b.txt").write_text(" a caption\n")
    (tmp_path / "sub" / "a.webp").write_bytes(b"x")
    (tmp_path / "readme.md").write_text("not a picture")
    found = FolderSource(str(tmp_path))
    assert [(row["url"], row["caption"]) for row in rows(found)] == [("b.PNG", "a caption"), ("sub/a.webp", None)]
    moved = shutil.copytree(tmp_path, tmp_path.parent / "moved")
    assert FolderSource(str(moved)).survey().fingerprint == found.survey().fingerprint
    (moved / "b.txt").write_text("another caption")
    assert FolderSource(str(moved)).survey().fingerprint != found.survey().fingerprint


def test_a_name_that_is_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(b"x")
    assert [row["url"] for row in rows(FolderSource(str(tmp_path)))] == ["caf?.png"]


def test_a_folder_without_pictures_or_no_folder(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="expected"):
            FolderSource(str(path)).survey()


def test_no_path_leads_out_of_the_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "inside_too").mkdir()
    (tmp_path / "inside_too" / "a.png").write_bytes(b"secret")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "a.png").write_bytes(b"ours")
    found = FolderSource(str(inside))
    assert found.fetch("a.png", DownloadLimits()) == b"ours"
    for url in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "../inside_too/a.png", ".", ""):
        with pytest.raises(FetchError, match="leads out"):
            found.fetch(url, DownloadLimits())
    for url in ("b.png", "a\0.png", "a" * 5000):
        with pytest.raises(FetchError):
            found.fetch(url, DownloadLimits())
    with pytest.raises(FetchError, match="more than 3 bytes"):
        found.fetch("a.png", DownloadLimits(max_bytes=3))
