"""Do the verdicts mean what they say? Audits of the embedded models, held against what brute force found in each.

    python -m benchmarks.verdicts                  # all models; photographs only where CIFAR-10 lies in ../shared/data
    python -m benchmarks.verdicts half_learned     # one, and only to the terminal

Each model is audited as a user would, with seeds of this command's own: no threshold was chosen on these generations. The truth
is ``demo/models/<name>/truth.json``, made by generation and nearest image, not by any verdict; doubtful pictures are left out,
and counted. Beside the verdicts stand the published rules, and what controls and decoys say of each. Writes
``benchmarks/results/verdicts.json``, ``docs/verdicts.md`` and its pictures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.results import Row, write
from demo import embedded, photographs, truth
from demo.corpus import Example
from demo.serve import serving
from transforms.kernels.copies import Distances, is_copy, limits
from transforms.kernels.distances import l2
from transforms.kernels.rates import clopper_pearson_interval
from transforms.results.marts import read_mart
from transforms.store.files import read_rows
from transforms.store.lake import Lake
from transforms.store.lineage import lineage
from transforms.store.pictures import decode

PORT = 18_431
SEED = 20_261_127
"""Of the audits: none that a threshold was chosen on."""

DOCS = Path(__file__).resolve().parent.parent / "docs"

OPTIONS = {
    "generator": ["--image_size=64", "--steps=6", "--max_prompts=400"],
    "half_learned": ["--image_size=64", "--steps=6", "--max_prompts=1000"],
    "photographs": ["--image_size=32", "--steps=8", "--max_prompts=1000"],
}
"""What each model is audited with, beside what all have in common."""

COMMON = ("--images_per_prompt=8", "--images_per_control=8", "--guidance_scale=3", "--keep=all", "--clique_size=3",
          "--clique_distance=0.2", "--encode_format=png", "--allow_private_hosts", "--timeout=3", "--clip_pretrained=",
          f"--seed={SEED}")  # fmt: skip

SPLITS = 20
RATE = 0.01

RULES = {
    "extracted_calibrated": "copied and seen",
    "copied": "nearer than new pictures come, absolutely and against every other image",
    "by_ratio": "l2 ratio < 1/3 (Yoon, Gu)",
    "by_adaptive_l2": "adaptive l2 ≤ 1 (Carlini, section 5.1)",
    "by_l2": "l2 ≤ 0.15 (Carlini, section 4.2)",
    "seen": "nearer than controls come to their own: trained on, not a copy",
}
"""Column of a verdict → what it asks."""


def audited(name: str, folder: Path, extra: Sequence[str] = (), scale: float = 1.0, port: int = PORT) -> Lake:
    """Audits an embedded model, on a share of its corpus, into ``folder``/lake; nothing is done again that is complete."""
    site, lake = folder / "site", folder / "lake"
    embedded.build(name, site, f"http://127.0.0.1:{port}", scale)
    words = [sys.executable, "-m", "pipelines.cli", "audit", f"--lake={lake}", f"--metadata={site}/metadata.parquet",
             f"--controls={site}/controls.parquet", f"--model={embedded.MODELS / name}",
             f"--clip_model={embedded.MODELS / 'clip'}", *COMMON, *OPTIONS[name], *extra]  # fmt: skip
    with serving(site, port):
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    return Lake(str(lake))


class Audit:
    """What one audit says, and what is true.

    Attributes:
        rows: one for each trained picture that was tried: its truth, and by each rule and distance what its prompt's nearest
            generation is.
        controls: adaptive l2 of each control's nearest generation to itself.
        decoys: rows of the table.
    """

    def __init__(self, name: str, lake: Lake, site: Path):
        self.name, self.lake = name, lake
        match, measure = lake.latest("match"), lake.latest("measure")
        self.chain = lineage(lake, match)
        self.match = match
        samples = lake.read("samples", self.chain["ingest"].snapshot_id, ["sample_id", "url"]).to_pylist()
        # Which picture a url shows is told by who made the site; of a crop nobody knows what its prompt should return.
        planted = pq.read_table(site / "truth.parquet", columns=["URL", "slug", "kind"]).to_pylist()
        shows = {row["URL"]: row["slug"] for row in planted if row["kind"] != "cropped"}
        self.keys = {row["sample_id"]: shows.get(row["url"], "") for row in samples}
        # On a share of the corpus the model knows more pictures than the lake.
        present = set(self.keys.values())
        by_key = {row["slug"]: row for row in truth.read(name)["trained"] if row["slug"] in present}
        trained = [example for example in embedded.examples(name)[0] if example.key in present]
        own = {
            row["prompt_id"]: row
            for row in lake.read("matches", match.snapshot_id).to_pylist()
            if row["nearest"] and row["relation"] == "own"
        }
        self.extractions = read_mart(lake, "extractions", measure)
        found = {self.keys[row["sample_id"]] for row in self.extractions if row["extracted_calibrated"]}
        prompts = {row["prompt_id"]: row for row in lake.read("prompts", self.chain["generate"].snapshot_id).to_pylist()}
        self.rows = []
        for verdict in read_mart(lake, "verdicts", measure):
            prompt = prompts[verdict["prompt_id"]]
            key = self.keys.get(prompt["sample_id"], "")
            # A repeat may have another caption, of which the truth says nothing.
            if key in by_key and verdict["prompt_id"] in own and prompt["text"] == by_key[key]["caption"]:
                row = own[verdict["prompt_id"]]
                self.rows.append({
                    **by_key[key], **{column: row[column] for column in STATISTICS}, "prompt_id": verdict["prompt_id"],
                    "copied": verdict["copied"], "seen": bool(verdict["seen"]),
                    "extracted_calibrated": key in found, "by_l2": row["extracted"],
                    "by_adaptive_l2": row["adaptive_l2"] <= 1, "by_ratio": row["ratio"] < 1 / 3,
                })  # fmt: skip
        self.untried = len(by_key) - len(self.rows)
        self.controls = [row["adaptive_l2"] for row in own.values() if row["role"] == "control"]
        self.decoys = lake.read("decoys", match.snapshot_id).to_pylist()
        self.trained: Sequence[Example] = trained

    def precision_and_recall(self, rule: str) -> tuple[float, float, int, int]:
        """(precision, recall, called, doubtful among the called), doubtful pictures left out of the first two."""
        copies = [row for row in self.rows if truth.is_copy(row)]
        called = [row for row in self.rows if row[rule]]
        doubtful = sum(truth.is_doubtful(row) for row in called)
        hit = sum(bool(row[rule]) for row in copies)
        return hit / max(1, len(called) - doubtful), hit / max(1, len(copies)), len(called), doubtful

    def came_back(self) -> dict[str, float]:
        """Training images under any caption, by ``copied``, against all generations and all training images.

        Sure: some generation is nearest to the image of all and within l2 0.10; doubtful: within 0.15 alone.
        """
        pictures = np.stack([example.picture for example in self.trained]).reshape(len(self.trained), -1)
        flat = pictures.astype(np.float32) / 255
        best = np.full(len(flat), np.inf)
        stored = self.lake.parts("generations", self.chain["generate"].snapshot_id)
        for path in [*stored, *self.lake.parts("regenerations", self.match.snapshot_id)]:
            made = [np.asarray(decode(row["image"])).ravel() for row in read_rows(path, ["image"]) if row["image"] is not None]
            for start in range(0, len(made), 512):
                batch = np.stack(made[start : start + 512]).astype(np.float32) / 255
                squares = np.square(batch).sum(1)[:, None] + np.square(flat).sum(1) - 2 * batch @ flat.T
                nearest = squares.argmin(axis=1)
                distances = np.sqrt(squares[np.arange(len(batch)), nearest].clip(min=0) / flat.shape[1])
                np.minimum.at(best, nearest, distances)
        keys = [example.key for example in self.trained]
        sure = {key for key, distance in zip(keys, best, strict=True) if distance <= 0.10}
        doubtful = {key for key, distance in zip(keys, best, strict=True) if 0.10 < distance <= 0.15}
        rules = {"copied": "copied", "by_l2": "extracted", "extracted_calibrated": "extracted_calibrated"}
        result: dict[str, float] = {"sure": len(sure), "doubtful": len(doubtful)}
        for rule, column in rules.items():
            found = {self.keys[row["sample_id"]] for row in self.extractions if row[column]} - {""}
            hit = len(found & sure)
            result[f"{rule}_precision"] = hit / max(1, len(found - doubtful))
            result[f"{rule}_recall"] = hit / max(1, len(sure))
        other = [row for row in self.extractions if row["copied"] and not row["copied_by_own_caption"]]
        return {**result, "by_other_captions_alone": len(other)}

    def seen(self) -> dict[str, Any]:
        """How well ``seen``'s statistic tells single pictures from controls, with 95% intervals."""
        single = np.array([row["adaptive_l2"] for row in self.rows if row["copies"] == 1])
        controls = np.array(self.controls)
        random = np.random.default_rng(1)
        area = auc(single, controls)
        drawn = [auc(random.choice(single, len(single)), random.choice(controls, len(controls))) for _ in range(1000)]
        result: dict[str, Any] = {"singles": len(single), "controls": len(controls), "auc": area,
                                  "auc_interval": np.quantile(drawn, [0.025, 0.975]).tolist(), "tpr": None}  # fmt: skip
        if len(controls) >= 100:
            # The largest rate of hits with at most 1% of the controls called; ties are called together.
            allowed = int(0.01 * len(controls))
            limit = np.sort(controls)[allowed]
            called = int((single < limit).sum())
            result |= {"tpr": called / len(single), "tpr_interval": clopper_pearson_interval(called, len(single))}
        return result

    def splits(self) -> tuple[float, float]:
        """(mean share of held-out pictures that are called copies, share of the splits in which it is at most ``RATE``).

        Half of the held-out pictures, drawn anew each time, make the limits; the others are judged.
        """
        held_out = [row for row in self.decoys if row["kind"] == "held_out"]
        left_out = distances_of(row for row in self.decoys if row["kind"] == "left_out")
        options = self.match.parameters
        shares = []
        for split in range(SPLITS):
            order = np.random.default_rng(split).permutation(len(held_out))
            half = len(order) // 2
            allowed = limits(
                distances_of(held_out[place] for place in order[:half]),
                left_out,
                most_l2=options["delta"],
                ratio=options["copy_ratio"],
                rate=RATE,
            )
            allowed = allowed._replace(l2=options["copy_l2"])
            shares.append(np.mean([is_copy(held_out[place], allowed) for place in order[half:]]))
        return float(np.mean(shares)), float(np.mean([share <= RATE for share in shares]))


