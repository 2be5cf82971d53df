"""The ``eidetic`` command: finds the verb, runs it, and turns a user's mistakes into one line and exit code 2."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from pipelines.stages import OTHER_VERBS, STAGES
from pipelines.terminal import guard
from transforms.errors import TemplateWritten, UserError


def verbs() -> dict[str, str]:
    """Verb → what the overview says of it."""
    return STAGES | OTHER_VERBS


def run_verb(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Runs a verb's ``main``. 0: fine; 2: the user can mend it, and the one line on stderr says how; 130: interrupted."""
    guard()
    try:
        return main(argv) or 0
    except UserError as error:
        print(f"eidetic: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except TemplateWritten as written:
        print(f"the template is at {written}; nothing was run")
        return 0
    except KeyboardInterrupt:
        print("eidetic: interrupted; what is complete is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    guard()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print("usage: eidetic <verb> [options] [Beam options]\n\nverbs:")
        for verb, text in verbs().items():
            print(f"  {verb:<12} {text}")
        print("\n'eidetic <verb> --help' says what a verb reads and writes, with a command that can be pasted.")
        return 0
    if words[0] not in verbs():
        print(f"eidetic: unknown verb {words[0]!r}; expected one of {', '.join(verbs())}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"pipelines.{words[0]}")
    return run_verb(module.main, words[1:])


def leave(code: int) -> NoReturn:
    """Ends the process with this exit code, whatever threads are left.

    A native thread (Arrow's, gRPC's) that turns to Python while the interpreter ends aborts the process: its work is done, and
    a scheduler that goes by the code hears that it wasn't.
    """
    atexit._run_exitfuncs()
    # Nobody may be reading any more.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def script() -> NoReturn:
    """The command ``eidetic``."""
    leave(main())


if __name__ == "__main__":
    script()
