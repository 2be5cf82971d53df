"""How a stage runs: skip what is complete, run Beam with progress in sight, write the manifest.

A stage's module says what its snapshot is and builds its Beam pipelines; this module is the only one that starts a runner.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import logging
import os
import platform
import re
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    StandardOptions,
)
from apache_beam.transforms import userstate

from pipelines import engines
from pipelines.device import DeviceOptions
from pipelines.stages import Planned
from transforms.errors import TemplateWritten, UserError, fault_of_the_machine
from transforms.models.devices import cores
from transforms.models.processes import InProcesses
from transforms.store.counters import NAMESPACE
from transforms.store.files import exists
from transforms.store.lake import Lake, Manifest
from transforms.store.schema import TABLES
from transforms.store.texts import shown

PACKAGES = ("apache-beam", "torch", "open-clip-torch", "faiss-cpu", "pyarrow", "duckdb", "img2dataset", "diffusers")


class BeamOptions(PipelineOptions):
    """Beam's options, each view of which is made once. Views share their values, so one is as good as another; but Beam asks
    for one at every step that it builds, some seventy times a pipeline, and makes a parser of arguments each time."""

    def view_as(self, cls: type[PipelineOptions]) -> Any:
        views = self.__dict__.setdefault("views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "views"}


def inspect_steps_once() -> None:
    """Beam asks each step which state and timers its methods take, four times and more a pipeline, by the signatures of all of
    them: an eighth of a small pipeline's time. They are those of its class."""
    inspect = userstate.get_dofn_specs
    if inspect.__module__ != userstate.__name__:
        return

    known: dict[type, tuple[set[userstate.StateSpec], set[userstate.TimerSpec]]] = {}

    def inspect_once(dofn: beam.DoFn) -> tuple[set[userstate.StateSpec], set[userstate.TimerSpec]]:
        if any(isinstance(value, types.MethodType) for value in vars(dofn).values()):
            return inspect(dofn)
        kind = type(dofn)
        if kind not in known:
            known[kind] = inspect(dofn)
        return known[kind]

    userstate.get_dofn_specs = inspect_once


