"""Imports go one way, from the verbs down to the numbers, and what is heavy is imported where it is used."""

import ast
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (
    ("transforms/kernels",),
    ("transforms/store",),
    ("transforms/models",),
    ("transforms/data",),
    ("transforms/training",),
    ("transforms/attacks", "transforms/duplicates", "transforms/matching", "transforms/results"),
    ("transforms/forgetting",),
    ("pipelines",),
)
"""The rooms from the ground up: each imports itself and what lies on the floors below it."""

ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
EVERYWHERE = {"sql", "transforms.errors"}
OURS = {"pipelines", "transforms", "sql", "demo", "tests", "benchmarks"}
HEAVY = ("torch", "open_clip", "diffusers", "transformers", "faiss", "img2dataset", "duckdb")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str | None:
    """The room of ``transforms.store.lake.Lake``: transforms/store."""
    words = module.split(".")
    return next((room for room in ("/".join(words[:2]), words[0]) if room in ROOMS), None)


def test_every_module_is_in_a_room():
    outside = {path.name for path in (ROOT / "transforms").glob("*.py")} - {"__init__.py", "errors.py"}
    assert not outside
    assert {f"transforms/{path.parent.name}" for path in (ROOT / "transforms").glob("*/*.py")} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room):
    for path in sorted((ROOT / room).glob("*.py")):
        for name in imported(path):
            if name.split(".")[0] not in OURS or any(name == one or name.startswith(f"{one}.") for one in EVERYWHERE):
                continue
            if path.name == "demo.py" and name.split(".")[0] == "demo":
                continue
            other = room_of(name)
            assert other is not None and (other == room or ROOMS[other] < ROOMS[room]), (
                f"{path.relative_to(ROOT)} imports {name}"
            )


def test_kernels_know_neither_beam_nor_files():
    for path in sorted((ROOT / "transforms/kernels").glob("*.py")):
        assert not {name.split(".")[0] for name in imported(path)} & {"apache_beam", "pyarrow", "duckdb", "os", "pathlib"}, path


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("pipelines.audit", HEAVY),
        ("pipelines.nightly", HEAVY),
        ("pipelines.forget", HEAVY),
        ("pipelines.sweep", HEAVY),
        ("pipelines.cli", (*HEAVY, "apache_beam", "numpy")),
        ("pipelines.query", (*HEAVY, "apache_beam")),
    ],
)
def test_a_verb_starts_without_what_it_does_not_need(module, without):
    """A night with nothing to do must not wait for torch, nor a question in SQL for Beam."""
    code = f"import {module}, sys; print([name for name in {without!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SMALL = {
    "copy_calibration": {"transforms/forgetting/burial.py", "transforms/results/nights.py", "transforms/results/report.py"},
    "calibration": {"transforms/results/nights.py", "transforms/results/report.py"},
    "history": {"transforms/results/nights.py", "pipelines/nightly.py"},
    "night_changes": {"transforms/results/nights.py", "pipelines/nightly.py"},
    "audits": {"transforms/results/report.py"},
    "decoys": {"pipelines/match.py"},
    "prompts": {"pipelines/again.py", "pipelines/nightly.py"},
}
"""Tables that are read whole, and where: one row a night, an audit, a distance or a prompt, or as many as are drawn. Whatever
grows with images or generations goes through ``store/scan.py``, or file by file (``forgetting/workers.py``).
"""


def test_whole_tables_are_read_only_where_they_are_small():
    for folder in ("transforms", "pipelines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "read"):
                    continue
                receiver = ast.unparse(node.func.value)
                if receiver.split(".")[-1] != "lake" or not node.args:
                    continue
                table, inside = ast.literal_eval(node.args[0]), str(path.relative_to(ROOT))
                assert inside in SMALL.get(table, ()), f"{inside} reads the whole of {table}"


def test_no_name_stands_for_two_classes():
    found: dict[str, str] = {}
    for folder in ("transforms", "pipelines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    assert node.name not in found, f"{node.name} is in {found[node.name]} and in {path}"
                    found[node.name] = str(path)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_a_benchmark_asks_for_names_that_there_are(name):
    """Nobody runs all of them every day: one that the code has left behind would be found when it is wanted."""
    module = importlib.import_module(f"benchmarks.{name}")
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OURS:
            there = importlib.import_module(node.module)
            missing = [one.name for one in node.names if not hasattr(there, one.name)]
            assert not [one for one in missing if importlib.util.find_spec(f"{node.module}.{one}") is None]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            there = getattr(module, node.value.id, None)
            if isinstance(there, types.ModuleType) and there.__name__.split(".")[0] in OURS:
                assert hasattr(there, node.attr), f"{there.__name__}.{node.attr}"
