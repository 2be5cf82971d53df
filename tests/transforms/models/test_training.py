"""Training small models: what is learned, what is kept, and that a training goes on as if it had not been stopped."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.planted import picture
from transforms.errors import UserError
from transforms.models import training, unconditional
from transforms.models.configuration import Configuration
from transforms.models.training import Diverged, TrainingSet, begin

TINY = Configuration(images=4, width=8, batch_size=4, steps=4)


def data(count=4, labels=None, classes=0, copies=None, pixels=8):
    pictures = np.stack([picture(number, pixels, pixels) for number in range(count)])
    return TrainingSet(pictures, np.ones(count, np.int64) if copies is None else np.array(copies), labels, classes)


def trained(configuration, some=None, steps=4):
    made = begin(configuration, some or data(), "cpu")
    for _ in range(steps):
        made.advance()
    return made


FAMILIES = [
    TINY,
    dataclasses.replace(TINY, family="gan"),
    dataclasses.replace(TINY, flip=True, dropout=0.5, warmup=3, weight_decay=0.1, attention=True, layers=2),
    dataclasses.replace(TINY, privacy_clipping=1.0, privacy_noise=0.5, batch_size=2),
]


@pytest.mark.parametrize("configuration", FAMILIES, ids=["diffusion", "gan", "every axis", "private"])
def test_a_training_goes_on_from_its_state_to_the_same_weights(configuration):
    if configuration.privacy_clipping:
        pytest.importorskip("opacus")
    whole = trained(configuration, steps=6)
    before = trained(configuration, steps=3)
    state = {name: value.clone() for name, value in before.state().items()}
    torch.manual_seed(99)  # what others draw meanwhile
    after = begin(configuration, data(), "cpu")
    after.restore(state)
    assert (after.step, after.loss) == (3, before.loss)
    for _ in range(3):
        after.advance()
    assert after.files() == whole.files()
    assert after.loss == whole.loss


def test_a_state_of_another_configuration_is_refused():
    state = trained(TINY).state()
    with pytest.raises(ValueError, match="another configuration"):
        begin(dataclasses.replace(TINY, seed=1), data(), "cpu").restore(state)


def test_each_picture_comes_once_an_epoch_and_a_copied_one_as_often_as_it_stands_there():
    some = data(5, copies=[1, 1, 3, 1, 1])
    made = begin(dataclasses.replace(TINY, batch_size=7), some, "cpu")
    for _ in range(3):
        places, _ = made._batch()
        seen = [int(np.argmin([(places[at] - one).abs().sum() for one in made.pictures])) for at in range(7)]
        assert sorted(seen) == [0, 1, 2, 2, 2, 3, 4]


def test_flip_mirrors_some_pictures_and_only_with_flip():
    some = data(64)
    turned = begin(dataclasses.replace(TINY, flip=True, batch_size=64), some, "cpu")._pictures(torch.arange(64))[0]
    own = unconditional.as_numbers(some.pictures)
    mirrored = (turned == own.flip(3)).flatten(1).all(1)
    assert 20 < int(mirrored.sum()) < 44
    assert torch.equal(turned[~mirrored], own[~mirrored])


def test_it_learns_its_pictures_by_heart():
    """With a single picture the best guess of the noise is known: the loss falls, and samples are the picture."""
    one = data(1)
    made = begin(Configuration(images=1, width=16, batch_size=8, learning_rate=3e-3, ema=0.9), one, "cpu")
    for _ in range(300):
        made.advance()
    model = unconditional.load(made.files().get, "it", "cpu")
    samples = model.make([1, 2, 3, 4], None, 20)
    assert np.sqrt(((samples - one.pictures / 255) ** 2).mean((1, 2, 3))).max() < 0.12


def test_classes_are_told_to_the_model():
    some = data(2, np.array([0, 1]), 2)
    configuration = Configuration(images=2, width=16, batch_size=8, learning_rate=3e-3, ema=0.9, labels="true")
    made = begin(configuration, some, "cpu")
    for _ in range(250):
        made.advance()
    model = unconditional.load(made.files().get, "it", "cpu")
    assert model.classes == 2
    samples = model.make([1, 1, 2, 2], [0, 1, 0, 1], 20)
    own = np.sqrt(((samples - some.pictures[[0, 1, 0, 1]] / 255) ** 2).mean((1, 2, 3)))
    other = np.sqrt(((samples - some.pictures[[1, 0, 1, 0]] / 255) ** 2).mean((1, 2, 3)))
    assert (own < other / 2).all()


@pytest.mark.parametrize("family", ["diffusion", "gan"])
def test_a_loss_that_is_no_number_ends_the_training(family):
    made = trained(dataclasses.replace(TINY, family=family))
    network = made.generator if family == "gan" else made.model
    with torch.no_grad():
        next(network.parameters()).fill_(float("inf"))
    with pytest.raises(Diverged, match="the loss is nan at step 5"):
        made.advance()
    assert made.step == 4


def test_weights_that_are_no_numbers_are_not_kept():
    made = trained(TINY)
    with torch.no_grad():
        next(made.average.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="a weight is not finite after step 4"):
        made.files()


def test_privacy_clips_each_picture_and_counts_what_it_costs():
    pytest.importorskip("opacus")
    quiet = dataclasses.replace(TINY, privacy_clipping=1e-4, privacy_noise=0.0, batch_size=4, learning_rate=1e-3)
    made = begin(quiet, data(), "cpu")
    made.advance()
    # Gradients of each picture have at most the clipping norm, and their mean no more.
    norm = torch.sqrt(sum((one.grad**2).sum() for one in made.model.parameters()))
    assert 0 < norm <= 1.0001e-4
    assert made.epsilon() is None
    loud = trained(dataclasses.replace(TINY, privacy_clipping=1.0, privacy_noise=1.0, batch_size=1), steps=10)
    more = trained(dataclasses.replace(TINY, privacy_clipping=1.0, privacy_noise=1.0, batch_size=1), steps=20)
    assert 0 < loud.epsilon() < more.epsilon()


def test_a_private_batch_larger_than_an_epoch_is_refused():
    pytest.importorskip("opacus")
    with pytest.raises(UserError, match="batch_size is 5, expected up to the 4 pictures"):
        begin(dataclasses.replace(TINY, privacy_clipping=1.0, batch_size=5), data(), "cpu")


def test_a_gan_of_a_size_that_it_has_no_blocks_for_is_refused():
    with pytest.raises(UserError, match="pixels is 24: a GAN of 24 pixels, expected 4 times a power of two"):
        begin(Configuration(family="gan", pixels=24), data(pixels=24), "cpu")


# -- files ------------------------------------------------------------------------------------------------------------


def test_diffusers_loads_what_is_written(tmp_path):
    from diffusers import DDPMPipeline

    files = trained(TINY).files()
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    pipeline = DDPMPipeline.from_pretrained(str(tmp_path))
    model = unconditional.load(files.get, "it", "cpu")
    x, times = torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
    assert torch.equal(pipeline.unet(x, times).sample, model.noise(x, times))


@pytest.mark.parametrize("family", ["diffusion", "gan"])
def test_a_picture_is_the_same_whatever_is_made_beside_it(family):
    model = unconditional.load(trained(dataclasses.replace(TINY, family=family)).files().get, "it", "cpu")
    together = unconditional.as_pictures(model.make([5, 6, 7], None, 5)).astype(int)
    assert together.shape == (3, 8, 8, 3)
    for at, seed in enumerate([5, 6, 7]):
        assert np.abs(unconditional.as_pictures(model.make([seed], None, 5)).astype(int)[0] - together[at]).max() <= 1
    assert not np.array_equal(together[0], together[1])


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_what_a_model_predicts_is_turned_into_noise(kind):
    """A network that knows the answer: whatever form it gives it in, the noise is the same."""
    torch.manual_seed(0)
    picture, noise, times = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([50, 700])
    model = unconditional.load(trained(TINY).files().get, "it", "cpu")
    level = model.levels[times][:, None, None, None]
    noised = level.sqrt() * picture + (1 - level).sqrt() * noise
    answer = level.sqrt() * noise - (1 - level).sqrt() * picture if kind == "v_prediction" else picture

    class Knows:
        def __call__(self, *_):
            return type("Output", (), {"sample": answer})

    model.unet = Knows()
    model.scheduler.register_to_config(prediction_type=kind)
    assert torch.allclose(model.noise(noised, times), noise, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"unet/config.json": None}, "it lacks unet/config.json"),
        ({"unet/diffusion_pytorch_model.safetensors": b"short"}, "can't be loaded"),
        ({"unet/config.json": "other"}, "can't be loaded"),
        ({"model_index.json": b"[]"}, "can't be loaded"),
        (
            {"model_index.json": json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}).encode()},
            "no part unet of the class",
        ),
        ({"scheduler/scheduler_config.json": b'{"_class_name": "FlowMatchEulerDiscreteScheduler"}'}, "has no noise levels"),
    ],
)
def test_a_model_that_is_damaged_or_of_another_architecture_is_one_line(changed, said):
    files = trained(TINY).files()
    other = trained(dataclasses.replace(TINY, width=16)).files()
    for name, content in changed.items():
        files[name] = other[name] if content == "other" else content
    with pytest.raises(UserError, match=said):
        unconditional.load(files.get, "it", "cpu")


def test_a_gan_judges_pictures():
    model = unconditional.load(trained(dataclasses.replace(TINY, family="gan")).files().get, "it", "cpu")
    judged = model.judge(unconditional.as_numbers(data().pictures))
    assert judged.shape == (4,) and torch.isfinite(judged).all()


@pytest.mark.parametrize(("pixels", "levels", "attended"), [(8, 2, 1), (16, 3, 2), (24, 3, 2), (32, 4, 1), (64, 5, 2)])
def test_the_levels_lead_down_to_a_few_pixels(pixels, levels, attended):
    unet = unconditional.new_unet(Configuration(pixels=pixels, width=8, attention=True), 0)
    assert len(unet.config.block_out_channels) == levels
    assert [kind.startswith("Attn") for kind in unet.config.down_block_types].index(True) == attended
    assert unet(torch.zeros(1, 3, pixels, pixels), 1).sample.shape == (1, 3, pixels, pixels)


def test_numbers_and_pictures_are_each_other():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    numbers = unconditional.as_numbers(pictures)
    assert (numbers.min() >= -1) and (numbers.max() <= 1)
    assert np.array_equal(unconditional.as_pictures(unconditional.as_shares(numbers)), pictures)
    assert unconditional.as_pictures(pictures) is pictures
    numbers[1, 2, 3, 4] = torch.inf
    shares = unconditional.as_shares(numbers)
    assert np.isnan(shares[1]).all() and np.isfinite(np.delete(shares, 1, 0)).all()
    assert unconditional.as_pictures(shares)[1].max() == 0


def test_recent_losses_are_averaged():
    made = trained(TINY, steps=3)
    assert made.loss == pytest.approx(float(made.losses[:3].mean()))
    assert training.RECENT == 100
