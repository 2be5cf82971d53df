"""What generation costs beside other work on the machine: its own CPU seconds, and not those of the others.

    python -m benchmarks.beside

The peer is the same process on a quiet machine. Beside it run four processes that compute without end; of each the cheapest of
its turns counts. Threads that wait for one another by spinning, as OpenMP's do where ``transforms/__init__.py`` says nothing,
fail here: of two threads on busy cores one is always waited for.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.results import Row, write

BUSY = 4
PROMPTS = 6
TURNS = 2


@contextlib.contextmanager
def others(number: int) -> Iterator[None]:
    """So many processes that compute."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def once() -> float:
    """CPU seconds of this process for the images of some prompts, with filter and files; the model is loaded before."""
    from benchmarks.generate import AUDIT, options, prompts, store
    from pipelines.generate import generator
    from transforms.attacks.attempts import GeneratorHandler, groups_of
    from transforms.store.lake import Lake

    asked = options()
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(folder)
        lake.create()
        handler = GeneratorHandler(lake, AUDIT, generator(asked, "cpu"), asked.filter, asked.seed, store(lake))
        model = handler.load_model()
        groups = list(groups_of(prompts(asked)[:PROMPTS], model.batch_size))
        begun = time.process_time()
        list(handler.run_inference(groups, model))
        return time.process_time() - begun


def measured(number: int) -> float:
    """CPU seconds of a process of its own, beside so many others."""
    with others(number):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.beside", "--once"], check=True, stdout=subprocess.PIPE, text=True
        )
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="only generate, and print the CPU seconds")
    if parser.parse_args().once:
        print(once())
        return
    quiet, busy = [], []
    for _ in range(TURNS):
        quiet.append(measured(0))
        busy.append(measured(BUSY))
    write(
        "beside",
        [
            Row(
                f"generate beside {BUSY} busy processes: its own CPU seconds",
                min(busy),
                "s",
                goal=1.5,
                peer="the same on a quiet machine",
                peer_value=min(quiet),
            )
        ],
    )


if __name__ == "__main__":
    main()
