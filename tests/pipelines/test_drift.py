"""Is it the picture that LAION had? Known by its cosine with the caption, where the metadata have LAION's similarity."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import sql
from demo import corpus
from pipelines import deduplicate, embed, ingest
from pipelines.cli import run_verb
from pipelines.execution import Execution
from tests.fakes import fake_lake, rewrite
from tests.servers import ROOT
from tests.web import serve
from transforms.attacks.prompts import drawn_prompts
from transforms.data.embedding import EmbedImages, OpenClipHandler
from transforms.models.clip import ClipModel, OpenClipEncoder
from transforms.results import marts
from transforms.store.lake import Lake
from transforms.store.scan import ask, connect

CLIP = str(ROOT / "demo" / "models" / "clip")
PICTURES = 120
EXCHANGED = set(range(5, PICTURES, 12))
"""Of which another picture is there now."""


# -- of real pictures, through the verbs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logos():
    return [logo for logo, _ in corpus.split(0.5)[0]][:PICTURES]


@pytest.fixture(scope="module")
def pictures(logos):
    return [corpus.draw(logo, 64) for logo in logos]


@pytest.fixture(scope="module")
def encoder():
    return ClipModel(CLIP, batch_size=32).load()


@pytest.fixture(scope="module")
def audited(logos, pictures, encoder, tmp_path_factory):
    """A lake of pictures whose metadata say the cosine that they had with their captions; two captions have none."""
    folder = tmp_path_factory.mktemp("drift")
    captions = [logo.caption for logo in logos]
    claimed = np.einsum("nd,nd->n", encoder.encode(pictures), encoder.encode_texts(captions)).tolist()
    there = [pictures[(number + 31) % PICTURES if number in EXCHANGED else number] for number in range(PICTURES)]
    for number in (0, 1):
        there.append(Image.new("RGB", (64, 64), (number, 0, 0)))
        captions.append(f"x{number}")
        claimed.append(None)
    with serve() as web:
        for number, one in enumerate(there):
            # Encoded anew, as a host does it.
            content = io.BytesIO()
            one.save(content, "JPEG", quality=90)
            web.answer(f"/{number}.jpg", content.getvalue())
        urls = [f"{web.url}/{number}.jpg" for number in range(len(there))]
        metadata = pa.table({"URL": urls, "TEXT": captions, "similarity": pa.array(claimed, pa.float64())})
        pq.write_table(metadata, folder / "metadata.parquet")
        lake = Lake(str(folder / "lake"))
        words = [f"--lake={lake.root}", f"--metadata={folder}/metadata.parquet", "--image_size=64", "--allow_private_hosts"]
        assert run_verb(ingest.main, [*words, "--encode_format=png", "--rows_per_part=50", "--timeout=60"]) == 0
    return lake


def embedded(lake, *words):
    assert run_verb(embed.main, [f"--lake={lake.root}", f"--clip_model={CLIP}", "--device=cpu", *words]) == 0
    manifest = lake.latest("embed")
    return manifest, lake.read("embeddings", manifest.snapshot_id).to_pylist()


@pytest.fixture(scope="module")
def compared(audited, logos):
    """(manifest of embed, its rows by number of the picture)"""
    manifest, rows = embedded(audited, "--compare_captions")
    captions = {logo.caption: number for number, logo in enumerate(logos)}
    samples = audited.read("samples", manifest.upstream["ingest"]).to_pylist()
    numbers = {row["sample_id"]: captions.get(row["caption"]) for row in samples}
    return manifest, {numbers[row["sample_id"]]: row for row in rows if numbers[row["sample_id"]] is not None}


def test_pictures_that_were_exchanged_are_found_and_no_others(audited, compared):
    manifest, rows = compared
    tables = {"samples": manifest.upstream["ingest"], "embeddings": manifest.snapshot_id}
    (rule,) = ask(audited, tables, sql.read("staging", "drift_rule"))
    assert rule == manifest.facts["captions"] and rule["compared"] == PICTURES and rule["power"] >= 0.98
    claimed = {row["sample_id"]: row["similarity"] for row in audited.read("samples", tables["samples"]).to_pylist()}
    gaps = {number: row["caption_cosine"] - claimed[row["sample_id"]] for number, row in rows.items()}
    assert {number for number, gap in gaps.items() if gap < rule["lowest_gap"]} == EXCHANGED


def test_cosines_are_those_of_float64(audited, compared, encoder, logos):
    _, rows = compared
    texts = encoder.encode_texts([logo.caption for logo in logos]).astype(np.float64)
    for number, row in rows.items():
        vector = np.array(row["vector"], np.float64)
        assert row["caption_cosine"] == pytest.approx(vector @ texts[number], abs=1e-5)
        # Of another caption of the same part, whichever.
        assert np.abs(texts @ vector - row["other_caption_cosine"]).min() < 1e-5
        assert abs(texts[number] @ vector - row["other_caption_cosine"]) > 1e-4


def test_the_size_of_batches_changes_rounding_only(audited, compared):
    _, rows = compared
    os.remove(audited.path("manifests", "embed", f"{audited.latest('embed').snapshot_id}.json"))
    for path in audited.parts("embeddings", compared[0].snapshot_id):
        os.remove(path)
    again, found = embedded(audited, "--compare_captions", "--clip_batch_size=7")
    assert again.snapshot_id == compared[0].snapshot_id
    by_sample = {row["sample_id"]: row for row in found}
    for row in rows.values():
        for name in ("caption_cosine", "other_caption_cosine"):
            assert row[name] == pytest.approx(by_sample[row["sample_id"]][name], abs=1e-5)


def test_what_has_no_similarity_has_no_cosine_and_without_the_option_nothing_has(audited, compared):
    assert {row["caption_cosine"] is None for row in compared[1].values()} == {False}
    rows = audited.read("embeddings", compared[0].snapshot_id).to_pylist()
    assert sum(row["caption_cosine"] is None for row in rows) == sum(row["other_caption_cosine"] is None for row in rows) == 2
    manifest, rows = embedded(audited)
    assert manifest.snapshot_id != compared[0].snapshot_id and "captions" not in manifest.facts
    assert {(row["caption_cosine"], row["other_caption_cosine"]) for row in rows} == {(None, None)}


def test_without_similarities_clip_reads_no_caption(tmp_path, monkeypatch):
    fake, read = fake_lake(tmp_path), []
    monkeypatch.setattr(OpenClipEncoder, "encode_texts", lambda self, texts: read.append(texts))
    handler = OpenClipHandler(ClipModel(CLIP), fake.lake, fake.ingest.snapshot_id, compare_captions=True)
    numbers = list(fake.lake.paths("images", fake.ingest.snapshot_id))
    Execution(fake.lake, []).run(lambda pipeline: embed.build(pipeline, numbers, EmbedImages(handler, "e")))
    rows = fake.lake.read("embeddings", "e").to_pylist()
    assert {row["status"] for row in rows} == {"success"} and read == []
    assert {(row["caption_cosine"], row["other_caption_cosine"]) for row in rows} == {(None, None)}


def test_prompts_are_drawn_of_those_that_are_still_there(audited, compared, logos, monkeypatch):
    said = []
    monkeypatch.setattr(embed, "say", said.append)
    embedded(audited, "--compare_captions")
    assert f"{PICTURES} pictures were compared with their captions" in said[0] and "the mart drift says which" in said[0]
    words = [f"--lake={audited.root}", "--duplicate_threshold=0.999"]
    assert run_verb(deduplicate.main, words) == 0
    texts = {
        skip: {row["text"] for row in drawn_prompts(
            audited, audited.latest("deduplicate"), max_prompts=1000, images_per_prompt=1, base_seed=0, skip_changed=skip
        ).rows}
        for skip in (False, True)
    }  # fmt: skip
    exchanged = {logos[number].caption for number in EXCHANGED}
    assert len(texts[False]) >= PICTURES - len(EXCHANGED)
    # A picture that stands where another one was is a copy of it, and the group may be asked for by its own caption.
    assert texts[True] & exchanged == set() and {"x0", "x1"} & texts[False] == {"x0", "x1"} & texts[True]
    assert texts[False] & exchanged


# -- the rule ---------------------------------------------------------------------------------------------------------


def rule_of(fake):
    with connect() as connection:
        marts.make(connection, fake.lake, fake.match, "marts/drift")
        rule = connection.table("drift_rule").to_arrow_table().to_pylist()
        return rule[0], connection.table("drift").to_arrow_table().to_pylist()


def planted(tmp_path, gaps, others, drifts=None, similarity=0.25):
    """A lake with one training picture for each gap."""
    fake = fake_lake(tmp_path, sizes=[1] * len(gaps), urls=[f"https://a.example/{n}" for n in range(len(gaps))], controls=0)
    ids = sorted(row["sample_id"] for row in fake.rows("embeddings") if row["role"] == "training")
    cosine = dict(zip(ids, gaps, strict=True))
    other = dict(zip(ids, others, strict=True))
    drift = dict(zip(ids, drifts or ["unknown"] * len(ids), strict=True))
    rewrite(fake, "samples", lambda rows: [
        row | {"similarity": similarity, "drift": drift.get(row["sample_id"], "unknown")} for row in rows
    ])  # fmt: skip
    rewrite(fake, "embeddings", lambda rows: [
        row | {
            "caption_cosine": None if cosine.get(row["sample_id"]) is None else similarity + cosine[row["sample_id"]],
            "other_caption_cosine": None if other.get(row["sample_id"]) is None else similarity + other[row["sample_id"]],
        }
        for row in rows
    ])  # fmt: skip
    return fake


@pytest.mark.parametrize("spread", [0.002, 0.03])
def test_the_rule_is_that_of_numpy(tmp_path, spread):
    random = np.random.default_rng(0)
    gaps = np.float32(random.normal(0.02, spread, 150))
    gaps[::10] -= 0.3
    others = np.float32(random.normal(-0.2, 0.05, 150))
    rule, found = rule_of(planted(tmp_path, gaps.tolist(), others.tolist()))
    # As float32 has them, which is what the lake stores.
    wide = np.float64(np.float32(0.25 + gaps) - np.float32(0.25))
    middle = np.median(wide)
    lowest = middle - max(5 * 1.4826 * np.median(np.abs(wide - middle)), 0.05)
    power = (np.float64(np.float32(0.25 + others) - np.float32(0.25)) < lowest).mean()
    assert rule["compared"] == 150 and rule["power"] == pytest.approx(power, abs=0.01)
    assert (rule["lowest_gap"] is None) == (power < 0.9)
    if rule["lowest_gap"] is None:
        assert found == []
    else:
        assert rule["lowest_gap"] == pytest.approx(lowest, abs=1e-6)
        assert [(row["changed"], row["unchanged"], row["by_similarity"]) for row in found] == [(15, 135, 150)]


def test_a_clip_that_sees_nothing_says_nothing(tmp_path):
    """Its cosines are as high with any caption."""
    gaps = np.random.default_rng(1).normal(0, 0.02, 120).tolist()
    rule, found = rule_of(planted(tmp_path, gaps, gaps[::-1]))
    assert rule["power"] < 0.1 and rule["lowest_gap"] is None and found == []


def test_few_pictures_say_nothing(tmp_path):
    rule, found = rule_of(planted(tmp_path, [0.0] * 99, [-0.3] * 99))
    assert (rule["compared"], rule["power"], rule["lowest_gap"], found) == (99, 1, None, [])


def test_nothing_that_was_compared_says_nothing(tmp_path):
    rule, found = rule_of(planted(tmp_path, [None] * 3, [None] * 3))
    assert (rule["compared"], rule["power"], rule["lowest_gap"], found) == (0, None, None, [])


def test_a_digest_is_asked_first(tmp_path):
    gaps = [0.0] * 110 + [-0.2] * 10
    drifts = ["changed"] * 2 + ["unknown"] * 108 + ["unchanged"] * 3 + ["unknown"] * 7
    _, (row,) = rule_of(planted(tmp_path, gaps, [-0.3] * 120, drifts))
    assert (row["changed"], row["unchanged"], row["unknown"], row["by_similarity"]) == (9, 111, 0, 115)
