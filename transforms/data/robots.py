"""What hosts say in robots.txt (RFC 9309), and a memory of it, so that a host is asked once and not for each of its pictures.

Protego, which is Scrapy's, reads the rules: the urllib.robotparser of Python 3.11 knows no wildcards, and takes the first rule
that fits where the RFC takes the longest. How the file is had is ``download``'s.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future

from protego import Protego

MOST_BYTES = 500 << 10
"""Of a robots.txt that are read; what comes after is ignored. The least that RFC 9309 asks for."""

KEPT_SECONDS = 24 * 3600.0
"""For which an answer holds: the longest that RFC 9309 allows."""

FAULT_SECONDS = 60.0
"""For which a host whose robots.txt can't be had isn't asked again."""

HELD_CHARACTERS = 4 << 20
"""Of robots.txt that are remembered in a process. Parsed they take up to 45 bytes a character."""

_AGENT = re.compile(r"^([^\S\n]*user(?:-|[^\S\n]+)?agent[^\S\n]*(?::|[^\S\n]))([^\n#]*)", re.IGNORECASE | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What one robots.txt says to one crawler.

    Attributes:
        parsed: its rules; None where all is allowed.
        fault: why it can't be had, or None. Then nothing is allowed.
        passing: whether the fault may be gone at another try.
        until: of ``time.monotonic``, when it is to be asked for again.
        size: characters that it is remembered with.
    """

    parsed: Protego | None
    fault: str | None
    passing: bool
    until: float
    size: int

    @classmethod
    def of(cls, text: str, token: str) -> Rules:
        """The rules of a robots.txt for the crawler that calls itself ``token``, in small letters."""
        parsed = Protego.parse(_of_one(text, token)) if text.strip() else None
        return cls(parsed, None, False, time.monotonic() + KEPT_SECONDS, len(text))

    @classmethod
    def missing(cls, fault: str, passing: bool) -> Rules:
        """There are rules, maybe, and they can't be had."""
        return cls(None, fault, passing, time.monotonic() + FAULT_SECONDS, 0)

    def allow(self, path: str, token: str) -> bool:
        """Whether a path with its query may be asked for, where there is no fault."""
        # As a whole URL, of whichever host: of a path alone Protego would take what follows "//" for one.
        return self.parsed is None or self.parsed.can_fetch(f"http://host{path}", token)


def _of_one(text: str, token: str) -> str:
    """The same with one name for all other crawlers: of many crawlers with many rules their product would be kept. Lines end as
    Protego takes them to."""

    def named(found: re.Match[str]) -> str:
        name = found[2].strip().lower()
        # A crawler is meant by a name that begins its own, or a part of it, as Protego compares them.
        meant = not name or "*" in name or name in token
        return found[0] if meant else f"{found[1]}/"

    return _AGENT.sub(named, "\n".join(text.splitlines()))


class Robots:
    """Rules of hosts, each asked for by whoever needs it first, while others wait for that. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: collections.OrderedDict[Hashable, Future[Rules]] = collections.OrderedDict()
        self._held = 0

    def rules(self, key: Hashable, ask: Callable[[], Rules], seconds: float) -> Rules:
        """What is known of a host, or else what ``ask`` says of it.

        Args:
            key: the host, and what else the answer depends on.
            ask: gets its rules, and raises nothing.
            seconds: to wait for another thread that asks already; then it is a TimeoutError.
        """
        with self._lock:
            answer = self._known.get(key)
            known = answer is not None and not (answer.done() and answer.result().until <= time.monotonic())
            if answer is None or not known:
                self._forget(key)
                answer = self._known[key] = Future()
            self._known.move_to_end(key)
        if known:
            return answer.result(timeout=seconds)
        found = ask()
        with self._lock:
            answer.set_result(found)
            if self._known.get(key) is answer:
                self._held += _size(key, found)
            while self._held > HELD_CHARACTERS:
                # Those that are being asked for weigh nothing yet, so they aren't what has to go.
                self._forget(next(one for one, other in self._known.items() if other.done()))
        return found

    def clear(self) -> None:
        """Forgets all of them."""
        with self._lock:
            self._known.clear()
            self._held = 0

    def _forget(self, key: Hashable) -> None:
        answer = self._known.pop(key, None)
        if answer is not None and answer.done():
            self._held -= _size(key, answer.result())


def _size(key: Hashable, rules: Rules) -> int:
    # A host without rules takes room as well.
    return len(str(key)) + 256 + rules.size
