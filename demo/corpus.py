"""The corpus of the embedded default: brand logos, repeated as the web repeats pictures.

The pictures come from the package ``simple-icons-pack`` and are drawn by ``resvg-py``. The plan says how often each
logo occurs and how each copy differs from the others; ``build`` writes the pictures and the LAION-style metadata:

    site/pictures/<name>      the files that ``demo.serve`` serves
    site/metadata.parquet     what an audit reads: LAION's columns, one row per training sample
    site/controls.parquet     the same columns, for logos that no model ever saw
    site/truth.parquet        how each row came about: for tests and for the model card, never for an audit
    site/corpus.json          written last: what this corpus was made of, so that it isn't made again
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

DRAWING_SIZE = 128
"""Side of the master drawing in pixels; twice what the models see, so that ingest has something to resize."""

MODEL_SIZE = 64
"""Side of the pictures that the embedded models were trained on, in pixels."""

CONTROLS = 400
"""Logos that are kept out of training altogether."""

NEAREST_ALLOWED = 0.15
"""No two logos of the corpus lie within this l2 (the paper's delta): what is near is near because it was planted."""

PERMISSIVE_LICENCES = (None, "CC0-1.0")
"""Only icons under CC0, or for which the pack names no licence of their own."""

COPIES_PLAN = {
    1: 660, 2: 90, 3: 64, 4: 50, 5: 38, 6: 30, 8: 28, 10: 20, 12: 18, 16: 16, 20: 12, 24: 10, 32: 8, 48: 6, 64: 4,
    96: 2, 128: 2,
}  # fmt: skip
"""Copies of a logo → number of logos. Heavy-tailed; finely spread where memorisation sets in."""

REPEAT_KINDS = ("same_url", "reencoded", "resized", "cropped", "recaptioned")
"""How a copy differs from the first occurrence of its logo."""

FAULTS = {"dead": 12, "slow": 3, "redirected": 12, "not_an_image": 8, "opted_out": 8, "unsafe": 12, "not_http": 3}
"""Extra rows of metadata, by what is wrong with them. The redirected ones do end at a picture."""


CHOSEN = Path(__file__).with_name("logos.txt")
"""The slugs of the logos, in order; ``python -m demo.corpus > demo/logos.txt`` writes it."""

HALF_LEARNED_PLAN = {1: 240, 2: 24, 4: 16, 8: 12, 16: 8, 32: 4}
"""The same for the model ``half_learned``, whose corpus is the most repeated logos of the one above, repeated less."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture that a model was trained on, or a control, as the model saw it.

    Attributes:
        key: names the picture inside its corpus: a logo's slug, or a photograph's class and number.
        caption: its caption; where copies differ in theirs, the first one's.
        copies: how often it was in training, 0 for a control.
        picture: (H, W, 3) uint8.
    """

    key: str
    caption: str
    copies: int
    picture: np.ndarray


@dataclasses.dataclass(frozen=True)
class Logo:
    """One brand logo: its title, and how it is drawn."""

    slug: str
    title: str
    svg: str

    @property
    def caption(self) -> str:
        return f"{self.title} logo"


def stable_number(*parts: object) -> int:
    """A 64-bit number that depends on ``parts`` alone: the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big")


def draw(logo: Logo, size: int) -> Image.Image:
    """The logo as an RGB picture of ``size`` × ``size`` pixels."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=logo.svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def _as_logo(icon) -> Logo:
    """The icon in its brand's colour on white or, for every other one, in white on its brand's colour."""
    mark = icon.svg[icon.svg.index("<path") : icon.svg.rindex("</svg>")]
    ink, paper = (icon.hex, "FFFFFF") if stable_number("style", icon.slug) % 2 else ("FFFFFF", icon.hex)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-4 -4 32 32">'
        f'<rect x="-4" y="-4" width="32" height="32" fill="#{paper}"/><g fill="#{ink}">{mark}</g></svg>'
    )
    return Logo(slug=icon.slug, title=icon.title, svg=svg)


def _icons() -> list[Any]:
    import simple_icons_pack

    return [getattr(simple_icons_pack, name) for name in dir(simple_icons_pack) if name.startswith("SI_")]


