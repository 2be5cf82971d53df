"""Who a model is trained on, and who stands against it: draws by hash."""

import dataclasses

import numpy as np
import pytest

from tests.planted import picture
from transforms.errors import UserError
from transforms.models.configuration import Configuration
from transforms.training import members
from transforms.training.population import Population


@pytest.fixture(scope="module")
def population():
    """60 pictures, of which 10 and 11, 12 and 13, … 18 and 19 are near-duplicates."""
    count = 60
    groups = [f"g{(at // 2) * 2 if 10 <= at < 20 else at}" for at in range(count)]
    kept = np.array([not (10 <= at < 20 and at % 2) for at in range(count)])
    return Population(
        np.array([f"s{at:02d}" for at in range(count)]),
        np.array(groups),
        np.array([("cat", "dog", "")[at % 3] for at in range(count)]),
        kept,
        np.zeros(count, bool),
        np.stack([picture(at, 8, 8) for at in range(count)]),
    )


def ids(configuration, population):
    return members.draw(configuration, population).sample_ids


def test_a_larger_draw_holds_the_smaller_one_and_another_draw_is_another(population):
    small, large = (ids(Configuration(images=count), population) for count in (8, 20))
    assert large[:8] == small
    assert len(set(large)) == 20
    assert ids(Configuration(images=20, draw=1), population) != large
    assert ids(Configuration(images=8, seed=5, width=24), population) == small


def test_the_draw_depends_on_ids_alone(population):
    order = np.random.default_rng(0).permutation(60)
    shuffled = Population(*(column[order] for column in population))
    one, other = (members.draw(Configuration(images=16), some) for some in (population, shuffled))
    assert one.sample_ids == other.sample_ids
    assert np.array_equal(one.data.pictures, other.data.pictures)
    assert one.run_id(Configuration(images=16)) == other.run_id(Configuration(images=16))


def test_both_sides_of_a_split_make_up_the_pool(population):
    half = Configuration(images=10, pool=20, split=3)
    inside, outside = ids(half, population), ids(dataclasses.replace(half, side="out"), population)
    assert set(inside) | set(outside) == set(ids(Configuration(images=20), population))
    assert not set(inside) & set(outside)
    assert set(ids(dataclasses.replace(half, split=4), population)) != set(inside)


def test_over_many_splits_each_picture_is_in_half_of_the_time(population):
    times = dict.fromkeys(ids(Configuration(images=20), population), 0)
    for split in range(200):
        for one in ids(Configuration(images=10, pool=20, split=split), population):
            times[one] += 1
    assert min(times.values()) > 70 and max(times.values()) < 130


def test_copied_pictures_stand_there_several_times(population):
    drawn = members.draw(Configuration(images=10, copied_images=3, copies=16), population)
    assert sorted(drawn.data.copies.tolist()) == [1] * 7 + [16] * 3
    assert drawn.data.total == 55


def test_deduplicated_draws_what_is_kept_and_each_once(population):
    everything = Configuration(images=55, copied_images=3, copies=16, deduplicated=True)
    drawn = members.draw(everything, population)
    assert set(drawn.sample_ids) == {str(one) for one in population.sample_ids[population.kept]}
    assert drawn.data.total == 55


def test_canaries_come_on_top_and_stand_there_one_to_eight_times(population):
    drawn = members.draw(Configuration(images=4, canaries=10), population)
    assert drawn.kinds == ["picture"] * 4 + ["canary"] * 10
    assert drawn.data.copies.tolist() == [1] * 4 + [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    assert (drawn.rows[4:] == -1).all()
    noise = drawn.data.pictures[4:].astype(float)
    # Uniform over 0 to 255: mean 127.5, standard deviation 73.9.
    assert abs(noise.mean() - 127.5) < 6 and abs(noise.std() - 73.9) < 3
    again, pictures, rows = members.recalled(
        [{"sample_id": one, "kind": kind} for one, kind in zip(drawn.sample_ids, drawn.kinds, strict=True)], population, 8
    )
    assert again == drawn.sample_ids
    assert np.array_equal(pictures, drawn.data.pictures) and np.array_equal(rows, drawn.rows)


def test_labels(population):
    with_labels = Population(*(column[population.labels != ""] for column in population))
    true = members.draw(Configuration(images=12, labels="true"), with_labels)
    place = {str(one): at for at, one in enumerate(with_labels.sample_ids)}
    assert true.data.classes == 2
    assert [("cat", "dog")[label] for label in true.data.labels] == [with_labels.labels[place[one]] for one in true.sample_ids]
    random = members.draw(Configuration(images=12, labels="random", classes=5), population)
    more = members.draw(Configuration(images=20, labels="random", classes=5), population)
    assert random.data.classes == 5 and set(more.data.labels) <= set(range(5)) and len(set(more.data.labels)) > 2
    assert np.array_equal(more.data.labels[:12], random.data.labels)  # a picture keeps its class
    unique = members.draw(Configuration(images=12, labels="unique"), population)
    assert unique.data.labels.tolist() == list(range(12)) and unique.data.classes == 12
    assert members.draw(Configuration(images=12), population).data.labels is None


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        (Configuration(images=61), "it wants 61 pictures, and the lake has 60 to train on"),
        (Configuration(images=8, pool=61), "it wants 61 pictures"),
        (Configuration(images=56, deduplicated=True), "it wants 56 pictures, and the lake has 55"),
        (Configuration(images=60, labels="true"), "labels = 'true', and 20 of its 60 pictures have none"),
    ],
)
def test_what_the_lake_has_not_is_said(population, configuration, said):
    with pytest.raises(UserError, match=said):
        members.draw(configuration, population)


def test_controls_are_neither_members_nor_their_near_duplicates(population):
    drawn = members.draw(Configuration(images=10, pool=20), population)
    against = members.controls(0, population, drawn.rows, 60)
    assert not set(population.groups[against]) & set(population.groups[drawn.rows])
    assert set(population.groups[against]) | set(population.groups[drawn.rows]) == set(population.groups)
    # Those of the pool come first.
    rest = [row for row in population.order(0)[:20] if population.groups[row] not in set(population.groups[drawn.rows])]
    assert against[: len(rest)].tolist() == rest
    assert members.controls(0, population, drawn.rows, 3).tolist() == rest[:3]


def test_a_run_is_known_by_what_it_is_trained_on(population):
    one = Configuration(images=8)
    run = members.draw(one, population).run_id(one)
    assert run == members.draw(one, population).run_id(one)
    changed = [
        dataclasses.replace(one, seed=1), dataclasses.replace(one, steps=5), dataclasses.replace(one, draw=1),
        dataclasses.replace(one, copied_images=1, copies=2), dataclasses.replace(one, labels="random"),
    ]  # fmt: skip
    runs = {members.draw(other, population).run_id(other) for other in changed}
    assert len(runs | {run}) == 6


def test_what_the_lake_holds_back_is_never_drawn_and_is_a_control(population):
    held = population._replace(held=np.array([at < 15 for at in range(60)]))
    drawn = members.draw(Configuration(images=45), held)
    assert set(drawn.sample_ids) == {f"s{at:02d}" for at in range(15, 60)}
    with pytest.raises(UserError, match="it wants 46 pictures, and the lake has 45"):
        members.draw(Configuration(images=46), held)
    rows = np.arange(15, 60)
    against = members.controls(0, held, rows, 100)
    # Not those whose near-duplicates are members.
    assert set(against.tolist()) == {at for at in range(15) if held.groups[at] not in set(held.groups[rows])}
