"""Where training samples come from, behind one interface: metadata of pictures on the web, a folder of pictures, Parquet or
tars with pictures.

Another kind is one more class with the methods of ``Source``: it surveys what it holds, reads one partition as rows of
``ROW``, and fetches one picture's bytes, or yields them with the rows.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.data.download import DownloadLimits, FetchError, fetch_http
from transforms.data.folders import CAPTION_COLUMNS, FolderSource
from transforms.data.shards import files_with, recognised_by
from transforms.data.spool import COME_WITH_ROWS, PICTURE, PICTURE_BYTES, REFUSED
from transforms.data.survey import BATCH_ROWS, LABEL_COLUMNS, ROW, SPLIT, FileRange, Partition, Survey, in_ranges
from transforms.data.text_metadata import JSON_LINES, SEPARATED, TextMetadata
from transforms.data.webdataset import WebDatasetSource
from transforms.errors import UserError
from transforms.store.counters import count
from transforms.store.files import open_parquet
from transforms.store.identity import digest, url_by_bytes
from transforms.store.listings import PARQUET, column_named, readable_text, refuse_twice
from transforms.store.texts import written_name

# Our column → what LAION's releases call it, in lower case; the first that is there is taken. "hash" comes last: LAION's is a
# number, of url and caption.
_NAMES = {
    "url": ("url",),
    "caption": ("text", "caption"),
    "punsafe": ("punsafe",),
    "pwatermark": ("pwatermark",),
    "similarity": ("similarity",),
    "metadata_hash": ("sha256", "sha512", "sha1", "md5", "hash"),
    "metadata_width": ("width", "original_width"),
    "metadata_height": ("height", "original_height"),
}

NEEDED = ("url", "caption")
"""Columns without which there is nothing to download and nothing to ask. Whatever the others hold stops no row."""


class Source(Protocol):
    """Training samples. Instances are small and pickle."""

    @property
    def turns(self) -> bool:
        """Whether its pictures are turned as their EXIF orientation says: as whoever trains on them sees them."""

    def survey(self, splits: Sequence[str] = ()) -> Survey:
        """Looks at everything once, and cheaply: a complete stage is to be recognised at once.

        UserError, before anything is written, where the source can't be read or holds nothing.

        Args:
            splits: of the data set that are asked for; then the partitions say which splits their rows are of.
        """

    def read(self, partition: Partition) -> Iterator[pa.Table]:
        """The rows of a partition's pieces as tables of ``ROW``, in order; where pictures come with them, with ``PICTURE``;
        where a row may say itself that there is none, with ``REFUSED``; where the partition is of some splits only, with
        ``SPLIT``, unless all its rows are.
        """

    def fetch(self, url: str, limits: DownloadLimits) -> bytes:
        """One picture's bytes. FetchError says why not."""


