"""Options of the verbs: frozen dataclasses, made from the command line and a TOML file.

A verb's options are one dataclass or several; each field made with ``option`` becomes ``--name`` (a boolean also ``--no_name``;
a ``tuple[str, ...]`` takes one value or several). What no dataclass knows must be one of Beam's own options and passes through
untouched; what Beam doesn't know either is an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.util
import tomllib
import types
import typing
from collections.abc import Sequence
from typing import Any

from pipelines import engines
from transforms.errors import UserError


def option(
    default: Any,
    help: str,
    choices: Sequence[str] | None = None,
    *,
    least: float | None = None,
    most: float | None = None,
    over: float | None = None,
    under: float | None = None,
) -> Any:
    """A dataclass field that is an option of a subclass of ``Options``.

    Args:
        default: what it is where nobody says otherwise. None stays outside any range.
        help: what it means, with its unit.
        choices: the words that it may be.
        least, most: the ends of its range, which belong to it.
        over, under: the same, where they don't.
    """
    bounds = Range(least, most, over, under)
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "range": bounds})


class Range(typing.NamedTuple):
    """Where the value of an option may lie; None is no bound."""

    least: float | None
    most: float | None
    over: float | None
    under: float | None

    def holds(self, value: float) -> bool:
        """Whether a value lies inside. NaN lies in no range but the one without bounds."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.over is None or value > self.over)
            and (self.under is None or value < self.under)
        )

    def __str__(self) -> str:
        if self.over is not None and self.under is not None:
            return f"between {self.over:,} and {self.under:,}"
        start = f"over {self.over:,}" if self.over is not None else None if self.least is None else f"{self.least:,}"
        end = f"under {self.under:,}" if self.under is not None else None if self.most is None else f"{self.most:,}"
        if start is None:
            return f"up to {end}"
        if end is None:
            return start if self.least is None else f"{start} or more"
        return f"{start} to {end}" if self.least is not None else f"{start}, up to {end}"


class Options:
    """What the option dataclasses have in common: values lie where ``option`` says."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            bounds = field.metadata.get("range")
            if bounds is not None and value is not None and not bounds.holds(value):
                raise UserError(f"--{field.name} is {value}, expected {bounds}")


MOST_CONFIG_BYTES = 1 << 20
"""A --config that is larger is none."""

STORES = {"gs": "gcsfs", "s3": "s3fs"}
"""Kind of URL that a lake may have → the package that reads it."""


def check_url(name: str, value: str) -> None:
    """UserError where the value of an option is a URL that nothing here reads, with what to do. What is no URL passes."""
    scheme, is_url, rest = value.partition("://")
    if not is_url:
        return
    if scheme.lower() == "file":
        raise UserError(f"{name} is {value!r}, expected a path of this machine; name it as {name} {'/' + rest.lstrip('/')!r}")
    if scheme not in STORES:
        known = " or ".join(f"{one}://…" for one in STORES)
        raise UserError(f"{name} is {value!r}, expected a local path, or a URL that begins {known}")
    if not _is_installed(STORES[scheme]):
        raise UserError(
            f"{name} is {value!r}, and the package {STORES[scheme]!r} that reads it is not installed; "
            f"pip install 'eidetic[{scheme}]', or name a local path"
        )


@dataclasses.dataclass(frozen=True)
class CommonOptions(Options):
    """What every verb takes."""

    lake: str = option("lake", "the lake: a local folder, or a URL (gs://…, s3://…)")
    verbose: bool = option(False, "show Beam's own log")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_url("--lake", self.lake)


@dataclasses.dataclass(frozen=True)
class LockOptions(Options):
    """Beside others on the lake."""

    wait: float = option(0.0, "seconds to wait where another command is at work on this lake", least=0)


@dataclasses.dataclass(frozen=True)
class MachineOptions(Options):
    """This machine: how much of it a run takes."""

    processes: int = option(
        0,
        "processes that share what needs no model: downloads, comparisons (0: one; with --device all or a list, one for each "
        "core that has 2 GiB of memory)",
        least=0,
    )


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A command line, understood: one instance per options class, and Beam's share as it was given."""

    options: dict[type, Any]
    beam: list[str]

    @classmethod
    def of(cls, *options: Any, beam: Sequence[str] = ()) -> Parsed:
        """What a command line with these options would be."""
        return cls({type(one): one for one in options}, list(beam))

    def __getitem__(self, kind: type) -> Any:
        """The options of a class; UserError where the verb has none, and the class no defaults for all of them."""
        return self.options[kind] if kind in self.options else kind()

    def but(self, *options: Any) -> Parsed:
        """The same with other options of these classes."""
        return dataclasses.replace(self, options=self.options | {type(one): one for one in options})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; see '{self.prog} --help'")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def parse(argv: Sequence[str], verb: str, description: str, classes: Sequence[type], positional: Sequence[str] = ()) -> Parsed:
    """Reads a verb's command line.

    Args:
        argv: the words after the verb.
        verb: its name, for messages.
        description: what ``--help`` says above the options; ends with a command that can be pasted.
        classes: the option dataclasses, in the order in which ``--help`` shows them.
        positional: names of the words that stand without a dash (``query``'s SQL), in the order of their fields in classes.

    Raises:
        UserError: for an unknown option (of ours and of Beam), a value that doesn't fit, or a bad --config file.
    """
    parser = _Parser(
        prog=f"eidetic {verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        epilog="Beam's own options (--runner, --project, --temp_location, …) pass through untouched.",
    )
    parser.add_argument("--config", help="a TOML file with options by name; the command line wins", metavar="FILE")
    known: dict[str, dataclasses.Field] = {}
    for kind in classes:
        group = parser.add_argument_group(kind.__doc__.splitlines()[0] if kind.__doc__ else kind.__name__)
        for field, annotation in fields_of(kind):
            known[field.name] = field
            if field.name in positional:
                kind_of_word = plain_type(annotation)
                several: dict[str, Any] = {"nargs": "*"} if kind_of_word is tuple else {"type": kind_of_word}
                parser.add_argument(field.name, help=field.metadata["help"], metavar=field.name.upper(), **several)
            else:
                _add(group, field, annotation)
    namespace, rest = parser.parse_known_args(list(argv))
    given = vars(namespace)
    config = given.pop("config", None)
    values = {**(read_options(config, classes) if config else {}), **given}
    _check_beam(rest, parser, known)
    built = {}
    for kind in classes:
        mine = {field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}
        mine = {name: tuple(value) if isinstance(value, list) else value for name, value in mine.items()}
        built[kind] = kind(**mine)
    return Parsed(options=built, beam=rest)