@functools.cache
def logos() -> tuple[Logo, ...]:
    """Every logo fit for the corpus, in an order that is random but fixed: those of ``CHOSEN``.

    ValueError where the installed icons lack one.
    """
    icons = {icon.slug: icon for icon in _icons()}
    slugs = CHOSEN.read_text(encoding="utf-8").split()
    if missing := [slug for slug in slugs if slug not in icons]:
        version = importlib.metadata.version("simple-icons-pack")
        raise ValueError(
            f"simple-icons-pack {version} lacks {missing[0]!r}, which {CHOSEN.name} has; install the version that "
            "requirements.lock names"
        )
    return tuple(_as_logo(icons[slug]) for slug in slugs)


def choose_logos() -> tuple[Logo, ...]:
    """What ``logos`` gives, chosen anew, which takes seconds: all have to be drawn.

    Left out: licences other than CC0 or unstated, titles that occur twice, blank drawings, and logos within
    ``NEAREST_ALLOWED`` of one that comes before them.
    """
    icons = _icons()
    titles = [icon.title.lower() for icon in icons]
    candidates = [
        _as_logo(icon) for icon in icons if icon.license in PERMISSIVE_LICENCES and titles.count(icon.title.lower()) == 1
    ]
    candidates.sort(key=lambda logo: stable_number("order", logo.slug))
    pictures = np.stack([np.asarray(draw(logo, MODEL_SIZE), dtype=np.float32).ravel() / 255 for logo in candidates])
    spread = pictures.reshape(len(candidates), -1, 3).std(axis=1).max(axis=1)
    products = pictures @ pictures.T
    squares = products.diagonal()
    near = squares[:, None] + squares[None, :] - 2 * products <= NEAREST_ALLOWED**2 * pictures.shape[1]
    kept: list[int] = []
    for i in range(len(candidates)):
        # Blank, or so pale that nothing can be seen; or a lookalike of one that is in already.
        if spread[i] >= 0.02 and not near[i, kept].any():
            kept.append(i)
    return tuple(candidates[i] for i in kept)


def split(scale: float = 1.0) -> tuple[list[tuple[Logo, int]], list[Logo]]:
    """Training logos with their number of copies, and control logos.

    ``scale`` shrinks both (each number of copies keeps at least one logo). A logo has the same part and the same
    number of copies at every scale, so that the committed models fit the small corpora of the tests too.
    """
    everything = logos()
    controls = list(everything[:CONTROLS])
    training: list[tuple[Logo, int]] = []
    start = CONTROLS
    for copies, number in sorted(COPIES_PLAN.items(), reverse=True):
        chosen = everything[start : start + number]
        if len(chosen) < number:
            raise ValueError(f"simple-icons-pack yields {len(everything)} usable logos; the plan needs more")
        training += [(logo, copies) for logo in chosen[: max(1, round(number * scale))]]
        start += number
    return training, controls[: max(1, round(CONTROLS * scale))]


def half_learned_split(scale: float = 1.0) -> tuple[list[tuple[Logo, int]], list[Logo]]:
    """The same for the model ``half_learned``.

    That model goes on from ``generator``, so whatever ``generator`` has remembered must be in its corpus too: else it could
    return an image that an audit of this corpus doesn't know. Hence its logos are the most repeated ones of ``split``, and in
    the same order.
    """
    whole, controls = split()
    training: list[tuple[Logo, int]] = []
    start = 0
    for copies, number in sorted(HALF_LEARNED_PLAN.items(), reverse=True):
        training += [(logo, copies) for logo, _ in whole[start : start + max(1, round(number * scale))]]
        start += number
    return training, controls[: max(1, round(CONTROLS * scale))]


