# SPDX-License-Identifier: Apache-2.0
"""What there is to do about the loss scale before and after a Megatron checkpoint is loaded.

Nothing to save it: it is in the optimizer's own ``state_dict`` and ``sharded_state_dict``.
"""

from __future__ import annotations

from pathlib import Path

from fp16_patch.engines.megatron.scaler_setup import required_governor
from fp16_patch.engines.megatron.sub_optimizers import Optimizer
from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling import state_file


def resumption(optimizer: Optimizer, folder: str | Path) -> str:
    """For the log of one rank; to be called on all, once the checkpoint in ``folder`` is loaded.

    Where no scaler's state was loaded, as from a checkpoint without optimizer section, the scale starts at
    ``init_scale``, and the line begins with WARNING.
    """
    governor = required_governor(optimizer)
    loaded = governor.take_loaded()
    if not loaded:
        governor.start_anew()
    saved = loaded[0] if loaded else None
    missing = "loss scaler's state in an optimizer section"
    said = state_file.resumption(saved, governor.get_scale(), governor.settings, folder, missing)
    scales = sorted({found["scale"] for found in loaded})
    if len(scales) > 1:
        said += f" (WARNING: parts of the optimizer were saved with scales from {scales[0]:g} to {scales[-1]:g})"
    return said


def refuse_other_trainers(folder: str | Path) -> None:
    """Raise where ``folder`` is an FSDP or DeepSpeed run's checkpoint; to be asked before anything of it is loaded."""
    if (file := Path(folder, state_file.FILE)).exists():
        raise Fp16PatchError(
            f"{file} is the loss scaler of an FSDP or DeepSpeed run",
            code="checkpoint-unusable",
            allowed="a checkpoint of Megatron, which holds its scaler in the optimizer section",
            next_step="resume with the trainer that wrote it, or start Megatron from exported weights",
        )
