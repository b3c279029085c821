# SPDX-License-Identifier: Apache-2.0
"""Keep verl from importing Megatron where no run asked for it.

verl imports every engine that it can, in each process: Megatron's costs two seconds of CPU time and 80 MB, and a run
with FSDP has half a dozen such processes. verl takes an ImportError for an engine that is not there, and warns.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ACTIVATION = "fp16_patch.lab.cpu.megatron"


class _NotAskedFor(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == "megatron.core":
            raise ModuleNotFoundError(
                f"on the CPU platform, Megatron wants {ACTIVATION} in VERL_USE_EXTERNAL_MODULES", name=fullname
            )
        return None


def hide() -> None:
    """From now on ``import megatron.core`` fails, unless it has been imported, or Megatron's part is activated."""
    if ACTIVATION not in sys.modules and not any(isinstance(finder, _NotAskedFor) for finder in sys.meta_path):
        sys.meta_path = [_NotAskedFor(), *sys.meta_path]


def show() -> None:
    """Undo it."""
    sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, _NotAskedFor)]
