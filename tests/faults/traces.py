"""What of the pictures that are forgotten must be nowhere in a lake."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from transforms.store.files import read_parquet
from transforms.store.lake import Lake


def rows(lake: Lake, table: str) -> list[dict]:
    """All rows of a table, whatever snapshot they are of."""
    return [row for path in lake.every_part(table) for row in read_parquet(path).to_pylist()]


def traces(lake: Lake) -> dict[str, bytes]:
    """Vectors, pictures and captions of what ``World.forgetting`` forgets, by what they are."""
    mine = {
        row["sample_id"]: row
        for row in rows(lake, "samples")
        if row["url"] in ("00.png", "05.png") and row["role"] == "training"
    }
    assert len(mine) == 2
    found: dict[str, bytes] = {}
    for row in rows(lake, "embeddings"):
        if row["sample_id"] in mine:
            found[f"vector {row['sample_id']}"] = np.asarray(row["vector"], np.float32).tobytes()
    for row in rows(lake, "images"):
        if row["sample_id"] in mine:
            found[f"picture {row['sample_id']}"] = row["image"]
    for sample, row in mine.items():
        found[f"caption {sample}"] = row["caption"].encode()
    return found


def left(lake: Lake, wanted: dict[str, bytes]) -> set[tuple[str, str]]:
    """(what, file) of all that is found, in any file, of Parquet as decoded."""
    found = set()
    for path in Path(lake.root).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                for row in read_parquet(str(path)).to_pylist():
                    for value in row.values():
                        if isinstance(value, list) and value and isinstance(value[0], float):
                            content += np.asarray(value, np.float32).tobytes()
                        else:
                            content += value if isinstance(value, bytes) else str(value).encode()
            found |= {(name, path.name) for name, one in wanted.items() if one in content}
    return found
