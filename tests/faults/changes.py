"""Kills at a given change: after it nothing of the lake is changed any more, whoever tries, cleaning up included."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class Killed(BaseException):
    """The process is dead: whoever would change something meets this."""


class Changes:
    """Counts the changes of names in a folder (renames, removals, new folders), and allows only so many.

    Args:
        root: the folder.
        most: the change with this number, from 0, and all after it don't happen; None: all do.
    """

    def __init__(self, root: str, most: int | None = None):
        self.root, self.most, self.count = Path(root).resolve(), most, 0

    @property
    def dead(self) -> bool:
        return self.most is not None and self.count >= self.most

    @contextlib.contextmanager
    def counted(self) -> Iterator[Changes]:
        """Meanwhile all changes of this process are counted."""
        names = ("replace", "remove", "unlink", "rmdir", "mkdir")
        real = {name: getattr(os, name) for name in names}

        def counting(name: str):
            def change(*args, **kwargs):
                # rmtree names what it removes relative to a descriptor of its folder.
                where = kwargs.get("dir_fd")
                folder = Path(os.readlink(f"/proc/self/fd/{where}")) if where is not None else Path(".")
                if (folder / os.fspath(args[-1] if name == "replace" else args[0])).resolve().is_relative_to(self.root):
                    if self.dead:
                        raise Killed
                    self.count += 1
                return real[name](*args, **kwargs)

            return change

        for name in names:
            setattr(os, name, counting(name))
        try:
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)
