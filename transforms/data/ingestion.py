"""Metadata → samples and images, over Beam: rows are spread to buckets by what they say, and a bucket is a part.

An element is a range of a file, so that many workers read a large one: since it was looked at, it is known where it can be cut.

Only paths of files are shuffled. A bucket's rows are sorted by content before they are numbered, so a part holds the same
samples however the metadata was cut into files. The download itself is img2dataset's: its Downloader, Resizer and writer.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import hashlib
import os
import re
import tempfile
import threading
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.data.download import WITHHELD, DownloadLimits, as_download_image
from transforms.data.img2dataset_modules import img2dataset_module
from transforms.data.resizing import ConfinedResizer, Storage
from transforms.data.sources import Source
from transforms.data.spool import Spool, fetching, spool_path
from transforms.data.survey import ROW, Partition
from transforms.errors import UserError
from transforms.models.processes import Spread, in_this_process
from transforms.store.counters import count
from transforms.store.files import count_rows, delete, exists, move, read_parquet, read_rows, write_parquet
from transforms.store.identity import row_digest, sample_id
from transforms.store.lake import Lake, as_table
from transforms.store.texts import is_redacted, written_name
from transforms.store.tombstones import FORGOTTEN, Tombstones

KNOWN = "known-"
"""Begins the names of the files that say which samples the base has."""

LOST = "lost inside the downloader"

SPREAD_BYTES = 128 << 20
"""Metadata that are spread over the buckets at once: some 500,000 rows. Less would leave many files of a few rows each."""

MOST_ROWS = 300_000
"""Rows of one bucket that are held at once. They are spread by what they say: only repeats of one row fill one bucket."""

UNCHANGED, CHANGED, UNKNOWN = "unchanged", "changed", "unknown"
"""What ``samples.drift`` says."""

_DIGESTS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}
"""Hexadecimal digits → the algorithm that gives so many, of those that metadata are made with."""

_HEXADECIMAL = re.compile(r"[0-9a-f]+")

_downloader_lock = threading.Lock()
"""img2dataset's download function is a module's, which is changed for a shard: one at a time in a process. Its threads are
inside."""


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The training samples or the controls, and the buckets that are theirs.

    Attributes:
        role: training or control.
        source: where its rows come from.
        first_bucket, buckets: numbers of its buckets, and so of its parts.
    """

    role: str
    source: Source
    first_bucket: int
    buckets: int


class SpreadRows(beam.DoFn):
    """(population, partition) → (bucket, path of a file with the rows of this partition that fall into it)."""

    def __init__(self, lake: Lake, snapshot: str):
        self.lake, self.snapshot = lake, snapshot

    def process(self, element: tuple[Buckets, int, Partition]) -> Iterator[tuple[int, str]]:
        population, number, partition = element
        gathered: list[pa.Table] = []
        piece = 0
        # Nobody reads it before all rows are spread.
        with Spool(spool_path(self.lake, self.snapshot, f"{population.role}-{number:05d}")) as pictures:
            for every in population.source.read(partition):
                if not (table := partition.samples_of(every)).num_rows:
                    continue
                gathered.append(_with_buckets(pictures.keep(table), population))
                if sum(one.nbytes for one in gathered) >= SPREAD_BYTES:
                    yield from self._spread(gathered, population, partition.name, f"{number:05d}-{piece:05d}")
                    gathered, piece = [], piece + 1
        if gathered:
            yield from self._spread(gathered, population, partition.name, f"{number:05d}-{piece:05d}")

    def _spread(self, gathered: list[pa.Table], population: Buckets, file: str, name: str) -> Iterator[tuple[int, str]]:
        # Only some tables may have a row that says why it has no picture.
        rows = pa.concat_tables(gathered, promote_options="default").sort_by("bucket")
        buckets = rows["bucket"].to_numpy()
        rows = rows.drop_columns("bucket")
        rows = rows.append_column("source_file", pa.repeat(pa.scalar(written_name(file), pa.string()), rows.num_rows))
        found, starts = np.unique(buckets, return_index=True)
        ends = [*starts[1:], rows.num_rows]
        for bucket, start, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
            path = self.lake.work("ingest", self.snapshot, "buckets", f"{bucket:05d}", f"{population.role}-{name}.parquet")
            write_parquet(path, rows.slice(start, end - start))
            yield bucket, path


