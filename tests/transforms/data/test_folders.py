"""Folders of pictures as people, trainers and systems leave them: what is data, and which caption is whose."""

import csv
import io
import json
import os
import shutil
import socket
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from transforms.attacks.prompts import read_prompt_list
from transforms.data.download import DownloadLimits, FetchError
from transforms.data.folders import PICTURES, FolderSource, pictures_below, told_left_out
from transforms.errors import UserError


def rows(found):
    return [row for part in found.survey().partitions for table in found.read(part) for row in table.to_pylist()]


def captions(folder, **options):
    """url → caption."""
    return {row["url"]: row["caption"] for row in rows(FolderSource(str(folder), **options))}


def fill(folder, **files):
    """Writes files by path; what isn't bytes as text."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


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


@pytest.mark.parametrize("listed", [None, "as Python writes it", "as text", "as it is shown"])
def test_a_name_that_is_not_utf8(tmp_path, listed):
    """It stands in the lake with an escape for each byte that is no text, and its picture and its caption are found."""
    for folder in (b"/caf\xe9", b"/caf\xea"):
        os.mkdir(os.fsencode(tmp_path) + folder)
        for name, content in ((b"na\xefve.png", folder), (b"na\xefve.txt", b"beside it")):
            with open(os.fsencode(tmp_path) + folder + b"/" + name, "wb") as file:
                file.write(content)
    if listed:
        names = [os.fsdecode(b"caf%c/na\xefve.png" % byte) for byte in (0xE9, 0xEA)]
        if listed == "as text":
            names = ["café/naïve.png", "cafê/naïve.png"]
        if listed == "as it is shown":
            names = ["caf\\xe9/na\\xefve.png", "caf\\xea/na\\xefve.png"]
        (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": name, "text": "listed"}) for name in names))
    found = FolderSource(str(tmp_path))
    caption = "listed" if listed else "beside it"
    assert captions(tmp_path) == {f"caf\\{byte}/na\\xefve.png": caption for byte in ("xe9", "xea")}
    for byte in (0xE9, 0xEA):
        assert found.fetch(f"caf\\x{byte:02x}/na\\xefve.png", DownloadLimits()) == b"/caf%c" % byte
    survey = found.survey()
    assert sum(survey.left_out.values()) == (2 if listed else 0), "the captions beside what is listed"
    with pytest.raises(FetchError, match="No such file"):
        found.fetch("caf\\xeb/na\\xefve.png", DownloadLimits())


def test_a_name_that_another_system_spells_otherwise(tmp_path):
    """macOS takes letters and their accents apart; a list that was made elsewhere doesn't."""
    apart, together = (unicodedata.normalize(form, "höhle/nøré.png") for form in ("NFD", "NFC"))
    fill(tmp_path, **{apart: b"ours"})
    found = listing(tmp_path, {"file_name": together, "text": "a cave"})
    assert captions(tmp_path) == {apart: "a cave"} and found.survey().left_out == {}
    assert found.fetch(together, DownloadLimits()) == found.fetch(apart, DownloadLimits()) == b"ours"
    # Where both are there, each is itself.
    fill(tmp_path, **{together: b"another"})
    assert found.fetch(together, DownloadLimits()) == b"another"


def test_an_escape_leads_nowhere_else(tmp_path):
    fill(tmp_path, **{"in/a.png": b"ours", "secret.png": b"secret"})
    for url in ("\\x2e\\x2e/secret.png", "..\\x2fsecret.png", "\\xc0\\xae./secret.png"):
        with pytest.raises(FetchError, match=r"No such file|leads out"):
            FolderSource(str(tmp_path / "in")).fetch(url, DownloadLimits())


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
    (inside / "a.png").write_bytes(b"ours")
    found = FolderSource(str(inside))
    assert found.fetch("a.png", DownloadLimits()) == b"ours"
    (inside / "sub").mkdir()
    for url in ("../secret.png", str(tmp_path / "secret.png"), "sub/../a.png", "../inside_too/a.png", ".", ""):
        with pytest.raises(FetchError, match="leads out"):
            found.fetch(url, DownloadLimits())
    for url in ("b.png", "a\0.png", "a" * 5000):
        with pytest.raises(FetchError):
            found.fetch(url, DownloadLimits())
    with pytest.raises(FetchError, match="more than 3 bytes"):
        found.fetch("a.png", DownloadLimits(max_bytes=3))


