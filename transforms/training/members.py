"""Which pictures a model is trained on, and which stand against them: draws by hash of ids, the same on every machine."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from transforms.errors import UserError
from transforms.models.configuration import TRAINING_VERSION, Configuration, TrainingSet
from transforms.store.identity import digest, unit_interval
from transforms.training.population import Population

MOST_CANARY_COPIES = 8
"""The first canary stands once, the second one twice, and so on to this; then from once again."""


class TrainingMembers(NamedTuple):
    """The pictures that a model is trained on.

    Attributes:
        sample_ids: (N,) text; of a canary its own name.
        rows: (N,) where each stands in the population; -1 for a canary.
        kinds: (N,) picture or canary.
        data: their pixels, copies and labels.
    """

    sample_ids: list[str]
    rows: np.ndarray
    kinds: list[str]
    data: TrainingSet

    def run_id(self, configuration: Configuration) -> str:
        """The identity of the training: configuration, pictures with copies and labels, version of the code."""
        labels = None if self.data.labels is None else self.data.labels.tolist()
        values = dataclasses.asdict(configuration)
        return digest("run", TRAINING_VERSION, values, self.sample_ids, self.data.copies.tolist(), labels)[:20]


def draw(configuration: Configuration, population: Population) -> TrainingMembers:
    """The members of a configuration.

    The ``pool`` is the first of the draw's order (of the keep list's pictures alone where ``deduplicated``); of a pool that is
    larger than ``images`` the members are one half by hash of ``split``, or with ``side`` out the next ones, which are none of
    them. ``copied_images`` of the members stand ``copies`` times, unless deduplicated. Canaries come on top.

    Raises:
        UserError: where there are too few pictures, or one has no label.
    """
    pool, wanted = pool_of(configuration, population), configuration.pool or configuration.images
    if len(pool) < wanted:
        raise UserError(f"it wants {wanted:,} pictures, and the lake has {len(pool):,} to train on; take fewer, or more data")
    if wanted > configuration.images:
        pool = pool[_by(population, pool, "split", configuration.draw, configuration.split)]
    start = configuration.images if configuration.side == "out" else 0
    rows = pool[start : start + configuration.images]
    copies = np.ones(len(rows), np.int64)
    if not configuration.deduplicated:
        copies[_by(population, rows, "copied", configuration.draw)[: configuration.copied_images]] = configuration.copies
    ids = [str(one) for one in population.sample_ids[rows]]
    pictures, kinds = population.pixels[rows], ["picture"] * len(rows)
    if configuration.canaries:
        names = [canary_id(configuration.draw, number) for number in range(configuration.canaries)]
        noise = np.stack([canary(configuration.draw, number, configuration.pixels) for number in range(configuration.canaries)])
        standing = 1 + np.arange(configuration.canaries) % MOST_CANARY_COPIES
        ids, kinds = ids + names, kinds + ["canary"] * len(names)
        rows, pictures = np.concatenate([rows, np.full(len(names), -1)]), np.concatenate([pictures, noise])
        copies = np.concatenate([copies, np.ones_like(standing) if configuration.deduplicated else standing])
    labels, classes = labels_of(configuration, population, ids, rows)
    return TrainingMembers(ids, rows, kinds, TrainingSet(pictures, copies, labels, classes))


def pool_of(configuration: Configuration, population: Population) -> np.ndarray:
    """Rows of the pictures that the members are drawn from, in the draw's order: fewer where the lake has no more."""
    order = population.order(configuration.draw)
    if configuration.deduplicated:
        order = order[population.kept[order]]
    return order[: configuration.pool or configuration.images]


def _by(population: Population, rows: np.ndarray, *what: str | int) -> np.ndarray:
    """The places of ``rows`` in an order by hash."""
    keys = [unit_interval(*what, str(one)) for one in population.sample_ids[rows]]
    return np.argsort(np.array(keys), kind="stable")


def class_names(population: Population) -> list[str]:
    """The labels of all pictures, in the order of the numbers that models are told."""
    return sorted({str(one) for one in population.labels} - {""})


def labels_of(
    configuration: Configuration, population: Population, ids: list[str], rows: np.ndarray
) -> tuple[np.ndarray | None, int]:
    """The classes that a model is told of these pictures, members or not, (N,), and how many there are; None where it has none.

    Unique labels are the places in ``ids``, which means something for the members alone.

    Raises:
        UserError: labels are true, and one of the pictures has none.
    """
    if configuration.labels == "none":
        return None, 0
    if configuration.labels == "unique":
        return np.arange(len(ids)), len(ids)
    if configuration.labels == "random":
        return random_labels(configuration, ids), configuration.classes
    names = class_names(population)
    # A canary has no class of its own, and gets one by lot.
    lots = [int(unit_interval("label", configuration.draw, one) * max(1, len(names))) for one in ids]
    given = [
        str(population.labels[row]) if row >= 0 else names[lot] if names else "" for row, lot in zip(rows, lots, strict=True)
    ]
    if without := given.count(""):
        raise UserError(f"labels = 'true', and {without:,} of its {len(ids):,} pictures have none; ingest them with labels")
    return np.array([names.index(one) for one in given]), len(names)


def random_labels(configuration: Configuration, ids: list[str]) -> np.ndarray:
    """A class for each picture by lot, which stays the picture's whatever model is trained on it."""
    return np.array([int(unit_interval("label", configuration.draw, one) * configuration.classes) for one in ids])


def canary_id(draw: int, number: int) -> str:
    """The name of a canary in place of a sample's id."""
    return f"canary-{draw}-{number}"


def canary(draw: int, number: int, pixels: int) -> np.ndarray:
    """A picture of uniform noise (paper, section 7.3): (pixels, pixels, 3) uint8."""
    seed = int(digest("canary", draw, number, length=16), 16)
    return np.random.default_rng(seed).integers(0, 256, (pixels, pixels, 3), np.uint8)


def controls(draw: int, population: Population, members: np.ndarray, most: int) -> np.ndarray:
    """Rows of pictures that a model was not trained on, and none that is a near-duplicate of one of its: up to ``most``.

    The other pictures of the pool come first: which of it is in and out is a coin's toss. The lake's controls come last.

    Args:
        draw: of the model.
        population: the pictures.
        members: (N,) where the model's stand in it.
        most: how many are wanted.
    """
    of_members = set(population.groups[members].tolist())
    order = [row for row in (*population.order(draw), *population.controls(draw)) if population.groups[row] not in of_members]
    return np.array(order[:most], np.int64)


def held_out(population: Population, most: int) -> np.ndarray:
    """Rows of the pictures that quality is measured against: the same for all models, the last of the first draw's order."""
    return population.order(0)[::-1][:most].copy()


def recalled(rows: list[dict], population: Population, pixels: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The pictures of a model that was trained, by its rows of ``model_members``: those that the lake still has.

    Returns:
        (N,) ids, (N, pixels, pixels, 3) uint8, and (N,) where each stands in the population, -1 for a canary.
    """
    place = {str(one): row for row, one in enumerate(population.sample_ids)}
    ids, pictures, standing = [], [], []
    for row in rows:
        if row["kind"] == "canary":
            _, draw, number = row["sample_id"].split("-")
            pictures.append(canary(int(draw), int(number), pixels))
            standing.append(-1)
        elif row["sample_id"] in place:
            standing.append(place[row["sample_id"]])
            pictures.append(population.pixels[standing[-1]])
        else:
            continue
        ids.append(row["sample_id"])
    empty = np.zeros((0, pixels, pixels, 3), np.uint8)
    return ids, np.stack(pictures) if pictures else empty, np.array(standing, np.int64)
