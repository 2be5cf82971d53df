"""Models behind URLs: copied to this machine, once, where those who load them find a folder."""

from __future__ import annotations

import os
import shutil
import uuid

from transforms.errors import FAULTS_OF_THE_MACHINE, UserError
from transforms.store.files import is_url, open_file, replacing, sync_folder, walk
from transforms.store.identity import digest


def local_folder(model: str) -> str:
    """Where a model's folder lies on this machine: a URL's copy, which is made where there is none; else ``model`` as it is.

    Copies are kept in ``XDG_CACHE_HOME/eidetic/models`` (by default ~/.cache), one for each content: a model that has changed
    in the store, by names, sizes or times, is copied again.

    Raises:
        UserError: where nothing lies behind the URL, or this machine can't hold it.
    """
    if not is_url(model):
        return model
    root = model.rstrip("/")
    files = walk(root)
    if not files:
        raise UserError(f"there is nothing at {model!r}; mend the URL of the model's folder")
    known = digest("model", root, [tuple(one) for one in files], length=32)
    cache = os.path.join(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "eidetic", "models")
    copy = os.path.join(cache, known)
    if os.path.isdir(copy):
        return copy
    begun = f"{copy}.{uuid.uuid4().hex}"
    try:
        for one in files:
            place = os.path.join(begun, one.path.removeprefix(root).lstrip("/"))
            with open_file(one.path) as source, replacing(place) as target:
                shutil.copyfileobj(source, target, 1 << 24)
        try:
            os.rename(begun, copy)
        except OSError:
            if not os.path.isdir(copy):  # else another process was faster
                raise
        sync_folder(cache)
    except OSError as error:
        if error.errno not in FAULTS_OF_THE_MACHINE:
            raise
        raise UserError(
            f"the model {model!r} can't be copied to {cache!r} ({error.strerror}); make room there, or name another place with "
            "XDG_CACHE_HOME"
        ) from error
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return copy
