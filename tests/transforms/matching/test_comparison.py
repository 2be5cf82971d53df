"""What ``Matcher`` returns, against brute force in float64 that shares nothing with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.kernels.distances import covering
from transforms.matching.comparison import ComparedPicture, Group, Matcher, Measure, Near

SIDE = 16
DELTA = 0.15
RATIO = 0.5


class World:
    """A training set and controls, all of which are candidates of every generation.

    Args:
        training: group → samples, the representative first.
        controls: samples.
        pictures: sample → (H, W, 3) uint8.
        others: the n of the adaptive distance.
    """

    def __init__(self, training, controls, pictures, *, others=50):
        self.codes = {sample: place for place, sample in enumerate(sorted(pictures))}
        self.by_code = {self.codes[sample]: picture for sample, picture in pictures.items()}
        self.training = {group: self.group(group, samples) for group, samples in training.items()}
        self.controls = {control: self.group(control, [control]) for control in controls}
        self.members = {group: [(self.codes[sample], sample) for sample in samples] for group, samples in training.items()}
        measure = Measure(delta=DELTA, others=others, alpha=0.5, copy_ratio=RATIO)
        self.matcher = Matcher(lambda code, sample, frame: covering(self.by_code[code], frame), measure)

    def group(self, name, samples):
        return Group(name, self.codes[samples[0]], samples[0], len(samples), "both", 0.5)

    def match(self, prompt, generation):
        control = prompt["origin"] == "control"
        own = self.controls.get(prompt["sample_id"]) if control else self.training.get(prompt["group_id"])
        compared = self.matcher.compare(
            generation, list(self.training.values()), list(self.controls.values()) if control else ()
        )
        wanted = self.matcher.wanted(compared, own)
        return self.matcher.rows(
            compared, own, control, {group: self.members[group] for group in wanted if group in self.members}
        )


# -- the reference: one crop at a time, one number at a time, in float64 --------------------------------------------


def crops(picture):
    height, width = picture.shape[:2]
    for offset in range(max(height, width) - SIDE + 1):
        yield picture[offset : offset + SIDE] if height > width else picture[:, offset : offset + SIDE]


def l2(a, b):
    return math.sqrt(float(np.mean((a.astype(np.float64) / 255 - b.astype(np.float64) / 255) ** 2)))


def nearest_crop(generation, picture):
    return min((l2(generation, crop), offset, crop.tobytes()) for offset, crop in enumerate(crops(picture)))


def member(generation, pictures, samples):
    """(l2, sample, crop) of the nearest of them."""
    found = []
    for sample in samples:
        distance, offset, _ = nearest_crop(generation, pictures[sample])
        found.append((distance, sample, list(crops(pictures[sample]))[offset]))
    return min(found, key=lambda one: one[:2])


def tiles(a, b):
    step = SIDE // 4
    cut = [(slice(i, i + step), slice(j, j + step)) for i in range(0, SIDE, step) for j in range(0, SIDE, step)]
    return max(l2(a[place], b[place]) for place in cut)


def twins_of(group, training, pictures):
    first = pictures[training[group][0]]
    top, left = (first.shape[0] - SIDE) // 2, (first.shape[1] - SIDE) // 2
    middle = first[top : top + SIDE, left : left + SIDE]
    near = sorted((nearest_crop(middle, pictures[samples[0]])[0], name) for name, samples in training.items() if name != group)
    for count in range(min(8, len(near) - 1), 0, -1):
        if near[count - 1][0] <= DELTA and near[count - 1][0] < RATIO * near[count][0]:
            return {name for _, name in near[:count]}
    return set()


def reference(generation, group, role, training, pictures, others):
    """What a row says, by the definitions. At 16 pixels a picture is as coarse as it can be: coarse l2 is l2."""
    samples = training[group] if role == "training" else [group]
    distance, sample, crop = member(generation, pictures, samples)
    foreign = sorted(nearest_crop(generation, pictures[some[0]])[0] for name, some in training.items() if name != group)
    apart = twins_of(group, training, pictures) if role == "training" and distance <= DELTA else set()
    strangers = [
        nearest_crop(generation, pictures[some[0]])[0] for name, some in training.items() if name != group and name not in apart
    ]
    nearest_other = min(strangers, default=None)
    scale = 0.5 * float(np.mean(foreign[:others])) if foreign else None
    return {
        "sample_id": sample,
        "l2": distance,
        "tiled_l2": tiles(generation, crop),
        "adaptive_l2": None if scale is None else distance / scale if scale else 0.0 if distance == 0 else math.inf,
        "n_others": min(others, len(foreign)),
        "nearest_other_l2": nearest_other,
        "ratio": None if nearest_other is None else 1.0 if nearest_other == distance == 0 else
        math.inf if nearest_other == 0 else distance / nearest_other,
        "coarse_l2": distance,
        "extracted": distance <= DELTA,
    }  # fmt: skip


def check(row, expected):
    for name, value in expected.items():
        if isinstance(value, float):
            assert row[name] == pytest.approx(value, abs=1e-6, rel=1e-5), name
        else:
            assert row[name] == value, name


@st.composite
def worlds(draw):
    """A few groups of a few pictures, squares and not, some equal, some near, some flat; and controls."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = st.sampled_from([(16, 16), (16, 16), (16, 21), (20, 16)])
    kinds = st.sampled_from(["new", "new", "flat", "again", "near"])
    pictures, groups = {}, {}

    def drawn():
        height, width = draw(shapes)
        kind = draw(kinds)
        if kind == "flat":
            return np.full((height, width, 3), draw(st.sampled_from([0, 128, 255])), np.uint8)
        if kind in ("again", "near") and pictures:
            before = pictures[draw(st.sampled_from(sorted(pictures)))]
            noise = random.integers(-12, 13, before.shape) if kind == "near" else 0
            return (before + noise).clip(0, 255).astype(np.uint8)
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8)

    for number in range(draw(st.integers(1, 6))):
        members = [f"{number}-{copy}" for copy in range(draw(st.integers(1, 3)))]
        for sample in members:
            pictures[sample] = drawn()
        groups[f"g{number}"] = members
    controls = [f"c{number}" for number in range(draw(st.integers(0, 3)))]
    for sample in controls:
        pictures[sample] = drawn()
    squares = [picture for picture in pictures.values() if picture.shape[0] == picture.shape[1] == SIDE]
    source = draw(st.sampled_from(["copy", "new"]))
    generation = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    if source == "copy" and squares:
        chosen = squares[draw(st.integers(0, len(squares) - 1))]
        generation = (chosen + random.integers(-5, 6, chosen.shape)).clip(0, 255).astype(np.uint8)
    return groups, controls, pictures, generation


