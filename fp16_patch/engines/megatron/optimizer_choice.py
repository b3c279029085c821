# SPDX-License-Identifier: Apache-2.0
"""Choose the Adam that Megatron uses in FP16, and name it for the precision report.

Imports neither Megatron nor TransformerEngine.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from fp16_patch.engines.megatron.sub_optimizers import Optimizer, list_sub_optimizers
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


def choose() -> OptimizerChoice:
    """Return the best optimizer that is installed."""
    engine = _transformer_engine()
    if engine is None:
        return OptimizerChoice(False, "torch's AdamW, FP32 parameters and moments (TransformerEngine is not installed)")
    return OptimizerChoice(True, f"FusedAdam of TransformerEngine {engine}, precision-aware")


def in_use(optimizer: Optimizer) -> str:
    """Return which optimizers a live Megatron optimizer consists of, for the precision report."""
    return ", ".join(dict.fromkeys(_name_optimizer(part) for part in list_sub_optimizers(optimizer)))


def _name_optimizer(part: Optimizer) -> str:
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
