"""Two processes beside one: the audit of the embedded default with ``--device cpu,cpu`` and with ``--device cpu``.

    python -m benchmarks.devices

On two cores the one process has both for its products; two processes have one each. On a machine of two cores there is nothing
to be won but what threads lose; what must not happen is that it is slower.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from benchmarks.results import Row, write
from transforms.store.lake import Lake


class Took(NamedTuple):
    """Attributes:
    seconds: of the whole audit.
    cpu: seconds of CPU, of all its processes.
    generate, match: seconds of the stages.
    """

    seconds: float
    cpu: float
    generate: float
    match: float


def audit(folder: str, device: str) -> Took:
    words = ["demo", f"--lake={folder}/lake", f"--site={folder}/site", f"--device={device}"]
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "pipelines.cli", *words], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lake = Lake(f"{folder}/lake")
    return Took(seconds, cpu, lake.latest("generate").facts["seconds"], lake.latest("match").facts["seconds"])


def main() -> None:
    took = {}
    for device in ("cpu", "cpu,cpu"):
        with tempfile.TemporaryDirectory() as folder:
            took[device] = audit(folder, device)
    one, two = took["cpu"], took["cpu,cpu"]
    write(
        "devices",
        [
            Row("generate with --device cpu,cpu", two.generate, "s", 1.0, "--device cpu", one.generate),
            Row("match with --device cpu,cpu", two.match, "s", 1.0, "--device cpu", one.match),
            Row("audit with --device cpu,cpu", two.seconds, "s", 1.0, "--device cpu", one.seconds),
            Row("the same audit: CPU of all processes", two.cpu, "s", 1.1, "--device cpu", one.cpu),
        ],
    )


if __name__ == "__main__":
    main()
