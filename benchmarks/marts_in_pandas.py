"""Verdicts, rates and extractions as one would write them in pandas: what ``benchmarks.marts`` measures DuckDB against.

The same columns, value for value, of prompts that were drawn (the made-up audit has no list, and nothing forgotten). Columns
are chosen when files are read, and everything but the intervals is vectorised. Those are the same functions on either side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from transforms.kernels.rates import wilson_interval
from transforms.store.lake import Lake
from transforms.store.scan import exact_interval, slice_interval_of
from transforms.store.schema import TABLES

DOMAIN = r"^[a-z][a-z0-9+.-]*://(?:[^/?#]*@)?(?:www\.)?(?P<domain>[^/?#:]+)"
CELL = ["bucket", "bucket_order", "stratum", "inclusion_probability"]


class PandasMarts:
    """The three marts of a lake's one audit.

    Args:
        root: the lake.
        types: pandas' ``dtype_backend``: None for its own types, "pyarrow" for Arrow's.
    """

    def __init__(self, root: str, types: str | None):
        self.lake, self.types = Lake(root), types
        names = ["distance", "threshold", "chosen", "generations_per_prompt", "generations_per_control"]
        calibration = self.read("calibration", names)
        chosen = calibration[calibration.chosen].iloc[0]
        self.threshold = chosen.threshold
        self.times = math.ceil(chosen.generations_per_prompt / max(chosen.generations_per_control, 1))
        limits = self.read("copy_calibration", ["coarse_l2_limit", "coarse_ratio_limit"]).iloc[0]
        self.delta = json.loads(self.read("audits", ["parameters"]).parameters.iloc[0])["match"]["delta"]
        distances = ["l2", "tiled_l2", "adaptive_l2", "nearest_other_l2", "ratio", "coarse_l2", "coarse_ratio"]
        names = ["prompt_id", "sample_index", "nearest", "regenerated", "sample_id", "group_id", "role", "relation"]
        matches = self.read("matches", [*names, *distances, "extracted"])
        matches = matches.assign(distance=matches[chosen.distance], own=matches.relation == "own")
        of_controls = matches[(matches.role == "control") & matches.own & matches.nearest]
        self.control_distances = np.sort(of_controls.distance.dropna().to_numpy(float))
        matches = matches[matches.role == "training"].drop(columns="role")
        copied = (matches.coarse_l2 < limits.coarse_l2_limit) & (matches.coarse_ratio < limits.coarse_ratio_limit)
        self.matches = matches.assign(copied=copied.fillna(False).astype(bool))
        names = ["prompt_id", "text", "origin", "sample_id", "group_id", "n_duplicates", "stratum", "stratum_order"]
        self.prompts = self.read("prompts", [*names, "inclusion_probability"])
        names = ["prompt_id", "n_generated", "clique_size", "mean_distance", "flagged", "keep_rule", "keep_probability"]
        self.cliques = self.read("cliques", names)
        self.samples = self.read("samples", ["sample_id", "url", "caption", "original_width", "original_height", "punsafe"])

    def read(self, table: str, columns: Sequence[str]) -> pd.DataFrame:
        (manifest,) = self.lake.manifests(TABLES[table].stage)
        how = {} if self.types is None else {"dtype_backend": self.types}
        parts = self.lake.parts(table, manifest.snapshot_id)
        return pd.concat([pd.read_parquet(path, columns=list(columns), **how) for path in parts])

    def verdicts(self) -> pd.DataFrame:
        stored = ~self.matches.regenerated
        matches = self.matches[["prompt_id", "copied"]].assign(
            nearest_l2=self.matches.l2.where(stored),
            nearest_generation_l2=self.matches.l2.where(self.matches.nearest),
            extracted=self.matches.extracted & stored,
        )
        per_prompt = matches.groupby("prompt_id").agg(
            nearest_l2=("nearest_l2", "min"), nearest_generation_l2=("nearest_generation_l2", "min"),
            extracted=("extracted", "any"), copied_any=("copied", "any"),
        )  # fmt: skip
        own = self.matches[self.matches.nearest & self.matches.own].rename(
            columns={"distance": "own_distance", "l2": "own_l2", "coarse_l2": "own_coarse_l2",
                     "coarse_ratio": "own_coarse_ratio", "extracted": "extracted_own"}
        )  # fmt: skip
        names = ["own_distance", "own_l2", "own_coarse_l2", "own_coarse_ratio", "extracted_own", "copied"]
        made = self.prompts[self.prompts.origin != "control"].merge(self.cliques, on="prompt_id")
        made = made.merge(self.samples[["sample_id", "url", "original_width", "original_height"]], on="sample_id", how="left")
        made = made.merge(per_prompt.reset_index(), on="prompt_id", how="left")
        made = made.merge(own[["prompt_id", *names]], on="prompt_id", how="left")
        for name in ("extracted", "extracted_own", "copied_any"):
            made[name] = made[name].eq(True).fillna(False).astype(bool)
        known = made.group_id.notna() & (made.own_l2.notna() | (made.n_generated == 0))
        seen = (made.own_distance < self.threshold).fillna(False).astype(bool)
        copied = made.copied.eq(True).fillna(False).astype(bool)
        made["seen"], made["extracted_calibrated"] = seen.where(known), (seen & copied).where(known)
        made["copied"] = copied.where(known)
        as_near = np.searchsorted(self.control_distances, made.own_distance.to_numpy(float), side="right")
        chance = np.minimum(1, self.times * (1 + as_near) / (len(self.control_distances) + 1))
        made["seen_p_value"] = pd.Series(chance, made.index).where(made.own_distance.notna() & made.group_id.notna())
        by_slice = (made.keep_rule == "slice") & ~(made.nearest_generation_l2 <= self.delta).fillna(False).astype(bool)
        weight = np.where(by_slice, 1 / made.keep_probability.where(made.keep_probability > 0, 1).astype(float), 1.0)
        made["extraction_weight"] = np.where(made.extracted, weight, 0.0)
        # What is fastest for each.
        made["prompt_words"] = made.text.str.split().str.len() if self.types is None else made.text.str.count(r"\S+")
        made["domain"] = made.url.str.lower().str.extract(DOMAIN, expand=False)
        width, height = made.original_width, made.original_height
        made["aspect"] = np.select(
            [width >= 1.25 * height, height >= 1.25 * width, width > 0], ["wide", "upright", "square"], None
        )
        made = made.rename(columns={"text": "prompt"})
        return made.sort_values(["stratum_order", "n_duplicates", "prompt_id"], ascending=[False, False, True])

    def extraction_rate(self, verdicts: pd.DataFrame) -> pd.DataFrame:
        rows: list[dict[str, Any]] = []
        hits = {name: self.matches.loc[self.matches[name], ["prompt_id", "group_id"]] for name in ("extracted", "copied")}
        thin = verdicts.keep_rule.isin(["slice", "dropped"]) & (verdicts.keep_probability > 0)
        verdicts = verdicts.assign(
            slice_weight=(1 / verdicts.keep_probability.astype(float)).where(thin),
            surely=verdicts.extraction_weight == 1, in_slice=verdicts.extraction_weight > 1,
            **{name: verdicts[name].astype(bool) for name in ("copied", "seen", "extracted_calibrated")},
        )  # fmt: skip
        for dimension, bucket, order in _buckets(verdicts):
            placed = verdicts.assign(bucket=bucket, bucket_order=order)
            cells = placed.groupby(CELL).agg(
                fewest=("n_duplicates", "min"), most=("n_duplicates", "max"), tried=("prompt_id", "size"),
                flagged=("flagged", "sum"), extracted=("extracted", "sum"), weighted=("extraction_weight", "sum"),
                surely=("surely", "sum"), in_slice=("in_slice", "sum"), slice_weight=("slice_weight", "max"),
                copied_any=("copied_any", "sum"), copied=("copied", "sum"), seen=("seen", "sum"),
                calibrated=("extracted_calibrated", "sum"),
            ).reset_index()  # fmt: skip
            cells["population"] = cells.tried / cells.inclusion_probability
            where = placed[["prompt_id", "bucket"]]
            images = {
                name: some.merge(where, on="prompt_id").groupby("bucket").group_id.nunique() for name, some in hits.items()
            }
            for (name, place), some in cells.groupby(["bucket", "bucket_order"]):
                rows.append({"dimension": dimension, "bucket": name, "bucket_order": place,
                             **{f"images_{one}": counted.get(name, 0) for one, counted in images.items()},
                             **_rates(some)})  # fmt: skip
        return pd.DataFrame(rows)

    def extractions(self, verdicts: pd.DataFrame) -> pd.DataFrame:
        candidates = self.matches[self.matches.extracted | self.matches.copied]
        candidates = candidates.merge(self.prompts[["prompt_id", "origin"]], on="prompt_id")
        copies = candidates[candidates.copied]
        by_caption = copies.assign(own_caption=copies.own, control_caption=copies.origin == "control").groupby("group_id").agg(
            prompts_copied=("prompt_id", "nunique"), copied_by_own_caption=("own_caption", "any"),
            copied_by_control_caption=("control_caption", "any"),
        )  # fmt: skip
        per_group = candidates.groupby("group_id").agg(extracted=("extracted", "any"), copied=("copied", "any"))
        per_group = per_group.join(by_caption)
        per_group["prompts_copied"] = per_group.prompts_copied.fillna(0).astype(int)
        for name in ("copied_by_own_caption", "copied_by_control_caption"):
            per_group[name] = per_group[name].eq(True).fillna(False).astype(bool)
        own_verdicts = verdicts.groupby("group_id")[["seen", "extracted_calibrated"]].max()
        per_group = per_group.join(own_verdicts).reset_index()
        made = candidates.drop(columns=["extracted", "own", "distance"]).rename(columns={"copied": "is_copy"})
        made["confidence_distance"] = made.coarse_ratio.fillna(made.l2)
        order = ["is_copy", "confidence_distance", "l2"]
        made = made.sort_values([*order, "prompt_id", "sample_index"], ascending=[False, True, True, True, True])
        made = made.drop_duplicates("group_id").merge(per_group, on="group_id")
        made = made.merge(self.samples[["sample_id", "url", "caption"]], on="sample_id")
        groups = self.read("duplicate_groups", ["sample_id", "group_id", "size"]).rename(columns={"size": "copies"})
        made = made.merge(groups[["sample_id", "copies"]], on="sample_id")
        members = groups[groups.group_id.isin(made.group_id)].merge(self.samples[["sample_id", "punsafe"]], on="sample_id")
        made = made.merge(members.groupby("group_id").punsafe.max().reset_index(), on="group_id")
        made = made.merge(self.prompts[["prompt_id", "text"]].rename(columns={"text": "prompt"}), on="prompt_id")
        made = made.merge(self.cliques[["prompt_id", "clique_size", "mean_distance", "flagged"]], on="prompt_id")
        generations = self.read("generations", ["prompt_id", "sample_index", "seed", "steps", "guidance_scale"])
        made = made.merge(generations, on=["prompt_id", "sample_index"])
        made = made.merge(self.read("eidetic_counts", ["sample_id", "k"]), on="sample_id", how="left")
        for k in (1, 10, 100, 1000):
            made[f"eidetic_{k}"] = (made.k <= k).where(made.k.notna())
        made = made.sort_values([*order, "sample_id"], ascending=[False, True, True, True], ignore_index=True)
        return made.assign(confidence_rank=made.index + 1).drop(columns="confidence_distance")


def _buckets(verdicts: pd.DataFrame) -> Iterator[tuple[str, pd.Series, pd.Series]]:
    """Dimension, and for each prompt its bucket and what sorts that."""
    yield "all", pd.Series("drawn", verdicts.index), pd.Series(0, verdicts.index)
    yield "duplicates", verdicts.stratum, verdicts.stratum_order
    power = np.ceil(np.log2(verdicts.prompt_words.astype(int).clip(lower=1))).astype(int).clip(upper=7)
    words = {one: str(1 << one) if one <= 1 else f"{(1 << (one - 1)) + 1}-{1 << one}" for one in range(7)}
    yield "prompt_length", power.map(words | {7: "65 and more"}), power
    yield "aspect", verdicts.aspect.fillna("unknown"), verdicts.aspect.map({"upright": 0, "square": 1, "wide": 2}).fillna(3)
    counts = verdicts.domain.value_counts().rename_axis("domain").reset_index()
    counts = counts.sort_values(["count", "domain"], ascending=[False, True], ignore_index=True)
    place = verdicts.domain.map(pd.Series(counts.index + 1, counts.domain))
    domain = verdicts.domain.where(place <= 100, "(others)").where(verdicts.domain.notna(), "(unknown)")
    yield "domain", domain, place.clip(upper=101).fillna(102)


def _rates(cells: pd.DataFrame) -> dict[str, Any]:
    """The columns of one bucket of ``extraction_rate``, of its strata."""
    tried, population = cells.tried.tolist(), cells.population.tolist()
    whole = cells.population.sum()
    row: dict[str, Any] = {
        "fewest_duplicates": cells.fewest.min(), "most_duplicates": cells.most.max(), "prompts_tried": cells.tried.sum(),
        "population": whole, "inclusion_probability": cells.inclusion_probability.min(),
        "prompts_flagged": cells.flagged.sum(), "prompts_with_image": cells.tried.sum(),
        "prompts_calibrated": cells.tried.sum(), "prompts_copied_any": cells.copied_any.sum(),
        "prompts_extracted": cells.extracted.sum(),
        "rate": min(1.0, (cells.population * cells.weighted / cells.tried).sum() / whole),
    }  # fmt: skip
    if cells.slice_weight.max() > 1:
        found = (cells.surely.tolist(), cells.in_slice.tolist(), cells.slice_weight.fillna(1).tolist())
        row["rate_lower"], row["rate_upper"] = slice_interval_of(*found, tried, population)
    else:
        row["rate_lower"], row["rate_upper"] = exact_interval(cells.extracted.tolist(), tried, population)
    row["rate_wilson_lower"], row["rate_wilson_upper"] = wilson_interval(int(cells.extracted.sum()), sum(tried))
    named = (("copied", "prompts_copied", cells.copied), ("seen", "prompts_seen", cells.seen),
             ("calibrated", "prompts_extracted_calibrated", cells.calibrated))  # fmt: skip
    for name, count, hits in named:
        rate = f"rate_{name}"
        row[count], row[rate] = hits.sum(), (cells.population * hits / cells.tried).sum() / whole
        row[f"{rate}_lower"], row[f"{rate}_upper"] = exact_interval(hits.tolist(), tried, population)
    wilson = wilson_interval(int(cells.calibrated.sum()), sum(tried))
    row["rate_calibrated_wilson_lower"], row["rate_calibrated_wilson_upper"] = wilson
    return row
