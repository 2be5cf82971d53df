"""How well the embedded CLIP tells copies from other logos: what the default of --duplicate_threshold rests on.

    python -m demo.evaluate_clip --lake LAKE --truth build/demo_site/truth.parquet

Reads: the newest complete ``ingest`` of LAKE and the newest ``embed`` of it, and the truth about the corpus, which no
audit reads. Prints the tables of docs/duplicates.md: cosines of copies by kind of change, the highest cosines between
different logos, and precision and recall by threshold. ``--scale`` looks at the part of the corpus that
``demo.corpus.split`` gives for it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq

from demo.corpus import REPEAT_KINDS, split
from transforms.kernels.groups import connected_components
from transforms.models.clip import read_vectors
from transforms.store.lake import Lake, part_number

THRESHOLDS = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)


@dataclasses.dataclass(frozen=True)
class Population:
    """Embedded pictures of one role.

    Attributes:
        slugs: (n,) which logo each shows.
        kinds: (n,) how each came about: first, one of ``REPEAT_KINDS``, or the kind of a faulty row that is none.
        vectors: (n, d) float32, unit norm.
    """

    slugs: np.ndarray
    kinds: np.ndarray
    vectors: np.ndarray


def load(lake: Lake, truth: str, scale: float = 1.0) -> dict[str, Population]:
    """Training and controls, by role."""
    embed = lake.latest("embed")
    samples = lake.read("samples", embed.upstream["ingest"], ["sample_id", "url", "caption", "occurrence"]).to_pylist()
    # By path and not by URL: the port of the server is no part of the truth.
    known: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in pq.read_table(truth).to_pylist():
        known.setdefault((urlsplit(row["URL"]).path, row["TEXT"]), []).append((row["slug"], row["kind"]))
    # Rows that repeat the URL and the caption of a first one are alike; which of them is called the first is arbitrary.
    what = {row["sample_id"]: sorted(known[urlsplit(row["url"]).path, row["caption"]])[row["occurrence"]] for row in samples}
    wanted = {logo.slug for logo, _ in split(scale)[0]} | {logo.slug for logo in split(scale)[1]}
    numbers = [part_number(path) for path in lake.parts("embeddings", embed.snapshot_id)]
    populations = {}
    for role in ("training", "control"):
        ids, vectors = read_vectors(lake, embed.snapshot_id, numbers, role)
        slugs = np.array([what[sample][0] for sample in ids])
        keep = np.isin(slugs, list(wanted)) if scale < 1 else np.ones(len(ids), bool)
        kinds = np.array([what[sample][1] for sample in ids])
        populations[role] = Population(slugs[keep], kinds[keep], vectors[keep])
    return populations


def tables(training: Population, control: Population, thresholds: Sequence[float] = THRESHOLDS) -> str:
    """What docs/duplicates.md shows, as Markdown."""
    cosine = training.vectors.astype(np.float64) @ training.vectors.T.astype(np.float64)
    upper = np.triu(np.ones(cosine.shape, bool), 1)
    same = (training.slugs[:, None] == training.slugs[None, :]) & upper
    different = ~(training.slugs[:, None] == training.slugs[None, :]) & upper
    # What was done to a pair is what was done to its two pictures; a pair with the first occurrence shows one change.
    unchanged = np.isin(training.kinds, ("first", "same_url", "recaptioned"))
    first = training.kinds == "first"
    by_kind = {kind: _with_one(same, training.kinds == kind, first) for kind in REPEAT_KINDS}
    both = np.isin(training.kinds, ("reencoded", "resized")) | unchanged
    groups = {
        **{f"first and {kind}": mask for kind, mask in by_kind.items()},
        "any two, none of them cropped": same & both[:, None] & both[None, :],
        "any two of a logo": same,
    }
    lines = ["| pair | pairs | lowest cosine | 1% below | median |", "|---|---|---|---|---|"]
    for name, mask in groups.items():
        values = cosine[mask]
        if len(values):
            low, one, middle = np.quantile(values, (0, 0.01, 0.5))
            lines.append(f"| {name} | {len(values):,} | {low:.3f} | {one:.3f} | {middle:.3f} |")
    lines += ["", "| different logos | pairs | highest cosine | second | third |", "|---|---|---|---|---|"]
    across = control.vectors.astype(np.float64)
    inside_controls = (across @ across.T)[np.triu_indices(len(across), 1)]
    to_controls = (training.vectors.astype(np.float64) @ across.T).ravel()
    # Copies of two logos that are alike would fill the places; each two logos count once.
    for name, values in (
        ("training, each two logos once", _highest_by_logos(cosine, different, training.slugs)),
        ("controls", inside_controls),
        ("training and controls", to_controls),
    ):
        if len(values):
            top = [f"{value:.3f}" for value in np.sort(values)[::-1][:3]]
            lines.append(f"| {name} | {len(values):,} | {' | '.join(top)} |")
    # The same URL and another caption leave the picture as it is: such pairs are found at any threshold.
    changed = {name: mask for name, mask in groups.items() if not name.endswith(("same_url", "recaptioned"))}
    header = "| threshold | " + " | ".join(f"recall {name}" for name in changed) + " | precision | groups as planted |"
    lines += ["", header, "|" + "---|" * (len(changed) + 3)]
    planted = len(set(training.slugs))
    for threshold in thresholds:
        over = cosine > threshold
        recalls = [f"{(over & mask).sum() / max(1, mask.sum()):.4f}" for mask in changed.values()]
        found = int((over & upper).sum())
        precision = (over & same).sum() / found if found else 1.0
        labels = connected_components(len(training.slugs), np.argwhere(over & upper))
        whole = _groups_as_planted(labels, training.slugs)
        lines.append(f"| {threshold} | {' | '.join(recalls)} | {precision:.4f} | {whole} of {planted} |")
    return "\n".join(lines)


def _with_one(same: np.ndarray, kind: np.ndarray, first: np.ndarray) -> np.ndarray:
    return same & ((kind[:, None] & first[None, :]) | (first[:, None] & kind[None, :]))


def _highest_by_logos(cosine: np.ndarray, different: np.ndarray, slugs: np.ndarray) -> np.ndarray:
    """The highest cosine of each two different logos."""
    _, numbers = np.unique(slugs, return_inverse=True)
    rows, columns = np.nonzero(different)
    low, high = np.minimum(numbers[rows], numbers[columns]), np.maximum(numbers[rows], numbers[columns])
    highest = np.full(int(numbers.max(initial=0) + 1) ** 2, -np.inf)
    np.maximum.at(highest, low * (numbers.max(initial=0) + 1) + high, cosine[rows, columns])
    return highest[np.isfinite(highest)]


def _groups_as_planted(labels: np.ndarray, slugs: np.ndarray) -> int:
    """Logos whose pictures are one group with nothing else in it."""
    logos_of: dict[int, set[str]] = {}
    groups_of: dict[str, set[int]] = {}
    for label, slug in zip(labels.tolist(), slugs.tolist(), strict=True):
        logos_of.setdefault(label, set()).add(slug)
        groups_of.setdefault(slug, set()).add(label)
    return sum(len(groups) == 1 and len(logos_of[next(iter(groups))]) == 1 for groups in groups_of.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True, help="a lake with a complete embed of the demo corpus")
    parser.add_argument("--truth", default="build/demo_site/truth.parquet", help="what demo.corpus.build wrote")
    parser.add_argument("--scale", type=float, default=1.0, help="look at this part of the corpus")
    arguments = parser.parse_args()
    populations = load(Lake(arguments.lake), arguments.truth, arguments.scale)
    print(tables(populations["training"], populations["control"]))


if __name__ == "__main__":
    main()
