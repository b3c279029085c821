# SPDX-License-Identifier: Apache-2.0
"""Arms a process that the driver's job has started: Ray calls it in its workers, vLLM's plugin in vLLM's own."""

from __future__ import annotations

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.openrlhf import plan
from fp16_patch.precision import Precision

_armed = False


def activate() -> None:
    """Once a process. Raises :class:`Fp16PatchError` where the flag is not in the environment."""
    global _armed
    if Precision.from_environment() is None:
        raise Fp16PatchError(
            f"{__name__}.activate was called without {envs.PRECISION}",
            code="flag-not-propagated",
            next_step="start with `fp16-patch run -- python -m openrlhf.cli.train_ppo_ray ...`",
        )
    if not _armed:
        plan.arm()
        _armed = True
