"""Generation over Beam: every attempt is a row, planted memory is flagged, the nearest is kept, nothing is done twice."""

import dataclasses
import json

import apache_beam as beam
import numpy as np
import pytest

from pipelines.execution import Execution
from pipelines.generate import build, build_compaction
from tests.models import PlantedGenerator
from tests.planted import embedding_rows, picture, write_embeddings, write_images
from transforms.attacks.attempts import (
    GIVE_UP_AFTER,
    MOST_BATCHES,
    PLAIN,
    Filter,
    GeneratorHandler,
    comparable,
    fitting_batch,
    groups_of,
    judge,
    result_folder,
)
from transforms.data.images import ImageStore
from transforms.errors import UserError
from transforms.kernels.distances import Frame, aligned_l2, central_crop, l2, tiled_l2
from transforms.models.base import Attempt
from transforms.models.folder import FolderGenerator
from transforms.models.processes import AS_IT_IS
from transforms.store.files import list_files
from transforms.store.identity import prompt_id, seed
from transforms.store.lake import Lake
from transforms.store.pictures import decode, encode_png, thumbnail

AUDIT = "audit0"
FILTER = Filter(clique_distance=0.15, clique_size=5, keep="flagged", unflagged_fraction=0.0)


def prompt(text, origin="duplicates", images=8, sample=None):
    return {
        "audit_id": AUDIT,
        "model_revision": "r",
        "parameters_digest": "d",
        "prompt_id": prompt_id(text, origin, None),
        "text": text,
        "origin": origin,
        "sample_id": sample,
        "group_id": sample,
        "n_duplicates": None,
        "stratum": "1",
        "stratum_order": 0,
        "inclusion_probability": 1.0,
        "images_requested": images,
    }


def memory(*texts):
    random = np.random.default_rng(3)
    return {text: np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((4, 4, 1))).astype(np.uint8) for text in texts}


def store_of(lake, pictures):
    """The pictures that prompts may be the captions of: sample_id → encoded picture."""
    ingest = write_images(lake, [[(sample, "training", content) for sample, content in pictures.items()]])
    vectors = np.ones((len(pictures), 2), np.float32)
    embed = write_embeddings(lake, [embedding_rows(list(pictures), vectors)] if pictures else [], ingest.snapshot_id)
    return ImageStore(lake, ingest.snapshot_id, embed.snapshot_id)


def generate(tmp_path, prompts, generator, filter=FILTER, pictures=None):
    lake = Lake(str(tmp_path / "lake"))
    lake.create()
    store = store_of(lake, pictures or {})
    for part, rows in enumerate(prompts):
        lake.write("prompts", AUDIT, part, rows)
    execution = Execution(lake, [])
    handler = GeneratorHandler(lake, AUDIT, generator, filter, base_seed=1, store=store)
    execution.run(lambda pipeline: build(pipeline, len(prompts), handler, AS_IT_IS))
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
    store = store_of(lake, {})
    handler = GeneratorHandler(lake, AUDIT, PlantedGenerator(), FILTER, 1, store)
    execution = Execution(lake, [])
    execution.run(lambda pipeline: build(pipeline, 1, handler, AS_IT_IS))
    assert len(list_files(result_folder(lake, AUDIT), ".parquet")) == 2
    # A generator that fails at once: the run can only succeed if it is never asked.
    broken = GeneratorHandler(lake, AUDIT, PlantedGenerator(broken=("a", "b")), FILTER, 1, store)
    execution.run(lambda pipeline: build(pipeline, 1, broken, AS_IT_IS))
    execution.run(lambda pipeline: build_compaction(pipeline, lake, AUDIT, 1))
    assert lake.read("cliques", AUDIT)["n_failed"].to_pylist() == [0, 0]


def test_a_model_that_takes_no_prompt_stops_the_run(tmp_path):
    texts = ["a", "b", "c", "d"]
    with pytest.raises(UserError, match="3 prompts in a row gave no image, nor does 'a photograph'"):
        generate(tmp_path, [[prompt(text) for text in texts]], PlantedGenerator(broken=(*texts, PLAIN)))


