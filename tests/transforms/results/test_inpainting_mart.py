"""The mart of inpaintings, over a planted table: means of both sides, the same picture on both, and what failed."""

import numpy as np
import pyarrow as pa
import pytest

import sql
from transforms.kernels.effects import mean_interval
from transforms.store.scan import connect
from transforms.store.schema import TABLES

COLUMNS = ("model_id", "sample_id", "member", "inpaintings", "kept", "score", "kept_l2", "status")


@pytest.fixture(scope="module")
def planted():
    """Four models of one cohort and six targets, each a member of two of them; one that failed; a lone model of another."""
    random = np.random.default_rng(0)
    rows = []
    for model in range(4):
        for target in range(6):
            member = (model + target) % 2 == 0
            l2 = 0.2 + 0.01 * target - 0.1 * member + 0.001 * random.standard_normal()
            rows.append((f"m{model}", f"s{target}", member, 100, 10, 0.5 - 0.2 * member + 0.3 * random.random(), l2, "success"))
    rows.append(("m0", "s9", False, 0, 0, None, None, "failed"))
    rows.append(("alone", "s0", True, 100, 10, 0.5, 0.1, "success"))
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def made(planted):
    models = [{"model_id": f"m{number}", "cohort": "cohort", "step": 12} for number in range(4)]
    models.append({"model_id": "alone", "cohort": "other", "step": 12})
    with connect() as connection:
        for name, rows in (("models", models), ("inpaintings", planted)):
            schema = pa.schema([TABLES[name].schema.field(column).with_nullable(True) for column in rows[0]])
            connection.register(name, pa.Table.from_pylist(rows, schema=schema))
        return connection.sql(sql.read("marts", "inpainting")).to_arrow_table().to_pylist()


def test_a_cohort_is_all_of_its_models_together(made, planted):
    (row,) = [row for row in made if row["scope"] == "cohort" and row["cohort"] == "cohort"]
    assert (row["models"], row["members"], row["non_members"], row["failed"]) == (4, 12, 12, 1)
    assert (row["inpaintings"], row["kept"]) == (100, 10)
    for name, member in (("l2_of_members", True), ("l2_of_non_members", False)):
        mine = [one["kept_l2"] for one in planted if one["member"] == member and one["model_id"] != "alone" and one["kept_l2"]]
        assert [row[name], row[f"{name}_lower"], row[f"{name}_upper"]] == pytest.approx(list(mean_interval(mine)))
    wins = [
        one["score"] < other["score"]
        for one in planted if one["member"] and one["model_id"] != "alone"
        for other in planted if not other["member"] and other["score"] is not None
    ]  # fmt: skip
    assert row["area"] == pytest.approx(np.mean(wins)) and 0.5 < row["area"] < 1


def test_the_same_picture_is_nearer_as_a_member(made, planted):
    (row,) = [row for row in made if row["scope"] == "cohort" and row["cohort"] == "cohort"]

    def mean(target, member):
        same = [one for one in planted if one["sample_id"] == target and one["member"] == member and one["model_id"] != "alone"]
        return np.mean([one["kept_l2"] for one in same])

    found = mean_interval([mean(f"s{target}", True) - mean(f"s{target}", False) for target in range(6)])
    assert row["both_sides"] == 6
    assert [row["difference"], row["difference_lower"], row["difference_upper"]] == pytest.approx(list(found))
    assert -0.11 < row["difference_lower"] < -0.1 + 0.01 and row["difference_upper"] < -0.09


def test_a_model_alone_has_no_picture_on_both_sides(made):
    models = {row["model_id"]: row for row in made if row["scope"] == "model"}
    assert set(models) == {"m0", "m1", "m2", "m3", "alone"}
    assert all(row["difference"] is None and row["both_sides"] is None for row in models.values())
    assert (models["m0"]["members"], models["m0"]["non_members"], models["m0"]["failed"]) == (3, 3, 1)
    alone = models["alone"]
    assert (alone["l2_of_members"], alone["l2_of_members_lower"], alone["l2_of_non_members"]) == (0.1, None, None)
    assert alone["area"] is None
    (cohort,) = [row for row in made if row["scope"] == "cohort" and row["cohort"] == "other"]
    assert cohort["both_sides"] == 0 and cohort["difference"] is None
