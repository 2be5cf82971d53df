"""Tombstones: what must not come back, and by which it is known.

Workers read what is about to go, and answer with fingerprints. What is held are those, and the prompts that are touched.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from transforms.errors import UserError
from transforms.forgetting.rows import BATCH_ROWS, rows_of
from transforms.forgetting.selection import groups_of, url_forms
from transforms.forgetting.workers import Workers
from transforms.kernels.copies import CopyLimits, is_copy
from transforms.kernels.fingerprints import Fingerprint, Needles, fingerprint
from transforms.results import report
from transforms.store.files import list_files, open_parquet, read_rows
from transforms.store.identity import digest
from transforms.store.lake import Lake, snapshot_of, table_of
from transforms.store.pictures import decode
from transforms.store.quotations import TEXTS, forgotten_texts
from transforms.store.texts import redacted
from transforms.store.tombstones import FORGOTTEN, plain_url, sha256, tombstone_rows


def bury(workers: Workers, sample_ids: set[str], urls: Iterable[str], reason: str) -> int:
    """Writes the tombstones of samples, and of urls whether the lake has them or not; returns how many are new.

    With them come the fingerprints of all that is about to be removed, which the proof goes by.

    Raises:
        UserError: if the reason holds a url or a caption that is forgotten; nothing is written then.
    """
    lake, now, reason = workers.lake, datetime.datetime.now(datetime.UTC), redacted(reason)
    there = {(row["kind"], row["sample_id"], row["sha256"]) for row in tombstone_rows(lake, KINDS)}
    urls = list(urls)
    new: dict[tuple[str, str | None, str], dict[str, Any]] = {}

    def add(kind: str, sample: str | None, sha256: str, length: int | None = None, ending: int | None = None) -> None:
        if (kind, sample, sha256) not in there:
            row = {"kind": kind, "sample_id": sample, "sha256": sha256, "length": length, "ending": ending}
            new[kind, sample, sha256] = {**row, "reason": reason, "forgotten_at": now}

    for sample in sorted(sample_ids):
        add("sample", sample, sha256(sample))
    tables = [path for table in ("samples", "images", "embeddings") for path in lake.every_part(table)]
    for row in workers.each(tables if sample_ids else (), OfSamples(sample_ids)):
        add(*row)
    # A url that the lake has is there by now, with its sample.
    known = there | new.keys()
    of_samples = {digest for kind, _, digest in known if kind == "url"}
    for url in map(plain_url, urls):
        if sha256(url) not in of_samples:
            add("url", None, *fingerprint(url.encode()))
    touched = touched_prompts(workers, sample_ids)
    for row in workers.each(_generation_files(lake, touched), OfPrompts(touched)):
        add(*row)
    rows = list(new.values())
    texts = [Fingerprint(row["sha256"], row["length"], row["ending"]) for row in rows if row["kind"] in TEXTS]
    if _names(reason, [*texts, *forgotten_texts(lake)], urls):
        raise UserError(
            "--reason holds a url or a caption of what is forgotten, and stays in the lake; say it without, by the number of a "
            "request for example"
        )
    if rows:
        lake.write("tombstones", digest("forget", [list(map(str, key)) for key in new], length=16), 0, rows)
    return len(new)


KINDS = ("sample", "url", "content", "caption", "picture", "vector", "thumbnail", "generation", "shown")

Grave = tuple[str, str | None, str, int | None, int | None]
"""What a tombstone says of a thing: kind, sample_id, SHA-256, length and ending."""


@dataclasses.dataclass(frozen=True)
class OfSamples:
    """A part of ``samples``, ``images`` or ``embeddings`` → what the tombstones of some samples say of it."""

    sample_ids: set[str]

    def __call__(self, path: str) -> Iterator[Grave]:
        table = table_of(path)
        for row in rows_of(path, self.sample_ids, list(_COLUMNS[table])):
            if row.get("sha256"):
                yield "content", row["sample_id"], row["sha256"], None, None
            for kind, content in _CONTENTS[table](row):
                yield kind, row["sample_id"], *fingerprint(content)


def _texts(row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    yield from (("url", url.encode()) for url in sorted(url_forms(row["url"])))
    captions = {row["caption"], (row["caption"] or "").strip()} - {None, ""}
    yield from (("caption", caption.encode()) for caption in sorted(captions))


def _numbers(row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    if row["vector"]:
        yield "vector", np.asarray(row["vector"], np.float32).tobytes()
    if row["thumbnail"]:
        yield "thumbnail", row["thumbnail"]


def _shapes(kind: str, picture: bytes | None) -> Iterator[tuple[str, bytes]]:
    """A picture as it is stored, and as reports may show it."""
    if picture:
        yield kind, picture
        try:
            yield from (("shown", form.encode()) for form in report.shown_forms(np.asarray(decode(picture))))
        except ValueError:  # what can't be decoded was shown nowhere
            return


_COLUMNS = {"samples": ("url", "caption", "sha256"), "images": ("image",), "embeddings": ("vector", "thumbnail")}

_CONTENTS: dict[str, Callable[[dict[str, Any]], Iterator[tuple[str, bytes]]]] = {
    "samples": _texts,
    "images": lambda row: _shapes("picture", row["image"]),
    "embeddings": _numbers,
}
"""Table → what of a row must not come back, and of which kind it is."""


@dataclasses.dataclass(frozen=True)
class OfPrompts:
    """A file of generations → what the tombstones say of the pictures of some prompts: (audit_id, prompt_id)."""

    prompts: set[tuple[str, str]]

    def __call__(self, path: str) -> Iterator[Grave]:
        with open_parquet(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["audit_id", "prompt_id", "image"]):
                for row in batch.to_pylist():
                    if (row["audit_id"], row["prompt_id"]) in self.prompts:
                        for kind, content in _shapes("generation", row["image"]):
                            yield kind, None, *fingerprint(content)


def _names(reason: str, texts: list[Fingerprint], urls: list[str]) -> bool:
    """Whether a reason is one of these texts, holds one (of 16 bytes or more), or one of these urls if it has a scheme."""
    whole = {sha256(reason), sha256(reason.strip())} & {text.sha256 for text in texts}
    inside = any(Needles(texts).find(reason.encode("utf-8", "surrogatepass")))
    return bool(whole) or inside or any("://" in url and plain_url(url).lower() in reason.lower() for url in urls)


def _generation_files(lake: Lake, touched: set[tuple[str, str]]) -> Iterator[str]:
    """Files that may hold generations of these prompts: tables, and finished prompts of an audit that is not."""
    audits = {audit for audit, _ in touched}
    yield from (path for path in lake.every_part("generations") if snapshot_of(path) in audits)
    # A match's snapshot doesn't name its audit: rows do.
    yield from lake.every_part("regenerations") if audits else ()
    for audit in sorted(audits):
        yield from list_files(lake.work("generate", audit, "prompts"), ".parquet")


def touched_prompts(workers: Workers, sample_ids: set[str]) -> set[tuple[str, str]]:
    """(audit_id, prompt_id) of the prompts that the samples have a part in; those of before included.

    Their caption, or that of their group; one of whose generations matched one of them or their group, as own, as extracted or
    as a copy; or was compared with nothing else.
    """
    parts = [*workers.lake.every_part("prompts"), *workers.lake.every_part("matches")]
    return {(audit, prompt) for audit, prompt in workers.each(parts, touching(workers, sample_ids))}


def touching(workers: Workers, sample_ids: set[str]) -> Touching:
    """The work that finds what ``touched_prompts`` returns."""
    return Touching(workers.lake, sample_ids, {group for _, group in groups_of(workers, sample_ids)})


@dataclasses.dataclass(frozen=True)
class Touching:
    """A part of ``prompts`` or ``matches`` → (audit_id, prompt_id) of the prompts that samples and their groups touch."""

    lake: Lake
    sample_ids: set[str]
    groups: set[str]

    def __call__(self, path: str) -> Iterable[tuple[str, str]]:
        return sorted(self._by_prompts(path) if table_of(path) == "prompts" else self._by_matches(path))

    def _by_prompts(self, path: str) -> set[tuple[str, str]]:
        return {
            (row["audit_id"], row["prompt_id"])
            for row in read_rows(path, ["audit_id", "prompt_id", "sample_id", "group_id", "stratum"])
            if row["sample_id"] in self.sample_ids or row["group_id"] in self.groups or row["stratum"] == FORGOTTEN
        }

    def _by_matches(self, path: str) -> set[tuple[str, str]]:
        columns = ["audit_id", "prompt_id", "sample_index", "sample_id", "group_id", "role", "relation", "extracted",
                   "l2", "coarse_l2", "coarse_ratio"]  # fmt: skip
        limits = copy_limits(self.lake, snapshot_of(path))
        touched: set[tuple[str, str]] = set()
        lost: set[tuple[str, str, int]] = set()
        left: set[tuple[str, str, int]] = set()
        for row in read_rows(path, columns):
            prompt = row["audit_id"], row["prompt_id"]
            mine = row["sample_id"] in self.sample_ids
            close = row["extracted"] or row["relation"] == "own" or (row["role"] == "training" and is_copy(row, limits))
            if (mine or row["group_id"] in self.groups) and close:
                touched.add(prompt)
            (lost if mine else left).add((*prompt, row["sample_index"]))
        return touched | {(audit, prompt) for audit, prompt, _ in lost - left}


def copy_limits(lake: Lake, match: str) -> CopyLimits:
    """The limits of a copy in a snapshot of matches; without bounds where it was killed before it had any."""
    rows = lake.read("copy_calibration", match).to_pylist()
    if not rows:
        return CopyLimits(np.inf, np.inf, None)
    return CopyLimits.of(rows[0])
