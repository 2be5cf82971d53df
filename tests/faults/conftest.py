"""Fixtures of the faults: one small audit, and how much of the rest is tried."""

import os
import shutil

import pytest

from tests.faults.audits import World
from transforms.store.lake import Lake

ALL = os.environ.get("EIDETIC_FAULTS") == "all"
"""Whether everything is tried (``make faults``), or a sample (``make test``)."""


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def whole(world, tmp_path_factory):
    """The lake of an audit that nothing happened to. Not to be changed."""
    lake = Lake(str(tmp_path_factory.mktemp("whole") / "lake"))
    assert world.audit(lake) == 0
    return lake


@pytest.fixture
def lake(whole, tmp_path):
    """A copy of it."""
    return Lake(shutil.copytree(whole.root, tmp_path / "lake").as_posix())
