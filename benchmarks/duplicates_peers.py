"""Near-duplicates among 10,000 pictures with planted copies: Eidetic beside imagededup and fastdup.

    python -m benchmarks.duplicates_peers

The peers live in virtual environments of their own, since they pin other versions than Eidetic does. A peer that is not there
is skipped, with a line that says so:

    python3.11 -m venv /tmp/peers_venv   && /tmp/peers_venv/bin/pip install imagededup==0.3.3.post2
    python3.11 -m venv /tmp/fastdup_venv && /tmp/fastdup_venv/bin/pip install fastdup==2.54
    export EIDETIC_PEERS_PYTHON=/tmp/peers_venv/bin/python EIDETIC_FASTDUP_PYTHON=/tmp/fastdup_venv/bin/python

Those are the paths that are looked at where the variables are not set. The photographs are real JPEGs of 32 × 32 pixels
(CIFAR-10's training set as a Parquet file with a column ``jpeg``) in the folder that EIDETIC_SHARED names, as in the tests.
Without them there is nothing to measure, and the command says so.

Writes benchmarks/results/duplicates_peers.json and docs/duplicates_by_change.md.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont
from threadpoolctl import threadpool_limits

from benchmarks.results import Row, write
from demo.corpus import DRAWING_SIZE, draw, logos
from transforms.kernels.cells import Spread, pairs_in_cells, principal_basis, sketch
from transforms.kernels.neighbours import Pairs
from transforms.kernels.thumbnails import joined
from transforms.kernels.verification import PIXEL_DISTANCE, PreparedPicture, align, prepare
from transforms.models.clip import ClipModel
from transforms.store.pictures import decode, thumbnail

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "demo" / "models" / "clip"
PAGE = ROOT / "docs" / "duplicates_by_change.md"

SHARED = Path(os.environ.get("EIDETIC_SHARED", ROOT.parent / "shared"))
PHOTOGRAPHS = SHARED / "data" / "cifar10_train.parquet"
IMAGEDEDUP_PYTHON = Path(os.environ.get("EIDETIC_PEERS_PYTHON", "/tmp/peers_venv/bin/python"))
FASTDUP_PYTHON = Path(os.environ.get("EIDETIC_FASTDUP_PYTHON", "/tmp/fastdup_venv/bin/python"))

SEED = 20240
ALONE = {"photographs": 3000, "logos": 600}
"""Originals without any copy."""

COPIED = {"photographs": 1000, "logos": 600}
"""Originals with ``COPIES`` copies each. In all, 4,000 + 1,200 originals and 3,000 + 1,800 copies."""

COPIES = 3

THRESHOLD = 0.9
"""Eidetic's default --duplicate_threshold."""

SHARE = 0.5
"""--thumbnail_share, where thumbnails are used."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A way in which Eidetic compares.

    Attributes:
        name: of it.
        looked_at: pairs over this cosine are compared by pixels, by collection; a photograph with a logo as photographs are.
        sure: pairs over this cosine are taken unseen: recoloured and watermarked copies, which pixels reject, are among them.
        floors, sures: lowest cosines, and cosines that are taken unseen, that are tried where recall at a peer's precision is
            asked for.
    """

    name: str
    looked_at: dict[str, float]
    sure: float
    floors: tuple[float, ...]
    sures: tuple[float, ...]


WAYS = (
    # Below 0.95 there are more pairs of photographs than the benchmark has minutes: the embedded CLIP knows no photographs.
    Way(
        "CLIP",
        {"photographs": 0.95, "logos": 0.7},
        0.995,
        (0.7, 0.8, 0.85, 0.9, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995),
        (0.98, 0.985, 0.99, 0.995, 0.998, 1.0),
    ),
    Way(
        "CLIP and thumbnails",
        {"photographs": 0.8, "logos": 0.7},
        0.9,
        (0.7, 0.75, 0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 0.92),
        (0.8, 0.82, 0.84, 0.85, 0.86, 0.87, 0.88, 0.89, 0.9, 0.92, 0.94, 1.0),
    ),
)

