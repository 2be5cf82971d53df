"""Compares generations with the training images, calibrates on the controls, and counts the finds' repeats.

reads   prompts, generations, duplicate_groups, embeddings, images; the model, for generations that are made again
writes  matches, regenerations, decoys, copy_calibration, calibration, eidetic_counts, audits

Every stored generation is compared with the image whose caption made it and with the nearest ones of the whole training set (by
CLIP and by thumbnail), those of controls too. Two questions are asked, and never mixed. copied: is a generation that image,
nearer to it than held-out pictures ever come to any? seen: does the model come nearer to an image by its caption than to
controls by theirs? extracted is the paper's verdict (l2 ≤ --delta). A generation that was not stored, and whose thumbnail lies
near another training image, is made again first (docs/calibration.md).

  eidetic match --lake lake --delta 0.15 --max_false_positive_rate 0.01
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.device import DeviceOptions
from pipelines.embed import encoder
from pipelines.execution import Execution, Progress, machine, say, versions
from pipelines.generate import generator_again
from pipelines.options import Options, Parsed, option, parameters
from pipelines.stages import Planned, Stage
from transforms.errors import UserError
from transforms.kernels.copies import CopyLimits, is_copy
from transforms.kernels.distances import COARSE
from transforms.matching.calibration import DISTANCES, Asked, calibration_rows, copy_calibration_row
from transforms.models.base import Generator
from transforms.store.files import count_rows, delete, list_files, open_parquet, read_parquet, write_parquet
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest, part_number
from transforms.store.lineage import lineage
from transforms.store.tombstones import RETIRED, Tombstones

if TYPE_CHECKING:
    # Beam's RunInference imports torch; a verb that has nothing to do must not wait for it.
    from transforms.matching.parts import Task


MOST_DECOYS = 1_000
"""So many decoys of a kind are judged, drawn by hash: none called says that fewer than 0.3% would be."""

DECOYS_PER_PART = 250

RECALL_SAMPLE = 200
"""Generations on which the candidates are compared with brute force."""


@dataclasses.dataclass(frozen=True)
class MatchOptions(Options):
    """Matching: distances, verdicts, calibration."""

    delta: float = option(0.15, "extracted from this l2 down (paper: 0.15)", over=0, under=1)
    eidetic_delta: float = option(
        0.1, "training images within this l2 of a find are counted as k (paper: 0.1)", over=0, under=1
    )
    neighbours: int = option(
        64, "images that CLIP finds near a generation and whose pixels are compared; thumbnails as many", least=1
    )
    adaptive_others: int = option(50, "the n of the adaptive distance (paper: 50)", least=1)
    adaptive_alpha: float = option(0.5, "the alpha of the adaptive distance (paper: 0.5)", over=0)
    copy_l2: float = option(
        0.1, "a copy lies within this l2 (paper: what lies within 0.1 of each other is one memory)", over=0, under=1
    )
    copy_ratio: float = option(
        0.6, "a copy lies nearer to its image than this share of the distance to any other", over=0, under=1
    )
    max_false_positive_rate: float = option(
        0.01,
        "chance that an image which the model never saw is called seen, and that a new picture is called a copy",
        over=0,
        under=1,
    )
    calibrated_distance: str = option("adaptive_l2", "the distance that seen goes by", choices=DISTANCES)
    regenerate: bool = option(
        True,
        "make generations again that were not stored and may be copies of other images (--no_regenerate: the model is gone)",
    )


@dataclasses.dataclass(frozen=True)
class ModelOptions(Options):
    """The model that made the audit's generations."""

    model: str | None = option(None, "where it is now: hub id or local folder (default: where it was)")


def plan(lake: Lake, parsed: Parsed, generate: str | None) -> Planned:
    """What ``match`` would make of the generations of audit ``generate``."""
    assert generate is not None, "it has an upstream"

    def generations() -> int | None:
        done = lake.manifest("generate", generate)
        return None if done is None else done.rows["generations"]

    return Planned("match", parameters(parsed[MatchOptions]), {"generate": generate}, "generations", generations)


def work(execution: Execution, parsed: Parsed, planned: Planned, generate: Manifest | None) -> dict[str, Any]:
    """Judges the generations, what is to be made again among them, and the decoys."""
    assert generate is not None, "it has an upstream"
    lake, options, device = execution.lake, parsed[MatchOptions], parsed[DeviceOptions]
    refuse_without_pictures(lake, generate.snapshot_id)
    job = Matching(lake, options, generate, planned)
    job.match(execution, device)
    limits = job.calibrate_copies()
    again = job.regenerate(execution, device, limits, parsed[ModelOptions].model) if options.regenerate else {}
    job.calibrate()
    recall = job.count(execution, limits)
    job.register()
    return {"candidates": recall, "regeneration": again}


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    delete(execution.lake.work("match", manifest.snapshot_id))


