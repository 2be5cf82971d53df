"""What ingest and embed take, for the hours of ``eidetic audit --plan``; the other stages' rates are of other benchmarks.

    python -m benchmarks.rates

Pictures of 256 × 256, about 20 kB each, from a web server on loopback, and ViT-B-32 with random weights on the CPU. The verbs
are run by the command line, and the seconds are those of their manifests, by which a user's own rates are told too. There is no
peer: a second, smaller size stands in its place, and the goals keep what was measured from growing unseen.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.results import Row, write
from demo.serve import serving
from tests.servers import free_port
from transforms.store.lake import Lake

CLIP = "ViT-B-32"
DOWNLOADS, EMBEDDED = (500, 3_000), (32, 160)


def make_pictures(folder: Path, count: int) -> None:
    """JPEGs that show smooth random fields with some grain."""
    folder.mkdir(parents=True)
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize(
            (256, 256), Image.Resampling.BICUBIC
        )
        grain = random.integers(-12, 13, (256, 256, 1))
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpeg", quality=85)


def write_clip(folder: Path) -> None:
    """A model of this shape in open_clip's own format."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    config = {"model_cfg": open_clip.get_model_config(CLIP), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.create_model(CLIP, pretrained=None)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")


def seconds(folder: Path, port: int, rows: int, clip: Path | None) -> dict[str, float]:
    """Stage → seconds of its manifest, for the first ``rows`` pictures, in a lake of its own."""
    place = folder / f"lake{rows}"
    urls = [f"http://127.0.0.1:{port}/pictures/{number}.jpeg" for number in range(rows)]
    pq.write_table(pa.table({"URL": urls, "TEXT": [f"picture {number}" for number in range(rows)]}), folder / f"{rows}.parquet")
    verbs = [["ingest", f"--metadata={folder}/{rows}.parquet", "--allow_private_hosts", "--image_size=256"]]
    if clip is not None:
        verbs.append(["embed", f"--clip_model={clip}", "--device=cpu"])
    for words in verbs:
        subprocess.run([sys.executable, "-m", "pipelines.cli", *words, f"--lake={place}"], check=True)
    lake = Lake(str(place))
    assert lake.latest("ingest").rows["images"] == rows
    return {words[0]: lake.latest(words[0]).facts["seconds"] for words in verbs}


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, port = Path(place), free_port()
        make_pictures(folder / "site" / "pictures", max(DOWNLOADS))
        write_clip(folder / "clip")
        with serving(folder / "site", port):
            ingest = [seconds(folder, port, rows, None)["ingest"] for rows in DOWNLOADS]
            embed = [seconds(folder, port, rows, folder / "clip")["embed"] for rows in EMBEDDED]
    write("rates", [
        Row(f"ingest of {DOWNLOADS[1]:,} pictures of 256 × 256 from loopback", ingest[1], "s", 8,
            f"of {DOWNLOADS[0]:,}", ingest[0]),
        Row(f"embed of {EMBEDDED[1]:,} pictures by {CLIP} on the CPU", embed[1], "s", 6, f"of {EMBEDDED[0]:,}", embed[0]),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
