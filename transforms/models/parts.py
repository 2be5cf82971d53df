"""What a pipeline of diffusers is made of and can be asked: its parts, and their files. Nothing in here loads weights."""

from __future__ import annotations

import collections
import inspect
import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from transforms.errors import UserError, first_line
from transforms.models.hub import files_of

INDEX = "model_index.json"
"""The file that names a pipeline's class and parts."""

_ADVICE = "expected a folder written by a text-to-image pipeline's save_pretrained"

_WEIGHTS = re.compile(
    r"(?P<part>[^/]+)/(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:-\d+-of-\d+)?(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.(?P<kind>safetensors|bin)"
)
"""How diffusers and transformers call files of weights: of a variant or not, in one file or several."""

_READ = (".json", ".txt", ".model")
"""Other files that are read when a part is loaded."""

_LFS = b"version https://git-lfs"
"""How the text begins that stands for a file in a clone without Git LFS."""

_EMBEDS = ("FluxPipeline", "FluxKontextPipeline", "QwenImagePipeline")
"""Pipelines that only tell the scale of guidance to their transformer, which need not have an ear for it."""

_TAUGHT = ("Flux2KleinPipeline",)
"""Pipelines that don't guide where the model is distilled, though they take the scale."""


class Weights(NamedTuple):
    """Which of a pipeline's weights are loaded.

    Attributes:
        variant: such as fp16; None for those without one in their names.
        pickle: whether weights may be pickled, where there are no safetensors.
    """

    variant: str | None
    pickle: bool


def choose_weights(model: str, files: Iterable[str], variant: str | None = None, pickle: bool = False) -> Weights:
    """The weights to load, by the names of a pipeline's files.

    Args:
        model: for messages.
        files: paths inside the pipeline's folder.
        variant: the one that was asked for; None for those without a variant, or for the only one that all parts have.
        pickle: whether pickled weights (``.bin``) may be loaded: they can execute code.

    Raises:
        UserError: where a part has no such weights, pickled ones alone, or several variants.
    """
    kinds: dict[str, set[str]] = collections.defaultdict(set)
    variants: dict[str, set[str | None]] = collections.defaultdict(set)
    for path in files:
        if (found := _WEIGHTS.fullmatch(path.replace(os.sep, "/"))) is not None:
            kinds[found["part"]].add(found["kind"])
            if pickle or found["kind"] == "safetensors":
                variants[found["part"]].add(found["variant"])
    pickled = sorted(part for part, found in kinds.items() if found == {"bin"})
    if pickled and not pickle:
        raise UserError(
            f"the part(s) {', '.join(pickled)} of {model!r} have pickled weights (.bin) alone, which can execute code; save "
            "them with save_pretrained(safe_serialization=True), or trust whoever made them and name --allow_pickle"
        )
    there = sorted({name for found in variants.values() for name in found if name is not None})
    if variant is not None and variant not in there:
        raise UserError(f"--variant is {variant!r}, and {model!r} has {', '.join(there) if there else 'no variants'}; mend it")
    # A part that has no weights of a variant is loaded without.
    unmet = {part: found for part, found in variants.items() if not found & {None, variant}}
    if not unmet:
        return Weights(variant, pickle)
    common = set.intersection(*unmet.values())
    if variant is None and len(common) == 1:
        return Weights(common.pop(), pickle)
    part, alone = next(iter(unmet.items()))
    raise UserError(
        f"the part {part} of {model!r} has weights of {', '.join(sorted(filter(None, alone)))} alone; "
        f"name {'the one to load with' if variant is None else 'another'} --variant"
    )


def read_index(folder: str) -> dict[str, Any]:
    """What a pipeline's folder says of itself. UserError where that is not what ``save_pretrained`` writes."""
    path = os.path.join(folder, INDEX)
    if not os.path.isfile(path):
        raise UserError(f"the model folder {folder!r} has no {INDEX}; {_ADVICE}")
    index = _read_json(path)
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise UserError(f"{path!r} names no pipeline in _class_name; {_ADVICE}")
    return index


