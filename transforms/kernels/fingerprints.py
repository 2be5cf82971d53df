"""Finds bytes in other bytes by what digests tell of them: the bytes themselves aren't needed any more.

Of each needle three things are known: its length, a 32-bit hash of its last 16 bytes, and its SHA-256. The hash rolls over all
that is searched and leaves few candidates; SHA-256 decides. The last bytes, not the first: encoded pictures of one kind, and
urls, begin alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

WINDOW = 16
"""Bytes that the rolling hash is over; a shorter needle isn't found."""

PIECE = 1 << 20
"""Bytes that are hashed at once: what stays in a processor's cache."""

_FACTOR = 0x9E3779B1
_BITS = 20


class Fingerprint(NamedTuple):
    """What is kept of a needle. ``ending``: None under ``WINDOW`` bytes."""

    sha256: str
    length: int
    ending: int | None


class Find(NamedTuple):
    """Where a needle stands, and which it is."""

    start: int
    length: int
    sha256: str


def fingerprint(content: bytes) -> Fingerprint:
    """What is kept of ``content``."""
    ending = None
    if len(content) >= WINDOW:
        ending = int(rolling_hash(np.frombuffer(content, np.uint8, WINDOW, len(content) - WINDOW))[0])
    return Fingerprint(hashlib.sha256(content).hexdigest(), len(content), ending)


def rolling_hash(content: np.ndarray) -> np.ndarray:
    """The hash of every ``WINDOW`` bytes in a row.

    Args:
        content: (n,) uint8, n ≥ WINDOW.

    Returns:
        (n - WINDOW + 1,) uint32: a polynomial of the bytes modulo 2**32.
    """
    hashes, width = content.astype(np.uint32), 1
    while width < WINDOW:
        # A window of twice the width: its left half, shifted, and its right half.
        factor = np.uint32(pow(_FACTOR, width, 1 << 32))
        hashes = hashes[:-width] * factor + hashes[width:]
        width *= 2
    return hashes


class Needles:
    """Needles to search for. Those under ``WINDOW`` bytes are left out."""

    def __init__(self, fingerprints: Iterable[Fingerprint]):
        self._lengths: dict[int, set[int]] = {}
        self._digests: set[tuple[int, str]] = set()
        for one in fingerprints:
            if one.ending is not None:
                self._lengths.setdefault(one.ending, set()).add(one.length)
                self._digests.add((one.length, one.sha256))
        self._endings = np.array(sorted(self._lengths), np.uint32)
        # Whether any needle's hash begins with these bits: sorts out nearly everything with one look.
        self._possible = np.zeros(1 << _BITS, bool)
        self._possible[self._endings >> (32 - _BITS)] = True

    def find(self, content: bytes) -> Iterator[Find]:
        """Every place of every needle in ``content``."""
        if not self._digests:
            return
        view, values = memoryview(content), np.frombuffer(content, np.uint8)
        for first in range(0, len(content) - WINDOW + 1, PIECE):
            hashes = rolling_hash(values[first : first + PIECE + WINDOW - 1])
            places = np.flatnonzero(self._possible[hashes >> (32 - _BITS)])
            places = places[np.isin(hashes[places], self._endings)]
            for place in places.tolist():
                end = first + place + WINDOW
                for length in self._lengths[int(hashes[place])]:
                    if length <= end:
                        digest = hashlib.sha256(view[end - length : end]).hexdigest()
                        if (length, digest) in self._digests:
                            yield Find(end - length, length, digest)
