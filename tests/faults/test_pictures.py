"""Hostile pictures: each is a row with a reason or looks like what was sent, in a bounded time and memory.

``python -m tests.faults.pictures`` tries those as well that take seconds to make.
"""

import json
import subprocess
import sys

import pytest

from tests.faults.pictures import PICTURES, Hostile, quick
from tests.faults.report import tried
from transforms.store.pictures import decode

MEMORY = 1 << 30


def stored(*words):
    """What became of them, by name: in a process of its own, whose memory is that of nothing else."""
    run = subprocess.run([sys.executable, "-m", "tests.faults.pictures", *words], capture_output=True, text=True, check=True)
    return {found["name"]: found for found in map(json.loads, run.stdout.splitlines())}


@pytest.fixture(scope="module")
def found():
    return stored("--quick")


def test_there_are_many_kinds_and_each_is_tried(found):
    assert len({one.name for one in PICTURES}) == len(PICTURES) >= 60
    assert list(found) == [one.name for one in quick()] and len(found) >= 60


@pytest.mark.parametrize("one", quick(), ids=lambda one: one.name)
def test_it_is_a_row_with_a_reason_or_looks_like_what_was_sent(found, one: Hostile):
    became = found[one.name]
    if isinstance(one.becomes, str):
        assert became["mean"] is None and one.becomes in became["reason"]
    elif one.becomes is not None:
        assert became["reason"] is None and became["mean"] == pytest.approx(one.becomes, abs=1.5)
    else:
        assert (became["mean"] is None) == (became["reason"] is not None)
    if became["reason"] is not None:
        assert 0 < len(became["reason"]) <= 300 and "\n" not in became["reason"] and "0x" not in became["reason"]
    # The first takes the start of the process besides.
    assert became["seconds"] < 10.0
    assert became["grown"] < 64 << 20 and 16 << 20 < became["decoder"] < MEMORY
    outcome = "a row with a reason, or it looks like what was sent; under 1 GiB and 10 s"
    tried("a hostile picture", 1, outcome, one.name)


@pytest.mark.parametrize("name", ["PNG, RGBA, 7000 x 7000", "PNG, RGBA of 16 bits, 7000 x 7000"])
def test_what_is_as_large_as_may_be_is_stored_in_bounded_memory(name):
    became = stored(name)[name]
    assert became["sizes"] == [512, 512, 7000, 7000] and became["mean"] == pytest.approx(192, abs=1)
    assert became["decoder"] < MEMORY and became["grown"] < 64 << 20


@pytest.mark.parametrize("one", [one for one in quick() if isinstance(one.becomes, float)], ids=lambda one: one.name)
def test_decode_shows_the_same(one: Hostile):
    import numpy as np

    assert float(np.asarray(decode(one.make())).mean()) == pytest.approx(one.becomes, abs=1.5)
