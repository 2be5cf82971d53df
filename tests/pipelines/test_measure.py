"""The verb measure: its snapshot, what it leaves in the lake, what it says, and its errors."""

import os
import shlex

import duckdb
import pytest

from pipelines import measure
from pipelines.cli import run_verb
from pipelines.execution import Execution
from pipelines.measure import MeasureOptions
from pipelines.options import Parsed
from tests.fakes import fake_lake
from transforms.results import marts
from transforms.store.lake import Lake


def run(fake, **options):
    return measure.STAGE.run(Execution(fake.lake, []), Parsed.of(MeasureOptions(**options)))


def ask(lake, sql):
    with duckdb.connect(os.path.join(lake.root, "audit.duckdb"), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def test_it_leaves_marts_database_and_report(tmp_path):
    fake = fake_lake(tmp_path)
    manifest = run(fake)
    assert manifest.upstream == {"match": fake.match.snapshot_id}
    assert manifest.facts["audit_id"] == fake.generate.snapshot_id
    assert set(manifest.facts["marts"]) == set(marts.MARTS)
    page = (tmp_path / "report.html").read_bytes()
    assert page == (tmp_path / "reports" / f"{fake.generate.snapshot_id}.html").read_bytes()
    assert ask(fake.lake, "SELECT count(*) FROM verdicts") == [(len(fake.behaviour),)]


def test_what_there_is_none_of_yet_can_be_asked_for(tmp_path):
    fake = fake_lake(tmp_path)
    run(fake)
    for table in ("history", "night_changes", "tombstones"):
        assert ask(fake.lake, f"SELECT * FROM {table}") == []
    assert ask(fake.lake, "SELECT max(rate), any_value(snapshot_id) FROM history") == [(None, None)]


def test_a_second_run_does_nothing(tmp_path):
    fake = fake_lake(tmp_path)
    first = run(fake)
    written = [tmp_path / "report.html", *tmp_path.glob("verdicts/*/*.parquet")]
    before = [os.stat(path).st_mtime_ns for path in written]
    assert run(fake) == first
    assert [os.stat(path).st_mtime_ns for path in written] == before
    # A database that was deleted comes back.
    os.remove(tmp_path / "audit.duckdb")
    assert run(fake) == first
    assert ask(fake.lake, "SELECT count(*) FROM verdicts") == [(len(fake.behaviour),)]


def test_matching_again_takes_the_place_of_the_audits_rows(tmp_path):
    run(fake_lake(tmp_path))
    again = fake_lake(tmp_path, delta=0.01)
    run(again)
    assert ask(again.lake, "SELECT DISTINCT audit_id, snapshot_id FROM matches") == [
        (again.generate.snapshot_id, again.match.snapshot_id)
    ]
    assert ask(again.lake, "SELECT sum(prompts_extracted) FROM extraction_rate") == [(0,)]


def test_what_was_asked_for_last_is_what_is_shown(tmp_path):
    first = fake_lake(tmp_path)
    run(first)
    page = (tmp_path / "report.html").read_bytes()
    again = fake_lake(tmp_path, delta=0.01)
    run(again)
    assert (tmp_path / "report.html").read_bytes() != page
    # The first matches are still there, with their marts: nothing is made, and all of it is shown.
    measure.STAGE.run(Execution(first.lake, []), Parsed.of(MeasureOptions()), first.match)
    assert ask(first.lake, "SELECT DISTINCT snapshot_id FROM matches") == [(first.match.snapshot_id,)]
    assert ask(first.lake, "SELECT sum(prompts_extracted) FROM extraction_rate") != [(0,)]
    assert (tmp_path / "report.html").read_bytes() == page
    assert (tmp_path / "reports" / f"{first.generate.snapshot_id}.html").read_bytes() == page


def test_two_audits_stand_side_by_side(tmp_path):
    first = fake_lake(tmp_path)
    run(first)
    second = fake_lake(tmp_path, model="another", base_seed=1)
    run(second)
    audits = [first.generate.snapshot_id, second.generate.snapshot_id]
    for table in ("extraction_rate", "verdicts", "audits", "matches", "prompts"):
        assert {row for (row,) in ask(first.lake, f"SELECT DISTINCT audit_id FROM {table}")} == set(audits), table
    assert sorted(os.listdir(tmp_path / "reports")) == sorted(f"{audit}.html" for audit in audits)


def test_a_folder_above_the_lake_that_looks_like_a_partition(tmp_path):
    """DuckDB takes "role=x" in a path for a column of that name, which would make every sample's role x."""
    plain = fake_lake(tmp_path / "plain")
    odd = fake_lake(tmp_path / "role=x" / "snapshot_id=no" / "it's a lake")
    counts = [run(fake).facts["marts"] for fake in (plain, odd)]
    assert counts[0] == counts[1] and counts[0]["extractions"] > 0
    question = "SELECT role, snapshot_id, count(*) FROM samples GROUP BY ALL ORDER BY ALL"
    assert ask(odd.lake, question) == ask(plain.lake, question)


def test_what_a_killed_run_or_a_move_left_behind_is_mended(tmp_path):
    fake = fake_lake(tmp_path / "before")
    manifest = run(fake)
    os.remove(fake.lake.path("audit.duckdb"))
    os.remove(fake.lake.path("reports", f"{manifest.facts['audit_id']}.html"))
    os.rename(tmp_path / "before", tmp_path / "after")
    moved = Lake(str(tmp_path / "after"))
    again = measure.STAGE.run(Execution(moved, []), Parsed.of(MeasureOptions()), fake.match)
    assert again == manifest
    assert os.path.exists(moved.path("reports", f"{manifest.facts['audit_id']}.html"))
    assert ask(moved, "SELECT count(*) FROM extractions") == [(manifest.facts["marts"]["extractions"],)]


def test_the_summary_ends_with_a_query_that_can_be_pasted(tmp_path):
    fake = fake_lake(tmp_path / "it's a lake")
    said = measure.summary(fake.lake, run(fake)).splitlines()
    assert said[1].split()[:5] == ["duplicates", "tried", "flagged", "copied", "rate"]
    assert said[3].startswith("all drawn ")
    assert [line.split()[0] for line in said[4:9]] == ["1", "2", "3-4", "5-8", "9-16"]
    words = shlex.split(said[-1])
    assert words[words.index("--lake") + 1] == fake.lake.root
    assert words[1:3] == ["eidetic", "query"]
    assert ask(fake.lake, words[3])
    paths = {line.split()[0]: line.split(None, 1)[1] for line in said if line.startswith(("report ", "database "))}
    assert all(os.path.exists(path) for path in paths.values()) and len(paths) == 2


def test_the_summary_without_controls(tmp_path):
    said = measure.summary(*summed(fake_lake(tmp_path, controls=0))).splitlines()
    # Copies need no controls; what was seen is left open.
    assert said[3].split()[4:10] == ["4", "40.0%", "15.0%", "to", "71.7%", "-"]
    assert "prompts that return their own image: 40.0% (15.0% to 71.7%)" in said


def summed(fake):
    return fake.lake, run(fake)


def test_the_summary_has_both_numbers_by_their_names(tmp_path):
    said = measure.summary(*summed(fake_lake(tmp_path, controls_that_copy=2))).splitlines()
    assert [line for line in said if ": " in line] == [
        "prompts that return their own image: 40.0% (15.0% to 71.7%); trained on, by the evidence: 40.0% (15.0% to 71.7%)",
        "training images that came back at all: 6 (4 by their own caption, 2 by others alone, 1 by captions of controls)",
    ]
    assert all(len(line) <= 120 for line in said if not line.startswith(("report ", "database ", "query ")))


def test_the_summary_of_a_list_that_is_nobodys_captions(tmp_path):
    said = measure.summary(*summed(fake_lake(tmp_path, max_prompts=0, listed=["nobody's words"]))).splitlines()
    assert "prompts that return some training image: 0.0% (0.0% to 95.0%)" in said
    assert (
        "training images that came back at all: 0 (0 by their own caption, 0 by others alone, 0 by captions of controls)"
        in said
    )


def test_a_failed_check_completes_nothing(tmp_path):
    fake = fake_lake(tmp_path)
    rows = fake.rows("cliques")
    fake.lake.write("cliques", fake.generate.snapshot_id, 0, rows[1:])
    with pytest.raises(RuntimeError, match="every_prompt_was_tried"):
        run(fake)
    assert fake.lake.manifests("measure") == []
    assert not os.path.exists(tmp_path / "audit.duckdb") and not os.path.exists(tmp_path / "report.html")


def test_one_control_alone_has_no_others_to_adapt_to(tmp_path):
    """Its adaptive l2 is null, so it is no trial of what is seen; of the paper's rule it is one."""
    fake = fake_lake(tmp_path, controls=1, controls_within_delta=1)
    snapshot = fake.match.snapshot_id
    rows = fake.rows("calibration")
    for row in rows:
        if row["distance"] == "adaptive_l2":
            row.update(n_controls=0, threshold=None, promised_rate=None, controls_called=None, upper_bound=None)
        row["controls_within_delta"] = 1
    fake.lake.write("calibration", snapshot, 0, rows)
    run(fake)
    found = ask(fake.lake, "SELECT verdict, pictures, called FROM false_positives WHERE tried_on = 'controls'")
    assert sorted(found) == [("extracted, another control", 1, 0), ("extracted, own image", 1, 1), ("seen", 0, None)]


def test_the_options_shape_the_snapshot(tmp_path):
    fake = fake_lake(tmp_path, controls=0)
    usual = measure.plan(fake.lake, Parsed.of(MeasureOptions()), fake.match.snapshot_id)
    assert (usual.items, usual.unit) == (fake.match.rows["matches"], "matches")
    other = measure.plan(fake.lake, Parsed.of(MeasureOptions(report_limit=1)), fake.match.snapshot_id)
    assert other.snapshot_id != usual.snapshot_id
    assert measure.plan(fake.lake, Parsed.of(MeasureOptions()), "not there yet").items is None


def test_mistakes_are_one_line(tmp_path, capsys):
    assert run_verb(measure.main, [f"--lake={tmp_path}", "--report_limit=-1"]) == 2
    assert capsys.readouterr().err.strip() == "eidetic: --report_limit is -1, expected 0 or more"
    Lake(str(tmp_path)).create()
    assert run_verb(measure.main, [f"--lake={tmp_path}"]) == 2
    assert "run 'eidetic match' first" in capsys.readouterr().err
