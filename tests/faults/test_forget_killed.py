"""A forget that is killed at any of its changes: the same command again leaves nothing, and the proof says so."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines import forget, verify
from pipelines.cli import run_verb
from tests.faults.changes import Changes
from tests.faults.conftest import ALL
from tests.faults.report import tried
from transforms.store.files import read_parquet
from transforms.store.lake import Lake

REASON = "--reason=asked for"


def words(lake: Lake, world) -> list[str]:
    """The command: the picture that has a copy, and comes back."""
    url = next(
        row["url"]
        for row in rows(lake, "samples")
        if row["url"] and row["url"].endswith("00.png") and row["role"] == "training"
    )
    return [f"--lake={lake.root}", f"--urls={url}", REASON]


def rows(lake: Lake, table: str) -> list[dict]:
    return [row for path in lake.every_part(table) for row in read_parquet(path).to_pylist()]


def traces(lake: Lake) -> dict[str, bytes]:
    """What of it must be nowhere."""
    mine = {
        row["sample_id"]: row
        for row in rows(lake, "samples")
        if row["url"] in ("00.png", "05.png") and row["role"] == "training"
    }
    assert len(mine) == 2
    found: dict[str, bytes] = {}
    for row in rows(lake, "embeddings"):
        if row["sample_id"] in mine:
            found[f"vector {row['sample_id']}"] = np.asarray(row["vector"], np.float32).tobytes()
    for row in rows(lake, "images"):
        if row["sample_id"] in mine:
            found[f"picture {row['sample_id']}"] = row["image"]
    for sample, row in mine.items():
        found[f"caption {sample}"] = row["caption"].encode()
    return found


def left(lake: Lake, wanted: dict[str, bytes]) -> set[tuple[str, str]]:
    """(what, file) of all that is found, in any file, of Parquet as decoded."""
    found = set()
    for path in Path(lake.root).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                for row in read_parquet(str(path)).to_pylist():
                    for value in row.values():
                        if isinstance(value, list) and value and isinstance(value[0], float):
                            content += np.asarray(value, np.float32).tobytes()
                        else:
                            content += value if isinstance(value, bytes) else str(value).encode()
            found |= {(name, path.name) for name, one in wanted.items() if one in content}
    return found


@pytest.fixture(scope="module")
def how_many(whole, world, tmp_path_factory):
    """Changes that a forget makes."""
    lake = Lake(shutil.copytree(whole.root, tmp_path_factory.mktemp("counted") / "lake").as_posix())
    wanted = traces(lake)
    assert {name.split()[0] for name, _ in left(lake, wanted)} == {"vector", "picture", "caption"}
    with Changes(lake.root).counted() as changes:
        assert run_verb(forget.main, words(lake, world)) == 0
    assert changes.count > 50 and left(lake, wanted) == set()
    return changes.count


SHARES = 10 if ALL else 1


@pytest.mark.parametrize("share", range(SHARES))
def test_killed_at_a_change(share, how_many, whole, world, tmp_path, capsys):
    moments = range(share, how_many, SHARES) if ALL else [how_many // 12, how_many // 3, how_many - 2]
    for moment in moments:
        lake = Lake(shutil.copytree(whole.root, tmp_path / str(moment)).as_posix())
        wanted, mine = traces(lake), words(lake, world)
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
    what = f"forget, killed at every one of its changes (share {share + 1} of {SHARES}): the same command again"
    tried(what, len(moments), "nothing is left, and the proof says so", len(moments))


def test_what_can_not_be_looked_at_is_no_proof(lake, world, monkeypatch, capsys):
    assert run_verb(forget.main, words(lake, world)) == 0
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
