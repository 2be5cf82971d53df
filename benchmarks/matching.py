"""Matching and lookup at size: lakes of 100,000 and 1,000,000 training images, 2,000 kept generations.

    python -m benchmarks.matching                       # about 20 minutes on 2 cores, 12 GB of disk
    python -m benchmarks.matching --sizes 2000 10000    # a quick look, not written

The lakes are made, not audited: photographs of CIFAR-10 at 64 pixels, changed a little each, with vectors of 512 numbers that
lie around a thousand centres; half of the generations are noisy copies. CLIP itself is left out on both sides: its vectors are
given. The peer holds everything in memory, searches a flat faiss index by CLIP, and compares the pictures of each generation's
64 nearest in a plain loop. Each side runs in a process of its own, whose largest memory is measured.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.results import Row, write
from benchmarks.vectors import PHOTOGRAPHS, ROOT
from transforms.attacks.attempts import PARTS_PER_PROMPTS_PART, PROMPTS_PER_PART
from transforms.kernels.distances import Frame, l2
from transforms.matching.tasks import Round, Snapshots, Task
from transforms.models.devices import cores
from transforms.models.processes import end_kept
from transforms.store.lake import Lake, part_number
from transforms.store.pictures import decode, encode_png, thumbnail

SIDE, DIMENSIONS, PART_ROWS, CENTRES = 64, 512, 10_000, 1000
GENERATIONS = 2_000
NEIGHBOURS = 64
AUDIT = {"audit_id": "audit0", "model_revision": "r", "parameters_digest": "d"}


# -- the lakes --------------------------------------------------------------------------------------------------------


def centres() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(CENTRES, DIMENSIONS)).astype(np.float32)


@functools.lru_cache(maxsize=1)
def vectors_of(part: int, rows: int) -> np.ndarray:
    random = np.random.default_rng([2, part])
    made = centres()[random.integers(CENTRES, size=rows)] + random.normal(size=(rows, DIMENSIONS)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def write_part(root: str, part: int, rows: int) -> None:
    """A part of images and embeddings."""
    lake, random = Lake(root), np.random.default_rng([3, part])
    photographs = pq.read_table(PHOTOGRAPHS, columns=["jpeg"])["jpeg"]
    ids = [f"{part:06d}{row:06d}".ljust(32, "0") for row in range(rows)]
    small = np.stack([
        np.asarray(Image.open(io.BytesIO(photographs[(part * rows + row) % len(photographs)].as_py())).convert("RGB"))
        for row in range(rows)
    ])  # fmt: skip
    # Each a little moved and lighter or darker, so that no two are one picture.
    small = np.roll(small, random.integers(-3, 4, 2).tolist(), axis=(1, 2)).astype(np.int16)
    small = (small + random.integers(-30, 31, (rows, 1, 1, 3))).clip(0, 255).astype(np.uint8)
    tiny = [one.tobytes() for one in np.rint(small.reshape(rows, 8, 4, 8, 4, 3).mean(axis=(2, 4))).astype(np.uint8)]
    images = []
    for picture in small.repeat(2, axis=1).repeat(2, axis=2):
        sink = io.BytesIO()
        Image.fromarray(picture).save(sink, "JPEG", quality=95, subsampling=0)
        images.append(sink.getvalue())
    lake.write("images", "ingest0", part, pa.table({
        "sample_id": ids, "role": ["training"] * rows, "image": images, "encoding": ["jpg"] * rows,
        "width": pa.array([SIDE] * rows, pa.int32()), "height": pa.array([SIDE] * rows, pa.int32()),
        "image_size": pa.array([SIDE] * rows, pa.int32()), "resize_mode": ["keep_ratio"] * rows,
    }))  # fmt: skip
    values = pa.array(vectors_of(part, rows).ravel())
    offsets = pa.array(np.arange(rows + 1) * DIMENSIONS, pa.int32())
    lake.write("embeddings", "embed0", part, pa.table({
        "sample_id": ids, "role": ["training"] * rows, "model": ["m"] * rows, "pretrained": ["p"] * rows,
        "preprocessing": ["n"] * rows, "vector": pa.ListArray.from_arrays(offsets, values), "thumbnail": tiny,
        "caption_cosine": pa.nulls(rows, pa.float32()), "other_caption_cosine": pa.nulls(rows, pa.float32()),
        "status": ["success"] * rows, "reason": pa.nulls(rows, pa.string()),
    }))  # fmt: skip
    lake.write("duplicate_groups", "groups0", part, pa.table({
        "sample_id": ids, "group_id": ids, "size": pa.array([1] * rows, pa.int32()), "representative": ids,
        "lowest_cosine": pa.array([1.0] * rows, pa.float32()), "diameter": pa.array([0] * rows, pa.int32()),
        "identical_to": pa.nulls(rows, pa.string()),
    }))  # fmt: skip


def make(root: Path, size: int) -> None:
    """A lake of ``size`` training images, and an audit's kept generations, unless it is there."""
    lake, rows = Lake(str(root)), min(PART_ROWS, size)
    if (root / "made").exists():
        return
    lake.create()
    with concurrent.futures.ProcessPoolExecutor() as pool:
        list(pool.map(write_part, *zip(*((str(root), part, rows) for part in range(size // rows)), strict=True)))
    random = np.random.default_rng(4)
    made, prompts, vectors = [], [], []
    for number, part in enumerate(np.sort(random.integers(size // rows, size=GENERATIONS)).tolist()):
        row = int(random.integers(rows))
        with pq.ParquetFile(lake.part("images", "ingest0", part)) as file:
            image = file.read_row_group(0, columns=["image"])["image"]
        row %= len(image)
        picture = np.asarray(decode(image[row].as_py())).astype(int)
        vector = vectors_of(part, rows)[row] + 0.02 * random.normal(size=DIMENSIONS)
        if number % 2:  # new ones: of the same kind, and no copy
            picture = 255 - picture[::-1]
        picture = (picture + random.integers(-12, 13, picture.shape)).clip(0, 255).astype(np.uint8)
        name = f"prompt {number:05d}"
        group = f"{part:06d}{row:06d}".ljust(32, "0")
        prompts.append({
            **AUDIT, "prompt_id": name, "text": name, "origin": "duplicates", "sample_id": group, "group_id": group,
            "n_duplicates": 1, "stratum": "1", "stratum_order": 0, "inclusion_probability": 1.0, "images_requested": 1,
        })  # fmt: skip
        made.append({
            **AUDIT, "prompt_id": name, "sample_index": 0, "seed": 1, "status": "success", "reason": None, "in_clique": False,
            "own_l2": None, "nearest": True, "image": encode_png(picture), "thumbnail": thumbnail(picture), "width": SIDE,
            "height": SIDE, "steps": None, "guidance_scale": None, "seconds": 0.0, "device": None, "dtype": None,
        })  # fmt: skip
        vectors.append((vector / np.linalg.norm(vector)).astype(np.float32))
    # As ``generate`` does: a part of generations for each part of prompts.
    for number, start in enumerate(range(0, GENERATIONS, PROMPTS_PER_PART)):
        lake.write("prompts", "audit0", number, prompts[start : start + PROMPTS_PER_PART])
        lake.write("generations", "audit0", PARTS_PER_PROMPTS_PART * number, made[start : start + PROMPTS_PER_PART])
    np.save(root / "vectors.npy", np.stack(vectors))
    (root / "made").touch()


# -- what is measured -------------------------------------------------------------------------------------------------


def round_of(root: str) -> Round:
    lake = Lake(root)
    snapshots = Snapshots("ingest0", "embed0", "groups0", "audit0")
    # Blocks as match makes them with its default memory.
    tasks = tuple(Task("generations", part_number(path)) for path in lake.parts("generations", "audit0"))
    return Round(lake, snapshots, "match0", "stored", tasks, Frame(SIDE, SIDE), NEIGHBOURS, 640)


def stored(root: str, column: str) -> list[Any]:
    """A column of all generations, in order."""
    return [value for path in Lake(root).parts("generations", "audit0") for value in pq.read_table(path)[column].to_pylist()]


def indexed(root: str) -> dict[str, Any]:
    """What ``deduplicate`` leaves for match and lookup."""
    from pipelines.execution import Execution
    from transforms.matching.candidates import IndexGroups
    from transforms.matching.directory import Directory
    from transforms.matching.lookup import is_indexed
    from transforms.store.files import delete

    lake = Lake(root)
    delete(lake.path("work"))
    begun = time.monotonic()
    Directory(lake, "groups0").write("ingest0", "embed0")
    if not is_indexed(round_of(root)):
        Execution(lake, []).run(lambda pipeline: pipeline | IndexGroups(round_of(root)))
    return {"seconds": time.monotonic() - begun}


def matched(root: str) -> dict[str, Any]:
    """All steps of ``match`` on the kept generations but CLIP's, with the index that ``deduplicate`` left."""
    from pipelines.execution import Execution
    from pipelines.match import build, build_gathering, build_search
    from transforms.matching.candidates import merge
    from transforms.matching.comparison import Measure
    from transforms.matching.directory import Directory, write_own
    from transforms.matching.queries import SCHEMA
    from transforms.store.files import delete, read_parquet, write_parquet

    lake, round = Lake(root), round_of(root)
    for folder in ("matches", "work/match"):
        delete(lake.path(folder))
    execution = Execution(lake, [], processes=cores())
    begun, steps = time.monotonic(), {}

    def step(name: str, since: float) -> float:
        now = time.monotonic()
        steps[name] = round_seconds(now - since)
        return now

    write_own(lake, "match0", "audit0", Directory(lake, "groups0"))
    vectors, first = np.load(f"{root}/vectors.npy").tolist(), 0
    for number, task in enumerate(round.tasks):
        thumbnails = read_parquet(lake.part("generations", "audit0", task.number), ["thumbnail"])["thumbnail"]
        count = len(thumbnails)
        columns = {
            "place": list(range(count)), "vector": vectors[first : first + count], "thumbnail": thumbnails,
            "control": [False] * count,
        }  # fmt: skip
        write_parquet(round.file("queries", number, "parquet"), pa.table(columns, schema=SCHEMA))
        first += count
    now = step("own", begun)
    execution.run(lambda pipeline: build_search(pipeline, round, (2048 << 20) // 4 // (8 * DIMENSIONS)))
    now = step("search", now)
    parts = merge(round)
    now = step("merge", now)
    execution.run(lambda pipeline: build_gathering(pipeline, round, parts, execution.spread))
    now = step("gather", now)

    class Job:
        snapshots, measure, audit = round.snapshots, Measure(0.15, 50, 0.5, 0.6), AUDIT

    Job.lake = lake  # type: ignore[attr-defined]
    execution.run(lambda pipeline: build(pipeline, Job, round, execution.spread))  # type: ignore[arg-type]
    step("compare", now)
    own = [row for row in lake.read("matches", "match0", ["relation", "extracted"]).to_pylist() if row["relation"] == "own"]
    return {"seconds": time.monotonic() - begun, "steps": steps, "extracted": sum(row["extracted"] for row in own)}


def round_seconds(seconds: float) -> float:
    return int(10 * seconds) / 10


def peer(root: str) -> dict[str, Any]:
    """A flat index over everything, and each generation's nearest pictures one after the other."""
    import faiss

    begun = time.monotonic()
    lake = Lake(root)
    index = faiss.IndexFlatIP(DIMENSIONS)
    pictures: list[bytes] = []
    for path in lake.parts("embeddings", "embed0"):
        column = pq.read_table(path, columns=["vector"])["vector"].combine_chunks()
        index.add(column.flatten().to_numpy().reshape(-1, DIMENSIONS))
    for path in lake.parts("images", "ingest0"):
        pictures += pq.read_table(path, columns=["image"])["image"].to_pylist()
    _, rows = index.search(np.load(f"{root}/vectors.npy"), NEIGHBOURS)
    extracted = 0
    for number, image in enumerate(stored(root, "image")):
        made = np.asarray(decode(image))
        distances = [float(l2(made, np.asarray(decode(pictures[row])))) for row in rows[number].tolist()]
        extracted += min(distances) <= 0.15
    return {"seconds": time.monotonic() - begun, "extracted": extracted}


def recall_of(root: str) -> dict[str, Any]:
    """Of the sampled generations, whose nearest images were candidates: against brute force."""
    import apache_beam as beam

    from pipelines.execution import Execution
    from transforms.matching.parts import sampled_rows
    from transforms.matching.recall import NearestOfAll, recall
    from transforms.store.files import read_parquet

    lake = Lake(root)
    begun = time.monotonic()
    path = lake.work("match", "match0", "nearest.parquet")
    numbers = range(len(lake.parts("images", "ingest0")))
    Execution(lake, []).run(
        lambda pipeline: pipeline | beam.Create(numbers) | NearestOfAll(lake, round_of(root).snapshots, "match0", path)
    )
    found = {row["key"]: list(zip(row["distances"], row["groups"], strict=True)) for row in read_parquet(path).to_pylist()}
    return {"seconds": time.monotonic() - begun, **recall(sampled_rows(lake, "match0"), found)}


TARGETS = 1_000


def counted(root: str) -> dict[str, Any]:
    """k of 1,000 targets, exact, with thumbnails first."""
    from transforms.matching.directory import Directory
    from transforms.matching.eidetic_counts import CountWithin
    from transforms.store.files import write_parquet

    lake = Lake(root)
    directory = Directory(lake, "groups0")
    targets = [{"sample_id": row["sample_id"], "code": row["code"], "offset": 0, "height": SIDE, "width": SIDE}
               for row in directory.drawn("k", "training", TARGETS)]  # fmt: skip
    path = lake.work("match", "match0", "targets.parquet")
    write_parquet(path, pa.Table.from_pylist(targets))
    begun = time.monotonic()
    counter = CountWithin(lake, round_of(root).snapshots, "match0", path, 0.1)
    counter.setup()
    sums: dict[str, int] = {}
    for part in range(len(lake.parts("images", "ingest0"))):
        for sample, number in counter.process(part):
            sums[sample] = sums.get(sample, 0) + number
    return {"seconds": time.monotonic() - begun, "k": sum(sums.values())}


def counted_plainly(root: str, parts: int) -> dict[str, Any]:
    """The same by the plain product of all pictures with all targets, on some parts."""
    from transforms.data.images import PicturesByCode
    from transforms.store.files import read_parquet, read_rows

    lake = Lake(root)
    store = PicturesByCode(lake, "ingest0")
    rows = read_parquet(lake.work("match", "match0", "targets.parquet")).to_pylist()
    crops = np.stack([store.get(row["code"], row["sample_id"]).ravel() for row in rows]).astype(np.float32) / 255
    squares = np.square(crops).sum(axis=1)
    begun, near = time.monotonic(), 0
    for path in lake.parts("images", "ingest0")[:parts]:
        batch = [np.asarray(decode(row["image"])).ravel() for row in read_rows(path, ["image"])]
        for start in range(0, len(batch), 512):
            some = np.stack(batch[start : start + 512]).astype(np.float32) / 255
            distances = squares[:, None] + np.square(some).sum(1) - 2 * crops @ some.T
            near += int((distances <= 0.01 * crops.shape[1]).sum())
    return {"seconds": time.monotonic() - begun, "k": near}


def looked_up(root: str) -> dict[str, Any]:
    """``lookup`` of 100 pictures, the second call: their vectors by a CLIP that makes the planted ones."""
    from transforms.matching.lookup import look_up

    given = np.load(f"{root}/vectors.npy")[:200:2]
    images = stored(root, "image")[:200:2]

    class Encoder:
        @staticmethod
        def encode(pictures: list[Image.Image]) -> np.ndarray:
            return given

    begun = time.monotonic()
    pictures = [np.asarray(decode(image)) for image in images]
    found = look_up(round_of(root), pictures, Encoder, 3)  # type: ignore[arg-type]
    return {"seconds": time.monotonic() - begun, "same": len({one.picture for one in found if one.same})}


MEASURED = {
    "indexed": indexed,
    "matched": matched,
    "peer": peer,
    "recall": recall_of,
    "counted": counted,
    "looked_up": looked_up,
}


def in_process(what: str, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.matching", "--what", what, *words],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=[100_000, 1_000_000])
    parser.add_argument("--work", type=Path, help="keep the lakes here")
    parser.add_argument("--what")
    parser.add_argument("--lake")
    arguments = parser.parse_args()
    if arguments.what:
        found = counted_plainly(arguments.lake, 2) if arguments.what == "plain" else MEASURED[arguments.what](arguments.lake)
        end_kept()
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / (1 << 20)
        print(json.dumps({**found, "gib": peak}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        results: dict[tuple[str, int], dict[str, Any]] = {}
        for size in arguments.sizes:
            make(work / str(size), size)
            for what in ("indexed", "matched", "recall"):
                results[what, size] = in_process(what, "--lake", str(work / str(size)))
                print(what, size, results[what, size], flush=True)
        small, large = arguments.sizes
        lake = str(work / str(large))
        for what in ("peer", "looked_up", "counted", "plain"):
            results[what, large] = in_process(what, "--lake", lake)
            print(what, large, results[what, large], flush=True)
    if (small, large) != (100_000, 1_000_000):
        return
    match, first, recalled = results["matched", large], results["matched", small], results["recall", large]
    plain = results["plain", large]["seconds"] * large / (2 * PART_ROWS)
    write("matching", [
        Row(f"match: 2,000 generations, {large:,} images: time", match["seconds"], "s", 1 / 3, "faiss flat and a picture loop",
            results["peer", large]["seconds"]),
        Row(f"match: 2,000 generations, {large:,} images: peak memory of a worker", match["gib"], "GiB", 3),
        Row(f"match: time at {large:,} images", match["seconds"], "s", 5, f"at {small:,}", first["seconds"]),
        Row(f"match: memory at {large:,} images", match["gib"], "GiB", 1.2, f"at {small:,}", first["gib"]),
        Row("match: share of the nearest images that are no candidates", 1 - recalled["nearest"], "", 0.01),
        Row("match: share of the next nearest images that are no candidates", 1 - recalled["next"], "", 0.01),
        Row(f"index of {large:,} images, by deduplicate: time", results["indexed", large]["seconds"] / 60, "min", 5),
        Row(f"index of {large:,} images, by deduplicate: peak memory", results["indexed", large]["gib"], "GiB", 3),
        Row(f"lookup of 100 pictures in {large:,} images, second call, without CLIP", results["looked_up", large]["seconds"],
            "s", 5),
        Row(f"k of {TARGETS:,} targets, {large:,} images, exact: time", results["counted", large]["seconds"], "s", 0.1,
            "the plain product, from 20,000 images", plain),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
