"""Brings the pictures of training images to where they are compared: each part of ``images`` is read once, and leaves one file
with the pictures that each block wants, one record batch a block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.data.images import LAST_ROW
from transforms.matching.candidates import wanted_file
from transforms.matching.directory import Directory
from transforms.matching.tasks import Round
from transforms.store.counters import count
from transforms.store.files import exists, open_file, open_parquet, read_parquet, replacing
from transforms.store.tombstones import Tombstones

SCHEMA = pa.schema(
    [
        pa.field("code", pa.int64()),
        pa.field("sample_id", pa.string()),
        pa.field("group_id", pa.string()),
        pa.field("size", pa.int32()),
        pa.field("aspect", pa.float64()),
        pa.field("thumbnail", pa.binary()),
        pa.field("image", pa.large_binary()),
    ]
)


class Gathered(NamedTuple):
    """The representative of a group, brought to a block: columns of the directory, and the picture as it is stored."""

    code: int
    sample_id: str
    group_id: str
    size: int
    aspect: float
    thumbnail: bytes | None
    image: pa.LargeBinaryScalar


def gathered_file(round: Round, part: int) -> str:
    return round.file("pictures", part, "arrow")


class GatherPart(beam.DoFn):
    """Number of a part of ``images`` → itself; leaves the pictures that are wanted of it."""

    def __init__(self, round: Round):
        self.round = round

    def process(self, number: int) -> Iterator[int]:
        path = gathered_file(self.round, number)
        if not exists(path):
            self._gather(number, path)
        yield number

    def _gather(self, number: int, path: str) -> None:
        lake, wanted = self.round.lake, read_parquet(wanted_file(self.round, number))
        blocks, rows = wanted["block"].to_numpy(), wanted["row"].to_numpy()
        directory = Directory(lake, self.round.snapshots.deduplicate).part(number)
        embeddings = lake.paths("embeddings", self.round.snapshots.embed)[number]
        tiny = read_parquet(embeddings, ["thumbnail"])["thumbnail"]
        directory = directory.append_column("thumbnail", tiny.take(pa.array(directory["code"].to_numpy() & LAST_ROW)))
        known = {code & LAST_ROW: place for place, code in enumerate(directory["code"].to_pylist())}
        distinct = np.unique(rows)
        images = tables_at(lake.paths("images", self.round.snapshots.ingest)[number], distinct)
        forgotten = Tombstones.read(lake).samples
        starts = np.flatnonzero(np.r_[True, blocks[1:] != blocks[:-1]]).tolist()
        schema = SCHEMA.with_metadata({"blocks": json.dumps(blocks[starts].tolist())})
        with replacing(path) as sink, pa.ipc.new_file(sink, schema) as file:
            for start, end in zip(starts, [*starts[1:], len(blocks)], strict=True):
                mine = rows[start:end]
                table = directory.select(["code", "sample_id", "group_id", "size", "aspect", "thumbnail"])
                table = table.take(pa.array([known[row] for row in mine.tolist()]))
                there = images.take(pa.array(np.searchsorted(distinct, mine)))
                same = pc.equal(there["sample_id"], table["sample_id"])
                gone = pc.is_in(there["sample_id"], pa.array(sorted(forgotten), pa.string()))
                if not pc.all(same).as_py() or there["image"].null_count or pc.any(gone).as_py():
                    raise ValueError(
                        f"images part {number} holds other samples than embeddings say, or pictures were forgotten meanwhile; "
                        "run 'eidetic match' again"
                    )
                batch = table.append_column("image", there["image"].cast(pa.large_binary())).cast(schema).combine_chunks()
                file.write_batch(batch.to_batches()[0])
        count("pictures gathered", len(rows))


def tables_at(path: str, rows: np.ndarray) -> pa.Table:
    """sample_id and image of some rows of a part of ``images``, ascending; no other row group is read."""
    found = [pa.schema([("sample_id", pa.string()), ("image", pa.binary())]).empty_table()]
    with open_parquet(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            mine = rows[slice(*np.searchsorted(rows, [first, last]))]
            if len(mine):
                table = file.read_row_group(group, columns=["sample_id", "image"])
                found.append(table.take(pa.array(mine - first)))
            first = last
    return pa.concat_tables(found, promote_options="default")


def images_at(path: str, rows: np.ndarray) -> Iterator[tuple[int, tuple[str, bytes | None]]]:
    """(row, (sample_id, picture)) of some rows of a part of ``images``, ascending; no other row group is read."""
    table = tables_at(path, rows)
    pairs = zip(table["sample_id"].to_pylist(), table["image"].to_pylist(), strict=True)
    yield from zip(rows.tolist(), pairs, strict=True)


def read_block(round: Round, number: int, parts: list[int]) -> dict[int, Gathered]:
    """Code → what was brought to a block from these parts of ``images``.

    Pictures stay in their files until they are decoded: a local file is mapped, and no more of it in memory than is looked at.
    """
    found = {}
    for part in parts:
        path = gathered_file(round, part)
        source = pa.memory_map(path) if round.lake.is_local else pa.PythonFile(open_file(path), "r")
        file = pa.ipc.open_file(source)
        blocks = json.loads(file.schema.metadata[b"blocks"])
        batch = file.get_batch(blocks.index(number))
        columns = [batch[name] if name == "image" else batch[name].to_pylist() for name in batch.schema.names]
        for row in zip(*columns, strict=True):
            found[row[0]] = Gathered(*row)
    return found
