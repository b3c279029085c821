# SPDX-License-Identifier: Apache-2.0
"""A patch that logs the loss scale when verl's Megatron engine resumes.

Megatron's checkpoint has the scale in the optimizer's section. A run that loads without that section loses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.frameworks.verl.releases import MEGATRON_RANK
from fp16_patch.frameworks.verl.trainer import scaler_of
from fp16_patch.log import logger
from fp16_patch.patching import wrap

Engine = Any  # verl.workers.engine.megatron.transformer_impl.MegatronEngine, never imported here


@wrap(
    "verl.workers.engine.megatron.transformer_impl:MegatronEngine.load_checkpoint",
    name="megatron-load-scaler",
    **MEGATRON_RANK,
    reason="a checkpoint loaded without its optimizer's section loses the loss scale without a word",
    upstream="verl utils/checkpoint/megatron_checkpoint_manager.py",
    remove_when="verl says so itself",
)
def log_resumed_scale(original: Callable[..., Any], self: Engine, local_path: str, *args: Any, **kwargs: Any) -> Any:
    """Log the scale after loading; warn where the checkpoint had none, or it was not loaded."""
    if scaler_of(self) is None or local_path is None:
        return original(self, local_path, *args, **kwargs)
    from fp16_patch.engines.megatron import checkpoint

    checkpoint.refuse_other_trainers(local_path)
    result = original(self, local_path, *args, **kwargs)
    logger.info(checkpoint.resumption(self.optimizer, local_path))
    return result
