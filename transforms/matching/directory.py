"""Who stands where: which image is in which row of which part, in which group, and which one stands for its group.

One join of ``embeddings`` and ``duplicate_groups``, made once for these groups and cut by part of ``images``: from then on an
image is a number, its **code** (part and row), and no worker needs to know all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.data.images import ROW_BITS
from transforms.store.files import exists, read_parquet, write_parquet
from transforms.store.lake import Lake
from transforms.store.remote import readable
from transforms.store.scan import connect
from transforms.store.tombstones import Tombstones

INDEX = "index"
"""The folder of ``work`` that belongs to groups, and not to one match."""

MAX_MEMBERS = 256
"""So many members of one group are compared, its representative among them, the others drawn by hash: a group can hold 100,000
flags, which are one picture up to what ``deduplicate`` calls a duplicate."""

MEMBERS_PER_ROW_GROUP = 1 << 14


def part_of(code: int) -> int:
    """The part of ``images`` that a code lies in."""
    return code >> ROW_BITS


_JOINED = f"""
    SELECT
        (part::BIGINT << {ROW_BITS}) | embedded.row AS code,
        part,
        embedded.sample_id,
        role,
        coalesce(duplicate_groups.group_id, embedded.sample_id) AS group_id,
        coalesce(duplicate_groups.size, 1) AS size,
        row_number() OVER (
            PARTITION BY role, coalesce(duplicate_groups.group_id, embedded.sample_id)
            -- A representative that was forgotten leaves its place to the first that is left.
            ORDER BY embedded.sample_id = duplicate_groups.representative DESC NULLS LAST, embedded.sample_id
        ) AS place,
        coalesce(width::DOUBLE / height, 1) AS aspect
    FROM (
        SELECT sample_id, role, status, file_row_number AS row,
            regexp_extract(filename, 'part-([0-9]+)\\.parquet$', 1)::INTEGER AS part
        FROM read_parquet(getvariable('embeddings'), filename = true, file_row_number = true, hive_partitioning = false)
    ) AS embedded
    INNER JOIN (
        SELECT sample_id, width, height FROM read_parquet(getvariable('images'), hive_partitioning = false)
    ) AS images USING (sample_id)
    LEFT JOIN read_parquet(getvariable('groups'), hive_partitioning = false) AS duplicate_groups USING (sample_id)
    WHERE status = 'success' AND embedded.sample_id NOT IN (SELECT unnest(getvariable('forgotten')))
