"""The report: one HTML file that needs nothing else, with every extraction and the command that makes it again.

Captions, prompts and URLs are hostile text: the template escapes everything, and the content security policy allows the one
style and the one script of ours, by their digests, and no connection. The script filters and sorts; without it everything is
there to be read.

Each picture stands in the file once, as a custom property of its extraction: the same two serve as the pictures and, one
blended with the other, as their difference. The page stays under ``PAGE_BYTES`` whatever the lake holds: markup has its share,
and the pictures are made smaller step by step until they fit into the rest.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import html
import importlib.resources
import io
import json
import math
import os
import shlex
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from transforms.data.images import ImageStore
from transforms.kernels.copies import GU_RATIO
from transforms.kernels.distances import COARSE, Frame, best_crop, covering, room
from transforms.kernels.rates import blaker_interval
from transforms.store.files import read_parquet, read_rows
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage
from transforms.store.pictures import DamagedPicture, stored_array
from transforms.store.texts import redacted
from transforms.store.tombstones import NO_TEXT, Tombstones, sha256

SHOWN = (
    "extraction_rate", "extractions", "agreement", "precision_curve", "false_positives", "filter_misses", "duplication",
    "threshold_sweep",
)  # fmt: skip
"""The marts that the page is made of. Others may have a row for each prompt or image, and stay where they are."""

FILES = ("report.html.j2", "extraction.html.j2", "report.css", "report.js")
"""What the page is made of, beside the lake."""

PAGE_BYTES = 5_000_000
"""The page is smaller than this: what one can still send by mail, and what opens at once."""

MARKUP_BYTES = 4_200_000
"""Of those, what changes and extractions may take without pictures; what doesn't fit is counted, and left to a query."""

CHANGES_BYTES = 1_000_000
"""Of those, what the changes may take."""

WHOLE_TEXT_BYTES = 400_000
"""Of those, what texts may take beyond the letters that are always shown; the most confident extractions come first."""

LARGE_BYTES = 20_000
"""What takes more and doesn't fit is left out by itself; where less doesn't fit, the page is full."""

URL_LETTERS = 2_000
"""A longer URL is no link: browsers and servers cut or refuse it, and the page has a size to keep."""

CAPTION_LETTERS = 300
"""So much of a text is shown; the whole of it is a click away."""

UNSAFE_OVER = 0.1
"""LAION's punsafe over which pictures are blurred until clicked: what Stable Diffusion 2.0 was not to be trained on."""

DISTANCES = {
    "coarse ratio": "coarse_ratio", "l2": "l2", "tiled l2": "tiled_l2", "adaptive l2": "adaptive_l2", "ratio": "ratio",
}  # fmt: skip
"""What extractions can be filtered and sorted by → column of the mart."""

SERIES = {"copied": "rate_copied", "seen": "rate_seen", "paper": "rate"}
"""What is plotted → its column, of ``extraction_rate`` and of ``history``; the ends of its interval have its name as well."""

DIMENSIONS = {
    "duplicates": "copies",
    "prompt_length": "length of the prompt",
    "aspect": "aspect of the image",
    "domain": "domain",
}
"""Dimension of ``extraction_rate`` → what its buckets are called."""

CROSS = 128
"""Side of what is shown in place of a picture that was removed, in pixels."""

MOST_DIGITS = 9
"""Of a percentage, after the point."""

CHANGES = 200
"""So many changes since last night are listed."""

STEPS = ((128, 85), (128, 70), (128, 50), (96, 50), (96, 35), (80, 35), (80, 20), (64, 20), (64, 5), (48, 5), (32, 5))
"""(largest side in pixels, WebP quality) of the pictures: the first step with which all of them fit is taken."""


def file_text(name: str) -> str:
    return (importlib.resources.files("transforms.results") / name).read_text(encoding="utf-8")


def digest_of_template() -> str:
    """Another template, style or script makes another report."""
    return digest("template", [file_text(name) for name in FILES])


