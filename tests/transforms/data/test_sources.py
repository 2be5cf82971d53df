"""Metadata in every shape that strangers give it: read as it is, or refused in one line before anything is written."""

import hashlib
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.servers import object_store
from transforms.data import sources
from transforms.data.download import DownloadLimits, FetchError
from transforms.data.sources import LaionSource, ParquetSource, source
from transforms.data.spool import PICTURE, REFUSED
from transforms.data.survey import ROW, Partition
from transforms.errors import UserError
from transforms.store.files import write_parquet


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def rows(found):
    return [row for part in found.survey().partitions for table in found.read(part) for row in table.to_pylist()]


def test_metadata_with_a_page_that_is_broken_are_no_damage_of_the_lake(tmp_path):
    path = parquet(tmp_path / "m.parquet", url=[f"http://h/{number}" for number in range(2000)], text=["t"] * 2000)
    content = bytearray((tmp_path / "m.parquet").read_bytes())
    content[30:400] = bytes(370)
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"m.parquet' is damaged: it can't be read .*; get it anew, or") as caught:
        rows(LaionSource(path))
    assert "verify" not in str(caught.value)


def test_laions_columns_under_each_of_their_names(tmp_path):
    old = parquet(tmp_path / "old.parquet", URL=["u"], TEXT=["t"], WIDTH=[3.0], HEIGHT=[4], hash=[-5], punsafe=[0.5])
    new = parquet(tmp_path / "new.parquet", url=["u"], caption=["t"], original_width=[3], original_height=[4], md5=["-5"])
    for path in (old, new):
        table = next(LaionSource(path).read(Partition(path, 1, ())))
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


def test_what_exists_is_no_pattern(tmp_path):
    for name in ("laion [v2]", "a*b", "what?"):
        (tmp_path / name).mkdir()
        file = parquet(tmp_path / name / "part [0].parquet", URL=["u"], TEXT=["t"])
        for path in (str(tmp_path / name), file):
            assert [part.name for part in LaionSource(path).survey().partitions] == [file]
            assert [row["url"] for row in rows(LaionSource(path))] == ["u"]


