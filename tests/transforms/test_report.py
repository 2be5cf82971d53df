"""The report as a browser reads it: no caption may become markup, nothing may run, and nothing may be left out."""

import base64
import collections
import hashlib
import html.parser
import os
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.fakes import fake_lake
from transforms import measurement, report

VOID = {"meta", "img"}
"""Elements of the page that have no end tag."""

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)' x='",
    "</style></title></textarea><script>alert(1)</script>",
    "<!-- a comment that never ends",
    "&lt;script&gt; &amp;amp; &#x3c;b&#x3e;",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "word " * 2000,
    "x" * 10_000,
    "مرحبا بالعالم, שלום",
    "turned \u202e around \u2066 and hidden\u200b",
    "control \x00\x07\x1b[31m\x7f\x9b characters",
    "two\nlines\tand a tab",
    "family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "]]> <![CDATA[ <svg onload=alert(1)>",
]


class Page(html.parser.HTMLParser):
    """Collects what a test asks for, and insists on balanced tags on the way."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.faults = [], []
        self.attributes = collections.defaultdict(list)
        self.words, self.style, self.text = [], "", ""
        self.feed(text)
        self.close()
        self.faults += [f"{tag} is never closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        self.attributes[tag].append(dict(attrs))
        if len(dict(attrs)) != len(attrs):
            self.faults.append(f"{tag} has an attribute twice")
        # A browser closes a p where a block begins, so one that is still open here is not what was meant.
        if "p" in self.open and tag in ("p", "details", "figure", "table", "div", "ol", "dl", "h2"):
            self.faults.append(f"{tag} inside p")
        if tag not in VOID:
            self.open.append(tag)
        if tag == "p" and dict(attrs).get("class") == "words":
            self.words.append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes[tag].append(dict(attrs))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> inside {self.open[-3:]}")
        else:
            self.open.pop()

    def handle_comment(self, data):
        self.faults.append(f"a comment: {data[:80]}")

    def handle_pi(self, data):
        self.faults.append(f"an instruction: {data[:80]}")

    def unknown_decl(self, data):
        self.faults.append(f"a declaration: {data[:80]}")

    def handle_data(self, data):
        self.text += data
        if "style" in self.open:
            self.style += data
        if self.open and self.open[-1] == "p" and self.words:
            self.words[-1] += data


def render(fake, limit=1000):
    measurement.run(fake.lake, fake.match, "measured")
    return report.render(fake.lake, fake.match, "measured", limit)


def page_of(fake, limit=1000):
    return Page(render(fake, limit).decode("utf-8"))


def copies(root, captions, **knobs):
    """A lake where every caption gives back its picture."""
    return fake_lake(root, sizes=(1,) * len(captions), captions=captions, behaviours=("copy",), **knobs)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of hostile captions: half of them beside pictures, the others as rows. (bytes, Page)."""
    content = render(copies(tmp_path_factory.mktemp("hostile"), HOSTILE), limit=len(HOSTILE) // 2)
    return content, Page(content.decode("utf-8"))


def assert_harmless(page):
    assert not page.faults
    expected = {"html", "head", "body", "meta", "title", "style", "main", "h1", "h2", "h3", "p", "span", "code", "figure",
                "figcaption", "svg", "line", "polyline", "circle", "text", "div", "table", "caption", "thead", "tbody", "tr",
                "th", "td", "ol", "li", "img", "dl", "dt", "dd", "details", "summary"}  # fmt: skip
    assert set(page.attributes) <= expected
    for tag, found in page.attributes.items():
        for attributes in found:
            assert not [name for name in attributes if name.startswith("on") or name in ("style", "href", "srcdoc", "action")]
            assert tag != "img" or attributes["src"].startswith("data:image/webp;base64,")


def test_no_caption_becomes_markup(hostile):
    assert_harmless(hostile[1])


def test_every_caption_is_there_whole(hostile):
    shown = collections.Counter(hostile[1].words)
    for caption in HOSTILE:
        # Prompts are captions without the blanks at their ends.
        assert shown[report.clean(caption.strip())] == 1
    # What is long is cut, with the whole of it behind.
    assert shown["x" * report.CAPTION_LETTERS + "…"] == 1


def test_control_characters_do_not_reach_the_page(hostile):
    text = hostile[0].decode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", text)
    assert "\U0001f468\u200d\U0001f469" in text


def test_the_policy_allows_the_style_and_nothing_else(hostile):
    page = hostile[1]
    (policy,) = [meta["content"] for meta in page.attributes["meta"] if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "img-src", "style-src", "base-uri", "form-action"}
    # A browser hashes the exact text of the element, so blanks around it in the template would shut the style out.
    assert rules["style-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()}'"
    assert rules["img-src"] == "data:"
    assert len(page.attributes["style"]) == 1
    assert "<" not in page.style and "&" not in page.style and "\r" not in page.style


def test_the_policy_comes_before_what_it_governs(hostile):
    text = hostile[0].decode("utf-8")
    assert text.index("Content-Security-Policy") < min(text.index("<style"), text.index("<title"), text.index("<body"))
    assert text.index('charset="utf-8"') < 1024


@pytest.mark.parametrize(("limit", "pictures"), [(0, 0), (2, 4), (1000, 12)])
def test_so_many_are_shown_as_pictures_and_the_others_as_rows(tmp_path, limit, pictures):
    page = page_of(copies(tmp_path, [f"caption {number}" for number in range(6)]), limit)
    assert not page.faults
    assert len(page.attributes["img"]) == pictures
    assert sorted(page.words) == [f"caption {number}" for number in range(6)]
    assert ("The others" in page.text) == (limit < 6)


def test_the_pictures_are_small(tmp_path):
    from io import BytesIO

    import numpy as np
    from PIL import Image

    uri = report.data_uri(np.zeros((600, 300, 3), np.uint8))
    picture = Image.open(BytesIO(base64.b64decode(uri.split(",")[1])))
    assert picture.size == (report.THUMBNAIL // 2, report.THUMBNAIL)


def test_without_controls_it_says_so(tmp_path):
    page = page_of(fake_lake(tmp_path, controls=0))
    assert not page.faults
    assert "No controls were tried" in page.text
    assert "by the paper's rule." in page.text
    assert "not tested" in page.text
    assert "None" not in page.text


def test_too_few_controls_are_no_threshold(tmp_path):
    page = page_of(fake_lake(tmp_path, controls=3))
    assert not page.faults
    assert "3 controls are too few for a false-positive rate of 10.0%" in page.text
    assert "None" not in page.text


def test_a_filter_that_nobody_looked_behind_is_no_filter_that_misses_nothing(tmp_path):
    page = page_of(fake_lake(tmp_path, unflagged_fraction=0.0))
    assert "What it misses is not known." in page.text
    assert not page.faults


def test_the_first_sentence_counts_the_calibrated_verdict(tmp_path):
    fake = fake_lake(tmp_path)
    called = sum(planted in ("copy", "tight") for planted in fake.behaviour.values())
    page = page_of(fake)
    assert not page.faults
    # The two behaviours that nobody flags are kept or not by hash, so the count is at least the flagged ones'.
    (found,) = re.findall(r"the training image for (\d+) of (\d+) prompts", page.text)
    assert called <= int(found[0]) and int(found[1]) == len(fake.behaviour)


def test_an_audit_of_nothing_is_a_page_too(tmp_path):
    page = page_of(fake_lake(tmp_path, sizes=(), captions=(), controls=0))
    assert not page.faults
    assert "for 0 of 0 prompts" in page.text


def test_a_hostile_name_of_the_model(tmp_path):
    page = page_of(fake_lake(tmp_path, sizes=(1,), behaviours=("copy",), controls=0, model="<script>\x1b"))
    assert_harmless(page)
    assert "<script>\ufffd" in page.text


def test_the_same_audit_is_the_same_page(tmp_path):
    fake = fake_lake(tmp_path)
    assert render(fake) == render(fake)


def test_text_that_is_no_text():
    assert report.clean("a\ud800b") == "a\ufffdb"
    assert report.clean(None) == ""
    assert report.clean("") == ""


# -- real captions ----------------------------------------------------------------------------------------------------


def shared():
    return Path(os.environ.get("EIDETIC_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def test_a_thousand_real_captions_pass_through_unharmed(tmp_path):
    import duckdb

    path = shared() / "data" / "laion_metadata_1000.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not there; EIDETIC_SHARED names the folder that holds data/")
    table = pq.read_table(path)
    captions = table[next(name for name in ("caption", "TEXT", "text") if name in table.column_names)].to_pylist()
    assert len(captions) == 1000
    fake = copies(tmp_path, captions, controls=0, images_per_prompt=1, max_prompts=2000)
    measurement.run(fake.lake, fake.match, "measured")
    page = Page(report.render(fake.lake, fake.match, "measured", 1000).decode("utf-8"))
    tried = [caption for caption in captions if caption and caption.strip()]
    fake.lake.complete("measure", "measured", {}, {"match": fake.match.snapshot_id}, {"audit_id": fake.generate.snapshot_id})
    with duckdb.connect(measurement.build_database(fake.lake), read_only=True) as connection:
        found = connection.execute("SELECT caption FROM extractions").fetchall()
    assert sorted(caption for (caption,) in found) == sorted(tried)
    assert_harmless(page)
    assert len(page.attributes["img"]) == 2 * len(tried)
    shown = collections.Counter(page.words)
    assert not [caption for caption in tried if not shown[report.clean(caption.strip())]]
