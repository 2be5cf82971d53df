"""A machine that is full, read-only, out of files, interrupted or shared: one line, and the same command goes on."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from pipelines import audit, measure, query
from pipelines.cli import run_verb
from pipelines.lock import LOCK
from tests.faults.conftest import ALL
from tests.faults.report import tried
from tests.lakes import differences
from tests.servers import ROOT
from transforms.errors import fault_of_the_machine
from transforms.results.database import DATABASE
from transforms.store import files
from transforms.store.lake import Lake

SECONDS = 180


def start(world, lake: Lake, *words: str, limits=()) -> subprocess.Popen:
    """The audit as a process of its own; ``limits``: of the process, as ``setrlimit`` takes them."""

    def limit():
        for which, most in limits:
            resource.setrlimit(which, (most, most))

    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "audit", *world.words(lake), *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=limit,
    )


def end(process: subprocess.Popen) -> tuple[int, list[str]]:
    """Exit code, and the lines that begin with the command's name."""
    _, said = process.communicate(timeout=SECONDS)
    assert "Traceback" not in said, said
    return process.returncode, [line for line in said.splitlines() if line.startswith("eidetic: ")]


def test_two_audits_at_once(world, whole, tmp_path):
    """One says who is at work, one waits; and both end with the same tables."""
    lake = Lake(str(tmp_path / "lake"))
    first = start(world, lake)
    limit = time.monotonic() + SECONDS
    # Until the lock says whose it is.
    while time.monotonic() < limit and not (os.path.exists(lake.path(LOCK)) and os.path.getsize(lake.path(LOCK))):
        time.sleep(0.05)
    second, third = start(world, lake), start(world, lake, f"--wait={SECONDS}")
    code, lines = end(second)
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith(f"eidetic: 'eidetic audit' (process {first.pid} on ") and "--wait SECONDS" in lines[0]
    assert end(first) == (0, []) and end(third) == (0, [])
    assert differences(whole, lake) == []
    tried("three audits of one lake at once", 1, "one works, one waits, one says who does")


MOMENTS = (0.5, 2, 4, 6, 8, 11, 14) if ALL else (3, 9)


@pytest.mark.parametrize("seconds", MOMENTS)
def test_control_c(seconds, world, whole, tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    process = start(world, lake)
    time.sleep(seconds)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, lines = end(process)
    assert code == 130 and len(lines) == 1 and "the same command goes on from there" in lines[0]
    assert time.monotonic() - begun < 2
    assert world.audit(lake) == 0 and differences(whole, lake) == []
    tried("Control-C in an audit", 1, "exit code 130 within 2 s; the same audit ends with the same tables", seconds)


@pytest.mark.parametrize("words", [["--help"], ["query", "SELECT * FROM range(1000000)", "--format=csv"]])
def test_nobody_reads_what_is_printed(words, lake):
    more = [f"--lake={lake.root}"] if words[0] == "query" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *words, *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(SECONDS) in (0, 141) and said == ""


def test_a_file_that_may_not_grow(world, whole, tmp_path):
    """As a full disk, but for the number of the error: some write fails in the middle."""
    lake = Lake(str(tmp_path / "lake"))
    for most in (1 << 10, 30 << 10):
        code, lines = end(start(world, lake, limits=[(resource.RLIMIT_FSIZE, most)]))
        assert code == 2 and len(lines) == 1 and "raise the limit (ulimit -f)" in lines[0]
        # What could not be finished is not left.
        assert not [path for path in Path(lake.root).rglob(".*") if files.is_temporary(path.name)]
    assert world.audit(lake) == 0 and differences(whole, lake) == []
    tried(
        "a write that the system refuses in the middle (RLIMIT_FSIZE)",
        2,
        "one line; the same audit goes on to the same tables",
    )


@pytest.mark.parametrize("most", [10, 60, 90] if ALL else [10])
def test_too_many_open_files(most, world, whole, tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    code, lines = end(start(world, lake, limits=[(resource.RLIMIT_NOFILE, most)]))
    assert code in (0, 2)
    assert code == 0 or (len(lines) == 1 and "raise the limit (ulimit -n)" in lines[0])
    tried(f"at most {most} open files", 1, "one line, or nothing was missing")


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "make room"), (errno.EROFS, "mount it for writing")])
@pytest.mark.parametrize("step", range(0, 60, 3) if ALL else (5, 40))
def test_a_disk_that_refuses(number, said, step, world, whole, tmp_path, monkeypatch, capfd):
    """A full or read-only disk, from the file with this number on."""
    lake, real, written = Lake(str(tmp_path / "lake")), files.put_in_place, []

    def refuse(temporary, path):
        written.append(path)
        if len(written) > step:
            raise OSError(number, os.strerror(number), path)
        real(temporary, path)

    monkeypatch.setattr(files, "put_in_place", refuse)
    monkeypatch.setattr("transforms.results.database.put_in_place", refuse)
    assert world.audit(lake) == 2
    told = capfd.readouterr().err
    lines = [line for line in told.splitlines() if line.startswith("eidetic: ")]
    assert len(lines) == 1 and said in lines[0] and "Traceback" not in told, told
    monkeypatch.undo()
    assert world.audit(lake) == 0 and differences(whole, lake) == []
    tried(f"{os.strerror(number)}, from some file on", 1, "one line; the same audit goes on to the same tables", step)


