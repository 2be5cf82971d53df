"""Memory of ``ingest``, ``embed`` and ``deduplicate`` at 20,000 and at 100,000 images.

    python -m benchmarks.memory

CIFAR-10's 50,000 photographs (in the folder that EIDETIC_SHARED names, as in the tests), enlarged to 256 × 256, from nginx on
loopback (Debian's nginx-light): the first 20,000, and all of them under two urls each. The resident memory of every process is
looked at four times a second; the largest of any one process counts.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.ingest import nginx
from benchmarks.results import Row, write
from benchmarks.vectors import PHOTOGRAPHS
from tests.servers import free_port
from transforms.store.lake import Lake

CLIP = Path(__file__).resolve().parent.parent / "demo" / "models" / "clip"
FEW, PICTURES, MANY = 20_000, 50_000, 100_000
GIB = 1 << 20
"""Of the kibibytes that the system tells."""


def make_photographs(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, content in enumerate(pq.read_table(PHOTOGRAPHS, columns=["jpeg"])["jpeg"]):
        picture = Image.open(io.BytesIO(content.as_py())).resize((256, 256), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpeg", quality=90)


def resident(session: int) -> dict[int, int]:
    """Process of a session → the most KiB that were resident."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # Behind the name in brackets: state, parent, group, session.
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                found[int(folder.name)] = int(re.search(r"VmHWM:\s+(\d+)", (folder / "status").read_text())[1])
        except (OSError, TypeError):
            continue  # it has ended, or has no memory any more
    return found


def peak(words: list[str]) -> float:
    """GiB of the largest process of a verb."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *words], stdout=subprocess.DEVNULL, start_new_session=True
    )
    most = 0
    while process.poll() is None:
        most = max([most, *resident(process.pid).values()])
        time.sleep(0.25)
    if process.returncode != 0:
        sys.exit(f"{words[0]} ended with {process.returncode}: its memory says nothing")
    return most / GIB


def peaks(folder: Path, address: str, rows: int) -> dict[str, float]:
    """Stage → GiB, in a new lake of so many images."""
    urls = [f"{address}/pictures/{number % PICTURES}.jpeg?{number // PICTURES}" for number in range(rows)]
    metadata, lake = folder / f"{rows}.parquet", Lake(str(folder / f"lake{rows}"))
    pq.write_table(pa.table({"URL": urls, "TEXT": [f"picture {number}" for number in range(rows)]}), metadata)
    cores = os.cpu_count()
    verbs = {
        "ingest": [f"--metadata={metadata}", "--allow_private_hosts", "--image_size=256", f"--processes={cores}"],
        "embed": [f"--clip_model={CLIP}", "--clip_pretrained=", "--device=cpu"],
        "deduplicate": ["--duplicate_threshold=0.985", f"--processes={cores}"],
    }
    found = {}
    for verb, options in verbs.items():
        begun = time.monotonic()
        found[verb] = peak([verb, f"--lake={lake.root}", *options])
        print(f"{rows:,} images, {verb}: {found[verb]:.2f} GiB, {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if lake.latest("embed").facts["status"] != {"success": rows}:
        sys.exit(f"not all were embedded ({lake.latest('embed').facts['status']}): the memory says nothing")
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        folder, port = Path(place), free_port()
        make_photographs(folder / "site" / "pictures")
        with nginx(folder / "site", port):
            few, many = (peaks(folder, f"http://127.0.0.1:{port}", rows) for rows in (FEW, MANY))
    rows = []
    for verb in many:
        rows.append(Row(f"{verb} of {MANY:,} images: peak memory of a process", many[verb], "GiB", 4.0))
        rows.append(Row(f"{verb}: peak memory at {MANY:,} images", many[verb], "GiB", 1.1, f"at {FEW:,}", few[verb]))
    write("memory", rows)


if __name__ == "__main__":
    main()
