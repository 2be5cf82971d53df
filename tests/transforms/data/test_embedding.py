"""Vectors are what open_clip itself gives, whatever else is in the batch; what has none is a row with a reason."""

import io
import weakref

import apache_beam as beam
import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.execution import Execution
from tests.planted import picture, planted_pictures, write_images, write_tiny_clip
from transforms.data import embedding
from transforms.data.embedding import EmbedImages, OpenClipHandler
from transforms.errors import UserError
from transforms.models.clip import ClipModel, OpenClipEncoder, read_vectors, unit_norm
from transforms.models.processes import Devices
from transforms.store.files import read_parquet
from transforms.store.lake import Lake
from transforms.store.pictures import thumbnail


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


def pictures(count):
    return [Image.fromarray(picture(seed, width=32 + seed)) for seed in range(count)]


# -- the encoder ------------------------------------------------------------------------------------------------------


def test_vectors_are_open_clips_own(clip_folder):
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    with torch.inference_mode():
        batch = torch.stack([preprocess(one) for one in pictures(5)])
        expected = model.eval().encode_image(batch, normalize=True).numpy()
    found = ClipModel(clip_folder, batch_size=5).load().encode(pictures(5))
    assert found.dtype == np.float32 and found.shape == (5, 16)
    assert np.abs(found - expected).max() < 1e-6
    assert np.abs(np.linalg.norm(found.astype(np.float64), axis=1) - 1).max() < 1e-6
    assert len({vector.tobytes() for vector in found}) == 5


def test_a_vector_does_not_depend_on_its_neighbours(clip_folder):
    encoder = ClipModel(clip_folder, batch_size=4).load()
    together = encoder.encode(pictures(7))
    assert (encoder.encode(pictures(7)[4:]) == together[4:]).all()
    assert (encoder.encode(pictures(5)) == together[:5]).all()
    assert encoder.encode([]).shape[0] == 0


def test_every_batch_is_filled_up_to_the_same_size(clip_folder, monkeypatch):
    """Larger models than this one have kernels that are chosen by shape."""
    encoder = ClipModel(clip_folder, batch_size=4).load()
    shapes = []
    real = encoder._model.encode_image
    monkeypatch.setattr(encoder._model, "encode_image", lambda batch: shapes.append(batch.shape) or real(batch))
    assert encoder.encode(pictures(6)).shape == (6, 16)
    assert shapes == [(4, 3, 32, 32)] * 2


def test_batch_size_changes_rounding_only(clip_folder):
    one, many = (ClipModel(clip_folder, batch_size=size).load().encode(pictures(6)) for size in (1, 64))
    assert np.abs(one - many).max() < 1e-5


def test_preprocessing_reads_the_same_in_every_process(clip_folder):
    printed = ClipModel(clip_folder).load().preprocessing
    assert "Resize(size=32" in printed and "Normalize(mean=" in printed
    assert "0x" not in printed and "\n" not in printed


def test_what_has_no_direction_is_nan():
    found = unit_norm(np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [1e-30, 0]], np.float32))
    assert found.dtype == np.float32
    assert found[[0, 4]].tolist() == [[np.float32(0.6), np.float32(0.8)], [1, 0]]
    assert np.isnan(found[1:4]).all()


# -- which model ------------------------------------------------------------------------------------------------------


def test_a_model_is_known_by_its_content(tmp_path):
    here, there = write_tiny_clip(tmp_path / "here"), write_tiny_clip(tmp_path / "elsewhere" / "moved")
    other = write_tiny_clip(tmp_path / "other", seed=1)
    identity = ClipModel(here).identity()
    assert ClipModel(there).identity() == ClipModel(f"local-dir:{there}", "a tag").identity() == identity
    assert ClipModel(other).identity() != identity
    weights = tmp_path / "here" / "open_clip_model.safetensors"
    name, digest = ClipModel("ViT-B-32", str(weights)).identity()
    assert name == "ViT-B-32" and digest.startswith("sha256:")
    assert ClipModel("ViT-B-32", "laion2b_s34b_b79k").identity() == ("ViT-B-32", "laion2b_s34b_b79k")


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (ClipModel("local-dir:/nowhere"), "there is no folder '/nowhere'"),
        (ClipModel("ViT-B-33", "openai"), "did you mean 'ViT-B-32'"),
        (ClipModel("ViT-B-32"), "needs weights"),
        (ClipModel("RN50", "no_such_tag"), "open_clip cannot load 'RN50' with weights 'no_such_tag'"),
    ],
)
def test_a_model_that_is_not_there_is_said_in_one_line(clip, message):
    with pytest.raises(UserError, match=message) as caught:
        clip.load()
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model_is_said(tmp_path, clip_folder):
    (tmp_path / "open_clip_config.json").write_text("{}")
    for call in (ClipModel(str(tmp_path)).identity, ClipModel(str(tmp_path)).load):
        with pytest.raises(UserError, match="is not an open_clip model: it needs"):
            call()
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="open_clip cannot load"):
        ClipModel(str(tmp_path)).load()
    with pytest.raises(UserError, match="there is no file"):
        ClipModel("ViT-B-32", "weights/none.safetensors").identity()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_an_error(clip_folder):
    with pytest.raises(UserError, match="--device cuda was asked for and there is no GPU"):
        ClipModel(clip_folder, device="cuda").load()


# -- through Beam -----------------------------------------------------------------------------------------------------


def embed(tmp_path, clip_folder, parts, batch_size=3):
    lake = Lake(str(tmp_path / "lake"))
    ingest = write_images(lake, parts)
    handler = OpenClipHandler(ClipModel(clip_folder, batch_size=batch_size), lake, ingest.snapshot_id)
    numbers = list(range(len(parts)))
    Execution(lake, []).run(lambda pipeline: pipeline | beam.Create(numbers) | "EmbedImages" >> EmbedImages(handler, "e"))
    return lake


