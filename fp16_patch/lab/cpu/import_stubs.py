# SPDX-License-Identifier: Apache-2.0
"""Make a module importable although it imports a library without a CPU build that the run does not need.

The stub exists only while that module is being imported. Other modules that check whether the library is installed do
not find it. An installed library takes precedence.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType, SimpleNamespace
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import when_imported
from fp16_patch.patching.binding import is_initialising


class StubFinder(MetaPathFinder, Loader):
    """Find and load stub modules while ``importer`` is being imported.

    ``names`` maps each module of the library to the names that ``importer`` takes from it.
    """

    def __init__(self, importer: str, names: Mapping[str, Mapping[str, Any]]) -> None:
        self._importer, self._names = importer, names

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a spec for a module of the library while the importer is being imported, else None."""
        importer = sys.modules.get(self._importer)
        if fullname not in self._names or importer is None or not is_initialising(importer):
            return None
        return spec_from_loader(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None, for a module of Python's default type."""

    def exec_module(self, module: ModuleType) -> None:
        """Fill the stub module with its names."""
        vars(module).update(self._names[module.__name__])

    def remove_stubs(self, _importer: ModuleType) -> None:
        """Remove the stub modules from ``sys.modules``."""
        for name in self._names:
            if getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None) is self:
                del sys.modules[name]


def install_flash_attention() -> None:
    """Make OpenRLHF's models importable without flash-attn in this process. Idempotent.

    ``openrlhf.models.ring_attn_utils`` imports five of its names at the top, for sequence packing and ring attention.
    Those for packing are replaced by the functions of ``packing``. transformers, which checks for flash-attn to choose
    an attention, still finds that it is not installed.
    """
    from fp16_patch.lab.cpu import packing

    missing = _unavailable("ring attention needs flash-attn, which has no CPU build", "leave out --ds.ring_attn_size")
    padding = {
        "index_first_axis": packing.index_first_axis,
        "pad_input": packing.pad_input,
        "rearrange": packing.flatten_batch,
        "unpad_input": packing.unpad_input,
    }
    names: dict[str, dict[str, Any]] = {
        "flash_attn": {},
        "flash_attn.bert_padding": padding,
        "flash_attn.utils": {},
        "flash_attn.utils.distributed": {"all_gather": missing},
    }
    _install("openrlhf.models.ring_attn_utils", names)


def install_transformer_engine() -> None:
    """Make megatron-bridge importable without TransformerEngine in this process. Idempotent.

    Its two LoRA modules import TransformerEngine at the top and subclass its linear layer, whether or not a run uses
    LoRA. megatron-core, which checks for TransformerEngine, still finds that it is not installed.
    """
    missing = _unavailable(
        "this layer needs TransformerEngine, which has no CPU build",
        "turn off the option that uses it, such as LoRA on a layer of TransformerEngine",
    )
    layers = {"Linear": missing, "LayerNormLinear": missing, "ops": SimpleNamespace(Sequential=missing)}
    for importer in ("megatron.bridge.peft.lora_layers", "megatron.bridge.peft.lora"):
        _install(importer, {"transformer_engine": {}, "transformer_engine.pytorch": layers})


def _unavailable(what: str, next_step: str) -> type:
    """Return a stand-in for a function or class. A call raises; no object is an instance of it."""

    class Unavailable:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise Fp16PatchError(what, code="no-cpu-build", next_step=next_step)

    return Unavailable


def _install(importer: str, names: Mapping[str, Mapping[str, Any]]) -> None:
    if not any(isinstance(finder, StubFinder) and finder._importer == importer for finder in sys.meta_path):
        stubs = StubFinder(importer, names)
        sys.meta_path = [*sys.meta_path, stubs]
        when_imported(importer, stubs.remove_stubs)