STATISTICS = ("l2", "tiled_l2", "adaptive_l2", "ratio", "coarse_l2", "coarse_ratio")


def distances_of(rows: Iterable[dict[str, Any]]) -> Distances:
    pairs = [(row["coarse_l2"], np.inf if row["coarse_ratio"] is None else row["coarse_ratio"]) for row in rows]
    both = np.array(pairs, float).reshape(-1, 2)
    return Distances(both[:, 0], both[:, 1])


def auc(near: np.ndarray, far: np.ndarray) -> float:
    """The chance that one of ``near`` is the smaller; ties count half."""
    order = np.sort(far)
    above = len(far) - np.searchsorted(order, near, side="right")
    ties = np.searchsorted(order, near, side="right") - np.searchsorted(order, near, side="left")
    return float((above + ties / 2).mean() / len(far))


def roc(audit: Audit, statistic: str) -> tuple[np.ndarray, np.ndarray]:
    """(share of others called, share of copies called) for every threshold, doubtful pictures left out."""
    rows = [row for row in audit.rows if not truth.is_doubtful(row)]
    values = np.array([np.inf if row[statistic] is None else row[statistic] for row in rows], float)
    copies = np.array([truth.is_copy(row) for row in rows])
    order = np.argsort(values, kind="stable")
    hits, wrong = np.cumsum(copies[order]), np.cumsum(~copies[order])
    return np.r_[0, wrong] / max(1, (~copies).sum()), np.r_[0, hits] / max(1, copies.sum())