CUTS = (0.02, 0.04, 0.06, PIXEL_DISTANCE, 0.09, 0.1, 0.11, 0.12, 0.13, 0.14)
"""What is tried of the pixel distance."""

SETS = ("together", "photographs", "logos")

HASHES = {"PHash": 16, "DHash": 14, "AHash": 10, "WHash": 10}
"""imagededup's hashes, and up to which distance, of 64 bits, pairs are asked for. The lower ones are read off the same result.
Beyond 10 the last two find nearly a million pairs, of which one in a hundred is right."""

HASH_DISTANCE = 10
"""imagededup's default max_distance_threshold."""


# -- planting ---------------------------------------------------------------------------------------------------------


def _reencoded(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(random.integers(40, 91)))
    return Image.open(buffer).convert("RGB")


def _resized(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    factor = float(random.choice((0.5, 0.75, 1.5, 2)))
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC)


def _cropped(share: float) -> Callable[[Image.Image, np.random.Generator], Image.Image]:
    """Cuts ``share`` off one side, or off two that meet, or half of it off each of the four."""

    def crop(picture: Image.Image, random: np.random.Generator) -> Image.Image:
        width, height = picture.size
        cuts = np.zeros(4)
        way = int(random.integers(3))
        if way == 0:
            cuts[random.integers(4)] = share
        elif way == 1:
            cuts[[random.integers(2), 2 + random.integers(2)]] = share
        else:
            cuts[:] = share / 2
        # At least a pixel of what is to be cut at all.
        left, right, top, bottom = np.maximum(np.round(cuts * [width, width, height, height]), cuts > 0).astype(int).tolist()
        return picture.crop((left, top, width - right, height - bottom))

    return crop