def test_a_folder_is_walked_and_what_is_no_metadata_is_counted(tmp_path):
    """As Spark, Hugging Face and Windows leave them."""
    wanted = ["0.PARQUET", "1.pq", "data/train-00000.parquet", "split=a/punsafe=1/part-0.snappy.parquet"]
    others = [
        "_SUCCESS",
        "_metadata",
        "_delta_log/1.checkpoint.parquet",
        ".hidden.parquet",
        "__MACOSX/x.parquet",
        "a.csv",
        "b.CSV",
    ]
    for number, name in enumerate([*wanted, *others]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        parquet(tmp_path / name, URL=[str(number)], TEXT=["t"])
    os.mkfifo(tmp_path / "pipe.parquet")
    survey = LaionSource(str(tmp_path)).survey()
    assert [part.name for part in survey.partitions] == [str(tmp_path / name) for name in wanted]
    assert survey.left_out == {"pipes, devices and sockets": 1, ".csv": 2}
    assert [row["url"] for row in rows(LaionSource(str(tmp_path)))] == ["0", "1", "2", "3"]
    # A pattern may name folders.
    assert [part.name for part in LaionSource(str(tmp_path / "*.P*")).survey().partitions] == [str(tmp_path / "0.PARQUET")]
    assert LaionSource(str(tmp_path / "*.p*")).survey().left_out == {"pipes, devices and sockets": 1}
    assert LaionSource(str(tmp_path / "split=*")).survey().rows == 1


@pytest.mark.parametrize("path", ["pipe", "/dev/zero"])
def test_metadata_that_never_end_are_not_opened(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe, a device or a socket"):
        LaionSource(str(tmp_path / path)).survey()


def test_columns_that_nobody_needs_stop_no_row(tmp_path, monkeypatch):
    counted = {}
    monkeypatch.setattr(sources, "count", lambda name, number: counted.update({name: number}))
    path = parquet(
        tmp_path / "m.parquet",
        URL=["a", "b", "c"],
        TEXT=["t"] * 3,
        similarity=[[0.5], [0.4], None],
        WIDTH=["unknown", "640", None],
        HEIGHT=pa.array([5_000_000_000, 480, -3], pa.int64()),
        punsafe=["0.5", "nan?", ""],
        pwatermark=pa.array([b"0.25", b"\xff", None], pa.binary()),
        md5=[{"a": 1}, None, {"a": 2}],
    )
    found = rows(LaionSource(path))
    assert counted == {
        f"metadata values of {name} that are none": number
        for name, number in {
            "similarity": 2, "metadata_width": 1, "metadata_height": 1, "punsafe": 2, "pwatermark": 1, "metadata_hash": 2
        }.items()
    }  # fmt: skip
    left_out = LaionSource(path).survey().left_out
    assert sorted(key.split(" (")[0] for key in left_out) == ["values of md5", "values of similarity"]
    assert set(left_out.values()) == {3}
    assert [row["url"] for row in found] == ["a", "b", "c"]
    assert [row["metadata_width"] for row in found] == [None, 640, None]
    assert [row["metadata_height"] for row in found] == [None, 480, -3]
    assert [row["punsafe"] for row in found] == [0.5, None, None]
    assert [row["pwatermark"] for row in found] == [0.25, None, None]
    assert {row["similarity"] for row in found} == {row["metadata_hash"] for row in found} == {None}


def test_nothing_that_is_no_number_becomes_one(tmp_path):
    widths = pa.array([3.0, float("nan"), float("inf"), 1e30, None, 640.5], pa.float64())
    path = parquet(tmp_path / "m.parquet", URL=["u"] * 6, TEXT=["t"] * 6, width=widths, height=[True] * 6)
    assert [row["metadata_width"] for row in rows(LaionSource(path))] == [3, None, None, None, None, 640]


def test_columns_under_names_of_their_own(tmp_path):
    for name in (" URL ", "\ufeffurl", "Url"):
        path = parquet(tmp_path / "plain.parquet", **{name: ["u"], "Caption ": ["c"]})
        assert [(row["url"], row["caption"]) for row in rows(LaionSource(path))] == [("u", "c")]
    path = parquet(tmp_path / "named.parquet", image_url=["u"], url=["page"], TEXT=["alt"], recaption=["c"])
    assert [(row["url"], row["caption"]) for row in rows(LaionSource(path))] == [("page", "alt")]
    named = source("laion", path, "image_url", "recaption")
    assert [(row["url"], row["caption"]) for row in rows(named)] == [("u", "c")]
    with pytest.raises(
        UserError, match=r"has columns \['image_url', 'url', 'TEXT', 'recaption'\], expected one called img_url"
    ):
        LaionSource(path, "img_url").survey()
    with pytest.raises(UserError, match=r"has columns \['img_url', 'TEXT'\], .*say with --url_column which it is"):
        LaionSource(parquet(tmp_path / "other.parquet", img_url=["u"], TEXT=["t"])).survey()


def test_a_column_that_is_there_twice(tmp_path):
    path = str(tmp_path / "twice.parquet")
    text = pa.array(["t"])
    pq.write_table(pa.Table.from_arrays([text, text, pa.array([1]), pa.array([2])], ["url", "TEXT", "width", "width"]), path)
    assert rows(LaionSource(path))[0]["metadata_width"] == 1
    pq.write_table(pa.Table.from_arrays([text, text, text], ["url", "url", "TEXT"]), path)
    with pytest.raises(UserError, match=r"among them 'url' twice; rename one"):
        LaionSource(path).survey()


def test_rows_without_any_url_are_refused_by_the_footer(tmp_path):
    path = tmp_path / "null.parquet"
    nothing = pa.nulls(100_000, pa.string())
    with pq.ParquetWriter(path, pa.schema([("URL", pa.string()), ("TEXT", pa.string())])) as writer:
        for _ in range(200):
            writer.write_table(pa.table({"URL": nothing, "TEXT": nothing}))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError, match="none of the 20,000,000 rows"):
        LaionSource(str(path)).survey()
    # One that has a url is enough, and the others are rows.
    path = parquet(tmp_path / "one.parquet", URL=pa.array([None, "u"], pa.string()), TEXT=["t", "t"])
    assert [row["url"] for row in rows(LaionSource(path))] == [None, "u"]


def encoded(path, pictures, **columns):
    return parquet(path, image=pa.array(pictures, pa.binary()), **columns)


def known(picture):
    return f"sha256:{hashlib.sha256(picture).hexdigest()}"


def test_pictures_inside_parquet_are_known_by_their_bytes_wherever_they_lie(tmp_path):
    path = encoded(tmp_path / "a.parquet", [b"one", None, b"two"], text=["x", "y", None], label=["cat", None, "dog"])
    found = rows(ParquetSource(path))
    assert [(row["url"], row["caption"], row["label"], row["source_row"], row[PICTURE]) for row in found] == [
        (known(b"one"), "x", "cat", 0, b"one"),
        ("a.parquet#1", "y", None, 1, None),
        (known(b"two"), None, "dog", 2, b"two"),
    ]
    assert list(found[0]) == [*ROW.names, PICTURE, REFUSED]
    survey = ParquetSource(path).survey()
    os.rename(path, tmp_path / "b.parquet")
    assert ParquetSource(str(tmp_path)).survey().fingerprints == survey.fingerprints
    # Others before it, and it stays.
    encoded(tmp_path / "c.parquet", [b"zero", b"one"])
    assert [row["url"] for row in rows(ParquetSource(str(tmp_path / "c.parquet")))] == [known(b"zero"), known(b"one")]


def test_data_sets_of_hugging_face_with_structs_and_names_of_classes(tmp_path):
    features = {"features": {"fine_label": {"names": ["apple", "fish"], "_type": "ClassLabel"}}}
    images = [{"bytes": b"one", "path": "1.png"}, {"bytes": None, "path": "/etc/passwd"}, None, {"bytes": b"", "path": None}]
    table = pa.table({"img": images, "fine_label": pa.array([1, 0, -1, 7])})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": features})})
    pq.write_table(table, tmp_path / "train.parquet")
    found = rows(ParquetSource(str(tmp_path)))
    assert [(row["url"], row["label"], row[PICTURE]) for row in found] == [
        (known(b"one"), "fish", b"one"),
        ("train.parquet#1", "apple", None),
        ("train.parquet#2", None, None),
        (known(b""), "7", b""),
    ]
    assert {row["caption"] for row in found} == {None}
    reason = "the row holds no picture: its bytes are null, and no path is followed"
    assert [row[REFUSED] for row in found] == [None, reason, reason, None]
    with pytest.raises(FetchError, match="come with their rows"):
        ParquetSource(str(tmp_path)).fetch("train.parquet#1", DownloadLimits())


@pytest.mark.parametrize("said", [b"no json", b"[]", b'{"info": {"features": null}}', b'{"info": {"features": {"label": {}}}}'])
def test_numbers_without_names_are_labels_as_they_are(tmp_path, said):
    table = pa.table({"image": [b"a", b"b", b"c"], "label": [-1, 3, None]}).replace_schema_metadata({b"huggingface": said})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row["label"] for row in rows(ParquetSource(str(tmp_path)))] == ["-1", "3", None]


