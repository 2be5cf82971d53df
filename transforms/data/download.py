"""Fetches one picture from a stranger's server, within limits that the server can't stretch.

img2dataset opens a URL and reads it all, whatever it is, wherever it leads and however long it takes. This takes the place
of that one function (``img2dataset.downloader.download_image``): only http and https, no address inside a private network
(looked up and checked at every redirect, and the checked address is the one that is connected to), nothing that a host's
robots.txt or X-Robots-Tag withholds, and limits on bytes and total time. Nothing is decoded here: see ``resizing``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import heapq
import http.client
import io
import ipaddress
import itertools
import logging
import os
import queue
import socket
import ssl
import string
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from transforms.data.img2dataset_modules import img2dataset_module
from transforms.data.robots import MOST_BYTES, Robots, Rules
from transforms.store.pictures import LONGEST_MAGIC, begins_like_a_picture

CHUNK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
WHOLE = (200, 203)
"""Statuses that come with all of a file: 203 says that a proxy may have changed it on the way."""

OPTED_OUT = "opted out by X-Robots-Tag"
DISALLOWED = "disallowed by robots.txt"
WITHHELD = (OPTED_OUT, DISALLOWED)
"""Reasons that are a server's wish, and no fault."""

PASSING_STATUSES = (408, 429, 500, 502, 503, 504)
NOT_PICTURES = ("text/", "application/json", "application/javascript", "video/", "audio/")
"""What no picture should be sent as. Servers that know no better send pictures as text all the same: their bytes decide."""

PICTURES = "image/*,*/*;q=0.5"
ROBOTS_TXT = "text/plain,*/*;q=0.5"
"""What is asked for, in the header Accept."""

ROBOTS_TRIES = 3
"""To have a robots.txt where a connection breaks or a server is busy: all pictures of the host hang on it."""

MAX_REASON = 300
"""Characters of a reason that are kept: servers have a say in it, and it stands in every such row."""


class FetchError(Exception):
    """A picture can't be had; the text says why. An expected fault of data: it becomes a row with a status.

    ``of_host``: whether that is so whatever the host is asked for, since it wasn't reached.
    """

    def __init__(self, reason: str, of_host: bool = False):
        super().__init__(reason)
        self.of_host = of_host


class TooLarge(FetchError):
    """A file of more bytes than it may have. ``claimed``: how many the server says that it has; None where it says nothing."""

    def __init__(self, most: int, claimed: int | None = None):
        super().__init__(f"more than {most} bytes")
        self.claimed = claimed


class PassingFault(FetchError):
    """A fault that may be gone at another try: a broken connection, a busy server. The others are not tried again."""


