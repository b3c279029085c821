# SPDX-License-Identifier: Apache-2.0
"""Let a module be imported that imports a library, at its top, which has no CPU build and which a run does not need.

The names it asks for are there while that module is being imported, and only then: whoever else looks for the library,
to find out whether it is installed, does not find it. An installed one goes first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

from fp16_patch.patching import when_imported
from fp16_patch.patching.binding import is_initialising


class StandIns(MetaPathFinder, Loader):
    """``names``: module of the library -> what ``importer`` takes from it."""

    def __init__(self, importer: str, names: Mapping[str, Mapping[str, Any]]) -> None:
        self._importer, self._names = importer, names

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        importer = sys.modules.get(self._importer)
        if fullname not in self._names or importer is None or not is_initialising(importer):
            return None
        return spec_from_loader(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> None:
        """Python's own kind of module."""

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._names[module.__name__])

    def forget(self, _importer: ModuleType) -> None:
        for name in self._names:
            if getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None) is self:
                del sys.modules[name]


def stand_in(importer: str, names: Mapping[str, Mapping[str, Any]]) -> None:
    """From now on this process can import ``importer`` without the library. Idempotent."""
    if not any(isinstance(finder, StandIns) and finder._importer == importer for finder in sys.meta_path):
        stand_ins = StandIns(importer, names)
        sys.meta_path = [*sys.meta_path, stand_ins]
        when_imported(importer, stand_ins.forget)
