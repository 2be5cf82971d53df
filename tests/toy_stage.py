"""A stage as a newcomer would add one: how long each image's vector is. test_stages.py puts it into the registry."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipelines.execution import Execution
from pipelines.options import Options, Parsed, option, parameters
from pipelines.stages import Planned, Stage
from transforms.store.files import read_rows
from transforms.store.lake import Lake, Manifest, part_number
from transforms.store.schema import ROWS_GO, Table


@dataclasses.dataclass(frozen=True)
class LengthOptions(Options):
    """Lengths: the norm."""

    norm: int = option(2, "which norm of the vector is taken", least=1)


LENGTHS = Table(
    "lengths",
    "measure_lengths",
    "one embedded image",
    pa.schema([pa.field("sample_id", pa.string(), False), pa.field("length", pa.float64(), False)]),
    ROWS_GO,
)


class MeasurePart(beam.DoFn):
    def __init__(self, lake: Lake, embed: str, snapshot: str, norm: int):
        self.lake, self.embed, self.snapshot, self.norm = lake, embed, snapshot, norm

    def process(self, path: str):
        lengths = [
            {"sample_id": row["sample_id"], "length": float(np.linalg.norm(row["vector"], self.norm))}
            for row in read_rows(path, ["sample_id", "vector"])
        ]
        yield self.lake.write("lengths", self.snapshot, part_number(path), lengths)


def plan(lake: Lake, parsed: Parsed, embed: str | None) -> Planned:
    def images() -> int | None:
        done = lake.manifest("embed", embed)
        return None if done is None else done.rows["embeddings"]

    return Planned("measure_lengths", parameters(parsed[LengthOptions]), {"embed": embed}, "images", images)


def work(execution: Execution, parsed: Parsed, planned: Planned, embed: Manifest | None) -> None:
    lake = execution.lake
    step = MeasurePart(lake, embed.snapshot_id, planned.snapshot_id, parsed[LengthOptions].norm)
    parts = lake.parts("embeddings", embed.snapshot_id)
    execution.run(lambda pipeline: pipeline | "Parts" >> beam.Create(parts) | "MeasurePart" >> beam.ParDo(step))


STAGE = Stage(
    name="measure_lengths",
    description="Measures vectors.\n\nreads   embeddings\nwrites  lengths\n\n  eidetic measure_lengths --lake lake",
    upstream="embed",
    options=(LengthOptions,),
    plan=plan,
    work=work,
)
main = STAGE.main