@dataclasses.dataclass(frozen=True)
class DownloadLimits:
    """What one URL may cost.

    Attributes:
        seconds: in all, from look-up to last byte, redirects and further tries included, and to decode it.
        max_bytes: of the file.
        max_pixels: of the picture, read from its header before it is decoded (``resizing``).
        max_aspect_ratio: of the picture's sides, likewise.
        max_redirects: hops.
        allow_private_hosts: whether loopback and private addresses may be connected to.
        user_agent_token: who asks, in the User-Agent, for X-Robots-Tag and for robots.txt.
        opt_out_directives: X-Robots-Tag directives that are honoured; empty for none.
        honour_robots: whether robots.txt is asked for and honoured, of every host on the way.
        robots_seconds: for a robots.txt, which other pictures of the host wait for as well; None: as many as ``seconds``.
    """

    seconds: float = 10.0
    max_bytes: int = 32 << 20
    max_pixels: int = 50_000_000
    max_aspect_ratio: float = 16.0
    max_redirects: int = 5
    allow_private_hosts: bool = False
    user_agent_token: str = "eidetic"
    opt_out_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    honour_robots: bool = True
    robots_seconds: float | None = None


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet's: not loopback, private, link-local, multicast or reserved."""
    found = ipaddress.ip_address(address.split("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        found = _inner(found) or found
    return found.is_global and not found.is_multicast and not getattr(found, "is_site_local", False)


_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_TRANSLATED_LOCALLY = ipaddress.ip_network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.ip_network("::/96")


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that one of IPv6 stands for, if it stands for another: mapped, 6to4, translated (NAT64), compatible."""
    if address in _TRANSLATED_LOCALLY:
        return ipaddress.IPv6Address("fc00::")  # an operator's own translation: as private as its network
    if address in _TRANSLATED or address in _COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def look_up(host: str, port: int) -> list[tuple]:
    """The addresses of a host: what ``socket.getaddrinfo`` says. A function of its own, so that tests can plant answers."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _connect(host: str, port: int, limits: DownloadLimits, deadline: float) -> socket.socket:
    """A connection to an address of ``host`` that may be connected to. The address that was checked is the one used."""
    found = _looked_up(host, port, deadline)
    allowed = [entry for entry in found if limits.allow_private_hosts or is_public(entry[4][0])]
    if not allowed:
        raise FetchError("the host is inside a private network (--allow_private_hosts lets it pass)", of_host=True)
    problem: OSError | None = None
    for family, kind, protocol, _, address in allowed:
        left = _left(deadline)
        try:
            connection = socket.socket(family, kind, protocol)
        except OSError as error:  # a machine without IPv6, say
            problem = error
            continue
        try:
            connection.settimeout(left)
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            problem = error
    raise PassingFault(f"can't connect: {getattr(problem, 'strerror', None) or problem}", of_host=True) from problem


def _looked_up(host: str, port: int, deadline: float) -> list[tuple]:
    """``look_up`` that ends at the deadline: a name server may be a stranger's too, and ``getaddrinfo`` has no timeout."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(look_up(host, port))
        except Exception as error:  # travels to the thread that waits
            answers.put(error)

    if _is_address(host):  # which needs no name server
        ask()
    else:
        threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline))
    except queue.Empty:
        raise FetchError("took longer than allowed", of_host=True) from None
    if isinstance(answer, (OSError, UnicodeError)):
        reason = getattr(answer, "strerror", None) or answer
        raise PassingFault(f"the host can't be looked up: {reason}", of_host=True) from answer
    if isinstance(answer, Exception):
        raise answer
    return answer


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise FetchError("took longer than allowed")
    return left


class _Checked:
    """Makes a connection to addresses that may be connected to alone."""

    connected: Callable[[], socket.socket]

    def _new_conn(self) -> socket.socket:
        return self.connected()


class _Http(_Checked, HTTPConnection):
    pass


class _Https(_Checked, HTTPSConnection):
    pass


def _connection(scheme: str, host: str, port: int, limits: DownloadLimits, deadline: float) -> HTTPConnection:
    connection: _Http | _Https
    if scheme == "https":
        connection = _Https(host, port, timeout=_left(deadline), ssl_context=tls_context())
    else:
        connection = _Http(host, port, timeout=_left(deadline))
    connection.connected = functools.partial(_connect, host, port, limits, deadline)
    return connection


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Checks certificates against the system's authorities. Made once: reading those takes longer than many a download."""
    context = urllib3.util.ssl_.create_urllib3_context()
    context.load_default_certs()
    return context


def fetch_http(url: str, limits: DownloadLimits) -> bytes:
    """The file behind a URL.

    Args:
        url: as the metadata has it.
        limits: what it may cost.

    Returns:
        its bytes, as sent.

    Raises:
        FetchError: with the reason, for whatever keeps it from being had within the limits.
    """
    is_disallowed = img2dataset_module("downloader").is_disallowed
    deadline = time.monotonic() + limits.seconds
    for _ in range(limits.max_redirects + 1):
        if limits.honour_robots:
            _heed_robots(url, limits, deadline)
        with _open(url, limits, deadline) as response:
            further = _redirected(response, url)
            if response.status not in WHOLE and further is None:
                fault = PassingFault if response.status in PASSING_STATUSES else FetchError
                raise fault(f"HTTP {response.status}")
            if limits.opt_out_directives and is_disallowed(
                response.headers, limits.user_agent_token.lower(), set(limits.opt_out_directives)
            ):
                raise FetchError(OPTED_OUT)
            if further is None:
                return _read(response, limits, deadline)
        url = further
    raise FetchError(f"more than {limits.max_redirects} redirects")


def _redirected(response: Any, url: str) -> str | None:
    """Where an answer leads to; None where it leads nowhere else."""
    if response.status not in REDIRECTS or not response.headers.get("Location"):
        return None
    # Headers come as Latin-1: bytes that are not ASCII are sent on as they came.
    return urljoin(url, quote(response.headers["Location"], encoding="latin-1", safe=string.punctuation))


ROBOTS = Robots()
"""What this process knows of robots.txt."""


def _heed_robots(url: str, limits: DownloadLimits, deadline: float) -> None:
    """FetchError where the host's robots.txt disallows a URL, or can't be had: RFC 9309 takes that for a refusal of all."""
    target = _target(url)
    token = limits.user_agent_token.lower()
    key = (target.origin, token, limits.allow_private_hosts)
    try:
        rules = ROBOTS.rules(key, lambda: _robots(target.origin, token, limits), _left(deadline))
    except TimeoutError:
        raise FetchError("took longer than allowed") from None
    if rules.fault is not None:
        raise (PassingFault if rules.passing else FetchError)(rules.fault)
    if not rules.allow(target.path, token):
        raise FetchError(DISALLOWED)


def _robots(origin: str, token: str, limits: DownloadLimits) -> Rules:
    """What the robots.txt of an origin says, by RFC 9309: one that isn't there (4xx, or redirects without end) allows all.

    It has the time of a URL of its own, since other pictures wait for it as well.
    """
    deadline = time.monotonic() + (limits.seconds if limits.robots_seconds is None else limits.robots_seconds)
    fault, passing = "", False
    for _ in range(ROBOTS_TRIES):
        try:
            return Rules.of(_robots_text(f"{origin}/robots.txt", limits, deadline), token)
        except FetchError as error:
            fault, passing = told(error if error.of_host else f"robots.txt: {error}"), isinstance(error, PassingFault)
            if not passing:
                break
        except Exception as error:  # what nobody has thought of is no leave
            fault, passing = told(f"robots.txt: unexpected {type(error).__name__}: {error}"), False
            break
    return Rules.missing(fault, passing)


def _robots_text(url: str, limits: DownloadLimits, deadline: float) -> str:
    """The text of a robots.txt; "" where there is none. FetchError where it can't be known."""
    for _ in range(limits.max_redirects + 1):
        with _open(url, limits, deadline, ROBOTS_TXT) as response:
            further = _redirected(response, url)
            if further is None:
                if response.status >= 500:
                    raise PassingFault(f"HTTP {response.status}")
                if not 200 <= response.status < 300:
                    return ""
                content = b""
                for chunk in _chunks(response, deadline):
                    content += chunk
                    if len(content) >= MOST_BYTES:
                        break
                return content[:MOST_BYTES].decode("utf-8-sig", "replace")
        url = further
    return ""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a URL names: whom to connect to, and what to ask for there."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def _target(url: str) -> Target:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise FetchError(f"not a URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise FetchError(f"only http and https are fetched, not {parts.scheme or 'a bare path'!r}")
    if not parts.hostname:
        raise FetchError("not a URL: it names no host")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        # What a URL may not hold (spaces, other alphabets) is sent as browsers send it.
        path = urllib3.util.parse_url(f"http://h{path}").request_uri
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise FetchError(f"not a URL: {error}") from error
    return Target(parts.scheme, parts.hostname, port, path)


class Alarms:
    """Calls functions at their times, unless they're cancelled before: one thread for all, where a ``threading.Timer`` each
    would be a thread for every picture."""

    def __init__(self) -> None:
        self._begin()
        # A fork has no threads of its parent's, but their locks as they were.
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._waiting: list[tuple[float, int]] = []
        self._calls: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._is_running = False

    def at(self, moment: float, call: Callable[[], None]) -> int:
        """Has a function called at a moment of ``time.monotonic``; what ``cancel`` takes."""
        with self._changed:
            if not self._is_running:
                threading.Thread(target=self._run, daemon=True).start()
                self._is_running = True
            number = next(self._numbers)
            self._calls[number] = call
            heapq.heappush(self._waiting, (moment, number))
            if self._waiting[0][1] == number:
                self._changed.notify()
        return number

    def cancel(self, number: int) -> None:
        with self._changed:
            self._calls.pop(number, None)
            if len(self._waiting) > 2 * len(self._calls) + 1000:  # nearly all are cancelled, long before their times
                self._waiting = [one for one in self._waiting if one[1] in self._calls]
                heapq.heapify(self._waiting)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting or (left := self._waiting[0][0] - time.monotonic()) > 0:
                    self._changed.wait(left if self._waiting else None)
                call = self._calls.pop(heapq.heappop(self._waiting)[1], None)
            try:
                if call is not None:
                    call()
            except Exception:  # the others are waited for all the same
                logging.getLogger(__name__).exception("an alarm failed")


ALARMS = Alarms()


@contextlib.contextmanager
def _open(url: str, limits: DownloadLimits, deadline: float, accept: str = PICTURES) -> Any:
    """The response to a GET; cut off at the deadline, wherever it is, by a timer that closes the socket."""
    target = _target(url)
    try:
        connection = _connection(target.scheme, target.host, target.port, limits, deadline)
    except (http.client.InvalidURL, urllib3.exceptions.HTTPError, ValueError) as error:
        raise FetchError(f"not a URL: {error}") from error
    expired = threading.Event()
    opened: list[socket.socket] = []

    def cut() -> None:
        expired.set()
        # The connection forgets its socket when the server says that it will close; the response still reads from it.
        for sock in [*opened, connection.sock]:
            with contextlib.suppress(OSError, AttributeError):
                sock.shutdown(socket.SHUT_RDWR)

    timer = ALARMS.at(deadline, cut)
    agent = f"Mozilla/5.0 (compatible; {limits.user_agent_token}; +https://github.com/rom1504/img2dataset)"
    try:
        connection.connect()
        opened.append(connection.sock)
        headers = {"User-Agent": agent, "Accept": accept, "Accept-Encoding": "identity"}
        connection.request("GET", target.path, headers=headers, preload_content=False)
        yield connection.getresponse()
    except FetchError:
        if expired.is_set():
            raise FetchError("took longer than allowed", of_host=not opened) from None
        raise
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
        if expired.is_set() or isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
            raise FetchError("took longer than allowed", of_host=not opened) from error
        raise PassingFault(f"broken connection: {error}", of_host=not opened) from error
    except Exception as error:  # http.client's own errors have no common base with the rest
        if expired.is_set():
            raise FetchError("took longer than allowed", of_host=not opened) from error
        raise PassingFault(f"broken answer: {type(error).__name__}: {error}", of_host=not opened) from error
    finally:
        ALARMS.cancel(timer)
        connection.close()


def _read(response: Any, limits: DownloadLimits, deadline: float) -> bytes:
    buffer = io.BytesIO()
    claimed = _claimed(response)
    if claimed is not None and claimed > limits.max_bytes:
        raise TooLarge(limits.max_bytes, claimed)
    kind = response.headers.get("Content-Type", "").lower()
    doubtful = kind.startswith(NOT_PICTURES)
    for chunk in _chunks(response, deadline):
        buffer.write(chunk)
        if buffer.tell() > limits.max_bytes:
            raise TooLarge(limits.max_bytes)
        if doubtful and buffer.tell() >= LONGEST_MAGIC:
            _refuse_unless_picture(buffer.getvalue(), kind)
            doubtful = False
    if doubtful:
        _refuse_unless_picture(buffer.getvalue(), kind)
    return buffer.getvalue()


def _claimed(response: Any) -> int | None:
    """The bytes that a server says it sends."""
    said = response.headers.get("Content-Length")
    return int(said) if said and said.isdigit() else None


def _chunks(response: Any, deadline: float) -> Iterator[bytes]:
    """The bytes of an answer as they come. FetchError at the deadline, and where they end before the server said."""
    had = 0
    while True:
        _left(deadline)
        chunk = response.read1(CHUNK) if hasattr(response, "read1") else response.read(CHUNK)
        if not chunk:
            break
        had += len(chunk)
        yield chunk
    _left(deadline)
    claimed = _claimed(response)
    packed = response.headers.get("Content-Encoding", "identity") != "identity"  # then the length is not the file's
    if claimed is not None and had < claimed and not packed:
        raise PassingFault(f"the file ended after {had} of {claimed} bytes")


def _refuse_unless_picture(begins: bytes, kind: str) -> None:
    if not begins_like_a_picture(begins):
        raise FetchError(f"not an image: {kind.split(';')[0]}")


HELD_BYTES = 256 << 20
"""Of downloaded files that are on their way or wait to be decoded, in a worker: half for those that need no leave, which are
nearly all, and half for larger ones, which wait for room. A single file that may be larger than that half takes its place."""


class Room:
    """So many bytes, for whoever comes first. Threads share it."""

    def __init__(self, size: int):
        self.size = self._free = size
        self._changed = threading.Condition()

    def take(self, wanted: int) -> int:
        """Waits until there is room for so many bytes, or for all where it is more than all; returns how many were taken."""
        wanted = min(wanted, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        return wanted

    def give_back(self, taken: int) -> None:
        with self._changed:
            self._free += taken
            self._changed.notify_all()


class Fetched(io.BytesIO):
    """A downloaded file, and the seconds that are left to decode it.

    Args:
        content: its bytes.
        seconds: that are left.
        closed: is called when it is closed, or forgotten.
    """

    def __init__(self, content: bytes, seconds: float, closed: Callable[[], None] = lambda: None):
        super().__init__(content)
        self.seconds, self._when_closed = seconds, closed

    def close(self) -> None:
        super().close()
        done, self._when_closed = self._when_closed, lambda: None
        done()


def as_download_image(
    fetch: Callable[[str, DownloadLimits], bytes],
    limits: DownloadLimits,
    threads: int = 1,
    arrived: Callable[[int, bytes], None] = lambda key, content: None,
) -> Callable[..., tuple]:
    """``fetch`` in the form of ``img2dataset.downloader.download_image``: (key, url) → (key, stream or None, error or None).

    For one shard: img2dataset calls it again for the same key as often as it was told to retry, whatever went wrong. All
    those tries share the seconds of one, and a server that has refused or opted out is not asked again.

    img2dataset holds up to two files a thread, each of up to ``max_bytes``. Here they are ``HELD_BYTES`` together: a file gets
    its share without asking, and one that is larger is asked for again when there is room for it. That wait is not the
    server's.

    Args:
        fetch: url, and what it may cost → the file's bytes; TooLarge for more of them than it may have.
        limits: what a URL may cost.
        threads: that call this at once.
        arrived: is told the key and the bytes of each file that was had.
    """
    deadlines: dict[int, float] = {}
    settled: dict[int, str] = {}
    share = max(1, min(limits.max_bytes, HELD_BYTES // 2 // (2 * threads)))
    room = Room(HELD_BYTES // 2)

    def left(key: int) -> float:
        return deadlines.setdefault(key, time.monotonic() + limits.seconds) - time.monotonic()

    def fetched(key: int, url: str) -> Fetched:
        most, taken = share, 0
        try:
            while True:
                try:
                    mine = dataclasses.replace(limits, max_bytes=most, seconds=left(key), robots_seconds=limits.seconds)
                    content = fetch(url, mine)
                    break
                except TooLarge as error:
                    if most == limits.max_bytes or (error.claimed or 0) > limits.max_bytes:
                        raise TooLarge(limits.max_bytes) from error
                    # Who sends more than was said gets room for all that it may send.
                    most = error.claimed if error.claimed and most == share else limits.max_bytes
                room.give_back(taken)
                taken, begun = 0, time.monotonic()
                taken = room.take(most)
                deadlines[key] += time.monotonic() - begun
            arrived(key, content)
            needed = len(content) if len(content) > share else 0
            room.give_back(max(0, taken - needed))
            held, taken = min(taken, needed), 0
            # What waits to be decoded is not to blame for those before it.
            return Fetched(content, left(key), functools.partial(room.give_back, held))
        finally:
            room.give_back(taken)

    def download_image(row: tuple[int, str], *_: Any, **__: Any) -> tuple[int, io.BytesIO | None, str | None]:
        key, url = row
        if key in settled:
            return key, None, settled[key]
        try:
            return key, fetched(key, url), None
        except PassingFault as error:
            return key, None, told(error)
        except FetchError as error:
            settled[key] = told(error)
        except Exception as error:  # one row that nobody has thought of must not end a shard of thousands
            settled[key] = told(f"unexpected {type(error).__name__}: {error}")
        return key, None, settled[key]

    return download_image


def told(error: object) -> str:
    """A reason on one line of bounded length that any table can hold."""
    line = " ".join(str(error).encode("utf-8", "replace").decode("utf-8").split())
    return line[:MAX_REASON] or "unknown"
