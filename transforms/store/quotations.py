"""Forgotten urls and captions that stand among other words.

A forgotten text is known by its fingerprint alone, and so is found without it: from 16 bytes on wherever it stands, a shorter
one where it is the whole of a text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from transforms.kernels.fingerprints import Find, Fingerprint, Needles
from transforms.store.files import read_parquet
from transforms.store.lake import Lake
from transforms.store.tombstones import Tombstones, sha256, tombstone_rows

TEXTS = ("url", "caption")


def forgotten_texts(lake: Lake) -> list[Fingerprint]:
    """The fingerprints of all forgotten urls and captions."""
    return [Fingerprint(row["sha256"], row["length"], row["ending"]) for row in tombstone_rows(lake, TEXTS)]


def stripped(text: bytes) -> bytes:
    """A text without the blanks around it, whatever they are: as captions are compared."""
    return text.decode("utf-8", "surrogateescape").strip().encode("utf-8", "surrogateescape")


def bytes_of(column: pa.ChunkedArray | pa.Array) -> list[bytes]:
    """A column of texts or bytes as bytes; b"" where it is null."""
    return [value or b"" for value in column.cast(pa.large_binary()).to_pylist()]


def held(texts: list[bytes], needles: Needles) -> Iterator[tuple[int, Find]]:
    """Which text holds which needle, as a whole or among other words, and where in it."""
    between = b"\0"
    ends = np.cumsum([len(text) + len(between) for text in texts])
    for find in needles.find(between.join(texts)):
        place = int(np.searchsorted(ends, find.start, side="right"))
        start = find.start - (int(ends[place]) - len(between) - len(texts[place]))
        # One that reaches over the end of a text is in none of them.
        if start + find.length <= len(texts[place]):
            yield place, find._replace(start=start)


@dataclasses.dataclass(frozen=True)
class SaidByOthers:
    """What the remaining samples of a part of ``samples`` say of texts that are known by their digests.

    A path → ("inside", SHA-256) of what stands in a url or caption; ("url" or "caption", SHA-256) of what is the whole of one,
    but for the blanks around it.

    Attributes:
        tombstones: who has one doesn't remain.
        whole: SHA-256, without the blanks around it, of what is looked for as a whole.
        inside: what is looked for anywhere.
    """

    tombstones: Tombstones
    whole: set[str]
    inside: list[Fingerprint]

    def __call__(self, path: str) -> list[tuple[str, str]]:
        remaining, needles = self.tombstones.spared(read_parquet(path, ["sample_id", *TEXTS])), Needles(self.inside)
        found: set[tuple[str, str]] = set()
        for name in TEXTS:
            texts = bytes_of(remaining[name])
            found.update(("inside", find.sha256) for _, find in held(texts, needles))
            found.update((name, one) for one in map(sha256, map(stripped, filter(None, texts))) if one in self.whole)
        return sorted(found)


def quotations(lake: Lake, tombstones: Tombstones, texts: list[str]) -> set[str]:
    """Those of ``texts`` that hold a forgotten url or caption, of 16 bytes or more, which no remaining sample has."""
    encoded = [text.encode() for text in texts]
    known = forgotten_texts(lake)
    quoted = {find.sha256 for _, find in held(encoded, Needles(known))}
    say = SaidByOthers(tombstones, set(), [one for one in known if one.sha256 in quoted])
    for path in lake.every_part("samples") if quoted else ():
        quoted -= {one for _, one in say(path)}
    return {texts[place] for place, find in held(encoded, Needles(say.inside)) if find.sha256 in quoted}
