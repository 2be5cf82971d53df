"""The corpus of the embedded model of photographs: some CIFAR-10 pictures, repeated, each with a caption to tell it by.

No picture lies in this project. They are chosen out of CIFAR-10's training pictures in ``DATA`` by the hash of their names, so
that everyone who has that file has the same corpus. Most captions name the picture ("a photograph of a frog, velmira tosk"; the
words mean nothing). Some say the class alone, as captions on the web do: a few triples of repeated pictures share such a
caption, and some controls have one. So this model returns copies of training pictures under the captions of other pictures.

``build`` writes the pictures and the LAION-style metadata, in the layout of ``demo.corpus``:

    site/pictures/<key>.png   the files that ``demo.serve`` serves
    site/metadata.parquet     one row per training sample; the copies of a picture differ in the url's ``?c=``
    site/controls.parquet     the same columns, for pictures that the model never saw
    site/truth.parquet        which picture each row is (``slug``), and its number of copies
    site/corpus.json          written last: what this corpus was made of, so that it isn't made again
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from demo import corpus
from demo.corpus import Example, stable_number

DATA = Path(__file__).resolve().parent.parent / ".." / "shared" / "data" / "cifar10_train.parquet"
"""CIFAR-10's training pictures: columns ``id`` (train/frog/0123), ``label`` and ``jpeg``."""

SIZE = 32
"""Side of the pictures in pixels."""

COPIES_PLAN = {1: 180, 2: 24, 4: 20, 8: 18, 16: 22, 32: 22, 64: 20}
"""Copies of a picture → number of pictures. Many of the repeated ones are repeated often: what is seen a few hundred times in
training is remembered, and a single picture should be far from that when the often repeated ones are."""

CONTROLS = 150

NEAREST_TRAINED = 0.15
"""No two trained pictures lie within this l2 (the paper's delta)."""

NEAREST_CONTROL = 0.10
"""No control lies within this l2 of any other picture. It is smaller: controls are to be as near as new pictures happen to be,
and only what could be taken for the same picture is left out."""

TRIPLES = 4
"""Classes of which three repeated pictures share the caption that says the class alone."""

TRIPLE_COPIES = (16, 32)
"""Copies of the pictures in triples: often enough to come back."""

CONTROLS_BY_CLASS = 22
"""Controls whose caption says the class alone."""

_ONSETS = ("b", "br", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pl", "r", "s", "sk", "st", "t",
           "tr", "v", "w", "z")  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
_CODAS = ("", "", "l", "m", "n", "r", "s", "sk", "t", "x")


@functools.cache
def _table() -> tuple[list[str], list[str], list[bytes]]:
    """(ids, labels, encoded pictures) of all of CIFAR-10's training pictures, in an order that is random but fixed."""
    if not DATA.exists():
        raise FileNotFoundError(f"CIFAR-10 is not there: {DATA}")
    rows = pq.read_table(DATA, columns=["id", "label", "jpeg"]).to_pylist()
    rows.sort(key=lambda row: stable_number("photograph", row["id"]))
    return [row["id"] for row in rows], [row["label"] for row in rows], [row["jpeg"] for row in rows]


