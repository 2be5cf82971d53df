"""Engines that run here for a test: Prism, a cluster of Flink, a cluster of Spark; each with pools of our workers.

The workers of the clusters run on machines of their own (``network``), beside a task manager or a worker of Spark's, and see
nothing of the launcher's disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.engines.install import HERE, JARS
from tests.engines.network import HOST, Machine, network
from tests.servers import ROOT, end, free_port, wait_for_port

POOL = 50_000
"""Port of each machine's pool: an address of its own."""

SECONDS = 120.0
"""So long an engine may take to start."""

OPENED = ("java.lang", "java.net", "java.io", "java.nio", "java.lang.reflect", "java.lang.invoke", "java.text", "java.time",
          "java.util", "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks", "sun.nio.ch",
          "sun.nio.cs", "sun.security.action", "sun.util.calendar")  # fmt: skip
"""Java's own packages that Flink 1.19 and Spark 3.5 look into, which Java 17 must be told."""

JAVA = [
    "java",
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED),
    "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
]


FLINKS = ("flink-", "slf4j-")
"""How the jars begin that Flink itself brings: as deploy/flink/Dockerfile leaves them out."""


@dataclasses.dataclass
class Engine:
    """An engine that runs.

    Attributes:
        name: prism, flink or spark.
        words: Beam's options that lead to it.
        workers: what does the work, one a machine, to be killed; ``start_worker`` starts another one in its place.
        server: what takes the jobs, to be killed; ``start_server`` starts another one in its place.
    """

    name: str
    words: list[str]
    workers: list[subprocess.Popen] = dataclasses.field(default_factory=list)
    start_worker: Callable[[int], subprocess.Popen] | None = None
    server: subprocess.Popen | None = None
    start_server: Callable[[], subprocess.Popen] | None = None

    def lose_worker(self, number: int = 0) -> None:
        """Kills one of those that do the work, and starts another."""
        assert self.start_worker is not None
        end(self.workers[number])
        self.workers[number] = self.start_worker(number)

    def lose_server(self) -> None:
        """Kills what takes the jobs, which is away until ``start_server``."""
        assert self.server is not None
        end(self.server)


