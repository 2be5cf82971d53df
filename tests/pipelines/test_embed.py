"""The verb embed: its snapshot, its restart, its errors."""

import concurrent.futures
import os
import shutil
import threading
import types

import pytest
import torch
from huggingface_hub import constants

from pipelines import deduplicate, embed
from pipelines.cli import run_verb
from pipelines.device import DeviceOptions
from pipelines.embed import EmbedOptions
from pipelines.execution import Execution
from pipelines.options import Parsed
from tests.models import short_of_memory
from tests.planted import planted_pictures, write_images, write_tiny_clip
from transforms.data.images import ImageStore
from transforms.errors import UserError
from transforms.models.clip import ClipModel, OpenClipEncoder
from transforms.models.devices import in_batches
from transforms.store.lake import Lake
from transforms.store.pictures import decode

CPU = DeviceOptions(device="cpu")
TAG = EmbedOptions().clip_pretrained


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture
def lake(tmp_path):
    made = Lake(str(tmp_path / "lake"))
    write_images(made, [planted_pictures(4), [*planted_pictures(2, "control", first=4), ("broken", "training", b"")]])
    return made


def run(lake, clip_folder, **options):
    return embed.STAGE.run(
        Execution(lake, [], device=CPU), Parsed.of(EmbedOptions(clip_model=clip_folder, clip_batch_size=3, **options), CPU)
    )


def test_every_image_has_a_row_and_the_manifest_says_what_became_of_them(lake, clip_folder):
    manifest = run(lake, clip_folder)
    assert manifest.rows == {"embeddings": 7}
    assert manifest.upstream == {"ingest": lake.latest("ingest").snapshot_id}
    assert manifest.facts["status"] == {"success": 6, "failed_to_decode": 1}
    assert (manifest.facts["device"], manifest.facts["clip_model"]) == ("cpu", clip_folder)


def test_a_complete_stage_loads_no_model(lake, clip_folder, monkeypatch):
    first = run(lake, clip_folder)
    monkeypatch.setattr(ClipModel, "load", lambda self: pytest.fail("loaded again"))
    assert run(lake, clip_folder) == first


def test_a_killed_run_keeps_its_finished_parts(lake, clip_folder):
    manifest = run(lake, clip_folder)
    whole = lake.read("embeddings", manifest.snapshot_id)
    os.remove(lake.path("manifests", "embed", f"{manifest.snapshot_id}.json"))
    kept, lost = lake.parts("embeddings", manifest.snapshot_id)
    os.remove(lost)
    written = os.stat(kept).st_mtime_ns
    assert run(lake, clip_folder).snapshot_id == manifest.snapshot_id
    assert os.stat(kept).st_mtime_ns == written
    assert lake.read("embeddings", manifest.snapshot_id).equals(whole)


def test_the_snapshot_is_named_by_what_shapes_the_rows(lake, clip_folder, tmp_path):
    ingest = lake.latest("ingest").snapshot_id

    def named(folder, device=CPU, ingest=ingest, **options):
        return embed.plan(lake, Parsed.of(EmbedOptions(clip_model=folder, **options), device), ingest).snapshot_id

    usual = named(clip_folder)
    moved = str(tmp_path / "moved")
    shutil.copytree(clip_folder, moved)
    assert named(moved) == named(clip_folder, clip_batch_size=7) == named(clip_folder, DeviceOptions("cuda")) == usual
    assert named(write_tiny_clip(tmp_path / "other", seed=1)) != usual
    assert named(clip_folder, ingest="another") != usual
    assert named("ViT-B-32") != named("ViT-B-32", clip_pretrained="openai")


def test_the_plan_counts_images_and_learns_what_they_cost(lake, clip_folder, tmp_path):
    parsed = Parsed.of(EmbedOptions(clip_model=clip_folder), CPU)
    planned = embed.plan(lake, parsed, lake.latest("ingest").snapshot_id)
    assert (planned.items, planned.unit) == (7, "images")
    assert embed.plan(lake, parsed, "not there yet").items is None
    assert embed.cost(lake, parsed, "CLIP", 7).seconds is None
    facts = run(lake, clip_folder).facts
    assert embed.cost(lake, parsed, "CLIP", 14).seconds == pytest.approx(2 * facts["seconds"] * facts["cores"])
    other = Parsed.of(EmbedOptions(clip_model=write_tiny_clip(tmp_path / "other", seed=1)), CPU)
    assert embed.cost(lake, other, "CLIP", 14).seconds is None


