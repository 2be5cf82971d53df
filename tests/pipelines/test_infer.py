"""The verb infer: members of a tiny overfit cohort are found, what was killed goes on, and what can't be said has a reason."""

import shutil

import numpy as np
import pytest
from PIL import Image

import sql
from pipelines import infer, train
from pipelines.cli import run_verb
from pipelines.device import DeviceOptions
from pipelines.execution import Execution
from pipelines.infer import InferOptions
from pipelines.options import Parsed
from pipelines.train import TrainOptions
from tests.fakes import fake_lake
from tests.planted import picture
from transforms.attacks import membership, shadows
from transforms.kernels.membership import area
from transforms.models.unconditional import DiffusionPictures
from transforms.store import scan
from transforms.store.arrays import read_json, write_json
from transforms.store.files import read_parquet
from transforms.store.lake import Lake
from transforms.training import population, runs

SWEEP = """
[common]
width = 8
batch_size = 8
learning_rate = 3e-3
images = 8
[[grid]]
name = "halves"
pool = 16
steps = 100
split = [0, 1, 2, 3, 4]
[[model]]
name = "gan"
family = "gan"
steps = 6
[[model]]
name = "canaries"
canaries = 3
steps = 6
labels = "random"
[[model]]
name = "unique"
labels = "unique"
steps = 2
"""
TABLES = shadows.TABLES_OF_A_GROUP


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A lake with the models of SWEEP."""
    root = tmp_path_factory.mktemp("data")
    fake_lake(root / "lake", sizes=(3, 2, *[1] * 45), controls=0, draw=lambda number: picture(number, 16, 16))
    return root, swept(root, SWEEP)


def swept(root, text):
    (root / "sweep.toml").write_text(text)
    parsed = Parsed.of(TrainOptions(sweep=str(root / "sweep.toml")), DeviceOptions(device="cpu"))
    return train.STAGE.run(Execution(Lake(str(root / "lake")), []), parsed)


@pytest.fixture(scope="module")
def inferred(trained, tmp_path_factory):
    """A copy of the lake, and its infer."""
    root = tmp_path_factory.mktemp("inferred") / "lake"
    shutil.copytree(trained[0] / "lake", root)
    lake = Lake(str(root))
    return lake, asked(lake)


@pytest.fixture
def lake(trained, tmp_path):
    shutil.copytree(trained[0] / "lake", tmp_path / "lake")
    return Lake(str(tmp_path / "lake"))


def asked(lake, **options):
    parsed = Parsed.of(InferOptions(**({"draws": 2, "timesteps": ("60", "150")} | options)), DeviceOptions(device="cpu"))
    return infer.STAGE.run(Execution(lake, []), parsed)


def rows(lake, table, manifest):
    return lake.read(table, manifest.snapshot_id).to_pylist()


def test_each_model_is_asked_about_its_members_and_as_many_others(trained, inferred):
    lake, manifest = inferred
    models = {row["model_id"]: row for row in rows(lake, "models", trained[1])}
    given = {(row["run_id"], row["sample_id"]) for row in rows(lake, "model_members", trained[1])}
    attacks = {row["model_id"]: row for row in rows(lake, "membership_attacks", manifest)}
    assert set(attacks) == set(models) and manifest.facts.items() >= {"models": 8, "failed": 1, "groups": 4}.items()
    of_name = {models[one]["experiments"][0]: row for one, row in attacks.items()}
    assert of_name["unique"]["status"] == "failed" and of_name["unique"]["reason"].startswith(
        "labels = 'unique': the model has no"
    )
    halves = [row for one, row in attacks.items() if models[one]["experiments"] == ["halves"]]
    assert {(row["shadows"], row["spread"], row["no_shadows"]) for row in halves} == {(4, "pooled", None)}
    assert of_name["gan"]["timesteps"] == [] and of_name["gan"]["shadows"] == 0
    assert of_name["canaries"]["no_shadows"].startswith("all models of its cohort have the same pictures")
    scores = rows(lake, "membership_scores", manifest)
    for row in scores:
        assert row["member"] == ((models[row["model_id"]]["run_id"], row["sample_id"]) in given)
    per_model = {one: {(row["attack"], row["timestep"], row["draws"], row["flips"]) for row in scores if row["model_id"] == one}
                 for one in attacks}  # fmt: skip
    views = {(draws, flips) for draws in (1, 2) for flips in (False, True)}
    alone = {("loss", step, *view) for step in (60, 150) for view in views} | {("secmi", 100, 0, False)} | {
        (name, step, 0, False) for name in ("pia", "pian", "sima") for step in (60, 150)}  # fmt: skip
    with_shadows = {
        (name, step, *view) for name in ("lira_online", "lira_offline", "rmia") for step in (60, 150) for view in views
    }
    assert per_model[halves[0]["model_id"]] == alone | with_shadows
    assert per_model[of_name["canaries"]["model_id"]] == alone
    assert per_model[of_name["gan"]["model_id"]] == {("discriminator", None, 0, False), ("discriminator", None, 0, True)}
    assert per_model[of_name["unique"]["model_id"]] == set()
    # All of a cohort are asked about the same pictures, and every attack about all of them.
    pictures = {one["model_id"]: {row["sample_id"] for row in scores if row["model_id"] == one["model_id"]} for one in halves}
    assert len({frozenset(some) for some in pictures.values()}) == 1
    for row in halves:
        mine = pictures[row["model_id"]]
        assert len(mine) == row["members"] + row["non_members"] == 16 - row["left_out"]
        assert len([one for one in scores if one["model_id"] == row["model_id"]]) == len(alone | with_shadows) * len(mine)


def test_losses_are_the_models_own_and_the_scores_are_made_of_them(trained, inferred):
    lake, manifest = inferred
    models = {row["model_id"]: row for row in rows(lake, "models", trained[1])}
    losses = rows(lake, "losses", manifest)
    scores = {(row["model_id"], row["sample_id"], row["timestep"]): row["score"]
              for row in rows(lake, "membership_scores", manifest)
              if row["attack"] in ("loss", "discriminator") and row["draws"] in (0, 2) and row["flips"]}  # fmt: skip
    assert len(losses) == len(scores)
    for row in losses:
        assert row["value"] == pytest.approx(-scores[row["model_id"], row["sample_id"], row["timestep"]])
    (one,) = [row for row in losses if row["timestep"] == 60 and models[row["model_id"]]["split"] == 3][:1]
    model = runs.load_model(lake, models[one["model_id"]], "cpu")
    pictures = population.read(lake, lake.latest("deduplicate"), 50_000, 8)
    at = pictures.sample_ids.tolist().index(one["sample_id"])
    questions = membership.MembershipQuestions(2, True, (60,), ("loss",), 0, 2)
    alone = membership.signals_of(model, pictures.pixels[[at]], [one["sample_id"]], None, questions, ("loss",))
    assert one["value"] == pytest.approx(alone["loss"].mean(), rel=1e-4)


def test_lira_finds_the_members_of_an_overfit_cohort(inferred):
    lake, manifest = inferred
    found = {}
    for row in rows(lake, "membership_scores", manifest):
        if row["chosen"] and row["draws"] == 2 and row["flips"] and row["score"] is not None:
            found.setdefault(row["attack"], []).append((row["score"], row["member"]))
    areas = {name: area(np.array([s for s, _ in some]), np.array([m for _, m in some])) for name, some in found.items()}
    assert areas["lira_online"] > 0.85 and areas["lira_offline"] > 0.85 and areas["rmia"] > 0.75
    verdicts = rows(lake, "dataset_inference", manifest)
    assert {row["pictures"] for row in verdicts} == {"members", "others"}
    canaries = rows(lake, "exposures", manifest)
    assert [(row["copies"], row["pool"], row["maximum"]) for row in canaries] == [(1, 1024, 10), (2, 1024, 10), (3, 1024, 10)]
    for row in canaries:
        assert row["exposure"] == pytest.approx(10 - np.log2(row["rank"])) and 1 <= row["rank"] <= 1024


def test_the_marts_are_made_of_what_is_written(trained, inferred):
    lake, manifest = inferred
    with scan.connect() as connection:
        for table in ("models", "membership_scores", "membership_attacks"):
            scan.bind(connection, lake, table, (trained[1] if table == "models" else manifest).snapshot_id)
        found = connection.sql(sql.read("marts", "membership")).to_arrow_table().to_pylist()
        curves = connection.sql(sql.read("marts", "membership_roc")).to_arrow_table().to_pylist()
    (lira,) = [one for one in found if one["scope"] == "cohort" and one["attack"] == "lira_online" and one["draws"] == 2
               and one["flips"] and one["selection"] == "chosen"]  # fmt: skip
    assert lira["models"] == 5 and lira["shadows"] == 4 and lira["area"] > 0.85
    assert lira["refused_at_1_percent"].endswith("a false positive rate of 1% takes 100")
    (judged,) = [one for one in found if one["scope"] == "model" and one["attack"] == "discriminator"
                 and one["flips"] and one["selection"] == "chosen"]  # fmt: skip
    assert judged["family"] == "gan" and judged["timestep"] is None and judged["members"] == judged["non_members"] == 8
    assert {one["attack"] for one in curves} == set(infer.ATTACKS)
    assert all(0 <= one["true_positive_rate"] <= 1 for one in curves)


def but_for_time(some):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in some]


def test_a_killed_infer_asks_no_model_twice_and_says_the_same(inferred, lake, tmp_path, monkeypatch):
    whole = {table: but_for_time(rows(inferred[0], table, inferred[1])) for table in TABLES}
    again = []
    real_ask, real_judge = membership.AskModels._asked, shadows.JudgeGroups._judged

    def ask(self, target, pictures):
        if len(again) == 4:
            raise KeyboardInterrupt
        again.append(target["model_id"])
        return real_ask(self, target, pictures)

    monkeypatch.setattr(membership.AskModels, "_asked", ask)
    with pytest.raises(KeyboardInterrupt):
        asked(lake)
    judged = []

    def judge(self, targets):
        if len(judged) == 2:
            raise KeyboardInterrupt
        judged.append(targets[0]["cohort"])
        return real_judge(self, targets)

    monkeypatch.setattr(membership.AskModels, "_asked", lambda self, target, pictures: (
        again.append(target["model_id"]), real_ask(self, target, pictures))[1])  # fmt: skip
    monkeypatch.setattr(shadows.JudgeGroups, "_judged", judge)
    with pytest.raises(KeyboardInterrupt):
        asked(lake)
    monkeypatch.setattr(shadows.JudgeGroups, "_judged", lambda self, targets: (
        judged.append(targets[0]["cohort"]), real_judge(self, targets))[1])  # fmt: skip
    manifest = asked(lake)
    assert len(again) == len(set(again)) == 8 and len(judged) == len(set(judged)) == 4
    assert {table: but_for_time(rows(lake, table, manifest)) for table in TABLES} == whole
    assert not list((tmp_path / "lake" / "work" / "infer").glob("*/*"))
    # The same command again asks nobody.
    monkeypatch.setattr(DiffusionPictures, "noise", None)
    assert asked(lake) == manifest


def test_a_model_whose_weights_are_gone_is_a_row_and_no_shadow(trained, lake, monkeypatch):
    said = []
    monkeypatch.setattr(infer, "say", said.append)
    models = [row for row in rows(lake, "models", trained[1]) if row["experiments"] == ["halves"]]
    shutil.rmtree(runs.model_folder(lake, models[0]["run_id"], models[0]["step"]))
    found = {row["model_id"]: row for row in rows(lake, "membership_attacks", asked(lake, attacks=("lira_online",), draws=1))}
    assert found[models[0]["model_id"]]["status"] == "failed"
    assert "it lacks model_index.json" in found[models[0]["model_id"]]["reason"]
    assert {found[one["model_id"]]["shadows"] for one in models[1:]} == {3}
    assert said == ["infer        2 of 8 models said nothing; membership_attacks.reason says why"]


def test_a_model_whose_classes_are_no_longer_the_lakes_is_a_row(trained, lake):
    (row,) = [one for one in rows(lake, "models", trained[1]) if one["experiments"] == ["canaries"]]
    path = lake.path(runs.WEIGHTS, row["run_id"], "members.json")
    given = read_json(path)
    given[2]["class"] = (given[2]["class"] + 1) % 10
    write_json(path, given)
    found = {one["model_id"]: one for one in rows(lake, "membership_attacks", asked(lake, attacks=("loss",), draws=1))}
    assert found[row["model_id"]]["reason"].startswith("its classes are no longer those that it was trained with")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--timesteps", "60", "x"], "--timesteps has 'x', expected whole numbers from 0 on, such as 50 100 200"),
        (["--timesteps", "-1"], "-1"),
        (["--attacks", "lyra"], "--attacks has 'lyra', expected some of loss, secmi, pia"),
        (["--draws", "0"], "--draws is 0, expected 1 or more"),
    ],
)
def test_bad_input_is_one_line(tmp_path, words, line, capfd):
    assert run_verb(infer.main, [f"--lake={tmp_path}", *words]) == 2
    said = capfd.readouterr().err
    assert line in said and said.count("\n") == 1


def test_attacks_that_take_shadows_without_any_are_one_line(trained, tmp_path, capfd):
    shutil.copytree(trained[0] / "lake", tmp_path / "lake")
    swept(
        tmp_path, "[common]\nsteps = 1\nwidth = 8\n[[grid]]\nimages = 4\npool = 8\nside = ['in', 'out']\n[[model]]\nimages = 4"
    )
    assert run_verb(infer.main, [f"--lake={tmp_path / 'lake'}", "--attacks", "lira_online", "rmia", "--device=cpu"]) == 2
    assert ("--attacks lira_online rmia take shadow models, and no cohort has more than 2 with different pictures of one pool, "
            "expected 3 or more; train more splits, with pool over images") in capfd.readouterr().err  # fmt: skip


def test_the_registries_agree():
    assert set(infer.ATTACKS) == set(shadows.MEMBERSHIP_ATTACKS)
    assert {one.signal for one in shadows.MEMBERSHIP_ATTACKS.values()} == set(membership.SIGNALS)


# -- a model of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(trained, tmp_path_factory):
    """The lake with the models of another one's controls added: (lake's folder, a model of the cohort, its row, the cohort)."""
    models = [row for row in rows(Lake(str(trained[0] / "lake")), "models", trained[1]) if row["experiments"] == ["halves"]]
    root = tmp_path_factory.mktemp("own") / "lake"
    fake_lake(root, sizes=(3, 2, *[1] * 45), controls=40, draw=lambda number: picture(number, 16, 16))
    shutil.copytree(trained[0] / "lake" / "weights", root / "weights")
    text = SWEEP.split("[[model]]")[0]
    (root.parent / "sweep.toml").write_text(text)
    parsed = Parsed.of(TrainOptions(sweep=str(root.parent / "sweep.toml")), DeviceOptions(device="cpu"))
    train.STAGE.run(Execution(Lake(str(root)), []), parsed)
    return root, runs.model_folder(Lake(str(root)), models[0]["run_id"], models[0]["step"]), models[0], models[0]["cohort"]


def scores_of(path):
    return read_parquet(str(path)).to_pylist()


def test_a_model_of_ones_own_is_asked_about_ids_of_the_lake(trained, own, tmp_path, capfd):
    root, folder, row, cohort = own
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    lake = Lake(str(root))
    given = {one["sample_id"] for one in runs.members_of(lake, row["run_id"])}
    pictures = population.read(lake, lake.latest("deduplicate"), 50_000, 8)
    others = [str(one) for one in pictures.sample_ids if str(one) not in given][:16]
    (tmp_path / "ids.txt").write_text("\n".join([*sorted(given), *others, "nobody"]))
    words = [f"--lake={root}", f"--model={folder}", f"--images={tmp_path / 'ids.txt'}", "--draws=2", "--timesteps", "60", "150",
             "--device=cpu"]  # fmt: skip
    assert run_verb(infer.main, [*words, f"--shadows={cohort}", f"--out={tmp_path / 'scores.parquet'}"]) == 0
    said = capfd.readouterr().out
    assert "the set: p = " in said and "and 5 more; --out FILE.parquet has all" in said
    found = scores_of(tmp_path / "scores.parquet")
    assert [one["status"] for one in found if one["picture"] == "nobody"] == ["failed: the lake has no picture of this id"]
    assert {(one["attack"], one["timestep"]) for one in found if one["attack"]} == {
        *((name, step) for name in ("loss", "pia", "pian", "sima", "lira_online", "lira_offline") for step in (60, 150)),
        ("secmi", 100)}  # fmt: skip
    loss = [one for one in found if one["attack"] == "loss" and one["timestep"] == 60]
    member = np.array([one["picture"] in given for one in loss])
    assert len(loss) == 24 and area(np.array([one["score"] for one in loss]), member) > 0.8
    p_values = np.array([one["p_value"] for one in loss])
    assert p_values[member].mean() < 0.3 < p_values[~member].mean() and p_values.min() >= 1 / 41
    # The others of its cohort are its shadows, as in the stage.
    lira = [one for one in found if one["attack"] == "lira_offline" and one["timestep"] == 150 and one["score"] is not None]
    member = np.array([one["picture"] in given for one in lira])
    assert area(np.array([one["score"] for one in lira]), member) > 0.8
    model = runs.load_model(lake, row, "cpu")
    at = pictures.sample_ids.tolist().index(loss[0]["picture"])
    questions = membership.MembershipQuestions(2, True, (60,), ("loss",), 0, 2)
    alone = membership.signals_of(model, pictures.pixels[[at]], [loss[0]["picture"]], None, questions, ("loss",))
    assert loss[0]["score"] == pytest.approx(-alone["loss"].mean(), rel=1e-4)
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before


def test_pictures_of_a_folder_have_no_model_that_saw_them(own, tmp_path, capfd):
    root, folder, _, cohort = own
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        Image.fromarray(picture(900 + number, 16, 16)).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"nothing")
    words = [f"--lake={root}", f"--model={folder}", f"--images={tmp_path / 'pictures'}", "--draws=1", "--timesteps", "60",
             "--device=cpu", f"--out={tmp_path / 'out.parquet'}"]  # fmt: skip
    assert run_verb(infer.main, [*words, f"--shadows={cohort}"]) == 0
    found = scores_of(tmp_path / "out.parquet")
    assert {one["status"] for one in found if one["attack"] == "lira_online"} == {"no score"}
    assert {one["status"] for one in found if one["attack"] == "lira_offline"} == {"success"}
    assert [one["picture"].split("/")[-1] for one in found if one["status"].startswith("failed")] == ["broken.png"]
    assert run_verb(infer.main, words) == 0  # without shadows
    assert {one["attack"] for one in scores_of(tmp_path / "out.parquet")} == {None, "loss", "secmi", "pia", "pian", "sima"}
    assert "loss score" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--images=x"], "--images is for a model of one's own; name its folder with --model"),
        (["--model=x"], "--model needs --images"),
        (["--model=x", "--images=y"], "there is no folder --model 'x'"),
        (["--model={folder}", "--images=y"], "there is no folder of pictures, or file of ids, --images 'y'"),
        (
            ["--model={folder}", "--images={ids}", "--attacks", "lira_online"],
            "can be made on a diffusion model of one's own without --shadows",
        ),
        (
            ["--model={folder}", "--images={ids}", "--shadows=abc"],
            "there is no cohort --shadows 'abc' in the latest train; it has",
        ),
        (["--model={folder}", "--images={none}"], "none of 1 --images can be used; the first: nobody: the lake has no picture"),
        (["--model={folder}", "--images={ids}", "--out=x.csv"], "--out is 'x.csv', expected a file that ends in .parquet"),
    ],
)
def test_bad_input_of_ones_own_is_one_line(own, tmp_path, words, line, capfd):
    root, folder, row, _ = own
    (tmp_path / "ids.txt").write_text(runs.members_of(Lake(str(root)), row["run_id"])[0]["sample_id"])
    (tmp_path / "none.txt").write_text("nobody")
    names = {"folder": folder, "ids": tmp_path / "ids.txt", "none": tmp_path / "none.txt"}
    words = [one.format(**names) for one in words]
    assert run_verb(infer.main, [f"--lake={root}", "--device=cpu", "--draws=1", *words]) == 2
    said = capfd.readouterr().err
    assert line in said and said.count("\n") == 1
