"""Files by path and by URL behave alike."""

import collections
import concurrent.futures
import http.server
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pytest
import s3fs

from tests.servers import ROOT, free_port, object_store, s3_environment, s3_store
from transforms.errors import Damaged, UserError, fault_of_the_machine
from transforms.store import files


@pytest.fixture(params=["folder", "gs", "s3"])
def root(request, tmp_path):
    """Where a test may write: on this machine, or where a folder is what names begin with."""
    if request.param == "folder":
        yield str(tmp_path)
        return
    with {"gs": object_store, "s3": s3_store}[request.param]("eidetic-files"):
        yield f"{request.param}://eidetic-files/root"


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


def test_a_file_says_when_it_was_written_and_how_large_it_is(root):
    before = time.time()
    files.write_bytes(f"{root}/a", b"12345")
    (found,) = files.walk(root)
    assert found == files.stat(f"{root}/a")
    assert found.path == f"{root}/a" and found.size == 5
    assert before - 2 <= found.modified <= time.time() + 2
    with pytest.raises(FileNotFoundError):
        files.stat(f"{root}/b")


def test_what_fails_while_it_is_written_is_not_there(root):
    files.write_bytes(f"{root}/a", b"before")
    for name in ("a", "b"):
        with pytest.raises(RuntimeError), files.replacing(f"{root}/{name}") as file:
            file.write(b"half")
            raise RuntimeError
    assert names(root) == ["a"] and files.read_bytes(f"{root}/a") == b"before"


def test_an_empty_file_and_a_large_one_come_back(root):
    # Over the size at which stores take a file in several pieces.
    for content in (b"", bytes(range(256)) * (60 << 12)):
        files.write_bytes(f"{root}/file", content)
        assert files.read_bytes(f"{root}/file") == content
        with files.replacing(f"{root}/spooled") as file:
            file.write(content)
        with files.open_file(f"{root}/spooled") as file:
            assert file.read() == content


@pytest.mark.parametrize(
    ("code", "said", "meaning"),
    [
        ("AccessDenied", "Access Denied", "Access Denied: the store refuses that to these credentials"),
        (
            "ExpiredToken",
            "The provided token has expired.",
            "token has expired: the store's credentials have expired",
        ),
    ],
)
@pytest.mark.parametrize("work", ["list_files", "walk", "write_bytes", "create"])
def test_a_store_that_refuses_is_not_an_empty_one(refusing, work, code, said, meaning):
    refusing.append(f"<Error><Code>{code}</Code><Message>{said}</Message></Error>".encode())
    words = {"list_files": ("",), "walk": ()}.get(work, (b"content",))
    with pytest.raises(OSError) as raised:
        getattr(files, work)("s3://bucket/folder", *words)
    assert meaning in fault_of_the_machine(raised.value)


def test_without_credentials_is_one_line(refusing, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Exception) as raised:
        files.list_files("s3://bucket/folder", "")
    assert "there are no credentials for the store; set them" in fault_of_the_machine(raised.value)


def test_a_store_that_is_away_is_one_line(monkeypatch):
    for name, value in s3_environment(f"http://127.0.0.1:{free_port()}").items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(Exception) as raised:
        files.list_files("s3://bucket/folder", "")
    assert "the store can't be reached" in fault_of_the_machine(raised.value)


@pytest.fixture
def refusing(monkeypatch):
    """S3 that answers every request with the one error that is put into this list."""
    errors = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def refuse(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(errors[0])))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(errors[0])

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in s3_environment(f"http://127.0.0.1:{server.server_port}").items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield errors
    server.shutdown()
    server.server_close()


def test_what_another_has_written_is_seen(root):
    files.write_bytes(f"{root}/folder/a", b"")
    assert files.list_files(f"{root}/folder", "") == [f"{root}/folder/a"]
    script = f"from transforms.store import files; files.write_bytes('{root}/folder/b', b'')"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)
    assert files.list_files(f"{root}/folder", "") == [f"{root}/folder/a", f"{root}/folder/b"]
    assert files.exists(f"{root}/folder/b")


def test_one_alone_creates_an_object():
    # Google's emulator of the tests takes no conditions.
    with s3_store("eidetic-files"), concurrent.futures.ThreadPoolExecutor(8) as threads:
        wrote = list(threads.map(lambda n: files.create("s3://eidetic-files/one", str(n).encode()), range(8)))
        assert wrote.count(True) == 1
        assert files.read_bytes("s3://eidetic-files/one") == str(wrote.index(True)).encode()


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