def test_prompts_that_the_model_does_not_take_are_results_however_many(tmp_path):
    """A model that still makes other pictures isn't broken."""
    texts = [str(number) for number in range(3 * GIVE_UP_AFTER + 1)]
    lake = generate(tmp_path, [[prompt(text) for text in texts]], PlantedGenerator(broken=tuple(texts)))
    assert lake.read("cliques", AUDIT)["n_failed"].to_pylist() == [8] * len(texts)
    assert set(lake.read("generations", AUDIT)["status"].to_pylist()) == {"failed"}


def test_what_a_safety_checker_takes_is_a_result_however_much_it_is(tmp_path):
    class Prudish(PlantedGenerator):
        def _attempt(self, text, seed):
            assert text != PLAIN, "nobody asks a model that gives verdicts whether it works"
            return Attempt(None, "safety_filtered", "taken", 0.0)

    texts = [str(number) for number in range(3 * GIVE_UP_AFTER)]
    lake = generate(tmp_path, [[prompt(text) for text in texts]], Prudish())
    assert lake.read("generations", AUDIT)["status"].to_pylist() == ["safety_filtered"] * 8 * len(texts)


def test_finished_generations_that_are_missing_are_results(tmp_path):
    """However many prompts in a row they are of: the files of others may be there."""
    texts = [str(number) for number in range(GIVE_UP_AFTER + 1)]
    folder = tmp_path / "finished"
    folder.mkdir()
    lines = [json.dumps({"file_name": f"{text}.png", "prompt": text}) for text in texts]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / f"{texts[-1]}.png").write_bytes(encode_png(FLAT))
    lake = generate(tmp_path, [[prompt(text, images=1) for text in texts]], FolderGenerator(str(folder)))
    assert lake.read("generations", AUDIT)["status"].to_pylist() == ["failed"] * GIVE_UP_AFTER + ["success"]


def test_the_batch_that_a_device_has_memory_for_is_noted(tmp_path):
    @dataclasses.dataclass
    class Small(PlantedGenerator):
        def generate(self, wanted):
            for number, made in enumerate(super().generate(wanted)):
                self.batch_size = 16 >> number
                yield made

    lake = Lake(str(tmp_path / "lake"))
    lake.create()
    handler = GeneratorHandler(lake, AUDIT, Small(), FILTER, 1, store_of(lake, {}))
    assert fitting_batch(lake, AUDIT) is None
    list(handler.run_inference([[prompt("a")]], handler.load_model()))
    assert fitting_batch(lake, AUDIT) is None
    list(handler.run_inference([[prompt("a"), prompt("b"), prompt("c")]], handler.load_model()))
    assert fitting_batch(lake, AUDIT) == 4


def test_a_prompt_is_durable_before_the_next_one_of_its_group(tmp_path):
    """A run that dies in the middle of a group keeps what is finished."""
    lake = Lake(str(tmp_path / "lake"))
    lake.create()

    @dataclasses.dataclass
    class Dies(PlantedGenerator):
        def generate(self, wanted):
            assert [one.text for one in wanted] == ["a", "b", "c"]
            made = super().generate(wanted)
            yield next(made)
            yield next(made)
            raise MemoryError

    handler = GeneratorHandler(lake, AUDIT, Dies(), FILTER, 1, store_of(lake, {}))
    with pytest.raises(MemoryError):
        list(handler.run_inference([[prompt("a"), prompt("b"), prompt("c")]], handler.load_model()))
    done = [path.rsplit("/", 1)[1] for path in list_files(result_folder(lake, AUDIT), ".parquet")]
    assert set(done) == {f"{prompt(text)['prompt_id']}.parquet" for text in ("a", "b")}


def test_groups_fill_their_batches():
    def sizes(images, batch_size):
        groups = list(groups_of([prompt(str(number), images=count) for number, count in enumerate(images)], batch_size))
        assert [one["text"] for group in groups for one in group] == [str(number) for number in range(len(images))]
        return [[one["images_requested"] for one in group] for group in groups]

    assert sizes([6] * 33, 32) == [[6] * 16, [6] * 16, [6]]
    assert sizes([6, 6, 2, 2], 8) == [[6, 6, 2, 2]]
    assert sizes([3, 4], 1) == [[3], [4]]
    # One that is large is on its own, and a group that never fills its batches ends all the same.
    assert sizes([500, 500], 8) == [[500], [500]]
    assert sum(len(group) for group in sizes([7] * 500, 1000)[:1]) == 500
    odd = sizes([2] * 1000, 33 * 2 - 1)[0]
    assert sum(odd) % 65 == 0 or sum(odd) > MOST_BATCHES * 65
    assert sizes([], 8) == []


