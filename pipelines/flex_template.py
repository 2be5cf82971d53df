"""The Dataflow Flex Template: what it asks its user for, and how the answers become a command line.

    python -m pipelines.flex_template                              # prints its metadata
    python deploy/dataflow/launch.py --verb=embed --lake=gs://…    # what Dataflow's launcher runs in the image

A Flex Template starts one job, and its launcher has to end as soon as the job is handed over. So a launch is the first Beam
pipeline of a verb for which work is left, built by Beam's own option ``--template_location``; ``docs/dataflow.md`` says what
follows it.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from pipelines.options import fields_of, plain_type
from pipelines.stages import BESIDE, STAGES, SWEEP
from transforms.errors import UserError

NO_JOB = {
    "measure": "DuckDB makes it where the command runs",
    "compare": "DuckDB makes it where the command runs",
    "nightly": "it is many jobs, and its exit code is the verdict",
    "forget": "it is many jobs, and it is done when the last of them has been checked",
    "lookup": "it prints its answer",
    "again": "it makes one picture where the command runs",
    "query": "it prints its answer",
    "history": "it prints its answer",
    "verify": "it reads the lake where the command runs",
    "workers": "it serves other engines",
    "demo": "it serves its pictures on loopback",
}
"""Verbs that a template can't start, and why."""

IMAGE = "EIDETIC_IMAGE"
"""Variable of the environment with the name of the image that the launcher runs in: the workers run in the same one."""


def verbs() -> dict[str, tuple[type, ...]]:
    """Verb that a template can start → its option dataclasses."""
    found: dict[str, tuple[type, ...]] = {
        name: importlib.import_module(f"pipelines.{name}").STAGE.options_alone
        for name in (*STAGES, *BESIDE, *SWEEP)
        if name not in NO_JOB
    }
    return found | {name: importlib.import_module(f"pipelines.{name}").options() for name in ("audit", "sweep")}


@dataclasses.dataclass(frozen=True)
class Use:
    """An option as one option dataclass has it.

    Attributes:
        field: the dataclass' field.
        kind: the type of its value; tuple for several words.
        group: what its dataclass is called in ``--help``.
    """

    field: dataclasses.Field
    kind: type
    group: str


def uses() -> dict[str, dict[str, Use]]:
    """Option → verb → how the verb uses it, both in the order of ``--help``."""
    found: dict[str, dict[str, Use]] = collections.defaultdict(dict)
    for verb, classes in verbs().items():
        for kind in classes:
            group = (kind.__doc__ or kind.__name__).splitlines()[0].rstrip(".")
            for field, annotation in fields_of(kind):
                found[field.name][verb] = Use(field, plain_type(annotation), group)
    return dict(found)


def metadata() -> dict[str, Any]:
    """The template's metadata: google.dataflow.v1beta3.TemplateMetadata in JSON, a parameter for each option of each verb."""
    verb = {
        "name": "verb",
        "label": "Verb",
        "helpText": "What to run. A launch starts the first Dataflow job of it for which work is left.",
        "paramType": "ENUM",
        "enumOptions": [{"value": name, "label": name} for name in verbs()],
        "groupName": "Verb",
    }
    return {
        "name": "Eidetic",
        "description": "Measures how much of its training set a text-to-image model gives back.",
        "parameters": [verb, *(_parameter(name, by_verb) for name, by_verb in uses().items())],
    }


def _parameter(name: str, by_verb: dict[str, Use]) -> dict[str, Any]:
    """The parameter of an option. Where verbs differ in what they mean by it, its text says so, and its type is text."""
    everywhere = len(by_verb) == len(verbs())
    texts = _grouped((use.field.metadata["help"], verb) for verb, use in by_verb.items())
    help_text = "; ".join(text if len(texts) == 1 else f"{', '.join(of)}: {text}" for text, of in texts.items())
    made: dict[str, Any] = {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "helpText": help_text,
        "isOptional": True,
    }
    if name == "lake":
        # A folder of the launcher is gone when it ends.
        made |= {"helpText": "the lake: gs://BUCKET/FOLDER", "isOptional": False, "regexes": ["^gs://[^\\n\\r]+$"]}
        made |= {"paramType": "GCS_WRITE_FOLDER"}
    else:
        made |= _type(list(by_verb.values()))
    # A form shows a group only of what it always shows.
    if everywhere:
        return made | {"groupName": next(iter(by_verb.values())).group}
    return made | {"parentName": "verb", "parentTriggerValues": list(by_verb)}


