"""The plan's hours and money are items times rates that were measured, each of which says where; prices are the user's."""

import dataclasses
import json
import re

import pytest

from benchmarks import results
from pipelines import audit, cli, costs, deduplicate, embed, generate, ingest
from pipelines.cli import run_verb
from pipelines.costs import Cost, Line, Prices, Size
from pipelines.options import parse
from pipelines.stages import STAGES
from tests.models import save_random_pipeline
from tests.planted import picture, write_tiny_clip
from transforms.errors import UserError
from transforms.store.lake import Lake, Manifest
from transforms.store.pictures import encode_png

SIZES = ["--plan", "--plan_images", "1e5", "10000000", "1.6e8", "--max_prompts=350000", "--images_per_prompt=500"]
PRICES = """
currency = "EUR"
source = "a test"
worker_cores = 4
worker_hour = 0.5
gpu_hour = 2
"""


# -- rates ------------------------------------------------------------------------------------------------------------


def test_the_rates_are_those_of_the_benchmarks():
    assert json.loads(results.RATES.read_text()) == json.loads(json.dumps(results.rates())), "run a benchmark, or results.write"
    assert set(costs.lines()) == set(results.TIMED)


LINE = Line(sizes=(100, 200), seconds=(30.0, 50.0), unit="images", items=None, source="a benchmark")


@pytest.mark.parametrize(
    ("size", "seconds", "beyond"), [(100, 30, False), (200, 50, False), (150, 40, False), (999, 209.8, True)]
)
def test_a_line_goes_through_what_was_measured(size, seconds, beyond):
    cost = LINE.cost("work", size, size, "images")
    assert (cost.seconds, cost.beyond, cost.on_gpu) == (pytest.approx(seconds), beyond, False)
    assert cost.source == "a benchmark, at 100 and 200 images"


def test_below_what_was_measured_no_time_is_negative():
    steep = dataclasses.replace(LINE, seconds=(1.0, 101.0))
    assert steep.cost("work", 10, 10, "images").seconds == pytest.approx(0.1)
    assert LINE.cost("work", 50, 50, "images").seconds == pytest.approx(20)


def test_a_line_by_another_size_grows_with_its_items():
    by_images = dataclasses.replace(LINE, items=2000)
    assert by_images.cost("work", 200, 500, "generations").seconds == pytest.approx(12.5)


def manifest(**facts):
    told = {"runner": "FnApiRunner", "from_the_start": True, "devices": ["cpu"], "cores": 4, "machine": "m", "seconds": 30.0}
    return Manifest("embed", "id", {}, {}, {"embeddings": 60}, "2026-01-02T00:00:00+00:00", {**told, **facts})


def test_a_run_tells_core_seconds_or_gpu_seconds():
    known = manifest(images_embedded=60)
    assert costs.run_of([known], "embed", "images_embedded", False) == (
        2.0, "this lake: embed id, 60 items in 30 s, m, 2026-01-02",
    )  # fmt: skip
    gpus = manifest(images_embedded=60, devices=["cuda:0", "cuda:1"])
    assert costs.run_of([gpus, known], "embed", "images_embedded", True)[0] == 1.0
    # The newest that can tell.
    assert costs.run_of([known, manifest(images_embedded=120)], "embed", "images_embedded", False)[0] == 1.0


@pytest.mark.parametrize(
    "facts",
    [
        {"runner": "DataflowRunner"}, {"runner": "PortableRunner"}, {"from_the_start": False}, {"devices": ["cuda"]},
        {"images_embedded": 0, "rows": None}, {"runner": None},
    ],
)  # fmt: skip
def test_a_run_that_cannot_tell_is_not_asked(facts):
    assert costs.run_of([manifest(**{"images_embedded": 60, **facts})], "embed", "images_embedded", False) is None


# -- prices -----------------------------------------------------------------------------------------------------------


def test_hours_and_money():
    prices = Prices(worker_cores=4, worker_hour=0.5, gpu_hour=2.0)
    cores, gpu = Cost("w", 1, "i", 7200.0, False, ""), Cost("w", 1, "i", 7200.0, True, "")
    assert (prices.hours(cores), prices.money(cores)) == (0.5, 0.25)
    # A GPU stands in a machine, which costs as well.
    assert (prices.hours(gpu), prices.money(gpu)) == (2.0, 5.0)
    half = Prices(worker_hour=0.5)
    assert (half.money(cores), half.money(gpu)) == (0.5, None)
    unknown = dataclasses.replace(cores, seconds=None)
    assert (prices.hours(unknown), prices.money(unknown)) == (None, None)


