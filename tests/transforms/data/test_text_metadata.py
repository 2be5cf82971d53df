"""Metadata as text: the rows that a reader of the whole file finds, wherever the file is cut for several workers."""

import csv
import gzip
import io
import json
import random

import pytest

from tests.servers import object_store
from transforms.data import survey, text_metadata
from transforms.data.text_metadata import TextMetadata
from transforms.errors import Damaged, UserError
from transforms.store.files import write_bytes


def opened(path):
    return TextMetadata.open(str(path), ("url",), "expected url")


def read(text, columns=("url", "text"), of=None):
    return [row for rows in text.rows(columns, of) for row in rows]


def in_pieces(path, monkeypatch, block, most=1 << 20, size=1):
    """What is read of a file in ranges as small as they can be."""
    monkeypatch.setattr(text_metadata, "BLOCK_BYTES", block)
    monkeypatch.setattr(text_metadata, "MOST_BYTES", most)
    monkeypatch.setattr(survey, "RANGE_BYTES", size)
    text = opened(path)
    look = text.look()
    assert [one.first_row for one in look.ranges] == [sum(one.rows for one in look.ranges[:k]) for k in range(len(look.ranges))]
    found = []
    for one in look.ranges:
        rows = read(text, of=one)
        assert len(rows) == one.rows
        found += rows
    assert len(found) == look.rows
    return found, look


def texts(draw):
    letters = ['"', '""', ",", "\n", "\r\n", "\t", "é", "a", "bc", " ", "世", ";", '5" x']
    return "".join(draw.choice(letters) for _ in range(draw.randrange(6)))


@pytest.mark.parametrize("sign, ending", [(",", "csv"), ("\t", "tsv"), (";", "csv")])
def test_what_csv_writes_is_read_as_csv_reads_it_however_it_is_cut(tmp_path, monkeypatch, sign, ending):
    draw = random.Random(0)
    for trial in range(40):
        rows = [{"url": f"http://h/{n}", "text": texts(draw), "more": texts(draw)} for n in range(draw.randrange(1, 60))]
        path = tmp_path / f"{trial}.{ending}"
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file,
                draw.sample(["url", "text", "more"], 3),
                delimiter=sign,
                lineterminator=draw.choice(["\n", "\r\n"]),
                quoting=draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
            )
            writer.writeheader()
            writer.writerows(rows)
        if draw.random() < 0.5:
            path.write_bytes(path.read_bytes().rstrip(b"\r\n"))
        # The reader of the whole file says what is right, of the last row's line feeds too.
        with open(path, newline="", encoding="utf-8") as file:
            right = [(row["url"] or None, row["text"] or None) for row in csv.DictReader(file, delimiter=sign, strict=True)]
        for block in (64, 100, 1000):
            found, look = in_pieces(path, monkeypatch, block)
            assert [tuple(row.values) for row in found] == right
            assert not any(row.refused for row in found)
            assert block > 100 or len(rows) < 20 or len(look.ranges) > 3


def test_whatever_stands_in_a_file_its_rows_do_not_depend_on_how_it_is_cut(tmp_path, monkeypatch):
    """Of quotes that are none of RFC 4180's, line feeds and signs in any order; a fifth of the rows can't be read."""
    draw = random.Random(1)
    path, refused, many = tmp_path / "a.csv", 0, 0
    for _ in range(150):
        signs = ['"', '"', ",", "\n", "\n", "\r\n", "\r", "a", "bcd", "é", '""']
        content = "url,text\n" + "".join(draw.choice(signs) for _ in range(draw.randrange(300)))
        path.write_text(content, encoding="utf-8", newline="")
        # Rows of up to 40 bytes: an open quote is soon none.
        first, _ = in_pieces(path, monkeypatch, 1 << 20, most=40, size=1 << 30)
        for block in (16, 33, 120):
            assert in_pieces(path, monkeypatch, block, most=40)[0] == first
        refused += sum(row.refused is not None for row in first)
        many += len(first)
    assert 0.02 < refused / many < 0.6


def test_nothing_is_swallowed_by_quotes_that_are_letters(tmp_path, monkeypatch):
    lines = ['u0\t"Quoted title" by someone', 'u1\t5" nails, 40" long', 'u2\t"never closed', "u3\tplain", 'u4\t"a ""b"" c"']
    path = tmp_path / "cc12m.tsv"
    path.write_text("url\ttext\n" + "\n".join(lines * 3) + "\n")
    for block in (20, 1 << 20):
        found, _ = in_pieces(path, monkeypatch, block, most=30)
        assert [row.values for row in found] == 3 * [
            ["u0", '"Quoted title" by someone'],
            ["u1", '5" nails, 40" long'],
            ["u2", '"never closed'],
            ["u3", "plain"],
            ["u4", 'a "b" c'],
        ]


