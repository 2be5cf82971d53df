"""What the threads of a worker have together: read or made once, where each would else have its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from apache_beam.utils import shared

Value = TypeVar("Value")


class Shared(Generic[Value]):
    """Something that all copies of a step in one process share. Belongs to the step, travels with it, and is told apart by
    that: what another step shares is another thing.

    Args:
        make: what makes it, in the first thread that asks; the others wait. Must be picklable, as the step is.
    """

    def __init__(self, make: Callable[[], Value]):
        self._make, self._handle = make, shared.Shared()
        self._held: _Held[Value] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def get(self) -> Value:
        """The one thing."""
        if self._held is None:
            # Beam forgets what no one holds.
            self._held = self._handle.acquire(lambda: _Held(self._make()))
        return self._held.value


class _Held(Generic[Value]):
    """Beam's handles hold nothing but what can be referred to weakly: not a tuple, for example."""

    def __init__(self, value: Value):
        self.value = value
