"""The audit of the embedded default: how long it takes, again when all is complete, and beside a plain loop.

    python -m benchmarks.audit

The peer of generation is diffusers' pipeline with the same model, called in a loop with the same prompts, seeds, batches and
steps and nothing else: no Beam, no clique test, no tables, and nothing of ours. The peer of the audit are its own
kernels: the time in which at least one thread downloads, looks through a model, or compares pictures or vectors. What is left
holds them together: imports, Beam, SQL, files, the report.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import Row, write
from transforms.store.identity import seed
from transforms.store.lake import Lake

KERNELS = (
    "transforms.data.sources:fetch_http",
    "img2dataset.resizer:Resizer.__call__",
    "transforms.models.clip:OpenClipEncoder.prepare",
    "transforms.models.clip:OpenClipEncoder.encode_prepared",
    "transforms.duplicates.search:QueryBlock._known",
    "transforms.duplicates.compare:ComparePieces._compare",
    "transforms.duplicates.groups:MeasureRecall._sampled",
    "transforms.models.diffusion:DiffusersGenerator._batch",
    "transforms.attacks.attempts:judge",
    "transforms.matching.candidates:search",
    "transforms.matching.comparison:Matcher.compare",
    "transforms.matching.comparison:Matcher.rows",
    "transforms.matching.eidetic_counts:possible",
    "transforms.matching.eidetic_counts:is_near",
)
"""module:name of what an audit is made for."""


class Clock:
    """Seconds in which at least one thread is inside of something."""

    def __init__(self) -> None:
        self.seconds, self._inside, self._since, self._lock = 0.0, 0, 0.0, threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._since = time.monotonic()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self.seconds += time.monotonic() - self._since

    def watch(self, place: str) -> None:
        """From now on a function is timed, wherever it is called."""
        module, _, name = place.partition(":")
        *path, last = name.split(".")
        holder = functools.reduce(getattr, path, importlib.import_module(module))
        function: Callable[..., Any] = getattr(holder, last)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return function(*args, **kwargs)

        setattr(holder, last, timed)


def watched(folder: str) -> dict[str, float]:
    """The seconds of an audit without the making of its corpus, and of its kernels."""
    from pipelines.cli import run_verb
    from pipelines.demo import main as demo

    whole, kernels = Clock(), Clock()
    whole.watch("pipelines.audit:run_parsed")
    for place in KERNELS:
        kernels.watch(place)
    # In this process, where the kernels can be watched.
    if run_verb(demo, [f"--lake={folder}/lake", f"--site={folder}/site", "--device=cpu"]) != 0:
        raise SystemExit("the audit failed")
    return {"whole": whole.seconds, "kernels": kernels.seconds}


def timed(*words: str) -> float:
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "pipelines.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def plain_loop(lake: Lake) -> float:
    """Seconds that diffusers alone needs for the same images: its pipeline, loaded and called by hand."""
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    manifest = lake.latest("generate")
    parameters, size = manifest.parameters, manifest.facts["batch_size"]
    begun = time.monotonic()
    pipeline = StableDiffusionPipeline.from_pretrained(
        Path(__file__).resolve().parent.parent / "demo" / "models" / "generator", dtype=getattr(torch, parameters["dtype"])
    )
    pipeline.set_progress_bar_config(disable=True)
    asked = [
        (prompt["text"], seed(parameters["seed"], prompt["prompt_id"], index))
        for prompt in lake.read("prompts", manifest.snapshot_id).to_pylist()
        for index in range(prompt["images_requested"])
    ]
    for start in range(0, len(asked), size):
        batch = asked[start : start + size]
        pipeline(
            prompt=[text for text, _ in batch],
            generator=[torch.Generator("cpu").manual_seed(number) for _, number in batch],
            num_inference_steps=parameters["steps"],
            guidance_scale=parameters["guidance_scale"],
            output_type="np",
        )
    return time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watched", metavar="FOLDER", help="only audit there, and print what its kernels took")
    arguments = parser.parse_args()
    if arguments.watched:
        print(json.dumps(watched(arguments.watched)))
        return
    with tempfile.TemporaryDirectory() as folder:
        words = ("demo", f"--lake={folder}/lake", f"--site={folder}/site")
        first = timed(*words)
        again = timed(*words)
        lake = Lake(f"{folder}/lake")
        stage = lake.latest("generate").facts["seconds"]
        loop = plain_loop(lake)
        words = ("-m", "benchmarks.audit", f"--watched={folder}/watched")
        done = subprocess.run([sys.executable, *words], check=True, stdout=subprocess.PIPE, text=True)
        parts = json.loads(done.stdout.splitlines()[-1])
    write(
        "audit",
        [
            Row("audit of the embedded default, after the install", first, "s", goal=120),
            Row("the same again, everything complete", again, "s", goal=15),
            Row("generate, with filter and tables", stage, "s", goal=1.25, peer="diffusers in a plain loop", peer_value=loop),
            Row("audit without the making of its corpus", parts["whole"], "s", 1.25, "its kernels alone", parts["kernels"]),
        ],
    )


if __name__ == "__main__":
    main()
