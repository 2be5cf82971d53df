"""Commands that are killed (SIGKILL) at random moments of every stage: the same command again ends with the same tables."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipelines import audit, forget, nightly, sweep
from pipelines.cli import run_verb
from pipelines.lock import LOCK
from tests.faults.conftest import ALL
from tests.faults.report import tried
from tests.faults.traces import left, traces
from tests.lakes import TIMES_AND_DEVICES, differences
from tests.servers import ROOT
from transforms.store.lake import Lake

SECONDS = 180
"""After so long a command is given up."""

LONGEST = 1.5
"""Seconds up to which a stage may be at work before it is killed; most of these small ones take less."""

PER_LAKE = 3
"""So often a lake is hurt before its command may end."""

SHARES = 10 if ALL else 1
"""The kills are so many tests, which can take their time side by side."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that is killed.

    Attributes:
        name: its verb.
        main: the verb's own.
        words: of the command line.
        snapshots: that its lake has when it has ended.
    """

    name: str
    main: Callable[[Sequence[str]], int | None]
    words: list[str]
    snapshots: int

    def killed(self, lake: Lake, complete: int, seconds: float) -> bool:
        """Starts it and kills it so long after so many snapshots were complete; False where it was faster."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", self.name, *self.words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        lock, limit = Path(lake.path(LOCK)), time.monotonic() + SECONDS
        try:
            while process.poll() is None and time.monotonic() < limit:
                if lock.exists() and f"(process {process.pid} " in lock.read_text() and complete <= snapshots(lake):
                    time.sleep(seconds)
                    break
                time.sleep(0.01)
            at_work = process.poll() is None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
        assert at_work or process.returncode == 0, said
        return at_work

    def hurt(self, lake: Lake, most: int, chance: random.Random) -> int:
        """Kills it on this lake up to ``most`` times, in stages that aren't complete; how often it came to that."""
        times = 0
        while times < most:
            complete = snapshots(lake)
            moment = chance.randint(complete, max(complete, self.snapshots))
            if not self.killed(lake, moment, chance.uniform(0, LONGEST)):
                break
            times += 1
        return times

    def run(self) -> int:
        return run_verb(self.main, self.words)


def snapshots(lake: Lake) -> int:
    """How many are complete."""
    return len(list(Path(lake.root, "manifests").glob("*/*.json")))


def of(lakes: Callable[[int], tuple[Lake, Command]], kills: int, seed: int) -> list[Lake]:
    """Lakes whose command was killed ``kills`` times in all, before it ended."""
    chance, left_over, hurt = random.Random(seed), kills, []
    while left_over:
        lake, command = lakes(len(hurt))
        left_over -= command.hurt(lake, min(PER_LAKE, left_over), chance)
        assert command.run() == 0
        hurt.append(lake)
    return hurt


@pytest.fixture(scope="module")
def whole_night(world, tmp_path_factory):
    """The lake of a night that nothing happened to."""
    lake = Lake(str(tmp_path_factory.mktemp("night") / "lake"))
    assert run_verb(nightly.main, world.night(lake)) == 0
    return lake


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("night", [False, True], ids=["audit", "night"])
def test_an_audit_or_a_night(night, share, world, request, tmp_path):
    untouched = request.getfixturevalue("whole_night" if night else "whole")

    def new(number):
        lake = Lake(str(tmp_path / str(number)))
        if night:
            return lake, Command("nightly", nightly.main, world.night(lake), snapshots(untouched))
        return lake, Command("audit", audit.main, world.words(lake), snapshots(untouched))

    kills = (2 if night else 6) if ALL else 1
    for lake in of(new, kills, 100 * night + share):
        assert differences(untouched, lake) == []
    what = f"{'a night' if night else 'an audit'}, killed at random in its stages: the same command again"
    tried(what, kills, "the same tables", share)


@pytest.mark.parametrize("share", range(SHARES))
def test_a_forget(share, world, whole, tmp_path):
    def copied(name):
        return Lake(shutil.copytree(whole.root, tmp_path / name).as_posix())

    def new(number):
        lake = copied(str(number))
        return lake, Command("forget", forget.main, world.forgetting(lake), snapshots(whole))

    untouched = copied("untouched")
    wanted = traces(untouched)
    assert run_verb(forget.main, world.forgetting(untouched)) == 0
    kills = 2 if ALL else 1
    for lake in of(new, kills, 200 + share):
        assert left(lake, wanted) == set()
        assert differences(untouched, lake, TIMES_AND_DEVICES | {"forgotten_at"}) == []
    tried("a forget, killed at random", kills, "nothing is left; the same command again ends with the same tables", share)


SWEEP = """
[common]
width = 8
batch_size = 4
steps = 150
[[grid]]
name = "size"
images = [2, 4]
checkpoints = 2
[[grid]]
name = "halves"
images = 2
pool = 4
split = [0, 1, 2, 3]
[[model]]
name = "gan"
family = "gan"
images = 4
"""
"""Short, but a training takes seconds: most kills fall into one."""


@pytest.mark.parametrize("share", range(5 if ALL else 1))
def test_a_sweep(share, whole, tmp_path):
    """The same tables, and no training that was complete is done again."""
    (tmp_path / "sweep.toml").write_text(SWEEP)

    def new(number):
        lake = Lake(shutil.copytree(whole.root, tmp_path / str(number)).as_posix())
        words = [
            f"--lake={lake.root}", f"--sweep={tmp_path / 'sweep.toml'}", "--device=cpu", "--save_every=0.2", "--generations=24",
            "--chunk=8", "--sampling_steps=3", "--neighbours=3", "--draws=1", "--inpaintings=4", "--kept=2",
            "--repaint_steps=4", "--targets=2",
        ]  # fmt: skip
        return lake, Sweep("sweep", sweep.main, words, snapshots(whole) + 5)

    untouched, command = new("untouched")
    assert command.run() == 0
    kills = 2 if ALL else 1
    for lake in of(new, kills, 300 + share):
        assert differences(untouched, lake) == []
    tried(
        "a sweep, killed at random in its stages: the same command again", kills, "the same tables, no model made twice", share
    )


class Sweep(Command):
    """A sweep, whose trainings are looked at after each kill."""

    def hurt(self, lake: Lake, most: int, chance: random.Random) -> int:
        complete: dict[Path, int] = {}
        times = 0
        while times < most and super().hurt(lake, 1, chance):
            times += 1
            now = {path: path.stat().st_mtime_ns for path in Path(lake.root, "weights").glob("*/run.json")}
            assert complete.items() <= now.items(), "a training that was complete was done again"
            complete = now
        assert self.run() == 0
        now = {path: path.stat().st_mtime_ns for path in Path(lake.root, "weights").glob("*/run.json")}
        assert complete.items() <= now.items() and len(now) == 7
        return times