def test_no_price_is_made_up():
    committed = Prices.read(str(results.PAGE.parent.parent / "deploy/dataflow/prices.toml"))
    assert (committed.worker_hour, committed.gpu_hour) == (None, None) and committed == Prices() == Prices.read(None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("worker_hour = -1", "--worker_hour is -1.0, expected 0"),
        ("worker_hour = 'dear'", "worker_hour is 'dear', expected float"),
        ("worker_hours = 1", "unknown option 'worker_hours' (did you mean 'worker_hour'?)"),
        ("worker_cores = 0", "--worker_cores is 0, expected 1 or more"),
        ("worker_hour =", "is not TOML"),
    ],
)
def test_prices_that_are_none_are_said(text, said, tmp_path):
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(UserError, match=re.escape(said)):
        Prices.read(str(tmp_path / "prices.toml"))


# -- the plan of sizes ------------------------------------------------------------------------------------------------


def blocks(text):
    """Title → rows of its table as cells, and number → note."""
    *tables, last = text.strip().split("\n\n")
    found = {}
    for block in tables:
        title, _, *rows = block.splitlines()
        found[title] = [re.split(r"\s{2,}", row) for row in rows]
    return found, dict(re.findall(r"^\[(\d+)\] (.*)$", last, re.MULTILINE)), last


def test_sizes_are_planned_without_metadata_or_model(tmp_path, capsys):
    (tmp_path / "prices.toml").write_text(PRICES)
    lake = tmp_path / "lake"
    words = ["audit", f"--lake={lake}", "--device=cuda", "--seconds_per_image=1.8", f"--prices={tmp_path}/prices.toml", *SIZES]
    assert cli.main(words) == 0 and not lake.exists()
    found, notes, last = blocks(capsys.readouterr().out)
    assert list(found) == [
        "100,000 images, 100,000 prompts and 50,000,000 generations:",  # no more prompts than there can be groups
        "10,000,000 images, 350,000 prompts and 175,000,000 generations:",
        "160,000,000 images, 350,000 prompts and 175,000,000 generations:",
    ]
    cited = set()
    for title, rows in found.items():
        assert list(dict.fromkeys(row[0] for row in rows)) == [*STAGES, "all"]
        for row in rows:
            if row[0] != "all":
                (number,) = re.findall(r"\[(\d+)\]", row[-1])
                cited.add(number)
                assert (row[3] == "unknown") == notes[number].startswith("not measured: ")
        generations = int(title.split()[-2].replace(",", ""))
        (made,) = [row for row in rows if row[0] == "generate"]
        # 1.8 s are half a thousandth of an hour, of a worker at 0.5 and a GPU at 2.
        assert made[3:5] == [f"{generations / 2000:,.0f}", f"{generations / 2000 * 2.5:,.0f}"]
        assert notes[made[5][1:-1]] == "--seconds_per_image 1.8"
        (search,) = [row for row in rows if row[1] == "search and compare"]
        assert ("beyond" in search[-1]) == (not title.startswith("100,000 "))
    assert cited == set(notes)
    assert last.endswith("an hour is one of a worker with 4 cores; with a GPU, of one that has one GPU\nprices: a test")
    downloads = costs.lines()["ingest"].cost("", 10_000_000, 10_000_000, "rows").seconds
    assert found["10,000,000 images, 350,000 prompts and 175,000,000 generations:"][0][3] == f"{downloads / 3600 / 4:.2f}"


def test_without_prices_there_are_hours_alone(tmp_path, capsys):
    assert cli.main(["audit", f"--lake={tmp_path}/lake", "--device=cpu", *SIZES]) == 0
    shown = capsys.readouterr().out
    assert "money" not in shown and shown.strip().endswith("like deploy/dataflow/prices.toml") and "at least" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plan_images", "1e5"], "--plan_images says how to plan, and without --plan the audit would run"),
        (["--prices=x.toml"], "--prices says how to plan, and without --plan the audit would run"),
        (["--plan", "--plan_images", "many"], "--plan_images is 'many', expected whole numbers from 1 to"),
        (["--plan", "--plan_images", "1.5"], "--plan_images is '1.5', expected whole numbers from 1 to"),
        (["--plan", "--plan_images", "1e5", "nan"], "--plan_images is 'nan', expected whole numbers from 1 to"),
        (["--plan", "--plan_images", "inf"], "--plan_images is 'inf', expected whole numbers from 1 to"),
        (["--plan", "--plan_images", "1e5", "--prices=x.toml"], "cannot read --prices 'x.toml' (No such file or directory)"),
    ],
)
def test_a_plan_that_means_nothing_is_one_line(words, said, tmp_path, capsys):
    assert cli.main(["audit", f"--lake={tmp_path}/lake", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "kept"),
    [({"keep": "all"}, 120), ({"keep": "none"}, 0), ({"keep": "nearest"}, 12), ({"keep": "flagged"}, 10 + 5 + 20)],
)
def test_what_is_kept(options, kept):
    made = generate.GenerateOptions(max_prompts=10, images_per_prompt=10, **options).size(images=100, controls=2)
    assert made == Size(images=100, controls=2, prompts=10, generations=120, kept=kept)


