"""Small models for the tests: a generator whose memory is planted, and a diffusers pipeline of random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

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
