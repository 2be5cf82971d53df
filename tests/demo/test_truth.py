"""The truth of the embedded models: counted rightly, and committed for the weights that are committed."""

import collections

import numpy as np
import pytest

from demo import photographs, truth
from demo.corpus import Example
from demo.embedded import MODELS, NAMES, examples
from demo.evaluate_generator import find
from tests.planted import picture

SIDE = 16


def planted(key, copies, seed):
    return Example(key, f"{key} caption", copies, picture(seed, SIDE, SIDE))


def near(example, distance):
    """Another picture at that l2, give or take the rounding of a pixel."""
    middle = np.where(example.picture < 128, 1.0, -1.0)
    return (example.picture + np.rint(middle * distance * 255)).astype(np.uint8)


def test_generations_are_counted_for_whom_they_show():
    a, b, control = planted("a", 4, 0), planted("b", 1, 1), planted("control", 0, 2)
    pictures = np.stack([a.picture, b.picture])
    made = {
        "a": [a.picture, near(a, 0.08), near(a, 0.13), near(b, 0.04)],
        "b": [near(b, 0.18), control.picture, control.picture, control.picture],
        "control": [near(a, 0.04), control.picture],
    }
    found = {each.key: truth.look(np.stack(made[each.key]), each.picture, pictures) for each in (a, b, control)}
    assert found["a"].nearest.tolist() == [0, 0, 0, 1]
    assert found["a"].distance[1] == pytest.approx(0.08, abs=0.003) and found["control"].own[1] == 0
    result = truth.summarise([a, b], [control], found)
    first, second = result["trained"]
    assert [first[f"share_{band}"] for band in truth.BANDS] == [0.25, 0.5, 0.75, 0.75]
    assert [first[f"came_back_{band}"] for band in ("005", "010", "015")] == [2, 3, 4] and first["other_010"] == 1
    assert [second[f"share_{band}"] for band in truth.BANDS] == [0, 0, 0, 0.25]
    assert second["came_back_005"] == second["other_010"] == 1
    assert result["controls"][0]["returned_010"] == 1
    assert truth.is_copy(first) and not truth.is_copy(second) and not truth.is_doubtful(second)
    assert truth.is_doubtful({"share_010": 0.0, "share_015": 0.2}) and truth.is_doubtful({"share_010": 0.3, "share_015": 0.3})


def test_what_was_not_asked_for_is_left_out():
    a, b = planted("a", 4, 0), planted("b", 1, 1)
    found = {"b": truth.look(b.picture[None], b.picture, np.stack([a.picture, b.picture]))}
    result = truth.summarise([a, b], [], found)
    assert [(row["slug"], row["share_005"]) for row in result["trained"]] == [("b", 1.0)]


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_is_that_of_the_committed_weights_and_of_the_whole_corpus(name):
    if name == "photographs" and not photographs.DATA.exists():
        pytest.skip("CIFAR-10 is not there (../shared/data)")
    known = truth.read(name)
    assert known["weights"] == truth.weights_digest(MODELS / name)
    for part, planned in zip(("trained", "controls"), examples(name), strict=True):
        assert [(row["slug"], row["caption"]) for row in known[part]] == [(each.key, each.caption) for each in planned]
    assert [row["copies"] for row in known["trained"]] == [example.copies for example in examples(name)[0]]
    for row in known["trained"]:
        assert 0 <= row["share_005"] <= row["share_010"] <= row["share_015"] <= row["share_020"] <= 1
        own = row["share_010"] * row["images"]
        assert row["other_010"] == pytest.approx(row["came_back_010"] - own, abs=0.01)


def test_each_model_shows_what_it_is_there_for():
    kinds = {
        name: collections.Counter("copy" if truth.is_copy(row) else "doubtful" if truth.is_doubtful(row) else "not"
                                  for row in truth.read(name)["trained"])
        for name in NAMES
    }  # fmt: skip
    assert all(counts["copy"] >= 40 for counts in kinds.values())
    # Half learned: nearer to their own picture than controls come to theirs, and no copies.
    half = truth.read("half_learned")
    never = np.quantile([row["median_l2"] for row in half["controls"]], 0.05)
    assert sum(row["median_l2"] < never and not truth.is_copy(row) for row in half["trained"]) >= 100
    # Copies under other captions.
    photographs_truth = truth.read("photographs")
    assert sum(row["other_010"] > 0 for row in photographs_truth["trained"]) >= 6
    assert sum(row["returned_010"] > 0 for row in photographs_truth["controls"]) >= 3


def test_generations_are_kept_and_hopeless_ones_are_not_made(tmp_path):
    class Asker:
        made = 0

        def ask(self, example, number, first=0):
            self.made += number - first
            return np.stack([near(example, 0.05 if example.key == "a" else 0.3)] * (number - first))

    a, b = planted("a", 4, 0), planted("b", 1, 1)
    pictures = np.stack([a.picture, b.picture])
    asker = Asker()
    assert len(find(asker, a, 8, 2, pictures, tmp_path).own) == 8 and asker.made == 8
    assert len(find(asker, b, 8, 2, pictures, tmp_path).own) == 2 and asker.made == 10
    again = find(asker, b, 8, 2, pictures, tmp_path)
    assert len(again.own) == 2 and asker.made == 10
    row = truth.summarise([a, b], [], {"a": find(asker, a, 8, 8, pictures, tmp_path), "b": again})["trained"][1]
    assert row["images"] == 2 and row["share_020"] == 0
