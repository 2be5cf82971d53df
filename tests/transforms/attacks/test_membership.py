"""What models are asked of pictures, against a slow float64 reference; and scores, by planted losses."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.planted import picture
from transforms.attacks import membership, shadows
from transforms.attacks.membership import MembershipQuestions, asked, noise, signals_of
from transforms.attacks.shadows import MEMBERSHIP_ATTACKS, AttackedGroup, Signals, View
from transforms.errors import UserError
from transforms.kernels.membership import area, lira, rmia
from transforms.models import gan
from transforms.models.configuration import Configuration
from transforms.models.unconditional import DiffusionPictures, GanPictures, new_scheduler, new_unet
from transforms.training.population import Population

QUESTIONS = MembershipQuestions(3, True, (40, 100), tuple(membership.SIGNALS), 0, 4096)
PICTURES = np.stack([picture(number, 8, 8) for number in range(7)])
IDS = [f"s{number}" for number in range(7)]


def diffusion(classes=0, **axes):
    torch.manual_seed(3)
    configuration = Configuration(width=8, **axes)
    return DiffusionPictures(new_unet(configuration, classes), new_scheduler(configuration), "cpu")


def test_signals_are_those_of_a_slow_reference_in_float64():
    model = diffusion()
    found = signals_of(model, PICTURES, IDS, None, QUESTIONS, tuple(membership.SIGNALS))
    assert {name: values.shape for name, values in found.items()} == {
        "loss": (2, 3, 2, 7), "secmi": (1, 1, 1, 7), **dict.fromkeys(("pia", "pian", "sima"), (2, 1, 1, 7))}  # fmt: skip
    slow = diffusion().unet.double()
    levels = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).tolist()

    def predicted(x, step):
        with torch.no_grad():
            return slow(torch.from_numpy(x)[None], step).sample[0].numpy()

    def moved(x, start, end):
        seen = predicted(x, start)
        clean = (x - math.sqrt(1 - levels[start]) * seen) / math.sqrt(levels[start])
        return math.sqrt(levels[end]) * clean + math.sqrt(1 - levels[end]) * seen

    for number, sample in enumerate(IDS):
        x = PICTURES[number].transpose(2, 0, 1).astype(np.float64) / 127.5 - 1
        at_zero = predicted(x, 0)
        for at, step in enumerate((40, 100)):
            for draw, one in enumerate(noise(QUESTIONS, sample, step, (3, 8, 8)).astype(np.float64)):
                for turned, view in enumerate((x, x[:, :, ::-1].copy())):
                    error = predicted(math.sqrt(levels[step]) * view + math.sqrt(1 - levels[step]) * one, step) - one
                    assert found["loss"][at, draw, turned, number] == pytest.approx((error**2).mean(), rel=1e-4)
            noised = math.sqrt(levels[step]) * x + math.sqrt(1 - levels[step]) * at_zero
            expected = ((predicted(noised, step) - at_zero) ** 4).sum()
            assert found["pia"][at, 0, 0, number] == pytest.approx(expected, rel=1e-3)
            scaled = at_zero / np.abs(at_zero).mean() * math.sqrt(2 / math.pi)
            noised = math.sqrt(levels[step]) * x + math.sqrt(1 - levels[step]) * scaled
            expected = ((predicted(noised, step) - scaled) ** 4).sum()
            assert found["pian"][at, 0, 0, number] == pytest.approx(expected, rel=1e-3)
            assert found["sima"][at, 0, 0, number] == pytest.approx((predicted(x, step) ** 4).sum(), rel=1e-3)
        here = x
        for step in range(0, 100, 10):
            here = moved(here, step, step + 10)
        back = moved(moved(here, 100, 110), 110, 100)
        assert found["secmi"][0, 0, 0, number] == pytest.approx(((here - back) ** 2).sum(), rel=2e-2)


def test_a_gan_is_asked_for_its_discriminator():
    torch.manual_seed(0)
    model = GanPictures(gan.GanGenerator(8, 8), gan.GanDiscriminator(8, 8), 8, "cpu")
    found = signals_of(model, PICTURES, IDS, None, QUESTIONS, ("loss", "pia"))
    assert set(found) == {"loss"} and found["loss"].shape == (1, 1, 2, 7)
    x = torch.from_numpy(PICTURES.transpose(0, 3, 1, 2)).float() / 127.5 - 1
    np.testing.assert_allclose(found["loss"][0, 0, 1], -model.judge(x.flip(3)).numpy(), rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_batches_and_order_change_no_signal(batch):
    model, labels = diffusion(classes=4), np.arange(7) % 4
    whole = signals_of(model, PICTURES, IDS, labels, QUESTIONS, tuple(membership.SIGNALS))
    order = np.array([4, 0, 6, 2, 1, 5, 3])
    other = signals_of(
        model, PICTURES[order], [IDS[one] for one in order], labels[order], QUESTIONS, tuple(membership.SIGNALS), batch
    )
    for name, values in whole.items():
        np.testing.assert_allclose(other[name], values[..., order], rtol=2e-3)
    unlike = signals_of(model, PICTURES, IDS, (labels + 1) % 4, QUESTIONS, ("loss",))
    assert np.abs(unlike["loss"] - whole["loss"]).min() > 0


def test_noise_depends_on_picture_timestep_and_seed_alone():
    first = noise(QUESTIONS, "a", 100, (3, 8, 8))
    assert first.shape == (3, 3, 8, 8) and first.dtype == np.float32
    more = dataclasses.replace(QUESTIONS, draws=9)
    np.testing.assert_array_equal(noise(more, "a", 100, (3, 8, 8))[:3], first)
    for other in (noise(QUESTIONS, "b", 100, (3, 8, 8)), noise(QUESTIONS, "a", 40, (3, 8, 8)),
                  noise(dataclasses.replace(QUESTIONS, base_seed=1), "a", 100, (3, 8, 8))):  # fmt: skip
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.2
    many = noise(dataclasses.replace(QUESTIONS, draws=500), "a", 100, (3, 8, 8))
    assert abs(many.mean()) < 0.01 and many.std() == pytest.approx(1, abs=0.01)


def test_a_timestep_that_a_model_has_not_is_one_line():
    with pytest.raises(UserError, match="timestep 100 of a model with 60 noise levels"):
        signals_of(diffusion(timesteps=60), PICTURES, IDS, None, QUESTIONS, ("loss",))
    with pytest.raises(UserError, match="SecMI of a model with 11 noise levels"):
        few = dataclasses.replace(QUESTIONS, timesteps=(3,))
        signals_of(diffusion(timesteps=11), PICTURES, IDS, None, few, ("loss", "secmi"))


# -- which pictures ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def population():
    """40 pictures, of which 0 and 1, 2 and 3, … 8 and 9 are near-duplicates."""
    groups = [f"g{at // 2 if at < 10 else at + 100}" for at in range(40)]
    kept = np.array([not (at < 10 and at % 2) for at in range(40)])
    labels = np.array([("cat", "")[at % 4 == 3] for at in range(40)])
    held, pixels = np.zeros(40, bool), np.zeros((40, 8, 8, 3), np.uint8)
    return Population(np.array([f"s{at:02d}" for at in range(40)]), np.array(groups), labels, kept, held, pixels)


def given_to(configuration, population):
    from transforms.training.members import draw

    return set(draw(configuration, population).sample_ids)


def test_all_models_of_a_pool_are_asked_about_all_of_it(population):
    configurations = [Configuration(images=10, pool=20, split=split) for split in range(4)]
    found = [asked(one, population, given_to(one, population), 4096) for one in configurations]
    pool = population.order(0)[:20]
    twins = [row for row in pool if (population.groups[pool] == population.groups[row]).sum() > 1]
    assert twins and found[0].left_out == len(twins)
    for one, configuration in zip(found, configurations, strict=True):
        np.testing.assert_array_equal(one.rows, [row for row in pool if row not in twins])
        inside = {str(each) for each in population.sample_ids[one.rows[one.inside]]}
        assert inside == given_to(configuration, population) - {str(each) for each in population.sample_ids[twins]}
        assert not set(population.groups[one.others]) & set(population.groups[pool])
    assert len({one.inside.tobytes() for one in found}) == 4
    np.testing.assert_array_equal(asked(configurations[0], population, set(), 5).rows, found[0].rows[:5])


def test_where_members_are_the_whole_pool_as_many_others_stand_against_them(population):
    configuration = Configuration(images=8)
    given = given_to(configuration, population)
    found = asked(configuration, population, given, 4096)
    assert found.inside.tolist() == [True] * 8 + [False] * 8
    assert {str(one) for one in population.sample_ids[found.rows[:8]]} == given
    assert not set(population.groups[found.rows[8:]]) & set(population.groups[found.rows[:8]])
    assert not set(found.others) & set(found.rows)
    labelled = asked(dataclasses.replace(configuration, labels="true"), population, given, 4096)
    assert (population.labels[labelled.rows] == "cat").all()
    alone = asked(dataclasses.replace(configuration, deduplicated=True), population, given, 4096)
    assert population.kept[alone.rows[~alone.inside]].all()


# -- scores -----------------------------------------------------------------------------------------------------------


def planted(number, effect=(0.0, 3.0), pictures=400, draws=2, **row):
    """Signals of a model that was trained on a random half: members' losses are lower by ``effect`` at each timestep."""
    random = np.random.default_rng([7, number])
    level = np.random.default_rng(1).normal(0, 5, pictures)
    inside = random.random(pictures) < 0.5
    loss = level + random.standard_normal((len(effect), draws, 2, pictures))
    loss -= np.array(effect)[:, None, None, None] * inside
    row = {"model_id": f"m{number}", "split": number, "side": "in", "pool": 400, "images": 200, "family": "diffusion",
           "timesteps": 1000} | row  # fmt: skip
    others = random.standard_normal((len(effect), draws, 2, 30))
    content = {"sample_ids": np.array([f"s{at:03d}" for at in range(pictures)]), "inside": inside, "left_out": np.array(0),
               "loss": loss, "others": others, "seconds": np.array(1.0), "reason": np.array("")}  # fmt: skip
    return Signals(row, content)


