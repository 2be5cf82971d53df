"""Tombstones: what must not come back, and by which it is known."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from transforms.errors import UserError
from transforms.forgetting.rows import BATCH_ROWS, rows_of
from transforms.forgetting.selection import url_forms
from transforms.kernels.copies import CopyLimits, is_copy
from transforms.kernels.fingerprints import Fingerprint, Needles, fingerprint
from transforms.results import report
from transforms.store.files import list_files, open_parquet, read_parquet
from transforms.store.identity import digest
from transforms.store.lake import Lake, snapshot_of
from transforms.store.pictures import decode
from transforms.store.quotations import TEXTS
from transforms.store.tombstones import FORGOTTEN, plain_url, sha256, tombstone_rows

# -- tombstones -------------------------------------------------------------------------------------------------------


def bury(lake: Lake, sample_ids: set[str], urls: Iterable[str], reason: str) -> int:
    """Writes the tombstones of samples, and of urls whether the lake has them or not; returns how many are new.

    With them come the fingerprints of all that is about to be removed, which the proof goes by.

    Raises:
        UserError: if the reason holds a url or a caption that is forgotten; nothing is written then.
    """
    now = datetime.datetime.now(datetime.UTC)
    there = {(row["kind"], row["sample_id"], row["sha256"]) for row in tombstone_rows(lake, KINDS)}
    urls = list(urls)
    new: dict[tuple[str, str | None, str], dict[str, Any]] = {}

    def add(kind: str, sample: str | None, sha256: str, length: int | None = None, ending: int | None = None) -> None:
        if (kind, sample, sha256) not in there:
            row = {"kind": kind, "sample_id": sample, "sha256": sha256, "length": length, "ending": ending}
            new[kind, sample, sha256] = {**row, "reason": reason, "forgotten_at": now}

    def add_content(kind: str, sample: str | None, content: bytes) -> None:
        add(kind, sample, *fingerprint(content))

    for sample in sorted(sample_ids):
        add("sample", sample, sha256(sample))
    for row in rows_of(lake, "samples", sample_ids, ["url", "caption", "sha256"]):
        for url in sorted(url_forms(row["url"])):
            add_content("url", row["sample_id"], url.encode())
        if row["sha256"]:
            add("content", row["sample_id"], row["sha256"])
        for caption in {row["caption"], (row["caption"] or "").strip()} - {None, ""}:
            add_content("caption", row["sample_id"], caption.encode())
    # A url that the lake has is there by now, with its sample.
    known = there | new.keys()
    of_samples = {digest for kind, _, digest in known if kind == "url"}
    for url in map(plain_url, urls):
        if sha256(url) not in of_samples:
            add_content("url", None, url.encode())
    for row in rows_of(lake, "images", sample_ids, ["image"]):
        for kind, content in _shapes("picture", row["image"]):
            add_content(kind, row["sample_id"], content)
    for row in rows_of(lake, "embeddings", sample_ids, ["vector", "thumbnail"]):
        if row["vector"]:
            add_content("vector", row["sample_id"], np.asarray(row["vector"], np.float32).tobytes())
        if row["thumbnail"]:
            add_content("thumbnail", row["sample_id"], row["thumbnail"])
    touched = touched_prompts(lake, sample_ids)
    for path in _generation_files(lake, touched):
        with open_parquet(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["audit_id", "prompt_id", "image"]):
                for row in batch.to_pylist():
                    if (row["audit_id"], row["prompt_id"]) in touched:
                        for kind, content in _shapes("generation", row["image"]):
                            add_content(kind, None, content)
    rows = list(new.values())
    texts = [Fingerprint(row["sha256"], row["length"], row["ending"])
             for row in [*rows, *tombstone_rows(lake, TEXTS)] if row["kind"] in TEXTS]  # fmt: skip
    if _names(reason, texts, urls):
        raise UserError(
            "--reason holds a url or a caption of what is forgotten, and stays in the lake; say it without, by the number of a "
            "request for example"
        )
    if rows:
        lake.write("tombstones", digest("forget", [list(map(str, key)) for key in new], length=16), 0, rows)
    return len(new)


def _names(reason: str, texts: list[Fingerprint], urls: list[str]) -> bool:
    """Whether a reason is one of these texts, holds one (of 16 bytes or more), or one of these urls if it has a scheme."""
    whole = {sha256(reason), sha256(reason.strip())} & {text.sha256 for text in texts}
    inside = any(Needles(texts).find(reason.encode("utf-8", "surrogatepass")))
    return bool(whole) or inside or any("://" in url and plain_url(url).lower() in reason.lower() for url in urls)


KINDS = ("sample", "url", "content", "caption", "picture", "vector", "thumbnail", "generation", "shown")


def _shapes(kind: str, picture: bytes | None) -> Iterator[tuple[str, bytes]]:
    """A picture as it is stored, and as reports may show it."""
    if picture:
        yield kind, picture
        try:
            yield from (("shown", form.encode()) for form in report.shown_forms(np.asarray(decode(picture))))
        except ValueError:  # what can't be decoded was shown nowhere
            return


def _generation_files(lake: Lake, touched: set[tuple[str, str]]) -> Iterator[str]:
    """Files that may hold generations of these prompts: tables, and finished prompts of an audit that is not."""
    audits = {audit for audit, _ in touched}
    yield from (path for path in lake.every_part("generations") if snapshot_of(path) in audits)
    # A match's snapshot doesn't name its audit: rows do.
    yield from lake.every_part("regenerations")
    for audit in sorted(audits):
        yield from list_files(lake.work("generate", audit, "prompts"), ".parquet")


def touched_prompts(lake: Lake, sample_ids: set[str]) -> set[tuple[str, str]]:
    """(audit_id, prompt_id) of the prompts that the samples have a part in; those of before included.

    Their caption, or that of their group; one of whose generations matched one of them or their group, as own, as extracted or
    as a copy; or was compared with nothing else.
    """
    groups = {row["group_id"] for row in rows_of(lake, "duplicate_groups", sample_ids, ["group_id"])}
    touched = set()
    for path in lake.every_part("prompts"):
        columns = ["audit_id", "prompt_id", "sample_id", "group_id", "stratum"]
        for row in read_parquet(path, columns).to_pylist():
            if row["sample_id"] in sample_ids or row["group_id"] in groups or row["stratum"] == FORGOTTEN:
                touched.add((row["audit_id"], row["prompt_id"]))
    for path in lake.every_part("matches"):
        columns = ["audit_id", "prompt_id", "sample_index", "sample_id", "group_id", "role", "relation", "extracted",
                   "l2", "coarse_l2", "coarse_ratio"]  # fmt: skip
        limits = copy_limits(lake, snapshot_of(path))
        lost: set[tuple[str, str, int]] = set()
        left: set[tuple[str, str, int]] = set()
        for row in read_parquet(path, columns).to_pylist():
            prompt = row["audit_id"], row["prompt_id"]
            mine = row["sample_id"] in sample_ids
            close = row["extracted"] or row["relation"] == "own" or (row["role"] == "training" and is_copy(row, limits))
            if (mine or row["group_id"] in groups) and close:
                touched.add(prompt)
            (lost if mine else left).add((*prompt, row["sample_index"]))
        touched |= {(audit, prompt) for audit, prompt, _ in lost - left}
    return touched


def copy_limits(lake: Lake, match: str) -> CopyLimits:
    """The limits of a copy in a snapshot of matches; without bounds where it was killed before it had any."""
    rows = lake.read("copy_calibration", match).to_pylist()
    if not rows:
        return CopyLimits(np.inf, np.inf, None)
    return CopyLimits.of(rows[0])