def test_match_gets_the_model_that_made_the_vectors(lake, tmp_path):
    folder = write_tiny_clip(tmp_path / "clip")
    manifest = run(lake, folder)
    clip = embed.encoder(manifest, CPU)
    assert clip == ClipModel(folder, EmbedOptions().clip_pretrained, "cpu", 3)
    write_tiny_clip(tmp_path / "clip", seed=1)
    with pytest.raises(UserError, match="is not the one that 'eidetic embed' ran with"):
        embed.encoder(manifest, CPU)


def test_without_images_nothing_is_loaded_and_nothing_goes_on(tmp_path, clip_folder, monkeypatch):
    monkeypatch.setattr(ClipModel, "load", lambda self: pytest.fail("loaded"))
    lake = Lake(str(tmp_path / "lake"))
    write_images(lake, [])
    with pytest.raises(UserError, match=r"no picture was embedded .there was none., so there is nothing to audit"):
        run(lake, clip_folder)
    assert lake.latest("embed").rows == {"embeddings": 0}
    with pytest.raises(UserError, match="no training picture has a vector, so there is nothing to group"):
        deduplicate.STAGE.run(Execution(lake, []), Parsed.of())


def test_pictures_of_which_none_can_be_decoded_end_the_audit(tmp_path, clip_folder):
    lake = Lake(str(tmp_path / "lake"))
    write_images(lake, [[(f"{number:032x}", "training", b"no picture") for number in range(2)]])
    with pytest.raises(UserError, match=r"no picture was embedded .failed_to_decode 2; most often .*no format.*, 2."):
        run(lake, clip_folder)


