"""How forgetting looks at a lake of any size: file by file, on Beam's workers.

A **work** is an object that is called with the path of a file, does something with it and yields rows: small things that JSON
can hold, ids, digests and numbers, and never what was forgotten. ``Workers.each`` has a work done on many files. What the work
knows, and which files, is written to the lake for the workers: a list of samples may be longer than the description of a job
may be. What they answer lies beside it, and goes when it was read. A few small files are worked on at once, where the command
runs: a pipeline takes longer to start, on a cluster by seconds and on Dataflow by minutes, and a forget has some twenty passes.

    work/forget/<run>/<number>/work.pickle      the work, and the paths
    work/forget/<run>/<number>/00000.json       what one task has found: an answer that isn't there is an error, and no silence
"""

from __future__ import annotations

import json
import pickle
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam

from transforms.store.arrays import read_json, write_json
from transforms.store.counters import count
from transforms.store.files import delete, read_bytes, stat, write_bytes
from transforms.store.lake import Lake
from transforms.store.sharing import Shared

Work = Callable[[str], Iterable[Any]]
"""Path → rows. Pickles, is of an importable module, and the threads of a worker share it: a call changes nothing of it."""

MOST_TASKS = 1000
"""Into so many tasks the files are dealt out: as many answers are to be read."""


FEW_FILES = 32
"""So many files at most are worked on where the command runs…"""

FEW_BYTES = 128 << 20
"""…if together they have no more bytes: as much as one worker does while others are only starting."""


class Workers:
    """Has work done on files of a lake; leaves nothing behind when the ``with`` ends.

    Args:
        lake: the lake.
        run: builds a pipeline and runs it to its end: ``Execution.run``.
        few_files: at most so many need no pipeline.
    """

    def __init__(self, lake: Lake, run: Callable[[Callable[[beam.Pipeline], Any]], None], few_files: int = FEW_FILES):
        self.lake, self._run, self._few_files = lake, run, few_files
        self._folder, self._passes = lake.work("forget", uuid.uuid4().hex), 0

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        delete(self._folder)

    def tidy(self) -> None:
        """Removes what runs that were killed have left; nobody else may be at it meanwhile."""
        delete(self.lake.path("work", "forget"))

    def each(self, paths: Iterable[str], work: Work) -> list[Any]:
        """What ``work`` says of these files, in their order: its rows as JSON has them. No pipeline for few files."""
        paths = list(paths)
        if len(paths) <= self._few_files and sum(map(_bytes, paths)) <= FEW_BYTES:
            return json.loads(json.dumps([row for path in paths for row in work(path)]))
        self._passes += 1
        folder = f"{self._folder}/{self._passes:05d}"
        tasks = min(len(paths), MOST_TASKS)
        write_bytes(f"{folder}/work.pickle", pickle.dumps((paths, work)))
        self._run(lambda pipeline: build(pipeline, folder, tasks))
        answers = [answer for task in range(tasks) for answer in read_json(_answers(folder, task))]
        delete(folder)
        return [row for _, row in sorted(answers, key=lambda answer: answer[0])]


def _bytes(path: str) -> int:
    """Of a file; none where it has gone, which the work will say."""
    try:
        return stat(path).size
    except FileNotFoundError:
        return 0


def build(pipeline: beam.Pipeline, folder: str, tasks: int) -> None:
    """The pipeline of one pass, whose work lies in ``folder``."""
    _ = pipeline | "Tasks" >> beam.Create(list(range(tasks))) | "EachFile" >> beam.ParDo(EachFile(folder, tasks))


class EachFile(beam.DoFn):
    """Number of a task → its files are worked on, and what is said of them is written down.

    Tasks are dealt out like cards, so that each has of every table. One that is tried again does what is left to do, and of
    rows that its first try has changed nobody hears.

    Args:
        folder: of the pass.
        tasks: how many there are.
    """

    def __init__(self, folder: str, tasks: int):
        self.folder, self.tasks = folder, tasks
        self._pass: Shared[tuple[list[str], Work]] = Shared(lambda: pickle.loads(read_bytes(f"{folder}/work.pickle")))

    def process(self, task: int) -> None:
        paths, work = self._pass.get()
        mine = range(task, len(paths), self.tasks)
        write_json(_answers(self.folder, task), [(number, row) for number in mine for row in work(paths[number])])
        count("files looked at", len(mine))


def _answers(folder: str, task: int) -> str:
    return f"{folder}/{task:05d}.json"
