"""Serves Python workers to an engine: one pool beside each Flink task manager, each Spark worker, or Prism.

reads   nothing
writes  nothing; runs until it is ended

What the pipelines import (PyTorch, diffusers, open_clip) is imported once, and each job's workers are forks of that. The pool's
environment needs eidetic, credentials for the lake (AWS_…, GOOGLE_APPLICATION_CREDENTIALS), and a disk for copies of models.
Two task managers must not share a pool: each would end the other's workers.

  eidetic workers --port 50000
  eidetic audit --lake s3://bucket/lake --metadata s3://bucket/metadata --model s3://bucket/model --runner PortableRunner \
      --job_endpoint localhost:8099 --environment_type EXTERNAL --environment_config localhost:50000 --parallelism 2
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from pipelines.cli import run_verb
from pipelines.execution import quiet_beam, say
from pipelines.options import CommonOptions, Options, option, parse
from transforms.errors import UserError

IMPORTED = (
    "apache_beam.runners.worker.sdk_worker", "torch", "diffusers", "transformers", "open_clip", "faiss", "pyarrow.parquet",
    "duckdb", "transforms.data.embedding", "transforms.attacks.attempts", "transforms.matching.comparison",
)  # fmt: skip
"""What is imported once for all workers."""

PATIENCE = 10.0
"""Seconds in which a worker that is told to end may do so by itself."""


@dataclasses.dataclass(frozen=True)
class WorkersOptions(Options):
    """Workers: where the engine asks for them."""

    port: int = option(
        50_000, "port of this machine, and no other, that the engine's worker asks on: --environment_config localhost:PORT",
        least=1, most=65_535,
    )  # fmt: skip


class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Beam's protocol of a worker pool: starts a process for each worker that an engine asks for, and ends it.

    As Beam's own (``worker_pool_main``), but that a worker is a fork of a process that has imported all.
    """

    def __init__(self) -> None:
        # Forks of a process that has no threads, which one that serves has.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(IMPORTED))
        self._workers: dict[str, BaseProcess] = {}
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Imports what the workers will need: the first job need not wait for it."""
        first = self._context.Process(target=_nothing)
        first.start()
        first.join()

    def StartWorker(
        self, start_worker_request: beam_fn_api_pb2.StartWorkerRequest, unused_context: object
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        try:
            worker = self._context.Process(
                target=_work, args=(start_worker_request.control_endpoint.url, start_worker_request.worker_id)
            )
            worker.start()
        except Exception:  # whatever it is, the engine's log is where it is looked for
            return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
        with self._lock:
            before = self._workers.pop(start_worker_request.worker_id, None)
            self._workers[start_worker_request.worker_id] = worker
        if before is not None:  # the engine's worker died, and another has its name
            _end(before)
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(
        self, stop_worker_request: beam_fn_api_pb2.StopWorkerRequest, unused_context: object
    ) -> beam_fn_api_pb2.StopWorkerResponse:
        with self._lock:
            worker = self._workers.pop(stop_worker_request.worker_id, None)
        if worker is not None:
            _end(worker)
        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        with self._lock:
            workers = list(self._workers.values())
            self._workers.clear()
        for worker in workers:
            _end(worker)


def _end(worker: BaseProcess) -> None:
    worker.terminate()
    worker.join(PATIENCE)
    if worker.is_alive():
        worker.kill()
        worker.join()


def _nothing() -> None:
    """The work of the first process."""


def _work(control: str, worker_id: str) -> None:
    """One worker, until the engine ends it."""
    from apache_beam.runners.worker.sdk_worker import SdkHarness

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    quiet_beam(verbose=False)
    SdkHarness(control, worker_id=worker_id, state_cache_size=0, data_buffer_time_limit_ms=-1).run()


def main(argv: Sequence[str] | None = None) -> int:
    description = (__doc__ or "").rstrip()
    words = sys.argv[1:] if argv is None else argv
    options: WorkersOptions = parse(words, "workers", description, [CommonOptions, WorkersOptions])[WorkersOptions]
    pool = Pool()
    # Beam's workers look for signs of life of their own.
    server = grpc.server(
        ThreadPoolExecutor(), options=[("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0)]
    )
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        server.add_insecure_port(f"localhost:{options.port}")
    except RuntimeError as error:
        raise UserError(f"--port {options.port} can't be served ({error}); name another, or end what serves it") from error
    pool.warm_up()
    server.start()
    say(f"workers      for the engine at localhost:{options.port}; Control-C ends them")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        ended.wait()
    finally:
        server.stop(0)
        pool.close()
    return 0


if __name__ == "__main__":
    sys.exit(run_verb(main, sys.argv[1:]))
