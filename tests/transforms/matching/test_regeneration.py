"""What was dropped and may show another training image: it is pointed at, made again from its seed, and is the same picture."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from pipelines.execution import Execution
from pipelines.generate import build, build_compaction
from pipelines.match import build_regeneration
from tests.models import PlantedGenerator, save_random_pipeline, short_of_memory
from tests.planted import embedding_rows, picture, write_embeddings, write_images
from transforms.attacks.attempts import Filter, GeneratorHandler
from transforms.data.images import ImageStore
from transforms.errors import UserError
from transforms.kernels.copies import CopyLimits
from transforms.kernels.distances import l2
from transforms.matching.candidates import FindCandidates, merge
from transforms.matching.directory import Directory
from transforms.matching.queries import ThumbnailsOfAttempts
from transforms.matching.regeneration import (
    MOST_LEVELS,
    Point,
    RegenerateHandler,
    pointed_file,
    pointed_folder,
    points_at,
    regenerated,
    write_counts,
)
from transforms.matching.tasks import THUMBNAIL, Round, Snapshots, Task
from transforms.models.base import Attempt, Wanted
from transforms.models.diffusion import DiffusersGenerator
from transforms.models.processes import AS_IT_IS
from transforms.store.files import list_files, read_parquet, write_parquet
from transforms.store.identity import prompt_id
from transforms.store.lake import Lake
from transforms.store.pictures import decode, encode_png, thumbnail

AUDIT, MATCH = "audit0", "match0"
IDENTITY = {"audit_id": AUDIT, "model_revision": "r", "parameters_digest": "d"}
LIMITS = CopyLimits(0.15, 0.5, None)
IMAGES = 8
PICTURES = [picture(100 + number, 16, 16) for number in range(IMAGES)]
GROUPS = [f"group {number}" for number in range(IMAGES)]


@dataclasses.dataclass
class Seeded(PlantedGenerator):
    """Made from seeds, which are stored as diffusers' are. ``drift``: gray levels that a picture made again is off."""

    kind: str = "diffusers"
    drift: int = 0

    def _picture(self, text, seed):
        return (super()._picture(text, seed).astype(int) + self.drift).clip(0, 255).astype(np.uint8)


def prompt(text, group, origin="duplicates"):
    return {
        **IDENTITY, "prompt_id": prompt_id(text, origin, None), "text": text, "origin": origin, "sample_id": group,
        "group_id": None if origin == "control" else group, "n_duplicates": 1, "stratum": "1", "stratum_order": 0,
        "inclusion_probability": 1.0, "images_requested": 6,
    }  # fmt: skip


PROMPTS = [
    prompt("its own", "group 0"),
    prompt("another's", "group 1"),
    prompt("new", "group 2"),
    prompt("a control's", "group 7", "control"),
    prompt("nobody's", None, "list"),
]
MEMORY = {"its own": PICTURES[0], "another's": PICTURES[3], "a control's": PICTURES[4], "nobody's": PICTURES[5]}
"""What each prompt gives back."""


