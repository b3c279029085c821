# SPDX-License-Identifier: Apache-2.0
"""Check the checkpoint that a run will resume from, before anything starts.

The ranks check it as well, minutes later. What the driver cannot read (another node's disk, HDFS) is left to them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from fp16_patch.engines.megatron.checkpoint import refuse_other_trainers
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config import megatron
from fp16_patch.frameworks.verl.config.setting import SECTIONS, value_of
from fp16_patch.loss_scaling import state_file
from fp16_patch.precision import Precision

_SHARD = re.compile(r"(model|optim|extra_state)_world_size_(\d+)_rank_\d+\.pt")
_PARTS = {"model": "model", "optim": "optimizer", "extra_state": "extra"}
"""Part of an FSDP checkpoint as its file is named, and as ``checkpoint.load_contents`` names it."""

_MODEL = {"actor": "actor_rollout_ref.model.path", "critic": "critic.model.path"}


def problems(config: DictConfig, precision: Precision, critic: bool) -> Iterator[Fp16PatchError]:
    """Yield why the checkpoint cannot be loaded: other ranks, damaged and foreign files."""
    checkpoint = checkpoint_to_load(config)
    if checkpoint is None:
        return
    roles = ("actor", "critic") if critic else ("actor",)  # the folders' names too (verl trainer_base.py:880)
    on_megatron = any(megatron.is_configured(config, role) for role in roles)
    for role in roles:
        yield from _other_ranks(config, role, checkpoint / role)
        if precision.train_dtype != "fp16":
            continue
        try:
            if on_megatron:
                refuse_other_trainers(checkpoint / role)
            if "extra" in (value_of(config, f"{SECTIONS[role]}.checkpoint.load_contents") or []):
                state_file.load(checkpoint / role / state_file.FILE)
        except Fp16PatchError as error:
            yield error


def _other_ranks(config: DictConfig, role: str, folder: Path) -> Iterator[Fp16PatchError]:
    """Yield an error if FSDP saved with another number of ranks: each rank loads the file of its rank and number.

    Megatron loads any layout (``torch.distributed.checkpoint``).
    """
    nodes, per_node = value_of(config, "trainer.nnodes"), value_of(config, "trainer.n_gpus_per_node")
    wanted = value_of(config, f"{SECTIONS[role]}.checkpoint.load_contents") or []
    if megatron.is_configured(config, role) or not (isinstance(nodes, int) and isinstance(per_node, int)):
        return
    names = (_SHARD.fullmatch(name) for name in (os.listdir(folder) if folder.is_dir() else ()))
    saved = {int(name[2]) for name in names if name and _PARTS[name[1]] in wanted}
    if saved and nodes * per_node not in saved:
        ranks = " or ".join(map(str, sorted(saved)))
        yield Fp16PatchError(
            f"{folder} was saved with {ranks} ranks, and this run has {nodes * per_node} "
            f"(trainer.nnodes={nodes}, trainer.n_gpus_per_node={per_node}); FSDP loads it with the same number only",
            code="resume-ranks-differ",
            allowed=f"trainer.nnodes * trainer.n_gpus_per_node = {ranks}",
            next_step="resume with that number, or start from its weights with a new optimizer: "
            f"python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir DIR, "
            f"then {_MODEL[role]}=DIR and trainer.resume_mode=disable",
        )


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