def refuse_without_pictures(lake: Lake, audit: str) -> None:
    """UserError where pictures of the audit were retired: they would count as not extracted."""
    reasons = lake.read("generations", audit, ["reason"])["reason"].to_pylist()
    retired = sum(reason is not None and reason.startswith(RETIRED) for reason in reasons)
    if retired:
        raise UserError(
            f"{retired:,} pictures of the audit {audit} were removed by 'eidetic forget --generations_older_than', and would "
            "count as not extracted; run 'eidetic generate' with another --seed first"
        )


class Matching:
    """One run of ``match``: its steps, each of which leaves its tables whole."""

    def __init__(self, lake: Lake, options: MatchOptions, generate: Manifest, planned: Planned):
        from transforms.matching.comparison import Measure, Snapshots

        self.lake, self.options, self.generate = lake, options, generate
        self.snapshot = planned.snapshot_id
        self.made_of = lineage(lake, generate)
        self.embed = self.made_of["embed"]
        self.snapshots = Snapshots(
            **{stage: self.made_of[stage].snapshot_id for stage in ("ingest", "embed", "deduplicate", "generate")}
        )
        self.asked = Asked(
            delta=options.delta,
            copy_l2=options.copy_l2,
            copy_ratio=options.copy_ratio,
            max_false_positive_rate=options.max_false_positive_rate,
            calibrated_distance=options.calibrated_distance,
        )
        self.measure = Measure(
            delta=options.delta,
            neighbours=max(options.neighbours, options.adaptive_others),
            others=options.adaptive_others,
            alpha=options.adaptive_alpha,
            copy_ratio=options.copy_ratio,
            sampled=min(1.0, RECALL_SAMPLE / max(1, count_kept(lake, generate.snapshot_id))),
        )
        sizes = lake.read("generations", generate.snapshot_id, ["width"])["width"]
        # Where the model makes pictures of several sizes, decoys have the most frequent one.
        self.side: int = pc.mode(sizes)[0]["mode"].as_py() if len(sizes) > sizes.null_count else COARSE
        self.parameters = {stage: manifest.parameters for stage, manifest in self.made_of.items()} | {
            "match": planned.parameters
        }
        self.audit = {
            "audit_id": generate.snapshot_id,
            "model_revision": generate.parameters["model_revision"],
            "parameters_digest": digest("parameters", planned.parameters, planned.upstream, length=16),
        }

    def match(self, execution: Execution, device: DeviceOptions) -> None:
        """Writes ``matches`` of the stored generations, and ``decoys``."""
        from transforms.matching.parts import Task

        parts = self.lake.parts("generations", self.snapshots.generate)
        rows = {part_number(path): count_rows(path) for path in parts}

        def durable() -> int:
            return sum(rows.get(part_number(path), 0) for path in self.lake.parts("matches", self.snapshot))

        tasks = [Task("generations", number) for number in rows]
        tasks += [Task("decoys", number) for number in range(self._list_decoys())]
        progress = Progress("match", durable, sum(rows.values()), "generations")
        execution.run(lambda pipeline: build(pipeline, self, tasks, device), progress)

    def _list_decoys(self) -> int:
        """Lists what is to be judged as if it were a generation, and is no copy; returns in how many parts."""
        from transforms.matching.parts import decoy_file

        forgotten = Tombstones.read(self.lake)
        table = self.lake.read("embeddings", self.snapshots.embed, ["sample_id", "role", "status"])
        there = forgotten.spared(table.filter(pc.equal(table["status"], "success")))
        controls = there.filter(pc.equal(there["role"], "control"))["sample_id"].to_pylist()
        groups = self.lake.read("duplicate_groups", self.snapshots.deduplicate, ["sample_id", "group_id", "representative"])
        alone = forgotten.spared(groups.filter(pc.equal(groups["sample_id"], groups["representative"])))
        trained = list(zip(alone["sample_id"].to_pylist(), alone["group_id"].to_pylist(), strict=True))
        rows: list[dict[str, Any]] = []
        for kind, samples in (
            ("held_out", [(sample, None) for sample in controls]),
            ("left_out", trained),
            ("blurred", trained),
        ):
            drawn = sorted(samples, key=lambda pair: digest("decoy", kind, pair[0]))[:MOST_DECOYS]
            rows += [{"kind": kind, "sample_id": sample, "group_id": group} for sample, group in drawn]
        rows = [{**row, "part": place // DECOYS_PER_PART} for place, row in enumerate(rows)]
        if rows:
            write_parquet(decoy_file(self.lake, self.snapshot), pa.Table.from_pylist(rows))
        return rows[-1]["part"] + 1 if rows else 0

    def calibrate_copies(self) -> CopyLimits:
        """Writes ``copy_calibration``; returns the limits of a copy."""
        decoys = self.lake.read("decoys", self.snapshot, ["kind", "coarse_l2", "coarse_ratio"])
        row = copy_calibration_row(decoys, self.asked)
        self.lake.write("copy_calibration", self.snapshot, 0, [{**self.audit, **row}])
        return CopyLimits.of(row)

    def regenerate(self, execution: Execution, device: DeviceOptions, limits: CopyLimits, model: str | None) -> dict[str, Any]:
        """Writes ``regenerations`` and their ``matches``; returns what it came to. ``model``: where it is now, if it was moved.

        Returns:
            pointed: generations that were to be made again; success: of those, the ones that were; copies_of_others: pairs of a
            stored generation and another image that it is a copy of; pointed_at: share of those that the thumbnails alone
            would have found, None without any.
        """
        from transforms.matching.parts import Task
        from transforms.matching.regeneration import pointed_folder, regenerated

        if self.generate.parameters["keep"] == "none":
            return {"pointed": 0, "success": 0, "copies_of_others": 0, "pointed_at": None}
        numbers = [part_number(path) for path in self.lake.parts("generations", self.snapshots.generate)]
        counts = self.lake.work("match", self.snapshot, "pointing.parquet")
        execution.run(lambda pipeline: build_pointing(pipeline, self, numbers, limits, counts))
        pointed = {
            part_number(path): count_rows(path) for path in list_files(pointed_folder(self.lake, self.snapshot), ".parquet")
        }
        if pointed:
            again = generator_again(self.generate, model, device.resolved())
            progress = Progress(
                "again",
                lambda: sum(pointed[number] for number in regenerated(self.lake, self.snapshot)),
                sum(pointed.values()),
                "generations",
            )
            execution.run(lambda pipeline: build_regeneration(pipeline, self, list(pointed), again, device.hint()), progress)
            tasks = [Task("regenerations", number) for number in pointed]
            execution.run(lambda pipeline: build(pipeline, self, tasks, device))
        statuses = self.lake.read("regenerations", self.snapshot, ["status"])["status"].to_pylist()
        if lost := sum(status != "success" for status in statuses):
            say(f"match        {lost:,} generations that may be copies could not be made again: see regenerations.reason")
        (row,) = read_parquet(counts).to_pylist()
        return {
            "pointed": len(statuses),
            "success": sum(status == "success" for status in statuses),
            "copies_of_others": row["known"],
            "pointed_at": row["agreeing"] / row["known"] if row["known"] else None,
        }

    def calibrate(self) -> None:
        """Writes ``calibration``."""
        rows = calibration_rows(
            self.lake.read("matches", self.snapshot),
            self.lake.read("prompts", self.snapshots.generate),
            self.asked,
        )
        self.lake.write("calibration", self.snapshot, 0, [{**self.audit, **row} for row in rows])

    def count(self, execution: Execution, limits: CopyLimits) -> dict[str, Any]:
        """Writes ``eidetic_counts`` for every training image that some verdict calls; returns the recall of the candidates."""
        from transforms.matching.recall import recall, sampled_folder

        targets = self._targets(limits)
        path = self.lake.work("match", self.snapshot, "targets.parquet")
        if targets.num_rows:
            write_parquet(path, targets)
        else:
            self.lake.write("eidetic_counts", self.snapshot, 0, [])
        nearest = self.lake.work("match", self.snapshot, "nearest.parquet")
        execution.run(lambda pipeline: build_counts(pipeline, self, path if targets.num_rows else None, nearest))
        columns = ["key", "found_by", "nearest", "next"]
        files = list_files(sampled_folder(self.lake, self.snapshot), ".parquet")
        sampled = [row for file in files for row in read_parquet(file, columns).to_pylist()]
        found = {
            row["key"]: list(zip(row["distances"], row["groups"], strict=True)) for row in read_parquet(nearest).to_pylist()
        }
        return recall(sampled, found)

    def _targets(self, limits: CopyLimits) -> pa.Table:
        """(sample_id, side, crop) of the training images to count for: the crop of each one's nearest match."""
        from transforms.data.images import ImageStore
        from transforms.kernels.distances import resize_shorter_side, square_at

        columns = ["sample_id", "prompt_id", "sample_index", "role", "offset", "l2", "extracted", "coarse_l2", "coarse_ratio"]
        nearest: dict[str, dict[str, Any]] = {}
        for row in self.lake.read("matches", self.snapshot, columns).to_pylist():
            if row["role"] != "training" or not (row["extracted"] or is_copy(row, limits)):
                continue
            best = nearest.get(row["sample_id"])
            if best is None or row["l2"] < best["l2"]:
                nearest[row["sample_id"]] = row
        generations = self.lake.read("generations", self.snapshots.generate, ["prompt_id", "sample_index", "width"])
        sides = {(row["prompt_id"], row["sample_index"]): row["width"] for row in generations.to_pylist()}
        store = ImageStore(self.lake, self.snapshots.ingest, self.snapshots.embed)
        rows = []
        for sample, row in sorted(nearest.items()):
            side, offset = sides[row["prompt_id"], row["sample_index"]], row["offset"]
            picture = resize_shorter_side(store.get(sample), side)
            crop = np.ascontiguousarray(square_at(picture, offset))
            rows.append({"sample_id": sample, "side": side, "crop": crop.tobytes()})
        schema = pa.schema([("sample_id", pa.string()), ("side", pa.int32()), ("crop", pa.binary())])
        return pa.Table.from_pylist(rows, schema=schema)

    def register(self) -> None:
        """Writes the audit's row of ``audits``."""
        row = {
            **self.audit,
            "generator": self.generate.parameters["generator"],
            "model": self.generate.facts["model"],
            "ingest_snapshot": self.snapshots.ingest,
            "embed_snapshot": self.snapshots.embed,
            "deduplicate_snapshot": self.snapshots.deduplicate,
            "parameters": json.dumps(self.parameters, sort_keys=True),
            "versions": json.dumps(versions()),
            "machine": machine(),
            "finished_at": datetime.datetime.now(datetime.UTC),
        }
        self.lake.write("audits", self.snapshot, 0, [row])


def count_kept(lake: Lake, generate: str) -> int:
    """Stored pictures of an audit, from the Parquet footers alone."""
    kept = 0
    for path in lake.parts("generations", generate):
        with open_parquet(path) as file:
            column = file.schema_arrow.names.index("image")
            for group in range(file.num_row_groups):
                chunk = file.metadata.row_group(group).column(column)
                kept += chunk.num_values - (chunk.statistics.null_count if chunk.is_stats_set else 0)
    return kept


def build(pipeline: beam.Pipeline, job: Matching, tasks: list[Task], device: DeviceOptions) -> None:
    """The pipeline that writes ``matches`` and ``decoys``."""
    from transforms.matching.parts import MatchPart

    part = MatchPart(
        job.lake,
        job.snapshots,
        job.snapshot,
        encoder(job.embed, device),
        job.measure,
        job.audit["parameters_digest"],
        job.side,
    )
    _ = pipeline | "Tasks" >> beam.Create(tasks) | "SpreadTasks" >> beam.Reshuffle() | "MatchPart" >> beam.ParDo(part)


def build_pointing(pipeline: beam.Pipeline, job: Matching, numbers: list[int], limits: CopyLimits, counts: str) -> None:
    """The pipeline that finds what is to be made again."""
    from transforms.matching.regeneration import Point, write_counts

    _ = (
        pipeline
        | "Parts" >> beam.Create(numbers)
        | "SpreadParts" >> beam.Reshuffle()
        | "Point" >> beam.ParDo(Point(job.lake, job.snapshots, job.snapshot, limits))
        | "Gather" >> beam.combiners.ToList()
        | "WriteCounts" >> beam.Map(write_counts, counts)
    )


def build_regeneration(
    pipeline: beam.Pipeline, job: Matching, numbers: list[int], images: Generator, accelerator: str | None
) -> None:
    """The pipeline that writes ``regenerations``."""
    from transforms.matching.regeneration import Regenerate

    again = Regenerate(job.lake, job.snapshot, images, job.audit, accelerator)
    _ = pipeline | "Parts" >> beam.Create(numbers) | "Regenerate" >> again


def build_counts(pipeline: beam.Pipeline, job: Matching, targets: str | None, nearest: str) -> None:
    """The pipeline that writes ``eidetic_counts`` (where there are ``targets``), and the brute force's ``nearest``."""
    from transforms.matching.eidetic_counts import CountMemories
    from transforms.matching.recall import NearestOfAll

    numbers = [part_number(path) for path in job.lake.parts("images", job.snapshots.ingest)]
    parts = pipeline | "Parts" >> beam.Create(numbers) | "SpreadParts" >> beam.Reshuffle()
    _ = parts | "NearestOfAll" >> NearestOfAll(job.lake, job.snapshots, job.snapshot, nearest)
    if targets is not None:
        count = CountMemories(job.lake, job.snapshot, job.snapshots.ingest, targets, job.options.eidetic_delta, job.audit)
        _ = parts | "CountMemories" >> count


STAGE = Stage(
    name="match",
    description=__doc__,
    upstream="generate",
    options=(MatchOptions, DeviceOptions),
    alone=(ModelOptions,),
    plan=plan,
    work=work,
    finish=finish,
)
main = STAGE.main


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
