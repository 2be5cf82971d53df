"""Takes pictures out of the lake for good, leaves tombstones, and proves that nothing of them is left.

reads   every table of the lake
writes  tombstones: what must not come back, by digests; every table, work file and report that shows what was forgotten;
        the marts, audit.duckdb and the reports, from what is left

Named are samples: by id, by url, or in a file of either (text, one a line; CSV, TSV or Parquet with a column sample_id or url).
With them goes whatever has the same url or the same bytes. Rows stay, without pictures, vectors, urls and captions: what
becomes of each table and of the rates is in docs/forgetting.md. Later ingests leave what has a tombstone alone. At the end
every file of the lake is searched; exit code 1 says that something was found. The same command again goes on where a killed one
stopped. Nothing else may write to the lake meanwhile: all verbs that do are kept off it. Each look at the lake is a
Beam pipeline over its files, the proof as well; what workers and command tell one another, digests and numbers, lies in
work/forget until it was read.

  eidetic forget --lake lake --urls https://example.org/me.jpg --reason "asked for by its owner"
  eidetic forget --lake lake --file requests.csv --with_duplicates
  eidetic forget --lake lake --generations_older_than 90
  eidetic forget --lake lake --verify_only
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Sequence

from pipelines import measure
from pipelines.execution import Execution
from pipelines.lock import alone
from pipelines.measure import MeasureOptions
from pipelines.options import CommonOptions, LockOptions, Options, Parsed, option, parse
from pipelines.stages import execution_of
from transforms.errors import UserError
from transforms.forgetting import burial, proof, removal, selection
from transforms.forgetting.workers import Workers
from transforms.store.texts import printable

SHOWN = 20
"""So many places are named where something was found."""

MOST_DAYS = 100_000
"""Dates know no time that is much longer ago."""


@dataclasses.dataclass(frozen=True)
class ForgetOptions(Options):
    """Forgetting: what, and how it is proved."""

    sample_ids: tuple[str, ...] = option((), "samples by id, with spaces or commas between")
    urls: tuple[str, ...] = option((), "samples by url, with spaces between; the lake need not have them yet")
    file: str | None = option(None, "a file of sample_ids or urls: text, one a line; CSV, TSV or Parquet with such a column")
    with_duplicates: bool = option(False, "forget the members of their duplicate groups as well")
    allow_unknown: bool = option(False, "leave tombstones for sample_ids, too, that the lake doesn't have")
    reason: str = option("forgotten on request", "why: stands in the tombstones, and in the rows of samples")
    generations_older_than: int | None = option(
        None, "remove the pictures of generations that were made so many days ago", least=0, most=MOST_DAYS
    )
    verify_only: bool = option(False, "search the lake for what was forgotten before, and change nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reason.strip():
            raise UserError("--reason is empty, expected a few words")
        names = bool(self.sample_ids or self.urls or self.file)
        if self.verify_only and (names or self.generations_older_than is not None):
            raise UserError("--verify_only changes nothing; leave it out to forget, or name nothing with it")
        if not names and not self.verify_only and self.generations_older_than is None:
            raise UserError("there is nothing to forget: name it with --sample_ids, --urls or --file")

    @property
    def named(self) -> selection.Named:
        """Everything that the options name. UserError where --file can't be read."""
        ids = {part.strip() for word in self.sample_ids for part in word.split(",")} - {""}
        named = selection.Named(frozenset(ids), frozenset(self.urls) - {""})
        return named if self.file is None else named | selection.read_list(self.file)


def run(execution: Execution, options: ForgetOptions, report: MeasureOptions, wait: float = 0.0) -> proof.Searched:
    """Forgets, and searches the lake for what was forgotten; says on the way what is done. ``wait``: as ``alone`` has it."""
    lake = execution.lake
    lake.check()
    named = options.named
    if options.verify_only:
        with Workers(lake, execution.run) as workers:
            return proof.search(workers)
    with alone(lake, "forget", wait), Workers(lake, execution.run) as workers:
        workers.tidy()
        if named.sample_ids or named.urls:
            forget(workers, options, named)
        if options.generations_older_than is not None:
            days = options.generations_older_than
            removed = removal.retire(workers, days, datetime.datetime.now(datetime.UTC))
            print(f"removed {removed:,} pictures of generations that are older than {days} days")
        make_again(execution, report)
        return proof.search(workers)


def forget(workers: Workers, options: ForgetOptions, named: selection.Named) -> None:
    """Leaves tombstones and removes what has one."""
    lake, chosen = workers.lake, selection.Chosen(workers, named)
    if options.with_duplicates:
        chosen.add_duplicates()
    unknown, new_urls = chosen.unknown(named)
    if unknown and not options.allow_unknown:
        more = f" and {len(unknown) - selection.NAMED:,} more" if len(unknown) > selection.NAMED else ""
        raise UserError(
            f"the lake {lake.root!r} has no sample {', '.join(unknown[: selection.NAMED])}{more}; mend the ids, or leave "
            "tombstones for them all the same with --allow_unknown"
        )
    burial.bury(workers, chosen.sample_ids, named.urls, options.reason)
    changed = removal.remove(workers)
    rows = ", ".join(f"{table} {number:,}" for table, number in changed.items()) or "nothing was left of them"
    print(f"forgot {len(chosen.sample_ids):,} samples: {rows}")
    if new_urls:
        print(f"{new_urls:,} urls are not in the lake; they have a tombstone, which later ingests honour", file=sys.stderr)


def make_again(execution: Execution, report: MeasureOptions) -> None:
    """The marts, the database and the reports of every audit, from what is left."""
    lake = execution.lake
    matches = removal.measured_matches(lake)
    removal.remove_what_is_made(lake)
    for match in matches:
        measure.STAGE.run(execution, Parsed.of(report), match)


def summary(searched: proof.Searched) -> str:
    """What was searched, and what was found where. What was found isn't repeated."""
    looked = (
        f"searched {searched.files:,} files, {searched.read:,} bytes, for {searched.looked_for:,} things that were forgotten"
    )
    if not searched.found:
        return f"{looked}: found nothing"
    lines = [f"  {one.kind} in {printable(one.path)}, {printable(one.place)}" for one in searched.found[:SHOWN]]
    if len(searched.found) > SHOWN:
        lines.append(f"  and {len(searched.found) - SHOWN:,} more")
    return "\n".join([f"{looked}: found {len(searched.found):,}", *lines])


def main(argv: Sequence[str]) -> int:
    parsed = parse(argv, "forget", __doc__, (CommonOptions, LockOptions, ForgetOptions, MeasureOptions))
    wait = parsed[LockOptions].wait
    searched = run(execution_of(parsed), parsed[ForgetOptions], parsed[MeasureOptions], wait)
    print(summary(searched))
    return 1 if searched.found else 0


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
