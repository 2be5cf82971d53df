"""Downloads the training images, and the controls, into the lake.

reads   metadata of pictures on the web, in Parquet, CSV, TSV or JSON Lines (URL, TEXT, and punsafe, pwatermark, … where
        present), or a folder of pictures with captions (--source folder: metadata.jsonl, .csv or .parquet, kohya's
        meta_cap.json, .txt or .caption beside a picture), or pictures inside Parquet (--source parquet: as Hugging Face's data
        sets have them, with labels), or in the tars of WebDataset (--source webdataset)
writes  samples: one row per row of metadata, with its status and reason; images: the pictures that were had

The download is img2dataset's, within limits on bytes, pixels and total time; addresses inside private networks are refused, and
pictures that robots.txt or X-Robots-Tag withholds are left alone. Pictures are resized as --resize_mode says: what is thrown
away can't be had again. Those of a folder, or inside Parquet, are turned as their EXIF orientation says, as their trainers see
them; those of LAION and of tars stay as they are stored, as their models saw them. Controls are pictures that the model never
saw (--controls, or a split of the data set, --controls_split); with them, verdicts can be calibrated. What failed to download
stays failed until --retry_failed, or a night, tries it again.

  eidetic ingest --lake lake --metadata relaion2B-en/ --controls held_out.parquet --image_size 512
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import re
import sys
from typing import Any

import apache_beam as beam

from pipelines.costs import Cost, Size, lines, rated, run_of
from pipelines.execution import Execution, Progress, say
from pipelines.options import Options, Parsed, check_url, option
from pipelines.stages import Planned, Stage
from transforms.data.download import DownloadLimits
from transforms.data.folders import told_left_out
from transforms.data.ingestion import MOST_ROWS, Buckets, Ingest, IngestBucket, RetryParts, Storage, failed_since
from transforms.data.sources import Source, source
from transforms.data.survey import Partition, Survey, same_split
from transforms.errors import UserError
from transforms.kernels.distances import MAX_ASPECT_RATIO
from transforms.models.processes import Spread, in_this_process
from transforms.store.files import count_rows, delete, read_rows
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import check_lineage
from transforms.store.scan import ask
from transforms.store.texts import printable

COLUMNS = ("url_column", "caption_column", "image_column", "label_column")
"""Options that say what the metadata call their columns."""

INSIDE = ("parquet", "webdataset")
"""Sources whose pictures come with their rows."""

QUALITY = {"jpg": 95, "webp": 95, "png": 6}

MAX_TIMEOUT = 3600.0
"""Seconds for one URL. A part waits for the slowest of its pictures."""

MOST_THREADS = 1024
"""img2dataset starts all of them at once, and many more than that for ever."""

MOST_PIXELS = 178_956_970
"""Pillow, which reads the headers, opens no picture with more."""


@dataclasses.dataclass(frozen=True)
class IngestOptions(Options):
    """Ingest: what to download, and how it is stored."""

    metadata: str | None = option(
        None, "the training set: file, folder or glob (Parquet, .csv, .tsv, .jsonl, .tar), by --source"
    )
    source: str = option("laion", "what the metadata is", choices=("laion", "folder", "parquet", "webdataset"))
    controls: str | None = option(None, "pictures that the model never saw, in the same form as --metadata")
    controls_split: str | None = option(
        None, "instead: the split of --metadata that the model never saw (test; or several: test,validation)"
    )
    url_column: str | None = option(None, "column of the url (default URL or url); of a folder's metadata, of the file's name")
    caption_column: str | None = option(
        None, "column of the caption (default TEXT, text or caption); of webdataset: an ending (txt), or a name in .json"
    )
    image_column: str | None = option(
        None, "of --source parquet: column of the picture (default image, img, …); of webdataset: its ending in the tars"
    )
    label_column: str | None = option(
        None, "of --source parquet: column of the class (default label, …); of webdataset: an ending (cls), or a name in .json"
    )
    allow_cut_tars: bool = option(False, "of --source webdataset: take what lies before where a tar is cut or damaged")
    image_size: int = option(512, "side that pictures are resized to, in pixels", least=1)
    resize_mode: str = option(
        "keep_ratio", "img2dataset's", choices=("no", "keep_ratio", "center_crop", "border", "keep_ratio_largest")
    )
    upscale: bool = option(False, "enlarge smaller pictures as well")
    encode_format: str = option("jpg", "how pictures are stored", choices=("jpg", "png", "webp"))
    encode_quality: int | None = option(None, "0 to 100, for png the compression from 0 to 9 (default 95, for png 6)")
    punsafe_max: float = option(0.1, "rows whose punsafe is over this are not downloaded", least=0, most=1)
    allow_private_hosts: bool = option(False, "let loopback and private addresses pass")
    timeout: float = option(10.0, "seconds for one URL in all; a host's robots.txt has as many", over=0, most=MAX_TIMEOUT)
    max_bytes: int = option(32 << 20, "bytes of one file", least=1)
    max_pixels: int = option(50_000_000, "pixels of one picture, before resizing", least=1, most=MOST_PIXELS)
    max_aspect_ratio: float = option(
        16.0, "how many times longer than the other a side of a picture may be", least=1, most=MAX_ASPECT_RATIO
    )
    retries: int = option(0, "further tries where a connection broke or a server was busy, within the same --timeout", least=0)
    threads: int = option(32, "downloads at once, in each worker (of several --processes, each)", least=1, most=MOST_THREADS)
    user_agent_token: str = option("eidetic", "who asks: part of the User-Agent, looked for in robots.txt and X-Robots-Tag")
    honour_opt_outs: bool = option(True, "leave pictures alone whose server opts out by X-Robots-Tag")
    honour_robots: bool = option(True, "leave pictures alone that their host's robots.txt disallows, or whose robots.txt fails")
    carry_over: bool = option(
        True, "keep what an earlier run had of the same metadata files; --no_carry_over: download all of them again"
    )
    retry_failed: bool = option(False, "try again what failed to download in an earlier run over the same metadata")
    rows_per_part: int = option(10_000, "rows in one part of the tables, about", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in COLUMNS:
            if getattr(self, name) == "":
                raise UserError(f"--{name} is '', expected a column's name")
        if self.allow_cut_tars and self.source != "webdataset":
            raise UserError(f"--allow_cut_tars is of no use with --source {self.source}; leave it out")
        if self.controls_split is not None:
            if not all(one.strip() for one in self.controls_split.split(",")):
                raise UserError(f"--controls_split is {self.controls_split!r}, expected a split's name, or several with commas")
            if self.controls is not None:
                raise UserError("--controls and --controls_split are both there; leave one of them out")
        for name in ("image_column", "label_column") if self.source not in INSIDE else ("url_column",):
            if getattr(self, name) is not None:
                raise UserError(f"--{name} is of no use with --source {self.source}; leave it out, or choose another --source")
        for name in ("metadata", "controls"):
            check_url(f"--{name}", getattr(self, name) or "")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.user_agent_token):
            raise UserError(f"--user_agent_token is {self.user_agent_token!r}, expected letters, digits, '.', '_' or '-'")
        most = 9 if self.encode_format == "png" else 100
        if self.encode_quality is not None and not 0 <= self.encode_quality <= most:
            raise UserError(f"--encode_quality is {self.encode_quality}, expected 0 to {most} for {self.encode_format}")

    @property
    def storage(self) -> Storage:
        quality = QUALITY[self.encode_format] if self.encode_quality is None else self.encode_quality
        return Storage(self.image_size, self.resize_mode, self.upscale, self.encode_format, quality)

    @property
    def limits(self) -> DownloadLimits:
        return DownloadLimits(
            seconds=self.timeout,
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
            max_aspect_ratio=self.max_aspect_ratio,
            allow_private_hosts=self.allow_private_hosts,
            user_agent_token=self.user_agent_token,
            opt_out_directives=DownloadLimits.opt_out_directives if self.honour_opt_outs else (),
            honour_robots=self.honour_robots,
        )

    @functools.cached_property
    def surveyed(self) -> dict[str, tuple[Source, Survey]]:
        """Role → where its samples come from, and what is there. UserError where something is wrong with it.

        Looked at once: what the snapshot is named after is then what the pipeline reads.
        """
        if self.metadata is None:
            raise UserError("no training set: name it with --metadata (a file, folder or glob)")
        found = {}
        for role, flag, path in (("training", "--metadata", self.metadata), ("control", "--controls", self.controls)):
            if path is not None:
                columns = {name: getattr(self, name) for name in COLUMNS}
                one = source(self.source, path, **columns, allow_cut_tars=self.allow_cut_tars)
                try:
                    found[role] = one, one.survey(self.held_out)
                except UserError as error:
                    raise UserError(f"{flag}: {error}") from error
        if self.held_out:
            one, survey = found["training"]
            found = {
                "training": (one, survey.of_splits(self.held_out, others=True)),
                "control": (one, survey.of_splits(self.held_out)),
            }
            for role, told in (("training", "all rows"), ("control", "no rows")):
                if not found[role][1].rows:
                    there = ", ".join(sorted(repr(name) for name in survey.splits(self.held_out) if name)) or "none"
                    raise UserError(
                        f"--controls_split is {self.controls_split!r}, of which {told} of {self.metadata!r} are; expected one "
                        f"of its splits, by a column split or by names of files and folders (test-00000-of-00001.parquet, "
                        f"test/); there are {printable(there)}"
                    )
        return found

    @property
    def held_out(self) -> tuple[str, ...]:
        """The splits that are the controls."""
        return tuple(one.strip() for one in self.controls_split.split(",")) if self.controls_split is not None else ()

    @property
    def surveys(self) -> dict[str, Survey]:
        """Role → what is there."""
        return {role: survey for role, (_, survey) in self.surveyed.items()}


def plan(lake: Lake, parsed: Parsed, _: str | None = None) -> Planned:
    """What ``ingest`` would make of the metadata: what is there already for these, or else what is to be made."""
    options: IngestOptions = parsed[IngestOptions]
    parameters = shaping(options)

    def rows() -> int:
        return sum(survey.rows for survey in options.surveys.values())

    done = [one for one in lake.manifests("ingest") if without_retries(one.parameters) == parameters]
    if done:
        # The newest: what failed may have been tried again since.
        return Planned("ingest", done[-1].parameters, done[-1].upstream, "rows", rows)
    earlier = base_run(lake, options) if options.carry_over else None
    return Planned("ingest", parameters, {} if earlier is None else {"ingest": earlier.snapshot_id}, "rows", rows)


def costs(lake: Lake, _: Parsed, size: Size) -> list[Cost]:
    """What downloads take."""
    rows, work = size.images + size.controls, "download and store"
    # One that lies over another, or tried again what had failed, made a part of its rows.
    whole = [one for one in lake.manifests("ingest") if not one.upstream and "retried" not in one.parameters]
    rate = run_of(whole, "ingest", "samples", None)
    return [rated(work, rows, "rows", False, rate, "") if rate else lines()["ingest"].cost(work, rows, rows, "rows")]


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
        # Said only where it is so: a lake of before is the same without.
        **({"turns": True} if any(one.turns for one, _ in options.surveyed.values()) else {}),
        **{name: value for name in COLUMNS if (value := getattr(options, name)) is not None},
        # The same splits by other names of theirs, in another order, are the same controls.
        **({"controls_split": sorted({same_split(one) for one in options.held_out})} if options.held_out else {}),
        **({"allow_cut_tars": True} if options.allow_cut_tars else {}),
        # The number of parts follows from it, and a restarted run must find its parts.
        "rows_per_part": options.rows_per_part,
        "metadata": {role: survey.fingerprint for role, survey in options.surveys.items()},
    }


def without_retries(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "retried"}


def base_run(lake: Lake, options: IngestOptions) -> Manifest | None:
    """The newest run with the same options over some of the same metadata files (of a folder: pictures), and no others."""

    def but_metadata(parameters: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in without_retries(parameters).items() if name != "metadata"}

    wanted = but_metadata(shaping(options))
    for earlier in reversed(lake.manifests("ingest")):
        same = but_metadata(earlier.parameters) == wanted and "partitions" in earlier.facts
        if same and new_partitions(options, earlier) is not None:
            return earlier
    return None


def new_partitions(options: IngestOptions, base: Manifest) -> dict[str, Survey] | None:
    """Role → the metadata files or pictures that ``base`` has not; None where it has others, which are no longer there."""
    left = {}
    for role, fingerprints in base.facts["partitions"].items():
        survey = options.surveys[role].without(fingerprints) if role in options.surveys else None
        if survey is None:
            return None
        left[role] = survey
    return options.surveys | left


def build(
    pipeline: beam.Pipeline,
    lake: Lake,
    snapshot: str,
    options: IngestOptions,
    base: Manifest | None = None,
    spread: Spread = in_this_process,
) -> None:
    """The pipeline that writes ``samples`` and ``images``: of what ``base`` has not. What is unfinished must be removed."""
    left = options.surveys if base is None else new_partitions(options, base)
    assert left is not None, "a base has no metadata files that are gone"
    # Training samples first, then controls, with the buckets that their numbers of rows ask for.
    first = 0 if base is None else max(lake.paths("samples", base.snapshot_id), default=-1) + 1
    populations: list[Buckets] = []
    partitions: list[tuple[Buckets, int, Partition]] = []
    for role, survey in left.items():
        if survey.partitions:
            population = Buckets(role, options.surveyed[role][0], first, math.ceil(survey.rows / options.rows_per_part))
            first += population.buckets
            populations.append(population)
            pieces = [piece for partition in survey.partitions for piece in partition.pieces()]
            partitions += [(population, number, piece) for number, piece in enumerate(pieces)]
    ingest = Ingest(
        lake,
        snapshot,
        bucket_of(lake, snapshot, options, populations, base is not None),
        None if base is None else base.snapshot_id,
        spread,
    )
    _ = pipeline | "Partitions" >> beam.Create(partitions, reshuffle=True) | "Ingest" >> ingest


def bucket_of(
    lake: Lake, snapshot: str, options: IngestOptions, populations: list[Buckets], lies_over: bool = True
) -> IngestBucket:
    return IngestBucket(
        lake=lake,
        snapshot=snapshot,
        populations=populations,
        storage=options.storage,
        limits=options.limits,
        punsafe_max=options.punsafe_max,
        threads=options.threads,
        retries=options.retries,
        lies_over=lies_over,
        # Far more than chance puts into one bucket.
        most_rows=max(MOST_ROWS, 20 * options.rows_per_part),
    )


def work(execution: Execution, parsed: Parsed, planned: Planned, _: Manifest | None) -> dict[str, Any]:
    """Downloads what isn't there yet."""
    lake, options = execution.lake, parsed[IngestOptions]
    counted: dict[str, int] = {}
    for role, survey in options.surveys.items():
        if survey.left_out:
            say(f"ingest       {role}: left out as nothing that is read here: {told_left_out(survey.left_out)}")
    if options.held_out:
        for role, survey in options.surveys.items():
            splits = {printable(name) or "none said": rows for name, rows in survey.splits(options.held_out).items()}
            say(f"ingest       {role}: rows by split: {told_left_out(splits)}")

    def durable() -> int:
        for path in lake.parts("samples", planned.snapshot_id):
            if path not in counted:
                counted[path] = count_rows(path)
        return sum(counted.values())

    base = lake.manifest("ingest", planned.upstream["ingest"]) if planned.upstream else None
    if base is not None:
        lie_over(lake, planned.snapshot_id, base)
    bucket_of(lake, planned.snapshot_id, options, []).remove_unfinished()
    progress = Progress("ingest", durable, planned.items or 0, "rows")
    execution.run(lambda pipeline: build(pipeline, lake, planned.snapshot_id, options, base, execution.spread), progress)
    if durable() != planned.items:
        raise RuntimeError(f"{planned.items} rows of metadata became {durable()} samples")
    left_out = {role: survey.left_out for role, survey in options.surveys.items()}
    return facts(lake, planned.snapshot_id, partitions(options), left_out)