def test_the_command_line(lake, clip_folder, capsys):
    words = [f"--lake={lake.root}", f"--clip_model={clip_folder}", "--device=cpu", "--clip_batch_size=2"]
    assert run_verb(embed.main, words) == 0
    assert lake.latest("embed").rows == {"embeddings": 7}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clip_model=ViT-B-33", "--device=cpu"], "did you mean 'ViT-B-32'"),
        (["--clip_model=local-dir:/nowhere"], "there is no folder '/nowhere'"),
        (["--clip_batch_size=0"], "--clip_batch_size is 0, expected 1 or more"),
        (["--clip_model="], "--clip_model is empty"),
        (["--device=tpu"], "--device is 'tpu', expected auto, all, cpu, cuda"),
        (["--clip_modle=x"], "did you mean 'clip_model'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(lake, capsys, words, message):
    assert run_verb(embed.main, [f"--lake={lake.root}", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("eidetic: ") and message in said
    assert lake.manifests("embed") == [] and not os.path.exists(lake.path("embeddings"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_an_error_and_auto_takes_the_cpu(lake, clip_folder, capsys):
    words = [f"--lake={lake.root}", f"--clip_model={clip_folder}"]
    assert run_verb(embed.main, [*words, "--device=cuda"]) == 2
    assert "--device cuda was asked for and there is no GPU here" in capsys.readouterr().err
    assert run_verb(embed.main, [*words, "--device=auto"]) == 0
    assert lake.latest("embed").facts["device"] == "cpu"


def test_a_gpu_is_asked_of_the_runner_only_by_name():
    assert DeviceOptions().hint() is None and DeviceOptions("cpu").hint() is None
    assert DeviceOptions("cuda").hint() == DeviceOptions().accelerator
    assert DeviceOptions("cuda:1", accelerator="type:nvidia-l4;count:1").hint() == "type:nvidia-l4;count:1"
    assert DeviceOptions("cuda:1").resolved() == "cuda:1"


def test_only_the_parts_that_are_new_or_changed_are_embedded(lake, clip_folder, monkeypatch):
    first = run(lake, clip_folder)
    before = lake.latest("ingest")
    # A night later: a part more, and the second one has another picture.
    snapshot = "0123456789abcdef"
    for table in ("images", "samples"):
        lake.lay_over(table, snapshot, before.snapshot_id)
    rows = lake.read("images", before.snapshot_id).to_pylist()
    template = {**rows[0], "role": "training"}
    lake.write("images", snapshot, 1, [*rows[4:], {**template, "sample_id": "late"}])
    lake.write("images", snapshot, 2, [{**template, "sample_id": "new"}])
    lake.complete("ingest", snapshot, {"night": 2}, {"ingest": before.snapshot_id})
    embedded = []
    real = OpenClipEncoder.encode_prepared
    monkeypatch.setattr(OpenClipEncoder, "encode_prepared", lambda self, some: embedded.append(len(some)) or real(self, some))
    second = run(lake, clip_folder)
    assert sum(embedded) == 2 + 2 and second.rows == {"embeddings": 9}
    assert [lake.paths("embeddings", second.snapshot_id)[number] for number in (0, 1, 2)] == [
        lake.part("embeddings", first.snapshot_id, 0), lake.part("embeddings", second.snapshot_id, 1),
        lake.part("embeddings", second.snapshot_id, 2),
    ]  # fmt: skip
    ids = lake.read("embeddings", second.snapshot_id)["sample_id"].to_pylist()
    assert ids == lake.read("images", snapshot)["sample_id"].to_pylist()
    store = ImageStore(lake, snapshot, second.snapshot_id)
    assert (store.get("new") == store.get("late")).all() and (store.get("new") == store.get(rows[0]["sample_id"])).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("open_clip_model.safetensors", b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        ("open_clip_model.safetensors", b"", "is cut, or no safetensors"),
        ("open_clip_config.json", b"{", "is not JSON"),
        ("open_clip_config.json", b"[]", "holds list, expected a JSON object"),
    ],
)
def test_a_damaged_clip_model_is_one_line_before_it_is_loaded(tmp_path, name, content, message):
    folder = write_tiny_clip(tmp_path / "clip")
    ClipModel(folder).check()
    (tmp_path / "clip" / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        ClipModel(folder).check()
    assert "\n" not in str(caught.value)


def test_clip_of_the_hub_is_looked_for_there_and_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for clip, option in ((ClipModel("hf-hub:owner/name"), "--clip_model"), (ClipModel("ViT-B-32", TAG), "--clip_pretrained")):
        with pytest.raises(UserError, match=f"nor to be had from the hub .* mend {option}"):
            clip.check()
    for owner, name in (("owner", "name"), ("laion", "CLIP-ViT-B-32-laion2B-s34B-b79K")):
        snapshot = tmp_path / f"models--{owner}--{name}" / "snapshots" / "c"
        snapshot.mkdir(parents=True)
        (snapshot / "open_clip_model.safetensors").touch()
        (snapshot.parent.parent / "refs").mkdir()
        (snapshot.parent.parent / "refs" / "main").write_text("c")
    ClipModel("hf-hub:owner/name").check()
    ClipModel("ViT-B-32", TAG).check()


def test_a_device_that_is_short_of_memory_gets_half_as_many_pictures_from_then_on(clip_folder, monkeypatch):
    pictures = [decode(content) for _, _, content in planted_pictures(5)]
    enough = ClipModel(clip_folder, batch_size=2).load().encode(pictures)
    encoder = ClipModel(clip_folder, batch_size=8).load()
    sizes = short_of_memory(monkeypatch, encoder._model, "encode_image", 2)
    assert encoder.encode(pictures) == pytest.approx(enough, abs=1e-5)
    assert sizes == [8, 4, 2, 2, 2] and encoder.batch_size == 2
    short_of_memory(monkeypatch, encoder._model, "encode_image", 0)
    with pytest.raises(UserError, match="out of memory on cpu with a single picture in CLIP"):
        encoder.encode(pictures)


def test_a_model_that_does_not_fit_on_a_device_is_said(clip_folder, monkeypatch):
    import open_clip

    def too_large(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", too_large)
    with pytest.raises(UserError, match="doesn't fit into the memory of cpu; name another device"):
        ClipModel(clip_folder).load()


def test_threads_that_share_a_device_halve_their_batches_once():
    """Both met the limit with the same batch: half of that has not been tried yet."""
    model, together, tried = types.SimpleNamespace(batch_size=8), threading.Barrier(2, timeout=30), []

    def work(batch, size):
        tried.append((len(batch), size))
        if size == 8:
            together.wait()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return sum(batch)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(lambda: sum(done for _, done in in_batches(model, range(9), work, ""))) for _ in range(2)]
        assert [one.result() for one in asked] == [36, 36]
    assert model.batch_size == 4 and sorted(tried) == sorted(2 * [(8, 8), (4, 4), (4, 4), (1, 4)])