inspect_steps_once()


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where and how the pipelines run.

    Attributes:
        lake: what they read and write.
        beam_args: Beam's own options, as the user gave them.
        verbose: show Beam's log and leave out the progress line.
        processes: how many share a step without a model.
        device: where the models run.
    """

    lake: Lake
    beam_args: list[str]
    verbose: bool = False
    processes: int = 1
    device: DeviceOptions = DeviceOptions()  # noqa: RUF009  (it is frozen)

    def spread(self, step: beam.DoFn) -> beam.DoFn:
        """A step without a model, shared by the processes. Elements and outputs can be pickled; their order means nothing."""
        if self.processes == 1:
            return step
        return InProcesses(
            [step] * self.processes, [f"{number} of {self.processes}" for number in range(1, self.processes + 1)]
        )

    def run(self, build: Callable[[beam.Pipeline], Any], progress: Progress | None = None) -> None:
        """Builds one pipeline and runs it to its end.

        Raises:
            UserError: if a step raised one.
            KeyboardInterrupt: if a step that ran in this process was interrupted.
            TemplateWritten: if Beam's options ask for a Dataflow template.
            RuntimeError: if the job did not end well.
        """
        quiet_beam(self.verbose)
        options = BeamOptions(self.beam_args)
        service = options.view_as(PortableOptions)
        engines.check(options.view_as(StandardOptions).runner, service.job_endpoint)
        # Every DoFn lives in an importable module, so nothing of the main session need travel.
        options.view_as(SetupOptions).save_main_session = False
        template = options.view_as(GoogleCloudOptions).template_location
        try:
            pipeline = beam.Pipeline(runner=None if self._names_runner() else "FnApiRunner", options=options)
        except ValueError as error:
            self._raise_not_started(error)
            raise
        build(pipeline)
        with progress or Progress("", lambda: 0, 0, "", silent=True):
            try:
                try:
                    result = pipeline.run()
                except Exception as error:
                    self._raise_not_started(error)
                    raise
                if template:
                    raise TemplateWritten(template)
                state = result.wait_until_finish()
            except grpc.RpcError as error:
                raise UserError(engines.lost(service.job_endpoint, error)) from error
            except Exception as error:
                raise_user_error(error)
                if (meaning := engines.meaning(str(error), service.environment_config)) is not None and self._names_runner():
                    raise UserError(meaning) from error
                raise
        if state not in (None, "DONE"):
            raise RuntimeError(f"the Beam job ended in state {state}; see the runner's own log")
        if self.verbose:
            for name, value in counted(result):
                say(f"  {name:<40} {value:,}")

    def _raise_not_started(self, error: Exception) -> None:
        """UserError where a runner of another process couldn't take the job. Before it has, no step can have failed."""
        name = self.runner
        needs = engines.NEEDS.get(name.lower())
        if needs is not None and not isinstance(error, UserError):
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"--runner {name} did not take the job ({reason}); it needs {needs}") from error

    @property
    def runner(self) -> str:
        """Name of the runner, without its package."""
        name = PipelineOptions(self.beam_args).view_as(StandardOptions).runner if self._names_runner() else None
        return (name or "FnApiRunner").rsplit(".", 1)[-1]

    def _names_runner(self) -> bool:
        # Without a --runner, Beam's DirectRunner would first try to download another runner (Prism) and so behave
        # differently with a network and without one. FnApiRunner is what it falls back to.
        return any(word == "--runner" or word.startswith("--runner=") for word in self.beam_args)

    def stage(self, planned: Planned, work: Callable[[], dict[str, Any] | None]) -> Manifest:
        """Does ``work`` unless the snapshot is complete already; returns its manifest, now the latest of the stage.

        ``work`` writes the tables and returns facts for the manifest. It may find parts that an earlier, interrupted run left
        behind, and does only what is missing.
        """
        self.lake.create()
        done = self.lake.manifest(planned.stage, planned.snapshot_id)
        if done is not None:
            say(f"{planned.stage:<12} complete ({_rows(done)})")
            return self.lake.ask_for(done)
        if exists(self.lake.manifest_path(planned.stage, planned.snapshot_id)):  # and it is damaged
            self.lake.begin_anew(planned.stage, planned.snapshot_id)
        begun = time.monotonic()
        # What an earlier try has left is not timed.
        tables = [table.name for table in TABLES.values() if table.stage == planned.stage]
        whole = not any(self.lake.own(table, planned.snapshot_id) for table in tables)
        facts = work() or {}
        facts |= {"seconds": round(time.monotonic() - begun, 2), "from_the_start": whole, "runner": self.runner}
        facts |= {"devices": self.device.all_of_them(), "cores": cores(), "versions": versions(), "machine": machine()}
        manifest = self.lake.complete(planned.stage, planned.snapshot_id, planned.parameters, planned.upstream, facts)
        say(f"{planned.stage:<12} done in {facts['seconds']:.0f} s ({_rows(manifest)})")
        return manifest


def _rows(manifest: Manifest) -> str:
    tables = manifest.rows or manifest.facts.get("marts", {})
    return ", ".join(f"{table} {rows:,}" for table, rows in tables.items())


def raise_user_error(error: BaseException) -> None:
    """Raises the UserError that is inside a runner's error, or the interruption, if there is one.

    In-process runners keep the type and add the step's name to the text; the others send the remote traceback as text,
    whose last line is the error.
    """
    step = " [while running "
    if isinstance(error, UserError):
        raise UserError(str(error).split(step)[0]) from error
    text = str(error)
    if (said := _user_error_in(text)) is not None:
        raise UserError(said.split(step)[0].strip().splitlines()[0]) from error
    # Control-C reaches the step that is running, and Beam makes an error of it.
    if text.startswith(f"{KeyboardInterrupt.__name__}{step}"):
        raise KeyboardInterrupt from error


def _user_error_in(text: str) -> str | None:
    """What the last UserError says in a text that quotes one."""
    found = re.split(r"transforms\.errors\.(?:UserError|Damaged): ", text)
    return found[-1] if found[1:] else None


def counted(result: Any) -> list[tuple[str, int]]:
    """What the steps of a finished job have counted, by name; nothing where the runner keeps no counters."""
    try:
        counters = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    except (NotImplementedError, ValueError):
        return []
    sums: collections.Counter[str] = collections.Counter()
    for one in counters:
        sums[one.key.metric.name] += one.committed if one.committed is not None else one.attempted
    return sorted(sums.items())


