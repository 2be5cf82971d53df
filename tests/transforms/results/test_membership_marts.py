"""The marts of membership, over planted tables: rates, refusals, cohorts and curves."""

import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import sql
from transforms.kernels.membership import area, roc, true_positives_at
from transforms.store.scan import connect
from transforms.store.schema import TABLES

PICTURES = 300


def scores(model, attack, member, score, *, timestep=100, chosen=False, draws=4, flips=True):
    return [
        {"model_id": model, "sample_id": f"s{at:04d}", "member": bool(inside), "attack": attack, "timestep": timestep,
         "chosen": chosen, "draws": draws, "flips": flips, "score": None if np.isnan(value) else float(value)}
        for at, (inside, value) in enumerate(zip(member, score, strict=True))
    ]  # fmt: skip


def model(name, cohort, family="diffusion"):
    return {"model_id": name, "cohort": cohort, "step": 12, "family": family}


@pytest.fixture(scope="module")
def planted():
    """Five models of one cohort, of which LiRA tells much, and a lone GAN with few pictures."""
    random = np.random.default_rng(0)
    models, attacks, rows, drawn = [], [], [], {}
    for number in range(5):
        name = f"m{number}"
        member = random.random(PICTURES) < 0.5
        models.append(model(name, "cohort"))
        attacks.append({"model_id": name, "shadows": 4})
        for step, effect in ((50, 0.5), (100, 3.0)):
            lira = random.standard_normal(PICTURES) + effect * member
            lira[7] = np.nan
            chosen = step == (50 if number == 4 else 100)
            drawn[name, step] = member, lira
            rows += scores(name, "lira_online", member, lira, timestep=step, chosen=chosen)
            rows += scores(name, "lira_online", member, lira - member, timestep=step, chosen=chosen, draws=1, flips=False)
        rows += scores(name, "loss", member, random.standard_normal(PICTURES), chosen=True)
    models.append(model("gan", "alone", "gan"))
    attacks.append({"model_id": "gan", "shadows": 0})
    rows += scores("gan", "discriminator", np.arange(20) < 10, -np.arange(20.0), timestep=None, chosen=False, draws=0)
    return models, attacks, rows, drawn


@pytest.fixture(scope="module")
def made(planted):
    models, attacks, rows, _ = planted
    with connect() as connection:
        for name, table in (("models", models), ("membership_attacks", attacks), ("membership_scores", rows)):
            schema = TABLES[name].schema
            schema = pa.schema([schema.field(column).with_nullable(True) for column in table[0]])
            connection.register(name, pa.Table.from_pylist(table, schema=schema))
        for name in ("membership", "membership_roc"):
            connection.execute(f"CREATE TEMP TABLE {name} AS {sql.read('marts', name)}")
        yield connection


def rows_of(connection, query):
    return connection.sql(query).to_arrow_table().to_pylist()


@pytest.mark.parametrize("name", ["membership", "membership_roc"])
def test_declared_columns_are_what_comes_out(made, name):
    text = (Path(sql.__file__).parent / "marts" / "columns.toml").read_text()
    declared = tomllib.loads(text)[name]["columns"]
    actual = {column: kind for column, kind, *_ in made.execute(f"DESCRIBE {name}").fetchall()}
    assert {column: entry["type"] for column, entry in declared.items()} == actual and list(declared) == list(actual)


