"""Files by path and by URL behave alike."""

import pytest

from tests.servers import object_store
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
