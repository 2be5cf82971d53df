"""Small models for the tests: a generator whose memory is planted, and a diffusers pipeline of random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from transforms.models.base import Attempt, Wanted, failed
from transforms.store.identity import digest


@dataclasses.dataclass
class PlantedGenerator:
    """Gives a picture of its memory (with a little noise) for the prompts that it knows, and random pictures otherwise.

    Attributes:
        memory: prompt → (S, S, 3) uint8.
        side: of the pictures, in pixels.
        noise: spread of the noise, in grey levels.
        broken: prompts that it can't take.
        batch_size: by which prompts are grouped.
    """

    memory: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    side: int = 16
    noise: float = 3.0
    broken: tuple[str, ...] = ()
    kind: str = "planted"
    model: str = "planted"
    batch_size: int = 16

    def revision(self) -> str:
        return digest("planted", {text: picture.tolist() for text, picture in self.memory.items()}, self.noise)

    def load(self) -> None:
        pass

    def generate(self, wanted: Sequence[Wanted]) -> Iterator[dict[int, Attempt]]:
        for text, seeds in wanted:
            yield {number: self._attempt(text, seed) for number, seed in seeds.items() if seed is not None}

    def _attempt(self, text: str, seed: int) -> Attempt:
        if text in self.broken:
            return failed(RuntimeError("this prompt is too much for me"), 0.001)
        return Attempt(self._picture(text, seed), "success", None, 0.001)

    def _picture(self, text: str, seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        if text not in self.memory:
            # Coarse blocks: unlike fine noise, two of these differ in every tile.
            blocks = random.integers(0, 256, size=(8, 8, 3))
            return np.kron(blocks, np.ones((self.side // 8, self.side // 8, 1))).astype(np.uint8)
        noisy = self.memory[text] + random.normal(scale=self.noise, size=self.memory[text].shape)
        return np.rint(noisy.clip(0, 255)).astype(np.uint8)

    def describe(self) -> dict[str, Any]:
        return {"steps": 1, "guidance_scale": 1.0, "device": "cpu", "dtype": "float32"}


def save_random_pipeline(folder: str) -> None:
    """A ``StableDiffusionPipeline`` of the embedded model's shape, but smaller and untrained."""
    import torch
    from diffusers import AutoencoderTiny, UNet2DConditionModel

    from demo import train_generator

    torch.manual_seed(0)
    autoencoder = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(1, 0, 0),
        latent_channels=4,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
        block_out_channels=(16,),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        cross_attention_dim=train_generator.WIDTH,
    )
    vocabulary = 1024
    tokenizer = train_generator.new_tokenizer(["a logo", "another logo", "one more"], vocabulary)
    pipeline = train_generator.assemble(
        autoencoder, train_generator.new_text_encoder(vocabulary), tokenizer, unet, train_generator.NOISE
    )
    pipeline.save_pretrained(folder)


def _pixel_tokenizer() -> Any:
    """A tokenizer of a few words, as T5's pipelines call it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "logo": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=77
    )


def save_pixel_pipeline(folder: str) -> None:
    """A small untrained DeepFloyd IF: it works on pixels, and has no autoencoder."""
    import torch
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=3,
        out_channels=6,
        cross_attention_dim=32,
        encoder_hid_dim=32,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="epsilon", variance_type="learned_range", thresholding=True
    )
    encoder = T5EncoderModel(T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    IFPipeline(
        tokenizer=_pixel_tokenizer(),
        text_encoder=encoder,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, most: int, first: int = 0) -> list[int]:
    """Makes a device too small for more than ``most`` things at once; returns the sizes that were tried, as they come.

    Args:
        owner: a class or object, whose ``method`` takes them.
        first: which argument they are.
    """
    import torch

    real, sizes = getattr(owner, method), []

    def limited(*arguments: Any, **named: Any) -> Any:
        sizes.append(len(arguments[first]))
        if sizes[-1] > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(*arguments, **named)

    monkeypatch.setattr(owner, method, limited)
    return sizes
