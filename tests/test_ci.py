"""What CI leaves out is on a list with reasons."""

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.servers import ROOT

MAY_SKIP = tomllib.loads((ROOT / ".ci" / "may_skip.toml").read_text())["may_skip"]


def judged(tmp_path, *cases):
    (tmp_path / "tests.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    words = [sys.executable, ROOT / ".ci" / "skipped.py", tmp_path / "tests.xml", ROOT / ".ci" / "may_skip.toml"]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def case(name, inside=""):
    classname, name = name.split("::")
    return f'<testcase classname="{classname}" name="{name}" time="0.1">{inside}</testcase>'


SKIPPED = '<skipped type="pytest.skip" message="there is no chromium here">a.py:1: there is no chromium here</skipped>'


def test_a_skipped_test_that_is_not_on_the_list_fails(tmp_path):
    fine = case("tests.demo.test_photographs::test_a", SKIPPED), case("tests.test_layers::test_b")
    done = judged(tmp_path, *fine)
    assert done.returncode == 0 and "skipped, as it may be: tests.demo.test_photographs::test_a: CIFAR-10" in done.stdout
    wrong = "tests.transforms.results.test_report_in_chromium::test_hostile[light]"
    done = judged(tmp_path, *fine, case(wrong, SKIPPED))
    assert done.returncode == 1 and f"AND MUST NOT BE: {wrong}: there is no chromium here" in done.stdout
    assert judged(tmp_path).returncode == 1  # a report without tests is no proof


@pytest.mark.parametrize("pattern", [name for one in MAY_SKIP for name in one["tests"]])
def test_the_list_names_tests_that_there_are(pattern):
    module, name = pattern.split("::")
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    named = name.split("[")[0]
    assert "skip" in text
    assert any(fnmatch.fnmatchcase(one, named) for one in re.findall(r"def (test_\w+)", text)) or "photographs" in named


def test_the_lock_is_that_of_both_environments(tmp_path):
    """Without CUDA, the versions are those of the tests."""
    shutil.copytree(
        ROOT, tmp_path / "checkout", ignore=lambda folder, names: set(names) - {"Makefile", "requirements.lock", "setup.py"}
    )
    python = tmp_path / "checkout" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "python $*"\n')
    python.chmod(0o755)
    made = {}
    for torch in ("cuda", "cpu"):
        shutil.rmtree(tmp_path / "checkout" / "build", ignore_errors=True)
        (tmp_path / "checkout" / ".venv" / "installed").unlink(missing_ok=True)
        words = ["make", "install", f"TORCH={torch}", "CPU_INDEX=file:///index"]
        done = subprocess.run(words, cwd=tmp_path / "checkout", capture_output=True, text=True, timeout=60, check=True)
        assert re.search(r"installing \d+ packages into .venv: .* GB.* minutes", done.stdout)
        assert ("--extra-index-url file:///index" in done.stdout) == (torch == "cpu")
        made[torch] = (tmp_path / "checkout" / "build" / "requirements.txt").read_text().splitlines()
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert made["cuda"] == lock
    assert [line.removesuffix("+cpu") for line in made["cpu"]] == [
        line for line in lock if not line.startswith(("nvidia-", "cuda-", "triton"))
    ]
    assert [line.split("==")[0] for line in made["cpu"] if line.endswith("+cpu")] == ["torch", "torchvision"]
    done = subprocess.run(
        ["make", "install", "TORCH=tpu", "VENV=other"], cwd=tmp_path / "checkout", capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "TORCH is 'tpu', expected cuda or cpu" in done.stderr
