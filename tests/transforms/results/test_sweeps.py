"""The marts of a sweep on planted models and generations, whose answers are known; its checks; the database."""

import collections

import duckdb
import numpy as np
import pytest
from scipy import stats

import sql
from tests.fakes import fake_lake
from tests.sweeps import Call, Planted, fake_sweep, nothing, returns
from transforms.kernels.effects import half_point, odds_per_deviation
from transforms.kernels.rates import blaker_interval
from transforms.models.configuration import Configuration
from transforms.results import database, marts, sweeps
from transforms.store.files import read_parquet
from transforms.training import population

GENERATIONS = 20


def measured(fake, snapshot="compared"):
    """Every mart as rows."""
    sweeps.run(fake.lake, fake.taken, snapshot)
    return {mart: read_parquet(fake.lake.part(mart, snapshot, 0)).to_pylist() for mart in sweeps.MARTS}


def one_model(tmp_path, **more):
    """A model of eight pictures and three canaries that gives back pictures 1 and 2, and the second canary (twice)."""
    calls = [Call(1), Call(1, ("l2",)), Call(2, ("ratio",)), Call(9), Call(9), None, *nothing(4)]
    controls = [Call(0, ("l2",)), Call(0, ("l2",)), Call(3, ("l2", "ratio")), *nothing(7)]
    configuration = Configuration(images=8, canaries=3, copied_images=2, copies=4)
    return fake_sweep(tmp_path, [Planted(configuration, calls, controls, **more)])


def test_leakage_counts_generations_and_pictures_by_each_rule(tmp_path):
    fake = one_model(tmp_path)
    (row,) = measured(fake)["leakage"]
    assert (row["train_id"], row["model_id"]) == (fake.train.snapshot_id, fake.ids[0])
    assert (row["pictures_made"], row["pictures"], row["controls"], row["frechet"]) == (9, 8, 11, 1.0)
    expected = {"l2": (4, 1, 1, 3, 2), "adaptive_l2": (3, 1, 1, 0, 0), "ratio": (4, 2, 1, 1, 1)}
    for rule, (called, extracted, canaries, false_called, false) in expected.items():
        assert row[f"called_by_{rule}"] == called and row[f"extracted_by_{rule}"] == extracted
        assert row[f"canaries_by_{rule}"] == canaries
        assert row[f"control_called_by_{rule}"] == false_called and row[f"controls_by_{rule}"] == false
        for name, count, of in (("called", called, 9), ("extracted", extracted, 8), ("controls", false, 11)):
            shares = [row[f"{name}_by_{rule}_share{end}"] for end in ("", "_lower", "_upper")]
            assert shares == pytest.approx([count / of, *blaker_interval(count, of)])
    assert row["reachable_share"] == pytest.approx(1 - (7 / 8) ** 9)


def test_copies_are_told_apart(tmp_path):
    fake = one_model(tmp_path)
    found = measured(fake)["leakage_by_copies"]
    members = fake.lake.read("model_members", fake.train.snapshot_id).to_pylist()
    copies = collections.Counter((row["kind"], row["copies"]) for row in members)
    assert {(row["kind"], row["copies"]): row["pictures"] for row in found} == copies
    ids = next(iter(fake.members.values()))
    of = {row["sample_id"]: (row["kind"], row["copies"]) for row in members}
    for rule, returned in (("l2", {1, 9}), ("ratio", {1, 2, 9}), ("adaptive_l2", {1, 9})):
        counted = collections.Counter(of[ids[number]] for number in returned)
        assert {
            (row["kind"], row["copies"]): row[f"extracted_by_{rule}"] for row in found if row[f"extracted_by_{rule}"]
        } == counted
    once = next(row for row in found if (row["kind"], row["copies"]) == ("picture", 1))
    shares = [once[f"extracted_by_ratio_share{end}"] for end in ("", "_lower", "_upper")]
    count = once["extracted_by_ratio"]
    assert shares == pytest.approx([count / once["pictures"], *blaker_interval(count, once["pictures"])])


