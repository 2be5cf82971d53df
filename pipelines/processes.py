"""A step of a pipeline in several processes of one machine: one for each device, or for each core.

Beam's local runner does one element after the other, and Python's threads take turns; so a machine with eight GPUs, or with
many cores and small models, would stand idle. Here each device gets a process that has the step with that device; elements go
to whoever is free. The runner sees one step like any other: progress, counters and errors are as they would be without.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from pipelines.device import cores
from transforms.errors import UserError
from transforms.store import counters

ATTEMPTS = 2
"""So many processes may die over one element; the second time it isn't chance."""

AHEAD = 2
"""Elements that wait for each process: more would only be held in memory."""


def on_devices(devices: Sequence[str], step: Callable[[str], beam.DoFn]) -> beam.DoFn:
    """A step for one device as it is, for several in a process each.

    Args:
        devices: such as cpu, cuda:1; the same one may stand there several times.
        step: device → the step. Its elements and what comes out can be pickled, and their order means nothing.
    """
    steps = [step(device) for device in devices]
    return steps[0] if len(steps) == 1 else InProcesses(steps, devices)


class InProcesses(beam.DoFn):
    """A step that several processes do at once; they start with the first element and end with the pipeline.

    Args:
        steps: the step, once for each process.
        names: what each process is called if it dies.
    """

    def __init__(self, steps: Sequence[beam.DoFn], names: Sequence[str]):
        self.steps, self.names = tuple(steps), tuple(names)
        self._team: _Team | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_team": None}

    def process(self, element: Any) -> Iterator[Any]:
        if self._team is None:
            self._team = _Team(self.steps, self.names)
        yield from self._guarded(self._team.give(element))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._team is not None:
            for one in self._guarded(self._team.rest()):
                yield WindowedValue(one, GlobalWindow().max_timestamp(), (GlobalWindow(),))

    def teardown(self) -> None:
        team, self._team = self._team, None
        if team is not None:
            team.end()

    def _guarded(self, outputs: Iterator[Any]) -> Iterator[Any]:
        """Ends the processes where one has failed or the user interrupts: nobody would wait for the others."""
        try:
            yield from outputs
        except BaseException:
            self.teardown()
            raise


_NO_MORE = object()


class _Team:
    """The processes, each with a thread that hands it elements."""

    def __init__(self, steps: Sequence[beam.DoFn], names: Sequence[str]):
        self._wanted: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._open = 0
        threads = max(1, cores() // len(steps))
        self._members = [_Member(step, name, threads) for step, name in zip(steps, names, strict=True)]
        for member in self._members:
            threading.Thread(target=self._serve, args=(member,), daemon=True).start()

    def _serve(self, member: _Member) -> None:
        while (element := self._wanted.get()) is not _NO_MORE:
            try:
                self._done.put(member.do(element))
            except Exception as error:
                self._done.put(error)

    def give(self, element: Any) -> Iterator[Any]:
        """Hands one element out, and yields what has become of others meanwhile."""
        self._wanted.put(element)
        self._open += 1
        while self._open > AHEAD * len(self._members) or not self._done.empty():
            yield from self._next()

    def rest(self) -> Iterator[Any]:
        """What has become of all that were handed out."""
        while self._open:
            yield from self._next()

    def _next(self) -> list[Any]:
        answer = self._done.get()
        self._open -= 1
        if isinstance(answer, Exception):
            raise answer
        outputs, counted = answer
        for name, number in counted.items():
            counters.count(name, number)
        return outputs

    def end(self) -> None:
        """Ends the processes, whatever they are at."""
        for member in self._members:
            self._wanted.put(_NO_MORE)
            member.end()


class _Member:
    """One process. Where it dies, the element is given to another one."""

    def __init__(self, step: beam.DoFn, name: str, threads: int):
        self._given, self._name, self._threads = pickle.dumps(step), name, threads
        self._running: tuple[multiprocessing.process.BaseProcess, Connection] | None = None
        self._lock, self._ended = threading.Lock(), False

    def do(self, element: Any) -> tuple[list[Any], dict[str, int]]:
        """What the step makes of an element, and what it has counted.

        Raises:
            UserError: the process died, and so did the next one.
            Exception: the step's own.
        """
        code: int | None = None
        for _ in range(ATTEMPTS):
            process, pipe = self._started()
            try:
                pipe.send(element)
                outcome = pipe.recv()
            except (EOFError, OSError):
                process.join()
                code, self._running = process.exitcode, None
            else:
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome
        raise UserError(
            f"the process for {self._name} ended {ATTEMPTS} times over the same piece of work ({_how(code)}); make room in "
            "memory, or name fewer devices, and start the command again: it goes on where it was"
        )

    def _started(self) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        with self._lock:
            if self._ended:
                raise InterruptedError("the processes are being ended")  # nobody waits for it any more
            if self._running is None:
                # Not by fork: torch and CUDA don't outlive it, and a thread may hold a lock.
                context = multiprocessing.get_context("spawn")
                pipe, its_own = context.Pipe()
                process = context.Process(target=_serve, args=(its_own, self._given, self._threads), daemon=True)
                process.start()
                its_own.close()
                self._running = process, pipe
            return self._running

    def end(self) -> None:
        """Ends the process, and sees to it that no other one starts."""
        with self._lock:
            self._ended, running = True, self._running
        if running is not None:
            running[0].kill()
            running[0].join()


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return "out of memory, or killed" if code == -signal.SIGKILL else signal.Signals(-code).name


def _serve(pipe: Connection, given: bytes, threads: int) -> None:
    """The process: does what it is given until there is nothing more to read, or nobody who would."""
    # Control-C reaches all processes of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported, which reads them then
        os.environ[name] = str(threads)
    counted = counters.keep()
    step = pickle.loads(given)
    step.setup()
    with contextlib.suppress(EOFError, OSError):
        while True:
            element = pipe.recv()
            counted.clear()
            outcome: Any
            try:
                outcome = (list(step.process(element) or ()), collections.Counter(counted))
            except Exception as error:
                outcome = _sendable(error)
            pipe.send(outcome)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The error, or what it says where it can't be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