@pytest.fixture
def made(tmp_path):
    """(lake, snapshots, generator): an audit that stored each prompt's nearest generation alone; nothing is matched yet."""
    lake = Lake(str(tmp_path / "lake"))
    ingest = write_images(
        lake, [[(group, "training", encode_png(one)) for group, one in zip(GROUPS, PICTURES, strict=True)]], (16, 16)
    )
    vectors = np.random.default_rng(0).normal(size=(IMAGES, 4)).astype(np.float32)
    rows = embedding_rows(GROUPS, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    embed = write_embeddings(
        lake, [[row | {"thumbnail": thumbnail(one)} for row, one in zip(rows, PICTURES, strict=True)]], ingest.snapshot_id
    )
    lake.write("duplicate_groups", "groups0", 0, [
        {"sample_id": group, "group_id": group, "size": 1, "representative": group, "lowest_cosine": 1.0, "diameter": 0,
         "identical_to": None}
        for group in GROUPS
    ])  # fmt: skip
    lake.write("prompts", AUDIT, 0, PROMPTS)
    generator = Seeded(MEMORY)
    store = ImageStore(lake, ingest.snapshot_id, embed.snapshot_id)
    handler = GeneratorHandler(lake, AUDIT, generator, Filter(0.15, 99, "nearest", 0.0), 1, store)
    execution = Execution(lake, [])
    execution.run(lambda pipeline: build(pipeline, 1, handler, AS_IT_IS))
    execution.run(lambda pipeline: build_compaction(pipeline, lake, AUDIT, 1))
    lake.write("matches", MATCH, 0, [])
    return lake, Snapshots(ingest.snapshot_id, embed.snapshot_id, "groups0", AUDIT), generator


def pointing(lake, snapshots):
    """The round of all attempts' thumbnails, searched."""
    Directory(lake, snapshots.deduplicate).write(snapshots.ingest, snapshots.embed)
    round = Round(lake, snapshots, MATCH, "pointing", (Task("generations", 0),), 16, 3, 1, (THUMBNAIL,))
    list(ThumbnailsOfAttempts(round).process((0, 0)))
    Execution(lake, []).run(lambda pipeline: pipeline | FindCandidates(round, 1000))
    merge(round)
    return round


def point(made):
    """(what Point counted, the rows that are to be made again)."""
    lake, snapshots, _ = made
    round = pointing(lake, snapshots)
    counted = list(Point(round, LIMITS).process((0, 0)))
    there = list_files(pointed_folder(lake, MATCH), ".parquet")
    return counted, read_parquet(pointed_file(lake, MATCH, 0)).to_pylist() if there else []


def make_again(made, generator=None):
    lake, _, first = made
    handler = RegenerateHandler(generator or first, lake, MATCH, IDENTITY)
    ((result,),) = [list(handler.run_inference([0], handler.load_model()))]
    return result.inference


def test_a_dropped_copy_of_another_image_is_pointed_at_once_a_prompt(made):
    lake, _, _ = made
    counted, rows = point(made)
    assert counted == [(0, 0)]
    texts = {row["prompt_id"]: row["text"] for row in PROMPTS}
    # Not what gives back its own image, of which the nearest generation speaks, nor what is new.
    assert {texts[row["prompt_id"]]: row["group_id"] for row in rows} == {
        "another's": "group 3", "a control's": "group 4", "nobody's": "group 5",
    } and len(rows) == 3  # fmt: skip
    generations = {(row["prompt_id"], row["sample_index"]): row for row in lake.read("generations", AUDIT).to_pylist()}
    for row in rows:
        generation = generations[row["prompt_id"], row["sample_index"]]
        assert generation["image"] is None and generation["thumbnail"] == row["thumbnail"]
        assert (row["seed"], row["text"]) == (generation["seed"], texts[row["prompt_id"]])


def bounds_of(thumbnails):
    """group → bound, of what each thumbnail points at; None where it points at nothing."""
    trained = np.stack([np.frombuffer(thumbnail(one), np.uint8) for one in PICTURES]).astype(np.float64) / 255
    found = []
    for tiny in thumbnails.astype(np.float64) / 255:
        distances = np.sqrt(((tiny - trained) ** 2).mean(axis=1))
        order = np.argsort(distances)
        bound = points_at(distances[order][:3].tolist(), 1.0)
        found.append(None if bound is None else (GROUPS[order[0]], bound))
    return found


def test_the_nearest_of_the_dropped_attempts_is_taken_and_its_bound_is_one(made):
    lake, _, generator = made
    _, rows = point(made)
    generations = lake.read("generations", AUDIT).to_pylist()
    for row in rows:
        dropped = [one for one in generations if one["prompt_id"] == row["prompt_id"] and one["image"] is None]
        tiny = np.frombuffer(b"".join(one["thumbnail"] for one in dropped), np.uint8).reshape(-1, 192)
        assert row["bound"] == pytest.approx(min(found[1] for found in bounds_of(tiny)), abs=1e-6)
        own = PICTURES[GROUPS.index(row["group_id"])]
        assert row["bound"] <= float(l2(generator._picture(row["text"], row["seed"]), own))


def test_bounds_are_never_over_the_distance_of_the_pictures():
    random = np.random.default_rng(9)
    noisy = [(one + random.normal(scale=20, size=one.shape)).clip(0, 255).astype(np.uint8) for one in PICTURES]
    tiny = np.stack([np.frombuffer(thumbnail(one), np.uint8) for one in noisy])
    for number, found in enumerate(bounds_of(tiny)):
        assert found is not None and found[0] == GROUPS[number]
        assert found[1] <= float(l2(noisy[number], PICTURES[number]))


def test_what_a_thumbnail_points_at_stands_apart():
    assert points_at([0.1, 0.2, 0.3], 0.15) == pytest.approx(0.1 - 1 / 255)
    assert points_at([0.1, 0.2, 0.3], 0.05) is None, "over the largest bound"
    assert points_at([0.1, 0.11, 0.14], 0.15) is None, "as near to others"
    assert points_at([0.1, 0.1, 0.3], 0.15) is not None, "one other may be its twin"
    assert points_at([0.1, 0.1], 0.15) is not None and points_at([0.001], 0.15) == 0.0
    assert points_at([], 0.15) is None


def test_what_a_stored_picture_shows_already_is_not_made_again(made):
    """The nearest generation of another's caption is a copy as well: one is enough. It counts how well thumbnails point."""
    lake, _, _ = made
    generations = lake.read("generations", AUDIT).to_pylist()
    (shown,) = [row for row in generations if row["prompt_id"] == PROMPTS[1]["prompt_id"] and row["nearest"]]
    match = {
        **IDENTITY, "prompt_id": shown["prompt_id"], "sample_index": shown["sample_index"], "nearest": True,
        "regenerated": False, "sample_id": "group 3", "group_id": "group 3", "role": "training", "relation": "neighbour",
        "found_by": "both", "cosine": 0.9, "offset": 0, "l2": 0.02, "tiled_l2": 0.02, "adaptive_l2": 0.1, "n_others": 7,
        "nearest_other_l2": 0.3, "ratio": 0.1, "coarse_l2": 0.02, "coarse_ratio": 0.1, "extracted": True,
    }  # fmt: skip
    lake.write("matches", MATCH, 0, [match])
    counted, rows = point(made)
    # The thumbnail of the stored copy points at the image too.
    assert counted == [(1, 1)]
    assert {row["group_id"] for row in rows} == {"group 4", "group 5"}
    # One that is no copy says nothing.
    lake.write("matches", MATCH, 0, [match | {"coarse_ratio": 0.9}])
    counted, rows = point(made)
    assert counted == [(0, 0)] and {row["group_id"] for row in rows} == {"group 3", "group 4", "group 5"}


def test_of_a_forgotten_prompt_nothing_is_made_again(made):
    lake, _, _ = made
    lake.write("prompts", AUDIT, 0, [row | {"stratum": "forgotten"} for row in PROMPTS])
    assert point(made) == ([(0, 0)], [])


def test_made_again_it_is_the_same_picture(made):
    _, _, generator = made
    _, pointed = point(made)
    rows = make_again(made)
    assert len(rows) == len(pointed) == 3
    for row, asked in zip(rows, pointed, strict=True):
        assert (row["status"], row["reason"]) == ("success", None)
        assert {name: row[name] for name in ("prompt_id", "sample_index", "group_id", "bound")} == {
            name: asked[name] for name in ("prompt_id", "sample_index", "group_id", "bound")
        }
        assert (np.asarray(decode(row["image"])) == generator._picture(asked["text"], asked["seed"])).all()
        assert {name: row[name] for name in IDENTITY} == IDENTITY


@pytest.mark.parametrize(("drift", "status"), [(0, "success"), (3, "success"), (-MOST_LEVELS - 12, "differs")])
def test_another_device_may_be_off_by_a_little(made, drift, status):
    point(made)
    rows = make_again(made, Seeded(MEMORY, drift=drift))
    assert {row["status"] for row in rows} == {status}
    for row in rows:
        assert (row["image"] is None) == (status != "success")
        assert (row["reason"] is None) == (status == "success")
        assert row["reason"] is None or "gray levels off" in row["reason"]


def test_what_can_not_be_made_again_has_a_reason(made):
    point(made)

    class Gone(Seeded):
        def generate(self, wanted):
            return ({} for _ in wanted)

    class Unsafe(Seeded):
        def generate(self, wanted):
            return (dict.fromkeys(one.seeds, Attempt(None, "safety_filtered", "taken", 0.0)) for one in wanted)

    assert {(row["status"], row["reason"], row["image"]) for row in make_again(made, Gone(MEMORY))} == {
        ("failed", "the finished generation isn't there any more", None)
    }
    assert {(row["status"], row["reason"], row["image"]) for row in make_again(made, Unsafe(MEMORY))} == {
        ("safety_filtered", "taken", None)
    }


def test_a_part_that_is_there_is_not_made_again(made):
    lake, _, generator = made
    point(made)

    @dataclasses.dataclass
    class Job:
        lake: Lake
        snapshot: str
        audit: dict

    job, execution = Job(lake, MATCH, IDENTITY), Execution(lake, [])
    execution.run(lambda pipeline: build_regeneration(pipeline, job, [0], generator, AS_IT_IS))
    assert regenerated(lake, MATCH) == {0}
    before = lake.read("regenerations", MATCH).to_pylist()
    assert len(before) == 3 and {row["status"] for row in before} == {"success"}
    # A model that can't make any: it is not asked.
    broken = Seeded(MEMORY, broken=tuple(MEMORY))
    execution.run(lambda pipeline: build_regeneration(pipeline, job, [0], broken, AS_IT_IS))
    assert lake.read("regenerations", MATCH).to_pylist() == before


def test_counts_are_added_up(tmp_path):
    write_counts([(3, 2), (0, 0), (4, 4)], str(tmp_path / "counts.parquet"))
    assert read_parquet(str(tmp_path / "counts.parquet")).to_pylist() == [{"known": 7, "agreeing": 6}]
    write_counts([], str(tmp_path / "none.parquet"))
    assert read_parquet(str(tmp_path / "none.parquet")).to_pylist() == [{"known": 0, "agreeing": 0}]


def test_on_a_device_that_is_short_of_memory_it_goes_on_in_smaller_batches(tmp_path, monkeypatch):
    save_random_pipeline(str(tmp_path / "model"))
    settings = {"steps": 1, "guidance_scale": 1.0, "device": "cpu", "dtype": "float32"}
    enough = DiffusersGenerator(str(tmp_path / "model"), batch_size=2, **settings)
    enough.load()
    (before,) = enough.generate([Wanted("a logo", dict(enumerate(range(6))))])
    lake = Lake(str(tmp_path / "lake"))
    write_parquet(pointed_file(lake, MATCH, 0), pa.Table.from_pylist([
        {"prompt_id": "a", "text": "a logo", "sample_index": number, "seed": number, "group_id": "group", "bound": 0.0,
         "thumbnail": thumbnail(one.image)} for number, one in before.items()
    ]))  # fmt: skip
    handler = RegenerateHandler(DiffusersGenerator(str(tmp_path / "model"), batch_size=8, **settings), lake, MATCH, IDENTITY)
    model = handler.load_model()
    sizes = short_of_memory(monkeypatch, model._pipeline.unet, "forward", 2)
    for _ in range(2):
        ((result,),) = [list(handler.run_inference([0], model))]
        assert [row["status"] for row in result.inference] == ["success"] * 6
        for row, one in zip(result.inference, before.values(), strict=True):
            assert np.abs(np.asarray(decode(row["image"]), int) - one.image).max() <= 1
    # What was learned holds for the next part.
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2] and model.batch_size == 2
    short_of_memory(monkeypatch, model._pipeline.unet, "forward", 0)
    with pytest.raises(UserError, match="out of memory on cpu with a single picture at once"):
        list(handler.run_inference([0], model))
