# SPDX-License-Identifier: Apache-2.0
"""Save the loss scaler with DeepSpeed's checkpoints as readable JSON, and resume it under this run's settings."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from fp16_patch.engines.deepspeed.releases import RELEASE
from fp16_patch.engines.deepspeed.step import get_loss_scaler
from fp16_patch.log import logger
from fp16_patch.loss_scaling import state_file
from fp16_patch.patching import ProcessKind, wrap

_ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"
_DECLARED: dict[str, Any] = {
    "release": RELEASE,
    "processes": {ProcessKind.TRAINER_RANK},
    "engine": "deepspeed",
    "reason": "DeepSpeed pickles its scaler into checkpoints and restores it whole. New settings are ignored on "
    "resume, and counts and history are lost. Checkpoints stay loadable without this package",
    "upstream": "deepspeed runtime/zero/stage_1_and_2.py:2612 and 2770, stage3.py:3156 and 3264",
    "remove_when": "DeepSpeed restores its scaler's state under the settings given on resume",
}

Engine = Any  # deepspeed.DeepSpeedEngine, never imported here


@wrap(f"{_ENGINE}.save_checkpoint", name="deepspeed-save-scaler", **_DECLARED)
def save_scaler(original: Any, self: Engine, save_dir: str, tag: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Write the scaler's state on rank 0, before DeepSpeed names this checkpoint the latest."""
    scaler = get_loss_scaler(self)
    if scaler is not None and save_dir and self.global_rank == 0:
        name = f"global_step{self.global_steps}" if tag is None else str(tag)  # as DeepSpeed names it
        state_file.save(scaler.state_dict(), os.path.join(save_dir, name))
    return original(self, save_dir, tag, *args, **kwargs)


@wrap(f"{_ENGINE}.load_checkpoint", name="deepspeed-load-scaler", **_DECLARED)
def load_scaler(original: Any, self: Engine, load_dir: str, tag: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Restore on every rank what rank 0 has read. Only numbers are taken from DeepSpeed's own unpickled scaler."""
    scaler = get_loss_scaler(self)
    call = inspect.signature(original).bind(self, load_dir, tag, *args, **kwargs)
    call.apply_defaults()
    if scaler is None or call.arguments["load_module_only"] or not call.arguments["load_optimizer_states"]:
        return original(self, load_dir, tag, *args, **kwargs)
    from fp16_patch.loss_scaling.ranks import from_rank_zero

    folder, saved = from_rank_zero(lambda: _read_scaler_state(self, load_dir, tag))
    optimizer = self.optimizer
    try:
        result = original(self, load_dir, tag, *args, **kwargs)
        stock = optimizer.loss_scaler
    finally:  # DeepSpeed puts the saved scaler there, settings and all
        optimizer.loss_scaler, optimizer.dynamic_loss_scale = scaler, True
    if result[0] is not None:
        logger.info(_resume(scaler, saved, stock, folder, self.skipped_steps))
    return result


def _read_scaler_state(engine: Engine, load_dir: str, tag: Any) -> tuple[str, state_file.State | None]:
    """Return the checkpoint's folder and the state that this package wrote there. Check it before loading anything."""
    if tag is None:
        latest = Path(load_dir, "latest_universal" if engine.load_universal_checkpoint() else "latest")
        if not latest.is_file():
            return load_dir, None
        tag = latest.read_text().strip()
    folder = os.path.join(load_dir, str(tag))
    return folder, state_file.load(os.path.join(folder, state_file.FILE))


def _resume(scaler: Any, saved: state_file.State | None, stock: Any, folder: str, skipped: int) -> str:
    from fp16_patch.engines.deepspeed.scaler import is_resumable

    if saved is not None:
        scaler.load_state_dict(saved)
    elif stock is not scaler and is_resumable(stock):
        scaler.load_stock_scaler(stock, skipped)
        return f"the loss scale resumes at {scaler.get_scale():g}, DeepSpeed's own in {folder}; your settings hold"
    return state_file.resumption(saved, scaler.get_scale(), scaler.settings, folder)
