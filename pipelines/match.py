"""Compares the kept generations with the training images, calibrates on the controls, and counts the finds' repeats.

reads   prompts, generations, duplicate_groups, embeddings, images
writes  matches, calibration, eidetic_counts, audits

Every kept generation is compared with the images whose caption made it and with the nearest ones of the whole training set
(by CLIP); those of a control with this control and its nearest neighbours among the controls. extracted is the paper's
verdict (l2 ≤ --delta); the calibrated threshold is the one that controls seldom pass (docs/calibration.md).

  eidetic match --lake lake --delta 0.15 --max_false_positive_rate 0.01
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipelines.device import DeviceOptions
from pipelines.embed import encoder
from pipelines.options import CommonOptions, option, parameters, parse
from pipelines.stage import Execution, Progress, Stage, machine, versions
from transforms.errors import UserError
from transforms.identity import digest
from transforms.lake import Lake, Manifest, count_rows, delete, part_number, write_parquet
from transforms.tombstones import RETIRED

DISTANCES = ("l2", "tiled_l2", "adaptive_l2")


@dataclasses.dataclass(frozen=True)
class MatchOptions:
    """Matching: distances, verdicts, calibration."""

    delta: float = option(0.15, "extracted from this l2 down (paper: 0.15)")
    eidetic_delta: float = option(0.1, "training images within this l2 of a find are counted as k (paper: 0.1)")
    neighbours: int = option(64, "images that CLIP finds near a generation and whose pixels are compared")
    adaptive_others: int = option(50, "the n of the adaptive distance (paper: 50)")
    adaptive_alpha: float = option(0.5, "the alpha of the adaptive distance (paper: 0.5)")
    max_false_positive_rate: float = option(0.01, "chance, per image, that a control-like image is called extracted")
    calibrated_distance: str = option("adaptive_l2", "the distance that extracted_calibrated goes by", choices=DISTANCES)

    def __post_init__(self) -> None:
        for name in ("delta", "eidetic_delta", "max_false_positive_rate"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}, expected between 0 and 1")
        for name in ("neighbours", "adaptive_others"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}, expected 1 or more")
        if self.adaptive_alpha <= 0:
            raise UserError(f"--adaptive_alpha is {self.adaptive_alpha}, expected over 0")


def stage(lake: Lake, options: MatchOptions, generate: str) -> Stage:
    """What ``match`` would make of the generations of audit ``generate``."""
    parts = lake.parts("generations", generate) if lake.manifest("generate", generate) else None
    return Stage(
        name="match",
        parameters=parameters(options),
        upstream={"generate": generate},
        items=None if parts is None else sum(count_rows(part) for part in parts),
        unit="generations",
    )


def run(execution: Execution, options: MatchOptions, device: DeviceOptions, generate: Manifest | None = None) -> Manifest:
    """Runs the stage on the newest generations, or on those of ``generate``."""
    lake = execution.lake
    done = generate or lake.latest("generate")
    planned = stage(lake, options, done.snapshot_id)

    def work(planned: Stage) -> dict[str, Any]:
        refuse_without_pictures(lake, done.snapshot_id)
        job = Job(lake, options, done, planned)
        job.match(execution, device)
        threshold = job.calibrate()
        job.count(execution, threshold)
        job.register()
        return {}

    manifest = execution.stage(planned, work)
    delete(lake.work("match", manifest.snapshot_id))
    return manifest


def refuse_without_pictures(lake: Lake, audit: str) -> None:
    """UserError where pictures of the audit were retired: they would count as not extracted."""
    reasons = lake.read("generations", audit, ["reason"])["reason"].to_pylist()
    retired = sum(reason is not None and reason.startswith(RETIRED) for reason in reasons)
    if retired:
        raise UserError(
            f"{retired:,} pictures of the audit {audit} were removed by 'eidetic forget --generations_older_than', and would "
            "count as not extracted; run 'eidetic generate' with another --seed first"
        )


class Job:
    """One run of ``match``: its four steps, each of which leaves its table whole."""

    def __init__(self, lake: Lake, options: MatchOptions, generate: Manifest, planned: Stage):
        from transforms.matching import Measure, Snapshots

        self.lake, self.options, self.generate = lake, options, generate
        self.snapshot = planned.snapshot_id
        deduplicate = _upstream(lake, "deduplicate", generate)
        self.embed = _upstream(lake, "embed", deduplicate)
        ingest = _upstream(lake, "ingest", self.embed)
        self.chain = [ingest, self.embed, deduplicate, generate]
        self.snapshots = Snapshots(
            ingest=ingest.snapshot_id,
            embed=self.embed.snapshot_id,
            deduplicate=deduplicate.snapshot_id,
            generate=generate.snapshot_id,
        )
        self.measure = Measure(
            delta=options.delta,
            neighbours=max(options.neighbours, options.adaptive_others),
            others=options.adaptive_others,
            alpha=options.adaptive_alpha,
        )
        self.parameters = {manifest.stage: manifest.parameters for manifest in self.chain} | {"match": planned.parameters}
        self.audit = {
            "audit_id": generate.snapshot_id,
            "model_revision": generate.parameters["model_revision"],
            "parameters_digest": digest("parameters", planned.parameters, planned.upstream, length=16),
        }

    def match(self, execution: Execution, device: DeviceOptions) -> None:
        """Writes ``matches``."""
        parts = self.lake.parts("generations", self.snapshots.generate)
        numbers = {part_number(path): path for path in parts}
        rows = {number: count_rows(path) for number, path in numbers.items()}

        def durable() -> int:
            return sum(rows[part_number(path)] for path in self.lake.parts("matches", self.snapshot))

        progress = Progress("match", durable, sum(rows.values()), "generations")
        execution.run(lambda pipeline: build(pipeline, self, list(numbers), device), progress)

    def calibrate(self) -> float | None:
        """Writes ``calibration``; returns the chosen distance's threshold, None where the controls allow none."""
        rows = calibration_rows(
            self.lake.read("matches", self.snapshot),
            self.lake.read("prompts", self.snapshots.generate),
            self.options,
        )
        self.lake.write("calibration", self.snapshot, 0, [{**self.audit, **row} for row in rows])
        return next(row["threshold"] for row in rows if row["chosen"])

    def count(self, execution: Execution, threshold: float | None) -> None:
        """Writes ``eidetic_counts`` for every training image that either verdict calls extracted."""
        targets = self._targets(threshold)
        if targets.num_rows == 0:
            self.lake.write("eidetic_counts", self.snapshot, 0, [])
            return
        path = self.lake.work("match", self.snapshot, "targets.parquet")
        write_parquet(path, targets)
        execution.run(lambda pipeline: build_counts(pipeline, self, path))

    def _targets(self, threshold: float | None) -> pa.Table:
        """(sample_id, side, crop) of the training images to count for: the crop of each one's nearest match."""
        from transforms.images import ImageStore
        from transforms.kernels.distances import resize_shorter_side

        columns = ["sample_id", "prompt_id", "sample_index", "role", "relation", "offset", "l2", "extracted",
                   self.options.calibrated_distance]  # fmt: skip
        nearest: dict[str, dict[str, Any]] = {}
        for row in self.lake.read("matches", self.snapshot, list(dict.fromkeys(columns))).to_pylist():
            distance = row[self.options.calibrated_distance]
            called = threshold is not None and row["relation"] == "own" and distance is not None and distance < threshold
            if row["role"] != "training" or not (row["extracted"] or called):
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
            along_height = picture.shape[0] > picture.shape[1]
            crop = picture[offset : offset + side] if along_height else picture[:, offset : offset + side]
            rows.append({"sample_id": sample, "side": side, "crop": np.ascontiguousarray(crop).tobytes()})
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


