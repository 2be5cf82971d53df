"""The report of a sweep: one HTML file that needs nothing else, without a script.

Names of experiments are a stranger's text: the template escapes everything, and the content security policy allows the one
style, by its digest, and no connection. Charts are SVG; each says below itself in words what it shows, with intervals.
"""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from transforms.kernels.effects import Estimate, mean_interval, rank_correlation
from transforms.kernels.rates import blaker_interval
from transforms.results import report, sweeps
from transforms.results.report import PAGE_BYTES, clean, percent, quoted
from transforms.store.files import open_parquet, read_parquet
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage
from transforms.store.pictures import DamagedPicture, decode_array
from transforms.store.schema import AXES
from transforms.store.tombstones import Tombstones

FILES = ("sweep.html.j2", "report.css", "sweep.css")
"""What the page is made of, beside the lake."""

MOST_FALSE = 0.01
"""Share of controls that the rule may call which words go by."""

RULE_NAMES = {"adaptive_l2": "the paper's rule", "ratio": "ratio", "l2": "l2"}
COLOURS = {"adaptive_l2": "paper", "ratio": "copied", "l2": "seen"}
"""Rule → class of the style."""

REPLICATES = ("seed", "draw", "split", "side")
"""Axes that only say which pictures and which random numbers."""

ALIKE = {"images": ("pool",)}
"""Axis → others that may grow with it."""

MOST_PANELS = 6
MOST_CURVES = 9
MOST_ROWS = 60
"""Of a table; the rest is left to a query."""

NAME_LETTERS = 60


def digest_of_template() -> str:
    """Another template or style makes another report."""
    return digest("template", [report.file_text(name) for name in FILES])


def rows_of(lake: Lake, table: str, snapshot: str) -> list[dict[str, Any]]:
    """The rows of a mart, or of a table that has one a model; none where it isn't there."""
    return [row for path in lake.parts(table, snapshot) for row in read_parquet(path).to_pylist()]


def share(value: float | None) -> str:
    """A share for the terminal."""
    return "-" if value is None else f"{value:.1%}"


class Experiment(NamedTuple):
    """One experiment of a sweep's file, at the end of its trainings.

    Attributes:
        name: as the file has it.
        trainings: how many; asked: those that were asked for pictures.
        extracted: rule → mean share of training pictures that came back.
        controls: rule → mean share of as many pictures that the models never saw, which it calls.
        frechet: mean.
    """

    name: str
    trainings: int
    asked: int
    extracted: dict[str, float | None]
    controls: dict[str, float | None]
    frechet: float | None


