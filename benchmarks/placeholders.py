"""Where the limit of placeholders lies (sql/functions/is_placeholder.sql): what it calls of captions of known kinds.

    python -m benchmarks.placeholders

Captions come from two files of $EIDETIC_SHARED/data, by default the folder shared beside the repository: 1,000 rows of LAION,
and the 500 captions that Stable Diffusion 1 is known to have memorised (Webster 2023). Planted groups have n captions on n
hosts, twenty of them in a lake with those of LAION. A placeholder has captions of LAION by chance. A picture that was memorised
has them from one family: captions linked by three tenths of their words in common, of five members and more; all of them, or
three tenths, the others being of LAION by chance.
"""

from __future__ import annotations

import collections
import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Row, write

DATA = Path(os.environ.get("EIDETIC_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
SIZES = (10, 16, 32, 64)
TURNS = 5
"""Groups of each size in a lake."""

LAKES = 10

FAMILY = 5


def families(captions: Sequence[str]) -> list[list[str]]:
    """Captions that are like one another, by single linkage."""
    words = [set(re.findall(r"[^\W_]+", caption.lower())) for caption in captions]
    joined = list(range(len(captions)))

    def first(one: int) -> int:
        while joined[one] != one:
            one = joined[one]
        return one

    for one in range(len(captions)):
        for other in range(one):
            if len(words[one] & words[other]) >= 0.3 * len(words[one] | words[other]):
                joined[first(one)] = first(other)
    found = collections.defaultdict(list)
    for one, caption in enumerate(captions):
        found[first(one)].append(caption)
    return [family for family in found.values() if len(family) >= FAMILY]


def called(groups: Sequence[Sequence[str]], others: Sequence[str]) -> set[int]:
    """Numbers of the groups that the mart has, in a lake that has other pictures with captions too."""
    import pyarrow as pa

    import sql
    from transforms.store.scan import connect

    rows = [
        {"sample_id": f"{number}-{place}", "group_id": str(number), "size": len(group), "representative": f"{number}-0",
         "caption": caption, "url": f"https://host{place}.example/", "sha256": "0"}
        for number, group in enumerate([*groups, *([caption] for caption in others)]) for place, caption in enumerate(group)
    ]  # fmt: skip
    with connect() as connection:
        table = pa.Table.from_pylist(rows)
        connection.register("duplicate_groups", table.drop_columns(["caption", "url", "sha256"]))
        connection.register("samples", table.select(["sample_id", "caption", "url", "sha256"]))
        return {int(group) for group, *_ in connection.sql(sql.read("marts", "placeholders")).fetchall()}


def main() -> None:
    import pyarrow.parquet as pq

    laion = pq.read_table(DATA / "laion_metadata_1000.parquet")["TEXT"].drop_null().to_pylist()
    lines = (DATA / "sdv1_500_memorized_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    memorised = families([json.loads(line)["caption"] for line in lines])
    chance = random.Random(0)
    kinds = {"placeholder": 0.0, "three tenths of one family": 0.3, "one family": 1.0}
    share: dict[str, float] = {}
    for kind, of_family in kinds.items():
        found = 0
        for _ in range(LAKES):
            groups = []
            for size in SIZES * TURNS:
                family, number = chance.choice(memorised), round(size * of_family)
                groups.append([chance.choice(family) for _ in range(number)] + chance.sample(laion, size - number))
            found += len(called(groups, laion))
        share[kind] = found / (LAKES * TURNS * len(SIZES))
    write(
        "placeholders",
        [
            Row("placeholders: share that is not found", 1 - share["placeholder"], "", goal=0.05),
            Row("pictures under memorised captions: share that is taken for placeholders", share["one family"], "", goal=0.0),
            Row(
                "pictures of which three tenths are under memorised captions: share that is taken for placeholders",
                share["three tenths of one family"],
                "",
                goal=0.01,
            ),
        ],
    )


if __name__ == "__main__":
    main()
