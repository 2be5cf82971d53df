"""Downloads the training images, and the controls, into the lake.

reads   metadata: LAION-style Parquet (URL, TEXT, and punsafe, pwatermark, … where present), or a folder of pictures
writes  samples: one row per row of metadata, with its status and reason; images: the pictures that were had

The download is img2dataset's, within limits on bytes, pixels and total time; addresses inside private networks are refused,
and pictures whose server opts out (X-Robots-Tag) are left alone. Pictures are resized as --resize_mode says: what is thrown
away can't be had again. Controls are pictures that the model never saw; with them, verdicts can be calibrated.

  eidetic ingest --lake lake --metadata relaion2B-en/ --controls held_out.parquet --image_size 512
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import functools
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pyarrow.compute as pc

from pipelines.options import CommonOptions, option, parse
from pipelines.stage import Execution, Progress, Stage
from transforms.download import Limits
from transforms.errors import UserError
from transforms.ingestion import Ingest, IngestBucket, Population, RetryParts, Storage, failed_since
from transforms.lake import Lake, Manifest, count_rows, delete, read_parquet
from transforms.sources import Source, Survey, source

QUALITY = {"jpg": 95, "webp": 95, "png": 6}

MAX_TIMEOUT = 3600.0
"""Seconds for one URL. A part waits for the slowest of its pictures."""

MOST_PIXELS = 178_956_970
"""Pillow, which reads the headers, opens no picture with more."""


@dataclasses.dataclass(frozen=True)
class IngestOptions:
    """Ingest: what to download, and how it is stored."""

    metadata: str | None = option(None, "the training set: Parquet file, folder or glob; for --source folder, the folder")
    source: str = option("laion", "what the metadata is", choices=("laion", "folder"))
    controls: str | None = option(None, "pictures that the model never saw, in the same form as --metadata")
    image_size: int = option(512, "side that pictures are resized to, in pixels")
    resize_mode: str = option(
        "keep_ratio", "img2dataset's", choices=("no", "keep_ratio", "center_crop", "border", "keep_ratio_largest")
    )
    upscale: bool = option(False, "enlarge smaller pictures as well")
    encode_format: str = option("jpg", "how pictures are stored", choices=("jpg", "png", "webp"))
    encode_quality: int | None = option(None, "0 to 100, for png the compression from 0 to 9 (default 95, for png 6)")
    punsafe_max: float = option(0.1, "rows whose punsafe is over this are not downloaded")
    allow_private_hosts: bool = option(False, "let loopback and private addresses pass")
    timeout: float = option(10.0, "seconds for one URL in all")
    max_bytes: int = option(32 << 20, "bytes of one file")
    max_pixels: int = option(50_000_000, "pixels of one picture, before resizing")
    retries: int = option(0, "further tries where a connection broke or a server was busy, within the same --timeout")
    threads: int = option(32, "downloads at once, in each worker")
    user_agent_token: str = option("eidetic", "who asks: part of the User-Agent, and looked for in X-Robots-Tag")
    honour_opt_outs: bool = option(True, "leave pictures alone whose server opts out by X-Robots-Tag")
    carry_over: bool = option(
        True, "keep what an earlier run had of the same metadata files; --no_carry_over: download all of them again"
    )
    rows_per_part: int = option(10_000, "rows in one part of the tables, about")

    def __post_init__(self) -> None:
        for name in ("image_size", "max_bytes", "max_pixels", "threads", "rows_per_part"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}, expected 1 or more")
        if not 0 < self.timeout <= MAX_TIMEOUT:
            raise UserError(f"--timeout is {self.timeout}, expected seconds over 0, up to {MAX_TIMEOUT}")
        if not 0 <= self.punsafe_max <= 1:
            raise UserError(f"--punsafe_max is {self.punsafe_max}, expected between 0 and 1")
        if self.max_pixels > MOST_PIXELS:
            raise UserError(f"--max_pixels is {self.max_pixels}, expected up to {MOST_PIXELS}")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.user_agent_token):
            raise UserError(f"--user_agent_token is {self.user_agent_token!r}, expected letters, digits, '.', '_' or '-'")
        if self.retries < 0:
            raise UserError(f"--retries is {self.retries}, expected 0 or more")
        most = 9 if self.encode_format == "png" else 100
        if self.encode_quality is not None and not 0 <= self.encode_quality <= most:
            raise UserError(f"--encode_quality is {self.encode_quality}, expected 0 to {most} for {self.encode_format}")

    @property
    def storage(self) -> Storage:
        quality = QUALITY[self.encode_format] if self.encode_quality is None else self.encode_quality
        return Storage(self.image_size, self.resize_mode, self.upscale, self.encode_format, quality)

    @property
    def limits(self) -> Limits:
        return Limits(
            seconds=self.timeout,
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
            allow_private_hosts=self.allow_private_hosts,
            user_agent_token=self.user_agent_token,
            opt_out_directives=Limits.opt_out_directives if self.honour_opt_outs else (),
        )

    @functools.cached_property
    def surveyed(self) -> dict[str, tuple[Source, Survey]]:
        """Role → where its samples come from, and what is there. UserError where something is wrong with it.

        Looked at once: what the snapshot is named after is then what the pipeline reads.
        """
        if self.metadata is None:
            raise UserError("no training set: name it with --metadata (a Parquet file, folder or glob)")
        found = {}
        for role, flag, path in (("training", "--metadata", self.metadata), ("control", "--controls", self.controls)):
            if path is not None:
                one = source(self.source, path)
                try:
                    found[role] = one, one.survey()
                except UserError as error:
                    raise UserError(f"{flag}: {error}") from error
        return found

    @property
    def surveys(self) -> dict[str, Survey]:
        """Role → what is there."""
        return {role: survey for role, (_, survey) in self.surveyed.items()}


def stage(lake: Lake, options: IngestOptions) -> Stage:
    """What ``ingest`` would make of the metadata: what is there already for these, or else what is to be made."""
    parameters = shaping(options)
    rows = sum(survey.rows for survey in options.surveys.values())
    done = [one for one in lake.manifests("ingest") if without_retries(one.parameters) == parameters]
    if done:
        # The newest: what failed may have been tried again since.
        return Stage("ingest", done[-1].parameters, done[-1].upstream, rows, "rows")
    earlier = before(lake, options) if options.carry_over else None
    return Stage("ingest", parameters, {} if earlier is None else {"ingest": earlier.snapshot_id}, rows, "rows")


def shaping(options: IngestOptions) -> dict[str, Any]:
    """What shapes the rows of ``ingest``."""
    return {
        **dataclasses.asdict(options.storage),
        **dataclasses.asdict(options.limits),
        # As a manifest has it, with which this is compared.
        "opt_out_directives": list(options.limits.opt_out_directives),
        "retries": options.retries,
        "source": options.source,
        "punsafe_max": options.punsafe_max,
        # The number of parts follows from it, and a restarted run must find its parts.
        "rows_per_part": options.rows_per_part,
        "metadata": {role: survey.fingerprint for role, survey in options.surveys.items()},
    }


def without_retries(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "retried"}


def before(lake: Lake, options: IngestOptions) -> Manifest | None:
    """The newest run with the same options over some of the same metadata files, and no others."""

    def but_metadata(parameters: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in without_retries(parameters).items() if name != "metadata"}

    wanted = but_metadata(shaping(options))
    for earlier in reversed(lake.manifests("ingest")):
        same = but_metadata(earlier.parameters) == wanted and "partitions" in earlier.facts
        if same and beside(options, earlier) is not None:
            return earlier
    return None


def beside(options: IngestOptions, base: Manifest) -> dict[str, Survey] | None:
    """Role → the metadata files that ``base`` has not; None where it has others, which are no longer there."""
    left = {}
    for role, fingerprints in base.facts["partitions"].items():
        survey = options.surveys[role].without(fingerprints) if role in options.surveys else None
        if survey is None:
            return None
        left[role] = survey
    return options.surveys | left


def build(pipeline: beam.Pipeline, lake: Lake, snapshot: str, options: IngestOptions, base: Manifest | None = None) -> None:
    """The pipeline that writes ``samples`` and ``images``: of what ``base`` has not."""
    left = options.surveys if base is None else beside(options, base)
    assert left is not None, "a base has no metadata files that are gone"
    # Training samples first, then controls, with the buckets that their numbers of rows ask for.
    first = 0 if base is None else max(lake.paths("samples", base.snapshot_id), default=-1) + 1
    populations: list[Population] = []
    partitions: list[tuple[Population, int, str]] = []
    for role, survey in left.items():
        if survey.partitions:
            population = Population(role, options.surveyed[role][0], first, math.ceil(survey.rows / options.rows_per_part))
            first += population.buckets
            populations.append(population)
            partitions += [(population, number, partition.name) for number, partition in enumerate(survey.partitions)]
    ingest = Ingest(
        lake,
        snapshot,
        bucket_of(lake, snapshot, options, populations, base is not None),
        None if base is None else base.snapshot_id,
    )
    _ = pipeline | "Partitions" >> beam.Create(partitions, reshuffle=True) | "Ingest" >> ingest


def bucket_of(
    lake: Lake, snapshot: str, options: IngestOptions, populations: list[Population], lies_over: bool = True
) -> IngestBucket:
    return IngestBucket(
        lake,
        snapshot,
        populations,
        options.storage,
        options.limits,
        options.punsafe_max,
        options.threads,
        options.retries,
        lies_over,
    )


def run(execution: Execution, options: IngestOptions) -> Manifest:
    """Runs the stage."""
    lake = execution.lake
    planned = stage(lake, options)

    def work(planned: Stage) -> dict[str, Any]:
        counted: dict[str, int] = {}

        def durable() -> int:
            for path in lake.parts("samples", planned.snapshot_id):
                if path not in counted:
                    counted[path] = count_rows(path)
            return sum(counted.values())

        base = lake.manifest("ingest", planned.upstream["ingest"]) if planned.upstream else None
        if base is not None:
            lie_over(lake, planned.snapshot_id, base)
        progress = Progress("ingest", durable, planned.items or 0, "rows")
        execution.run(lambda pipeline: build(pipeline, lake, planned.snapshot_id, options, base), progress)
        if durable() != planned.items:
            raise RuntimeError(f"{planned.items} rows of metadata became {durable()} samples")
        return facts(lake, planned.snapshot_id, partitions(options))

    manifest = execution.stage(planned, work)
    delete(lake.work("ingest", manifest.snapshot_id))
    return manifest


def lie_over(lake: Lake, snapshot: str, base: Manifest) -> None:
    for table in ("samples", "images"):
        lake.lay_over(table, snapshot, base.snapshot_id)


def partitions(options: IngestOptions) -> dict[str, list[str]]:
    """Role → fingerprints of its metadata files."""
    return {role: [one.fingerprint for one in survey.partitions] for role, survey in options.surveys.items()}


def facts(lake: Lake, snapshot: str, partitions: dict[str, list[str]]) -> dict[str, Any]:
    table = lake.read("samples", snapshot, ["role", "status"])
    tally = collections.Counter(zip(table["role"].to_pylist(), table["status"].to_pylist(), strict=True))
    return {
        "status": {f"{role}/{status}": number for (role, status), number in sorted(tally.items())},
        # What a later run may build on.
        "partitions": partitions,
    }


def retry(execution: Execution, options: IngestOptions, base: Manifest, since: datetime.datetime, label: str) -> Manifest:
    """Tries again what failed to download since then, and only that.

    Args:
        execution: where.
        options: those that ``base`` was made with; its metadata files say where a picture of a folder lies.
        base: a complete ingest.
        since: rows that were decided before are left alone.
        label: tells this attempt from others, such as the date.

    Returns:
        a snapshot that lies over ``base`` with the parts that changed; ``base`` where none did.
    """
    lake = execution.lake
    failed: dict[str, dict[int, int]] = {}
    for number, path in lake.paths("samples", base.snapshot_id).items():
        for row in read_parquet(path, ["role", "status", "ingested_at", "url"]).to_pylist():
            if failed_since(row, since):
                of_role = failed.setdefault(row["role"], {})
                of_role[number] = of_role.get(number, 0) + 1
    # As many downloads at once as for a part that is new.
    together = [(role, parts) for role, counts in failed.items() for parts in in_bins(counts, options.rows_per_part)]
    if not together:
        return base
    planned = Stage(
        "ingest",
        {**base.parameters, "retried": label},
        {"ingest": base.snapshot_id},
        sum(len(parts) for _, parts in together),
        "parts with failed downloads",
    )
    snapshot = planned.snapshot_id
    populations = [Population(role, one, 0, 0) for role, (one, _) in options.surveyed.items()]
    again = RetryParts(bucket_of(lake, snapshot, options, populations), base.snapshot_id, since)

    def build_retry(pipeline: beam.Pipeline) -> None:
        _ = pipeline | "FailedParts" >> beam.Create(together, reshuffle=True) | "RetryParts" >> beam.ParDo(again)

    execution.run(build_retry)
    if not lake.own("samples", snapshot):
        return base

    def work(planned: Stage) -> dict[str, Any]:
        lie_over(lake, snapshot, base)
        # Not what there is now: metadata that came since are not in it.
        return facts(lake, snapshot, base.facts["partitions"])

    return execution.stage(planned, work)


def added(lake: Lake, before: Manifest, after: Manifest) -> int:
    """Samples of a later ingest that an earlier one has not; it may lack some of the earlier one's."""
    was, now = (lake.read("samples", one.snapshot_id, ["sample_id"])["sample_id"] for one in (before, after))
    return len(now) - (pc.sum(pc.is_in(now, was)).as_py() or 0)


def recovered(lake: Lake, before: Manifest, after: Manifest) -> int:
    """Samples that were no success in one ingest and are one in a later one."""
    was, now = (lake.read("samples", one.snapshot_id, ["sample_id", "status"]) for one in (before, after))
    failed = was.filter(pc.not_equal(was["status"], "success"))["sample_id"]
    return pc.sum(pc.is_in(now.filter(pc.equal(now["status"], "success"))["sample_id"], failed.combine_chunks())).as_py() or 0


def in_bins(sizes: dict[int, int], most: int) -> list[list[int]]:
    """The keys, in their order, in lists whose sizes make at most ``most`` together, or that have one key."""
    bins: list[list[int]] = []
    held = 0
    for key, size in sizes.items():
        if not bins or held + size > most:
            bins.append([])
            held = 0
        bins[-1].append(key)
        held += size
    return bins


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "ingest", __doc__, (CommonOptions, IngestOptions))
    common = parsed[CommonOptions]
    run(Execution(Lake(common.lake), parsed.beam, common.verbose), parsed[IngestOptions])


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