def experiments(leakage: Sequence[dict[str, Any]]) -> list[Experiment]:
    """The experiments by rows of ``leakage``, in the order of their names."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in leakage:
        for name in row["experiments"] if row["last"] else ():
            by_name.setdefault(name, []).append(row)
    return [
        Experiment(
            clean(name)[:NAME_LETTERS],
            len(rows),
            sum(row["pictures_made"] is not None for row in rows),
            {rule: _mean(row[f"extracted_by_{rule}_share"] for row in rows) for rule in sweeps.RULES},
            {rule: _mean(row[f"controls_by_{rule}_share"] for row in rows) for rule in sweeps.RULES},
            _mean(row["frechet"] for row in rows),
        )
        for name, rows in sorted(by_name.items())
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def render(lake: Lake, taken: Mapping[str, Manifest], snapshot: str, most_pictures: int) -> bytes:
    """The report of one sweep.

    Args:
        lake: the lake; the small pictures of its models must be there.
        taken: stage → manifest, of what the marts were made of.
        snapshot: of ``compare``, whose marts were just written.
        most_pictures: pictures that came back which are shown, each model's clearest first; a quarter as many controls.

    Returns:
        the page, UTF-8, under ``PAGE_BYTES``.
    """
    rows = functools.partial(rows_of, lake, snapshot=snapshot)
    leakage = rows("leakage")
    ends = [row for row in leakage if row["last"] and row["pictures_made"]]
    attacks = rows_of(lake, "untargeted_attacks", taken["extract"].snapshot_id)
    # Of what was brought nobody knows the axes.
    trained = [row for row in ends if row["brought"] is None]
    varied = varying(trained)
    effects = rows("leakage_effects")
    rule = trusted(ends)
    figures = [figure for name in _ordered(varied) if (figure := axis_figure(name, trained, varied, effects, rule)).panels]
    environment = report._environment()
    environment.filters.update(points=points, plain=plain)
    template = environment.get_template("sweep.html.j2")

    def page(style: str, cards: Sequence[Card], controls: Sequence[Card]) -> bytes:
        text = template.render(
            style=style,
            style_hash=report._content_hash(style),
            train=taken["train"],
            attack=attacks[0] if attacks else None,
            asked=[clean(text) for text in _asked(taken)],
            headline=Answer.of_models(ends, rule),
            rule=rule,
            rule_name=RULE_NAMES[rule],
            most_false=MOST_FALSE,
            statuses=_statuses(leakage),
            trainings=len({row["run_id"] for row in leakage}),
            varied=[(name, _levels([row for row in leakage if row["brought"] is None], name)) for name in varied],
            experiments=experiments(leakage),
            rules=[(one, RULE_NAMES[one], COLOURS[one]) for one in sweeps.RULES],
            calls=[rule_calls(ends, one) for one in sweeps.RULES],
            figures=figures,
            copies=copies_figure(rows("leakage_by_copies"), rule),
            curves=curves_figure(leakage, rows("onset_slopes"), rule),
            quality=quality_figure(ends, rule),
            gans=gans_figure(rows("diffusion_and_gans"), rule),
            largest=_briefly([row for row in rows("largest_memorised") if row["rule"] == rule]),
            halves=Halves.of(rows("disjoint_halves"), rule),
            first=first_words(rows("memorised_first"), rule),
            agreement=[row for row in rows("rule_agreement") if row["cohort"] is None],
            roc=roc_figure(rows("membership_roc"), rows("membership")),
            inpainting=[row for row in rows("inpainting") if row["scope"] == "cohort"],
            most_rows=MOST_ROWS,
            cards=cards,
            controls=controls,
            lake=quoted(lake.root),
        )
        return text.encode("utf-8", "replace")

    style = report.file_text("report.css") + report.file_text("sweep.css")
    cards = shown_pictures(lake, taken, ends, "", most_pictures)
    controls = shown_pictures(lake, taken, ends, "control_", -(-most_pictures // 4))
    while True:
        content = page(style + "".join(card.style for card in (*cards, *controls)), cards, controls)
        if len(content) < PAGE_BYTES or not (cards or controls):
            return content
        cards, controls = cards[: len(cards) * 3 // 4], controls[: len(controls) * 3 // 4]


def varying(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The axes that differ between these models; how many of a training are kept is none."""
    return [name for name in AXES if name != "checkpoints" and len({row[name] for row in rows}) > 1]


def _asked(taken: Mapping[str, Manifest]) -> list[str]:
    """What was asked of the models, in words."""
    parameters = taken["extract"].parameters
    said = [f"extract {taken['extract'].snapshot_id}"]
    said += [f"{stage} {manifest.snapshot_id}" for stage, manifest in taken.items() if stage not in ("train", "extract")]
    return said + [f"{name} = {parameters[name]}" for name in ("sampler", "sampling_steps") if name in parameters]


