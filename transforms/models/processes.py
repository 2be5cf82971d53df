"""Where the models of a pipeline run: on one device as they are, on several of one machine in a process each.

Beam's local runner does one element after the other, and Python's threads take turns; so a machine with eight GPUs, or with
many cores and small models, would stand idle. Here each device gets a process that has the step with that device; elements go
to whoever is free. The runner sees one step like any other: progress, counters and errors are as they would be without.

Processes are kept for the steps that follow: what takes seconds to import is imported once.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import dataclasses
import gc
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import apache_beam as beam
import tqdm
from apache_beam.internal import pickler
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.errors import UserError
from transforms.models.devices import cores
from transforms.store import counters

if TYPE_CHECKING:
    from apache_beam.ml.inference.base import ModelHandler

ATTEMPTS = 2
"""So many processes may die over one element; the second time it isn't chance."""

AHEAD = 2
"""Elements that wait for each process: more would only be held in memory."""

PATIENCE = 5.0
"""Seconds in which a process that has nothing to do ends by itself."""

Spread = Callable[[beam.DoFn], beam.DoFn]
"""How a step without a model is spread over this machine."""


def in_this_process(step: beam.DoFn) -> beam.DoFn:
    """As it is."""
    return step


class Movable(Protocol):
    """A ``ModelHandler`` that knows which device its model runs on."""

    def on(self, device: str) -> ModelHandler:
        """The same on another device."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where the models of a pipeline run.

    Attributes:
        names: such as cpu, cuda:1; the same one may stand there several times. Where there are several, each has a process.
        accelerator: a Beam resource hint for the steps with a model, or None.
    """

    names: tuple[str, ...] = ("cpu",)
    accelerator: str | None = None

    def infer(self, handler: Movable) -> beam.PTransform:
        """Beam's RunInference, or as many processes as there are devices that do the same.

        Args:
            handler: with its model on the first device. Its elements and inferences can be pickled, and their order means
                nothing.
        """
        if len(self.names) > 1:
            return beam.ParDo(self.step(lambda device: Infer(handler.on(device))))
        # Here, since it imports torch, which takes seconds.
        from apache_beam.ml.inference.base import RunInference

        return RunInference(cast("ModelHandler", handler))

    def step(self, on: Callable[[str], beam.DoFn]) -> beam.DoFn:
        """A step for one device as it is, for several in a process each.

        Args:
            on: device → the step. Its elements and what comes out can be pickled, and their order means nothing.
        """
        steps = [on(device) for device in self.names]
        return steps[0] if len(steps) == 1 else InProcesses(steps, self.names)

    def hinted(self, transform: beam.PTransform) -> beam.PTransform:
        """The transform, on workers that have the accelerator."""
        if self.accelerator is None:
            return transform
        return transform.with_resource_hints(accelerator=self.accelerator, min_ram="16GB")


AS_IT_IS = Devices()
"""One device, whichever the model was told; no hint."""


class Infer(beam.DoFn):
    """What RunInference does with an element, as a step that can be had in a process."""

    def __init__(self, handler: Any):
        self.handler = handler

    def setup(self) -> None:
        self._model = self.handler.load_model()

    def process(self, element: Any) -> Iterator[Any]:
        yield from self.handler.run_inference([element], self._model)


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
        self._open += 1
        self._wanted.put(element)
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
        """Gives the processes back, or ends them where they are at something, or something has gone wrong."""
        for member in self._members:
            self._wanted.put(_NO_MORE)
            member.end(idle=not self._open)


