"""The ``eidetic`` command: finds the verb, runs it, and turns a user's mistakes into one line and exit code 2."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TextIO

from pipelines.stages import BESIDE, OTHER_VERBS, STAGES, SWEEP
from pipelines.terminal import guard
from transforms.errors import TemplateWritten, UserError, fault_of_the_machine


def verbs() -> dict[str, str]:
    """Verb → what the overview says of it."""
    return STAGES | BESIDE | SWEEP | OTHER_VERBS


INTERRUPTED = "interrupted; what is complete is kept, and the same command goes on from there"


def run_verb(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Runs a verb's ``main``.

    0: fine; 2: the user can mend it, and the one line on stderr says how; 130: interrupted; 141: nobody reads any more what is
    printed.
    """
    guard()
    try:
        with heeding_interrupts():
            return main(argv) or 0
    except UserError as error:
        print(f"eidetic: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except TemplateWritten as written:
        print(f"the template is at {written}; nothing was run")
        return 0
    except KeyboardInterrupt:
        print(f"eidetic: {INTERRUPTED}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if _is_read(sys.stdout):
            raise  # it is another pipe
        # As the shell says of a program that the signal has ended. Python would try once more, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        line = fault_of_the_machine(error)
        if line is None:
            raise
        print(f"eidetic: {' '.join(line.split())}", file=sys.stderr)
        return 2


def _is_read(stream: TextIO) -> bool:
    """Whether somebody still reads what is printed."""
    try:
        stream.flush()
        pipe = select.poll()
        pipe.register(stream, select.POLLERR)
        return not any(event & select.POLLERR for _, event in pipe.poll(0))
    except BrokenPipeError:
        return False


@contextlib.contextmanager
def heeding_interrupts() -> Iterator[None]:
    """Control-C ends the process at once, with exit code 130.

    What is written is whole or not at all, and the next run goes on from it, as after any other kill. An exception instead
    would come up in whatever the main thread is at, and get lost in callbacks and in runners that wait for their threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python tells no other thread of signals
        return

    def interrupted(*_: object) -> NoReturn:
        # Where the other lines go, if any went there; not by print, in the middle of which this may be.
        # The module may be in the middle of being imported, which takes seconds.
        said_to = getattr(sys.modules.get("pipelines.execution"), "_terminal", None)
        terminal = 2 if said_to is None else said_to.fileno()
        with contextlib.suppress(OSError):
            os.write(terminal, f"{chr(10) if os.isatty(terminal) else ''}eidetic: {INTERRUPTED}\n".encode())
        os._exit(130)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(_main, list(sys.argv[1:] if argv is None else argv))


def _main(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print("usage: eidetic <verb> [options] [Beam options]\n\nverbs:")
        for verb, text in verbs().items():
            print(f"  {verb:<12} {text}")
        print("\n'eidetic <verb> --help' says what a verb reads and writes, with a command that can be pasted.", flush=True)
        return 0
    if words[0] not in verbs():
        raise UserError(f"unknown verb {words[0]!r}; expected one of {', '.join(verbs())}")
    return importlib.import_module(f"pipelines.{words[0]}").main(words[1:]) or 0


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
