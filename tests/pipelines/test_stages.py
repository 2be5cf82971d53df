"""Another stage is one module, one table and one line in each registry: everything else goes by those."""

import datetime
import sys

import pytest

from pipelines import audit, cli, stages
from pipelines.costs import Size
from pipelines.options import parse
from tests import toy_stage
from tests.lakes import workers
from tests.planted import clusters, embedding_rows, write_embeddings, write_images
from transforms.forgetting.removal import remove
from transforms.store.lake import Lake
from transforms.store.lineage import lineage
from transforms.store.scan import ask
from transforms.store.schema import TABLES


@pytest.fixture
def toy(monkeypatch):
    """The toy stage, registered."""
    monkeypatch.setitem(sys.modules, "pipelines.measure_lengths", toy_stage)
    monkeypatch.setitem(stages.STAGES, "measure_lengths", "embeddings → lengths")
    monkeypatch.setitem(TABLES, "lengths", toy_stage.LENGTHS)


@pytest.fixture
def lake(tmp_path):
    made = Lake(str(tmp_path / "lake"))
    pictures = write_images(made, [[]])
    vectors, _ = clusters([2, 1])
    write_embeddings(
        made, [embedding_rows(list("ab"), vectors[:2]), embedding_rows(["c"], 2 * vectors[2:])], pictures.snapshot_id
    )
    return made


def test_the_command_line_knows_it(toy, lake, capsys):
    assert cli.main(["--help"]) == 0
    assert "measure_lengths embeddings → lengths" in capsys.readouterr().out
    assert cli.main(["measure_lengths", f"--lake={lake.root}", "--norm=0"]) == 2
    assert "--norm is 0, expected 1 or more" in capsys.readouterr().err


def test_it_runs_once_and_its_lineage_is_known(toy, lake):
    words = ["measure_lengths", f"--lake={lake.root}", "--norm=2"]
    assert cli.main(words) == 0
    manifest = lake.latest("measure_lengths")
    assert cli.main(words) == 0
    assert [one.finished_at for one in lake.manifests("measure_lengths")] == [manifest.finished_at]
    assert list(lineage(lake, manifest)) == ["measure_lengths", "embed", "ingest"]
    rows = ask(lake, {"lengths": manifest.snapshot_id}, "SELECT sample_id, length FROM lengths ORDER BY ALL")
    assert [(row["sample_id"], pytest.approx(row["length"], abs=1e-5)) for row in rows] == [("a", 1), ("b", 1), ("c", 2)]


def test_the_plan_of_an_audit_names_it(toy, lake, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    parsed = parse([f"--lake={lake.root}", "--metadata=x", "--norm=3", "--model=m", "--plan"], "audit", "", audit.options())
    assert parsed[toy_stage.LengthOptions].norm == 3
    assert [stage.name for stage in stages.stages()][-1] == "measure_lengths"
    ((name, cost),) = audit.costs(lake, parsed, Size(10, 0, 1, 1, 1), ["measure_lengths"])
    assert (name, cost.seconds, cost.source) == (name, None, "not measured: measure_lengths does not say what it takes")


def test_what_is_forgotten_leaves_its_table(toy, lake):
    assert cli.main(["measure_lengths", f"--lake={lake.root}"]) == 0
    row = {"kind": "sample", "sample_id": "b", "sha256": "0" * 64, "length": None, "ending": None, "reason": "asked for"}
    lake.write("tombstones", "one", 0, [{**row, "forgotten_at": datetime.datetime.now(datetime.UTC)}])
    assert remove(workers(lake))["lengths"] == 1
    manifest = lake.latest("measure_lengths")
    assert manifest.rows == {"lengths": 2}
    assert ask(lake, {"lengths": manifest.snapshot_id}, "SELECT sample_id FROM lengths ORDER BY 1") == [
        {"sample_id": "a"},
        {"sample_id": "c"},
    ]


def test_a_lineage_with_a_hole_is_said(toy, lake):
    assert cli.main(["measure_lengths", f"--lake={lake.root}"]) == 0
    done = lake.latest("measure_lengths")
    assert cli.main(["measure_lengths", f"--lake={lake.root}"]) == 0
    from transforms.errors import UserError
    from transforms.store.files import delete

    delete(lake.path("manifests", "embed", f"{done.upstream['embed']}.json"))
    with pytest.raises(UserError, match="lacks the manifest of embed"):
        lineage(lake, done)