def _type(some: list[Use]) -> dict[str, Any]:
    """The fields of a parameter that follow from type, choices and default."""
    kinds, defaults = {use.kind for use in some}, {use.field.default for use in some}
    choices = {tuple(use.field.metadata["choices"] or ()) for use in some}
    if len(kinds) > 1 or len(defaults) > 1 or len(choices) > 1:
        return {"paramType": "TEXT"}
    kind, words = kinds.pop(), choices.pop()
    default: Any = defaults.pop()
    # Forms fill in a default of their own (0, false) where there is none, so what has none is text, which may stay empty.
    if default is None or default == ():
        return {"paramType": "TEXT"}
    if kind is bool:
        return {"paramType": "BOOLEAN", "defaultValue": str(default).lower()}
    if words:
        return {
            "paramType": "ENUM",
            "enumOptions": [{"value": word, "label": word} for word in words],
            "defaultValue": default,
        }
    if kind is tuple:
        return {"paramType": "TEXT", "defaultValue": shlex.join(default)}
    return {"paramType": "NUMBER" if kind in (int, float) else "TEXT", "defaultValue": str(default)}


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Key → its values, in order."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return dict(found)


def text() -> str:
    """The template's metadata: all options of all verbs that run a job, as JSON."""
    return json.dumps(metadata(), indent=2, ensure_ascii=False) + "\n"


# -- what Dataflow's launcher runs ------------------------------------------------------------------------------------


def command(words: Sequence[str]) -> list[str]:
    """The words of Dataflow's launcher (``--name=value``) as those of ``eidetic``, the verb first.

    Truth values come as text, several words as one (in the shell's quotation), and what a form left empty as an empty text.
    What is no option of the verb passes through: it is Beam's, or the verb refuses it.

    Raises:
        UserError: for a verb that a template can't start, or a truth value that is none.
    """
    verb, rest = None, []
    for word in words:
        name, said, value = word.removeprefix("--").partition("=")
        if name == "verb":
            verb = value
        else:
            rest.append((word, name if said else "", value))
    known = verbs()
    if verb in NO_JOB:
        raise UserError(f"the parameter verb is {verb!r}, which a template can't start: {NO_JOB[verb]}; run 'eidetic {verb}'")
    if verb not in known:
        raise UserError(f"the parameter verb is {verb!r}, expected one of {', '.join(known)}")
    kinds = {name: by_verb[verb].kind for name, by_verb in uses().items() if verb in by_verb}
    made = [verb]
    for word, name, value in rest:
        if name not in kinds:
            made.append(word)
        elif value:
            made += _option(name, kinds[name], value)
    if (image := os.environ.get(IMAGE)) and not any(name == "sdk_container_image" for _, name, _ in rest):
        made.append(f"--sdk_container_image={image}")
    return made


def _option(name: str, kind: type, value: str) -> list[str]:
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UserError(f"the parameter {name} is {value!r}, expected true or false")
        return [f"--{name}" if value.lower() == "true" else f"--no_{name}"]
    if kind is tuple:
        return [f"--{name}", *shlex.split(value)]
    return [f"--{name}={value}"]


def launch(words: Sequence[str]) -> int:
    """Builds the job of a launch where Dataflow's launcher looks for it; the exit code of the verb.

    2, with a line, where no job was built, since nothing is left to do: else the launcher would look for it in vain.
    """
    from pipelines.cli import main
    from transforms.store.files import exists

    made = command(words)
    code = main(made)
    place = next((word.partition("=")[2] for word in made if word.startswith("--template_location=")), None)
    if code == 0 and place is not None and not exists(place):
        raise UserError(f"'eidetic {made[0]}' with these options has no job left to run; go on with the verb after it")
    return code


def script() -> NoReturn:
    """What Dataflow's launcher runs."""
    from pipelines.cli import leave, run_verb

    leave(run_verb(launch, sys.argv[1:]))


if __name__ == "__main__":
    sys.stdout.write(text())
