"""Trains the models of a sweep: one element is one training, and what it leaves is found again by whoever wants the same.

LAKE/weights/<run_id>/<step>/…              a model: its files, and model.json, which says that they are whole
LAKE/weights/<run_id>/run.json              the rows of the training: it is complete when this exists
work/train/<snapshot>/states/<run_id>…      what a training that was killed goes on from
work/train/<snapshot>/runs/<key>.json       likewise, of a configuration of this sweep
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import apache_beam as beam

from transforms.errors import UserError, first_line
from transforms.models.configuration import AXES, BroughtModel, Configuration
from transforms.models.devices import one_core, out_of_memory
from transforms.store.arrays import read_json, write_json
from transforms.store.counters import count
from transforms.store.files import delete, exists, read_bytes, write_bytes
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest
from transforms.store.listings import decode_text
from transforms.store.schema import TABLES
from transforms.training import members, population

if TYPE_CHECKING:
    from transforms.models.training import Training

WEIGHTS = "weights"
"""Folder of the lake with the models that were trained."""

MEMBERS = "members.json"
"""In a training's folder: its rows of ``model_members``."""


def model_id(run_id: str, step: int) -> str:
    """The identity of a training's model at a step."""
    return digest("model", run_id, step)[:20]


def model_folder(lake: Lake, run_id: str, step: int) -> str:
    """Where a model's files lie."""
    return lake.path(WEIGHTS, run_id, f"{step:09d}")


def load_model(lake: Lake, row: dict[str, Any], device: str) -> Any:
    """A model by its row of ``models``: a DiffusionPictures, a GanPictures, or one of ``models/brought.py``.

    UserError where its files aren't there or don't fit, or where one that was brought isn't what it was.
    """
    if row["brought"] is not None:
        from transforms.models.brought import bring, revision

        brought = BroughtModel(**json.loads(row["brought"]))
        if revision(brought) != row["weights_digest"]:
            raise UserError(f"the model {brought.model!r} is not what it was when it was brought; run 'eidetic train' again")
        return bring(brought, device)
    from transforms.models.unconditional import load

    folder = model_folder(lake, row["run_id"], row["step"])

    def read(name: str) -> bytes | None:
        path = f"{folder}/{name}"
        return read_bytes(path) if exists(path) else None

    return load(read, folder, device)


def members_of(lake: Lake, run_id: str) -> list[dict[str, Any]]:
    """The rows of ``model_members`` of a training; none where it wasn't begun."""
    path = _members_path(lake, run_id)
    return read_json(path) if exists(path) else []


def _members_path(lake: Lake, run_id: str) -> str:
    return lake.path(WEIGHTS, run_id, MEMBERS)


def key_of(configuration: Configuration | BroughtModel) -> str:
    """The name of a configuration's file of rows."""
    return digest("configuration", dataclasses.asdict(configuration))[:20]


@dataclasses.dataclass(frozen=True)
class TrainingPlace:
    """Where a sweep is trained.

    Attributes:
        lake: the lake.
        snapshot: of ``train``.
        deduplicate: whose pictures.
        most: pictures of the population.
        device: cpu, cuda or cuda:1.
        save_every: seconds between two states that a killed training can go on from.
    """

    lake: Lake
    snapshot: str
    deduplicate: Manifest
    most: int
    device: str
    save_every: float

    def rows_path(self, configuration: Configuration | BroughtModel) -> str:
        return self.lake.work("train", self.snapshot, "runs", f"{key_of(configuration)}.json")

    def state_path(self, run_id: str) -> str:
        return self.lake.work("train", self.snapshot, "states", f"{run_id}.safetensors")


class TrainModels(beam.DoFn):
    """A configuration → the key of its rows, trained now or before; a model that is brought → likewise, looked at."""

    def __init__(self, place: TrainingPlace):
        self.place = place
        self._population: Callable[[int], population.Population] | None = None

    def process(self, configuration: Configuration | BroughtModel) -> Iterator[str]:
        path = self.place.rows_path(configuration)
        if not exists(path) and isinstance(configuration, BroughtModel):
            write_json(path, bring_in(self.place, configuration))
        elif not exists(path):
            if self._population is None:
                read = functools.partial(population.read, self.place.lake, self.place.deduplicate, self.place.most)
                self._population = functools.lru_cache(maxsize=2)(read)
            assert isinstance(configuration, Configuration), "the other kind was brought"
            with one_core(self.place.device):
                rows = train(self.place, configuration, self._population(configuration.pixels))
            write_json(path, rows)
            count(f"trainings {rows[-1]['status']}")
        yield key_of(configuration)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_population": None}


