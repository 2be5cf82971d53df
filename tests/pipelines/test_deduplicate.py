"""The verb deduplicate: its snapshot, its errors, and the default threshold on the embedded corpus."""

import datetime
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import deduplicate, embed
from pipelines.cli import run_verb
from pipelines.deduplicate import DeduplicateOptions
from pipelines.device import DeviceOptions
from pipelines.embed import EmbedOptions
from pipelines.execution import Execution
from pipelines.options import Parsed
from tests.planted import clusters, embedding_rows, picture, write_embeddings, write_images
from transforms.data.images import ImageStore
from transforms.duplicates import Search, compare, search
from transforms.kernels import cells as kernel
from transforms.store.files import read_parquet
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png, thumbnail
from transforms.store.schema import TABLES

MODEL = Path(__file__).resolve().parents[2] / "demo" / "models" / "clip"


@pytest.fixture
def lake(tmp_path):
    made = Lake(str(tmp_path / "lake"))
    vectors, _ = clusters([1, 3])
    write_embeddings(made, [embedding_rows(list("abcd"), vectors)])
    return made


def test_the_manifest_counts_pairs_and_groups(lake):
    manifest = deduplicate.STAGE.run(Execution(lake, []), Parsed.of(DeduplicateOptions()))
    rows = {"duplicate_pairs": 3, "duplicate_groups": 4, "group_sizes": 20, "sampled_pairs": 6, "keep_list": 2}
    assert manifest.rows == rows
    assert manifest.facts["share_removed"] == 0.5
    assert manifest.upstream == {"embed": lake.latest("embed").snapshot_id}
    assert deduplicate.STAGE.run(Execution(lake, []), Parsed.of(DeduplicateOptions())) == manifest


def test_another_threshold_is_another_snapshot(lake):
    embed_id = lake.latest("embed").snapshot_id
    usual = deduplicate.plan(lake, Parsed.of(DeduplicateOptions()), embed_id)
    assert (usual.items, usual.unit) == (4, "vectors")
    assert (
        deduplicate.plan(lake, Parsed.of(DeduplicateOptions()), lake.latest("embed").snapshot_id).snapshot_id
        == usual.snapshot_id
    )
    assert deduplicate.plan(lake, Parsed.of(DeduplicateOptions(0.5)), embed_id).snapshot_id != usual.snapshot_id
    # It numbers the parts: a restart with other blocks must not take the parts of this one for its own.
    assert deduplicate.plan(lake, Parsed.of(DeduplicateOptions(block_rows=1)), embed_id).snapshot_id != usual.snapshot_id
    assert deduplicate.plan(lake, Parsed.of(DeduplicateOptions()), "not there yet").items is None