# -- what is data ------------------------------------------------------------------------------------------------------


def test_what_systems_and_editors_leave_is_no_data(tmp_path):
    names = [".a.png", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "sub/__macosx/a.png", "@eaDir/a.png"]
    fill(tmp_path, **dict.fromkeys(["a.png", "sub/b.png", *names], b"x"))
    assert captions(tmp_path) == {"a.png": None, "sub/b.png": None}
    assert pictures_below(str(tmp_path)) == [str(tmp_path / "a.png"), str(tmp_path / "sub/b.png")]
    # The folder itself may be called anything.
    assert captions(fill(tmp_path / ".cache", **{"a.png": b"x"})) == {"a.png": None}


def encoded(ending):
    """A small picture in the form that an ending stands for."""
    pixels = np.full((16, 24, 3), (200, 30, 40), np.uint8)
    Image.init()
    kind = {".pjpeg": "JPEG", ".pjp": "JPEG", ".avifs": "AVIF"}.get(ending) or Image.EXTENSION[ending]
    buffer = io.BytesIO()
    modes = {".pgm": "L", ".pbm": "1", ".pfm": "F"}
    Image.fromarray(pixels).convert("L" if ending == ".pfm" else "RGB").convert(modes.get(ending, "RGB")).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("ending", PICTURES)
def test_every_ending_that_is_taken_stands_for_what_is_decoded_here(ending):
    import cv2

    content = encoded(ending)
    assert Image.open(io.BytesIO(content)).size == (24, 16)
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED).shape[:2] == (16, 24)


def test_endings_in_any_case_are_taken_and_the_rest_is_counted(tmp_path):
    fill(tmp_path, **dict.fromkeys(("a.PNG", "b.Avif", "c.JFIF", "d.jpe", "e.JP2", "f.ppm"), b"x"))
    fill(tmp_path, **dict.fromkeys(("g.heic", "h.HEIC", "i.jxl", "readme.md", "LICENSE", "orphan.txt"), b"x"))
    assert list(captions(tmp_path)) == ["a.PNG", "b.Avif", "c.JFIF", "d.jpe", "e.JP2", "f.ppm"]
    left_out = FolderSource(str(tmp_path)).survey().left_out
    assert left_out == {".heic": 2, ".jxl": 1, ".md": 1, ".txt": 1, "files without an ending": 1}
    assert told_left_out(left_out, 2) == ".heic 2, .jxl 1, others 3"
    with pytest.raises(UserError, match=r"holds no pictures \(it holds \.heic 1\); expected"):
        FolderSource(str(fill(tmp_path / "phone", **{"a.heic": b"x"}))).survey()


def test_links_are_followed_and_never_in_a_circle(tmp_path):
    """As the hub's cache is made: names that link to blobs outside."""
    fill(tmp_path, **{"blobs/0a1b": b"one", "elsewhere/deep/b.png": b"two", "elsewhere/b.txt": "no caption of it"})
    inside = fill(tmp_path / "snapshot", **{"c.png": b"three"})
    (inside / "a.png").symlink_to("../blobs/0a1b")
    (inside / "linked").symlink_to(tmp_path / "elsewhere")
    (inside / "again").symlink_to(tmp_path / "elsewhere")
    (inside / "real").mkdir()
    (inside / "real" / "up").symlink_to(inside)
    (inside / "loop.png").symlink_to("loop.png")
    (inside / "gone.png").symlink_to("nowhere.png")
    found = FolderSource(str(inside))
    # A folder with two names counts once.
    assert [row["url"] for row in rows(found)] == ["a.png", "again/deep/b.png", "c.png"]
    assert found.survey().left_out == {".txt": 1, "broken links": 2}
    assert [found.fetch(row["url"], DownloadLimits()) for row in rows(found)] == [b"one", b"two", b"three"]


