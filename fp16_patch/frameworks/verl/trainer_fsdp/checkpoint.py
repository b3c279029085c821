# SPDX-License-Identifier: Apache-2.0
"""Save verl's loss scaler in its FSDP checkpoints and load it from them."""

from __future__ import annotations

import os
from typing import Any

from fp16_patch.frameworks.verl.releases import FSDP_RANK
from fp16_patch.frameworks.verl.state import Engine, scaler_of
from fp16_patch.log import logger
from fp16_patch.loss_scaling import state_file
from fp16_patch.patching import wrap

_ENGINE = "verl.workers.engine.fsdp.transformer_impl:FSDPEngine"
_WHY: dict[str, Any] = {
    "reason": "verl's checkpoints lack the loss scaler: a resumed run starts at the initial scale again",
    "upstream": "verl utils/checkpoint/fsdp_checkpoint_manager.py",
    "remove_when": "verl saves and restores the scaler",
}


@wrap(f"{_ENGINE}.save_checkpoint", name="fsdp-save-scaler", **FSDP_RANK, **_WHY)
def save_scaler(original: Any, self: Engine, local_path: str, *args: Any, **kwargs: Any) -> Any:
    """Save the scaler's state on rank 0, before verl names this checkpoint the latest at its last barrier."""
    scaler = scaler_of(self)
    if scaler is not None and local_path is not None and self.rank == 0:
        state_file.save(scaler.state_dict(), local_path)
    return original(self, local_path, *args, **kwargs)


@wrap(f"{_ENGINE}.load_checkpoint", name="fsdp-load-scaler", **FSDP_RANK, **_WHY)
def load_scaler(original: Any, self: Engine, local_path: str, *args: Any, **kwargs: Any) -> Any:
    """Restore on every rank what rank 0 has read. Without the file, warn and start at the initial scale.

    The file is checked before anything is loaded. An unusable file is the same error on every rank.
    """
    scaler = scaler_of(self)
    if scaler is None or local_path is None or not self.checkpoint_manager.should_load_extra:
        return original(self, local_path, *args, **kwargs)
    from fp16_patch.loss_scaling.ranks import from_rank_zero

    saved = from_rank_zero(lambda: _read(os.path.join(local_path, state_file.FILE)))
    result = original(self, local_path, *args, **kwargs)
    if saved is not None:
        scaler.load_state_dict(saved)
    logger.info(state_file.resumption(saved, scaler.get_scale(), scaler.settings, local_path))
    return result


def _read(path: str) -> state_file.State | None:
    from verl.utils.fs import copy_to_local, is_non_local

    return state_file.load(copy_to_local(path) if is_non_local(path) else path)
