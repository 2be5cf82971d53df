"""How a command may end before it is done."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend. Its text says what was got, what was expected and what to do.

    The command line prints it on one line and ends with exit code 2; nothing is left half-written.
    """


MEND = (
    "restore it from a backup, or run 'eidetic verify --mend' on its lake, which removes what is damaged and what was made of "
    "it, and then the same command again"
)
"""What to do about a file of a lake that is damaged."""


class Damaged(UserError):
    """A file isn't what was written. ``path``: which; ``advice``: what to do about it."""

    def __init__(self, path: str, what: str, advice: str = MEND):
        super().__init__(f"{path!r} is damaged: {what}; {advice}")
        self.path, self.what, self.advice = path, what, advice

    def __reduce__(self) -> tuple[Any, ...]:
        return Damaged, (self.path, self.what, self.advice)


class TemplateWritten(Exception):
    """A Dataflow template was built instead of a run; there is nothing more to do."""


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line: its first line of text, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


FAULTS_OF_THE_MACHINE = {
    errno.ENOSPC: "the disk is full; make room (--lake, and TMPDIR for what is temporary)",
    errno.EDQUOT: "the disk quota is used up; make room (--lake, and TMPDIR for what is temporary)",
    errno.EFBIG: "a file may not become so large here; raise the limit (ulimit -f)",
    errno.EROFS: "what should be written to can only be read; mount it for writing, or name another --lake",
    errno.EACCES: "this user may not do that; give it the permission, or run as the owner of the lake",
    errno.EPERM: "this user may not do that; give it the permission, or run as the owner of the lake",
    errno.EMFILE: "this process may not open more files; raise the limit (ulimit -n)",
    errno.ENFILE: "this machine can't open more files; end other programs, or raise fs.file-max",
    errno.EIO: "the disk can't be read or written; look at the machine's own log",
    errno.ESTALE: "the network file system lost the file; mount it anew",
    errno.ENOTCONN: "the network file system is away; mount it anew",
}
"""Number of an error → what it means for the user, and what to do."""

FAULTS_OF_A_STORE = (
    (
        r"Unable to locate credentials|default credentials were not found|Could not automatically determine credentials",
        "there are no credentials for the store; set them as for its own programs (AWS_…, GOOGLE_APPLICATION_CREDENTIALS)",
    ),
    (r"token (?:included in the request )?(?:has|is) expired|ExpiredToken", "the store's credentials have expired; renew them"),
    (
        r"Could not connect to the endpoint URL|Cannot connect to host|Connect timeout on endpoint URL",
        "the store can't be reached; see that the network is there, and that its address is right (AWS_ENDPOINT_URL)",
    ),
    (
        r"Access ?Denied|^Forbidden$|InvalidAccessKeyId|SignatureDoesNotMatch|does not have storage\.[\w.]+ access",
        "the store refuses that to these credentials; give them the permission, or take others",
    ),
    (r"bucket does not exist|NoSuchBucket", "the store has no such bucket; make it, or mend the URL"),
)
"""What stands in an error of s3fs' or gcsfs' → what it means for the user, and what to do."""

_BY_TEXT = {os.strerror(number): number for number in FAULTS_OF_THE_MACHINE}


def fault_of_the_machine(error: BaseException) -> str | None:
    """One line for an error that the state of the machine or of a store explains, with what to do; None for any other.

    Runners, Arrow and DuckDB make errors of their own of the system's, and keep its words.
    """
    for one in _causes(error):
        number, text = one.errno if isinstance(one, OSError) else None, str(one)
        for pattern, meaning in FAULTS_OF_A_STORE:
            if (found := re.search(pattern, text)) is not None:
                return f"{found[0]}: {meaning}; then the same command again"
        if number not in FAULTS_OF_THE_MACHINE:
            number = next((number for words, number in _BY_TEXT.items() if words in text), None)
        if number is not None:
            return f"{os.strerror(number)}{_place(one)}: {FAULTS_OF_THE_MACHINE[number]}; then the same command again"
    return None


def _place(error: BaseException) -> str:
    """Which file, in brackets, where the error says so."""
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return f" ({error.filename!r})"
    found = re.search(r"""(?:file|Errno \d+\] [A-Za-z ]+:) ?['"]([^'"]+)['"]""", str(error))
    return f" ({found[1]!r})" if found else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