def test_who_may_read_a_lake(world, tmp_path):
    before = os.umask(0)
    try:
        lake = Lake(str(tmp_path / "new" / "lake"))
        assert world.audit(lake) == 0
    finally:
        os.umask(before)
    others = [path for path in (tmp_path / "new").rglob("*") if path.stat().st_mode & 0o077]
    assert others == [] and (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_database_beside_what_a_killed_client_left(lake, capsys):
    """What it had still to write, beside a database that was made since: DuckDB refuses both."""
    client = "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); c.execute('CREATE TABLE mine AS SELECT 1'); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", client, lake.path(DATABASE)]).returncode == 9
    assert os.path.exists(f"{lake.path(DATABASE)}.wal")
    with duckdb.connect(lake.path("made_since")) as other:
        other.execute("CREATE TABLE other AS SELECT 1")
    os.replace(lake.path("made_since"), lake.path(DATABASE))
    assert run_verb(query.main, [f"--lake={lake.root}", "SELECT count(*) FROM samples"]) == 2
    capsys.readouterr()
    assert run_verb(measure.main, [f"--lake={lake.root}"]) == 0
    assert run_verb(query.main, [f"--lake={lake.root}", "SELECT count(*) AS n FROM samples", "--format=csv"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["n", "18"]
    assert not os.path.exists(f"{lake.path(DATABASE)}.wal")


def test_a_clock_that_goes_back(lake, world, monkeypatch):
    """What was asked for last is the latest, whatever the clock says."""
    monkeypatch.setattr("transforms.store.lake._now", lambda: "1999-01-01T00:00:00+00:00")
    older = lake.latest("ingest")
    words = [*world.words(lake)]
    words[words.index("--image_size=32")] = "--image_size=24"
    assert run_verb(audit.main, words) == 0
    newer = lake.latest("ingest")
    assert newer.parameters["image_size"] == 24 and newer.finished_at < older.finished_at
    assert world.audit(lake) == 0
    assert lake.latest("ingest").snapshot_id == older.snapshot_id
    assert [one.snapshot_id for one in lake.manifests("ingest")] == [older.snapshot_id, newer.snapshot_id]


def test_an_error_that_a_runner_has_wrapped():
    inner = RuntimeError("OSError: [Errno 28] No space left on device: '/lake/x' [while running 'EmbedPart']")
    line = fault_of_the_machine(RuntimeError("job failed"))
    assert line is None
    try:
        raise RuntimeError("job failed") from inner
    except RuntimeError as error:
        line = fault_of_the_machine(error)
    assert line == (
        "No space left on device ('/lake/x'): the disk is full; make room (--lake, and TMPDIR for what is temporary); then the "
        "same command again"
    )
    assert fault_of_the_machine(ValueError("no number")) is None
