"""What must not come back: read by everyone who takes pictures in or looks at them."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from transforms.store.files import read_parquet
from transforms.store.lake import Lake
from transforms.store.texts import public_url

FORGOTTEN = "forgotten"
"""The status of a forgotten sample, and the stratum of a prompt that has lost a picture or a match."""

NO_TEXT = "[forgotten]"
"""What a prompt says whose caption was forgotten."""

RETIRED = "the picture was removed: it is older than"
"""How the reason of a generation begins whose picture went by ``--generations_older_than``."""


def sha256(content: bytes | str) -> str:
    """Hexadecimal SHA-256 of bytes, or of a text as UTF-8."""
    return hashlib.sha256(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content).hexdigest()


def plain_url(url: str) -> str:
    """A url as it is compared: as tables keep it, without blanks around it, scheme and host in small letters."""
    url = public_url(url.strip()) or ""
    parts = re.match(r"([a-z][a-z0-9+.-]*://)([^/?#]*@)?([^/?#]*)", url, re.IGNORECASE)
    return url if parts is None else f"{parts[1].lower()}{parts[2] or ''}{parts[3].lower()}{url[parts.end() :]}"


def tombstone_rows(lake: Lake, kinds: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of ``tombstones`` that are of these kinds."""
    wanted = pc.field("kind").isin(list(kinds))
    for path in lake.every_part("tombstones"):
        yield from read_parquet(path).filter(wanted).to_pylist()


@dataclasses.dataclass(frozen=True)
class Tombstones:
    """Those of a lake as they are now.

    Attributes:
        samples: sample_id → reason.
        urls: SHA-256 of a url → reason.
        contents: SHA-256 of a picture as downloaded → reason.
        captions: SHA-256 of a caption → reason.
    """

    samples: dict[str, str]
    urls: dict[str, str]
    contents: dict[str, str]
    captions: dict[str, str]

    @classmethod
    def read(cls, lake: Lake) -> Tombstones:
        found: dict[str, dict[str, str]] = {"sample": {}, "url": {}, "content": {}, "caption": {}}
        for row in tombstone_rows(lake, found):
            found[row["kind"]][row["sample_id"] if row["kind"] == "sample" else row["sha256"]] = row["reason"]
        return cls(*found.values())

    def of(self, sample_id: str, url: str | None) -> str | None:
        """Why a sample must not be taken in; None where it may."""
        if sample_id in self.samples:
            return self.samples[sample_id]
        return None if url is None else self.urls.get(sha256(plain_url(url)), self.urls.get(sha256(url)))

    def spared(self, table: pa.Table) -> pa.Table:
        """The rows of a table whose ``sample_id`` has no tombstone."""
        if not self.samples:
            return table
        return table.filter(pc.invert(pc.is_in(table["sample_id"], pa.array(list(self.samples), pa.string()))))
