"""Serves the corpus on loopback, with the faults that links on the web have.

python -m demo.serve --site build/demo_site --port 18181

/pictures/…      the files                     /dead/…          404
/unsafe/…        the files too                 /slow/…          a byte a second, for an hour
/redirected/…    302 to /pictures/…            /not_an_image/…  a web page
/opted_out/…     the files, with X-Robots-Tag: noai

What follows a "?" is ignored: the copies of a picture have urls of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from transforms.errors import UserError

TYPES = {".png": "image/png", ".jpeg": "image/jpeg", ".webp": "image/webp"}
DRIPS = 3600
"""Bytes of a slow picture, one a second: no limit on time is longer."""

PAGE = b"<!doctype html><title>Gone</title><p>This picture has moved on."


class Handler(http.server.BaseHTTPRequestHandler):
    """One request; ``site`` is set by ``main``."""

    protocol_version = "HTTP/1.1"
    site: Path

    def do_GET(self) -> None:
        kind, _, name = self.path.partition("?")[0].lstrip("/").partition("/")
        if kind == "redirected":
            self._answer(302, b"", "text/plain", {"Location": f"/pictures/{name}"})
        elif kind == "not_an_image":
            self._answer(200, PAGE, "text/html")
        elif kind == "slow":
            self._drip()
        elif kind == "opted_out":
            self._file(name, {"X-Robots-Tag": "noai"})
        elif kind in ("pictures", "unsafe"):
            self._file(name, {})
        elif kind == "alive":
            self._answer(200, str(os.getpid()).encode(), "text/plain")
        else:
            self._answer(404, b"", "text/plain")

    def _file(self, name: str, headers: dict[str, str]) -> None:
        path = self.site / "pictures" / Path(name).name  # the name alone: no way leads out of the folder
        if not path.is_file():
            self._answer(404, b"", "text/plain")
        else:
            self._answer(200, path.read_bytes(), TYPES.get(path.suffix, "application/octet-stream"), headers)

    def _answer(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for field, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(field, value)
        self.end_headers()
        self.wfile.write(content)

    def _drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(DRIPS))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(DRIPS):
                self.wfile.write(b"\x89")
                self.wfile.flush()
                time.sleep(1)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(site: Path, port: int, host: str = "127.0.0.1") -> Iterator[None]:
    """The corpus served by a process of its own while the block runs. UserError where the port is taken."""
    words = ["-m", "demo.serve", "--site", str(site), "--port", str(port), "--host", host, "--until_stdin_ends"]
    # The pipe ends with this process, however that ends: a server that stayed behind would hold the port.
    server = subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE)
    try:
        for _ in range(150):
            if server.poll() is not None:
                raise UserError(f"cannot serve on {host}:{port}: the port is taken; name another one with --port")
            # Whoever holds the port may answer as well, before our own process has found it taken.
            if _alive(host, port) == str(server.pid).encode():
                break
            time.sleep(0.1)
        else:
            raise UserError(f"the server on {host}:{port} does not answer; name another --port")
        yield
    finally:
        server.terminate()
        server.communicate()


def _alive(host: str, port: int) -> bytes | None:
    """The process that the server says it is; asked without any proxy that the environment names."""
    connection = http.client.HTTPConnection(host, port, timeout=1)
    try:
        connection.request("GET", "/alive")
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _stop_after_stdin(server: http.server.ThreadingHTTPServer) -> None:
    sys.stdin.buffer.read()
    server.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address of this machine that it is served on")
    parser.add_argument("--until_stdin_ends", action="store_true", help="stop when whoever started this has gone")
    arguments = parser.parse_args()
    Handler.site = arguments.site
    http.server.ThreadingHTTPServer.allow_reuse_address = True
    http.server.ThreadingHTTPServer.request_queue_size = 128
    try:
        server = http.server.ThreadingHTTPServer((arguments.host, arguments.port), Handler)
    except OSError:
        return 1
    if arguments.until_stdin_ends:
        threading.Thread(target=_stop_after_stdin, args=[server], daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
