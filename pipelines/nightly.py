"""The audit of one night: takes what is new, tries the panel and some other prompts, and says whether it got worse.

reads   metadata and a model, as audit does; history, of the nights before
writes  what audit writes, twice: for the panel and for the rotating prompts; history, night_changes, alert.json

New metadata files are downloaded and embedded, the others stay; what failed to download on the nights before is tried again.
Half of --budget goes to a fixed panel of prompts, drawn on the first night and tried every night, the rest to prompts that
are drawn anew whenever model or data are. A night goes by extracted_calibrated (copied and seen) where there are controls, and
else by copied. It is compared with the one before, and with --baseline, both by the earlier one's limits: the panel by
McNemar's test, the rotating prompts by Fisher's, all of them together by Holm's.
Exit code 0: fine. 3: worse, significantly. 2: could not run. A date that is done is not done again, and ends as it did. What
a night before has tried with the same model and options is not tried again: seeds would make the same images.

  eidetic nightly --lake lake --metadata relaion2B-en/ --controls held_out.parquet --model checkpoints/latest \\
      --device cuda --budget 20000 --webhook https://alerts.example.org/eidetic
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import queue
import sys
import threading
import traceback
import urllib.request
from collections.abc import Sequence
from typing import Any

from pipelines import audit, deduplicate, embed, generate, ingest, match, measure
from pipelines.device import DeviceOptions
from pipelines.execution import Execution, say
from pipelines.lock import Busy, alone
from pipelines.options import CommonOptions, LockOptions, Options, Parsed, option, parameters, parse
from pipelines.stages import Planned, execution_of, stages
from transforms.errors import UserError, fault_of_the_machine
from transforms.results import database, marts, nights
from transforms.store.files import exists, read_bytes, write_bytes
from transforms.store.identity import digest
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import lineage
from transforms.store.scan import ask
from transforms.store.texts import redacted

WORSE, COULD_NOT_RUN = 3, 2
RATES = [f"rate_{name}{end}" for name in ("copied", "seen") for end in ("", "_lower", "_upper")]
"""Columns that ``history`` has from ``extraction_rate``."""

MOST_NIGHTS = 100_000

MOST_LETTERS = 300
"""Letters that are shown of what a webhook answers."""


@dataclasses.dataclass(frozen=True)
class NightlyOptions(Options):
    """The night."""

    date: str | None = option(None, "the night, as YYYY-MM-DD (default: today, UTC)")
    budget: int = option(10_000, "images to make in a night where everything is new, those of the controls included", over=0)
    budget_seconds: float | None = option(None, "instead: seconds of the device, by what an image took before", over=0)
    panel_share: float = option(0.5, "share of the budget that the fixed panel gets", over=0, under=1)
    significance: float = option(0.05, "chance of a false alarm, per night and comparison", over=0, under=1)
    baseline: str | None = option(None, "date of another night to compare with")
    retry_nights: int = option(7, "nights for which failed downloads are tried again; 0: never", least=0, most=MOST_NIGHTS)
    webhook: str | None = option(None, "URL that alert.json is posted to")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("date", "baseline"):
            value = getattr(self, name)
            try:
                ok = value is None or datetime.date.fromisoformat(value).isoformat() == value
            except ValueError:
                ok = False
            if not ok:
                raise UserError(f"--{name} is {value!r}, expected a date as YYYY-MM-DD")
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise UserError(f"--webhook is {self.webhook!r}, expected an http or https URL")

    @functools.cached_property
    def night(self) -> str:
        """The date of the night: one, however long it takes."""
        return self.date or datetime.datetime.now(datetime.UTC).date().isoformat()


def night_options() -> tuple[type, ...]:
    """The option dataclasses of a night: those of an audit, and its own."""
    return NightlyOptions, *(kind for kind in audit.options() if kind is not audit.AuditOptions)


# -- what is tried ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Share:
    """How many prompts each half of the night gets."""

    panel: int
    rotating: int


def share(
    lake: Lake,
    options: NightlyOptions,
    generation: generate.GenerateOptions,
    revisions: Sequence[str],
    panel_controls: int,
    controls: int,
    panel: int | None,
) -> Share:
    """How many prompts the budget is enough for.

    Args:
        lake, options, generation: of the night.
        revisions: of models, tonight's first: what an image takes is known of the first of them that was run here.
        panel_controls, controls: pictures that the panel, and the rotating half, makes images of beside its prompts.
        panel: prompts of the panel that there is already; None where it is to be drawn.

    Raises:
        UserError: if it isn't enough for the panel, or for one prompt in each half.
    """
    images: float = options.budget
    if options.budget_seconds is not None:
        known = [generation.seconds_per_image, *(generate.seconds_per_image(lake, revision) for revision in revisions)]
        each = next((seconds for seconds in known if seconds is not None), None)
        if each is None:
            raise UserError(
                "--budget_seconds needs to know what an image takes, and this model was never run in this lake: name "
                "--seconds_per_image, or give a --budget in images"
            )
        images = options.budget_seconds / each
    per_prompt = generation.images_per_prompt
    spent_by_panel, spent = (each * generation.control_images for each in (panel_controls, controls))
    prompts = panel or int((images * options.panel_share - spent_by_panel) // per_prompt)
    for_panel = images * options.panel_share if panel is None else spent_by_panel + panel * per_prompt
    rotating = int((images - for_panel - spent) // per_prompt)
    if prompts < 1 or rotating < 1:
        smaller = min(options.panel_share, 1 - options.panel_share)
        least = for_panel + spent + per_prompt if panel else (spent + per_prompt) / smaller
        fixed = f" and the panel has its {panel} prompts (another --seed draws another one)" if panel else ""
        raise UserError(
            f"the budget is {images:,.0f} images; at least {least:,.0f} are needed, since each half of the night makes "
            f"{generation.control_images} images of each of its controls ({panel_controls} of the panel, {controls} of the "
            f"rest) beside those of its prompts{fixed}; raise it, or lower --images_per_control or --images_per_prompt"
        )
    return Share(prompts, rotating)


def controls_of(lake: Lake, groups: Manifest) -> int:
    query = "SELECT count(*) AS controls FROM embeddings WHERE role = 'control' AND status = 'success'"
    return ask(lake, {"embeddings": groups.upstream["embed"]}, query)[0]["controls"]


def groups_of(lake: Lake, deduplicated: Manifest) -> int:
    query = "SELECT count(*) AS groups FROM duplicate_groups WHERE sample_id = group_id"
    return ask(lake, {"duplicate_groups": deduplicated.snapshot_id}, query)[0]["groups"]


@dataclasses.dataclass(frozen=True)
class Panel:
    """The panel that the nights before have tried.

    Attributes:
        groups: snapshot that it is drawn from.
        size: prompts that were asked for.
        full: whether there were as many.
    """

    groups: str
    size: int
    full: bool


def panel_of(rows: Sequence[dict[str, Any]]) -> Panel | None:
    """The panel of the newest of these nights, which have the same options."""
    if not rows:
        return None
    groups, size = rows[-1]["panel_snapshot"], rows[-1]["panel_size"]
    # As it was drawn: prompts may have been forgotten since.
    first = next(row for row in rows if row["panel_snapshot"] == groups)
    return Panel(groups, size, first["panel_prompts"] >= size)


def series(parsed: Parsed) -> str:
    """Digest of what nights must have in common to be compared: whatever shapes pictures, groups, generations and verdicts."""
    images, duplicates = parsed[ingest.IngestOptions], parsed[deduplicate.DeduplicateOptions]
    return digest(
        "panel",
        dataclasses.asdict(images.storage),
        parsed[embed.EmbedOptions].identity,
        {name: getattr(duplicates, name) for name in deduplicate.WHO_IS_A_DUPLICATE},
        parameters(parsed[generate.GenerateOptions], leave_out=(*generate.NO_PARAMETERS, "max_prompts")),
        match.shaping(parsed[match.MatchOptions]),
    )


class Data:
    """What the night's images come from: the newest data, and what is new in them since the night before."""

    def __init__(self, execution: Execution, parsed: Parsed, last: dict[str, Any] | None, date: str):
        lake = execution.lake
        # Also what a first night had nothing of: it would find nothing again for ever.
        empty = not any(ingest.by_role(one)["training"].get("success") for one in lake.manifests("ingest"))
        if (last is not None or empty) and parsed[NightlyOptions].retry_nights:
            nights_ago = datetime.timedelta(days=parsed[NightlyOptions].retry_nights)
            since = datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC) - nights_ago
            ingest.retry_earlier(execution, parsed, since, date)
        self.ingest = ingest.STAGE.run(execution, parsed)
        before = None if last is None else lake.manifest("ingest", last["ingest_snapshot"])
        self.new = self.ingest.rows["samples"] if before is None else ingest.added(lake, before, self.ingest)
        self.recovered = 0 if before is None else ingest.recovered(lake, before, self.ingest)
        self.embed = embed.STAGE.run(execution, parsed, self.ingest)
        self.deduplicate = deduplicate.STAGE.run(execution, parsed, self.embed)