@dataclasses.dataclass(frozen=True)
class LaionSource:
    """Metadata of pictures on the web with LAION's columns: URL and TEXT (or caption), and more where present; in Parquet, or
    as text: CSV, TSV and JSON Lines.

    Attributes:
        path: a file, a folder (the files of one kind in it and below), or a glob; or a gs:// or s3:// URL of one.
        url_column, caption_column: what the columns are called; None for LAION's names.
    """

    path: str
    url_column: str | None = None
    caption_column: str | None = None

    # LAION's models were trained on pictures as img2dataset stores them, which leaves them unturned.
    turns = False

    def survey(self, splits: Sequence[str] = ()) -> Survey:
        try:
            for endings in METADATA:
                files, left_out = files_with(endings, self.path, EXPECTED_METADATA)
                # Of a folder those of one kind: often the same rows lie there in another as well.
                if files:
                    break
            survey = Survey([self._look(file, bool(splits)) for file in files])
            survey = Survey(survey.partitions, dict(collections.Counter(left_out) + self._no_values(survey.partitions)))
        except (ValueError, OSError) as error:  # a kind of URL that Beam doesn't know, or a file that may not be read
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cannot read {self.path!r} ({reason}); {EXPECTED_METADATA}") from error
        if not files:
            raise UserError(f"no metadata at {self.path!r}; {EXPECTED_METADATA}")
        if survey.rows == 0:
            raise UserError(f"the metadata at {self.path!r} has no rows; expected one row for each sample")
        if all(self._has_no_url(file) for file in files):
            raise UserError(
                f"none of the {survey.rows:,} rows of the metadata at {self.path!r} has a url; name its column by --url_column"
            )
        return survey

    def _look(self, file: str, splits: bool) -> Partition:
        """What there is in a metadata file. UserError unless its needed columns can be converted."""
        if _is_text(file):
            text = self._text(file)
            self._columns(file, text.names)
            look = text.look()
            # Folders are left out: moved metadata are the same metadata.
            found = Partition(file, look.rows, (digest("laion", look.recognised_by),), look.ranges)
        else:
            try:
                with open_parquet(file) as parquet:
                    schema, rows, ranges = parquet.schema_arrow, parquet.metadata.num_rows, _ranges(parquet.metadata)
            except UserError as error:
                raise UserError(f"{error}; {EXPECTED_METADATA}") from error
            for ours, theirs in self._columns(file, schema.names).items():
                # Whether a type can be converted at all is known before anything is written.
                if ours in NEEDED:
                    _text(pa.nulls(0, _field(schema, theirs).type), ours, file)
            found = Partition(file, rows, (digest("laion", recognised_by(file)),), ranges)
        return _with_splits(found, self._said_splits(file)) if splits else found

    def _said_splits(self, file: str) -> Iterator[pa.Array]:
        """What the rows of a file say of the split that they're of; nothing where it has no such column."""
        if not _is_text(file):
            yield from _splits_in(file)
            return
        text = self._text(file)
        if (column := column_named(text.names, (SPLIT,))) is not None:
            for rows in text.rows([column]):
                yield pa.array([None if row.refused else _plain(row.values[0]) for row in rows], pa.string())

    def _text(self, file: str) -> TextMetadata:
        return TextMetadata.open(file, (self.url_column,) if self.url_column else _NAMES["url"], EXPECTED_METADATA)

    def _no_values(self, partitions: list[Partition]) -> collections.Counter[str]:
        """Columns that can't hold what is looked for in them, such as lists → in how many rows."""
        found: collections.Counter[str] = collections.Counter()
        for partition in partitions:
            if _is_text(partition.name):
                continue
            with open_parquet(partition.name) as parquet:
                schema = parquet.schema_arrow
            for ours, theirs in self._columns(partition.name, schema.names).items():
                kind = _field(schema, theirs).type
                if ours not in NEEDED and pa.types.is_nested(kind):
                    found[f"values of {theirs} ({kind})"] += partition.rows
        return found

    def _has_no_url(self, file: str) -> bool:
        """Whether the footer says that the url is null in every row: the rows of 100 kB can be more than a memory holds."""
        if _is_text(file):
            return False
        with open_parquet(file) as parquet:
            name = self._columns(file, parquet.schema_arrow.names)["url"]
            for group in range(parquet.metadata.num_row_groups):
                row_group = parquet.metadata.row_group(group)
                for column in map(row_group.column, range(row_group.num_columns)):
                    if column.path_in_schema == name:
                        said = column.statistics
                        if said is None or not said.has_null_count or said.null_count < row_group.num_rows:
                            return False
        return True

    def _columns(self, file: str, names: list[str]) -> dict[str, str]:
        """Our column → the file's. UserError where url or caption is missing, or there twice."""
        named = {"url": self.url_column, "caption": self.caption_column}
        found = {}
        for ours, candidates in _NAMES.items():
            wanted = named.get(ours)
            theirs = column_named(names, candidates if wanted is None else (wanted,))
            if theirs is not None:
                found[ours] = theirs
            elif ours in NEEDED:
                expected = {"url": "URL or url", "caption": "TEXT, text or caption"}[ours] if wanted is None else wanted
                raise UserError(
                    f"{file!r} has columns {names}, expected one called {expected}; say with --{ours}_column which it is"
                )
            if ours in NEEDED and names.count(found[ours]) > 1:
                raise UserError(f"{file!r} has columns {names}, among them {found[ours]!r} twice; rename one of them")
        return found

    def read(self, partition: Partition) -> Iterator[pa.Table]:
        return self._read_text(partition) if _is_text(partition.name) else self._read_parquet(partition)

    def _read_parquet(self, partition: Partition) -> Iterator[pa.Table]:
        file = partition.name
        with open_parquet(file) as parquet:
            names = parquet.schema_arrow.names
            columns = {**self._columns(file, names), **_split_column(names, partition)}
            groups, start = _groups(parquet, partition)
            wanted = sorted(set(columns.values()))
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=wanted):
                # By place: a file may have one name twice.
                places = {ours: batch.schema.get_all_field_indices(theirs)[0] for ours, theirs in columns.items()}
                values = {ours: batch.column(place) for ours, place in places.items()}
                yield _table(file, values, start, batch.num_rows)
                start += batch.num_rows

    def _read_text(self, partition: Partition) -> Iterator[pa.Table]:
        file = partition.name
        text = self._text(file)
        columns = {**self._columns(file, text.names), **_split_column(text.names, partition)}
        for part in partition.ranges or (None,):
            start = first = 0 if part is None else part.first_row
            for rows in text.rows(list(columns.values()), part):
                refused = [row.refused or _no_text(columns, row.values) for row in rows]
                values: dict[str, pa.Array] = {}
                for place, ours in enumerate(columns):
                    said = [row.values[place] for row in rows]
                    values[ours] = pa.array(map(_plain, said), pa.string())
                    lost = values[ours].null_count - said.count(None)
                    if lost and ours not in NEEDED:
                        count(f"metadata values of {ours} that are none", lost)
                if not any(refused):
                    yield _table(file, values, start, len(rows))
                else:
                    # As a row of Parquet without bytes is known.
                    known = [f"{written_name(os.path.basename(file))}#{start + place}" for place in range(len(rows))]
                    no_row = pa.array([reason is not None for reason in refused], pa.bool_())
                    values["url"] = pc.if_else(no_row, pa.array(known, pa.string()), values["url"])
                    values["caption"] = pc.if_else(no_row, pa.scalar(None, pa.string()), values["caption"])
                    yield _table(file, values, start, len(rows)).append_column(REFUSED, pa.array(refused, pa.string()))
                start += len(rows)
            if part is not None and start - first != part.rows:
                raise UserError(f"the metadata file {file!r} changed while it was read; run the same command again")

    def fetch(self, url: str, limits: DownloadLimits) -> bytes:
        return fetch_http(url, limits)


