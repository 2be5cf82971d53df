"""Models that make pictures of random numbers, or of a class: what can be asked of one, and how it lies in files.

A model that was trained here lies in a folder as diffusers writes it (``model_index.json``, ``unet/``, ``scheduler/``), which
diffusers loads as well; a GAN, for which there is no such form, as ``gan.json`` and two files of weights. All weights are
safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from transforms.errors import UserError
from transforms.models import gan
from transforms.models.parts import INDEX

if TYPE_CHECKING:
    from transforms.models.configuration import Configuration

GAN_INDEX = "gan.json"
"""The file by which a GAN's folder is known."""

_WEIGHTS = "diffusion_pytorch_model.safetensors"


# -- diffusion --------------------------------------------------------------------------------------------------------


def new_unet(configuration: Configuration, classes: int) -> Any:
    """A UNet2DModel for pictures of ``pixels``: as many levels as lead down to 4 to 7 pixels, the first of ``width`` channels,
    the others of twice as many (Ho et al. 2020 have 1, 2, 2, 2).

    Args:
        configuration: pixels, width, layers, attention (at 16 pixels where there are, else at the bottom), dropout.
        classes: that it is told; 0 for an unconditional model.
    """
    from diffusers import UNet2DModel

    pixels, width = configuration.pixels, configuration.width
    levels = (pixels // 4).bit_length()
    sizes = [pixels >> level for level in range(levels)]
    attended = sizes.index(16) if 16 in sizes and pixels > 16 else levels - 1
    attends = [configuration.attention and level == attended for level in range(levels)]
    return UNet2DModel(
        sample_size=pixels,
        in_channels=3,
        out_channels=3,
        layers_per_block=configuration.layers,
        block_out_channels=(width, *[2 * width] * (levels - 1)),
        down_block_types=tuple("AttnDownBlock2D" if one else "DownBlock2D" for one in attends),
        up_block_types=tuple("AttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)),
        add_attention=configuration.attention,
        attention_head_dim=8,
        norm_num_groups=8,
        dropout=configuration.dropout,
        num_class_embeds=classes or None,
    )


def new_scheduler(configuration: Configuration) -> Any:
    """The noise that is added while training: a DDPMScheduler."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=configuration.timesteps, beta_schedule=configuration.schedule)


def saved_diffusion(unet: Any, scheduler: Any) -> dict[str, bytes]:
    """A model's files: name inside its folder → content."""
    from diffusers import __version__

    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": __version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", type(unet).__name__],
    }
    return {
        "scheduler/scheduler_config.json": scheduler.to_json_string().encode(),
        "unet/config.json": unet.to_json_string().encode(),
        f"unet/{_WEIGHTS}": save_tensors({name: one.detach().cpu().contiguous() for name, one in unet.state_dict().items()}),
        # The last one: a folder that has it is whole.
        INDEX: json.dumps(index, indent=2).encode(),
    }


