"""After a power cut the same audit goes on, and ends with the same tables."""

import random

import pytest

from tests.faults.conftest import ALL
from tests.faults.power import EMPTY, LOST, Disk
from tests.faults.report import tried
from tests.lakes import differences
from transforms.store.files import delete, write_bytes
from transforms.store.lake import Lake

CUTS = 20 if ALL else 2


@pytest.fixture(scope="module")
def cuts(world, whole, tmp_path_factory):
    """Lakes as cuts at random moments of one audit left them: how they lost what wasn't synced → lakes."""
    folder = tmp_path_factory.mktemp("cuts")
    # One run to count the moments, one to be cut.
    disk = Disk(folder / "counted" / "lake")
    disk.root.parent.mkdir()
    with disk.recording():
        assert world.audit(Lake(str(disk.root))) == 0
    moments = sorted(random.Random(1).sample(range(1, disk.syncs), CUTS))
    disk = Disk(folder / "cut" / "lake")
    disk.root.parent.mkdir()
    made = []

    def cut(number):
        if number in moments:
            for how in (LOST, EMPTY):
                target = folder / f"{how}-{number}"
                disk.after_a_cut(target, how)
                made.append((how, Lake(str(target))))

    with disk.recording(cut):
        assert world.audit(Lake(str(disk.root))) == 0
    assert len(made) == 2 * CUTS
    return made


def test_the_harness_tells_what_was_not_synced(tmp_path):
    root = tmp_path / "lake"
    disk = Disk(root)
    with disk.recording():
        write_bytes(f"{root}/folder/kept", b"whole")
        write_bytes(f"{root}/folder/removed", b"whole")
        delete(f"{root}/folder/removed")
        (root / "folder" / "unsynced").write_bytes(b"gone")
    for how, left in ((LOST, {"kept": b"whole"}), (EMPTY, {"kept": b"whole", "unsynced": b""})):
        disk.after_a_cut(tmp_path / how, how)
        assert {path.name: path.read_bytes() for path in (tmp_path / how / "folder").iterdir()} == left


@pytest.mark.parametrize("how", [LOST, EMPTY])
def test_the_audit_goes_on_to_the_same_tables(how, cuts, world, whole):
    mine = [lake for kind, lake in cuts if kind == how]
    for lake in mine:
        assert world.audit(lake) == 0
        assert differences(whole, lake) == []
    tried(f"power cuts, unsynced bytes {how}: the same audit again", len(mine), "the same tables")
