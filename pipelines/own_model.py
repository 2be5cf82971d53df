"""Membership inference of a model of one's own: what ``eidetic infer --model`` does. No verb, and the lake stays as it is.

Whether the model was trained on a picture isn't known here. So each score stands beside those of the lake's controls, which no
model of its owner was trained on, and all pictures together get the verdict of CDI against them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.infer import InferOptions, OwnModelOptions, questions_of
from pipelines.lookup import brought
from pipelines.query import as_table
from transforms.errors import UserError
from transforms.store.files import exists, read_bytes, write_parquet
from transforms.store.lake import Lake
from transforms.store.lineage import check_lineage, lineage
from transforms.store.listings import decode_text
from transforms.store.scan import ask
from transforms.store.texts import written_name
from transforms.store.tombstones import Tombstones

if TYPE_CHECKING:
    from transforms.models.unconditional import DiffusionPictures, GanPictures

CONTROLS = 1024
"""Controls of the lake that pictures are held against, at most."""

SHOWN = 20
"""Pictures that are printed; --out has all."""

SCHEMA = pa.schema(
    [
        ("picture", pa.string()), ("status", pa.string()), ("attack", pa.string()), ("timestep", pa.int32()),
        ("score", pa.float64()), ("p_value", pa.float64()),
    ]
)  # fmt: skip
"""One row a picture, attack and timestep, and one without an attack where the picture can't be read. score: higher = member.
p_value: share of the lake's controls, and of the picture itself, whose score is as high."""


class SizedPictures(NamedTuple):
    """Pictures at the model's size."""

    ids: list[str]
    pixels: np.ndarray


def run(lake: Lake, options: InferOptions, own: OwnModelOptions, device: str) -> tuple[list[dict[str, Any]], Any]:
    """Rows of ``SCHEMA``, and the verdict on all pictures.

    Args:
        lake: the lake: its controls, its pictures where ids are named, and its models where a cohort is.
        options: how the model is asked, and by which attacks.
        own: which model, pictures and shadows.
        device: cpu, cuda or cuda:1.

    Raises:
        UserError: where model, pictures or cohort aren't there, don't fit to each other, or nothing is left to attack with.
    """
    from transforms.attacks.membership import signals_of
    from transforms.attacks.shadows import MEMBERSHIP_ATTACKS
    from transforms.kernels.membership import dataset_inference

    model = _loaded(own.model or "", device)
    if model.classes:
        raise UserError(
            f"the model {own.model!r} is told one of {model.classes} classes, which pictures of one's own don't have"
        )
    family = "diffusion" if hasattr(model, "levels") else "gan"
    attacks = [MEMBERSHIP_ATTACKS[name] for name in options.chosen_attacks() if family in MEMBERSHIP_ATTACKS[name].families]
    # RMIA would take a population that neither the model nor its shadows saw.
    attacks = [one for one in attacks if one.name != "rmia" and (own.shadows is not None or not one.shadowed)]
    if not attacks:
        without = " without --shadows" if own.shadows is None else ""
        raise UserError(
            f"none of --attacks {' '.join(options.chosen_attacks())} can be made on a {family} model of one's own{without}"
        )
    named, failed = _pictures(lake, own.images or "", model.shape)
    controls = _controls(lake, model.shape, set(named.ids))
    questions = questions_of(options)
    both = SizedPictures(named.ids + controls.ids, np.concatenate([named.pixels, controls.pixels]))
    said = signals_of(model, both.pixels, both.ids, None, questions, questions.signals)
    shadows = None
    if own.shadows is not None:
        losses, inside = _of_shadows(lake, own.shadows, family, both, questions, device)
        # Where the model is one of the cohort's, it is no shadow of itself.
        apart = np.array([not np.array_equal(one, said["loss"].mean((1, 2))) for one in losses])
        shadows = losses[apart], inside[apart]
    rows = [{**dict.fromkeys(SCHEMA.names), "picture": name, "status": f"failed: {reason}"} for name, reason in failed]
    count = len(named.ids)
    for attack in attacks:
        signal = said[attack.signal].mean((1, 2))
        for at, step in enumerate(_timesteps(attack.signal, family, model, options)):
            if attack.shadowed is None:
                scores = -signal[at]
            else:
                assert shadows is not None, "shadowed attacks were left out"
                scores = _shadowed(attack, signal[at], shadows[0][:, at], shadows[1])
            for name, score in zip(named.ids, scores[:count], strict=True):
                known = bool(np.isfinite(score))
                others = scores[count:][np.isfinite(scores[count:])]
                as_high = (1 + int((others >= score).sum())) / (1 + len(others))
                rows.append({
                    "picture": name, "status": "success" if known else "no score", "attack": attack.name, "timestep": step,
                    "score": float(score) if known else None, "p_value": as_high if known and len(others) else None,
                })  # fmt: skip
    features = np.concatenate([values.mean((1, 2)) for values in said.values()]).T
    usable = np.isfinite(features).all(axis=1)
    suspects, against = features[:count][usable[:count]], features[count:][usable[count:]]
    return rows, dataset_inference(suspects, against, options.infer_seed)


