# SPDX-License-Identifier: Apache-2.0
"""Let OpenRLHF be imported without flash-attn, which has no CPU build.

``openrlhf.models.ring_attn_utils`` imports five names of it at its top, for sequence packing and ring attention.
They are there while that module is being imported, and only then: whoever else looks for flash-attn (transformers
does, to choose an attention) does not find it. An installed flash-attn goes first.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import when_imported
from fp16_patch.patching.binding import is_initialising

IMPORTER = "openrlhf.models.ring_attn_utils"

NAMES: dict[str, tuple[str, ...]] = {
    "flash_attn": (),
    "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
    "flash_attn.utils": (),
    "flash_attn.utils.distributed": ("all_gather",),
}


def _not_here(*_: Any, **__: Any) -> Any:
    raise Fp16PatchError(
        "sequence packing and ring attention need flash-attn, which has no CPU build",
        next_step="leave out --ds.packing_samples and --ds.ring_attn_size",
    )


class _StandIns(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        importer = sys.modules.get(IMPORTER)
        if fullname not in NAMES or importer is None or not is_initialising(importer):
            return None
        return spec_from_loader(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> None:
        """Python's own kind of module."""

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(dict.fromkeys(NAMES[module.__name__], _not_here))

    def forget(self, _importer: ModuleType) -> None:
        for name in NAMES:
            if getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None) is self:
                del sys.modules[name]


def stand_in() -> None:
    """From now on this process can import OpenRLHF's models without flash-attn. Idempotent."""
    if not any(isinstance(finder, _StandIns) for finder in sys.meta_path):
        stand_ins = _StandIns()
        sys.meta_path = [*sys.meta_path, stand_ins]
        when_imported(IMPORTER, stand_ins.forget)
