"""Tars of WebDataset: which files are one sample, what is said of it, and what of a damaged tar or a stranger's is told."""

import hashlib
import io
import json
import tarfile

import pyarrow as pa
import pytest

from tests.servers import object_store
from transforms.data import webdataset
from transforms.data.download import DownloadLimits, FetchError
from transforms.data.sources import source
from transforms.data.spool import PICTURE, REFUSED
from transforms.data.survey import ROW
from transforms.data.webdataset import WebDatasetSource
from transforms.errors import Damaged, UserError
from transforms.store.files import write_bytes


def tar(path, *files, mode="w"):
    """A tar of (name, bytes), or of TarInfo for what is no file."""
    with tarfile.open(path, mode) as made:
        for one in files:
            if isinstance(one, tarfile.TarInfo):
                made.addfile(one)
            else:
                name, content = one
                info = tarfile.TarInfo(name)
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    return str(path)


def rows(source):
    return [row for partition in source.survey().partitions for table in source.read(partition) for row in table.to_pylist()]


def known(picture):
    return f"sha256:{hashlib.sha256(picture).hexdigest()}"


def said(source):
    return [(row["url"], row["caption"], row["label"], row[PICTURE]) for row in rows(source)]


def test_files_of_one_key_are_one_sample(tmp_path):
    path = tar(
        tmp_path / "00000.tar",
        ("00.jpg", b"one"), ("00.txt", b"a caption\n"), ("00.cls", b"7"),
        ("01.json", json.dumps({"caption": " in JSON ", "label": 3, "url": "u"}).encode()), ("01.PNG", b"two"),
        ("sub/01.webp", b"three"), ("sub/01.json", b'{"caption": null, "text": "another"}'), ("sub/01.txt", b" "),
        ("02.jpeg", b"four"),
    )  # fmt: skip
    assert said(WebDatasetSource(path)) == [
        (known(b"one"), "a caption", "7", b"one"),
        (known(b"two"), "in JSON", "3", b"two"),
        (known(b"three"), "another", None, b"three"),
        (known(b"four"), None, None, b"four"),
    ]
    found = rows(source("webdataset", str(tmp_path)))
    assert [row["source_row"] for row in found] == [0, 1, 2, 3]
    assert list(found[0]) == [*ROW.names, PICTURE, REFUSED] and {row[REFUSED] for row in found} == {None}


def test_what_webdataset_reads_of_a_tar_is_what_is_read_here(tmp_path):
    from webdataset import tariterators  # img2dataset needs it

    names = ["a.jpg", "a.txt", "b/c.d/e.jpg", "b/c.d/e.seg.jpg", "./f.jpg", ".g.jpg", "h", "__meta__/i.jpg", "/j.jpg", "k.jpg"]
    names += ["l.x/m", "n..jpg", "../o.jpg", "a.jpg"]
    path = tar(tmp_path / "a.tar", *((name, name.encode()) for name in names))
    with open(path, "rb") as stream:
        files = tariterators.tar_file_expander([{"url": path, "stream": stream}])
        theirs = [one["jpg"] for one in tariterators.group_by_keys(files) if "jpg" in one]
    assert [row[PICTURE] for row in rows(WebDatasetSource(path)) if row[PICTURE] is not None] == theirs
    assert len(theirs) == 7


def test_endings_and_fields_that_are_named(tmp_path):
    path = tar(
        tmp_path / "a.tar",
        ("0.seg.png", b"mask"), ("0.jpg", b"one"), ("0.png", b"two"), ("0.recaption", b"by ending"), ("0.txt", b"plain"),
        ("0.json", b'{"kind": "cat", "recaption": "by field"}'),
        ("1.png", b"three"), ("1.json", b'{"kind": "dog", "recaption": "by field"}'),
    )  # fmt: skip
    named = WebDatasetSource(path, "PNG", "recaption", "kind")
    assert said(named) == [(known(b"two"), "by ending", "cat", b"two"), (known(b"three"), "by field", "dog", b"three")]
    # A mask is no picture of the sample unless it is named.
    assert [row[PICTURE] for row in rows(WebDatasetSource(path, "seg.png"))] == [b"mask", None]
    for named, told in (
        ({"image_column": "tiff"}, r"none of 2 keys .* which have \.jpg, \.json, .* has \.tiff; say with --image_column"),
        ({"label_column": "kind"}, r"none of 1 keys .* has \.kind or \.json; mend --label_column"),
    ):
        where = path if "image_column" in named else tar(tmp_path / "plain.tar", ("0.jpg", b"one"))
        with pytest.raises(UserError, match=told):
            WebDatasetSource(where, **named).survey()


