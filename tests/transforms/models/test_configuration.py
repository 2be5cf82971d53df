"""The axes of a sweep, and its file."""

import dataclasses
from pathlib import Path

import pytest

from transforms.errors import UserError
from transforms.models import configuration
from transforms.models.configuration import Configuration, read_sweep
from transforms.store.schema import AXES, MODELS


def written(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return str(path)


def test_the_table_has_a_column_for_each_axis():
    assert configuration.AXES == AXES
    kinds = {"string": str, "int32": int, "int64": int, "double": float, "bool": bool}
    for field in dataclasses.fields(Configuration):
        assert kinds[str(MODELS.schema.field(field.name).type)] is type(field.default)


def test_a_grid_is_every_combination_and_each_configuration_comes_once(tmp_path):
    path = written(
        tmp_path,
        """
        [common]
        steps = 10
        [[grid]]
        name = "size"
        images = [8, 16]
        seed = [0, 1, 2]
        [[model]]
        images = 16
        seed = 2
        [[model]]
        name = "gan"
        family = "gan"
        """,
    )
    planned = read_sweep(path)
    assert [(one.configuration.images, one.configuration.seed) for one in planned[:6]] == [
        (8, 0), (8, 1), (8, 2), (16, 0), (16, 1), (16, 2)]  # fmt: skip
    assert [one.experiments for one in planned[5:]] == [("size", "model 1"), ("gan",)]
    assert {one.configuration.steps for one in planned} == {10}
    assert planned[6].configuration == Configuration(family="gan", steps=10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[model]]\nwidht = 16", "model 1: there is no axis 'widht' (did you mean 'width'?)"),
        ("[[model]]\nzzz = 16", "model 1: there is no axis 'zzz'; there are family, pixels, "),
        ("[[grid]]\nwidth = [16, 20]", "grid 1: width is 20, expected a multiple of 8"),
        ("[[model]]\nwidth = [16]", "model 1: width is a list, expected one value"),
        ("[[grid]]\nimages = []", "grid 1 has 0 combinations, expected 1 to 10,000"),
        (f"[[grid]]\nimages = {list(range(1, 102))}\nseed = {list(range(100))}", "grid 1 has 10,100 combinations"),
        (f"[[grid]]\nimages = {list(range(1, 102))}\nseed = {list(range(99))}\n[[model]]\nseed = 1000", "x"),
        ("[[model]]\nfamily = 'vae'", "family is 'vae', expected one of diffusion, gan"),
        ("[[model]]\nimages = 1.5", "images is 1.5, expected a whole number"),
        ("[[model]]\nflip = 1", "flip is 1, expected true or false"),
        ("[[model]]\nlearning_rate = 0", "learning_rate is 0, expected"),
        ("[[model]]\nimages = 8\npool = 4", "pool is 4, expected 8 or more for images = 8, side = 'in'"),
        ("[[model]]\nimages = 8\npool = 8\nside = 'out'", "pool is 8, expected 16 or more"),
        ("[[model]]\nimages = 8\ncopied_images = 9", "copied_images is 9, expected up to images = 8"),
        ("[[model]]\nprivacy_noise = 1.0", "privacy_noise needs privacy_clipping"),
        ("[[model]]\nfamily = 'gan'\nprivacy_clipping = 1.0", "privacy_clipping is for family = 'diffusion', got 'gan'"),
        ("[common]\nsteps = 3", "has no [[grid]], no [[model]] and no [[brought]]"),
        ("[models]\nsteps = 3", "'models' is none of [common], [[grid]], [[model]] and [[brought]]"),
        ("grid = 3", "[[grid]] is 3, expected a table"),
        ("[[model]]\nname = 3", "name of model 1 is 3, expected a text"),
        ("[[model]\n", "is not TOML"),
        ("x = " + "[" * 5000, "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(tmp_path, text, said):
    if said == "x":  # two tables that are large together, but not too large alone
        assert len(read_sweep(written(tmp_path, text))) == 10_000
        return
    with pytest.raises(UserError) as error:
        read_sweep(written(tmp_path, text))
    assert said in str(error.value)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match=r"cannot read --sweep .*none.toml.* \(No such file"):
        read_sweep(str(tmp_path / "none.toml"))


def test_steps_follow_from_epochs_and_checkpoints_halve():
    by_epochs = Configuration(epochs=10, batch_size=32, checkpoints=4)
    assert by_epochs.steps_for(64) == 20
    assert by_epochs.checkpoint_steps(64) == [3, 5, 10, 20]
    assert Configuration(steps=3, checkpoints=30).checkpoint_steps(64) == [1, 2, 3]


def test_a_cohort_differs_in_split_side_and_seed_alone():
    one = Configuration(images=8, pool=16)
    assert dataclasses.replace(one, split=3, side="out", seed=5).cohort() == one.cohort()
    for other in ({"images": 4}, {"draw": 1}, {"width": 24}):
        assert dataclasses.replace(one, **other).cohort() != one.cohort()


def test_the_page_has_each_axis_with_its_default():
    page = (Path(__file__).resolve().parents[3] / "docs" / "sweep.md").read_text()
    for field in dataclasses.fields(Configuration):
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        assert f"| `{field.name}` | {default} | {MODELS.meaning(field.name)} |" in page