def parts_of(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Part → (library, class) of what model_index.json names; those that are left out (null) aside."""
    # Numbers in a list are a setting of the pipeline.
    named = {
        name: value for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and not any(isinstance(one, int | float) for one in value)
    }  # fmt: skip
    for name, value in named.items():
        if len(value) != 2 or not all(one is None or isinstance(one, str) for one in value):
            raise UserError(f"{INDEX} has {value!r} for the part {name}, expected a library and a class; {_ADVICE}")
    return {name: (value[0], value[1]) for name, value in named.items() if value[0] is not None}


def check_folder(folder: str, variant: str | None = None, pickle: bool = False, leave_out: Collection[str] = ()) -> Weights:
    """The weights to load of ``folder``, but for the parts to ``leave_out``, which won't be loaded.

    UserError unless it is a pipeline with all its parts, whole as far as files tell.
    """
    parts = {name: one for name, one in parts_of(read_index(folder)).items() if name not in leave_out}
    missing = sorted(name for name in parts if not os.path.isdir(os.path.join(folder, name)))
    if missing:
        raise UserError(f"the model folder {folder!r} lacks its part(s) {', '.join(missing)}; {_ADVICE}")
    chosen = choose_weights(folder, files_of(folder), variant, pickle)
    for part in parts:
        names = os.listdir(os.path.join(folder, part))
        if not names:
            raise UserError(f"the part {part} of {folder!r} is empty; {_ADVICE}")
        for name in sorted(names):
            weights = _WEIGHTS.fullmatch(f"{part}/{name}")
            loaded = weights is not None and weights["kind"] == "safetensors" and weights["variant"] in (None, chosen.variant)
            if (loaded or name.endswith(_READ)) and (found := damage(os.path.join(folder, part, name))) is not None:
                raise UserError(f"the part {part} of {folder!r} is damaged: {name} {found}")
        if (lacking := _lacking(folder, part, names, parts[part][1], chosen.variant)) is not None:
            raise UserError(f"the part {part} of {folder!r} lacks {lacking}; {_ADVICE}")
    return chosen


_WEIGHTLESS = re.compile(r".*(Scheduler|Tokenizer(Fast)?|Processor(Fast)?|FeatureExtractor|ImageProcessor(Fast)?)")
"""Classes of parts that have no weights."""


def _lacking(folder: str, part: str, names: Sequence[str], kind: str, variant: str | None) -> str | None:
    """Which weights a part lacks, by the names of its files; None where it has all of them, or needs none."""
    index_ends = ".safetensors.index.json" if variant is None else f".safetensors.index.{variant}.json"
    for name in names:
        if name.endswith(index_ends):
            index = _read_json(os.path.join(folder, part, name))
            shards = index.get("weight_map", {}) if isinstance(index, dict) else {}
            wanted = {str(one) for one in shards.values()} if isinstance(shards, dict) else set()
            if missing := sorted(wanted - set(names)):
                return f"{missing[0]}, which {name} names"
    has = any(_WEIGHTS.fullmatch(f"{part}/{name}") for name in names)
    # Where the configuration is all that there is; who knows what other libraries call their weights.
    return "its weights" if not has and set(names) <= {"config.json"} and not _WEIGHTLESS.fullmatch(kind) else None


def damage(path: str) -> str | None:
    """What keeps a file from being loaded; None where nothing is seen."""
    if not os.path.isfile(path):  # a pipe would keep its reader waiting for ever
        return "is no file, or a link that leads nowhere; mend or remove it"
    try:
        with open(path, "rb") as file:
            if file.read(len(_LFS)) == _LFS:
                return "is a pointer of Git LFS and not the file; 'git lfs pull' brings it"
        if path.endswith(".safetensors"):
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(path, framework="numpy"):  # looks at the header, and whether the file is as long as that says
                    pass
            except SafetensorError as error:
                return f"is cut, or no safetensors ({first_line(error)}); copy or download it again"
        elif path.endswith(".json"):
            content = _read_json(path)
            if path.endswith("config.json") and not isinstance(content, dict):
                return f"holds {type(content).__name__}, expected a JSON object"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return None


def _read_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except RecursionError as error:
        raise UserError(f"{path!r} is nested too deep; {_ADVICE}") from error
    except ValueError as error:
        raise UserError(f"{path!r} is not JSON ({error}); {_ADVICE}") from error
    except OSError as error:
        raise UserError(f"{path!r} can't be read ({error.strerror}); {_ADVICE}") from error


def pipeline_class(model: str, **source: Any) -> Any:
    """The text-to-image pipeline that diffusers makes of a model.

    Args:
        model: hub id or folder.
        source: which commit, where it is a hub id.

    Raises:
        UserError: where there is none, or one that takes a picture beside the prompt.
    """
    from diffusers import DiffusionPipeline
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING, _get_task_class

    try:
        index = DiffusionPipeline.load_config(model, **source)
        found = _get_task_class(AUTO_TEXT2IMAGE_PIPELINES_MAPPING, index["_class_name"])
    except Exception as error:  # the hub's and diffusers' have no common base
        raise UserError(
            f"diffusers makes no text-to-image pipeline of {model!r} ({first_line(error)}); mend --model"
        ) from error
    if "Control" in found.__name__:
        raise UserError(
            f"{model!r} is a {found.__name__}, which takes a picture beside the prompt, and prompts alone are tried; "
            "name the model that it steers"
        )
    _refuse_what_has_no_loader(model, index)
    # Some bring a part of themselves from another place on the hub, which their README.md names.
    whole = os.path.isdir(model) and not (found._load_connected_pipes and os.path.isfile(os.path.join(model, "README.md")))
    named = inspect.signature(found.__init__).parameters.values()
    needed = {one.name for one in named if one.default is one.empty} - {"self", *found._optional_components}
    missing = sorted(name for name in needed if name not in index)
    if missing and whole:
        raise UserError(f"{model!r} is a {found.__name__} and names no {', '.join(missing)} in {INDEX}; {_ADVICE}")
    return found


def _refuse_what_has_no_loader(model: str, index: dict[str, Any]) -> None:
    """UserError where a part is of a library that this diffusers loads nothing from: it would fail once all stages before ran.

    So it is with what diffusers has put among its deprecated pipelines and still takes for text-to-image ones (Würstchen),
    and with code of a model's own, which is never run here.
    """
    import diffusers
    from diffusers import pipelines
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    for part, (library, name) in parts_of(index).items():
        if library not in LOADABLE_CLASSES and not hasattr(pipelines, library):
            raise UserError(
                f"the part {part} of {model!r} is a {name} of {library}, which diffusers {diffusers.__version__} loads nothing "
                "from; name another --model, or pictures that were made with it (--generations)"
            )


def unused_options(found: Any, model: str, **source: Any) -> list[str]:
    """Those of ``steps`` and ``guidance_scale`` that a pipeline doesn't take, or takes without heeding them.

    Args:
        found: the pipeline's class.
        model, source: as of ``pipeline_class``.
    """
    from diffusers import AutoModel, DiffusionPipeline

    takes = inspect.signature(found.__call__).parameters
    unused = [] if "num_inference_steps" in takes else ["steps"]
    heeded = "guidance_scale" in takes
    if found.__name__ in _TAUGHT:
        heeded = not DiffusionPipeline.load_config(model, **source).get("is_distilled", False)
    elif found.__name__ in _EMBEDS:
        heeded = AutoModel.load_config(model, subfolder="transformer", **source).get("guidance_embeds", False)
    return unused if heeded else [*unused, "guidance_scale"]
