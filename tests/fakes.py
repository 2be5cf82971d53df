"""A whole lake of planted truth, made in a second: every table, complete manifests, and distances that are known.

Nothing here matches pictures or runs a model. What each prompt gives back is planted by name (``BEHAVIOURS``), so that a
test of measure, report or query knows the answer beforehand. What is drawn for a generation depends on nothing but the seed,
its prompt and its number: the same lake with another ``keep`` holds the same generations.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.match import MatchOptions, shaping
from tests.planted import picture
from transforms.attacks import prompts as prompt_rows
from transforms.attacks.attempts import Filter
from transforms.kernels.copies import GU_RATIO, CopyLimits, blurred, is_copy
from transforms.matching.calibration import calibration_rows, copy_calibration_row, nearest_to_own
from transforms.matching.tasks import REGENERATED
from transforms.store.files import delete
from transforms.store.identity import sample_id, seed
from transforms.store.lake import Lake, Manifest, snapshot_id
from transforms.store.pictures import encode_png, thumbnail

MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
SIDE = 16
"""Of the pictures, in pixels."""

BEHAVIOURS = ("copy", "half_learned", "loose", "soft", "unproven", "neighbour", "none")
"""What a prompt's nearest generation does, in terms of the image whose caption it is, for 0.15 as delta:

                  extracted  adaptive l2  ratio  copied  seen
    copy          yes        yes          yes    yes     yes    near by every distance
    half_learned  no         yes          no     no      yes    much nearer than controls come, and yet no copy
    loose         yes        no           no     no      no     within delta, and as near to other images
    soft          no         yes          no     yes     yes    a copy whose fine detail is lost
    unproven      yes        no           yes    yes     no     a copy, and no nearer than controls come
    neighbour     no         no           no     no      no     its other generations copy the next drawn group's image
    none          no         no           no     no      no     nothing near

seen is by adaptive l2 (or tiled l2): in l2 all but "none" and "neighbour" are nearer than controls. A name that ends in
" unflagged" does the same without a clique: but for the nearest one its generations are stored only in the kept slice. Where a
prompt makes a single generation, "neighbour" copies nothing: that one is the nearest.
"""


@dataclasses.dataclass(frozen=True)
class FakeLake:
    """A lake with its manifests. ``behaviour``: prompt_id → what was planted (drawn prompts only)."""

    lake: Lake
    ingest: Manifest
    embed: Manifest
    deduplicate: Manifest
    generate: Manifest
    match: Manifest
    behaviour: dict[str, str]

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A table of this audit as dicts."""
        stages = (self.ingest, self.embed, self.deduplicate, self.generate, self.match)
        manifest = next(manifest for manifest in stages if table in manifest.rows)
        return self.lake.read(table, manifest.snapshot_id).to_pylist()