@pytest.mark.parametrize(
    ("keep", "fraction", "origin", "flagged", "expected"),
    [
        ("flagged", 0.0, "duplicates", True, ("flagged", 1.0, True)),
        ("flagged", 0.0, "duplicates", False, ("dropped", 0.0, False)),
        ("flagged", 1.0, "duplicates", False, ("slice", 1.0, True)),
        ("all", 0.0, "duplicates", False, ("all", 1.0, True)),
        ("flagged", 0.0, "control", False, ("control", 1.0, True)),
        ("none", 1.0, "control", True, ("dropped", 0.0, False)),
        ("nearest", 1.0, "duplicates", True, ("nearest", 0.0, False)),
        ("nearest", 1.0, "control", False, ("nearest", 0.0, False)),
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
    attempts = [Attempt(FLAT, "success", None, 0)] * 4 + [Attempt(None, "safety_filtered", "x", 0)] * 3
    judged = judge(prompt("x"), attempts, None, FILTER, "cpu", 0.0)
    row = judged.clique
    assert (row["n_generated"], row["n_failed"], row["clique_size"], row["flagged"]) == (4, 3, 4, False)
    assert judged.members == {0, 1, 2, 3}
    assert (judged.own_l2, judged.nearest, judged.kept) == ({}, None, set())


# -- the nearest to its own image -----------------------------------------------------------------------------------------

FLAT = np.zeros((16, 16, 3), np.uint8)


def levels(*grays):
    """Attempts of a single gray each; None is one that failed."""
    return [Attempt(None if gray is None else np.full((16, 16, 3), gray, np.uint8), "success" if gray is not None else "failed",
                    None, 0.0) for gray in grays]  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 16), (40, 32), (32, 40), (16, 64)])
def test_every_attempt_is_compared_with_the_image_whose_caption_was_the_prompt(shape):
    """Along the longer side of the image, wherever the attempt lies best; before anything is dropped."""
    random = np.random.default_rng(4)
    own = picture(7, shape[1], shape[0])
    attempts = [Attempt(random.integers(0, 256, (16, 16, 3), dtype=np.uint8), "success", None, 0.0) for _ in range(5)]
    attempts.insert(2, Attempt(None, "failed", "x", 0.0))
    for keep in ("none", "flagged", "nearest", "all"):
        judged = judge(prompt("x"), attempts, own, dataclasses.replace(FILTER, keep=keep), "cpu", 0.0)
        assert sorted(judged.own_l2) == [0, 1, 3, 4, 5]
        for index, distance in judged.own_l2.items():
            assert distance == pytest.approx(aligned_l2(attempts[index].image, own), abs=1e-6)
        assert judged.nearest == min(judged.own_l2, key=judged.own_l2.get)
        assert (judged.nearest in judged.kept) == (keep != "none")


def test_pictures_of_several_sizes_are_compared_with_the_image_and_are_in_no_clique_together():
    own = picture(7, 24, 36)
    attempts = [
        Attempt(central_crop(own, Frame(*frame)), "success", None, 0.0)
        for frame in ((24, 16), (16, 16), (24, 16), (16, 24), (24, 16))
    ]
    judged = judge(prompt("x"), attempts, own, dataclasses.replace(FILTER, clique_size=3, keep="all"), "cpu", 0.0)
    assert judged.own_l2 == dict.fromkeys(range(5), 0.0) and judged.kept == set(range(5))
    assert judged.members == {0, 2, 4} and judged.clique["flagged"] and judged.clique["clique_size"] == 3
    assert judged.clique["mean_distance"] == 0.0 and judged.clique["n_failed"] == 0