def test_rows_that_cannot_be_read_say_why_and_the_others_are_there(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('url,text,more\nu0,t0\n\nu1,a,b,c\n"u2"x,t\nu3,t3,\n')
    found = read(opened(path))
    assert [row.values for row in found] == [["u0", "t0"], [None, None], [None, None], ["u3", "t3"]]
    assert found[1].refused == "4 values for 3 columns; put texts that hold ',' between double quotes"
    assert found[2].refused.startswith("the row can't be read as columns (")
    path = tmp_path / "a.jsonl"
    path.write_text('{"url": "u0", "text": null, "n": 3}\n\n{"url": "u1"\n[1]\n{"text": ["a"], "url": "\\ud800"}\n')
    found = read(opened(path), ("url", "text", "n"))
    assert [row.values for row in found] == [["u0", None, "3"], [None] * 3, [None] * 3, ["?", ["a"], None]]
    assert (
        found[1].refused.startswith("the row is not JSON (")
        and found[2].refused == "the row is a JSON list, expected an object"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.NDJSON.gz"])
def test_every_encoding_compressed_or_not_says_the_same(tmp_path, monkeypatch, encoding, name):
    rows = [{"url": f"http://h/{number}", "text": f'é "{number}", ü\n'} for number in range(50)]
    if ".csv" in name:
        made = io.StringIO(newline="")
        writer = csv.DictWriter(made, ["url", "text"])
        writer.writeheader()
        writer.writerows(rows)
        content = made.getvalue()
    else:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    packed = (mark + content).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(packed) if name.endswith(".gz") else packed)
    found, look = in_pieces(tmp_path / name, monkeypatch, 100)
    assert [dict(zip(("url", "text"), row.values, strict=True)) for row in found] == rows
    # Only from the beginning can be read what is compressed, or is to be made UTF-8.
    assert (len(look.ranges) > 5) == (not name.endswith(".gz") and encoding in ("utf-8", "utf-8-sig", "cp1252"))
    # Known again by all that it holds, whatever it is cut in.
    monkeypatch.setattr(survey, "RANGE_BYTES", 1 << 30)
    assert opened(tmp_path / name).look().recognised_by == look.recognised_by
    other = (mark + content.replace("7", "8", 1)).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(other) if name.endswith(".gz") else other)
    assert opened(tmp_path / name).look().recognised_by != look.recognised_by


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_text_in_an_object_store_is_read_in_ranges(monkeypatch, name):
    content = "".join(["\ufeffurl,text\n", *(f'u{number},"a\n{number}"\n' for number in range(60))]).encode()
    with object_store("eidetic-text"):
        path = f"gs://eidetic-text/metadata/{name}"
        write_bytes(path, gzip.compress(content) if name.endswith(".gz") else content)
        found, look = in_pieces(path, monkeypatch, 200)
    assert [row.values for row in found] == [[f"u{number}", f"a\n{number}"] for number in range(60)]
    assert (len(look.ranges) > 2) == (name == "a.csv")


def test_what_is_compressed_and_cut_is_damaged(tmp_path):
    path = tmp_path / "a.csv.gz"
    content = gzip.compress("".join(["url,text\n", *(f"http://h/{n * 7919},t{n}\n" for n in range(5000))]).encode())
    path.write_bytes(content[:-2000])
    with pytest.raises(Damaged, match=r"a.csv.gz' is damaged: it can't be unpacked \(.*\); get it anew, or remove it$"):
        opened(path).look()
    path.write_bytes(b"url,text\nu,t\n")
    with pytest.raises(Damaged, match="can't be unpacked"):
        opened(path)


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("a.csv", "link,text\nu,t\n", r"has columns \['link', 'text'\]; expected url"),
        ("a.csv", "", r"has columns \[\]; expected url"),
        ("a.jsonl", "url,text\nu,t\n", r"first row: 'url,text' is not JSON \(.*\); expected url"),
        ("a.jsonl", '["u"]\n', r"first row, is a JSON list, expected objects; expected url"),
        ("a.jsonl", '{"url": "' + "x" * (3 << 20) + '"}', "has a line of over 1,048,576 bytes"),
        ("a.csv", "url,text\n" + "x" * (3 << 20), "has a line of over 1,048,576 bytes"),
    ],
)
def test_what_is_no_metadata_is_told_in_one_line(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=told) as caught:
        opened(tmp_path / name).look()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