def test_the_command_line(lake):
    assert run_verb(deduplicate.main, [f"--lake={lake.root}", "--duplicate_threshold=0.5"]) == 0
    assert lake.latest("deduplicate").parameters["duplicate_threshold"] == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--duplicate_threshold=1"], "--duplicate_threshold is 1.0, expected -1 to under 1"),
        (["--duplicate_threshold=nan"], "--duplicate_threshold is nan, expected -1 to under 1"),
        (["--block_rows=0"], "--block_rows is 0, expected 1 or more"),
        (["--thumbnail_share=1.5"], "--thumbnail_share is 1.5, expected 0 to 1"),
        (["--thumbnail_share=0.5"], "4 vectors without a thumbnail of 192 bytes: "),
        (["--recall=1"], "--recall is 1.0, expected between 0 and 1"),
        (["--pixel_band=nan"], "--pixel_band is nan, expected 0 or more"),
        (["--linkage=average"], "argument --linkage: invalid choice: 'average'"),
        (["--keep_one=nothing"], "argument --keep_one: invalid choice: 'nothing'"),
        (["--threshold=0.9"], "unknown option '--threshold=0.9'"),
    ],
)
def test_mistakes_are_one_line(lake, capsys, words, message):
    assert run_verb(deduplicate.main, [f"--lake={lake.root}", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("eidetic: ") and message in said
    assert lake.manifests("deduplicate") == []


def test_vectors_that_lie_end_with_exit_code_2(tmp_path, capsys):
    lake = Lake(str(tmp_path / "other"))
    write_embeddings(lake, [embedding_rows(["a"], 2 * clusters([1])[0])])
    assert run_verb(deduplicate.main, [f"--lake={lake.root}"]) == 2
    assert "sample_id a, norm 2" in capsys.readouterr().err
    assert lake.manifests("deduplicate") == []


def test_a_lake_without_embeddings_says_what_to_run(tmp_path, capsys):
    lake = Lake(str(tmp_path / "other"))
    write_images(lake, [])
    assert run_verb(deduplicate.main, [f"--lake={lake.root}"]) == 2
    assert "run 'eidetic embed' first" in capsys.readouterr().err


def test_the_default_threshold_finds_every_copy_and_no_lookalike(tmp_path):
    """On the embedded corpus at a small size, with the embedded CLIP: all re-encodings and resizes, no two logos."""
    from demo import corpus

    corpus.build(tmp_path / "site", "http://site", scale=0.06)
    rows = pq.read_table(tmp_path / "site" / "truth.parquet").to_pylist()
    faulty = set(corpus.FAULTS) | {"control", "cropped"}
    images, slug_of = [], {}
    for number, row in enumerate(row for row in rows if row["kind"] not in faulty):
        sample = f"{(7919 * number) % 10007:05d}"
        content = (tmp_path / "site" / row["URL"].removeprefix("http://site/")).read_bytes()
        stored = Image.open(io.BytesIO(content)).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
        images.append((sample, "training", encode_png(stored)))
        slug_of[sample] = row["slug"]
    lake = Lake(str(tmp_path / "lake"))
    write_images(lake, [images[::2], images[1::2]])
    execution = Execution(lake, [])
    embed.STAGE.run(execution, Parsed.of(EmbedOptions(clip_model=str(MODEL)), DeviceOptions("cpu")))
    manifest = deduplicate.STAGE.run(execution, Parsed.of(DeduplicateOptions()))
    pairs = lake.read("duplicate_pairs", manifest.snapshot_id).to_pylist()
    found = {(row["sample_id_a"], row["sample_id_b"]) for row in pairs}
    planted = {(a, b) for a in slug_of for b in slug_of if a < b and slug_of[a] == slug_of[b]}
    assert len(planted) > 1000
    assert found == planted


# -- night after night ------------------------------------------------------------------------------------------------


def night(lake, ids, vectors, ingest, parts=2, **options):
    """One night's run over these images, cut into parts in another order than the night before."""
    order = np.random.default_rng(len(ids)).permutation(len(ids))
    rows = embedding_rows([ids[place] for place in order], vectors[order])
    embedded = write_embeddings(lake, [rows[start::parts] for start in range(parts)], ingest)
    return deduplicate.STAGE.run(Execution(lake, []), Parsed.of(DeduplicateOptions(**{"block_rows": 200, **options})), embedded)


def results(lake, manifest):
    """pairs → cosine, and sample_id → what is said of its group."""
    pairs = lake.read("duplicate_pairs", manifest.snapshot_id).to_pylist()
    groups = lake.read("duplicate_groups", manifest.snapshot_id).to_pylist()
    found = {(row["sample_id_a"], row["sample_id_b"]): round(row["cosine"], 6) for row in pairs}
    assert len(found) == len(pairs)
    return found, {row["sample_id"]: {**row, "lowest_cosine": round(row["lowest_cosine"], 6)} for row in groups}


def planted(count=600):
    sizes = np.minimum(np.random.default_rng(3).zipf(1.8, count), 30)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), count))].tolist()
    vectors, _ = clusters(sizes, dimensions=48, noise=0.035, seed=4)
    return [f"{(7919 * number) % 10007:05d}" for number in range(len(vectors))], vectors


