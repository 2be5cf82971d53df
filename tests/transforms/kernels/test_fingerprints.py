"""Everything that is there is found, where it is, and nothing else: against a search that has the needles."""

import hashlib

import numpy as np
import pytest

from transforms.kernels import fingerprints
from transforms.kernels.fingerprints import WINDOW, Needles, fingerprint, rolling_hash


def slow(content, needles):
    found = set()
    for needle in needles:
        start = content.find(needle)
        while start >= 0:
            found.add((start, len(needle), hashlib.sha256(needle).hexdigest()))
            start = content.find(needle, start + 1)
    return found


def test_the_rolling_hash_is_that_of_each_window():
    content = np.random.default_rng(0).integers(0, 256, 100, dtype=np.uint8)
    alone = [int(rolling_hash(content[start : start + WINDOW])[0]) for start in range(100 - WINDOW + 1)]
    assert rolling_hash(content).tolist() == alone and len(set(alone)) == len(alone)


@pytest.mark.parametrize("letters", [2, 256])
@pytest.mark.parametrize("piece", [16, 1000, 1 << 20])
def test_it_finds_what_a_plain_search_finds(letters, piece, monkeypatch):
    """With two letters alone, needles overlap and repeat; a piece may end anywhere inside of them."""
    monkeypatch.setattr(fingerprints, "PIECE", piece)
    random = np.random.default_rng(letters)
    content = random.integers(0, letters, 5000, dtype=np.uint8).tobytes()
    needles = [content[:WINDOW], content[-500:], content]
    needles += [content[start : start + length] for start, length in random.integers(WINDOW, 2000, (50, 2)).tolist()]
    needles = [needle for needle in needles if len(needle) >= WINDOW]
    absent = [bytes(reversed(needle)) for needle in needles]
    found = {tuple(one) for one in Needles(map(fingerprint, needles + absent)).find(content)}
    assert found == slow(content, needles + absent) and len(found) >= len(set(needles))


def test_an_ending_alone_is_no_find():
    needle = b"https://example.org/a/picture.png"
    search = Needles([fingerprint(needle)])
    assert list(search.find(b"https://example.org/b/picture.png")) == []
    assert [one.start for one in search.find(b"<" + needle + b">" + needle)] == [1, 2 + len(needle)]


def test_short_needles_and_short_content():
    assert fingerprint(b"short").ending is None
    assert list(Needles([fingerprint(b"short")]).find(b"short" * 10)) == []
    assert list(Needles([fingerprint(bytes(WINDOW))]).find(b"")) == []
    assert list(Needles([]).find(bytes(100))) == []
