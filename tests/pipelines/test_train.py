"""The verbs train and extract: models of a sweep, what is done again after a kill, and what the models give back."""

import datetime
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import extract, forget, train
from pipelines.cli import run_verb
from pipelines.device import DeviceOptions
from pipelines.execution import Execution
from pipelines.extract import ExtractOptions
from pipelines.options import Parsed
from pipelines.train import TrainOptions
from tests.fakes import fake_lake
from tests.planted import picture
from transforms.attacks import untargeted
from transforms.forgetting import removal
from transforms.forgetting.workers import Workers
from transforms.models.training import DiffusionTraining
from transforms.models.unconditional import as_pictures
from transforms.store.files import read_parquet
from transforms.store.identity import digest
from transforms.store.lake import Lake, as_table
from transforms.store.pictures import decode_array
from transforms.training import population, runs

SWEEP = """
[common]
steps = 12
batch_size = 4
width = 8
images = 8
checkpoints = 2
[[grid]]
name = "size"
images = [4, 8]
[[model]]
name = "gan"
family = "gan"
[[model]]
name = "too many"
images = 5000
[[model]]
name = "diverges"
learning_rate = 10.0
steps = 400
checkpoints = 1
ema = 0.0
[[model]]
name = "canaries"
canaries = 3
copied_images = 2
copies = 5
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A lake whose pictures are in groups; forty of them."""
    root = tmp_path_factory.mktemp("data") / "lake"
    made = fake_lake(root, sizes=(3, 2, *[1] * 35), controls=0, draw=lambda number: picture(number, 16, 16))
    # There all have the same bytes, and would be forgotten together.
    for path in made.lake.parts("samples", made.ingest.snapshot_id):
        with_bytes = [{**row, "sha256": digest(row["sample_id"], length=64)} for row in read_parquet(path).to_pylist()]
        made.lake.rewrite(path, as_table("samples", with_bytes))
    made.lake.settle(made.ingest)
    return root


@pytest.fixture
def lake(data, tmp_path):
    shutil.copytree(data, tmp_path / "lake")
    return Lake(str(tmp_path / "lake"))


def sweep(tmp_path, text=SWEEP):
    (tmp_path / "sweep.toml").write_text(text)
    return str(tmp_path / "sweep.toml")


def trained(lake, path, device="cpu", **options):
    parsed = Parsed.of(TrainOptions(sweep=path, **options), DeviceOptions(device=device))
    return train.STAGE.run(Execution(lake, []), parsed)


def rows(lake, table, manifest):
    return lake.read(table, manifest.snapshot_id).to_pylist()


def but_for_time(some):
    return [{name: value for name, value in row.items() if name not in ("seconds",)} for row in some]