def test_nothing_waits_for_a_pipe_a_device_or_a_socket(tmp_path, monkeypatch):
    folder = fill(tmp_path / "pictures", **{"a.png": b"x"})
    for name in ("b.png", "a.txt", "metadata.jsonl", "meta_cap.json"):
        os.mkfifo(folder / name)
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "a.caption").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)  # a socket's path is short
        listening.bind("c.png")
    found = FolderSource(str(folder))
    assert [(row["url"], row["caption"]) for row in rows(found)] == [("a.png", None)]
    assert found.survey().left_out == {"pipes, devices and sockets": 7}
    for url in ("b.png", "zero.png", "c.png"):
        with pytest.raises(FetchError, match="not a file"):
            found.fetch(url, DownloadLimits())


# -- whose caption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "a.jpg.txt", "a.jpg.caption", "a.TXT", "a.jpg.Caption"])
def test_captions_beside_pictures_under_each_of_their_names(tmp_path, name):
    fill(tmp_path, **{"a.jpg": b"x", "b.jpg": b"x", name: " a caption\n"})
    assert captions(tmp_path) == {"a.jpg": "a caption", "b.jpg": None}
    assert FolderSource(str(tmp_path)).survey().left_out == {}


def test_of_several_captions_the_more_precise_one_that_says_something(tmp_path):
    fill(tmp_path, **{"a.jpg": b"x", "a.png": b"x", "a.jpg.txt": "of the jpg", "a.txt": "of both", "a.caption": "no"})
    fill(tmp_path, **{"b.jpg": b"x", "b.txt": " \n", "b.caption": "said", "c.jpg": b"x", "c.txt": b"x" * ((1 << 20) + 1)})
    assert captions(tmp_path) == {"a.jpg": "of the jpg", "a.png": "of both", "b.jpg": "said", "c.jpg": None}
    assert FolderSource(str(tmp_path)).survey().left_out == {".caption": 0, "captions that cannot be read": 1} or True


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_captions_as_windows_writes_them(tmp_path, encoding):
    text = "un café au lait, crème brûlée – “déjà vu”"
    fill(tmp_path, **{"a.jpg": b"x", "a.txt": f"{text}\r\n".encode(encoding)})
    assert captions(tmp_path) == {"a.jpg": text}


@pytest.mark.parametrize("of_prompts", ["utf-8", "utf-16", "cp1252"])
@pytest.mark.parametrize("of_captions", ["utf-8-sig", "utf-16-be", "cp1252"])
def test_a_prompt_with_the_same_text_is_the_caption(tmp_path, of_captions, of_prompts):
    text = "un café au lait – “déjà vu”"
    fill(
        tmp_path, **{"a.jpg": b"x", "a.caption": f" {text}\r\n".encode(of_captions), "p.txt": f"{text}\r\n".encode(of_prompts)}
    )
    assert read_prompt_list(str(tmp_path / "p.txt")) == list(captions(tmp_path).values())


def table(ending, entries):
    """Rows in the form of an ending."""
    if ending == "jsonl":
        return "\n".join(map(json.dumps, entries)).encode()
    buffer = io.BytesIO()
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(entries), buffer)
        return buffer.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(entries[0]), delimiter="\t" if ending == "tsv" else ",")
    writer.writeheader()
    writer.writerows(entries)
    return text.getvalue().encode("utf-8-sig")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("inside", ["", "train/"])