METADATA = (PARQUET, SEPARATED, JSON_LINES)
"""Endings of metadata files, by kind; of a folder the first kind that is there is read."""

EXPECTED_METADATA = (
    "expected metadata with the columns URL and TEXT, in Parquet, .csv, .tsv or .jsonl (or these with .gz): a file, a folder "
    "or a glob"
)


def _is_text(file: str) -> bool:
    return file.lower().endswith((*SEPARATED, *JSON_LINES))


def _plain(value: Any) -> str | None:
    """A value of JSON as text; None for a list and an object."""
    return value if isinstance(value, str) else None


def _no_text(columns: dict[str, str], values: list[Any]) -> str | None:
    """Why a row can't be a sample whose url or caption is a list or an object; None where they are neither."""
    for ours, value in zip(columns, values, strict=True):
        if ours in NEEDED and value is not None and not isinstance(value, str):
            return f"the {ours} is a JSON {type(value).__name__}, expected text"
    return None


def _table(file: str, values: dict[str, pa.Array], start: int, rows: int) -> pa.Table:
    """A table of ``ROW``, and of ``SPLIT`` where it is among the values: our column → what the file has of it."""
    made = {field.name: _converted(values[field.name], field, file) for field in ROW if field.name in values}
    made["source_row"] = pa.array(range(start, start + rows), pa.int64())
    table = pa.Table.from_arrays([made.get(field.name, pa.nulls(rows, field.type)) for field in ROW], schema=ROW)
    return table.append_column(SPLIT, _text(values[SPLIT], SPLIT, file)) if SPLIT in values else table


