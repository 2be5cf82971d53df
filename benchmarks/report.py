"""The report of a hostile lake of 5,000 extractions: how long Chromium takes to open it, and how large it is.

    python -m benchmarks.report

Opened is when the page is loaded and painted. Chromium is Debian's; a new one is started for every look. The pictures
are noise, which fills the page as far as it may be filled.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.results import Row, write
from tests.browser import opened
from tests.hostile import hostile_lake
from transforms.results import marts, report

EXTRACTIONS = 5000
LOOKS = 5

OPENED = """() => Math.max(
    performance.getEntriesByType('navigation')[0].loadEventEnd,
    ...performance.getEntriesByType('paint').map((paint) => paint.startTime))"""
"""Milliseconds from the start of the navigation to the end of the load event and the first paints, whichever is last."""


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)


def seconds_to_open(path: Path) -> float:
    with opened(path, viewport={"width": 1280, "height": 900}) as browser:
        browser.page.wait_for_function("() => performance.getEntriesByType('paint').length == 2")
        return browser.page.evaluate(OPENED) / 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fake = hostile_lake(f"{folder}/lake", EXTRACTIONS, draw=noise)
        marts.run(fake.lake, fake.match, "measured")
        page = Path(folder) / "report.html"
        page.write_bytes(report.render(fake.lake, fake.match, "measured", 1000))
        size = page.stat().st_size
        slowest = max(seconds_to_open(page) for _ in range(LOOKS))
    what = f"report of {EXTRACTIONS:,} hostile extractions"
    write(
        "report",
        [
            Row(f"{what}, opened in Chromium, the slowest of {LOOKS}", slowest, "s", goal=2.0),
            Row(f"{what}, size", size / 1e6, "MB", goal=5.0),
        ],
    )


if __name__ == "__main__":
    main()
