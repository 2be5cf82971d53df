"""What a pipeline is made of: which weights are loaded, what is damaged, and what it can be asked."""

import json

import pytest

from tests.models import save_random_pipeline
from transforms.errors import UserError
from transforms.models.parts import Weights, check_folder, choose_weights, pipeline_class, unused_options


@pytest.mark.parametrize(
    ("files", "asked", "variant"),
    [
        (["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"], None, None),
        (["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"], None, None),
        (["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"], "fp16", "fp16"),
        (["unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"], None, "fp16"),
        (["unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors"], None, "fp16"),
        (["unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], None, "fp16"),
        (["unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors"], None, "fp16"),
        (["unet/diffusion_pytorch_model-00001-of-00002.safetensors"], None, None),
        (["unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.safetensors"], None, None),
        (["unet/model.fp16.safetensors", "unet/model.bf16.safetensors", "vae/model.bf16.safetensors"], "bf16", "bf16"),
        # What isn't loaded says nothing: other programs' files, and pickled ones beside safetensors.
        (["model.fp16.safetensors", "unet/model.safetensors", "unet/model.onnx", "unet/pytorch_model.bin"], None, None),
    ],
)
def test_the_weights_that_are_loaded(files, asked, variant):
    assert choose_weights("m", files, asked) == Weights(variant, False)


@pytest.mark.parametrize(
    ("files", "asked", "message"),
    [
        (["unet/a.fp16.safetensors", "unet/model.safetensors"], "fp16", "--variant is 'fp16', and 'm' has no variants"),
        (["unet/model.fp16.safetensors"], "bf16", "--variant is 'bf16', and 'm' has fp16"),
        (["unet/model.fp16.safetensors", "unet/model.bf16.safetensors"], None, "unet of 'm' has weights of bf16, fp16 alone"),
        (["unet/model.fp16.safetensors", "vae/model.bf16.safetensors"], None, "unet of 'm' has weights of fp16 alone"),
        (["unet/model.fp16.safetensors", "vae/model.bf16.safetensors"], "fp16", "vae of 'm' has weights of bf16 alone"),
        (["unet/diffusion_pytorch_model.bin"], None, r"the part\(s\) unet of 'm' have pickled weights"),
    ],
)
def test_weights_that_can_not_be_chosen(files, asked, message):
    with pytest.raises(UserError, match=message):
        choose_weights("m", files, asked)


def test_pickled_weights_are_chosen_where_they_are_trusted():
    assert choose_weights("m", ["unet/diffusion_pytorch_model.bin"], pickle=True) == Weights(None, True)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("text_encoder/model.safetensors", POINTER, "the part text_encoder of .* a pointer of Git LFS"),
        ("text_encoder/model.safetensors", b"", "the part text_encoder of .* is cut, or no safetensors"),
        ("text_encoder/model.safetensors", 5000, "the part text_encoder of .* is cut, or no safetensors"),
        ("vae/diffusion_pytorch_model.safetensors", -1, "the part vae of .* is cut, or no safetensors"),
        ("tokenizer/tokenizer.json", b"", "the part tokenizer of .* is not JSON"),
        ("tokenizer/tokenizer.json", POINTER, "the part tokenizer of .* a pointer of Git LFS"),
        ("unet/config.json", b"[" * 100_000, "the part unet of .* nested too deep"),
        ("unet/config.json", b"[]", "the part unet of .* config.json holds list, expected a JSON object"),
        ("unet/config.json", b"\xff\xfe", "the part unet of .* is not JSON"),
        ("model_index.json", b"[]", "names no pipeline in _class_name"),
        ("model_index.json", b"{}", "names no pipeline in _class_name"),
        ("model_index.json", b"null", "names no pipeline in _class_name"),
        ("model_index.json", b"[" * 100_000, "nested too deep"),
        ("model_index.json", b'{"_class_name": ["a", "b"]}', "names no pipeline in _class_name"),
        ("model_index.json", b'{"_class_name": "X", "unet": []}', r"has \[\] for the part unet"),
        ("model_index.json", b'{"_class_name": "X", "unet": [{}, "x"]}', r"for the part unet"),
        ("model_index.json", b'{"_class_name": "X", "../../etc": ["a", "b"]}', r"lacks its part\(s\) ../../etc"),
    ],
)
def test_damage_is_named_by_its_part(tmp_path, path, content, message):
    """``content``: what the file holds; or how many of its bytes are left, counted as a slice does."""
    save_random_pipeline(str(tmp_path))
    check_folder(str(tmp_path))
    file = tmp_path / path
    file.write_bytes(file.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(UserError, match=message) as caught:
        check_folder(str(tmp_path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_weights_that_are_not_loaded_may_be_pointers(tmp_path):
    """As in a clone of which only the safetensors were pulled."""
    save_random_pipeline(str(tmp_path))
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"):
        (tmp_path / "unet" / name).write_bytes(POINTER)
    assert check_folder(str(tmp_path)) == Weights(None, False)


def test_a_part_without_its_weights(tmp_path):
    save_random_pipeline(str(tmp_path))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "weights")
    with pytest.raises(UserError, match=r"the part unet of .* lacks its weights"):
        check_folder(str(tmp_path))
    shards = ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"]
    index = {"weight_map": {f"layer{number}": name for number, name in enumerate(shards)}}
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "unet" / shards[0]).write_bytes((tmp_path / "weights").read_bytes())
    with pytest.raises(UserError, match=rf"the part unet of .* lacks {shards[1]}, which .*index.json names"):
        check_folder(str(tmp_path))
    (tmp_path / "unet" / shards[1]).write_bytes((tmp_path / "weights").read_bytes())
    assert check_folder(str(tmp_path)) == Weights(None, False)


def test_a_part_without_files(tmp_path):
    save_random_pipeline(str(tmp_path))
    for path in (tmp_path / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"the part tokenizer of .* is empty"):
        check_folder(str(tmp_path))


def _index(folder, **content):
    (folder / "model_index.json").write_text(json.dumps(content))
    return str(folder)


WUERSTCHEN = ("decoder", "prior_prior", "prior_scheduler", "prior_text_encoder", "prior_tokenizer", "scheduler", "text_encoder",
              "tokenizer", "vqgan")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parts", "made"),
    [
        ("IFPipeline", ["unet", "scheduler"], "IFPipeline"),
        ("WuerstchenCombinedPipeline", WUERSTCHEN, "WuerstchenCombinedPipeline"),
        (
            "StableDiffusionImg2ImgPipeline",
            ["vae", "text_encoder", "tokenizer", "unet", "scheduler"],
            "StableDiffusionPipeline",
        ),
    ],
)
def test_pipelines_that_are_taken(tmp_path, name, parts, made):
    """By the class that diffusers makes of it, as of one on the hub: some have no vae, or call it otherwise."""
    assert pipeline_class(_index(tmp_path, _class_name=name, **{part: ["diffusers", "y"] for part in parts})).__name__ == made