"""


class Directory:
    """The directory of some groups: files of a work folder, which ``match`` and ``lookup`` share.

    Args:
        lake: the lake.
        deduplicate: snapshot of the groups.
    """

    def __init__(self, lake: Lake, deduplicate: str):
        self.lake, self.deduplicate = lake, deduplicate

    def _file(self, *parts: str) -> str:
        return self.lake.work(INDEX, self.deduplicate, "directory", *parts)

    def part_file(self, number: int) -> str:
        """Of a part of ``images``: code, sample_id, role, group_id, size, representative, aspect; in the order of the rows."""
        return self._file("parts", f"{number:05d}.parquet")

    @property
    def members_file(self) -> str:
        """Of groups of two and more: group_id, code, sample_id; up to ``MAX_MEMBERS`` of each, by group."""
        return self._file("members.parquet")

    @property
    def total_file(self) -> str:
        """What ``totals`` returns; written last."""
        return self._file("totals.parquet")

    def write(self, ingest: str, embed: str) -> None:
        """Makes the files, unless they're there, from the images and vectors that the groups are of."""
        if exists(self.total_file):
            return
        lake = self.lake
        with connect() as connection:
            for name, table, snapshot in (
                ("embeddings", "embeddings", embed),
                ("images", "images", ingest),
                ("groups", "duplicate_groups", self.deduplicate),
            ):
                parts = [readable(path) for path in lake.parts(table, snapshot)]
                connection.execute(f"SET VARIABLE {name} = $parts", {"parts": parts})
            forgotten = sorted(Tombstones.read(lake).samples)
            connection.execute("SET VARIABLE forgotten = $forgotten::VARCHAR[]", {"forgotten": forgotten})
            if lake.parts("duplicate_groups", self.deduplicate):
                connection.execute(f"CREATE TEMP TABLE directory AS {_JOINED}")
            else:
                nobody = "(SELECT '' AS sample_id, '' AS group_id, 0 AS size, '' AS representative WHERE false)"
                joined = _JOINED.replace("read_parquet(getvariable('groups'), hive_partitioning = false)", nobody)
                connection.execute(f"CREATE TEMP TABLE directory AS {joined}")
            in_order = connection.sql(
                "SELECT code, part, sample_id, role, group_id, size, place = 1 AS representative, aspect "
                "FROM directory ORDER BY code"
            )
            for number, table in by_part(in_order.to_arrow_reader(1 << 16)):
                write_parquet(self.part_file(number), table)
            members = connection.sql(
                "SELECT group_id, code, sample_id FROM ("
                "  SELECT *, row_number() OVER (PARTITION BY group_id ORDER BY place > 1, sha256(sample_id)) AS chosen"
                "  FROM directory WHERE role = 'training' AND size > 1"
                f") WHERE chosen <= {MAX_MEMBERS} ORDER BY group_id, chosen"
            ).to_arrow_table()
            write_parquet(self.members_file, members, rows=MEMBERS_PER_ROW_GROUP)
            totals = connection.sql(
                "SELECT part, role, count(*) AS images, count(*) FILTER (place = 1) AS groups FROM directory "
                "GROUP BY part, role ORDER BY part, role"
            ).to_arrow_table()
            write_parquet(self.total_file, totals)

    def totals(self) -> list[dict[str, Any]]:
        """part, role, images, groups: of each part of ``images`` what it has of each role."""
        return read_parquet(self.total_file).to_pylist()

    def part(self, number: int) -> pa.Table:
        """The rows of one part; see ``part_file``."""
        return read_parquet(self.part_file(number))

    def drawn(self, kind: str, role: str, most: int) -> list[dict[str, Any]]:
        """Groups of a role that are drawn by hash for decoys of a kind: code, sample_id, group_id of the representative."""
        with connect() as connection:
            connection.execute("SET VARIABLE parts = $parts", {"parts": self.part_files()})
            rows = connection.execute(
                "SELECT code, sample_id, group_id FROM read_parquet(getvariable('parts')) "
                "WHERE role = $role AND representative "
                # As identity.digest makes it.
                """ORDER BY sha256('["decoy","' || $kind || '","' || sample_id || '"]') LIMIT $most""",
                {"role": role, "kind": kind, "most": most},
            ).fetchall()
        return [{"code": code, "sample_id": sample, "group_id": group} for code, sample, group in rows]

    def part_files(self) -> list[str]:
        """Of all parts, as SQL reads them."""
        return [readable(self.part_file(number)) for number in sorted({row["part"] for row in self.totals()})]

    def codes(self, samples: Iterable[str]) -> dict[str, int]:
        """Sample → code, of a few."""
        with connect() as connection:
            connection.execute("SET VARIABLE parts = $parts", {"parts": self.part_files()})
            connection.execute("SET VARIABLE wanted = $wanted::VARCHAR[]", {"wanted": sorted(samples)})
            rows = connection.execute(
                "SELECT sample_id, code FROM read_parquet(getvariable('parts')) "
                "WHERE sample_id IN (SELECT unnest(getvariable('wanted')))"
            ).fetchall()
        return dict(rows)

    def representatives(self, groups: Iterable[str], role: str) -> dict[str, dict[str, Any]]:
        """Group (or control, with that role) → the row of ``part_file`` of the image that stands for it, of a few."""
        query = """
            SELECT code, sample_id, group_id, size FROM read_parquet($parts)
            WHERE representative AND role = $role AND group_id IN (SELECT unnest($wanted::VARCHAR[]))
        """
        with connect() as connection:
            parameters = {"parts": self.part_files(), "role": role, "wanted": sorted(set(groups))}
            found = connection.sql(query, params=parameters).to_arrow_table().to_pylist()
        return {row["group_id"]: row for row in found}

    def rows(self, codes: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Code → its row of ``part_file``, of a few."""
        found: dict[int, dict[str, Any]] = {}
        wanted = sorted(set(codes))
        for number in sorted({part_of(code) for code in wanted}):
            table = self.part(number)
            mine = table.filter(pc.is_in(table["code"], pa.array(wanted, pa.int64())))
            found |= {row["code"]: row for row in mine.to_pylist()}
        return found

    def members(self, groups: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
        """Group → (code, sample_id) of its members, its representative first; nothing of groups of one."""
        wanted = sorted(set(groups))
        found: dict[str, list[tuple[int, str]]] = {}
        if not wanted:
            return found
        with connect() as connection:
            connection.execute("SET VARIABLE wanted = $wanted", {"wanted": wanted})
            rows = connection.execute(
                "SELECT group_id, code, sample_id FROM read_parquet($file) "
                "WHERE list_contains(getvariable('wanted'), group_id)",
                {"file": readable(self.members_file)},
            ).fetchall()
        for group, code, sample in rows:
            found.setdefault(group, []).append((code, sample))
        return found


def by_part(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    """Rows in the order of their parts → each part's rows as one table, without its number."""
    waiting: list[pa.Table] = []
    current = -1
    for batch in batches:
        table = pa.Table.from_batches([batch])
        parts = table["part"].to_numpy()
        for start, end in _runs(parts):
            if parts[start] != current and waiting:
                yield current, pa.concat_tables(waiting)
                waiting = []
            current = int(parts[start])
            waiting.append(table.slice(start, end - start).drop_columns("part"))
    if waiting:
        yield current, pa.concat_tables(waiting)


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Where equal values begin and end."""
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.empty(0, np.int64)
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(values)], strict=True))


_OWN = """
    WITH prompts AS (
        SELECT * EXCLUDE (text, filename), regexp_extract(filename, 'part-([0-9]+)\\.parquet$', 1)::INTEGER AS part
        FROM read_parquet($prompts, filename = true, hive_partitioning = false)
    )

    SELECT prompts.*, directory.code AS own_code, directory.sample_id AS own_sample, directory.size AS own_size
    FROM prompts
    LEFT JOIN read_parquet($directory) AS directory
        ON directory.representative
        AND directory.role = CASE prompts.origin WHEN 'control' THEN 'control' ELSE 'training' END
        AND directory.group_id = CASE prompts.origin WHEN 'control' THEN prompts.sample_id ELSE prompts.group_id END
    ORDER BY prompts.part, prompts.prompt_id
"""


def own_file(lake: Lake, match: str, prompts_part: int) -> str:
    """Of a part of ``prompts``: its columns but for the text, and of the image whose caption each is (or its group's
    representative) own_code, own_sample and own_size; null where there is none."""
    return lake.work("match", match, "own", f"{prompts_part:05d}.parquet")


def write_own(lake: Lake, match: str, generate: str, directory: Directory) -> None:
    """Makes the ``own_file`` of all parts of the prompts of an audit."""
    prompts = [readable(path) for path in lake.parts("prompts", generate)]
    with connect() as connection:
        own = connection.sql(_OWN, params={"prompts": prompts, "directory": directory.part_files()})
        for number, table in by_part(own.to_arrow_reader(1 << 16)):
            write_parquet(own_file(lake, match, number), table)
