"""The audit of one night: takes what is new, tries the panel and some other prompts, and says whether it got worse.

reads   metadata and a model, as audit does; history, of the nights before
writes  what audit writes, twice: for the panel and for the rotating prompts; history, night_changes, alert.json

New metadata files are downloaded and embedded, the others stay; what failed to download on the nights before is tried again.
Half of --budget goes to a fixed panel of prompts, drawn on the first night and tried every night, the rest to prompts that
are drawn anew whenever model or data are. A night is compared with the one before, and with --baseline: the panel by McNemar's
test, the rotating prompts by Fisher's, all of them together by Holm's.
Exit code 0: fine. 3: worse, significantly. 2: could not run. A date that is done is not done again, and ends as it did. What
a night before has tried with the same model and options is not tried again: seeds would make the same images.

  eidetic nightly --lake lake --metadata relaion2B-en/ --controls held_out.parquet --model checkpoints/latest \\
      --device cuda --budget 20000 --webhook https://alerts.example.org/eidetic
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import sys
import traceback
import urllib.request
from collections.abc import Sequence
from typing import Any

from pipelines import audit, deduplicate, embed, generate, ingest, match, measure
from pipelines.device import DeviceOptions
from pipelines.lock import alone
from pipelines.options import CommonOptions, Parsed, option, parameters, parse
from pipelines.stage import Execution, Stage, say
from transforms import measurement, nights
from transforms.errors import UserError
from transforms.identity import digest
from transforms.lake import Lake, Manifest, exists, read_bytes, write_bytes

WORSE, COULD_NOT_RUN = 3, 2


@dataclasses.dataclass(frozen=True)
class NightlyOptions:
    """The night."""

    date: str | None = option(None, "the night, as YYYY-MM-DD (default: today, UTC)")
    budget: int = option(10_000, "images to make in a night where everything is new, those of the controls included")
    budget_seconds: float | None = option(None, "instead: seconds of the device, by what an image took before")
    panel_share: float = option(0.5, "share of the budget that the fixed panel gets")
    significance: float = option(0.05, "chance of a false alarm, per night and comparison")
    baseline: str | None = option(None, "date of another night to compare with")
    retry_nights: int = option(7, "nights for which failed downloads are tried again; 0: never")
    wait: float = option(0.0, "seconds to wait where another night is at work on this lake")
    webhook: str | None = option(None, "URL that alert.json is posted to")

    def __post_init__(self) -> None:
        for name in ("date", "baseline"):
            value = getattr(self, name)
            try:
                ok = value is None or datetime.date.fromisoformat(value).isoformat() == value
            except ValueError:
                ok = False
            if not ok:
                raise UserError(f"--{name} is {value!r}, expected a date as YYYY-MM-DD")
        for name in ("panel_share", "significance"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}, expected between 0 and 1")
        for name in ("budget", "budget_seconds"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(f"--{name} is {getattr(self, name)}, expected more than 0")
        for name in ("retry_nights", "wait"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name} is {getattr(self, name)}, expected 0 or more")
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise UserError(f"--webhook is {self.webhook!r}, expected an http or https URL")

    @property
    def night(self) -> str:
        return self.date or datetime.datetime.now(datetime.UTC).date().isoformat()


OPTIONS = (NightlyOptions, *(kind for kind in audit.OPTIONS if kind is not audit.AuditOptions))


# -- what is tried ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Share:
    """How many prompts each half of the night gets."""

    panel: int
    rotating: int


def share(lake: Lake, options: NightlyOptions, generation: generate.GenerateOptions, revision: str, controls: int) -> Share:
    """How many prompts the budget is enough for. UserError where it's not enough for one in each half."""
    images: float = options.budget
    if options.budget_seconds is not None:
        each = generation.seconds_per_image or generate.seconds_per_image(lake, revision)
        if each is None:
            raise UserError(
                "--budget_seconds needs to know what an image takes, and this model was never run in this lake: name "
                "--seconds_per_image, or give a --budget in images"
            )
        images = options.budget_seconds / each
    spent = controls * generation.control_images
    parts = (options.panel_share, 1 - options.panel_share)
    prompts = [int((images * part - spent) // generation.images_per_prompt) for part in parts]
    if min(prompts) < 1:
        least = (spent + generation.images_per_prompt) / min(parts)
        raise UserError(
            f"the budget is {images:,.0f} images; at least {least:,.0f} are needed, since each half of the night makes "
            f"{generation.control_images} images of each of {controls} controls beside those of its prompts; raise it, or "
            "lower --images_per_control or --images_per_prompt"
        )
    return Share(*prompts)


def controls_of(lake: Lake, embedded: Manifest) -> int:
    table = lake.read("embeddings", embedded.snapshot_id, ["role", "status"])
    return sum(row["role"] == "control" and row["status"] == "success" for row in table.to_pylist())


class Data:
    """What the night's images come from: the newest data, and what was new in them."""

    def __init__(self, execution: Execution, parsed: Parsed, first: bool, date: str):
        lake, options = execution.lake, parsed[ingest.IngestOptions]
        planned = ingest.stage(lake, options)
        base = lake.manifest("ingest", planned.snapshot_id) or (
            lake.manifest("ingest", planned.upstream["ingest"]) if planned.upstream else None
        )
        self.recovered = 0
        if base is not None and not first and parsed[NightlyOptions].retry_nights:
            nights_ago = datetime.timedelta(days=parsed[NightlyOptions].retry_nights)
            since = datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC) - nights_ago
            retried = ingest.retry(execution, options, base, since, date)
            self.recovered = retried.rows["images"] - base.rows["images"]
        self.ingest = ingest.run(execution, options)
        self.new = self.ingest.rows["samples"] - (base.rows["samples"] if base else 0)
        self.embed = embed.run(execution, parsed[embed.EmbedOptions], parsed[DeviceOptions], self.ingest)
        self.deduplicate = deduplicate.run(execution, parsed[deduplicate.DeduplicateOptions], self.embed)


def one_audit(execution: Execution, parsed: Parsed, groups: Manifest, prompts: int, seed: int) -> tuple[Manifest, Manifest]:
    """Generates, matches and measures; the manifests of ``match`` and of ``measure``."""
    device = parsed[DeviceOptions]
    options = dataclasses.replace(parsed[generate.GenerateOptions], max_prompts=prompts, seed=seed)
    made = generate.run(execution, options, device, groups)
    matched = match.run(execution, parsed[match.MatchOptions], device, made)
    return matched, measure.run(execution, parsed[measure.MeasureOptions], matched)


def run(execution: Execution, parsed: Parsed) -> dict[str, Any]:
    """Does the night unless it is done; returns its row of ``history``."""
    lake, options, generation = execution.lake, parsed[NightlyOptions], parsed[generate.GenerateOptions]
    if generation.prompts is not None or generation.generations is not None:
        raise UserError("a night draws its prompts and makes its images itself; leave --prompts and --generations to audit")
    date, before = options.night, nights.history(lake)
    done = [row for row in before if row["date"] == date]
    if done:
        say(f"nightly      {date} is done")
        return done[0]
    earlier = [row for row in before if row["date"] < date]
    baseline = next((row for row in before if row["date"] == options.baseline), None)
    if options.baseline is not None and baseline is None:
        known = ", ".join(row["date"] for row in before) or "none"
        raise UserError(f"--baseline is {options.baseline!r}, which is no night of this lake; there are: {known}")
    images = generate.generator(generation, parsed[DeviceOptions].resolved())
    revision = images.revision()

    # What can be known of the budget before anything is downloaded.
    share(lake, options, generation, revision, 0)
    data = Data(execution, parsed, not before, date)
    sizes = share(lake, options, generation, revision, controls_of(lake, data.embed))
    shaping = parameters(generation, leave_out=(*generate.NO_PARAMETERS, "max_prompts"))
    same = digest("panel", shaping, sizes.panel, parameters(parsed[match.MatchOptions]))
    panel_of = next((row for row in before if row["panel_options"] == same), None)
    groups = data.deduplicate
    if panel_of is not None:
        stored = lake.manifest("deduplicate", panel_of["panel_snapshot"])
        groups = stored or groups
    # Drawn anew when there is something new: else the same prompts would only be tried again.
    state = digest("rotating", same, revision, data.deduplicate.snapshot_id, sizes.rotating)
    drawn_by = [row["rotating_seed"] for row in before if row["rotating_options"] == state]
    seed = drawn_by[0] if drawn_by else int(digest("rotating", date, generation.seed)[:7], 16)
    last = earlier[-1] if earlier else None
    rate, tests = (0.0, 1) if last is None else (last["rate"], tests_of(lake, last))
    say(told_power(nights.power(sizes.panel, sizes.rotating, rate, options.significance, tests), sizes))

    panel_matched, panel = one_audit(execution, parsed, groups, sizes.panel, generation.seed)
    matched, rotating = one_audit(execution, parsed, data.deduplicate, sizes.rotating, seed)
    row: dict[str, Any] = {
        "date": date,
        "model": images.model,
        "model_revision": revision,
        "samples": data.ingest.rows["samples"],
        "images": data.ingest.rows["images"],
        "samples_new": data.new,
        "images_recovered": data.recovered,
        "ingest_snapshot": data.ingest.snapshot_id,
        "deduplicate_snapshot": data.deduplicate.snapshot_id,
        "panel_snapshot": groups.snapshot_id,
        "panel_options": same,
        "panel_audit_id": panel.facts["audit_id"],
        "rotating_audit_id": rotating.facts["audit_id"],
        "rotating_options": state,
        "rotating_seed": seed,
        "significance": options.significance,
    }
    tonight = nights.read_night(lake, row)
    verdict = nights.verdict_of(tonight)
    rates = measurement.read_mart(lake, "extraction_rate", rotating)
    overall = next(one for one in rates if (one["dimension"], one["bucket"]) == ("all", "drawn"))
    rate = "rate_calibrated" if verdict == nights.CALIBRATED else "rate"
    row |= {
        "verdict_used": verdict,
        "panel_prompts": len(tonight.panel),
        "panel_extracted": sum(one[verdict] for one in tonight.panel),
        "prompts_tried": len(tonight.rotating),
        "rate": overall[rate],
        "rate_lower": overall[f"{rate}_lower"],
        "rate_upper": overall[f"{rate}_upper"],
        "smallest_change": nights.power(len(tonight.panel), len(tonight.rotating), 0.0, options.significance, 1).panel,
    }
    comparisons = {
        name: None if other is None else nights.compare(nights.read_night(lake, other), tonight)
        for name, other in (("before", last), ("baseline", baseline))
    }
    row |= compared("", "compared_with", last, comparisons["before"])
    row |= compared("baseline_", "baseline", baseline, comparisons["baseline"])
    worse = any(one is not None and one.p_value <= options.significance for one in comparisons.values())
    row["verdict"] = "worse" if worse else "fine" if last is not None or baseline is not None else "first"
    row["exit_code"] = WORSE if worse else 0
    row["finished_at"] = datetime.datetime.now(datetime.UTC)
    changed = [] if comparisons["before"] is None else changes(lake, row, comparisons["before"])

    def work(planned: Stage) -> dict[str, Any]:
        lake.write("history", planned.snapshot_id, 0, [row])
        lake.write("night_changes", planned.snapshot_id, 0, changed)
        tested = {name: one.p_values for name, one in comparisons.items() if one is not None}
        return {"date": date, "p_values": tested}

    execution.stage(Stage("nightly", {"date": date}, {"match": matched.snapshot_id}, None, "nights"), work)
    measurement.build_database(lake)
    # The rotating prompts' report last: it is the night's, and the newest.
    for made, measured in ((panel_matched, panel), (matched, rotating)):
        measure.write_report(lake, parsed[measure.MeasureOptions], made, measured.snapshot_id)
    return row


def tests_of(lake: Lake, last: dict[str, Any]) -> int:
    """Tests that share a night's significance: the panel's, and one for each stratum of the rotating prompts."""
    return 1 + len({row["stratum"] for row in nights.read_night(lake, last).rotating})


def told_power(can_see: nights.Power, sizes: Share) -> str:
    """One line, before anything is made: how large a change must be to be seen."""
    panel = "no change" if can_see.panel is None else f"{can_see.panel:.1%} of them newly extracted"
    rotating = "no change" if can_see.rotating is None else f"a rise of {can_see.rotating:.1%}"
    return (
        f"nightly      with 80% power, the panel of {sizes.panel} prompts shows {panel}, and the {sizes.rotating} rotating "
        f"prompts {rotating}"
    )


def compared(prefix: str, name: str, other: dict[str, Any] | None, comparison: nights.Comparison | None) -> dict[str, Any]:
    """Columns of ``history`` that tell a comparison."""
    return {
        name: None if other is None else other["date"],
        f"{prefix}new_extractions": None if comparison is None else len(comparison.new),
        f"{prefix}gone_extractions": None if comparison is None else len(comparison.gone),
        f"{prefix}p_value": None if comparison is None else comparison.p_value,
    }


def changes(lake: Lake, row: dict[str, Any], comparison: nights.Comparison) -> list[dict[str, Any]]:
    """Rows of ``night_changes``: ids alone, so that what is forgotten need not be looked for here."""
    prompts = lake.read("prompts", row["panel_audit_id"], ["prompt_id", "sample_id"]).to_pylist()
    samples = {one["prompt_id"]: one["sample_id"] for one in prompts}
    return [
        {
            "date": row["date"],
            "compared_with": row["compared_with"],
            "kind": kind,
            "prompt_id": one["prompt_id"],
            "sample_id": samples[one["prompt_id"]],
            "group_id": one["group_id"],
        }
        for kind, some in (("new", comparison.new), ("gone", comparison.gone))
        for one in some
    ]


# -- what the night says ----------------------------------------------------------------------------------------------


def alert(lake: Lake, row: dict[str, Any]) -> dict[str, Any]:
    """What ``alert.json`` holds of a night that is done."""
    found = next(night for night in lake.manifests("nightly") if night.facts["date"] == row["date"])
    # As it is stored, so that the same night is told in the same words.
    (row,) = lake.read("history", found.snapshot_id).to_pylist()
    return {
        "date": row["date"],
        "verdict": row["verdict"],
        "exit_code": row["exit_code"],
        "message": told(row),
        "report": lake.path("reports", f"{row['rotating_audit_id']}.html"),
        "night": {name: value for name, value in row.items() if name != "finished_at"},
        "p_values": found.facts["p_values"],
        "changes": lake.read("night_changes", found.snapshot_id).to_pylist(),
    }


def told(row: dict[str, Any]) -> str:
    """A night in one sentence."""
    rate = f"{row['rate']:.2%} ({row['rate_lower']:.2%} to {row['rate_upper']:.2%}) of the images come back"
    if row["compared_with"] is None and row["baseline"] is None:
        return f"{row['date']}: the first night; {rate}"
    parts = []
    for name, prefix in (("compared_with", ""), ("baseline", "baseline_")):
        if row[name] is not None:
            new, gone, p_value = (row[f"{prefix}{one}"] for one in ("new_extractions", "gone_extractions", "p_value"))
            parts.append(f"against {row[name]}: {new} new, {gone} gone in the panel, p = {p_value:.2g}")
    return f"{row['date']}: {row['verdict']}; {rate}; {'; '.join(parts)}"


def publish(lake: Lake, date: str, content: dict[str, Any], webhook: str | None) -> None:
    """Posts an alert and writes it to alert.json, of this night and as the newest; nothing if that is what was told before.

    A webhook that fails is said, and changes nothing.
    """
    body = json.dumps(content, indent=2, ensure_ascii=False).encode()
    of_night = lake.path("nights", date, "alert.json")
    if exists(of_night) and read_bytes(of_night) == body:
        return
    if webhook is not None:
        request = urllib.request.Request(webhook, body, {"Content-Type": "application/json"}, method="POST")
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except (OSError, ValueError) as error:
            say(f"nightly      the webhook did not take the alert: {error}")
    # After the post: one that is killed in between is told twice rather than never.
    for path in (of_night, lake.path("alert.json")):
        write_bytes(path, body)


def could_not_run(lake: Lake, options: NightlyOptions, reason: str) -> None:
    """Tells the webhook too that there is no audit tonight. What can't even be written is said elsewhere."""
    content = {"date": options.night, "verdict": "could not run", "exit_code": COULD_NOT_RUN, "message": reason}
    with contextlib.suppress(OSError, UserError):
        lake.check()
        publish(lake, options.night, content, options.webhook)


def main(argv: Sequence[str]) -> int:
    parsed = parse(argv, "nightly", __doc__, OPTIONS)
    common, options = parsed[CommonOptions], parsed[NightlyOptions]
    lake = Lake(common.lake)
    try:
        lake.create()
        with alone(lake, "nightly", options.wait):
            row = run(Execution(lake, parsed.beam, common.verbose), parsed)
            publish(lake, row["date"], alert(lake, row), options.webhook)
    except UserError as error:
        could_not_run(lake, options, str(error))
        raise
    except Exception as error:
        traceback.print_exc()
        could_not_run(lake, options, f"{type(error).__name__}: {error}")
        print(f"eidetic: the night could not run: {error}".splitlines()[0], file=sys.stderr)
        return COULD_NOT_RUN
    print(told(row))
    return row["exit_code"]


if __name__ == "__main__":
    from pipelines.cli import run_verb

    sys.exit(run_verb(main, sys.argv[1:]))
