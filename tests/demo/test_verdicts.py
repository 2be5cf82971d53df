"""Audits of the other embedded models, on a part of their corpora: the verdicts against what brute force found in each."""

import pytest

from benchmarks.verdicts import Audit, audited
from demo import photographs, truth

OPTIONS = ("--images_per_prompt=4", "--images_per_control=4", "--max_false_positive_rate=0.05", "--keep=flagged")
"""A control of twenty may be called: there are few."""


@pytest.fixture(scope="module", params=["half_learned", "photographs"])
def audit(request, tmp_path_factory):
    if request.param == "photographs" and not photographs.DATA.exists():
        pytest.skip(f"CIFAR-10 is not there: {photographs.DATA}")
    folder = tmp_path_factory.mktemp(request.param)
    lake = audited(request.param, folder, OPTIONS, scale=0.25, port=18_433)
    return Audit(request.param, lake, folder / "site")


def test_a_copy_is_called_and_what_is_half_learned_is_not(audit):
    copies = [row for row in audit.rows if truth.is_copy(row)]
    others = [row for row in audit.rows if not truth.is_copy(row) and not truth.is_doubtful(row)]
    assert len(copies) >= 8 and len(others) >= 10
    for rule in ("copied", "extracted_calibrated"):
        precision, recall, _, _ = audit.precision_and_recall(rule)
        assert precision >= 0.98 and recall >= 0.95, (rule, precision, recall)
    # What the number was before: evidence of training, which half-learned pictures show too.
    assert audit.precision_and_recall("seen")[0] < 0.8


def test_images_came_back_whatever_was_asked_for(audit):
    """Of the stored generations alone: the others are looked at by their thumbnails."""
    found = audit.came_back()
    assert found["sure"] >= 8
    assert found["copied_precision"] >= 0.98 and found["copied_recall"] >= 0.95
    facts = audit.match.facts
    assert facts["candidates"]["nearest"] >= 0.99 and facts["candidates"]["next"] >= 0.99


def test_copies_come_back_under_captions_of_pictures_that_the_model_never_saw(audit):
    if audit.name != "photographs":
        pytest.skip("its captions name one picture each")
    assert any(row["copied_by_control_caption"] for row in audit.extractions)


def test_held_out_pictures_are_no_copies(audit):
    mean, kept = audit.splits()
    assert mean <= 0.05 and kept >= 0.95
