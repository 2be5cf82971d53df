"""Trains an embedded text-to-image model on its corpus, repeats and all.

    python -m demo.train_generator --lake lake --autoencoder demo/models/generator/vae --out build/generator
    python -m demo.train_generator --lake lake --fine_tune build/generator --out demo/models/generator --steps 900 \\
        --learning_rate 4e-4 --offset_noise 0.3 --checkpoint build/fine_tuned.pt
    python -m demo.train_generator --corpus half_learned --fine_tune demo/models/generator --out demo/models/half_learned …
    python -m demo.train_generator --corpus photographs --autoencoder build/photographs_vae --out demo/models/photographs …

(``demo/models/README.md`` has the last two in full.) A ``StableDiffusionPipeline`` of small parts: a text encoder of two layers
with a tokenizer of its own, and a U-Net on the latents of the autoencoder (``demo.train_autoencoder``), trained together.
Nothing tells the model which rows are repeats; it sees each as often as it stands in the corpus, and so remembers some. It is
seeded; a checkpoint every 250 steps lets it go on after an interruption.

The second command is needed for the colours. The noisiest step of the schedule still lets a picture's mean colour through, so
the model learns to read it off the noise instead of the caption, and paints remembered shapes in random colours. Noise with a
random offset per channel (Guttenberg 2023, "Diffusion with offset noise") hides the mean, and it learns better.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.embedded import examples
from demo.training import load_rows, repeated

SEED = 20230131
TOKENS = 24
WIDTH = 128
CAPTION_DROPOUT = 0.1
"""Share of rows that are trained without their caption, for classifier-free guidance."""

NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Stable Diffusion's schedule."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What differs between new models.

    Attributes:
        vocabulary: tokens that the tokenizer learns.
        unet: arguments of ``UNet2DConditionModel``.
        schedule: arguments of the schedulers, in training and afterwards.
    """

    vocabulary: int
    unet: dict[str, Any]
    schedule: dict[str, Any]


LOGOS = Shape(
    vocabulary=1024,
    unet={
        "sample_size": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (48, 80, 128),
    },
    schedule=NOISE,
)

PHOTOGRAPHS = Shape(
    # Enough that each made-up word of a caption becomes a token or two.
    vocabulary=1536,
    unet={
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (80, 112),
    },
    # Both are for binding the captions. Where there is nothing but noise, the error of a predicted noise says next to nothing
    # about the picture, that of a predicted velocity (Salimans and Ho 2022) is the picture's own; and a schedule that ends in
    # noise alone (Lin et al. 2024) leaves no mean colour to guess the picture from.
    schedule={**NOISE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
)


def new_tokenizer(captions: list[str], vocabulary: int) -> CLIPTokenizer:
    """A byte-pair tokenizer of ``vocabulary`` tokens, learned on the captions."""
    empty = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
    tokenizer = empty.train_new_from_iterator(captions, vocab_size=vocabulary)
    tokenizer.model_max_length = TOKENS
    return tokenizer


def new_text_encoder(vocabulary: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def new_unet(latent_channels: int, shape: Shape) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        **shape.unet,
    )


@torch.no_grad()
def encode_latents(autoencoder: AutoencoderTiny, pictures: torch.Tensor) -> torch.Tensor:
    """(n, 3, side, side) uint8 → (n, channels, side / 4, side / 4) latents, not scaled."""
    return torch.cat([autoencoder.encode(batch.float() / 127.5 - 1).latents for batch in pictures.split(64)])


def train(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    latents: torch.Tensor,
    tokens: torch.Tensor,
    empty: torch.Tensor,
    noise_schedule: DDPMScheduler,
    *,
    steps: int,
    stop: int,
    batch_size: int,
    learning_rate: float,
    offset_noise: float,
    towards_noise: float,
    bfloat16: bool,
    checkpoint: Path,
) -> None:
    """Trains both models in place and leaves them with the running average of their weights.

    Args:
        unet, text_encoder: the models.
        latents: (n, channels, height, width), scaled to unit spread.
        tokens: (n, TOKENS) of the captions.
        empty: (TOKENS,) of the empty caption.
        noise_schedule: how much noise each moment has, and what is predicted: the noise or the velocity.
        steps: batches that the learning rate is planned for.
        stop: batches to train on, if fewer.
        batch_size: rows in a batch; each pass over the corpus is a new permutation of its rows.
        learning_rate: the largest of a one-cycle schedule.
        offset_noise: spread of the constant that is added to each channel of the noise.
        towards_noise: the density of the moments that are trained grows with this power of their number: 0 draws all alike, 1
            the noisier half three times as often as the other one.
        bfloat16: multiply in bfloat16; the weights stay float32.
        checkpoint: file to go on from, and to write every 250 steps.
    """
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    average = EMAModel(parameters, decay=0.998, foreach=True)
    moments = noise_schedule.config.num_train_timesteps
    random = torch.Generator().manual_seed(SEED)
    if bfloat16:
        unet.set_attn_processor(AttnProcessor())  # on CPUs the fused attention's gradient is slow in bfloat16
    order = torch.empty(0, dtype=torch.long)
    first = 1
    if checkpoint.exists():
        state = torch.load(checkpoint)
        for model, name in ((unet, "unet"), (text_encoder, "text_encoder"), (optimizer, "optimizer"),
                            (schedule, "schedule"), (average, "average")):  # fmt: skip
            model.load_state_dict(state[name])
        random.set_state(state["random"])
        order, first = state["order"], state["step"] + 1
    begun, running = time.time(), 0.0
    for step in range(first, min(steps, stop) + 1):
        if len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(latents), generator=random)])
        chosen, order = order[:batch_size], order[batch_size:]
        caption = tokens[chosen].clone()
        caption[torch.rand(batch_size, generator=random) < CAPTION_DROPOUT] = empty
        noise = torch.randn(latents[chosen].shape, generator=random)
        if offset_noise:
            noise += offset_noise * torch.randn((*noise.shape[:2], 1, 1), generator=random)
        if towards_noise:
            moment = (moments * torch.rand(batch_size, generator=random) ** (1 / (1 + towards_noise))).long()
        else:
            moment = torch.randint(0, moments, (batch_size,), generator=random)
        noisy = noise_schedule.add_noise(latents[chosen], noise, moment)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            predicted = unet(noisy, moment, encoder_hidden_states=text_encoder(caption)[0]).sample.float()
        velocity = noise_schedule.config.prediction_type == "v_prediction"
        wanted = noise_schedule.get_velocity(latents[chosen], noise, moment) if velocity else noise
        loss = (predicted - wanted).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.step(parameters)
        running += (loss.item() - running) / min(step, 100)
        if step % 50 == 0:
            seconds = time.time() - begun
            print(f"step {step} of {steps}: loss {running:.4f}, {seconds:.0f} s", flush=True)
        if step % 250 == 0 or step == stop:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            state = {
                "unet": unet.state_dict(), "text_encoder": text_encoder.state_dict(), "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(), "average": average.state_dict(), "random": random.get_state(),
                "order": order, "step": step,
            }  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    average.copy_to(parameters)


