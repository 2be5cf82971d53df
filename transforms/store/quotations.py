"""Forgotten urls and captions that stand among other words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow.compute as pc

from transforms.kernels.fingerprints import Fingerprint, Needles
from transforms.store.files import read_parquet
from transforms.store.lake import Lake
from transforms.store.tombstones import Tombstones, tombstone_rows

TEXTS = ("url", "caption")


def stripped(text: bytes) -> bytes:
    """A text without the blanks around it, whatever they are: as captions are compared."""
    return text.decode("utf-8", "surrogateescape").strip().encode("utf-8", "surrogateescape")


def parts(texts: list[bytes], needles: Needles) -> Iterator[tuple[int, bytes]]:
    """Which text holds which needle among other words, and not as a whole."""
    between = b"\0"
    ends = np.cumsum([len(text) + len(between) for text in texts])
    content = between.join(texts)
    for find in needles.find(content):
        place = int(np.searchsorted(ends, find.start, side="right"))
        there = content[find.start : find.start + find.length]
        # One that reaches over the end of a text is in none of them.
        if there in texts[place] and there not in (texts[place], stripped(texts[place])):
            yield place, there


def said_by_others(lake: Lake, tombstones: Tombstones, texts: set[bytes]) -> tuple[set[bytes], dict[str, set[bytes]]]:
    """Those of ``texts`` that stand anywhere in url or caption of a remaining sample; url and caption → those that are one."""
    inside: set[bytes] = set()
    whole: dict[str, set[bytes]] = {name: set() for name in TEXTS}
    for path in lake.every_part("samples") if texts else ():
        table = tombstones.spared(read_parquet(path, ["sample_id", *TEXTS]))
        for text in texts:
            said = text.decode("utf-8", "replace")
            for name in TEXTS:
                if pc.any(pc.match_substring(table[name], said)).as_py():
                    inside.add(text)
                if pc.any(pc.equal(pc.utf8_trim_whitespace(table[name]), said.strip())).as_py():
                    whole[name].add(text)
    return inside, whole


def quotations(lake: Lake, tombstones: Tombstones, batches: Iterable[list[str]]) -> set[str]:
    """The forgotten urls and captions, of 16 bytes or more, that texts hold among other words and no remaining sample has."""
    needles = Needles(Fingerprint(row["sha256"], row["length"], row["ending"]) for row in tombstone_rows(lake, TEXTS))
    there = {there for texts in batches for _, there in parts([text.encode() for text in texts], needles)}
    inside, _ = said_by_others(lake, tombstones, there)
    return {text.decode() for text in there - inside}