def test_the_rules_are_held_against_each_other(tmp_path):
    found = measured(one_model(tmp_path))["rule_agreement"]
    cells = ("generations", "both", "only_rule", "only_other", "neither")
    by_hand = {
        ("members", "l2", "adaptive_l2"): (9, 3, 1, 0, 5), ("members", "l2", "ratio"): (9, 3, 1, 1, 4),
        ("members", "adaptive_l2", "ratio"): (9, 3, 0, 1, 5), ("controls", "l2", "adaptive_l2"): (9, 0, 3, 0, 6),
        ("controls", "l2", "ratio"): (9, 1, 2, 0, 6), ("controls", "adaptive_l2", "ratio"): (9, 0, 0, 1, 8),
    }  # fmt: skip
    for cohort in {row["cohort"] for row in found}:  # one, and all
        mine = [row for row in found if row["cohort"] == cohort]
        assert {(row["against"], row["rule"], row["other"]): tuple(row[name] for name in cells) for row in mine} == by_hand
    assert len(found) == 12
    kappa = {(row["against"], row["rule"], row["other"]): row["kappa"] for row in found}
    assert kappa["members", "l2", "ratio"] == pytest.approx((7 / 9 - (4 * 4 + 5 * 5) / 81) / (1 - (4 * 4 + 5 * 5) / 81))
    assert kappa["controls", "l2", "adaptive_l2"] == pytest.approx(0)


def test_what_was_not_trained_is_a_row_without_numbers(tmp_path):
    fake = fake_sweep(tmp_path, [
        Planted(Configuration(images=4), returns([0], 4)), Planted(Configuration(images=5000), [], status="failed", step=0),
        Planted(Configuration(images=4, learning_rate=1.0), [], status="diverged"),
    ])  # fmt: skip
    rows = measured(fake)["leakage"]
    assert collections.Counter(row["status"] for row in rows) == {"success": 1, "failed": 1, "diverged": 1}
    for row in rows:
        assert (row["extracted_by_l2"] is None) == (row["status"] != "success") == (row["pictures_made"] is None)


# -- effects ----------------------------------------------------------------------------------------------------------


def test_an_axis_has_the_effect_of_its_pairs(tmp_path):
    """Two widths and two settings of weight decay, three seeds each: by hand, seed by seed."""
    count = {  # (width, weight decay) → pictures that come back, by seed
        (8, 0.0): (1, 2, 1), (16, 0.0): (3, 5, 4), (8, 0.1): (0, 1, 1), (16, 0.1): (2, 2, 4)}  # fmt: skip
    models = [
        Planted(Configuration(images=8, width=width, weight_decay=decay, seed=seed), returns(range(back), GENERATIONS),
                quality=(float(width + seed * seed), None, 0.5, 0.5))
        for (width, decay), backs in count.items() for seed, back in enumerate(backs)
    ]  # fmt: skip
    # One more at a width of its own, so that there is a reference.
    models.append(Planted(Configuration(images=8, width=8, seed=3), returns([], GENERATIONS)))
    found = measured(fake_sweep(tmp_path, models))["leakage_effects"]
    width = [row for row in found if row["axis"] == "width" and row["measure"] == "extracted_by_ratio_share"]
    assert [(row["level"], row["reference"], row["setting"]) for row in width] == [
        ("16", "8", "all"), ("16", "8", "weight_decay=0.0"), ("16", "8", "weight_decay=0.1")]  # fmt: skip
    differences = {decay: (np.array(count[16, decay]) - np.array(count[8, decay])) / 8 for decay in (0.0, 0.1)}
    expected = [(differences[0.0] + differences[0.1]) / 2, differences[0.0], differences[0.1]]
    for row, values in zip(width, expected, strict=True):
        test = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert [row["effect"], row["effect_lower"], row["effect_upper"]] == pytest.approx([values.mean(), test.low, test.high])
        assert (row["pairs"], row["replicates"]) == ((6, 3) if row["setting"] == "all" else (3, 3))
    assert width[0]["settings"] == 2
    assert width[1]["level_mean"] == pytest.approx(12 / 24) and width[1]["reference_mean"] == pytest.approx(4 / 24)
    # Quality is 8 more at every pair: an effect without an interval, since nothing shows its spread. CMMD isn't known.
    quality = {row["measure"]: row for row in found if row["axis"] == "width" and row["setting"] == "all"}
    assert (quality["frechet"]["effect"], quality["frechet"]["effect_lower"]) == (8.0, None)
    assert "cmmd" not in quality
    assert {row["axis"] for row in found} == {"width", "weight_decay"}