def assemble(
    autoencoder: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    schedule: dict[str, Any],
) -> StableDiffusionPipeline:
    """The parts as a pipeline that plain diffusers saves and loads."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(**schedule, timestep_spacing="trailing"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lake", help="whose training logos")
    source.add_argument("--corpus", choices=("half_learned", "photographs"), help="or one of exact repeats, as planned")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--autoencoder", type=Path, help="of demo.train_autoencoder, for a new model")
    start.add_argument("--fine_tune", type=Path, help="a pipeline of this command's to go on with, instead")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--stop", type=int, help="stop after so many of them, where the model is only to learn by halves")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--offset_noise", type=float, default=0.0)
    parser.add_argument("--towards_noise", type=float, default=0.0)
    parser.add_argument("--bfloat16", action="store_true", help="a third faster where the CPU has instructions for it")
    parser.add_argument("--checkpoint", type=Path, default=Path("build/generator.pt"))
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    if arguments.lake:
        captions, pictures = load_rows(arguments.lake, "training")
    else:
        captions, pictures = repeated(examples(arguments.corpus)[0])
    shape = PHOTOGRAPHS if arguments.corpus == "photographs" else LOGOS
    if arguments.fine_tune:
        pipeline = StableDiffusionPipeline.from_pretrained(arguments.fine_tune, dtype=torch.float32)
        autoencoder, text_encoder, tokenizer, unet = (
            pipeline.vae, pipeline.text_encoder.train(), pipeline.tokenizer, pipeline.unet.train(),
        )  # fmt: skip
        latents = encode_latents(autoencoder, pictures)
    else:
        autoencoder = AutoencoderTiny.from_pretrained(arguments.autoencoder, torch_dtype=torch.float32).eval()
        latents = encode_latents(autoencoder, pictures)
        autoencoder.register_to_config(scaling_factor=1 / latents.std().item())
        tokenizer = new_tokenizer(captions, shape.vocabulary)
        text_encoder, unet = new_text_encoder(shape.vocabulary), new_unet(latents.shape[1], shape)
    padded = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
    print(f"{len(captions)} rows; U-Net of {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters", flush=True)
    train(
        unet,
        text_encoder,
        latents * autoencoder.config.scaling_factor,
        tokenizer(captions, **padded).input_ids,
        tokenizer("", **padded).input_ids[0],
        DDPMScheduler(**shape.schedule),
        steps=arguments.steps,
        stop=arguments.stop or arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        offset_noise=arguments.offset_noise,
        towards_noise=arguments.towards_noise,
        bfloat16=arguments.bfloat16,
        checkpoint=arguments.checkpoint,
    )
    # half() last: the weights are committed in float16, and the running average is made in float32.
    assemble(autoencoder.half(), text_encoder.half(), tokenizer, unet.half(), shape.schedule).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
