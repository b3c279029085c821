# SPDX-License-Identifier: Apache-2.0
"""Read and write the loss scaler's state in Megatron checkpoints.

Megatron saves its own three entries and one of this package with the optimizer, in ``state_dict`` and
``sharded_state_dict``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp16_patch.engines.megatron.sub_optimizers import Optimizer, require_loss_scaler
from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling import LossScaling, state_file
from fp16_patch.loss_scaling.scale_rule import ScaleRule

ENTRY = "fp16_patch"
"""Counts, history and settings as one text: Megatron merges and compares nested entries of checkpoints."""
NATIVE_KEYS = {"scale", "growth_tracker", "hysteresis_tracker"}


def resumption(optimizer: Optimizer, folder: str | Path) -> str:
    """Return a line for the log about the loss scale after the checkpoint in ``folder`` was loaded.

    Call it on all ranks; one of them logs. If no scaler's state was loaded, as from a checkpoint without optimizer
    section, the scale restarts at ``init_scale`` and the line begins with WARNING.
    """
    scaler = require_loss_scaler(optimizer)
    loaded = scaler.pop_loaded_states()
    if not loaded:
        scaler.reset()
    saved = loaded[0] if loaded else None
    missing = "loss scaler's state in an optimizer section"
    line = state_file.resumption(saved, scaler.get_scale(), scaler.settings, folder, missing)
    scales = sorted({state["scale"] for state in loaded})
    if len(scales) > 1:
        line += f" (WARNING: parts of the optimizer were saved with scales from {scales[0]:g} to {scales[-1]:g})"
    return line


def refuse_other_trainers(folder: str | Path) -> None:
    """Raise if ``folder`` is the checkpoint of an FSDP or DeepSpeed run. Call it before anything is loaded."""
    if (file := Path(folder, state_file.FILE)).exists():
        raise Fp16PatchError(
            f"{file} is the loss scaler of an FSDP or DeepSpeed run",
            code="checkpoint-unusable",
            allowed="a checkpoint of Megatron, which holds its scaler in the optimizer section",
            next_step="resume with the trainer that wrote it, or start Megatron from exported weights",
        )


def checkpoint_entry(state: state_file.State) -> dict[str, str]:
    """Return the entry of ``state`` to add to Megatron's three, which hold the same scale and trackers."""
    return {ENTRY: state_file.to_text(state)}


def read_state(saved: Any, settings: LossScaling) -> state_file.State | None:
    """Return what :meth:`ScaleRule.load_state_dict` takes; None if nothing holds a scale, as in a BF16 checkpoint.

    Raises:
        Fp16PatchError: ``saved`` is something else. Equal input gives an equal error on every rank.
    """
    if isinstance(saved, Mapping) and not saved:  # a static scale, or none
        return None
    if not isinstance(saved, Mapping) or not saved.keys() >= NATIVE_KEYS:
        raise _unusable(_unknown_content(saved))
    native = _from_megatron(saved, settings)
    if ENTRY not in saved:
        return native
    try:
        ours = state_file.from_text(saved[ENTRY])
    except Fp16PatchError as error:
        raise _unusable(error.what) from error
    theirs = (float(saved["scale"]), saved["growth_tracker"], saved["hysteresis_tracker"])
    if theirs != (ours["scale"], ours["growth_tracker"], ours["hysteresis_left"]):
        raise _unusable(f"its entry {ENTRY!r} differs in scale or trackers from Megatron's entries, {theirs}")
    return ours


def _from_megatron(saved: Mapping[str, Any], settings: LossScaling) -> state_file.State:
    """Return a state with the counts at 0 and the settings of this run: Megatron saves neither."""
    try:
        scale = float(saved["scale"])
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor with several elements
        raise _unusable(f"scale={saved['scale']!r} is not a number") from error
    if not 0 < scale < math.inf:
        raise _unusable(f"scale={scale} is not a positive finite number")
    trackers = (saved["growth_tracker"], saved["hysteresis_tracker"])
    if not all(isinstance(tracker, int) and not isinstance(tracker, bool) for tracker in trackers):
        raise _unusable(f"its trackers {trackers!r} are not whole numbers")
    return ScaleRule.from_native_scaler(settings, scale, *trackers).state_dict()


def _unknown_content(saved: Any) -> str:
    if isinstance(saved, Mapping) and "hysteresis_left" in saved:
        return f"it is what FSDP and DeepSpeed runs keep in {state_file.FILE}"
    found = ", ".join(map(str, saved)) if isinstance(saved, Mapping) else repr(saved)[:80]
    return f"it should have {', '.join(sorted(NATIVE_KEYS))}, and has {found}"


def _unusable(why: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"the loss scaler's state in this checkpoint's optimizer section cannot be used: {why}",
        code="scaler-state-unusable",
        allowed="the state of Megatron's DynamicGradScaler, with or without this package's entry",
        next_step="resume from another checkpoint, or without its optimizer section: the loss scale then starts at "
        "init_scale, and Adam's moments start at zero",
    )
