# SPDX-License-Identifier: Apache-2.0
"""The scaler's state in the optimizer section of a Megatron checkpoint: Megatron's three entries, and one of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling import LossScaling, state_file
from fp16_patch.loss_scaling.scale_rule import ScaleRule

ENTRY = "fp16_patch"
"""Counts, history and settings, as one text: Megatron merges and compares nested entries of checkpoints."""
STOCK = {"scale", "growth_tracker", "hysteresis_tracker"}


def entry(saved: state_file.State) -> dict[str, str]:
    """To add to the three of Megatron's, which say the same."""
    return {ENTRY: state_file.to_text(saved)}


def read(saved: Any, settings: LossScaling) -> state_file.State | None:
    """What :meth:`ScaleRule.load_state_dict` takes; None where there is no scale to go on from, as in a BF16 run's.

    Raises :class:`Fp16PatchError`, the same on every rank that is given the same.
    """
    try:
        if isinstance(saved, Mapping) and not saved:  # a static scale, or none
            return None
        if not isinstance(saved, Mapping) or not saved.keys() >= STOCK:
            raise _unusable(_foreign(saved))
        stock = _of_megatron(saved, settings)
        if ENTRY not in saved:
            return stock
        ours = state_file.from_text(saved[ENTRY])
    except Fp16PatchError as error:
        raise error if error.allowed == _ALLOWED else _unusable(error.what) from error
    told = (float(saved["scale"]), saved["growth_tracker"], saved["hysteresis_tracker"])
    if told != (ours["scale"], ours["growth_tracker"], ours["hysteresis_left"]):
        raise _unusable(f"its entry {ENTRY!r} says another scale or other trackers than Megatron's, {told}")
    return ours


def _of_megatron(saved: Mapping[str, Any], settings: LossScaling) -> state_file.State:
    """Nothing is known of settings and counts there."""
    try:
        scale = float(saved["scale"])
    except (TypeError, ValueError, RuntimeError) as error:  # of a tensor with several elements
        raise _unusable(f"scale={saved['scale']!r} is not a number") from error
    if not 0 < scale < math.inf:
        raise _unusable(f"scale={scale} is not a positive finite number")
    trackers = (saved["growth_tracker"], saved["hysteresis_tracker"])
    if not all(isinstance(tracker, int) and not isinstance(tracker, bool) for tracker in trackers):
        raise _unusable(f"its trackers {trackers!r} are not whole numbers")
    return ScaleRule.going_on(settings, scale, *trackers).state_dict()


def _foreign(saved: Any) -> str:
    if isinstance(saved, Mapping) and "hysteresis_left" in saved:
        return f"it is what FSDP and DeepSpeed runs keep in {state_file.FILE}"
    found = ", ".join(map(str, saved)) if isinstance(saved, Mapping) else repr(saved)[:80]
    return f"it should have {', '.join(sorted(STOCK))}, and has {found}"


_ALLOWED = "the state of Megatron's DynamicGradScaler, with or without this package's entry"


def _unusable(why: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"the loss scaler's state in this checkpoint's optimizer section cannot be used: {why}",
        code="scaler-state-unusable",
        allowed=_ALLOWED,
        next_step="resume from another checkpoint, or without its optimizer section: the loss scale then starts at "
        "init_scale, and Adam's moments anew",
    )
