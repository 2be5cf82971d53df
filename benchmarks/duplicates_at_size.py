"""Near-duplicates among 200,000 and 1,000,000 vectors: Eidetic beside faiss, and Beam beside a plain loop.

    python -m benchmarks.duplicates_at_size

Two sets of 200,000 × 512 (see ``vectors.py``): random directions, and real pictures under the embedded CLIP grown to size; the
second needs the folder that EIDETIC_SHARED names, as the tests do, and is skipped with a line that says so without it.

The time of faiss's flat index is ten times that of a tenth of the queries. Its lists and nprobe (IVF) are the fastest of a
grid that lose no more pairs than Eidetic does; how many they lose is known exactly, from whose list is probed by whom.
Recall is of all pairs of 20,000 images. Runs over 1,000,000 vectors are processes of their own, with memory of their own.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import vectors as made
from benchmarks.results import Row, write
from pipelines import deduplicate
from pipelines.deduplicate import DeduplicateOptions
from pipelines.execution import Execution
from pipelines.options import Parsed
from transforms.duplicates.check import MOST_SAMPLED, QUERIES, digests_of, exact_sets_of
from transforms.duplicates.job import SWEEP_DEPTH, keys_of
from transforms.duplicates.search import chosen_by, pairs_of_queries
from transforms.kernels import cells, groups
from transforms.store.arrays import matrix
from transforms.store.files import read_parquet, write_parquet
from transforms.store.lake import Lake

SIZE = 200_000
TRIED = 20_000
"""Images whose pairs are all looked for by brute force."""

THRESHOLD = 0.9
SURE = 0.97
RECALLS = {"random directions": 0.995, "real pictures": 0.9999}
"""--recall. Of the real pictures' pairs all are over SURE, of which one in ten thousand may be lost."""

LISTS = (512, 1024, 2048)
PROBES = (1, 2, 4, 8, 16, 32, 64)


class Found(NamedTuple):
    """Pairs and how long they took."""

    pairs: cells.Pairs
    seconds: float


def search(vectors: np.ndarray, threshold: float, recall: float, depth: float = 0) -> cells.Pairs:
    """The pairs as ``eidetic deduplicate`` finds them, in memory and without Beam: training and choice included.

    ``depth``: how far under the threshold the sampled images' pairs are looked for; the verb does it for its sweep.
    """
    n = len(vectors)
    order = np.random.default_rng(0).permutation(n)
    queries, rest = order[:QUERIES], order[QUERIES:]
    sample = vectors[rest[: min(MOST_SAMPLED, max(8 * QUERIES, cells.sample_size(n)))]]
    basis = cells.principal_basis(sample, threshold)
    query, row, cosine = pairs_of_queries(vectors[queries], vectors, basis, threshold - depth)
    by, weight = chosen_by(query, (queries[query] != row) & (cosine > threshold), np.ones(len(query)))
    known = cells.Known(vectors[queries[query[by]]], vectors[row[by]], query[by], weight)
    choice = cells.choose(sample, basis, n, known, threshold, recall, 0)
    sketches = cells.sketch(vectors, basis)
    lists = np.zeros((n, 1), np.int32)
    if choice.quantiser is not None:
        lists = choice.quantiser.assign(sketches, choice.assignments, choice.margin)
    block = cells.Spread(vectors, sketches, lists)
    portions = list(cells.pairs_in_cells(block, block, threshold, True))
    return cells.Pairs(*(np.concatenate(columns) for columns in zip(*portions, strict=True)))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.monotonic()
    result = work()
    return result, time.monotonic() - begun


# -- 200,000 vectors --------------------------------------------------------------------------------------------------


class Truth(NamedTuple):
    """All pairs of the images that were tried: (p,) int64 image and other, and the cosine."""

    image: np.ndarray
    other: np.ndarray
    cosine: np.ndarray

    def lost(self, found: np.ndarray) -> dict[str, float]:
        """Shares that are lost, of pairs and of images with a duplicate, of all and of those over SURE."""
        shares = {}
        for over, where in (("", np.ones(len(found), bool)), (f" over {SURE}", self.cosine > SURE)):
            images = np.unique(self.image[where])
            shares[f"pairs{over}"] = 1 - float(found[where].mean())
            shares[f"images{over}"] = 1 - float(np.isin(images, self.image[where & found]).mean())
        return shares


def brute_force(vectors: np.ndarray, tried: np.ndarray, threshold: float) -> tuple[Truth, float]:
    """The truth of the tried images, and the seconds that faiss would need for all."""
    import faiss

    def work() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return index.range_search(vectors[tried], threshold)

    (limits, cosine, other), seconds = timed(work)
    image = np.repeat(tried, np.diff(limits.astype(np.int64)))
    apart = image != other
    return Truth(image[apart], other[apart], cosine[apart]), seconds * len(vectors) / len(tried)


