"""The report as a parser reads it: no caption may become markup, nothing may be left out, and the page stays small.

What a browser makes of it is in ``test_report_in_chromium``.
"""

import base64
import collections
import hashlib
import html.parser
import io
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.fakes import fake_lake
from tests.hostile import CAPTIONS, URLS, copies
from tests.planted import picture
from tests.transforms.results.test_marts import rewrite
from transforms.kernels.rates import blaker_interval
from transforms.results import database, marts, report
from transforms.store.files import read_parquet, write_parquet

VOID = {"meta", "input"}
"""Elements of the page that have no end tag."""


class Page(html.parser.HTMLParser):
    """Collects what a test asks for, and insists on balanced tags on the way."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.faults = [], []
        self.attributes = collections.defaultdict(list)
        self.words, self.style, self.script, self.text = [], "", "", ""
        self.feed(text)
        self.close()
        self.faults += [f"{tag} is never closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        self.attributes[tag].append(dict(attrs))
        self.inside = dict(attrs).get("class")
        if len(dict(attrs)) != len(attrs):
            self.faults.append(f"{tag} has an attribute twice")
        # A browser closes a p where a block begins, so one that is still open here is not what was meant.
        if "p" in self.open and tag in ("p", "details", "figure", "table", "div", "ol", "dl", "h2"):
            self.faults.append(f"{tag} inside p")
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("p", "td") and dict(attrs).get("class") == "words":
            self.words.append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes[tag].append(dict(attrs))

    def handle_endtag(self, tag):
        self.inside = None
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
        if self.open and self.open[-1] in ("style", "script"):
            setattr(self, self.open[-1], getattr(self, self.open[-1]) + data)
        else:
            self.text += data
        if self.open and self.open[-1] in ("p", "td") and self.inside == "words":
            self.words[-1] += data


def render(fake, limit=1000, **more):
    marts.run(fake.lake, fake.match, "measured")
    return report.render(fake.lake, fake.match, "measured", limit, **more)


def stored(page):
    """The data of all pictures, in order."""
    return re.findall(r"url\((data:image/webp;base64,[A-Za-z0-9+/=]+)\)", page.style)


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def page_of(fake, limit=1000):
    return Page(render(fake, limit).decode("utf-8"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of hostile captions: half of them beside pictures, the others as rows. (bytes, Page)."""
    content = render(copies(tmp_path_factory.mktemp("hostile"), CAPTIONS), limit=len(CAPTIONS) // 2)
    return content, Page(content.decode("utf-8"))


def assert_harmless(page):
    assert not page.faults
    expected = {"html", "head", "body", "meta", "title", "style", "script", "main", "h1", "h2", "h3", "p", "strong", "span",
                "small", "code", "nav", "a", "figure", "figcaption", "svg", "line", "polyline", "circle", "text", "div",
                "table", "caption", "thead", "tbody", "tr", "th", "td", "ol", "ul", "li", "dl", "dt", "dd", "details", "b",
                "summary", "label", "input", "select", "option", "output"}  # fmt: skip
    assert set(page.attributes) <= expected
    for tag, found in page.attributes.items():
        for attributes in found:
            assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc", "action")]
            if "href" in attributes:
                assert tag == "a"
                inside = re.fullmatch(r"#[a-z]+", attributes["href"])
                assert inside or (attributes["rel"] == "noreferrer noopener nofollow" and attributes["href"].startswith("http"))
    assert page.script == report.file_text("report.js") and len(page.attributes["script"]) == 1


def test_no_caption_becomes_markup(hostile):
    assert_harmless(hostile[1])


def test_every_caption_is_there_whole(hostile):
    shown = collections.Counter(hostile[1].words)
    for caption in CAPTIONS:
        # Prompts are captions without the blanks at their ends.
        assert shown[report.clean(caption.strip())] == 1
    # What is long is cut, with the whole of it behind.
    assert shown["x" * report.CAPTION_LETTERS + "…"] == 1


def test_control_characters_do_not_reach_the_page(hostile):
    text = hostile[0].decode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", text)
    assert "\U0001f468\u200d\U0001f469" in text


def test_the_policy_allows_the_style_and_the_script_and_nothing_else(hostile):
    page = hostile[1]
    (policy,) = [meta["content"] for meta in page.attributes["meta"] if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "img-src", "style-src", "script-src", "base-uri", "form-action"}
    # A browser hashes the exact text of the element, so blanks around it in the template would shut the style out.
    for rule, text in (("style-src", page.style), ("script-src", page.script)):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules["img-src"] == "data:"
    assert rules["base-uri"] == rules["form-action"] == "'none'"
    assert len(page.attributes["style"]) == 1
    assert "<" not in page.style and "&" not in page.style and "\r" not in page.style


def test_the_policy_comes_before_what_it_governs(hostile):
    text = hostile[0].decode("utf-8")
    assert text.index("Content-Security-Policy") < min(map(text.index, ("<style", "<script", "<title", "<body")))
    assert text.index('charset="utf-8"') < 1024


@pytest.mark.parametrize(("limit", "pictures"), [(0, 0), (2, 4), (1000, 12)])
def test_so_many_are_shown_as_pictures_and_the_others_as_rows(tmp_path, limit, pictures):
    page = page_of(copies(tmp_path, [f"caption {number}" for number in range(6)]), limit)
    assert not page.faults
    assert len(stored(page)) == pictures
    assert sorted(page.words) == [f"caption {number}" for number in range(6)]
    assert ("The others" in page.text) == (limit < 6)
    assert ("(those with pictures first, then the others)" in page.text) == (limit == 2)


def test_each_picture_is_there_once_and_small(tmp_path):
    pictures = {7: np.zeros((600, 300, 3), np.uint8)}
    fake = copies(tmp_path, ["a", "b"], draw=lambda number: pictures.get(number, picture(number, 64, 64)))
    found = stored(page_of(fake))
    assert len(found) == 4 and len(set(found)) == 4
    uri = report.data_uri(Image.fromarray(pictures[7]), *report.STEPS[0])
    side, _ = report.STEPS[0]
    assert opened(uri).size == (side // 2, side)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(("place", "at"), [(0, 0), (32, 50), (64, 100)])
def test_the_difference_lies_where_the_distance_was_measured(wide, place, at):
    """Of a training image that is not square the crop is found again that the generation was made from."""
    trained = np.random.default_rng(1).integers(0, 256, (8, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    crop = trained[:, place : place + 64]
    if not wide:
        trained, crop = trained.swapaxes(0, 1), crop.swapaxes(0, 1)
    assert report.Pair.of(1, crop, trained).at == at


def test_without_controls_it_says_so(tmp_path):
    page = page_of(fake_lake(tmp_path, controls=0))
    assert not page.faults
    text = " ".join(page.text.split())
    assert "Seen: no controls were tried" in text and "Nothing is promised of new pictures" in text
    assert re.search(r"% of the prompts return their own image as a copy \(95% interval \S+% to \S+%\)\. ", text)
    assert "there is evidence" not in text
    assert "not tested" in text
    assert "None" not in text


def copy_limits(fake):
    (row,) = fake.rows("copy_calibration")
    return row


@pytest.mark.parametrize(("controls", "wanted"), [(8, 9), (9, 9)])
def test_so_many_held_out_pictures_are_needed_for_a_promise(tmp_path, controls, wanted):
    fake = fake_lake(tmp_path, controls=controls, max_false_positive_rate=0.1)
    text = " ".join(page_of(fake).text.split())
    promised = copy_limits(fake)["promised_rate"]
    assert (promised is None) == (controls < wanted)
    said = "is called a copy with a probability of at most 10.0%"
    asked = f"Nothing is promised of new pictures: for a rate of 10.0% that takes {wanted} held-out ones or more (--controls)."
    assert (said in text, asked in text) == (promised is not None, promised is None)


def test_too_few_controls_are_no_threshold(tmp_path):
    page = page_of(fake_lake(tmp_path, controls=3))
    assert not page.faults
    assert "3 controls are too few for a false-positive rate of 10.0%" in page.text
    assert "None" not in page.text


def test_a_filter_that_nobody_looked_behind_is_no_filter_that_misses_nothing(tmp_path):
    page = page_of(fake_lake(tmp_path, unflagged_fraction=0.0))
    assert "What it misses by that rule is not known." in page.text
    assert "return their own image as a copy" in page.text and "(counted: the nearest generation" in page.text
    assert not page.faults


def planted(fake, *kinds):
    return sum(behaviour.split()[0] in kinds for behaviour in fake.behaviour.values())


def test_the_first_sentence_has_both_numbers(tmp_path):
    fake = fake_lake(tmp_path)
    tried = len(fake.behaviour)
    text = " ".join(page_of(fake).text.split())
    # All groups were tried, so every prompt weighs the same.
    numbers = []
    for count in (planted(fake, "copy", "soft", "unproven"), planted(fake, "copy", "soft", "half_learned")):
        lower, upper = blaker_interval(count, tried)
        numbers += [report.percent(count / tried), report.percent(lower), report.percent(upper)]
    assert (
        "{} of the prompts return their own image as a copy (95% interval {} to {}); of {} (95% interval {} to {}) there is "
        "evidence that the model was trained on it. "
    ).format(*numbers) in text
    assert f"{planted(fake, 'copy', 'soft', 'unproven')} of the {tried} prompts that were tried; they speak for" in text


def test_apart_from_it_stands_how_many_images_came_back_at_all(tmp_path):
    fake = fake_lake(tmp_path, sizes=(4, 3, 2, 1), behaviours=("copy", "neighbour", "none", "none"), controls_that_copy=3)
    render(fake)
    rows = read_parquet(fake.lake.part("extractions", "measured", 0)).to_pylist()
    came = report.CameBack.of(rows)
    # Its own caption; the next group's image by another; the last one by captions of controls.
    assert (came.copied, came.own, came.others, came.controls) == (3, 1, 2, 1)
    text = " ".join(page_of(fake).text.split())
    assert (
        "3 training images came back as copies at all, under any caption: 1 by their own, 2 by others alone; 1 by captions of "
        "pictures that the model never saw."
    ) in text
    for words in ("own", "another", "a control's"):
        assert f"caption{words} clique" in text


def test_a_list_of_nobodys_captions_returns_some_image_or_none(tmp_path):
    fake = fake_lake(tmp_path, max_prompts=0, listed=["nobody's words", "nor these"])
    text = " ".join(page_of(fake).text.split())
    _, upper = blaker_interval(0, 2)
    assert (
        f"0.0% of the listed prompts return some training image as a copy (95% interval 0.0% to {report.percent(upper)})"
        in text
    )
    assert "2 prompts that were tried, which are nobody's captions" in text
    assert "No training image came back as a copy, under any caption." in text and "None" not in text


def table_of(page_text, label):
    """The words of the table whose region has this label, one list a row."""
    section = re.search(rf'aria-label="{label}".*?</table>', page_text, re.S).group(0)
    cells = re.findall(r"<tr>(.*?)</tr>", section, re.S)
    return [[html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in cells]


def test_what_each_verdict_calls_wrongly(tmp_path):
    fake = fake_lake(tmp_path, held_out_near=2)
    content = render(fake).decode()
    head, *rows = table_of(content, "False positives")
    assert head == ["verdict", "controls", "held_out", "left_out", "blurred"]
    found = {row["verdict"]: row for row in read_parquet(fake.lake.part("false_positives", "measured", 0)).to_pylist()
             if row["tried_on"] == "held_out"}  # fmt: skip
    shown = {row[0]: row[2] for row in rows}
    for verdict, row in found.items():
        assert shown[verdict] == f"{row['called']} of {row['pictures']} (≤ {report.percent(row['upper_bound'])})"
    assert shown["seen"] == "–" and shown["extracted"].startswith("2 of 60 ")


def test_where_the_rules_agree(tmp_path):
    fake = fake_lake(tmp_path)
    head, *rows = table_of(render(fake).decode(), "Agreement")
    assert head[1:] == [row[0] for row in rows] == ["l2", "adaptive_l2", "ratio", "copied", "seen", "extracted_calibrated"]
    both = {(row[0], other): int(value) for row in rows for other, value in zip(head[1:], row[1:], strict=True)}
    assert all(both[one, other] == both[other, one] <= both[one, one] for one, other in both)
    assert both["copied", "copied"] == planted(fake, "copy", "soft", "unproven")
    assert both["copied", "seen"] == planted(fake, "copy", "soft") == both["extracted_calibrated", "extracted_calibrated"]


def test_what_was_looked_at(tmp_path):
    fake = fake_lake(tmp_path, unflagged_fraction=0.0)
    text = " ".join(page_of(fake).text.split())
    found, again = fake.match.facts["candidates"], fake.match.facts["regeneration"]
    assert f"Of {found['sampled']} stored generations" in text
    assert f"for {report.percent(found['nearest'])}, and the next one" in text
    assert f"{again['pointed']} generations that were not kept have a thumbnail" in text and again["pointed"] > 0
    assert "so nothing says how many such copies thumbnails find" in text
    without = " ".join(page_of(fake_lake(tmp_path / "b", regenerate=False)).text.split())
    assert "Generations that were not kept were not made again" in without


def test_a_picture_that_was_made_again_is_shown(tmp_path):
    fake = fake_lake(tmp_path, sizes=(2, 1), behaviours=("neighbour unflagged", "none"), unflagged_fraction=0.0)
    content = render(fake)
    (row,) = [row for row in read_parquet(fake.lake.part("extractions", "measured", 0)).to_pylist() if row["copied"]]
    assert row["regenerated"]
    (again,) = fake.rows("regenerations")
    (pair,) = report.pairs(fake.lake, fake.match, [row])
    assert np.array_equal(np.asarray(pair.generated), np.asarray(Image.open(io.BytesIO(again["image"])).convert("RGB")))
    assert "Its picture was not kept, and was made again." in content.decode()


def test_an_audit_of_nothing_is_a_page_too(tmp_path):
    page = page_of(fake_lake(tmp_path, sizes=(), captions=(), controls=0))
    assert not page.faults
    assert "No prompt was tried, so there is no rate." in page.text


@pytest.mark.parametrize(
    ("count", "said"), [(1, "the one prompt that was tried lost"), (3, "all 3 prompts that were tried lost")]
)
def test_prompts_that_lost_something_to_a_request_are_not_untried(tmp_path, count, said):
    fake = fake_lake(tmp_path, sizes=(1,) * count, behaviours=("copy",))
    change = {"stratum": "forgotten", "stratum_order": -2}
    rewrite(fake, "prompts", lambda rows: [row if row["origin"] == "control" else {**row, **change} for row in rows])
    page = page_of(fake)
    assert not page.faults
    assert f"There is no rate: {said} pictures or comparisons to a request to forget." in page.text
    assert "No prompt was tried" not in page.text


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


# -- what is said of each extraction ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1000])
def test_only_http_becomes_a_link(tmp_path, limit):
    page = page_of(copies(tmp_path, [f"caption {number}" for number in range(len(URLS))], urls=URLS), limit)
    assert_harmless(page)
    links = sorted(attributes["href"] for attributes in page.attributes["a"] if not attributes["href"].startswith("#"))
    assert links == ["http://Example.org/b.png", 'https://example.org/"><script>alert(1)</script>', URLS[0]]


@pytest.mark.parametrize("limit", [0, 1000])
def test_the_command_names_lake_audit_prompt_and_number(tmp_path, limit):
    fake = copies(tmp_path / "it's a lake", ["only one"])
    page = page_of(fake, limit)
    (row,) = read_parquet(fake.lake.part("extractions", "measured", 0)).to_pylist()
    (command,) = re.findall(r"eidetic again .*", page.text)
    expected = ["eidetic", "again", row["prompt_id"], str(row["sample_index"]), f"--audit={fake.generate.snapshot_id}",
                f"--lake={fake.lake.root}"]  # fmt: skip
    assert shlex.split(command) == expected
    assert str(row["seed"]) in page.text


@pytest.mark.parametrize(
    "name", ["my\u00adlake", "a\nb\tc", "it's\x1b[31m\\", "\u202eflip\u00a0 ", "\udcff9", "plain  ~$HOME", ""]
)
def test_a_quoted_word_is_the_word_to_bash(name):
    word = report.quoted(f"--lake={name}")
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(f"--lake={name}")


@pytest.mark.parametrize("limit", [0, 1000])
def test_commands_with_hidden_letters_in_the_lakes_path_can_be_run(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(report, "WHOLE_TEXT_BYTES", 0)
    monkeypatch.setattr(report, "MARKUP_BYTES", 5_000)
    monkeypatch.setattr(report, "CHANGES_BYTES", 0)
    fake = copies(tmp_path / "my\u00ad\x1blake", ["long " * 100 + str(number) for number in range(9)])
    page = page_of(fake, limit)
    assert_harmless(page)
    commands = re.findall(r"eidetic (?:again|query) .*", page.text)
    assert sum("query" in command for command in commands) == 2 and len(commands) > 3
    for command in commands:
        words = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True).stdout.split(b"\0")
        assert os.fsencode(fake.lake.root) in words or os.fsencode(f"--lake={fake.lake.root}") in words


def put(fake, mart, **columns):
    """Gives a mart that was made other values in some columns."""
    path = fake.lake.part(mart, "measured", 0)
    table = read_parquet(path)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, values)
    write_parquet(path, table)


def test_what_laion_calls_unsafe_is_behind_a_checkbox(tmp_path):
    fake = copies(tmp_path, [f"caption {number}" for number in range(4)])
    render(fake)
    ranks = read_parquet(fake.lake.part("extractions", "measured", 0))["confidence_rank"].to_pylist()
    punsafe = {1: 0.9, 2: report.UNSAFE_OVER / 2, 3: None, 4: 0.11}
    put(fake, "extractions", punsafe=pa.array([punsafe[rank] for rank in ranks], pa.float32()),
        steps=pa.array([50] * 4), guidance_scale=pa.array([7.5] * 4))  # fmt: skip
    page = Page(report.render(fake.lake, fake.match, "measured", 1000).decode())
    assert_harmless(page)
    boxes = [attributes["id"] for attributes in page.attributes["input"] if attributes.get("type") == "checkbox"]
    assert boxes == ["show1", "show4"]
    assert [attributes["for"] for attributes in page.attributes["label"] if "for" in attributes] == boxes
    assert "guidance scale7.5" in page.text.replace("\n", "") and "steps50" in page.text.replace("\n", "")


# -- the other sections ---------------------------------------------------------------------------------------------------

NIGHT = {"date": "2026-01-01", "compared_with": None, "model_revision": "<b>r1", "prompts_tried": 100, "rate_copied": 0.25,
         "rate_copied_lower": 0.2, "rate_copied_upper": 0.3, "rate_seen": None, "rate_seen_lower": None,
         "rate_seen_upper": None, "panel_prompts": None, "panel_extracted": None, "new_extractions": None,
         "gone_extractions": None, "p_value": None,
         "verdict": "first"}  # fmt: skip
SECOND = {**NIGHT, "date": "2026-01-02", "compared_with": "2026-01-01", "rate_copied": 0.5, "rate_copied_lower": 0.4,
          "rate_copied_upper": 0.6, "rate_seen": 0.7, "rate_seen_lower": 0.6, "rate_seen_upper": 0.8, "panel_prompts": 20,
          "panel_extracted": 9, "new_extractions": 3, "gone_extractions": 1, "p_value": 0.0123,
          "verdict": "worse"}  # fmt: skip


def change(number, kind, caption):
    return {"kind": kind, "prompt": None, "caption": caption, "sample_id": f"{number:032d}", "url": URLS[number % len(URLS)],
            "group_id": "g"}  # fmt: skip


def test_the_nights_and_what_changed(tmp_path):
    changes = [change(0, "new", CAPTIONS[0]), change(2, "gone", CAPTIONS[8]), change(3, "new", None)]
    page = Page(render(copies(tmp_path, ["a"]), nights=[NIGHT, SECOND], changes=changes).decode())
    assert_harmless(page)
    text = page.text
    assert "2026-01-01<b>r110025.0%20.0% – 30.0%–––" in text.replace("\n", "")
    assert "2026-01-02<b>r110050.0%40.0% – 60.0%70.0%60.0% – 80.0%9 of 20310.0123worse" in text.replace("\n", "")
    assert text.index("New\n") < text.index(CAPTIONS[0]) < text.index("Gone\n") < text.index("x" * 300)
    assert "no night" not in text and "None" not in text
    assert "did not on 2026-01-01, or the other way round" in text
    # The bars stand where the rates are.
    bars = [(bar["class"], float(bar["cy"])) for bar in page.attributes["circle"]]
    assert bars[-3:] == [
        ("copied", report.height(0.25)), ("copied", report.height(0.5)), ("seen", report.height(0.7)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("nights", "said"),
    [
        ([], "This audit was part of no night."),
        ([NIGHT], "There was no night before this one."),
        ([NIGHT, SECOND], "Nothing: the same images of the panel came back as on 2026-01-01."),
        # Another model or other options begin a new series: nobody knows what changed.
        ([NIGHT, {**SECOND, "compared_with": None}], "There was no night before this one that it could be compared with"),
    ],
)
def test_nights_without_a_change(nights, said, tmp_path):
    text = Page(render(copies(tmp_path, ["a"]), nights=nights).decode()).text
    assert said in text and ("Nothing:" in text) == said.startswith("Nothing:")
    assert ("This audit was part of no night; eidetic nightly makes them." in text) == (not nights)


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (None, "–"), (0.0, "0.0%"), (0.25, "25.0%"), (0.0123, "1.2%"), (0.00031, "0.031%"), (109 / 350_000, "0.031%"),
        (5e-8, "0.0000050%"), (1e-30, "0.000000000%"), (0.9996, "99.960%"), (1.0, "100.0%"),
    ],
)  # fmt: skip
def test_a_small_share_is_not_none_and_a_large_one_not_all(share, said):
    assert report.percent(share) == said


def test_many_changes_are_cut(tmp_path):
    changes = [change(number, "new", "x" * 10_000) for number in range(report.CHANGES + 5)]
    content = render(copies(tmp_path, ["a"]), nights=[NIGHT, SECOND], changes=changes)
    assert "5 more changes are not listed." in Page(content.decode()).text
    assert len(content) < report.PAGE_BYTES


def test_the_precision_curve_falls_as_it_was_measured(tmp_path, monkeypatch):
    fake = copies(tmp_path, ["a"])
    render(fake)
    precisions = [1.0, 1.0, 0.5, 0.75]
    table = pa.table({"rank": [1, 2, 3, 4], "group_id": list("abcd"), "coarse_ratio": [0.1, 0.2, 0.3, 0.4],
                      "copied": [True, True, True, False], "held_out_called": [0, 0, 3, 2], "n_held_out": [60] * 4,
                      "expected_false": [0.0, 0.0, 1.5, 1.0],
                      "precision": precisions})  # fmt: skip
    write_parquet(fake.lake.part("precision_curve", "measured", 0), table)
    monkeypatch.setattr(marts, "MARTS", tuple(dict.fromkeys([*marts.MARTS, "precision_curve"])))
    page = Page(report.render(fake.lake, fake.match, "measured", 1000).decode())
    assert not page.faults
    lines = [attributes["points"].split() for attributes in page.attributes["polyline"]]
    (line,) = [line for line in lines if len(line) == 4]
    assert [float(point.split(",")[1]) for point in line] == [report.height(precision) for precision in precisions]
    assert "40.400no2 of 601.075.0%" in page.text.replace("\n", "")


def test_a_line_of_very_many_points_is_drawn_with_as_many_as_can_be_seen():
    line = report.curve([(rank, 1 - rank / 200_000) for rank in range(1, 100_001)])
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    assert len(points) <= report.WIDTH + 1
    assert points[0] == (report.across(0), report.height(1)) and points[-1] == (report.across(1), report.height(0.5))
    assert report.curve([(1, 0.5), (2, None)]) is None


def test_rates_by_dimension(tmp_path):
    """A rate that stands for more than was tried is the one that the page opens with."""
    fake = copies(tmp_path, ["a"])
    render(fake)
    row = {"prompts_tried": 10, "prompts_flagged": 2, "prompts_extracted": 3, "prompts_calibrated": 8, "prompts_with_image": 9,
           "prompts_copied": 4, "prompts_copied_any": 5, "prompts_seen": 6, "prompts_extracted_calibrated": 2,
           "images_copied": 3, "images_extracted": 3, "inclusion_probability": 0.5, "population": 1234.0,
           **{f"rate{verdict}{end}": value + shift
              for verdict, shift in (("", 0.0), ("_calibrated", 0.1), ("_copied", 0.2), ("_seen", 0.3))
              for end, value in (("", 0.3), ("_lower", 0.2), ("_upper", 0.4))}}  # fmt: skip
    rows = [{**row, "dimension": dimension, "bucket": bucket, "bucket_order": order} for dimension, bucket, order in
            [("all", "drawn", 0), ("all", "list", -1), ("duplicates", "1", 0), ("duplicates", "list", -1),
             ("domain", "<script>.example", 0), ("aspect", "square", 0), ("prompt_length", "1-5 words", 0)]]  # fmt: skip
    write_parquet(fake.lake.part("extraction_rate", "measured", 0), pa.Table.from_pylist(rows))
    page = Page(report.render(fake.lake, fake.match, "measured", 1000).decode())
    assert_harmless(page)
    opening = " ".join(page.text.split())
    assert "50.0% of the prompts return their own image as a copy (95% interval 40.0% to 60.0%); of 60.0% (95%" in opening
    assert "4 of the 9 prompts that were tried; they speak for 1,234 training images." in opening
    # copied, seen, both, and the paper's rule.
    cells = "10 50.0% 2 4 50.0% 40.0% – 60.0% 6 60.0% 50.0% – 70.0% 2 40.0% 30.0% – 50.0% 3 30.0% 20.0% – 40.0%"
    assert cells.replace(" ", "") in opening.replace(" ", "")
    for words in ("by domain", "<script>.example", "by aspect of the image", "by length of the prompt", "1-5 words"):
        assert words in page.text


# -- the size --------------------------------------------------------------------------------------------------------------


def shared():
    return Path(os.environ.get("EIDETIC_SHARED", Path(__file__).resolve().parents[4] / "shared"))


def photographs():
    """Number → a photograph of CIFAR-10, larger than it is shown."""
    path = shared() / "data" / "cifar10_train.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not there; EIDETIC_SHARED names the folder that holds data/")
    with pq.ParquetFile(path) as file:
        table = next(file.iter_batches(batch_size=2000))
    encoded = table["jpeg"].to_pylist()

    def draw(number):
        return np.asarray(Image.open(io.BytesIO(encoded[number % len(encoded)])).convert("RGB").resize((160, 160)))

    return draw


def noise(number):
    return np.random.default_rng(number).integers(0, 256, (128, 128, 3), np.uint8)


def a_thousand(draw):
    return [report.Pair.of(number, draw(2 * number), draw(2 * number + 1)) for number in range(1000)]


def test_a_link_lets_nobody_in():
    """Tables don't have what signs a url; the page asks for itself whether they do."""
    link = report.Link.of("https://somebody:hunter2@example.org/a.png?width=5&sig=hunter2&token=hunter2")
    assert link.host == "example.org" and "hunter2" not in link.url and "somebody" not in link.url and "width=5" in link.url


def test_a_thousand_photographs_fit_and_can_be_looked_at():
    pairs = a_thousand(photographs())
    # What a page of a thousand extractions leaves, and what one of very many leaves at the least.
    for budget, least in ((report.PAGE_BYTES - 1_400_000, 80), (report.PAGE_BYTES - report.MARKUP_BYTES - 100_000, 32)):
        rules, side, quality = report.picture_rules(pairs, budget)
        print(f"photographs, {budget:,} bytes: {side} pixels, quality {quality}, {len(rules):,} bytes")
        assert len(rules) <= budget and rules.count("--generated") == 1000
        assert side >= least
        assert max(opened(uri).width for uri in re.findall(r"url\((.*?)\)", rules)[:10]) == side


def test_a_thousand_pictures_of_noise_fit():
    budget = report.PAGE_BYTES - 1_400_000
    rules, side, quality = report.picture_rules(a_thousand(noise), budget)
    print(f"noise, {budget:,} bytes: {side} pixels, quality {quality}, {len(rules):,} bytes")
    assert len(rules) <= budget and rules.count("--generated") == 1000


def test_what_can_not_fit_is_counted_and_left_to_a_query(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MARKUP_BYTES", 6_000)
    monkeypatch.setattr(report, "CHANGES_BYTES", 0)
    monkeypatch.setattr(report, "WHOLE_TEXT_BYTES", 1_000)
    fake = copies(tmp_path, [f"{'long ' * 100}{number}" for number in range(12)])
    page = page_of(fake, 2)
    assert_harmless(page)
    (unlisted,) = re.findall(r"(\d+) more have no room on this page", page.text)
    listed = len(re.findall(r"eidetic again", page.text))
    assert 2 < listed < 12 and int(unlisted) == 12 - listed
    (query,) = re.findall(r"more have no room on this page: (.*)", page.text)
    words = shlex.split(query)
    assert words[:2] == ["eidetic", "query"] and f"confidence_rank > {listed}" in words[2]
    # One whole text of 502 letters fits into 1,000 bytes.
    assert page.text.count("the whole text, 501 letters") + page.text.count("the whole text, 502 letters") == 1
    assert "11 long texts have no room here" in page.text


def test_a_url_too_long_for_a_link_is_left_to_the_table(tmp_path):
    urls = [f"https://example.org/{'a' * letters}" for letters in (report.URL_LETTERS - 20, report.URL_LETTERS - 19, 4_100_000)]
    page = page_of(copies(tmp_path, ["a", "b", "c"], urls=urls), 2)
    assert_harmless(page)
    assert [each["href"] for each in page.attributes["a"] if not each["href"].startswith("#")] == urls[:1]
    assert page.text.count("example.org (the url is too long for a link; the table samples has it)") == 2
    assert "no room on this page" not in page.text


def test_changes_have_a_budget(tmp_path):
    """Links, starts and whole texts are as long as they may be, of the letter that takes most in HTML."""
    changes = [
        {**change(number, "new", "&" * 2_000), "url": "https://example.org/" + "&" * (report.URL_LETTERS - 20)}
        for number in range(report.CHANGES)
    ]
    content = render(copies(tmp_path, ["a"]), nights=[NIGHT, SECOND], changes=changes)
    page = Page(content.decode())
    assert len(content) < report.CHANGES_BYTES + 100_000
    shown = page.text.count("sample 0000")
    assert 0 < shown < report.CHANGES and f"{report.CHANGES - shown} more changes are not listed." in page.text


def test_a_domain_of_very_many_letters_is_cut(tmp_path):
    urls = [f"https://{number}{'&' * 60_000}/x" for number in range(20)]
    content = render(copies(tmp_path, [f"caption {number}" for number in range(20)], urls=urls))
    assert len(content) < 300_000


@pytest.mark.parametrize("limit", [2, 12])
def test_what_is_too_large_does_not_hide_what_comes_after(tmp_path, monkeypatch, limit):
    fake = copies(tmp_path, [f"caption {number}" for number in range(12)])
    render(fake)
    ranks = read_parquet(fake.lake.part("extractions", "measured", 0))["confidence_rank"].to_pylist()
    put(fake, "extractions", prompt=pa.array(["&" * 30_000 if rank in (1, 5) else f"caption {rank}" for rank in ranks]))
    monkeypatch.setattr(report, "MARKUP_BYTES", 100_000)
    monkeypatch.setattr(report, "CHANGES_BYTES", 0)
    page = Page(report.render(fake.lake, fake.match, "measured", limit).decode())
    assert_harmless(page)
    assert page.text.count("eidetic again") == 10
    (query,) = re.findall(r"2 more have no room on this page: (.*)", page.text)
    assert "AND (confidence_rank IN (1, 5))" in shlex.split(query)[2]
    assert len(stored(page)) == 2 * (limit - (2 if limit == 12 else 1))


# -- real captions ----------------------------------------------------------------------------------------------------


def test_a_thousand_real_captions_pass_through_unharmed(tmp_path):
    import duckdb

    path = shared() / "data" / "laion_metadata_1000.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not there; EIDETIC_SHARED names the folder that holds data/")
    table = pq.read_table(path)
    captions = table[next(name for name in ("caption", "TEXT", "text") if name in table.column_names)].to_pylist()
    assert len(captions) == 1000
    fake = copies(tmp_path, captions, controls=0, images_per_prompt=1, max_prompts=2000)
    marts.run(fake.lake, fake.match, "measured")
    page = Page(report.render(fake.lake, fake.match, "measured", 1000).decode("utf-8"))
    tried = [caption for caption in captions if caption and caption.strip()]
    fake.lake.complete("measure", "measured", {}, {"match": fake.match.snapshot_id}, {"audit_id": fake.generate.snapshot_id})
    with duckdb.connect(database.build_database(fake.lake), read_only=True) as connection:
        found = connection.execute("SELECT caption FROM extractions").fetchall()
    assert sorted(caption for (caption,) in found) == sorted(tried)
    assert_harmless(page)
    assert len(stored(page)) == 2 * len(tried)
    shown = collections.Counter(page.words)
    assert not [caption for caption in tried if not shown[report.clean(caption.strip())]]