def test_scores_are_the_kernels_with_all_other_models_as_shadows():
    group = AttackedGroup([planted(number) for number in range(5)])
    view = View(2, True)
    means = [one.content["loss"][1].mean((0, 1)) for one in group.models]
    inside = np.stack([one.inside for one in group.models])
    for name, online in (("lira_online", True), ("lira_offline", False)):
        expected = lira(means[2], np.stack(means[:2] + means[3:]), np.delete(inside, 2, 0), online=online)
        np.testing.assert_array_equal(group.scores(MEMBERSHIP_ATTACKS[name], 2, 1, view), expected)
    others = [one.content["others"][1].mean((0, 1)) for one in group.models]
    expected = rmia(-means[2], -np.stack(means[:2] + means[3:]), np.delete(inside, 2, 0), -others[2],
                    -np.stack(others[:2] + others[3:]))  # fmt: skip
    np.testing.assert_array_equal(group.scores(MEMBERSHIP_ATTACKS["rmia"], 2, 1, view), expected)
    one = View(1, False)
    np.testing.assert_array_equal(
        group.scores(MEMBERSHIP_ATTACKS["loss"], 0, 0, one), -group.models[0].content["loss"][0, 0, 0]
    )


def test_lira_tells_what_the_loss_hides_and_averaging_helps():
    group = AttackedGroup([planted(number) for number in range(8)])

    def worth(name, view):
        scores = [group.scores(MEMBERSHIP_ATTACKS[name], number, 1, view) for number in range(8)]
        known = [np.isfinite(one) for one in scores]
        return np.mean([area(one[k], m.inside[k]) for one, k, m in zip(scores, known, group.models, strict=True)])

    # The pictures' own levels, five times as wide as the noise, hide the effect from the loss.
    assert worth("loss", View(2, True)) < 0.75
    assert worth("lira_online", View(2, True)) > worth("lira_online", View(1, False)) > 0.93
    assert worth("lira_online", View(2, True)) > 0.99


