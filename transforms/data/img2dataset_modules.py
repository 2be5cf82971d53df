"""img2dataset's modules without its package, whose ``__init__`` imports PyTorch, wandb and pandas: 600 MB, and seconds."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from types import ModuleType

_PACKAGE = "_img2dataset"
"""A package of the same files under another name: who imports img2dataset itself still gets all of it."""


@functools.cache
def img2dataset_module(name: str) -> ModuleType:
    """The module ``img2dataset.<name>``, and what it imports itself."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else an import looks for a newer version on the network
    if _PACKAGE not in sys.modules:
        spec = importlib.util.find_spec("img2dataset")
        assert spec is not None and spec.submodule_search_locations
        package = ModuleType(_PACKAGE)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")
