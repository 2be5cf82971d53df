"""What an audit takes: worker-hours and money by stage, from rates that were measured and prices that the user knows.

A rate is measured in this lake, by an earlier run of the same stage, or else by a benchmark (``rates.json``, which
``benchmarks/results.py`` makes). Where there is neither, the hours of that stage are unknown, and the plan says what to do.
No price is known here: those are the user's (``--prices``), and without them the plan has hours alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.options import Options, option, read_options

if TYPE_CHECKING:
    from transforms.store.lake import Manifest

HOUR = 3600
MOST_PRICE = 1e6
"""An hour that costs more is a mistake."""

LOCAL_RUNNERS = ("FnApiRunner", "DirectRunner", "PrismRunner")
"""Runners under which the seconds of a stage are those of one machine."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How large an audit is.

    Attributes:
        images: training images.
        controls: pictures that the model never saw.
        prompts: those drawn or listed; captions of controls are prompts beside them.
        generations: images to make of all of these.
        kept: of those the ones that are stored and judged.
    """

    images: int
    controls: int
    prompts: int
    generations: int
    kept: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """A piece of work of a stage, and the time that it takes.

    Attributes:
        work: what is done.
        items: how many of them.
        unit: what they are, in the plural.
        seconds: in all, of one core or of one GPU; None where no rate was measured.
        on_gpu: whether they are a GPU's.
        source: where the rate is from; or what to do where there is none.
        beyond: whether the rate was measured at smaller sizes alone, and the line through them is continued to this one.
    """

    work: str
    items: int
    unit: str
    seconds: float | None
    on_gpu: bool
    source: str
    beyond: bool = False


@dataclasses.dataclass(frozen=True)
class Prices(Options):
    """Prices: what an hour costs. Nothing is made up, so whatever is not said has no price."""

    currency: str = option("", "what the prices are in")
    source: str = option("", "where they are from, and when")
    worker_cores: int = option(2, "cores of a worker's machine", least=1)
    worker_hour: float | None = option(
        None, "an hour of a worker's machine, with its memory, disk and service", least=0, most=MOST_PRICE
    )
    gpu_hour: float | None = option(None, "an hour of a GPU, beside the machine that it is in", least=0, most=MOST_PRICE)

    @classmethod
    def read(cls, path: str | None) -> Prices:
        """Those of a TOML file with these names; UserError where it is none."""
        return cls(**read_options(path, (cls,), "--prices")) if path is not None else cls()

    def hours(self, cost: Cost) -> float | None:
        """Of workers; of such with a GPU each where the work is a GPU's."""
        if cost.seconds is None:
            return None
        return cost.seconds / HOUR / (1 if cost.on_gpu else self.worker_cores)

    def money(self, cost: Cost) -> float | None:
        """What the work costs; None where its hours or their price aren't known."""
        hours, price = self.hours(cost), self.worker_hour
        if cost.on_gpu:
            price = None if price is None or self.gpu_hour is None else price + self.gpu_hour
        return None if hours is None or price is None else hours * price


# -- rates ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Line:
    """Seconds of a core by size, measured at two sizes: between them and beyond, the line through both.

    Attributes:
        sizes: the two, in ``unit``; ascending.
        seconds: of a core, at each.
        unit: what a size counts.
        items: how many items each took that the size is not a count of (generations, where the size is that of the training
            set); None where the size is the count.
        source: where it was measured.
    """

    sizes: tuple[int, int]
    seconds: tuple[float, float]
    unit: str
    items: int | None
    source: str

    def cost(self, work: str, size: int, items: int, unit: str) -> Cost:
        """The work at a size."""
        (small, large), (first, last) = self.sizes, self.seconds
        seconds = first + (last - first) * (size - small) / (large - small)
        if size < small:
            # What a start takes would be most of it, and is waited for once a run; a line may even fall under nothing.
            seconds = max(seconds, first * size / small)
        if self.items is not None:
            seconds *= items / self.items
        sizes = f"{small:,} and {large:,}" if small else f"{large:,}"
        return Cost(work, items, unit, seconds, False, f"{self.source}, at {sizes} {self.unit}", size > large)


@functools.cache
def lines() -> dict[str, Line]:
    """Work → its rate by size, as benchmarks measured it."""
    found = json.loads((Path(__file__).resolve().parent / "rates.json").read_text())
    return {
        name: Line(**{**one, "sizes": tuple(one["sizes"]), "seconds": tuple(one["seconds"])}) for name, one in found.items()
    }