def test_the_timestep_is_chosen_on_other_models_than_the_one_that_is_attacked():
    models = [planted(number, effect=(0.0, 2.0)) for number in range(6)]
    attack = MEMBERSHIP_ATTACKS["lira_online"]
    group = AttackedGroup(models)
    assert [group.chosen(attack, number) for number in range(6)] == [1] * 6
    # A model whose own losses would choose the other one, and be a bad shadow, changes nothing of its own choice.
    content = dict(models[0].content)
    content["loss"] = content["loss"][::-1] * np.where(content["inside"], 1000.0, -1000.0)
    odd = AttackedGroup([Signals(models[0].row, content), *models[1:]])
    assert odd.chosen(attack, 0) == 1
    for other in range(1, 6):
        np.testing.assert_array_equal(
            odd.scores(attack, other, 1, View(2, True), 0), group.scores(attack, other, 1, View(2, True), 0)
        )
    # Nor does another model with the same pictures.
    twin = AttackedGroup([*models, planted(6, split=0)])
    assert 6 not in twin.shadows(0) and 0 not in twin.shadows(6) and len(twin.shadows(0)) == 5


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"pool": 0}, {"pool": 0}, {"pool": 0}], "all models of its cohort have the same pictures"),
        ([{}, {}], "1 other models of its cohort have other pictures, expected 2 or more"),
        ([{}, {"split": 0}, {"split": 0}], "0 other models of its cohort have other pictures"),
        ([{}, {}, {}], None),
    ],
)
def test_without_shadows_there_is_no_lira_and_a_reason(rows, reason):
    group = AttackedGroup([planted(number, **row) for number, row in enumerate(rows)])
    attacks = [MEMBERSHIP_ATTACKS[name] for name in ("loss", "lira_online", "lira_offline", "rmia")]
    blocks = list(shadows.scores_of(group, attacks, QUESTIONS))
    names = {one["attack"] for one in blocks if one["model_id"] == "m0"}
    assert group.why_no_shadows(0) == reason if reason is None else group.why_no_shadows(0).startswith(reason)
    assert names == ({"loss", "lira_online", "lira_offline", "rmia"} if reason is None else {"loss"})
    # Two timesteps, one draw or two, flipped or not.
    assert len([one for one in blocks if one["model_id"] == "m0"]) == 8 * len(names)


