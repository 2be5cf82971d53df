"""The audit of the embedded default: how long it takes, again when all is complete, and beside a plain loop.

    python -m benchmarks.audit

The peer of generation is the same model called in a loop, with the same prompts, seeds, batches and steps and nothing else: no
Beam, no clique test, no tables. ``benchmarks/generate.py`` has bare diffusers as its peer.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from benchmarks.results import Row, write
from transforms.models.base import Wanted
from transforms.models.diffusion import DiffusersGenerator
from transforms.store.identity import seed
from transforms.store.lake import Lake


def timed(*words: str) -> float:
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "pipelines.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def plain_loop(lake: Lake) -> float:
    """Seconds that diffusers alone needs for the same images."""
    from pathlib import Path

    manifest = lake.latest("generate")
    parameters = manifest.parameters
    generator = DiffusersGenerator(
        model=str(Path(__file__).resolve().parent.parent / "demo" / "models" / "generator"),
        steps=parameters["steps"],
        guidance_scale=parameters["guidance_scale"],
        batch_size=manifest.facts["batch_size"],
        device="cpu",
        dtype=parameters["dtype"],
    )
    begun = time.monotonic()
    generator.load()
    wanted = [
        Wanted(
            prompt["text"],
            {index: seed(parameters["seed"], prompt["prompt_id"], index) for index in range(prompt["images_requested"])},
        )
        for prompt in lake.read("prompts", manifest.snapshot_id).to_pylist()
    ]
    for _ in generator.generate(wanted):
        pass
    return time.monotonic() - begun


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = ("demo", f"--lake={folder}/lake", f"--site={folder}/site")
        first = timed(*words)
        again = timed(*words)
        lake = Lake(f"{folder}/lake")
        stage = lake.latest("generate").facts["seconds"]
        loop = plain_loop(lake)
    write(
        "audit",
        [
            Row("audit of the embedded default, after the install", first, "s", goal=480),
            Row("the same again, everything complete", again, "s", goal=15),
            Row("generate, with filter and tables", stage, "s", goal=1.25, peer="diffusers in a plain loop", peer_value=loop),
        ],
    )


if __name__ == "__main__":
    main()