def _mirrored(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _recoloured(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """The hue turned by 17 to 56 degrees, and darker or brighter by a fifth or a quarter."""
    values = np.asarray(picture.convert("HSV")).astype(float)
    values[..., 0] = (values[..., 0] + random.choice((-1, 1)) * random.uniform(12, 40)) % 256
    values[..., 2] = np.clip(values[..., 2] * random.choice((0.8, 1.25)), 0, 255)
    return Image.frombytes("HSV", picture.size, values.astype(np.uint8).tobytes()).convert("RGB")


def _watermarked(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """A stripe of a fifth of the height, 31% black or white, with a word on it at 55%."""
    width, height = picture.size
    band = round(height * 0.2)
    top = int(random.integers(0, height - band + 1))
    tone = int(random.choice((0, 255)))
    mark = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(mark)
    pen.rectangle((0, top, width, top + band), fill=(tone, tone, tone, 80))
    ink = (255 - tone,) * 3 + (140,)
    pen.text((width // 2, top + band // 2), "SAMPLE", fill=ink, font=ImageFont.load_default(band * 0.8), anchor="mm")
    return Image.alpha_composite(picture.convert("RGBA"), mark).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "re-encoded": _reencoded,
    "resized": _resized,
    "cropped 5%": _cropped(0.05),
    "cropped 10%": _cropped(0.1),
    "cropped 20%": _cropped(0.2),
    "mirrored": _mirrored,
    "recoloured": _recoloured,
    "watermarked": _watermarked,
}

PAIR_KINDS = (*CHANGES, "two copies")
"""A pair of an original and its copy is of the copy's kind; two copies of one original show two changes."""


@dataclasses.dataclass(frozen=True)
class Planted:
    """The pictures, in an order that is random, and the truth about them.

    Attributes:
        pictures: n of them.
        collections: (n,) photographs or logos.
        originals: (n,) int64, which original each comes from; of both collections.
        kinds: (n,) "original" or one of ``CHANGES``.
    """

    pictures: list[Image.Image]
    collections: np.ndarray
    originals: np.ndarray
    kinds: np.ndarray

    def true_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """All pairs of one original, i < j."""
        members: dict[int, list[int]] = {}
        for place, original in enumerate(self.originals.tolist()):
            members.setdefault(original, []).append(place)
        pairs = np.array([pair for group in members.values() for pair in itertools.combinations(group, 2)])
        return pairs[:, 0], pairs[:, 1]

    def pair_kinds(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The kind of each true pair."""
        first, second = self.kinds[i], self.kinds[j]
        return np.where(first == "original", second, np.where(second == "original", first, "two copies"))

    def within(self, name: str, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Which pairs lie inside one of ``SETS``."""
        if name == "together":
            return np.ones(len(i), bool)
        return (self.collections[i] == name) & (self.collections[j] == name)


def plant() -> Planted:
    """The same on every machine with the same Pillow."""
    random = np.random.default_rng(SEED)
    column = pq.read_table(PHOTOGRAPHS, columns=["jpeg"])["jpeg"]
    chosen = random.choice(len(column), ALONE["photographs"] + COPIED["photographs"], replace=False)
    # Drawn as well, and not in their order: the first are the controls, which the embedded CLIP hasn't seen.
    drawn = random.choice(len(logos()), ALONE["logos"] + COPIED["logos"], replace=False)
    sources: dict[str, Iterable[Image.Image]] = {
        "photographs": (Image.open(io.BytesIO(column[int(row)].as_py())).convert("RGB") for row in chosen),
        "logos": (draw(logos()[place], DRAWING_SIZE) for place in drawn),
    }
    names, rows, turn = list(CHANGES), [], 0
    originals = itertools.count()
    for collection, pictures in sources.items():
        for number, picture in enumerate(pictures):
            original = next(originals)
            rows.append((picture, collection, original, "original"))
            if number < ALONE[collection]:
                continue
            # Three neighbours in the list of changes, and every fourth time one is left out: so all meet all.
            for _ in range(COPIES):
                name = names[turn % len(names)]
                rows.append((CHANGES[name](picture, random), collection, original, name))
                turn += 1
            turn += number % 4 == 3
    order = random.permutation(len(rows))
    pictures, collections, ids, kinds = zip(*(rows[place] for place in order), strict=True)
    return Planted(list(pictures), np.array(collections), np.array(ids), np.array(kinds))


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Found:
    """Pairs that a tool took for duplicates.

    Attributes:
        tool: its name and setting.
        i, j: (p,) int64 pictures, each pair once.
        seconds: what all of it took, by the clock.
    """

    tool: str
    i: np.ndarray
    j: np.ndarray
    seconds: float

    def keep(self, mask: np.ndarray, tool: str) -> Found:
        return Found(tool, self.i[mask], self.j[mask], self.seconds)


@dataclasses.dataclass(frozen=True)
class Figures:
    """Precision and recall in one of ``SETS``; recall and precision by kind. Precision is 1 where nothing was found.

    Of a kind, precision counts the pairs found with a picture of that kind in them: a false pair has no kind of its own.
    """

    precision: float
    recall: float
    recall_by_kind: dict[str, float]
    precision_by_kind: dict[str, float]

    @property
    def f1(self) -> float:
        return 2 * self.precision * self.recall / max(1e-12, self.precision + self.recall)


def figures(planted: Planted, found: Found, name: str) -> Figures:
    inside = planted.within(name, found.i, found.j)
    i, j = found.i[inside], found.j[inside]
    right = planted.originals[i] == planted.originals[j]
    true_i, true_j = planted.true_pairs()
    there = planted.within(name, true_i, true_j)
    expected, got = planted.pair_kinds(true_i[there], true_j[there]), planted.pair_kinds(i[right], j[right])
    precision_by_kind = {}
    for kind in CHANGES:
        involved = (planted.kinds[i] == kind) | (planted.kinds[j] == kind)
        precision_by_kind[kind] = float(right[involved].mean()) if involved.any() else 1.0
    return Figures(
        precision=float(right.mean()) if len(right) else 1.0,
        recall=float(right.sum() / there.sum()),
        recall_by_kind={kind: float((got == kind).sum() / (expected == kind).sum()) for kind in PAIR_KINDS},
        precision_by_kind=precision_by_kind,
    )


# -- Eidetic ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Looked:
    """Eidetic's pairs, with what every setting of it decides by.

    Attributes:
        way: how they were compared.
        pairs: over ``THRESHOLD`` or the lowest cosine that is looked at, and logos over theirs.
        distances: (p,) pixel distance; infinity where the pixels were not looked at.
        embed_seconds, pair_seconds, pixel_seconds: of the three steps. Pixels: of all pairs that were looked at.
        looked: how many.
    """

    way: Way
    pairs: Pairs
    distances: np.ndarray
    embed_seconds: float
    pair_seconds: float
    pixel_seconds: float

    @property
    def looked(self) -> int:
        return int(np.isfinite(self.distances).sum())

    def alone(self, threshold: float) -> Found:
        chosen = self.pairs.cosine > threshold
        seconds = self.embed_seconds + self.pair_seconds
        return Found(f"Eidetic, {self.way.name} over {threshold:g}", self.pairs.i[chosen], self.pairs.j[chosen], seconds)

    def verified(self, floor: float, sure: float, cut: float) -> Found:
        """Pairs over ``sure``, and those over ``floor`` whose pixels are within ``cut``."""
        cosine = self.pairs.cosine
        chosen = (cosine > sure) | ((cosine > floor) & (self.distances <= cut))
        # Looking at fewer pairs takes that much less.
        share = ((cosine > floor) & np.isfinite(self.distances)).sum() / max(1, self.looked)
        seconds = self.embed_seconds + self.pair_seconds + self.pixel_seconds * float(share)
        return Found(
            f"Eidetic, {self.way.name} over {floor:g}, and pixels", self.pairs.i[chosen], self.pairs.j[chosen], seconds
        )


def all_pairs(vectors: np.ndarray, threshold: float) -> Pairs:
    """All pairs over ``threshold``, as ``eidetic deduplicate`` finds them among so few vectors."""
    one_cell = np.zeros((len(vectors), 1), np.int32)
    block = Spread(vectors, sketch(vectors, principal_basis(vectors, threshold)), one_cell)
    portions = list(pairs_in_cells(block, block, threshold, True))
    return Pairs(*(np.concatenate(columns) for columns in zip(*portions, strict=True)))


def eidetic(planted: Planted, files: list[Path]) -> list[Looked]:
    """What each of ``WAYS`` finds."""
    begun = time.monotonic()
    # From the files, as the peers do.
    pictures = [decode(file.read_bytes()) for file in files]
    vectors = ClipModel(str(CLIP)).load().encode(pictures)
    seconds = time.monotonic() - begun
    begun = time.monotonic()
    tiny = np.frombuffer(b"".join(map(thumbnail, pictures)), np.uint8).reshape(len(pictures), -1)
    both = joined(vectors, tiny, SHARE)
    more = time.monotonic() - begun
    return [
        look(planted, pictures, compared, way, spent)
        for way, compared, spent in zip(WAYS, (vectors, both), (seconds, seconds + more), strict=True)
    ]


def look(planted: Planted, pictures: list[Image.Image], vectors: np.ndarray, way: Way, embed_seconds: float) -> Looked:
    begun = time.monotonic()
    # The time is that of these; the curve needs more pairs of logos, which are few.
    lowest = min(THRESHOLD, way.looked_at["photographs"])
    pairs = all_pairs(vectors, lowest)
    pair_seconds = time.monotonic() - begun
    places = np.flatnonzero(planted.collections == "logos")
    more = all_pairs(vectors[places], way.looked_at["logos"])
    low = more.cosine <= lowest
    pairs = Pairs(
        np.concatenate([pairs.i, places[more.i[low]]]),
        np.concatenate([pairs.j, places[more.j[low]]]),
        np.concatenate([pairs.cosine, more.cosine[low]]),
    )
    looking = planted.within("logos", pairs.i, pairs.j) | (pairs.cosine > way.looked_at["photographs"])
    begun_pixels = time.monotonic()
    distances = np.full(len(pairs.i), np.inf)
    distances[looking] = pixel_distances(pictures, pairs.i[looking], pairs.j[looking])
    return Looked(way, pairs, distances, embed_seconds, pair_seconds, time.monotonic() - begun_pixels)


def pixel_distances(pictures: list[Image.Image], i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(p,) float64, on all cores."""
    blocks = np.array_split(np.argsort(i, kind="stable"), 8 * (os.cpu_count() or 1))
    left, right = [i[block] for block in blocks], [j[block] for block in blocks]
    result = np.empty(len(i))
    # Fresh ones: torch has threads by now, which don't survive a fork.
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=fresh, initializer=_start_worker, initargs=(pictures,)) as pool:
        for block, found in zip(blocks, pool.map(_block_distances, left, right), strict=True):
            result[block] = found
    return result


_pictures: list[Image.Image] = []
_prepared: dict[int, PreparedPicture] = {}


def _start_worker(pictures: list[Image.Image]) -> None:
    # On matrices as small as these, more threads only wait for each other (four times slower).
    threadpool_limits(1)
    _pictures[:] = pictures


def _block_distances(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    for place in {*i.tolist(), *j.tolist()} - _prepared.keys():
        _prepared[place] = prepare(np.asarray(_pictures[place]))
    return np.array([align(_prepared[a], _prepared[b]).distance for a, b in zip(i.tolist(), j.tolist(), strict=True)])


def curve(planted: Planted, looked: Looked, name: str, verified: bool) -> list[tuple[float, float]]:
    """(precision, recall) of every setting that is tried, in one of ``SETS``.

    One threshold for all that is in the set: a tool doesn't know which picture is a photograph.
    """
    if verified:
        floors = [floor for floor in looked.way.floors if floor >= lowest_looked_at(looked.way, name)]
        tried = [looked.verified(*setting) for setting in itertools.product(floors, looked.way.sures, CUTS)]
    else:
        lowest = min(THRESHOLD, lowest_looked_at(looked.way, name))
        steps = np.concatenate([np.arange(lowest, 0.98, 0.01), np.arange(0.98, 1.0, 0.0005)])
        tried = [looked.alone(threshold) for threshold in steps.tolist()]
    there = planted.within(name, *planted.true_pairs()).sum()
    points = []
    for found in tried:
        inside = planted.within(name, found.i, found.j)
        right = (planted.originals[found.i] == planted.originals[found.j]) & inside
        points.append((float(right.sum() / inside.sum()) if inside.any() else 1.0, float(right.sum() / there)))
    return points


def lowest_looked_at(way: Way, name: str) -> float:
    return way.looked_at["logos" if name == "logos" else "photographs"]


def recall_at(points: list[tuple[float, float]], precision: float) -> float:
    """The highest recall among the settings with at least this precision; 0 where there are none."""
    return max((recall for reached, recall in points if reached >= precision), default=0.0)


# -- the peers --------------------------------------------------------------------------------------------------------

IMAGEDEDUP_PROGRAM = """
import json, sys, time
from imagededup import methods

if __name__ == "__main__":
    folder, name, distance, out = sys.argv[1:]
    method = getattr(methods, name)(verbose=False)
    begun = time.monotonic()
    codes = method.encode_images(image_dir=folder)
    found = method.find_duplicates(encoding_map=codes, max_distance_threshold=int(distance), scores=True)
    seconds = time.monotonic() - begun
    pairs = [(one, other, int(score)) for one, others in found.items() for other, score in others if one < other]
    json.dump({"seconds": seconds, "pairs": pairs}, open(out, "w"))
"""

FASTDUP_PROGRAM = """
import json, sys, time
import fastdup

folder, work, out = sys.argv[1:]
begun = time.monotonic()
run = fastdup.create(work_dir=work, input_dir=folder)
run.run(threshold=0.8, nearest_neighbors_k=5, overwrite=True)
table = run.similarity()
seconds = time.monotonic() - begun
columns = zip(table["filename_from"], table["filename_to"], table["distance"])
pairs = {tuple(sorted((str(one).split("/")[-1], str(other).split("/")[-1]))): float(score) for one, other, score in columns}
json.dump({"seconds": seconds, "pairs": [(one, other, score) for (one, other), score in pairs.items()]}, open(out, "w"))
"""
"""Five neighbours where two are the default, and from 0.8 where 0.9 is: an original has three copies."""


def run_peer(
    tool: str, python: Path, program: str, folder: Path, *words: str, limit: int = 600
) -> tuple[Found, np.ndarray] | None:
    """Its pairs with their scores; None, and a line that says why, where there is no such tool."""
    if not python.exists():
        print(f"skipped {tool}: there is no {python}; the module's docstring has the commands that make it")
        return None
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "found.json"
        # A file and not -c: imagededup's pools of processes start it again.
        script = Path(work) / "program.py"
        script.write_text(program)
        command = [str(python), str(script), str(folder), *words, str(out)]
        quiet = {**os.environ, "SENTRY_OPT_OUT": "1"}
        try:
            done = subprocess.run(command, cwd=work, env=quiet, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            print(f"skipped {tool}: it was not done after {limit} seconds")
            return None
        if not out.exists():
            print(f"skipped {tool}: it ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
            return None
        result = json.loads(out.read_text())
    pairs = np.array([(int(one.split(".")[0]), int(other.split(".")[0])) for one, other, _ in result["pairs"]]).reshape(-1, 2)
    i, j = pairs.min(axis=1), pairs.max(axis=1)
    return Found(tool, i, j, result["seconds"]), np.array([score for *_, score in result["pairs"]])


def peers(folder: Path) -> dict[str, list[Found]]:
    """Every peer's pairs at each of its settings, its default first."""
    result = {}
    for name, farthest in HASHES.items():
        ran = run_peer(f"imagededup {name}", IMAGEDEDUP_PYTHON, IMAGEDEDUP_PROGRAM, folder, name, str(farthest))
        if ran is not None:
            found, scores = ran
            distances = [HASH_DISTANCE, *(distance for distance in range(0, farthest + 1, 2) if distance != HASH_DISTANCE)]
            result[found.tool] = [found.keep(scores <= most, f"{found.tool} ≤ {most}") for most in distances]
    with tempfile.TemporaryDirectory() as work:
        ran = run_peer("fastdup", FASTDUP_PYTHON, FASTDUP_PROGRAM, folder, work)
    if ran is not None:
        found, scores = ran
        least = (0.96, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
        result["fastdup"] = [found.keep(scores >= score, f"fastdup ≥ {score}") for score in least]
    return result


# -- the results ------------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def tables(planted: Planted, ways: list[Looked], rivals: dict[str, list[Found]]) -> tuple[str, list[Row]]:
    """The tables of docs/duplicates_by_change.md, and the rows of the benchmark."""
    lines, rows = [], []
    n = len(planted.pictures)
    for name in SETS:
        curves = [curve(planted, looked, name, verified) for looked in ways for verified in (False, True)]
        ours = []
        for looked in ways:
            ours += [looked.alone(THRESHOLD), default(looked, name)]
        ours.insert(1, ways[0].alone(ways[0].way.sure))
        best = {tool: max(points, key=lambda found: figures(planted, found, name).f1) for tool, points in rivals.items()}
        shown = list(ours)
        for tool, points in rivals.items():
            shown += [points[0]] if best[tool] is points[0] else [points[0], best[tool]]
        count = len(planted.pictures) if name == "together" else int((planted.collections == name).sum())
        pairs = int(planted.within(name, *planted.true_pairs()).sum())
        lines += [f"## {name.capitalize()}: {count:,} pictures, {pairs:,} pairs of one original", ""]
        for title, kinds in (("recall", PAIR_KINDS), ("precision", tuple(CHANGES))):
            header = f"| {title}, % | precision | recall | {' | '.join(kinds)} |"
            lines += [header, "|" + "---|" * (len(kinds) + 3)]
            for found in shown:
                of = figures(planted, found, name)
                by_kind = of.recall_by_kind if title == "recall" else of.precision_by_kind
                cells = " | ".join(percent(by_kind[kind]) for kind in kinds)
                lines.append(f"| {found.tool} | {percent(of.precision)} | {percent(of.recall)} | {cells} |")
            lines.append("")
        if best:
            lines += [
                "| at the precision of | precision, % | its recall | CLIP alone | CLIP, pixels | CLIP and thumbnails | "
                "CLIP and thumbnails, pixels |",
                "|---|---|---|---|---|---|---|",
            ]
        for found in best.values():
            of = figures(planted, found, name)
            recalls = [recall_at(points, of.precision) for points in curves]
            cells = " | ".join(map(percent, (of.precision, of.recall, *recalls)))
            lines.append(f"| {found.tool} | {cells} |")
            missed = 1 - of.recall
            rows.append(
                Row(
                    f"{name}: pairs missed at its precision, CLIP and thumbnails, pixels",
                    1 - recalls[-1],
                    "of pairs",
                    goal=1.0,
                    peer=found.tool,
                    peer_value=max(missed, 1e-9),
                )
            )
        lines.append("")
    lines += [f"## Time, {n:,} pictures", "", "| tool | seconds | pictures a second |", "|---|---|---|"]
    ours = [found for looked in ways for found in (looked.alone(THRESHOLD), default(looked, "together"))]
    for found in (*ours, *(points[0] for points in rivals.values())):
        lines.append(f"| {found.tool} | {found.seconds:.1f} | {n / found.seconds:,.0f} |")
    lines += [
        "",
        *(
            f"{looked.way.name}: {looked.embed_seconds:.1f} s to decode and embed, {looked.pair_seconds:.1f} s for pairs, "
            f"{looked.pixel_seconds:.1f} s for the pixels of {looked.looked:,} pairs "
            f"({1000 * looked.pixel_seconds / max(1, looked.looked):.2f} ms each, on {os.cpu_count()} cores)."
            for looked in ways
        ),
    ]
    for tool, points in rivals.items():
        rows.append(
            Row(
                f"{n:,} pictures with planted copies, CLIP and thumbnails, pixels",
                ours[-1].seconds,
                "s",
                # A hash looks at no more than 64 bits of a picture, a model at all of it.
                goal=1.0 if tool == "fastdup" else 10.0,
                peer=tool,
                peer_value=points[0].seconds,
            )
        )
    return "\n".join(lines), rows


def default(looked: Looked, name: str) -> Found:
    """With pixels, as it is shown."""
    return looked.verified(max(0.8, lowest_looked_at(looked.way, name)), looked.way.sure, PIXEL_DISTANCE)


INTRODUCTION = """# Near-duplicates by kind of change

Made by `python -m benchmarks.duplicates_peers`; do not edit. What it plants, measures and leaves out is said there.

Photographs of 32 × 32 pixels (CIFAR-10) and logos, drawn at {drawn} × {drawn}. {copied[photographs]:,} photographs and
{copied[logos]:,} logos have {copies} copies each, with different changes; {alone[photographs]:,} and {alone[logos]:,} have
none. **re-encoded**: JPEG, quality 40 to 90; **resized**: by 0.5 to 2; **cropped**: the share cut off one side, off two, or
half of it off all four;
**mirrored**; **recoloured**: hue turned by 17 to 56 degrees and darker or brighter by a fifth or a quarter; **watermarked**: a
half-transparent stripe with a word on it. Every tool reads the same PNG files.

True are the pairs of one original. CIFAR-10 has the same photograph several times here and there; such pairs count as false for
every tool. Recall by kind is that of pairs of an original and its copy; *two copies* are pairs of two copies. Precision by
kind: of the pairs found with a picture of that kind in them.

**The embedded CLIP was trained on about a thousand logos and on no photograph.** The logos here are drawn from all {logos:,} of
the corpus, so most of them are among those it has seen, which helps it on logos; and what it does on photographs says little
about a CLIP that was trained on the web. Where a peer is ahead it is left to stand.

Eidetic's rows: pairs over the cosine alone, which is CLIP's, or with *thumbnails* the mean of CLIP's and of the correlation of
8 × 8 thumbnails (`--thumbnail_share {share}`); then *and pixels*: a pair over {clip.sure} (thumbnails: {both.sure}) is
taken unseen, one between the floor in its name and that if its pixel distance is at most {cut}
(`transforms/kernels/verification.py`). That is `--duplicate_threshold` at the floor, `--pixel_band` up to what is sure, and
`--pixels_decide`. Recoloured and watermarked copies differ in their pixels, so only those that the cosine is sure of are found.

The peers: each at its default, and at the setting with its best F1 in that set where that's another one. Tried were
imagededup's `max_distance_threshold` from 0 to {hashes[PHash]} (PHash), {hashes[DHash]} (DHash) and {hashes[AHash]} (the
others; {hash_distance} is its default), and fastdup's similarity from 0.8 to 0.995 (0.96 is its default for components) with
five neighbours instead of two. imagededup's CNN is not here: its weights come from the network. fastdup's model ships in its
wheel and runs offline.

Where Eidetic is compared *at the precision of* a peer, it's the highest recall among Eidetic's settings with at least the
peer's precision. Both sides choose their setting knowing the truth, and Eidetic chooses among more of them: three numbers are
tried (floor, sure cosine, pixel distance), of a peer one. The pixel distance's own limit and the share of the thumbnail were
chosen on these very pictures: nothing was held out. The hashes' best F1 may lie at a very low precision; to be ahead of those
says little.

Times are by the clock, on a machine that others used too. Eidetic's are of its model and kernels without Beam and tables; the
peers' of their own calls, after their imports.
"""


def main() -> None:
    if not PHOTOGRAPHS.exists():
        print(f"skipped duplicates_peers: there are no photographs at {PHOTOGRAPHS}; EIDETIC_SHARED names the shared folder")
        return
    planted = plant()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        folder.mkdir()
        files = [folder / f"{number:05d}.png" for number in range(len(planted.pictures))]
        for file, picture in zip(files, planted.pictures, strict=True):
            picture.save(file)
        ways = eidetic(planted, files)
        rivals = peers(folder)
    text, rows = tables(planted, ways, rivals)
    introduction = INTRODUCTION.format(
        clip=WAYS[0],
        both=WAYS[1],
        share=SHARE,
        cut=PIXEL_DISTANCE,
        logos=len(logos()),
        drawn=DRAWING_SIZE,
        copied=COPIED,
        alone=ALONE,
        copies=COPIES,
        hashes=HASHES,
        hash_distance=HASH_DISTANCE,
    )
    PAGE.write_text(f"{introduction}\n{text}\n")
    rows.append(
        Row(
            "pixels of a pair, on one core",
            1000 * ways[0].pixel_seconds * (os.cpu_count() or 1) / max(1, ways[0].looked),
            "ms",
            goal=10,
        )
    )
    write("duplicates_peers", rows)


if __name__ == "__main__":
    main()