def test_keys_without_a_picture_or_with_two_are_rows_that_say_so(tmp_path):
    path = tar(
        tmp_path / "a.tar",
        ("0.txt", b"alone"), ("1.jpg", b"one"), ("1.png", b"two"), ("2.jpg", b"one"), ("2.jpg", b"two"), ("3.jpg", b""),
    )  # fmt: skip
    found = rows(WebDatasetSource(path))
    assert [(row["url"], row["caption"], row[PICTURE]) for row in found] == [
        ("a.tar#0", "alone", None), ("a.tar#1", None, None), ("a.tar#2", None, None), (known(b""), None, b"")
    ]  # fmt: skip
    assert [row[REFUSED] for row in found] == [
        "no picture under this key (it has .txt); files of one key must follow one another in the tar",
        "2 pictures under one key (it has .jpg, .png); --image_column says which ending is meant",
        "2 pictures under one key (it has .jpg, .jpg); --image_column says which ending is meant",
        None,
    ]
    assert [row[PICTURE] for row in rows(WebDatasetSource(path, "png"))] == [None, b"two", None, None]
    with pytest.raises(FetchError, match="come with their rows"):
        WebDatasetSource(path).fetch("a.tar#0", DownloadLimits())


def test_names_that_lead_out_are_keys_and_nothing_is_unpacked(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    twin = tarfile.TarInfo("twin.jpg")
    twin.type, twin.linkname = tarfile.LNKTYPE, "../../out.jpg"
    pipe = tarfile.TarInfo("pipe.jpg")
    pipe.type = tarfile.FIFOTYPE
    below = tarfile.TarInfo("folder.jpg")
    below.type = tarfile.DIRTYPE
    path = tar(
        folder / "a.tar", ("../../out.jpg", b"one"), ("/etc/x.jpg", b"two"), link, twin, pipe, below,
        ("__MACOSX/._a.jpg", b"three"), (".hidden.jpg", b"four"), ("no ending", b"five"), ("__wds__/key.jpg", b"six"),
    )  # fmt: skip
    assert [row[PICTURE] for row in rows(WebDatasetSource(path))] == [b"one", b"two"]
    left_out = {"links, pipes, devices and sparse files in tars": 3, "files in tars that have no key and ending": 3}
    assert WebDatasetSource(path).survey().left_out == left_out
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["a.tar", "in"]


def test_what_is_said_and_cannot_be_used_is_null_and_counted(tmp_path, monkeypatch):
    counted = {}
    monkeypatch.setattr(webdataset, "count", lambda name, number: counted.update({name: counted.get(name, 0) + number}))
    path = tar(
        tmp_path / "a.tar",
        ("0.jpg", b"0"), ("0.txt", b"x" * (webdataset.MAX_CAPTION_BYTES + 1)),
        ("1.jpg", b"1"), ("1.json", b"[" * 100_000),
        ("2.jpg", b"2"), ("2.json", b"[1]"),
        ("3.jpg", b"3"), ("3.json", b'{"caption": ["a", "b"], "label": {}}'),
        ("4.jpg", b"4"), ("4.txt", "\u00e9\u20ac".encode("utf-16")), ("4.cls", b"\xff\xfe"),
        ("5.jpg", b"5"), ("5.json", b'{"caption": "\\ud800 a", "label": 12}'),
    )  # fmt: skip
    assert [(row["caption"], row["label"]) for row in rows(WebDatasetSource(path))] == [
        (None, None), (None, None), (None, None), (None, None), ("\u00e9\u20ac", None), ("? a", "12")
    ]  # fmt: skip
    assert counted == {
        "metadata values of caption that are none": 2,
        "metadata values of label that are none": 1,
        "metadata objects that are none": 2,
    }


def test_a_picture_that_is_larger_than_any_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MOST_BYTES", 1000)
    path = tar(tmp_path / "a.tar", ("0.jpg", bytes(1001)), ("1.jpg", bytes(1000)))
    found = rows(WebDatasetSource(path))
    assert [(row["url"], row[REFUSED]) for row in found] == [
        ("a.tar#0", "more than 1000 bytes"), (known(bytes(1000)), None)
    ]  # fmt: skip


def test_no_more_than_a_batch_of_pictures_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "PICTURE_BYTES", 10_000)
    path = tar(tmp_path / "a.tar", *((f"{number:02d}.jpg", bytes([number]) * 1000) for number in range(45)))
    found = WebDatasetSource(path)
    (partition,) = found.survey().partitions
    tables = list(found.read(partition))
    assert [table.num_rows for table in tables] == [10, 10, 10, 10, 5]
    assert [row["source_row"] for table in tables for row in table.to_pylist()] == list(range(45))


