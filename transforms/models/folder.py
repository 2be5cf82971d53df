"""Finished generations of a model that can't be run here."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from transforms.errors import UserError
from transforms.models.base import Attempt, Wanted
from transforms.store.files import exists, read_bytes
from transforms.store.identity import digest
from transforms.store.pictures import decode

# -- finished generations -------------------------------------------------------------------------------------------


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
        files: dict[str, list[str]] = {}
        for number, line in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                prompt = next(row[name] for name in ("prompt", "text", "caption") if row.get(name))
                name = row["file_name"]
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
        sizes = []
        for name in sorted(name for names in self.files.values() for name in names):
            path = os.path.join(self.model, name)
            sizes.append((name, os.path.getsize(path) if os.path.isfile(path) else -1))
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
            picture = np.asarray(decode(read_bytes(os.path.join(self.model, name))))
            return Attempt(picture, "success", None, time.perf_counter() - begun)
        except (OSError, ValueError) as error:
            return Attempt(None, "failed", f"{name}: {error}", time.perf_counter() - begun)

    def describe(self) -> dict[str, Any]:
        return {"steps": None, "guidance_scale": None, "device": None, "dtype": None}
