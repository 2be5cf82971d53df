"""Prints the nights of a lake, one a line.

reads   history
writes  the trend to stdout

  eidetic history --lake lake
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pipelines.options import CommonOptions, parse
from pipelines.query import as_table
from transforms.errors import UserError
from transforms.results.nights import history
from transforms.store.lake import Lake

NAMES = ["date", "model", "images", "panel", "new", "gone", "copied", "95% interval", "seen", "p", "verdict"]


def trend(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of ``history`` as a table: rates are those of prompts that return their image, and whose image was seen."""
    shown = []
    for row in rows:
        shown.append(
            (
                row["date"],
                row["model_revision"][:12],
                row["images"],
                f"{row['panel_extracted']} of {row['panel_prompts']}",
                row["new_extractions"],
                row["gone_extractions"],
                f"{row['rate_copied']:.2%}",
                f"{row['rate_copied_lower']:.2%} to {row['rate_copied_upper']:.2%}",
                None if row["rate_seen"] is None else f"{row['rate_seen']:.2%}",
                None if row["p_value"] is None else f"{row['p_value']:.2g}",
                row["verdict"],
            )
        )
    return as_table(NAMES, shown)


def main(argv: Sequence[str]) -> None:
    lake = Lake(parse(argv, "history", __doc__, (CommonOptions,))[CommonOptions].lake)
    lake.check()
    rows = history(lake)
    if not rows:
        raise UserError(f"the lake {lake.root!r} has no night yet; run 'eidetic nightly' first")
    print(trend(rows))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
