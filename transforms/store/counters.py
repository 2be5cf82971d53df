"""What the steps of a stage count: Beam's own counters, which every runner adds up, and ``--verbose`` shows."""

from __future__ import annotations

from apache_beam.metrics.metric import Metrics

NAMESPACE = "eidetic"


def count(name: str, number: int = 1) -> None:
    """Adds to a counter; to be called inside a step of a pipeline."""
    Metrics.counter(NAMESPACE, name).inc(number)