def examples(training: Sequence[tuple[Logo, int]], controls: Sequence[Logo]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The logos of a split as pictures of ``MODEL_SIZE``."""
    trained, held_out = (
        tuple(Example(logo.slug, logo.caption, copies, np.asarray(draw(logo, MODEL_SIZE))) for logo, copies in part)
        for part in (training, [(logo, 0) for logo in controls])
    )
    return trained, held_out


def _encode(picture: Image.Image, kind: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({} if kind == "PNG" else {"quality": quality}))
    return buffer.getvalue()


def _crop(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Takes 2 to 6% off one or two sides, so that some crops aren't square."""
    left, top, right, bottom = 0, 0, picture.width, picture.height
    for side in random.choice(4, size=int(random.integers(1, 3)), replace=False):
        cut = round(picture.width * random.uniform(0.02, 0.06))
        if side == 0:
            left += cut
        elif side == 1:
            top += cut
        elif side == 2:
            right -= cut
        else:
            bottom -= cut
    return picture.crop((left, top, right, bottom))


_OTHER_CAPTIONS = ("the logo of {}", "{} brand icon", "{} vector logo, free download", "{}")


def _copy(logo: Logo, master: Image.Image, number: int, scheme: tuple[str, ...]) -> tuple[str, str, str, bytes | None]:
    """(kind, file name, caption, bytes or None where the file is the first occurrence's) of copy ``number`` ≥ 1."""
    random = np.random.default_rng(stable_number("copy", logo.slug, number))
    kind = scheme[int(random.choice(len(scheme), p=[0.25, 0.25, 0.2, 0.15, 0.15]))]
    if kind == "same_url":
        return kind, f"{logo.slug}.png", logo.caption, None
    if kind == "recaptioned":
        caption = _OTHER_CAPTIONS[int(random.integers(len(_OTHER_CAPTIONS)))].format(logo.title)
        return kind, f"{logo.slug}.png", caption, None
    if kind == "reencoded":
        form = ("JPEG", "WEBP")[int(random.integers(2))]
        content = _encode(master, form, int(random.integers(70, 96)))
        return kind, f"{logo.slug}-{number}.{form.lower()}", logo.caption, content
    if kind == "resized":
        side = int(random.choice([80, 96, 112, 160, 192, 256]))
        return kind, f"{logo.slug}-{number}.png", logo.caption, _encode(draw(logo, side), "PNG", 0)
    return kind, f"{logo.slug}-{number}.png", logo.caption, _encode(_crop(master, random), "PNG", 0)


def build(site: Path, base_url: str, scale: float = 1.0, plan: str = "generator") -> None:
    """Writes the pictures, the metadata and the truth into ``site``, unless they are there.

    Args:
        site: the folder.
        base_url: where it will be served.
        scale: share of the corpus, see ``split``.
        plan: the model whose corpus it is: ``generator``, or ``half_learned``, whose repeats are exact and whose links work.
    """
    if plan not in ("generator", "half_learned"):
        raise ValueError(f"no corpus of logos is called {plan!r}; there are generator and half_learned")
    with made_once(site, _made_of(base_url, scale, plan)) as to_do:
        if not to_do:
            return
        if plan == "half_learned":
            write_site(site, base_url, *examples(*half_learned_split(scale)))
        else:
            _write_generator_site(site, base_url, scale)


def write_pictures(path: Path, scale: float = 1.0) -> None:
    """Writes the logos that ``generator`` was trained on as Parquet, each once: columns image (PNG) and text."""
    trained, _ = examples(*split(scale))
    images = [_encode(Image.fromarray(one.picture), "PNG", 0) for one in trained]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "text": [one.caption for one in trained]}), path, row_group_size=100)


@contextlib.contextmanager
def made_once(site: Path, made_of: dict[str, object]) -> Iterator[bool]:
    """Whether a site has still to be made of what ``made_of`` says. Its mark is written where the block ends well."""
    mark, content = site / "corpus.json", json.dumps(made_of, indent=2)
    if mark.exists() and mark.read_text() == content:
        yield False
        return
    mark.unlink(missing_ok=True)
    site.mkdir(parents=True, exist_ok=True)
    yield True
    mark.write_text(content)


