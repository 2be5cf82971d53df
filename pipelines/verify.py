"""Looks for what is damaged in the lake: files that aren't what was written.

reads   every manifest, and every part of a table that one names: rows, size, and all bytes
writes  what it has found to stdout, a line for each; with --mend it removes that, and all that was made of it

Exit code 0: all is as it was written. 1: something isn't, and each line names the file and what is wrong with it. Where there
is no backup to restore it from, --mend removes the snapshots that are damaged, and those that were made of them: the same audit
then makes them again. Of pictures and vectors only the parts that are damaged go.

  eidetic verify --lake lake
  eidetic verify --lake lake --mend
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence

from pipelines.options import CommonOptions, LockOptions, Options, option, parse
from pipelines.query import printable
from pipelines.stages import alone_with
from transforms.store import integrity
from transforms.store.lake import Lake


@dataclasses.dataclass(frozen=True)
class VerifyOptions(Options):
    """Verifying."""

    mend: bool = option(False, "remove what is damaged, and what was made of it, so that the same audit makes it again")


def report(lake: Lake, verified: integrity.Verified) -> str:
    """What was looked at, and what is damaged."""
    lines = [f"{printable(lake.inside(one.path))}: {printable(one.what)}" for one in verified.damages]
    looked = f"verified {verified.manifests:,} manifests and {verified.parts:,} parts of tables, {verified.size:,} bytes"
    unknown = f"; of {verified.unknown:,} parts of older versions no digest is known" if verified.unknown else ""
    found = f"{len(lines):,} damaged" if lines else "nothing is damaged"
    return "\n".join([*lines, f"{looked}: {found}{unknown}"])


def main(argv: Sequence[str]) -> int:
    parsed = parse(argv, "verify", __doc__, (CommonOptions, LockOptions, VerifyOptions))
    lake, mend = Lake(parsed[CommonOptions].lake), parsed[VerifyOptions].mend
    lake.check()
    with alone_with(parsed, "verify") if mend else contextlib.nullcontext():
        verified = integrity.verify(lake)
        print(report(lake, verified))
        if not verified.damages:
            return 0
        if not mend:
            print(
                "restore these files from a backup, or run 'eidetic verify --mend' and then the same audit again",
                file=sys.stderr,
            )
            return 1
        removed = integrity.mend(lake, verified.damages)
        print(f"removed {removed.snapshots:,} snapshots and {removed.parts:,} parts; the same audit makes them again")
        return 0


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
