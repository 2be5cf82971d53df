"""A whole lake of planted truth, made in a second: every table, complete manifests, and distances that are known.

Nothing here matches pictures or runs a model. What each prompt gives back is planted by name (``BEHAVIOURS``), so that a
test of measure, report or query knows the answer beforehand.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.match import MatchOptions, calibration_rows
from tests.planted import picture
from transforms import prompts as prompt_rows
from transforms.generation import Filter
from transforms.identity import sample_id, seed
from transforms.images import encode_png
from transforms.lake import Lake, Manifest, snapshot_id

MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
SIDE = 16
"""Of the pictures, in pixels."""

BEHAVIOURS = ("copy", "none", "loose", "tight", "neighbour")
"""What a prompt's generations do, in terms of the image whose caption it is, for 0.15 as delta:

    copy        near by every distance: both verdicts call it
    loose       l2 within delta, but no nearer than controls are: only the paper's rule calls it
    tight       l2 over delta, but much nearer than controls are: only the calibrated verdict calls it
    neighbour   a copy of the next drawn group's image, and nothing like its own
    none        nothing near

A name that ends in " unflagged" does the same without a clique: it is seen only if the prompt is in the kept slice.
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


def fake_lake(
    root: Path | str,
    *,
    sizes: Sequence[int] = (12, 5, 4, 3, 2, 2, 1, 1, 1, 1),
    captions: Sequence[str | None] | None = None,
    urls: Sequence[str | None] | None = None,
    draw: Callable[[int], np.ndarray] = lambda number: picture(number, SIDE, SIDE),
    behaviours: Sequence[str] = (*BEHAVIOURS, "copy unflagged", "none unflagged"),
    controls: int = 60,
    controls_within_delta: int = 0,
    listed: Sequence[str] = (),
    max_prompts: int = 1000,
    images_per_prompt: int = 4,
    images_per_control: int = 2,
    unflagged_fraction: float = 0.5,
    keep: str = "flagged",
    delta: float = 0.15,
    calibrated_distance: str = "adaptive_l2",
    max_false_positive_rate: float = 0.1,
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
        listed: the user's prompts, beside the drawn ones; they give nothing back.
        max_prompts, images_per_prompt, images_per_control, unflagged_fraction, keep: as in ``eidetic generate``.
        delta, calibrated_distance, max_false_positive_rate: as in ``eidetic match``.
        model: name and revision.
        base_seed: of the draw and of the distances.
    """
    lake = Lake(str(root))
    lake.create()
    random = np.random.default_rng(base_seed)
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
    pictures = {row["group_id"]: row["picture"] for row in groups}
    generations, cliques = [], []
    for place, prompt in enumerate(prompts):
        planted = behaviour.get(prompt["prompt_id"], "none unflagged")
        target = prompt["group_id"]
        if planted.startswith("neighbour"):
            target = _next_group(prompts, drawn, place)
        copies = planted.split()[0] != "none" and target in pictures
        made, clique = _generate(prompt, planted, plan, pictures[target] if copies else None, random, base_seed, draw)
        generations += [{**identity, **row} for row in made]
        cliques.append({**identity, **clique})
    half = len(generations) // 2
    lake.write("generations", audit, 0, generations[:half])
    lake.write("generations", audit, 1000, generations[half:])
    lake.write("cliques", audit, 0, cliques)
    generate = lake.complete("generate", audit, parameters, upstream, {"model": model, "seconds": 1.0})

    options = MatchOptions(
        delta=delta, calibrated_distance=calibrated_distance, max_false_positive_rate=max_false_positive_rate
    )
    match = _write_matches(
        lake, generate, options, prompts, generations, groups, behaviour, drawn, controls_within_delta, random, ingest, embed
    )
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
             "preprocessing": "none", "vector": [1.0, 0.0], "thumbnail": None, "status": "success", "reason": None}
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
        "punsafe": None, "pwatermark": None, "similarity": None, "metadata_hash": None, "metadata_width": None,
        "metadata_height": None, "ingested_at": MOMENT,
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


def _next_group(prompts: list[dict[str, Any]], drawn: list[str], place: int) -> str:
    """The group of the drawn prompt after this one: what a "neighbour" copies."""
    return prompts[(place + 1) % len(drawn)]["group_id"]


def _generate(
    prompt: dict[str, Any],
    planted: str,
    plan: Filter,
    target: int | None,
    random: np.random.Generator,
    base_seed: int,
    draw: Callable[[int], np.ndarray],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of ``generations`` and a row of ``cliques``. A prompt with two attempts or more loses its last one."""
    requested = prompt["images_requested"]
    failed = 1 if requested > 2 else 0
    flagged = prompt["origin"] == "duplicates" and not planted.endswith("unflagged")
    rule, probability, kept = plan.decide(prompt, flagged)
    made = []
    for index in range(requested):
        success = index < requested - failed
        image = None
        if kept and success:
            number = int(random.integers(20_000, 30_000)) if target is None else target
            drawn = draw(number)
            noise = random.integers(-4, 5, drawn.shape)
            image = encode_png((drawn + noise).clip(0, 255).astype(np.uint8))
        made.append({
            "prompt_id": prompt["prompt_id"], "sample_index": index,
            "seed": seed(base_seed, prompt["prompt_id"], index), "status": "success" if success else "failed",
            "reason": None if success else "out of memory", "in_clique": flagged and success, "image": image,
            "width": SIDE if success else None, "height": SIDE if success else None, "steps": 8, "guidance_scale": 3.0,
            "seconds": 0.1, "device": "cpu", "dtype": "float32",
        })  # fmt: skip
    clique = {
        "prompt_id": prompt["prompt_id"], "n_generated": requested - failed, "n_failed": failed, "edge_distance": 0.15,
        "clique_size": requested - failed if flagged else 1, "clique_exact": True, "clique_threshold": 3,
        "mean_distance": 0.05 if flagged else None, "flagged": flagged, "keep_rule": rule,
        "keep_probability": probability, "sizes_by_distance": "{}", "seconds": 0.4,
    }  # fmt: skip
    return made, clique


# -- matches ----------------------------------------------------------------------------------------------------------


def _distances(kind: str, control: bool, random: np.random.Generator) -> dict[str, float]:
    """l2, tiled l2 and adaptive l2 of one comparison, drawn from ranges that don't overlap: no verdict is left to chance."""
    absolute = random.uniform(0.02, 0.12)
    if kind not in ("copy", "loose"):
        absolute = random.uniform(0.2, 0.3) if control else random.uniform(0.35, 0.5)
    relative = random.uniform(0.1, 0.5)
    if kind not in ("copy", "tight"):
        relative = random.uniform(1.0, 1.5) if control else random.uniform(1.6, 2.0)
    # tiled l2 goes with the relative one, so that every distance can be chosen for the calibration.
    return {"l2": absolute, "tiled_l2": relative / 2, "adaptive_l2": relative}


def _write_matches(
    lake: Lake,
    generate: Manifest,
    options: MatchOptions,
    prompts: list[dict[str, Any]],
    generations: list[dict[str, Any]],
    groups: list[dict[str, Any]],
    behaviour: dict[str, str],
    drawn: list[str],
    controls_within_delta: int,
    random: np.random.Generator,
    ingest: Manifest,
    embed: Manifest,
) -> Manifest:
    parameters = dataclasses.asdict(options)
    upstream = {"generate": generate.snapshot_id}
    snapshot = snapshot_id("match", parameters, upstream)
    identity = {
        "audit_id": generate.snapshot_id, "model_revision": generate.parameters["model_revision"],
        "parameters_digest": "matched so",
    }  # fmt: skip
    members: dict[str, list[str]] = {}
    for row in groups:
        members.setdefault(row["group_id"], []).append(row["sample_id"])
    control_ids = [prompt["sample_id"] for prompt in prompts if prompt["origin"] == "control"]
    by_id = {prompt["prompt_id"]: (place, prompt) for place, prompt in enumerate(prompts)}
    rows = []
    for generation in generations:
        if generation["image"] is None:
            continue
        place, prompt = by_id[generation["prompt_id"]]
        planted = behaviour.get(prompt["prompt_id"], "none").split()[0]
        control = prompt["origin"] == "control"
        own = prompt["sample_id"] if control else prompt["group_id"]
        if control:
            planted = "loose" if control_ids.index(own) < controls_within_delta else "none"
            other = control_ids[control_ids.index(own) - 1]
        elif prompt["prompt_id"] in drawn:
            other = _next_group(prompts, drawn, place)
        else:
            other = groups[0]["group_id"]
        kinds = [("neighbour", other, "copy" if planted == "neighbour" else "none")]
        if own is not None:
            kinds.insert(0, ("own", own, "none" if planted == "neighbour" else planted))
        for relation, group, kind in kinds:
            if group == own and relation == "neighbour":
                continue
            distances = _distances(kind, control, random)
            candidates = [group] if control else members[group]
            rows.append({
                **identity, "prompt_id": prompt["prompt_id"], "sample_index": generation["sample_index"],
                "sample_id": candidates[int(random.integers(len(candidates)))], "group_id": group,
                "role": "control" if control else "training", "relation": relation, "cosine": 0.9, "offset": 0,
                **distances, "n_others": 5, "extracted": distances["l2"] <= options.delta,
            })  # fmt: skip
    lake.write("matches", snapshot, 0, rows)
    calibration = calibration_rows(lake.read("matches", snapshot), lake.read("prompts", generate.snapshot_id), options)
    lake.write("calibration", snapshot, 0, [{**identity, **row} for row in calibration])
    threshold = next(row["threshold"] for row in calibration if row["chosen"])
    found = {
        row["sample_id"]
        for row in rows
        if row["role"] == "training"
        and (
            row["extracted"]
            or (threshold is not None and row["relation"] == "own" and row[options.calibrated_distance] < threshold)
        )
    }
    size = {row["sample_id"]: row["size"] for row in groups}
    lake.write("eidetic_counts", snapshot, 0, [
        {**identity, "sample_id": sample, "eidetic_delta": options.eidetic_delta, "k": size[sample]}
        for sample in sorted(found)
    ])  # fmt: skip
    lake.write("audits", snapshot, 0, [{
        **identity, "generator": "diffusers", "model": generate.facts["model"], "ingest_snapshot": ingest.snapshot_id,
        "embed_snapshot": embed.snapshot_id, "deduplicate_snapshot": generate.upstream["deduplicate"],
        "parameters": json.dumps({"generate": generate.parameters, "match": parameters}), "versions": "{}",
        "machine": "fake", "finished_at": MOMENT,
    }])  # fmt: skip
    return lake.complete("match", snapshot, parameters, upstream)