def test_a_generation_that_its_image_cannot_cover_has_no_distance():
    attempts = [Attempt(np.zeros((4, 160, 3), np.uint8), "success", None, 0.0), *levels(0)]
    judged = judge(prompt("x"), attempts, np.zeros((64, 16, 3), np.uint8), FILTER, "cpu", 0.0)
    assert judged.own_l2 == {1: 0.0} and judged.nearest == 1


def test_own_l2_by_hand():
    # Grays of 0, 51 and 102 from one of 51.
    judged = judge(prompt("x"), levels(0, None, 51, 102), levels(51)[0].image, FILTER, "cpu", 0.0)
    assert judged.own_l2 == {0: pytest.approx(0.2), 2: 0.0, 3: pytest.approx(0.2)} and judged.nearest == 2
    # Of two that are as near the first.
    assert judge(prompt("x"), levels(102, 0), levels(51)[0].image, FILTER, "cpu", 0.0).nearest == 0


def test_without_an_image_of_its_own_or_a_picture_none_is_nearest():
    assert judge(prompt("x"), levels(0, 51), None, FILTER, "cpu", 0.0).nearest is None
    judged = judge(prompt("x"), levels(None, None), FLAT, FILTER, "cpu", 0.0)
    assert (judged.own_l2, judged.nearest, judged.kept) == ({}, None, set())


def test_the_nearest_is_kept_and_of_a_clique_its_middle():
    """Five grays that are all near each other, and the image's own, far from them."""
    attempts, own = levels(100, 104, 108, 112, 116, 250), levels(255)[0].image
    distances = [[float(tiled_l2(a.image, b.image)) for b in attempts[:5]] for a in attempts[:5]]
    assert np.sum(distances, axis=1).argmin() == 2
    expected = {"none": set(), "nearest": {2, 5}, "flagged": {0, 1, 2, 3, 4, 5}, "all": {0, 1, 2, 3, 4, 5}}
    for keep, kept in expected.items():
        judged = judge(prompt("x"), attempts, own, dataclasses.replace(FILTER, keep=keep), "cpu", 0.0)
        assert judged.clique["flagged"] and judged.kept == kept, keep
    # One that isn't flagged has no middle.
    unflagged = dataclasses.replace(FILTER, clique_size=6)
    for keep, kept in {"none": set(), "nearest": {5}, "flagged": {5}, "all": {0, 1, 2, 3, 4, 5}}.items():
        judged = judge(prompt("x"), attempts, own, dataclasses.replace(unflagged, keep=keep), "cpu", 0.0)
        assert not judged.clique["flagged"] and judged.kept == kept, keep
    # Nobody's caption: the middle alone.
    assert judge(prompt("x"), attempts, None, dataclasses.replace(FILTER, keep="nearest"), "cpu", 0.0).kept == {2}


def test_the_middle_is_counted_among_all_attempts():
    """Failed ones lie between the pictures."""
    attempts = levels(None, 0, 100, None, 104, 108, 112, 116)
    judged = judge(prompt("x"), attempts, None, dataclasses.replace(FILTER, keep="nearest"), "cpu", 0.0)
    assert judged.members == {2, 4, 5, 6, 7} and judged.kept == {5}


@pytest.mark.parametrize("keep", ["none", "nearest", "flagged"])
def test_whatever_is_dropped_leaves_its_distance_and_its_thumbnail(tmp_path, keep):
    """Prompts that give back their image, that don't, and a control; the picture of the nearest alone is stored."""
    own = {sample: memory(sample)[sample] for sample in ("known", "new", "control")}
    pictures = {sample: encode_png(image) for sample, image in own.items()}
    prompts = [[prompt(sample, "control" if sample == "control" else "duplicates", sample=sample) for sample in own],
               [prompt("nobody's")]]  # fmt: skip
    generator = PlantedGenerator(memory("known"), noise=20.0)
    filter = dataclasses.replace(FILTER, keep=keep, clique_size=9)
    lake = generate(tmp_path, prompts, generator, filter, pictures)
    texts = {row["prompt_id"]: row["text"] for part in prompts for row in part}
    rows = lake.read("generations", AUDIT).to_pylist()
    assert len(rows) == 4 * 8
    by_text = {text: [row for row in rows if texts[row["prompt_id"]] == text] for text in texts.values()}
    for text, some in by_text.items():
        made = [generator._picture(text, seed(1, some[0]["prompt_id"], row["sample_index"])) for row in some]
        assert [row["thumbnail"] for row in some] == [thumbnail(image) for image in made]
        if text == "nobody's":
            assert {(row["own_l2"], row["nearest"], row["image"]) for row in some} == {(None, False, None)}
            continue
        distances = [float(l2(image, own[text])) for image in made]
        assert [row["own_l2"] for row in some] == pytest.approx(distances, abs=1e-6)
        assert [row["nearest"] for row in some] == [distance == min(distances) for distance in distances]
        every = keep == "flagged" and text == "control"
        for row, image in zip(some, made, strict=True):
            stored = keep != "none" and (row["nearest"] or every)
            assert (row["image"] is not None) == stored
            assert not stored or (np.asarray(decode(row["image"])) == image).all()