def rated(work: str, items: int, unit: str, on_gpu: bool, rate: tuple[float, str] | None, else_do: str) -> Cost:
    """Work whose time grows with its items alone. ``rate``: seconds of an item, and where it was measured; None for unknown."""
    seconds, source = (None, else_do) if rate is None else (items * rate[0], rate[1])
    return Cost(work, items, unit, seconds, on_gpu, source)


def run_of(manifests: Iterable[Manifest], stage: str, count: str, on_gpu: bool | None) -> tuple[float, str] | None:
    """Seconds of an item in the newest of these runs that can tell, and where from; None where none can.

    It can where it was one run from beginning to end, on this kind of device and with a local runner: of a killed one only the
    last try was timed, and how many workers a cluster had is not known.

    Args:
        manifests: of the stage, the newest last.
        stage: its name.
        count: the fact that counts its items.
        on_gpu: whether the stage ran its model on a GPU, and the time is to be one's; None for a stage without a model. Else it
            is a core's.
    """
    for one in reversed(list(manifests)):
        facts, items = one.facts, one.facts.get(count) or one.rows.get(count)
        here = facts.get("runner") in LOCAL_RUNNERS and facts.get("from_the_start") and items
        if here and on_gpu in (None, facts["devices"][0].startswith("cuda")):
            shared = len(facts["devices"]) if on_gpu else facts["cores"]
            source = f"this lake: {stage} {one.snapshot_id}, {items:,} items in {facts['seconds']:,.0f} s, {facts['machine']}"
            return facts["seconds"] * shared / items, f"{source}, {one.finished_at[:10]}"
    return None


# -- what is printed --------------------------------------------------------------------------------------------------


Costs = Sequence[tuple[str, Cost]]
"""(stage, a piece of its work), in order."""


def tables(audits: Sequence[tuple[str, Costs]], prices: Prices) -> str:
    """Hours and money of several (title, costs), a table with sums for each, and notes that say where each rate is from."""
    every = [cost for _, costs in audits for _, cost in costs]
    notes = {source: number for number, source in enumerate(dict.fromkeys(cost.source for cost in every), 1)}
    blocks = [f"{title}:\n{_table(costs, prices, notes)}\n" for title, costs in audits]
    lines = [f"[{number}] {source}" for source, number in notes.items()]
    if any(cost.beyond for cost in every):
        lines.append("beyond: larger than what was measured; the line through the two sizes that were is continued")
    with_gpu = "; with a GPU, of one that has one GPU" if any(cost.on_gpu for cost in every) else ""
    lines.append(f"an hour is one of a worker with {prices.worker_cores} cores{with_gpu}")
    lines.append(_about_prices(prices))
    return "\n".join([*blocks, *lines])


def _about_prices(prices: Prices) -> str:
    """Where the prices are from, or what is missing."""
    missing = [name for name in ("worker_hour", "gpu_hour") if getattr(prices, name) is None]
    if len(missing) == 2:
        return "no prices: name a file with yours by --prices, like deploy/dataflow/prices.toml"
    source = f"prices: {prices.source or 'those of --prices'}"
    return source + (f"; {missing[0]} is missing there, so what needs it has hours alone" if missing else "")


def _table(costs: Costs, prices: Prices, notes: dict[str, int]) -> str:
    rows: list[tuple[str, ...]] = []
    for stage, cost in costs:
        rate = f"[{notes[cost.source]}]{', beyond' if cost.beyond else ''}"
        rows.append((stage, cost.work, f"{cost.items:,} {cost.unit}", *_sums([cost], prices), rate))
    for on_gpu, whose in ((False, "of workers"), (True, "of workers with a GPU")):
        if some := [cost for _, cost in costs if cost.on_gpu == on_gpu]:
            rows.append(("all", whose, "", *_sums(some, prices), ""))
    shown = [("stage", "work", "items", "hours", f"money {prices.currency}".strip(), "rate"), *rows]
    if not any(row[4] for row in rows):
        shown = [(*row[:4], row[5]) for row in shown]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        cells = enumerate(zip(row, widths, strict=True))
        # What is counted stands to the right: items, hours, money.
        lines.append("  ".join(text.rjust(w) if 2 <= n < len(row) - 1 else text.ljust(w) for n, (text, w) in cells).rstrip())
    return "\n".join(lines)


def _sums(costs: Sequence[Cost], prices: Prices) -> tuple[str, str]:
    """Hours and money of some work in words; "" for money where nothing of it is known."""

    def told(values: list[float | None], unknown: str) -> str:
        known = [value for value in values if value is not None]
        if not known:
            return unknown
        return ("at least " if len(known) < len(values) else "") + _number(sum(known))

    return told([prices.hours(one) for one in costs], "unknown"), told([prices.money(one) for one in costs], "")


def _number(value: float) -> str:
    """Two digits after the point where it is small."""
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
