"""What the embedded models remember, found by brute force: the truth that tests and verdicts are held against.

It owes nothing to any verdict. For every trained picture many generations are made from its caption, for every control some
from its, and for each of them the nearest of *all* trained pictures is looked for, by plain l2. The counts are in
``demo/models/<name>/truth.json`` (``python -m demo.evaluate_generator`` makes it):

    weights   digest of the model's weights, see ``weights_digest``
    settings  of the generations: steps, guidance_scale, images (of each trained picture), images_per_control, …; with
              ``screen``, a picture of which none of so many generations came within l2 0.20 has no more than those
    trained   one object a trained picture, the most repeated first
        slug, caption, copies
        images                  its own generations that were made
        share_005 … share_020   share of its generations that lie within l2 0.05 … 0.20 of it, with no trained picture nearer
        median_l2               of its own generations, to itself
        came_back_005 … _015    generations, whoever's, whose nearest trained picture it is, within l2 0.05 … 0.15
        other_010               those of came_back_010 that were made for another picture or a control
    controls  one object a control
        slug, caption
        returned_010            of its generations those within l2 0.10 of some trained picture
        median_l2               of its generations, to the control itself
        median_nearest_l2       of its generations, to the nearest trained picture

Where several pictures have one caption, each has generations of its own: what they return of one another is in ``other_010``.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demo.corpus import Example
from demo.embedded import MODELS
from transforms.kernels.distances import l2

BANDS = {"005": 0.05, "010": 0.10, "015": 0.15, "020": 0.20}
"""Suffix of the columns → l2."""


@functools.cache
def read(name: str) -> dict[str, Any]:
    """The truth of an embedded model. Not to be changed: callers share it."""
    return json.loads((MODELS / name / "truth.json").read_text())


def is_copy(row: Mapping[str, Any]) -> bool:
    """Whether a trained picture comes back: half of its generations are it, within l2 0.10."""
    return row["share_010"] >= 0.5


def is_doubtful(row: Mapping[str, Any]) -> bool:
    """Whether nobody should be held to an answer: some generations are the picture, or nearly, but not half of them."""
    return not is_copy(row) and (row["share_010"] >= 0.1 or row["share_015"] >= 0.1)


def weights_digest(folder: Path) -> str:
    """Digest of every weight of a pipeline; the truth itself lies in its folder, so this isn't ``folder_digest``."""
    content = hashlib.sha256()
    for path in sorted(folder.glob("*/*.safetensors")):
        content.update(hashlib.sha256(path.read_bytes()).digest())
    return content.hexdigest()


@dataclasses.dataclass(frozen=True)
class Found:
    """What the n generations for one picture or control are.

    Attributes:
        own: (n,) l2 to the picture itself.
        nearest: (n,) place of the nearest trained picture.
        distance: (n,) l2 to that one.
    """

    own: np.ndarray
    nearest: np.ndarray
    distance: np.ndarray

    def with_more(self, others: Found) -> Found:
        """These and others of the same picture."""
        return Found(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(others).values(), strict=True)))


def look(made: np.ndarray, own: np.ndarray, trained: np.ndarray) -> Found:
    """Compares generations with every trained picture.

    Args:
        made: (n, H, W, 3) uint8 generations.
        own: (H, W, 3) uint8, the picture that they were made for.
        trained: (m, H, W, 3) uint8, all trained pictures.
    """
    a, b = (pictures.reshape(len(pictures), -1).astype(np.float32) / 255 for pictures in (made, trained))
    # |a - b|² without |a|², which is the same for all b.
    nearest = (np.square(b).sum(axis=1) - 2 * a @ b.T).argmin(axis=1)
    return Found(own=l2(made, own), nearest=nearest, distance=l2(made, trained[nearest]))


def summarise(trained: Sequence[Example], controls: Sequence[Example], found: Mapping[str, Found]) -> dict[str, Any]:
    """``trained`` and ``controls`` of the truth, from what was found for each key. What wasn't asked for is left out.

    ``trained`` are all trained pictures, in the order in which ``look`` had them.
    """
    nearest = np.concatenate([each.nearest for each in found.values()])
    distance = np.concatenate([each.distance for each in found.values()])
    rows = []
    for place, example in enumerate(trained):
        if example.key not in found:
            continue
        own = found[example.key]
        mine = own.distance[own.nearest == place]
        everyones = distance[nearest == place]
        rows.append(
            {
                "slug": example.key,
                "caption": example.caption,
                "copies": example.copies,
                "images": len(own.own),
                **{f"share_{name}": round(float((mine <= band).sum() / len(own.own)), 4) for name, band in BANDS.items()},
                "median_l2": round(float(np.median(own.own)), 4),
                **{f"came_back_{name}": int((everyones <= BANDS[name]).sum()) for name in ("005", "010", "015")},
                "other_010": int((everyones <= BANDS["010"]).sum() - (mine <= BANDS["010"]).sum()),
            }
        )
    held_out = [
        {
            "slug": example.key,
            "caption": example.caption,
            "returned_010": int((found[example.key].distance <= BANDS["010"]).sum()),
            "median_l2": round(float(np.median(found[example.key].own)), 4),
            "median_nearest_l2": round(float(np.median(found[example.key].distance)), 4),
        }
        for example in controls
        if example.key in found
    ]
    return {"trained": rows, "controls": held_out}


def as_json(truth: Mapping[str, Any]) -> str:
    """One picture a line, so that a change of the truth can be read."""
    parts = [f"  {json.dumps(key)}: {json.dumps(truth[key])}" for key in ("weights", "settings")]
    for key in ("trained", "controls"):
        lines = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in truth[key])
        parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"