def one_audit(
    execution: Execution, parsed: Parsed, options: generate.GenerateOptions, groups: Manifest
) -> tuple[Manifest, Manifest]:
    """Generates, matches and measures; the manifests of ``match`` and of ``measure``.

    Raises:
        UserError: if the model is not of ``options.revision`` any more.
    """
    parsed = parsed.but(options)
    made = generate.STAGE.run(execution, parsed, groups)
    revision = made.parameters["model_revision"]
    if revision != options.revision:
        raise UserError(
            f"the model {options.model!r} changed while the night was at work, from {options.revision} to {revision}; run the "
            "night again, which is of the new one then, and replace models between nights"
        )
    done = audit.run(execution, parsed, lineage(execution.lake, made))
    return done["match"], done["measure"]


def run(execution: Execution, parsed: Parsed) -> dict[str, Any]:
    """Does the night unless it is done; returns its row of ``history``."""
    lake, options, generation = execution.lake, parsed[NightlyOptions], parsed[generate.GenerateOptions]
    if generation.prompts is not None or generation.generations is not None:
        raise UserError("a night draws its prompts and makes its images itself; leave --prompts and --generations to audit")
    date, before = options.night, nights.history(lake)
    done = [row for row in before if row["date"] == date]
    if done:
        say(f"nightly      {date} is done")
        # Again: the one that did it may have been killed before.
        show(lake, parsed, done[0])
        return done[0]
    same = series(parsed)
    comparable = [row for row in before if row["panel_options"] == same]
    earlier, last = [row for row in before if row["date"] < date], None
    if earlier:
        last = next((row for row in reversed(earlier) if row["panel_options"] == same), None)
        if last is not earlier[-1]:
            instead = f"it is compared with {last['date']}" if last else "it begins a new series"
            say(f"nightly      {date} has other options than {earlier[-1]['date']}, which would pass for a change: {instead}")
    baseline = next((row for row in comparable if row["date"] == options.baseline), None)
    if options.baseline is not None and baseline is None:
        known = ", ".join(row["date"] for row in comparable) or "none"
        raise UserError(
            f"--baseline is {options.baseline!r}, which is no night of this lake with these options; there are: {known}"
        )
    images = generate.generator(generation, parsed[DeviceOptions].resolved())
    revision = images.revision()
    # A branch on the hub may move on during the night.
    generation = dataclasses.replace(generation, revision=revision)
    # Looking at models takes as long as loading their libraries; those that a night has run with were looked at then.
    if not any(row["model_revision"] == revision for row in comparable):
        for stage in stages():
            stage.check(parsed.but(generation))
    revisions = [revision, *(row["model_revision"] for row in reversed(before))]

    # What can be known of the budget before anything is downloaded.
    panel = panel_of(comparable)
    share(lake, options, generation, revisions, 0, 0, panel.size if panel and panel.full else None)
    data = Data(execution, parsed, earlier[-1] if earlier else None, date)
    if panel is not None and not panel.full and panel.groups != data.deduplicate.snapshot_id:
        say(f"nightly      for the panel there were fewer prompts than {panel.size}; there is more now: a new one is drawn")
        panel = None
    groups = (lake.manifest("deduplicate", panel.groups) if panel else None) or data.deduplicate
    panel_controls, controls = (controls_of(lake, one) for one in (groups, data.deduplicate))
    sizes = share(lake, options, generation, revisions, panel_controls, controls, panel.size if panel else None)
    # No more than there are: a larger budget is then no other night, and what it can see is told of what it can try.
    sizes = dataclasses.replace(sizes, rotating=min(sizes.rotating, groups_of(lake, data.deduplicate)))
    # Drawn anew when there is something new: else the same prompts would only be tried again.
    state = digest("rotating", same, revision, data.deduplicate.snapshot_id, sizes.rotating)
    drawn_by = [row["rotating_seed"] for row in before if row["rotating_options"] == state]
    seed = drawn_by[0] if drawn_by else int(digest("rotating", date, generation.seed)[:7], 16)
    rate = share_extracted(nights.read_night(lake, last)) if last else 0.0
    tried = dataclasses.replace(sizes, panel=min(sizes.panel, groups_of(lake, groups)))
    say(told_power(nights.power(tried.panel, tried.rotating, rate, options.significance), tried))

    of_panel = dataclasses.replace(generation, max_prompts=sizes.panel)
    panel_matched, panel_measured = one_audit(execution, parsed, of_panel, groups)
    rotating = dataclasses.replace(generation, max_prompts=sizes.rotating, seed=seed)
    matched, measured = one_audit(execution, parsed, rotating, data.deduplicate)
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
        "panel_size": sizes.panel,
        "panel_audit_id": panel_measured.facts["audit_id"],
        "panel_match": panel_matched.snapshot_id,
        "rotating_audit_id": measured.facts["audit_id"],
        "rotating_match": matched.snapshot_id,
        "rotating_options": state,
        "rotating_seed": seed,
        "significance": options.significance,
    }
    tonight = nights.read_night(lake, row)
    verdict = tonight.verdict
    rates = marts.read_mart(lake, "extraction_rate", measured)
    overall = next((one for one in rates if (one["dimension"], one["bucket"]) == ("all", "drawn")), None)
    if overall is None:
        raise UserError(
            f"none of the {data.ingest.rows['samples']:,} rows of metadata can be asked for: no picture was had that has a "
            "caption and was not forgotten; see 'status' and 'reason' of the table samples"
        )
    prefix = "rate_calibrated" if verdict == nights.CALIBRATED else "rate_copied"
    row |= {
        "verdict_used": verdict,
        "panel_prompts": len(tonight.panel.rows),
        "panel_extracted": sum(bool(one[verdict]) for one in tonight.panel.rows),
        "prompts_tried": len(tonight.rotating.rows),
        "rate": overall[prefix],
        "rate_lower": overall[f"{prefix}_lower"],
        "rate_upper": overall[f"{prefix}_upper"],
        **{name: overall[name] for name in RATES},
        "images_copied": overall["images_copied"],
        "smallest_change": nights.power(len(tonight.panel.rows), 1, 0.0, options.significance).panel,
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

    planned = Planned("nightly", {"date": date}, {"match": matched.snapshot_id}, "nights")

    def work() -> dict[str, Any]:
        lake.write("history", planned.snapshot_id, 0, [row])
        lake.write("night_changes", planned.snapshot_id, 0, changed)
        made = {name: one for name, one in comparisons.items() if one is not None}
        return {
            "date": date,
            "compared_by": {name: one.verdict for name, one in made.items()},
            "p_values": {name: one.p_values for name, one in made.items()},
        }

    execution.stage(planned, work)
    show(lake, parsed, row)
    return row


def share_extracted(night: nights.Night) -> float:
    """Of a night's rotating prompts, unweighted."""
    rows = night.rotating.rows
    return sum(bool(row[night.verdict]) for row in rows) / len(rows) if rows else 0.0


def show(lake: Lake, parsed: Parsed, row: dict[str, Any]) -> None:
    """Makes the database and the reports of a night, and that of the newest night's rotating prompts, which is the lake's."""
    database.build_database(lake)
    measured = {manifest.upstream["match"]: manifest.snapshot_id for manifest in lake.manifests("measure")}
    newest = nights.history(lake)[-1]["rotating_match"]
    for matches in dict.fromkeys((row["panel_match"], row["rotating_match"], newest)):
        matched = lake.manifest("match", matches)
        if matched is not None and matches in measured:
            measure.write_report(lake, parsed[measure.MeasureOptions], matched, measured[matches], matches == newest)


def told_power(can_see: nights.Power, sizes: Share) -> str:
    """One line, before anything is made: how large a change must be to be seen."""
    panel = "no change" if can_see.panel is None else f"{can_see.panel:.1%} of them that newly give back their image"
    rotating = "no change" if can_see.rotating is None else f"a rise of {can_see.rotating:.1%}"
    return (
        f"nightly      with 80% power, the panel of {sizes.panel} prompts shows {panel}, and the {sizes.rotating} rotating "
        f"prompts {rotating}"
    )


def compared(prefix: str, name: str, other: dict[str, Any] | None, comparison: nights.NightComparison | None) -> dict[str, Any]:
    """Columns of ``history`` that tell a comparison."""
    return {
        name: None if other is None else other["date"],
        f"{prefix}new_extractions": None if comparison is None else len(comparison.new),
        f"{prefix}gone_extractions": None if comparison is None else len(comparison.gone),
        f"{prefix}p_value": None if comparison is None else comparison.p_value,
    }


def changes(lake: Lake, row: dict[str, Any], comparison: nights.NightComparison) -> list[dict[str, Any]]:
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
        "message": summary(row),
        "report": lake.path("reports", f"{row['rotating_audit_id']}.html"),
        "night": {name: value for name, value in row.items() if name != "finished_at"},
        "compared_by": found.facts["compared_by"],
        "p_values": found.facts["p_values"],
        "changes": lake.read("night_changes", found.snapshot_id).to_pylist(),
    }


