"""The SQL of Eidetic: one SELECT per file, the file's name is the table's.

    tables/     tables of the lake that SQL fills (prompts, keep_list), and what prompts are drawn from
    functions/  what several of the others compute in the same way: a CREATE MACRO each
    staging/    what marts share, made on the way and not stored
    marts/      what users query: of an audit, or of a sweep (STEPS in transforms/results/marts.py and sweeps.py)
    checks/     each returns no rows, or the audit fails with its name; sweep_checks/ likewise for a sweep

staging/ and marts/ have a columns.toml that says what each column means.

Table names in the files are the lake's; ``transforms/results`` binds them to the snapshots of one audit, or of one sweep.
Values are bound as parameters ($name).
"""

from __future__ import annotations

import importlib.resources
import tomllib
from typing import Any


def read(kind: str, name: str) -> str:
    """The text of ``sql/<kind>/<name>.sql``."""
    return (importlib.resources.files("sql") / kind / f"{name}.sql").read_text(encoding="utf-8")


def names(kind: str) -> list[str]:
    """The names of the files in ``sql/<kind>``, sorted."""
    folder = importlib.resources.files("sql") / kind
    return sorted(entry.name.removesuffix(".sql") for entry in folder.iterdir() if entry.name.endswith(".sql"))


def columns(kind: str = "marts") -> dict[str, dict[str, Any]]:
    """Table → {"grain": what one row is, "columns": column → {type, meaning, maybe unit}}, in the order of the columns.

    ``sql/<kind>/columns.toml`` declares them; the columns that every mart of an audit begins with stand there once, as do those
    of a sweep's marts, which say ``of = "sweep"``.
    """
    declared = tomllib.loads((importlib.resources.files("sql") / kind / "columns.toml").read_text(encoding="utf-8"))
    shared = {of: declared.pop(name, {"columns": {}})["columns"]
              for of, name in (("audit", "every_mart"), ("sweep", "every_mart_of_a_sweep"))}  # fmt: skip
    return {
        table: {"grain": entry["grain"], "columns": shared[entry.get("of", "audit")] | entry["columns"]}
        for table, entry in declared.items()
    }
