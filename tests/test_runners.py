"""The same night and forgetting in a folder by the default runner, and in a bucket through Beam's portable job service: the
tables say the same.

The workers are a separate pool (``eidetic workers``) that has our code from an unpacked wheel, far from the checkout; so
this also shows that the wheel is whole, its SQL, templates and style sheet included. Metadata, models and one of the lakes
lie behind s3://, as on a cluster without a shared disk.
"""

import os
import re
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from demo import serve
from tests.lakes import differences, tables
from tests.portable import PACKAGES, SECONDS, fill_bucket, finish, small_audit, start, unpacked_wheel
from tests.servers import ROOT, free_port, running, s3_store, wait_for_port
from transforms.store.files import read_bytes, write_bytes
from transforms.store.lake import Lake

BUCKET = "s3://eidetic/inputs"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder that our wheel was unpacked into."""
    return unpacked_wheel(tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Where metadata and controls of a small corpus that is being served lie, and the models: a bucket."""
    folder, port = tmp_path_factory.mktemp("inputs"), free_port()
    with s3_store("eidetic"):
        fill_bucket(folder, f"http://127.0.0.1:{port}", BUCKET)
        with serve.serving(folder, port):
            yield BUCKET


@pytest.fixture(scope="module")
def pool(wheel, tmp_path_factory):
    """(port of the job service, port of the worker pool), both running. The workers see the wheel and no checkout."""
    folder = tmp_path_factory.mktemp("servers")
    service_port, pool_port = free_port(), free_port()
    environment = {
        "PYTHONPATH": str(wheel),
        # Without it they would look into their folder first.
        "PYTHONSAFEPATH": "1",
        # Where models are copied to: not where the launcher has them.
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "2",
    }
    service = ["-m", "apache_beam.runners.portability.local_job_service_main", "-p", str(service_port)]
    workers = ["-m", "pipelines.workers", f"--port={pool_port}"]
    logs = folder / "service.log", folder / "workers.log"
    # The service has none of our code: whatever needs it must run in the workers.
    with (
        running(service, logs[0], folder, **{**environment, "PYTHONPATH": ""}) as one,
        running(workers, logs[1], folder, **environment) as other,
    ):
        wait_for_port(one, service_port, logs[0])
        wait_for_port(other, pool_port, logs[1])
        yield service_port, pool_port


def portable(ports):
    service_port, pool_port = ports
    return [
        "--runner=PortableRunner",
        f"--job_endpoint=localhost:{service_port}",
        "--environment_type=EXTERNAL",
        f"--environment_config=localhost:{pool_port}",
    ]


@pytest.fixture(scope="module")
def lakes(inputs, pool, tmp_path_factory):
    """(in a folder, made by the default runner; in a bucket, made by the worker pool)."""
    ours, theirs = Lake(str(tmp_path_factory.mktemp("lakes") / "default")), Lake("s3://eidetic/lake")
    # One after the other: the downloads have a limit of time, and the two together would crowd a small machine.
    words = ["--date=2026-01-01", "--budget=72", *small_audit(inputs)]
    finish(start("nightly", ours, *words))
    finish(start("nightly", theirs, *words, *portable(pool)))
    return ours, theirs


def test_the_tables_are_the_same(lakes):
    ours, theirs = lakes
    assert differences(ours, theirs) == []
    # Else the test would pass on empty lakes.
    rows = {path.split("/")[1]: 0 for path in tables(ours)}
    for path, table in tables(ours).items():
        rows[path.split("/")[1]] += table.num_rows
    assert all(rows[name] > 0 for name in ("samples", "images", "embeddings", "duplicate_pairs", "generations", "matches"))
    assert rows["cliques"] == rows["prompts"] > 6
    assert rows["history"] == 1
    assert ours.latest("measure").snapshot_id == theirs.latest("measure").snapshot_id