def render(
    lake: Lake,
    match: Manifest,
    measure: str,
    limit: int,
    nights: Sequence[dict[str, Any]] = (),
    changes: Sequence[dict[str, Any]] = (),
) -> bytes:
    """The report of one audit.

    Args:
        lake: the lake.
        match: the audit's matches.
        measure: the snapshot whose marts were just written.
        limit: extractions that are shown as pictures, the most confident first; the others are rows.
        nights: the audits of this model and data so far, the oldest first: date, model_revision, prompts_tried, rate_copied
            and rate_seen with the ends of their intervals, compared_with, panel_prompts, panel_extracted, new_extractions,
            gone_extractions, p_value and verdict (fine, worse or first).
        changes: what the last night before gave back and this one doesn't, and the other way round: kind (new or gone),
            prompt, caption, sample_id, url, group_id.

    Returns:
        the page, UTF-8, under ``PAGE_BYTES``.
    """
    marts = {mart: read_parquet(lake.part(mart, measure, 0)).to_pylist() for mart in SHOWN}
    calibration = lake.read("calibration", match.snapshot_id).to_pylist()
    (copy,) = lake.read("copy_calibration", match.snapshot_id).to_pylist()
    audit = lake.read("audits", match.snapshot_id).to_pylist()[0]
    parameters = json.loads(audit["parameters"])
    rates: dict[str, list[dict[str, Any]]] = {dimension: [] for dimension in ("all", *DIMENSIONS)}
    for row in marts["extraction_rate"]:
        rates[row["dimension"]].append(row)
    cut = Cut(left=WHOLE_TEXT_BYTES)
    environment = _environment()
    markup: Any = environment.get_template("extraction.html.j2").module
    tombstones = Tombstones.read(lake)
    changed = [
        {**row, "words": cut(row["prompt"] or row["caption"]), "link": Link.of(row["url"])}
        for row in without_forgotten(changes[:CHANGES], tombstones)
    ]
    listed, unspent = _fitting(changed, markup.change, CHANGES_BYTES)
    extractions = [
        Extraction.of(row, lake, audit["audit_id"], cut)
        for row in without_forgotten(sorted(marts["extractions"], key=lambda row: row["confidence_rank"]), tombstones)
    ]
    cards, left = _fitting(
        extractions[:limit],
        lambda it: markup.card(it, parameters["match"]["eidetic_delta"]),
        MARKUP_BYTES - CHANGES_BYTES + unspent,
    )
    rows, _ = _fitting(extractions[limit:], markup.line, left)
    unlisted = _unlisted([it.row["confidence_rank"] for it, _ in (*cards, *rows)], len(extractions))

    def page(style: str, side: int, quality: int) -> bytes:
        script = file_text("report.js")
        text = environment.get_template("report.html.j2").render(
            style=style,
            style_hash=_content_hash(style),
            script=script,
            script_hash=_content_hash(script),
            audit=audit,
            parameters=parameters,
            headline=headline(rates["all"]),
            forgotten=sum(row["prompts_tried"] for row in rates["all"] if row["bucket"] == "forgotten"),
            marts=marts,
            rates=rates,
            dimensions=DIMENSIONS,
            distances=DISTANCES,
            came=CameBack.of(marts["extractions"]),
            duplicates=marks([row for row in rates["duplicates"] if row["bucket"] not in ("list", "forgotten")], "bucket"),
            precision=curve([(row["rank"], row["precision"]) for row in marts["precision_curve"]]),
            precision_rows=_milestones(marts["precision_curve"]),
            false_positives=Grid.of(marts["false_positives"], "verdict", "tried_on"),
            agreement=Grid.of(marts["agreement"], "rule", "other"),
            copy=copy,
            held_out_wanted=math.ceil(1 / copy["max_false_positive_rate"] - 1e-9) - 1,
            blocks=COARSE,
            gu_ratio=GU_RATIO,
            candidates=match.facts.get("candidates"),
            regeneration=match.facts.get("regeneration"),
            nights=nights,
            night_marks=marks(nights, "date"),
            changes={kind: [text for change, text in listed if change["kind"] == kind] for kind in ("new", "gone")},
            n_changes=len(changes),
            sweep=sweep(marts["threshold_sweep"]),
            search=lineage(lake, match)["deduplicate"],
            calibration=calibration,
            chosen=next(row for row in calibration if row["chosen"]),
            cards=[text for _, text in cards],
            rows=[text for _, text in rows],
            n_extractions=len(extractions),
            unlisted=unlisted,
            texts_without_room=cut.without,
            lake=quoted(lake.root),
            side=side,
            quality=quality,
        )
        return text.encode("utf-8", "replace")

    style = file_text("report.css")
    budget = PAGE_BYTES - len(page(style, *STEPS[0]))  # the first step's numbers are the longest
    rules, side, quality = picture_rules(pairs(lake, match, [it.row for it, _ in cards]), budget)
    return page(style + rules, side, quality)