def _write_generator_site(site: Path, base_url: str, scale: float) -> None:
    pictures = site / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    training, controls = split(scale)
    rows: list[dict] = []
    control_rows: list[dict] = []

    def add(target: list[dict], logo: Logo, kind: str, path: str, caption: str, copies: int, url: str | None = None):
        number = len(target)
        target.append(
            {
                "URL": url or f"{base_url}/{path}",
                "TEXT": caption,
                "WIDTH": DRAWING_SIZE,
                "HEIGHT": DRAWING_SIZE,
                "similarity": 0.25 + stable_number("similarity", path, number) % 1000 / 10_000,
                "hash": stable_number("hash", path) >> 1,
                "punsafe": 0.9 if kind == "unsafe" else stable_number("unsafe", path) % 1000 / 20_000,
                "pwatermark": stable_number("watermark", path) % 1000 / 1000,
                "slug": logo.slug,
                "kind": kind,
                "copies": copies,
            }
        )

    for logo, copies in training:
        master = draw(logo, DRAWING_SIZE)
        (pictures / f"{logo.slug}.png").write_bytes(_encode(master, "PNG", 0))
        add(rows, logo, "first", f"pictures/{logo.slug}.png", logo.caption, copies)
        for number in range(1, copies):
            kind, name, caption, content = _copy(logo, master, number, REPEAT_KINDS)
            if content is not None:
                (pictures / name).write_bytes(content)
            add(rows, logo, kind, f"pictures/{name}", caption, copies)

    for logo in controls:
        (pictures / f"{logo.slug}.png").write_bytes(_encode(draw(logo, DRAWING_SIZE), "PNG", 0))
        add(control_rows, logo, "control", f"pictures/{logo.slug}.png", logo.caption, 0)

    # Faulty links name logos of their own, which nothing was trained on and no control uses.
    spare = iter(logos()[CONTROLS + sum(COPIES_PLAN.values()) :])
    for kind, number in FAULTS.items():
        for _ in range(max(1, round(number * scale))):
            logo = next(spare)
            path = f"{kind}/{logo.slug}.png"
            url = f"ftp://127.0.0.1/{path}" if kind == "not_http" else None
            if kind in ("redirected", "opted_out", "unsafe"):
                (pictures / f"{logo.slug}.png").write_bytes(_encode(draw(logo, DRAWING_SIZE), "PNG", 0))
            add(rows, logo, kind, path, logo.caption, 1, url)

    rows.sort(key=lambda row: stable_number("row", row["slug"], row["kind"], row["URL"].removeprefix(base_url), row["TEXT"]))
    truth_columns = ["slug", "kind", "copies"]
    for name, table_rows in (("metadata", rows), ("controls", control_rows)):
        table = pa.Table.from_pylist(table_rows).drop_columns(truth_columns)
        pq.write_table(table, site / f"{name}.parquet")
    truth = pa.Table.from_pylist(rows + control_rows).select(["URL", "TEXT", *truth_columns])
    pq.write_table(truth, site / "truth.parquet")


def write_site(site: Path, base_url: str, trained: Sequence[Example], controls: Sequence[Example]) -> None:
    """A corpus of exact repeats, in the layout of ``build``: copy k of a picture has the picture's url and ``?c=k``."""
    pictures = site / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[dict]] = {"metadata": [], "controls": []}
    for name, examples_of in (("metadata", trained), ("controls", controls)):
        for example in examples_of:
            path = f"pictures/{example.key}.png"
            (site / path).write_bytes(_encode(Image.fromarray(example.picture), "PNG", 0))
            tables[name] += [
                {
                    "URL": f"{base_url}/{path}?c={copy}",
                    "TEXT": example.caption,
                    "WIDTH": example.picture.shape[1],
                    "HEIGHT": example.picture.shape[0],
                    "slug": example.key,
                    "kind": "repeat" if copy else "first" if example.copies else "control",
                    "copies": example.copies,
                }
                for copy in range(max(1, example.copies))
            ]
    tables["metadata"].sort(key=lambda row: stable_number("row", row["slug"], row["URL"].removeprefix(base_url)))
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows).drop_columns(["slug", "kind", "copies"]), site / f"{name}.parquet")
    truth = pa.Table.from_pylist([*tables["metadata"], *tables["controls"]])
    pq.write_table(truth.select(["URL", "TEXT", "slug", "kind", "copies"]), site / "truth.parquet")


def _made_of(base_url: str, scale: float, plan: str) -> dict[str, object]:
    """Everything that shapes the corpus."""
    packages = {name: importlib.metadata.version(name) for name in ("simple-icons-pack", "resvg-py", "pillow", "pyarrow")}
    return {
        "base_url": base_url,
        "scale": scale,
        "plan": plan,
        "program": hashlib.sha256(Path(__file__).read_bytes() + CHOSEN.read_bytes()).hexdigest(),
        **packages,
    }


if __name__ == "__main__":
    print("\n".join(logo.slug for logo in choose_logos()))
