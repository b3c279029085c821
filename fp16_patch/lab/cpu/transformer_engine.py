# SPDX-License-Identifier: Apache-2.0
"""Make megatron-bridge importable without TransformerEngine, which has no CPU build.

Its two LoRA modules import TransformerEngine at the top and subclass its linear layer, whether or not a run uses LoRA.
megatron-core, which checks for TransformerEngine, still finds that it is not installed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.cpu import import_stubs

IMPORTERS = ("megatron.bridge.peft.lora_layers", "megatron.bridge.peft.lora")


class Unavailable:
    """Stand in for a class of TransformerEngine: no object is an instance of it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise Fp16PatchError(
            "this layer needs TransformerEngine, which has no CPU build",
            code="no-cpu-build",
            next_step="turn off the option that uses it, such as LoRA on a layer of TransformerEngine",
        )


_PYTORCH = {"Linear": Unavailable, "LayerNormLinear": Unavailable, "ops": SimpleNamespace(Sequential=Unavailable)}
NAMES: dict[str, dict[str, Any]] = {"transformer_engine": {}, "transformer_engine.pytorch": _PYTORCH}


def install_stub() -> None:
    """Make megatron-bridge importable without TransformerEngine in this process. Idempotent."""
    for importer in IMPORTERS:
        import_stubs.install_stub(importer, NAMES)
