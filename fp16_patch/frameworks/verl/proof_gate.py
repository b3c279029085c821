# SPDX-License-Identifier: Apache-2.0
"""Let a trainer rank train only after its controller has asked it for its report.

``refusals/mains.py`` refuses mains by name, before anything starts. This check holds whatever a user's main runs: a
trainer that the proof does not reach ends at its first update.
"""

from __future__ import annotations

import sys

from fp16_patch.errors import Fp16PatchError

_asked = False  # whether the controller has asked this process for its report


def open_gate() -> None:
    """Note that the controller has asked this rank for its report, which it checks before training."""
    global _asked
    _asked = True


def refuse_unproven_training() -> None:
    """Refuse an update in a Ray actor that no controller has asked for its report.

    Raises:
        Fp16PatchError: The trainer of this run does not check its processes.
    """
    ray = sys.modules.get("ray")
    if _asked or ray is None or not ray.is_initialized():  # without Ray there is no controller
        return
    raise Fp16PatchError(
        "the trainer of this run updates weights before it has asked its processes for their patches and dtypes: "
        "the proof of the precision flag does not reach it",
        code="trainer-not-supported",
        allowed="the trainers of python -m verl.trainer.main_ppo",
        next_step="start your run with python -m verl.trainer.main_ppo, or remove +precision@_global_ from the command",
    )
