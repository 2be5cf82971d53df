"""The questions of docs/sql.md, or of another page of that form: reads them, and writes their answers.

python -m demo.questions --lake lake
python -m demo.questions --lake sweep_lake --page questions.md
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from pipelines.query import answer, as_table
from transforms.store.lake import Lake

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sql.md"

QUESTION = re.compile(
    r"## (?P<title>[^\n]+)\n(?P<text>.*?)```sql\n(?P<sql>.*?)```\n(?:\n```\n(?P<answer>.*?)```\n)?", re.DOTALL
)


class Question(NamedTuple):
    """One question of the page; ``answer`` is what is printed there, None before there is one."""

    title: str
    sql: str
    answer: str | None


def questions(page: Path = PAGE) -> list[Question]:
    found = QUESTION.finditer(page.read_text(encoding="utf-8"))
    return [Question(one["title"], one["sql"], one["answer"]) for one in found]


def with_answers(page: str, lake: Lake) -> str:
    """The page with every answer as this lake gives it."""

    def write(one: re.Match[str]) -> str:
        shown = as_table(*answer(lake, one["sql"]))
        return f"## {one['title']}\n{one['text']}```sql\n{one['sql']}```\n\n```\n{shown}\n```\n"

    return QUESTION.sub(write, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lake", default="lake")
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    page = with_answers(asked.page.read_text(encoding="utf-8"), Lake(asked.lake))
    asked.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