def test_every_configuration_is_a_row_and_what_cannot_be_trained_says_why(lake, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(train, "say", said.append)
    manifest = trained(lake, sweep(tmp_path))
    found = rows(lake, "models", manifest)
    size = [row for row in found if row["experiments"] == ["size"]]
    assert [(row["images"], row["step"], row["last"], row["passes"]) for row in size] == [
        (4, 6, False, 6.0), (4, 12, True, 12.0), (8, 6, False, 3.0), (8, 12, True, 6.0)]  # fmt: skip
    assert {row["status"] for row in size} == {"success"} and len({row["weights_digest"] for row in size}) == 4
    by_name = {row["experiments"][0]: row for row in found}
    assert by_name["gan"]["status"] == "success" and by_name["gan"]["family"] == "gan"
    assert by_name["too many"]["status"] == "failed"
    assert by_name["too many"]["reason"].startswith("it wants 5,000 pictures, and the lake has 40")
    assert by_name["diverges"]["status"] == "diverged" and by_name["diverges"]["step"] < 400
    assert by_name["canaries"]["total"] == 8 + 2 * 4 + 6
    assert manifest.facts["status"] == {"success": 8, "failed": 1, "diverged": 1}
    assert [one[:55] for one in said] == ["train        1 could not be trained: it wants 5,000 pic"]
    kept = rows(lake, "model_members", manifest)
    canaries = [row for row in kept if row["kind"] == "canary"]
    assert [row["copies"] for row in canaries] == [1, 2, 3]
    # The same command again does nothing.
    assert trained(lake, sweep(tmp_path)) == manifest


def test_two_processes_train_the_same_models(lake, data, tmp_path):
    shutil.copytree(data, tmp_path / "other")
    other = Lake(str(tmp_path / "other"))
    one, two = trained(lake, sweep(tmp_path)), trained(other, sweep(tmp_path), device="cpu,cpu")
    for table in ("models", "model_members"):
        assert but_for_time(rows(lake, table, one)) == but_for_time(rows(other, table, two))
    assert one.snapshot_id == two.snapshot_id


def test_what_another_sweep_has_trained_is_not_trained_again(lake, tmp_path, monkeypatch):
    first = trained(lake, sweep(tmp_path))
    done = []
    real = DiffusionTraining.advance
    monkeypatch.setattr(DiffusionTraining, "advance", lambda self: (done.append(self.configuration), real(self)))
    more = trained(lake, sweep(tmp_path, SWEEP + '\n[[model]]\nname = "new"\nseed = 7\n'))
    assert more.snapshot_id != first.snapshot_id
    assert {one.seed for one in done} == {7}
    before = {row["model_id"]: row for row in rows(lake, "models", first)}
    after = {row["model_id"]: row for row in rows(lake, "models", more)}
    assert before.items() <= after.items() and len(after) == len(before) + 2


@pytest.mark.parametrize("at", [1, 12, 30])
def test_a_killed_sweep_goes_on_to_the_same_models(lake, data, tmp_path, monkeypatch, at):
    """Killed in one of its steps: no training that was complete is done again, and the one that wasn't goes on."""
    shutil.copytree(data, tmp_path / "other")
    whole = rows(Lake(str(tmp_path / "other")), "models", trained(Lake(str(tmp_path / "other")), sweep(tmp_path)))
    steps = []
    real = DiffusionTraining.advance

    def advance(self):
        steps.append((self.configuration, self.step))
        if len(steps) == at:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(DiffusionTraining, "advance", advance)
    with pytest.raises(KeyboardInterrupt):
        trained(lake, sweep(tmp_path), save_every=1e-9)
    monkeypatch.setattr(DiffusionTraining, "advance", lambda self: (steps.append((self.configuration, self.step)), real(self)))
    manifest = trained(lake, sweep(tmp_path), save_every=1e-9)
    assert but_for_time(rows(lake, "models", manifest)) == but_for_time(whole)
    # Of all steps the one that the kill fell into alone was begun twice.
    assert len(steps) - len(set(steps)) == 1
    assert not list((tmp_path / "lake" / "work" / "train").glob("*/*"))


def test_a_state_that_is_damaged_is_begun_anew(lake, data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "other")
    whole = rows(Lake(str(tmp_path / "other")), "models", trained(Lake(str(tmp_path / "other")), sweep(tmp_path)))
    real = DiffusionTraining.advance

    def advance(self):
        if self.step == 3:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(DiffusionTraining, "advance", advance)
    with pytest.raises(KeyboardInterrupt):
        trained(lake, sweep(tmp_path), save_every=1e-9)
    (state,) = (tmp_path / "lake" / "work" / "train").glob("*/states/*")
    state.write_bytes(state.read_bytes()[:100])
    monkeypatch.setattr(DiffusionTraining, "advance", real)
    assert but_for_time(rows(lake, "models", trained(lake, sweep(tmp_path)))) == but_for_time(whole)


def test_a_sweep_of_which_nothing_can_be_trained_is_one_line(lake, tmp_path, capfd):
    path = sweep(tmp_path, "[[model]]\nimages = 5000")
    words = [f"--lake={lake.root}", f"--sweep={path}", "--device=cpu"]
    assert run_verb(train.main, words) == 2
    assert "not one of 1 configurations could be trained; mend the sweep" in capfd.readouterr().err
    assert run_verb(train.main, words) == 2  # and isn't taken for finished
    assert run_verb(train.main, words[:1]) == 2
    assert "nothing says what to train: name a sweep's file with --sweep" in capfd.readouterr().err


def test_the_small_pictures_are_made_again_where_they_are_gone(lake, tmp_path):
    first = trained(lake, sweep(tmp_path))
    shutil.rmtree(tmp_path / "lake" / "work" / "pictures")
    again = trained(lake, sweep(tmp_path, SWEEP + "\n"), save_every=5.0)
    assert again == first


# -- forget -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def attacked_lake(lake, tmp_path, weights):
    """A sweep that was attacked, and the member of some of its trainings that is to be forgotten."""
    models = rows(lake, "models", made := trained(lake, sweep(tmp_path)))
    attacked(lake, weights, delta=1.0)
    of_run = {}
    for row in rows(lake, "model_members", made):
        of_run.setdefault(row["run_id"], set()).add(row["sample_id"])
    small = next(row["run_id"] for row in models if row["images"] == 4)
    gone = sorted(set.union(*of_run.values()) - of_run[small] - {row for row in set.union(*of_run.values()) if "canary" in row})
    return lake, gone[0], {run for run, ids in of_run.items() if gone[0] in ids}


def forgotten(lake, sample):
    return run_verb(forget.main, [f"--lake={lake.root}", f"--sample_ids={sample}", "--reason=it was asked for"])


def left(lake):
    """Of each model of a lake its status, whether its weights are there, and the status of pictures that are."""
    models = rows(lake, "models", lake.latest("train"))
    made = rows(lake, "untargeted_generations", lake.latest("extract"))
    there = {
        row["model_id"]: (Path(runs.model_folder(lake, row["run_id"], row["step"])) / "model.json").exists() for row in models
    }
    pictures = {row["model_id"]: row["status"] for row in made if row["image"] is not None and row["thumbnail"] is not None}
    return {row["model_id"]: (row["status"], there[row["model_id"]], pictures.get(row["model_id"])) for row in models}


def test_models_that_were_trained_on_what_is_forgotten_go_with_what_they_made(attacked_lake):
    lake, gone, touched = attacked_lake
    before = {row["model_id"]: row for row in rows(lake, "models", lake.latest("train"))}
    assert forgotten(lake, gone) == 0
    for model, (status, there, pictures) in left(lake).items():
        if before[model]["run_id"] in touched:
            assert (status, there, pictures) == ("forgotten", False, None)
        elif before[model]["status"] == "success":
            assert (status, there, pictures) == ("success", True, "success")
    assert {row["run_id"] for row in before.values()} - touched
    assert not [path for path in (Path(lake.root) / "work" / "pictures").rglob("*") if path.is_file()]
    kept = {path.name for path in (Path(lake.root) / "weights").iterdir()}
    assert not kept & touched
    # Another sweep draws without it.
    again = trained(lake, sweep(Path(lake.root).parent, SWEEP + "\n[[model]]\nimages = 39\nsteps = 1\n"))
    assert gone not in {row["sample_id"] for row in rows(lake, "model_members", again)}


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_forget_that_is_killed_among_the_models_ends_the_same(attacked_lake, monkeypatch, at):
    lake, gone, _ = attacked_lake
    changes = []
    originals = {name: getattr(removal, name) for name in ("delete_all",)}
    rewrite = Lake.rewrite

    def counted(change):
        def changed(*arguments):
            if any("weights" in str(one) or "models" in str(one) or "untargeted" in str(one) for one in arguments[-2:]):
                changes.append(1)
                if len(changes) == at:
                    raise KeyboardInterrupt
            return change(*arguments)

        return changed

    monkeypatch.setattr(
        removal, "delete_all", lambda paths: [counted(lambda path: originals["delete_all"]([path]))(path) for path in paths]
    )
    monkeypatch.setattr(Lake, "rewrite", counted(rewrite))
    with pytest.raises(KeyboardInterrupt):
        forget.main([f"--lake={lake.root}", f"--sample_ids={gone}", "--reason=it was asked for"])
    monkeypatch.undo()
    assert forgotten(lake, gone) == 0
    touched = {row["run_id"] for row in rows(lake, "model_members", lake.latest("train")) if row["sample_id"] == gone}
    for row in rows(lake, "models", lake.latest("train")):
        assert (row["status"] == "forgotten") == (row["run_id"] in touched)
    assert not {path.name for path in (Path(lake.root) / "weights").iterdir()} & touched


def test_retention_takes_the_pictures_that_models_made(attacked_lake):
    lake, *_ = attacked_lake
    extracted = lake.latest("extract")
    made_by = {"untargeted_generations": "extract", "generations": "generate", "regenerations": "match"}
    had = {
        table: sum(row["image"] is not None for row in rows(lake, table, lake.latest(stage)))
        for table, stage in made_by.items()
    }
    now = datetime.datetime.now(datetime.UTC)
    with Workers(lake, Execution(lake, []).run) as workers:
        assert removal.retire(workers, 1, now) == 0
        assert removal.retire(workers, 1, now + datetime.timedelta(days=2)) == sum(had.values())
    assert all(had.values())
    for row in rows(lake, "untargeted_generations", extracted):
        assert row["image"] is None and row["thumbnail"] is None
    lake.check_snapshot(lake.latest("extract"))


# -- extract ----------------------------------------------------------------------------------------------------------


class Means(torch.nn.Module):
    """Features: the means of a picture's quarters."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "means.pt"
    torch.jit.script(Means()).save(str(path))
    return str(path)


def attacked(lake, weights, **options):
    usual = {"generations": 10, "sampling_steps": 3, "quality_pictures": 16, "neighbours": 3}
    parsed = Parsed.of(ExtractOptions(quality_weights=weights, **(usual | options)), DeviceOptions(device="cpu"))
    return extract.STAGE.run(Execution(lake, []), parsed)


def test_each_picture_meets_members_and_controls_as_by_brute_force(lake, tmp_path, weights):
    models = rows(lake, "models", made := trained(lake, sweep(tmp_path)))
    found = rows(lake, "untargeted_generations", attacked(lake, weights, delta=0.36, ratio_limit=0.93))
    assert len(found) == 10 * sum(row["status"] == "success" for row in models)
    members = {(row["run_id"], row["sample_id"]) for row in rows(lake, "model_members", made)}
    pictures = population.read(lake, lake.latest("deduplicate"), 50_000, 8)
    place = {str(one): at for at, one in enumerate(pictures.sample_ids)}
    run_of = {row["model_id"]: row["run_id"] for row in models}
    called = 0
    for row in found:
        model = runs.load_model(lake, next(one for one in models if one["model_id"] == row["model_id"]), "cpu")
        picture = as_pictures(model.make([row["seed"]], None, 3)[0])
        for prefix, inside in (("", True), ("control_", False)):
            nearest = row[f"{prefix}sample_id"]
            if nearest.startswith("canary"):
                continue
            assert ((run_of[row["model_id"]], nearest) in members) == inside
            others = [one for one in place if ((run_of[row["model_id"]], one) in members) == inside]
            distances = sorted(l2(picture, pictures.pixels[place[one]]) for one in others)
            # A picture made alone may differ by one level.
            assert row[f"{prefix}l2"] == pytest.approx(l2(picture, pictures.pixels[place[nearest]]), abs=0.004)
            if inside:
                assert row["l2"] <= distances[0] + 0.004
            assert row[f"{prefix}by_l2"] == (row[f"{prefix}l2"] <= 0.36)
            assert row[f"{prefix}by_ratio"] == (row[f"{prefix}l2"] / row[f"{prefix}second_l2"] < 0.93)
            assert row[f"{prefix}by_adaptive_l2"] == (row[f"{prefix}l2"] <= 0.5 * row[f"{prefix}mean_l2"])
        flags = [row[f"{prefix}by_{rule}"] for prefix in ("", "control_") for rule in ("l2", "adaptive_l2", "ratio")]
        assert (row["image"] is not None) == any(flags)
        called += any(flags)
        if row["image"] is not None:
            assert np.abs(decode_array(row["image"]).astype(int) - picture.astype(int)).max() <= 1
    assert 0 < called < len(found)


def l2(one, other):
    return float(np.sqrt(((one.astype(float) - other.astype(float)) ** 2).mean())) / 255


def test_chunks_change_no_row_and_a_killed_extract_makes_no_chunk_twice(lake, tmp_path, weights, monkeypatch):
    trained(lake, sweep(tmp_path))
    whole = attacked(lake, weights, chunk=4096)
    expected = [rows(lake, table, whole) for table in ("untargeted_generations", "untargeted_attacks")]
    shutil.rmtree(tmp_path / "lake" / "manifests" / "extract")
    for table in ("untargeted_generations", "untargeted_attacks"):
        shutil.rmtree(tmp_path / "lake" / table)
    made = []
    real = untargeted.MakeAndCompare._rows

    def killed(self, worker, target, chunk):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append((target["model_id"], chunk))
        return real(self, worker, target, chunk)

    monkeypatch.setattr(untargeted.MakeAndCompare, "_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        attacked(lake, weights, chunk=3)
    monkeypatch.setattr(untargeted.MakeAndCompare, "_rows", lambda self, worker, target, chunk: (
        made.append((target["model_id"], chunk)), real(self, worker, target, chunk))[1])  # fmt: skip
    again = attacked(lake, weights, chunk=3)
    assert len(made) == len(set(made)) == 4 * 8
    found = [rows(lake, table, again) for table in ("untargeted_generations", "untargeted_attacks")]
    assert [(row["model_id"], row["sample_index"], row["seed"]) for row in found[0]] == [
        (row["model_id"], row["sample_index"], row["seed"]) for row in expected[0]]  # fmt: skip
    for mine, its in zip(found[0], expected[0], strict=True):
        assert mine["l2"] == pytest.approx(its["l2"], abs=0.004)
    assert [row["members"] for row in found[1]] == [row["members"] for row in expected[1]]


def test_a_model_whose_weights_are_gone_is_a_row(lake, tmp_path, weights, monkeypatch):
    said = []
    monkeypatch.setattr(extract, "say", said.append)
    models = [row for row in rows(lake, "models", trained(lake, sweep(tmp_path))) if row["status"] == "success"]
    lost = models[0]
    shutil.rmtree(runs.model_folder(lake, lost["run_id"], lost["step"]))
    manifest = attacked(lake, weights)
    (row,) = [one for one in rows(lake, "untargeted_attacks", manifest) if one["status"] != "success"]
    assert (row["model_id"], row["failed"], row["frechet"]) == (lost["model_id"], 10, None)
    assert "it lacks model_index.json" in row["reason"]
    assert said == ["extract      1 of 8 models made nothing; untargeted_attacks.reason says why"]


def test_planted_pictures_come_back_and_no_other(lake, tmp_path, weights):
    """Three pictures, learned by heart: all three come back, and nothing that the model never saw does."""
    text = "[[model]]\nimages = 3\nwidth = 16\nsteps = 500\nbatch_size = 8\nlearning_rate = 3e-3\nema = 0.95"
    made = trained(lake, sweep(tmp_path, text))
    found = rows(lake, "untargeted_generations", attacked(lake, weights, generations=32, sampling_steps=20))
    returned = {row["sample_id"] for row in found if row["by_ratio"]}
    assert returned == {row["sample_id"] for row in rows(lake, "model_members", made)}
    assert not any(row["control_by_ratio"] for row in found)


@pytest.mark.parametrize("content", [None, b"no TorchScript"])
def test_weights_of_quality_that_are_none_are_one_line(lake, tmp_path, content, capfd):
    trained(lake, sweep(tmp_path, "[[model]]\nimages = 4\nsteps = 1\nwidth = 8"))
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    words = [f"--lake={lake.root}", f"--quality_weights={path}", "--device=cpu", "--generations=8", "--sampling_steps=2"]
    assert run_verb(extract.main, words) == 2
    assert "--quality_weights" in capfd.readouterr().err
