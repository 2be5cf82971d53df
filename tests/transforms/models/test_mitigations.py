"""Mitigations and DoRI: each does what its formula says, to every picture alone, and nothing where there is none."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler

from tests.models import save_pixel_pipeline, save_random_pipeline
from transforms.errors import UserError
from transforms.models.base import Wanted
from transforms.models.diffusion import DiffusersGenerator
from transforms.models.mitigations import (
    MITIGATIONS,
    AttractionBasin,
    CaptionNumbers,
    CaptionRandomisation,
    CaptionRepetition,
    DoRI,
    DynamicBasin,
    EmbeddingNoise,
    FirstStep,
    InitialNoise,
    MitigatedGenerator,
    NoMitigation,
    OppositeGuidance,
    PromptPerturbation,
    descend,
    in_basin,
    target_for,
)

SEEDS = {0: 11, 1: 12, 2: 13}
NONE = NoMitigation()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "random"
    save_random_pipeline(str(path))
    return str(path)


def loaded(folder, steps=3, guidance=3.0, batch_size=4):
    made = MitigatedGenerator.of(DiffusersGenerator(folder, steps, guidance, batch_size, "cpu", "float32"))
    made.load()
    return made


@pytest.fixture(scope="module")
def model(folder):
    return loaded(folder)


def pictures(made):
    assert {one.attempt.status for one in made.values()} == {"success"}
    return [one.attempt.image.astype(int) for one in made.values()]


def apart(one, other):
    return max(int(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


# -- the sampler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler", [DPMSolverMultistepScheduler, DDIMScheduler, PNDMScheduler, EulerAncestralDiscreteScheduler]
)
def test_without_a_mitigation_the_pictures_are_those_of_the_audit(folder, scheduler):
    plain = DiffusersGenerator(folder, 3, 3.0, 3, "cpu", "float32")
    plain.load()
    made = loaded(folder, batch_size=3)
    for one in (plain, made):
        # As Stable Diffusion's has it; the others take no notice.
        one._pipeline.scheduler = scheduler.from_config({**one._pipeline.scheduler.config, "skip_prk_steps": True})
    (expected,) = plain.generate([Wanted("a logo", SEEDS)])
    found = made.make(NONE, "a logo", SEEDS)
    assert apart(pictures(found), [one.image.astype(int) for one in expected.values()]) == 0
    calls = len(made._pipeline.scheduler.timesteps)
    assert {one.evaluations for one in found.values()} == {2 * calls}


def test_without_guidance_the_model_is_asked_once_a_step(folder):
    plain = DiffusersGenerator(folder, 3, 1.0, 3, "cpu", "float32")
    plain.load()
    (expected,) = plain.generate([Wanted("a logo", SEEDS)])
    found = loaded(folder, guidance=1.0, batch_size=3).make(NONE, "a logo", SEEDS)
    assert apart(pictures(found), [one.image.astype(int) for one in expected.values()]) == 0
    assert {one.evaluations for one in found.values()} == {3}


@pytest.mark.parametrize("name", MITIGATIONS)
def test_a_picture_does_not_depend_on_what_lies_beside_it(folder, model, name):
    together = model.make(MITIGATIONS[name], "a logo of some kind", SEEDS)
    backwards = model.make(MITIGATIONS[name], "a logo of some kind", dict(reversed(SEEDS.items())))
    alone = {number: model.make(MITIGATIONS[name], "a logo of some kind", {number: SEEDS[number]})[number] for number in SEEDS}
    assert list(together) == list(SEEDS)
    assert apart(pictures(together), pictures(alone)) <= 1
    assert apart(pictures(together), pictures({number: backwards[number] for number in SEEDS})) <= 1
    if name != "none":
        assert apart(pictures(together), pictures(model.make(NONE, "a logo of some kind", SEEDS))) > 1


def reference(model, text, seed, scale_of):
    """A picture by a plain loop over the parts, with a guidance of each step."""
    pipeline = model._pipeline
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(model.steps)
    with torch.no_grad():
        heeding, plain = pipeline.encode_prompt(text, "cpu", 1, True)
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(seed))
        for moment in scheduler.timesteps:
            without, along = (pipeline.unet(latents, moment, encoder_hidden_states=one).sample for one in (plain, heeding))
            predicted = without + scale_of(float(moment)) * (along - without)
            latents = scheduler.step(predicted, moment, latents).prev_sample
        picture = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample[0]
    return np.rint((picture / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255).astype(int)


@pytest.mark.parametrize(("mitigation", "before", "until"), [(AttractionBasin(), 0.0, 500), (OppositeGuidance(), -2.0, 650)])
def test_guidance_begins_at_the_transition_point(folder, mitigation, before, until):
    made = loaded(folder, steps=5)
    made._pipeline.scheduler = DDIMScheduler.from_config(made._pipeline.scheduler.config)
    found = made.make(mitigation, "another logo", {0: 7})
    expected = reference(made, "another logo", 7, lambda moment: before if moment > until else 3.0)
    assert apart(pictures(found), [expected]) <= 1
    moments = made._pipeline.scheduler.timesteps.tolist()
    late = sum(moment <= until for moment in moments)
    assert 0 < late < len(moments)
    # Where nothing is multiplied by the other prediction it isn't asked for.
    assert found[0].evaluations == (2 * len(moments) if before else len(moments) + late)


def test_a_picture_of_an_embedding_is_that_of_its_caption(model):
    by_caption = model.make(NONE, "a logo", SEEDS)
    by_embedding = model.make(NONE, "never read", SEEDS, model.embedding("a logo"))
    assert apart(pictures(by_caption), pictures(by_embedding)) == 0


# -- captions and embeddings ------------------------------------------------------------------------------------------


def is_inside(some, others):
    rest = iter(others)
    return all(one in rest for one in some)


def test_words_are_put_into_the_caption_and_none_is_lost():
    text = "a red logo of nobody"
    drawn = iter(f"word{number}" for number in range(100))
    for number in range(20):
        random = np.random.default_rng(number)
        added = CaptionRandomisation().caption(text, lambda _: next(drawn), random).split(" ")
        assert len(added) == 9 and is_inside(text.split(" "), added)
        assert sum(word.startswith("word") for word in added) == 4
        repeated = CaptionRepetition().caption(text, None, np.random.default_rng(number)).split(" ")
        assert len(repeated) == 9 and is_inside(text.split(" "), repeated) and set(repeated) == set(text.split(" "))
        numbered = CaptionNumbers().caption(text, None, np.random.default_rng(number)).split(" ")
        mine = [int(word) for word in numbered if word.isdigit()]
        assert len(mine) == 4 and all(0 <= one < 100_000 for one in mine) and is_inside(text.split(" "), numbered)
    captions = {CaptionNumbers().caption(text, None, np.random.default_rng(number)) for number in range(20)}
    assert len(captions) == 20
    assert CaptionNumbers().caption(text, None, np.random.default_rng(3)) == CaptionNumbers().caption(
        text, None, np.random.default_rng(3)
    )


def test_words_may_stand_at_both_ends():
    places = {
        CaptionRandomisation(words=1).caption("a b", lambda _: "X", np.random.default_rng(number)) for number in range(50)
    }
    assert places == {"X a b", "a X b", "a b X"}


def test_drawn_words_are_none_of_the_tokenizers_special_ones(model):
    words = {model._word(np.random.default_rng(number)) for number in range(50)}
    assert len(words) > 10
    assert not any("<|" in word for word in words)
    assert all(word.strip() and word.isprintable() for word in words)


def test_noise_on_the_embedding_has_its_spread():
    embedding = torch.zeros(1, 200, 100)
    moved = EmbeddingNoise().embedding(embedding, torch.Generator("cpu").manual_seed(1))
    assert moved.std().item() == pytest.approx(0.1, rel=0.02) and abs(moved.mean().item()) < 0.003
    assert torch.equal(moved, EmbeddingNoise().embedding(embedding, torch.Generator("cpu").manual_seed(1)))


# -- what is optimised ------------------------------------------------------------------------------------------------


def adam(start, gradient_of, rate, steps, going):
    """Kingma and Ba's algorithm 1 in float64, while ``going`` holds."""
    values, first, second = start.astype(np.float64), 0.0, 0.0
    for step in range(1, steps + 1):
        if not going(values):
            break
        gradient = gradient_of(values)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        values = values - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return values