def test_one_pair_has_no_interval_and_the_last_step_alone_is_compared(tmp_path):
    models = [
        Planted(Configuration(images=4, flip=flip), returns(range(back), 6), step=step, last=last)
        for flip, back, step, last in ((False, 3, 100, True), (False, 4, 50, False), (True, 1, 100, True))
    ]
    (row,) = [row for row in measured(fake_sweep(tmp_path, models))["leakage_effects"]
              if row["measure"] == "extracted_by_l2_share"]  # fmt: skip
    assert (row["axis"], row["level"], row["reference"], row["pairs"]) == ("flip", "true", "false", 1)
    assert (row["effect"], row["effect_lower"], row["effect_upper"]) == (-0.5, None, None)


def test_the_reference_is_a_level_that_others_stand_beside(tmp_path):
    """Most models have 8 pictures, but of another pool than those that differ in the number alone."""
    models = [Planted(Configuration(images=8, pool=16, split=split), returns([0], 6)) for split in range(4)]
    models += [Planted(Configuration(images=images), returns([0], 6)) for images in (4, 16)]
    found = measured(fake_sweep(tmp_path, models))["leakage_effects"]
    rows = [row for row in found if row["measure"] == "extracted_by_l2_share" and row["axis"] == "images"]
    assert [(row["level"], row["reference"], row["effect"]) for row in rows] == [("16", "4", 1 / 16 - 1 / 4)]


def test_what_is_said_by_two_axes_is_compared_in_both(tmp_path):
    models = [
        Planted(Configuration(images=4, seed=seed, **private), returns(range(back), 6))
        for seed in (0, 1)
        for private, back in (({}, 4 - seed), ({"privacy_noise": 1.0, "privacy_clipping": 1.0}, 0))
    ]
    found = measured(fake_sweep(tmp_path, models))["leakage_effects"]
    (row,) = [row for row in found if row["measure"] == "extracted_by_l2_share" and row["setting"] == "all"]
    assert (row["axis"], row["level"], row["reference"]) == ("privacy_noise, privacy_clipping", "1.0, 1.0", "0.0, 0.0")
    assert row["effect"] == pytest.approx(-0.875) and row["effect_lower"] < row["effect"] < row["effect_upper"]


# -- sizes and steps --------------------------------------------------------------------------------------------------

BACK = {4: (4, 4, 3), 8: (8, 6, 7), 16: (5, 6, 8)}
"""Training pictures → how many come back, by seed."""


def test_the_size_that_is_half_given_back(tmp_path):
    models = [
        Planted(Configuration(images=images, seed=seed), returns([*range(back)] * 2, 2 * images))
        for images, backs in BACK.items() for seed, back in enumerate(backs)
    ]  # fmt: skip
    found = {(row["rule"], row["counted"]): row for row in measured(fake_sweep(tmp_path, models))["largest_memorised"]}
    row = found["adaptive_l2", "pictures"]
    sizes = [images for images in BACK for _ in range(3)]
    backs = [back for images in BACK for back in sorted(BACK[images])]
    expected = half_point(sizes, backs, sizes)
    assert [row["half"], row["half_lower"], row["half_upper"]] == pytest.approx(list(expected.size))
    assert 8 < row["half_lower"] < row["half"] < row["half_upper"]
    assert (row["slope"], row["models"], row["sizes"]) == (pytest.approx(expected.slope.value), 9, 3)
    assert (row["smallest"], row["largest"], row["ninety"]) == (4, 16, 4)
    assert row["share_at_smallest"] == pytest.approx(11 / 12) and row["share_at_largest"] == pytest.approx(19 / 48)
    # Of twice as many generations as pictures each picture comes twice: the same share.
    assert found["ratio", "generations"]["share_at_largest"] == pytest.approx(19 / 48)
    assert len(found) == 6


