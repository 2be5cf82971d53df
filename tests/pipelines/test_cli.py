"""Mistakes on the command line: exit code 2, one line that says what to do, and nothing half-written."""

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import cli
from pipelines.lock import LOCK
from tests.models import save_random_pipeline
from tests.planted import clusters, embedding_rows, write_embeddings
from tests.servers import ROOT
from transforms.attacks.prompts import read_prompt_list
from transforms.errors import UserError
from transforms.store.lake import Lake

STAGES = [verb for verb in cli.verbs() if verb not in ("query", "again", "demo")]


def complaint(capfd, *words):
    """The one line on stderr of a command that ends with exit code 2."""
    assert cli.main(list(words)) == 2
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("eidetic: "), captured.err
    assert captured.out == ""
    return lines[0]


@pytest.fixture
def no_files(tmp_path, monkeypatch):
    """A new working folder; at the end of the test nothing may lie in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.rglob("*")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["measure", "--lake=file:///x/y"], "name it as --lake '/x/y'"),
        (["query", "SELECT 1", "--lake=foo://x"], "expected a local path, or a URL that begins gs://… or s3://…"),
        (["measure", "--lake="], "the lake's path is '', expected a folder"),
        (["ingest", "--metadata=file:///x/y"], "--metadata is 'file:///x/y', expected a path of this machine; name it as"),
        (
            ["generate", "--prompts=https://x/y.txt"],
            "--prompts is 'https://x/y.txt', expected a local path, or a URL that",
        ),
        (["generate", "--generations=hf://x/y"], "--generations is 'hf://x/y', expected a local path, or a URL that begins"),
        (["measure", "--runner=os.path.join"], "--runner is 'os.path.join', expected one that Beam knows"),
        (["measure", "--runner=Flinkruner"], "--runner is 'Flinkruner', expected one that Beam knows"),
        (["measure", "--runner=no.such.Runner"], "which is not installed (No module named 'no')"),
        (["measur"], "unknown verb 'measur'; expected one of ingest, embed"),
        (["--lake=lake"], "unknown verb '--lake=lake'"),
        (["audit", "--max_promts=3"], "unknown option '--max_promts=3' (did you mean 'max_prompts'?)"),
        (["ingest", "--metadata=x.parquet", "--nonsense"], "unknown option '--nonsense'"),
        (["generate", "--clique_size=-1"], "--clique_size is -1, expected 1 or more"),
        (["audit", "--clique_size=-1"], "--clique_size is -1, expected 1 or more"),
        (["generate", "--model=a", "--generations=b"], "--model and --generations exclude each other"),
        (["match", "--delta=2"], "--delta is 2.0, expected between 0 and 1"),
        (["ingest"], "name it with --metadata"),
        (["ingest", "--metadata=not_there.parquet"], "not_there.parquet"),
        (["ingest", "--metadata=not_there.parquet", "--plain"], "unknown option '--plain'"),
        (["embed"], "run 'eidetic ingest' first"),
        (["measure"], "run 'eidetic ingest' first"),
        (["query", "SELECT 1"], "run 'eidetic measure' or 'eidetic compare' first"),
        (["query"], "the following arguments are required: SQL"),
        (["audit", "--config=not_there.toml"], "cannot read --config 'not_there.toml'"),
    ],
)
def test_mistakes(words, message, no_files, capfd):
    assert message in complaint(capfd, *words)


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_metadata_that_is_not_laions(tmp_path, no_files, capfd):
    (tmp_path / "text.parquet").write_text("not Parquet at all")
    (tmp_path / "empty").mkdir()
    wrong = parquet(tmp_path / "wrong.parquet", picture=["a"], words=["b"])
    for path, message in (
        (tmp_path / "text.parquet", "Parquet"),
        (tmp_path / "empty", "empty"),
        (wrong, "picture"),
        (parquet(tmp_path / "no_rows.parquet", URL=pa.array([], pa.string()), TEXT=pa.array([], pa.string())), "no_rows"),
    ):
        assert message in complaint(capfd, "ingest", f"--metadata={path}")


@pytest.fixture
def lake(tmp_path):
    """A lake that is complete up to the vectors."""
    made = Lake(str(tmp_path / "lake"))
    vectors, _ = clusters([1, 3])
    write_embeddings(made, [embedding_rows(list("abcd"), np.asarray(vectors))])
    assert cli.main(["deduplicate", f"--lake={made.root}"]) == 0
    return made


def files(folder):
    """Path → time of its last change, but of the lock, which says who came last."""
    found = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}
    return {path: time for path, time in found.items() if path.name != LOCK}


@pytest.mark.parametrize("fault", ["unnamed", "missing", "no index", "no folder"])
def test_a_model_without_an_autoencoder(fault, lake, tmp_path, capfd):
    folder = tmp_path / "model"
    save_random_pipeline(str(folder))
    if fault == "unnamed":
        index = json.loads((folder / "model_index.json").read_text())
        del index["vae"]
        (folder / "model_index.json").write_text(json.dumps(index))
        message = "names no vae in model_index.json"
    elif fault == "missing":
        (folder / "vae").rename(tmp_path / "vae")
        message = "lacks its part(s) vae"
    elif fault == "no index":
        (folder / "model_index.json").unlink()
        message = "has no model_index.json"
    else:
        (folder / "model_index.json").unlink()
        folder, message = tmp_path / "model" / "unet", "has no model_index.json"
    before = files(lake.root)
    capfd.readouterr()
    assert message in complaint(capfd, "generate", f"--lake={lake.root}", f"--model={folder}", "--device=cpu")
    assert files(lake.root) == before


def test_what_is_nested_too_deeply_is_one_line(lake, tmp_path, capfd):
    deep = "[" * 100_000
    for name in ("metadata.jsonl", "model_index.json", "prompts.jsonl", "lake.json"):
        (tmp_path / "deep" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "deep" / name).write_text(deep)
    capfd.readouterr()
    there = f"--lake={lake.root}"
    for words, message in (
        (["ingest", there, "--source=folder", f"--metadata={tmp_path}/deep"], "metadata.jsonl', line 1"),
        (["generate", there, f"--generations={tmp_path}/deep"], "metadata.jsonl', line 1"),
        (["generate", there, f"--model={tmp_path}/deep", "--device=cpu"], "model_index.json' is nested too deep"),
        (["measure", f"--lake={tmp_path}/deep"], "lake.json' is damaged"),
    ):
        assert message in complaint(capfd, *words)
    with pytest.raises(UserError, match=r"line 1.*nested too deep"):
        read_prompt_list(f"{tmp_path}/deep/prompts.jsonl")


def test_a_lake_that_cannot_be_written(tmp_path, no_files, capfd):
    # A file where a folder must be: root, too, cannot write into that, whatever the permissions say.
    (tmp_path / "file").write_text("I am in the way")
    metadata = parquet(tmp_path / "metadata.parquet", URL=["http://127.0.0.1:9/a.png"], TEXT=["a"])
    line = complaint(capfd, "ingest", f"--metadata={metadata}", f"--lake={tmp_path}/file/lake")
    assert "cannot write to the lake" in line and "--lake" in line
    assert (tmp_path / "file").read_text() == "I am in the way"


def test_a_lake_of_another_version(lake, capfd):
    (Path(lake.root) / "lake.json").write_text('{"schema_version": 99}')
    before = files(lake.root)
    capfd.readouterr()
    assert "has schema version 99" in complaint(capfd, "deduplicate", f"--lake={lake.root}")
    assert files(lake.root) == before


def test_what_is_printed_rewrites_no_terminal_and_gives_nothing_away(capsys):
    """Our own lines, those of libraries, and tracebacks: from whichever of them a stranger's text comes."""
    hostile = "\x1b]0;gone\x07 \u202e https://user:hunter2@h/a.png?X-Amz-Signature=abcdef \x9b2J"

    def verb(argv):
        print(f"said\t{hostile}\nand so on")
        warnings.warn(hostile, stacklevel=1)
        logging.getLogger("a library").error("%s", hostile)
        try:
            raise ValueError(hostile)
        except ValueError:
            traceback.print_exc()
        raise UserError(f"wrong: {hostile}\nmend it")

    with pytest.warns(UserWarning):
        assert cli.run_verb(verb, []) == 2
    captured = capsys.readouterr()
    for said in (captured.out, captured.err):
        assert [letter for letter in said if not letter.isprintable() and letter not in "\n\t"] == []
        assert "hunter2" not in said and "abcdef" not in said
    assert captured.out.splitlines()[1] == "and so on" and captured.out.startswith("said\t\\x1b]0;gone\\x07 \\u202e https://")
    assert captured.err.splitlines()[-1].startswith("eidetic: wrong: \\x1b") and captured.err.endswith(" mend it\n")
    assert "ValueError: \\x1b]0;gone" in captured.err


