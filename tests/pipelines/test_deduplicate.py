"""The verb deduplicate: its snapshot, its errors, and the default threshold on the embedded corpus."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import deduplicate, embed
from pipelines.cli import run_verb
from pipelines.deduplicate import DeduplicateOptions
from pipelines.device import DeviceOptions
from pipelines.embed import EmbedOptions
from pipelines.stage import Execution
from tests.planted import clusters, embedding_rows, write_embeddings, write_images
from transforms.images import encode_png
from transforms.lake import Lake

MODEL = Path(__file__).resolve().parents[2] / "demo" / "models" / "clip"


@pytest.fixture
def lake(tmp_path):
    made = Lake(str(tmp_path / "lake"))
    vectors, _ = clusters([1, 3])
    write_embeddings(made, [embedding_rows(list("abcd"), vectors)])
    return made


def test_the_manifest_counts_pairs_and_groups(lake):
    manifest = deduplicate.run(Execution(lake, []), DeduplicateOptions())
    rows = {"duplicate_pairs": 3, "duplicate_groups": 4, "group_sizes": 10, "sampled_pairs": 6, "keep_list": 2}
    assert manifest.rows == rows
    assert manifest.facts["share_removed"] == 0.5
    assert manifest.upstream == {"embed": lake.latest("embed").snapshot_id}
    assert deduplicate.run(Execution(lake, []), DeduplicateOptions()) == manifest


def test_another_threshold_is_another_snapshot(lake):
    embed_id = lake.latest("embed").snapshot_id
    usual = deduplicate.stage(lake, DeduplicateOptions(), embed_id)
    assert (usual.items, usual.unit) == (4, "vectors")
    assert deduplicate.stage(lake, DeduplicateOptions(), lake.latest("embed")).snapshot_id == usual.snapshot_id
    assert deduplicate.stage(lake, DeduplicateOptions(0.5), embed_id).snapshot_id != usual.snapshot_id
    # It numbers the parts: a restart with other blocks must not take the parts of this one for its own.
    assert deduplicate.stage(lake, DeduplicateOptions(block_rows=1), embed_id).snapshot_id != usual.snapshot_id
    assert deduplicate.stage(lake, DeduplicateOptions(), "not there yet").items is None


def test_the_command_line(lake):
    assert run_verb(deduplicate.main, [f"--lake={lake.root}", "--duplicate_threshold=0.5"]) == 0
    assert lake.latest("deduplicate").parameters["duplicate_threshold"] == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--duplicate_threshold=1"], "--duplicate_threshold is 1.0, expected a cosine"),
        (["--duplicate_threshold=nan"], "--duplicate_threshold is nan, expected a cosine"),
        (["--block_rows=0"], "--block_rows is 0, expected 1 or more"),
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
    embed.run(execution, EmbedOptions(clip_model=str(MODEL)), DeviceOptions("cpu"))
    manifest = deduplicate.run(execution, DeduplicateOptions())
    pairs = lake.read("duplicate_pairs", manifest.snapshot_id).to_pylist()
    found = {(row["sample_id_a"], row["sample_id_b"]) for row in pairs}
    planted = {(a, b) for a in slug_of for b in slug_of if a < b and slug_of[a] == slug_of[b]}
    assert len(planted) > 1000
    assert found == planted