def _statuses(leakage: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    return [
        (status, sum(row["status"] == status for row in leakage))
        for status in ("success", "diverged", "failed", "forgotten")
        if any(row["status"] == status for row in leakage)
    ]


def _levels(rows: Sequence[dict[str, Any]], name: str) -> str:
    levels = sorted({row[name] for row in rows}, key=_order)
    return ", ".join(map(plain, levels[:12])) + (f" and {len(levels) - 12} more" if len(levels) > 12 else "")


def _order(value: Any) -> tuple[int, float, str]:
    return (1, 0.0, value) if isinstance(value, str) else (0, float(value), "")


def _ordered(varied: Sequence[str]) -> list[str]:
    first = [name for name in ("images", "copies", "width", "steps", "epochs") if name in varied]
    return first + [name for name in varied if name not in first and name not in REPLICATES]


# -- words and numbers ------------------------------------------------------------------------------------------------


def plain(value: Any) -> str:
    """A level of an axis."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return {"true": "yes", "false": "no"}.get(clean(value), clean(value))


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "–" if value is None else f"{100 * value:+.1f}"


def interval(estimate: Estimate, form: Callable[[float | None], str]) -> str:
    """A number and its interval, in words."""
    if estimate.lower is None:
        return f"{form(estimate.value)} (no interval)"
    return f"{form(estimate.value)} (95% interval {form(estimate.lower)} to {form(estimate.upper)})"


def _ends(row: Mapping[str, Any], name: str) -> Estimate:
    """A column with its interval's."""
    return Estimate(row[name], row[f"{name}_lower"], row[f"{name}_upper"])


class Answer(NamedTuple):
    """Models at the end of their training that gave something back by a rule, of how many; pictures, model by model,
    of how many; controls that were called, of how many.
    """

    models: int
    of: int
    extracted: int
    pictures: int
    called: int
    controls: int

    @classmethod
    def of_models(cls, ends: Sequence[dict[str, Any]], rule: str) -> Answer:
        return cls(
            sum(row[f"extracted_by_{rule}"] > 0 for row in ends),
            len(ends),
            sum(row[f"extracted_by_{rule}"] for row in ends),
            sum(row["pictures"] for row in ends),
            sum(row[f"controls_by_{rule}"] for row in ends),
            sum(row["controls"] for row in ends),
        )


def trusted(ends: Sequence[dict[str, Any]]) -> str:
    """The rule that words go by: of those that call at most ``MOST_FALSE`` of the controls the one that calls the most training
    pictures, in doubt the paper's; where none is so strict, the one that calls the fewest controls.
    """
    calls = {rule: rule_calls(ends, rule) for rule in sweeps.RULES}
    strict = [rule for rule in sweeps.RULES if (calls[rule]["controls"]["rate"] or 0) <= MOST_FALSE]
    if strict:
        return max(strict, key=lambda rule: calls[rule]["members"]["called"])
    return min(sweeps.RULES, key=lambda rule: calls[rule]["controls"]["called"])


def rule_calls(ends: Sequence[dict[str, Any]], rule: str) -> dict[str, Any]:
    """What one rule calls of members and of controls, over all models at the end of their training."""
    found: dict[str, Any] = {"name": RULE_NAMES[rule], "colour": COLOURS[rule]}
    for name, column, of in (("members", "extracted", "pictures"), ("controls", "controls", "controls")):
        called, total = sum(row[f"{column}_by_{rule}"] for row in ends), sum(row[of] for row in ends)
        lower, upper = blaker_interval(called, total)
        found[name] = {"called": called, "of": total, "rate": called / total if total else None, "lower": lower, "upper": upper}
    return found


# -- charts: panels of one size ----------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 320, 220, 44, 10, 42, 26


class Mark(NamedTuple):
    """A value with its interval, in SVG units; the ends are None without one."""

    x: float
    y: float
    lower: float | None
    upper: float | None


class Series(NamedTuple):
    """Marks of one colour, joined by a line where there is one."""

    colour: str
    marks: list[Mark]
    line: str


class Chart(NamedTuple):
    """One chart: its title, what its axis is, labels below it, what it shows, and lines across with their labels."""

    title: str
    label: str
    ticks: list[tuple[float, str]]
    series: list[Series]
    grid: Sequence[tuple[float, str]] = ()


class Figure(NamedTuple):
    """Charts with one meaning: name, panels, sentences that say what they show, rows of a table, and how many panels had no
    room.
    """

    name: str
    panels: list[Chart]
    words: list[str]
    rows: list[dict[str, Any]]
    left_out: int = 0


def _up(value: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.0, max(0.0, value))), 1)


SHARES = [(_up(value), f"{value:.0%}") for value in (0.0, 0.5, 1.0)]
"""The lines across a chart of shares."""


def _along(position: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * position, 1)


def scale(values: Sequence[Any]) -> Callable[[Any], float]:
    """Value → where it stands between the ends of a chart: in logarithms where numbers are over 0 and reach over a factor of
    four, evenly by rank where they are texts or few.
    """
    known = sorted(set(values), key=_order)
    if len(known) < 2:
        return lambda _: 0.5
    numbers = not any(isinstance(value, str | bool) for value in known)
    if not numbers or known[0] <= 0 or known[-1] < 4 * known[0]:
        return lambda value: 0.06 + 0.88 * known.index(value) / (len(known) - 1)
    low, high = math.log(known[0]), math.log(known[-1])
    return lambda value: 0.06 + 0.88 * (math.log(value) - low) / (high - low)