class SpreadKnown(beam.DoFn):
    """(populations, number of a part of the base) → (bucket, path of a file that says which samples are there already).

    Only of the buckets that are being filled: a url and caption that come again are told apart by how often they were there.
    """

    def __init__(self, lake: Lake, snapshot: str, base: str):
        self.lake, self.snapshot, self.base = lake, snapshot, base

    def process(self, element: tuple[list[Buckets], int]) -> Iterator[tuple[int, str]]:
        populations, number = element
        table = read_parquet(self.lake.paths("samples", self.base)[number], ["role", "url", "caption"])
        for population in populations:
            rows = table.filter(pc.equal(table["role"], population.role))
            keys = [row_digest(*row) for row in zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True)]
            buckets: dict[int, collections.Counter[str]] = {}
            for key in keys:
                bucket = population.first_bucket + int(key, 16) % population.buckets
                buckets.setdefault(bucket, collections.Counter())[key] += 1
            for bucket, counts in buckets.items():
                path = self.lake.work("ingest", self.snapshot, "buckets", f"{bucket:05d}", f"{KNOWN}{number:05d}.parquet")
                write_parquet(path, pa.table({"key": list(counts), "count": list(counts.values())}))
                yield bucket, path


def _with_buckets(table: pa.Table, population: Buckets) -> pa.Table:
    """``table`` with the number of the bucket that each row falls into, by what it says."""
    rows = zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)
    buckets = [population.first_bucket + int(row_digest(url, caption), 16) % population.buckets for url, caption in rows]
    return table.append_column("bucket", pa.array(buckets, pa.int64()))


