"""What a model is asked of an image: by hand values of models that can be solved, and step by step in float64."""

import math

import numpy as np
import pytest
import torch

from transforms.kernels.membership_signals import loss, pfami, pia, secmi, sima

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
GENERATOR = torch.Generator().manual_seed(11)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


IMAGES = normal(5, 3, 8, 8).clamp(-1, 1)


def itself(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return x


def curved(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A model that isn't linear and depends on the timestep and on neighbours in the image."""
    return torch.tanh(x + x.roll(1, 3) * (t.view(-1, 1, 1, 1) / 500)) - 0.1


def test_loss_by_hand():
    noises = normal(4, *IMAGES.shape)
    found = loss(lambda x, t: torch.zeros_like(x), IMAGES, ALPHAS, [100, 7], noises)
    assert found.shape == (2, 4, 1, 5) and found.dtype == torch.float64
    np.testing.assert_allclose(found[0, :, 0], noises.double().square().mean(dim=(2, 3, 4)), rtol=1e-6)
    asked = []

    def oracle(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Knows the image, and so the noise."""
        asked.append((x, t))
        alpha = ALPHAS[t].float().view(-1, 1, 1, 1)
        return (x - alpha.sqrt() * IMAGES) / (1 - alpha).sqrt()

    np.testing.assert_allclose(loss(oracle, IMAGES, ALPHAS, [100], noises), 0, atol=1e-9)
    assert len(asked) == 4 and asked[0][1].tolist() == [100] * 5 and asked[0][1].dtype == torch.int64
    # The mirrored image is no image that it knows.
    mirrored = loss(oracle, IMAGES, ALPHAS, [100], noises[:2], flips=True)
    assert mirrored.shape == (1, 2, 2, 5) and (mirrored[:, :, 1] > 0.01).all()
    wrong = (ALPHAS[100] / (1 - ALPHAS[100])) * (IMAGES.flip(3) - IMAGES).double().square().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(mirrored[0, 0, 1], wrong, rtol=1e-4)


def test_secmi_misses_nothing_where_the_noise_stays_the_same():
    found = secmi(lambda x, t: torch.full_like(x, 0.5), IMAGES, ALPHAS, 10, 12)
    assert found.shape == (12, 5)
    np.testing.assert_allclose(found, 0, atol=1e-9)


def test_secmi_step_by_step():
    def asked(x: np.ndarray, t: int) -> np.ndarray:
        return curved(torch.from_numpy(x), torch.full((len(x),), t)).numpy()

    x = IMAGES.double().numpy()
    alphas, expected = ALPHAS.numpy(), []

    def step(x: np.ndarray, start: int, end: int) -> np.ndarray:
        """DDIM: what it takes the image for, with the same noise at the other timestep."""
        noise = asked(x, start)
        clean = (x - math.sqrt(1 - alphas[start]) * noise) / math.sqrt(alphas[start])
        return math.sqrt(alphas[end]) * clean + math.sqrt(1 - alphas[end]) * noise

    for t in range(0, 200, 40):
        onward = step(x, t, t + 40)
        expected.append(((step(onward, t + 40, t) - x) ** 2).sum(axis=(1, 2, 3)))
        x = onward
    np.testing.assert_allclose(secmi(curved, IMAGES.double(), ALPHAS, 40, 5), expected, rtol=1e-9)
    np.testing.assert_allclose(secmi(curved, IMAGES, ALPHAS, 40, 5), expected, rtol=1e-3, atol=1e-6)


def test_pia_and_sima_by_hand():
    fourth = IMAGES.double().pow(4).sum(dim=(1, 2, 3))
    np.testing.assert_allclose(sima(lambda x, t: x * t.view(-1, 1, 1, 1), IMAGES, [1, 3]), [fourth, 81 * fourth], rtol=1e-6)
    alpha = float(ALPHAS[200])
    factor = math.sqrt(alpha) + math.sqrt(1 - alpha)
    np.testing.assert_allclose(pia(itself, IMAGES.double(), ALPHAS, [200])[0], (1 - factor) ** 4 * fourth, rtol=1e-9)
    # Normalised: the noise is the image to the mean size of noise.
    size = math.sqrt(2 / math.pi) / IMAGES.double().abs().mean(dim=(1, 2, 3))
    left = size - math.sqrt(alpha) - math.sqrt(1 - alpha) * size
    np.testing.assert_allclose(pia(itself, IMAGES.double(), ALPHAS, [200], normalised=True)[0], left**4 * fourth, rtol=1e-9)


def test_pfami_is_the_loss_of_the_image_less_that_of_its_crops():
    noises = normal(2, *IMAGES.shape)
    # Crops of the whole are the image.
    np.testing.assert_allclose(pfami(curved, IMAGES, ALPHAS, noises, [0, 50], [1.0]), 0, atol=1e-9)
    crop = torch.nn.functional.interpolate(IMAGES[:, :, 1:7, 1:7], size=8, mode="bilinear")
    mean = [
        torch.stack([loss(curved, view, ALPHAS, [t], noise[None])[0, 0, 0] for t, noise in zip([0, 50], noises, strict=True)])
        for view in (IMAGES, crop)
    ]
    expected = mean[0].mean(dim=0) - mean[1].mean(dim=0)
    np.testing.assert_allclose(pfami(curved, IMAGES, ALPHAS, noises, [0, 50], [0.8]), expected, rtol=1e-9)
    assert expected.abs().min() > 1e-4


def test_an_image_doesnt_depend_on_its_batch():
    noises = normal(2, *IMAGES.shape)
    asked = (
        lambda some: loss(curved, IMAGES[some], ALPHAS, [9, 90], noises[:, some], flips=True),
        lambda some: secmi(curved, IMAGES[some], ALPHAS, 25, 4),
        lambda some: pia(curved, IMAGES[some], ALPHAS, [50, 200]),
        lambda some: sima(curved, IMAGES[some], [50, 200]),
        lambda some: pfami(curved, IMAGES[some], ALPHAS, noises[:, some], [0, 50], [0.8]),
    )
    for signal in asked:
        whole = signal([0, 1, 2, 3, 4])
        np.testing.assert_allclose(torch.cat([signal([3, 0]), signal([4])], dim=-1), whole[..., [3, 0, 4]], rtol=1e-6)


def test_what_cant_be_asked_is_refused():
    with pytest.raises(ValueError, match="noise has shape"):
        loss(itself, IMAGES, ALPHAS, [1], normal(*IMAGES.shape))
    with pytest.raises(ValueError, match="noise has shape"):
        pfami(itself, IMAGES, ALPHAS, normal(3, *IMAGES.shape), [1, 2])
    with pytest.raises(ValueError, match="timestep 1000 of 1000"):
        secmi(itself, IMAGES, ALPHAS, 100, 10)
    with pytest.raises(ValueError, match="timestep -1"):
        pia(itself, IMAGES, ALPHAS, [-1])
    assert not pia(lambda x, t: x * torch.ones(1, requires_grad=True), IMAGES, ALPHAS, [5]).requires_grad