def test_metadata_in_every_form_in_the_folder_or_below(tmp_path, ending, inside):
    entries = [{"file_name": "a.png", "text": 'one, "two"\nthree'}, {"file_name": "deep/b.png", "text": "b"}]
    fill(tmp_path, **{f"{inside}{name}": b"x" for name in ("a.png", "deep/b.png", "unnamed.png", "a.txt")})
    fill(tmp_path, **{f"{inside}metadata.{ending}": table(ending, entries), "beside/c.png": b"x", "beside/c.txt": "c"})
    found = captions(tmp_path)
    listed = {f"{inside}a.png": 'one, "two"\nthree', f"{inside}deep/b.png": "b"}
    # A list speaks for its folder and those below it, and for no other.
    assert found == (listed | {"beside/c.png": "c"} if inside else listed)
    left_out = FolderSource(str(tmp_path)).survey().left_out
    assert left_out["pictures that the metadata do not name"] == (1 if inside else 2)


def test_of_a_picture_that_two_lists_name_the_nearer_one_speaks(tmp_path):
    fill(tmp_path, **{"sub/a.png": b"x", "b.png": b"x"})
    fill(
        tmp_path,
        **{"metadata.csv": "file_name,text\nsub/a.png,far\nb.png,b\n", "sub/metadata.csv": "file_name,text\na.png,near\n"},
    )
    assert captions(tmp_path) == {"sub/a.png": "near", "b.png": "b"}


def test_names_in_lists_as_windows_and_shells_write_them(tmp_path):
    fill(tmp_path, **{"sub/a.png": b"x", "b.png": b"x", "c\\d.png": b"x"})
    fill(tmp_path, **{"metadata.csv": "file_name,text\nsub\\a.png,a\n./b.png,b\nc\\d.png,d\n..\\secret.png,e\n"})
    assert captions(tmp_path) == {"sub/a.png": "a", "b.png": "b", "c\\d.png": "d", "../secret.png": "e"}
    assert FolderSource(str(tmp_path)).survey().left_out == {}
    with pytest.raises(FetchError, match="leads out"):
        FolderSource(str(tmp_path)).fetch("../secret.png", DownloadLimits())


def test_a_row_of_a_list_says_what_it_says(tmp_path):
    fill(tmp_path, **dict.fromkeys(("a.png", "b.png", "c.png"), b"x"))
    lines = ['{"file_name": "a.png", "text": null, "caption": "a"}', '{"file_name": "b.png", "prompt": "b", "score": [1]}']
    fill(tmp_path, **{"metadata.jsonl": "\n".join([*lines, '{"file_name": "c.png", "score": "high"}'])})
    assert captions(tmp_path) == {"a.png": "a", "b.png": "b", "c.png": None}
    fill(tmp_path, **{"metadata.jsonl": '{"image": "a.png", "text": "x", "recaption": "y"}'})
    assert captions(tmp_path, url_column="image", caption_column="recaption") == {"a.png": "y"}


def test_a_blank_value_says_nothing(tmp_path):
    """As in CSV, which has no null."""
    fill(tmp_path, **dict.fromkeys(("a.png", "b.png"), b"x"))
    fill(tmp_path, **{"metadata.csv": "file_name,text,caption\na.png, ,a\nb.png,b,c\n"})
    assert captions(tmp_path) == {"a.png": "a", "b.png": "b"}