def test_the_step_at_which_it_begins_and_how_that_grows(tmp_path):
    """Half is given back at step 8 n, of models kept at each doubling: the onset grows as n."""
    models = [
        Planted(Configuration(images=images, seed=seed, checkpoints=6),
                returns(range(images) if step >= 8 * images else [], 16), step=step, last=step == 256)
        for images in (4, 8, 16) for seed in (0, 1) for step in (8, 16, 32, 64, 128, 256)
    ]  # fmt: skip
    models.append(Planted(Configuration(images=4, seed=9), returns([], 4), step=128, last=False))
    models.append(Planted(Configuration(images=4, seed=9), returns([], 4), step=256))
    made = measured(fake_sweep(tmp_path, models))
    onset = [row for row in made["onset"] if (row["rule"], row["counted"], row["reaches"]) == ("ratio", "pictures", 0.5)]
    steps = {(row["images"], row["seed"]): (row["step_before"], row["step"]) for row in onset}
    assert steps == {(4, 0): (16, 32), (4, 1): (16, 32), (8, 0): (32, 64), (8, 1): (32, 64), (16, 0): (64, 128),
                     (16, 1): (64, 128), (4, 9): (None, None)}  # fmt: skip
    (row,) = [row for row in made["onset_slopes"]
              if (row["rule"], row["counted"], row["reaches"]) == ("ratio", "pictures", 0.5)]  # fmt: skip
    assert row["axis"] == "images" and row["slope"] == pytest.approx(1)
    assert (row["trainings"], row["never"], row["at_once"], row["settings"]) == (7, 1, 0, 1)
    curve = [row for row in made["learning_curve"] if (row["images"], row["seed"]) == (8, 1)]
    assert [(row["step"], row["extracted_by_l2_share"]) for row in curve] == [
        (8, 0), (16, 0), (32, 0), (64, 1), (128, 1), (256, 1)]  # fmt: skip


# -- families, halves, density ----------------------------------------------------------------------------------------


def test_a_gan_stands_beside_the_diffusion_model_of_like_quality(tmp_path):
    models = [
        Planted(Configuration(images=8), returns(range(6), 8), quality=(10.0, 1.0, None, None)),
        Planted(Configuration(images=8, width=8), returns(range(4), 8), quality=(5.0, 9.0, None, None)),
        Planted(Configuration(images=8, family="gan"), returns(range(2), 8), quality=(5.2, 1.5, None, None)),
        Planted(Configuration(images=16, family="gan"), returns(range(2), 8), quality=(5.2, 1.5, None, None)),
    ]
    fake = fake_sweep(tmp_path, models)
    found = measured(fake)["diffusion_and_gans"]
    assert {row["gan_model_id"] for row in found} == {fake.ids[2]}  # none of 16 pictures beside the other
    by_measure = {row["measure"]: row for row in found if row["rule"] == "adaptive_l2"}
    like = by_measure["frechet"]
    assert (like["diffusion_model_id"], like["alike"]) == (fake.ids[1], True)
    assert (like["gan_share"], like["diffusion_share"], like["difference"]) == (0.25, 0.5, -0.25)
    assert like["difference_lower"] < -0.25 < like["difference_upper"]
    assert (by_measure["cmmd"]["diffusion_model_id"], by_measure["cmmd"]["alike"]) == (fake.ids[0], False)


def shade(number, value):
    return np.full((8, 8, 3), 10 * number + value, np.uint8)


