"""The user's own prompts: what files they may stand in."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.attacks.prompts import read_prompt_list
from transforms.errors import UserError


def test_a_line_ends_with_a_line_feed(tmp_path):
    """And a byte order mark is no part of the first prompt, which would be nobody's caption with it."""
    (tmp_path / "prompts.txt").write_bytes("\ufeffone \r\ntwo\u2028lines\x85here\n\none\n".encode())
    assert read_prompt_list(str(tmp_path / "prompts.txt")) == ["one", "two\u2028lines\x85here"]
    (tmp_path / "prompts.jsonl").write_bytes('\ufeff{"prompt": "two\u2028lines"}\r\n\n{"prompt": null}\n'.encode())
    assert read_prompt_list(str(tmp_path / "prompts.jsonl")) == ["two\u2028lines"]


@pytest.mark.parametrize(("prompt", "said"), [(5, "has 5 among its prompts"), (["a"], "has .'a'. among its prompts")])
def test_a_prompt_is_text(tmp_path, prompt, said):
    path = str(tmp_path / "prompts.parquet")
    pq.write_table(pa.table({"caption": [prompt]}), path)
    with pytest.raises(UserError, match=f"{said}, expected text; mend its column 'caption'"):
        read_prompt_list(path)
