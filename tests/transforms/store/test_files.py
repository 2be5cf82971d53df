"""Files by path and by URL behave alike."""

import collections

import pyarrow as pa
import pytest

from tests.servers import object_store
from transforms.errors import Damaged, UserError
from transforms.store import files


@pytest.fixture(params=["folder", "object store"])
def root(request, tmp_path):
    """Where a test may write: on this machine, or where a folder is what names begin with."""
    if request.param == "folder":
        yield str(tmp_path)
    else:
        with object_store("eidetic-files"):
            yield "gs://eidetic-files/root"


def names(root):
    return [file.path.removeprefix(f"{root}/") for file in files.walk(root)]


def test_a_file_and_a_folder_are_deleted_and_nothing_else(root):
    for name in ("work/a", "work/deep/b", "work/deep/c", "work2/d"):
        files.write_bytes(f"{root}/{name}", b"content")
    files.delete(f"{root}/work/deep")
    assert names(root) == ["work/a", "work2/d"]
    files.delete(f"{root}/work")
    assert names(root) == ["work2/d"]
    files.delete(f"{root}/work2/d")
    files.delete(f"{root}/work2/d")
    assert names(root) == []


def test_no_bit_of_a_footer_can_flip_without_being_told(tmp_path):
    path, damaged = str(tmp_path / "part.parquet"), str(tmp_path / "damaged.parquet")
    rows = {"sample_id": ["a", "b"], "image": pa.array([b"picture", None]), "number": [1, 2], "vector": [[1.0], [2.0]]}
    files.write_parquet(path, pa.table(rows))
    with open(path, "rb") as file:
        content = file.read()
    whole, length = files.describe(path), int.from_bytes(content[-8:-4], "little") + 8
    told: collections.Counter[str] = collections.Counter()
    for place in range(len(content) - length, len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            try:
                assert files.describe(bytes(flipped)) != whole
                told["described"] += 1
            except Damaged:
                told["damaged"] += 1
        # The whole way, from a file.
        with open(damaged, "wb") as file:
            file.write(flipped)
        for read in (files.check_body, files.read_parquet):
            try:
                read(damaged)
            except (Damaged, UserError):
                told[read.__name__] += 1
    assert told["described"] + told["damaged"] == 8 * length and min(told.values()) > 100