def _timesteps(signal: str, family: str, model: Any, options: InferOptions) -> Sequence[int | None]:
    from transforms.attacks.membership import SECMI_STEPS, secmi_interval

    if family == "gan":
        return [None]
    return [SECMI_STEPS * secmi_interval(len(model.levels))] if signal == "secmi" else options.steps()


def _shadowed(attack: Any, target: np.ndarray, losses: np.ndarray, inside: np.ndarray) -> np.ndarray:
    from transforms.attacks.shadows import Losses

    none = np.zeros((len(losses), 0))
    return attack.shadowed(Losses(target, losses, inside, none[0], none))


def _loaded(folder: str, device: str) -> DiffusionPictures | GanPictures:
    from transforms.models.unconditional import load

    if not os.path.isdir(folder):
        raise UserError(f"there is no folder --model {folder!r}; name a model's, as diffusers writes it")

    def read(name: str) -> bytes | None:
        path = f"{folder}/{name}"
        return read_bytes(path) if exists(path) else None

    return load(read, folder, device)


def _pictures(lake: Lake, named: str, shape: tuple[int, int, int]) -> tuple[SizedPictures, list[tuple[str, str]]]:
    """The pictures that are named, at the model's size, and (name, reason) of those that can't be read."""
    found: list[tuple[str, np.ndarray | str]]
    if os.path.isdir(named):
        found = list(brought([named], True))
    elif os.path.isfile(named):
        ids = list(dict.fromkeys(decode_text(read_bytes(named)).split()))
        if not ids:
            raise UserError(f"--images {written_name(named)!r} is empty, expected ids of samples, one a line")
        found = _of_lake(lake, ids)
    else:
        raise UserError(f"there is no folder of pictures, or file of ids, --images {named!r}")
    failed = [(name, one) for name, one in found if isinstance(one, str)]
    there = [(name, one) for name, one in found if not isinstance(one, str)]
    if not there:
        raise UserError(f"none of {len(failed):,} --images can be used; the first: {failed[0][0]}: {failed[0][1]}")
    return _sized(there, shape), failed


def _sized(pictures: Sequence[tuple[str, np.ndarray]], shape: tuple[int, int, int]) -> SizedPictures:
    from transforms.training.population import shrunk

    if shape[0] != 3 or shape[1] != shape[2]:
        raise UserError(f"a model of pictures {shape[2]} x {shape[1]} with {shape[0]} channels, expected square ones of 3")
    made = [shrunk(one, shape[1]) for _, one in pictures]
    empty = np.zeros((0, shape[1], shape[1], 3), np.uint8)
    return SizedPictures([name for name, _ in pictures], np.stack(made) if made else empty)


def _of_lake(lake: Lake, ids: Sequence[str]) -> list[tuple[str, np.ndarray | str]]:
    """(id, picture) of samples, or why there is none."""
    from transforms.data.images import ImageStore

    made_of = lineage(lake, lake.latest("deduplicate"))
    store = ImageStore(lake, made_of["ingest"].snapshot_id, made_of["embed"].snapshot_id)
    forgotten = Tombstones.read(lake).samples
    found: list[tuple[str, np.ndarray | str]] = []
    for one in ids:
        if one in forgotten:
            found.append((one, "it was forgotten"))
            continue
        try:
            found.append((one, store.get(one)))
        except KeyError:
            found.append((one, "the lake has no picture of this id"))
        except ValueError as error:
            found.append((one, str(error)))
    return found