@settings(max_examples=60, deadline=None)
@given(worlds(), st.integers(1, 4))
def test_rows_are_those_of_brute_force(world, others):
    training, controls, pictures, generation = world
    made = World(training, controls, pictures, others=others)
    asked = [{"origin": "duplicates", "sample_id": None, "group_id": group} for group in training]
    asked += [{"origin": "control", "sample_id": control, "group_id": None} for control in controls]
    for prompt in asked:
        control = prompt["origin"] == "control"
        own = prompt["sample_id"] if control else prompt["group_id"]
        rows = made.match(prompt, generation)
        assert [row["group_id"] for row in rows if row["relation"] == "own"] == [own]
        assert len({(row["role"], row["group_id"]) for row in rows}) == len(rows), "a group is compared once"
        for row in rows:
            check(row, reference(generation, row["group_id"], row["role"], training, pictures, others))
        # Controls with controls, and with the training set too: a copy is one whatever was asked for.
        foreign = [group for group in training if control or group != own]
        found = {row["group_id"] for row in rows if row["relation"] == "neighbour" and row["role"] == "training"}
        assert bool(found) == bool(foreign)
        if foreign:
            distances = {group: nearest_crop(generation, pictures[training[group][0]])[0] for group in foreign}
            assert min(distances.values()) == pytest.approx(min(distances[group] for group in found), abs=1e-9)
        other_controls = [one for one in controls if one != own] if control else []
        beside = [row["group_id"] for row in rows if row["relation"] == "neighbour" and row["role"] == "control"]
        assert len(beside) == bool(other_controls)
        if beside:
            assert nearest_crop(generation, pictures[beside[0]])[0] == pytest.approx(
                min(nearest_crop(generation, pictures[one])[0] for one in other_controls)
            )


@settings(max_examples=20, deadline=None)
@given(worlds())
def test_order_of_the_images_changes_nothing(world):
    training, controls, pictures, generation = world
    turned = dict(reversed(list(training.items())))
    prompt = {"origin": "duplicates", "sample_id": None, "group_id": "g0"}
    rows = [
        sorted(World(groups, controls, pictures).match(prompt, generation), key=lambda row: row["group_id"])
        for groups in (training, turned)
    ]
    assert rows[0] == rows[1]