def parameters(options: Any, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """An options dataclass as JSON-able parameters of a snapshot, without those that don't shape its rows."""
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in leave_out}


def fields_of(kind: type) -> list[tuple[dataclasses.Field, Any]]:
    """The options of a dataclass, in order: field and its annotation."""
    hints = typing.get_type_hints(kind)
    return [(field, hints[field.name]) for field in dataclasses.fields(kind) if "help" in field.metadata]


def plain_type(annotation: Any) -> type:
    """The type inside ``X | None``; tuple for ``tuple[X, ...]``; X itself otherwise."""
    if typing.get_origin(annotation) is tuple:
        return tuple
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def _add(group: argparse._ArgumentGroup, field: dataclasses.Field, annotation: Any) -> None:
    text = field.metadata["help"].replace("%", "%%")
    kind = plain_type(annotation)
    if kind is bool:
        names = (f"--{field.name}", f"--no_{field.name}")
        group.add_argument(names[0], dest=field.name, action="store_true", help=text)
        group.add_argument(names[1], dest=field.name, action="store_false", help=argparse.SUPPRESS)
        return
    if kind is tuple:
        group.add_argument(f"--{field.name}", nargs="+", action="extend", help=text, metavar=field.name.upper())
        return
    shown = "" if field.default in (None, "") else f" (default {field.default})"
    choices = field.metadata["choices"]
    metavar = field.name.upper() if choices is None else f"{{{','.join(choices)}}}"
    group.add_argument(f"--{field.name}", type=kind, choices=choices, help=text + shown, metavar=metavar)


def read_options(path: str, classes: Sequence[type], name: str = "--config") -> dict[str, Any]:
    """The values of a TOML file with options of these classes by name; UserError where it is none. ``name``: who names it."""
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_CONFIG_BYTES + 1)
        if len(text) > MOST_CONFIG_BYTES:
            raise UserError(f"{name} {path!r} is larger than {MOST_CONFIG_BYTES:,} bytes, expected a TOML file with options")
        values = tomllib.loads(text.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {name} {path!r} ({error.strerror})") from error
    except ValueError as error:  # it is no TOML or no UTF-8, or has a number of thousands of digits
        raise UserError(f"{name} {path!r} is not TOML ({error})") from error
    except RecursionError as error:
        raise UserError(f"{name} {path!r} is nested too deeply, expected a TOML file with options") from error
    expected = {field.name: (field, plain_type(kind)) for cls in classes for field, kind in fields_of(cls)}
    for key, value in values.items():
        if key not in expected:
            raise UserError(f"{name} {path!r}: unknown option {key!r}{_suggestion(key, expected)}")
        field, kind = expected[key]
        if kind is float and type(value) is int:
            value = values[key] = float(value)
        if kind is tuple and type(value) is list and all(type(one) is str for one in value):
            value = values[key] = tuple(value)
        if type(value) is not kind:
            raise UserError(f"{name} {path!r}: {key} is {value!r}, expected {'texts' if kind is tuple else kind.__name__}")
        if field.metadata["choices"] and value not in field.metadata["choices"]:
            raise UserError(f"{name} {path!r}: {key} is {value!r}, expected one of {list(field.metadata['choices'])}")
    return values


def _check_beam(words: list[str], parser: argparse.ArgumentParser, known: dict[str, Any]) -> None:
    """UserError for a word that is neither ours nor Beam's. Beam itself would drop it with a warning."""
    if not words:
        return
    from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    # Beam's own parser class: some of its options need value providers, which plain argparse doesn't know.
    beam = _BeamArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    beam.error = parser.error  # type: ignore[method-assign]
    for kind in {str(cls): cls for cls in PipelineOptions.__subclasses__()}.values():
        kind._add_argparse_args(beam)
    understood, unknown = beam.parse_known_args(words)
    if not unknown:
        engines.check(understood.runner, understood.job_endpoint)
        _check_runner(understood.runner)
    else:
        name = unknown[0].split("=")[0].lstrip("-")
        raise UserError(f"unknown option {unknown[0]!r}{_suggestion(name, known)}; see '{parser.prog} --help'")


def _check_runner(name: str | None) -> None:
    """UserError for a runner that Beam doesn't know, or whose package isn't installed."""
    from apache_beam.runners.runner import create_runner

    if name is None:
        return
    try:
        create_runner(name)
    except (ImportError, AttributeError) as error:
        extra = " ('apache-beam[gcp]' has Dataflow's)" if "dataflow" in name.lower() else ""
        raise UserError(
            f"--runner is {name!r}, which is not installed ({error}); install it{extra}, or name another"
        ) from error
    except (ValueError, TypeError) as error:  # TypeError: what has that name is no runner
        raise UserError(f"--runner is {name!r}, expected one that Beam knows ({error})") from error


def _suggestion(name: str, known: dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
