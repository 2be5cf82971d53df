"""A round as a whole, on planted lakes: its directory, its candidates by chunks and through cells, its pictures, its rows."""

import dataclasses

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from pipelines.execution import Execution
from pipelines.match import build, build_gathering, build_search
from tests.models import short_of_memory
from tests.planted import embedding_rows, picture, write_embeddings, write_images, write_tiny_clip
from transforms.data.images import LAST_ROW
from transforms.kernels.distances import (
    COARSE,
    Frame,
    best_crop,
    block_means,
    central_crop,
    coarse_l2,
    covering,
    crop_at,
    l2,
    room,
)
from transforms.matching import candidates, directory, tasks
from transforms.matching.candidates import Chunk, candidates_file, chunks, merge
from transforms.matching.comparison import Measure
from transforms.matching.directory import Directory, own_file, write_own
from transforms.matching.eidetic_counts import CountMemories
from transforms.matching.gathering import read_block
from transforms.matching.parts import sampled_rows
from transforms.matching.queries import SCHEMA, EmbedTaskHandler
from transforms.matching.recall import NearestOfAll, recall
from transforms.matching.tasks import CLIP, PLACE_BITS, THUMBNAIL, Round, Snapshots, Task
from transforms.matching.unreadable import noted
from transforms.models.clip import ClipModel
from transforms.store.files import delete, read_parquet, write_parquet
from transforms.store.identity import digest
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png, thumbnail

SIDE, DIMENSIONS = 32, 16
FRAMES = [Frame(SIDE, SIDE), Frame(48, SIDE), Frame(24, 40)]
"""Sizes of generations: square, and what many of the images must be cropped to."""

AUDIT = {"audit_id": "audit0", "model_revision": "r", "parameters_digest": "d"}
MEASURE = Measure(delta=0.15, others=5, alpha=0.5, copy_ratio=0.6)