@pytest.mark.parametrize("options", [{}, {"linkage": "complete"}])
def test_three_nights_are_one_full_run(tmp_path, options):
    ids, vectors = planted()
    lake, fresh = Lake(str(tmp_path / "lake")), Lake(str(tmp_path / "fresh"))
    n = len(ids)
    first = night(lake, ids[: 3 * n // 5], vectors[: 3 * n // 5], "monday", **options)
    second = night(lake, ids[: 4 * n // 5], vectors[: 4 * n // 5], "tuesday", parts=3, **options)
    third = night(lake, ids, vectors, "wednesday", **options)
    assert first.upstream.keys() == {"embed"} and second.upstream["deduplicate"] == first.snapshot_id
    assert third.facts["built_on"] == [first.snapshot_id, second.snapshot_id]
    assert third.facts["new_vectors"] == n - 4 * n // 5
    full = night(fresh, ids, vectors, "wednesday", **options)
    assert full.facts["built_on"] == [] and len(results(fresh, full)[0]) > 1000
    assert results(lake, third) == results(fresh, full)
    for name in ("pairs", "vectors", "share_removed", "recall"):
        assert third.facts[name] == full.facts[name]
    assert third.rows["keep_list"] == full.rows["keep_list"]
    assert lake.read("group_sizes", third.snapshot_id) == fresh.read("group_sizes", full.snapshot_id)


def test_with_the_same_cells_two_nights_are_one_full_run(tmp_path, monkeypatch):
    """What cells find depends on the cells, so the full run is given those of the first night."""
    monkeypatch.setattr(kernel, "EACH_ASSIGNMENT", 0)
    ids, vectors = planted()
    n = len(ids)
    lake, fresh = Lake(str(tmp_path / "lake")), Lake(str(tmp_path / "fresh"))
    options = {"exact_up_to": 0, "recall": 0.9}
    first = night(lake, ids[: 2 * n // 3], vectors[: 2 * n // 3], "monday", **options)
    second = night(lake, ids, vectors, "tuesday", **options)
    assert first.facts["method"] == second.facts["method"] == "cells"
    assert second.facts["built_on"] == [first.snapshot_id]
    cells = search.Cells.read(Search(lake, "", first.snapshot_id))
    choice = kernel.Choice(cells.quantiser, cells.assignments, cells.margin, 1.0)
    monkeypatch.setattr(kernel, "choose", lambda *_: choice)
    full = night(fresh, ids, vectors, "tuesday", **options)
    assert full.facts["built_on"] == [] and len(results(fresh, full)[0]) > 1000
    assert results(lake, second) == results(fresh, full)
    assert second.facts["recall"] == full.facts["recall"]


def test_a_crowd_that_grew_overnight_takes_its_members_pairs(tmp_path):
    near = clusters([3], noise=0.02)[0]
    crowd = np.repeat(near[:1], 150, axis=0)
    ids = [f"{number:03d}" for number in range(152)]
    vectors = np.concatenate([near[1:], crowd])
    lake, fresh = Lake(str(tmp_path / "lake")), Lake(str(tmp_path / "fresh"))
    # 80 of them are no crowd, and have a row for each two.
    first = night(lake, ids[:82], vectors[:82], "monday")
    assert first.rows["duplicate_pairs"] == first.facts["pairs"] == 82 * 81 // 2
    second = night(lake, ids, vectors, "tuesday")
    full = night(fresh, ids, vectors, "tuesday")
    assert second.facts["built_on"] == [first.snapshot_id]
    assert second.facts["pairs"] == full.facts["pairs"] == 152 * 151 // 2
    # Which of the crowd tells of it is another matter: last night's, or the one whose digest is the smallest.
    assert second.rows["duplicate_pairs"] == full.rows["duplicate_pairs"] == 3
    third = night(lake, [*ids, "999"], np.concatenate([vectors, near[:1]]), "wednesday")
    assert third.facts["built_on"][-1] == second.snapshot_id and third.facts["pairs"] == 153 * 152 // 2
    assert results(lake, third)[0] == results(lake, second)[0]
    assert {row["size"] for row in results(lake, third)[1].values()} == {153}


def test_what_changed_or_went_away_starts_anew(tmp_path):
    ids, vectors = planted()
    lake = Lake(str(tmp_path / "lake"))
    night(lake, ids[:300], vectors[:300], "monday")
    # Another vector under an id that was there: the pairs of the night before don't hold.
    changed = vectors[:400].copy()
    changed[0] = vectors[500]
    second = night(lake, ids[:400], changed, "tuesday")
    assert second.facts["built_on"] == [] and "1 vectors of the night before are gone or changed" in second.facts["why_anew"]
    # Fewer images: nothing to build on.
    third = night(lake, ids[10:400], vectors[10:400], "wednesday")
    assert third.upstream.keys() == {"embed"} and third.facts["new_vectors"] == 390
    # And when the images have become more than twice as many.
    fourth = night(lake, ids[10:400] + [f"x{one}" for one in ids], np.concatenate([vectors[10:400], vectors]), "thursday")
    assert fourth.facts["built_on"] == [] and "more than twice the 390" in fourth.facts["why_anew"]
    assert fourth.facts["new_vectors"] == fourth.facts["vectors"] == 390 + len(ids)


def test_another_rule_of_keeping_compares_nothing_again(tmp_path):
    ids, vectors = planted()
    lake = Lake(str(tmp_path / "lake"))
    first = night(lake, ids, vectors, "monday")
    second = deduplicate.STAGE.run(Execution(lake, []), Parsed.of(DeduplicateOptions(block_rows=200, keep_one="first")))
    assert second.snapshot_id != first.snapshot_id and second.facts["new_vectors"] == 0
    assert results(lake, first) == results(lake, second)
    anew = deduplicate.STAGE.run(
        Execution(lake, []), Parsed.of(DeduplicateOptions(block_rows=200, keep_one="first", incremental=False))
    )
    assert anew.upstream.keys() == {"embed"} and results(lake, anew) == results(lake, first)


# -- the keep list ----------------------------------------------------------------------------------------------------

KEPT = {
    "highest_resolution": {"c", "x"},
    "lowest_pwatermark": {"b", "x"},
    "most_central": {"m", "x"},
    "first": {"a", "x"},
}


@pytest.mark.parametrize("rule", KEPT)
def test_one_of_each_group_is_kept(tmp_path, rule):
    angles = np.radians([0, 9, 11, 17, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    lake = Lake(str(tmp_path / "lake"))
    lake.create()
    #        row, width, height, pwatermark
    known = {
        "a": (1, 100, 100, 0.9),
        "m": (3, 90, 90, 0.5),
        "b": (2, 50, 50, 0.1),
        "c": (4, 300, 200, None),
        "x": (0, 1, 1, 0.9),
    }
    samples = [
        {
            **dict.fromkeys(TABLES["samples"].schema.names),
            "sample_id": sample, "role": "training", "url": f"http://{sample}", "occurrence": 0, "source_file": "f",
            "source_row": row, "status": "success", "original_width": width, "original_height": height,
            "pwatermark": pwatermark, "drift": "unknown", "ingested_at": datetime.datetime.now(datetime.UTC),
        }
        for sample, (row, width, height, pwatermark) in known.items()
    ]  # fmt: skip
    lake.write("samples", "taken", 0, samples)
    write_embeddings(lake, [embedding_rows(list("ambcx"), vectors)], "taken")
    manifest = deduplicate.STAGE.run(Execution(lake, []), Parsed.of(DeduplicateOptions(keep_one=rule)))
    kept = lake.read("keep_list", manifest.snapshot_id).to_pylist()
    assert {row["sample_id"] for row in kept} == KEPT[rule]
    assert {(row["url"], row["group_id"], row["size"]) for row in kept} == {
        (f"http://{min(KEPT[rule])}", "a", 4), ("http://x", "x", 1),
    }  # fmt: skip
    assert manifest.facts["share_removed"] == pytest.approx(3 / 5)


# -- the second opinion -----------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """A lake with a picture, a re-encoded and cropped copy of it, and another picture; their vectors call all three alike."""
    one, other = (
        np.asarray(Image.fromarray(picture(seed, 64, 64)).resize((96, 96), Image.Resampling.BICUBIC)) for seed in (1, 2)
    )
    copy = Image.fromarray(one).crop((4, 4, 92, 92)).resize((80, 80), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    copy.save(buffer, "JPEG", quality=80)
    contents = [encode_png(one), buffer.getvalue(), encode_png(other), b"no picture"]
    lake = Lake(str(tmp_path / "lake"))
    taken = write_images(lake, [[(name, "training", content) for name, content in zip("abcd", contents, strict=True)]])
    angles = np.radians([0, 20, -20, 5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    write_embeddings(lake, [embedding_rows(list("abcd"), vectors)], taken.snapshot_id)
    return lake


def test_pixels_say_which_pairs_near_the_threshold_are_copies(pictures):
    manifest = deduplicate.STAGE.run(Execution(pictures, []), Parsed.of(DeduplicateOptions()))
    rows = {(row["sample_id_a"], row["sample_id_b"]): row for row in
            pictures.read("duplicate_pairs", manifest.snapshot_id).to_pylist()}  # fmt: skip
    assert rows.keys() == {("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")}
    assert rows["a", "b"]["pixels_agree"] is True and rows["a", "b"]["pixel_distance"] < 0.05
    assert rows["a", "c"]["pixels_agree"] is False and rows["a", "c"]["pixel_distance"] > 0.1
    # Nobody can look at what is no picture, and nobody looks where CLIP is sure.
    for pair in (("a", "d"), ("b", "d"), ("c", "d")):
        assert rows[pair]["pixels_agree"] is None and rows[pair]["pixel_distance"] is None
    assert {row["size"] for row in pictures.read("duplicate_groups", manifest.snapshot_id).to_pylist()} == {4}
    sampled = pictures.read("sampled_pairs", manifest.snapshot_id).to_pylist()
    assert {(row["sample_id_a"], row["sample_id_b"]): row["pixels_agree"] for row in sampled if "d" not in
            (row["sample_id_a"], row["sample_id_b"])} == {
        ("a", "b"): True, ("b", "a"): True, ("a", "c"): False, ("c", "a"): False
    }  # fmt: skip


def test_pixels_may_decide(pictures):
    manifest = deduplicate.STAGE.run(
        Execution(pictures, []), Parsed.of(DeduplicateOptions(duplicate_threshold=0.93, pixels_decide=True))
    )
    groups = pictures.read("duplicate_groups", manifest.snapshot_id).to_pylist()
    assert {row["sample_id"]: row["group_id"] for row in groups} == {"a": "a", "b": "a", "c": "c", "d": "a"}


def test_thumbnails_tell_apart_what_clip_finds_alike(pictures):
    embed = pictures.latest("embed")
    part = pictures.part("embeddings", embed.snapshot_id, 0)
    rows = read_parquet(part).to_pylist()
    store = ImageStore(pictures, pictures.latest("ingest").snapshot_id, embed.snapshot_id)
    for row in rows[:3]:
        row["thumbnail"] = thumbnail(Image.fromarray(store.get(row["sample_id"])))
    pictures.write("embeddings", embed.snapshot_id, 0, [*rows[:3], rows[3] | {"status": "failed_to_decode", "reason": "none"}])
    share, found = 0.5, {}
    options = DeduplicateOptions(duplicate_threshold=0.8, thumbnail_share=share, pixel_band=0)
    manifest = deduplicate.STAGE.run(Execution(pictures, []), Parsed.of(options))
    for row in pictures.read("duplicate_pairs", manifest.snapshot_id).to_pylist():
        found[row["sample_id_a"], row["sample_id_b"]] = row["cosine"]
    # The copy, whose angle to the picture is 20 degrees, and not the other picture, which is as near by CLIP.
    assert found.keys() == {("a", "b")}
    tiny = [np.frombuffer(row["thumbnail"], np.uint8).astype(float) for row in rows[:2]]
    assert found["a", "b"] == pytest.approx((1 - share) * np.cos(np.radians(20)) + share * np.corrcoef(*tiny)[0, 1], abs=1e-5)


def test_nobody_looks_without_a_band(pictures):
    manifest = deduplicate.STAGE.run(Execution(pictures, []), Parsed.of(DeduplicateOptions(pixel_band=0)))
    for table in ("duplicate_pairs", "sampled_pairs"):
        assert {row["pixels_agree"] for row in pictures.read(table, manifest.snapshot_id).to_pylist()} == {None}


def crowd(tmp_path, contents):
    """A lake of pictures that CLIP finds all alike: the cosines lie between 0.98 and 1."""
    names = [f"{number:02d}" for number in range(len(contents))]
    lake = Lake(str(tmp_path / "lake"))
    taken = write_images(lake, [[(name, "training", content) for name, content in zip(names, contents, strict=True)]])
    angles = np.radians(np.linspace(0, 10, len(names)))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    write_embeddings(lake, [embedding_rows(names, vectors)], taken.snapshot_id)
    return lake


def test_a_threshold_over_which_all_is_alike_is_refused_before_millions_are_looked_at(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "MOST_LOOKS", 700)
    monkeypatch.setattr(compare, "LOOKS_OF_A_PICTURE", 30)
    looked = []
    distances = compare.SecondOpinion.distances
    monkeypatch.setattr(
        compare.SecondOpinion, "distances", lambda self, one, *rest: looked.append(len(one)) or distances(self, one, *rest)
    )
    lake = crowd(tmp_path, [encode_png(picture(seed, 16, 16)) for seed in range(40)])
    words = [f"--lake={lake.root}"]
    assert run_verb(deduplicate.main, words) == 2
    (told,) = capsys.readouterr().err.splitlines()[-1:]
    assert "some 780 pairs are over --duplicate_threshold 0.9, 39 of each picture, and of 64 the pixels of 64 disagree" in told
    # Ten degrees over 39 steps: three of each picture are no more than 1.5 steps away, or at 0.99996 and more.
    assert "choose a higher threshold (over 1.000 are 3 of each), --thumbnail_share 0.5 beside it, or --pixel_band 0" in told
    assert looked == [64] and not lake.manifests("deduplicate")
    assert run_verb(deduplicate.main, [*words, "--pixel_band=0"]) == 0
    # Few enough in all, or of each.
    for name, value in (("MOST_LOOKS", 780), ("LOOKS_OF_A_PICTURE", 39)):
        with monkeypatch.context() as patched:
            patched.setattr(compare, name, value)
            assert run_verb(deduplicate.main, [*words, f"--duplicate_seed={value}"]) == 0
    # What is compared, once in each of the two runs.
    assert looked.count(780) == 2


def test_a_crowd_of_copies_is_no_reason_to_refuse(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "MOST_LOOKS", 200)
    monkeypatch.setattr(compare, "LOOKS_OF_A_PICTURE", 15)
    copies = [picture(1, 16, 16).copy() for _ in range(24)]
    for number, copy in enumerate(copies):
        copy[number // 8, number % 8] ^= 8
    lake = crowd(tmp_path, [encode_png(copy) for copy in copies])
    assert run_verb(deduplicate.main, [f"--lake={lake.root}"]) == 0
    (size,) = {row["size"] for row in lake.read("duplicate_groups", lake.latest("deduplicate").snapshot_id).to_pylist()}
    assert size == 24