def versions() -> dict[str, str]:
    """The packages that shape the results, with their versions."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def quiet_beam(verbose: bool) -> None:
    """Keeps the log of Beam and of the libraries below it out of the way, unless ``verbose``."""
    logging.basicConfig()
    logging.getLogger().setLevel(logging.INFO if verbose else logging.ERROR)
    if not verbose and not isinstance(threading.excepthook, _WithoutLostEngines):
        threading.excepthook = _WithoutLostEngines(threading.excepthook)
    steps = logging.getLogger("apache_beam.runners.common")
    if verbose:
        steps.removeFilter(_not_a_users_mistake)
    else:
        steps.addFilter(_not_a_users_mistake)


class _WithoutLostEngines:
    """Says what a thread ended with as was done before, but for the one that reads an engine's messages: an engine that is
    gone is told in one line."""

    def __init__(self, before: Callable[[threading.ExceptHookArgs], object]):
        self.before = before

    def __call__(self, failed: threading.ExceptHookArgs) -> None:
        if not isinstance(failed.exc_value, grpc.RpcError):
            self.before(failed)


def _not_a_users_mistake(record: logging.LogRecord) -> bool:
    """False for what is said in one line when the pipeline ends: a UserError of a step, or a fault of the machine."""
    error = None if record.exc_info is None else record.exc_info[1]
    if error is None:
        return True
    return not isinstance(error, UserError) and _user_error_in(str(error)) is None and fault_of_the_machine(error) is None


# -- what the user sees ---------------------------------------------------------------------------------------------

# img2dataset points file descriptors 1 and 2 at /dev/null while it resizes a picture, so what is printed meanwhile
# would be lost. Our lines go to a copy of the descriptor that was made before.
_terminal: Any = None


def _stream() -> Any:
    global _terminal
    if _terminal is None:
        try:
            _terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)
        except (OSError, ValueError, AttributeError):  # stderr is not a file (a test captures it)
            return sys.stderr
    return _terminal


def say(text: str) -> None:
    """One line to the user, on stderr: stdout is for results."""
    print(shown(text), file=_stream(), flush=True)


LOOKING_SHARE = 30
"""A progress line waits so many times as long as its last look took."""


class Progress:
    """Shows a stage's progress by counting what has become durable; works on every runner.

    Args:
        stage: its name.
        count: returns the items done so far; called every few seconds from a thread.
        total: items in all; a function where that becomes known on the way (None until then).
        unit: what an item is, in the plural.
        silent: show nothing.
        every: seconds between two looks.
    """

    def __init__(
        self,
        stage: str,
        count: Callable[[], int],
        total: int | Callable[[], int | None],
        unit: str,
        silent: bool = False,
        every: float = 2.0,
    ):
        self.stage, self.count, self.unit = stage, count, unit
        self.total = total if callable(total) else lambda: total
        self.silent, self.every = silent, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        if not self.silent:
            self._begun, self._first = time.monotonic(), self.count()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.silent:
            self._stop.set()
            self._thread.join()
            if _stream().isatty():
                print("\r\x1b[K", end="", file=_stream(), flush=True)

    def line(self, done: int, seconds: float) -> str:
        """What is shown ``seconds`` after the start: stage, items done of all, rate, time left."""
        rate = (done - self._first) / seconds if seconds > 0 else 0.0
        total = self.total()
        if total is None:
            return f"{self.stage:<12} getting ready"
        left = f"{(total - done) / rate:,.0f} s left" if rate > 0 else "time left unknown"
        share = 100 * done / total if total else 100
        return f"{self.stage:<12} {done:,} of {total:,} {self.unit} ({share:.0f}%), {rate:,.1f}/s, {left}"

    def _watch(self) -> None:
        terminal = _stream().isatty()
        waits = 0
        shown = -1
        pause = self.every
        while not self._stop.wait(pause):
            waits += 1
            begun = time.monotonic()
            done = self.count()
            # Where counting takes long (350,000 files in a bucket), it's done seldom.
            pause = max(self.every, LOOKING_SHARE * (time.monotonic() - begun))
            # On a terminal one line is rewritten; elsewhere (a log, CI) a line is written when something has moved.
            if terminal or (done != shown and waits % 5 == 0):
                shown = done
                line = self.line(done, time.monotonic() - self._begun)
                print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=_stream(), flush=True)
