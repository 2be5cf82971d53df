"""Rows of benchmarks, and the table that is made of them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

RATES = Path(__file__).resolve().parent.parent / "pipelines" / "rates.json"
FOLDER = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure beside its peer.

    Attributes:
        what: what was measured.
        value: its figure, in ``unit``.
        peer: what it is compared with, "" for a bare goal.
        peer_value: the peer's figure, in ``unit``, from the same run.
        goal: for ``ratio`` (value over peer_value) where there is a peer, else for ``value``: at most this.
    """

    what: str
    value: float
    unit: str
    goal: float
    peer: str = ""
    peer_value: float | None = None


def write(name: str, rows: list[Row]) -> None:
    """Writes ``benchmarks/results/<name>.json`` and the page of all results. A goal that was missed stays in."""
    written = []
    for row in rows:
        ratio = None if row.peer_value is None else row.value / row.peer_value
        written.append(
            {
                **dataclasses.asdict(row),
                "value": round(row.value, 4),
                "peer_value": None if row.peer_value is None else round(row.peer_value, 4),
                "ratio": None if ratio is None else round(ratio, 3),
                "met": (row.value if ratio is None else ratio) <= row.goal,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
                "date": datetime.date.today().isoformat(),
            }
        )
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(written, indent=2) + "\n")
    write_page()
    RATES.write_text(json.dumps(rates(), indent=2) + "\n")


TIMED = {
    "ingest": ("rates", "ingest of 3,000 pictures of 256 × 256 from loopback", (500, 3_000), "rows", None),
    "embed": ("rates", "embed of 160 pictures by ViT-B-32 on the CPU", (32, 160), "images", None),
    "deduplicate": ("duplicates_at_size", "time for 1,000,000 vectors", (100_000, 1_000_000), "vectors", None),
    "index": ("matching", "index of 1,000,000 images, by deduplicate: time", (0, 1_000_000), "images", None),
    "match": ("matching", "match: time at 1,000,000 images", (100_000, 1_000_000), "images", 2_000),
    "measure": ("marts", "all marts and checks, 10,000,000 generations: growth", (1_000_000, 10_000_000), "generations", None),
}
"""Work that ``eidetic audit --plan`` tells the hours of → file and row of its time, the two sizes at which it was taken (the
peer's value is that of the small one), in which unit, and how many items it was for where the size is not their count."""


def rates() -> dict[str, dict[str, Any]]:
    """What ``pipelines/costs.py`` reads: core-seconds at two sizes, by work."""
    made = {}
    for work, (name, what, sizes, unit, items) in TIMED.items():
        (row,) = [one for one in json.loads((FOLDER / f"{name}.json").read_text()) if one["what"] == what]
        cores = int(re.search(r"(\d+) cores", row["machine"])[1])
        seconds = {"s": 1, "min": 60}[row["unit"]] * cores
        first = 0.0 if row["peer_value"] is None else row["peer_value"]
        made[work] = {
            "sizes": sizes,
            "seconds": [round(value * seconds, 4) for value in (first, row["value"])],
            "unit": unit,
            "items": items,
            "source": f"benchmarks/results/{name}.json, {what!r}, {row['machine']}, {row['date']}",
        }
    return made


def write_page() -> None:
    """Makes ``docs/benchmarks.md`` from the files in ``benchmarks/results``."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench` from `benchmarks/results/*.json`; do not edit. A goal holds for the ratio where there is a peer, "
        "measured in the same run, and for the value otherwise.",
        "",
        "| what | value | peer | peer's value | ratio | goal | met | machine | date |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(FOLDER.glob("*.json")):
        for row in json.loads(path.read_text()):
            peer = "" if row["peer_value"] is None else f"{row['peer_value']:g} {row['unit']}"
            ratio = "" if row["ratio"] is None else f"{row['ratio']:g}"
            lines.append(
                f"| {row['what']} | {row['value']:g} {row['unit']} | {row['peer']} | {peer} | {ratio} | ≤ {row['goal']:g} | "
                f"{'yes' if row['met'] else '**no**'} | {row['machine']} | {row['date']} |"
            )
    PAGE.write_text("\n".join(lines) + "\n")
