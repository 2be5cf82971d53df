"""A real web server on loopback that answers as a test tells it to, and counts who asks for what."""

from __future__ import annotations

import collections
import contextlib
import http.server
import io
import threading
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from transforms.data.download import ROBOTS


def picture(seed: int = 0, width: int = 24, height: int = 16) -> bytes:
    """A PNG of random pixels, which no encoder shrinks."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Web:
    """What a server answers.

    Attributes:
        url: of its root, without a slash at the end.
        pages: path → a function that gets the handler and answers; for any other path 404.
        posts: the same, of what is posted.
        hits: path → how often it was asked for, robots.txt apart.
        robots: how often robots.txt was asked for.
        agents: every User-Agent seen.
        stopping: set when the test is over, so that handlers which drip come to an end.
    """

    def __init__(self, port: int):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.pages: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.posts: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.hits: collections.Counter[str] = collections.Counter()
        self.robots = 0
        self.agents: set[str] = set()
        self.stopping = threading.Event()

    def post(self, path: str, page: Callable[[http.server.BaseHTTPRequestHandler], None]) -> None:
        """Plans what becomes of what is posted there."""
        self.posts[path] = page

    def answer(self, path: str, content: bytes = b"", status: int = 200, headers: object = (), length: bool = True) -> str:
        """Plans an answer and returns its URL. ``headers`` are (name, value) pairs."""

        def page(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers:
                handler.send_header(name, value)
            if length:
                handler.send_header("Content-Length", str(len(content)))
            else:
                handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(content)

        self.pages[path] = page
        return self.url + path

    def raw(self, path: str, *pieces: bytes, drip: bytes = b"", every: float = 0.05) -> str:
        """Plans an answer of these bytes, whatever they say; then ``drip`` again and again, until the client leaves."""

        def page(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.close_connection = True
            for piece in pieces:
                handler.wfile.write(piece)
            while drip and not self.stopping.wait(every):
                handler.wfile.write(drip)

        self.pages[path] = page
        return self.url + path

    def silence(self, path: str, *pieces: bytes) -> str:
        """Plans an answer that stops after these bytes without an end."""

        def page(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.close_connection = True
            for piece in pieces:
                handler.wfile.write(piece)
            self.stopping.wait(30)

        self.pages[path] = page
        return self.url + path


@contextlib.contextmanager
def serve() -> Iterator[Web]:
    """A server that runs while the block does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with contextlib.suppress(OSError):
                page = web.posts.get(self.path)
                if page is not None:
                    page(self)
                else:
                    self.send_response(404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

        def do_GET(self) -> None:
            if self.path == "/robots.txt":
                web.robots += 1
            else:
                web.hits[self.path] += 1
            web.agents.add(self.headers.get("User-Agent", ""))
            # A client that leaves early is what most of these tests are about.
            with contextlib.suppress(OSError):
                if self.path in web.pages:
                    web.pages[self.path](self)
                else:
                    self.send_response(404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    # Another server may have had the port before.
    ROBOTS.clear()
    web = Web(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.stopping.set()
        server.shutdown()
        server.server_close()