class _Member:
    """One process. Where it dies, the element is given to another one."""

    def __init__(self, step: beam.DoFn, name: str, threads: int):
        self._given, self._name, self._threads = pickler.dumps(step), name, threads
        self._process: _Process | None = None
        self._lock, self._ended = threading.Lock(), False

    def do(self, element: Any) -> tuple[list[Any], dict[str, int]]:
        """What the step makes of an element, and what it has counted.

        Raises:
            UserError: the process died, and so did the next one.
            Exception: the step's own.
        """
        code: int | None = None
        for _ in range(ATTEMPTS):
            process, new = self._taken()
            try:
                outcome = process.ask(self._given) if new else None
                if not isinstance(outcome, Exception):
                    outcome = process.ask((element,))
            except (EOFError, OSError):
                code, self._process = process.died(), None
            else:
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome
        raise UserError(
            f"the process for {self._name} ended {ATTEMPTS} times over the same piece of work ({_how(code)}); make room in "
            "memory, or name fewer devices or --processes, and start the command again: it goes on where it was"
        )

    def _taken(self) -> tuple[_Process, bool]:
        """A process, and whether it doesn't have the step yet."""
        with self._lock:
            if self._ended:
                raise InterruptedError("the processes are being ended")  # nobody waits for it any more
            new = self._process is None
            if self._process is None:
                self._process = _Process.take(self._threads)
            return self._process, new

    def end(self, idle: bool) -> None:
        """Gives the process back, or ends it; and sees to it that no other one starts."""
        with self._lock:
            self._ended, process = True, self._process
        if process is not None:
            process.give_back() if idle else process.end()


class _Process:
    """A process that does a step's work: told a step, it gets that ready; given an element, it does it."""

    _idle: ClassVar[list[_Process]] = []
    _lock = threading.Lock()

    @classmethod
    def take(cls, threads: int) -> _Process:
        """One that has nothing to do, or a new one."""
        with cls._lock:
            for process in cls._idle:
                if process._threads == threads and process._process.is_alive():
                    cls._idle.remove(process)
                    return process
        return cls(threads)

    def __init__(self, threads: int):
        # Not by fork: torch and CUDA don't outlive it, and a thread may hold a lock.
        context = multiprocessing.get_context("spawn")
        self._threads = threads
        self._pipe, its_own = context.Pipe()
        self._process = context.Process(target=_serve, args=(its_own, threads), daemon=True)
        self._process.start()
        its_own.close()

    def ask(self, what: bytes | tuple[Any] | None) -> Any:
        """Its answer to a pickled step, to an element, or to None: to forget the step. EOFError, OSError where it has died."""
        self._pipe.send(what)
        return self._pipe.recv()

    def give_back(self) -> None:
        """Has it forget its step, and keeps it for another one."""
        try:
            self.ask(None)
        except (EOFError, OSError):
            self.end()
        else:
            with self._lock:
                self._idle.append(self)

    def end(self) -> None:
        """Ends it, whatever it is at."""
        self._process.kill()
        self._process.join()

    def died(self) -> int | None:
        """Waits for its end, which has come; its exit code."""
        self._process.join()
        return self._process.exitcode

    @classmethod
    def end_idle(cls) -> None:
        """Ends those that are kept."""
        with cls._lock:
            idle, cls._idle = cls._idle, []
        for process in idle:
            process._pipe.close()
        for process in idle:
            process._process.join(PATIENCE)
            process.end()


def end_kept() -> None:
    """Ends the processes that are kept for a next step."""
    _Process.end_idle()


# Before what Python itself does with them, which is to kill them.
atexit.register(end_kept)


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return "out of memory, or killed" if code == -signal.SIGKILL else signal.Signals(-code).name


def _serve(pipe: Connection, threads: int) -> None:
    """The process: does what it is told until there is nothing more to read, or nobody who would."""
    # Control-C reaches all processes of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported, which reads them then
        os.environ[name] = str(threads)
    # Else a progress bar would make one for all processes, which whatever is killed leaves behind.
    tqdm.tqdm.set_lock(threading.RLock())
    counted = counters.keep()
    step: Any = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            told = pipe.recv()
            counted.clear()
            outcome: Any = None
            try:
                if isinstance(told, tuple):
                    outcome = (list(step.process(*told) or ()), collections.Counter(counted))
                else:
                    step = None
                    _tidy()
                    if told is not None:
                        step = pickler.loads(told)
                        step.setup()
            except Exception as error:
                outcome = _sendable(error)
            pipe.send(outcome)
    # Not by the interpreter's own end: threads of Arrow or gRPC that come to life in it would abort it.
    os._exit(0)


def _tidy() -> None:
    """Frees what the step before held, on the device too."""
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