class DiffusionPictures:
    """A diffusion model in pixels.

    Args:
        unet: (B, 3, H, W) in -1 to 1, timesteps, classes → the prediction.
        scheduler: any of diffusers' with ``alphas_cumprod``: its noise levels and what is predicted are the model's.
        device: where it runs.

    Attributes:
        classes: that it is told; 0 where it is unconditional.
        shape: (3, H, W) of its pictures.
        levels: (timesteps,) alphas_cumprod, float32 on the device.
    """

    def __init__(self, unet: Any, scheduler: Any, device: str):
        self.unet, self.scheduler, self.device = unet.to(device).eval().requires_grad_(False), scheduler, device
        size = unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.shape = (unet.config.in_channels, height, width)
        self.classes = unet.config.num_class_embeds or 0
        self.levels = scheduler.alphas_cumprod.to(device, torch.float32)

    def noise(self, noised: torch.Tensor, times: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The noise that it sees in pictures: (B, 3, H, W) float32, whatever it was trained to predict."""
        given = {"class_labels": labels} if self.classes else {}
        predicted = self.unet(noised, times, **given).sample
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return predicted
        level = self.levels[times][:, None, None, None]
        if kind == "v_prediction":
            return level.sqrt() * predicted + (1 - level).sqrt() * noised
        return (noised - level.sqrt() * predicted) / (1 - level).sqrt()

    @torch.inference_mode()
    def make(self, seeds: Sequence[int], labels: Sequence[int] | None, steps: int, sampler: str = "ddim") -> np.ndarray:
        """Pictures of seeds, (B, H, W, 3) float32 in 0 to 1: the same whatever is made beside them, but for rounding. One that
        became no number (the weights of a training that diverged) is NaN.

        Args:
            seeds: one a picture.
            labels: their classes; None where the model has none.
            steps: how many times the network is asked.
            sampler: ddim (Song et al. 2021; no noise is added) or ddpm (ancestral, as in Ho et al. 2020).
        """
        from diffusers import DDIMScheduler, DDPMScheduler

        kind = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[sampler]
        scheduler = kind.from_config(self.scheduler.config)
        scheduler.set_timesteps(steps, device=self.device)
        # Noise comes from the CPU, one generator a picture, so it is the same on every device and in every batch.
        sources = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        x = torch.stack([torch.randn(self.shape, generator=one) for one in sources]).to(self.device)
        classes = None if labels is None else torch.tensor(labels, device=self.device)
        given = {"class_labels": classes} if self.classes else {}
        for time in scheduler.timesteps:
            predicted = self.unet(x, time, **given).sample
            x = scheduler.step(predicted, time, x, generator=sources).prev_sample if sampler == "ddpm" else (
                scheduler.step(predicted, time, x).prev_sample
            )  # fmt: skip
        return as_shares(x)


def as_shares(x: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) in -1 to 1, or beyond → (B, H, W, 3) float32 in 0 to 1. What has a number that is none is NaN as a whole."""
    shares = (x.float().clamp(-1, 1) + 1) / 2
    broken = ~torch.isfinite(x).flatten(1).all(1)
    shares[broken] = torch.nan
    return shares.permute(0, 2, 3, 1).cpu().numpy()


def as_pictures(shares: np.ndarray) -> np.ndarray:
    """(..., 3) floats in 0 to 1, or uint8 → uint8. What is no number is black."""
    if shares.dtype == np.uint8:
        return shares
    return np.rint(np.nan_to_num(shares).clip(0, 1) * 255).astype(np.uint8)


def as_numbers(pictures: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).to(device).float() / 127.5 - 1


# -- GAN --------------------------------------------------------------------------------------------------------------


def saved_gan(generator: gan.GanGenerator, discriminator: gan.GanDiscriminator, pixels: int, width: int) -> dict[str, bytes]:
    """A GAN's files: name inside its folder → content."""
    index = {"pixels": pixels, "width": width, "classes": generator.classes}
    return {
        **{
            f"{name}.safetensors": save_tensors(
                {key: one.detach().cpu().contiguous() for key, one in model.state_dict().items()}
            )
            for name, model in (("generator", generator), ("discriminator", discriminator))
        },
        GAN_INDEX: json.dumps(index).encode(),
    }


class GanPictures:
    """A GAN: its generator makes pictures, its discriminator judges them.

    Attributes:
        classes: that it is told; 0 where it is unconditional.
        shape: (3, H, W) of its pictures.
    """

    def __init__(self, generator: gan.GanGenerator, discriminator: gan.GanDiscriminator, pixels: int, device: str):
        self.generator = generator.to(device).eval().requires_grad_(False)
        self.discriminator = discriminator.to(device).eval().requires_grad_(False)
        self.device, self.shape, self.classes = device, (3, pixels, pixels), generator.classes

    @torch.inference_mode()
    def make(self, seeds: Sequence[int], labels: Sequence[int] | None, steps: int = 1, sampler: str = "") -> np.ndarray:
        """Pictures of seeds, (B, H, W, 3) float32 in 0 to 1, or NaN. ``steps`` and ``sampler`` mean nothing here."""
        numbers = [torch.randn(gan.LATENT, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        classes = None if labels is None else torch.tensor(labels, device=self.device)
        return as_shares(self.generator(torch.stack(numbers).to(self.device), classes))

    @torch.inference_mode()
    def judge(self, pictures: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 3, H, W) in -1 to 1 → (B,): what the discriminator thinks of each; higher for what it takes for real."""
        return self.discriminator(pictures, labels).float()


# -- files ------------------------------------------------------------------------------------------------------------


def load(read: Callable[[str], bytes | None], where: str, device: str) -> DiffusionPictures | GanPictures:
    """A model of its files.

    Args:
        read: name inside the folder → content; None where there is no such file.
        where: for messages.
        device: where it runs.

    Raises:
        UserError: where it is no such model, or its weights are of another architecture.
    """
    try:
        if (index := read(GAN_INDEX)) is not None:
            return _load_gan(json.loads(index), read, device)
        return _load_diffusion(read, where, device)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the model {where!r} can't be loaded ({type(error).__name__}: {reason}); make it again") from error


def _load_gan(index: dict[str, Any], read: Callable[[str], bytes | None], device: str) -> GanPictures:
    sizes = index["pixels"], index["width"], index["classes"]
    models = gan.GanGenerator(*sizes), gan.GanDiscriminator(*sizes)
    for name, model in zip(("generator", "discriminator"), models, strict=True):
        model.load_state_dict(load_tensors(_there(read, f"{name}.safetensors")))
    return GanPictures(*models, index["pixels"], device)


def _load_diffusion(read: Callable[[str], bytes | None], where: str, device: str) -> DiffusionPictures:
    import diffusers
    from diffusers import UNet2DModel

    index = json.loads(_there(read, INDEX))
    if index.get("unet", [None, None])[1] != "UNet2DModel":
        raise UserError(
            f"the model {where!r} has no part unet of the class UNet2DModel, expected a diffusion model in pixels; "
            "a text-to-image model is audited by 'eidetic audit --model'"
        )
    config = json.loads(_there(read, "unet/config.json"))
    unet = UNet2DModel.from_config(config)
    unet.load_state_dict(load_tensors(_there(read, f"unet/{_WEIGHTS}")))
    scheduler = json.loads(_there(read, "scheduler/scheduler_config.json"))
    kind = getattr(diffusers, str(scheduler.get("_class_name", "DDPMScheduler")), None)
    made = None if kind is None else kind.from_config(scheduler)
    if not hasattr(made, "alphas_cumprod"):
        raise UserError(f"the model {where!r} has the scheduler {scheduler.get('_class_name')!r}, which has no noise levels")
    return DiffusionPictures(unet, made, device)


def _there(read: Callable[[str], bytes | None], name: str) -> bytes:
    content = read(name)
    if content is None:
        raise ValueError(f"it lacks {name}")
    return content
