"""Trains one small model on given pictures, step by step: diffusion models of diffusers, and a GAN.

A training can be stopped after any step and go on from its ``state`` as if it had not been: every random number comes from one
generator, whose state is kept with the weights. It knows nothing of files.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from transforms.errors import UserError
from transforms.models import gan
from transforms.models.configuration import TRAINING_VERSION, Configuration, TrainingSet
from transforms.models.unconditional import new_scheduler, new_unet, saved_diffusion, saved_gan
from transforms.store.identity import digest

RECENT = 100
"""Steps whose mean loss is what is told."""


class Diverged(Exception):
    """The loss is no number any more; the text says since when. What was learned before stays."""


class Training(Protocol):
    """One model that is being trained.

    Attributes:
        step: how many are done.
        loss: mean of the last ``RECENT`` steps; None before the first.
        parameters: weights that are trained.
    """

    step: int
    parameters: int

    @property
    def loss(self) -> float | None: ...

    def advance(self) -> None:
        """One step. Diverged where the loss is not finite."""

    def epsilon(self) -> float | None:
        """What differential privacy promises of the steps so far, at a delta of one over the pictures; None without."""

    def state(self) -> dict[str, torch.Tensor]:
        """All that ``restore`` needs."""

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from there. ValueError: it is another training's."""

    def files(self) -> dict[str, bytes]:
        """The model as it is now: name inside its folder → content (``unconditional.load`` reads them)."""


def begin(configuration: Configuration, data: TrainingSet, device: str) -> Training:
    """A training before its first step.

    Raises:
        UserError: where the configuration can't be trained: opacus isn't there, or can't take a layer; a GAN of a size that it
            hasn't.
    """
    if configuration.family == "gan":
        return GanTraining(configuration, data, device)
    return DiffusionTraining(configuration, data, device)


class _Common:
    """What both families share: the pictures in their order, random numbers, the loss, the average of the weights."""

    def __init__(self, configuration: Configuration, data: TrainingSet, device: str):
        self.configuration, self.data, self.device = configuration, data, device
        self.step = 0
        which = [getattr(configuration, one) for one in ("seed", "draw", "split", "side")]
        seed = int(digest("training", *which, length=15), 16)
        self.random = torch.Generator("cpu").manual_seed(seed)
        scaled = torch.from_numpy(np.ascontiguousarray(data.pictures.transpose(0, 3, 1, 2))).float() / 127.5 - 1
        self.pictures = scaled.to(device)
        self.labels = None if data.labels is None else torch.from_numpy(data.labels.astype(np.int64)).to(device)
        # A picture with five copies stands there five times.
        self.places = torch.from_numpy(np.repeat(np.arange(len(data.copies)), data.copies))
        self.order, self.position = torch.empty(0, dtype=torch.int64), 0
        self.losses = torch.zeros(RECENT, dtype=torch.float64)
        torch.manual_seed(seed)  # of the weights; what else draws from it is seeded step by step

    @property
    def loss(self) -> float | None:
        return float(self.losses[: min(self.step, RECENT)].mean()) if self.step else None

    def _note(self, loss: torch.Tensor) -> None:
        value = loss.detach().item()
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} at step {self.step + 1:,}")
        self.losses[self.step % RECENT] = value
        self.step += 1

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next pictures and their labels: epoch after epoch, each in an order of its own."""
        wanted, chosen = self.configuration.batch_size, []
        while wanted:
            if self.position == len(self.order):
                self.order, self.position = torch.randperm(len(self.places), generator=self.random), 0
            some = self.order[self.position : self.position + wanted]
            self.position += len(some)
            wanted -= len(some)
            chosen.append(some)
        return self._pictures(self.places[torch.cat(chosen)])

    def _pictures(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        pictures = self.pictures[places.to(self.device)]
        if self.configuration.flip:
            turned = torch.rand(len(places), generator=self.random).to(self.device) < 0.5
            pictures = torch.where(turned[:, None, None, None], pictures.flip(3), pictures)
        return pictures, None if self.labels is None else self.labels[places.to(self.device)]

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.random).to(self.device)

    def _rate(self) -> float:
        """The learning rate of this step: it rises over ``warmup`` steps."""
        return self.configuration.learning_rate * min(1.0, (self.step + 1) / max(1, self.configuration.warmup))

    def _average(self, average: torch.nn.Module, model: torch.nn.Module) -> None:
        """Moves the average of the weights; at the beginning it forgets faster, as diffusers' EMAModel does."""
        decay = min(self.configuration.ema, (1 + self.step) / (10 + self.step)) if self.configuration.ema else 0.0
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            for mine, its in zip(average.buffers(), model.buffers(), strict=True):
                mine.copy_(its)

    def _common_state(self) -> dict[str, torch.Tensor]:
        text = json.dumps({"version": TRAINING_VERSION, "configuration": repr(self.configuration), "of": self.data.total})
        return {
            "is": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8),
            "random": self.random.get_state(),
            "order": self.order,
            "counts": torch.tensor([self.step, self.position]),
            "losses": self.losses,
        }

    def _restore_common(self, state: Mapping[str, torch.Tensor]) -> None:
        if bytes(state["is"].numpy()) != bytes(self._common_state()["is"].numpy()):
            raise ValueError("it is of another configuration, or of another version")
        self.random.set_state(state["random"])
        self.order, self.losses = state["order"].clone(), state["losses"].clone()
        self.step, self.position = state["counts"].tolist()