def without_forgotten(rows: Sequence[dict[str, Any]], tombstones: Tombstones) -> list[dict[str, Any]]:
    """Rows without url and caption of what has a tombstone: until it ends, ``eidetic forget`` hasn't removed all of them.

    A forgotten caption may also be the prompt that gave back another image; one that is this image's too stays.
    """

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        prompt, caption = ((row[name] or "").strip() for name in ("prompt", "caption"))
        if row["sample_id"] in tombstones.samples:
            return {**row, "url": None, "caption": None, "prompt": NO_TEXT}
        return {**row, "prompt": NO_TEXT} if prompt != caption and sha256(prompt) in tombstones.captions else row

    return [shown(row) for row in rows]


@functools.cache  # a template takes a tenth of a second to compile
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(file_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(clean=clean, model_name=model_name, percent=percent, number=number)
    environment.globals.update(
        caption_letters=CAPTION_LETTERS, page_megabytes=PAGE_BYTES // 1_000_000, plot_across=across, plot_height=height
    )
    return environment


def _content_hash(text: str) -> str:
    """SHA-256 of an element's exact text, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _fitting(items: Iterable[Any], markup: Callable[[Any], str], budget: int) -> tuple[list[tuple[Any, str]], int]:
    """The items that fit into ``budget`` bytes, each with its markup, and what is left: nothing where the page is full."""
    made: list[tuple[Any, str]] = []
    for item in items:
        text = markup(item)
        size = len(text.encode("utf-8", "replace"))
        if size <= budget:
            budget -= size
            made.append((item, text))
        elif size <= LARGE_BYTES:
            return made, 0
    return made, budget


def _unlisted(ranks: Sequence[int], count: int) -> str:
    """SQL that is true of the ranks from 1 to ``count`` that are not among ``ranks``, which rise; "" where there are none."""
    last = ranks[-1] if ranks else 0
    between = sorted(set(range(1, last)) - set(ranks))
    skipped = [f"confidence_rank IN ({', '.join(map(str, between))})"] if between else []
    return " OR ".join([*skipped, *([f"confidence_rank > {last}"] if last < count else [])])


# -- words and numbers ------------------------------------------------------------------------------------------------


class Rate(NamedTuple):
    """A rate with its 95% interval, all 0 to 1."""

    rate: float
    lower: float
    upper: float


class Headline(NamedTuple):
    """The first sentence's numbers.

    Attributes:
        copied: prompts that return their own image as a copy; if not ``own``, some training image.
        own: whether that can be asked: some of the prompts have an image of their own.
        seen: those whose image the model was trained on, by the controls; None without controls.
        bucket: drawn, or list (the user's).
        population: duplicate groups that the rates speak for; None where they speak for the tried prompts alone.
        tried: prompts that ``copied`` is of; n_copied: how many of these.
    """

    copied: Rate
    own: bool
    seen: Rate | None
    bucket: str
    population: float | None
    tried: int
    n_copied: int


def headline(rows: list[dict[str, Any]]) -> Headline | None:
    """Of the drawn prompts, or of the listed ones where none were drawn.

    Args:
        rows: of ``extraction_rate``, dimension all.

    Returns:
        None where nothing was tried, or where all that was tried lost something to ``eidetic forget``.
    """
    tried = [row for bucket in ("drawn", "list") for row in rows if row["bucket"] == bucket and row["prompts_tried"]]
    if not tried:
        return None
    row = tried[0]

    def rate(name: str) -> Rate | None:
        return None if row[name] is None else Rate(row[name], row[f"{name}_lower"], row[f"{name}_upper"])

    copied = rate("rate_copied")
    if copied is not None:
        own, tried_of, n_copied = True, row["prompts_with_image"], row["prompts_copied"]
    else:
        # Prompts that are nobody's caption, all of the user's list: each weighs the same.
        own, tried_of, n_copied = False, row["prompts_tried"], row["prompts_copied_any"]
        copied = Rate(n_copied / tried_of, *blaker_interval(n_copied, tried_of))
    return Headline(copied, own, rate("rate_seen"), row["bucket"], row["population"], tried_of, n_copied)


class CameBack(NamedTuple):
    """Training images that came back at all: a count of images, under any caption, and no rate of prompts.

    Attributes:
        copied: images of which some generation is a copy.
        own: of those, the ones that their own caption returned; others: the rest, that only others returned.
        controls: the ones that the caption of a picture returned which the model never saw, whoever else did.
        extracted: images by the paper's rule; both: of those, the ones that came back as copies.
    """

    copied: int
    own: int
    others: int
    controls: int
    extracted: int
    both: int

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> CameBack:
        """Counts rows of the mart ``extractions``."""
        copied = [row for row in rows if row["copied"]]
        own = sum(row["copied_by_own_caption"] for row in copied)
        return cls(
            copied=len(copied),
            own=own,
            others=len(copied) - own,
            controls=sum(row["copied_by_control_caption"] for row in copied),
            extracted=sum(row["extracted"] for row in rows),
            both=sum(row["extracted"] for row in copied),
        )


class Grid(NamedTuple):
    """A mart as a table of two ways: names of lines and columns as they come, and (line, column) → row."""

    lines: list[str]
    columns: list[str]
    rows: dict[tuple[str, str], dict[str, Any]]

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], line: str, column: str) -> Grid:
        lines, columns = (list(dict.fromkeys(row[name] for row in rows)) for name in (line, column))
        return cls(lines, columns, {(row[line], row[column]): row for row in rows})


def model_name(model: str) -> str:
    """The end of a local folder's path; a hub's id as it is."""
    return "/".join(model.rstrip("/").split("/")[-2:]) if model.startswith(("/", ".")) else model


def clean(text: str | None) -> str:
    """Text whose control characters, which could hide or turn around what stands there, show as \ufffd; null as nothing.

    Spaces of every width stay, and so do the two joiners (U+200C, U+200D): Persian and emoji are written with them.
    """
    return "".join(
        letter if letter in "\n\t\u200c\u200d" or unicodedata.category(letter)[0] != "C" else "\ufffd" for letter in text or ""
    )


def quoted(word: str) -> str:
    """A word of a command for bash, zsh or ksh, in letters that can be seen and copied; the others as $'…' spells their bytes.

    Blanks other than a space are among those: browsers copy them as one.
    """
    if word.isprintable():
        return shlex.quote(word)
    spelt = (
        letter if letter.isprintable() and letter not in "\\'" else "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))
        for letter in word
    )
    return f"$'{''.join(spelt)}'"


def percent(value: float | None) -> str:
    """A share, with so many digits that a small one isn't shown as nothing, nor a large one as all."""
    if value is None:
        return "–"
    rest = min(value, 1 - value)
    digits = 1 if rest <= 0 else max(1, -math.floor(math.log10(100 * rest)) + 1)
    return f"{100 * value:.{min(digits, MOST_DIGITS)}f}%"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


@dataclasses.dataclass(frozen=True)
class Words:
    """A text as the page has it: the start that is shown, the whole where it is longer and in the page, and its length."""

    start: str
    whole: str | None
    letters: int


@dataclasses.dataclass
class Cut:
    """Cuts texts at ``CAPTION_LETTERS``.

    Attributes:
        left: bytes that may still be spent on whole texts.
        without: texts whose whole had no room.
    """

    left: int
    without: int = 0

    def __call__(self, text: str | None) -> Words:
        whole = clean(text)
        if len(whole) <= CAPTION_LETTERS:
            return Words(whole, None, len(whole))
        size = len(html.escape(whole).encode("utf-8", "replace"))  # as it stands in the page
        fits = size <= self.left
        self.left -= size if fits else 0
        self.without += not fits
        return Words(whole[:CAPTION_LETTERS] + "…", whole if fits else None, len(whole))


@dataclasses.dataclass(frozen=True)
class Link:
    """Where a training image came from (None where that is over ``URL_LETTERS``), and the host's name to show."""

    url: str | None
    host: str

    @classmethod
    def of(cls, url: str | None) -> Link | None:
        """None for what is no http(s) URL: javascript:, data: and file: must not become links."""
        try:
            parts = urllib.parse.urlsplit(redacted(clean(url).strip()))
            host = parts.hostname
        except ValueError:
            return None
        if parts.scheme not in ("http", "https") or not host:
            return None
        whole = parts.geturl()
        return cls(whole if len(whole) <= URL_LETTERS else None, host[:60])


@dataclasses.dataclass(frozen=True)
class Extraction:
    """One extraction as the report shows it.

    Attributes:
        row: of the mart.
        prompt, caption: cut; the caption is None where the prompt says the same.
        link: to the training image.
        adaptive_rule, ratio_rule: whether its best generation is a copy by the two other published rules; None where the
            distance is.
        exact: its ``DISTANCES`` as they were measured, for the script to compare: rounded, 0.1504 would pass for at most 0.15.
        unsafe: whether its pictures are blurred until clicked.
        command: makes the generation again; None where it has no seed.
    """

    row: dict[str, Any]
    prompt: Words
    caption: Words | None
    link: Link | None
    adaptive_rule: bool | None
    ratio_rule: bool | None
    exact: str
    unsafe: bool
    command: str | None

    @classmethod
    def of(cls, row: dict[str, Any], lake: Lake, audit: str, cut: Cut) -> Extraction:
        same = (row["caption"] or "").strip() == (row["prompt"] or "").strip()
        again = (row["prompt_id"], str(row["sample_index"]), f"--audit={audit}", f"--lake={lake.root}")
        return cls(
            row=row,
            prompt=cut(row["prompt"]),
            caption=None if same else cut(row["caption"]),
            link=Link.of(row["url"]),
            adaptive_rule=None if row["adaptive_l2"] is None else row["adaptive_l2"] <= 1,
            ratio_rule=None if row["ratio"] is None else row["ratio"] < GU_RATIO,
            exact=" ".join("–" if row[name] is None else f"{row[name]:.5g}".removeprefix("0") for name in DISTANCES.values()),
            unsafe=row["punsafe"] is not None and row["punsafe"] > UNSAFE_OVER,
            command=None if row["seed"] is None else " ".join(["eidetic", "again", *map(quoted, again)]),
        )


# -- pictures ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both pictures of one extraction, no larger than the first of ``STEPS``, and where they lie on one another.

    Attributes:
        rank: of the extraction.
        generated, trained: RGB.
        at: where along the trained picture the generated one lies, in percent of the way that it could.
    """

    rank: int
    generated: Image.Image
    trained: Image.Image
    at: int

    @classmethod
    def of(cls, rank: int, generated: np.ndarray, trained: np.ndarray) -> Pair:
        small = [Image.fromarray(picture) for picture in (generated, trained)]
        for picture in small:
            picture.thumbnail((STEPS[0][0],) * 2)
        # The same crop as the distances': the nearest one, where the generated picture just fits into the trained one.
        whole = np.asarray(small[1])
        scale = min(large / own for large, own in zip(small[1].size, small[0].size, strict=True))
        frame = Frame(*(max(1, round(length * scale)) for length in reversed(small[0].size)))
        offset, _ = best_crop(np.asarray(small[0].resize((frame.width, frame.height))), whole)
        return cls(rank, small[0], small[1], round(100 * offset / max(1, room(covering(whole, frame), frame))))


def shown_forms(picture: np.ndarray) -> Iterator[str]:
    """The data URIs that a report may hold of a picture, (H, W, 3) uint8: one of each of ``STEPS``, the first one first."""
    small = Image.fromarray(picture)
    small.thumbnail((STEPS[0][0],) * 2)
    for side, quality in STEPS:
        yield data_uri(small, side, quality)


def pairs(lake: Lake, match: Manifest, extractions: list[dict[str, Any]]) -> list[Pair]:
    """Both pictures of each extraction, in their order; crossed squares where it was forgotten, be it gone already or not.

    A generation whose picture was not kept, and made again, has it in ``regenerations``.
    """
    made_of = lineage(lake, match)
    made: dict[tuple[str, int], bytes] = {}
    for table, snapshot, again in (
        ("generations", made_of["generate"].snapshot_id, False),
        ("regenerations", match.snapshot_id, True),
    ):
        wanted = {(row["prompt_id"], row["sample_index"]) for row in extractions if row["regenerated"] == again}
        for path in lake.parts(table, snapshot) if wanted else ():
            for row in read_rows(path, ["prompt_id", "sample_index", "image"]):
                if (row["prompt_id"], row["sample_index"]) in wanted:
                    made[row["prompt_id"], row["sample_index"]] = row["image"]
    store = ImageStore(lake, made_of["ingest"].snapshot_id, made_of["embed"].snapshot_id)
    gone = Tombstones.read(lake).samples

    def pair(row: dict[str, Any]) -> Pair:
        if row["sample_id"] in gone:
            return Pair.of(row["confidence_rank"], _shown(None), _shown(None))
        generated = _shown(made[row["prompt_id"], row["sample_index"]])
        try:
            image = store.get(row["sample_id"])
        except DamagedPicture:
            image = _shown(None)
        return Pair.of(row["confidence_rank"], generated, image)

    return [pair(row) for row in extractions]


def _shown(picture: bytes | None) -> np.ndarray:
    """A stored picture as (H, W, 3) uint8; a crossed square where it was removed (``eidetic forget``), or is damaged."""
    if picture is not None:
        with contextlib.suppress(DamagedPicture):
            return stored_array(picture)
    cross = np.eye(CROSS, dtype=bool) | np.eye(CROSS, dtype=bool)[::-1]
    return np.repeat(np.where(cross, 160, 224).astype(np.uint8)[..., None], 3, axis=2)


def picture_rules(pairs: Sequence[Pair], budget: int) -> tuple[str, int, int]:
    """The pictures as rules of the style, as large and as good as fit into ``budget`` bytes.

    Returns:
        (CSS, largest side in pixels, WebP quality). Where even the last step is too much, the last pairs have no pictures.
    """
    for side, quality in STEPS:
        rules: list[str] = []
        left = budget
        for pair in pairs:
            generated, trained = (data_uri(picture, side, quality) for picture in (pair.generated, pair.trained))
            width, height = pair.generated.size
            shape = "" if width == height else f";--shape:{width}/{height}"
            rule = f"#e{pair.rank}{{--generated:url({generated});--trained:url({trained});--at:{pair.at}%{shape}}}\n"
            left -= len(rule)
            if left < 0:
                break
            rules.append(rule)
        else:
            break
    return "".join(rules), side, quality


def data_uri(picture: Image.Image, side: int, quality: int) -> str:
    """A WebP picture whose longer side has at most ``side`` pixels, as a data URI."""
    thumbnail = picture.copy()
    thumbnail.thumbnail((side, side))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


# -- plots: all have one size, and a rate on their vertical axis ------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 640, 260, 48, 12, 44, 12
MAX_LABELS = 8
"""So many words, dates among them, fit side by side below a plot."""


def height(rate: float) -> float:
    """y of a rate, in SVG units."""
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - rate), 1)


def across(share: float) -> float:
    """x of a place between the left end of a plot (0) and its right end (1), in SVG units."""
    return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)


def marks(rows: Sequence[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    """Where rates with intervals stand, side by side: one place per row.

    Returns:
        for each row its label ("" where they would run into one another), x, and for each of ``SERIES`` (None where the row
        has no such rate) the y of rate, lower and upper end.
    """
    every = -(-len(rows) // MAX_LABELS)
    made = []
    for place, row in enumerate(rows):
        mark: dict[str, Any] = {"label": row[label] if place % every == 0 else "", "x": across((place + 0.5) / len(rows))}
        for name, prefix in SERIES.items():
            values = {end or "rate": row.get(f"{prefix}{end and '_' + end}") for end in ("", "lower", "upper")}
            known = all(value is not None for value in values.values())
            mark[name] = {end: height(value) for end, value in values.items() if value is not None} if known else None
        made.append(mark)
    return made


def curve(points: Sequence[tuple[float, float | None]]) -> dict[str, Any] | None:
    """A line through (x, rate), the x in rising order; None for fewer than two points that are known.

    Of very many points so many are taken as the plot is wide.

    Returns:
        points: of an SVG polyline; first, last: x at both ends.
    """
    known = [(x, rate) for x, rate in points if rate is not None]
    if len(known) < 2:
        return None
    low, high = known[0][0], known[-1][0]
    taken = [*known[: -1 : -(-len(known) // WIDTH)], known[-1]]
    return {
        "points": " ".join(f"{across((x - low) / (high - low))},{height(rate)}" for x, rate in taken),
        "first": low,
        "last": high,
    }


def _milestones(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a long curve the ranks 1, 2, 5, 10, 20, 50, … and the last."""
    ranks = {step * 10**power for power in range(8) for step in (1, 2, 5)}
    return [row for row in rows if row["rank"] in ranks or row is rows[-1]]


def sweep(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Where the lines of the sweep of thresholds run, in SVG units; None where no pixels were compared.

    Returns:
        precision and recall: points of an SVG polyline each; marks: (x, label) of thresholds to write below; searched: x.
    """
    known = [row for row in rows if row["precision"] is not None and row["recall"] is not None]
    lines = {name: curve([(row["threshold"], row[name]) for row in known]) for name in ("precision", "recall")}
    if lines["precision"] is None or lines["recall"] is None:
        return None
    low, high = lines["precision"]["first"], lines["precision"]["last"]
    places = [(across((row["threshold"] - low) / (high - low)), row) for row in known]
    return {
        **{name: line["points"] for name, line in lines.items() if line is not None},
        "marks": [(x, f"{row['threshold']:g}") for x, row in places[:: max(1, len(known) // 10)]],
        "searched": next((x for x, row in places if row["searched"]), None),
    }
