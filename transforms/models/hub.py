"""Models on the Hugging Face hub: which commit a name means, and its files. Without a network, what the local cache has."""

from __future__ import annotations

import os
from collections.abc import Sequence

from transforms.errors import UserError, first_line


def hub_commit(model: str, revision: str | None, option: str = "--model", files: Sequence[str] = ("model_index.json",)) -> str:
    """The commit that ``revision`` of a hub model means now; without a network, the one in the local cache.

    Args:
        model: owner/name.
        revision: branch, tag or commit; None for the default branch.
        option: what the user named it with.
        files: of these the cache has one where it has the model.

    Raises:
        UserError: where it is no hub id, and where neither the hub nor the cache has it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise UserError(
            f"{option} is {model!r}, which is neither a folder that exists nor a hub id such as owner/name; mend {option}"
        ) from error
    try:
        commit = HfApi().model_info(model, revision=revision, timeout=10).sha
    except Exception as error:  # the hub's errors have no common base: no network, no such model, no permission
        folder = _cached(model, revision, files)
        if folder is not None:
            return os.path.basename(folder)
        raise UserError(
            f"the model {model!r} is neither a local folder nor to be had from the hub ({first_line(error)}); "
            f"mend {option}, or name a folder"
        ) from error
    if not commit:
        raise UserError(f"the hub names no commit for {model!r}; mend {option}")
    return commit


def hub_files(model: str, commit: str) -> list[str]:
    """Paths of the files of a commit; without a network, of those in the local cache.

    Raises:
        UserError: where neither the hub nor the cache has it.
    """
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(model, revision=commit)
    except Exception as error:  # as above
        folder = _cached(model, commit, ("model_index.json",))
        if folder is None:
            raise UserError(f"the hub does not list the files of {model!r} at {commit} ({first_line(error)})") from error
        return files_of(folder)


def files_of(folder: str) -> list[str]:
    """Paths of all files inside a folder, relative to it."""
    return [
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in sorted(names)
    ]


def _cached(model: str, revision: str | None, files: Sequence[str]) -> str | None:
    """Folder of a cached snapshot that has one of these files; its name is the commit. None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(model, name, revision=revision) for name in files)
    return next((os.path.dirname(path) for path in found if isinstance(path, str)), None)
