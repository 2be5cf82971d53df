"""Identities: hashes of what a thing is, never of where it stands.

Rows, prompts, seeds and snapshots get their names here, so that moving, re-partitioning or re-ordering the data
changes none of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from transforms.errors import UserError
from transforms.store.texts import public_url


def digest(*parts: Any, length: int = 32) -> str:
    """Hexadecimal SHA-256 over ``parts``, cut to ``length`` characters.

    ``parts`` may be anything that JSON can hold. Two lists of parts collide only if they are equal: JSON keeps
    their borders apart (``("ab", "c")`` is not ``("a", "bc")``). A part that JSON can't hold is a TypeError.
    """
    # surrogatepass: captions from the web can hold lone surrogates, and those must have an identity too.
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def row_digest(url: str | None, caption: str | None) -> str:
    """What a metadata row says, as 32 hexadecimal characters. Rows that say the same share it."""
    return digest("row", public_url(url), caption)


def sample_id(url: str | None, caption: str | None, occurrence: int) -> str:
    """The identity of a training sample: url, caption, and which of its repetitions it is (0 for the first)."""
    return digest("sample", public_url(url), caption, occurrence)


def url_by_bytes(sha256: str) -> str:
    """The url of a picture that came with its row, and has no other: by the hexadecimal SHA-256 of its bytes."""
    return f"sha256:{sha256}"


def prompt_id(text: str, origin: str, sample: str | None) -> str:
    """The identity of a prompt: its text, where it came from, and the sample whose caption it is (if any)."""
    return digest("prompt", text, origin, sample)


def seed(base_seed: int, prompt: str, sample_index: int) -> int:
    """The seed of generation ``sample_index`` of a prompt: 0 ≤ seed < 2**63."""
    return int(digest("seed", base_seed, prompt, sample_index, length=16), 16) >> 1


def unit_interval(*parts: Any) -> float:
    """A number in [0, 1) that depends on ``parts`` alone: for samples drawn by hash."""
    return int(digest("unit", *parts, length=13), 16) / 16**13


def folder_digest(folder: str) -> str:
    """Digest of every file of a local model by its path inside the folder and its content: a moved model is the same.

    UserError where there is what is no file, which could keep its reader waiting for ever, or a link that leads back into a
    folder that it is in.
    """
    files = []
    # A part may be a link to a folder that several models share.
    for parent, folders, names in os.walk(folder, followlinks=True):
        within = os.path.realpath(parent)
        for name in folders:
            real = os.path.realpath(os.path.join(parent, name))
            if os.path.commonpath([real, within]) == real:
                raise UserError(f"{os.path.join(parent, name)!r} is a link to a folder that it is in; remove it")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or name == "README.md":  # a model card changes nothing
                continue
            path = os.path.join(parent, name)
            if not os.path.isfile(path):
                raise UserError(f"{path!r} is no file, or a link that leads nowhere; mend or remove it")
            with open(path, "rb") as file:
                files.append((os.path.relpath(path, folder), hashlib.file_digest(file, "sha256").hexdigest()))
    return digest("folder", files, length=40)
