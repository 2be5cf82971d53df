"""Captions and URLs that attack whoever shows them, and lakes that are full of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fakes import FakeLake, fake_lake

CAPTIONS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)' x='",
    "</style></title></textarea><script>alert(1)</script>",
    "<!-- a comment that never ends",
    "&lt;script&gt; &amp;amp; &#x3c;b&#x3e;",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "word " * 2000,
    "x" * 10_000,
    "مرحبا بالعالم, שלום",
    "turned \u202e around \u2066 and hidden\u200b",
    "control \x00\x07\x1b[31m\x7f\x9b characters",
    "two\nlines\tand a tab",
    "family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "]]> <![CDATA[ <svg onload=alert(1)>",
    "</script><script>document.title = 'gone'</script>",
    "<img src='https://evil.example/x.png' onerror='document.title = \"gone\"'>",
    '<a href="javascript:alert(1)">javascript:alert(1)</a>',
    "<base href=https://evil.example/><link rel=stylesheet href=//evil.example/x.css>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe><object data=https://evil.example/></object>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<form action=https://evil.example/><button autofocus onfocus=alert(1)>",
]

URLS = [
    "https://example.org/a.png?x=1&y='2'",
    "HTTP://Example.org/b.png",
    "javascript:alert(1)",
    "JaVaScript:alert(1)//http://example.org",
    "java\nscript:alert(1)",
    " javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "file:///etc/passwd",
    "//example.org/c.png",
    "http://[::1",
    'https://example.org/"><script>alert(1)</script>',
    None,
    "",
]


def copies(root: Path | str, captions: Sequence[str | None], **knobs: Any) -> FakeLake:
    """A lake where every caption gives back its picture; ``knobs`` are those of ``fake_lake``."""
    return fake_lake(root, sizes=(1,) * len(captions), captions=captions, behaviours=("copy",), **knobs)


def hostile_lake(root: Path | str, count: int, **knobs: Any) -> FakeLake:
    """A lake of ``count`` extractions, every caption and most URLs an attack."""
    captions = [f"{CAPTIONS[number % len(CAPTIONS)]} {number}" for number in range(count)]
    urls = [URLS[number % len(URLS)] for number in range(count)]
    return copies(root, captions, urls=urls, controls=0, images_per_prompt=1, max_prompts=count, **knobs)