def test_tars_are_known_by_what_is_in_them(tmp_path, monkeypatch):
    def fingerprints():
        return WebDatasetSource(str(tmp_path)).survey().fingerprints

    files = [("0.jpg", b"one"), ("0.txt", b"a")]
    path = tmp_path / "a.tar"
    tar(path, *files)
    (tmp_path / "notes.md").write_text("")
    before = fingerprints()
    assert WebDatasetSource(str(tmp_path)).survey().left_out == {".md": 1}
    path.rename(tmp_path / "b.tar")
    assert fingerprints() == before
    tar(tmp_path / "b.tar", *files[:1], ("0.txt", b"b"))
    assert fingerprints() != before
    # A large one by its headers alone.
    monkeypatch.setattr(webdataset, "READ_WHOLE", 100)
    after = fingerprints()
    tar(tmp_path / "b.tar", *files)
    assert fingerprints() == after
    tar(tmp_path / "b.tar", *files[:1], ("0.txt", b"ab"))
    assert fingerprints() != after


def test_a_tar_that_changed_since_it_was_looked_at(tmp_path):
    path = tar(tmp_path / "a.tar", ("0.jpg", b"one"), ("1.jpg", b"two"))
    found = WebDatasetSource(path)
    (partition,) = found.survey().partitions
    tar(path, ("0.jpg", b"one"))
    with pytest.raises(UserError, match="changed while it was read; run the same command again"):
        list(found.read(partition))


def test_a_tar_that_is_not_whole_is_told_in_one_line(tmp_path):
    path = tmp_path / "a.tar"
    tar(path, ("0.jpg", b"x" * 2000), ("1.jpg", b"y" * 2000))
    whole = path.read_bytes()
    second = 512 + 2048
    end = 2 * second
    for content, told in (
        (
            whole[: end - 1500],
            r"damaged: it can't be read behind byte .* \(unexpected end of data\); get it anew",
        ),
        (
            whole[: second + 100],
            r"a.tar' is damaged: byte 2,560 begins neither a file nor the end; get it anew, or remove it; --allow_cut_tars",
        ),
        (whole[:second] + b"\xff" * 512 + whole[second + 512 :], "byte 2,560 begins neither a file nor the end"),
        (whole[:end] + b"\xff" * 100, "byte 5,120 begins neither a file nor the end"),
        (whole + whole, "something follows its end, as in several tars that were joined to one; .* take them apart$"),
    ):
        path.write_bytes(content)
        with pytest.raises(Damaged, match=told) as caught:
            WebDatasetSource(str(tmp_path)).survey()
        assert "\n" not in str(caught.value)
    # The mark of the end is missing, as where its writer was killed: the files are whole.
    path.write_bytes(whole[:end])
    assert [row[PICTURE] for row in rows(WebDatasetSource(str(path)))] == [b"x" * 2000, b"y" * 2000]