def test_what_is_asked_of_a_lake_in_a_bucket_is_answered_as_in_a_folder(lakes, tmp_path):
    query = "SELECT status, count(*) AS rows FROM samples GROUP BY status ORDER BY status"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    found = next(row for row in lakes[0].read("images", lakes[0].latest("ingest").snapshot_id).to_pylist())
    (pictures / "one.png").write_bytes(found["image"])
    for words in (["query", query], ["history"], ["verify"], ["lookup", str(pictures)]):
        # Seconds that a step took stand in manifests, whose sizes differ by their digits.
        answers = [finish(start(words[0], lake, *words[1:])).replace(lake.root, "LAKE") for lake in lakes]
        assert re.sub(r"[\d,]+ bytes", "", answers[0]) == re.sub(r"[\d,]+ bytes", "", answers[1]), words


def test_what_is_forgotten_in_a_bucket_is_as_in_a_folder(lakes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("forgotten")
    ours, theirs = Lake(str(folder / "default")), Lake("s3://eidetic/forgotten")
    for lake, copy in zip(lakes, (ours, theirs), strict=True):
        for path in lake.files():
            write_bytes(copy.path(*lake.inside(path).split("/")), read_bytes(path))
    # In a folder audit.duckdb has views with the lake's own path, which a copy's forget makes again.
    url = next(
        row["url"] for row in ours.read("samples", ours.latest("ingest").snapshot_id).to_pylist() if row["status"] == "success"
    )
    said = [finish(start("forget", lake, f"--urls={url}")) for lake in (ours, theirs)]
    assert all("found nothing" in text for text in said)
    assert differences(ours, theirs) == []
    assert differences(ours, lakes[0]) != []


def test_the_comparison_can_fail(lakes, tmp_path):
    ours, _ = lakes
    copy = Lake(shutil.copytree(ours.root, tmp_path / "copy").as_posix())
    snapshot = copy.latest("match").snapshot_id
    table = copy.read("matches", snapshot)
    rows = table.to_pylist()
    rows[0]["l2"] += 0.01
    first = copy.parts("matches", snapshot)[0]
    os.remove(copy.parts("cliques", copy.latest("generate").snapshot_id)[0])
    pq.write_table(table.from_pylist(rows, schema=table.schema).slice(0, pq.read_metadata(first).num_rows), first)
    found = differences(ours, copy)
    assert len(found) == 2
    assert "only in one lake: /cliques/" in found[0]
    assert "column l2 differs, first in row 0" in found[1]


def test_the_workers_have_our_code_from_the_wheel(pool, wheel, tmp_path):
    # Functions of this file are no use here: the workers could not import it.
    script = f"""
import importlib.util, operator, sys
import apache_beam as beam
with beam.Pipeline(argv=sys.argv[1:]) as pipeline:
    _ = (
        pipeline
        | beam.Create({PACKAGES!r})
        | "Find" >> beam.Map(importlib.util.find_spec)
        | "Where" >> beam.Map(operator.attrgetter("origin"))
        | beam.io.WriteToText({str(tmp_path / "origins")!r}, num_shards=1)
    )
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *portable(pool)], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("origins*")
    assert set(written.read_text().split()) == {str(wheel / name.replace(".", "/") / "__init__.py") for name in PACKAGES}


def test_the_wheel_brings_sql_and_templates(wheel):
    def files(root):
        wanted = ("*.sql", "*.toml", "*.j2", "*.css", "*.py", "*.safetensors", "*.json", "*.txt")
        return {
            path.relative_to(root)
            for package in ("pipelines", "transforms", "sql", "demo")
            for pattern in wanted
            for path in (root / package).rglob(pattern)
        }

    assert files(wheel) == files(ROOT)
    assert any(path.suffix == ".sql" for path in files(wheel))
    assert any(path.suffix == ".j2" for path in files(wheel))
    assert not any(path.parts[0] in ("tests", "docs") for path in (one.relative_to(wheel) for one in wheel.rglob("*.py")))