def _upstream(lake: Lake, stage: str, manifest: Manifest) -> Manifest:
    found = lake.manifest(stage, manifest.upstream[stage])
    if found is None:
        raise UserError(f"the lake {lake.root!r} lacks the {stage} snapshot {manifest.upstream[stage]}; restore its manifest")
    return found


def build(pipeline: beam.Pipeline, job: Job, numbers: list[int], device: DeviceOptions) -> None:
    """The pipeline that writes ``matches``."""
    from transforms.matching import MatchPart

    part = MatchPart(
        job.lake,
        job.snapshots,
        job.snapshot,
        encoder(job.embed, device),
        job.measure,
        job.audit["parameters_digest"],
    )
    _ = pipeline | "Parts" >> beam.Create(numbers) | "SpreadParts" >> beam.Reshuffle() | "MatchPart" >> beam.ParDo(part)


def build_counts(pipeline: beam.Pipeline, job: Job, targets: str) -> None:
    """The pipeline that writes ``eidetic_counts``."""
    from transforms.matching import CountMemories

    numbers = [part_number(path) for path in job.lake.parts("images", job.snapshots.ingest)]
    count = CountMemories(job.lake, job.snapshot, job.snapshots.ingest, targets, job.options.eidetic_delta, job.audit)
    _ = pipeline | "Parts" >> beam.Create(numbers) | "CountMemories" >> count


