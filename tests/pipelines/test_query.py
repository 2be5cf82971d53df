"""The verb query: its three formats, its errors, and that no caption gets at the terminal."""

import contextlib
import csv
import io
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import measure, query
from pipelines.cli import run_verb
from pipelines.execution import Execution
from pipelines.measure import MeasureOptions
from pipelines.options import Parsed
from tests.fakes import fake_lake
from tests.servers import ROOT
from transforms.kernels.effects import mean_interval
from transforms.kernels.rates import blaker_interval
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
    assert first.startswith(r"red \x1b[31m, c1 \x9b2J, turned \u202e, bell \x07, end  ")
    assert second.split('"')[1:2] == ["quoted"]
    # Numbers stand to the right, null is empty.
    assert second.rstrip().split()[-2] == "1"


def test_intervals_of_ones_own(lake):
    _, [(rate, mean, difference)] = query.answer(
        lake, "SELECT blaker_interval(3, 10), mean_interval([1.0, 2.0, 4.0]), rate_difference(9, 10, 1, 10)"
    )
    assert rate == pytest.approx(blaker_interval(3, 10))
    assert mean == pytest.approx(list(mean_interval([1.0, 2.0, 4.0])))
    assert difference[0] == pytest.approx(0.8) and difference[1] > 0


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
        ("CREATE TABLE mine (a INTEGER)", "of the kind CREATE"),
        ("", "there is no query"),
        ("SELECT '\udce9'", "is not UTF-8"),
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
    holds = "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True); print(flush=True); sys.stdin.read()"
    path = os.path.join(lake.root, "audit.duckdb")
    with subprocess.Popen([sys.executable, "-c", holds, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert ask(lake, capsys, "SELECT count(*) AS n FROM extractions").split() == ["n", "-", "2"]
        other.stdin.close()


def in_it(root):
    """Every file of a lake with its bytes and time."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(root).rglob("*") if path.is_file()}


def refused(lake, capsys, sql, *words):
    """The one line that a query ends with; nothing in the lake has changed."""
    before = in_it(lake.root)
    assert run_verb(query.main, [sql, f"--lake={lake.root}", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("eidetic: ") and captured.err.count("\n") == 1
    assert_harmless(captured.err)
    assert in_it(lake.root) == before
    return captured.err


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT 1; SELECT 2", "these are 2 statements, expected one"),
        ("SELECT 1; COPY (SELECT 1) TO '{out}/a.csv'", "these are 2 statements"),
        ("ATTACH '{out}/a.db' AS a", "of the kind ATTACH"),
        ("SET memory_limit = '1TB'", "of the kind SET"),
        ("USE memory", "of the kind SET"),
        ("PRAGMA profiling_output='{out}/a'", "of the kind SET"),
        ("PRAGMA version", "of the kind PRAGMA"),
        ("CALL enable_logging(storage='file', storage_config={{'path': '{out}'}})", "of the kind CALL"),
        ("CHECKPOINT", "of the kind CALL"),
        ("EXPORT DATABASE '{out}/a'", "of the kind EXPORT"),
        ("COPY FROM DATABASE memory TO memory", "of the kind PRAGMA"),
        ("INSTALL httpfs", "of the kind LOAD"),
        ("LOAD httpfs", "of the kind LOAD"),
        ("CREATE TEMP TABLE a AS SELECT 1", "of the kind CREATE"),
        ("CREATE TEMP TABLE a AS PIVOT (SELECT 1 AS b) ON b USING count(*)", "begins with one of"),
        ("WITH a AS (DELETE FROM samples RETURNING *) FROM a", "DuckDB refuses the query"),
        # A configuration that is locked holds against functions, too.
        ("FROM enable_logging(storage='file', storage_config={{'path': '{out}'}})", "has been locked"),
        # DuckDB takes a COPY for a part of a SELECT.
        ("WITH a AS (COPY (SELECT 1) TO '{out}/a.csv') FROM a", "COPY stands at the beginning"),
        ("WITH a AS (/**/copy(SELECT 1) TO '{out}/a.csv') FROM a", "COPY stands at the beginning"),
        ("WITH a AS (\u00a0COPY\u00a0(SELECT 1) TO '{out}/a.csv') FROM a", "COPY stands at the beginning"),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}/a.csv'", "COPY stands at the beginning"),
        ("EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{out}/a.csv'", "COPY stands at the beginning"),
        ("COPY (SELECT 1) TO ('{out}/a' || '.csv')", "must be one text in single quotes"),
        ("COPY (SELECT 1) TO '{out}/a'\n'.csv'", "must be one text in single quotes"),
        ("COPY (SELECT 1) TO $${out}/a.csv$$", "must be one text in single quotes"),
        ("COPY (SELECT 1) TO e'{out}/a.csv'", "must be one text in single quotes"),
        ('COPY (SELECT 1) TO "{out}/a.csv"', "must be one text in single quotes"),
        ('COPY (SELECT 1 AS "to") TO stdout', "must be one text in single quotes"),
        ("COPY (SELECT 1) TO 'file://{out}/a.csv'", "must be a path of this machine"),
        ("COPY (SELECT 1) TO 's3://bucket/a.csv'", "must be a path of this machine"),
        ("COPY (SELECT 1) TO '{out}/a' (PER_THREAD_OUTPUT, FILENAME_PATTERN '../b')", "can lead out of the folder"),
        ("COPY (SELECT 1) TO '{out}/a' (PER_THREAD_OUTPUT, file_extension '/../../b')", "can lead out of the folder"),
        ("COPY samples FROM '{out}/a.csv'", "this COPY names no target"),
        ("SELECT * FROM 'https://127.0.0.1:9/a.parquet'", "requires the extension httpfs"),
        ("SELECT * FROM sqlite_scan('a', 'b')", "sqlite_scan"),
    ],
)
def test_a_query_reads_and_does_nothing_else(lake, capsys, tmp_path, sql, message):
    assert message in refused(lake, capsys, sql.format(out=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_copy_goes_anywhere_but_into_the_lake(lake, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", lake.root)
    (part, *_) = lake.every_part("samples")
    Path("linked").symlink_to(lake.root)
    Path("soft.parquet").symlink_to(part)
    os.link(part, "hard.parquet")
    inside = [
        lake.root, f"{lake.root}/", f"{lake.root}/new.csv", f"{lake.root}/new/deep", f"{lake.root}/audit.duckdb", part,
        f"{lake.root}/../{os.path.basename(lake.root)}/new.csv", os.path.dirname(lake.root), "/", "~/new.csv", "linked/new.csv",
        "linked", "soft.parquet", "hard.parquet", os.path.relpath(part), f"/proc/self/root/{part}",
    ]  # fmt: skip
    for target in inside:
        sql = "COPY (SELECT 1 AS a) TO '{}' (FORMAT csv)".format(target.replace("'", "''"))
        assert "is the lake's own" in refused(lake, capsys, sql), target
    before = in_it(lake.root)
    for sql, file in (
        ("COPY (SELECT caption FROM samples) TO 'a.csv'", "a.csv"),
        ("COPY (SELECT caption, '(to' AS \"to\" FROM samples) to 'it''s.csv' (HEADER, DELIMITER '/')", "it's.csv"),
        ("COPY samples TO 'all.parquet'", "all.parquet"),
        ("COPY (PIVOT samples ON status USING count(*)) TO 'pivot.csv'", "pivot.csv"),
        ("COPY (SELECT 1 AS a, 2 AS b) TO 'parts' (FORMAT parquet, PARTITION_BY (a))", "parts/a=1/data_0.parquet"),
    ):
        ask(lake, capsys, sql)
        assert Path(file).stat().st_size > 0
    assert Path("a.csv").read_text().splitlines()[0] == "caption"
    assert in_it(lake.root) == before


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("FROM (VALUES (7)) v(a)", "7"),
        ("(SELECT 7 AS a);", "7"),
        ('SELECT a AS "copy" FROM (SELECT 7 AS a) -- COPY', "7"),
        ("WITH a AS (SELECT 'COPY' AS a) FROM a", "COPY"),
        ("EXPLAIN SELECT 7 AS seven", "physical_plan"),
        ("DESCRIBE samples", "caption"),
        ("SUMMARIZE SELECT 7 AS seven", "seven"),
        ("SHOW TABLES", "extraction_rate"),
        ("PIVOT (SELECT 'seven' AS a) ON a USING count(*)", "seven"),
    ],
)
def test_what_reads_is_answered(lake, capsys, sql, value):
    assert value in ask(lake, capsys, sql, "--format=csv")


def test_an_answer_and_a_query_have_a_limit_of_memory(lake, capsys):
    said = refused(lake, capsys, "SELECT range, repeat('x', 50) AS b FROM range(1000000000)", "--memory=64")
    assert "the answer takes more than --memory 64 (MiB)" in said and "LIMIT" in said
    said = refused(lake, capsys, "SELECT length(string_agg(repeat('x', 1000), '')) FROM range(1000000)", "--memory=64")
    assert "the query needs more than --memory 64 (MiB)" in said
    # DuckDB counts neither of these.
    before = resource.getrlimit(resource.RLIMIT_DATA)
    for sql in ("SELECT length(repeat('x', 4000000000))", "SELECT length(content) FROM read_text('/dev/zero')"):
        assert "the query needs more than --memory 64 (MiB)" in refused(lake, capsys, sql, "--memory=64")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_csv_and_json_are_written_as_they_come(lake, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            if self.tell() > 100_000:
                raise BlockingIOError  # far from the end of the answer, which no memory would hold
            return super().write(text)

    for form in ("csv", "json"):
        monkeypatch.setattr(sys, "stdout", Full())
        with pytest.raises(BlockingIOError):
            query.main(["SELECT range FROM range(100000000000)", f"--lake={lake.root}", f"--format={form}"])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(1000000000000)",
        "SELECT max(sleep_ms(100000))",
        "SELECT count(*) FROM range(100000000) a, range(100000) b WHERE a.range * b.range % 7 = 3",
    ],
)
def test_control_c_ends_a_query_in_a_second(lake, sql):
    words = [sys.executable, "-m", "pipelines.query", sql, f"--lake={lake.root}"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
        assert process.returncode is None, process.stderr.read()
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130 and said.startswith("eidetic: interrupted") and said.count("\n") == 1
        assert time.monotonic() - begun < 2  # one, and what a busy machine takes


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
    assert "run 'eidetic measure' or 'eidetic compare' first" in capsys.readouterr().err


def test_an_unknown_format(lake, capsys):
    assert run_verb(query.main, ["SELECT 1", f"--lake={lake.root}", "--format=xml"]) == 2
    assert "xml" in capsys.readouterr().err
