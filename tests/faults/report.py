"""What the faults came to: ``make faults`` makes ``docs/reliability.md`` of it.

python -m tests.faults.report
"""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "build" / "faults"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"

HEAD = """# Reliability

What was done to small lakes, and what came of it each time. Made by `make faults`, of all of `tests/faults`; do not edit.
`make test` runs a sample of each kind. How it is held: [architecture.md](architecture.md), "What stays, and what is believed".

| what was done | what came of it | times |
|---|---|---|
"""


def tried(what: str, times: int, outcome: str, part: object = "") -> None:
    """Notes what a test has tried and seen, where all is tried. ``part``: of what several tests do in turn."""
    if os.environ.get("EIDETIC_FAULTS") == "all":
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = "".join(letter if letter.isalnum() else "_" for letter in f"{what} {outcome} {part}")
        (RESULTS / f"{name}.json").write_text(json.dumps([what, outcome, times]))


def page() -> str:
    """The page, of what was noted."""
    rows: collections.Counter[tuple[str, str]] = collections.Counter()
    for path in sorted(RESULTS.glob("*.json")):
        what, outcome, times = json.loads(path.read_text())
        rows[what, outcome] += times
    return HEAD + "".join(f"| {what} | {outcome} | {times} |\n" for (what, outcome), times in rows.items())


if __name__ == "__main__":
    PAGE.write_text(page())
