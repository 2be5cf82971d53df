"""What the tests of runners share: our wheel, a small corpus whose metadata and models lie in a bucket, and verbs on a lake."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from demo import corpus
from tests.models import save_random_pipeline
from tests.servers import ROOT, end
from transforms.store.files import write_bytes, write_parquet
from transforms.store.lake import Lake

SECONDS = 240
"""After so long a run is given up: the portable client waits for ever for a service that has gone."""

ROWS = 120
"""Metadata rows that the audit takes, beside the faulty ones. The corpus mixes its rows, so repeats are among them."""

PACKAGES = ("pipelines", "transforms", "transforms.kernels", "transforms.results", "sql", "demo")


def unpacked_wheel(folder: Callable[[str], Path]) -> Path:
    """The folder that our wheel was unpacked into. ``folder``: name → a new folder."""
    # Built from a copy: setuptools reuses a build/ folder that it finds, and would leave one behind in the checkout.
    source, built, unpacked = (folder(name) for name in ("source", "built", "unpacked"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        if "." not in name:
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(built), "."]
    done = subprocess.run(pip, cwd=source, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    (archive,) = built.glob("eidetic-*.whl")
    zipfile.ZipFile(archive).extractall(unpacked)
    return unpacked


def fill_bucket(folder: Path, address: str, bucket: str) -> None:
    """Makes a small corpus in a folder, which is to be served at an address, and puts what a cluster needs into a bucket.

    bucket/metadata/monday.parquet, bucket/later.parquet (what comes on the second night), bucket/controls.parquet, bucket/clip,
    bucket/model.
    """
    corpus.build(folder, address, 0.01)
    rows = pq.read_table(folder / "metadata.parquet")
    urls = rows["URL"].to_pylist()
    faulty = {row for row, url in enumerate(urls) if "/pictures/" not in url}
    # Without the slow link, for which either runner would wait the whole --timeout.
    slow = {row for row, url in enumerate(urls) if "/slow/" in url}
    first = sorted({*range(ROWS), *faulty} - slow)
    save_random_pipeline(str(folder / "model"))
    shutil.copytree(ROOT / "demo" / "models" / "clip", folder / "clip")
    for path in [*folder.glob("model/**/*"), *folder.glob("clip/**/*"), folder / "controls.parquet"]:
        if path.is_file():
            write_bytes(f"{bucket}/{path.relative_to(folder)}", path.read_bytes())
    write_parquet(f"{bucket}/metadata/monday.parquet", rows.take(first))
    write_parquet(f"{bucket}/later.parquet", rows.take([row for row in range(ROWS, ROWS + 20) if row not in {*first, *slow}]))


def start(verb: str, lake: Lake, *words: str) -> subprocess.Popen:
    """A verb on a lake, in a process group of its own; ``finish`` waits for it."""
    return subprocess.Popen(
        [sys.executable, "-m", f"pipelines.{verb}", f"--lake={lake.root}", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def small_audit(inputs: str) -> list[str]:
    """Options of an audit of what ``fill_bucket`` has put into ``inputs``."""
    return [
        f"--metadata={inputs}/metadata",
        f"--controls={inputs}/controls.parquet",
        "--image_size=64",
        "--encode_format=png",
        "--rows_per_part=80",
        "--allow_private_hosts",
        "--timeout=8",  # a busy machine must not turn a sound picture into a failure in one of the two
        f"--clip_model={inputs}/clip",
        f"--model={inputs}/model",
        "--device=cpu",
        "--images_per_prompt=4",
        "--images_per_control=2",
        "--steps=2",
        "--clique_size=3",
        "--keep=all",
    ]


def finish(process: subprocess.Popen, seconds: float = SECONDS) -> str:
    """What a verb has said. AssertionError where it did not end well."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        end(process)
    assert process.returncode == 0, output
    return output
