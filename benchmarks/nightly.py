"""A night with nothing new, on the embedded default: the second of two, with the same model and the same metadata.

python -m benchmarks.nightly
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import Row, write
from demo import corpus
from demo.serve import serving
from tests.servers import free_port

DEMO = Path(__file__).resolve().parent.parent / "demo"
BUDGET = 2200
"""Images: enough for two halves with all controls in each, and some prompts."""


def night(date: str, site: Path, lake: Path) -> float:
    words = [
        "nightly", f"--date={date}", f"--lake={lake}", f"--config={DEMO}/demo.toml", f"--metadata={site}/metadata.parquet",
        f"--controls={site}/controls.parquet", f"--model={DEMO}/models/generator", f"--clip_model={DEMO}/models/clip",
        f"--budget={BUDGET}",
    ]  # fmt: skip
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "pipelines.cli", *words], check=True)
    return time.monotonic() - begun


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, port = Path(place), free_port()
        corpus.build(folder / "site", f"http://127.0.0.1:{port}", 1.0)
        with serving(folder / "site", port):
            night("2026-01-01", folder / "site", folder / "lake")
            seconds = night("2026-01-02", folder / "site", folder / "lake")
    write("nightly", [Row("a night with nothing new, embedded default", seconds, "s", 15)])


if __name__ == "__main__":
    main()
