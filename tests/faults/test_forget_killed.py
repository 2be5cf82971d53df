"""A forget that is killed at any of its changes: the same command again leaves nothing, and the proof says so."""

import os
import shutil
from pathlib import Path

import pytest

from pipelines import forget, verify
from pipelines.cli import run_verb
from tests.faults.changes import Changes
from tests.faults.conftest import ALL
from tests.faults.report import tried
from tests.faults.traces import left, traces
from transforms.store.lake import Lake


@pytest.fixture(scope="module")
def how_many(whole, world, tmp_path_factory):
    """Changes that a forget makes."""
    lake = Lake(shutil.copytree(whole.root, tmp_path_factory.mktemp("counted") / "lake").as_posix())
    wanted = traces(lake)
    assert {name.split()[0] for name, _ in left(lake, wanted)} == {"vector", "picture", "caption"}
    with Changes(lake.root).counted() as changes:
        assert run_verb(forget.main, world.forgetting(lake)) == 0
    assert changes.count > 50 and left(lake, wanted) == set()
    return changes.count


SHARES = 10 if ALL else 1


@pytest.mark.parametrize("share", range(SHARES))
def test_killed_at_a_change(share, how_many, whole, world, tmp_path, capsys):
    moments = range(share, how_many, SHARES) if ALL else [how_many // 12, how_many // 3, how_many - 2]
    for moment in moments:
        lake = Lake(shutil.copytree(whole.root, tmp_path / str(moment)).as_posix())
        wanted, mine = traces(lake), world.forgetting(lake)
        with Changes(lake.root, moment).counted() as changes:
            try:
                run_verb(forget.main, mine)
            except BaseException:  # as what Beam passes a dead step on
                assert changes.dead
        assert changes.dead
        assert run_verb(forget.main, mine) == 0, capsys.readouterr()
        assert left(lake, wanted) == set()
        assert run_verb(verify.main, [f"--lake={lake.root}"]) == 0, capsys.readouterr()
        shutil.rmtree(lake.root)
    what = "a forget, killed at every one of its changes: the same command again"
    tried(what, len(moments), "nothing is left, and the proof says so", share)


def test_what_can_not_be_looked_at_is_no_proof(lake, world, monkeypatch, capsys):
    assert run_verb(forget.main, world.forgetting(lake)) == 0
    elsewhere = Path(lake.root).parent / "elsewhere"
    elsewhere.mkdir()
    (Path(lake.root) / "linked").symlink_to(elsewhere)
    capsys.readouterr()
    assert run_verb(forget.main, [f"--lake={lake.root}", "--verify_only"]) == 2
    assert "linked' is a link to a folder" in capsys.readouterr().err
    (Path(lake.root) / "linked").unlink()
    os.mkfifo(Path(lake.root) / "pipe")
    assert run_verb(forget.main, [f"--lake={lake.root}", "--verify_only"]) == 2
    assert "pipe' is no file" in capsys.readouterr().err
    (Path(lake.root) / "pipe").unlink()
    scandir = os.scandir

    def refused(path=".", *_):
        if str(path).endswith("work"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert run_verb(forget.main, [f"--lake={lake.root}", "--verify_only"]) == 2
    assert "Permission denied" in capsys.readouterr().err
