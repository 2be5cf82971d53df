"""Installs the engines that the tests run on, and a server that speaks as Google's storage does, into build/engines.

python -m tests.engines.install prism flink spark google_storage

What isn't on this machine (Go, Java, Maven) is named in one line, and the exit code is 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.servers import ROOT

HERE = ROOT / "build" / "engines"
"""Where they are installed."""

JARS = Path("gradle") / "wrapper"
"""Where Beam's job server for an engine lies in the engine's folder. The server sends all jars of its class path with every
job, 150 MB, but for those in a folder of this name (Beam's PipelineResources.isStageable): the workers have them already."""

BEAM = "v2.77.0"
FLINK = "1.19.3"
SPARK = "3.5.3"
FAKE_GCS = "v1.56.1"

PROGRAMS = {"prism": ("go",), "flink": ("java", "mvn", "ip"), "spark": ("java", "mvn", "ip"), "google_storage": ("go",)}
"""Engine → the programs that installing and running it takes."""


def missing(engine: str) -> list[str]:
    """The programs that an engine takes and this machine hasn't."""
    return [program for program in PROGRAMS[engine] if _program(program) is None]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/local/go/bin:/usr/sbin:/sbin")


def is_installed(engine: str) -> bool:
    return (HERE / engine / "installed").exists()


def install(engine: str) -> None:
    """Installs an engine, unless it is there."""
    if is_installed(engine):
        return
    folder = HERE / engine
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ENGINES[engine](folder)
    (folder / "installed").touch()


def prism(folder: Path) -> None:
    """One program, built from Beam's source: folder/prism."""
    _from_source(f"github.com/apache/beam/sdks/v2/go/cmd/prism@{BEAM}", folder)


def google_storage(folder: Path) -> None:
    """One program: folder/fake-gcs-server."""
    _from_source(f"github.com/fsouza/fake-gcs-server@{FAKE_GCS}", folder)


def _from_source(source: str, folder: Path) -> None:
    """Builds a program in Go and puts it into a folder."""
    with tempfile.TemporaryDirectory() as made:
        environment = {**os.environ, "GOPATH": made, "GOFLAGS": "-modcacherw"}
        subprocess.run([_program("go") or "go", "install", source], env=environment, check=True)
        for program in (Path(made) / "bin").iterdir():
            shutil.copy(program, folder)


def flink(folder: Path) -> None:
    """Beam's job server, and Flink itself as Python's package index has it, folder/lib."""
    _jars("flink", folder / JARS)
    with tempfile.TemporaryDirectory() as made:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", made]
        subprocess.run([*pip, f"apache-flink-libraries=={FLINK}"], check=True)
        (archive,) = Path(made).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(made, filter="data")
        (folder / "lib").mkdir()
        for jar in (*Path(made).glob("*/deps/lib/flink-dist-*.jar"), *Path(made).glob("*/deps/lib/log4j-*.jar")):
            shutil.copy(jar, folder / "lib")
        shutil.copy(next(Path(made).glob("*/deps/bin/bash-java-utils.jar")), folder)


def spark(folder: Path) -> None:
    """Beam's job server, and Spark itself as Python's package index has it, folder/home/pyspark."""
    _jars("spark", folder / JARS)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "home"]
    subprocess.run([*pip, f"pyspark=={SPARK}"], check=True)


def _jars(engine: str, folder: Path) -> None:
    pom = ROOT / "deploy" / engine / "pom.xml"
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={folder}", "-DincludeScope=runtime"]
    subprocess.run([_program("mvn") or "mvn", "--quiet", "--file", pom, *goal], check=True)


ENGINES: dict[str, Callable[[Path], None]] = {"prism": prism, "flink": flink, "spark": spark, "google_storage": google_storage}


def main() -> int:
    code = 0
    for engine in sys.argv[1:] or ENGINES:
        if lacking := missing(engine):
            print(f"{engine}: {', '.join(lacking)} not on this machine; its tests are skipped", file=sys.stderr)
            code = 1
        else:
            install(engine)
    return code


if __name__ == "__main__":
    sys.exit(main())