# -- the plan of a run, by rates of its own lake ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A lake that was made by the verbs up to generate, from eight pictures; and the words of its audit."""
    folder = tmp_path_factory.mktemp("costs")
    (folder / "pictures").mkdir()
    for number in range(8):
        (folder / "pictures" / f"{number}.png").write_bytes(encode_png(picture(number)))
        (folder / "pictures" / f"{number}.txt").write_text(f"picture {number}")
    write_tiny_clip(folder / "clip")
    save_random_pipeline(str(folder / "model"))
    words = {
        ingest: [f"--metadata={folder}/pictures", "--source=folder", "--image_size=64"],
        embed: [f"--clip_model={folder}/clip", "--device=cpu"],
        deduplicate: [],
        generate: [
            f"--model={folder}/model",
            "--device=cpu",
            "--max_prompts=2",
            "--images_per_prompt=2",
            "--steps=1",
            "--keep=all",
        ],
    }
    for verb, mine in words.items():
        assert run_verb(verb.main, [f"--lake={folder}/lake", *mine]) == 0
    return Lake(f"{folder}/lake"), [f"--lake={folder}/lake", *dict.fromkeys(one for mine in words.values() for one in mine)]


def test_a_run_is_planned_by_what_this_lake_has_measured(lake, capsys):
    made, words = lake
    assert cli.main(["audit", *words, "--seed=1", "--images_per_prompt=5", "--plan"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"generate +\w{16}  to do +10 images", shown)
    found, notes, _ = blocks(shown.split("\n\n", 1)[1])
    ((title, rows),) = found.items()
    assert title == "to do, for up to 8 images, 2 prompts and 10 generations:"
    # What is complete takes nothing.
    assert [row[0] for row in rows] == ["generate", "match", "match", "match", "measure", "all"]
    manifest = made.latest("generate")
    assert notes["1"].startswith(
        f"this lake: generate {manifest.snapshot_id}, its prompts' own seconds, {manifest.facts['machine']}"
    )


def test_hours_of_this_lake_are_items_times_its_seconds(lake):
    made, words = lake
    parsed = parse([*words, "--plan"], "audit", "", audit.options())
    size = Size(images=1000, controls=24, prompts=10, generations=50, kept=20)
    by_stage = dict(audit.costs(made, parsed, size, ["ingest", "embed", "generate"]))
    for stage, rows in (("ingest", "images"), ("embed", "embeddings")):
        manifest = made.latest(stage)
        assert (manifest.facts["runner"], manifest.facts["from_the_start"], manifest.facts["devices"]) == (
            "FnApiRunner", True, ["cpu"],
        )  # fmt: skip
        expected = manifest.facts["seconds"] * manifest.facts["cores"] / manifest.rows[rows] * 1024
        assert by_stage[stage].seconds == pytest.approx(expected)
        assert f"this lake: {stage} {manifest.snapshot_id}" in by_stage[stage].source
    revision = made.latest("generate").parameters["model_revision"]
    expected = generate.seconds_per_image(made, revision) * made.latest("generate").facts["cores"] * 50
    assert by_stage["generate"].seconds == pytest.approx(expected)


def test_a_cpu_tells_nothing_of_a_gpu(lake):
    made, words = lake
    parsed = parse([*words, "--device=cuda", "--plan"], "audit", "", audit.options())
    size = Size(images=1000, controls=0, prompts=10, generations=50, kept=20)
    for _, cost in audit.costs(made, parsed, size, ["embed", "generate"]):
        assert cost.on_gpu and cost.seconds is None and cost.source.startswith("not measured: ")