def test_every_picture_has_its_row_in_the_part_of_its_image(tmp_path, clip_folder):
    parts = [planted_pictures(7), [], planted_pictures(2, "control", first=7)]
    parts[0].insert(2, ("broken", "training", b"<html>"))
    lake = embed(tmp_path, clip_folder, parts)
    for number, part in enumerate(parts):
        rows = read_parquet(lake.part("embeddings", "e", number)).to_pylist()
        assert [(row["sample_id"], row["role"]) for row in rows] == [(sample, role) for sample, role, _ in part]
        for row, (_, _, content) in zip(rows, part, strict=True):
            assert {row["model"], row["pretrained"]} == set(ClipModel(clip_folder).identity())
            if row["sample_id"] == "broken":
                assert (row["status"], row["vector"], row["thumbnail"]) == ("failed_to_decode", None, None)
                assert row["reason"].startswith("cannot decode the picture")
            else:
                alone = ClipModel(clip_folder, batch_size=3).load().encode([Image.open(io.BytesIO(content))])[0]
                assert (row["status"], row["reason"]) == ("success", None)
                assert row["vector"] == alone.tolist()
                assert row["thumbnail"] == thumbnail(Image.open(io.BytesIO(content)))


def test_rows_do_not_depend_on_the_threads_that_prepare_them(tmp_path, clip_folder, monkeypatch):
    parts = [planted_pictures(30)]
    parts[0].insert(11, ("broken", "training", b"<html>"))
    found = []
    for threads, ahead in ((1, 0), (8, 3)):
        monkeypatch.setattr(embedding, "THREADS", threads)
        monkeypatch.setattr(embedding, "cores", lambda threads=threads: threads)
        monkeypatch.setattr(embedding, "AHEAD", ahead)
        found.append(embed(tmp_path / str(threads), clip_folder, parts).read("embeddings", "e"))
    assert found[0].equals(found[1]) and found[0]["sample_id"].to_pylist() == [sample for sample, _, _ in parts[0]]


def test_a_model_that_gives_no_direction_makes_error_rows(tmp_path, clip_folder, monkeypatch):
    real = OpenClipEncoder.encode_prepared

    def second_is_nothing(self, prepared):
        vectors = real(self, prepared)
        if len(vectors) > 1:
            vectors[1] = np.nan
        return vectors

    monkeypatch.setattr(OpenClipEncoder, "encode_prepared", second_is_nothing)
    lake = embed(tmp_path, clip_folder, [planted_pictures(3)])
    rows = lake.read("embeddings", "e").to_pylist()
    assert [row["status"] for row in rows] == ["success", "failed_to_embed", "success"]
    assert rows[1]["vector"] is None and rows[1]["reason"] and len(rows[2]["vector"]) == 16


def test_parts_that_exist_are_left_alone(tmp_path, clip_folder):
    lake = Lake(str(tmp_path / "lake"))
    sentinel = lake.write("embeddings", "e", 0, [])
    parts = [planted_pictures(2), planted_pictures(2, first=2)]
    embed(tmp_path, clip_folder, parts)
    assert read_parquet(sentinel).num_rows == 0
    assert lake.count("embeddings", "e") == 2


def test_vectors_are_read_by_role_and_success(tmp_path, clip_folder):
    parts = [planted_pictures(3), [("broken", "training", b"")], planted_pictures(2, "control", first=3)]
    lake = embed(tmp_path, clip_folder, parts)
    ids, vectors = read_vectors(lake, "e", [0, 1, 2], "training")
    assert ids.tolist() == [sample for sample, _, _ in parts[0]] and vectors.shape == (3, 16)
    ids, vectors = read_vectors(lake, "e", [2], "control")
    assert ids.tolist() == [sample for sample, _, _ in parts[2]] and vectors.dtype == np.float32
    ids, vectors = read_vectors(lake, "e", [1], "training")
    assert len(ids) == len(vectors) == 0


def test_the_handler_takes_one_part_at_a_time_and_its_model_can_be_shared(tmp_path, clip_folder):
    handler = OpenClipHandler(ClipModel(clip_folder), Lake(str(tmp_path)), "i")
    assert handler.batch_elements_kwargs()["max_batch_size"] == 1
    model = handler.load_model()
    assert weakref.ref(model)() is model


@pytest.mark.parametrize("accelerator", [None, "type:nvidia-tesla-t4;count:1;install-nvidia-driver"])
def test_a_gpu_is_asked_for_only_where_the_model_runs(tmp_path, clip_folder, accelerator):
    handler = OpenClipHandler(ClipModel(clip_folder), Lake(str(tmp_path)), "i")
    pipeline = beam.Pipeline("FnApiRunner")
    _ = pipeline | "Parts" >> beam.Create([0]) | "EmbedImages" >> EmbedImages(handler, "e", Devices(("cpu",), accelerator))
    components = pipeline.to_runner_api().components
    environments = {
        name for name, one in components.environments.items() if "beam:resources:accelerator:v1" in one.resource_hints
    }
    hinted = {one.unique_name for one in components.transforms.values() if one.environment_id in environments}
    if accelerator is None:
        assert not hinted
    else:
        # The writer too: with another environment the vectors would travel between two workers.
        assert any(name.endswith("BeamML_RunInference") for name in hinted)
        assert any("WriteEmbeddings" in name for name in hinted)
        assert not any("SkipWritten" in name or "Parts" in name.split("/")[0] for name in hinted)
