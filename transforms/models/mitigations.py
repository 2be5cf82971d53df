"""What may keep a model from giving back what it has remembered while it makes a picture; and DoRI, which asks if it is gone.

Each mitigation is a small class: what it does to the caption, to the embedding, to the noise that a picture begins with, or to
the guidance of each step. Its parameters are those of its source; where the source has none that fits any model it is said.
Every picture is worked on alone, also inside a batch: what becomes of it doesn't depend on what lies beside it.

Sources, read as code: somepago/DCR (Somepalli et al. 2023, "Understanding and Mitigating Copying in Diffusion Models"),
YuxinWenRick/diffusion_memorization (Wen et al. 2024, "Detecting, Explaining, and Mitigating Memorization in Diffusion Models"),
Dongjae0324/sharpness_memorization_diffusion (Jeon et al. 2025, SAIL), SonyResearch/mitigating_memorization (Jain et al. 2025,
"Classifier-Free Guidance inside the Attraction Basin May Cause Memorization"). DoRI: Kowalczuk et al. 2025, arXiv 2507.16880.
docs/mitigations.md says what each really does, and what is our choice.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from transforms.errors import UserError
from transforms.models.base import Attempt, failed
from transforms.models.devices import in_batches, out_of_memory
from transforms.models.diffusion import DiffusersGenerator
from transforms.models.parts import pipeline_class
from transforms.store.identity import digest

if TYPE_CHECKING:
    import torch

STABLE_DIFFUSION_VALUES = 4 * 64 * 64
"""Numbers in a latent of Stable Diffusion 1, for which Wen's and Jeon's targets are given."""


def target_for(target: float, values: int) -> float:
    """A target for the norm of a prediction of another size: the norm grows with the root of the number of values.

    Our choice: the sources name targets for Stable Diffusion alone.

    Args:
        target: for a latent of Stable Diffusion, 4 × 64 × 64.
        values: numbers in a latent of the model that is asked.
    """
    return target * math.sqrt(values / STABLE_DIFFUSION_VALUES)


def norms(differences: torch.Tensor) -> torch.Tensor:
    """(n, …) → (n,) l2 norms of each."""
    return differences.flatten(1).norm(dim=1)


def descend(
    start: torch.Tensor,
    losses_of: Callable[[torch.Tensor], torch.Tensor],
    *,
    rate: float,
    steps: int,
    target: float,
    frozen: int = 0,
) -> torch.Tensor:
    """Adam on the values of each picture, until that picture's own loss is at most the target.

    Args:
        start: (n, …) float32.
        losses_of: the same shape → (n,), of each picture by its own values alone.
        rate: learning rate.
        steps: updates at most.
        target: a picture whose loss is at most this is left as it is.
        frozen: so many of the first along the second axis (tokens) don't move.

    Returns:
        (n, …) float32.
    """
    import torch

    values = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([values], lr=rate)
    for _ in range(steps):
        losses = losses_of(values)
        going = losses.detach() > target  # and not where it is NaN: nothing leads on from there
        if not going.any():
            break
        (gradient,) = torch.autograd.grad(losses.sum(), [values])
        gradient[:, :frozen] = 0
        before = values.detach().clone()
        values.grad = gradient
        optimizer.step()
        with torch.no_grad():
            values.copy_(torch.where(going.reshape(-1, *[1] * (values.ndim - 1)), values, before))
    return values.detach()


def in_basin(differences: Sequence[torch.Tensor]) -> torch.Tensor:
    """Whether each picture is still in front of its transition point: no local minimum of the differences was passed yet.

    Args:
        differences: of each step so far the (n,) norms of the difference between both predictions.

    Returns:
        (n,) flags.

    Source: generate_test_dataset_dtp.py of SonyResearch/mitigating_memorization: guidance begins in the first step whose
    difference is larger than the one before it, if that one was smaller than its own predecessor.
    """
    import torch

    history = torch.stack(list(differences))
    minimum = (history[2:] > history[1:-1]) & (history[:-2] > history[1:-1])
    return ~minimum.any(dim=0)


class FirstStep(NamedTuple):
    """A model in the first step of some pictures.

    Attributes:
        difference: ((n, C, h, w) latents, (n, tokens, width) embeddings, the same of the empty caption) → (n, C, h, w): the
            prediction with the caption less the one without. Of a model that predicts velocities it is theirs: that is what
            guidance multiplies, and where there is nothing but noise the noise itself hardly differs.
        values: numbers in one latent.
    """

    difference: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    values: int


# -- the mitigations --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NoMitigation:
    """The pictures as the audit makes them; the base of all others."""

    name: ClassVar[str] = "none"

    def caption(self, text: str, words: Callable[[np.random.Generator], str], random: np.random.Generator) -> str:
        """The caption that a picture is made of. ``words`` draws one of the tokenizer's."""
        return text

    def embedding(self, embedding: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """(1, tokens, width) → the same of one picture."""
        return embedding

    def first_step(
        self, model: FirstStep, noise: torch.Tensor, embedding: torch.Tensor, empty: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, C, h, w) standard normal noise and (n, tokens, width) embeddings → what the pictures begin with."""
        return noise, embedding

    def scale(self, moment: float, full: float) -> float | None:
        """Guidance of a step.

        Args:
            moment: of the schedule, 1 (nothing but noise) to 0.
            full: the audit's.

        Returns:
            0: without the caption; 1: with it, and without guidance; None: ``scales`` says it.
        """
        return full

    def scales(self, differences: Sequence[torch.Tensor], full: float) -> torch.Tensor:
        """(n,) guidance of a step, by the norms of the differences so far, this step's included."""
        raise NotImplementedError("the guidance is known beforehand")


@dataclasses.dataclass(frozen=True)
class CaptionRandomisation(NoMitigation):
    """Random words are put at random places into the caption, others for each picture.

    Source: ``prompt_augmentation`` of sd_mitigation.py, and its default of four.
    """

    name: ClassVar[str] = "caption_randomisation"
    words: int = 4

    def caption(self, text: str, words: Callable[[np.random.Generator], str], random: np.random.Generator) -> str:
        mine = text.split(" ")
        for _ in range(self.words):
            mine.insert(int(random.integers(len(mine) + 1)), self._word(text, words, random))
        return " ".join(mine)

    def _word(self, text: str, words: Callable[[np.random.Generator], str], random: np.random.Generator) -> str:
        return words(random)


@dataclasses.dataclass(frozen=True)
class CaptionRepetition(CaptionRandomisation):
    """As ``CaptionRandomisation``, with words of the caption itself (``rand_word_repeat``)."""

    name: ClassVar[str] = "caption_repetition"

    def _word(self, text: str, words: Callable[[np.random.Generator], str], random: np.random.Generator) -> str:
        return str(random.choice(text.split(" ")))


@dataclasses.dataclass(frozen=True)
class CaptionNumbers(CaptionRandomisation):
    """As ``CaptionRandomisation``, with numbers under 100,000 (``rand_numb_add``)."""

    name: ClassVar[str] = "caption_numbers"

    def _word(self, text: str, words: Callable[[np.random.Generator], str], random: np.random.Generator) -> str:
        return str(random.integers(100_000))


@dataclasses.dataclass(frozen=True)
class EmbeddingNoise(NoMitigation):
    """Gaussian noise on the text embedding, and on that of the empty caption. Source: ``Newpipe`` of sd_mitigation.py, lam 0.1.

    An attacker who looks for an embedding looks for one that works under the noise: ``DoRI`` adds it as well.
    """

    name: ClassVar[str] = "embedding_noise"
    lam: float = 0.1

    def embedding(self, embedding: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        import torch

        noise = torch.randn(embedding.shape, generator=random, dtype=torch.float32)
        return embedding + self.lam * noise.to(embedding.device, embedding.dtype)


@dataclasses.dataclass(frozen=True)
class PromptPerturbation(NoMitigation):
    """In the first step the embedding is moved until both predictions hardly differ; the first token stays.

    Source: ``aug_prompt`` of local_sd_pipeline.py, its README's target. There one embedding serves all pictures of a prompt, by
    the norm of all their differences together; and AdamW's decay also shrinks the token that stays. Here each picture has its
    own, and nothing decays.
    """

    name: ClassVar[str] = "prompt_perturbation"
    rate: float = 0.05
    steps: int = 10
    target: float = 3.0

    def first_step(
        self, model: FirstStep, noise: torch.Tensor, embedding: torch.Tensor, empty: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        moved = descend(
            embedding.float(),
            lambda values: norms(model.difference(noise, values, empty)),
            rate=self.rate,
            steps=self.steps,
            target=target_for(self.target, model.values),
            frozen=1,
        )
        return noise, moved.to(embedding.dtype)


@dataclasses.dataclass(frozen=True)
class InitialNoise(NoMitigation):
    """SAIL: the noise that a picture begins with is moved to where both predictions differ little, one step along their
    difference, and where it is still likely.

    The loss is that of the repository, ‖D(x + D(x) / ‖D(x)‖)‖ + alpha ‖x‖ with D the difference, and not the paper's, which
    subtracts D(x) and squares both norms: the published target, 8.2, is one of the former (alpha ‖x‖ alone is 6.4 for Stable
    Diffusion, and squared it would be 819). Source: pipe.py of the repository, where the direction stays that of the first step
    and latents that don't come to the target are drawn anew, of eight at a time; here the direction is followed, and a picture
    keeps its own noise, as far as the steps have brought it.
    """

    name: ClassVar[str] = "initial_noise"
    rate: float = 0.05
    steps: int = 10
    alpha: float = 0.05
    target: float = 8.2

    def losses(self, model: FirstStep, noise: torch.Tensor, embedding: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
        """(n,)"""
        along = model.difference(noise, embedding, empty)
        along = along / norms(along).clamp_min(1e-12).reshape(-1, 1, 1, 1)
        return norms(model.difference(noise + along, embedding, empty)) + self.alpha * norms(noise)

    def first_step(
        self, model: FirstStep, noise: torch.Tensor, embedding: torch.Tensor, empty: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        moved = descend(
            noise.float(),
            lambda values: self.losses(model, values, embedding, empty),
            rate=self.rate,
            steps=self.steps,
            target=target_for(self.target, model.values),
        )
        return moved.to(noise.dtype), embedding


@dataclasses.dataclass(frozen=True)
class AttractionBasin(NoMitigation):
    """No caption before a transition point, the audit's guidance after it.

    Source: generate_test_dataset_stp.py and the README of SonyResearch/mitigating_memorization: guidance 0 before step 500 of
    1,000.

    Attributes:
        before: guidance before it.
        until: the transition point, of the schedule: 1 is nothing but noise.
    """

    name: ClassVar[str] = "attraction_basin"
    before: float = 0.0
    until: float = 0.5

    def scale(self, moment: float, full: float) -> float | None:
        return self.before if moment > self.until else full


@dataclasses.dataclass(frozen=True)
class OppositeGuidance(AttractionBasin):
    """The same, away from the caption before the point: guidance -2 before step 650, of the README."""

    name: ClassVar[str] = "opposite_guidance"
    before: float = -2.0
    until: float = 0.65


@dataclasses.dataclass(frozen=True)
class DynamicBasin(NoMitigation):
    """The transition point is each picture's own: the first local minimum of the difference between both predictions.

    Source: generate_test_dataset_dtp.py, in which guidance before it is 1: the caption is heeded, and not amplified. A picture
    without a minimum is made so to its end, as it is there.
    """

    name: ClassVar[str] = "dynamic_basin"
    before: float = 1.0

    def scale(self, moment: float, full: float) -> float | None:
        return None

    def scales(self, differences: Sequence[torch.Tensor], full: float) -> torch.Tensor:
        import torch

        inside = in_basin(differences)
        return torch.where(inside, self.before, full).to(differences[-1])


MITIGATIONS: dict[str, NoMitigation] = {
    one.name: one
    for one in (
        NoMitigation(), CaptionRandomisation(), CaptionRepetition(), CaptionNumbers(), EmbeddingNoise(), PromptPerturbation(),
        InitialNoise(), AttractionBasin(), DynamicBasin(), OppositeGuidance(),
    )
}  # fmt: skip
"""By name, with the parameters of their sources."""


@dataclasses.dataclass(frozen=True)
class DoRI:
    """The attack: a text embedding is looked for that makes the model draw a given picture.

    Attributes:
        steps, batch, rate: of Adam: the paper's.
    """

    steps: int = 50
    batch: int = 8
    rate: float = 0.1


TAKEN = "the pipeline's safety checker took the picture"
"""The reason of a picture without one."""


class Made(NamedTuple):
    """A picture that was made, or not, and what it cost.

    Attributes:
        attempt: with the seconds that it took, its share of a batch's.
        evaluations: passes of one latent through the U-Net, forward and backward.
    """

    attempt: Attempt
    evaluations: float


# -- the model --------------------------------------------------------------------------------------------------------


class MitigatedGenerator(DiffusersGenerator):
    """A pipeline of Stable Diffusion's shape, asked step by step: as ``DiffusersGenerator`` makes pictures, or mitigated."""

    @classmethod
    def of(cls, generator: DiffusersGenerator) -> MitigatedGenerator:
        """The same model with the same settings."""
        return cls(**{field.name: getattr(generator, field.name) for field in dataclasses.fields(generator)})

    def check(self) -> None:
        super().check()
        found = pipeline_class(self.model, **self._source)
        if found.__name__ != "StableDiffusionPipeline":
            raise self._other(found.__name__)

    def _other(self, name: str) -> UserError:
        return UserError(
            f"the model {self.model!r} is a {name}, and mitigations are known for a StableDiffusionPipeline whose U-Net has "
            "cross-attention and knows no guidance of its own; audit such a model"
        )

    def load(self) -> None:
        import torch
        from diffusers import DDPMScheduler, UNet2DConditionModel

        super().load()
        unet: Any = getattr(self._pipeline, "unet", None)
        plain = self._encodes and isinstance(unet, UNet2DConditionModel)
        if not plain or self._pipeline.unet.config.time_cond_proj_dim is not None:
            raise self._other(type(self._pipeline).__name__)
        for part in self._pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
        # How much noise there is at which moment, as in training; the sampler's own may know but the moments of its steps.
        self._schedule = DDPMScheduler.from_config(self._pipeline.scheduler.config)
        self._passes = 0
        self._encoded: dict[str, torch.Tensor] = {}
        self._words: list[str] = []

    def embedding(self, text: str) -> torch.Tensor:
        """(1, tokens, width) of a caption, as the pipeline makes it."""
        import torch

        if text not in self._encoded:
            if len(self._encoded) > 1000:
                self._encoded.clear()
            with torch.no_grad():
                self._encoded[text], _ = self._pipeline.encode_prompt(text, self._pipeline.device, 1, False)
        return self._encoded[text]

    def make(
        self, mitigation: NoMitigation, text: str, seeds: Mapping[int, int], embedding: torch.Tensor | None = None
    ) -> dict[int, Made]:
        """Pictures of one prompt under a mitigation.

        Args:
            mitigation: which.
            text: the prompt.
            seeds: number → seed of the noise that it begins with, and of what else is drawn for it.
            embedding: (1, tokens, width), asked for instead of the prompt: there is no caption to change then.

        Returns:
            number → picture. What the model can't make is an attempt with a status.
        """
        made: dict[int, Made] = {}
        too_little = f"out of memory on {self.device} with a single picture at once; name --dtype float16, or another device"

        def work(numbers: Sequence[int], size: int) -> list[Made]:
            return self._tried(mitigation, text, [seeds[number] for number in numbers], embedding)

        for numbers, some in in_batches(self, list(seeds), work, too_little):
            made.update(zip(numbers, some, strict=True))
        return made

    def _tried(self, mitigation: NoMitigation, text: str, seeds: Sequence[int], embedding: torch.Tensor | None) -> list[Made]:
        begun, before = time.perf_counter(), self._passes
        try:
            pictures, taken = self._sample(mitigation, text, seeds, embedding)
        except (RuntimeError, ValueError, LookupError, ArithmeticError) as error:
            if out_of_memory(error):
                raise
            return [Made(failed(error, (time.perf_counter() - begun) / len(seeds)), 0.0)] * len(seeds)
        seconds, evaluations = (time.perf_counter() - begun) / len(seeds), (self._passes - before) / len(seeds)
        return [
            Made(self._attempt(picture, TAKEN if bad else None, seconds), evaluations)
            for picture, bad in zip(pictures, taken, strict=True)
        ]

    def _sample(
        self, mitigation: NoMitigation, text: str, seeds: Sequence[int], embedding: torch.Tensor | None
    ) -> tuple[np.ndarray, Sequence[bool]]:
        """(n, H, W, 3) float in [0, 1], and which the safety checker took. What StableDiffusionPipeline does, and more."""
        import torch

        pipeline, scheduler, device = self._pipeline, self._pipeline.scheduler, self._pipeline.device
        # What is drawn beside the noise has its own source, so that the noise is the same under all mitigations.
        drawn = [np.random.default_rng(int(digest("mitigation", seed, length=16), 16)) for seed in seeds]
        other = [torch.Generator("cpu").manual_seed(int(random.integers(1 << 62))) for random in drawn]
        asked = [
            self.embedding(mitigation.caption(text, self._word, random)) if embedding is None else embedding for random in drawn
        ]
        with torch.no_grad():
            embeddings = torch.cat([mitigation.embedding(one, random) for one, random in zip(asked, other, strict=True)])
            empty = torch.cat([mitigation.embedding(self.embedding(""), random) for random in other])
        full = self.guidance_scale if self.guidance_scale > 1 else 1.0
        scheduler.set_timesteps(self.steps, device=device)
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with torch.no_grad():
            latents = pipeline.prepare_latents(
                len(seeds), pipeline.unet.config.in_channels, *self._size(), embeddings.dtype, device, noise, None
            )
        first = scheduler.timesteps[0]
        spread = float(scheduler.init_noise_sigma)

        def difference(start: torch.Tensor, conditions: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
            there = scheduler.scale_model_input((start * spread).to(embeddings.dtype), first)
            plain, heeding = self._both(there, first, conditions.to(embeddings.dtype), without)
            along = (heeding - plain).float()
            if along.requires_grad:
                along.register_hook(lambda _: self._count(2 * len(start)))  # where it is gone back
            return along

        with torch.enable_grad():
            model = FirstStep(difference, latents[0].numel())
            start, embeddings = mitigation.first_step(model, latents / spread, embeddings, empty)
        # Some schedulers count the steps that they were asked about.
        scheduler.set_timesteps(self.steps, device=device)
        extra = pipeline.prepare_extra_step_kwargs(noise, 0.0)
        with torch.no_grad():
            latents = self._denoise(mitigation, start * spread, embeddings, empty, full, extra)
            decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False, generator=noise)[0]
            pictures, taken = pipeline.run_safety_checker(decoded, device, embeddings.dtype)
            taken = [False] * len(seeds) if taken is None else [bool(one) for one in taken]
            return pipeline.image_processor.postprocess(
                pictures, output_type="np", do_denormalize=[not one for one in taken]
            ), taken

    def _denoise(
        self,
        mitigation: NoMitigation,
        latents: torch.Tensor,
        embeddings: torch.Tensor,
        empty: torch.Tensor,
        full: float,
        extra: dict[str, Any],
    ) -> torch.Tensor:
        """(n, C, h, w) noise → latents of the pictures."""
        scheduler, moments = self._pipeline.scheduler, self._pipeline.scheduler.config.num_train_timesteps
        differences: list[torch.Tensor] = []
        for moment in scheduler.timesteps:
            there = scheduler.scale_model_input(latents, moment)
            scale = mitigation.scale(float(moment) / moments, full)
            if scale == 0:
                predicted = self._predict(there, moment, empty)
            elif scale == 1:
                predicted = self._predict(there, moment, embeddings)
            else:
                plain, heeding = self._both(there, moment, embeddings, empty)
                along = heeding - plain
                if scale is None:
                    differences.append(norms(along.float()))
                    along = along * mitigation.scales(differences, full).to(along.dtype).reshape(-1, 1, 1, 1)
                else:
                    along = along * scale
                predicted = plain + along
            latents = scheduler.step(predicted, moment, latents, **extra, return_dict=False)[0]
        return latents

    def _count(self, passes: int) -> None:
        self._passes += passes

    def _predict(self, latents: torch.Tensor, moment: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        self._passes += len(latents)
        return self._pipeline.unet(latents, moment, encoder_hidden_states=embeddings, return_dict=False)[0]

    def _both(
        self, latents: torch.Tensor, moment: torch.Tensor, embeddings: torch.Tensor, empty: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The predictions without the caption and with it."""
        import torch

        plain, heeding = self._predict(torch.cat([latents] * 2), moment, torch.cat([empty, embeddings])).chunk(2)
        return plain, heeding

    def _size(self) -> tuple[int, int]:
        """(height, width) of its pictures, in pixels: what the pipeline makes by default."""
        side = self._pipeline.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        return height * self._pipeline.vae_scale_factor, width * self._pipeline.vae_scale_factor

    def _word(self, random: np.random.Generator) -> str:
        """One of the tokenizer's tokens as a word: none of its special ones, and none that shows nothing."""
        if not self._words:
            tokenizer = self._pipeline.tokenizer
            tokens = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
            words = (tokenizer.decode([token]).strip() for token in tokens)
            self._words = [word for word in words if word and word.isprintable()]
        return self._words[int(random.integers(len(self._words)))]

    def attack(
        self, text: str, picture: np.ndarray, seed: int, how: DoRI, mitigation: NoMitigation
    ) -> tuple[torch.Tensor, list[float]]:
        """DoRI: looks for an embedding that makes the model draw a picture, under a mitigation.

        The diffusion loss on the picture is made small, with fresh noise and moments in each step, from the embedding of the
        prompt on (our reading of "small perturbations to the text embeddings of previously mitigated prompts"); all its tokens
        may move. It asks the model without sampling, so of mitigations only one that changes embeddings is felt, and one search
        serves all the others.

        Args:
            text: the prompt.
            picture: (H, W, 3) uint8 of any size; the middle of it is drawn.
            seed: of noise and moments.
            how: with which steps.
            mitigation: which the pictures will be made under.

        Returns:
            (1, tokens, width); the loss of each step.
        """
        import torch

        schedule, device = self._schedule, self._pipeline.device
        random = torch.Generator("cpu").manual_seed(seed)
        with torch.no_grad():
            target = self.latent(picture)
        begin = self.embedding(text)
        found = begin.float().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([found], lr=how.rate)
        losses = []
        for _ in range(how.steps):
            noise = torch.randn((how.batch, *target.shape[1:]), generator=random).to(device, target.dtype)
            moments = torch.randint(schedule.config.num_train_timesteps, (how.batch,), generator=random).to(device)
            latents = target.expand(how.batch, -1, -1, -1)
            with torch.enable_grad():
                conditions = torch.cat([mitigation.embedding(found, random) for _ in range(how.batch)])
                predicted = self._predict(schedule.add_noise(latents, noise, moments), moments, conditions.to(begin.dtype))
                wanted = self._wanted(latents, noise, moments)
                loss = (predicted.float() - wanted.float()).square().mean()
                (found.grad,) = torch.autograd.grad(loss, [found])
            optimizer.step()
            losses.append(loss.item())
        return found.detach().to(begin.dtype), losses

    def _wanted(self, latents: torch.Tensor, noise: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
        """What the model should predict, in training."""
        kind = self._schedule.config.prediction_type
        if kind == "v_prediction":
            return self._schedule.get_velocity(latents, noise, moments)
        return latents if kind == "sample" else noise

    def latent(self, picture: np.ndarray) -> torch.Tensor:
        """(H, W, 3) uint8 → (1, C, h, w): what the model denoises to where it draws it; of another shape the middle."""
        import torch
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

        from transforms.kernels.distances import Frame, central_crop

        middle = central_crop(picture, Frame(*self._size()))
        pixels = torch.from_numpy(middle.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        vae = self._pipeline.vae
        found = retrieve_latents(vae.encode(pixels.to(self._pipeline.device, vae.dtype)), sample_mode="argmax")
        return found * vae.config.scaling_factor
