"""A small GAN: residual generator and discriminator with spectral normalisation (Miyato et al. 2018, SNGAN, table 3 and 4).

Why this one, and why here: the packages that are served and hold StyleGAN2 or FastGAN (stylegan2-pytorch 1.9, lightweight-gan
1.2) refuse to be imported without CUDA, and torch-mimicry's SNGAN (2020) has fixed sizes of 32 pixels and more. This is SNGAN's
architecture for 32 pixels with as many blocks as the size needs; the spectral norm is torch's own. Classes: the generator gets
one more input for each class, the discriminator projects (Miyato and Koyama 2018).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

LATENT = 128
"""Numbers that a picture is made of."""

START = 4
"""Pixels of the smallest picture inside."""


class GanGenerator(nn.Module):
    """(B, ``LATENT``) normal numbers, and classes → pictures (B, 3, pixels, pixels) in -1 to 1.

    Args:
        pixels: 4 times a power of two.
        width: a quarter of the channels.
        classes: how many; 0 for none.
    """

    def __init__(self, pixels: int, width: int, classes: int = 0):
        super().__init__()
        channels = 4 * width
        self.classes = classes
        self.start = nn.Linear(LATENT + classes, channels * START * START)
        self.blocks = nn.ModuleList(_Up(channels) for _ in range(_doublings(pixels)))
        self.norm, self.end = nn.BatchNorm2d(channels), nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, latent: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        if labels is not None and self.classes:
            latent = torch.cat([latent, functional.one_hot(labels, self.classes).to(latent.dtype)], 1)
        made = self.start(latent).unflatten(1, (-1, START, START))
        for block in self.blocks:
            made = block(made)
        return torch.tanh(self.end(functional.relu(self.norm(made))))


class GanDiscriminator(nn.Module):
    """Pictures (B, 3, pixels, pixels) in -1 to 1, and classes → (B,): higher for what it takes for real."""

    def __init__(self, pixels: int, width: int, classes: int = 0):
        super().__init__()
        channels = 4 * width
        downs = [_Down(3 if not number else channels, channels) for number in range(_doublings(pixels))]
        self.blocks = nn.ModuleList([*downs, _Same(channels), _Same(channels)])
        self.end = spectral_norm(nn.Linear(channels, 1))
        self.of_class = spectral_norm(nn.Embedding(classes, channels)) if classes else None

    def forward(self, pictures: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.blocks:
            pictures = block(pictures)
        features = functional.relu(pictures).sum((2, 3))
        score = self.end(features).squeeze(1)
        if self.of_class is not None and labels is not None:
            score = score + (self.of_class(labels) * features).sum(1)
        return score


def _doublings(pixels: int) -> int:
    doublings = (pixels // START).bit_length() - 1
    if START << doublings != pixels:
        raise ValueError(f"a GAN of {pixels} pixels, expected {START} times a power of two")
    return doublings


def _conv(inside: int, outside: int, size: int = 3) -> nn.Module:
    return spectral_norm(nn.Conv2d(inside, outside, size, padding=size // 2))


class _Up(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first_norm, self.second_norm = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.short = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = functional.interpolate(functional.relu(self.first_norm(x)), scale_factor=2)
        changed = self.second(functional.relu(self.second_norm(self.first(large))))
        return changed + self.short(functional.interpolate(x, scale_factor=2))


class _Down(nn.Module):
    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.first, self.second, self.short = _conv(inside, outside), _conv(outside, outside), _conv(inside, outside, 1)
        self.is_first = inside == 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Of the pictures themselves nothing is cut off.
        changed = self.second(functional.relu(self.first(x if self.is_first else functional.relu(x))))
        return functional.avg_pool2d(changed + self.short(x), 2)


class _Same(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first, self.second = _conv(channels, channels), _conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(functional.relu(self.first(functional.relu(x))))
