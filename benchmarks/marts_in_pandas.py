"""Verdicts, rates and extractions as one would write them in pandas: what ``benchmarks.marts`` measures DuckDB against.

The same columns, value for value, of prompts that were drawn (the made-up audit has no list, and nothing forgotten). Columns
are chosen when files are read, and everything but the intervals is vectorised. Those are the same functions on either side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from transforms.kernels.rates import wilson_interval
from transforms.lake import Lake
from transforms.measurement import exact_interval
from transforms.schema import TABLES

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
        calibration = self.read("calibration", ["distance", "threshold", "chosen"])
        chosen = calibration[calibration.chosen].iloc[0]
        self.threshold = chosen.threshold
        distances = ["l2", "tiled_l2", "adaptive_l2"]
        names = ["prompt_id", "sample_index", "sample_id", "group_id", "role", "relation", *distances, "extracted"]
        matches = self.read("matches", names)
        matches = matches[matches.role == "training"].drop(columns="role")
        self.matches = matches.assign(distance=matches[chosen.distance], own=matches.relation == "own")
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
        matches = self.matches.assign(
            extracted_own=self.matches.extracted & self.matches.own,
            own_distance=self.matches.distance.where(self.matches.own),
        )
        per_prompt = matches.groupby("prompt_id").agg(
            nearest_l2=("l2", "min"), own_distance=("own_distance", "min"),
            extracted=("extracted", "any"), extracted_own=("extracted_own", "any"),
        )  # fmt: skip
        made = self.prompts[self.prompts.origin != "control"].merge(self.cliques, on="prompt_id")
        made = made.merge(self.samples[["sample_id", "url", "original_width", "original_height"]], on="sample_id", how="left")
        made = made.merge(per_prompt.reset_index(), on="prompt_id", how="left")
        for name in ("extracted", "extracted_own"):
            made[name] = made[name].eq(True).fillna(False).astype(bool)
        made["extracted_calibrated"] = (made.own_distance < self.threshold).fillna(False).astype(bool)
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
        hits = self.matches.loc[self.matches.extracted, ["prompt_id", "group_id"]]
        for dimension, bucket, order in _buckets(verdicts):
            placed = verdicts.assign(bucket=bucket, bucket_order=order)
            cells = placed.groupby(CELL).agg(
                fewest=("n_duplicates", "min"), most=("n_duplicates", "max"), tried=("prompt_id", "size"),
                flagged=("flagged", "sum"), extracted=("extracted", "sum"), calibrated=("extracted_calibrated", "sum"),
            ).reset_index()  # fmt: skip
            cells["population"] = cells.tried / cells.inclusion_probability
            hit = hits.merge(placed[["prompt_id", "bucket"]], on="prompt_id").groupby("bucket").group_id.nunique()
            for (name, place), some in cells.groupby(["bucket", "bucket_order"]):
                rows.append({"dimension": dimension, "bucket": name, "bucket_order": place,
                             "images_extracted": hit.get(name, 0), **_rates(some)})  # fmt: skip
        return pd.DataFrame(rows)

    def extractions(self, verdicts: pd.DataFrame) -> pd.DataFrame:
        matches = self.matches.merge(verdicts[["prompt_id", "extracted_calibrated"]], on="prompt_id")
        called = matches.extracted_calibrated & matches.own & (matches.distance < self.threshold)
        candidates = matches[matches.extracted | called]
        of_group = matches[matches.group_id.isin(candidates.group_id)].groupby("group_id")
        per_group = of_group.agg(extracted=("extracted", "any")).reset_index()
        own_verdicts = verdicts.groupby("group_id").extracted_calibrated.max().reset_index()
        per_group = per_group.merge(own_verdicts, on="group_id", how="left")
        made = candidates.drop(columns=["extracted", "extracted_calibrated", "own", "distance"])
        made["confidence_distance"] = made.adaptive_l2.fillna(made.l2)
        made = made.sort_values(["confidence_distance", "l2", "prompt_id", "sample_index"]).drop_duplicates("group_id")
        made = made.merge(per_group, on="group_id")
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
        made = made.sort_values(["confidence_distance", "l2", "sample_id"], ignore_index=True)
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
    row: dict[str, Any] = {
        "fewest_duplicates": cells.fewest.min(), "most_duplicates": cells.most.max(), "prompts_tried": cells.tried.sum(),
        "population": cells.population.sum(), "inclusion_probability": cells.inclusion_probability.min(),
        "prompts_flagged": cells.flagged.sum(), "prompts_calibrated": cells.tried.sum(),
    }  # fmt: skip
    tried, population = cells.tried.tolist(), cells.population.tolist()
    for suffix, hits in (("", cells.extracted), ("_calibrated", cells.calibrated)):
        rate = f"rate{suffix}"
        row[f"prompts_extracted{suffix}"] = hits.sum()
        row[rate] = (cells.population * hits / cells.tried).sum() / cells.population.sum()
        row[f"{rate}_lower"], row[f"{rate}_upper"] = exact_interval(hits.tolist(), tried, population)
        row[f"{rate}_wilson_lower"], row[f"{rate}_wilson_upper"] = wilson_interval(int(hits.sum()), sum(tried))
    return row