def rewrite(fake: FakeLake, table: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Replaces a table of the fake lake by what ``change`` makes of its rows."""
    stages = (fake.ingest, fake.embed, fake.deduplicate, fake.generate, fake.match)
    snapshot = next(manifest.snapshot_id for manifest in stages if table in manifest.rows)
    rows = change(fake.rows(table))
    delete(fake.lake.folder(table, snapshot))
    fake.lake.write(table, snapshot, 0, rows)


def fake_lake(
    root: Path | str,
    *,
    sizes: Sequence[int] = (12, 5, 4, 3, 2, 2, 1, 1, 1, 1),
    captions: Sequence[str | None] | None = None,
    urls: Sequence[str | None] | None = None,
    draw: Callable[[int], np.ndarray] = lambda number: picture(number, SIDE, SIDE),
    behaviours: Sequence[str] = (*BEHAVIOURS, "copy unflagged", "neighbour unflagged", "none unflagged"),
    controls: int = 60,
    controls_within_delta: int = 0,
    controls_that_copy: int = 0,
    held_out_near: int = 0,
    listed: Sequence[str] = (),
    max_prompts: int = 1000,
    images_per_prompt: int = 4,
    images_per_control: int = 2,
    unflagged_fraction: float = 0.5,
    keep: str = "flagged",
    delta: float = 0.15,
    calibrated_distance: str = "adaptive_l2",
    max_false_positive_rate: float = 0.1,
    regenerate: bool = True,
    model: str = "fake/model",
    base_seed: int = 0,
) -> FakeLake:
    """Plants a lake; adding a second audit to the same ``root`` shares its data (another model, another seed).

    Args:
        root: folder of the lake.
        sizes: of the duplicate groups, one per distinct training picture.
        captions: of the groups, in order of ``sizes``; "group 0", … without them.
        urls: of the groups likewise.
        draw: number of a picture → (H, W, 3) uint8; of a generation, which is square, the same one with noise.
        behaviours: of the drawn prompts, the most duplicated first, repeated as often as needed.
        controls: pictures that no model saw; 0 for none.
        controls_within_delta: of those, the ones that the paper's rule calls.
        controls_that_copy: of those, the ones by whose captions the image of the last of ``sizes`` comes back, by another
            generation than the nearest.
        held_out_near: of those, the ones that are, as pictures, as near to a training image as a copy.
        listed: the user's prompts, beside the drawn ones; they give nothing back.
        max_prompts, images_per_prompt, images_per_control, unflagged_fraction, keep: as in ``eidetic generate``.
        delta, calibrated_distance, max_false_positive_rate, regenerate: as in ``eidetic match``.
        model: name and revision.
        base_seed: of the draw and of the distances.
    """
    lake = Lake(str(root))
    lake.create()
    texts = list(captions) if captions is not None else [f"group {number}" for number in range(len(sizes))]
    places = list(urls) if urls is not None else [f"https://train.example/{number}.png" for number in range(len(sizes))]
    samples, groups = _training(sizes, texts, places)
    samples += [_sample(f"https://control.example/{n}.png", f"control {n}", 0, "control", 10_000 + n) for n in range(controls)]
    ingest, embed = _write_data(lake, samples, draw)
    deduplicate = _write_groups(lake, embed, groups)
    prompts = prompt_rows.drawn_prompts(
        lake, deduplicate, max_prompts=max_prompts, images_per_prompt=images_per_prompt, base_seed=base_seed
    ).rows
    drawn = [prompt["prompt_id"] for prompt in prompts]
    behaviour = {prompt: behaviours[place % len(behaviours)] for place, prompt in enumerate(drawn)}
    prompts += prompt_rows.listed_prompts(lake, deduplicate, list(listed), lambda _: images_per_prompt)
    prompts += prompt_rows.control_prompts(lake, embed, lambda _: images_per_control)

    parameters = {
        "model_revision": model, "generator": "diffusers", "seed": base_seed, "max_prompts": max_prompts, "keep": keep,
        "images_per_prompt": images_per_prompt, "unflagged_fraction": unflagged_fraction,
    }  # fmt: skip
    upstream = {"deduplicate": deduplicate.snapshot_id}
    audit = snapshot_id("generate", parameters, upstream)
    identity = {"audit_id": audit, "model_revision": model, "parameters_digest": "generated so"}
    lake.write("prompts", audit, 0, [{**identity, **prompt} for prompt in prompts])
    plan = Filter(clique_distance=0.15, clique_size=3, keep=keep, unflagged_fraction=unflagged_fraction)
    plans = _plans(prompts, behaviour, drawn, groups, controls_within_delta, controls_that_copy)
    made, cliques = [], []
    for prompt, planned in zip(prompts, plans, strict=True):
        some, clique = _generate(prompt, planned, plan, base_seed, draw)
        made += some
        cliques.append({**identity, **clique})
    generations = [{**identity, **attempt.row} for attempt in made]
    half = len(generations) // 2
    lake.write("generations", audit, 0, generations[:half])
    lake.write("generations", audit, 1000, generations[half:])
    lake.write("cliques", audit, 0, cliques)
    generate = lake.complete("generate", audit, parameters, upstream, {"model": model, "seconds": 1.0})

    # What is planted as soft lies over delta: the l2 of a copy is tried apart, in tests of its own.
    options = MatchOptions(
        copy_l2=0.99,
        delta=delta, calibrated_distance=calibrated_distance, max_false_positive_rate=max_false_positive_rate,
        regenerate=regenerate,
    )  # fmt: skip
    match = _write_matches(lake, generate, options, made, groups, samples, held_out_near, base_seed, ingest, embed)
    return FakeLake(lake, ingest, embed, deduplicate, generate, match, behaviour)


# -- data -------------------------------------------------------------------------------------------------------------


def _sample(url: str | None, caption: str | None, occurrence: int, role: str, number: int) -> dict[str, Any]:
    return {
        "sample_id": sample_id(url, caption, occurrence), "role": role, "url": url, "caption": caption,
        "occurrence": occurrence, "number": number,
    }  # fmt: skip


def _training(
    sizes: Sequence[int], captions: Sequence[str | None], urls: Sequence[str | None]
) -> tuple[list[dict], list[dict]]:
    """Samples, and one row per member of each group; ``picture`` is the number of what is drawn."""
    samples, groups = [], []
    for number, (size, caption, url) in enumerate(zip(sizes, captions, urls, strict=True)):
        members = [_sample(url, caption, copy, "training", number) for copy in range(size)]
        ids = sorted(member["sample_id"] for member in members)
        samples += members
        groups += [
            {"sample_id": sample, "group_id": ids[0], "size": size, "representative": ids[-1],
             "lowest_cosine": 1.0 if size == 1 else 0.97, "picture": number}
            for sample in ids
        ]  # fmt: skip
    return samples, groups


def _write_data(lake: Lake, samples: list[dict[str, Any]], draw: Callable[[int], np.ndarray]) -> tuple[Manifest, Manifest]:
    """ingest and embed, in two parts; one more sample was never downloaded."""
    snapshot = snapshot_id("ingest", {"samples": [sample["sample_id"] for sample in samples]}, {})
    embedded = snapshot_id("embed", {}, {"ingest": snapshot})
    lost = {**_sample("https://gone.example/1.png", "a dead link", 0, "training", 0), "lost": True}
    half = len(samples) // 2
    for part, rows in enumerate([samples[:half], [*samples[half:], lost]]):
        present = [row for row in rows if "lost" not in row]
        lake.write("images", snapshot, part, [
            {"sample_id": row["sample_id"], "role": row["role"], "image": encode_png(draw(row["number"])),
             "encoding": "png", "width": SIDE, "height": SIDE, "image_size": SIDE, "resize_mode": "keep_ratio"}
            for row in present
        ])  # fmt: skip
        lake.write("samples", snapshot, part, [_sample_row(row) for row in rows])
        lake.write("embeddings", embedded, part, [
            {"sample_id": row["sample_id"], "role": row["role"], "model": "fake", "pretrained": "none",
             "preprocessing": "none", "vector": [1.0, 0.0], "thumbnail": None, "caption_cosine": None,
             "other_caption_cosine": None, "status": "success", "reason": None}
            for row in present
        ])  # fmt: skip
    ingest = lake.complete("ingest", snapshot, {}, {})
    return ingest, lake.complete("embed", embedded, {}, {"ingest": snapshot})


def _sample_row(row: dict[str, Any]) -> dict[str, Any]:
    lost = "lost" in row
    size = None if lost else SIDE
    return {
        **{name: row[name] for name in ("sample_id", "role", "url", "caption", "occurrence")},
        "source_file": "metadata.parquet", "source_row": row["number"],
        "status": "failed_to_download" if lost else "success", "reason": "404" if lost else None,
        "sha256": None if lost else "0" * 64,
        "original_width": size, "original_height": size, "width": size, "height": size,
        "label": None, "punsafe": None, "pwatermark": None, "similarity": None, "metadata_hash": None, "metadata_width": None,
        "metadata_height": None, "drift": "unknown", "ingested_at": MOMENT,
    }  # fmt: skip


def _write_groups(lake: Lake, embed: Manifest, groups: list[dict[str, Any]]) -> Manifest:
    upstream = {"embed": embed.snapshot_id}
    snapshot = snapshot_id("deduplicate", {}, upstream)
    names = ("sample_id", "group_id", "size", "representative", "lowest_cosine")
    lake.write("duplicate_groups", snapshot, 0, [
        {**{name: row[name] for name in names}, "diameter": int(row["size"] > 1), "identical_to": None} for row in groups
    ])  # fmt: skip
    lake.write("keep_list", snapshot, 0, [
        {"sample_id": row["sample_id"], "url": None, "group_id": row["group_id"], "size": row["size"]}
        for row in groups if row["sample_id"] == row["representative"]
    ])  # fmt: skip
    _write_sweep(lake, snapshot, groups)
    ids: dict[str, list[str]] = {}
    for row in groups:
        ids.setdefault(row["group_id"], []).append(row["sample_id"])
    pairs = [(a, b) for members in ids.values() for a in members for b in members if a < b]
    lake.write("duplicate_pairs", snapshot, 0, [
        {"sample_id_a": a, "sample_id_b": b, "cosine": 0.97, "pixel_distance": None, "pixels_agree": None} for a, b in pairs
    ])  # fmt: skip
    parameters = {"keep_one": "most_central", "pixel_distance": 0.08}
    return lake.complete("deduplicate", snapshot, parameters, upstream, {"share_removed": 0.25})


SWEPT = (
    (0.97, 1.0, True, True),
    (0.97, 3.0, True, None),
    (0.93, 2.0, False, False),
    (0.86, 4.0, None, True),
    (0.82, 6.0, None, False),
)
"""Of each sampled pair: cosine, stands_for, found, pixels_agree. The search's threshold is 0.9."""


def _write_sweep(lake: Lake, snapshot: str, groups: list[dict[str, Any]]) -> None:
    if not groups:
        return
    sizes = [*({"threshold": threshold / 100, "groups": None, "images_in_groups": None, "largest": None}
               for threshold in range(80, 90)),
             {"threshold": 0.9, "groups": 3, "images_in_groups": 9, "largest": 5},
             {"threshold": 0.95, "groups": 2, "images_in_groups": 4, "largest": 2}]  # fmt: skip
    lake.write("group_sizes", snapshot, 0, sizes)
    lake.write("sampled_pairs", snapshot, 0, [
        {"sample_id_a": "a", "sample_id_b": str(number), "cosine": cosine, "stands_for": stands_for, "found": found,
         "judged": found is not None, "pixel_distance": None if agree is None else 0.01 if agree else 0.3,
         "pixels_agree": agree}
        for number, (cosine, stands_for, found, agree) in enumerate(SWEPT)
    ])  # fmt: skip


# -- generations ------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """How near a generation lies to an image: the ranges that it is drawn from.

    Attributes:
        l2: distance over all pixels.
        coarse: coarse_l2 as a share of that.
        relative: adaptive l2, and twice the tiled one.
        near: whether its ratio is one that Gu's rule calls.
        copied: whether its coarse ratio is that of a copy.
    """

    l2: tuple[float, float]
    coarse: tuple[float, float]
    relative: tuple[float, float]
    near: bool
    copied: bool


# Ranges don't overlap where a rule decides between them: no verdict is left to chance.
FINE, FAR, SEEN, UNSEEN = (0.6, 0.9), (0.35, 0.5), (0.1, 0.5), (1.6, 2.0)
TRAINED = {
    "copy": Kind((0.02, 0.12), FINE, SEEN, True, True),
    "half_learned": Kind((0.18, 0.2), (0.9, 1.0), SEEN, False, False),
    "loose": Kind((0.02, 0.12), FINE, UNSEEN, False, False),
    "soft": Kind((0.16, 0.18), (0.5, 0.7), SEEN, False, True),
    "unproven": Kind((0.02, 0.12), FINE, UNSEEN, True, True),
    "none": Kind(FAR, FINE, UNSEEN, False, False),
    "other": Kind((0.51, 0.6), FINE, UNSEEN, False, False),
}
"""A generation against a training image; an "other" one that it does not copy is farther than its own."""

CONTROL = {
    "loose": Kind((0.02, 0.12), FINE, (1.0, 1.5), False, False),
    "none": Kind((0.25, 0.3), (0.9, 1.0), (1.0, 1.5), False, False),
}
"""A control's generations against controls: nearer than what no training prompt gives back, farther than what is seen."""


def _distances(kind: Kind, random: np.random.Generator) -> dict[str, Any]:
    """The distances of one comparison, in the columns of ``matches`` and ``decoys``."""
    absolute, relative = random.uniform(*kind.l2), random.uniform(*kind.relative)
    ratio = GU_RATIO * random.uniform(*((0.2, 0.9) if kind.near else (1.5, 2.7)))
    limit = MatchOptions().copy_ratio
    return {
        # tiled l2 goes with the relative one, so that every distance can be chosen for the calibration.
        "l2": absolute, "tiled_l2": relative / 2, "adaptive_l2": relative, "n_others": 5,
        "nearest_other_l2": absolute / ratio, "ratio": ratio, "coarse_l2": absolute * random.uniform(*kind.coarse),
        "coarse_ratio": limit * random.uniform(*((0.1, 0.6) if kind.copied else (1.4, 1.9))),
    }  # fmt: skip


class Planned(NamedTuple):
    """What one prompt's generations are.

    Attributes:
        own: the group or control whose caption it is; None for nobody's.
        kind: how near the nearest generation is to that.
        others: (group, role) of the neighbours that they are compared with.
        copied: of those, the one that all but the nearest generation copy; None without.
        shown: (number of the picture, behaviour) of the nearest generation; of the others.
        flagged: whether the clique test flags it.
    """

    own: str | None
    kind: Kind
    others: list[tuple[str, str]]
    copied: str | None
    shown: tuple[tuple[int | None, str], tuple[int | None, str]]
    flagged: bool


def _plans(
    prompts: list[dict[str, Any]],
    behaviour: dict[str, str],
    drawn: list[str],
    groups: list[dict[str, Any]],
    controls_within_delta: int,
    controls_that_copy: int,
) -> list[Planned]:
    pictures = {row["group_id"]: row["picture"] for row in groups}
    control_ids = [prompt["sample_id"] for prompt in prompts if prompt["origin"] == "control"]
    plans = []
    for place, prompt in enumerate(prompts):
        planted = behaviour.get(prompt["prompt_id"], "none unflagged")
        what = planted.split()[0]
        if prompt["origin"] == "control":
            own, number = prompt["sample_id"], control_ids.index(prompt["sample_id"])
            kind = CONTROL["loose" if number < controls_within_delta else "none"]
            last = groups[-1]["group_id"] if groups else None
            copied = last if number < controls_that_copy else None
            others = [(one, role) for one, role in ((control_ids[number - 1], "control"), (last, "training")) if one]
            shown: tuple[int | None, str] = None, "none"
        else:
            own = prompt["group_id"]
            kind = TRAINED["none" if what == "neighbour" else what]
            listed = prompt["prompt_id"] not in drawn
            other = groups[0]["group_id"] if listed else prompts[(place + 1) % len(drawn)]["group_id"]
            copied, others = (other if what == "neighbour" else None), [(other, "training")]
            shown = (pictures.get(own), what) if what not in ("neighbour", "none") else (None, "none")
        others = [one for one in others if one[0] != own]
        rest = shown if copied is None else (pictures[copied], "copy")
        flagged = prompt["origin"] == "duplicates" and not planted.endswith("unflagged")
        plans.append(Planned(own, kind, others, copied, (shown, rest), flagged))
    return plans


class Made(NamedTuple):
    """One attempt.

    Attributes:
        row: of ``generations``, without the audit's columns.
        image: its picture, whether it is stored or not; None where it failed.
        matches: rows of ``matches`` that it has if it is judged: role, relation, group and distances.
        copied: the group of the neighbour that it copies; None without.
    """

    row: dict[str, Any]
    image: np.ndarray | None
    matches: list[dict[str, Any]]
    copied: str | None


def _generate(
    prompt: dict[str, Any], planned: Planned, plan: Filter, base_seed: int, draw: Callable[[int], np.ndarray]
) -> tuple[list[Made], dict[str, Any]]:
    """Its attempts and a row of ``cliques``. A prompt with more than two attempts loses its last one."""
    requested = prompt["images_requested"]
    failed = 1 if requested > 2 else 0
    usable = range(requested - failed)
    rule, probability, all_kept = plan.decide(prompt, planned.flagged)
    seeds = [seed(base_seed, prompt["prompt_id"], index) for index in range(requested)]
    randoms = [np.random.default_rng(one) for one in seeds]
    own = [None if planned.own is None else _distances(planned.kind, randoms[index]) for index in usable]
    nearest = None if planned.own is None or not own else min(usable, key=lambda index: own[index]["l2"])  # type: ignore[index]
    kept = set(usable) if all_kept else set()
    if plan.keep != "none" and not all_kept:
        # The clique's middle is the last of them.
        kept = {index for index in (nearest, usable[-1] if planned.flagged and own else None) if index is not None}
    made = []
    for index in range(requested):
        image, matches, copied = None, [], None
        success = index < requested - failed
        if success:
            random = randoms[index]
            copied = planned.copied if index != nearest else None
            image = _picture(*planned.shown[index != nearest], draw, random)
            if (distances := own[index]) is not None:
                matches.append({"group_id": planned.own, "role": "control" if prompt["origin"] == "control" else "training",
                                "relation": "own", "found_by": "own", **distances})  # fmt: skip
            for other, role in planned.others:
                kind = CONTROL["none"] if role == "control" else TRAINED["copy" if other == copied else "other"]
                matches.append({"group_id": other, "role": role, "relation": "neighbour", "found_by": "both",
                                **_distances(kind, random)})  # fmt: skip
        row = {
            "prompt_id": prompt["prompt_id"], "sample_index": index, "seed": seeds[index],
            "status": "success" if success else "failed", "reason": None if success else "out of memory",
            "in_clique": planned.flagged and success, "nearest": index == nearest,
            "own_l2": matches[0]["l2"] if matches and planned.own is not None else None,
            "image": encode_png(image) if image is not None and index in kept else None,
            "thumbnail": None if image is None else thumbnail(image),
            "width": SIDE if success else None, "height": SIDE if success else None, "steps": 8, "guidance_scale": 3.0,
            "seconds": 0.1, "device": "cpu", "dtype": "float32",
        }  # fmt: skip
        made.append(Made(row, image, matches, copied))
    clique = {
        "prompt_id": prompt["prompt_id"], "n_generated": requested - failed, "n_failed": failed, "edge_distance": 0.15,
        "clique_size": requested - failed if planned.flagged else 1, "clique_exact": True, "clique_threshold": 3,
        "mean_distance": 0.05 if planned.flagged else None, "flagged": planned.flagged, "keep_rule": rule,
        "keep_probability": probability, "sizes_by_distance": "{}", "seconds": 0.4,
    }  # fmt: skip
    return made, clique


def _picture(number: int | None, what: str, draw: Callable[[int], np.ndarray], random: np.random.Generator) -> np.ndarray:
    """A training picture with a little noise, or a blur of it where it is but half learned; a new one without a number."""
    drawn = draw(int(random.integers(20_000, 30_000)) if number is None else number)
    if what == "half_learned":
        drawn = blurred(drawn)
    noise = random.integers(-4, 5, drawn.shape)
    return (drawn + noise).clip(0, 255).astype(np.uint8)


# -- matches ----------------------------------------------------------------------------------------------------------


def _write_matches(
    lake: Lake,
    generate: Manifest,
    options: MatchOptions,
    made: list[Made],
    groups: list[dict[str, Any]],
    samples: list[dict[str, Any]],
    held_out_near: int,
    base_seed: int,
    ingest: Manifest,
    embed: Manifest,
) -> Manifest:
    parameters = shaping(options)
    upstream = {"generate": generate.snapshot_id}
    snapshot = snapshot_id("match", parameters, upstream)
    identity = {
        "audit_id": generate.snapshot_id, "model_revision": generate.parameters["model_revision"],
        "parameters_digest": "matched so",
    }  # fmt: skip
    members: dict[str, list[str]] = {}
    for row in groups:
        members.setdefault(row["group_id"], []).append(row["sample_id"])

    def matched(attempt: Made, regenerated: bool) -> list[dict[str, Any]]:
        names = ("prompt_id", "sample_index", "nearest")
        return [
            {**identity, **{name: attempt.row[name] for name in names}, "regenerated": regenerated, "cosine": 0.9, "offset": 0,
             "sample_id": _any(members.get(row["group_id"], [row["group_id"]]), attempt.row["seed"]),
             "extracted": row["l2"] <= options.delta, **row}
            for row in attempt.matches
        ]  # fmt: skip

    again = _made_again(made) if options.regenerate and generate.parameters["keep"] != "none" else []
    rows = [row for attempt in made if attempt.row["image"] is not None for row in matched(attempt, False)]
    more = [row for attempt in again for row in matched(attempt, True)]
    lake.write("matches", snapshot, 0, rows)
    if again:
        lake.write("matches", snapshot, REGENERATED, more)
        lake.write("regenerations", snapshot, 0, [
            {**identity, **{name: attempt.row[name] for name in ("prompt_id", "sample_index")}, "group_id": attempt.copied,
             "bound": 0.01, "status": "success", "reason": None, "image": encode_png(attempt.image)}
            for attempt in again if attempt.image is not None
        ])  # fmt: skip
    decoys = _decoys(groups, [row["sample_id"] for row in samples if row["role"] == "control"], held_out_near, base_seed)
    lake.write("decoys", snapshot, 0, [{**identity, **row} for row in decoys])
    copies = copy_calibration_row(lake.read("decoys", snapshot), options.asked)
    lake.write("copy_calibration", snapshot, 0, [{**identity, **copies}])
    limits = CopyLimits.of(copies)
    calibration = calibration_rows(*nearest_to_own(lake, snapshot, generate.snapshot_id), options.asked)
    lake.write("calibration", snapshot, 0, [{**identity, **row} for row in calibration])
    found = {
        row["sample_id"] for row in [*rows, *more] if row["role"] == "training" and (row["extracted"] or is_copy(row, limits))
    }
    size = {row["sample_id"]: row["size"] for row in groups}
    lake.write("eidetic_counts", snapshot, 0, [
        {**identity, "sample_id": sample, "eidetic_delta": options.eidetic_delta, "k": size[sample]}
        for sample in sorted(found)
    ])  # fmt: skip
    lake.write("unreadable", snapshot, 0, [])
    lake.write("audits", snapshot, 0, [{
        **identity, "generator": "diffusers", "model": generate.facts["model"], "ingest_snapshot": ingest.snapshot_id,
        "embed_snapshot": embed.snapshot_id, "deduplicate_snapshot": generate.upstream["deduplicate"],
        "parameters": json.dumps({"generate": generate.parameters, "match": parameters}), "versions": "{}",
        "machine": "fake", "finished_at": MOMENT,
    }])  # fmt: skip
    facts = {
        "candidates": {"sampled": 20, "nearest": 1.0, "next": 0.95, "by_clip": 0.9, "by_thumbnail": 0.95},
        "regeneration": {"pointed": len(again), "success": len(again), "copies_of_others": 0, "pointed_at": None}
        if options.regenerate else {},
    }  # fmt: skip
    return lake.complete("match", snapshot, parameters, upstream, facts)


def _any(members: list[str], seed: int) -> str:
    """One of a group's members, by a generation's seed."""
    return members[seed % len(members)]


def _made_again(made: list[Made]) -> list[Made]:
    """Of each prompt that copies another image and stores no picture of it the first attempt that does."""
    stored = {attempt.row["prompt_id"] for attempt in made if attempt.copied and attempt.row["image"] is not None}
    first: dict[str, Made] = {}
    for attempt in made:
        if attempt.copied and attempt.row["prompt_id"] not in stored:
            first.setdefault(attempt.row["prompt_id"], attempt)
    return list(first.values())


def _decoys(groups: list[dict[str, Any]], controls: list[str], near: int, base_seed: int) -> list[dict[str, Any]]:
    """Rows of ``decoys``: the first ``near`` of the held-out ones are as near as copies, and blurs as near as what is half
    learned; without groups there is nothing that they could be near to."""
    if not groups:
        return []
    alone = [row for row in groups if row["sample_id"] == row["representative"]]
    nearest, random = groups[0]["group_id"], np.random.default_rng([base_seed, 1])
    rows = [("held_out", sample, nearest, "copy" if n < near else "none") for n, sample in enumerate(controls)]
    next_group = {row["group_id"]: alone[(place + 1) % len(alone)]["group_id"] for place, row in enumerate(alone)}
    if len(alone) > 1:
        rows += [("left_out", row["sample_id"], next_group[row["group_id"]], "none") for row in alone]
    rows += [("blurred", row["sample_id"], row["group_id"], "half_learned") for row in alone]
    return [
        {"kind": kind, "sample_id": sample, "group_id": group, **_distances(TRAINED[planted], random)}
        for kind, sample, group, planted in rows
    ]  # fmt: skip
