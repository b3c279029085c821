# SPDX-License-Identifier: Apache-2.0
"""Call a function right after a module is imported, without importing it."""

from __future__ import annotations

import importlib._bootstrap
import importlib.util
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching.binding import is_initialising

Callback = Callable[[ModuleType], object]

_waiting: dict[str, list[Callback]] = {}
_loading: set[str] = set()
_lock = threading.Lock()


def when_imported(module_name: str, callback: Callback) -> None:
    """Call ``callback(module)`` once, right after the module's import, or now if it has been imported.

    Callbacks of one module run in order, in the thread that imports it. If one raises, the import fails with that
    error, and the next attempt runs them all again. ``python -m module`` runs the module under another name and does
    not count.

    Raises:
        Fp16PatchError: If the module is being imported, which is too late.
    """
    with _lock:
        _waiting.setdefault(module_name, []).append(callback)
        if _finder not in sys.meta_path:
            # A new list, here and in _done: a thread that iterates over the old one must not skip a finder.
            sys.meta_path = [_finder, *sys.meta_path]
    # Wait for an import in another thread that passed the finders before ours was added.
    importlib._bootstrap._lock_unlock_module(module_name)  # type: ignore[attr-defined]
    module = sys.modules.get(module_name)
    if module is None or module_name in _loading:
        return
    if type(module) is importlib.util._LazyModule:  # type: ignore[attr-defined]
        spec = object.__getattribute__(module, "__spec__")  # plain access would load it
        spec.loader = _watched(spec.loader)
        return
    with _lock:
        if callback not in _waiting.get(module_name, ()):
            return  # the other thread's import has run it
        _done(module_name, [callback])
    if is_initialising(module):
        raise Fp16PatchError(
            f"{module_name} is being imported already: it is too late to wait for its import",
            code="imported-too-early",
            next_step=f"call when_imported before anything imports {module_name}",
        )
    callback(module)


class _Finder:
    """Find what the other finders find, and watch the loading of modules that have callbacks."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        # Finders of other tools also ask all finders, and so this one.
        if name not in _waiting or getattr(self._thread, "finding", None) == name:
            return None
        self._thread.finding = name
        try:
            spec: ModuleSpec | None = importlib._bootstrap._find_spec(name, path, target)  # type: ignore[attr-defined]
        finally:
            self._thread.finding = None
        if spec is not None:
            spec.loader = _watched(spec.loader)
        return spec


class _Loader:
    """Act as the real loader (for runpy, inspect, importlib.resources), then run the callbacks."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def exec_module(self, module: ModuleType) -> None:
        spec: Any = module.__spec__
        spec.loader = module.__loader__ = self._real  # the module keeps no reference to this loader
        _loading.add(spec.name)
        try:
            self._real.exec_module(module)
            _run_callbacks(spec.name, module)
        finally:
            _loading.discard(spec.name)


_finder = _Finder()


def _watched(loader: Any) -> Any:
    if not hasattr(loader, "exec_module"):
        raise ImportError(f"fp16_patch cannot watch what {loader!r} loads")
    return _Loader(loader)


def _run_callbacks(name: str, module: ModuleType) -> None:
    ran: list[Callback] = []
    while True:
        with _lock:
            waiting = _waiting.get(name, [])
            if len(ran) == len(waiting):
                return _done(name, ran)
        ran.append(waiting[len(ran)])
        ran[-1](sys.modules.get(name, module))  # a module may replace itself in sys.modules


def _done(name: str, callbacks: list[Callback]) -> None:
    for callback in callbacks:
        _waiting[name].remove(callback)
    if not _waiting.get(name):
        _waiting.pop(name, None)
    if not _waiting:
        sys.meta_path = [finder for finder in sys.meta_path if finder is not _finder]