def summary(row: dict[str, Any]) -> str:
    """A night in one sentence."""

    def share(name: str) -> str:
        return f"{row[name]:.2%} ({row[f'{name}_lower']:.2%} to {row[f'{name}_upper']:.2%})"

    rate = f"{share('rate_copied')} of the prompts return their own image as a copy"
    if row["rate_seen"] is not None:
        rate += f", and of {share('rate_seen')} there is evidence that the model was trained on it"
    if row["compared_with"] is None and row["baseline"] is None:
        return f"{row['date']}: the first night; {rate}"
    # What the comparison goes by: both questions together, where both can be asked.
    by = "copied and seen" if row["verdict_used"] == nights.CALIBRATED else "copied"
    parts = []
    for name, prefix in (("compared_with", ""), ("baseline", "baseline_")):
        if row[name] is not None:
            new, gone, p_value = (row[f"{prefix}{one}"] for one in ("new_extractions", "gone_extractions", "p_value"))
            parts.append(f"against {row[name]}: {new} new, {gone} gone in the panel ({by}), p = {p_value:.2g}")
    return f"{row['date']}: {row['verdict']}; {rate}; {'; '.join(parts)}"


@dataclasses.dataclass(frozen=True)
class Alert:
    """What a night tells: written while the lake is the night's alone, posted when it no longer is.

    Attributes:
        date: of the night.
        body: JSON, as ``alert.json`` and the webhook get it.
    """

    date: str
    body: bytes

    @classmethod
    def written(cls, lake: Lake, date: str, content: dict[str, Any]) -> Alert | None:
        """An alert that is in alert.json, if no night is newer; None if it is what was told before."""
        body = json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
        of_night = cls._told(lake, date)
        if exists(of_night) and read_bytes(of_night) == body:
            return None
        if all(row["date"] <= date for row in nights.history(lake)):
            write_bytes(lake.path("alert.json"), body)
        return cls(date, body)

    def tell(self, lake: Lake, webhook: str | None) -> None:
        """Posts it. A webhook that fails is said, and changes nothing."""
        post(webhook, self.body)
        # Afterwards: one that is killed before is told twice rather than never.
        write_bytes(self._told(lake, self.date), self.body)

    @staticmethod
    def _told(lake: Lake, date: str) -> str:
        return lake.path("nights", date, "alert.json")


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes an error of a redirect: what is posted would become a GET, and leave the alert behind."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


