# SPDX-License-Identifier: Apache-2.0
"""The loss scaler goes into verl's checkpoints and comes back from them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from fp16_patch.frameworks.verl.releases import in_trainer_rank
from fp16_patch.frameworks.verl.trainer import scaler_of
from fp16_patch.log import logger
from fp16_patch.loss_scaling import state_file
from fp16_patch.patching import Patch

_ENGINE = "verl.workers.engine.fsdp.transformer_impl:FSDPEngine"

Engine = Any  # verl.workers.engine.fsdp.transformer_impl.FSDPEngine, never imported here


def save_scaler(original: Callable[..., Any]) -> Callable[..., Any]:
    """Rank 0 writes the scaler's state before verl's last barrier, so before verl names this checkpoint the latest."""

    @functools.wraps(original)
    def save_checkpoint(self: Engine, local_path: str, *args: Any, **kwargs: Any) -> Any:
        scaler = scaler_of(self)
        if scaler is not None and local_path is not None and self.rank == 0:
            state_file.save(scaler.state_dict(), local_path)
        return original(self, local_path, *args, **kwargs)

    return save_checkpoint


def load_scaler(original: Callable[..., Any]) -> Callable[..., Any]:
    """Every rank takes what rank 0 read. Without the file: a warning, and the initial scale."""

    @functools.wraps(original)
    def load_checkpoint(self: Engine, local_path: str, *args: Any, **kwargs: Any) -> Any:
        scaler = scaler_of(self)
        wanted = scaler is not None and local_path is not None and self.checkpoint_manager.should_load_extra
        saved = _read(local_path) if wanted else None
        result = original(self, local_path, *args, **kwargs)
        if saved is not None:
            scaler.load_state_dict(saved)
        if wanted:
            logger.info(state_file.resumption(saved, scaler.get_scale(), scaler.settings, local_path))
        return result

    return load_checkpoint


def _read(folder: str) -> state_file.State | None:
    """Read and checked before anything is loaded; a file that cannot be used is the same error on every rank."""
    from verl.utils.fs import copy_to_local, is_non_local

    from fp16_patch.loss_scaling.ranks import from_rank_zero

    def read() -> state_file.State | None:
        path = os.path.join(folder, state_file.FILE)
        return state_file.load(copy_to_local(path) if is_non_local(path) else path)

    return from_rank_zero(read)


PATCHES: tuple[Patch, ...] = tuple(
    in_trainer_rank(
        name=f"fsdp-{verb}-scaler",
        target=f"{_ENGINE}.{verb}_checkpoint",
        kind="wrap",
        make=make,
        parameters=("self", "local_path"),
        reason="verl's checkpoints lack the loss scaler: a resumed run starts at the initial scale again",
        upstream="verl utils/checkpoint/fsdp_checkpoint_manager.py",
        remove_when="verl saves and restores the scaler",
    )
    for verb, make in (("save", save_scaler), ("load", load_scaler))
)
