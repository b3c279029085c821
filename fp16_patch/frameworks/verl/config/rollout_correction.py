# SPDX-License-Identifier: Apache-2.0
"""``algorithm.rollout_correction`` reaches the loss it asks for, or the run is refused.

verl 0.9.1's trainer reads ``bypass_mode`` and skips its own correction (``trainer/ppo/v1/trainer_base.py``,
``_compute_old_log_prob`` and ``_compute_advantage``), but nothing tells the workers: they keep
``actor.policy_loss.loss_mode=vanilla`` and train PPO-clip without importance weights, whatever ``loss_type`` says
(verl issues 4272 and 4912). The loss that would have run is there and reads its settings from ``actor.policy_loss``:
they only have to be handed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config import command_line
from fp16_patch.frameworks.verl.config.keys import MISSING, Rule

CORRECTION = "algorithm.rollout_correction"
LOSS_MODE = "actor_rollout_ref.actor.policy_loss.loss_mode"
LOSS_CORRECTION = "actor_rollout_ref.actor.policy_loss.rollout_correction"
LOG_PROBS = "actor_rollout_ref.rollout.calculate_log_probs"
BYPASS = "bypass_mode"
"""verl's name of the mode, and of the loss that belongs to it."""

_BOUNDS_UNQUOTED = re.compile(r"(rollout_[ir]s_threshold)\s*[=:]\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?_[\w.]*)")


def rules(config: DictConfig) -> Iterator[Rule]:
    """Yield what a correction needs elsewhere in the configuration."""
    correction = _correction(config)
    wanted = next((name for name in (BYPASS, "rollout_is", "rollout_rs") if correction.get(name)), None)
    if wanted:
        asked_by = f"{CORRECTION}.{wanted}={correction[wanted]}"
        yield Rule(LOG_PROBS, True, (), "without the rollout's log-probs verl corrects nothing, in silence", asked_by)
    if wanted == BYPASS:
        why = "by itself it does not reach the loss, which would be PPO-clip"
        yield Rule(LOSS_MODE, BYPASS, ("vanilla",), why, asked_by)
        yield Rule(LOSS_CORRECTION, correction, (MISSING,), why, asked_by)


def unsupported(config: DictConfig) -> Iterator[Fp16PatchError]:
    """Yield settings of the correction that verl would silently ignore or read as something else."""
    correction = _correction(config)
    yield from _unread(config, correction)
    yield from _bounds_read_as_a_number(config, correction)


def _unread(config: DictConfig, correction: dict[str, Any]) -> Iterator[Fp16PatchError]:
    """Refuse the worker's half of bypass mode without the trainer's."""
    if correction.get(BYPASS):
        return
    if OmegaConf.select(config, LOSS_MODE) == BYPASS:
        yield Fp16PatchError(
            f"{LOSS_MODE}={BYPASS}: this loss takes the old log-probs for the rollout's, and the trainer sends it its "
            f"own while {CORRECTION}.{BYPASS} is not true",
            code="setting-refused",
            allowed=f"{CORRECTION}.{BYPASS}=true; the flag sets the loss by it",
            next_step=f"add {CORRECTION}.{BYPASS}=true, or remove {LOSS_MODE}",
        )
    elif OmegaConf.select(config, LOSS_CORRECTION) is not None:
        yield Fp16PatchError(
            f"{LOSS_CORRECTION} is set, and no loss reads it while {CORRECTION}.{BYPASS} is not true",
            code="setting-refused",
            allowed=f"unset, or {CORRECTION}.{BYPASS}=true",
            next_step=f"move its settings to {CORRECTION}",
        )


def _bounds_read_as_a_number(config: DictConfig, correction: dict[str, Any]) -> Iterator[Fp16PatchError]:
    """Hydra and YAML drop an underscore: 1e-9_2 is 1e-92, which zeroes every weight, and 0.5_5 is 0.55."""
    written = {
        name: text for override in command_line.overrides(config) for name, text in _BOUNDS_UNQUOTED.findall(override)
    }
    for name, level in (("rollout_is_threshold", "rollout_is"), ("rollout_rs_threshold", "rollout_rs")):
        value, text = correction.get(name), written.get(name)
        too_low = name == "rollout_is_threshold" and correction.get(level) and isinstance(value, float) and value < 1
        if isinstance(value, int | float) and (text or too_low):
            yield Fp16PatchError(
                f"{CORRECTION}.{name}={value!r}"
                + (f", read from {text}" if text else " cuts even the weight 1 of a token both engines agree on"),
                code="setting-refused",
                allowed="one number from 1 up, or the bounds LOWER_UPPER as text",
                next_step=f"""for bounds, quote twice, for the shell and for Hydra: '{CORRECTION}.{name}="1e-9_2"'""",
            )


def _correction(config: DictConfig) -> dict[str, Any]:
    """Return the user's section with interpolations resolved; empty where there is none."""
    section = OmegaConf.select(config, CORRECTION)
    if not isinstance(section, DictConfig):
        return {}
    return {str(key): value for key, value in OmegaConf.to_container(section, resolve=True).items()}