def test_descent_is_adams_of_each_picture_until_its_target():
    random = np.random.default_rng(0)
    start = random.normal(size=(4, 5, 3)) * np.array([0.1, 0.6, 1.0, 3.0])[:, None, None]
    found = descend(
        torch.tensor(start, dtype=torch.float32), lambda x: x.flatten(1).norm(dim=1), rate=0.05, steps=10, target=2.0, frozen=1
    ).numpy()
    moved = 0
    for one, mine in zip(start, found, strict=True):

        def gradient(values):
            slope = values / np.linalg.norm(values)
            slope[:1] = 0
            return slope

        expected = adam(one, gradient, 0.05, 10, lambda values: np.linalg.norm(values) > 2.0)
        np.testing.assert_allclose(mine, expected, atol=2e-5)
        np.testing.assert_array_equal(mine[0], one[0].astype(np.float32))
        moved += not np.array_equal(mine, one.astype(np.float32))
    # One is below its target from the beginning.
    assert 2 <= moved <= 3


def test_descent_ends_where_nothing_leads_on():
    start = torch.full((2, 2, 2), math.nan)
    assert torch.isnan(descend(start, lambda x: x.flatten(1).norm(dim=1), rate=0.1, steps=5, target=0.0)).all()


def test_targets_grow_with_the_root_of_the_values():
    assert target_for(3.0, 4 * 64 * 64) == 3.0
    assert target_for(3.0, 4 * 32 * 32) == 1.5
    assert target_for(8.2, 4 * 96 * 96) == pytest.approx(12.3)


