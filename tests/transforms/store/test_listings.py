"""Texts as strangers store them, and rows as they list them."""

import pytest

from transforms.errors import UserError
from transforms.store.listings import column_named, decode_text, first_of, json_lines, separated_rows

TEXTS = ["plain", "un café crème", "naïve “quotes” – 5 €", "", "a\nb\n"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "cp1252"])
def test_the_same_text_however_it_is_stored(text, encoding):
    assert decode_text(text.encode(encoding)) == text


def test_letters_that_only_a_mark_tells_apart():
    for encoding in ("utf-8", "utf-16", "utf-32"):
        assert decode_text("猫の写真 🐈".encode(encoding)) == "猫の写真 🐈"


def test_damaged_utf8_stays_utf8():
    assert decode_text("éàü".encode() + b"\xff") == "éàü\ufffd"
    assert decode_text("crème brûlée".encode()[:-1] + "é".encode()[:1]) == "crème brûlé\ufffd"
    assert decode_text(b"\xff\xfeo\0o") == "o\ufffd"


def test_columns_by_their_plain_names():
    assert column_named([" URL ", "x"], ("url",)) == " URL "
    assert column_named(["\ufeffurl"], ("url",)) == "\ufeffurl"
    # As it is written comes first, then the order of what is wanted.
    assert column_named(["URL", "url"], ("url",)) == "url"
    assert column_named(["text", "caption"], ("caption", "text")) == "caption"
    assert column_named(["a"], ("b",)) is None
    assert first_of({"Prompt": None, "text": "x"}, ("prompt", "text")) == "x"
    assert first_of({"a": 1}, ("prompt",)) is None


def test_json_by_line_feeds_alone():
    text = '{"a": "x\u2028y"}\r\n\n5'
    assert list(json_lines(text, "p", "expected")) == [(1, {"a": "x\u2028y"}), (3, 5)]
    for wrong in ("nonsense", "[" * 200_000, '{"a": 1'):
        with pytest.raises(UserError, match=r"'p', line 1: .*is not JSON .*; expected rows") as caught:
            list(json_lines(wrong, "p", "expected rows"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_rows_separated_by_whatever_has_the_column(sign):
    text = f'id{sign} Text \r\n1{sign}"a, b; c\td"\r\n\r\n2{sign}"two\nlines"\r\n3\r\n'
    found = [row for _, row in separated_rows(text, "p.csv", ("text",), "expected")]
    assert found == [{"id": "1", " Text ": "a, b; c\td"}, {"id": "2", " Text ": "two\nlines"}, {"id": "3"}]
