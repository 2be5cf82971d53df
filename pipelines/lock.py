"""Who may write to the lake: every verb that writes keeps the others off it."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator

from pipelines.execution import say
from transforms.errors import UserError
from transforms.store.files import make_folder
from transforms.store.lake import Lake

LOCK = "writer.lock"
"""The file of a lake that is locked; it says who has locked it, or had."""


class Busy(UserError):
    """Somebody else is at work on the lake."""


@contextlib.contextmanager
def alone(lake: Lake, verb: str, wait: float) -> Iterator[None]:
    """Keeps all others that write off the lake meanwhile. The system gives the lock back where its holder is killed.

    Args:
        lake: a lake, or where one is to be; what is made for the lock goes again where nothing else came there.
        verb: who wants to.
        wait: so many seconds where another one is at work.

    Raises:
        Busy: if it is at work for longer.
        UserError: if the lake can't be written to.
    """
    if not lake.is_local:
        # No object store that Beam knows can be locked by it; Airflow's max_active_runs or one machine must do it.
        say(f"{verb:<12} the lake {lake.root!r} can't be locked: see that nothing else writes to it meanwhile")
        yield
        return
    import filelock

    new = _missing(lake.root)
    path = lake.path(LOCK)
    lock = filelock.FileLock(path, mode=0o600)
    try:
        make_folder(lake.root)
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked:
            say(f"{verb:<12} {_holder(path)} is at work on the lake {lake.root!r}; waiting for up to {wait:g} s")
            lock.acquire(timeout=wait)
    except filelock.Timeout as error:
        raise Busy(
            f"{_holder(path)} is at work on the lake {lake.root!r}; wait until it is done, or give it time with --wait SECONDS"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot write to the lake {lake.root!r} ({error}); name a folder or URL that can be written with --lake"
        ) from error
    try:
        since = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
        # Written in place, and not replaced: it is this very file that is locked.
        with open(path, "w") as file:
            file.write(f"'eidetic {verb}' (process {os.getpid()} on {socket.gethostname()}, since {since})")
        yield
    finally:
        if new and os.listdir(lake.root) == [LOCK]:
            os.remove(path)
            for folder in new:
                os.rmdir(folder)
        lock.release()


def _missing(folder: str) -> list[str]:
    """The folders of a path that aren't there, the innermost first."""
    folder, found = os.path.abspath(folder), []
    while not os.path.exists(folder):
        found.append(folder)
        folder = os.path.dirname(folder)
    return found


def _holder(path: str) -> str:
    """Who has the lock, as far as it says."""
    with contextlib.suppress(OSError, UnicodeDecodeError), open(path) as file:
        return file.read(200) or "another command"
    return "another command"