def linear_model(matrix):
    """D(x) = A x + the mean of the embedding's last tokens: what both mitigations can be computed for by hand."""

    def difference(noise, embedding, empty):
        return (noise.flatten(1) @ matrix.T).reshape(noise.shape) + (embedding - empty)[:, 1:].mean(dim=(1, 2)).reshape(
            -1, 1, 1, 1
        )

    return FirstStep(difference, 4 * 64 * 64)


def test_the_embedding_is_moved_until_the_predictions_hardly_differ():
    model = linear_model(torch.zeros(4, 4))
    embedding = torch.stack([torch.full((3, 2), 5.0), torch.full((3, 2), 0.2)])
    noise, empty = torch.zeros(2, 1, 2, 2), torch.zeros(2, 3, 2)
    kept, moved = PromptPerturbation(steps=100, target=9.0).first_step(model, noise, embedding, empty)
    assert torch.equal(kept, noise)
    # The norm of four values that are all the mean of the tokens: 2 · 5 is over the target, 2 · 0.2 isn't.
    assert 8.8 < 2 * moved[0, 1:].mean().item() <= 9.0
    assert torch.equal(moved[0, 0], embedding[0, 0]) and torch.equal(moved[1], embedding[1])


def test_the_loss_of_the_initial_noise_is_the_repositorys():
    random = np.random.default_rng(1)
    matrix, noise = random.normal(size=(12, 12)), random.normal(size=(2, 3, 2, 2))
    embedding, empty = np.zeros((2, 3, 2)), np.zeros((2, 3, 2))
    model = linear_model(torch.tensor(matrix))
    found = InitialNoise().losses(model, *(torch.tensor(one) for one in (noise, embedding, empty)))
    for one, mine in zip(noise, found.tolist(), strict=True):
        x = one.reshape(-1)
        along = matrix @ x / np.linalg.norm(matrix @ x)
        assert mine == pytest.approx(np.linalg.norm(matrix @ (x + along)) + 0.05 * np.linalg.norm(x), rel=1e-9)


def test_the_initial_noise_is_moved_downhill_and_no_farther_than_its_steps():
    random = np.random.default_rng(2)
    model = linear_model(torch.tensor(random.normal(size=(12, 12)), dtype=torch.float32))
    noise, same = torch.tensor(random.normal(size=(2, 3, 2, 2)), dtype=torch.float32), torch.zeros(2, 3, 2)
    sail = InitialNoise(target=0.0)
    moved, embedding = sail.first_step(model, noise, same, same)
    assert torch.equal(embedding, same)
    assert (sail.losses(model, moved, same, same) < sail.losses(model, noise, same, same)).all()
    assert (moved - noise).abs().max().item() <= 10 * 0.05 * 1.2
    content, _ = InitialNoise(target=1e6).first_step(model, noise, same, same)
    assert torch.equal(content, noise)


def test_both_ask_as_often_as_they_say(folder):
    made = loaded(folder, steps=2)
    # One look is needed to know, of two predictions, and no way back. Then two steps of two.
    assert made.make(PromptPerturbation(target=1e6), "a logo", SEEDS)[0].evaluations == 2 + 4
    assert made.make(PromptPerturbation(target=0.0, steps=3), "a logo", SEEDS)[0].evaluations == 3 * 4 + 4
    assert made.make(InitialNoise(target=0.0, steps=3), "a logo", SEEDS)[0].evaluations == 3 * 8 + 4


# -- the dynamic transition point ---------------------------------------------------------------------------------------


def test_the_basin_ends_one_step_after_the_first_local_minimum():
    history = torch.tensor([[5.0, 1.0, 3.0], [4.0, 2.0, 3.0], [3.0, 1.0, 3.0], [3.5, 4.0, 3.0], [9.0, 9.0, 3.0]])
    inside = [in_basin(list(history[:steps])).tolist() for steps in range(1, 6)]
    assert inside == [
        [True, True, True],
        [True, True, True],
        [True, True, True],
        # 3 lies between 4 and 3.5, and 1 between 2 and 4; a flat line has no minimum.
        [False, False, True],
        [False, False, True],
    ]
    scales = DynamicBasin().scales(list(history[:4]), 7.5)
    assert scales.tolist() == [7.5, 7.5, 1.0]


# -- DoRI -------------------------------------------------------------------------------------------------------------


