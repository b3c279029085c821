# SPDX-License-Identifier: Apache-2.0
"""Let megatron-bridge be imported without TransformerEngine, which has no CPU build.

Its two modules about LoRA import it at their tops, and subclass its linear layer, whether a run uses LoRA or not.
megatron-core, which asks whether it is there, is told that it is not.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.cpu import import_stubs

IMPORTERS = ("megatron.bridge.peft.lora_layers", "megatron.bridge.peft.lora")


class NotHere:
    """A class of TransformerEngine's: nothing is an instance of it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise Fp16PatchError(
            "this layer is TransformerEngine's, which has no CPU build",
            code="no-cpu-build",
            next_step="leave out what asked for it, LoRA on a layer of TransformerEngine's",
        )


_PYTORCH = {"Linear": NotHere, "LayerNormLinear": NotHere, "ops": SimpleNamespace(Sequential=NotHere)}
NAMES: dict[str, dict[str, Any]] = {"transformer_engine": {}, "transformer_engine.pytorch": _PYTORCH}


def stand_in() -> None:
    """From now on this process can import megatron-bridge without TransformerEngine. Idempotent."""
    for importer in IMPORTERS:
        import_stubs.stand_in(importer, NAMES)