def train(place: TrainingPlace, configuration: Configuration, pictures: population.Population) -> list[dict[str, Any]]:
    """Trains one configuration. Returns its rows of ``models``, as far as they are its own; those of its members lie beside the
    weights.

    What can't be trained is a row that says why. A training that is complete, in this sweep or another, is not done again.
    """
    try:
        drawn = members.draw(configuration, pictures)
    except UserError as error:
        return [_failed(configuration, key_of(configuration), 0, str(error))]
    run_id = drawn.run_id(configuration)
    done = place.lake.path(WEIGHTS, run_id, "run.json")
    if exists(done):
        return read_json(done)
    labels = [None] * len(drawn.kinds) if drawn.data.labels is None else drawn.data.labels.tolist()
    given = zip(drawn.sample_ids, drawn.kinds, drawn.data.copies.tolist(), labels, strict=True)
    names = TABLES["model_members"].schema.names
    write_json(_members_path(place.lake, run_id), [dict(zip(names, (run_id, *one), strict=True)) for one in given])
    rows = _trained(place, configuration, drawn, run_id)
    if rows[-1]["status"] != "failed":  # what failed for want of memory may do better another time
        write_json(done, rows)
    delete(place.state_path(run_id))
    return rows


def bring_in(place: TrainingPlace, brought: BroughtModel) -> list[dict[str, Any]]:
    """The row of ``models`` of a model that is there; it isn't copied. What can't be loaded is a row that says why."""
    from transforms.models.brought import bring, revision
    from transforms.models.unconditional import DiffusionPictures, GanPictures

    blank = {
        **dict.fromkeys(AXES), "brought": json.dumps(dataclasses.asdict(brought)), "family": "other", "pixels": 0, "images": 0,
        "step": 0, "last": True, "passes": 0.0, "total": 0,
    }  # fmt: skip
    try:
        what = revision(brought)
        ids = population.sample_ids(place.lake, place.deduplicate, place.most)
        mine = ids if not brought.members else _listed(brought.members, ids)
        model = bring(brought, place.device)
        height, width = model.shape[1:]
        if height != width:
            raise UserError(f"the model {brought.model!r} makes pictures of {width} × {height} pixels, expected square ones")
    except UserError as error:
        run_id = key_of(brought)
        named = {"run_id": run_id, "model_id": model_id(run_id, 0), "cohort": run_id}
        return [{**blank, **named, "status": "failed", "reason": str(error)}]
    run_id = digest("brought", dataclasses.asdict(brought), what, mine)[:20]
    write_json(
        _members_path(place.lake, run_id),
        [{"run_id": run_id, "sample_id": one, "kind": "picture", "copies": 1, "class": None} for one in mine],
    )
    families = {DiffusionPictures: "diffusion", GanPictures: "gan"}
    network = model.unet if isinstance(model, DiffusionPictures) else getattr(model, "generator", None)
    return [
        {
            **blank, "run_id": run_id, "model_id": model_id(run_id, 0), "cohort": run_id,
            "family": families.get(type(model), "other"),
            "pixels": int(height), "images": len(mine), "total": len(mine),
            "timesteps": len(model.levels) if isinstance(model, DiffusionPictures) else None,
            "parameters": None if network is None else sum(one.numel() for one in network.parameters()),
            "weights_digest": what, "device": place.device, "status": "success", "reason": None,
        }
    ]  # fmt: skip


def _listed(path: str, ids: list[str]) -> list[str]:
    """Those of ``ids`` that a file names, one a line. UserError where it can't be read, or names none of them."""
    try:
        named = set(decode_text(read_bytes(path)).split())
    except OSError as error:
        raise UserError(f"cannot read members {path!r} ({error.strerror})") from error
    found = [one for one in ids if one in named]
    if not found:
        raise UserError(
            f"members {path!r} names none of the {len(ids):,} pictures, expected sample_ids of the lake, one a line"
        )
    return found


