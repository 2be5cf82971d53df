"""The embedded text-to-image models by name, and what each was trained on."""

from __future__ import annotations

from pathlib import Path

from demo import corpus, photographs
from demo.corpus import Example

MODELS = Path(__file__).resolve().parent / "models"

NAMES = ("generator", "half_learned", "photographs")
"""Of folders in ``MODELS``."""


def examples(name: str) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Trained pictures, the most repeated first, and controls of an embedded model.

    FileNotFoundError for ``photographs`` where CIFAR-10 isn't there.
    """
    if name == "generator":
        return corpus.examples(*corpus.split())
    if name == "half_learned":
        return corpus.examples(*corpus.half_learned_split())
    if name == "photographs":
        return photographs.split()
    raise ValueError(f"no embedded model is called {name!r}; there are {', '.join(NAMES)}")


def build(name: str, site: Path, base_url: str, scale: float = 1.0) -> None:
    """Writes the corpus of an embedded model as a site: ``corpus.build`` and ``photographs.build`` say what is in it."""
    if name == "photographs":
        photographs.build(site, base_url, scale)
    else:
        corpus.build(site, base_url, scale, plan=name)