class World:
    """A lake with groups of images, controls, and generations, and what is true of it.

    Args:
        root: of the lake.
        groups: images in each group.
        parts: of ``images``.
        generations: stored ones, each a noisy crop of some image or new.
        frame: their size.
    """

    def __init__(self, root, groups, parts=3, generations=24, seed=0, frame=FRAMES[0]):
        self.frame = frame
        random = np.random.default_rng(seed)
        self.lake = Lake(str(root))
        self.pictures, self.group_of, self.first = {}, {}, {}
        samples = []
        for number, size in enumerate(groups):
            shape = [(SIDE, SIDE), (SIDE, SIDE), (SIDE, 44), (40, SIDE)][number % 4]
            one = picture(seed + number, shape[1], shape[0]).astype(int)
            for copy in range(size):
                sample = f"{(7919 * (100 * number + copy)) % 100_003:06d}"
                self.pictures[sample] = (one + random.integers(-6, 7, one.shape) * (copy > 0)).clip(0, 255).astype(np.uint8)
                self.group_of[sample] = f"group {number:04d}"
                self.first.setdefault(f"group {number:04d}", sample)
                samples.append(sample)
        self.controls = [f"control {number}" for number in range(4)]
        for number, sample in enumerate(self.controls):
            self.pictures[sample] = picture(5000 + number, SIDE, SIDE)
        vectors = random.normal(size=(len(self.pictures), DIMENSIONS)).astype(np.float32)
        self.vectors = dict(zip(self.pictures, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True))
        shuffled = random.permutation(samples).tolist()
        cut = [shuffled[start::parts] for start in range(parts)] + [self.controls]
        roles = ["training"] * parts + ["control"]
        ingest = write_images(
            self.lake, [[(s, role, encode_png(self.pictures[s])) for s in part] for part, role in zip(cut, roles, strict=True)]
        )
        self._sizes(ingest, cut, roles)
        embed = write_embeddings(self.lake, [
            [row | {"thumbnail": thumbnail(self.pictures[row["sample_id"]])}
             for row in embedding_rows(part, np.stack([self.vectors[s] for s in part]), role=role)]
            for part, role in zip(cut, roles, strict=True)
        ], ingest.snapshot_id)  # fmt: skip
        sizes = {name: sum(one == name for one in self.group_of.values()) for name in self.first}
        self.lake.write("duplicate_groups", "groups0", 0, [
            {"sample_id": s, "group_id": name, "size": sizes[name], "representative": self.first[name], "lowest_cosine": 1.0,
             "diameter": 0, "identical_to": None} for s, name in self.group_of.items()
        ])  # fmt: skip
        self.made = []
        for number in range(generations):
            name = sorted(self.first)[number % len(self.first)]
            crop = best_crop(np.zeros((*frame, 3), np.uint8), self.pictures[self.first[name]])[1]
            noise = random.integers(-15, 16, crop.shape)
            made = (
                (crop + noise).clip(0, 255).astype(np.uint8)
                if number % 3
                else picture(9000 + number, frame.width, frame.height)
            )
            self.made.append((f"prompt {number:02d}", name if number % 5 else None, made))
        self.lake.write("prompts", "audit0", 0, [self._prompt(number, *one[:2]) for number, one in enumerate(self.made)])
        self.lake.write("generations", "audit0", 0, [self._generation(name, made) for name, _, made in self.made])
        self.snapshots = Snapshots(ingest.snapshot_id, embed.snapshot_id, "groups0", "audit0")

    def _sizes(self, ingest, cut, roles):
        for number, _part in enumerate(cut):
            rows = read_parquet(self.lake.part("images", ingest.snapshot_id, number)).to_pylist()
            for row in rows:
                row["height"], row["width"] = self.pictures[row["sample_id"]].shape[:2]
            self.lake.write("images", ingest.snapshot_id, number, rows)

    def _prompt(self, number, name, group):
        control = number % 4 == 3
        return {
            **AUDIT, "prompt_id": name, "text": name, "origin": "control" if control else "duplicates",
            "sample_id": self.controls[number % 4] if control else None, "group_id": None if control else group,
            "n_duplicates": None, "stratum": "1", "stratum_order": 0, "inclusion_probability": 1.0, "images_requested": 1,
        }  # fmt: skip

    def _generation(self, name, made):
        return {
            **AUDIT, "prompt_id": name, "sample_index": 0, "seed": 1, "status": "success", "reason": None, "in_clique": False,
            "own_l2": None, "nearest": True, "image": encode_png(made), "thumbnail": thumbnail(made), "width": self.frame.width,
            "height": self.frame.height, "steps": None, "guidance_scale": None, "seconds": 0.0, "device": None, "dtype": None,
        }  # fmt: skip

    def round(self, neighbours=8, block=5, name="stored"):
        return Round(self.lake, self.snapshots, "match0", name, (Task("generations", 0),), self.frame, neighbours, block)

    def index(self):
        """The directory, made."""
        made = Directory(self.lake, "groups0")
        made.write(self.snapshots.ingest, self.snapshots.embed)
        write_own(self.lake, "match0", "audit0", made)
        return made

    def vectors_made(self):
        """What CLIP would say: vectors near those of what each generation was made of, None of one."""
        random = np.random.default_rng(3)
        vectors = []
        for number, (_, group, _) in enumerate(self.made):
            vector = random.normal(size=DIMENSIONS) * 0.1 + (self.vectors[self.first[group]] if group else 0)
            vectors.append(None if number == 7 else (vector / np.linalg.norm(vector)).astype(np.float32).tolist())
        return vectors

    def embedded(self, round):
        """What the step with CLIP would leave."""
        vectors = self.vectors_made()
        columns = {
            "place": list(range(len(self.made))), "vector": vectors,
            "thumbnail": [thumbnail(made) for _, _, made in self.made],
            "control": [number % 4 == 3 for number in range(len(self.made))],
        }  # fmt: skip
        write_parquet(round.file("queries", 0, "parquet"), pa.table(columns, schema=SCHEMA))
        return vectors

    def run(self, round, rows=7, embed=None):
        """All steps but CLIP's, unless ``embed`` takes it; the rows of ``matches``."""
        execution = Execution(self.lake, [])
        self.index()
        (embed or self.embedded)(round)
        execution.run(lambda pipeline: build_search(pipeline, round, rows))
        parts = merge(round)
        execution.run(lambda pipeline: build_gathering(pipeline, round, parts))

        class Job:
            lake, snapshots, measure, audit = self.lake, self.snapshots, MEASURE, AUDIT

        execution.run(lambda pipeline: build(pipeline, Job, round))
        return self.lake.read("matches", "match0").to_pylist()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "lake", [1, 2, 1, 3, 1, 1, 5, 1, 1, 2, 1, 1])


