"""Who may write to the lake: the night and ``eidetic forget`` keep one another, and others like them, off it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipelines.execution import say
from transforms.errors import UserError
from transforms.store.lake import Lake


class Busy(UserError):
    """Somebody else is at work on the lake."""


@contextlib.contextmanager
def alone(lake: Lake, verb: str, wait: float) -> Iterator[None]:
    """Keeps other nights and requests to forget off the lake meanwhile.

    Args:
        lake: which is there.
        verb: who wants to.
        wait: so many seconds where another one is at work.

    Raises:
        Busy: if it is at work for longer.
    """
    if not lake.is_local:
        # No object store that Beam knows can be locked by it; Airflow's max_active_runs or one machine must do it.
        say(f"{verb:<12} the lake {lake.root!r} can't be locked: see that no other night, and no 'eidetic forget', runs on it")
        yield
        return
    import filelock

    lock = filelock.FileLock(lake.path("nightly.lock"))
    at_work = f"another night is at work on the lake {lake.root!r}, or 'eidetic forget'"
    try:
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked:
            say(f"{verb:<12} {at_work}; waiting for up to {wait:g} s")
            lock.acquire(timeout=wait)
    except filelock.Timeout as error:
        raise Busy(f"{at_work}; wait until it is done, or give it time with --wait SECONDS") from error
    with lock:
        yield
