"""Imports go one way: pipelines → transforms → transforms/kernels, and what is heavy is imported where it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "transforms/kernels": {"transforms.kernels"},
    "transforms": {"transforms", "sql"},
    "transforms/duplicates": {"transforms"},
    "sql": {"sql"},
    "pipelines": {"pipelines", "transforms", "sql"},
}
OURS = {"pipelines", "transforms", "sql", "demo", "tests", "benchmarks"}
HEAVY = ("torch", "open_clip", "diffusers", "transformers", "faiss", "img2dataset", "duckdb")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_go_one_way(folder):
    for path in sorted((ROOT / folder).glob("*.py")):
        for name in imported(path):
            if name.split(".")[0] not in OURS or (path.name == "demo.py" and name.split(".")[0] == "demo"):
                continue
            assert any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[folder]), (
                f"{path.relative_to(ROOT)} imports {name}"
            )


@pytest.mark.parametrize("folder", ["transforms/kernels"])
def test_kernels_know_neither_beam_nor_files(folder):
    for path in sorted((ROOT / folder).glob("*.py")):
        assert not {name.split(".")[0] for name in imported(path)} & {"apache_beam", "pyarrow", "duckdb", "os", "pathlib"}, path


def test_a_verb_starts_without_the_heavy_packages():
    """A night with nothing to do must not wait for torch."""
    code = f"import pipelines.audit, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