COLOURS = {"coarse_ratio": "#b00020", "coarse_l2": "#e07b39", "ratio": "#1a5fb4", "adaptive_l2": "#26a269", "l2": "#777777",
           "tiled_l2": "#b5a000"}  # fmt: skip


def draw_roc(audits: Sequence[Audit], path: Path) -> None:
    """One plot a model, both axes linear, false calls up to 20%."""
    width, height, most = 260, 220, 0.2
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(audits) * (width + 60)} {height + 60}" '
             'font-family="sans-serif" font-size="11">']  # fmt: skip
    for place, audit in enumerate(audits):
        left, top = place * (width + 60) + 45, 20
        parts.append(f'<text x="{left}" y="{top - 6}">{audit.name}</text><rect x="{left}" y="{top}" width="{width}" '
                     f'height="{height}" fill="none" stroke="#999"/>')  # fmt: skip
        parts += [f'<text x="{left - 6}" y="{top + height * (1 - share) + 4}" text-anchor="end">{share:.0%}</text>'
                  for share in (0, 0.5, 1)]  # fmt: skip
        parts += [f'<text x="{left + width * share / most}" y="{top + height + 14}" text-anchor="middle">{share:.0%}</text>'
                  for share in (0, 0.1, 0.2)]  # fmt: skip
        parts.append(f'<text x="{left + width / 2}" y="{top + height + 28}" text-anchor="middle">of no copies, called</text>')
        for line, (statistic, colour) in enumerate(COLOURS.items()):
            wrong, hits = roc(audit, statistic)
            inside = wrong <= most
            points = " ".join(f"{left + x / most * width:.1f},{top + (1 - y) * height:.1f}"
                              for x, y in zip(wrong[inside], hits[inside], strict=True))  # fmt: skip
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
            parts.append(f'<text x="{left + width - 4}" y="{top + height - 8 - 13 * line}" text-anchor="end" '
                         f'fill="{colour}">{statistic}</text>')  # fmt: skip
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def draw_border(audit: Audit, path: Path, rows: int = 10) -> None:
    """The pictures at the border: trained, its prompt's nearest generation, and the nearest other trained picture.

    From top: what copied calls and has the largest ratio, then what it doesn't call and has the smallest.
    """
    called = sorted((row for row in audit.rows if row["copied"]), key=lambda row: -row["coarse_ratio"])[:rows][::-1]
    rest = sorted((row for row in audit.rows if not row["copied"]), key=lambda row: row["coarse_ratio"])[:rows]
    nearest: dict[str, np.ndarray] = {}
    wanted = {row["prompt_id"] for row in (*called, *rest)}
    for part in audit.lake.parts("generations", audit.chain["generate"].snapshot_id):
        for row in read_rows(part, ["prompt_id", "nearest", "image"]):
            if row["nearest"] and row["prompt_id"] in wanted:
                nearest[row["prompt_id"]] = np.asarray(decode(row["image"]))
    by_key = {example.key: example.picture for example in audit.trained}
    everything = np.stack([example.picture for example in audit.trained])
    lines = []
    for row in (*called, *rest):
        made, trained = nearest[row["prompt_id"]], by_key[row["slug"]]
        away = l2(made, everything)
        away[[np.array_equal(one, trained) for one in everything]] = np.inf
        lines.append(np.concatenate([trained, made, everything[int(away.argmin())]], axis=1))
    half = [np.concatenate(some, axis=0) for some in (lines[: len(called)], lines[len(called) :]) if some]
    tallest = max(len(one) for one in half)
    padded = [np.pad(one, ((0, tallest - len(one)), (0, 12), (0, 0)), constant_values=255) for one in half]
    sheet = Image.fromarray(np.concatenate(padded, axis=1))
    zoom = 1 if sheet.width > 300 else 2
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).quantize(256).save(path, optimize=True)


