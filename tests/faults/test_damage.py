"""What is damaged from outside is not believed: one line names it, and says how to mend it."""

import json
import random
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import measure, query, verify
from pipelines.cli import run_verb
from tests.faults.conftest import ALL
from tests.faults.report import tried
from tests.lakes import differences
from transforms.store.files import parquet_bytes, read_parquet
from transforms.store.lake import Lake, table_of

RANDOM = random.Random(7)


def deleted(path: Path) -> bool:
    path.unlink()
    return True


def halved(path: Path) -> bool:
    """Half of its rows; a whole Parquet file all the same."""
    rows = read_parquet(str(path))
    path.write_bytes(parquet_bytes(rows.slice(0, rows.num_rows // 2)))
    return rows.num_rows > 1


def exchanged(path: Path) -> bool:
    """As many rows of the same kind, in another order: what another snapshot might have."""
    rows = read_parquet(str(path))
    # Not by ``take``, which knows no column of type null, as marts without rows in one have it.
    other = pa.concat_tables([rows.slice(number, 1) for number in reversed(range(rows.num_rows))] or [rows])
    path.write_bytes(parquet_bytes(other))
    return not other.equals(rows)


def flipped(path: Path) -> bool:
    """One bit, anywhere."""
    content = bytearray(path.read_bytes())
    content[RANDOM.randrange(len(content))] ^= 1 << RANDOM.randrange(8)
    path.write_bytes(content)
    return True


DAMAGES = {"deleted": deleted, "half of its rows": halved, "another's rows": exchanged, "one bit flipped": flipped}


def parts(lake: Lake) -> list[str]:
    """Every part of every table and mart, as paths inside the lake."""
    return sorted(str(path.relative_to(lake.root)) for path in Path(lake.root).glob("*/snapshot_id=*/part-*.parquet"))


def chosen(lake: Lake) -> list[str]:
    return parts(lake) if ALL else ["samples", "images", "embeddings", "generations", "matches", "copy_calibration", "verdicts"]


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.strip().splitlines()


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_part_that_is_damaged_is_named(kind, whole, tmp_path, capsys):
    times = 0
    for number, inside in enumerate(chosen(whole)):
        lake = Lake(shutil.copytree(whole.root, tmp_path / kind / str(number)).as_posix())
        if "/" not in inside:
            inside = next(one for one in parts(whole) if one.startswith(f"{inside}/"))
        if not DAMAGES[kind](Path(lake.root, inside)):
            continue
        times += 1
        capsys.readouterr()
        assert run_verb(verify.main, [f"--lake={lake.root}"]) == 1
        assert f"{inside}: " in capsys.readouterr().out
        mart = table_of(inside) not in _tables()
        # A mart is read by who asks for it, a table by who makes the marts.
        verb = query.main if mart else measure.main
        words = ["SELECT count(*) FROM verdicts"] if mart else ["--report_limit=7"]
        assert run_verb(verb, [f"--lake={lake.root}", *words]) == 2
        (line,) = lines(capsys)
        assert line.startswith("eidetic: ") and inside in line and "'eidetic verify --mend'" in line
    assert times
    tried(f"a part of a table: {kind}", times, "one line that names it, exit code 2")


def _tables():
    from transforms.store.schema import TABLES

    return TABLES


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_values(path: Path, _: Path) -> None:
    path.write_text(re.sub(r'"rows": \{\n    "(\w+)": (\d+)', r'"rows": {\n    "\1": 9\2', path.read_text(), count=1))


def no_object(path: Path, _: Path) -> None:
    path.write_text("[]")


def other_types(path: Path, _: Path) -> None:
    value = json.loads(path.read_text())
    del value["digest"]
    path.write_text(json.dumps({**value, "rows": [1], "parts": 3}))


def anothers(path: Path, other: Path) -> None:
    shutil.copy(other, path)


MANIFEST_DAMAGES = (empty, cut, other_values, no_object, other_types, anothers)
STAGES = ("ingest", "embed", "deduplicate", "generate", "match", "measure")


@pytest.mark.parametrize("damage", MANIFEST_DAMAGES)
def test_a_manifest_that_is_damaged_counts_as_absent(damage, whole, world, tmp_path, capsys):
    names = STAGES if ALL else RANDOM.sample(STAGES, 1)
    for number, stage in enumerate(names):
        lake = Lake(shutil.copytree(whole.root, tmp_path / str(number)).as_posix())
        (path,) = Path(lake.root, "manifests", stage).iterdir()
        other = next(Path(lake.root, "manifests", "embed" if stage == "ingest" else "ingest").iterdir())
        before = path.read_bytes()
        damage(path, other)
        if path.read_bytes() == before:  # measure has no rows of its own to change
            path.write_text(path.read_text().replace('"audit_id": "', '"audit_id": "0'))
        capsys.readouterr()
        assert run_verb(verify.main, [f"--lake={lake.root}"]) == 1
        assert f"{path.relative_to(lake.root)}: " in capsys.readouterr().out
        assert world.audit(lake) == 0
        assert f"{str(path)!r} is damaged" in capsys.readouterr().err
        assert differences(whole, lake) == []
        assert run_verb(verify.main, [f"--lake={lake.root}"]) == 0
    tried(f"a manifest: {damage.__name__.replace('_', ' ')}", len(names), "said, and the same audit makes it anew")


MENDED = ("samples", "images", "embeddings", "duplicate_pairs", "generations", "matches", "verdicts")


@pytest.mark.parametrize("table", MENDED if ALL else ["images", "matches"])
def test_what_is_damaged_is_made_again(table, lake, world, whole, capsys):
    path = next(Path(lake.root, table).glob("snapshot_id=*/part-*.parquet"))
    flipped(path)
    assert run_verb(verify.main, [f"--lake={lake.root}", "--mend"]) == 0
    assert "the same audit makes them again" in capsys.readouterr().out and not path.exists()
    assert world.audit(lake) == 0
    assert differences(whole, lake) == []
    assert run_verb(verify.main, [f"--lake={lake.root}"]) == 0
    assert "nothing is damaged" in capsys.readouterr().out
    tried("a damaged part: verify --mend, and the same audit", 1, "the same tables", table)


def test_a_part_too_many_is_named(lake, capsys):
    part = next(Path(lake.root, "matches").glob("snapshot_id=*/part-*.parquet"))
    shutil.copy(part, part.with_name("part-00077.parquet"))
    assert run_verb(measure.main, [f"--lake={lake.root}", "--report_limit=7"]) == 2
    assert "part-00077.parquet' is damaged: the manifest of its snapshot doesn't name it" in lines(capsys)[0]


def test_a_lake_of_before_is_read(lake, whole, capsys):
    """Its manifests name no parts, and its parts no digest."""
    for path in Path(lake.root, "manifests").rglob("*.json"):
        value = json.loads(path.read_text())
        for name in ("digest", "parts", "borrowed", "order", "asked_order"):
            del value[name]
        path.write_text(json.dumps(value))
    for inside in parts(lake):
        rows = read_parquet(f"{whole.root}/{inside}").replace_schema_metadata()
        pq.write_table(rows, f"{lake.root}/{inside}", compression="zstd")
    capsys.readouterr()
    assert run_verb(measure.main, [f"--lake={lake.root}", "--report_limit=7"]) == 0
    assert run_verb(verify.main, [f"--lake={lake.root}"]) == 0
    assert "of older versions no digest is known" in capsys.readouterr().out
    assert lake.latest("measure").order == 1
