# SPDX-License-Identifier: Apache-2.0
"""Which Adam Megatron is to use in FP16, and how a report says it. Imports neither Megatron nor TransformerEngine."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from fp16_patch.engines.megatron.sub_optimizers import Optimizer, list_sub_optimizers
from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import installed_version
from fp16_patch.report.precision_report import DISTRIBUTIONS

KEY = "use_precision_aware_optimizer"


@dataclass(frozen=True)
class OptimizerChoice:
    """The optimizer that was chosen, and how the precision report names it."""

    precision_aware: bool
    """Value for ``OptimizerConfig.use_precision_aware_optimizer``."""
    line: str
    """Text for the precision report."""


def choose(asked: bool | None, *, distributed: bool = True) -> OptimizerChoice:
    """Return the optimizer for the user's ``use_precision_aware_optimizer``; None means the best one installed.

    ``distributed`` is ``use_distributed_optimizer``, without which Megatron refuses it. Raises
    :class:`Fp16PatchError` where what was asked for is not there.
    """
    engine = _transformer_engine()
    if asked and engine is None:
        raise Fp16PatchError(
            f"{KEY}=True asks for TransformerEngine's FusedAdam, and TransformerEngine is not installed",
            code="not-installed",
            allowed=f"{KEY}=False: torch's AdamW, with the same FP32 parameters and moments",
            next_step=f"install transformer-engine on every node, or remove {KEY}",
        )
    if asked and not distributed:
        raise Fp16PatchError(
            f"{KEY}=True needs the distributed optimizer, and use_distributed_optimizer is False",
            code="setting-refused",
            allowed="both, or neither",
            next_step=f"set use_distributed_optimizer=True, or remove {KEY}",
        )
    if engine is None:
        return OptimizerChoice(False, "torch's AdamW, FP32 parameters and moments (TransformerEngine is not installed)")
    if asked is False or not distributed:
        why = f"{KEY}=False" if asked is False else "use_distributed_optimizer=False"
        return OptimizerChoice(False, f"FusedAdam of TransformerEngine {engine}, not precision-aware ({why})")
    return OptimizerChoice(True, f"FusedAdam of TransformerEngine {engine}, precision-aware")


def in_use(optimizer: Optimizer) -> str:
    """Return which optimizers a live Megatron optimizer consists of, for the precision report."""
    return ", ".join(dict.fromkeys(_in_words(part) for part in list_sub_optimizers(optimizer)))


def _in_words(part: Optimizer) -> str:
    inner = part.optimizer
    if inner is None:
        return "nothing to train"
    held = f"{type(inner).__module__.partition('.')[0]}.{type(inner).__name__}"
    aware = ", precision-aware" if part.config.use_precision_aware_optimizer else ""
    return f"{held} in {type(part).__name__}{aware}"


def _transformer_engine() -> str | None:
    """Return TransformerEngine's version; None if it is not installed, or only an import stub is."""
    if find_spec("transformer_engine") is None:
        return None
    return installed_version(DISTRIBUTIONS["transformer-engine"])