def test_the_directory_knows_every_image(world):
    made = world.index()
    rows = [row for total in made.totals() for row in made.part(total["part"]).to_pylist()]
    assert {row["sample_id"] for row in rows} == set(world.pictures)
    assert {row["sample_id"] for row in rows if row["representative"]} == {*world.first.values(), *world.controls}
    for row in rows:
        path = world.lake.paths("images", world.snapshots.ingest)[directory.part_of(row["code"])]
        assert read_parquet(path)["sample_id"][row["code"] & LAST_ROW].as_py() == row["sample_id"]
        height, width = world.pictures[row["sample_id"]].shape[:2]
        assert row["aspect"] == width / height
    large = [name for name in world.first if list(world.group_of.values()).count(name) > 1]
    members = made.members([*large, "group 0000", "nowhere"])
    assert set(members) == set(large)
    for name, some in members.items():
        assert {sample for _, sample in some} == {sample for sample, group in world.group_of.items() if group == name}
        assert some[0][1] == world.first[name], "the representative comes first"
    codes = {row["sample_id"]: row["code"] for row in rows}
    assert made.codes(["000000", *world.controls]) == {one: codes[one] for one in ["000000", *world.controls]}
    first = codes[world.first["group 0003"]]
    assert made.rows([first])[first]["group_id"] == "group 0003"
    own = {row["prompt_id"]: row for row in read_parquet(own_file(world.lake, "match0", 0)).to_pylist()}
    for name, group, _ in world.made:
        if own[name]["origin"] == "control":
            assert own[name]["own_sample"] == own[name]["sample_id"]
        else:
            assert own[name]["own_sample"] == (world.first[group] if group else None)


def test_of_a_large_group_so_many_members_and_its_representative_are_listed(world, monkeypatch):
    monkeypatch.setattr(directory, "MAX_MEMBERS", 3)
    made = world.index()
    (some,) = made.members(["group 0006"]).values()
    assert len(some) == 3 and some[0][1] == world.first["group 0006"]


def test_decoys_are_drawn_by_hash_alone(world):
    made = world.index()
    drawn = [row["sample_id"] for row in made.drawn("left_out", "training", 4)]
    assert drawn == sorted(world.first.values(), key=lambda sample: digest("decoy", "left_out", sample))[:4]
    assert {row["sample_id"] for row in made.drawn("held_out", "control", 9)} == set(world.controls)


