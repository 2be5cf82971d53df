"""What reaches the terminal, and the logs that are made of it: no control characters of strangers, and no secrets.

Whatever is printed passes ``guard``: our own lines, tracebacks, the logs and warnings of libraries. It can't know whether a
line break is ours or a caption's; so what is told in one line is made one where it is told (``say`` of pipelines/execution.py,
the cells of a table in pipelines/query.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from transforms.store.texts import shown

OURS = "\n\r\t"
"""What a program that writes lines has to send."""


class Guarded:
    """A stream to which everything is written as ``transforms.store.texts.shown`` shows it; the rest is the stream's own."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(shown(text, OURS))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard() -> None:
    """Puts ``Guarded`` before stdout and stderr, once."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Guarded):
            setattr(sys, name, Guarded(stream))


def unguarded(stream: Any) -> Any:
    """The stream itself: for data that go into a file, which an escape would falsify."""
    return stream.stream if isinstance(stream, Guarded) else stream
