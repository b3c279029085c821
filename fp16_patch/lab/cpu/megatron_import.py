# SPDX-License-Identifier: Apache-2.0
"""Block verl's import of Megatron in runs that do not use it.

verl imports every engine that it can, in each process. Megatron costs two seconds of CPU time and 80 MB per process,
and a run with FSDP has about six of them. On an ImportError verl treats the engine as not installed, and warns.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ACTIVATION = "fp16_patch.lab.cpu.megatron"


class _MegatronBlocker(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == "megatron.core":
            raise ModuleNotFoundError(
                f"on the CPU platform, Megatron needs {ACTIVATION} in VERL_USE_EXTERNAL_MODULES", name=fullname
            )
        return None


def block() -> None:
    """Make ``import megatron.core`` fail in this process, unless :data:`ACTIVATION` has been imported. Idempotent."""
    if ACTIVATION not in sys.modules and not any(isinstance(finder, _MegatronBlocker) for finder in sys.meta_path):
        sys.meta_path = [_MegatronBlocker(), *sys.meta_path]


def allow() -> None:
    """Undo :func:`block`."""
    sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, _MegatronBlocker)]
