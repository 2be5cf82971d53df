"""Finished generations of a model that can't be run here."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from transforms.errors import UserError
from transforms.models.base import Attempt, Wanted
from transforms.store.files import exists, is_url, name_here, read_bytes, walk
from transforms.store.identity import digest
from transforms.store.listings import decode_text
from transforms.store.pictures import decode_stranger
from transforms.store.texts import written_name

MAX_BYTES = 256 << 20
"""Of one picture's file."""


@dataclasses.dataclass
class FolderGenerator:
    """Finished generations of a model that can't be run here: pictures, and a metadata.jsonl that says which prompt.

    Attributes:
        model: the folder. Each line of its metadata.jsonl is an object with ``file_name`` (relative to the folder) and
            ``prompt`` (or ``text``, ``caption``); the order of a prompt's lines is the order of its generations.
    """

    model: str
    kind: str = "folder"

    batch_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self._files: dict[str, list[str]] | None = None

    def on(self, device: str) -> FolderGenerator:
        return self

    @property
    def files(self) -> dict[str, list[str]]:
        """Prompt → its pictures' file names."""
        if self._files is None:
            self._files = self._read()
        return self._files

    def _read(self) -> dict[str, list[str]]:
        path = os.path.join(self.model, "metadata.jsonl")
        advice = "expected a JSON object a line, with file_name and prompt"
        if not exists(path):
            raise UserError(f"the folder of generations {self.model!r} has no metadata.jsonl; {advice}")
        if not is_url(path) and not os.path.isfile(path):
            raise UserError(f"{path!r} is no file; {advice}")
        files: dict[str, list[str]] = {}
        # Only line feeds end a line: JSON may hold what else Python takes for the end of one.
        for number, line in enumerate(decode_text(read_bytes(path)).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                prompt = _text(next(row[name] for name in ("prompt", "text", "caption") if row.get(name)))
                name = _text(_named(row["file_name"]))
            except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
                raise UserError(f"{path!r}, line {number}: {line[:80]!r}; {advice}") from error
            if os.path.isabs(name) or ".." in name.split("/"):
                raise UserError(f"{path!r}, line {number}: file_name {name!r} leads out of the folder")
            files.setdefault(prompt.strip(), []).append(name)
        if not files:
            raise UserError(f"{path!r} is empty; {advice}")
        return files

    def prompts(self) -> Iterable[str]:
        return self.files

    def revision(self) -> str:
        # The index and the pictures' sizes, not their bytes: a folder may hold millions of them.
        behind_url = {file.path: file.size for file in walk(self.model)} if is_url(self.model) else {}
        sizes = []
        for name in sorted(name for names in self.files.values() for name in names):
            path = self._place(name)
            here = os.path.getsize(path) if os.path.isfile(path) else -1
            sizes.append((name, behind_url.get(path, here)))
        return digest("generations", self.files, sizes, length=40)

    def load(self) -> None:
        self._files = self._read()

    def generate(self, wanted: Sequence[Wanted]) -> Iterator[dict[int, Attempt]]:
        for text, seeds in wanted:
            names = self.files.get(text, [])
            yield {index: self._attempt(names[index]) for index in seeds if index < len(names)}

    def _attempt(self, name: str) -> Attempt:
        begun = time.perf_counter()
        try:
            return Attempt(decode_stranger(self._content(name)), "success", None, time.perf_counter() - begun)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            return Attempt(None, "failed", f"{name}: {reason}", time.perf_counter() - begun)

    def _place(self, name: str) -> str:
        """Where a picture lies."""
        return os.path.join(self.model, name if is_url(self.model) else name_here(self.model, name))

    def _content(self, name: str) -> bytes:
        """The bytes of a picture. ValueError for what is no picture's file: a pipe, say, would be read for ever."""
        path = self._place(name)
        if not is_url(path):
            if not os.path.realpath(path).startswith(os.path.realpath(self.model) + os.sep):
                raise ValueError("a link that leads out of the folder")
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("no file")
            if found.st_size > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
        return read_bytes(path)

    def describe(self) -> dict[str, Any]:
        return {"steps": None, "guidance_scale": None, "device": None, "dtype": None}


def _named(value: Any) -> Any:
    """The name of a file, if it is one that Python wrote of bytes that are no UTF-8, with those as escapes; else as it is."""
    if not isinstance(value, str):
        return value
    with contextlib.suppress(UnicodeEncodeError):
        value.encode("utf-8", "surrogateescape")
        return written_name(value)
    return value


def _text(value: Any) -> str:
    """``value``, if it is text that a table can hold. TypeError, or ValueError for half of a surrogate pair."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__}, expected text")
    value.encode("utf-8")
    if "\0" in value:
        raise ValueError("a null character")
    return value