def test_dori_makes_the_loss_small_and_is_the_same_each_time(model):
    picture = pictures(model.make(NONE, "a logo", {0: 3}))[0].astype(np.uint8)
    how = DoRI(steps=40, batch=4)
    embedding, losses = model.attack("another logo", picture, 5, how, NONE)
    again, same = model.attack("another logo", picture, 5, how, NONE)
    assert embedding.shape == model.embedding("another logo").shape
    assert torch.equal(embedding, again) and losses == same
    assert np.mean(losses[-10:]) < 0.98 * np.mean(losses[:10])
    assert not torch.equal(model.attack("another logo", picture, 6, how, NONE)[0], embedding)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_doris_loss_is_the_models_own(folder, kind):
    made = loaded(folder)
    made._schedule = DDPMScheduler.from_config(made._schedule.config, prediction_type=kind)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    _, (loss,) = made.attack("a logo", picture, 9, DoRI(steps=1, batch=3), NONE)
    random = torch.Generator("cpu").manual_seed(9)
    noise = torch.randn((3, 4, 8, 8), generator=random)
    moments = torch.randint(1000, (3,), generator=random)
    pipeline = made._pipeline
    with torch.no_grad():
        pixels = torch.tensor(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        target = pipeline.vae.encode(pixels).latents * pipeline.vae.config.scaling_factor
        kept = made._schedule.alphas_cumprod[moments].double().reshape(-1, 1, 1, 1)
        noisy = (kept.sqrt() * target + (1 - kept).sqrt() * noise).float()
        predicted = pipeline.unet(noisy, moments, encoder_hidden_states=made.embedding("a logo").expand(3, -1, -1)).sample
    wanted = {
        "epsilon": noise,
        "v_prediction": (kept.sqrt() * noise - (1 - kept).sqrt() * target).float(),
        "sample": target.expand(3, -1, -1, -1),
    }[kind]
    assert loss == pytest.approx((predicted - wanted).square().mean().item(), rel=1e-4)


def test_dori_looks_for_what_works_under_noise(model):
    picture = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    plain, _ = model.attack("a logo", picture, 5, DoRI(steps=2, batch=2), NONE)
    noisy, _ = model.attack("a logo", picture, 5, DoRI(steps=2, batch=2), EmbeddingNoise())
    assert not torch.equal(plain, noisy)


def test_the_model_is_not_changed(folder):
    made = loaded(folder)
    before = {name: value.clone() for name, value in made._pipeline.unet.state_dict().items()}
    made.attack("a logo", np.zeros((32, 32, 3), np.uint8), 0, DoRI(steps=2, batch=2), NONE)
    made.make(PromptPerturbation(target=0.0), "a logo", SEEDS)
    assert all(torch.equal(value, before[name]) for name, value in made._pipeline.unet.state_dict().items())


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_what_the_model_cannot_make_is_an_attempt(folder, monkeypatch):
    made = loaded(folder)
    monkeypatch.setattr(made._pipeline, "run_safety_checker", lambda pictures, *_: (pictures, [False, True, False]))
    found = made.make(NONE, "a logo", SEEDS)
    assert [one.attempt.status for one in found.values()] == ["success", "safety_filtered", "success"]
    monkeypatch.setattr(made._pipeline, "run_safety_checker", lambda pictures, *_: (pictures * math.nan, None))
    found = made.make(NONE, "a logo", SEEDS)
    assert {one.attempt.reason for one in found.values()} == {"the model's output is not finite; try --dtype float32"}
    monkeypatch.setattr(made._pipeline, "encode_prompt", lambda *_: 1 / 0)
    found = made.make(NONE, "an unheard of logo", SEEDS)
    assert {one.attempt.reason for one in found.values()} == {"ZeroDivisionError: division by zero"}


def test_a_device_that_is_short_of_memory_gets_fewer_at_once(folder, monkeypatch):
    made = loaded(folder)
    expected, sample = pictures(made.make(NONE, "a logo", SEEDS)), made._sample

    def short(mitigation, text, seeds, embedding):
        if len(seeds) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return sample(mitigation, text, seeds, embedding)

    monkeypatch.setattr(made, "_sample", short)
    assert apart(pictures(made.make(NONE, "a logo", SEEDS)), expected) <= 1
    assert made.batch_size == 1


def test_a_pipeline_of_another_class_is_refused(tmp_path):
    save_pixel_pipeline(str(tmp_path / "if"))
    made = MitigatedGenerator.of(DiffusersGenerator(str(tmp_path / "if"), 2, 3.0, 1, "cpu", "float32"))
    for ask in (made.check, made.load):
        with pytest.raises(UserError, match="is a IFPipeline, and mitigations are known for a StableDiffusionPipeline"):
            ask()