class DiffusionTraining(_Common):
    """A diffusion model in pixels that learns to predict the noise (Ho et al. 2020), by Adam; with opacus where it is private.

    With ``privacy_clipping`` the gradient of each picture is clipped, noise of ``privacy_noise`` times that norm is added, and
    pictures are drawn independently of each other, as the proof of DP-SGD asks (Abadi et al. 2016).
    """

    def __init__(self, configuration: Configuration, data: TrainingSet, device: str):
        super().__init__(configuration, data, device)
        self.model = new_unet(configuration, data.classes).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.parameters = sum(one.numel() for one in self.model.parameters())
        self.scheduler = new_scheduler(configuration)
        self.levels = self.scheduler.alphas_cumprod.to(device)
        private = configuration.privacy_clipping > 0
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=configuration.learning_rate, weight_decay=configuration.weight_decay, fused=not private
        )
        self.network: torch.nn.Module = self.model
        self.private = _Private(configuration, self, data.total) if private else None

    def advance(self) -> None:
        if self.private is not None:
            pictures, labels = self._pictures(self.places[self.private.draw(len(self.places), self.random)])
        else:
            pictures, labels = self._batch()
        noise = self._normal(*pictures.shape)
        times = torch.randint(0, len(self.levels), (len(pictures),), generator=self.random).to(self.device)
        level = self.levels[times][:, None, None, None]
        noised = level.sqrt() * pictures + (1 - level).sqrt() * noise
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        (self.private.optimizer if self.private is not None else self.optimizer).zero_grad()
        if self.configuration.dropout:
            # What drops out is drawn from torch's own numbers, which others may draw from meanwhile.
            torch.manual_seed(self.configuration.seed + self.step)
        if len(pictures):
            with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.configuration.precision == "bfloat16"):
                predicted = (
                    self.network(noised, times, labels).sample if labels is not None else self.network(noised, times).sample
                )
            loss = functional.mse_loss(predicted.float(), noise)
            loss.backward()
        else:  # nobody was drawn: there is noise alone to learn from
            loss = torch.zeros(())
        if self.private is not None:
            self.private.step(len(pictures))
        else:
            self.optimizer.step()
        self._average(self.average, self.model)
        self._note(loss)

    def epsilon(self) -> float | None:
        return None if self.private is None else self.private.epsilon(self.step)

    def state(self) -> dict[str, torch.Tensor]:
        return {
            **self._common_state(),
            **_prefixed("model", self.model.state_dict()),
            **_prefixed("average", self.average.state_dict()),
            **_prefixed("optimizer", _optimizer_state(self.optimizer)),
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._restore_common(state)
        self.model.load_state_dict(_inside("model", state))
        self.average.load_state_dict(_inside("average", state))
        _restore_optimizer(self.optimizer, _inside("optimizer", state))

    def files(self) -> dict[str, bytes]:
        if not all(bool(torch.isfinite(one).all()) for one in self.average.parameters()):
            raise Diverged(f"a weight is not finite after step {self.step:,}")
        return saved_diffusion(self.average, self.scheduler)


class _Private:
    """What opacus does in a step."""

    def __init__(self, configuration: Configuration, training: DiffusionTraining, total: int):
        try:
            from opacus import GradSampleModule
            from opacus.optimizers import DPOptimizer
            from opacus.validators import ModuleValidator
        except ImportError as error:
            raise UserError("privacy_clipping needs opacus; pip install 'eidetic[privacy]'") from error
        faults = ModuleValidator.validate(training.model, strict=False)
        if faults:
            raise UserError(f"opacus can't take the model ({' '.join(str(faults[0]).split())[:200]}); change its axes")
        # Its hooks ask for gradients of what is put in as well, which are of no use here.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        training.network = GradSampleModule(training.model)
        self.noise, self.rate, self.total = configuration.privacy_noise, configuration.batch_size / total, total
        if self.rate > 1:
            raise UserError(f"batch_size is {configuration.batch_size}, expected up to the {total} pictures of a private epoch")
        self.optimizer = DPOptimizer(
            training.optimizer,
            noise_multiplier=configuration.privacy_noise,
            max_grad_norm=configuration.privacy_clipping,
            expected_batch_size=configuration.batch_size,
            generator=training.random if training.device == "cpu" else None,
        )
        self.random = training.random

    def draw(self, total: int, random: torch.Generator) -> torch.Tensor:
        """Each picture with the same probability, whatever the others do."""
        return torch.nonzero(torch.rand(total, generator=random) < self.rate).squeeze(1)

    def step(self, pictures: int) -> None:
        if not pictures:
            for one in self.optimizer.params:
                one.grad_sample = torch.zeros((0, *one.shape), device=one.device)
        self.optimizer.step()

    def epsilon(self, steps: int) -> float | None:
        """By Rényi differential privacy (Mironov 2017); None where there is no noise, or no step."""
        from opacus.accountants import RDPAccountant

        if not self.noise or not steps:
            return None
        accountant = RDPAccountant()
        accountant.history = [(self.noise, self.rate, steps)]
        return accountant.get_epsilon(1 / self.total)


class GanTraining(_Common):
    """The GAN of ``gan.py`` by the hinge loss and Adam (0, 0.9); a step is one of both networks, the discriminator first."""

    def __init__(self, configuration: Configuration, data: TrainingSet, device: str):
        super().__init__(configuration, data, device)
        try:
            self.generator = gan.GanGenerator(configuration.pixels, configuration.width, data.classes).to(device)
        except ValueError as error:
            raise UserError(f"pixels is {configuration.pixels}: {error}") from error
        self.discriminator = gan.GanDiscriminator(configuration.pixels, configuration.width, data.classes).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        both = (self.generator, self.discriminator)
        self.parameters = sum(one.numel() for model in both for one in model.parameters())
        self.optimizers = [
            torch.optim.AdamW(
                model.parameters(), lr=configuration.learning_rate, weight_decay=configuration.weight_decay, betas=(0.0, 0.9)
            )
            for model in both
        ]

    def advance(self) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._rate()
        of_generator, of_discriminator = self.optimizers
        real, labels = self._batch()
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.configuration.precision == "bfloat16"):
            made = self.generator(self._normal(len(real), gan.LATENT), labels)
            judged = self.discriminator(
                torch.cat([real, made.detach().to(real.dtype)]), None if labels is None else labels.repeat(2)
            )
            judged_real, judged_made = judged.float().chunk(2)
            loss = functional.relu(1 - judged_real).mean() + functional.relu(1 + judged_made).mean()
        of_discriminator.zero_grad()
        loss.backward()
        of_discriminator.step()
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.configuration.precision == "bfloat16"):
            fooled = -self.discriminator(made, labels).float().mean()
        of_generator.zero_grad()
        fooled.backward()
        of_generator.step()
        self._average(self.average, self.generator)
        self._note(loss + 0 * fooled)

    def epsilon(self) -> float | None:
        return None

    def state(self) -> dict[str, torch.Tensor]:
        return {
            **self._common_state(),
            **_prefixed("generator", self.generator.state_dict()),
            **_prefixed("discriminator", self.discriminator.state_dict()),
            **_prefixed("average", self.average.state_dict()),
            **_prefixed("of_generator", _optimizer_state(self.optimizers[0])),
            **_prefixed("of_discriminator", _optimizer_state(self.optimizers[1])),
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._restore_common(state)
        for name, model in (("generator", self.generator), ("discriminator", self.discriminator), ("average", self.average)):
            model.load_state_dict(_inside(name, state))
        for name, optimizer in zip(("of_generator", "of_discriminator"), self.optimizers, strict=True):
            _restore_optimizer(optimizer, _inside(name, state))

    def files(self) -> dict[str, bytes]:
        if not all(bool(torch.isfinite(one).all()) for one in self.average.parameters()):
            raise Diverged(f"a weight is not finite after step {self.step:,}")
        return saved_gan(self.average, self.discriminator, self.configuration.pixels, self.configuration.width)


def _prefixed(name: str, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value.detach().cpu().contiguous() for key, value in state.items()}


def _inside(name: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return dict(_moments(optimizer))


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for number, one in enumerate(one for group in optimizer.param_groups for one in group["params"]):
        for name, value in optimizer.state.get(one, {}).items():
            yield f"{number}.{name}", value


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, torch.Tensor]) -> None:
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for key, value in state.items():
        number, name = key.split(".")
        one = parameters[int(number)]
        optimizer.state[one][name] = value.clone().to(one.device if name != "step" else value.device)