@pytest.mark.parametrize("verb", cli.verbs())
def test_help_says_what_is_read_and_written_with_a_command_to_paste(verb, capsys, no_files):
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "\nreads " in text and "\nwrites " in text
    joined = text.replace("\\\n", " ")  # a long command goes on after a backslash
    commands = [line.strip() for line in joined.splitlines() if line.startswith(f"  eidetic {verb}")]
    assert commands
    for command in commands:
        # What can be pasted is understood: it fails, if at all, for want of the things that it names.
        words = shlex.split(command)
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= {word.strip(",") for word in text.split()}, options


def test_the_overview(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in cli.verbs())


def test_a_verb_is_a_module_that_runs(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def python(*words):
        return subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    done = python("pipelines.ingest", "--help")
    assert done.returncode == 0 and "reads   metadata" in done.stdout, done.stderr
    wrong = python("pipelines.ingest", "--metadata=not_there.parquet")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1, wrong.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "said", "heard"),
    [
        ("pipelines.generate", None, "PASSIVE"),
        ("benchmarks.generate", None, "PASSIVE"),
        ("pipelines.generate", "active", "ACTIVE"),
    ],
)
def test_threads_wait_asleep_unless_the_user_says_otherwise(module, said, heard):
    """Every copy of OpenMP's runtime that is loaded says so: it was told before it was imported."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({} if said is None else {"OMP_WAIT_POLICY": said})
    command = f"import {module}, torch, faiss"
    done = subprocess.run(
        [sys.executable, "-c", command], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(re.findall("OMP_WAIT_POLICY = '(.*)'", done.stderr)) == {heard}


def test_control_c_ends_a_command_that_is_still_being_imported():
    """The module that says where lines go takes seconds to import, and is half there meanwhile."""
    code = """
import os, signal, sys, types
from pipelines import cli
sys.modules["pipelines.execution"] = types.ModuleType("pipelines.execution")
sys.exit(cli.run_verb(lambda words: os.kill(os.getpid(), signal.SIGINT), []))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (130, f"eidetic: {cli.INTERRUPTED}\n")
