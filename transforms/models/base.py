"""What makes images from prompts, behind one interface.

Another way to get at a model's images is one more class with the methods of ``Generator``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt to make an image: (H, W, 3) uint8, or None with a status and a reason."""

    image: np.ndarray | None
    status: str
    reason: str | None
    seconds: float


class Generator(Protocol):
    """Makes images. Instances are small and pickle; what is heavy is loaded by ``load``, once per process."""

    kind: str
    model: str

    def revision(self) -> str:
        """Names the model's exact weights, or the generations' exact content. UserError where it isn't there."""

    def load(self) -> None:
        """Gets ready on this process. UserError where the device or a part of the model is missing."""

    def generate(self, text: str, seeds: list[int]) -> list[Attempt]:
        """One attempt per seed, in order; an expected fault is an attempt with a status, not an exception."""

    def again(self, text: str, seeds: dict[int, int | None]) -> dict[int, Attempt]:
        """Some of a prompt's attempts once more: number of the generation → its seed, None for finished generations."""

    def describe(self) -> dict[str, Any]:
        """Columns of ``generations``: steps, guidance_scale, device, dtype; None where it doesn't apply."""
