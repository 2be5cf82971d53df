"""The same audit on the default runner and through Beam's portable job service: the tables say the same.

The workers are a separate pool that has our code from an unpacked wheel, far from the checkout; so this also shows that
the wheel is whole, its SQL, templates and style sheet included.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from demo import corpus, serve
from tests.lakes import differences, tables
from tests.models import save_random_pipeline
from tests.servers import ROOT, end, free_port, running, wait_for_port
from transforms.store.lake import Lake

SECONDS = 240
"""After so long a run is given up: the portable client waits for ever for a service that has gone."""

ROWS = 120
"""Metadata rows that the audit takes, beside the faulty ones. The corpus mixes its rows, so repeats are among them."""

PACKAGES = ("pipelines", "transforms", "transforms.kernels", "transforms.results", "sql", "demo")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder that our wheel was unpacked into."""
    # Built from a copy: setuptools reuses a build/ folder that it finds, and would leave one behind in the checkout.
    source, built, unpacked = (tmp_path_factory.mktemp(name) for name in ("source", "built", "unpacked"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        if "." not in name:
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", built, "."]
    done = subprocess.run(pip, cwd=source, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    (archive,) = built.glob("eidetic-*.whl")
    zipfile.ZipFile(archive).extractall(unpacked)
    return unpacked


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Metadata and controls of a small corpus that is being served, and a diffusers pipeline."""
    folder = tmp_path_factory.mktemp("inputs")
    port = free_port()
    corpus.build(folder, f"http://127.0.0.1:{port}", 0.01)
    rows = pq.read_table(folder / "metadata.parquet")
    urls = rows["URL"].to_pylist()
    faulty = {row for row, url in enumerate(urls) if "/pictures/" not in url}
    # Without the slow link, for which either runner would wait the whole --timeout.
    slow = {row for row, url in enumerate(urls) if "/slow/" in url}
    pq.write_table(rows.take(sorted({*range(ROWS), *faulty} - slow)), folder / "metadata.parquet")
    save_random_pipeline(str(folder / "model"))
    with serve.serving(folder, port):
        yield folder


@pytest.fixture(scope="module")
def pool(wheel, tmp_path_factory):
    """(port of the job service, port of the worker pool), both running. The workers see the wheel and no checkout."""
    folder = tmp_path_factory.mktemp("servers")
    service_port, pool_port = free_port(), free_port()
    # The pool starts its workers by the name "python", and without PYTHONSAFEPATH they would look into their folder first.
    environment = {
        "PYTHONPATH": str(wheel),
        "PYTHONSAFEPATH": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "2",
    }
    service = ["-m", "apache_beam.runners.portability.local_job_service_main", "-p", str(service_port)]
    workers = ["-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool_port}"]
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


def start_audit(lake, inputs, beam_words=()):
    words = [
        f"--lake={lake}",
        f"--metadata={inputs}/metadata.parquet",
        f"--controls={inputs}/controls.parquet",
        "--image_size=64",
        "--encode_format=png",
        "--rows_per_part=80",
        "--allow_private_hosts",
        "--timeout=8",  # a busy machine must not turn a sound picture into a failure in one of the two
        f"--clip_model={ROOT}/demo/models/clip",
        f"--model={inputs}/model",
        "--device=cpu",
        "--max_prompts=6",
        "--images_per_prompt=4",
        "--images_per_control=2",
        "--steps=2",
        "--clique_size=3",
        "--keep=all",
        *beam_words,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.audit", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def finish(process):
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        end(process)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def lakes(inputs, pool, tmp_path_factory):
    """(made by the default runner, made by the worker pool)."""
    folder = tmp_path_factory.mktemp("lakes")
    ours, theirs = Lake(str(folder / "default")), Lake(str(folder / "portable"))
    # One after the other: the downloads have a limit of time, and the two together would crowd a small machine.
    finish(start_audit(ours.root, inputs))
    finish(start_audit(theirs.root, inputs, portable(pool)))
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
    assert ours.latest("measure").snapshot_id == theirs.latest("measure").snapshot_id


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
