"""The same audit and night on Prism, and on clusters of Flink and Spark without a shared disk, as on this machine alone.

What isn't installed (``make engines``) is skipped. ``make test`` leaves this folder out; CI runs the night, which has every
pipeline of an audit, on Prism and on Flink.
"""

import collections
import contextlib
import functools
import os
import random
import re
import time

import pytest

from demo import serve
from tests.engines import clusters, network
from tests.engines.install import is_installed, missing
from tests.lakes import differences, tables
from tests.portable import fill_bucket, finish, small_audit, start, unpacked_wheel
from tests.servers import end, free_port, s3_store
from transforms.store.files import delete, walk, write_bytes
from transforms.store.lake import Lake

BUCKET = "s3://eidetic"
INPUTS = f"{BUCKET}/inputs"

SECONDS = 900
"""So long a verb may take on an engine that starts a worker for each of its jobs."""

KILLS = 20 if os.environ.get("EIDETIC_FAULTS") == "all" else 0
"""Kills at random moments; without them there is one in the middle of each of three stages."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The launcher's own folder, which no worker sees: what lies in the bucket is all that they have."""
    hidden, port = tmp_path_factory.mktemp("launcher"), free_port()
    with contextlib.ExitStack() as stack:
        address = "127.0.0.1"
        if os.geteuid() == 0 and not missing("flink"):
            stack.enter_context(network.bridge())
            address = network.HOST
        stack.enter_context(s3_store("eidetic", address))
        fill_bucket(hidden, f"http://{address}:{port}", INPUTS)
        stack.enter_context(serve.serving(hidden, port, address))
        yield hidden


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return unpacked_wheel(tmp_path_factory.mktemp)


@pytest.fixture(scope="module", params=list(clusters.ENGINES))
def engine(request, site, wheel, tmp_path_factory):
    if lacking := missing(request.param):
        pytest.skip(f"{request.param}: {', '.join(lacking)} not on this machine")
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed: make engines")
    if request.param != "prism" and os.geteuid() != 0:
        pytest.skip(f"{request.param}: only root can make the machines of a cluster")
    with clusters.ENGINES[request.param](tmp_path_factory.mktemp(request.param), wheel, site) as started:
        yield started


VERBS = {
    "audit": ["--max_prompts=6", "--verbose"],
    "nightly": ["--date=2026-01-01", "--budget=72", "--verbose"],
}
"""What is run, and with which words."""


def run(verb, lake, *words):
    return start(verb, lake, *small_audit(INPUTS), *VERBS[verb], *words)


def audit(lake, *words):
    return run("audit", lake, *words)


def counters(said):
    """What the steps of all pipelines have counted, by name, as --verbose tells it."""
    found = re.findall(r"^  (\S.*?) +([\d,]+)$", said, re.MULTILINE)
    # What a worker has read before it needn't read again: that depends on which worker a picture falls to.
    return sorted((name, int(number.replace(",", ""))) for name, number in found if name != "row groups of pictures read")


def totals(counted):
    found = collections.Counter()
    for name, number in counted:
        found[name] += number
    return found


@pytest.fixture(scope="module")
def local(site):
    """Verb → (lake, counters) of the local runner, which makes each once."""

    @functools.cache
    def made(verb):
        lake = Lake(f"{BUCKET}/{verb}")
        return lake, counters(finish(run(verb, lake)))

    return made


@pytest.fixture
def theirs(engine):
    """A lake of its own for a test."""
    lake = Lake(f"{BUCKET}/{engine.name}-{random.randrange(1 << 32):x}")
    yield lake
    delete(lake.root)


@pytest.mark.parametrize("verb", VERBS)
def test_the_tables_are_those_of_the_local_runner(engine, verb, local, theirs):
    lake, counted = local(verb)
    said = finish(run(verb, theirs, *engine.words), SECONDS)
    assert differences(lake, theirs) == []
    rows = {path.split("/")[1] for path in tables(theirs)}
    assert {"samples", "images", "embeddings", "duplicate_pairs", "generations", "matches", "verdicts"} <= rows
    assert ("history" in rows) == (verb == "nightly")
    names = [[name for name, _ in one] for one in (counted, counters(said))]
    assert names[0] and names[0] == names[1]
    if engine.name == "prism":
        # On a busy machine it leaves out what a bundle has counted.
        assert not totals(counters(said)) - totals(counted)
    else:
        assert counters(said) == counted


@pytest.fixture
def audited(local):
    """A lake with the audit alone, made by the local runner."""
    return local("audit")[0]


def wait_until(lake, stage, process):
    """Returns when a stage is at work: something of it is there, and not its manifest."""
    limit = time.monotonic() + SECONDS
    tables_of = {"ingest": "work/ingest", "generate": "work/generate", "match": "work/match"}
    while time.monotonic() < limit:
        assert process.poll() is None, process.communicate()[0]
        assert not walk(lake.path("manifests", stage)), f"{stage} was over before it could be hurt"
        if walk(lake.path(tables_of[stage])):
            return
        time.sleep(0.2)
    raise AssertionError(f"{stage} did not begin")


@pytest.mark.parametrize("stage", ["ingest", "generate", "match"])
def test_a_worker_that_dies_in_the_middle_changes_nothing(engine, audited, theirs, stage):
    if engine.start_worker is None:
        pytest.skip("Prism is one process")
    process = audit(theirs, *engine.words)
    try:
        wait_until(theirs, stage, process)
        engine.lose_worker()
        finish(process, SECONDS)
    finally:
        end(process)
    assert differences(audited, theirs) == []


def test_a_command_that_dies_goes_on_and_makes_nothing_twice(engine, audited, theirs):
    process = audit(theirs, *engine.words)
    wait_until(theirs, "generate", process)
    end(process)
    before = {file.path: file.modified for file in walk(theirs.path("images"))}
    # Its sign of life is some seconds old; nobody waits two minutes for it in a test.
    for claim in walk(theirs.path("writer.claims")):
        write_bytes(claim.path, b"")
    finish(audit(theirs, *engine.words), SECONDS)
    assert {file.path: file.modified for file in walk(theirs.path("images"))} == before
    assert differences(audited, theirs) == []


def test_a_job_server_that_dies_is_one_line_and_its_command_goes_on_with_another(engine, audited, theirs):
    process = audit(theirs, *engine.words)
    try:
        wait_until(theirs, "generate", process)
        engine.lose_server()
        try:
            said, _ = process.communicate(timeout=SECONDS)
        finally:
            engine.server = engine.start_server()
    finally:
        end(process)
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith("eidetic: "), said
    before = {file.path: file.modified for file in walk(theirs.path("images"))}
    finish(audit(theirs, *engine.words), SECONDS)
    assert {file.path: file.modified for file in walk(theirs.path("images"))} == before
    assert differences(audited, theirs) == []


@pytest.mark.skipif(not KILLS, reason="make faults")
def test_workers_that_die_at_random(engine, audited, theirs):
    if engine.start_worker is None:
        pytest.skip("Prism is one process")
    chance = random.Random(0)
    done = 0
    while done < KILLS:
        process = audit(theirs, *engine.words)
        try:
            time.sleep(chance.uniform(5, 60))
            while process.poll() is None and done < KILLS:
                engine.lose_worker(chance.randrange(len(engine.workers)))
                done += 1
                time.sleep(chance.uniform(10, 60))
            finish(process, SECONDS)
        finally:
            end(process)
        assert differences(audited, theirs) == []
        delete(theirs.root)
