"""Engines that must not be used, or aren't there, are refused in one line and within seconds; their errors mean something."""

import os
import subprocess
import sys
import time

import pytest

from pipelines import engines
from tests.servers import ROOT, end, free_port, running, wait_for_port
from transforms.errors import UserError


def test_a_runner_that_loses_rows_is_refused_by_name():
    for name in ("DaskRunner", "apache_beam.runners.dask.dask_runner.DaskRunner", "daskrunner"):
        with pytest.raises(UserError, match="must not be used: it loses rows"):
            engines.check(name, None)
    for name in ("DirectRunner", "FlinkRunner", None):
        engines.check(name, None)


def test_no_job_server_is_one_line_within_seconds(tmp_path):
    port = free_port()
    words = ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}", "--environment_type=EXTERNAL"]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "ingest", f"--lake={tmp_path}/lake", "--metadata=x", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    # Most of it is Beam's import.
    assert time.monotonic() - begun < 30
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"eidetic: there is no job server at --job_endpoint localhost:{port} (Connection refused); start it (see "
        "docs/engines.md), or mend the address"
    ]


def test_a_server_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(engines, "SECONDS", 0.5)
    begun = time.monotonic()
    # TEST-NET-1 (RFC 5737): nobody is there.
    with pytest.raises(UserError, match="there is no job server at --job_endpoint"):
        engines.check("PortableRunner", "192.0.2.1:8099")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":8099", "localhost:x", "localhost:99999"])
def test_an_address_is_host_and_port(address):
    with pytest.raises(UserError, match="expected HOST:PORT"):
        engines.check("PortableRunner", address)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        ("Traceback …\nModuleNotFoundError: No module named 'transforms'\n", "a worker hasn't eidetic installed"),
        ("ModuleNotFoundError: No module named 'pipelines.embed'", "a worker hasn't eidetic installed"),
        ("org.apache.flink…NoResourceAvailableException: Could not acquire", "the cluster has no free slot"),
        ("failed to connect to all addresses; last error: ipv4:127.0.0.1:50000", "could not be reached"),
    ],
)
def test_what_an_engines_error_means(error, meaning):
    said = engines.meaning(error, "there:50000")
    assert meaning in said and "\n" not in said
    assert "there:50000" in said or "slot" in said


def test_other_errors_are_left_alone():
    assert engines.meaning("ZeroDivisionError: division by zero", None) is None
    assert engines.meaning("ModuleNotFoundError: No module named 'transformsx'", None) is None


SECONDS = 60
"""So long a process may take to start and to end, beside others."""

NEVER_DONE = """
import sys, time
from pathlib import Path
import apache_beam as beam
from pipelines.cli import run_verb
from pipelines.execution import Execution
from transforms.store.lake import Lake

def wait(path):
    Path(path).touch()
    time.sleep(300)

def main(words):
    lake, began, *options = words
    Execution(Lake(lake), options).run(lambda pipeline: pipeline | beam.Create([began]) | beam.Map(wait))

sys.exit(run_verb(main, sys.argv[1:]))
"""


def test_a_job_server_that_goes_away_is_one_line(tmp_path):
    port, pool = free_port(), free_port()
    log, workers = tmp_path / "log", tmp_path / "workers"
    words = [f"{tmp_path}/lake", f"{tmp_path}/began", "--runner=PortableRunner", f"--job_endpoint=localhost:{port}",
             "--environment_type=EXTERNAL", f"--environment_config=localhost:{pool}"]  # fmt: skip
    module = tmp_path / "never_done.py"
    module.write_text(NEVER_DONE)
    with (
        running(["-m", "pipelines.workers", f"--port={pool}"], workers) as there,
        running(["-m", "apache_beam.runners.portability.local_job_service_main", f"--port={port}"], log) as server,
    ):
        wait_for_port(server, port, log)
        wait_for_port(there, pool, workers)
        process = subprocess.Popen(
            [sys.executable, str(module), *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            limit = time.monotonic() + SECONDS
            while not (tmp_path / "began").exists() and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.1)
            end(server)
            _, said = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert (tmp_path / "began").exists() and process.returncode == 2, said
    assert f"the job server at --job_endpoint localhost:{port} went away while its job ran" in said
    assert len(said.splitlines()) == 1, said
