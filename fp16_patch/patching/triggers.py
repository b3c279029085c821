# SPDX-License-Identifier: Apache-2.0
"""Run something right after a module has been imported, without importing it."""

from __future__ import annotations

import importlib._bootstrap
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching.binding import is_initialising

Callback = Callable[[ModuleType], object]

_pending: dict[str, list[Callback]] = {}
_loading: set[str] = set()
_lock = threading.Lock()


def when_imported(module_name: str, callback: Callback) -> None:
    """Call ``callback(module)`` once, when the module has been imported in this process: now, if it has been already.

    Callbacks of one module run in order, in the thread that imports it. What one raises goes to the importer, and the
    module is not imported; the next attempt runs them all again. A module run by ``python -m`` does not count.
    Raises Fp16PatchError from inside the module's own import, which is too late.
    """
    with _lock:
        _pending.setdefault(module_name, []).append(callback)
        if _finder not in sys.meta_path:
            # A new list, here and below: another thread may be walking the old one and must not skip a finder.
            sys.meta_path = [_finder, *sys.meta_path]
    # Wait for an import in another thread that found its spec before our finder was there.
    importlib._bootstrap._lock_unlock_module(module_name)  # type: ignore[attr-defined]
    module = sys.modules.get(module_name)
    if module is None or module_name in _loading:
        return
    if type(module) is importlib.util._LazyModule:  # touching any attribute would load it
        spec = object.__getattribute__(module, "__spec__")
        spec.loader = _watched(spec.loader)
        return
    with _lock:
        if callback not in _pending.get(module_name, ()):
            return  # that other import has run it
        _pending[module_name].remove(callback)
        _tidy(module_name)
    if is_initialising(module):
        raise Fp16PatchError(
            f"{module_name} is in the middle of its own import, too late to wait for it",
            next_step=f"call when_imported before anything imports {module_name}",
        )
    callback(module)


class _Finder:
    """Finds what the other finders find, and watches its loader if somebody waits for it."""

    def __init__(self) -> None:
        self._busy = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _pending or getattr(self._busy, "name", None) == fullname:
            return None
        self._busy.name = fullname  # other tools' finders may ask all finders in turn, us too
        try:
            finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
            specs = (finder.find_spec(fullname, path, target) for finder in finders)
            spec = next((spec for spec in specs if spec is not None), None)
        finally:
            self._busy.name = None
        if spec is not None:
            spec.loader = _watched(spec.loader)
        return spec


class _Loader:
    """The real loader for whoever asks (runpy, inspect, importlib.resources), except that callbacks follow it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def exec_module(self, module: ModuleType) -> None:
        spec: Any = module.__spec__
        spec.loader = module.__loader__ = self._inner  # leave no trace
        _loading.add(spec.name)
        try:
            self._inner.exec_module(module)
            _run_callbacks(spec.name, module)
        finally:
            _loading.discard(spec.name)


_finder = _Finder()


def _watched(loader: Any) -> Any:
    if not hasattr(loader, "exec_module"):
        raise ImportError(f"fp16_patch cannot watch a module loaded by {loader!r}")
    return loader if isinstance(loader, _Loader) else _Loader(loader)


def _run_callbacks(name: str, module: ModuleType) -> None:
    done = 0
    while True:
        with _lock:
            callbacks = _pending.get(name, [])
            if done == len(callbacks):
                _pending.pop(name, None)
                _tidy(name)
                return
        callbacks[done](sys.modules.get(name, module))  # a module may have put another in its place
        done += 1


def _tidy(name: str) -> None:
    if not _pending.get(name, ()):
        _pending.pop(name, None)
    if not _pending:
        sys.meta_path = [finder for finder in sys.meta_path if finder is not _finder]
