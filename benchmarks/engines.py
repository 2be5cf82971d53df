"""What engines cost beside the work: the audit of a fifth of the embedded corpus on Flink and Spark, beside the local runner.

    python -m tests.engines.install flink spark
    python -m benchmarks.engines

As root, since each cluster has two workers on machines of their own (``tests.engines.clusters``). All read and write one disk,
so that no object store is timed with them. The local runner has as many processes as they have workers. An engine's overhead of
a stage is its seconds less the local runner's; below zero it is faster. The server's first job, which begins what all have, is
timed by itself: it counts three numbers.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import Row, write
from demo import corpus, serve
from tests.engines import clusters, network
from tests.portable import unpacked_wheel
from tests.servers import free_port
from transforms.store.lake import Lake

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "demo" / "models"
SCALE = 0.2
WORKERS = 2
STAGES = ("ingest", "embed", "deduplicate", "generate", "match", "measure")

COUNT = """
import sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
with beam.Pipeline(options=PipelineOptions(sys.argv[1:])) as pipeline:
    pipeline | beam.Create([1, 2, 3]) | beam.Reshuffle() | beam.CombineGlobally(sum)
"""


def audit(site: Path, lake: Lake, *words: str) -> dict[str, float]:
    """Stage → seconds."""
    places = [f"--lake={lake.root}", f"--config={ROOT}/demo/demo.toml", f"--metadata={site}/metadata.parquet",
              f"--controls={site}/controls.parquet", f"--model={MODELS}/generator", f"--clip_model={MODELS}/clip"]  # fmt: skip
    subprocess.run([sys.executable, "-m", "pipelines.cli", "audit", *places, *words], check=True, stdout=subprocess.DEVNULL)
    return {stage: lake.latest(stage).facts["seconds"] for stage in STAGES}


def first_job(words: list[str]) -> float:
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", COUNT, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - begun


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as place, network.bridge():
        folder, port = Path(place), free_port()
        site, hidden = folder / "site", folder / "hidden"
        hidden.mkdir()

        def new(name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

        corpus.build(site, f"http://{network.HOST}:{port}", SCALE)
        wheel = unpacked_wheel(new)
        with serve.serving(site, port, network.HOST):
            local = audit(site, Lake(str(folder / "local")), "--device=cpu,cpu", f"--processes={WORKERS}")
            print(f"local: {local}", file=sys.stderr)
            for name in ("flink", "spark"):
                with clusters.ENGINES[name](new(name), wheel, hidden) as engine:
                    first = first_job(engine.words)
                    took = audit(site, Lake(str(folder / f"{name}_lake")), "--device=cpu", *engine.words)
                print(f"{name}: first {first:.1f} s, {took}", file=sys.stderr)
                rows.append(Row(f"the first job of a server of {name.capitalize()}: three numbers", first, "s", 10.0))
                for stage in STAGES:
                    what = (
                        f"{name.capitalize()}, two workers, {stage} of a fifth of the embedded default: seconds over the local"
                    )
                    rows.append(Row(f"{what} runner's {local[stage]:.1f}", took[stage] - local[stage], "s", 10.0))
    write("engines", rows)


if __name__ == "__main__":
    main()
