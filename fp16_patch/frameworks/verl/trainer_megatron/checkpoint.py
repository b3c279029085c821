# SPDX-License-Identifier: Apache-2.0
"""What became of the loss scale when verl's Megatron engine resumed.

Megatron's own checkpoint carries it, in the optimizer's section; whoever loads without that section loses it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fp16_patch.frameworks.verl.releases import in_trainer_rank
from fp16_patch.frameworks.verl.trainer import scaler_of
from fp16_patch.log import logger
from fp16_patch.patching import Patch

Engine = Any  # verl.workers.engine.megatron.transformer_impl.MegatronEngine, never imported here


def tell_the_scale(original: Callable[..., Any]) -> Callable[..., Any]:
    """Say at which scale the run goes on; a warning where the checkpoint had none, or it was not loaded."""

    @functools.wraps(original)
    def load_checkpoint(self: Engine, local_path: str, *args: Any, **kwargs: Any) -> Any:
        if scaler_of(self) is None or local_path is None:
            return original(self, local_path, *args, **kwargs)
        from fp16_patch.engines.megatron import checkpoint

        checkpoint.refuse_other_trainers(local_path)
        result = original(self, local_path, *args, **kwargs)
        logger.info(checkpoint.resumption(self.optimizer, local_path))
        return result

    return load_checkpoint


PATCHES: tuple[Patch, ...] = (
    in_trainer_rank(
        name="megatron-load-scaler",
        target="verl.workers.engine.megatron.transformer_impl:MegatronEngine.load_checkpoint",
        kind="wrap",
        make=tell_the_scale,
        parameters=("self", "local_path"),
        reason="a checkpoint loaded without its optimizer's section loses the loss scale without a word",
        upstream="verl utils/checkpoint/megatron_checkpoint_manager.py",
        remove_when="verl says so itself",
    ),
)
