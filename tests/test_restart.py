"""A generation that is killed and started again ends with the same tables, and repeats none of the finished prompts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import deduplicate, embed, generate, ingest
from pipelines.cli import run_verb
from tests.lakes import differences
from tests.models import save_random_pipeline
from tests.planted import picture, write_tiny_clip
from tests.servers import ROOT, end
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png

PROMPTS = 10
FINISHED = 3
"""So many prompts are durable when the run is killed, at least."""

SECONDS = 120
"""After so long a run is given up."""


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """A folder with a lake that is complete up to the groups, and a model."""
    folder = tmp_path_factory.mktemp("restart")
    (folder / "pictures").mkdir()
    for number in range(PROMPTS):
        (folder / "pictures" / f"{number}.png").write_bytes(encode_png(picture(number)))
        (folder / "pictures" / f"{number}.txt").write_text(f"logo number {number}")
    write_tiny_clip(folder / "clip")
    save_random_pipeline(str(folder / "model"))
    lake = f"--lake={folder}/whole"
    assert run_verb(ingest.main, [lake, f"--metadata={folder}/pictures", "--source=folder", "--image_size=64"]) == 0
    assert run_verb(embed.main, [lake, f"--clip_model={folder}/clip", "--device=cpu"]) == 0
    # Under a tiny random model everything looks alike; almost nothing lies over this threshold, so groups stay small.
    assert run_verb(deduplicate.main, [lake, "--duplicate_threshold=0.999999"]) == 0
    return folder


def words(folder: Path, lake: Lake) -> list[str]:
    """Of ``generate``; many steps, so that it can be caught in the middle."""
    return [
        f"--lake={lake.root}",
        f"--model={folder}/model",
        "--device=cpu",
        f"--max_prompts={PROMPTS}",
        "--images_per_prompt=4",
        "--batch_size=4",
        "--steps=60",
        "--keep=all",
    ]


def start(folder: Path, lake: Lake) -> subprocess.Popen:
    """``generate`` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.generate", *words(folder, lake)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def finish(process: subprocess.Popen) -> None:
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        end(process)
    assert process.returncode == 0, output


def results(lake: Lake) -> dict[str, tuple[int, int]]:
    """File of a finished prompt → (inode, time of its last change). A file that is made again has others."""
    found = {}
    for path in Path(lake.root).glob("work/generate/*/prompts/*.parquet"):
        status = path.stat()
        found[path.name] = (status.st_ino, status.st_mtime_ns)
    return found


def watch(process: subprocess.Popen, lake: Lake, enough: int) -> dict[str, tuple[int, int]]:
    """Waits until so many prompts are durable; {} where the process ends before that."""
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit and process.poll() is None:
        found = results(lake)
        if len(found) >= enough:
            return found
        time.sleep(0.01)
    return {}


def keep_second_names(lake: Lake, folder: Path) -> Path:
    """Hard links to the finished prompts' files: their content stays to be had when the work folder is gone."""
    folder.mkdir()
    for path in Path(lake.root).glob("work/generate/*/prompts/*.parquet"):
        os.link(path, folder / path.name)
    return folder


def test_a_killed_run_goes_on_and_repeats_nothing(groups, tmp_path):
    killed = Lake(shutil.copytree(groups / "whole", tmp_path / "killed").as_posix())
    untouched = Lake(shutil.copytree(groups / "whole", tmp_path / "untouched").as_posix())

    first = start(groups, killed)
    try:
        assert watch(first, killed, FINISHED), "the run ended before it could be killed"
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert first.returncode == -signal.SIGKILL
    finished = results(killed)
    assert FINISHED <= len(finished) < PROMPTS, "killed too late to tell anything"
    assert killed.manifests("generate") == []
    linked = keep_second_names(killed, tmp_path / "linked")

    # A finished prompt that is made again would get a new file under its name, and the time of its rows would change.
    second = start(groups, killed)
    seen = watch(second, killed, len(finished) + 2)
    finish(second)
    assert seen, "the second run made all of its prompts before the first look"
    assert {name: seen[name] for name in finished} == finished
    snapshot = killed.latest("generate").snapshot_id
    assert _seconds(killed, snapshot).items() >= _seconds_of(linked).items()
    assert not Path(killed.work("generate", snapshot)).exists()

    assert run_verb(generate.main, words(groups, untouched)) == 0
    assert differences(killed, untouched, frozenset({"seconds"})) == []
    assert untouched.latest("generate").rows["prompts"] == PROMPTS
    assert untouched.latest("generate").rows["generations"] == 4 * PROMPTS


def _seconds(lake: Lake, snapshot: str) -> dict[str, float]:
    """prompt → what its generation took: measured anew by whoever makes it, so it tells one making from another."""
    rows = lake.read("generations", snapshot, ["prompt_id", "sample_index", "seconds"]).to_pylist()
    return {f"{row['prompt_id']}.parquet": row["seconds"] for row in rows if row["sample_index"] == 0}


def _seconds_of(folder: Path) -> dict[str, float]:
    return {
        path.name: next(row["seconds"] for row in pq.read_table(path).to_pylist() if row["sample_index"] == 0)
        for path in folder.iterdir()
    }
