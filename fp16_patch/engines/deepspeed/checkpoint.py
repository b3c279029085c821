# SPDX-License-Identifier: Apache-2.0
"""The loss scaler beside DeepSpeed's checkpoints, readable, and this run's settings when it comes back from one."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fp16_patch.engines.deepspeed import releases
from fp16_patch.engines.deepspeed.step import scaler_of
from fp16_patch.log import logger
from fp16_patch.loss_scaling import state_file
from fp16_patch.patching import Patch

_ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"

Engine = Any  # deepspeed.DeepSpeedEngine, never imported here


def save_scaler(original: Callable[..., Any]) -> Callable[..., Any]:
    """Rank 0 writes the scaler's state before DeepSpeed names this checkpoint the latest."""

    @functools.wraps(original)
    def save_checkpoint(self: Engine, save_dir: str, tag: Any = None, *args: Any, **kwargs: Any) -> Any:
        scaler = scaler_of(self)
        if scaler is not None and save_dir and self.global_rank == 0:
            name = f"global_step{self.global_steps}" if tag is None else str(tag)  # as DeepSpeed names it
            state_file.save(scaler.state_dict(), os.path.join(save_dir, name))
        return original(self, save_dir, tag, *args, **kwargs)

    return save_checkpoint


def load_scaler(original: Callable[..., Any]) -> Callable[..., Any]:
    """Every rank takes what rank 0 read. Of DeepSpeed's own scaler, unpickled, only numbers are taken."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def load_checkpoint(self: Engine, load_dir: str, *args: Any, **kwargs: Any) -> Any:
        scaler = scaler_of(self)
        given = signature.bind(self, load_dir, *args, **kwargs)
        given.apply_defaults()
        if scaler is None or given.arguments["load_module_only"] or not given.arguments["load_optimizer_states"]:
            return original(self, load_dir, *args, **kwargs)
        from fp16_patch.loss_scaling.ranks import from_rank_zero

        folder, saved = from_rank_zero(lambda: _read(self, load_dir, given.arguments["tag"]))
        optimizer = self.optimizer
        try:
            result = original(self, load_dir, *args, **kwargs)
            stock = optimizer.loss_scaler
        finally:  # DeepSpeed puts the saved scaler there, settings and all
            optimizer.loss_scaler, optimizer.dynamic_loss_scale = scaler, True
        if result[0] is not None:
            logger.info(_resume(scaler, saved, stock, folder, self.skipped_steps))
        return result

    return load_checkpoint


def _read(engine: Engine, load_dir: str, tag: Any) -> tuple[str, state_file.State | None]:
    """The checkpoint's folder, and what this package wrote there; read and checked before anything is loaded."""
    if tag is None:
        latest = Path(load_dir, "latest_universal" if engine.load_universal_checkpoint() else "latest")
        if not latest.is_file():
            return load_dir, None
        tag = latest.read_text().strip()
    folder = os.path.join(load_dir, str(tag))
    return folder, state_file.load(os.path.join(folder, state_file.FILE))


def _resume(scaler: Any, saved: state_file.State | None, stock: Any, folder: str, skipped: int) -> str:
    from fp16_patch.engines.deepspeed.scaler import usable

    if saved is not None:
        scaler.load_state_dict(saved)
    elif stock is not scaler and usable(stock):
        scaler.continue_from(stock, skipped)
        return f"the loss scale resumes at {scaler.get_scale():g}, DeepSpeed's own in {folder}; your settings hold"
    return state_file.resumption(saved, scaler.get_scale(), scaler.settings, folder)


PATCHES: tuple[Patch, ...] = tuple(
    Patch(
        name=f"deepspeed-{verb}-scaler",
        target=f"{_ENGINE}.{verb}_checkpoint",
        kind="wrap",
        make=make,
        parameters=("self", folder, "tag"),
        distribution=releases.DISTRIBUTION,
        versions=releases.RELEASES,
        process="trainer rank",
        reason="DeepSpeed pickles its scaler into checkpoints and takes it whole out of them: new settings are "
        "ignored on resume, and counts and history are nowhere. Checkpoints stay loadable without this package",
        upstream="deepspeed runtime/zero/stage_1_and_2.py:2612 and 2770, stage3.py:3156 and 3264",
        remove_when="DeepSpeed restores its scaler's state under the settings given on resume",
    )
    for verb, folder, make in (("save", "save_dir", save_scaler), ("load", "load_dir", load_scaler))
)