@dataclasses.dataclass(eq=False)
class IngestBucket(beam.DoFn):
    """(bucket, paths) → the bucket's parts of ``samples`` and ``images``, written; yields the bucket.

    An engine may try a bucket twice, even at once, and two attempts download different pictures. So each attempt's pictures
    are a work file of its own; the first to write ``samples`` has done it, and its pictures, which that part names, become the
    part of ``images``. A bucket that has both is complete, and is left alone.

    Attributes:
        lake, snapshot: where to write.
        populations: whose buckets there are.
        storage: how pictures are stored.
        limits: of one download.
        punsafe_max: rows whose punsafe is over this are not downloaded.
        threads: downloads at once.
        retries: further tries of a download.
        lies_over: whether the snapshot has samples of another one, too.
        most_rows: in one bucket; with more of them the metadata are refused.
    """

    lake: Lake
    snapshot: str
    populations: list[Buckets]
    storage: Storage
    limits: DownloadLimits
    punsafe_max: float
    threads: int
    retries: int
    lies_over: bool = False
    most_rows: int = MOST_ROWS

    def process(self, element: tuple[int, Iterable[str]]) -> Iterator[int]:
        bucket, paths = element
        if not self.is_complete(bucket):
            population = next(one for one in self.populations if 0 <= bucket - one.first_bucket < one.buckets)
            paths = sorted(paths)
            known = {path for path in paths if os.path.basename(path).startswith(KNOWN)}
            if (together := sum(count_rows(path) for path in paths if path not in known)) > self.most_rows:
                raise UserError(
                    f"the metadata have {together:,} rows that nearly all say the same (url and caption, or neither), expected "
                    f"{self.most_rows:,} at most; take the repeats out of the metadata"
                )
            rows = [row for path in paths if path not in known for row in read_parquet(path).to_pylist()]
            seen: collections.Counter[str] = collections.Counter()
            for path in known:
                seen.update({row["key"]: row["count"] for row in read_parquet(path).to_pylist()})
            # Of what was forgotten in the base nothing is left but its id.
            taken = Tombstones.read(self.lake).samples if self.lies_over else ()
            samples = number_occurrences(rows, seen, taken)
            outcomes = self.outcomes(samples, population.source)
            self.write(bucket, population.role, samples, outcomes)
        yield bucket

    def is_complete(self, bucket: int) -> bool:
        """Whether samples and images of a bucket are there. An attempt that died between the two is brought to its end."""
        if not exists(self.lake.part("samples", self.snapshot, bucket)):
            return False
        images = self.lake.part("images", self.snapshot, bucket)
        if not exists(images):
            try:
                move(self._pictures(bucket), images)
            except FileNotFoundError:
                # Another attempt has moved them meanwhile.
                if not exists(images):
                    raise RuntimeError(f"the pictures of part {bucket} are gone; give the command again") from None
        return True

    def remove_unfinished(self) -> None:
        """Removes parts of ``samples`` whose attempt died before its pictures had their place, and that are gone since, with a
        request to forget. For who has the lake alone, before anything is at work on the snapshot."""
        images = self.lake.own("images", self.snapshot)
        for bucket, samples in self.lake.own("samples", self.snapshot).items():
            if bucket not in images and not exists(self._pictures(bucket)):
                delete(samples)

    def _pictures(self, bucket: int, attempt: str | None = None) -> str:
        """Where the pictures of an attempt wait for its samples: of this one, or of the one that has written the bucket's."""
        attempt = attempt or self.lake.attempt("samples", self.snapshot, bucket)
        return self.lake.work("ingest", self.snapshot, "attempts", f"{bucket:05d}-{attempt}.parquet")

    def outcomes(self, samples: list[dict[str, Any]], source: Source) -> list[dict[str, Any]]:
        """What became of each sample: status, reason, and for a success sizes, hash and the encoded picture."""
        tombstones = Tombstones.read(self.lake)
        outcomes: list[dict[str, Any]] = []
        for sample in samples:
            reason = tombstones.of(sample["sample_id"], sample["url"])
            outcomes.append(self._before(sample) if reason is None else {"status": FORGOTTEN, "reason": reason})
        wanted = [index for index, outcome in enumerate(outcomes) if outcome["status"] == "wanted"]
        if wanted:
            found = self._download([samples[index] for index in wanted], source)
            for place, index in enumerate(wanted):
                # A row that img2dataset loses is printed by it, and no more.
                outcome = found.get(place, {"status": "failed_to_download", "reason": LOST})
                # A picture that was forgotten may come back under another url: it is known by its bytes.
                reason = tombstones.contents.get(outcome.get("sha256") or "")
                outcomes[index] = outcome if reason is None else {"status": FORGOTTEN, "reason": reason}
        return outcomes

    def _before(self, sample: dict[str, Any]) -> dict[str, Any]:
        punsafe = sample["punsafe"]
        # Both as the 32-bit numbers that the metadata hold, or 0.1 would be over 0.1.
        if punsafe is not None and np.float32(punsafe) > np.float32(self.punsafe_max):
            return {"status": "filtered", "reason": f"punsafe {punsafe:.2f} is over {self.punsafe_max}"}
        if not sample["url"]:
            return {"status": "failed_to_download", "reason": "the metadata has no url"}
        return {"status": "wanted", "reason": None}

    def _download(self, samples: list[dict[str, Any]], source: Source) -> dict[int, dict[str, Any]]:
        """Place in ``samples`` → outcome, by img2dataset's own machinery, in a folder of this machine's."""
        with _downloader_lock, tempfile.TemporaryDirectory() as folder:
            downloader: Any = img2dataset_module("downloader")
            rows: list[dict[str, Any]] = []
            shard = os.path.join(folder, "shard.feather")
            urls = pa.array([sample["url"] for sample in samples], pa.string())
            table = pa.table({"url": urls, "place": pa.array(range(len(samples)), pa.int64())})
            with pa.OSFile(shard, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            resizer = ConfinedResizer(self.storage, self.limits.max_pixels, self.limits.max_aspect_ratio, source.turns)
            download = downloader.Downloader(
                sample_writer_class=lambda *_: _Rows(rows),
                resizer=resizer,
                thread_count=self.threads,
                save_caption=False,
                extract_exif=False,
                output_folder=folder,
                column_list=["url", "place"],
                timeout=self.limits.seconds,
                number_sample_per_shard=max(2, len(samples)),
                oom_shard_count=5,
                compute_hash="sha256",
                verify_hash_type=None,
                encode_format=self.storage.encode_format,
                retries=self.retries,
                user_agent_token=self.limits.user_agent_token,
                disallowed_header_directives=None,  # ours looks at them, at every redirect
            )
            original = downloader.download_image
            drifts: dict[int, str] = {}

            def arrived(place: int, content: bytes) -> None:
                # img2dataset's keys are the rows of its table, from 0.
                drifts[place] = drift(samples[place]["metadata_hash"], content)

            fetch = fetching(samples, source.fetch)
            downloader.download_image = as_download_image(fetch, self.limits, self.threads, arrived)
            try:
                done, _ = download((0, shard))
            finally:
                downloader.download_image = original
            if resizer.fault is not None:
                raise resizer.fault
            if not done:
                raise RuntimeError("img2dataset could not process a shard; its traceback is above")
        found = {row["place"]: _outcome(row, row["image"]) for row in rows}
        return {place: {**outcome, "drift": drifts.get(place, UNKNOWN)} for place, outcome in found.items()}

    def write(self, bucket: int, role: str, samples: list[dict[str, Any]], outcomes: list[dict[str, Any]]) -> None:
        """A part of ``samples`` and then of ``images``, unless another attempt was faster: then that one's."""
        now = datetime.datetime.now(datetime.UTC)
        images, rows = [], []
        for sample, outcome in zip(samples, outcomes, strict=True):
            rows.append(
                {
                    **{name: sample[name] for name in (*ROW.names, "sample_id", "occurrence", "source_file")},
                    **{name: outcome.get(name) for name in _OUTCOME},
                    "drift": outcome.get("drift", UNKNOWN),
                    "role": role,
                    # Of one that is tried again it stays: for so many nights it's tried.
                    "ingested_at": sample.get("ingested_at", now),
                    **(_NOTHING_SAID if outcome["status"] == FORGOTTEN else {}),
                }
            )
            if outcome["status"] == "success":
                images.append(
                    {
                        "sample_id": sample["sample_id"],
                        "role": role,
                        "image": outcome["image"],
                        "encoding": self.storage.encode_format,
                        "width": outcome["width"],
                        "height": outcome["height"],
                        "image_size": self.storage.image_size,
                        "resize_mode": self.storage.resize_mode,
                    }
                )
        attempt = uuid.uuid4().hex
        pictures = self._pictures(bucket, attempt)
        write_parquet(pictures, as_table("images", images))
        if self.lake.write_first("samples", self.snapshot, bucket, rows, attempt):
            for status, number in collections.Counter(row["status"] for row in rows).items():
                count(f"samples {status}", number)
        else:
            delete(pictures)
        self.is_complete(bucket)


class _Rows:
    """In the place of img2dataset's writers: what it makes of a shard becomes rows of ours, and no file in between.

    Args:
        rows: what it adds to: img2dataset's columns, and ``image``, encoded, or None.
    """

    def __init__(self, rows: list[dict[str, Any]]):
        self._rows = rows

    def write(self, image: bytes | None, key: str, caption: str | None, columns: dict[str, Any]) -> None:
        self._rows.append({**columns, "image": image})

    def close(self) -> None:
        """Nothing is left to do."""


_NOTHING_SAID = dict.fromkeys(("url", "caption", "label", "metadata_hash"))
"""What the row of a forgotten sample doesn't repeat."""

_OUTCOME = ("status", "reason", "sha256", "original_width", "original_height", "width", "height", "drift")


def drift(claimed: str | None, content: bytes) -> str:
    """Whether a file is the one that the metadata were made of.

    Args:
        claimed: what they say is its digest, in hexadecimal of any case; or something else, of which nothing follows.
        content: the file's bytes.

    Returns:
        ``UNCHANGED``, ``CHANGED`` or ``UNKNOWN``.
    """
    digits = (claimed or "").strip().lower()
    if len(digits) not in _DIGESTS or not _HEXADECIMAL.fullmatch(digits):
        return UNKNOWN
    return UNCHANGED if hashlib.new(_DIGESTS[len(digits)], content, usedforsecurity=False).hexdigest() == digits else CHANGED


def _outcome(row: dict[str, Any], image: bytes | None) -> dict[str, Any]:
    """A row of img2dataset's in our words."""
    status, reason = row["status"], row["error_message"]
    if status == "failed_to_download" and reason in WITHHELD:
        status = "opted_out"
    sizes = {name: row[name] for name in ("sha256", "original_width", "original_height", "width", "height")}
    return {**sizes, "status": status, "reason": reason, "image": image}


def number_occurrences(
    rows: list[dict[str, Any]], seen: Mapping[str, int] | None = None, taken: Container[str] = ()
) -> list[dict[str, Any]]:
    """Rows of one bucket with ``occurrence`` and ``sample_id``, in an order that follows from their content.

    Where a url and caption repeat, the rest of the row decides which is first, and provenance only between rows that say
    the same in every column; so a metadata file that is moved or cut otherwise changes no id. ``seen``: digest of url and
    caption → how often they are there already; these come after. ``taken``: sample_ids that none of them gets.
    """
    content = [name for name in ROW.names if name != "source_row"]

    def order(row: dict[str, Any]) -> tuple:
        said = tuple((row[name] is not None, str(row[name])) for name in content)
        return (*said, os.path.basename(row["source_file"]), row["source_row"])

    numbered = []
    counts = collections.Counter(seen)
    for row in sorted(rows, key=order):
        key = row_digest(row["url"], row["caption"])
        while (identity := sample_id(row["url"], row["caption"], counts[key])) in taken:
            counts[key] += 1
        numbered.append({**row, "occurrence": counts[key], "sample_id": identity})
        counts[key] += 1
    return numbered


class RetryParts(beam.DoFn):
    """(role, numbers of parts of ``base``) → those of which a failed download became something else, written anew.

    What failed in any of them is tried at once: a dead link then keeps nothing else waiting.

    Args:
        bucket: how it is downloaded and written.
        base: snapshot of ``ingest``.
        since: rows that failed before then are left alone.
    """

    def __init__(self, bucket: IngestBucket, base: str, since: datetime.datetime):
        self.bucket, self.base, self.since = bucket, base, since

    def process(self, element: tuple[str, Sequence[int]]) -> Iterator[int]:
        role, numbers = element
        lake, bucket = self.bucket.lake, self.bucket
        written = lake.own("samples", bucket.snapshot)
        done = {number for number in numbers if number in written and bucket.is_complete(number)}
        yield from sorted(done)
        paths = lake.paths("samples", self.base)
        failed = [
            (number, place, row)
            for number in numbers
            if number not in done
            for place, row in enumerate(read_rows(paths[number]))
            if failed_since(row, self.since)
        ]
        population = next(one for one in bucket.populations if one.role == role)
        tried = bucket.outcomes([row for _, _, row in failed], population.source)
        parts: dict[int, dict[int, dict[str, Any]]] = {}
        for (number, place, _), outcome in zip(failed, tried, strict=True):
            parts.setdefault(number, {})[place] = outcome
        for number, found in parts.items():
            # A picture that is there now, or one whose server has opted out meanwhile: that isn't asked again.
            if any(outcome["status"] != "failed_to_download" for outcome in found.values()):
                self._write_anew(number, role, found)
                yield number

    def _write_anew(self, number: int, role: str, found: dict[int, dict[str, Any]]) -> None:
        """A part of the base with other outcomes at some places."""
        lake = self.bucket.lake
        samples = read_parquet(lake.paths("samples", self.base)[number]).to_pylist()
        images = {row["sample_id"]: row["image"] for row in read_rows(lake.paths("images", self.base)[number])}
        before = [{**{name: row[name] for name in _OUTCOME}, "image": images.get(row["sample_id"])} for row in samples]
        self.bucket.write(number, role, samples, [found.get(place, outcome) for place, outcome in enumerate(before)])


def failed_since(row: dict[str, Any], since: datetime.datetime) -> bool:
    """Whether a row of ``samples`` is one that failed to download at that time or after, and can be asked for again."""
    failed = row["status"] == "failed_to_download" and row["ingested_at"] >= since
    # A signature is used once, with the metadata that bring it, and not kept.
    return failed and bool(row["url"]) and not is_redacted(row["url"])


@dataclasses.dataclass
class Ingest(beam.PTransform):
    """(population, number, partition) → numbers of the buckets that are complete.

    Attributes:
        lake, snapshot: where to write.
        bucket: what is done with one.
        base: the snapshot that this one lies over, or None.
        spread: how the buckets are spread over a machine.
    """

    lake: Lake
    snapshot: str
    bucket: IngestBucket
    base: str | None = None
    spread: Spread = in_this_process

    def expand(self, partitions: beam.PCollection) -> beam.PCollection:
        rows = partitions | "SpreadRows" >> beam.ParDo(SpreadRows(self.lake, self.snapshot))
        # Every bucket becomes a part, one without rows too: so the parts that there must be are known beforehand.
        ranges = [(one.first_bucket, one.first_bucket + one.buckets) for one in self.bucket.populations]
        every = partitions.pipeline | "Buckets" >> beam.Create(ranges) | "EveryBucket" >> beam.FlatMap(_without_paths)
        known = partitions.pipeline | "NothingKnown" >> beam.Create([])
        if self.base is not None:
            numbers = [(self.bucket.populations, number) for number in self.lake.paths("samples", self.base)]
            known = (
                partitions.pipeline
                | "BaseParts" >> beam.Create(numbers, reshuffle=True)
                | "SpreadKnown" >> beam.ParDo(SpreadKnown(self.lake, self.snapshot, self.base))
            )
        return (
            (rows | "OnePath" >> beam.Map(_one_path), known | "KnownPath" >> beam.Map(_one_path), every)
            | "Together" >> beam.Flatten()
            | "GroupByBucket" >> beam.GroupByKey()
            | "Paths" >> beam.Map(_paths)
            | "IngestBucket" >> beam.ParDo(self.spread(self.bucket))
        )


def _without_paths(element: tuple[int, int]) -> Iterator[tuple[int, list[str]]]:
    for bucket in range(*element):
        yield bucket, []


def _one_path(element: tuple[int, str]) -> tuple[int, list[str]]:
    return element[0], [element[1]]


def _paths(element: tuple[int, Iterable[list[str]]]) -> tuple[int, list[str]]:
    return element[0], sorted(path for paths in element[1] for path in paths)
