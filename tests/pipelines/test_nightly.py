"""Nights on a planted model: the first, one with nothing new, one that is worse, one that is better; and what can go wrong."""

import contextlib
import dataclasses
import datetime
import io
import json
import os
import shutil
import subprocess
import sys
import time
import types

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import forget, generate, history, ingest, match, measure, nightly
from pipelines.cli import run_verb
from pipelines.query import answer
from tests.models import PlantedGenerator, save_random_pipeline
from tests.planted import write_tiny_clip
from tests.test_layers import HEAVY
from tests.web import serve
from transforms.errors import UserError
from transforms.results import marts, nights
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png

SIDE = 16
PICTURES = 30
CONTROLS = 3


def pixels(number):
    return np.random.default_rng(1000 + number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


class Box:
    """A lake, the metadata beside it, a server of pictures that takes alerts as well, and a model to be changed."""

    def __init__(self, folder, web, monkeypatch, kept):
        self.folder, self.web, self.lake, self.kept = folder, web, Lake(str(folder / "lake")), kept
        self.model = PlantedGenerator()
        self.said = []
        # What is said goes to the terminal itself, past pytest's capture.
        monkeypatch.setattr(nightly, "say", self.said.append)
        monkeypatch.setattr(generate, "generator", lambda options, device, revision=None: self.model)
        for number in range(PICTURES):
            web.answer(f"/{number}.png", encode_png(pixels(number)))
        shutil.copytree(kept / "clip", folder / "clip")

    def metadata(self, name, numbers):
        folder = self.folder / name.split("/")[0]
        folder.mkdir(exist_ok=True)
        rows = [{"URL": f"{self.web.url}/{number}.png", "TEXT": f"picture {number}"} for number in numbers]
        pq.write_table(pa.Table.from_pylist(rows), self.folder / f"{name}.parquet")

    def remember(self, numbers):
        self.model = PlantedGenerator({f"picture {number}": pixels(number) for number in numbers})

    def words(self, date, **options):
        options = {"budget": 100, "images_per_prompt": 4, "images_per_control": 2, "clique_size": 2, **options}
        return [
            f"--lake={self.lake.root}", f"--date={date}", f"--metadata={self.folder}/training",
            f"--controls={self.folder}/controls", f"--clip_model={self.folder}/clip", f"--image_size={SIDE}",
            "--encode_format=png", "--allow_private_hosts", "--duplicate_threshold=0.999999", "--device=cpu", "--timeout=5",
            "--keep=all", "--threads=4", "--pixel_band=0", *(f"--{name}={value}" for name, value in options.items()),
        ]  # fmt: skip

    def night(self, date, **options):
        """Exit code, and the night's row of history."""
        code = run_verb(nightly.main, self.words(date, **options))
        found = [row for row in nights.history(self.lake) if row["date"] == date]
        return code, found[0] if found else None

    def first_night(self, *remembered):
        """The row of 2026-01-01 with the usual options, by a model that remembers these; made once, and copied from then on."""
        self.remember(remembered)
        kept = self.kept / f"lake {remembered}"
        if not kept.exists():
            assert self.night("2026-01-01")[0] == 0
            shutil.copytree(self.lake.root, kept)
        else:
            shutil.copytree(kept, self.lake.root)
        (row,) = nights.history(self.lake)
        return row

    def alert(self):
        return json.loads((self.folder / "lake" / "alert.json").read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server, and a folder for what tests need not make again: the urls of a lake that is copied are still its server's."""
    kept = tmp_path_factory.mktemp("nights")
    write_tiny_clip(kept / "clip")
    with serve() as web:
        yield web, kept


@pytest.fixture
def box(site, tmp_path, monkeypatch):
    web, kept = site
    for planned in (web.pages, web.posts, web.hits):
        planned.clear()
    made = Box(tmp_path, web, monkeypatch, kept)
    made.metadata("training/monday", range(20))
    made.metadata("controls/held_out", range(PICTURES - CONTROLS, PICTURES))
    return made


def test_four_nights(box, capsys, monkeypatch):
    box.remember([0, 1])
    code, first = box.night("2026-01-01")
    assert (code, first["verdict"], first["compared_with"]) == (0, "first", None)
    # Half of 100 images each: 3 controls of 2 images leave 44, which are 11 prompts of 4.
    assert (first["panel_prompts"], first["prompts_tried"]) == (11, 11)
    assert (first["samples"], first["images"], first["samples_new"]) == (23, 23, 23)
    panel = {row["text"] for row in box.lake.read("prompts", first["panel_audit_id"]).to_pylist() if row["origin"] != "control"}
    assert first["panel_extracted"] == len(panel & {"picture 0", "picture 1"})
    assert box.alert()["verdict"] == "first"
    # What it can see is said before it is made, the first one too: more is cheaper now than after a month.
    assert any("with 80% power, the panel of 11 prompts shows" in line for line in box.said)

    # The same date again is done, whatever changed; nothing runs.
    box.remember(range(20))
    with monkeypatch.context() as patch:
        patch.setattr(generate, "STAGE", dataclasses.replace(generate.STAGE, work=lambda *_: pytest.fail("made images again")))
        assert box.night("2026-01-01") == (0, first)
        box.remember([0, 1])
        patch.undo()

    # Nothing is new: the same audits, nothing made, nothing changed.
    monkeypatch.setattr(PlantedGenerator, "generate", lambda *_: pytest.fail("made images again"))
    hits = box.web.hits.copy()
    code, second = box.night("2026-01-02")
    monkeypatch.undo()
    monkeypatch.setattr(generate, "generator", lambda options, device, revision=None: box.model)
    monkeypatch.setattr(nightly, "say", box.said.append)
    assert (code, second["verdict"], second["p_value"]) == (0, "fine", 1.0)
    assert all(second[name] == first[name] for name in ("panel_audit_id", "rotating_audit_id", "rotating_seed"))
    assert (second["new_extractions"], second["gone_extractions"], second["samples_new"]) == (0, 0, 0)
    assert box.web.hits == hits

    # A model that gives back all, and four pictures more: worse.
    box.remember(range(24))
    box.metadata("training/tuesday", range(20, 24))
    capsys.readouterr()
    code, third = box.night("2026-01-03")
    assert (code, third["verdict"], third["exit_code"]) == (3, "worse", 3)
    shown = capsys.readouterr()
    assert "with 80% power, the panel of 11 prompts shows" in box.said[-1]
    assert shown.out.startswith("2026-01-03: worse; 100.00% (")
    assert third["compared_with"] == "2026-01-02" and third["samples_new"] == 4
    assert third["panel_prompts"] == 11 == third["panel_extracted"]
    assert (third["new_extractions"], third["gone_extractions"]) == (11 - first["panel_extracted"], 0)
    again = {row["text"] for row in box.lake.read("prompts", third["panel_audit_id"]).to_pylist() if row["origin"] != "control"}
    assert again == panel
    assert third["rotating_seed"] != second["rotating_seed"]
    # Of the old pictures none was downloaded again.
    assert all(box.web.hits[f"/{number}.png"] == 1 for number in range(24))
    told = box.alert()
    assert (told["exit_code"], told["p_values"]["before"]["panel"] <= 0.05) == (3, True)
    assert {row["kind"] for row in told["changes"]} == {"new"} and len(told["changes"]) == third["new_extractions"]
    report = (box.folder / "lake" / "report.html").read_text()
    texts = {row["prompt_id"]: row["text"] for row in box.lake.read("prompts", third["panel_audit_id"]).to_pylist()}
    assert all(texts[row["prompt_id"]] in report for row in told["changes"])
    assert "2026-01-02" in report and "http" not in (box.folder / "lake" / "alert.json").read_text()

    # Better than last night, and like the first.
    box.remember([0, 1])
    code, fourth = box.night("2026-01-04", baseline="2026-01-01")
    assert (code, fourth["verdict"], fourth["gone_extractions"]) == (0, "fine", third["new_extractions"])
    assert (fourth["baseline"], fourth["baseline_new_extractions"], fourth["baseline_gone_extractions"]) == ("2026-01-01", 0, 0)
    assert fourth["panel_audit_id"] == first["panel_audit_id"]

    _, rows = answer(box.lake, "SELECT date, verdict FROM history ORDER BY date")
    assert rows == [("2026-01-01", "first"), ("2026-01-02", "fine"), ("2026-01-03", "worse"), ("2026-01-04", "fine")]
    assert answer(box.lake, "SELECT count(*) FROM night_changes WHERE date = '2026-01-03'")[1] == [(len(told["changes"]),)]
    capsys.readouterr()
    assert run_verb(history.main, [f"--lake={box.lake.root}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"]
    assert lines[4].split()[-1] == "worse"


def test_failed_downloads_are_tried_again_for_some_nights(box):
    del box.web.pages["/5.png"], box.web.pages["/6.png"]
    _, first = box.night("2026-01-01")
    assert first["images"] == 21
    box.web.answer("/5.png", encode_png(pixels(5)))
    # The rows were decided on the day of this test, so nights count from there.
    _, second = box.night("2026-01-02", retry_nights=100_000)
    assert (second["images"], second["images_recovered"], second["samples_new"]) == (22, 1, 0)
    assert box.web.hits["/5.png"] == 2 == box.web.hits["/6.png"] and box.web.hits["/7.png"] == 1
    box.web.answer("/6.png", encode_png(pixels(6)))
    _, third = box.night("2026-01-03", retry_nights=0)
    assert third["images"] == 22 and box.web.hits["/6.png"] == 2


def test_a_picture_comes_back_on_the_night_on_which_there_is_more_metadata(box):
    del box.web.pages["/5.png"]
    box.night("2026-01-01")
    box.web.answer("/5.png", encode_png(pixels(5)))
    box.metadata("training/tuesday", range(20, 24))
    code, second = box.night("2026-01-02", retry_nights=100_000)
    assert (code, second["samples"], second["samples_new"], second["images_recovered"]) == (0, 27, 4, 1)
    assert second["images"] == 27


def test_a_night_without_controls_goes_by_its_copies(box):
    box.remember(range(20))
    words = [word for word in box.words("2026-01-01") if not word.startswith("--controls")]
    assert run_verb(nightly.main, words) == 0
    (first,) = nights.history(box.lake)
    assert first["rate_copied"] == first["rate"] == 1 and first["rate_seen"] is None
    assert "100.00% (" in box.alert()["message"] and "evidence" not in box.alert()["message"]
    assert first["verdict_used"] == "copied" and first["panel_extracted"] == first["panel_prompts"] == 12


def test_other_options_are_no_change_of_the_model(box):
    """Under wider limits more is a copy: that is no worse model, and says nothing about a later night either."""
    # All pictures come back, at an l2 of about 0.1: over the narrow limit, whichever prompts are drawn.
    box.model = PlantedGenerator({f"picture {number}": pixels(number) for number in range(PICTURES)}, noise=25.0)
    wide = {"delta": 0.9, "copy_l2": 0.99, "copy_ratio": 0.99}
    first = box.night("2026-01-01", delta=0.05)[1]
    code, second = box.night("2026-01-02", **wide)
    assert (code, second["verdict"], second["compared_with"]) == (0, "first", None)
    assert "other options than 2026-01-01" in "".join(box.said)
    assert second["panel_extracted"] == second["panel_prompts"] > first["panel_extracted"]
    code, third = box.night("2026-01-03", delta=0.05)
    assert (code, third["verdict"], third["compared_with"]) == (0, "fine", "2026-01-01")
    assert third["panel_extracted"] == first["panel_extracted"] and third["panel_match"] == first["panel_match"]
    # Somebody looks at the panel with other eyes between two nights.
    words = [f"--lake={box.lake.root}", "--device=cpu", *(f"--{name}={value}" for name, value in wide.items())]
    assert run_verb(match.main, words) == 0
    assert run_verb(measure.main, [f"--lake={box.lake.root}"]) == 0
    assert box.night("2026-01-04", delta=0.05)[1]["panel_extracted"] == first["panel_extracted"]
    assert box.night("2026-01-05", delta=0.05, baseline="2026-01-02") == (2, None)


def test_other_pictures_and_groups_are_no_change_of_the_model(box):
    box.first_night(0, 1)
    for number, options in enumerate(({"image_size": 32}, {"duplicate_threshold": 0.99}), 2):
        code, row = box.night(f"2026-01-0{number}", **options)
        assert (code, row["verdict"], row["compared_with"]) == (0, "first", None)


def test_a_night_that_broke_counts_what_was_new_when_it_goes_on(box):
    box.first_night()
    box.metadata("training/tuesday", range(20, 24))
    box.remember([3])
    box.model.load = lambda: (_ for _ in ()).throw(RuntimeError("no device"))
    assert box.night("2026-01-02") == (2, None)
    box.remember([3])
    assert box.night("2026-01-02")[1]["samples_new"] == 4


def test_a_night_that_was_killed_before_its_report_has_one_later(box, monkeypatch):
    box.first_night()
    with monkeypatch.context() as patch:
        patch.setattr(nightly, "show", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert box.night("2026-01-02")[0] == 130
    report = box.folder / "lake" / "report.html"
    assert "2026-01-02" not in report.read_text()
    assert box.night("2026-01-02")[0] == 0
    assert "2026-01-02" in report.read_text()
    assert answer(box.lake, "SELECT date FROM history ORDER BY date")[1] == [("2026-01-01",), ("2026-01-02",)]


def test_a_small_first_night_does_not_make_a_small_panel_for_ever(box):
    box.metadata("training/monday", range(2))
    first = box.night("2026-01-01")[1]
    assert (first["panel_prompts"], first["panel_size"]) == (2, 11)
    assert box.night("2026-01-02")[1]["panel_audit_id"] == first["panel_audit_id"]
    box.metadata("training/tuesday", range(2, 24))
    third = box.night("2026-01-03")[1]
    assert third["panel_prompts"] == 11 and "a new one is drawn" in "".join(box.said)
    assert box.night("2026-01-04")[1]["panel_audit_id"] == third["panel_audit_id"]


def test_the_panel_keeps_its_size_whatever_the_budget(box):
    first = box.first_night()
    more = box.night("2026-01-02", budget=130)[1]
    # 11 prompts and 3 controls are 50 images; of the other 80 the controls have 6.
    assert more["panel_audit_id"] == first["panel_audit_id"] and more["prompts_tried"] == 18 > first["prompts_tried"]
    # An image takes what this model took, or else what the model before took; the panel stays.
    box.remember([5])
    timed = box.night("2026-01-03", budget_seconds=100_000)[1]
    assert timed["panel_snapshot"] == first["panel_snapshot"] and timed["panel_prompts"] == 11
    assert box.night("2026-01-04", budget=55) == (2, None)
    assert "at least 60 are needed" in box.alert()["message"] and "the panel has its 11 prompts" in box.alert()["message"]


def test_alerts_of_done_and_of_newer_nights_stay(box):
    box.first_night()
    box.night("2026-01-03")
    newest = box.alert()
    box.night("2026-01-02")
    assert box.alert() == newest and box.alert()["date"] == "2026-01-03"
    with filelock.FileLock(box.lake.path("writer.lock")):
        assert box.night("2026-01-03")[0] == 2
    assert box.alert() == newest == json.loads((box.folder / "lake" / "nights" / "2026-01-03" / "alert.json").read_text())


def test_a_lake_in_which_nothing_has_a_caption_says_so(box, capsys):
    rows = [{"URL": f"{box.web.url}/{number}.png", "TEXT": " "} for number in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), box.folder / "training" / "monday.parquet")
    assert box.night("2026-01-01") == (2, None)
    assert "none of the 23 rows of metadata can be asked for" in capsys.readouterr().err


def test_the_webhook_gets_the_alert_and_may_fail(box):
    taken = []

    def take(handler):
        taken.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        handler.send_response(204)
        handler.end_headers()

    box.web.post("/hook", take)
    assert box.night("2026-01-01", webhook=f"{box.web.url}/hook")[0] == 0
    assert taken == [box.alert()] and taken[0]["night"]["date"] == "2026-01-01"
    # A date that is done is not told again.
    assert box.night("2026-01-01", webhook=f"{box.web.url}/hook")[0] == 0 and len(taken) == 1
    assert box.night("2026-01-02", webhook=f"{box.web.url}/nowhere")[0] == 0
    assert "the webhook did not take the alert" in box.said[-1]
    # Nor does one that answers nonsense, or is no address.
    box.web.post("/nonsense", lambda handler: handler.wfile.write(b"nonsense"))
    for number, url in enumerate((f"{box.web.url}/nonsense", "http://127.0.0.1:9/a b"), 10):
        assert box.night(f"2026-01-{number}", webhook=url)[0] == 0
        assert "the webhook did not take the alert" in box.said[-1] and box.alert()["date"] == f"2026-01-{number}"
    # What could not run is told as well.
    assert box.night("2026-01-20", webhook=f"{box.web.url}/hook", budget=1)[0] == 2
    assert (taken[-1]["exit_code"], taken[-1]["date"]) == (2, "2026-01-20") and "the budget is 1 images" in taken[-1]["message"]


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"b"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b""),
    ],
    ids=["status", "headers", "header", "continue", "silence"],
)
def test_a_webhook_that_dawdles_is_not_waited_for(site, monkeypatch, first, drip):
    web, _ = site
    said = []
    monkeypatch.setattr(nightly, "say", said.append)
    monkeypatch.setattr(nightly, "WEBHOOK_SECONDS", 0.6)

    def dawdle(handler):
        handler.close_connection = True
        handler.wfile.write(first)
        while not web.stopping.wait(0.05):
            handler.wfile.write(drip)

    web.post("/dawdles", dawdle)
    begun = time.monotonic()
    nightly.post(f"{web.url}/dawdles", b"{}")
    assert time.monotonic() - begun < 2
    (line,) = said
    assert "the webhook did not take the alert: " in line and ("longer than 0.6 s" in line or "timed out" in line)


