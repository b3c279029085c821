# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run will go on from, as far as this machine can tell, and whether Megatron can have written it.

The ranks ask again when they load it (``checkpoint.py``), minutes later.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config.keys import value_of

LATEST = "latest_checkpointed_iteration.txt"
"""verl's, in ``trainer.default_local_dir``."""


def from_other_trainers(config: DictConfig) -> Iterator[Fp16PatchError]:
    """Refuse a checkpoint of FSDP or DeepSpeed. A checkpoint that is not on this machine is not checked."""
    from fp16_patch.engines.megatron.checkpoint import refuse_other_trainers  # loads torch

    folder = _folder(config)
    for role in ("actor", "critic"):
        try:
            if folder is not None:
                refuse_other_trainers(folder / role)
        except Fp16PatchError as error:
            yield error


def _folder(config: DictConfig) -> Path | None:
    mode = value_of(config, "trainer.resume_mode")
    if mode == "resume_path" and (path := value_of(config, "trainer.resume_from_path")):
        return Path(str(path))
    if mode == "auto" and (saved := value_of(config, "trainer.default_local_dir")):
        latest = Path(str(saved), LATEST)
        return latest.parent / f"global_step_{latest.read_text().strip()}" if latest.is_file() else None
    return None