def test_pictures_of_several_tasks_are_searched_for_together(world, monkeypatch):
    sizes = [2, 0, 3, 1, 9, 1]
    round = dataclasses.replace(world.round(), tasks=tuple(Task("generations", number) for number in range(len(sizes))))

    def read(_, number, role, space):
        rows = np.arange(sizes[number])
        return candidates.Queries(100 * number + rows, np.full((len(rows), 2), number, np.float32))

    monkeypatch.setattr(candidates, "read_queries", read)
    monkeypatch.setattr(candidates, "QUERIES_AT_ONCE", 4)
    found = list(candidates.SearchChunk(round)._queries("training", "clip"))
    assert [one.numbers.tolist() for one in found] == [[0, 1, 200, 201, 202], [300, *range(400, 409)], [500]]
    assert all((one.vectors[:, 0] == one.numbers // 100).all() for one in found)


def test_candidates_are_the_nearest_by_either(world):
    round = world.round(neighbours=3)
    world.index()
    vectors = world.embedded(round)
    Execution(world.lake, []).run(lambda pipeline: build_search(pipeline, round, 4))
    merge(round)
    rows = read_parquet(candidates_file(round, 0)).to_pylist()
    codes = Directory(world.lake, "groups0").codes(world.pictures)
    tiny = {s: np.frombuffer(thumbnail(p), np.uint8).astype(float) / 255 for s, p in world.pictures.items()}
    squares = {s for s, p in world.pictures.items() if p.shape[0] == p.shape[1]}
    for place, (_, _, made) in enumerate(world.made):
        mine = [row for row in rows if row["query"] & ((1 << PLACE_BITS) - 1) == place and row["role"] == "training"]
        by_clip = {row["code"] for row in mine if row["found_by"] in ("clip", "both")}
        if vectors[place] is None:
            assert not by_clip
        else:
            cosine = {s: float(np.dot(world.vectors[s], vectors[place])) for s in world.first.values()}
            nearest = sorted(cosine, key=lambda s: -cosine[s])[:3]
            assert by_clip == {codes[s] for s in nearest}
            assert {row["code"]: row["cosine"] for row in mine if row["cosine"] is not None} == pytest.approx(
                {codes[s]: cosine[s] for s in nearest}, abs=1e-5
            )
        # Of what isn't square the windows are near to the crops, and no more: the nearest square one is surely there.
        asked = np.frombuffer(thumbnail(made), np.uint8).astype(float) / 255
        nearest = min(squares & set(world.first.values()), key=lambda s: ((asked - tiny[s]) ** 2).mean())
        found = {row["code"]: row["apart"] for row in mine if row["found_by"] in ("thumbnail", "both")}
        assert len(found) == 3
        if codes[nearest] in found:
            assert found[codes[nearest]] == pytest.approx(np.sqrt(((asked - tiny[nearest]) ** 2).mean()), abs=1e-3)
        controls = [row for row in rows if row["query"] & ((1 << PLACE_BITS) - 1) == place and row["role"] == "control"]
        assert bool(controls) == (place % 4 == 3)


@pytest.mark.parametrize(("block", "rows"), [(1, 1), (5, 4), (100, 100)])
def test_rows_do_not_depend_on_how_it_is_cut(tmp_path, block, rows):
    uncut = World(tmp_path / "whole", [1, 2, 1, 3, 1, 1], parts=1)
    whole = uncut.run(uncut.round(block=1000), rows=1000)
    other = World(tmp_path / "cut", [1, 2, 1, 3, 1, 1], parts=4)
    found = other.run(other.round(block=block), rows=rows)
    key = lambda row: (row["prompt_id"], row["role"], row["group_id"])  # noqa: E731
    assert sorted(map(key, found)) == sorted(map(key, whole))
    by_key = {key(row): row for row in whole}
    for row in found:
        for name, value in row.items():
            assert value == pytest.approx(by_key[key(row)][name], abs=1e-6) if isinstance(value, float) else True


@pytest.fixture(params=FRAMES, ids="{0.height}x{0.width}".format)
def framed(request, tmp_path):
    """The same with generations of each size."""
    return World(tmp_path / "lake", [1, 2, 1, 3, 1, 1, 5, 1, 1, 2, 1, 1], frame=request.param)


def test_matches_are_those_of_brute_force(framed):
    world = framed
    rows = world.run(world.round(neighbours=50))
    by_prompt = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    for number, (name, group, made) in enumerate(world.made):

        def nearest_to(samples, made=made):
            return min(float(l2(made, best_crop(made, world.pictures[s])[1])) for s in samples)

        mine = by_prompt[name]
        own = [row for row in mine if row["relation"] == "own"]
        if number % 4 == 3:
            assert own[0]["sample_id"] == world.controls[3]
            assert own[0]["l2"] == pytest.approx(nearest_to([world.controls[3]]), abs=1e-6)
        elif group:
            members = [s for s, one in world.group_of.items() if one == group]
            assert own[0]["l2"] == pytest.approx(nearest_to(members), abs=1e-6)
        else:
            assert not own
        foreign = {one: nearest_to([first]) for one, first in world.first.items() if number % 4 == 3 or one != group}
        found = [row for row in mine if row["relation"] == "neighbour" and row["role"] == "training"]
        assert min(foreign, key=lambda one: foreign[one]) in {row["group_id"] for row in found}
        expected = sorted(foreign.values())[:5]
        for row in own:
            assert row["n_others"] == 5 and row["adaptive_l2"] == pytest.approx(row["l2"] / (0.5 * np.mean(expected)), rel=1e-4)


def test_a_round_that_was_broken_off_goes_on(world):
    round = world.round()
    rows = world.run(round)
    path = world.lake.part("matches", "match0", 0)
    delete(path)
    assert world.run(round) == rows


def test_the_recall_of_the_candidates_is_measured(framed):
    world = framed
    world.run(world.round(neighbours=50))
    sampled = sampled_rows(world.lake, "match0")
    assert len(sampled) == len(world.made)
    path = world.lake.work("match", "match0", "nearest.parquet")
    parts = [0, 1, 2]
    Execution(world.lake, []).run(
        lambda pipeline: pipeline | beam.Create(parts) | NearestOfAll(world.lake, world.snapshots, "match0", path)
    )
    found = {row["key"]: list(zip(row["distances"], row["groups"], strict=True)) for row in read_parquet(path).to_pylist()}
    for row, (_, _, made) in zip(sorted(sampled, key=lambda row: row["key"]), world.made, strict=True):
        middle = {name: float(coarse_l2(block_means(made, COARSE), central_crop(world.pictures[first], world.frame)))
                  for name, first in world.first.items()}  # fmt: skip
        nearest = min(middle.values())
        # What brute force leaves out can't be nearer than the candidates.
        assert min([nearest, row["nearest"]]) == pytest.approx(
            min([*(distance for distance, _ in found.get(row["key"], [])), row["nearest"]]), abs=1e-5
        )
    told = recall(sampled, found)
    assert told["nearest"] == told["next"] == 1.0 and told["sampled"] == len(world.made)
    # Without the nearest among the candidates the recall falls.
    worse = [{**row, "nearest": row["nearest"] + 0.5, "next": row["next"] + 0.5} for row in sampled]
    all_found = {row["key"]: [(row["nearest"], "a"), (row["next"], "b")] for row in sampled}
    assert recall(worse, all_found)["nearest"] == 0.0


def damaged(content):
    """A picture with a bit turned over where no decoder forgives it."""
    return content[:1] + bytes([content[1] ^ 1]) + content[2:]


@pytest.mark.parametrize("place", [1, 3])
def test_a_damaged_picture_is_near_to_nothing_and_a_row_says_so(world, tmp_path, place):
    whole = World(tmp_path / "whole", [1, 2, 1, 3, 1, 1, 5, 1, 1, 2, 1, 1])
    expected = whole.run(whole.round(neighbours=50))
    groups = sorted(world.first)
    lost, member = (
        world.first[groups[place]],
        next(s for s, g in world.group_of.items() if g == groups[6] and s != world.first[g]),
    )
    for path in world.lake.paths("images", world.snapshots.ingest).values():
        rows = read_parquet(path).to_pylist()
        for row in rows:
            if row["sample_id"] in (lost, member):
                row["image"] = damaged(row["image"])
        write_parquet(path, pa.Table.from_pylist(rows, schema=read_parquet(path).schema))
    made = read_parquet(world.lake.part("generations", "audit0", 0)).to_pylist()
    made[-1]["image"] = damaged(made[-1]["image"])
    world.lake.write("generations", "audit0", 0, made)
    found = world.run(world.round(neighbours=50))

    seen = {(one["source"], one["sample_id"], one["prompt_id"]) for one in noted(world.lake, "match0")}
    last = made[-1]["prompt_id"]
    assert {("images", lost, None), ("generations", None, last)} <= seen <= {
        ("images", lost, None), ("images", member, None), ("generations", None, last)
    }  # fmt: skip
    assert {one["status"] for one in noted(world.lake, "match0")} == {"failed_to_decode"}
    assert all(one["reason"].startswith("cannot decode the picture") for one in noted(world.lake, "match0"))
    assert all(row["sample_id"] not in (lost, member) and row["prompt_id"] != last for row in found)
    # Of a group of one nothing is left; the others of a larger one are still compared.
    key = lambda row: (row["prompt_id"], row["role"], row["group_id"])  # noqa: E731
    assert sum(row["group_id"] == groups[place] for row in found) == 0 or place == 1
    kept = {key(row): row for row in expected if row["group_id"] not in (groups[place], groups[6]) and row["relation"] == "own"}
    mine = {key(row): row for row in found}
    assert all(mine[one]["l2"] == row["l2"] for one, row in kept.items() if row["prompt_id"] != last)

    # And for those that count afterwards.
    k = counted(world)
    plain = counted(whole)
    assert k.keys() == plain.keys() and k[lost] is None
    twin = world.first[groups[6]]  # the damaged member is no more counted for its group
    assert (k[twin], plain[twin]) == (4, 5)
    assert {one: number for one, number in k.items() if one not in (lost, twin)} == {
        one: number for one, number in plain.items() if one not in (lost, twin)
    }
    assert {one["sample_id"] for one in noted(world.lake, "match0")} == {lost, member, None}


def targets(world):
    codes = Directory(world.lake, "groups0").codes(world.pictures)
    # Beside those of the generations' size some of another one: an audit may have several.
    frames = [world.frame if number % 3 else Frame(40, 24) for number in range(len(world.first))]
    return [
        {"sample_id": first, "code": codes[first], "offset": 0, **frame._asdict()}
        for first, frame in zip(world.first.values(), frames, strict=True)
    ]


def counted(world):
    """sample_id → k of the first image of each group, as ``match`` writes it."""
    path = world.lake.work("match", "match0", "targets.parquet")
    write_parquet(path, pa.Table.from_pylist(targets(world)))
    counting = CountMemories(world.lake, "match0", world.snapshots, path, 0, 0.1, AUDIT)
    Execution(world.lake, []).run(lambda pipeline: pipeline | beam.Create([0, 1, 2]) | counting)
    return {row["sample_id"]: row["k"] for row in world.lake.read("eidetic_counts", "match0").to_pylist()}


@pytest.mark.parametrize("broken", ["when embedded", "when compared"])
def test_a_generation_that_breaks_between_two_steps_moves_no_other(world, tmp_path, broken):
    """Whichever step can't decode it, the others keep their own candidates; and it has no row, rather than half of one."""
    whole = World(tmp_path / "whole", [1, 2, 1, 3, 1, 1, 5, 1, 1, 2, 1, 1])
    expected = whole.run(whole.round(neighbours=2))
    sound = read_parquet(world.lake.part("generations", "audit0", 0)).to_pylist()
    hurt = [{**row, "image": damaged(row["image"])} if number in (0, 6, 13) else row for number, row in enumerate(sound)]
    at_first, later = (hurt, sound) if broken == "when embedded" else (sound, hurt)

    class Encoder:
        def encode(self, pictures):
            known = {thumbnail(made): vector for (_, _, made), vector in zip(world.made, world.vectors_made(), strict=True)}
            return np.array([known[thumbnail(np.asarray(one))] or [np.nan] * DIMENSIONS for one in pictures], np.float32)

    def embed(round):
        world.lake.write("generations", "audit0", 0, at_first)
        (made,) = EmbedTaskHandler(None, round).run_inference([(0, round.tasks[0])], Encoder())
        write_parquet(round.file("queries", 0, "parquet"), made.inference[0])
        world.lake.write("generations", "audit0", 0, later)

    found = world.run(world.round(neighbours=2), embed=embed)
    lost = {world.made[number][0] for number in (0, 6, 13)}
    assert found == [row for row in expected if row["prompt_id"] not in lost]
    assert {one["prompt_id"] for one in noted(world.lake, "match0")} == lost


def test_on_a_device_that_is_short_of_memory_all_are_embedded_in_smaller_batches(world, tmp_path, monkeypatch):
    clip = ClipModel(write_tiny_clip(tmp_path / "clip"), batch_size=16)
    round = world.round()
    world.index()

    def embed(encoder):
        (made,) = EmbedTaskHandler(clip, round).run_inference([(0, round.tasks[0])], encoder)
        return made.inference[0]["vector"].to_pylist()

    enough = embed(clip.load())
    assert len(enough) == len(world.made) == 24 and None not in enough
    encoder = EmbedTaskHandler(clip, round).load_model()
    sizes = short_of_memory(monkeypatch, encoder._model, "encode_image", 5)
    for _ in range(2):
        assert np.array(embed(encoder)) == pytest.approx(np.array(enough), abs=1e-5)
    # What was learned holds for the next task.
    assert sizes == [16, 8, *[4] * 12] and encoder.batch_size == 4


def test_k_is_that_of_the_plain_count(framed):
    world = framed
    world.index()
    found = counted(world)
    for target in targets(world):
        frame = Frame(target["height"], target["width"])
        crop = crop_at(covering(world.pictures[target["sample_id"]], frame), frame, 0)
        expected = sum(
            any(
                float(l2(crop, crop_at(resized, frame, offset))) <= 0.1
                for resized in [covering(world.pictures[sample], frame)]
                for offset in range(room(resized, frame) + 1)
            )
            for sample in world.group_of
        )
        assert found[target["sample_id"]] == expected >= 1


@pytest.mark.parametrize("exact_thumbnails", [100, 1000])
def test_through_cells_nearly_all_are_found(tmp_path, monkeypatch, exact_thumbnails):
    """As all compared, for what is near; far neighbours may differ, but by thumbnail where all of those are compared."""
    world = World(tmp_path / "lake", [1] * 400, parts=4, generations=40)
    round = world.round(neighbours=8)
    world.index()
    world.embedded(round)
    execution = Execution(world.lake, [])
    execution.run(lambda pipeline: build_search(pipeline, round, 1000))
    merge(round)
    exact = read_parquet(candidates_file(round, 0)).to_pylist()
    monkeypatch.setattr(tasks, "EXACT_UP_TO", 100)
    monkeypatch.setattr(candidates, "GROUPS_PER_CELL", 20)
    monkeypatch.setattr(candidates, "VISITED", 120)
    through = dataclasses.replace(world.round(neighbours=8, name="through"), exact_thumbnails=exact_thumbnails)
    world.embedded(through)
    execution.run(lambda pipeline: build_search(pipeline, through, 90))
    merge(through)
    found = read_parquet(candidates_file(through, 0)).to_pylist()
    for space in (CLIP, THUMBNAIL):

        def of(rows, space=space):
            name = "cosine" if space == CLIP else "apart"
            near = {}
            for row in rows:
                if row["role"] == "training" and row[name] is not None:
                    value = -row[name] if space == CLIP else row[name]
                    near.setdefault(row["query"], []).append((value, row["code"]))
            return {query: min(some)[1] for query, some in near.items()}

        one, other = of(exact), of(found)
        assert one.keys() == other.keys()
        assert np.mean([one[query] == other[query] for query in one]) >= 0.9
    if exact_thumbnails == 1000:
        assert by_thumbnail(exact) == by_thumbnail(found)


def by_thumbnail(rows):
    found = [row for row in rows if row["role"] == "training" and row["apart"] is not None]
    return {(row["query"], row["code"], row["apart"]) for row in found}


def test_parts_go_together_up_to_so_many_groups():
    of_parts = [("training", 5), ("training", 4), ("training", 3), ("control", 2)]
    totals = [{"part": part, "role": role, "groups": groups, "images": 9} for part, (role, groups) in enumerate(of_parts)]
    assert [chunk.parts for chunk in chunks(totals, "training", 9, (CLIP,))] == [(0, 1), (2,)]
    assert [chunk.parts for chunk in chunks(totals, "training", 1, (CLIP,))] == [(0,), (1,), (2,)]
    assert chunks(totals, "control", 9, (CLIP, THUMBNAIL)) == [Chunk(0, "control", (3,), (CLIP, THUMBNAIL))]
    assert chunks(totals, "training", 9, ()) == []


def test_what_was_gathered_is_opened_by_block(world):
    round = world.round(block=3)
    world.run(round)
    rows = read_parquet(candidates_file(round, 0)).to_pylist()
    for block in range(-(-len(world.made) // 3)):
        wanted = {row["code"] for row in rows if (row["query"] & ((1 << PLACE_BITS) - 1)) // 3 == block}
        parts = sorted({directory.part_of(code) for code in wanted})
        found = read_block(round, block, parts)
        assert set(found) == wanted
        for one in found.values():
            assert encode_png(world.pictures[one.sample_id]) == one.image.as_py()
