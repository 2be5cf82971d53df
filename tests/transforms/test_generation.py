"""Generation over Beam: every attempt is a row, the filter finds what is planted, nothing is done twice."""

import dataclasses
import json

import apache_beam as beam
import numpy as np
import pytest

from pipelines.generate import build, build_compaction
from pipelines.stage import Execution
from tests.models import PlantedGenerator
from transforms.errors import UserError
from transforms.generation import Filter, GeneratorHandler, filter_attempts, result_folder, same_size
from transforms.generators import Attempt
from transforms.identity import prompt_id, seed
from transforms.lake import Lake, list_files

AUDIT = "audit0"
FILTER = Filter(clique_distance=0.15, clique_size=5, keep="flagged", unflagged_fraction=0.0)


def prompt(text, origin="duplicates", images=8):
    return {
        "audit_id": AUDIT,
        "model_revision": "r",
        "parameters_digest": "d",
        "prompt_id": prompt_id(text, origin, None),
        "text": text,
        "origin": origin,
        "sample_id": None,
        "group_id": None,
        "n_duplicates": None,
        "stratum": "1",
        "stratum_order": 0,
        "inclusion_probability": 1.0,
        "images_requested": images,
    }


def memory(*texts):
    random = np.random.default_rng(3)
    return {text: np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((4, 4, 1))).astype(np.uint8) for text in texts}


def generate(tmp_path, prompts, generator, filter=FILTER):
    lake = Lake(str(tmp_path / "lake"))
    lake.create()
    for part, rows in enumerate(prompts):
        lake.write("prompts", AUDIT, part, rows)
    execution = Execution(lake, [])
    handler = GeneratorHandler(generator, filter, base_seed=1)
    execution.run(lambda pipeline: build(pipeline, lake, AUDIT, len(prompts), handler, None))
    execution.run(lambda pipeline: build_compaction(pipeline, lake, AUDIT, len(prompts)))
    return lake


def test_planted_memory_is_flagged_and_every_attempt_is_a_row(tmp_path):
    prompts = [[prompt("known"), prompt("new"), prompt("bad")], [prompt("also known"), prompt("control", "control", 2)]]
    lake = generate(tmp_path, prompts, PlantedGenerator(memory("known", "also known"), broken=("bad",)))
    texts = {row["prompt_id"]: row["text"] for part in prompts for row in part}
    cliques = {texts[row["prompt_id"]]: row for row in lake.read("cliques", AUDIT).to_pylist()}
    assert {text for text, row in cliques.items() if row["flagged"]} == {"known", "also known"}
    assert cliques["known"]["clique_size"] == 8
    assert 0 < cliques["known"]["mean_distance"] < 0.05
    assert cliques["bad"] | {"seconds": 0} == cliques["bad"] | {"n_generated": 0, "n_failed": 8, "clique_size": 0, "seconds": 0}
    assert cliques["control"]["keep_rule"] == "control"
    generations = lake.read("generations", AUDIT).to_pylist()
    assert len(generations) == 8 * 4 + 2
    for row in generations:
        kept = row["image"] is not None
        assert kept == (texts[row["prompt_id"]] in ("known", "also known", "control"))
        assert row["seed"] is None  # only diffusers' seeds make a picture again
    bad = [row for row in generations if texts[row["prompt_id"]] == "bad"]
    assert {(row["status"], row["reason"]) for row in bad} == {("failed", "RuntimeError: this prompt is too much for me")}
    assert json.loads(cliques["known"]["sizes_by_distance"])["0.3"] == 8


def test_the_answer_does_not_depend_on_order_or_parts(tmp_path):
    texts = [f"prompt {number}" for number in range(6)]
    one = generate(tmp_path / "one", [[prompt(text) for text in texts]], PlantedGenerator(memory("prompt 2")))
    turned = [[prompt(text)] for text in reversed(texts)]
    other = generate(tmp_path / "other", turned, PlantedGenerator(memory("prompt 2")))
    for table in ("generations", "cliques"):
        rows = [
            sorted(({**row, "seconds": 0} for row in lake.read(table, AUDIT).to_pylist()), key=lambda row: str(row)[:200])
            for lake in (one, other)
        ]
        assert rows[0] == rows[1]


