"""The verb compare: which snapshots it takes, what it leaves in the lake, what it says, and its errors."""

import json
import os
import shutil

import duckdb
import pyarrow as pa
import pytest

from pipelines import compare, query
from pipelines.cli import run_verb
from pipelines.compare import CompareOptions
from pipelines.execution import Execution
from pipelines.options import Parsed
from tests.pipelines.test_train import attacked, data, lake, sweep, trained, weights  # noqa: F401  (fixtures)
from tests.sweeps import Planted, fake_sweep, returns
from transforms.errors import Damaged
from transforms.forgetting import removal
from transforms.models.configuration import Configuration
from transforms.results import sweeps
from transforms.store.files import read_bytes
from transforms.store.lake import Lake
from transforms.store.lineage import lineage
from transforms.store.schema import TABLES, Table


def run(fake, **options):
    return compare.STAGE.run(Execution(fake.lake, []), Parsed.of(CompareOptions(**options)))


def ask(lake, sql):  # noqa: F811
    with duckdb.connect(os.path.join(lake.root, "audit.duckdb"), read_only=True) as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture
def fake(tmp_path):
    models = [Planted(Configuration(images=4, seed=seed), returns(range(2 + seed), 6), experiments=(f"seed {seed}", "both"))
              for seed in (0, 1)]  # fmt: skip
    return fake_sweep(tmp_path / "lake", models)


def test_it_leaves_marts_database_and_report(fake):
    manifest = run(fake)
    assert manifest.upstream == {"train": fake.train.snapshot_id, "extract": fake.extract.snapshot_id}
    assert set(lineage(fake.lake, manifest)) >= {"compare", "extract", "train", "deduplicate"}
    assert set(manifest.facts["marts"]) == set(sweeps.MARTS)
    path = fake.lake.path("reports", f"sweep-{fake.train.snapshot_id}.html")
    with open(path, "rb") as page, open(fake.lake.path("sweep.html"), "rb") as newest:
        assert page.read() == newest.read()
    assert ask(fake.lake, "SELECT seed, extracted_by_ratio FROM leakage ORDER BY seed") == [(0, 2), (1, 3)]
    assert ask(fake.lake, "SELECT count(*) FROM samples WHERE status = 'success'") == [(40,)]


def test_a_lake_that_has_a_sweep_alone_can_be_asked(fake, capsys):
    words = ["SELECT model_id, extracted_by_l2_share FROM leakage ORDER BY ALL", f"--lake={fake.lake.root}", "--format=json"]
    assert run_verb(query.main, words) == 2
    assert "run 'eidetic measure' or 'eidetic compare' first" in capsys.readouterr().err
    assert run_verb(compare.main, [f"--lake={fake.lake.root}"]) == 0
    said = capsys.readouterr().out
    assert [line.split() for line in said.splitlines() if line.startswith(("seed", "both"))] == [
        ["both", "2", "2", *("62.5%", "0.0%") * 3, "1"],
        ["seed", "0", "1", "1", *("50.0%", "0.0%") * 3, "1"],
        ["seed", "1", "1", "1", *("75.0%", "0.0%") * 3, "1"]]  # fmt: skip
    assert f"report    {fake.lake.path('reports', f'sweep-{fake.train.snapshot_id}.html')}" in said
    assert run_verb(query.main, words) == 0
    assert [row["extracted_by_l2_share"] for row in json.loads(capsys.readouterr().out)] in ([0.5, 0.75], [0.75, 0.5])


def test_a_second_run_does_nothing_and_brings_back_what_was_deleted(fake):
    first = run(fake)
    page = fake.lake.path("reports", f"sweep-{fake.train.snapshot_id}.html")
    part = fake.lake.part("leakage", first.snapshot_id, 0)
    before, content = os.stat(part).st_mtime_ns, read_bytes(page)
    assert run(fake) == first and os.stat(part).st_mtime_ns == before
    os.remove(page)
    os.remove(fake.lake.path("audit.duckdb"))
    shutil.rmtree(fake.lake.path("work", "pictures"))
    assert run(fake) == first
    assert read_bytes(page) == content
    assert ask(fake.lake, "SELECT count(*) FROM leakage") == [(2,)]


def test_what_was_asked_of_the_models_last_is_taken(fake, monkeypatch):
    """Another extract makes another comparison, and a stage after train is taken as soon as it is there."""
    first = run(fake)
    for table in ("untargeted_generations", "untargeted_attacks"):
        fake.lake.write(table, "later", 0, fake.lake.read(table, fake.extract.snapshot_id))
    fake.lake.complete("extract", "later", {"sampler": "ddpm"}, {"train": fake.train.snapshot_id})
    fake.lake.complete("extract", "of another", {}, {"train": "another"})
    second = run(fake)
    assert second.upstream["extract"] == "later" and second.snapshot_id != first.snapshot_id
    assert ask(fake.lake, "SELECT DISTINCT snapshot_id FROM leakage") == [(second.snapshot_id,)]
    assert ask(fake.lake, "SELECT DISTINCT snapshot_id FROM untargeted_attacks") == [("later",)]
    table = Table("losses", "infer", "one image", pa.schema([pa.field("model_id", pa.string(), False)]))
    monkeypatch.setitem(TABLES, "losses", table)
    fake.lake.write("losses", "inferred", 0, [{"model_id": fake.ids[0]}])
    fake.lake.complete("infer", "inferred", {}, {"train": fake.train.snapshot_id})
    assert run(fake).upstream == {"train": fake.train.snapshot_id, "extract": "later", "infer": "inferred"}
    assert ask(fake.lake, "SELECT model_id FROM losses") == [(fake.ids[0],)]


