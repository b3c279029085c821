# SPDX-License-Identifier: Apache-2.0
"""The settings of ``algorithm.rollout_correction``, so that it reaches the loss it asks for.

verl 0.9.1's trainer reads ``bypass_mode`` and skips its own correction (``trainer/ppo/v1/trainer_base.py``,
``_compute_old_log_prob`` and ``_compute_advantage``), but nothing tells the workers. They keep
``actor.policy_loss.loss_mode=vanilla`` and train PPO-clip without importance weights, whatever ``loss_type`` says
(verl issues 4272 and 4912). The loss that should run exists and reads its settings from ``actor.policy_loss``, so the
flag copies them there.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from fp16_patch.frameworks.verl.config.setting import MISSING, Setting, value_of
from fp16_patch.precision import Precision

CORRECTION = "algorithm.rollout_correction"
LOSS_MODE = "actor_rollout_ref.actor.policy_loss.loss_mode"
LOSS_CORRECTION = "actor_rollout_ref.actor.policy_loss.rollout_correction"
LOG_PROBS = "actor_rollout_ref.rollout.calculate_log_probs"
BYPASS = "bypass_mode"
"""verl's name of the mode, and of the loss that belongs to it."""
BYPASS_KEY = f"{CORRECTION}.{BYPASS}"

NOT_CORRECTED = "without the rollout's log-probs verl silently corrects nothing"
NOT_PASSED_ON = "verl does not pass it on to the loss, which would be PPO-clip"
WRONG_LOG_PROBS = f"this loss expects the rollout's log-probs; the trainer sends its own unless {BYPASS_KEY} is true"
ADD_BYPASS = f"add {BYPASS_KEY}=true, which sets the loss, or remove {LOSS_MODE}"
UNREAD = f"no loss reads it unless {BYPASS_KEY} is true"
MOVE = f"move its settings to {CORRECTION}, or set {BYPASS_KEY}=true"
NOT_BOTH = f"remove {BYPASS_KEY} or fp16_patch.keep_log_probs"
NOT_MASKED = (
    "fp16_patch.rollout_overflow=mask finds the answers by the rollout's log-probs, which are not computed then"
)
NOT_COMPUTED = "fp16_patch.keep_log_probs needs the {} log-probs, which are not computed then"


def settings(config: DictConfig, precision: Precision) -> list[Setting]:
    """Return what the correction, and keeping the log-probs of both engines, need elsewhere."""
    correction = read_correction(config)
    wanted = next((name for name in (BYPASS, "rollout_is", "rollout_rs") if correction.get(name)), None)
    asked_by = f"{CORRECTION}.{wanted}={correction.get(wanted)}"
    bypass, keep = wanted == BYPASS, precision.keep_log_probs
    lone_loss = not bypass and value_of(config, LOSS_MODE) == BYPASS
    pi, mu = NOT_COMPUTED.format("trainer's"), NOT_COMPUTED.format("rollout's")
    return [
        Setting(LOG_PROBS, sets=True, why=NOT_CORRECTED, when=wanted is not None, asked_by=asked_by),
        Setting(LOSS_MODE, sets=BYPASS, stock=("vanilla",), why=NOT_PASSED_ON, when=bypass, asked_by=asked_by),
        Setting(LOSS_CORRECTION, sets=correction, stock=(MISSING,), why=NOT_PASSED_ON, when=bypass, asked_by=asked_by),
        Setting(LOSS_MODE, allowed=("vanilla",), why=WRONG_LOG_PROBS, next_step=ADD_BYPASS, when=lone_loss),
        Setting(LOSS_CORRECTION, allowed=(None,), why=UNREAD, next_step=MOVE, when=not bypass and not lone_loss),
        Setting(BYPASS_KEY, allowed=(False, None), why=pi, next_step=NOT_BOTH, when=keep),
        Setting(LOG_PROBS, allowed=(True,), why=mu, when=keep),
        Setting(LOG_PROBS, allowed=(True,), why=NOT_MASKED, when=precision.rollout_overflow == "mask"),
    ]


def read_correction(config: DictConfig) -> dict[Any, Any]:
    """Return the user's section with interpolations resolved; empty without one."""
    section = value_of(config, CORRECTION)
    return dict(OmegaConf.to_container(section, resolve=True)) if isinstance(section, DictConfig) else {}