def _trained(
    place: TrainingPlace, configuration: Configuration, drawn: members.TrainingMembers, run_id: str
) -> list[dict[str, Any]]:
    """A row for each of a training's models."""
    from transforms.models.training import Diverged, begin

    total = drawn.data.total
    steps = configuration.checkpoint_steps(total)
    made: list[dict[str, Any]] = []
    try:
        training = begin(configuration, drawn.data, place.device)
    except UserError as error:
        return [_failed(configuration, run_id, total, str(error))]
    clock = _Clock(_restored(place, run_id, training))
    common = {**_common(configuration, run_id, total), "parameters": training.parameters, "device": place.device}
    for step in steps:
        facts = f"{model_folder(place.lake, run_id, step)}/model.json"
        if step <= training.step and exists(facts):
            made.append(read_json(facts))
            continue
        try:
            while training.step < step:
                training.advance()
                if clock.since_saved() > place.save_every:
                    _save(place, run_id, training, clock)
            row = {
                **common, "model_id": model_id(run_id, step), "step": step, "last": step == steps[-1],
                "passes": step * configuration.batch_size / total, "seconds": clock.seconds(), "loss": training.loss,
                "epsilon": training.epsilon(), "status": "success", "reason": None,
            }  # fmt: skip
            files = training.files()
        except Diverged as error:
            return [*made, _ended(common, run_id, training, steps[-1], clock, "diverged", str(error))]
        except (RuntimeError, ValueError) as error:
            reason = (
                f"out of memory on {place.device}" if out_of_memory(error) else f"{type(error).__name__}: {first_line(error)}"
            )
            return [*made, _ended(common, run_id, training, steps[-1], clock, "failed", reason)]
        weights = hashlib.sha256()
        for name, content in files.items():
            write_bytes(f"{model_folder(place.lake, run_id, step)}/{name}", content)
            if name.endswith(".safetensors"):
                weights.update(content)
        row["weights_digest"] = weights.hexdigest()
        write_json(facts, row)
        made.append(row)
    return made


class _Clock:
    """Seconds of training, over all runs that a training took."""

    def __init__(self, before: float):
        self._before, self._begun = before, time.monotonic()
        self._saved = self._begun

    def seconds(self) -> float:
        return round(self._before + time.monotonic() - self._begun, 2)

    def since_saved(self) -> float:
        return time.monotonic() - self._saved

    def saved(self) -> None:
        self._saved = time.monotonic()


def _save(place: TrainingPlace, run_id: str, training: Training, clock: _Clock) -> None:
    from safetensors.torch import save

    content = save(training.state(), {"seconds": str(clock.seconds())})
    write_bytes(place.state_path(run_id), content)
    clock.saved()


def _restored(place: TrainingPlace, run_id: str, training: Training) -> float:
    """Has a training go on from where it was killed, if it was. Returns the seconds that it took until then."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = place.state_path(run_id)
    if not exists(path):
        return 0.0
    content = read_bytes(path)
    try:
        training.restore(load(content))
        length = int.from_bytes(content[:8], "little")
        return float(json.loads(content[8 : 8 + length])["__metadata__"]["seconds"])
    except (SafetensorError, ValueError, KeyError):
        # Damaged, or of other code: the training begins anew, which gives the same.
        delete(path)
        count("states that could not be used")
        return 0.0


def _common(configuration: Configuration, run_id: str, total: int) -> dict[str, Any]:
    return {
        **dataclasses.asdict(configuration),
        "brought": None,
        "run_id": run_id,
        "cohort": configuration.cohort(),
        "total": total,
    }


def _failed(configuration: Configuration, run_id: str, total: int, reason: str) -> dict[str, Any]:
    """The row of what could not be begun."""
    return {
        **_common(configuration, run_id, total), "model_id": model_id(run_id, 0), "step": 0, "last": True, "passes": 0.0,
        "status": "failed", "reason": reason,
    }  # fmt: skip


def _ended(
    common: dict[str, Any], run_id: str, training: Training, last: int, clock: _Clock, status: str, reason: str
) -> dict[str, Any]:
    """The row of what ended before its time."""
    passes = training.step * common["batch_size"] / common["total"]
    return {
        **common, "model_id": model_id(run_id, last), "step": training.step, "last": True, "passes": passes,
        "seconds": clock.seconds(), "status": status, "reason": reason,
    }  # fmt: skip