def _controls(lake: Lake, shape: tuple[int, int, int], without: set[str]) -> SizedPictures:
    """The lake's controls, up to ``CONTROLS`` by hash, but for those that are asked about."""
    deduplicate = lake.latest("deduplicate")
    check_lineage(lake, [deduplicate], whole=False)
    query = """
        SELECT sample_id FROM samples WHERE role = 'control' AND status = 'success'
        ORDER BY sha256('control' || sample_id) LIMIT $most
    """
    ingest = lineage(lake, deduplicate)["ingest"].snapshot_id
    ids = [row["sample_id"] for row in ask(lake, {"samples": ingest}, query, most=CONTROLS)]
    found = _of_lake(lake, [one for one in ids if one not in without])
    return _sized([(name, one) for name, one in found if not isinstance(one, str)], shape)


def _of_shadows(
    lake: Lake, cohort: str, family: str, pictures: SizedPictures, questions: Any, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a cohort's models at the end of training, (m, s, n), and whether each was trained on the picture, (m, n)."""
    from transforms.attacks.membership import signals_of
    from transforms.attacks.shadows import FEWEST_SHADOWS
    from transforms.training.runs import load_model, members_of

    train = lake.latest("train")
    query = """
        SELECT run_id, step, cohort, family, labels, brought FROM models
        WHERE status = 'success' AND last AND brought IS NULL
        ORDER BY run_id
    """
    models = ask(lake, {"models": train.snapshot_id}, query)
    mine = [one for one in models if one["cohort"] == cohort]
    if not mine:
        known = sorted({one["cohort"] for one in models})
        more = f" and {len(known) - 5} others" if len(known) > 5 else ""
        raise UserError(f"there is no cohort --shadows {cohort!r} in the latest train; it has {', '.join(known[:5])}{more}")
    if len(mine) < FEWEST_SHADOWS:
        raise UserError(f"the cohort --shadows {cohort!r} has {len(mine)} model, expected {FEWEST_SHADOWS} or more")
    if mine[0]["family"] != family or mine[0]["labels"] != "none":
        raise UserError(
            f"the cohort --shadows {cohort!r} is of family {mine[0]['family']} with labels {mine[0]['labels']}, "
            f"expected {family} without labels as --model is"
        )
    losses, inside = [], []
    for one in mine:
        shadow = load_model(lake, one, device)
        said = signals_of(shadow, pictures.pixels, pictures.ids, None, questions, ("loss",))
        losses.append(said["loss"].mean((1, 2)))
        given = {row["sample_id"] for row in members_of(lake, one["run_id"])}
        inside.append([each in given for each in pictures.ids])
    return np.stack(losses), np.array(inside, bool)


def told(rows: Sequence[dict[str, Any]], verdict: Any) -> str:
    """Scores of the first pictures, each attack at its middle timestep, and the verdict on all."""
    pictures = list(dict.fromkeys(row["picture"] for row in rows))
    attacks = list(dict.fromkeys(row["attack"] for row in rows if row["attack"] is not None))
    steps = {
        name: sorted({row["timestep"] for row in rows if row["attack"] == name}, key=lambda one: one or 0) for name in attacks
    }
    middle = {name: some[len(some) // 2] for name, some in steps.items()}
    found = {(row["picture"], row["attack"]): row for row in rows if row["timestep"] == middle.get(row["attack"])}
    failed = {row["picture"]: row["status"] for row in rows if row["attack"] is None}
    value = functools.partial(lambda picture, name, column: (found.get((picture, name)) or {}).get(column))
    names = ["picture", "status", *(f"{name} {column}" for name in attacks for column in ("score", "p"))]
    shown = [
        (one, failed.get(one, "success"), *(value(one, name, column) for name in attacks for column in ("score", "p_value")))
        for one in pictures[:SHOWN]
    ]
    lines = [as_table(names, shown)]
    if len(pictures) > SHOWN:
        lines.append(f"… and {len(pictures) - SHOWN:,} more; --out FILE.parquet has all")
    lines.append("p: share of the lake's controls whose score is as high; timesteps " + ", ".join(
        f"{name} {step}" for name, step in middle.items() if step is not None))  # fmt: skip
    if verdict.p_value is None:
        lines.append(f"the set: nothing can be said of it ({verdict.reason})")
    else:
        lines.append(
            f"the set: p = {verdict.p_value:.3g} that it was not trained on (CDI: {verdict.suspects:,} of its pictures against "
            f"{verdict.controls:,} controls, which must be pictures of the same kind)"
        )
    return "\n".join(lines)


def write(path: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes all rows as Parquet."""
    write_parquet(path, pa.Table.from_pylist(list(rows), schema=SCHEMA))
