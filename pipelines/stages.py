"""The registry: every verb in one line, and what a stage is.

A stage is written down once, as the ``STAGE`` of its module: its name, its options, the stage that it reads, what it would make
and how it is made. ``cli``, ``audit``, ``--plan`` and ``nightly`` walk the registry; lineage and forgetting go by the manifests
and by ``TABLES``. Another stage is one module and one line here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.options import CommonOptions, LockOptions, MachineOptions, Parsed, parse

if TYPE_CHECKING:
    # Both import Beam, which a verb that only asks need not wait for.
    from pipelines.costs import Cost, Size
    from pipelines.execution import Execution
    from transforms.store.lake import Lake, Manifest

STAGES = {
    "ingest": "metadata → samples, images",
    "embed": "images → embeddings",
    "deduplicate": "embeddings → duplicate_pairs, duplicate_groups",
    "generate": "groups → prompts, generations, cliques",
    "match": "generations → matches, decoys, regenerations, calibration, copy_calibration, eidetic_counts, unreadable, audits",
    "measure": "all tables → marts, audit.duckdb, report",
}
"""Stage → what ``--help`` says of it, in the order in which an audit runs them. The module has the same name."""

SWEEP = {
    "train": "a sweep's file → models, model_members: hundreds of small models on the lake's own pictures",
    "extract": "models → untargeted_generations, untargeted_attacks: what they give back unasked, and how good it is",
    "infer": "models → losses, membership_scores, dataset_inference, exposures: which pictures they were trained on",
    "inpaint": "models → inpaintings: the left half of pictures that they saw, or did not see, made again",
    "compare": "all tables of a sweep → its marts, audit.duckdb, its report",
}
"""The stages of a sweep, which begins with the groups of an audit, in the order in which it runs them."""

BESIDE = {
    "mitigate": "matches → mitigations, mitigation_effects: what keeps a model from copying, and what DoRI still brings back",
}
"""Stages likewise, that no audit waits for: each is asked for by name."""

OTHER_VERBS = {
    "audit": "ingest to measure, in order",
    "sweep": "train and what attacks the models, in order",
    "nightly": "the audit of one night: only what is new, compared with the night before",
    "history": "prints the nights, one a line",
    "query": 'prints the answer to a SELECT, as in: eidetic query "SELECT * FROM extraction_rate"',
    "lookup": "tells whether pictures are in the training set, and whether the model gives them back",
    "again": "makes one generation of an audit again, as a PNG",
    "verify": "looks for what is damaged in the lake",
    "forget": "takes pictures out of the lake, keeps them out, and proves it",
    "workers": "serves Python workers to an engine: Flink, Spark, Prism",
    "demo": "serves the embedded corpus on loopback and audits the embedded model",
}
"""The verbs that are no stages."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """What a stage is about to make.

    Attributes:
        stage: its name.
        parameters: every option that shapes its rows.
        upstream: stage → snapshot id of what it reads.
        unit: what an item is, in the plural.
        count: how many items it works on, or None where that is not known before the stages in front have run. Asked for a
            plan or a progress line alone, since it may take a while.
    """

    stage: str
    parameters: dict[str, Any]
    upstream: dict[str, str]
    unit: str
    count: Callable[[], int | None] = lambda: None

    @functools.cached_property
    def items(self) -> int | None:
        return self.count()

    @property
    def snapshot_id(self) -> str:
        from transforms.store.lake import snapshot_id

        return snapshot_id(self.stage, self.parameters, self.upstream)


def _nothing(*_: Any) -> None:
    """What a stage does that has nothing to do at that point."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the audit.

    Attributes:
        name: the verb, and its module.
        description: what ``--help`` says, with a command that can be pasted.
        upstream: the stage whose snapshot it reads; None for the first.
        options: its option dataclasses, in an audit too.
        alone: those that it takes where it runs alone.
        plan: (lake, options, upstream's snapshot id) → what it would make; the upstream need not be complete.
        work: (execution, options, planned, upstream's manifest) → facts for the manifest. Writes the tables; what an earlier
            run that was killed has left is not done again.
        check: looks closer at what ``plan`` has named than it need to for the id: UserError for what can't work, such as a
            model that no library loads. An audit asks all its stages before the first begins, but for those that are complete.
        begin: what to do before it is planned, such as what changes the plan.
        found: what to do where the snapshot is complete, before it becomes the latest.
        finish: what to do at the end, whether there was work or not.
        costs: (lake, options, size of an audit) → what it would have to do, with the time that it takes.
    """

    name: str
    description: str
    upstream: str | None
    options: tuple[type, ...]
    plan: Callable[[Lake, Parsed, str | None], Planned]
    work: Callable[[Execution, Parsed, Planned, Manifest | None], dict[str, Any] | None]
    alone: tuple[type, ...] = ()
    check: Callable[[Parsed], None] = _nothing
    begin: Callable[[Execution, Parsed], None] = _nothing
    found: Callable[[Execution, Parsed, Manifest], None] = _nothing
    finish: Callable[[Execution, Parsed, Manifest], None] = _nothing
    costs: Callable[[Lake, Parsed, Size], list[Cost]] | None = None

    def run(self, execution: Execution, parsed: Parsed, upstream: Manifest | None = None) -> Manifest:
        """Runs the stage on ``upstream``, or on what was asked for last; does nothing again that is complete."""
        from transforms.store.lineage import check_lineage

        lake = execution.lake
        if upstream is None and self.upstream is not None:
            upstream = lake.latest(self.upstream)
        self.begin(execution, parsed)
        if upstream is not None:
            # Planning may look into them.
            check_lineage(lake, [upstream], whole=False)
        planned = self.plan(lake, parsed, None if upstream is None else upstream.snapshot_id)
        self._check_parts(lake, planned, upstream)
        if (done := lake.manifest(self.name, planned.snapshot_id)) is not None:
            self.found(execution, parsed, done)
        manifest = execution.stage(planned, lambda: self.work(execution, parsed, planned, upstream))
        self.finish(execution, parsed, manifest)
        return manifest

    def _check_parts(self, lake: Lake, planned: Planned, upstream: Manifest | None) -> None:
        """Damaged where a part isn't what was written: of what is there already, or of all that it would be made of."""
        from transforms.store.lineage import check_lineage

        done = lake.manifest(self.name, planned.snapshot_id)
        if done is not None:
            lake.check_snapshot(done, whole=False)
            return
        # What it lies over, or builds on, is of its own stage.
        mine = planned.upstream.get(self.name)
        before = None if mine is None else lake.manifest(self.name, mine)
        check_lineage(lake, [one for one in (upstream, before) if one is not None])

    def main(self, argv: Sequence[str]) -> None:
        """The verb: this stage alone."""
        execution, parsed = self.parse(argv)
        with alone_with(parsed, self.name):
            self.run(execution, parsed)

    def parse(self, argv: Sequence[str]) -> tuple[Execution, Parsed]:
        """The verb's command line."""
        parsed = parse(argv, self.name, self.description, self.options_alone)
        return execution_of(parsed), parsed

    @property
    def options_alone(self) -> tuple[type, ...]:
        """The option dataclasses of the verb."""
        return CommonOptions, LockOptions, MachineOptions, *self.options, *self.alone


def alone_with(parsed: Parsed, verb: str) -> contextlib.AbstractContextManager[None]:
    """Keeps others that write off the lake of a command line meanwhile."""
    from pipelines.lock import alone
    from transforms.store.lake import Lake

    return alone(Lake(parsed[CommonOptions].lake), verb, parsed[LockOptions].wait)


def execution_of(parsed: Parsed) -> Execution:
    """Where and how a command line wants its pipelines to run."""
    from pipelines.device import DeviceOptions
    from pipelines.execution import Execution
    from transforms.models.devices import processes_with_room
    from transforms.store.lake import Lake

    common, device = parsed[CommonOptions], parsed[DeviceOptions].device
    processes = parsed[MachineOptions].processes or (processes_with_room() if device == "all" or "," in device else 1)
    return Execution(Lake(common.lake), parsed.beam, common.verbose, processes, parsed[DeviceOptions])


def stages() -> list[Stage]:
    """The stages of an audit, in order."""
    return [importlib.import_module(f"pipelines.{name}").STAGE for name in STAGES]


def sweep_stages() -> list[Stage]:
    """The stages of a sweep, in order."""
    return [importlib.import_module(f"pipelines.{name}").STAGE for name in SWEEP]


def options_of(some: Sequence[Stage]) -> tuple[type, ...]:
    """The option dataclasses of several stages, each once."""
    return tuple(dict.fromkeys(kind for stage in some for kind in stage.options))