def test_what_a_webhook_answers_rewrites_no_terminal_and_gives_nothing_away(site, monkeypatch):
    web, _ = site

    def hostile(handler):
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 500 \x1b[2J gone \x9b http://u:hunter2@h/?sig=hunter2 " + b"x" * 1000 + b"\r\n\r\n")

    web.post("/hostile", hostile)
    terminal = io.StringIO()
    monkeypatch.setattr("pipelines.execution._terminal", terminal)
    nightly.post(f"{web.url}/hostile", b"{}")
    line = terminal.getvalue()
    assert r"\x1b[2J gone \x9b http://redacted@h/?sig=redacted-" in line and line.count("\n") == 1 and len(line) < 500
    assert "hunter2" not in line and "\x1b" not in line


def test_the_webhook_gets_the_alert_when_the_lake_is_free_again(box):
    free = []

    def take(handler):
        # From another process's view: the same file, another lock.
        lock = filelock.FileLock(box.lake.path("nightly.lock"))
        with contextlib.suppress(filelock.Timeout), lock.acquire(timeout=0):
            free.append(box.alert()["date"])
        handler.send_response(204)
        handler.end_headers()

    box.web.post("/hook", take)
    assert box.night("2026-01-01", webhook=f"{box.web.url}/hook")[0] == 0
    assert free == ["2026-01-01"]


def test_a_second_night_at_once_waits_or_says_so(box, capsys):
    box.lake.create()
    with filelock.FileLock(box.lake.path("writer.lock")):
        assert box.night("2026-01-01") == (2, None)
        assert "is at work on the lake" in capsys.readouterr().err
        words = [sys.executable, "-m", "pipelines.nightly", *box.words("2026-01-01", wait=120, model="nowhere")]
        waiting = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert "waiting for up to 120 s" in next(line for line in waiting.stderr if line.startswith("nightly"))
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
    # Its turn now: it goes on, and finds that there is no such model.
    assert waiting.wait(120) == 2
    assert "nowhere" in waiting.stderr.read()


def test_a_night_with_nothing_new_loads_no_model(box, monkeypatch):
    monkeypatch.undo()
    save_random_pipeline(str(box.folder / "model"))
    words = box.words("2026-01-01", model=box.folder / "model", steps=1)
    assert run_verb(nightly.main, words) == 0
    words = box.words("2026-01-02", model=box.folder / "model", steps=1)
    heavy = [name for name in HEAVY if name != "duckdb"]
    code = (
        "import sys; from pipelines import cli; code = cli.main(['nightly', *sys.argv[1:]]); "
        f"print(code, [name for name in {heavy!r} if name in sys.modules]); cli.leave(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    first, second = nights.history(box.lake)
    assert second["panel_audit_id"] == first["panel_audit_id"] and second["verdict"] == "fine"


def test_what_breaks_on_the_way_is_exit_code_2_and_the_night_goes_on_later(box, capsys):
    box.remember([0, 1])
    real = box.model.load
    box.model.load = lambda: (_ for _ in ()).throw(RuntimeError("no device"))
    assert box.night("2026-01-01") == (2, None)
    assert "the night could not run" in capsys.readouterr().err
    assert (box.alert()["exit_code"], box.alert()["verdict"]) == (2, "could not run")
    box.model.load = real
    assert box.night("2026-01-01")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "--budget is 0, expected over 0"),
        ({"panel_share": 1}, "--panel_share is 1.0, expected between 0 and 1"),
        ({"significance": "nan"}, "--significance is nan, expected between 0 and 1"),
        ({"retry_nights": -1}, "--retry_nights is -1, expected 0 to 100,000"),
        ({"retry_nights": 800_000}, "--retry_nights is 800000, expected 0 to 100,000"),
        ({"webhook": "file:///etc/passwd"}, "expected an http or https URL"),
        (
            {"baseline": "2025-12-31"},
            "--baseline is '2025-12-31', which is no night of this lake with these options; there are: none",
        ),
        ({"prompts": "mine.txt"}, "leave --prompts and --generations to audit"),
    ],
)
def test_mistakes_are_one_line(box, capsys, options, message):
    assert run_verb(nightly.main, box.words("2026-01-01", **options)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("eidetic: ") and message in said


@pytest.mark.parametrize("date", ["yesterday", "2026-1-1", "20260101"])
def test_a_date_is_a_date(box, capsys, date):
    assert run_verb(nightly.main, box.words(date)) == 2
    assert f"--date is {date!r}, expected a date as YYYY-MM-DD" in capsys.readouterr().err


def test_the_alert_names_both_numbers():
    rates = {f"rate{name}{end}": value for name, shift in (("", 0), ("_copied", 0.1), ("_seen", 0.2))
             for end, value in (("", 0.2 + shift), ("_lower", 0.1 + shift), ("_upper", 0.3 + shift))}  # fmt: skip
    row = {"date": "2026-01-02", "verdict": "fine", "verdict_used": "extracted_calibrated", "compared_with": "2026-01-01",
           "new_extractions": 2, "gone_extractions": 1, "p_value": 0.5, "baseline": None, **rates}  # fmt: skip
    assert nightly.summary(row) == (
        "2026-01-02: fine; 30.00% (20.00% to 40.00%) of the prompts return their own image as a copy, and of 40.00% (30.00% to "
        "50.00%) there is evidence that the model was trained on it; against 2026-01-01: 2 new, 1 gone in the panel (copied "
        "and seen), p = 0.5"
    )
    without = {**row, "verdict_used": "copied", **dict.fromkeys(("rate_seen", "rate_seen_lower", "rate_seen_upper"))}
    assert nightly.summary(without) == (
        "2026-01-02: fine; 30.00% (20.00% to 40.00%) of the prompts return their own image as a copy; against 2026-01-01: 2 "
        "new, 1 gone in the panel (copied), p = 0.5"
    )


def test_with_controls_enough_a_night_goes_by_copied_and_seen(box):
    """Of three controls two generations each: their blocks are two, so that 0.6 is the least rate that a rank has."""
    box.remember(range(20))
    code, row = box.night("2026-01-01", max_false_positive_rate=0.6)
    assert (code, row["verdict_used"]) == (0, "extracted_calibrated")
    assert row["panel_extracted"] == 11 and row["rate"] == row["rate_copied"] == row["rate_seen"] == 1
    assert "evidence that the model was trained on it" in box.alert()["message"]
    assert box.alert()["night"]["images_copied"] == row["images_copied"] == row["prompts_tried"]


def test_a_lake_without_nights_has_no_history(tmp_path, capsys):
    lake = Lake(str(tmp_path))
    lake.create()
    assert run_verb(history.main, [f"--lake={tmp_path}"]) == 2
    assert "has no night yet; run 'eidetic nightly' first" in capsys.readouterr().err


def test_the_nights_are_in_the_reports_that_are_made_after_a_request_to_forget(box):
    box.first_night(0, 1)
    box.remember(range(24))
    box.metadata("training/tuesday", range(20, 24))
    _, second = box.night("2026-01-02")
    _, changed = answer(box.lake, "SELECT sample_id, caption FROM night_changes JOIN samples USING (sample_id) ORDER BY 2")
    assert len(changed) == second["new_extractions"] >= 9
    report = box.folder / "lake" / "reports" / f"{second['rotating_audit_id']}.html"
    before = report.read_text()
    assert run_verb(forget.main, [f"--lake={box.lake.root}", f"--sample_ids={changed[0][0]}"]) == 0
    # Tonight's samples lie over those of the night before, in whose files it was.
    assert box.lake.manifest("ingest", second["ingest_snapshot"]).upstream
    samples = {row["sample_id"]: row for row in box.lake.read("samples", second["ingest_snapshot"]).to_pylist()}
    assert samples[changed[0][0]]["status"] == "forgotten" and len(samples) == 27
    after = report.read_text()
    for date in ("2026-01-01", "2026-01-02"):
        assert f'<th scope="row">{date}</th>' in before and f'<th scope="row">{date}</th>' in after
    assert all(caption in before for _, caption in changed)
    # One of them is gone, and is still told of without a word; a caption may be the beginning of another.
    assert f">{changed[0][1]}<" in before and f">{changed[0][1]}<" not in after
    assert all(caption in after for _, caption in changed[1:])
    assert after.count("sample " + changed[0][0][:12]) == 1


def test_a_night_is_compared_with_what_is_left_after_a_request_to_forget(box, monkeypatch):
    first = box.first_night(0, 1)
    sample = next(
        row for row in box.lake.read("samples", first["ingest_snapshot"]).to_pylist() if row["caption"] == "picture 7"
    )
    assert run_verb(forget.main, [f"--lake={box.lake.root}", f"--sample_ids={sample['sample_id']}"]) == 0
    # Other SQL, other marts: their snapshots have other names than on the first night.
    monkeypatch.setattr(marts, "sql_digest", lambda: "another")
    assert run_verb(measure.main, [f"--lake={box.lake.root}"]) == 0
    code, second = box.night("2026-01-02")
    assert (code, second["verdict"], second["verdict_used"]) == (0, "fine", first["verdict_used"])
    drawn = {row["sample_id"] for row in box.lake.read("prompts", first["panel_audit_id"]).to_pylist()}
    assert second["panel_prompts"] == first["panel_prompts"] - (sample["sample_id"] in drawn)
    for manifest in box.lake.manifests("measure"):
        os.remove(box.lake.path("manifests", "measure", f"{manifest.snapshot_id}.json"))
    with pytest.raises(UserError, match="the night 2026-01-02 has no marts of its matches"):
        nights.read_night(box.lake, second)


def test_an_audit_that_was_matched_twice_is_left_to_both_nights_by_a_request_to_forget(box):
    """The nights' matches are not the audit's newest: their marts are made again all the same."""
    first = box.first_night(0, 1)
    assert run_verb(match.main, [f"--lake={box.lake.root}", "--device=cpu", "--delta=0.01"]) == 0
    assert run_verb(measure.main, [f"--lake={box.lake.root}"]) == 0
    matches = {manifest.snapshot_id: manifest.upstream["generate"] for manifest in box.lake.manifests("match")}
    assert len(matches) == 3 and len(set(matches.values())) == 2
    sample = box.lake.read("samples", first["ingest_snapshot"]).to_pylist()[7]["sample_id"]
    assert run_verb(forget.main, [f"--lake={box.lake.root}", f"--sample_ids={sample}"]) == 0
    assert {manifest.upstream["match"] for manifest in box.lake.manifests("measure")} == set(matches)
    assert box.night("2026-01-02")[1]["verdict"] == "fine"


def test_a_night_that_was_killed_while_it_told_is_told_when_it_runs_again(box, monkeypatch):
    box.first_night()
    real = nightly.write_bytes

    def killed(path, content):
        if killed.left == 0:
            raise KeyboardInterrupt
        killed.left -= 1
        real(path, content)

    for number in (0, 1):
        killed.left = number
        with monkeypatch.context() as patch:
            patch.setattr(nightly, "write_bytes", killed)
            assert box.night(f"2026-01-0{2 + number}")[0] == 130
        assert box.night(f"2026-01-0{2 + number}")[0] == 0
        assert box.alert()["date"] == f"2026-01-0{2 + number}"


def test_a_night_keeps_its_date_past_midnight(box, monkeypatch):
    moments = [datetime.datetime(2026, 1, 1, 23, 59, tzinfo=datetime.UTC)]
    clock = types.SimpleNamespace(**vars(datetime))
    clock.datetime = types.SimpleNamespace(now=lambda _: moments[-1])
    monkeypatch.setattr(nightly, "datetime", clock)

    def midnight(*_):
        moments.append(datetime.datetime(2026, 1, 2, 0, 1, tzinfo=datetime.UTC))
        raise UserError("no device")

    monkeypatch.setattr(nightly, "run", midnight)
    words = [word for word in box.words("") if not word.startswith("--date")]
    assert run_verb(nightly.main, words) == 2
    assert box.alert()["date"] == "2026-01-01"


def test_the_page_of_the_lake_stays_that_of_the_newest_night(box):
    box.first_night(0, 1)
    box.remember([2, 3])
    newest = box.night("2026-01-03")[1]
    box.remember([4, 5])
    box.night("2026-01-02")
    report = box.folder / "lake" / "reports" / f"{newest['rotating_audit_id']}.html"
    assert (box.folder / "lake" / "report.html").read_text() == report.read_text()
    assert "2026-01-02" in report.read_text()


def test_a_model_that_changes_during_the_night_is_no_night_of_the_model_before(box, monkeypatch, capsys):
    real = nightly.deduplicate.STAGE

    def replaced(*words):
        box.remember([0, 1])
        return real.work(*words)

    with monkeypatch.context() as patch:
        patch.setattr(nightly.deduplicate, "STAGE", dataclasses.replace(real, work=replaced))
        assert box.night("2026-01-01") == (2, None)
    assert "changed while the night was at work" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(
        generate, "generator", lambda options, device, revision=None: asked.append(revision or options.revision) or box.model
    )
    code, row = box.night("2026-01-01")
    assert (code, row["model_revision"]) == (0, box.model.revision())
    # A branch of the hub is looked up once.
    assert asked[0] is None and len(asked) > 2 and set(asked[1:]) == {row["model_revision"]}


def test_a_webhook_that_has_moved_did_not_take_the_alert(box):
    """A redirected POST would become a GET without the alert, and be answered as if all were well."""
    box.web.answer("/page", b"welcome")

    def moved(handler):
        handler.send_response(301)
        handler.send_header("Location", "/page")
        handler.end_headers()

    box.web.post("/hook", moved)
    assert box.night("2026-01-01", webhook=f"{box.web.url}/hook")[0] == 0
    assert "the webhook did not take the alert" in box.said[-1] and not box.web.hits["/page"]


@pytest.mark.parametrize(("before", "after"), [(9, 1), (1, 9)])
def test_each_half_makes_images_of_its_own_controls(box, before, after):
    """The panel keeps the controls that there were when it was drawn."""
    for number, controls in enumerate((before, after), 1):
        box.metadata("controls", range(PICTURES - controls, PICTURES))
        (box.folder / "controls.parquet").rename(box.folder / "controls" / "held_out.parquet")
        box.remember([number])
        code, row = box.night(f"2026-01-0{number}")
        audits = (row["panel_audit_id"], row["rotating_audit_id"])
        made = sum(one["images_requested"] for audit in audits for one in box.lake.read("prompts", audit).to_pylist())
        assert code == 0 and 100 - 8 < made <= 100


def test_a_night_that_goes_on_downloads_nothing_again(box, monkeypatch):
    del box.web.pages["/5.png"]
    box.night("2026-01-01")
    box.metadata("training/tuesday", range(20, 24))
    with monkeypatch.context() as patch:
        # Killed when all is downloaded, but for the manifest.
        patch.setattr(ingest, "partitions", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert box.night("2026-01-02", retry_nights=100_000)[0] == 130
    box.web.answer("/5.png", encode_png(pixels(5)))
    assert box.night("2026-01-02", retry_nights=100_000)[1]["samples_new"] == 4
    assert all(box.web.hits[f"/{number}.png"] == 1 for number in range(20, 24))
    assert box.night("2026-01-03", retry_nights=100_000)[1]["images_recovered"] == 1


def test_what_is_new_is_counted_where_other_metadata_are_gone(box):
    box.first_night()
    box.metadata("training/monday", range(10, 22))
    assert box.night("2026-01-02")[1]["samples_new"] == 2


def test_an_image_takes_what_it_took_however_often_the_night_broke(box, monkeypatch):
    real = PlantedGenerator.generate

    def slow(model, wanted):
        for made in real(model, wanted):
            slow.left -= 1
            if slow.left == 0:
                raise UserError("out of memory")
            yield {number: dataclasses.replace(attempt, seconds=0.05) for number, attempt in made.items()}

    monkeypatch.setattr(PlantedGenerator, "generate", slow)
    slow.left = 11 + 3
    assert box.night("2026-01-01")[0] == 2
    code, row = box.night("2026-01-01")
    assert code == 0
    panel = next(one for one in box.lake.manifests("generate") if one.snapshot_id == row["panel_audit_id"])
    monkeypatch.setattr(Lake, "manifests", lambda lake, stage: [panel])
    assert 0.05 <= generate.seconds_per_image(box.lake, box.model.revision()) < 1
