"""What it costs that whatever is written outlasts a power cut: the audit with ``fsync``, and with one that does nothing.

    python -m benchmarks.syncing

Both audits are of a share of the embedded corpus, and take turns; compared is the fastest of each: all else on the machine
only makes them slower. A smaller audit syncs as many files in less time: in a large one the share is less.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

from benchmarks.results import Row, write

TURNS = 3
SCALE = 0.25

WITHOUT = "import os; os.fsync = lambda _: None; from pipelines.cli import script; script()"
WITH = "from pipelines.cli import script; script()"


def seconds(code: str, folder: str, turn: str) -> float:
    """Of one audit, in a process of its own."""
    words = ["demo", f"--lake={folder}/{turn}", f"--site={folder}/site", f"--scale={SCALE}"]
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - begun


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    # On a disk: what lies in memory is synced in no time.
    with tempfile.TemporaryDirectory(dir=".") as folder:
        seconds(WITH, folder, "first")  # makes the corpus, and warms what is cached
        turns = [(seconds(WITH, folder, f"with{n}"), seconds(WITHOUT, folder, f"without{n}")) for n in range(TURNS)]
    synced, plain = (min(times) for times in zip(*turns, strict=True))
    what = f"audit of {SCALE:.0%} of the embedded corpus, every file synced"
    write("syncing", [Row(what, synced, "s", goal=1.05, peer="the same without fsync", peer_value=plain)])


if __name__ == "__main__":
    main()