def test_the_verdicts_on_a_prompt_do_not_depend_on_what_is_kept(tmp_path):
    own = memory("known", "new")
    pictures = {sample: encode_png(image) for sample, image in own.items()}
    seen = []
    filters = [FILTER, dataclasses.replace(FILTER, unflagged_fraction=1.0)]
    filters += [dataclasses.replace(FILTER, keep=keep) for keep in ("all", "nearest", "none")]
    for number, filter in enumerate(filters):
        prompts = [[prompt(sample, sample=sample) for sample in own]]
        lake = generate(tmp_path / str(number), prompts, PlantedGenerator(memory("known")), filter, pictures)
        columns = ["prompt_id", "sample_index", "own_l2", "nearest", "thumbnail", "in_clique", "status"]
        seen.append(lake.read("generations", AUDIT, columns).to_pylist())
        if filter.keep != "none":
            kept = lake.read("generations", AUDIT, ["nearest", "image"]).to_pylist()
            assert sum(row["nearest"] for row in kept) == 2
            assert all(row["image"] is not None for row in kept if row["nearest"])
    assert all(one == seen[0] for one in seen)


def test_an_image_that_can_not_be_shown_any_more_stops_nothing(tmp_path):
    """Forgotten or broken since the prompt was drawn: there is no distance to it."""
    prompts = [[prompt("broken", sample="broken"), prompt("known", sample="known")]]
    pictures = {"broken": b"no picture", "known": encode_png(memory("known")["known"])}
    lake = generate(tmp_path, prompts, PlantedGenerator(memory("known")), FILTER, pictures)
    broken = prompts[0][0]["prompt_id"]
    rows = lake.read("generations", AUDIT).to_pylist()
    assert {(row["own_l2"], row["nearest"]) for row in rows if row["prompt_id"] == broken} == {(None, False)}
    assert sum(row["nearest"] for row in rows) == 1 and {row["status"] for row in rows} == {"success"}


def test_pictures_that_cannot_be_compared_fail_with_a_reason():
    def attempt(*shape):
        return Attempt(np.zeros((*shape, 3), np.uint8), "success", None, 0)

    checked = comparable([attempt(16, 20), attempt(16, 16), attempt(32, 32), attempt(18, 20), attempt(4, 404)])
    assert [one.status for one in checked] == ["success", "success", "success", "failed", "failed"]
    assert checked[3].reason == "the image has 20 × 18 pixels, expected sides divisible by 4"
    assert checked[4].reason == "the image has 404 × 4 pixels, more than 100 : 1"


def test_seeds_come_from_identity():
    assert seed(1, "p", 0) == seed(1, "p", 0) != seed(1, "p", 1)


def test_no_step_carries_more_than_references(tmp_path):
    lake = Lake(str(tmp_path))
    handler = GeneratorHandler(lake, AUDIT, PlantedGenerator(), FILTER, 1, store_of(lake, {}))
    pipeline = beam.Pipeline(runner="FnApiRunner")
    build(pipeline, 1000, handler, AS_IT_IS)
    sizes = [len(transform.spec.payload) for transform in pipeline.to_runner_api().components.transforms.values()]
    assert max(sizes) < 50_000