def percent(value: float) -> str:
    return f"{value:.1%}"


def interval(ends: Sequence[float]) -> str:
    return f"{percent(ends[0])} to {percent(ends[1])}"


def table(columns: str, rows: Iterable[Sequence[Any]]) -> str:
    """A table of Markdown; ``columns`` are parted by " | "."""
    cells = [columns.split(" | "), ["---"] * len(columns.split(" | ")), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in cells)


INTRODUCTION = f"""# The verdicts, held against the truth

Made by `python -m benchmarks.verdicts`; do not edit. Each embedded model is audited with seeds of that command's own ({SEED}),
8 images a prompt and a control. The truth is that of [demo/models](../demo/models/README.md): a picture is a copy where half
of its generations have it as the nearest of all trained pictures and lie within l2 0.10; doubtful (left out, and counted)
where a tenth lies within 0.15. Each rule is asked about the prompt's nearest generation and its own image. What the rules mean,
and why this one was chosen: [calibration.md](calibration.md)."""


def page(audits: Sequence[Audit], found: dict[str, dict[str, Any]]) -> str:
    """``docs/verdicts.md``."""
    rules = []
    for audit in audits:
        for rule, meaning in RULES.items():
            precision, recall, called, doubtful = audit.precision_and_recall(rule)
            rules.append([audit.name, f"{rule}: {meaning}", f"{precision:.3f}", f"{recall:.3f}", called, doubtful])
    tried = [
        [
            audit.name,
            len(audit.rows),
            *(sum(map(kind, audit.rows)) for kind in (truth.is_copy, truth.is_doubtful)),
            audit.untried,
        ]
        for audit in audits
    ]
    back, recalls, seen, decoys = [], [], [], []
    for audit in audits:
        one, candidates, told = found[audit.name]["came_back"], audit.match.facts["candidates"], found[audit.name]["seen"]
        figures = [f"{one[f'{rule}_precision']:.3f} / {one[f'{rule}_recall']:.3f}" for rule in CAME_BACK]
        back.append([audit.name, one["sure"], one["doubtful"], *figures, one["by_other_captions_alone"]])
        shares = [f"{candidates[name]:.3f}" for name in ("nearest", "next", "by_clip", "by_thumbnail")]
        recalls.append([audit.name, candidates["sampled"], *shares])
        tpr = "–" if told["tpr"] is None else f"{percent(told['tpr'])} ({interval(told['tpr_interval'])})"
        low, high = told["auc_interval"]
        seen.append([audit.name, told["singles"], told["controls"], f"{told['auc']:.3f} ({low:.3f} to {high:.3f})", tpr])
        false = read_mart(audit.lake, "false_positives", audit.lake.latest("measure"))
        for kind in ("held_out", "left_out", "blurred"):
            rows = {row["verdict"]: row for row in false if row["tried_on"] == kind}
            called = [f"{rows[rule]['called']} (≤ {percent(rows[rule]['upper_bound'])})" for rule in DECOY_RULES]
            decoys.append([audit.name, kind, rows["copied"]["pictures"], *called])
    parts = [
        INTRODUCTION,
        table("model | rule | precision | recall | called | of those doubtful", rules),
        table("model | trained pictures tried | copies | doubtful | not tried: in another's group", tried),
        "![ROC of each statistic](verdicts_roc.svg)",
        "## Training images that came back at all",
        "Under any caption, controls' too; precision / recall against brute force over all generations and all training "
        "images: sure where a generation has the image as its nearest within l2 0.10, doubtful (left out) within 0.15.",
        table("model | sure | doubtful | " + " | ".join(CAME_BACK.values()) + " | came back by other captions alone", back),
        "Candidates against brute force, on sampled generations: share whose nearest and second nearest group were looked at, "
        "and whose nearest CLIP, and the thumbnails, found.",
        table("model | sampled | nearest | next | by CLIP | by thumbnail", recalls),
        "## Seen",
        "The statistic of `seen` (adaptive l2 of the nearest generation) of single pictures against that of controls, with 95% "
        "intervals.",
        table("model | singles | controls | AUC | TPR at 1% FPR", seen),
        "## New pictures and decoys that are called copies",
        table("model | kind | pictures | " + " | ".join(DECOY_RULES.values()), decoys),
        f"Of {SPLITS} random halves of the held-out pictures, judged by limits from the other half:",
        table(
            "model | mean share called | splits with at most 1%",
            [[audit.name, *map(percent, found[audit.name]["splits"])] for audit in audits],
        ),
        "## At the border",
        "Trained picture, the nearest generation of its caption, the nearest other trained picture. Left: called copies, the "
        "surest at the top; right: not called, the nearest to it at the top.",
        *(f"### {audit.name}\n\n![{audit.name}](verdicts_{audit.name}.png)" for audit in audits),
    ]
    return "\n\n".join(parts) + "\n"


