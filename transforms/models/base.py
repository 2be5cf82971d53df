"""What makes images from prompts, behind one interface.

Another way to get at a model's images is one more class with the methods of ``Generator``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt to make an image: (H, W, 3) uint8, or None with a status and a reason."""

    image: np.ndarray | None
    status: str
    reason: str | None
    seconds: float


class Wanted(NamedTuple):
    """Some generations of one prompt.

    Attributes:
        text: the prompt.
        seeds: number of the generation → its seed; None where no seed makes it, but it lies finished.
    """

    text: str
    seeds: dict[int, int | None]


def failed(error: Exception, seconds: float) -> Attempt:
    """An attempt that ended in ``error``, of which the first line is the reason."""
    lines = str(error).strip().splitlines()
    return Attempt(None, "failed", f"{type(error).__name__}: {lines[0] if lines else 'no text'}", seconds)


class Generator(Protocol):
    """Makes images. Instances are small and pickle; what is heavy is loaded by ``load``, once per process.

    Attributes:
        kind: which class it is, as it stands in the tables.
        model: what makes the images, or where they lie.
        batch_size: images that are made at once; prompts are best asked for in groups that fill whole batches.
    """

    kind: str
    model: str

    @property
    def batch_size(self) -> int: ...

    def on(self, device: str) -> Generator:
        """The same on another device; itself where it needs none."""

    def revision(self) -> str:
        """Names the model's exact weights, or the generations' exact content. UserError where it isn't there."""

    def load(self) -> None:
        """Gets ready on this process. UserError where the device or a part of the model is missing."""

    def generate(self, wanted: Sequence[Wanted]) -> Iterator[dict[int, Attempt]]:
        """The attempts of each prompt by their numbers, in the order of the prompts, each prompt as soon as it is done.

        A picture is the same, but for rounding, whatever else is wanted. An expected fault is an attempt with a status, not an
        exception, and so is a prompt that the model can't take: that is a fact about this prompt, not about those beside it.
        A number without an attempt is one that can't be had: finished generations are as many as they are.
        """

    def describe(self) -> dict[str, Any]:
        """Columns of ``generations``: steps, guidance_scale, device, dtype; None where it doesn't apply."""