def ticks(values: Sequence[Any], place: Callable[[Any], float], most: int = 6) -> list[tuple[float, str]]:
    """Labels below a chart, as far as they don't run into one another."""
    known = sorted(set(values), key=_order)
    every = -(-len(known) // most)
    return [(_along(place(value)), plain(value)) for value in known[::every]]


def share_over(rows: Sequence[dict[str, Any]], rule: str, column: str = "extracted", of: str = "pictures") -> Estimate:
    """A mean share over trainings, with Student's t interval over them; with one, or where all are the same, Blaker's of the
    counts.
    """
    found = mean_interval([row[f"{column}_by_{rule}_share"] for row in rows])
    if found.lower is None or found.upper is None:
        called, total = sum(row[f"{column}_by_{rule}"] for row in rows), sum(row[of] for row in rows)
        return Estimate(found.value, *blaker_interval(called, total))
    return Estimate(found.value, max(0.0, found.lower), min(1.0, found.upper))


def _panel(title: str, label: str, by_level: Mapping[Any, Sequence[dict[str, Any]]], place: Callable[[Any], float]) -> Chart:
    """Shares of the three rules against levels."""
    series = []
    for shift, rule in zip((-5, 0, 5), sweeps.RULES, strict=True):
        marks = []
        for level in sorted(by_level, key=_order):
            found = share_over(by_level[level], rule)
            if found.value is None:
                continue
            ends = (None, None) if found.lower is None or found.upper is None else (_up(found.lower), _up(found.upper))
            marks.append(Mark(_along(place(level)) + shift, _up(found.value), *ends))
        series.append(Series(COLOURS[rule], marks, " ".join(f"{mark.x},{mark.y}" for mark in marks)))
    return Chart(title, label, ticks(list(by_level), place), series, SHARES)


def _bound(by_level: Mapping[Any, Sequence[dict[str, Any]]], place: Callable[[Any], float]) -> Series:
    """What can be expected back of a model that gives back nothing else: it is asked for so many pictures alone."""
    known = [(level, _mean(row["reachable_share"] for row in by_level[level])) for level in sorted(by_level, key=_order)]
    return Series("bound", [], " ".join(f"{_along(place(level))},{_up(value)}" for level, value in known if value is not None))


def _settings(ends: Sequence[dict[str, Any]], varied: Sequence[str], without: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """How the other axes are, in words → the models of that."""
    others = [name for name in varied if name not in without and name not in REPLICATES]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in ends:
        found.setdefault(", ".join(f"{name} {plain(row[name])}" for name in others), []).append(row)
    return found


def axis_figure(
    name: str, ends: Sequence[dict[str, Any]], varied: Sequence[str], effects: Sequence[dict[str, Any]], rule: str
) -> Figure:
    """The share that comes back against the levels of one axis, a panel for each setting of the other axes."""
    place = scale([row[name] for row in ends])
    panels: list[tuple[int, Chart]] = []
    for setting, rows in _settings(ends, varied, (name, *ALIKE.get(name, ()))).items():
        by_level: dict[Any, list[dict[str, Any]]] = {}
        for row in rows:
            by_level.setdefault(row[name], []).append(row)
        if len(by_level) > 1:
            panel = _panel(_short(setting, ends, varied), name, by_level, place)
            if name == "images":
                panel = panel._replace(series=[_bound(by_level, place), *panel.series])
            panels.append((len(rows) + 10 * len(by_level), panel))
    panels.sort(key=lambda pair: -pair[0])
    mine = [row for row in effects if row["setting"] == "all" and name in row["axis"].split(", ")]
    table = _effect_rows(mine, rule)
    words = [
        f"{name} = {plain(row['level'])} against {plain(row['reference'])}: the share of training pictures that comes back by "
        f"{RULE_NAMES[rule]} differs by {interval(_ends(row, 'effect'), points)} "
        f"percentage points; {row['pairs']} {'pair' if row['pairs'] == 1 else 'pairs'}, {row['replicates']} "
        f"{'replicate' if row['replicates'] == 1 else 'replicates'}."
        for row in table
        if row["axis"] == name
    ]
    return Figure(name, [panel for _, panel in panels[:MOST_PANELS]], words[:6], table, max(0, len(panels) - MOST_PANELS))


def _short(setting: str, ends: Sequence[dict[str, Any]], varied: Sequence[str]) -> str:
    """Of a setting what isn't the commonest level: the base of a sweep need not be said in every title."""
    common = {}
    for name in varied:
        values = [plain(row[name]) for row in ends]
        common[name] = max(sorted(set(values)), key=values.count)
    parts = [part for part in setting.split(", ") if part and part != f"{part.split(' ')[0]} {common.get(part.split(' ')[0])}"]
    return ", ".join(parts) or "the base"


def _briefly(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose settings say what differs between them alone."""
    parts = [row["setting"].split(", ") for row in rows]
    shared = set.intersection(*map(set, parts)) if parts else set()
    return [
        {**row, "setting": ", ".join(one for one in some if one not in shared)} for row, some in zip(rows, parts, strict=True)
    ]


def _effect_rows(effects: Sequence[dict[str, Any]], rule: str) -> list[dict[str, Any]]:
    """Rows of ``leakage_effects`` on what comes back by a rule, each with the effect on quality beside."""
    quality = {(row["axis"], row["level"]): row for row in effects if row["measure"] == "frechet"}
    leaks = [row for row in effects if row["measure"] == f"extracted_by_{rule}_share"]
    return [{**row, "frechet": quality.get((row["axis"], row["level"]))} for row in leaks]


def copies_figure(rows: Sequence[dict[str, Any]], rule: str) -> Figure:
    """The share that comes back against the number of copies, over models at the end of their training."""
    ends = [row for row in rows if row["last"]]
    panels, words = [], []
    for kind, title in (("picture", "pictures"), ("canary", "canaries (uniform noise)")):
        by_copies: dict[int, list[dict[str, Any]]] = {}
        for row in ends:
            if row["kind"] == kind:
                by_copies.setdefault(row["copies"], []).append(row)
        if len(by_copies) > 1:
            panels.append(_panel(title, "copies in the training set", by_copies, scale(list(by_copies))))
        for copies in sorted(by_copies) if len(by_copies) > 1 else ():
            found = share_over(by_copies[copies], rule)
            words.append(f"{title}, {copies} {'copy' if copies == 1 else 'copies'}: {interval(found, percent)}.")
    return Figure("copies", panels, words, [])


def curves_figure(leakage: Sequence[dict[str, Any]], slopes: Sequence[dict[str, Any]], rule: str) -> Figure:
    """The share that comes back while models learn, a panel for each cohort of which several steps were kept."""
    cohorts: dict[str, list[dict[str, Any]]] = {}
    for row in leakage:
        if row["pictures_made"]:
            cohorts.setdefault(row["cohort"], []).append(row)
    many = {cohort: rows for cohort, rows in cohorts.items() if len({row["step"] for row in rows}) > 1}
    varied = varying([row for rows in many.values() for row in rows])
    steps = [row["step"] for rows in many.values() for row in rows]
    panels = []
    for rows in sorted(
        many.values(), key=lambda some: (-len({row["step"] for row in some}), some[0]["images"], some[0]["width"])
    ):
        by_step: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            by_step.setdefault(row["step"], []).append(row)
        (setting,) = list(_settings(rows[:1], varied, ()))
        panels.append(_panel(_short(setting, [row for some in many.values() for row in some], varied), "training step", by_step,
                             scale(steps)))  # fmt: skip
    words = [
        f"The step at which {row['reaches']:.0%} of the {row['counted']} are reached by {RULE_NAMES[rule]} goes with "
        f"{row['axis']} to the power {interval(_ends(row, 'slope'), lambda value: f'{value:.2f}')}; "
        f"{row['trainings'] - row['never'] - row['at_once']} of {row['trainings']} trainings say so, {row['never']} never "
        f"reach it, {row['at_once']} have at their first step; both are left out."
        for row in slopes
        if row["rule"] == rule and row["slope"] is not None
    ]
    return Figure("steps", panels[:MOST_CURVES], words, [], max(0, len(panels) - MOST_CURVES))


def quality_figure(ends: Sequence[dict[str, Any]], rule: str) -> Figure:
    """What comes back by a rule against quality: a point is a model at the end of its training."""
    known = [row for row in ends if row["frechet"] is not None and row["frechet"] > 0]
    if len({row["frechet"] for row in known}) < 2:
        return Figure("quality", [], [], [])
    place = scale([row["frechet"] for row in known])
    low, high = min(row["frechet"] for row in known), max(row["frechet"] for row in known)
    logarithmic = high >= 4 * low
    at = place if logarithmic else lambda value: 0.06 + 0.88 * (value - low) / (high - low)
    series, words = [], []
    for family, colour in (("diffusion", "paper"), ("gan", "copied")):
        mine = [row for row in known if row["family"] == family]
        column = f"extracted_by_{rule}_share"
        marks = [Mark(_along(at(row["frechet"])), _up(row[column]), None, None) for row in mine if row[column] is not None]
        series.append(Series(colour, marks, ""))
        found = rank_correlation([row["frechet"] for row in mine], [row[column] for row in mine])
        if found.value is not None:
            words.append(f"{family}: rank correlation of distance and share over {len(mine)} models "
                         f"{interval(found, lambda value: f'{value:+.2f}')}.")  # fmt: skip
    middle = math.sqrt(low * high) if logarithmic else (low + high) / 2
    marks_below = [(_along(at(value)), f"{value:.3g}") for value in (low, middle, high)]
    panel = Chart("● diffusion, ■ GAN", "Fréchet distance (smaller is better)", marks_below, series, SHARES)
    return Figure("quality", [panel], words, [])


def gans_figure(rows: Sequence[dict[str, Any]], rule: str) -> Figure:
    """GANs beside the diffusion models of like Fréchet distance, by a rule."""
    mine = [row for row in rows if row["measure"] == "frechet" and row["rule"] == rule]
    alike = [row for row in mine if row["alike"] and row["difference"] is not None]
    words, panels = [], []
    if mine:
        words.append(f"{len(alike)} of {len(mine)} GANs have a diffusion model of like quality (within a tenth).")
    if alike:
        found = mean_interval([row["difference"] for row in alike])
        words.append(
            f"Over those the GAN gives back {interval(found, points)} percentage points more of its training pictures; several "
            "GANs may be held against one diffusion model."
        )
        shown = sorted(alike, key=lambda row: row["gan_quality"])[:12]
        series = []
        for shift, name, colour in ((-4, "diffusion", "paper"), (4, "gan", "copied")):
            marks = [
                Mark(_along((place + 0.5) / len(shown)) + shift,
                     *(_up(row[f"{name}_share{end}"]) for end in ("", "_lower", "_upper")))
                for place, row in enumerate(shown)
            ]  # fmt: skip
            series.append(Series(colour, marks, ""))
        below = [(_along((place + 0.5) / len(shown)), f"{row['gan_quality']:.2g}") for place, row in enumerate(shown)]
        panels = [Chart("● diffusion, ■ GAN", "Fréchet distance of each pair", below[:: -(-len(below) // 6)], series,
                        SHARES)]  # fmt: skip
    return Figure("gans", panels, words, mine)


class Halves(NamedTuple):
    """Pairs of models of disjoint halves: the rows, and what they say in words."""

    rows: list[dict[str, Any]]
    words: list[str]

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], rule: str) -> Halves:
        ends = [row for row in rows if row["last"]]
        words = []
        sides = [f"{side}_extracted_by_{rule}_share" for side in ("inside", "outside")]
        for what, holds in (
            ("give back under 10% of their pictures", lambda values: max(values) < 0.1),
            ("give back half of their pictures or more", lambda values: min(values) >= 0.5),
        ):
            ratios = [
                row["ratio"] for row in ends
                if row["ratio"] is not None and None not in (values := [row[side] for side in sides]) and holds(values)
            ]  # fmt: skip
            if ratios:
                found = interval(mean_interval(ratios), lambda value: f"{value:.2f}")
                words.append(
                    f"Of {len(ratios)} pairs that both {what}, pictures of one seed lie {found} times as far apart as those of "
                    "different seeds."
                )
        return cls(list(rows), words)


def first_words(rows: Sequence[dict[str, Any]], rule: str) -> list[str]:
    """Who is memorised first, by a rule: of each training the model that gave back nearest to half."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["rule"] == rule and row["log_odds"] is not None:
            other = best.get(row["run_id"])
            if other is None or _from_half(row) < _from_half(other):
                best[row["run_id"]] = row
    if not best:
        return []
    over = sum(row["log_odds_lower"] > 0 for row in best.values())
    under = sum(row["log_odds_upper"] < 0 for row in best.values())
    each = [_ends(row, "log_odds") for row in best.values()]
    # One training speaks for itself, by its own pictures.
    found = each[0] if len(each) == 1 else mean_interval([row["log_odds"] for row in best.values()])
    way = "neither outliers nor prototypes come back first, as far as can be seen"
    if found.lower is not None and found.upper is not None and not found.lower <= 0 <= found.upper:
        way = "outliers come back first" if found.lower > 0 else "prototypes come back first"
    counted = f"{len(best)} {'training' if len(best) == 1 else 'trainings'}"
    change = interval(found, lambda value: f"{value:+.2f}")
    return [
        f"Over {counted} {way}: the log odds change with a standard deviation of the distance to the nearest training pictures "
        f"by {change}; in {over} trainings the interval lies over 0, in {under} under 0."
    ]


def _from_half(row: dict[str, Any]) -> float:
    return abs(row["extracted"] / row["pictures"] - 0.5)


SMALLEST_RATE = 1e-3
"""Where the logarithmic sides of a ROC curve begin."""


def roc_figure(curves: Sequence[dict[str, Any]], rates: Sequence[dict[str, Any]]) -> Figure:
    """True positives against false ones of membership attacks, both in logarithms, of the cohort with the most models at its
    last step: a panel an attack, the most and the fewest draws.

    Args:
        curves: of ``membership_roc``; none where the sweep wasn't asked for membership.
        rates: of ``membership``.
    """
    if not curves:
        return Figure("membership", [], [], [])

    def spot(rate: float) -> float:
        return 1 + math.log10(max(rate, SMALLEST_RATE)) / -math.log10(SMALLEST_RATE)

    _, step, cohort = max((row["models"], row["step"], row["cohort"]) for row in curves)
    mine = [row for row in curves if (row["cohort"], row["step"]) == (cohort, step)]
    grid = [(_up(spot(rate)), percent(rate)) for rate in (0.001, 0.01, 0.1, 1.0)]
    below = [(_along(spot(rate)), percent(rate)) for rate in (0.001, 0.01, 0.1, 1.0)]
    panels = []
    for attack in sorted({row["attack"] for row in mine}):
        kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in mine:
            if row["attack"] == attack:
                kinds.setdefault((row["draws"], row["flips"], row["selection"], row["timestep"] or 0), []).append(row)
        series = []
        for kind, colour in ((max(kinds), "paper"), (min(kinds), "copied")):
            corners = sorted(kinds[kind], key=lambda row: row["corner"])
            places = [(_along(spot(row["false_positive_rate"])), _up(spot(row["true_positive_rate"]))) for row in corners]
            series.append(Series(colour, [], " ".join(f"{x},{y}" for x, y in places)))
        panels.append(Chart(clean(attack), "false positive rate", below, series if len(kinds) > 1 else series[:1], grid))
    words = []
    for row in rates:
        if (row["scope"], row["cohort"], row["step"], row["selection"]) == ("cohort", cohort, step, "chosen"):
            said = [
                f"{interval(_ends(row, name), percent)} of the members at a false positive rate of {rate}"
                for name, rate in (("true_positives_at_1_percent", "1%"), ("true_positives_at_tenth_percent", "0.1%"))
                if row[name] is not None
            ]
            draws = f"{row['draws']} draws{', with flips' if row['flips'] else ''}"
            words.append(f"{clean(row['attack'])} ({draws}): {'; '.join(said) or clean(row['refused_at_1_percent'])}.")
    return Figure("membership", panels[:MOST_CURVES], words[:20], [], max(0, len(panels) - MOST_CURVES))


# -- pictures ---------------------------------------------------------------------------------------------------------


class Card(NamedTuple):
    """A generation beside the picture that it is nearest to.

    Attributes:
        name: of the element.
        model: the row of ``leakage``.
        row: of ``untargeted_generations``, without prefix: sample_id, l2, second_l2 and the three rules.
        style: the two pictures as a rule of the style.
    """

    name: str
    model: dict[str, Any]
    row: dict[str, Any]
    style: str


def shown_pictures(
    lake: Lake, taken: Mapping[str, Manifest], ends: Sequence[dict[str, Any]], prefix: str, most: int
) -> list[Card]:
    """Generations that a rule calls, each picture that came back once a model, the clearest first, in turn of all models.

    Args:
        lake, taken: as ``render`` has it.
        ends: the models.
        prefix: "" for pictures that models were trained on, "control_" for those that they never saw.
        most: cards.
    """
    from transforms.training import members, population

    if not most:
        return []
    forgotten = Tombstones.read(lake).samples
    found: dict[tuple[str, str], dict[str, Any]] = {}
    models = {row["model_id"]: row for row in ends}
    names = ["model_id", "sample_index", *(f"{prefix}{name}" for name in _SHOWN)]
    for path in lake.parts("untargeted_generations", taken["extract"].snapshot_id):
        with open_parquet(path) as file:
            table = file.read(names)
        called = functools.reduce(pc.or_, [table[f"{prefix}by_{rule}"] for rule in sweeps.RULES])
        for raw in table.filter(called).to_pylist():
            row = {name.removeprefix(prefix): value for name, value in raw.items()}
            key = (row["model_id"], row["sample_id"])
            shown = row["model_id"] in models and row["sample_id"] not in forgotten
            if shown and (key not in found or _clear(row) < _clear(found[key])):
                found[key] = row
    turns: dict[str, int] = {}
    order = []
    for row in sorted(found.values(), key=lambda row: (*_clear(row), row["model_id"], row["sample_id"])):
        turns[row["model_id"]] = turns.get(row["model_id"], 0) + 1
        order.append((turns[row["model_id"]], row))
    chosen = [row for _, row in sorted(order, key=lambda pair: pair[0])][:most]
    wanted = {(row["model_id"], row["sample_index"]) for row in chosen}
    images = _images(lake, taken["extract"], wanted)
    train = taken["train"]
    deduplicate = lineage(lake, train)["deduplicate"]
    read = functools.lru_cache(maxsize=2)(functools.partial(population.read, lake, deduplicate, train.parameters["pictures"]))
    cards: list[Card] = []
    for row in chosen:
        model = models[row["model_id"]]
        kind = "canary" if row["sample_id"].startswith("canary-") else "picture"
        _, pictures, _ = members.recalled(
            [{"sample_id": row["sample_id"], "kind": kind}], read(model["pixels"]), model["pixels"]
        )
        made = images.get((row["model_id"], row["sample_index"]))
        if made is None or not len(pictures):
            continue
        name = f"{'c' if prefix else 'm'}{len(cards) + 1}"
        cards.append(Card(name, model, row, f"#{name}{{--generated:url({_uri(made)});--trained:url({_uri(pictures[0])})}}\n"))
    return cards


_SHOWN = ("sample_id", "l2", "second_l2", *(f"by_{rule}" for rule in sweeps.RULES))


def _clear(row: dict[str, Any]) -> tuple[int, float]:
    """How clear a case is: the more rules and the smaller the ratio, the clearer."""
    called = sum(row[f"by_{rule}"] for rule in sweeps.RULES)
    second = row["second_l2"]
    return -called, row["l2"] / second if second else row["l2"]


def _images(lake: Lake, extract: Manifest, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], np.ndarray]:
    """(model, number) → its picture; those that were removed or are damaged are missing."""
    found: dict[tuple[str, int], np.ndarray] = {}
    for path in lake.parts("untargeted_generations", extract.snapshot_id) if wanted else ():
        with open_parquet(path) as file:
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, ["model_id", "sample_index", "image"])
                for row in table.filter(pc.is_valid(table["image"])).to_pylist():
                    key = (row["model_id"], row["sample_index"])
                    if key in wanted:
                        try:
                            found[key] = decode_array(row["image"])
                        except DamagedPicture:
                            continue
    return found


def _uri(picture: np.ndarray) -> str:
    """A small picture as it is, (H, W, 3) uint8: a WebP without loss, as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