# -- splits of a data set ----------------------------------------------------------------------------------------------


def _split_column(names: list[str], partition: Partition) -> dict[str, str]:
    """``SPLIT`` → the column that says it, where some splits of a partition are read only."""
    column = column_named(names, (SPLIT,)) if partition.only is not None else None
    return {} if column is None else {SPLIT: column}


def _splits_in(file: str) -> Iterator[pa.Array]:
    """What the rows of a Parquet file say of the split that they're of; nothing where it has no such column."""
    with open_parquet(file) as parquet:
        column = column_named(parquet.schema_arrow.names, (SPLIT,))
        if column is not None:
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=[column]):
                yield _text(batch.column(0), SPLIT, file)


def _with_splits(partition: Partition, said: Iterable[pa.Array]) -> Partition:
    """A partition that says which splits its rows are of."""
    found: collections.Counter[str] = collections.Counter()
    for values in said:
        counted = pc.value_counts(pc.fill_null(values, ""))
        found.update({one["values"]: one["counts"] for one in counted.to_pylist()})
    return dataclasses.replace(partition, splits=dict(found))


# -- Parquet in ranges -------------------------------------------------------------------------------------------------


def _ranges(metadata: pq.FileMetaData) -> tuple[FileRange, ...]:
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return in_ranges((number, one.total_byte_size, one.num_rows) for number, one in enumerate(groups, start=1))