def test_columns_of_pictures_that_are_named_and_every_kind_of_bytes(tmp_path):
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        path = parquet(
            tmp_path / "a.parquet", image=["a text"], Photo=pa.array([b"one"], kind), says=["s"], kind=pa.array([2], pa.int8())
        )
        (row,) = rows(source("parquet", path, None, "says", "photo", "kind"))
        assert (row["url"], row["caption"], row["label"], bytes(row[PICTURE])) == (known(b"one"), "s", "2", b"one")
    # What is called like a picture and is none doesn't hide the one that is.
    assert rows(ParquetSource(parquet(tmp_path / "b.parquet", image=["x.png"], jpeg=[b"one"])))[0]["url"] == known(b"one")
    # A column of lists is no label, unless it is named as one.
    lists = encoded(tmp_path / "c.parquet", [b"one"], label=[[1, 2]])
    assert rows(ParquetSource(lists))[0]["label"] is None


@pytest.mark.parametrize(
    "columns, named, told",
    [
        ({"URL": ["u"], "TEXT": ["t"]}, {}, r"has columns \['URL', 'TEXT'\], expected one called image, img.*--image_column"),
        ({"image": ["u"]}, {}, "column 'image' is string, expected encoded pictures.*--image_column"),
        ({"image": [1]}, {}, "column 'image' is int64, expected encoded pictures"),
        ({"image": [{"path": "a"}]}, {}, "column 'image' is struct<path: string>, expected encoded pictures"),
        ({"image": [b"a"]}, {"image_column": "photo"}, "expected one called photo; say with --image_column"),
        ({"image": [b"a"]}, {"caption_column": "says"}, "expected one called says; say with --caption_column"),
        (
            {"image": [b"a"], "label": [[1]]},
            {"label_column": "label"},
            "column 'label' is list.*whole numbers or text",
        ),
        ({"image": pa.array([], pa.binary())}, {}, "has no rows; expected Parquet with encoded pictures"),
    ],
)
def test_parquet_without_pictures_is_refused_in_one_line(tmp_path, columns, named, told):
    with pytest.raises(UserError, match=told) as caught:
        ParquetSource(parquet(tmp_path / "a.parquet", **columns), **named).survey()
    assert "\n" not in str(caught.value)


def test_no_parquet_and_damaged_parquet_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no Parquet at"):
        ParquetSource(str(tmp_path)).survey()
    path = encoded(tmp_path / "a.parquet", [bytes([number]) * 5000 for number in range(50)])
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is not a Parquet file") as caught:
        ParquetSource(path).survey()
    assert "\n" not in str(caught.value)
    # The footer is whole, a page isn't.
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"\xff" * 400 + content[404:])
    with pytest.raises(UserError, match=r"a.parquet' is damaged: .*; get it anew, or remove it$") as caught:
        rows(ParquetSource(path))
    assert "\n" not in str(caught.value)


def test_no_more_than_a_batch_of_pictures_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PICTURE_BYTES", 10_000)
    path = encoded(tmp_path / "a.parquet", [os.urandom(1000) for _ in range(50)])
    found = ParquetSource(path)
    (partition,) = found.survey().partitions
    tables = list(found.read(partition))
    assert [row for table in tables for row in table["source_row"].to_pylist()] == list(range(50))
    assert max(table.num_rows for table in tables) <= 10


def test_of_a_large_row_group_no_more_than_its_pages_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PICTURE_BYTES", 1 << 20)
    pictures = pa.table({"image": [os.urandom(100_000) for _ in range(400)]})
    pq.write_table(pictures, tmp_path / "a.parquet", write_batch_size=4, use_dictionary=False)
    del pictures
    found = ParquetSource(str(tmp_path / "a.parquet"))
    (partition,) = found.survey().partitions
    before = pa.total_allocated_bytes()
    tables = found.read(partition)
    for _ in range(3):
        assert next(tables).num_rows <= 10
        assert pa.total_allocated_bytes() - before < 10 << 20
