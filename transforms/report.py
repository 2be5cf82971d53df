"""The report: one HTML file that needs nothing else, with every extraction as a pair of pictures.

Captions and prompts are hostile text: the template escapes everything, the page carries no script, and its content security
policy allows none.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.resources
import io
import json
import unicodedata
from typing import Any

import numpy as np

from transforms import measurement
from transforms.identity import digest
from transforms.images import ImageStore, decode
from transforms.lake import Lake, Manifest, read_parquet, read_rows

THUMBNAIL = 128
"""Largest side of a picture in the report, in pixels."""

CAPTION_LETTERS = 300
"""So much of a caption is shown; the whole of it is a click away."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """One extraction as the report shows it: its row of the mart, and both pictures as data URIs."""

    row: dict[str, Any]
    generated: str
    trained: str


def template_text() -> str:
    return (importlib.resources.files("transforms") / "report.html.j2").read_text(encoding="utf-8")


def style_text() -> str:
    return (importlib.resources.files("transforms") / "report.css").read_text(encoding="utf-8")


def digest_of_template() -> str:
    """Another template or style makes another report."""
    return digest("template", template_text(), style_text())


def render(lake: Lake, match: Manifest, measure: str, limit: int) -> bytes:
    """The report of one audit.

    Args:
        lake: the lake.
        match: the audit's matches.
        measure: the snapshot whose marts were just written.
        limit: extractions that are shown as pictures, the most confident first; the others are rows.

    Returns:
        the page, UTF-8.
    """
    import jinja2

    marts = {mart: read_parquet(lake.part(mart, measure, 0)).to_pylist() for mart in measurement.MARTS}
    extractions = sorted(marts["extractions"], key=lambda row: row["confidence_rank"])
    calibration = lake.read("calibration", match.snapshot_id).to_pylist()
    audit = lake.read("audits", match.snapshot_id).to_pylist()[0]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(clean=clean, model_name=model_name, percent=percent, number=number)
    style = style_text()
    page = environment.from_string(template_text()).render(
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        audit=audit,
        parameters=json.loads(audit["parameters"]),
        headline=headline(marts["verdicts"], len(extractions)),
        marts=marts,
        plot=plot(marts["extraction_rate"]),
        sweep=sweep(marts["threshold_sweep"]),
        search=measurement.chain(lake, match)["deduplicate"],
        calibration=calibration,
        chosen=next(row for row in calibration if row["chosen"]),
        pairs=pairs(lake, match, extractions[:limit]),
        rest=extractions[limit:],
        caption_letters=CAPTION_LETTERS,
    )
    return page.encode("utf-8", "replace")


def headline(verdicts: list[dict[str, Any]], extractions: int) -> dict[str, Any]:
    """The first sentence's numbers: what was tried and what came back.

    A prompt without a calibrated verdict is no trial of it; ``calibrated`` is None where no prompt has one, and then
    ``tried`` counts for the paper's rule.
    """
    tested = [row["extracted_calibrated"] for row in verdicts if row["extracted_calibrated"] is not None]
    return {
        "tried": len(tested) if tested else len(verdicts),
        "extracted": sum(row["extracted"] for row in verdicts),
        "calibrated": sum(tested) if tested else None,
        "images": extractions,
    }


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


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def pairs(lake: Lake, match: Manifest, extractions: list[dict[str, Any]]) -> list[Pair]:
    """Both pictures of each extraction."""
    chain = measurement.chain(lake, match)
    wanted = {(row["prompt_id"], row["sample_index"]) for row in extractions}
    made: dict[tuple[str, int], bytes] = {}
    for path in lake.parts("generations", chain["generate"].snapshot_id):
        for row in read_rows(path, ["prompt_id", "sample_index", "image"]):
            if (row["prompt_id"], row["sample_index"]) in wanted:
                made[row["prompt_id"], row["sample_index"]] = row["image"]
    store = ImageStore(lake, chain["ingest"].snapshot_id, chain["embed"].snapshot_id)
    return [
        Pair(
            row=row,
            generated=_shown(made[row["prompt_id"], row["sample_index"]]),
            trained=data_uri(store.get(row["sample_id"])),
        )
        for row in extractions
    ]


def _shown(picture: bytes | None) -> str:
    """A stored picture as a data URI; a crossed square where it was removed (``eidetic forget``)."""
    if picture is not None:
        return data_uri(np.asarray(decode(picture)))
    cross = np.eye(THUMBNAIL, dtype=bool) | np.eye(THUMBNAIL, dtype=bool)[::-1]
    return data_uri(np.repeat(np.where(cross, 160, 224).astype(np.uint8)[..., None], 3, axis=2))


def data_uri(picture: np.ndarray) -> str:
    """(H, W, 3) uint8 → a WebP picture whose longer side has at most ``THUMBNAIL`` pixels, as a data URI."""
    from PIL import Image

    thumbnail = Image.fromarray(picture)
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


# -- the plot of rate against duplicates -----------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 260, 48, 44, 12


def plot(rates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the marks of the plot stand: one per stratum, in SVG units.

    Returns:
        for each stratum its label, x, and for both verdicts (calibrated may be None) the y of rate, lower and upper end.
    """
    strata = [row for row in rates if row["stratum_order"] >= 0]
    if not strata:
        return []
    step = (WIDTH - LEFT) / len(strata)

    def height(rate: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - rate), 1)

    marks = []
    for place, row in enumerate(strata):
        mark: dict[str, Any] = {"label": row["duplicates"], "x": round(LEFT + step * (place + 0.5), 1), "row": row}
        for name, prefix in (("paper", "rate"), ("calibrated", "rate_calibrated")):
            known = row[prefix] is not None
            mark[name] = (
                {"rate": height(row[prefix]), "lower": height(row[f"{prefix}_lower"]), "upper": height(row[f"{prefix}_upper"])}
                if known
                else None
            )
        marks.append(mark)
    return marks


# -- the plot of the thresholds of near-duplicates --------------------------------------------------------------------


def sweep(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Where the lines of the sweep of thresholds run, in SVG units; None where no pixels were compared.

    Returns:
        precision and recall: points of an SVG polyline each; marks: (x, label) of thresholds to write below; searched: x.
    """
    known = [row for row in rows if row["precision"] is not None and row["recall"] is not None]
    if len(known) < 2:
        return None
    low, high = known[0]["threshold"], known[-1]["threshold"]

    def across(threshold: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 12) * (threshold - low) / (high - low), 1)

    def height(rate: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - rate), 1)

    lines = {
        name: " ".join(f"{across(row['threshold'])},{height(row[name])}" for row in known) for name in ("precision", "recall")
    }
    every = max(1, len(known) // 10)
    searched = next((across(row["threshold"]) for row in known if row["searched"]), None)
    return {
        **lines,
        "marks": [(across(row["threshold"]), f"{row['threshold']:g}") for row in known[::every]],
        "searched": searched,
    }
