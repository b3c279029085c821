# SPDX-License-Identifier: Apache-2.0
"""Check the checkpoint that a run will resume from, before anything starts.

The ranks check it as well, minutes later. What the driver cannot read (another node's disk, HDFS) is left to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from fp16_patch.engines.megatron.checkpoint import refuse_other_trainers
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config.setting import SECTIONS, value_of
from fp16_patch.loss_scaling import state_file


def problems(config: DictConfig, on_megatron: bool) -> Iterator[Fp16PatchError]:
    """Yield the damaged and foreign files of the checkpoint. ``on_megatron``: the run trains with Megatron."""
    checkpoint = checkpoint_to_load(config)
    if checkpoint is None:
        return
    for role in ("actor", "critic"):  # the names of the folders too (verl trainer/ppo/v1/trainer_base.py:880)
        try:
            if on_megatron:
                refuse_other_trainers(checkpoint / role)
            if "extra" in (value_of(config, f"{SECTIONS[role]}.checkpoint.load_contents") or []):
                state_file.load(checkpoint / role / state_file.FILE)
        except Fp16PatchError as error:
            yield error


def checkpoint_to_load(config: DictConfig) -> Path | None:
    """Return the folder that verl will load (trainer_base.py, ``_load_checkpoint``), or None."""
    mode, own_folder, given = (
        value_of(config, f"trainer.{key}") for key in ("resume_mode", "default_local_dir", "resume_from_path")
    )
    if mode == "resume_path" and isinstance(given, str):
        return Path(os.path.abspath(given))
    if mode != "auto" or not isinstance(own_folder, str):
        return None
    folder = Path(os.path.abspath(own_folder))
    try:
        return folder / f"global_step_{int((folder / 'latest_checkpointed_iteration.txt').read_text())}"
    except (OSError, ValueError):
        return None
