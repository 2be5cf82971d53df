"""Functions that run in a process of their own, which may be ended and has a limit of memory: for bytes of strangers.

A few bytes can stand for gigabytes of pixels or minutes of decoding, and a decoder in C knows no deadline and may crash. So it
works in a child process that is told how long it may take and how much memory it may ask for; what goes past either, or
crashes, is an exception in the caller, and the next call gets a new process. The answer comes back as JSON and bytes, never as
a pickle: whoever took the child over would have no way into the caller.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import Any

START_SECONDS = 120.0
"""A child that is not ready after so long never will be: its imports take one second on an idle machine."""

GRACE = 2.0
"""Seconds past its time after which a child ends itself, should the process that watches it be gone."""

PIPE = 1 << 20
"""Bytes that a pipe holds, where the system lets it: a picture then goes through at once. Where threads wait for Python's lock,
each call of the system's costs more than what it does."""

_LENGTHS = struct.Struct("<QQ")


class Exceeded(Exception):
    """A call took more time or memory than it may have, or its process crashed; the text says which."""


class Confined:
    """A function behind a process of its own. Calls come one after the other; threads may share it.

    The process starts at the first call and is kept for the next ones.

    Args:
        function: "module:name" of what returns, with all imported that it needs, a
            ``function(content: bytes, **options) -> tuple[bytes, dict]``; options and the dict are what JSON can hold. Its
            MemoryError says that the memory did not do; another exception is the caller's, as a ValueError.
        memory: bytes that the process may ask for beyond what it has when it is ready.
    """

    def __init__(self, function: str, memory: int):
        self.function, self.memory = function, memory
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._used = False

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function, "memory": self.memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, content: bytes, seconds: float, **options: Any) -> tuple[bytes, dict[str, Any]]:
        """What the function makes of ``content``.

        Raises:
            ValueError: the function's own.
            Exceeded: it took longer than ``seconds``, needed more memory, or crashed.
        """
        with self._lock:
            deadline = time.monotonic() + seconds
            used, waited = self._ready()
            # Starting it is nobody's fault.
            deadline += waited
            try:
                answer, said = self._ask(content, deadline, options)
            except BrokenPipeError:  # it has served others, and had ended before it was asked
                self.end()
                used, waited = self._ready()
                deadline += waited
                answer, said = self._ask(content, deadline, options)
            if said.get("fault") == "memory" and used:
                # What an earlier call left in the process is not this one's fault either.
                deadline += self._ready()[1]
                answer, said = self._ask(content, deadline, options)
        if said.get("fault") == "memory":
            raise Exceeded(f"needs more than {self.memory >> 20} MiB of memory")
        if "fault" in said:
            raise ValueError(said["fault"])
        return answer, said

    def _ready(self) -> tuple[bool, float]:
        """Whether the process served others before; and the seconds that it took to start."""
        if self._child is not None and self._owner == os.getpid():
            return self._used, 0.0
        begun = time.monotonic()
        if self._owner == os.getpid():
            self.end()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "NO_ALBUMENTATIONS_UPDATE": "1",  # else its import looks for a newer version on the network
            # A pool of threads and its arenas would take address space that is the pictures'.
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"),
        }
        self._child = subprocess.Popen(
            [sys.executable, "-m", "transforms.store.confined", self.function, str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            # Linux alone knows it, and has a limit for all pipes of a user.
            with contextlib.suppress(AttributeError, OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
        self._owner, self._used = os.getpid(), False
        try:
            self._receive(begun + START_SECONDS)
        except Exceeded as error:
            raise RuntimeError(f"the process for {self.function} did not start: {error}") from error
        return False, time.monotonic() - begun

    def _ask(self, content: bytes, deadline: float, options: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        assert self._child is not None and self._child.stdin is not None
        if (left := deadline - time.monotonic()) <= 0:
            raise Exceeded("took longer than allowed")
        used, self._used = self._used, True
        try:
            _send(self._child.stdin.fileno(), content, {"options": options, "seconds": left})
        except BrokenPipeError:
            if used:
                raise
            # It has crashed over this very call, which is found out below.
        answer, said = self._receive(deadline)
        if said.get("fault") == "memory":
            self.end()
        return answer, said

    def _receive(self, deadline: float) -> tuple[bytes, dict[str, Any]]:
        assert self._child is not None and self._child.stdout is not None
        descriptor = self._child.stdout.fileno()
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)

        found = bytearray()
        end = _LENGTHS.size
        while len(found) < end:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                self.end()
                raise Exceeded("took longer than allowed")
            some = os.read(descriptor, PIPE)
            if not some:
                raise Exceeded(self._crash())
            found += some
            if len(found) >= _LENGTHS.size:
                answered, said = _LENGTHS.unpack_from(found)
                end = _LENGTHS.size + said + answered
        answer = end - answered
        return bytes(memoryview(found)[answer:end]), json.loads(found[_LENGTHS.size : answer])

    def _crash(self) -> str:
        assert self._child is not None
        code = self._child.wait()
        self.end()
        if code == -signal.SIGALRM:
            return "took longer than allowed"
        return f"its decoder crashed ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"

    def end(self) -> None:
        """Ends the process, if there is one; the next call starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _send(sink: int, answer: bytes, said: dict[str, Any]) -> None:
    """Writes to a descriptor: the two lengths, what is said, and the bytes."""
    about = json.dumps(said).encode()
    head = _LENGTHS.pack(len(answer), len(about)) + about
    done = os.writev(sink, [head, answer])
    while done < len(head) + len(answer):
        done += os.write(sink, (head[done:] + answer) if done < len(head) else memoryview(answer)[done - len(head) :])


def _serve(function: str, memory: int) -> None:
    """The child: answers until there is nothing more to read."""
    import resource

    source, sink = os.fdopen(os.dup(0), "rb", buffering=PIPE), os.dup(1)
    # Decoders print; what they print is none of the answer.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end of the pipe closes then
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)()
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # where there is no /proc, as on macOS, the kernel does not heed it either
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    _send(sink, b"", {})
    while len(lengths := source.read(_LENGTHS.size)) == _LENGTHS.size:
        size, said = _LENGTHS.unpack(lengths)
        asked = json.loads(source.read(said))
        signal.setitimer(signal.ITIMER_REAL, asked["seconds"] + GRACE)
        try:
            answer, about = work(source.read(size), **asked["options"])
        except MemoryError:
            answer, about = b"", {"fault": "memory"}
        except ValueError as error:
            answer, about = b"", {"fault": str(error) or type(error).__name__}
        except Exception as error:  # one picture that nobody has thought of must not end the others
            answer, about = b"", {"fault": f"unexpected {type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(sink, answer, about)
        del answer


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