def _groups(parquet: pq.ParquetFile, partition: Partition) -> tuple[list[int], int]:
    """The row groups of a partition, and the number in the file of its first row."""
    if not partition.ranges:
        return list(range(parquet.metadata.num_row_groups)), 0
    return list(range(partition.ranges[0].start, partition.ranges[-1].end)), partition.ranges[0].first_row


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """Parquet with encoded pictures inside, as ``datasets`` of Hugging Face has them: a column of bytes, or of {bytes, path}.

    The url of a sample is ``sha256:`` and the digest of the picture's bytes. Names of files hold how many there are
    (train-00000-of-00002), and rows move when others are added: what a picture is stays through all of that. A row without
    bytes is known by file and row. A path beside the bytes is never followed.

    Attributes:
        path: a file, a folder (the Parquet files in it and below), or a glob; or a gs:// or s3:// URL of one.
        image_column, caption_column, label_column: what the columns are called; None for the usual names.
    """

    path: str
    image_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None

    # ``datasets`` turns them when it decodes, so whoever trains on them sees them so.
    turns = True

    def survey(self, splits: Sequence[str] = ()) -> Survey:
        try:
            files, left_out = files_with(PARQUET, self.path, EXPECTED_PICTURES)
            partitions = [self._look(file, bool(splits)) for file in files]
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cannot read {self.path!r} ({reason}); {EXPECTED_PICTURES}") from error
        survey = Survey(partitions, left_out)
        if not survey.rows:
            told = f"the Parquet at {self.path!r} has no rows" if files else f"no Parquet at {self.path!r}"
            raise UserError(f"{told}; {EXPECTED_PICTURES}")
        return survey

    def _look(self, file: str, splits: bool) -> Partition:
        try:
            with open_parquet(file) as parquet:
                schema, rows, ranges = parquet.schema_arrow, parquet.metadata.num_rows, _ranges(parquet.metadata)
        except UserError as error:
            raise UserError(f"{error}; {EXPECTED_PICTURES}") from error
        self._columns(file, schema)
        # By what is in it, not by its name, which changes when there are more.
        found = Partition(file, rows, (digest("parquet", recognised_by(file)[1:]),), ranges)
        return _with_splits(found, _splits_in(file)) if splits else found

    def _columns(self, file: str, schema: pa.Schema) -> dict[str, str]:
        """Our column → the file's. UserError where there is no picture, or where a named column isn't there or holds others."""
        kinds = {
            "image": (self.image_column, IMAGE_COLUMNS, _holds_pictures, "encoded pictures (binary, or a struct with bytes)"),
            "caption": (self.caption_column, CAPTION_COLUMNS, _holds_text, "text"),
            "label": (self.label_column, LABEL_COLUMNS, _holds_labels, "whole numbers or text"),
        }
        found = {}
        for ours, (named, usual, fits, expected) in kinds.items():
            there = [name for one in ((named,) if named else usual) if (name := column_named(schema.names, (one,))) is not None]
            fitting = [name for name in there if fits(_field(schema, name).type)]
            if fitting:
                found[ours] = fitting[0]
                refuse_twice(file, schema.names, (fitting[0],))
            elif there and (named or ours == "image"):
                raise UserError(
                    f"{file!r}: column {there[0]!r} is {_field(schema, there[0]).type}, expected {expected}; say with "
                    f"--{ours}_column which it is (there are {schema.names})"
                )
            elif named or ours == "image":
                raise UserError(
                    f"{file!r} has columns {schema.names}, expected one called {named or ', '.join(IMAGE_COLUMNS)}; say with "
                    f"--{ours}_column which it is"
                )
        return found

    def read(self, partition: Partition) -> Iterator[pa.Table]:
        file = partition.name
        with open_parquet(file, PAGE_BYTES) as parquet:
            columns = {**self._columns(file, parquet.schema_arrow), **_split_column(parquet.schema_arrow.names, partition)}
            names = _class_names(parquet.schema_arrow, columns.get("label"))
            groups, start = _groups(parquet, partition)
            for group in groups:
                for batch in parquet.iter_batches(
                    batch_size=_rows_at_once(parquet.metadata.row_group(group), columns["image"]),
                    row_groups=[group],
                    columns=sorted(set(columns.values())),
                    use_threads=False,
                ):
                    yield self._table(file, batch, columns, names, start)
                    start += batch.num_rows

    def _table(self, file: str, batch: pa.RecordBatch, columns: dict[str, str], names: list[str], start: int) -> pa.Table:
        pictures = _pictures(batch.column(columns["image"]))
        rows = range(start, start + batch.num_rows)
        urls = []
        for picture, row in zip(pictures, rows, strict=True):
            buffer = picture.as_buffer()
            known = url_by_bytes(hashlib.sha256(memoryview(buffer)).hexdigest()) if buffer is not None else None
            urls.append(known or f"{written_name(os.path.basename(file))}#{row}")
        made = {
            "url": pa.array(urls, pa.string()),
            "source_row": pa.array(rows, pa.int64()),
        }
        if "caption" in columns:
            made["caption"] = _text(batch.column(columns["caption"]), "caption", file)
        if "label" in columns:
            made["label"] = _labels(batch.column(columns["label"]), names, file)
        arrays = [made.get(field.name, pa.nulls(batch.num_rows, field.type)) for field in ROW]
        refused = pc.if_else(pc.is_null(pictures), NO_BYTES, pa.scalar(None, pa.string()))
        columns_of_pictures = [pa.field(PICTURE, pictures.type), pa.field(REFUSED, pa.string())]
        table = pa.Table.from_arrays([*arrays, pictures, refused], schema=pa.schema([*ROW, *columns_of_pictures]))
        return table.append_column(SPLIT, _text(batch.column(columns[SPLIT]), SPLIT, file)) if SPLIT in columns else table

    def fetch(self, url: str, limits: DownloadLimits) -> bytes:
        """Never a picture: they come with the rows."""
        raise FetchError(COME_WITH_ROWS)


NO_BYTES = "the row holds no picture: its bytes are null, and no path is followed"

IMAGE_COLUMNS = ("image", "img", "picture", "bytes", "jpg", "jpeg", "png", "webp")