def test_headers_that_claim_what_no_file_has_end_the_reading(tmp_path):
    """tarfile of before Python 3.11.14 goes back where a size is negative, and reads for ever."""
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("1.jpg")
    info.pax_headers = {"size": "-2048"}
    tar(path, ("0.jpg", b""), info)
    with pytest.raises(Damaged, match=r"claims -2,048 bytes; get it anew|can't be read behind"):
        WebDatasetSource(str(path)).survey()
    for kind, size in ((tarfile.XHDTYPE, 8 << 30), (tarfile.GNUTYPE_LONGNAME, 1 << 70), (tarfile.GNUTYPE_LONGNAME, -1024)):
        info = tarfile.TarInfo("long")
        info.type, info.size = kind, size
        header = info.tobuf(tarfile.GNU_FORMAT)
        path.write_bytes(tarfile.TarInfo("0.jpg").tobuf() + header + bytes(2048))
        with pytest.raises(Damaged, match=r"can't be read behind byte 512 \(a header claims -?[\d,]+ bytes\); get it anew"):
            WebDatasetSource(str(path)).survey()
    # Each of them says that another header follows.
    chain = tarfile.TarInfo("long")
    chain.type, chain.size = tarfile.GNUTYPE_LONGNAME, 1
    path.write_bytes((chain.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 5000)
    with pytest.raises(UserError, match="recursion"):
        WebDatasetSource(str(path)).survey()


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", r"is not a tar \(empty file\); expected tars of WebDataset"),
        (b"no tar" * 200, r"is not a tar \(.*\); expected tars of WebDataset, not compressed"),
        (bytes(10240), "nothing in the tars at .* has a key and an ending"),
    ],
)
def test_what_is_no_tar_is_refused_in_one_line(tmp_path, content, told):
    with pytest.raises(UserError, match="no tar at"):
        WebDatasetSource(str(tmp_path)).survey()
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        WebDatasetSource(str(tmp_path)).survey()
    assert "\n" not in str(caught.value)


def test_a_tar_that_is_compressed_or_holds_no_pictures_is_refused(tmp_path):
    path = tar(tmp_path / "a.tar.gz", ("0.jpg", b"one"), mode="w:gz")
    with pytest.raises(UserError, match=r"a.tar.gz' is not a tar .*not compressed"):
        WebDatasetSource(path).survey()
    path = tar(tmp_path / "sound.tar", ("0.wav", b"one"), ("0.\x1b[2J", b"x"))
    with pytest.raises(UserError, match=r"none of 1 keys in the tars .* which have .*\.wav, has a picture") as caught:
        WebDatasetSource(path).survey()
    assert "\x1b" not in str(caught.value)


def test_rows_are_in_the_schema_of_every_source(tmp_path):
    found = WebDatasetSource(tar(tmp_path / "a.tar", ("0.jpg", b"one")))
    (partition,) = found.survey().partitions
    (table,) = found.read(partition)
    assert table.schema == pa.schema([*ROW, pa.field(PICTURE, pa.binary()), pa.field(REFUSED, pa.string())])


def test_tars_in_an_object_store(tmp_path):
    content = [(f"{number}.jpg", bytes([number]) * 3000) for number in range(5)]
    with object_store("eidetic-tars"), open(tar(tmp_path / "a.tar", *content), "rb") as file:
        url = "gs://eidetic-tars/shards/00000.tar"
        write_bytes(url, file.read())
        write_bytes("gs://eidetic-tars/shards/notes.md", b"")
        for path in (url, "gs://eidetic-tars/shards", "gs://eidetic-tars/shards/*.tar"):
            assert [row[PICTURE] for row in rows(WebDatasetSource(path))] == [picture for _, picture in content]
        survey = WebDatasetSource("gs://eidetic-tars/shards").survey()
        assert survey.left_out == {".md": 1}
        assert survey.fingerprints == WebDatasetSource(str(tmp_path)).survey().fingerprints