def test_a_model_has_its_rates_at_each_timestep_and_at_the_chosen_one(made, planted):
    drawn = planted[3]
    for number in range(5):
        for step in (50, 100):
            (row,) = rows_of(
                made,
                f"""SELECT * FROM membership WHERE model_id = 'm{number}' AND attack = 'lira_online'
                AND selection = 'fixed' AND timestep = {step} AND draws = 4""",
            )
            member, score = drawn[f"m{number}", step]
            known = np.isfinite(score)
            expected = true_positives_at(score[known], member[known], 0.01)
            assert row["area"] == area(score[known], member[known])
            assert (row["members"], row["non_members"], row["without_score"]) == (expected.positives, expected.negatives, 1)
            assert row["true_positives_at_1_percent"] == expected.rate
            assert row["true_positives_at_1_percent_lower"] == expected.lower
            assert row["true_positives_at_1_percent_upper"] == expected.upper
            assert row["true_positives_at_tenth_percent"] is row["true_positives_at_tenth_percent_upper"] is None
            assert row["refused_at_tenth_percent"] == expected_reason(expected.negatives)
            assert row["refused_at_1_percent"] is None and row["shadows"] == 4 and row["models"] == 1
    (row,) = rows_of(made, "SELECT timestep FROM membership WHERE model_id = 'm4' AND selection = 'chosen' AND draws = 4 "
                           "AND attack = 'lira_online'")  # fmt: skip
    assert row["timestep"] == 50


def expected_reason(negatives):
    return f"{negatives} non-members, a false positive rate of 0.1% takes 1,000"


def test_a_cohort_is_all_its_models_and_its_interval_is_of_images(made, planted):
    drawn = planted[3]
    (row,) = rows_of(made, "SELECT * FROM membership WHERE scope = 'cohort' AND attack = 'lira_online' "
                           "AND selection = 'chosen' AND draws = 4")  # fmt: skip
    both = [drawn[f"m{number}", 50 if number == 4 else 100] for number in range(5)]
    member, score = (np.concatenate(each) for each in zip(*both, strict=True))
    known = np.isfinite(score)
    expected = true_positives_at(score[known], member[known], 0.01)
    assert row["model_id"] is None and row["timestep"] is None and row["models"] == 5 and row["images"] == PICTURES - 1
    assert row["true_positives_at_1_percent"] == expected.rate and row["non_members"] == expected.negatives
    assert row["true_positives_at_1_percent_lower"] < expected.rate < row["true_positives_at_1_percent_upper"]
    # That the threshold is of a sample is in it.
    width = row["true_positives_at_1_percent_upper"] - row["true_positives_at_1_percent_lower"]
    assert width > expected.upper - expected.lower
    (loss,) = rows_of(made, "SELECT * FROM membership WHERE scope = 'cohort' AND attack = 'loss' AND selection = 'chosen'")
    assert loss["timestep"] == 100 and loss["shadows"] is None and abs(loss["area"] - 0.5) < 0.06


def test_too_few_are_refused_with_a_reason(made):
    for row in rows_of(made, "SELECT * FROM membership WHERE cohort = 'alone'"):
        assert row["area"] == 1 and row["timestep"] is None and row["shadows"] is None
        assert row["true_positives_at_1_percent"] is None
        assert row["refused_at_1_percent"] == "10 non-members, a false positive rate of 1% takes 100"
    assert len(rows_of(made, "SELECT * FROM membership WHERE cohort = 'alone'")) == 2


def test_curves_are_those_of_all_models_at_the_chosen_timestep(made, planted):
    drawn = planted[3]
    found = rows_of(made, "SELECT * FROM membership_roc WHERE attack = 'lira_online' AND draws = 4 ORDER BY corner")
    both = [drawn[f"m{number}", 50 if number == 4 else 100] for number in range(5)]
    member, score = (np.concatenate(each) for each in zip(*both, strict=True))
    known = np.isfinite(score)
    false, true = roc(score[known], member[known], per_decade=20)
    assert [row["false_positive_rate"] for row in found] == false.tolist()
    assert [row["true_positive_rate"] for row in found] == true.tolist()
    assert {(row["selection"], row["timestep"], row["models"]) for row in found} == {("chosen", None, 5)}
    curves = rows_of(made, "SELECT DISTINCT cohort, attack, selection, draws FROM membership_roc ORDER BY ALL")
    assert [tuple(row.values()) for row in curves] == [
        ("alone", "discriminator", "fixed", 0), ("cohort", "lira_online", "chosen", 1), ("cohort", "lira_online", "chosen", 4),
        ("cohort", "loss", "chosen", 4)]  # fmt: skip