def planted(*pictures):
    """Groups of one."""
    named = {f"{place}": picture for place, picture in enumerate(pictures)}
    return World({f"g{name}": [name] for name in named}, [], named)


def noise(seed, size=40):
    return np.random.default_rng(seed).integers(-size, size + 1, (SIDE, SIDE, 3))


def base(seed):
    return np.random.default_rng(seed).integers(40, 216, (SIDE, SIDE, 3))


def row_of(made, picture, group="g0"):
    prompt = {"origin": "duplicates", "sample_id": None, "group_id": group}
    return next(row for row in made.match(prompt, picture.astype(np.uint8)) if row["relation"] == "own")


def test_a_twin_outside_the_group_does_not_hide_a_copy():
    """The image's near-twin, below the threshold of duplicates, is another training group; the generation is the image."""
    image = base(1)
    twin = (image + noise(2, 12)).clip(0, 255)
    made = planted(*(one.astype(np.uint8) for one in (image, twin, base(3), base(4))))
    copy = (image + noise(6, 10)).clip(0, 255)
    row = row_of(made, copy)
    to_twin = l2(copy, twin)
    assert row["coarse_l2"] / to_twin > RATIO, "with the twin in the denominator no copy could be called"
    assert row["coarse_ratio"] < RATIO / 2
    assert row["nearest_other_l2"] == pytest.approx(min(l2(copy, base(3)), l2(copy, base(4))), rel=1e-5)


def test_a_crowd_of_like_pictures_has_no_twins():
    """Skies: none stands apart from the others, so a new sky near to one of them is a copy of none."""
    sky = base(1)
    skies = [(sky + noise(seed, 24)).clip(0, 255).astype(np.uint8) for seed in range(10, 18)]
    made = planted(*skies)
    new = (sky + noise(30, 24)).clip(0, 255)
    row = row_of(made, new)
    assert row["extracted"], "the paper's rule calls it"
    assert row["coarse_ratio"] > 0.9


def test_the_yardstick_shrinks_where_everything_has_a_near_neighbour():
    """At 10^8 images each has a near neighbour that is no twin; the same generation is then nearer to others too."""
    image = base(1)
    generation = (image + noise(2, 30)).clip(0, 255)
    few = planted(*(one.astype(np.uint8) for one in (image, base(3), base(4))))
    crowd = [(image + noise(seed, 45)).clip(0, 255).astype(np.uint8) for seed in range(40, 60)]
    many = planted(image.astype(np.uint8), *crowd)
    assert row_of(few, generation)["coarse_ratio"] < RATIO < row_of(many, generation)["coarse_ratio"]


def test_without_another_image_there_is_no_ratio():
    made = planted(base(1).astype(np.uint8))
    row = row_of(made, base(1))
    assert row["l2"] == 0 and row["ratio"] is None and row["coarse_ratio"] is None and row["adaptive_l2"] is None
    assert row["n_others"] == 0 and row["extracted"]


def test_two_groups_of_one_picture_are_as_near():
    made = planted(base(1).astype(np.uint8), base(1).astype(np.uint8))
    assert row_of(made, base(1))["ratio"] == 1.0


def test_members_are_asked_of_every_group_that_gets_a_row():
    """Of another group that lies nearest by coarse l2, too, be it far by l2 and the own one nearer still."""
    own = Group("own", 0, "own", 2)
    others = [Group(f"group {place}", place, f"sample {place}", 2) for place in range(1, 8)]
    near = [Near(own, 0.01, 0.0), *(Near(group, 0.02 + 0.01 * group.code, 0.3 - 0.01 * group.code) for group in others)]
    compared = ComparedPicture(np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE, 3), np.float32), near, [])
    matcher = Matcher(lambda code, sample, side: np.zeros((SIDE, SIDE, 3), np.uint8), Measure(DELTA, 50, 0.5, RATIO))
    wanted = matcher.wanted(compared, own)
    assert wanted == ["own", "group 1", "group 2", "group 3", "group 7"]
    members = {group: [(1, "first"), (2, "second")] for group in wanted}
    rows = matcher.rows(compared, own, False, members)
    assert [row["group_id"] for row in rows] == wanted
