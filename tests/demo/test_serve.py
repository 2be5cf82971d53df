"""The corpus's server: each kind of link is as broken as it says, and only our own server is taken for ours."""

import http.client
import os
import signal
import subprocess
import sys
import time

import pytest

from demo.serve import serving
from tests.servers import ROOT, free_port
from tests.web import picture, serve
from transforms.errors import UserError


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        slow = path.startswith("/slow")
        return answer.status, answer.headers, answer.read(1) if slow else answer.read()
    finally:
        connection.close()


def test_each_kind_of_link(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture())
    (tmp_path / "truth.parquet").write_bytes(b"secret")
    port = free_port()
    with serving(tmp_path, port):
        for kind in ("pictures", "unsafe", "opted_out"):
            status, headers, content = get(port, f"/{kind}/a.png")
            assert (status, headers["Content-Type"], content) == (200, "image/png", picture())
            assert headers["X-Robots-Tag"] == ("noai" if kind == "opted_out" else None)
        assert get(port, "/pictures/a.png?c=3")[2] == picture()
        status, headers, _ = get(port, "/redirected/a.png")
        assert (status, headers["Location"]) == (302, "/pictures/a.png")
        assert get(port, "/not_an_image/a.png")[1]["Content-Type"] == "text/html"
        assert get(port, "/slow/a.png")[2] == b"\x89"
        for path in ("/dead/a.png", "/pictures/b.png", "/", "/pictures/../truth.parquet", "/pictures/%2e%2e/truth.parquet"):
            assert get(port, path)[0] == 404
    with pytest.raises(OSError):
        get(port, "/alive")


def test_another_server_on_the_port_is_not_taken_for_ours(tmp_path):
    with serve() as other:
        other.answer("/alive", b"something else")
        with pytest.raises(UserError, match="the port is taken"), serving(tmp_path, other.port):
            pass
        other.raw("/alive", b"SSH-2.0-OpenSSH_9.6\r\n")
        with pytest.raises(UserError, match="the port is taken"), serving(tmp_path, other.port):
            pass


def test_one_connection_serves_many_requests(tmp_path):
    port = free_port()
    with serving(tmp_path, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.connect()
        socket = connection.sock
        for path in ("/dead/a.png", "/redirected/a.png", "/not_an_image/a.png"):
            connection.request("GET", path)
            connection.getresponse().read()
            assert connection.sock is socket
        connection.close()


def test_the_server_ends_with_the_process_that_started_it(tmp_path):
    """A run that is killed must not leave its port taken: the same command goes on from there."""
    port = free_port()
    code = (
        "import os, pathlib, signal; from demo.serve import serving\n"
        f"with serving(pathlib.Path({str(tmp_path)!r}), {port}): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30)
    assert killed.returncode == -signal.SIGKILL
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        try:
            left = int(get(port, "/alive")[2])
        except OSError:
            return
        time.sleep(0.1)
    os.kill(left, signal.SIGKILL)
    pytest.fail("the server is still there")
