"""``eidetic ingest`` beside img2dataset's own command line: the same pictures from the same server, with the same settings.

    python -m benchmarks.ingest

10,000 JPEGs of 256 × 256 from nginx on loopback (Debian's nginx-light), stored as JPEG. Both have a process a core and as many
threads, and both are timed as whole commands, start-up and all; turn and turn about, and of each the best counts. What they
have stored must be the same, byte for byte. ``eidetic`` does more: decoding is confined, addresses and robots.txt are heeded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.rates import make_pictures
from benchmarks.results import Row, write
from tests.servers import end, free_port
from transforms.store.files import walk
from transforms.store.lake import Lake

PICTURES = 10_000
THREADS = 32
TURNS = 5
PROCESSES = os.cpu_count() or 1

CONFIGURATION = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; keepalive_timeout 65; types {{ image/jpeg jpeg; }}
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port} backlog=4096; root {site}; }}
}}
"""


@contextlib.contextmanager
def nginx(site: Path, port: int) -> Iterator[None]:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        sys.exit("this benchmark needs nginx: apt-get install nginx-light")
    with tempfile.TemporaryDirectory() as folder:
        # Its workers are another user's.
        os.chmod(folder, 0o755)
        (Path(folder) / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, site=site, port=port))
        server = subprocess.Popen([program, "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log"], process_group=0)
        try:
            time.sleep(1)
            yield
        finally:
            end(server)


def timed(words: Sequence[str | Path]) -> float:
    """Seconds of a whole command."""
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    begun = time.monotonic()
    subprocess.run([*map(str, words)], check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def ours(metadata: Path, folder: Path) -> tuple[float, dict[str, bytes]]:
    """Seconds, and url → the picture as it is stored."""
    seconds = timed([sys.executable, "-m", "pipelines.cli", "ingest", f"--lake={folder}", f"--metadata={metadata}",
                     "--allow_private_hosts", "--image_size=256", f"--threads={THREADS}", f"--processes={PROCESSES}",
                     f"--rows_per_part={PICTURES // PROCESSES // 2}"])  # fmt: skip
    lake = Lake(str(folder))
    snapshot = lake.latest("ingest").snapshot_id
    urls = {row["sample_id"]: row["url"] for row in lake.read("samples", snapshot, ["sample_id", "url"]).to_pylist()}
    images = lake.read("images", snapshot, ["sample_id", "image"]).to_pylist()
    return seconds, {urls[row["sample_id"]]: row["image"] for row in images}


def theirs(metadata: Path, folder: Path) -> tuple[float, dict[str, bytes]]:
    seconds = timed([sys.executable, "-m", "img2dataset.main", f"--url_list={metadata}", "--input_format=parquet",
                     "--url_col=URL", "--caption_col=TEXT", "--output_format=parquet", f"--output_folder={folder}",
                     "--image_size=256", "--resize_mode=keep_ratio", "--resize_only_if_bigger=True", "--encode_quality=95",
                     "--compute_hash=sha256",
                     f"--thread_count={THREADS}", f"--processes_count={PROCESSES}", "--enable_wandb=False",
                     f"--number_sample_per_shard={PICTURES // PROCESSES // 2}"])  # fmt: skip
    tables = [pq.read_table(one.path, columns=["url", "jpg"]) for one in walk(str(folder)) if one.path.endswith(".parquet")]
    return seconds, {row["url"]: row["jpg"] for row in pa.concat_tables(tables).to_pylist()}


def main() -> None:
    best = {"ours": float("inf"), "theirs": float("inf")}
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        folder, port = Path(place), free_port()
        make_pictures(folder / "site" / "pictures", PICTURES)
        urls = [f"http://127.0.0.1:{port}/pictures/{number}.jpeg" for number in range(PICTURES)]
        metadata = folder / "metadata.parquet"
        pq.write_table(pa.table({"URL": urls, "TEXT": [f"picture {number}" for number in range(PICTURES)]}), metadata)
        with nginx(folder / "site", port):
            for turn in range(TURNS):
                stored = {}
                for name, work in (("theirs", theirs), ("ours", ours)):
                    seconds, stored[name] = work(metadata, folder / f"{name}{turn}")
                    best[name] = min(best[name], seconds)
                    print(f"{name}: {seconds:.1f} s, {PICTURES / seconds:.0f} pictures a second", file=sys.stderr)
                if stored["ours"] != stored["theirs"] or len(stored["ours"]) != PICTURES:
                    sys.exit("what was stored differs: the times say nothing")
    write("ingest", [
        Row(f"ingest of {PICTURES:,} pictures from nginx, {PROCESSES} processes", best["ours"], "s", 1.0,
            "img2dataset's command line", best["theirs"]),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
