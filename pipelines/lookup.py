"""Tells whether pictures are in the training set, how often, and whether the model gives them back.

reads   pictures: files, folders, or Parquet with a column image; embeddings, duplicate_groups and images of the newest groups;
        the marts of all audits
writes  to stdout, for each picture the training images near it; with --out a file of the same: .json or .parquet

The nearest are those by CLIP and by thumbnail; what decides is the distance of the pixels, aligned, as between duplicates.
same: that image is the picture. copies: so many training images are one with it. The first call on a large lake makes an index
of its groups, which match uses as well; later ones read what they need of it.

  eidetic lookup portrait.jpg --lake lake
  eidetic lookup holiday/ --lake lake --out found.parquet
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.device import DeviceOptions
from pipelines.embed import encoder
from pipelines.lock import alone
from pipelines.options import CommonOptions, LockOptions, Options, option, parse
from pipelines.query import as_table
from pipelines.stages import execution_of
from transforms.data.folders import PICTURES, pictures_below
from transforms.data.orientation import orientation, upright
from transforms.errors import UserError
from transforms.kernels.distances import Frame
from transforms.matching.directory import Directory
from transforms.matching.tasks import Round, Snapshots
from transforms.results import marts
from transforms.store.files import exists, open_parquet, read_bytes, write_bytes, write_parquet
from transforms.store.lake import Lake
from transforms.store.lineage import check_lineage, lineage
from transforms.store.listings import PARQUET
from transforms.store.pictures import decode_stranger
from transforms.store.scan import ask
from transforms.store.texts import written_name
from transforms.store.tombstones import Tombstones


@dataclasses.dataclass(frozen=True)
class LookupOptions(Options):
    """The pictures, and how much is said of each."""

    pictures: tuple[str, ...] = option((), "files, folders, or Parquet with a column image")
    most: int = option(3, "training images that CLIP, and the thumbnails, name for each picture", least=1)
    out: str | None = option(None, "also write the rows to this file: .json or .parquet")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and not self.out.endswith((".json", ".parquet")):
            raise UserError(f"--out is {self.out!r}, expected a file that ends in .json or .parquet")


SCHEMA = pa.schema(
    [
        ("picture", pa.string()), ("status", pa.string()), ("rank", pa.int32()), ("same", pa.bool_()), ("copies", pa.int32()),
        ("pixel_distance", pa.float64()), ("cosine", pa.float64()), ("thumbnail_l2", pa.float64()), ("sample_id", pa.string()),
        ("group_id", pa.string()), ("url", pa.string()), ("caption", pa.string()), ("copied_in", pa.list_(pa.string())),
        ("seen_in", pa.list_(pa.string())), ("extracted_in", pa.list_(pa.string())),
    ]
)  # fmt: skip
"""One row a picture and training image near it; one without an image where a picture can't be read, or nothing is near.
copied_in, seen_in, extracted_in: model revisions whose audit said so of the image's group."""


def brought(words: Sequence[str], turns: bool = False) -> Iterator[tuple[str, np.ndarray | str]]:
    """(name, picture) of what is named, or why it can't be read. UserError where there is no such file, or no picture in it.

    Args:
        words: files and folders.
        turns: whether pictures are turned as their EXIF orientation says, as those of the lake are.
    """
    for word in words:
        if os.path.isdir(word):
            paths = pictures_below(word)
            if not paths:
                raise UserError(f"the folder {word!r} holds no pictures; expected files like {', '.join(PICTURES[:8])}")
            yield from ((written_name(path), _decoded(read_bytes(path), turns)) for path in paths)
        elif word.lower().endswith(PARQUET) and os.path.isfile(word):
            yield from _of_parquet(word, turns)
        elif os.path.isfile(word):
            yield written_name(word), _decoded(read_bytes(word), turns)
        else:
            raise UserError(f"there is no picture, folder or Parquet file {word!r}")


def _of_parquet(path: str, turns: bool) -> Iterator[tuple[str, np.ndarray | str]]:
    with open_parquet(path) as file:
        if "image" not in file.schema_arrow.names:
            raise UserError(f"{path!r} has columns {file.schema_arrow.names}, expected one called image, with encoded pictures")
        row = 0
        for batch in file.iter_batches(batch_size=64, columns=["image"]):
            for value in batch["image"].to_pylist():
                # Hugging Face's data sets hold structs of bytes and path.
                content = value.get("bytes") if isinstance(value, dict) else value
                yield f"{written_name(path)}, row {row}", _decoded(content, turns)
                row += 1


def _decoded(content: object, turns: bool) -> np.ndarray | str:
    if not isinstance(content, bytes):
        return "no picture"
    try:
        picture = decode_stranger(content)
        return upright(picture, orientation(content)) if turns else picture
    except ValueError as error:
        return str(error)