def test_halves_that_agree_make_the_same_of_a_seed(tmp_path):
    """Thumbnails of one shade each: inside 10 n, outside 10 n + 3 (and 4 for odd n)."""
    models = [
        Planted(Configuration(images=4, pool=8, side=side), returns([0], 6),
                drawn=lambda number, _, side=side: shade(number, (3 + number % 2) if side == "out" else 0))
        for side in ("in", "out")
    ]  # fmt: skip
    fake = fake_sweep(tmp_path, [*models, Planted(Configuration(images=4, pool=8, side="out", seed=1), nothing(6))])
    (row,) = measured(fake)["disjoint_halves"]
    assert (row["inside_model_id"], row["outside_model_id"], row["generations"]) == (*fake.ids[:2], 6)
    same = np.array([3, 4] * 3) / 255
    test = stats.ttest_1samp(same, 0).confidence_interval(0.95)
    assert [row["same_l2"], row["same_l2_lower"], row["same_l2_upper"]] == pytest.approx([same.mean(), test.low, test.high])
    other = np.abs([0 - 54, 10 - 3, 20 - 14, 30 - 23, 40 - 34, 50 - 43]) / 255
    assert row["other_l2"] == pytest.approx(other.mean())
    assert row["ratio"] == pytest.approx(row["same_l2"] / row["other_l2"])
    assert row["inside_extracted_by_ratio_share"] == 0.25


def test_outliers_that_come_back_first_are_seen(tmp_path):
    """Of 36 pictures the fifteen that lie farthest from the others come back, but for one, and one of the rest does."""
    configuration = Configuration(images=36)
    plain = fake_sweep(tmp_path / "plain", [Planted(configuration, nothing(4))])
    pictures = population.read(plain.lake, plain.lake.latest("deduplicate"), 50_000, 8)
    (ids,) = plain.members.values()
    place = {str(one): at for at, one in enumerate(pictures.sample_ids)}
    pixels = np.stack([pictures.pixels[place[one]] for one in ids]).astype(float) / 255
    distances = np.sqrt(((pixels[:, None] - pixels[None]) ** 2).mean((2, 3, 4)))
    density = np.sort(distances, 1)[:, 1:6].mean(1)
    order = np.argsort(-density)
    back = [*order[1:15].tolist(), int(order[20])]
    fake = fake_sweep(tmp_path / "lake", [Planted(configuration, returns(back, 20))])
    row = next(row for row in measured(fake)["memorised_first"] if row["rule"] == "ratio")
    by_id = np.argsort(ids)
    expected = odds_per_deviation(np.log(density)[by_id].tolist(), np.isin(np.arange(36), back)[by_id].tolist())
    assert (row["pictures"], row["extracted"]) == (36, 15)
    assert [row["log_odds"], row["log_odds_lower"], row["log_odds_upper"]] == pytest.approx(list(expected), rel=1e-4)
    assert row["log_odds_lower"] > 0 and row["extracted_l2"] == pytest.approx(density[back].mean())
    few = fake_sweep(tmp_path / "few", [Planted(configuration, returns(back[:4], 12))])
    assert all(row["log_odds"] is None for row in measured(few)["memorised_first"])


def test_the_order_of_rows_and_parts_changes_nothing(tmp_path):
    fake = one_model(tmp_path)
    before = measured(fake)
    snapshot = fake.extract.snapshot_id
    table = read_parquet(fake.lake.part("untargeted_generations", snapshot, 0))
    fake.lake.write("untargeted_generations", snapshot, 0, table.take(list(range(len(table)))[::-1][:4]))
    fake.lake.write("untargeted_generations", snapshot, 1, table.take(list(range(len(table)))[::-1][4:]))
    assert measured(fake, "again") == before


# -- checks and the database ------------------------------------------------------------------------------------------


def in_first(**values):
    return lambda rows: [{**rows[0], **values}, *rows[1:]]


