"""Power cuts: what would be on the disk if nothing came there but what was synced.

``Disk`` listens to ``os.fsync``, whoever calls it, and knows what each file held and each folder named when it was last synced.
From that it builds the lake as a cut would leave it, at any moment, in either of two ways:

- LOST: a name that its folder was not synced with isn't there (and one that was removed still is).
- EMPTY: names are there as they are, and a file whose bytes weren't synced is empty: what ext4 and XFS do to a file that was
  renamed too early.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

LOST, EMPTY = "lost", "empty"


class Disk:
    """The durable side of a folder. ``syncs``: how many there were so far."""

    def __init__(self, root: Path):
        self.root, self.syncs = root, 0
        self._contents: dict[int, bytes] = {}
        self._names: dict[str, dict[str, bytes | None]] = {}
        self._fsync = os.fsync

    @contextlib.contextmanager
    def recording(self, after: Callable[[int], None] = lambda _: None) -> Iterator[None]:
        """Listens meanwhile; ``after`` is called with the number of each sync in the folder."""

        def fsync(descriptor: int) -> None:
            self._fsync(descriptor)
            place = os.readlink(f"/proc/self/fd/{descriptor}")
            if Path(place).is_relative_to(self.root.parent):
                self._note(descriptor, place)
                self.syncs += 1
                after(self.syncs)

        os.fsync = fsync  # type: ignore[assignment]
        try:
            yield
        finally:
            os.fsync = self._fsync

    def _note(self, descriptor: int, place: str) -> None:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(place) as entries:
                self._names[place] = {one.name: None if one.is_dir() else self._durable(Path(one.path)) for one in entries}
        else:
            self._contents[found.st_ino] = Path(place).read_bytes()

    def _durable(self, path: Path) -> bytes:
        """What a file holds for good: nothing where it isn't what was synced, or has the inode of one that is gone."""
        try:
            known, now = self._contents.get(path.stat().st_ino, b""), path.read_bytes()
        except FileNotFoundError:
            return b""
        return known if known == now else b""

    def after_a_cut(self, target: Path, how: str) -> None:
        """Builds the folder in ``target`` as it would be after a cut now."""
        if how == LOST:
            if self.root.name in self._names.get(str(self.root.parent), {}):
                self._restore(self.root, target)
            return
        for path in sorted(self.root.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                inside = target / path.relative_to(self.root)
                if path.is_dir():
                    inside.mkdir(parents=True, exist_ok=True)
                else:
                    inside.parent.mkdir(parents=True, exist_ok=True)
                    inside.write_bytes(self._durable(path))

    def _restore(self, folder: Path, target: Path) -> None:
        target.mkdir()
        for name, content in self._names.get(str(folder), {}).items():
            if content is None:
                self._restore(folder / name, target / name)
            else:
                (target / name).write_bytes(content)
