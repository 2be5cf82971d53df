"""Rows of benchmarks, and the table that is made of them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from pathlib import Path

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
