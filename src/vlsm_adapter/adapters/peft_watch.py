"""PEFT that is imported after an adapter was attached: its layers' class is told of ours in that moment.

Without it PEFT's functions would pass over our layers until one of our functions is called next.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from vlsm_adapter.adapters.site_layer import NamedAdapters

_MODULE = "peft.tuners.tuners_utils"


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds one module as Python does, and adds a line to its end."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_tell(module: ModuleType) -> None:
            execute(module)
            module.BaseTunerLayer.register(NamedAdapters)

        loader.exec_module = execute_and_tell
        return spec


_WATCHER = _Watcher()


def watch() -> None:
    """Wait for PEFT, unless it is here already."""
    if _MODULE not in sys.modules and _WATCHER not in sys.meta_path:
        sys.meta_path.insert(0, _WATCHER)
