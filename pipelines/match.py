"""Compares generations with the training images, calibrates on the controls, and counts the finds' repeats.

reads   prompts, generations, duplicate_groups, embeddings, images; the model, for generations that are made again
writes  matches, regenerations, decoys, copy_calibration, calibration, eidetic_counts, unreadable, audits

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
import functools
import json
import sys
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipelines import embed as embedding
from pipelines.costs import Cost, Size, lines, rated
from pipelines.device import DeviceOptions
from pipelines.embed import encoder
from pipelines.execution import Execution, Progress, machine, say, versions
from pipelines.generate import generator_again
from pipelines.options import Options, Parsed, option, parameters
from pipelines.stages import Planned, Stage
from transforms.errors import UserError
from transforms.kernels.copies import SELDOM, CopyLimits
from transforms.kernels.distances import COARSE, Frame
from transforms.kernels.thumbnails import LENGTH
from transforms.matching.calibration import DISTANCES, Asked, calibration_rows, copy_calibration_row, nearest_to_own
from transforms.matching.candidates import merge
from transforms.matching.comparison import Measure
from transforms.matching.directory import Directory, write_own
from transforms.matching.tasks import EXACT_UP_TO, THUMBNAIL, Round, Snapshots, Task, decoy_file
from transforms.matching.unreadable import noted
from transforms.models.base import Generator
from transforms.models.clip import ClipModel
from transforms.models.processes import Devices, Spread, in_this_process
from transforms.store.files import count_rows, delete, list_files, open_parquet, read_parquet, read_rows, write_parquet
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest, part_number
from transforms.store.lineage import lineage
from transforms.store.scan import ask, scan
from transforms.store.texts import written_name
from transforms.store.tombstones import RETIRED

MOST_DECOYS = 1_000
"""So many decoys of a kind are judged, drawn by hash: none called says that fewer than 0.3% would be."""

DECOYS_PER_PART = 250

MOST_IN_A_BLOCK = 2048
"""Generations that are compared at once, however small their pictures are."""

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
    match_memory: int = option(
        2048,
        "MiB that a worker (of several --processes, each) may take for what lies near the generations, about",
        least=64,
    )
    calibrated_distance: str = option("adaptive_l2", "the distance that seen goes by", choices=DISTANCES)
    regenerate: bool = option(
        True,
        "make generations again that were not stored and may be copies of other images (--no_regenerate: the model is gone)",
    )

    @property
    def asked(self) -> Asked:
        return Asked(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Asked)})


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

    return Planned("match", shaping(parsed[MatchOptions]), {"generate": generate}, "generations", generations)


def costs(lake: Lake, parsed: Parsed, size: Size) -> list[Cost]:
    """What judging takes. What is made again, and k, depend on what the model gives back, and are not in it."""
    return [
        embedding.cost(lake, parsed, "CLIP of what is judged", size.kept),
        lines()["match"].cost("search and compare", size.images, size.kept, "generations"),
        rated("thumbnails of all attempts", size.generations, "generations", False, None, NOT_MEASURED),
    ]


NOT_MEASURED = "not measured: no benchmark times the search for the thumbnails of what was not kept"


def shaping(options: MatchOptions) -> dict[str, Any]:
    """What shapes the rows: not the memory, but what is seldom, which is no option and moves the limits."""
    return {**parameters(options, leave_out=("match_memory",)), "seldom": SELDOM}


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
    job.tell_unreadable()
    job.register()
    return {"candidates": recall, "regeneration": again}


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    delete(execution.lake.work("match", manifest.snapshot_id))


def refuse_without_pictures(lake: Lake, audit: str) -> None:
    """UserError where pictures of the audit were retired: they would count as not extracted."""
    query = "SELECT count(*) AS retired FROM generations WHERE starts_with(reason, $retired)"
    retired = ask(lake, {"generations": audit}, query, retired=RETIRED)[0]["retired"]
    if retired:
        raise UserError(
            f"{retired:,} pictures of the audit {audit} were removed by 'eidetic forget --generations_older_than', and would "
            "count as not extracted; run 'eidetic generate' with another --seed first"
        )


class Matching:
    """One run of ``match``: its steps, each of which leaves its tables whole."""

    def __init__(self, lake: Lake, options: MatchOptions, generate: Manifest, planned: Planned):
        self.lake, self.options, self.generate = lake, options, generate
        self.snapshot = planned.snapshot_id
        self.made_of = lineage(lake, generate)
        self.embed = self.made_of["embed"]
        self.snapshots = Snapshots(
            **{stage: self.made_of[stage].snapshot_id for stage in ("ingest", "embed", "deduplicate", "generate")}
        )
        self.directory = Directory(lake, self.snapshots.deduplicate)
        self.asked = options.asked
        self.measure = Measure(
            delta=options.delta,
            others=options.adaptive_others,
            alpha=options.adaptive_alpha,
            copy_ratio=options.copy_ratio,
        )
        self.parameters = {stage: manifest.parameters for stage, manifest in self.made_of.items()}
        self.parameters["match"] = planned.parameters
        self.audit = {
            "audit_id": generate.snapshot_id,
            "model_revision": generate.parameters["model_revision"],
            "parameters_digest": digest("parameters", planned.parameters, planned.upstream, length=16),
        }

    def round(self, name: str, tasks: Sequence[Task]) -> Round:
        """Tasks as a round; blocks are as large as the pictures that one is compared with fit into a quarter of the memory."""
        neighbours = max(self.options.neighbours, self.options.adaptive_others)
        bytes_of_pictures, pictures = stored_bytes(self.lake, "images", self.snapshots.ingest)
        of_one = 2 * neighbours * max(1, bytes_of_pictures // max(1, pictures))
        return Round(
            lake=self.lake,
            snapshots=self.snapshots,
            snapshot=self.snapshot,
            name=name,
            tasks=tuple(tasks),
            frame=self.frame,
            neighbours=neighbours,
            block=min(MOST_IN_A_BLOCK, max(1, self.memory // 4 // of_one)),
        )

    @property
    def memory(self) -> int:
        """Bytes that a worker may take."""
        return self.options.match_memory << 20

    @functools.cached_property
    def frame(self) -> Frame:
        """Size of the decoys: where the generations have several sizes, the most frequent one's."""
        query = """
            SELECT height, width FROM generations WHERE width IS NOT NULL
            GROUP BY height, width ORDER BY count(*) DESC, width, height LIMIT 1
        """
        found = ask(self.lake, {"generations": self.snapshots.generate}, query)
        return Frame(**found[0]) if found else Frame(COARSE, COARSE)

    def rows_at_once(self) -> int:
        """Groups that are searched at once: their vectors and thumbnails take up to a quarter of the memory."""
        numbers = next(
            (len(row["vector"]) for path in self.lake.parts("embeddings", self.snapshots.embed)
             for row in read_rows(path, ["vector"]) if row["vector"]), 1,
        )  # fmt: skip
        return max(1, self.memory // 4 // (8 * max(numbers, LENGTH)))

    def match(self, execution: Execution, device: DeviceOptions) -> None:
        """Writes ``matches`` of the stored generations, and ``decoys``."""
        parts = self.lake.parts("generations", self.snapshots.generate)
        rows = {part_number(path): count_rows(path) for path in parts}

        def durable() -> int:
            return sum(rows.get(part_number(path), 0) for path in self.lake.own("matches", self.snapshot).values())

        self.directory.write(self.snapshots.ingest, self.snapshots.embed)
        write_own(self.lake, self.snapshot, self.snapshots.generate, self.directory)
        tasks = [Task("generations", number) for number in rows]
        tasks += [Task("decoys", number) for number in range(self._list_decoys())]
        progress = Progress("match", durable, sum(rows.values()), "generations")
        self.judge(execution, device, self.round("stored", tasks), progress)

    def judge(self, execution: Execution, device: DeviceOptions, round: Round, progress: Progress | None = None) -> None:
        """All steps of a round: vectors, candidates, their pictures, and the comparison."""
        clip, devices = encoder(self.embed, device), device.devices()
        execution.run(lambda pipeline: build_embedding(pipeline, self, round, clip, devices))
        self.find(execution, round)
        parts = merge(round)
        execution.run(lambda pipeline: build_gathering(pipeline, round, parts, execution.spread))
        execution.run(lambda pipeline: build(pipeline, self, round, execution.spread), progress)

    def find(self, execution: Execution, round: Round) -> None:
        """Searches what lies near the pictures of a round."""
        rows = self.rows_at_once()
        execution.run(lambda pipeline: build_search(pipeline, round, rows))

    def _list_decoys(self) -> int:
        """Lists what is to be judged as if it were a generation, and is no copy; returns in how many parts."""
        rows: list[dict[str, Any]] = []
        for kind, role in (("held_out", "control"), ("left_out", "training"), ("blurred", "training")):
            rows += [{"kind": kind, **row} for row in self.directory.drawn(kind, role, MOST_DECOYS)]
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
        from transforms.matching.regeneration import pointed_folder, regenerated

        if self.generate.parameters["keep"] == "none":
            return {"pointed": 0, "success": 0, "copies_of_others": 0, "pointed_at": None}
        numbers = [part_number(path) for path in self.lake.parts("generations", self.snapshots.generate)]
        # Only copies are looked for, which lie near.
        pointing = dataclasses.replace(
            self.round("pointing", [Task("generations", number) for number in numbers]),
            neighbours=3,
            spaces=(THUMBNAIL,),
            exact_thumbnails=EXACT_UP_TO,
        )
        execution.run(lambda pipeline: build_thumbnails(pipeline, pointing))
        self.find(execution, pointing)
        merge(pointing)
        counts = self.lake.work("match", self.snapshot, "pointing.parquet")
        execution.run(lambda pipeline: build_pointing(pipeline, pointing, limits, counts))
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
            execution.run(lambda pipeline: build_regeneration(pipeline, self, list(pointed), again, device.devices()), progress)
            self.judge(execution, device, self.round("again", [Task("regenerations", number) for number in pointed]))
        query = "SELECT count(*) AS pointed, count(*) FILTER (status = 'success') AS success FROM regenerations"
        (done,) = ask(self.lake, {"regenerations": self.snapshot}, query)
        if lost := done["pointed"] - done["success"]:
            say(f"match        {lost:,} generations that may be copies could not be made again: see regenerations.reason")
        (row,) = read_parquet(counts).to_pylist()
        return {
            **done,
            "copies_of_others": row["known"],
            "pointed_at": row["agreeing"] / row["known"] if row["known"] else None,
        }

    def calibrate(self) -> None:
        """Writes ``calibration``."""
        rows = calibration_rows(*nearest_to_own(self.lake, self.snapshot, self.snapshots.generate), self.asked)
        self.lake.write("calibration", self.snapshot, 0, [{**self.audit, **row} for row in rows])

    def count(self, execution: Execution, limits: CopyLimits) -> dict[str, Any]:
        """Writes ``eidetic_counts`` for every training image that some verdict calls; returns the recall of the candidates."""
        from transforms.matching.eidetic_counts import targets_at_once
        from transforms.matching.parts import sampled_rows
        from transforms.matching.recall import recall

        targets = self._targets(limits)
        if not targets.num_rows:
            self.lake.write("eidetic_counts", self.snapshot, 0, [])
        frames = [Frame(row["height"], row["width"]) for row in targets.select(["height", "width"]).to_pylist()]
        at_once = targets_at_once(frames, self.memory // 4)
        paths: list[str] = []
        for start in range(0, targets.num_rows, at_once):
            paths.append(self.lake.work("match", self.snapshot, "targets", f"{len(paths):05d}.parquet"))
            write_parquet(paths[-1], targets.slice(start, at_once))
        nearest = self.lake.work("match", self.snapshot, "nearest.parquet")
        execution.run(lambda pipeline: build_recall(pipeline, self, nearest))
        for part, path in enumerate(paths):
            execution.run(lambda pipeline, path=path, part=part: build_counts(pipeline, self, path, part))  # type: ignore[misc]
        found = {
            row["key"]: list(zip(row["distances"], row["groups"], strict=True)) for row in read_parquet(nearest).to_pylist()
        }
        return recall(sampled_rows(self.lake, self.snapshot), found)

    def training_parts(self) -> list[int]:
        """Numbers of the parts of ``images`` with training images."""
        return sorted({row["part"] for row in self.directory.totals() if row["role"] == "training"})

    def _targets(self, limits: CopyLimits) -> pa.Table:
        """sample_id, code, offset, height, width: the training images to count for, and the nearest matched crop of each."""
        limited = {
            "l2_limit": limits.l2,
            "coarse_l2_limit": limits.coarse_l2,
            "coarse_ratio_limit": limits.coarse_ratio,
        }
        query = """
            WITH called AS (
                SELECT sample_id, "offset", prompt_id, sample_index FROM matches
                WHERE role = 'training' AND (extracted OR is_copy(matches, $limits))
                QUALIFY row_number() OVER (PARTITION BY sample_id ORDER BY l2, prompt_id, sample_index) = 1
            )

            SELECT called.sample_id, called."offset", generations.height, generations.width
            FROM called INNER JOIN generations USING (prompt_id, sample_index) ORDER BY sample_id
        """
        tables = {"matches": self.snapshot, "generations": self.snapshots.generate}
        batches = list(scan(self.lake, tables, query, limits=limited))
        sizes = [(name, pa.int32()) for name in ("offset", "height", "width")]
        schema = pa.schema([("sample_id", pa.string()), *sizes])
        table = pa.Table.from_batches(batches, schema=schema) if batches else schema.empty_table()
        codes = self.directory.codes(table["sample_id"].to_pylist())
        return table.append_column("code", pa.array([codes[sample] for sample in table["sample_id"].to_pylist()], pa.int64()))

    def tell_unreadable(self) -> None:
        """Writes ``unreadable``: the pictures that could not be decoded on the way."""
        rows = noted(self.lake, self.snapshot)
        self.lake.write("unreadable", self.snapshot, 0, [{**self.audit, **row} for row in rows])
        if rows:
            say(f"match        {len(rows):,} stored pictures can't be decoded, and were compared with nothing: see unreadable")

    def register(self) -> None:
        """Writes the audit's row of ``audits``."""
        row = {
            **self.audit,
            "generator": self.generate.parameters["generator"],
            "model": written_name(self.generate.facts["model"]),
            "ingest_snapshot": self.snapshots.ingest,
            "embed_snapshot": self.snapshots.embed,
            "deduplicate_snapshot": self.snapshots.deduplicate,
            "parameters": json.dumps(self.parameters, sort_keys=True),
            "versions": json.dumps(versions()),
            "machine": machine(),
            "finished_at": datetime.datetime.now(datetime.UTC),
        }
        self.lake.write("audits", self.snapshot, 0, [row])


def stored_bytes(lake: Lake, table: str, snapshot: str) -> tuple[int, int]:
    """(bytes, number) of the pictures of a table that are stored, from the Parquet footers alone."""
    size = stored = 0
    for path in lake.parts(table, snapshot):
        with open_parquet(path) as file:
            column = file.schema_arrow.names.index("image")
            for group in range(file.num_row_groups):
                chunk = file.metadata.row_group(group).column(column)
                size += chunk.total_uncompressed_size
                stored += chunk.num_values - (chunk.statistics.null_count if chunk.is_stats_set else 0)
    return size, stored


def build_embedding(pipeline: beam.Pipeline, job: Matching, round: Round, clip: ClipModel, devices: Devices) -> None:
    """The pipeline that makes the vectors of what is judged, and writes ``generation_embeddings``."""
    from transforms.matching.queries import EmbedTasks

    embed = EmbedTasks(round, clip, job.audit["parameters_digest"], devices)
    _ = pipeline | "Tasks" >> beam.Create(list(enumerate(round.tasks))) | "EmbedTasks" >> embed


def build_thumbnails(pipeline: beam.Pipeline, round: Round) -> None:
    """The pipeline that takes the thumbnails of all attempts."""
    from transforms.matching.queries import ThumbnailsOfAttempts

    tasks = [(number, task.number) for number, task in enumerate(round.tasks)]
    step = beam.ParDo(ThumbnailsOfAttempts(round))
    _ = pipeline | "Tasks" >> beam.Create(tasks, reshuffle=True) | "ThumbnailsOfAttempts" >> step


def build_search(pipeline: beam.Pipeline, round: Round, rows: int) -> None:
    """The pipeline that finds the candidates, with so many groups in a worker's memory at once."""
    from transforms.matching.candidates import FindCandidates

    _ = pipeline | "FindCandidates" >> FindCandidates(round, rows)


def build_gathering(pipeline: beam.Pipeline, round: Round, parts: list[int], spread: Spread = in_this_process) -> None:
    """The pipeline that brings the pictures of these parts of ``images`` to the blocks that want them."""
    from transforms.matching.gathering import GatherPart

    gather = beam.ParDo(spread(GatherPart(round)))
    _ = pipeline | "Parts" >> beam.Create(parts, reshuffle=True) | "GatherPart" >> gather


def build(pipeline: beam.Pipeline, job: Matching, round: Round, spread: Spread = in_this_process) -> None:
    """The pipeline that writes ``matches`` and ``decoys``."""
    from transforms.matching.parts import MatchTask

    _, kept = stored_bytes(job.lake, "generations", job.snapshots.generate)
    match = MatchTask(round, job.measure, job.audit, min(1.0, RECALL_SAMPLE / max(1, kept)))
    tasks = pipeline | "Tasks" >> beam.Create(list(enumerate(round.tasks)), reshuffle=True)
    _ = tasks | "MatchTask" >> beam.ParDo(spread(match))


def build_pointing(pipeline: beam.Pipeline, round: Round, limits: CopyLimits, counts: str) -> None:
    """The pipeline that finds what is to be made again."""
    from transforms.matching.regeneration import Point, write_counts

    tasks = [(number, task.number) for number, task in enumerate(round.tasks)]
    _ = (
        pipeline
        | "Parts" >> beam.Create(tasks, reshuffle=True)
        | "Point" >> beam.ParDo(Point(round, limits))
        | "Gather" >> beam.combiners.ToList()
        | "WriteCounts" >> beam.Map(write_counts, counts)
    )


def build_regeneration(pipeline: beam.Pipeline, job: Matching, numbers: list[int], images: Generator, devices: Devices) -> None:
    """The pipeline that writes ``regenerations``."""
    from transforms.matching.regeneration import Regenerate

    again = Regenerate(job.lake, job.snapshot, images, job.audit, devices)
    _ = pipeline | "Parts" >> beam.Create(numbers) | "Regenerate" >> again


def build_recall(pipeline: beam.Pipeline, job: Matching, nearest: str) -> None:
    """The pipeline that writes, by brute force, which images lie nearest to the sampled generations."""
    from transforms.matching.recall import NearestOfAll

    _ = (
        pipeline
        | "Parts" >> beam.Create(job.training_parts(), reshuffle=True)
        | "NearestOfAll" >> NearestOfAll(job.lake, job.snapshots, job.snapshot, nearest)
    )


def build_counts(pipeline: beam.Pipeline, job: Matching, targets: str, part: int) -> None:
    """The pipeline that writes a part of ``eidetic_counts``."""
    from transforms.matching.eidetic_counts import CountMemories

    count = CountMemories(job.lake, job.snapshot, job.snapshots, targets, part, job.options.eidetic_delta, job.audit)
    _ = pipeline | "Parts" >> beam.Create(job.training_parts(), reshuffle=True) | "CountMemories" >> count


STAGE = Stage(
    name="match",
    description=__doc__,
    upstream="generate",
    options=(MatchOptions, DeviceOptions),
    alone=(ModelOptions,),
    plan=plan,
    work=work,
    finish=finish,
    costs=costs,
)
main = STAGE.main


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