def run(lake: Lake, options: LookupOptions, device: DeviceOptions, index: Any, wait: float = 0.0) -> list[dict[str, Any]]:
    """Rows of ``SCHEMA``, by picture.

    Args:
        lake: the lake.
        options: pictures and how many images of each.
        device: where CLIP runs.
        index: runs a pipeline that makes the index, where a large lake has none yet.
        wait: as ``alone`` has it, where something is to be made.
    """
    from transforms.matching.candidates import IndexGroups
    from transforms.matching.lookup import is_indexed, look_up

    if not options.pictures:
        raise UserError("no picture is named; expected files, folders, or Parquet with a column image")
    groups = lake.latest("deduplicate")
    made_of = lineage(lake, groups)
    snapshots = Snapshots(made_of["ingest"].snapshot_id, made_of["embed"].snapshot_id, groups.snapshot_id, "")
    round = Round(lake, snapshots, "", "lookup", (), Frame(0, 0), options.most, 1)
    pictures = list(brought(options.pictures, bool(made_of["ingest"].parameters.get("turns"))))
    readable = [(number, one) for number, (_, one) in enumerate(pictures) if isinstance(one, np.ndarray)]
    check_lineage(lake, [groups, *marts.current(lake)])
    directory = Directory(lake, groups.snapshot_id)
    if not exists(directory.total_file) or not is_indexed(round):
        with alone(lake, "lookup", wait):
            directory.write(snapshots.ingest, snapshots.embed)
            if not is_indexed(round):
                index(lambda pipeline: pipeline | IndexGroups(round))
    near = look_up(round, [one for _, one in readable], encoder(made_of["embed"], device).load(), options.most)
    forgotten = Tombstones.read(lake).samples
    near = [one for one in near if one.sample_id not in forgotten]
    said = _said(lake, made_of["ingest"].snapshot_id, [one.sample_id for one in near])
    audited = _audited(lake, {one.group_id for one in near})
    by_picture = collections.defaultdict(list)
    for one in near:
        by_picture[readable[one.picture][0]].append(one)
    rows: list[dict[str, Any]] = []
    nothing = dict.fromkeys(SCHEMA.names)
    for number, (name, picture) in enumerate(pictures):
        if isinstance(picture, str):
            rows.append({**nothing, "picture": name, "status": f"failed: {picture}"})
            continue
        found = by_picture[number]
        status = "in the training set" if any(one.same for one in found) else "not found"
        for rank, one in enumerate(found, 1):
            told = said.get(one.sample_id, {})
            rows.append(
                {
                    "picture": name, "status": status, "rank": rank, "same": one.same, "copies": one.copies,
                    "pixel_distance": one.pixel_distance, "cosine": one.cosine, "thumbnail_l2": one.thumbnail_l2,
                    "sample_id": one.sample_id, "group_id": one.group_id, "url": told.get("url"),
                    "caption": told.get("caption"), **audited.get(one.group_id, NOT_AUDITED),
                }
            )  # fmt: skip
        if not found:
            rows.append({**nothing, "picture": name, "status": status})
    return rows


NOT_AUDITED: dict[str, list[str]] = {"copied_in": [], "seen_in": [], "extracted_in": []}


def _said(lake: Lake, ingest: str, samples: list[str]) -> dict[str, dict[str, Any]]:
    """Sample → its url and caption."""
    query = "SELECT sample_id, url, caption FROM samples WHERE sample_id IN (SELECT unnest($wanted::VARCHAR[]))"
    return {row["sample_id"]: row for row in ask(lake, {"samples": ingest}, query, wanted=sorted(set(samples)))}


def _audited(lake: Lake, groups: set[str]) -> dict[str, dict[str, list[str]]]:
    """Group → model revisions whose audits say that it was copied, seen, extracted."""
    found: dict[str, dict[str, list[str]]] = {}
    for measured in marts.current(lake):
        for mart, columns in (("verdicts", ("copied", "seen", "extracted")), ("extractions", ("copied", "seen", "extracted"))):
            for row in marts.read_mart(lake, mart, measured):
                if row["group_id"] in groups:
                    mine = found.setdefault(row["group_id"], {name: list(some) for name, some in NOT_AUDITED.items()})
                    for column in columns:
                        revisions = mine[f"{column}_in"]
                        if row[column] and row["model_revision"] not in revisions:
                            revisions.append(row["model_revision"])
    return found


def told(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table for the terminal."""
    names = ["picture", "status", "copies", "distance", "cosine", "copied", "seen", "sample_id", "url"]
    shown = []
    for row in rows:
        distance = None if row["pixel_distance"] is None else f"{row['pixel_distance']:.3f}"
        cosine = None if row["cosine"] is None else f"{row['cosine']:.3f}"
        models = [", ".join(revision[:12] for revision in row[name] or []) or None for name in ("copied_in", "seen_in")]
        status = row["status"] if row["rank"] in (None, 1) else "same picture" if row["same"] else "near"
        shown.append((row["picture"], status, row["copies"], distance, cosine, *models, row["sample_id"], row["url"]))
    return as_table(names, shown)


def main(argv: Sequence[str]) -> None:
    parsed = parse(
        argv, "lookup", __doc__, (CommonOptions, LockOptions, LookupOptions, DeviceOptions), positional=("pictures",)
    )
    execution, options = execution_of(parsed), parsed[LookupOptions]
    rows = run(execution.lake, options, parsed[DeviceOptions], execution.run, parsed[LockOptions].wait)
    if options.out is not None:
        if options.out.endswith(".json"):
            write_bytes(options.out, json.dumps(rows, indent=2, ensure_ascii=False).encode())
        else:
            write_parquet(options.out, pa.Table.from_pylist(rows, schema=SCHEMA))
    print(told(rows))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