def test_a_set_that_was_trained_on_is_told_from_one_that_was_not():
    model = planted(0, effect=(2.0, 3.0))
    rows = {(row["pictures"], row["suspects"]): row for row in shadows.verdicts_of(model, QUESTIONS)}
    assert len(rows) == 4 and {size for name, size in rows if name == "members"} == {70, int(model.inside.sum())}
    assert rows["members", int(model.inside.sum())]["p_value"] < 0.001
    p_values = [
        row["p_value"]
        for number in range(20)
        for row in shadows.verdicts_of(planted(number), QUESTIONS)
        if row["pictures"] == "others" and row["suspects"] > 70
    ]
    assert 0.2 < np.mean(p_values) < 0.8 and min(p_values) > 0.0005
    few = planted(0, pictures=6)
    assert {row["reason"] is None for row in shadows.verdicts_of(few, QUESTIONS)} == {False}


def test_the_exposure_of_a_canary_is_its_rank_in_the_pool():
    model = planted(0)
    canaries = {"canaries": np.array(["canary-0-0", "canary-0-1", "canary-0-2"]), "copies": np.array([1, 2, 3]),
                "canary_loss": np.array([0.5, -1.0, np.nan]), "pool_loss": np.arange(7.0)}  # fmt: skip
    rows = list(shadows.exposures_of(Signals(model.row, model.content | canaries)))
    assert [(row["rank"], row["exposure"], row["maximum"], row["pool"]) for row in rows] == [
        (pytest.approx(2), pytest.approx(2), 3, 8), (1, 3, 3, 8), (None, None, 3, 8)]  # fmt: skip
    assert list(shadows.exposures_of(model)) == []


def test_models_that_were_asked_about_other_pictures_are_compared_on_those_of_all():
    models = [planted(number) for number in range(3)]
    kept = np.arange(400)[::-1][:300]
    content = {name: value[..., kept] if name in ("sample_ids", "inside", "loss") else value
               for name, value in models[1].content.items()}  # fmt: skip
    same = shadows._of_the_same_pictures([models[0], Signals(models[1].row, content), models[2]])
    names = [one.content["sample_ids"].tolist() for one in same]
    assert names[0] == names[1] == names[2] == [f"s{at:03d}" for at in range(100, 400)]
    np.testing.assert_array_equal(same[1].content["loss"], models[1].content["loss"][..., 100:])
    np.testing.assert_array_equal(same[1].inside, models[1].inside[100:])