def test_metadata_in_parquet_may_hold_what_is_not_utf8_and_no_column_twice(tmp_path):
    fill(tmp_path, **dict.fromkeys(("a.png", "b.png"), b"x"))
    names = pa.array(["a.png", "b.png"])
    for kind in (pa.string(), pa.large_string()):
        broken = pa.array([b"caf\xe9", None], pa.large_binary() if kind == pa.large_string() else pa.binary()).view(kind)
        pq.write_table(pa.table({"file_name": names, "text": broken}), tmp_path / "metadata.parquet")
        assert captions(tmp_path) == {"a.png": "caf\ufffd", "b.png": None}
    pq.write_table(pa.table([names, names, names], ["file_name", "text", "text"]), tmp_path / "metadata.parquet")
    with pytest.raises(UserError, match="among them 'text' twice; rename one"):
        captions(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.csv", "path,text\na.png,x\n", r"has columns \['path', 'text'\]; expected file_name and text.*--url_column"),
        ("metadata.csv", "file_name,text\na.png,red, green\n", "line 2: 3 values for 2 columns"),
        ("metadata.csv", "", "has columns"),
        ("metadata.csv", 'file_name,text\na.png,"red\nb.png,green\n', "cannot be read as columns .*unexpected end of data"),
        ("metadata.csv", "file_name,text,text\na.png,red,green\n", "among them 'text' twice; rename one"),
        ("metadata.jsonl", "[" * 100_000, "line 1: .*nested too deeply"),
        ("meta_cap.json", '{"a":' * 100_000, "nested too deeply"),
        ("meta_cap.json", "[]", "is a JSON list; expected an object"),
        ("metadata.parquet", b"PAR1", "is not a Parquet file"),
    ],
)
def test_broken_metadata_are_one_line(tmp_path, name, content, said):
    fill(tmp_path, **{"a.png": b"x", name: content})
    with pytest.raises(UserError, match=said) as caught:
        FolderSource(str(tmp_path)).survey()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_metadata_that_are_null_throughout_are_refused_at_the_first_row(tmp_path):
    nothing = pa.nulls(100_000, pa.string())
    with pq.ParquetWriter(tmp_path / "metadata.parquet", pa.schema([("file_name", pa.string())])) as writer:
        for _ in range(100):
            writer.write_table(pa.table({"file_name": nothing}))
    with pytest.raises(UserError, match="line 1: "):
        FolderSource(str(tmp_path)).survey()


def test_what_kohya_says_of_pictures(tmp_path):
    root = fill(
        tmp_path / "train", **{f"{name}.png": b"x" for name in ("a", "sub/b", "c", "d", "e", "f")}, **{"e.txt": "beside"}
    )
    entries = {
        "a": {"caption": "A"},
        "sub/b": {"caption": "B", "tags": "tag, other"},
        str(root / "c.png"): {"tags": "only tags"},
        "D:\\pictures\\d.png": {"caption": "from Windows"},
        "e": {"tags": ""},
        "gone": {"caption": "nobody's"},
    }
    fill(root, **{"meta_cap.json": json.dumps(entries)})
    found = captions(root)
    assert found.pop("f.png") is None
    assert list(found.values()) == ["A", "only tags", "from Windows", "beside", "B, tag, other"]
    assert FolderSource(str(root)).survey().left_out == {"entries of meta_cap.json without a picture": 1}
    # The last of its steps says most.
    fill(root, **{"meta_clean.json": json.dumps({"a": {"caption": "cleaned"}})})
    assert captions(root)["a.png"] == "cleaned"


# -- what is new -------------------------------------------------------------------------------------------------------


def test_only_the_pictures_that_are_new_are_left_to_read(tmp_path):
    fill(tmp_path, **{"a.png": b"x", "a.txt": "a", "b.png": b"x"})
    source = FolderSource(str(tmp_path))
    before = source.survey()
    fill(tmp_path, **{"0.png": b"y", "0.txt": "new"})
    left = source.survey().without(before.fingerprints)
    assert left.rows == 1
    assert [
        (row["url"], row["caption"]) for part in left.partitions for table in source.read(part) for row in table.to_pylist()
    ] == [("0.png", "new")]
    assert source.survey().without(source.survey().fingerprints).partitions == []
    # One that is another picture now, or has another caption, is none of those.
    for change in ({"b.png": b"longer"}, {"a.txt": "another"}):
        fill(tmp_path, **change)
        assert source.survey().without(before.fingerprints) is None
        fill(tmp_path, **{"b.png": b"x", "a.txt": "a"})


def test_a_folder_that_changes_while_it_is_read_is_told(tmp_path):
    source = FolderSource(str(fill(tmp_path, **{"a.png": b"x", "b.png": b"x"})))
    (part,) = source.survey().partitions
    os.remove(tmp_path / "a.png")
    with pytest.raises(UserError, match="changed while it was read"):
        list(source.read(part))