class Processes:
    """What was started for an engine; all of it ends with the block."""

    def __init__(self, folder: Path):
        self.folder, self._running = folder, contextlib.ExitStack()

    def start(self, name: str, words: Sequence[str | Path], **environment: str) -> subprocess.Popen:
        """Starts a program in a process group of its own; what it says goes to folder/name.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in words],
                cwd=self.folder,
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self._running.callback(end, process)
        return process

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()


def _listening(processes: Processes, name: str, words: Sequence[str | Path], port: int, **environment: str) -> subprocess.Popen:
    """A program that has begun to listen."""
    process = processes.start(name, words, **environment)
    wait_for_port(process, port, processes.log(name))
    return process


def workers_environment(folder: Path, wheel: Path, name: str) -> dict[str, str]:
    """What a pool of workers is told: our code from the wheel, a place of its own for copies of models, one thread."""
    cache = folder / name
    return {"PYTHONPATH": str(wheel), "PYTHONSAFEPATH": "1", "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}


def external(job_port: int, pool: int, host: str = "localhost") -> list[str]:
    return [
        "--runner=PortableRunner",
        f"--job_endpoint={host}:{job_port}",
        "--environment_type=EXTERNAL",
        f"--environment_config=localhost:{pool}",
    ]


@contextlib.contextmanager
def prism(folder: Path, wheel: Path, hidden: Path) -> Iterator[Engine]:
    """Prism, which holds all shuffles in one process, with one pool."""
    jobs, pool = free_port(), free_port()
    with Processes(folder) as processes:
        words = ["-job_port", str(jobs), "-web_port", str(free_port()), "-idle_shutdown_timeout", "-1s"]

        def start() -> subprocess.Popen:
            return _listening(processes, "prism", [HERE / "prism" / "prism", *words], jobs)

        workers = processes.start(
            "workers",
            [sys.executable, "-m", "pipelines.workers", f"--port={pool}"],
            **workers_environment(folder, wheel, "workers"),
        )
        wait_for_port(workers, pool, processes.log("workers"))
        yield Engine("prism", external(jobs, pool), server=start(), start_server=start)


@contextlib.contextmanager
def _machines(processes: Processes, wheel: Path, hidden: Path) -> Iterator[list[Machine]]:
    """Two machines with a pool of workers each."""
    with network(2) as machines:
        for machine in machines:
            pool = [sys.executable, "-m", "pipelines.workers", f"--port={POOL}"]
            name = f"workers-{machine.name}"
            processes.start(
                name, machine.words(pool, hidden), **workers_environment(processes.folder, wheel, f"cache-{machine.name}")
            )
        for machine in machines:
            _wait_for_pool(machine, processes.log(f"workers-{machine.name}"))
        yield machines


def _wait_for_pool(machine: Machine, log: Path) -> None:
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        if "for the engine at" in log.read_text():
            return
        time.sleep(0.2)
    raise AssertionError(f"the pool of {machine.name} does not listen: {log.read_text()}")


@contextlib.contextmanager
def flink(folder: Path, wheel: Path, hidden: Path) -> Iterator[Engine]:
    """A job manager here and a task manager on each of two machines; Beam's job server here."""
    home = HERE / "flink"
    jobs, artifacts, expansion, rest, rpc, blobs = (free_port() for _ in range(6))
    configuration = folder / "conf"
    configuration.mkdir()
    (configuration / "config.yaml").write_text((ROOT / "deploy" / "flink" / "config.yaml").read_text())
    (configuration / "log4j.properties").write_text(LOG4J)
    options = {
        "jobmanager.rpc.address": HOST,
        "jobmanager.rpc.port": rpc,
        "rest.port": rest,
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "blob.server.port": blobs,
        "jobmanager.bind-host": "0.0.0.0",
    }
    defined = [f"-D{name}={value}" for name, value in options.items()]
    logging = f"-Dlog4j.configurationFile=file:{configuration}/log4j.properties"

    def java(kind: str, main: str, *words: str) -> list[str]:
        flags, dynamic = _memory(home, configuration, kind)
        return [
            *JAVA,
            *flags,
            logging,
            "-cp",
            ":".join([f"{home}/lib/*", *(str(jar) for jar in (home / JARS).glob("*.jar") if not jar.name.startswith(FLINKS))]),
            main,
            "--configDir",
            str(configuration),
            *defined,
            *words,
            *dynamic,
        ]

    with Processes(folder) as processes, _machines(processes, wheel, hidden) as machines:
        manager = processes.start(
            "job_manager", java("JM", "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint")
        )

        def task_manager(number: int) -> subprocess.Popen:
            machine = machines[number]
            words = [f"-Dtaskmanager.resource-id={machine.name}-{time.monotonic_ns()}", f"-Dtaskmanager.host={machine.address}",
                     f"-Dtaskmanager.bind-host={machine.address}"]  # fmt: skip
            command = java("TM", "org.apache.flink.runtime.taskexecutor.TaskManagerRunner", *words)
            return processes.start(f"task_manager-{machine.name}", machine.words(command, hidden))

        workers = [task_manager(number) for number in range(len(machines))]
        _wait_for(lambda: _json(f"http://{HOST}:{rest}/overview")["taskmanagers"] == len(machines), processes, "job_manager")
        command = [
            *JAVA, "-cp", f"{home / JARS}/*", "org.apache.beam.runners.flink.FlinkJobServerDriver", "--job-host=127.0.0.1",
            f"--job-port={jobs}", f"--artifact-port={artifacts}", f"--expansion-port={expansion}",
            f"--flink-master={HOST}:{rest}", f"--artifacts-dir={folder}/artifacts",
        ]  # fmt: skip

        def job_server() -> subprocess.Popen:
            return _listening(processes, "job_server", command, jobs)

        server = job_server()
        assert manager.poll() is None
        yield Engine("flink", [*external(jobs, POOL), "--parallelism=2"], workers, task_manager, server, job_server)


