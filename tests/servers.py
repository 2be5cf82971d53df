"""Processes that tests start beside themselves: on a free port, waited for, and always ended with all their children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def object_store(bucket: str) -> Iterator[int]:
    """Google's storage, emulated, with one bucket: gs:// leads to it while the block runs, without any look for credentials,
    which would hang. The port that it listens on.
    """
    import gcsfs
    from apache_beam.internal.gcp import auth
    from gcp_storage_emulator.server import create_server

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
            patch.setattr(auth._Credentials, "_credentials", None)
            patch.setattr(auth._Credentials, "_credentials_init", True)
            _looks_for_no_machine_of_google(patch)
            gcsfs.GCSFileSystem.clear_instance_cache()  # of those that know another server
            yield port
    finally:
        server.stop()


def _looks_for_no_machine_of_google(patch: pytest.MonkeyPatch) -> None:
    """Else gcsfs, which asks at each step which kind of bucket it is, waits for seconds for a machine's own credentials."""
    from google.auth.compute_engine import _metadata

    patch.setenv("NO_GCE_CHECK", "true")
    patch.setattr(_metadata, "_NO_GCE_CHECK", True)


@contextlib.contextmanager
def google_storage(bucket: str, program: Path, log: Path) -> Iterator[int]:
    """As ``object_store``, by fake-gcs-server, which heeds conditions. For this process and those that it starts.

    ``program``: where it is installed; ``log``: a file for what it says.
    """
    import gcsfs

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    words = [program, "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory", f"-public-host=127.0.0.1:{port}"]
    with log.open("wb") as output:
        server = subprocess.Popen([*map(str, words)], stdout=output, stderr=subprocess.STDOUT, process_group=0)
    try:
        wait_for_port(server, port, log)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", address)
            _looks_for_no_machine_of_google(patch)
            gcsfs.GCSFileSystem.clear_instance_cache()  # of those that know another server
            gcsfs.GCSFileSystem(token="anon", project="eidetic").mkdir(bucket)
            gcsfs.GCSFileSystem.clear_instance_cache()
            yield port
    finally:
        end(server)


@contextlib.contextmanager
def s3_store(bucket: str, host: str = "127.0.0.1") -> Iterator[int]:
    """S3, emulated, with one bucket: s3:// leads to it while the block runs, by the environment alone, for this process and
    those that it starts. The port that it listens on, of an address of this machine.
    """
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(host, port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in s3_environment(f"http://{host}:{port}").items():
                patch.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket=bucket)
            s3fs.S3FileSystem.clear_instance_cache()  # of those that know another server
            yield port
    finally:
        server.stop()


def s3_environment(address: str) -> dict[str, str]:
    """What a process has to be told so that s3:// leads to a server at this address."""
    return {
        "AWS_ENDPOINT_URL_S3": address,
        "AWS_ACCESS_KEY_ID": "eidetic",
        "AWS_SECRET_ACCESS_KEY": "eidetic",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def end(process: subprocess.Popen) -> None:
    """Kills a process that leads a group of its own, with everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def running(words: Sequence[str], log: Path, folder: Path = ROOT, **environment: str) -> Iterator[subprocess.Popen]:
    """``python words`` in a process group of its own while the block runs; what it says goes to the file ``log``."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        yield process
    finally:
        end(process)


def wait_for_port(process: subprocess.Popen, port: int, log: Path, seconds: float = 90) -> None:
    """Returns when ``process`` listens; an AssertionError with its log where it ends or takes too long."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        assert process.poll() is None, f"the server has ended: {log.read_text()}"
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"the server does not listen: {log.read_text()}")
