"""Who may write to the lake: every verb that writes keeps the others off it.

A folder of this machine is locked by the system, which gives the lock back where its holder is killed.

A lake in a store is claimed. LAKE/writer.claims/<number> is made by who takes the lake, in a request that the store
refuses where there is such an object, and written again every ``BEAT`` seconds. Numbers only grow. A claim that is
empty was given back; one whose holder hasn't written it for ``STALE`` seconds, by the store's own clock, has no holder
any more. Then the next number may be taken. A holder that was away for so long finds a higher number than its own, and
ends at once.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from pipelines.execution import say
from transforms.errors import UserError, first_line
from transforms.store.files import create, delete, delete_all, exists, list_files, make_folder, read_bytes, stat, write_bytes
from transforms.store.lake import Lake

LOCK = "writer.lock"
"""The file of a lake that is locked; it says who has locked it, or had."""

CLAIMS = "writer.claims"
"""The folder of a lake's claims. Of another name: a lake may be copied from a store to a disk."""

BEAT = 20.0
"""Seconds between two signs of life of who holds a lake in a store."""

STALE = 120.0
"""Seconds without one after which it has no holder any more."""


class Busy(UserError):
    """Somebody else is at work on the lake."""


@contextlib.contextmanager
def alone(lake: Lake, verb: str, wait: float) -> Iterator[None]:
    """Keeps all others that write off the lake meanwhile. Where the holder is killed, others may have it: in a folder of this
    machine at once, in a store after ``STALE`` seconds.

    Args:
        lake: a lake, or where one is to be; what is made for the lock goes again where nothing else came there.
        verb: who wants to.
        wait: so many seconds where another one is at work.

    Raises:
        Busy: if it is at work for longer.
        UserError: if the lake can't be written to.
    """
    if not lake.is_local:
        with _claimed(lake, verb, wait):
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
            _tell(verb, _holder(path), lake, wait)
            lock.acquire(timeout=wait)
    except filelock.Timeout as error:
        raise _busy(_holder(path), lake) from error
    except OSError as error:
        raise _unwritable(lake, error) from error
    try:
        # Written in place, and not replaced: it is this very file that is locked.
        with open(path, "w") as file:
            file.write(_this_command(verb))
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
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return read_bytes(path)[:200].decode().partition("\n")[0] or SOMEBODY
    return SOMEBODY


SOMEBODY = "another command"


def _this_command(verb: str) -> str:
    since = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
    return f"'eidetic {verb}' (process {os.getpid()} on {socket.gethostname()}, since {since})"


def _tell(verb: str, holder: str, lake: Lake, wait: float) -> None:
    say(f"{verb:<12} {holder} is at work on the lake {lake.root!r}; waiting for up to {wait:g} s")


def _busy(holder: str, lake: Lake) -> Busy:
    return Busy(f"{holder} is at work on the lake {lake.root!r}; wait until it is done, or give it time with --wait SECONDS")


def _unwritable(lake: Lake, error: OSError) -> UserError:
    return UserError(f"cannot write to the lake {lake.root!r} ({error}); name a folder or URL that can be written with --lake")


# -- in a store -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _claimed(lake: Lake, verb: str, wait: float) -> Iterator[None]:
    folder, limit, told = lake.path(CLAIMS), time.monotonic() + wait, False
    # No two claims say the same: a store's "there is such an object" may be of our own request, whose first answer was lost.
    text = f"{_this_command(verb)}\n{uuid.uuid4().hex}".encode()
    try:
        new = not exists(folder)
        while (claim := _claim(folder, text)) is None:
            newest = _newest(folder)
            holder = SOMEBODY if newest is None else _holder(newest)
            if time.monotonic() >= limit:
                raise _busy(holder, lake)
            if not told:
                _tell(verb, holder, lake, wait)
                told = True
            time.sleep(min(BEAT / 10, max(0.0, limit - time.monotonic())))
    except OSError as error:
        raise _unwritable(lake, error) from error
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(folder, claim, text, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        _give_back(lake, claim, new)


def _give_back(lake: Lake, claim: str, new: bool) -> None:
    folder = lake.path(CLAIMS)
    try:
        if (newest := _newest(folder)) not in (None, claim):
            raise UserError(
                f"{_taken_by(newest)}; 'eidetic verify' says whether what both wrote is whole; the same command then goes on"
            )
        if new and not exists(lake.path("lake.json")):
            delete(folder)
        else:
            write_bytes(claim, b"")
    except UserError:
        raise
    except Exception as error:  # the store is away, in whatever words: no more than this was left to do
        say(f"eidetic: the lake {lake.root!r} can't be given back ({first_line(error)}); it is free in {STALE:.0f} s")


def _claims(folder: str) -> list[str]:
    """The claims that there are, the newest last."""
    return [path for path in list_files(folder, "") if path.rpartition("/")[2].isdigit()]


def _newest(folder: str) -> str | None:
    return next(reversed(_claims(folder)), None)


def _claim(folder: str, text: bytes) -> str | None:
    """Takes the lake: the claim; None where somebody has it, or had a moment ago. No two texts may be the same."""
    newest = _newest(folder)
    if newest is not None and _is_held(newest, folder):
        return None
    number = int(newest.rpartition("/")[2]) + 1 if newest else 1
    claim = f"{folder}/{number:012d}"
    if not create(claim, text):
        return None
    try:
        claims = _claims(folder)
        if claims[-1:] != [claim]:  # the number was taken, and given back, and removed, since it was looked for
            delete(claim)
            return None
        # The newest one stays for ever, so that no number comes twice.
        with contextlib.suppress(FileNotFoundError):
            delete_all(claims[:-1])
    except BaseException:
        with contextlib.suppress(Exception):
            write_bytes(claim, b"")
        raise
    return claim


def _is_held(claim: str, folder: str) -> bool:
    """Whether who made a claim still shows signs of life. By the store's clock alone: ours may be wrong."""
    try:
        found = stat(claim)
    except FileNotFoundError:
        return True  # whoever has removed it has the lake, or had: it's to be looked for again
    if not found.size:
        return False
    now = f"{folder}/now-{uuid.uuid4().hex}"
    write_bytes(now, b"")
    try:
        return stat(now).modified - found.modified < STALE
    finally:
        delete(now)


def _taken_by(claim: str) -> str:
    return f"{_holder(claim)} has taken the lake: this command showed no sign of life for {STALE:.0f} s"


def _beat(folder: str, claim: str, text: bytes, ended: threading.Event) -> None:
    """Shows signs of life. Ends the process where another one has taken the lake: what both do there would be mixed."""
    while not ended.wait(BEAT):
        try:
            newest = _newest(folder)
            if newest not in (None, claim):
                say(f"eidetic: {_taken_by(newest)}")
                os._exit(2)
            write_bytes(claim, text)
        except Exception as error:  # the store is away, in whatever words; it may be there again at the next one
            say(f"eidetic: no sign of life could be written to {claim!r} ({error})")
