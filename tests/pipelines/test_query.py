"""The verb query: its three formats, its errors, and that no caption gets at the terminal."""

import csv
import io
import json
import os
import shlex
import shutil

import pytest

from pipelines import measure, query
from pipelines.cli import run_verb
from pipelines.execution import Execution
from pipelines.measure import MeasureOptions
from pipelines.options import Parsed
from tests.fakes import fake_lake
from transforms.store.lake import Lake

HOSTILE = "red \x1b[31m, c1 \x9b2J, turned \u202e, bell \x07, end"


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    fake = fake_lake(
        tmp_path_factory.mktemp("query") / "it's a lake", sizes=(2, 1), captions=(HOSTILE, "plain, \"quoted\""),
        behaviours=("copy",), controls=0,
    )  # fmt: skip
    measure.STAGE.run(Execution(fake.lake, []), Parsed.of(MeasureOptions()))
    return fake.lake


def ask(lake, capsys, sql, *words):
    assert run_verb(query.main, [sql, f"--lake={lake.root}", *words]) == 0
    return capsys.readouterr().out


CAPTIONS = "SELECT caption, copies, adaptive_l2, extracted_calibrated FROM extractions ORDER BY copies DESC"


def test_the_example_of_the_help_can_be_pasted(lake, capsys):
    example = shlex.split(query.__doc__.strip().splitlines()[-1])
    assert example[:2] == ["eidetic", "query"]
    assert "rate" in ask(lake, capsys, example[2])


def test_a_table(lake, capsys):
    names, rule, first, second = ask(lake, capsys, CAPTIONS).splitlines()
    assert names.split() == ["caption", "copies", "adaptive_l2", "extracted_calibrated"]
    assert set(rule) == {"-", " "}
    assert first.startswith("red  [31m, c1  2J, turned  , bell  , end  ")
    assert second.split('"')[1:2] == ["quoted"]
    # Numbers stand to the right, null is empty.
    assert second.rstrip().split()[-2] == "1"


def test_csv(lake, capsys):
    rows = list(csv.reader(io.StringIO(ask(lake, capsys, CAPTIONS, "--format=csv"), newline="")))
    assert rows[0] == ["caption", "copies", "adaptive_l2", "extracted_calibrated"]
    # A file gets the text as it is.
    assert [(row[0], row[1], row[3]) for row in rows[1:]] == [(HOSTILE, "2", ""), ('plain, "quoted"', "1", "")]


def test_csv_on_a_terminal(lake, capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert_harmless(ask(lake, capsys, CAPTIONS, "--format=csv"))


def test_json(lake, capsys):
    said = ask(lake, capsys, CAPTIONS, "--format=json")
    assert_harmless(said)
    rows = json.loads(said)
    assert [row["caption"] for row in rows] == [HOSTILE, 'plain, "quoted"']
    assert [row["extracted_calibrated"] for row in rows] == [None, None]


def test_json_of_what_json_has_no_type_for(lake, capsys):
    said = ask(lake, capsys, "SELECT 'nan'::DOUBLE AS n, DATE '2026-01-02' AS d, [1, 2] AS l", "--format=json")
    assert json.loads(said, parse_constant=pytest.fail) == [{"n": None, "d": "2026-01-02", "l": [1, 2]}]


def test_json_of_what_is_inside_lists_and_maps(lake, capsys):
    sql = "SELECT ['nan'::DOUBLE, 1] AS l, {'x': 'inf'::DOUBLE} AS s, MAP {DATE '2026-01-02': 1} AS m"
    said = ask(lake, capsys, sql, "--format=json")
    assert json.loads(said, parse_constant=pytest.fail) == [{"l": [None, 1.0], "s": {"x": None}, "m": {"2026-01-02": 1}}]


def test_json_loses_no_column_of_a_name_that_is_there_twice(lake, capsys):
    said = ask(lake, capsys, "SELECT 1 AS a, 2 AS a_2, 3 AS a, 4 AS a", "--format=json")
    assert json.loads(said) == [{"a": 1, "a_2": 2, "a_3": 3, "a_4": 4}]


def assert_harmless(said):
    assert [letter for letter in said if not letter.isprintable() and letter not in "\r\n"] == []


@pytest.mark.parametrize("format", ["table", "json"])
def test_no_control_character_reaches_the_terminal(lake, capsys, format):
    # PIVOT makes names of columns out of captions.
    for sql in ("SELECT * FROM extractions", "PIVOT (SELECT caption FROM samples) ON caption USING count(*)"):
        assert_harmless(ask(lake, capsys, sql, f"--format={format}"))


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT nonsense FROM extractions", "DuckDB refuses the query: Binder Error"),
        ("SELEKT 1", "Parser Error"),
        ("SELECT CAST(caption AS INTEGER) FROM extractions", "Conversion Error"),
        ("CREATE TABLE mine (a INTEGER)", "read-only"),
        ("", "there is no query"),
        ("-- nothing", "there is no query"),
    ],
)
def test_a_bad_query_is_one_line(lake, capsys, sql, message):
    assert run_verb(query.main, [sql, f"--lake={lake.root}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("eidetic: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert_harmless(captured.err)


def test_no_rows(lake, capsys):
    assert ask(lake, capsys, "SELECT url FROM extractions WHERE false").splitlines() == ["url", "---"]
    assert json.loads(ask(lake, capsys, "SELECT url FROM extractions WHERE false", "--format=json")) == []


def test_two_queries_at_once(lake, capsys):
    import duckdb

    with duckdb.connect(os.path.join(lake.root, "audit.duckdb"), read_only=True):
        assert ask(lake, capsys, "SELECT count(*) AS n FROM extractions").split() == ["n", "-", "2"]


def test_a_lake_that_was_copied_or_moved_answers_for_itself(tmp_path, capsys):
    """The database names the place where it was made: there may still lie another lake."""
    fake = fake_lake(tmp_path / "before", controls=0)
    measure.STAGE.run(Execution(fake.lake, []), Parsed.of(MeasureOptions()))
    copy = Lake(str(shutil.copytree(tmp_path / "before", tmp_path / "it's a copy")))
    for path in (tmp_path / "before").glob("verdicts/*/*.parquet"):
        path.unlink()
    assert ask(copy, capsys, "SELECT count(*) AS n FROM verdicts").split() == ["n", "--", "10"]


def test_without_a_database_it_says_what_to_run(tmp_path, capsys):
    fake = fake_lake(tmp_path, sizes=(1,), controls=0)
    assert run_verb(query.main, ["SELECT 1", f"--lake={fake.lake.root}"]) == 2
    assert "run 'eidetic measure' first" in capsys.readouterr().err


def test_an_unknown_format(lake, capsys):
    assert run_verb(query.main, ["SELECT 1", f"--lake={lake.root}", "--format=xml"]) == 2
    assert "xml" in capsys.readouterr().err