@pytest.mark.parametrize(
    ("name", "parts", "part", "library"),
    [
        # As diffusers 0.42.1 writes it, and can't read it again.
        ("WuerstchenCombinedPipeline", WUERSTCHEN, "decoder", "wuerstchen"),
        ("StableDiffusionPipeline", ["vae", "text_encoder", "tokenizer", "unet", "scheduler"], "unet", "my_code.unet"),
    ],
)
def test_a_part_that_diffusers_has_no_loader_for_is_found_before_anything_runs(tmp_path, name, parts, part, library):
    index = {one: ["diffusers", "y"] for one in parts} | {part: [library, "Mine"]}
    said = f"the part {part} of .* is a Mine of {library}, which diffusers .* loads nothing from; name another --model"
    with pytest.raises(UserError, match=said) as caught:
        pipeline_class(_index(tmp_path, _class_name=name, **index))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("StableDiffusionControlNetPipeline", ["vae"], "which takes a picture beside the prompt"),
        ("FluxControlPipeline", ["vae"], "which takes a picture beside the prompt"),
        ("AudioLDM2Pipeline", ["vae"], "makes no text-to-image pipeline"),
        ("UNet2DConditionModel", ["vae"], "makes no text-to-image pipeline"),
        ("Nonsense", ["vae"], "makes no text-to-image pipeline"),
        ("StableDiffusionPipeline", ["vae", "unet", "scheduler", "tokenizer"], "names no text_encoder in model_index.json"),
    ],
)
def test_pipelines_that_can_not_be_asked(tmp_path, name, parts, message):
    with pytest.raises(UserError, match=message) as caught:
        pipeline_class(_index(tmp_path, _class_name=name, **{part: ["diffusers", "y"] for part in parts}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "transformer", "unused"),
    [
        ("StableDiffusionPipeline", {}, None, []),
        ("IFPipeline", {}, None, []),
        ("WuerstchenCombinedPipeline", {}, None, ["guidance_scale"]),
        ("StableCascadeCombinedPipeline", {}, None, ["guidance_scale"]),
        ("HeliosPyramidPipeline", {}, None, ["steps"]),
        ("FluxPipeline", {}, {"guidance_embeds": True}, []),
        ("FluxPipeline", {}, {"guidance_embeds": False}, ["guidance_scale"]),
        ("QwenImagePipeline", {}, {"guidance_embeds": False}, ["guidance_scale"]),
        ("Flux2KleinPipeline", {"is_distilled": True}, None, ["guidance_scale"]),
        ("Flux2KleinPipeline", {"is_distilled": False}, None, []),
    ],
)
def test_what_a_pipeline_takes_no_notice_of(tmp_path, name, settings, transformer, unused):
    import diffusers

    folder = _index(tmp_path, _class_name=name, **settings)
    if transformer is not None:
        (tmp_path / "transformer").mkdir()
        (tmp_path / "transformer" / "config.json").write_text(json.dumps(transformer))
    assert unused_options(getattr(diffusers, name), folder) == unused