WEBHOOK_SECONDS = 10.0
"""What a webhook may take in all, from the look-up of its name to the status that it answers."""


def post(webhook: str | None, body: bytes) -> None:
    """Posts an alert. Whatever keeps it from being taken within ``WEBHOOK_SECONDS`` is said."""
    if webhook is None:
        return
    outcome: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def take() -> None:
        try:
            request = urllib.request.Request(webhook, body, {"Content-Type": "application/json"}, method="POST")
            urllib.request.build_opener(NoRedirects).open(request, timeout=WEBHOOK_SECONDS).close()
            outcome.put(None)
        except Exception as error:  # the webhook is a stranger's, and there is no fault that it may not make
            outcome.put(f"{error}" or type(error).__name__)

    # A timeout of a socket begins anew with every byte, and a name server has none: it is the thread that isn't waited for.
    threading.Thread(target=take, daemon=True).start()
    try:
        problem = outcome.get(timeout=WEBHOOK_SECONDS)
    except queue.Empty:
        problem = f"it took longer than {WEBHOOK_SECONDS:g} s"
    if problem is not None:
        say(f"nightly      the webhook did not take the alert: {problem[:MOST_LETTERS]}")


def not_run(date: str, reason: str) -> dict[str, Any]:
    return {"date": date, "verdict": "could not run", "exit_code": COULD_NOT_RUN, "message": redacted(reason)}