CHECKS = [
    ("every_generation_is_a_row", "untargeted_generations", lambda rows: rows[1:]),
    ("every_generation_is_a_row", "untargeted_generations", lambda rows: [*rows, rows[0]]),
    ("every_generation_is_a_row", "untargeted_generations", in_first(model_id="nobody")),
    ("every_generation_is_a_row", "untargeted_attacks", in_first(failed=0)),
    ("every_trained_model_was_asked", "untargeted_attacks", lambda rows: rows[1:]),
    ("every_trained_model_was_asked", "models", in_first(status="failed")),
    ("leakage_has_every_model", "models", lambda rows: [*rows, rows[0]]),
    ("models_are_unique", "models", lambda rows: [*rows, rows[0]]),
    ("shares_are_shares", "untargeted_attacks", in_first(members=3)),
    ("what_is_called_has_a_picture", "untargeted_generations", in_first(sample_id=None)),
    ("what_is_extracted_was_trained_on", "model_members", lambda rows: rows[:1]),
]


@pytest.mark.parametrize(("check", "table", "change"), CHECKS)
def test_a_check_finds_what_it_is_there_for(tmp_path, check, table, change):
    fake = one_model(tmp_path)
    snapshot = (fake.train if table in fake.train.rows else fake.extract).snapshot_id
    fake.lake.write(table, snapshot, 0, change(fake.lake.read(table, snapshot).to_pylist()))
    with pytest.raises(RuntimeError, match=rf"the sweep's own checks failed: .*{check}: \d+ rows, the first is"):
        measured(fake)
    assert not any(fake.lake.parts(mart, "compared") for mart in sweeps.MARTS)


def test_a_control_that_was_trained_on_is_found(tmp_path):
    fake = one_model(tmp_path)
    ids = next(iter(fake.members.values()))
    path = fake.lake.part("untargeted_generations", fake.extract.snapshot_id, 0)
    rows = read_parquet(path).to_pylist()
    fake.lake.write("untargeted_generations", fake.extract.snapshot_id, 0, in_first(control_sample_id=ids[0])(rows))
    with pytest.raises(RuntimeError, match="what_is_extracted_was_trained_on"):
        measured(fake)


def test_every_check_has_a_fault_that_it_finds():
    assert {check for check, *_ in CHECKS} == set(sql.names("sweep_checks"))


def test_the_database_shows_audits_and_sweeps(tmp_path):
    fake = one_model(tmp_path)
    audited = fake_lake(tmp_path, sizes=[1] * 40, controls=0)
    marts.run(audited.lake, audited.match, "measured")
    audited.lake.complete(
        "measure", "measured", {}, {"match": audited.match.snapshot_id}, {"audit_id": audited.generate.snapshot_id}
    )
    for name in ("first", "second"):
        measured(fake, name)
        upstream = {"train": fake.train.snapshot_id, "extract": fake.extract.snapshot_id}
        fake.lake.complete("compare", name, {"asked": name}, upstream, {})
    assert [one.snapshot_id for one in sweeps.current(fake.lake)] == ["second"]
    with duckdb.connect(database.build_database(fake.lake), read_only=True) as connection:
        assert connection.execute("SELECT DISTINCT snapshot_id, train_id FROM leakage").fetchall() == [
            ("second", fake.train.snapshot_id)]  # fmt: skip
        assert connection.execute("SELECT count(*), count(image) FROM untargeted_generations").fetchone() == (10, 5)
        assert connection.execute("SELECT count(*) > 0 FROM verdicts").fetchone() == (True,)
        assert connection.execute("SELECT count(*) FROM model_members").fetchone() == (11,)


def test_a_sweep_that_varies_nothing_has_empty_marts(tmp_path):
    made = measured(fake_sweep(tmp_path, [Planted(Configuration(images=4), returns([1], 4))]))
    assert {mart for mart, rows in made.items() if rows} == {"leakage", "rule_agreement", "memorised_first"}
    assert marts.sql_digest() != sweeps.sql_digest()