def _decoded(content: bytes) -> np.ndarray:
    """(32, 32, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@functools.cache
def _chosen() -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray]:
    """(rows of trained pictures, rows of controls, pictures of both: (n, 32, 32, 3) uint8), rows being those of ``_table``."""
    _, _, encoded = _table()
    trained_number = sum(COPIES_PLAN.values())
    rows: list[int] = []
    pictures = np.empty((trained_number + CONTROLS, SIZE * SIZE * 3), dtype=np.float32)
    for row, content in enumerate(encoded):
        picture = _decoded(content).astype(np.float32).ravel() / 255
        allowed = NEAREST_TRAINED if len(rows) < trained_number else NEAREST_CONTROL
        distances = np.sqrt(np.square(pictures[: len(rows)] - picture).mean(axis=1))
        if (distances > allowed).all():
            pictures[len(rows)] = picture
            rows.append(row)
        if len(rows) == len(pictures):
            break
    decoded = np.rint(pictures * 255).astype(np.uint8).reshape(-1, SIZE, SIZE, 3)
    return tuple(rows[:trained_number]), tuple(rows[trained_number:]), decoded


def _by_class(label: str) -> str:
    return f"a photograph of {'an' if label[0] in 'aeiou' else 'a'} {label}"


def _word(*seed: object) -> str:
    """A made-up word of two or three syllables."""
    random = np.random.default_rng(stable_number("word", *seed))
    syllables = int(random.integers(2, 4))
    return "".join(
        _ONSETS[random.integers(len(_ONSETS))]
        + _VOWELS[random.integers(len(_VOWELS))]
        + (_CODAS[random.integers(len(_CODAS))] if part == syllables - 1 else "")
        for part in range(syllables)
    )


def _words(ids: list[str]) -> list[str]:
    """Two words for each picture; no word occurs twice in the corpus."""
    used: set[str] = set()
    phrases = []
    for name in ids:
        pair = []
        for place in range(2):
            attempt = 0
            while (word := _word(name, place, attempt)) in used:
                attempt += 1
            used.add(word)
            pair.append(word)
        phrases.append(" ".join(pair))
    return phrases


def _triples(labels: list[str], copies: list[int]) -> set[int]:
    """Places of the pictures that share a caption with two others: the first three of a class, of ``TRIPLES`` classes."""
    places: set[int] = set()
    classes = sorted(set(labels), key=lambda label: stable_number("triple", label))
    for label in classes:
        members = [i for i, number in enumerate(copies) if labels[i] == label and number in TRIPLE_COPIES]
        if len(members) >= 3 and len(places) < 3 * TRIPLES:
            places.update(members[:3])
    return places


@functools.cache
def split() -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Trained pictures, the most repeated first, and controls. FileNotFoundError where CIFAR-10 isn't there."""
    ids, labels, _ = _table()
    trained_rows, control_rows, pictures = _chosen()
    rows = [*trained_rows, *control_rows]
    copies = [number for number, times in sorted(COPIES_PLAN.items(), reverse=True) for _ in range(times)]
    classes = [labels[row] for row in rows]
    by_class = _triples(classes[: len(trained_rows)], copies)
    # Spread evenly, so that a smaller corpus has its share of them.
    by_class |= {len(trained_rows) + CONTROLS * number // CONTROLS_BY_CLASS for number in range(CONTROLS_BY_CLASS)}
    phrases = _words([ids[row] for row in rows])
    examples = [
        Example(
            key=ids[row].removeprefix("train/").replace("/", "-"),
            caption=_by_class(label) if place in by_class else f"{_by_class(label)}, {phrase}",
            copies=number,
            picture=picture,
        )
        for place, (row, label, phrase, number, picture) in enumerate(
            zip(rows, classes, phrases, [*copies, *[0] * len(control_rows)], pictures, strict=True)
        )
    ]
    return tuple(examples[: len(trained_rows)]), tuple(examples[len(trained_rows) :])


def others(number: int) -> np.ndarray:
    """(number, 32, 32, 3) uint8: pictures that are neither trained on nor controls, for the autoencoder."""
    trained_rows, control_rows, _ = _chosen()
    taken = {*trained_rows, *control_rows}
    _, _, encoded = _table()
    free = [content for row, content in enumerate(encoded) if row not in taken]
    return np.stack([_decoded(content) for content in free[:number]])


def build(site: Path, base_url: str, scale: float = 1.0) -> None:
    """Writes pictures, metadata and truth into ``site``, unless they are there; ``base_url`` is where they'll be served.

    ``scale`` takes so much of the pictures with each number of copies, at least one, and of the controls; triples stay whole.
    """
    made_of = {
        "base_url": base_url,
        "scale": scale,
        "plan": "photographs",
        "data": hashlib.file_digest(DATA.open("rb"), "sha256").hexdigest(),
        "program": [hashlib.sha256(Path(module).read_bytes()).hexdigest() for module in (__file__, corpus.__file__)],
        **{name: importlib.metadata.version(name) for name in ("pillow", "pyarrow")},
    }
    with corpus.made_once(site, made_of) as to_do:
        if to_do:
            corpus.write_site(site, base_url, *_scaled(scale))


def _scaled(scale: float) -> tuple[list[Example], list[Example]]:
    trained, controls = split()
    shared = Counter(example.caption for example in trained)
    kept: list[Example] = []
    for copies, number in COPIES_PLAN.items():
        members = [example for example in trained if example.copies == copies]
        room = max(1, round(number * scale))
        kept += [example for place, example in enumerate(members) if place < room or shared[example.caption] > 1]
    return kept, list(controls[: max(1, round(CONTROLS * scale))])
