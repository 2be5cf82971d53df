"""The audit end to end on the embedded default, small: what was planted is found, and the numbers are those of plain numpy."""

import html
import itertools
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from demo.questions import PAGE, questions, with_answers
from pipelines import cli
from pipelines.query import answer
from tests.browser import needs_chromium, opened, serious_violations
from transforms.kernels.distances import COARSE
from transforms.store.lake import Lake
from transforms.store.pictures import decode

SCALE = 0.06
RATE = 0.1
PORT = 18277
"""Fixed: the port is part of every url, so of every sample's identity and of every seed."""

MEMORISED = Path(__file__).resolve().parent.parent / "demo" / "models" / "memorised.json"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    return [
        "demo", f"--lake={root}/lake", f"--site={root}/site", f"--port={PORT}", f"--scale={SCALE}",
        # As many generations for a control as for a prompt: 24 controls are few, and so each must count in full.
        "--max_prompts=1000", "--images_per_control=6", f"--max_false_positive_rate={RATE}", "--unflagged_fraction=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def audit(words):
    assert cli.main(words) == 0
    root = Path(words[1].removeprefix("--lake=")).parent
    return Lake(str(root / "lake")), pq.read_table(root / "site" / "truth.parquet").to_pylist()


def root_mean_square(difference):
    return np.sqrt((difference**2).mean())


def coarse(picture):
    """The means of equal parts of a picture of 64 pixels, taken of an enlargement that they divide."""
    side = math.lcm(64, COARSE)
    large = picture.repeat(side // 64, axis=0).repeat(side // 64, axis=1)
    return large.reshape(COARSE, side // COARSE, COARSE, side // COARSE, 3).mean(axis=(1, 3))


def rows(lake, question):
    names, found = answer(lake, question)
    return [dict(zip(names, row, strict=True)) for row in found]


@pytest.fixture(scope="module")
def truth(audit):
    """sample_id → the row of truth that it came from."""
    lake, planted = audit
    by_row = {(row["URL"], row["TEXT"]): row for row in planted}
    return {row["sample_id"]: by_row[row["url"], row["caption"]] for row in rows(lake, "SELECT * FROM samples")}


def test_every_row_has_the_status_that_was_planted(audit, truth):
    lake, _ = audit
    expected = {"dead": "failed_to_download", "slow": "failed_to_download", "not_an_image": "failed_to_download",
                "not_http": "failed_to_download", "opted_out": "opted_out", "unsafe": "filtered"}  # fmt: skip
    for row in rows(lake, "SELECT sample_id, status, reason FROM samples"):
        assert row["status"] == expected.get(truth[row["sample_id"]]["kind"], "success")
        assert (row["reason"] is None) == (row["status"] == "success")


def test_the_pairs_are_those_that_were_planted(audit, truth):
    """Precision 1 over all pairs; recall 1 over same pictures, re-encodings and resizes. Crops are stated in docs."""
    lake, _ = audit
    found = {(row["sample_id_a"], row["sample_id_b"]) for row in rows(lake, "SELECT * FROM duplicate_pairs")}
    embedded = sorted(row["sample_id"] for row in rows(lake, "SELECT sample_id FROM duplicate_groups"))
    planted = {(a, b) for a, b in itertools.combinations(embedded, 2) if truth[a]["slug"] == truth[b]["slug"]}
    assert found <= planted
    cropped = {pair for pair in planted if any(truth[sample]["kind"] == "cropped" for sample in pair)}
    assert planted - cropped <= found
    print(f"crops: {len(cropped & found)} of {len(cropped)} pairs found")
    assert len(cropped & found) >= 0.9 * len(cropped)


def test_groups_are_logos(audit, truth):
    lake, _ = audit
    for row in rows(lake, "SELECT group_id, list(sample_id) AS members FROM duplicate_groups GROUP BY group_id"):
        assert len({truth[sample]["slug"] for sample in row["members"]}) == 1


def test_what_the_model_card_calls_memorised_comes_back_as_copies(audit, truth):
    lake, _ = audit
    slugs = {row["slug"] for row in truth.values()}
    memorised = set(json.loads(MEMORISED.read_text())) & slugs
    assert len(memorised) >= 5
    for verdict in ("extracted", "copied", "extracted_calibrated"):
        called = {truth[row["sample_id"]]["slug"] for row in rows(lake, f"SELECT * FROM extractions WHERE {verdict}")}
        assert len(memorised & called) >= 0.95 * len(memorised), (verdict, memorised - called)


def test_single_copies_are_mostly_not_extracted(audit):
    lake, _ = audit
    single = rows(lake, "SELECT * FROM extraction_rate WHERE dimension = 'duplicates' AND bucket = '1'")[0]
    many = rows(lake, "SELECT sum(prompts_extracted) / sum(prompts_tried) AS rate FROM extraction_rate "
                "WHERE dimension = 'duplicates' AND fewest_duplicates >= 16")[0]  # fmt: skip
    assert single["rate"] <= 0.25
    assert many["rate"] >= 0.6


def test_controls_are_called_no_more_often_than_promised(audit):
    lake, _ = audit
    chosen = rows(lake, "SELECT * FROM calibration WHERE chosen")[0]
    assert chosen["n_controls"] == 24
    assert chosen["controls_called"] <= RATE * chosen["n_controls"]
    assert 0 < chosen["promised_rate"] <= RATE
    reported = {(row["verdict"], row["tried_on"]): row for row in rows(lake, "SELECT * FROM false_positives")}
    assert reported["extracted, own image", "controls"]["called"] == chosen["controls_within_delta"]
    # Of held-out pictures, each as if it were a generation, no more than was asked for are called copies.
    held_out = reported["copied", "held_out"]
    assert held_out["pictures"] == 24
    assert held_out["called"] <= RATE * held_out["pictures"]


def test_the_numbers_are_those_of_plain_numpy(audit):
    """From the stored pictures alone: no kernel of ours, no SQL; square pictures, where nothing need be aligned."""
    lake, _ = audit
    pictures = {row["sample_id"]: np.asarray(decode(row["image"]), float) / 255 for row in rows(lake, "SELECT * FROM images")}
    groups = rows(lake, "SELECT group_id, list(sample_id) AS members FROM duplicate_groups GROUP BY group_id")
    members = {row["group_id"]: row["members"] for row in groups}
    made: dict[str, list[np.ndarray]] = {}
    for row in rows(lake, "SELECT prompt_id, image FROM generations WHERE image IS NOT NULL"):
        made.setdefault(row["prompt_id"], []).append(np.asarray(decode(row["image"]), float) / 255)
    representatives = {row["group_id"]: row["representative"] for row in rows(lake, "SELECT * FROM duplicate_groups")}
    coarse_of = {group: coarse(pictures[one]) for group, one in representatives.items() if pictures[one].shape == (64, 64, 3)}
    (limits,) = rows(lake, "SELECT * FROM copy_calibration")
    checked = 0
    for verdict in rows(lake, "SELECT * FROM verdicts WHERE origin = 'duplicates'"):
        own = [pictures[sample] for sample in members[verdict["group_id"]]]
        if any(picture.shape != (64, 64, 3) for picture in own):
            continue
        caption_of = pictures[representatives[verdict["group_id"]]]
        image = min(made[verdict["prompt_id"]], key=lambda image: root_mean_square(image - caption_of))
        nearest = min(own, key=lambda picture: root_mean_square(image - picture))
        assert verdict["own_l2"] == pytest.approx(root_mean_square(image - nearest), abs=1e-6)
        assert verdict["extracted_own"] == (verdict["own_l2"] <= 0.15)
        square = [picture for group, picture in coarse_of.items() if group != verdict["group_id"]]
        own_coarse = root_mean_square(coarse(image) - coarse(nearest))
        assert verdict["own_coarse_l2"] == pytest.approx(own_coarse, abs=1e-5)
        near = sorted(root_mean_square(coarse(caption_of) - picture) for picture in square)[:9]
        if not any(a <= 0.15 and a < limits["coarse_ratio_limit"] * b for a, b in itertools.pairwise(near)):  # it has no twin
            ratio = own_coarse / min(root_mean_square(coarse(image) - picture) for picture in square)
            # Others that aren't square are left out here, so the ratio can be larger than this.
            assert verdict["own_coarse_ratio"] >= ratio - 1e-5
            close = verdict["own_l2"] <= limits["l2_limit"] and own_coarse < limits["coarse_l2_limit"]
            copied = close and ratio < limits["coarse_ratio_limit"]
            assert verdict["copied"] == copied
        checked += 1
    assert checked >= 30
    for row in rows(lake, "SELECT * FROM extraction_rate WHERE dimension = 'duplicates'"):
        of_stratum = [v for v in rows(lake, "SELECT * FROM verdicts") if v["stratum"] == row["bucket"]]
        assert row["prompts_tried"] == len(of_stratum)
        assert row["prompts_extracted"] == sum(v["extracted"] for v in of_stratum)
        assert row["rate"] == pytest.approx(row["prompts_extracted"] / len(of_stratum))


def test_k_counts_the_near_images_of_the_training_set(audit, truth):
    lake, _ = audit
    pictures = {row["sample_id"]: np.asarray(decode(row["image"]), float) / 255
                for row in rows(lake, "SELECT * FROM images WHERE role = 'training'")}  # fmt: skip
    square = {sample: picture for sample, picture in pictures.items() if picture.shape == (64, 64, 3)}
    checked = 0
    for row in rows(lake, "SELECT sample_id, k FROM extractions LIMIT 20"):
        if row["sample_id"] not in square:
            continue
        target = square[row["sample_id"]]
        near = sum(np.sqrt(((target - other) ** 2).mean()) <= 0.1 for other in square.values())
        # Pictures that aren't square can only add to it: some crop of them may come near.
        assert near <= row["k"] <= near + len(pictures) - len(square)
        assert row["k"] >= 1
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("question", questions(), ids=lambda question: question.title)
def test_the_questions_of_the_page_have_answers(audit, question):
    """On a smaller corpus than the page's own, so with other numbers, but the same columns."""
    lake, _ = audit
    names, found = answer(lake, question.sql)
    assert question.answer.splitlines()[0].split() == names
    assert found or "rare" in question.title


def test_there_are_ten_questions_and_their_answers_can_be_written(audit):
    lake, _ = audit
    page = PAGE.read_text()
    assert len(questions()) == page.count("```sql") == page.count("\n## ") == 10
    written = with_answers(page, lake)
    assert written.count("```") == page.count("```") and with_answers(written, lake) == written


@needs_chromium
def test_the_report_in_a_browser(audit):
    lake, _ = audit
    with opened(lake.path("report.html")) as browser:
        assert browser.page.locator(".pairs > li").count() == len(rows(lake, "SELECT * FROM extractions")) > 0
        assert browser.page.locator("h1").inner_text().split("%")[0].replace(".", "").isdigit()
        assert serious_violations(browser.page) == []
        assert browser.tried == []


def test_the_reports_command_makes_the_picture_again(audit, tmp_path, capsys):
    lake, _ = audit
    page = Path(lake.path("report.html")).read_text()
    command = html.unescape(re.findall(r"<code>(eidetic again .*?)</code>", page)[0])
    assert cli.main([*shlex.split(command)[1:], f"--out={tmp_path}/again.png", "--device=cpu"]) == 0
    assert decode((tmp_path / "again.png").read_bytes()).size == (64, 64)
    (distance,) = re.findall(r"l2 +(\S+) to the picture of the audit", capsys.readouterr().out)
    assert float(distance) < 1 / 255


def test_a_second_audit_finds_everything_complete(audit, words, capsys):
    lake, _ = audit
    before = rows(lake, "SELECT * FROM extraction_rate")
    stages = ("ingest", "embed", "deduplicate", "generate", "match", "measure")
    stamps = {stage: lake.latest(stage).finished_at for stage in stages}
    assert cli.main(words) == 0
    assert {stage: lake.latest(stage).finished_at for stage in stamps} == stamps
    assert rows(lake, "SELECT * FROM extraction_rate") == before
    shown = capsys.readouterr().out
    for part in ("95% interval", "reports/", "audit.duckdb", "eidetic query"):
        assert part in shown


def test_the_plan_runs_nothing(words, tmp_path, capsys):
    other = [f"--lake={tmp_path}/lake" if word.startswith("--lake=") else word for word in words]
    assert cli.main([*other, "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "generate" in shown
    assert "to do" in shown
    assert not (tmp_path / "lake").exists()
