"""What the faults came to: ``make faults`` makes ``docs/reliability.md`` of it.

python -m tests.faults.report
"""

from __future__ import annotations

import json
import os
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "build" / "faults"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"

HEAD = """# Reliability

What was done to small lakes, and what came of it. Made by `make faults`, which runs all of `tests/faults`; do not edit.
`make test` runs a sample of each kind. How it is held: [architecture.md](architecture.md), "What stays, and what is believed".

| what was done | times | what came of it | times |
|---|---|---|---|
"""


def tried(what: str, times: int, outcome: str, came: int) -> None:
    """Notes what a test has tried, where all is tried. ``came``: in how many of the ``times`` the outcome was so."""
    if os.environ.get("EIDETIC_FAULTS") == "all":
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = "".join(letter if letter.isalnum() else "_" for letter in f"{what} {outcome}")
        (RESULTS / f"{name}.json").write_text(json.dumps([what, times, outcome, came]))


def page() -> str:
    """The page, of what was noted."""
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return HEAD + "".join(f"| {what} | {times} | {outcome} | {came} |\n" for what, times, outcome, came in rows)


if __name__ == "__main__":
    PAGE.write_text(page())