CAME_BACK = {"copied": "copied", "by_l2": "l2 ≤ 0.15", "extracted_calibrated": "extracted_calibrated"}
DECOY_RULES = {"copied": "copied", "extracted": "l2 ≤ 0.15", "adaptive l2": "adaptive l2 ≤ 1", "ratio": "ratio < 1/3"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=", ".join(embedded.NAMES))
    parser.add_argument("--work", type=Path, help="keep the lakes here")
    arguments = parser.parse_args()
    names = arguments.models or [name for name in embedded.NAMES if name != "photographs" or photographs.DATA.exists()]
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        audits: list[Audit] = []
        found: dict[str, dict[str, Any]] = {}
        rows: list[Row] = []
        for name in names:
            begun = time.monotonic()
            audit = Audit(name, audited(name, work / name), work / name / "site")
            found[name] = {"came_back": audit.came_back(), "seen": audit.seen(), "splits": audit.splits()}
            precision, recall, _, _ = audit.precision_and_recall("extracted_calibrated")
            back, (mean, kept) = found[name]["came_back"], found[name]["splits"]
            rows += [
                Row(f"{name}: extracted_calibrated, share of the called that are no copies", 1 - precision, "", goal=0.02),
                Row(f"{name}: extracted_calibrated, share of the copies that are missed", 1 - recall, "", goal=0.05),
                Row(
                    f"{name}: images that came back at all (copied), share that did not", 1 - back["copied_precision"], "", 0.02
                ),
                Row(f"{name}: images that came back at all, share that is missed", 1 - back["copied_recall"], "", 0.05),
                Row(f"{name}: held-out pictures called copies, mean of {SPLITS} splits", mean, "", goal=RATE),
                Row(f"{name}: splits in which more than {RATE:.0%} are", 1 - kept, "", goal=0.05),
            ]
            print(f"{name}: precision {precision:.3f}, recall {recall:.3f}, {time.monotonic() - begun:.0f} s; {found[name]}")
            audits.append(audit)
        if len(audits) > 1:
            for audit in audits:
                draw_border(audit, DOCS / f"verdicts_{audit.name}.png")
            draw_roc(audits, DOCS / "verdicts_roc.svg")
            (DOCS / "verdicts.md").write_text(page(audits, found))
            write("verdicts", rows)


if __name__ == "__main__":
    main()