def could_not_run(lake: Lake, options: NightlyOptions, reason: str) -> None:
    """Tells the webhook too that there is no audit tonight. What can't even be written is said elsewhere."""
    with contextlib.suppress(OSError, UserError):
        lake.check()
        if not any(row["date"] == options.night for row in nights.history(lake)):
            told = Alert.written(lake, options.night, not_run(options.night, reason))
            if told is not None:
                told.tell(lake, options.webhook)


def main(argv: Sequence[str]) -> int:
    parsed = parse(argv, "nightly", __doc__, night_options())
    common, options = parsed[CommonOptions], parsed[NightlyOptions]
    lake, date = Lake(common.lake), options.night
    try:
        lake.create()
        with alone(lake, "nightly", parsed[LockOptions].wait):
            row = run(execution_of(parsed), parsed)
            told = Alert.written(lake, row["date"], alert(lake, row))
        # Whoever waits for the lake need not wait for the webhook as well.
        if told is not None:
            told.tell(lake, options.webhook)
    except Busy as error:
        # What the other one writes is left alone.
        post(options.webhook, json.dumps(not_run(date, str(error))).encode())
        raise
    except UserError as error:
        could_not_run(lake, options, str(error))
        raise
    except Exception as error:
        if (line := fault_of_the_machine(error)) is not None:
            could_not_run(lake, options, line)
            raise
        traceback.print_exc()
        could_not_run(lake, options, f"{type(error).__name__}: {error}")
        print(f"eidetic: the night could not run: {error}".splitlines()[0], file=sys.stderr)
        return COULD_NOT_RUN
    print(summary(row))
    return row["exit_code"]


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