def test_finished_prompts_are_not_made_again(tmp_path):
    prompts = [[prompt("a"), prompt("b")]]
    lake = Lake(str(tmp_path / "lake"))
    lake.create()
    lake.write("prompts", AUDIT, 0, prompts[0])
    handler = GeneratorHandler(PlantedGenerator(), FILTER, 1)
    execution = Execution(lake, [])
    execution.run(lambda pipeline: build(pipeline, lake, AUDIT, 1, handler, None))
    assert len(list_files(result_folder(lake, AUDIT), ".parquet")) == 2
    # A generator that fails at once: the run can only succeed if it is never asked.
    broken = GeneratorHandler(PlantedGenerator(broken=("a", "b")), FILTER, 1)
    execution.run(lambda pipeline: build(pipeline, lake, AUDIT, 1, broken, None))
    execution.run(lambda pipeline: build_compaction(pipeline, lake, AUDIT, 1))
    assert lake.read("cliques", AUDIT)["n_failed"].to_pylist() == [0, 0]


def test_a_model_that_takes_no_prompt_stops_the_run(tmp_path):
    texts = ["a", "b", "c", "d"]
    with pytest.raises(UserError, match="3 prompts in a row gave no image"):
        generate(tmp_path, [[prompt(text) for text in texts]], PlantedGenerator(broken=tuple(texts)))


@pytest.mark.parametrize(
    ("keep", "fraction", "origin", "flagged", "expected"),
    [
        ("flagged", 0.0, "duplicates", True, ("flagged", 1.0, True)),
        ("flagged", 0.0, "duplicates", False, ("dropped", 0.0, False)),
        ("flagged", 1.0, "duplicates", False, ("slice", 1.0, True)),
        ("all", 0.0, "duplicates", False, ("all", 1.0, True)),
        ("flagged", 0.0, "control", False, ("control", 1.0, True)),
        ("none", 1.0, "control", True, ("dropped", 0.0, False)),
    ],
)
def test_what_is_kept(keep, fraction, origin, flagged, expected):
    filter = dataclasses.replace(FILTER, keep=keep, unflagged_fraction=fraction)
    assert filter.decide(prompt("x", origin), flagged) == expected


def test_the_slice_is_drawn_by_the_prompts_hash_at_its_rate():
    filter = dataclasses.replace(FILTER, unflagged_fraction=0.2)
    drawn = [filter.decide(prompt(str(number)), False)[2] for number in range(2000)]
    assert abs(np.mean(drawn) - 0.2) < 0.03
    assert drawn == [filter.decide(prompt(str(number)), False)[2] for number in range(2000)]


def test_safety_filtered_attempts_take_no_part():
    picture = np.zeros((16, 16, 3), np.uint8)
    attempts = [Attempt(picture, "success", None, 0)] * 4 + [Attempt(None, "safety_filtered", "x", 0)] * 3
    row, members, kept = filter_attempts(prompt("x"), attempts, FILTER, "cpu", 0.0)
    assert (row["n_generated"], row["n_failed"], row["clique_size"], row["flagged"]) == (4, 3, 4, False)
    assert members == {0, 1, 2, 3}
    assert not kept


def test_pictures_that_cannot_be_compared_fail_with_a_reason():
    def attempt(*shape):
        return Attempt(np.zeros((*shape, 3), np.uint8), "success", None, 0)

    checked = same_size([attempt(16, 20), attempt(16, 16), attempt(32, 32), attempt(18, 18)])
    assert [one.status for one in checked] == ["failed", "success", "failed", "failed"]
    assert "20 × 16 pixels, expected a square" in checked[0].reason
    assert "32 × 32 pixels, the prompt's first one 16 × 16" in checked[2].reason


def test_seeds_come_from_identity():
    assert seed(1, "p", 0) == seed(1, "p", 0) != seed(1, "p", 1)


def test_no_step_carries_more_than_references(tmp_path):
    lake = Lake(str(tmp_path))
    handler = GeneratorHandler(PlantedGenerator(), FILTER, 1)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    build(pipeline, lake, AUDIT, 1000, handler, None)
    sizes = [len(transform.spec.payload) for transform in pipeline.to_runner_api().components.transforms.values()]
    assert max(sizes) < 50_000