def begin(execution: Execution, parsed: Parsed) -> None:
    """Tries again what failed to download, where that was asked for."""
    if parsed[IngestOptions].retry_failed:
        # Always the same label: an attempt that was killed goes on.
        since = datetime.datetime.min.replace(tzinfo=datetime.UTC)
        tried = retry_earlier(execution, parsed, since, "--retry_failed")
        if tried is not None:
            before, after = tried
            failed = sum(statuses.get("failed_to_download", 0) for statuses in by_role(before).values())
            found = recovered(execution.lake, before, after)
            say(f"ingest       tried again {failed:,} rows that had failed to download: {found:,} became pictures")


def finish(execution: Execution, _: Parsed, manifest: Manifest) -> None:
    """Says what came of the rows. UserError where no training picture was had: then there is nothing for the later stages."""
    delete(execution.lake.work("ingest", manifest.snapshot_id))
    for role, statuses in by_role(manifest).items():
        total, had = sum(statuses.values()), statuses.get("success", 0)
        failed = statuses.get("failed_to_download", 0)
        if had == 0 or failed > total / 2:
            numbers = ", ".join(f"{status} {number:,}" for status, number in statuses.items())
            told = f"{had:,} of {total:,} {role} rows became pictures ({numbers}{most_often(execution.lake, manifest, role)})"
            advice = "; --retry_failed tries again what failed to download" if failed else ""
            if had == 0 and role == "training":
                raise UserError(f"{told}, so there is nothing to audit; mend what keeps them away, or --metadata{advice}")
            say(f"ingest       warning: {told}{advice}")
        if missing := manifest.facts.get("without_caption", {}).get(role):
            say(f"ingest       {missing:,} of {had:,} {role} pictures have no caption, by which they could be asked for")


