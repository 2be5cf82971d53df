"""What the steps of a stage count: Beam's own counters, which every runner adds up, and ``--verbose`` shows."""

from __future__ import annotations

import collections

from apache_beam.metrics.metric import Metrics

NAMESPACE = "eidetic"

_kept: collections.Counter[str] | None = None


def count(name: str, number: int = 1) -> None:
    """Adds to a counter; to be called inside a step of a pipeline."""
    if _kept is None:
        Metrics.counter(NAMESPACE, name).inc(number)
    else:
        _kept[name] += number


def keep() -> collections.Counter[str]:
    """What this process counts from now on: for one that does a step's work where Beam doesn't hear it."""
    global _kept
    _kept = collections.Counter()
    return _kept
