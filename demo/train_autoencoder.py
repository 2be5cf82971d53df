"""Trains the autoencoder of an embedded text-to-image model.

    python -m demo.train_autoencoder --lake lake --out demo/models/generator/vae
    python -m demo.train_autoencoder --photographs 20000 --latent_channels 16 --batch_size 32 --steps 4000 \\
        --out build/photographs_vae

An ``AutoencoderTiny`` that makes the sides four times smaller, 64 × 64 pictures into 16 × 16 latents: its encoder is a chain of
plain strided convolutions, its decoder has the depth. It is seeded and needs about 12 minutes on two cores. What it sees of a
picture at once is small, so it learns edges and corners rather than pictures; it never sees a control. The first command takes
the logos of a lake, as ingested; the second one photographs that the text-to-image model is neither trained nor tried on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny

from demo import photographs
from demo.training import as_tensor, distinct, load_rows

SEED = 20230131
LATENT_NOISE = 0.03
"""Noise on the latents while training, over their own spread: the decoder learns to bear slightly wrong ones."""


def new_autoencoder(latent_channels: int) -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(2, 1, 0),
        latent_channels=latent_channels,
    )


def train(
    pictures: torch.Tensor, latent_channels: int, steps: int, batch_size: int, learning_rate: float, out: Path
) -> AutoencoderTiny:
    """pictures: (n, 3, side, side) uint8. Writes a checkpoint into ``out`` every 500 steps and at the end."""
    torch.manual_seed(SEED)
    random = torch.Generator().manual_seed(SEED)
    model = new_autoencoder(latent_channels)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    begun, running = time.time(), 0.0
    for step in range(1, steps + 1):
        chosen = torch.randint(len(pictures), (batch_size,), generator=random)
        batch = pictures[chosen].float() / 127.5 - 1
        latents = model.encode(batch).latents
        noise = torch.randn(latents.shape, generator=random) * latents.detach().std()
        decoded = model.decode(latents + LATENT_NOISE * noise).sample
        loss = (decoded - batch).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        running += (loss.item() / 4 - running) / min(step, 100)
        if step % 100 == 0:
            print(f"step {step} of {steps}: l2 {running**0.5:.4f}, {time.time() - begun:.0f} s", flush=True)
        if step % 500 == 0 or step == steps:
            model.save_pretrained(out)
    return model


@torch.no_grad()
def reconstruction_error(model: AutoencoderTiny, pictures: torch.Tensor) -> torch.Tensor:
    """l2 (paper, section 4.2) between each picture and its reconstruction; pictures: (n, 3, side, side) uint8 → (n,)."""
    errors = []
    for batch in pictures.split(64):
        scaled = batch.float() / 127.5 - 1
        decoded = model.decode(model.encode(scaled).latents).sample.clamp(-1, 1)
        errors.append(((decoded - scaled) / 2).square().mean(dim=(1, 2, 3)).sqrt())
    return torch.cat(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lake", help="whose training logos")
    source.add_argument("--photographs", type=int, help="so many of them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--latent_channels", type=int, default=12)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    if arguments.lake:
        pictures, tried = (distinct(load_rows(arguments.lake, role)[1]) for role in ("training", "control"))
        roles = {"training": pictures, "control": tried}
    else:
        pictures = as_tensor(photographs.others(arguments.photographs))
        trained, controls = photographs.split()
        roles = {
            "seen": pictures[:1000],
            "the generator's training": as_tensor(np.stack([example.picture for example in trained])),
            "control": as_tensor(np.stack([example.picture for example in controls])),
        }
    model = train(
        pictures,
        arguments.latent_channels,
        arguments.steps,
        arguments.batch_size,
        arguments.learning_rate,
        arguments.out,
    )
    for role, some in roles.items():
        errors = reconstruction_error(model, some)
        print(f"{role}: mean l2 {errors.mean():.4f}, 95th percentile {errors.quantile(0.95):.4f}")


if __name__ == "__main__":
    main()