LOG4J = """rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss,SSS} %-5p %c %x - %m%n
"""


def _memory(home: Path, configuration: Path, kind: str) -> tuple[list[str], list[str]]:
    """What Flink's own script tells Java of memory: flags of the machine, and options of the program."""
    classes = f"{home}/bash-java-utils.jar:{home}/lib/*"
    words = [
        "org.apache.flink.runtime.util.bash.BashJavaUtils",
        f"GET_{kind}_RESOURCE_PARAMS",
        "--configDir",
        str(configuration),
    ]
    said = subprocess.run(["java", "-cp", classes, *words], capture_output=True, text=True, check=True).stdout
    mark = "BASH_JAVA_UTILS_EXEC_RESULT:"
    flags, options = (line.removeprefix(mark) for line in said.splitlines() if line.startswith(mark))
    return flags.split(), options.split()


@contextlib.contextmanager
def spark(folder: Path, wheel: Path, hidden: Path) -> Iterator[Engine]:
    """A master here and a worker on each of two machines; Beam's job server here, which is the driver."""
    home = HERE / "spark"
    jobs, artifacts, expansion, port, web = (free_port() for _ in range(5))
    spark_home = home / "home" / "pyspark"
    master_url = f"spark://{HOST}:{port}"
    command = str(spark_home / "bin" / "spark-class")
    environment = {"SPARK_HOME": str(spark_home), "SPARK_NO_DAEMONIZE": "1"}
    with Processes(folder) as processes, _machines(processes, wheel, hidden) as machines:
        words = ["--host", HOST, "--port", str(port), "--webui-port", str(web)]
        master = processes.start(
            "master", [command, "org.apache.spark.deploy.master.Master", *words], SPARK_LOCAL_IP=HOST, **environment
        )

        def worker(number: int) -> subprocess.Popen:
            machine = machines[number]
            words = ["--host", machine.address, "--cores", "1", "--memory", "1500m", "-d", str(folder / f"{machine.name}-work")]
            start = machine.words([command, "org.apache.spark.deploy.worker.Worker", *words, master_url], hidden)
            return processes.start(f"worker-{machine.name}", start, SPARK_LOCAL_IP=machine.address, **environment)

        workers = [worker(number) for number in range(len(machines))]
        _wait_for(lambda: processes.log("master").read_text().count("Registering worker") >= len(machines), processes, "master")
        driver = [
            *JAVA, "-Dbeam.spark.test.reuseSparkContext=true", f"-Dspark.driver.host={HOST}", "-Dspark.executor.memory=1g",
            f"-Dspark.executor.extraClassPath={home / JARS}/*", "-cp", f"{home / JARS}/*",
            "org.apache.beam.runners.spark.SparkJobServerDriver", "--job-host=127.0.0.1", f"--job-port={jobs}",
            f"--artifact-port={artifacts}", f"--expansion-port={expansion}", f"--spark-master-url={master_url}",
            f"--artifacts-dir={folder}/artifacts",
        ]  # fmt: skip

        def job_server() -> subprocess.Popen:
            return _listening(processes, "job_server", driver, jobs, SPARK_LOCAL_IP=HOST)

        server = job_server()
        assert master.poll() is None
        yield Engine("spark", external(jobs, POOL), workers, worker, server, job_server)


def _wait_for(ready: Callable[[], bool], processes: Processes, log: str) -> None:
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        with contextlib.suppress(OSError, ValueError):
            if ready():
                return
        time.sleep(0.5)
    raise AssertionError(f"the cluster does not start: {processes.log(log).read_text()[-3000:]}")


def _json(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


ENGINES: dict[str, Callable[..., contextlib.AbstractContextManager[Engine]]] = {"prism": prism, "flink": flink, "spark": spark}