def tuned_inverted_file(vectors: np.ndarray, truth: Truth, threshold: float, lost: float) -> tuple[float, str, float]:
    """(seconds, setting, share of pairs lost) of the fastest lists and nprobe that lose at most ``lost``."""
    import faiss

    tried = np.unique(truth.image)[: TRIED // 2]
    best = (np.inf, "none", 1.0)
    for count in LISTS:

        def build(count: int = count) -> faiss.IndexIVFFlat:
            coarse = faiss.IndexFlatIP(vectors.shape[1])
            index = faiss.IndexIVFFlat(coarse, vectors.shape[1], count, faiss.METRIC_INNER_PRODUCT)
            index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = 6, 64, 1
            index.train(vectors[: count * 64])
            index.add(vectors)
            return index

        index, making = timed(build)
        _, lists = index.quantizer.search(vectors, max(PROBES))
        for probes in PROBES:
            # A pair is found from either side.
            there = (lists[truth.image, :probes] == lists[truth.other, :1]).any(axis=1)
            back = (lists[truth.other, :probes] == lists[truth.image, :1]).any(axis=1)
            missing = 1 - float((there | back).mean())
            if missing > lost:
                continue
            index.nprobe = probes
            _, searching = timed(lambda index=index: index.range_search(vectors[tried], threshold))
            seconds = making + searching * len(vectors) / len(tried)
            if seconds < best[0]:
                best = (seconds, f"{count} lists, {probes} probed", missing)
            break
    return best


def at_200_000(name: str, vectors: np.ndarray, threshold: float) -> list[Row]:
    tried = np.random.default_rng(1).permutation(len(vectors))[:TRIED]
    # Once for what is loaded and made on first use.
    search(vectors[:20_000], threshold, RECALLS[name])
    pairs, ours = timed(lambda: search(vectors, threshold, RECALLS[name]))
    truth, flat = brute_force(vectors, tried, threshold)
    keys = pairs.i * len(vectors) + pairs.j
    wanted = np.minimum(truth.image, truth.other) * len(vectors) + np.maximum(truth.image, truth.other)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    lost = truth.lost(keys[places] == wanted)
    inverted, setting, missing = tuned_inverted_file(vectors, truth, threshold, max(lost["pairs"], 1e-5))
    about = f"{name}, {len(vectors):,} vectors, cosine over {threshold:g} ({len(pairs.i) / len(vectors):.0f} pairs an image)"
    print(about, lost, ours, flat, inverted, setting, missing, flush=True)
    goals = {"pairs": 0.005, "images": 0.005, f"pairs over {SURE}": 0.0001, f"images over {SURE}": 0.0001}
    return [
        *(Row(f"{about}: share of {kind} lost", lost[kind], "of 1", goals[kind]) for kind in goals),
        Row(f"{about}: time", ours, "s", 1 / 40, "faiss IndexFlatIP.range_search", flat),
        Row(f"{about}: time, training included", ours, "s", 0.5,
            f"faiss IVF, {setting}, which loses {missing:.4f} of the pairs", inverted),
    ]  # fmt: skip


# -- 1,000,000 vectors ------------------------------------------------------------------------------------------------


def verb(root: str) -> dict[str, Any]:
    """``eidetic deduplicate`` over the newest vectors of a lake."""
    manifest = deduplicate.STAGE.run(Execution(Lake(root), []), Parsed.of(DeduplicateOptions()))
    return {"pairs": manifest.facts["pairs"], "rows": manifest.rows, "recall": manifest.facts["recall"]}


def plain_loop(root: str) -> dict[str, Any]:
    """The same kernels in one function, in memory: from Parquet to pairs and groups in Parquet, without Beam and the lake."""
    lake = Lake(root)
    ids, parts = [], []
    for path in lake.parts("embeddings", lake.latest("embed").snapshot_id):
        table = read_parquet(path, ["sample_id", "role", "status", "vector"])
        table = table.filter((pc.field("role") == "training") & (pc.field("status") == "success"))
        ids += table["sample_id"].to_pylist()
        parts.append(matrix(table["vector"]))
    vectors = np.concatenate(parts)
    del parts
    norms = np.einsum("nd,nd->n", vectors, vectors)
    assert np.abs(norms - 1).max() < 1e-4 and len(set(ids)) == len(ids)
    key = keys_of(ids)
    _, canonical_keys, _ = exact_sets_of(key, digests_of(vectors), np.zeros(len(key), np.int8))
    assert len(canonical_keys) == 0, "no crowds are planted"
    found = search(vectors, DeduplicateOptions().duplicate_threshold, DeduplicateOptions().recall, SWEEP_DEPTH)
    names = pa.array(ids)
    pairs = {"a": names.take(pa.array(found.i)), "b": names.take(pa.array(found.j)), "cosine": found.cosine}
    write_parquet(f"{root}/plain/pairs.parquet", pa.table(pairs))
    forest = groups.spanning_forest_of_rows(len(vectors), groups.Edges(*found))
    none = np.empty(0, np.int64)
    together = groups.groups_of(forest, groups.ExactSets(none, none))
    groups.sizes_by_threshold(forest, groups.ExactSets(none, none), np.arange(0.9, 1, 0.01))
    order = together.node[np.argsort(together.label, kind="stable")]
    starts = np.cumsum(together.size) - together.size
    told = groups.group_statistics(vectors[order], starts, np.ones(len(order), np.int64), 0.9)
    mine = np.repeat(np.arange(len(starts)), together.size)
    rows = {"sample_id": names.take(pa.array(order)), "group": mine, "size": told.size[mine],
            "representative": names.take(pa.array(order[told.representative][mine])),
            "lowest_cosine": told.lowest_cosine[mine], "diameter": told.diameter[mine]}  # fmt: skip
    write_parquet(f"{root}/plain/groups.parquet", pa.table(rows))
    return {"pairs": len(found.i)}


def in_process(work: str, root: str) -> dict[str, Any]:
    """Runs ``verb`` or ``plain_loop`` in a process of its own; adds its seconds and its peak memory in GiB."""
    words = [sys.executable, "-m", "benchmarks.duplicates_at_size", "--work", work, "--lake", root]
    begun = time.monotonic()
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
    result = {**json.loads(done.stdout.splitlines()[-1]), "process_seconds": time.monotonic() - begun}
    print(work, root, result, flush=True)
    return result


def at_size(folder: Path) -> list[Row]:
    measured = {}
    for n in (100_000, 1_000_000):
        made.write_lake(str(folder / str(n)), made.random_directions(n))
        measured[n] = in_process("verb", str(folder / str(n)))
    loop = in_process("plain_loop", str(folder / "1000000"))
    made.write_lake(str(folder / "crowd"), np.repeat(made.random_directions(10)[:1], 1_000_000, axis=0))
    crowd = in_process("verb", str(folder / "crowd"))
    assert crowd["pairs"] == 1_000_000 * 999_999 // 2
    whole = measured[1_000_000]
    return [
        Row("1,000,000 vectors, from Parquet to groups: time", whole["seconds"] / 60, "min", 20),
        Row("1,000,000 vectors, from Parquet to groups: peak memory", whole["gib"], "GiB", 8),
        Row("time for 1,000,000 vectors", whole["seconds"], "s", 14, "time for 100,000 vectors", measured[100_000]["seconds"]),
        Row("eidetic deduplicate on Beam, 1,000,000 vectors", whole["seconds"], "s", 1.25,
            "the same kernels in a plain loop, in memory", loop["seconds"]),
        Row("1,000,000 identical vectors: time", crowd["seconds"] / 60, "min", 20),
        Row("1,000,000 identical vectors: peak memory", crowd["gib"], "GiB", 8),
    ]  # fmt: skip


def peak_memory() -> float:
    """GiB that this process has had resident. ``getrusage`` would count what its parent had when it was forked."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=("verb", "plain_loop"))
    parser.add_argument("--lake")
    given = parser.parse_args()
    if given.work:
        result, seconds = timed(lambda: {"verb": verb, "plain_loop": plain_loop}[given.work](given.lake))
        print(json.dumps({**result, "seconds": seconds, "gib": peak_memory()}))
        return
    rows = at_200_000("random directions", made.random_directions(SIZE), THRESHOLD)
    if made.PHOTOGRAPHS.exists():
        # In a process of its own: torch's threads would be in the way of faiss's.
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pictures = pool.submit(made.real_pictures).result()
        vectors = made.grown(pictures, SIZE)
        rows += at_200_000("real pictures", vectors, made.threshold_for(vectors, 50))
    else:
        print(
            f"no photographs at {made.PHOTOGRAPHS}: the set of real pictures is left out; name their folder in EIDETIC_SHARED"
        )
    with tempfile.TemporaryDirectory() as folder:
        rows += at_size(Path(folder))
    write("duplicates_at_size", rows)


if __name__ == "__main__":
    main()