def calibration_rows(matches: pa.Table, prompts: pa.Table, options: MatchOptions) -> list[dict[str, Any]]:
    """Rows of ``calibration``, without the audit's columns: one per distance.

    Args:
        matches: the audit's table ``matches``.
        prompts: the audit's table ``prompts``.
        options: the rate that is asked for, and the distance that is chosen.
    """
    from transforms.kernels import calibration
    from transforms.kernels.rates import clopper_pearson_upper

    by_id = {row["prompt_id"]: row for row in prompts.to_pylist()}
    controls = [row for row in by_id.values() if row["origin"] == "control"]
    tried = [row for row in by_id.values() if row["origin"] != "control"]
    tested = [row for row in tried if row["group_id"] is not None]
    own = [row for row in matches.to_pylist() if row["relation"] == "own"]
    near = [row for row in matches.to_pylist() if row["relation"] == "neighbour" and row["role"] == "control"]
    per_prompt = max((row["images_requested"] for row in tried), default=1)
    per_control = min((row["images_requested"] for row in controls), default=per_prompt)
    result = []
    for distance in DISTANCES:
        smallest: dict[str, float] = {}
        for row in own:
            if row[distance] is not None:
                prompt = row["prompt_id"]
                smallest[prompt] = min(smallest.get(prompt, np.inf), row[distance])
        null = np.array([smallest[row["prompt_id"]] for row in controls if row["prompt_id"] in smallest])
        found = np.array([smallest[row["prompt_id"]] for row in tested if row["prompt_id"] in smallest])
        limit = calibration.threshold(
            null,
            max_false_positive_rate=options.max_false_positive_rate,
            generations_per_prompt=per_prompt,
            generations_per_control=per_control,
        )
        called = None if limit.value is None else int((found < limit.value).sum())
        discovery = None
        if called and limit.promised_rate is not None:
            discovery = calibration.false_discovery_rate(limit.promised_rate, len(tested), called)
        upper = None
        if limit.controls_called is not None:
            upper = clopper_pearson_upper(limit.controls_called, len(null))
        separation = calibration.separation(found, null)
        within = {row["prompt_id"] for row in own if row["role"] == "control" and row["extracted"]}
        near_another = {row["prompt_id"] for row in near if row["extracted"]}
        result.append(
            {
                "distance": distance,
                "chosen": distance == options.calibrated_distance,
                "max_false_positive_rate": options.max_false_positive_rate,
                "n_controls": len(null),
                "generations_per_prompt": per_prompt,
                "generations_per_control": per_control,
                "threshold": limit.value,
                "promised_rate": limit.promised_rate,
                "controls_called": limit.controls_called,
                "upper_bound": upper,
                "controls_within_delta": len(within),
                "controls_near_another_within_delta": len(near_another),
                "images_tested": len(tested),
                "images_called": called,
                "false_discovery_rate": discovery,
                "separation": None if np.isnan(separation) else separation,
            }
        )
    return result


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "match", __doc__, (CommonOptions, MatchOptions, DeviceOptions))
    common = parsed[CommonOptions]
    run(Execution(Lake(common.lake), parsed.beam, common.verbose), parsed[MatchOptions], parsed[DeviceOptions])


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