def by_role(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Role → status → rows, the training samples first."""
    found: dict[str, dict[str, int]] = {"training": {}}
    for name, number in manifest.facts["status"].items():
        role, status = name.split("/")
        found.setdefault(role, {})[status] = number
    return found


def most_often(lake: Lake, manifest: Manifest, role: str) -> str:
    """The most frequent reason why a row of a role is no picture, in words; "" where there is none."""
    query = """
        SELECT reason, count(*) AS rows FROM samples WHERE role = $role AND status <> 'success' AND reason IS NOT NULL
        GROUP BY reason ORDER BY rows DESC, reason LIMIT 1
    """
    found = ask(lake, {"samples": manifest.snapshot_id}, query, role=role)
    return f"; most often {found[0]['reason']!r}, {found[0]['rows']:,}" if found else ""


def lie_over(lake: Lake, snapshot: str, base: Manifest) -> None:
    for table in ("samples", "images"):
        lake.lay_over(table, snapshot, base.snapshot_id)


def partitions(options: IngestOptions) -> dict[str, list[str]]:
    """Role → fingerprints of its metadata files, or of a folder's pictures."""
    return {role: survey.fingerprints for role, survey in options.surveys.items()}


def facts(lake: Lake, snapshot: str, partitions: dict[str, list[str]], left_out: dict[str, dict[str, int]]) -> dict[str, Any]:
    tally = ask(lake, {"samples": snapshot}, "SELECT role, status, count(*) AS rows FROM samples GROUP BY ALL ORDER BY ALL")
    query = """
        SELECT role, count(*) AS rows FROM samples WHERE status = 'success' AND coalesce(stripped(caption), '') = ''
        GROUP BY ALL ORDER BY ALL
    """
    return {
        "without_caption": {row["role"]: row["rows"] for row in ask(lake, {"samples": snapshot}, query)},
        "left_out": left_out,
        "status": {f"{row['role']}/{row['status']}": row["rows"] for row in tally},
        # What a later run may build on.
        "partitions": partitions,
    }


def retry_earlier(
    execution: Execution, parsed: Parsed, since: datetime.datetime, label: str
) -> tuple[Manifest, Manifest] | None:
    """``retry`` of what there is for these options: the complete run, or the one that the next will lie over.

    Returns:
        that run, and what it is now; None where there is none, or where the next one was begun.
    """
    lake = execution.lake
    planned = plan(lake, parsed)
    complete = lake.manifest("ingest", planned.snapshot_id)
    base = complete or (lake.manifest("ingest", planned.upstream["ingest"]) if planned.upstream else None)
    # What was begun goes on: over a base that has recovered something it would begin anew.
    begun = complete is None and lake.own("samples", planned.snapshot_id)
    if base is None or begun:
        return None
    return base, retry(execution, parsed[IngestOptions], base, since, label)


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
    check_lineage(lake, [base])
    failed: dict[str, dict[int, int]] = {}
    for number, path in lake.paths("samples", base.snapshot_id).items():
        for row in read_rows(path, ["role", "status", "ingested_at", "url"]):
            if failed_since(row, since):
                of_role = failed.setdefault(row["role"], {})
                of_role[number] = of_role.get(number, 0) + 1
    # As many downloads at once as for a part that is new.
    together = [(role, parts) for role, counts in failed.items() for parts in in_bins(counts, options.rows_per_part)]
    if not together:
        return base
    retried = {**base.parameters, "retried": label}
    planned = Planned("ingest", retried, {"ingest": base.snapshot_id}, "parts with failed downloads")
    snapshot = planned.snapshot_id
    populations = [Buckets(role, one, 0, 0) for role, (one, _) in options.surveyed.items()]
    bucket = bucket_of(lake, snapshot, options, populations)
    bucket.remove_unfinished()
    again = RetryParts(bucket, base.snapshot_id, since)

    def build_retry(pipeline: beam.Pipeline) -> None:
        _ = pipeline | "FailedParts" >> beam.Create(together, reshuffle=True) | "RetryParts" >> beam.ParDo(again)

    execution.run(build_retry)
    delete(lake.work("ingest", snapshot))
    if not lake.own("samples", snapshot):
        return base

    def lay() -> dict[str, Any]:
        lie_over(lake, snapshot, base)
        # Not what there is now: metadata that came since are not in it.
        return facts(lake, snapshot, base.facts["partitions"], base.facts.get("left_out", {}))

    return execution.stage(planned, lay)


def added(lake: Lake, before: Manifest, after: Manifest) -> int:
    """Samples of a later ingest that an earlier one has not; it may lack some of the earlier one's."""
    tables = {"samples AS before": before.snapshot_id, "samples AS after": after.snapshot_id}
    (row,) = ask(lake, tables, "SELECT count(*) AS added FROM after ANTI JOIN before USING (sample_id)")
    return row["added"]


def recovered(lake: Lake, before: Manifest, after: Manifest) -> int:
    """Samples that were no success in one ingest and are one in a later one."""
    tables = {"samples AS before": before.snapshot_id, "samples AS after": after.snapshot_id}
    query = """
        SELECT count(*) AS recovered FROM after SEMI JOIN before
        ON after.sample_id = before.sample_id AND after.status = 'success' AND before.status != 'success'
    """
    return ask(lake, tables, query)[0]["recovered"]


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


def check(parsed: Parsed) -> None:
    """UserError where metadata or controls can't be read."""
    _ = parsed[IngestOptions].surveys


STAGE = Stage(
    name="ingest",
    description=__doc__,
    upstream=None,
    options=(IngestOptions,),
    plan=plan,
    work=work,
    begin=begin,
    finish=finish,
    check=check,
    costs=costs,
)
main = STAGE.main


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
