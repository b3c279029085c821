# SPDX-License-Identifier: Apache-2.0
"""A small real library on disk, with a version that importlib.metadata finds."""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fp16_patch.patching import Patch, ProcessKind, Release, applying, registry, status, undo


class Library:
    """The distribution ``acme-rl``, whose import package is ``acme``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, version: str = "1.0", /, **modules: str) -> None:
        """``write(optim="...")`` makes acme/optim.py; ``nn__layer`` makes acme/nn/layer.py."""
        info = self.root / "acme_rl-1.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-rl\nVersion: {version}\n")
        for name, text in {"__init__": "", **modules}.items():
            path = self.root.joinpath("acme", *name.split("__") if name != "__init__" else [name])
            path = path.with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).lstrip("\n"))
        importlib.invalidate_caches()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # sources are rewritten within one second
    before, declared = set(sys.modules), dict(registry._declared)
    yield Library(tmp_path)
    undo()
    applying._applied.clear()  # what a test wrapped from outside
    status()._entries.clear()
    registry._declared.clear()
    registry._declared.update(declared)
    for name in [name for name in set(sys.modules) - before if name.split(".")[0] in ("acme", "user")]:
        del sys.modules[name]


@pytest.fixture
def declare() -> Callable[..., Patch]:
    def declare(target: str, make: Callable[[Any], Any] = lambda f: lambda *a, **k: f(*a, **k), **more: Any) -> Patch:
        more.setdefault("kind", "replace" if "fingerprint" in more else "wrap")
        if more["kind"] == "wrap":
            more.setdefault("parameters", ())
        defaults: dict[str, Any] = {
            "name": re.sub("[^a-z0-9]+", "-", target.lower()).strip("-"),
            "release": Release(more.pop("distribution", "acme-rl"), more.pop("versions", "==1.0")),
            "processes": frozenset({ProcessKind.TRAINER_RANK}),
            "reason": "a test",
            "upstream": "none",
            "remove_when": "never",
        }
        return Patch(target=target, make=make, **{**defaults, **more})

    return declare
