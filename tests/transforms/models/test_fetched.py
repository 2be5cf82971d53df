"""A model behind a URL is copied to this machine once, and again when it has changed."""

import errno
import os

import pytest

from tests.servers import s3_store
from transforms.errors import UserError
from transforms.models import fetched
from transforms.models.clip import ClipModel
from transforms.store.files import write_bytes


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with s3_store("eidetic-models"):
        url = "s3://eidetic-models/mine"
        write_bytes(f"{url}/index.json", b"{}")
        write_bytes(f"{url}/part/weights.safetensors", b"1234")
        yield url


def content(folder):
    return {
        os.path.relpath(os.path.join(parent, name), folder): open(os.path.join(parent, name), "rb").read()
        for parent, _, names in os.walk(folder)
        for name in names
    }


def test_a_folder_of_this_machine_is_left_where_it_is():
    assert fetched.local_folder("/models/mine") == "/models/mine"
    assert fetched.local_folder("owner/name") == "owner/name"


def test_a_model_is_copied_once(model, monkeypatch):
    folder = fetched.local_folder(model)
    assert content(folder) == {"index.json": b"{}", "part/weights.safetensors": b"1234"}
    assert os.listdir(os.path.dirname(folder)) == [os.path.basename(folder)]
    monkeypatch.setattr(fetched, "open_file", None)  # what is copied already is not read again
    assert fetched.local_folder(model) == fetched.local_folder(f"{model}/") == folder


def test_a_model_that_has_changed_is_copied_again(model):
    before = fetched.local_folder(model)
    write_bytes(f"{model}/part/weights.safetensors", b"12345")
    after = fetched.local_folder(model)
    assert after != before
    assert content(after)["part/weights.safetensors"] == b"12345"


def test_a_copy_that_breaks_off_is_no_model(model, monkeypatch):
    whole = fetched.open_file

    def broken(path):
        if path.endswith("weights.safetensors"):
            raise ConnectionError("the store is away")
        return whole(path)

    monkeypatch.setattr(fetched, "open_file", broken)
    with pytest.raises(ConnectionError):
        fetched.local_folder(model)
    monkeypatch.setattr(fetched, "open_file", whole)
    assert len(content(fetched.local_folder(model))) == 2


def test_a_disk_that_is_full_is_one_line_that_says_which(model, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fetched.shutil, "copyfileobj", full)
        with pytest.raises(UserError, match=r"can't be copied to '.*cache/eidetic/models' \(No space left.*XDG_CACHE_HOME"):
            fetched.local_folder(model)
    assert len(content(fetched.local_folder(model))) == 2


def test_nothing_there_is_one_line(model):
    with pytest.raises(UserError, match="there is nothing at 's3://eidetic-models/other'"):
        fetched.local_folder("s3://eidetic-models/other")


def test_a_clip_model_is_known_by_its_content_wherever_it_lies(model, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (folder / name).write_bytes(name.encode())
        write_bytes(f"s3://eidetic-models/clip/{name}", name.encode())
    assert ClipModel("s3://eidetic-models/clip").identity() == ClipModel(str(folder)).identity()
