"""The report in a real browser: Debian's Chromium, driven by Playwright, with an eye on everything that a page may do."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here; apt-get install chromium")


@dataclasses.dataclass
class Opened:
    """A page that was loaded, and whatever it tried on the way: dialogs, requests beside its own file, complaints."""

    page: Any
    tried: list[str]


@contextlib.contextmanager
def opened(path: Path | str, **context: Any) -> Iterator[Opened]:
    """Opens a file in a new Chromium; ``context`` goes to Playwright (color_scheme, java_script_enabled, viewport, …)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(**context).new_page()
        tried: list[str] = []
        url = Path(path).absolute().as_uri()

        def dismiss(dialog: Any) -> None:
            tried.append(f"dialog {dialog.message}")
            dialog.dismiss()

        def request(request: Any) -> None:
            # The pictures are in the page: data URLs go nowhere.
            if request.url.split("#")[0] != url and not request.url.startswith("data:image/webp;base64,"):
                tried.append(f"request {request.url[:200]}")

        page.on("dialog", dismiss)
        page.on("request", request)
        page.on("popup", lambda popup: tried.append(f"popup {popup.url[:200]}"))
        page.on("pageerror", lambda error: tried.append(f"error {error}"))
        page.on("console", lambda message: tried.append(f"console {message.type} {message.text[:200]}"))
        page.goto(url, wait_until="load")
        yield Opened(page, tried)
        browser.close()


def serious_violations(page: Any) -> list[str]:
    """What axe finds that is serious or critical, a line each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{violation['id']} ({violation['impact']}): {node['html'][:200]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"][:3]
    ]
