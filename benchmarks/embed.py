"""``eidetic embed`` beside a plain loop over open_clip, and beside clip-retrieval's inference: the same model and pictures.

    python -m benchmarks.embed

10,000 JPEGs of 256 × 256 and the embedded CLIP. All are timed as whole commands, start-up and all; turn and turn about, and of
each the best counts. Ours must give the loop's vectors. The loop is what one writes first: open, preprocess and encode batch
after batch; clip-retrieval has a process a core that prepares. Eidetic's pictures lie in the lake, the peers' in files.

clip-retrieval lives in a virtual environment of its own, since it pins other versions; without it its row is left out:

    python3.11 -m venv /tmp/clip_retrieval_venv
    /tmp/clip_retrieval_venv/bin/pip install clip-retrieval==2.45.0 'setuptools<81' torch==2.14.1 torchvision==0.29.1
    export EIDETIC_CLIP_RETRIEVAL_PYTHON=/tmp/clip_retrieval_venv/bin/python    # looked at where it isn't set, too
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.ingest import timed
from benchmarks.rates import make_pictures
from benchmarks.results import Row, write
from transforms.store.lake import Lake

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "demo" / "models" / "clip"
CLIP_RETRIEVAL_PYTHON = Path(os.environ.get("EIDETIC_CLIP_RETRIEVAL_PYTHON", "/tmp/clip_retrieval_venv/bin/python"))

PICTURES = 10_000
BATCH = 64
TURNS = 2

LOOP = f"""
import sys
from pathlib import Path
import numpy as np, open_clip, torch
from PIL import Image
model, preprocess = open_clip.create_model_from_pretrained("local-dir:{CLIP}")
model.eval()
files, found = sorted(Path(sys.argv[1]).iterdir()), []
with torch.inference_mode():
    for start in range(0, len(files), {BATCH}):
        batch = torch.stack([preprocess(Image.open(file)) for file in files[start : start + {BATCH}]])
        vectors = model.encode_image(batch)
        found.append((vectors / vectors.norm(dim=-1, keepdim=True)).numpy())
np.save(sys.argv[2], np.concatenate(found))
"""
"""FOLDER FILE.npy"""

PEERS = f"""
import sys
import open_clip
from clip_retrieval import clip_inference
open_clip.add_model_config(sys.argv[3])
clip_inference(input_dataset=sys.argv[1], output_folder=sys.argv[2], batch_size={BATCH}, num_prepro_workers={os.cpu_count()},
               enable_text=False, clip_model="open_clip:embedded/{CLIP}/open_clip_model.safetensors", use_jit=False)
"""
"""FOLDER FOLDER CONFIGURATION"""


def eidetic(*words: str | Path) -> float:
    return timed([sys.executable, "-m", "pipelines.cli", *words])


def fill(folder: Path) -> Lake:
    """The pictures in folder/files, and in a lake, byte for byte."""
    make_pictures(folder / "made", PICTURES)
    files = sorted((folder / "made").iterdir())
    table = pa.table({"image": [file.read_bytes() for file in files], "text": [file.stem for file in files]})
    shutil.rmtree(folder / "made")
    pq.write_table(table, folder / "pictures.parquet", row_group_size=500)
    lake = Lake(str(folder / "lake"))
    eidetic("ingest", f"--lake={lake.root}", "--source=parquet", f"--metadata={folder}/pictures.parquet", "--image_size=256",
            "--resize_mode=no", f"--processes={os.cpu_count()}", "--rows_per_part=2500")  # fmt: skip
    rows = lake.read("images", lake.latest("ingest").snapshot_id, ["sample_id", "image"])
    (folder / "files").mkdir()
    for sample, image in zip(rows["sample_id"].to_pylist(), rows["image"].to_pylist(), strict=True):
        (folder / "files" / f"{sample}.jpg").write_bytes(image)
    return lake


def ours(folder: Path, turn: int) -> tuple[float, np.ndarray]:
    """Seconds, and vectors by name of file."""
    lake = Lake(str(folder / f"lake{turn}"))
    shutil.copytree(folder / "lake", lake.root)
    model = [f"--clip_model={CLIP}", "--clip_pretrained=", f"--clip_batch_size={BATCH}", "--device=cpu"]
    seconds = eidetic("embed", f"--lake={lake.root}", *model)
    rows = lake.read("embeddings", lake.latest("embed").snapshot_id, ["sample_id", "vector"]).sort_by("sample_id")
    return seconds, np.stack(rows["vector"].to_numpy())


def main() -> None:
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fill(folder)
        (folder / "embedded.json").write_text(json.dumps(json.loads((CLIP / "open_clip_config.json").read_text())["model_cfg"]))
        for turn in range(TURNS):
            took = {"loop": timed([sys.executable, "-c", LOOP, folder / "files", folder / "loop.npy"])}
            took["ours"], vectors = ours(folder, turn)
            if CLIP_RETRIEVAL_PYTHON.exists():
                places = [folder / "files", folder / f"theirs{turn}", folder / "embedded.json"]
                took["clip-retrieval"] = timed([CLIP_RETRIEVAL_PYTHON, "-c", PEERS, *places])
            cosines = (vectors * np.load(folder / "loop.npy")).sum(axis=1)
            if len(vectors) != PICTURES or cosines.min() < 1 - 1e-5:
                sys.exit(f"{len(vectors)} vectors, the least cosine with the loop's {cosines.min():.6f}: the times say nothing")
            for name, seconds in took.items():
                print(f"{name}: {seconds:.1f} s", file=sys.stderr)
                best[name] = min(best.get(name, np.inf), seconds)
    what = f"embed of {PICTURES:,} pictures of 256 × 256 by the embedded CLIP"
    rows = [Row(what, best["ours"], "s", 1 / 0.95, "a plain loop over open_clip", best["loop"])]
    if "clip-retrieval" in best:
        rows.append(Row(what, best["ours"], "s", 1.0, "clip-retrieval's inference", best["clip-retrieval"]))
    else:
        print(f"no clip-retrieval at {CLIP_RETRIEVAL_PYTHON}: its row is left out", file=sys.stderr)
    write("embed", rows)


if __name__ == "__main__":
    main()
