"""What is known of engines: which may run the pipelines, what they need, and what their errors mean."""

from __future__ import annotations

import re
import socket

from transforms.errors import UserError

SECONDS = 4.0
"""So long a job server may take to answer a call. Beam's client would wait for ever for one that isn't there."""

REFUSED = {
    "daskrunner": "it loses rows (what a step gives at the end of a bundle is dropped, and only the last of several outputs is "
    "written) and says that all went well"
}
"""Runner, in small letters, that must not be used → why."""

NEEDS = {
    "flinkrunner": "Java, and Beam's job server, which is downloaded at its first run (or named with --flink_job_server_jar)",
    "sparkrunner": "Java, and Beam's job server, which is downloaded at its first run (or named with --spark_job_server_jar)",
    "prismrunner": "Prism, which is downloaded at its first run (or named with --prism_location)",
    "portablerunner": "a job service that is running, by --job_endpoint HOST:PORT",
    "dataflowrunner": "apache-beam[gcp], credentials, and --project, --region and --temp_location",
}
"""Runner, in small letters, whose ``run`` only hands the job over → what that takes."""

_MEANINGS = (
    (
        r"No module named '?(pipelines|transforms|sql)\b",
        "a worker hasn't eidetic installed, the one whose pool is {workers} beside the engine's own worker; install there the "
        "version that runs here (pip install eidetic-….whl), and start its pool with 'eidetic workers'",
    ),
    (
        r"NoResourceAvailableException|Could not acquire the minimum required resources",
        "the cluster has no free slot for the job; start more task managers, wait for other jobs, or lower --parallelism",
    ),
    (
        r"(?:failed to connect|Connection refused|UNAVAILABLE)[^\n]{0,200}?:(\d+)",
        "a worker or the engine could not be reached ({found}); see that a pool of workers runs beside each of the engine's "
        "workers (eidetic workers) and that --environment_config, {workers}, names it",
    ),
)
"""What stands in an engine's error → what it means, and what to do."""


def check(runner: str | None, job_endpoint: str | None) -> None:
    """UserError for a runner that must not be used, and for one that isn't there: in seconds, before anything has begun.

    Args:
        runner: its name, as ``--runner`` has it.
        job_endpoint: HOST:PORT of the job server, or None.
    """
    name = (runner or "").rsplit(".", 1)[-1].lower()
    if name in REFUSED:
        raise UserError(f"--runner is {runner!r}, which must not be used: {REFUSED[name]}; use Flink, Spark or Prism")
    if not job_endpoint or job_endpoint == "embed":
        return
    host, _, port = job_endpoint.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--job_endpoint is {job_endpoint!r}, expected HOST:PORT of a job server")
    try:
        with socket.create_connection((host, int(port)), timeout=SECONDS):
            pass
    except OSError as error:
        raise UserError(
            f"there is no job server at --job_endpoint {job_endpoint} ({error.strerror or error}); start it (see "
            "docs/engines.md), or mend the address"
        ) from error


def lost(job_endpoint: str | None, error: Exception) -> str:
    """What to say where the job server went away while its job ran, in one line.

    Args:
        job_endpoint: HOST:PORT of it, as it was given; None where Beam started it.
        error: of the connection (``grpc.RpcError``).
    """
    reason = " ".join((getattr(error, "details", lambda: None)() or type(error).__name__).split())[:200]
    return (
        f"the job server{f' at --job_endpoint {job_endpoint}' if job_endpoint else ''} went away while its job ran ({reason}); "
        "end what is left of the job at the engine, start the server, and run the same command again: it goes on from there"
    )


def meaning(text: str, workers: str | None) -> str | None:
    """What an engine's error means for the user, in one line; None where nothing is known of it.

    Args:
        text: of the error, tracebacks of other processes and all.
        workers: where the pool of workers is, as ``--environment_config`` has it; None where it isn't named.
    """
    for pattern, said in _MEANINGS:
        if (found := re.search(pattern, text)) is not None:
            return said.format(found=" ".join(found[0].split())[:200], workers=workers or "not named")
    return None