def test_models_that_nobody_asked_are_one_line(tmp_path, capsys, fake):
    shutil.rmtree(fake.lake.path("manifests", "extract"))
    assert run_verb(compare.main, [f"--lake={fake.lake.root}"]) == 2
    assert "for pictures yet; run 'eidetic extract' first" in capsys.readouterr().err
    Lake(str(tmp_path / "empty")).create()
    assert run_verb(compare.main, [f"--lake={tmp_path / 'empty'}"]) == 2
    assert "run 'eidetic train' first" in capsys.readouterr().err
    assert run_verb(compare.main, [f"--lake={fake.lake.root}", "--sweep_pictures=-1"]) == 2
    assert "--sweep_pictures is -1, expected 0 or more" in capsys.readouterr().err


def test_a_failed_check_completes_nothing(fake):
    rows = fake.lake.read("untargeted_generations", fake.extract.snapshot_id).to_pylist()
    shutil.rmtree(fake.lake.path("manifests", "extract"))
    fake.lake.write("untargeted_generations", fake.extract.snapshot_id, 0, rows[1:])
    fake.lake.complete("extract", fake.extract.snapshot_id, {}, {"train": fake.train.snapshot_id})
    with pytest.raises(RuntimeError, match="every_generation_is_a_row"):
        run(fake)
    assert fake.lake.manifests("compare") == [] and not os.path.exists(fake.lake.path("sweep.html"))


def test_a_part_that_changed_since_is_not_believed(fake):
    path = fake.lake.part("untargeted_attacks", fake.extract.snapshot_id, 0)
    content = read_bytes(path)
    with open(path, "wb") as file:
        file.write(content[:-20] + b"x" + content[-19:])
    with pytest.raises(Damaged, match=r"untargeted_attacks.*is damaged"):
        run(fake)


def test_the_options_and_the_sql_shape_the_snapshot(fake):
    usual = compare.plan(fake.lake, Parsed.of(CompareOptions()), fake.train.snapshot_id)
    assert (usual.items, usual.unit) == (2, "models")
    other = compare.plan(fake.lake, Parsed.of(CompareOptions(sweep_pictures=1)), fake.train.snapshot_id)
    assert other.snapshot_id != usual.snapshot_id
    early = compare.plan(fake.lake, Parsed.of(CompareOptions()), "not there yet")
    assert early.items is None and early.upstream == {"train": "not there yet"}


def test_forgetting_removes_what_is_made_of_it(fake):
    run(fake)
    removal.remove_what_is_made(fake.lake)
    assert fake.lake.manifests("compare") == []
    assert not os.path.exists(fake.lake.path("sweep.html")) and not os.listdir(fake.lake.path("reports"))
    assert not any(fake.lake.every_part(mart) for mart in sweeps.MARTS)
    assert run(fake).facts["marts"]["leakage"] == 2


def test_a_sweep_from_its_file_to_its_report(lake, weights, tmp_path, capsys):  # noqa: F811
    """The tiny sweep of test_train: trained, asked, compared."""
    made = trained(lake, sweep(tmp_path))
    attacked(lake, weights)
    assert run_verb(compare.main, [f"--lake={lake.root}"]) == 0
    said = capsys.readouterr().out
    assert {"size", "gan", "too", "diverges", "canaries"} <= {line.split()[0] for line in said.splitlines() if line.strip()}
    assert ask(lake, "SELECT status, count(*) FROM leakage GROUP BY ALL ORDER BY ALL") == [
        ("diverged", 1), ("failed", 1), ("success", 8)]  # fmt: skip
    assert ask(lake, "SELECT count(*) FROM leakage WHERE pictures_made = 10 AND frechet IS NOT NULL") == [(8,)]
    # Four models at two steps each; two sizes of the same seed are one pair.
    assert ask(lake, "SELECT count(*), count(DISTINCT run_id) FROM learning_curve") == [(8, 4)]
    pairs = "SELECT axis, level, reference, pairs FROM leakage_effects WHERE measure = 'loss' AND axis = 'images'"
    assert ask(lake, pairs) == [
        ("images", "8", "4", 1)]  # fmt: skip
    assert ask(
        lake, "SELECT sum(rule_agreement.both + only_rule + only_other + neither) = sum(generations) FROM rule_agreement"
    ) == [(True,)]
    found = lake.latest("compare")
    assert found.upstream["train"] == made.snapshot_id and os.path.getsize(lake.path("sweep.html")) > 10_000
