# SPDX-License-Identifier: Apache-2.0
"""Check the checkpoint that a run will resume from, before anything starts.

The ranks check it as well, minutes later. What the driver cannot read (another node's disk, HDFS) is left to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling import state_file
from fp16_patch.precision import Precision

_ROLES = {"actor": "actor_rollout_ref.actor", "critic": "critic"}
"""A role's folder in a checkpoint (verl trainer/ppo/v1/trainer_base.py:880), and its section of the configuration."""


def unreadable(config: DictConfig, precision: Precision) -> Iterator[Fp16PatchError]:
    """Every damaged or foreign file among them."""
    checkpoint = checkpoint_to_load(config) if precision.train_dtype == "fp16" else None
    if checkpoint is None:
        return
    for folder, section in _ROLES.items():
        if "extra" not in (OmegaConf.select(config, f"{section}.checkpoint.load_contents") or []):
            continue
        try:
            state_file.load(checkpoint / folder / state_file.FILE)
        except Fp16PatchError as error:
            yield error


def of_other_trainers(config: DictConfig) -> Iterator[Fp16PatchError]:
    """Refuse a checkpoint of FSDP or DeepSpeed, for a run that trains with Megatron."""
    from fp16_patch.engines.megatron.checkpoint import refuse_other_trainers  # loads torch

    checkpoint = checkpoint_to_load(config)
    if checkpoint is None:
        return
    for folder in _ROLES:
        try:
            refuse_other_trainers(checkpoint / folder)
        except Fp16PatchError as error:
            yield error


def checkpoint_to_load(config: DictConfig) -> Path | None:
    """Return the folder that verl will load (trainer_base.py, ``_load_checkpoint``), or None."""
    mode, of_this_run, given = (
        OmegaConf.select(config, f"trainer.{key}") for key in ("resume_mode", "default_local_dir", "resume_from_path")
    )
    if mode == "resume_path" and isinstance(given, str):
        return Path(os.path.abspath(given))
    if mode != "auto" or not isinstance(of_this_run, str):
        return None
    folder = Path(os.path.abspath(of_this_run))
    try:
        return folder / f"global_step_{int((folder / 'latest_checkpointed_iteration.txt').read_text())}"
    except (OSError, ValueError):
        return None
