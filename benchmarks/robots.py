"""What robots.txt costs: ingest with it and without, of pictures on a few hosts, and of pictures with a host each.

    python -m benchmarks.robots

The hosts are addresses of loopback (127.0.0.0/8, all of which Linux answers), behind one server that takes 20 ms for an
answer, as servers on the web do, and has the robots.txt of a WordPress with its shop. Of each kind the faster of two turns
counts.
"""

from __future__ import annotations

import http.server
import multiprocessing
import tempfile
import time
from pathlib import Path

from benchmarks.results import Row, write

PICTURES = 2_000
DELAY = 0.02
TURNS = 2
RULES = b"User-agent: *\nDisallow: /wp-admin/\nAllow: /wp-admin/admin-ajax.php\nDisallow: /*add-to-cart=*\nDisallow: /cart/$\n"


def serve(ports: multiprocessing.SimpleQueue) -> None:
    """A server on all addresses of this machine; puts its port there."""
    from tests.web import picture

    content = picture(0, 256, 256)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(DELAY)
            body = RULES if self.path == "/robots.txt" else content
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    http.server.ThreadingHTTPServer.request_queue_size = 128
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    ports.put(server.server_address[1])
    server.serve_forever()


def ingested(folder: Path, port: int, pictures: int, hosts: int, honour_robots: bool) -> float:
    """Seconds of an ingest of so many pictures on so many hosts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.execution import Execution
    from pipelines.ingest import STAGE, IngestOptions
    from pipelines.options import Parsed
    from transforms.data.download import ROBOTS
    from transforms.store.lake import Lake

    folder.mkdir()
    names = [f"127.1.{number % hosts // 250}.{1 + number % hosts % 250}" for number in range(pictures)]
    urls = [f"http://{name}:{port}/{number}.png" for number, name in enumerate(names)]
    pq.write_table(pa.table({"URL": urls, "TEXT": ["a caption"] * pictures}), folder / "metadata.parquet")
    options = IngestOptions(
        metadata=str(folder / "metadata.parquet"), image_size=256, allow_private_hosts=True, honour_robots=honour_robots
    )
    ROBOTS.clear()
    begun = time.perf_counter()
    manifest = STAGE.run(Execution(Lake(str(folder / "lake")), []), Parsed.of(options))
    seconds = time.perf_counter() - begun
    assert manifest.rows["images"] == pictures
    return seconds


def main() -> None:
    ports: multiprocessing.SimpleQueue = multiprocessing.SimpleQueue()
    server = multiprocessing.Process(target=serve, args=(ports,), daemon=True)
    server.start()
    port = ports.get()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ingested(folder / "first", port, 32, 1, True)  # which imports
        for hosts, goal in ((20, 1.05), (PICTURES, 1.5)):
            found: dict[bool, list[float]] = {True: [], False: []}
            for turn in range(TURNS):
                for honour in (False, True):
                    found[honour].append(ingested(folder / f"{hosts}-{turn}-{honour}", port, PICTURES, hosts, honour))
            rows.append(
                Row(
                    f"ingest of {PICTURES:,} pictures on {hosts:,} hosts, robots.txt honoured",
                    min(found[True]),
                    "s",
                    goal=goal,
                    peer="--no_honour_robots",
                    peer_value=min(found[False]),
                )
            )
    server.terminate()
    write("robots", rows)


if __name__ == "__main__":
    main()
