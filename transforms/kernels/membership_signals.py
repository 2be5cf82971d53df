"""What a diffusion model is asked of an image, to tell whether it was trained on it: signals of one model, without shadows.

All are smaller for members, by their papers, and given for each timestep alone: which one is best must be chosen on models or
images that aren't judged. ``predict(x_t, t)`` gives the noise that the model predicts: x_t (B, C, H, W) in the model's range,
t (B,) int64, answer (B, C, H, W). A model that predicts a velocity or the image is converted by who calls. ``alphas`` are the
scheduler's ``alphas_cumprod``, (T,). Images are (B, C, H, W) float in the model's range, mostly [−1, 1]; one image's signal
doesn't depend on the others of its batch. Nothing is drawn here: noise comes from who calls, so that it can be the same for
every model.

loss   the training loss, with given noise (Carlini et al. 2023, section 5.2)
secmi  how far a deterministic step forward and back misses (Duan et al. 2023, t-error)
pia    how far the noise predicted at t is from that at 0, which made x_t (Kong et al. 2024); pian with that one normalised
pfami  how much larger the loss is of crops (Fu et al. 2023)
sima   the size of the noise that is predicted for the image as it is (Rao et al. 2025)

As mx-ethan-rao/SimA (MIT), ``DDPM/components.py``, has them; benchmarks/membership.py compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Predict = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]

POWER = 4
"""Of the norm in PIA and SimA: their codes take sums of fourth powers."""

PFAMI_TIMESTEPS = tuple(range(0, 500, 50))
PFAMI_CROPS = tuple(0.95 - 0.25 * step / 9 for step in range(10))
"""What is left of each side: 0.95 to 0.70 in ten steps."""


def loss(
    predict: Predict,
    images: torch.Tensor,
    alphas: torch.Tensor,
    timesteps: Sequence[int],
    noises: torch.Tensor,
    flips: bool = False,
) -> torch.Tensor:
    """The mean squared error of the noise that is predicted, of each draw alone.

    Args:
        timesteps: s of them, 0 to T − 1.
        noises: (d, B, C, H, W), standard normal: a draw of its own for each image, the same for every model and timestep.
        flips: the mirrored image too, with the same noise.

    Returns:
        (s, d, v, B) float64, v 1 or with ``flips`` 2. The paper averages over draws and views: to 20 and 2.
    """
    import torch

    if noises.ndim != 5 or noises.shape[1:] != images.shape:
        raise ValueError(f"noise has shape {tuple(noises.shape)}, expected (draws, {', '.join(map(str, images.shape))})")
    found = [
        torch.stack(
            [
                torch.stack([_loss(predict, view, alphas, step, noise) for view in ([images, images.flip(3)][: 1 + flips])])
                for noise in noises
            ]
        )
        for step in timesteps
    ]
    return torch.stack(found)


def secmi(predict: Predict, images: torch.Tensor, alphas: torch.Tensor, interval: int, steps: int) -> torch.Tensor:
    """The squared distance between the image at a timestep, by deterministic steps forward from 0, and after one more step
    forward and back.

    Args:
        interval: timesteps in a step.
        steps: how many; ``interval · steps`` is under T. It takes twice as many predictions.

    Returns:
        (steps, B) float64, at t = 0, interval, …, (steps − 1) · interval: sums over the entries of an image.
    """
    import torch

    _within(interval * steps, alphas)
    found, here = [], images
    for step in range(0, interval * steps, interval):
        there = _moved(predict, here, alphas, step, step + interval)
        back = _moved(predict, there, alphas, step + interval, step)
        found.append(_power(here - back, 2))
        here = there
    return torch.stack(found)


def pia(
    predict: Predict, images: torch.Tensor, alphas: torch.Tensor, timesteps: Sequence[int], normalised: bool = False
) -> torch.Tensor:
    """The distance between the noise predicted at timestep 0 and that predicted at t for the image with the former.

    Args:
        timesteps: s of them, 0 to T − 1; s + 1 predictions.
        normalised: PIAN: the noise of timestep 0 is scaled to the mean size of standard normal noise, √(2/π).

    Returns:
        (s, B) float64: sums of fourth powers over the entries of an image.
    """
    import torch

    noise = _asked(predict, images, 0)
    if normalised:
        noise = noise / noise.abs().mean(dim=(1, 2, 3), keepdim=True) * math.sqrt(2 / math.pi)
    found = []
    for step in timesteps:
        noisy = _noised(images, alphas, step, noise)
        found.append(_power(noise - _asked(predict, noisy, step), POWER))
    return torch.stack(found)


def sima(predict: Predict, images: torch.Tensor, timesteps: Sequence[int]) -> torch.Tensor:
    """The size of the noise that is predicted at t for the image itself, to which none was added.

    Args:
        timesteps: s of them; as many predictions.

    Returns:
        (s, B) float64: sums of fourth powers over the entries of an image.
    """
    import torch

    return torch.stack([_power(_asked(predict, images, step), POWER) for step in timesteps])


def pfami(
    predict: Predict,
    images: torch.Tensor,
    alphas: torch.Tensor,
    noises: torch.Tensor,
    timesteps: Sequence[int] = PFAMI_TIMESTEPS,
    crops: Sequence[float] = PFAMI_CROPS,
) -> torch.Tensor:
    """The mean loss of an image less that of its middle crops, scaled up again: members lie in a valley.

    It takes ``len(timesteps) · (1 + len(crops))`` predictions, 110 as the authors have it. Their noise is drawn anew for each;
    here an image and its crops share that of a timestep.

    Args:
        noises: (s, B, C, H, W) standard normal, one for each timestep.
        crops: what is left of each side, over 0, at most 1.

    Returns:
        (B,) float64.
    """
    import torch

    if noises.shape != (len(timesteps), *images.shape):
        raise ValueError(f"noise has shape {tuple(noises.shape)}, expected {(len(timesteps), *images.shape)}")

    def mean(views: torch.Tensor) -> torch.Tensor:
        steps = zip(timesteps, noises, strict=True)
        return torch.stack([_loss(predict, views, alphas, step, noise) for step, noise in steps]).mean(dim=0)

    return mean(images) - torch.stack([mean(_cropped(images, share)) for share in crops]).mean(dim=0)


def _cropped(images: torch.Tensor, share: float) -> torch.Tensor:
    import torch

    height, width = images.shape[2:]
    rows, columns = max(1, int(height * share)), max(1, int(width * share))
    top, left = (height - rows) // 2, (width - columns) // 2
    crop = images[:, :, top : top + rows, left : left + columns]
    return torch.nn.functional.interpolate(crop, size=(height, width), mode="bilinear", align_corners=False)


def _loss(predict: Predict, images: torch.Tensor, alphas: torch.Tensor, step: int, noise: torch.Tensor) -> torch.Tensor:
    """(B,) float64."""
    error = _asked(predict, _noised(images, alphas, step, noise), step) - noise
    return _power(error, 2) / images[0].numel()


def _noised(images: torch.Tensor, alphas: torch.Tensor, step: int, noise: torch.Tensor) -> torch.Tensor:
    _within(step, alphas)
    alpha = float(alphas[step])
    return math.sqrt(alpha) * images + math.sqrt(1 - alpha) * noise


def _moved(predict: Predict, images: torch.Tensor, alphas: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """A deterministic step (DDIM) from one timestep to another, in either direction, by the noise predicted at the first."""
    before, after = float(alphas[start]), float(alphas[end])
    noise = _asked(predict, images, start)
    drift = math.sqrt(1 / after - 1) - math.sqrt(1 / before - 1)
    return math.sqrt(after) * (images / math.sqrt(before) + drift * noise)


def _asked(predict: Predict, images: torch.Tensor, step: int) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return predict(images, torch.full((len(images),), step, dtype=torch.int64, device=images.device))


def _power(values: torch.Tensor, power: int) -> torch.Tensor:
    """(B, …) → (B,) float64, the sum of powers over an image, added up in float64."""
    import torch

    return values.pow(power).flatten(1).sum(dim=1, dtype=torch.float64)


def _within(step: int, alphas: torch.Tensor) -> None:
    if not 0 <= step < len(alphas):
        raise ValueError(f"timestep {step} of {len(alphas)}")