EXPECTED_PICTURES = "expected Parquet with encoded pictures in a column: a file, a folder with *.parquet, or a glob"

PAGE_BYTES = 1 << 20
"""Of a column with pictures that are read from disk at once."""


def _rows_at_once(group: pq.RowGroupMetaData, column: str) -> int:
    """How many rows of a row group hold about ``PICTURE_BYTES``."""
    chunks = map(group.column, range(group.num_columns))
    size = sum(one.total_uncompressed_size for one in chunks if one.path_in_schema.split(".")[0] == column)
    return max(1, min(BATCH_ROWS, PICTURE_BYTES * group.num_rows // max(1, size)))


def _field(schema: pa.Schema, name: str) -> pa.Field:
    return schema.field(schema.get_all_field_indices(name)[0])


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or _holds_text(kind)


def _pictures(values: pa.Array) -> pa.Array:
    """Encoded pictures; null where there is none."""
    # A struct that is null has no bytes either.
    return pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values


def _class_names(schema: pa.Schema, label: str | None) -> list[str]:
    """The names of the classes, where ``datasets`` wrote them into the file: number → name."""
    try:
        said = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return [str(one) for one in said] if isinstance(said, list) else []


def _labels(values: pa.Array, names: list[str], file: str) -> pa.Array:
    """Labels as text: by name where the number has one; null for -1, by which ``datasets`` says that there is none."""
    if not pa.types.is_integer(values.type):
        return _text(values, "label", file)
    said = values.to_pylist()
    if names:
        said = [names[one] if one is not None and 0 <= one < len(names) else None if one == -1 else one for one in said]
    return pa.array([None if one is None else str(one) for one in said], pa.string())


def _converted(values: pa.Array, field: pa.Field, file: str) -> pa.Array:
    """A column as ours. Of one that isn't needed, what can't be converted is null, and counted."""
    if field.name in NEEDED:
        return _text(values, field.name, file)
    if pa.types.is_nested(values.type):
        converted = pa.nulls(len(values), field.type)
    elif pa.types.is_string(field.type):
        try:
            converted = _text(values, field.name, file)
        except UserError:
            converted = pa.nulls(len(values), field.type)
    else:
        converted = _numbers(values, field.type)
    if lost := converted.null_count - values.null_count:
        count(f"metadata values of {field.name} that are none", lost)
    return converted


def _numbers(values: pa.Array, type: pa.DataType) -> pa.Array:
    """Numbers, or texts of numbers; null for what is none, or none that fits."""
    try:
        found = pc.cast(values, pa.float64(), safe=False)
    except pa.ArrowException:
        found = pa.array([_number(value) for value in values.to_pylist()], pa.float64())
    if pa.types.is_floating(type):
        return found.cast(type, safe=False)
    limit = np.iinfo(type.to_pandas_dtype())
    # Nothing that isn't a number, or is too large, passes a comparison.
    fits = pc.and_(pc.greater_equal(found, float(limit.min)), pc.less_equal(found, float(limit.max)))
    return pc.if_else(fits, found, pa.scalar(None, pa.float64())).cast(type, safe=False)


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def _text(values: pa.Array, name: str, file: str) -> pa.Array:
    try:
        return readable_text(pc.cast(values, pa.string(), safe=False))
    except pa.ArrowException as error:
        raise UserError(f"{file!r}: column for {name} is {values.type}, expected string ({error})") from error


def source(
    kind: str,
    path: str,
    url_column: str | None = None,
    caption_column: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    allow_cut_tars: bool = False,
) -> Source:
    """The source of a kind: laion, folder, parquet or webdataset. The columns are what its files call theirs; None for the
    usual names.
    """
    if kind == "parquet":
        return ParquetSource(path, image_column, caption_column, label_column)
    if kind == "webdataset":
        return WebDatasetSource(path, image_column, caption_column, label_column, allow_cut_tars)
    made = LaionSource if kind == "laion" else FolderSource
    return made(path, url_column, caption_column)
