# SPDX-License-Identifier: Apache-2.0
"""Register the patches in a process of the job: Ray calls this in its workers, vLLM's plugin in vLLM's processes."""

from __future__ import annotations

import functools

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.openrlhf import plan
from fp16_patch.precision import Precision


@functools.cache  # both may call it in one process
def activate() -> None:
    """Register the patches, once a process. Raise :class:`Fp16PatchError` if the environment has no flag."""
    if Precision.from_environment() is None:
        raise Fp16PatchError(
            f"{__name__}.activate was called without {envs.PRECISION}",
            code="flag-not-propagated",
            next_step="start with `fp16-patch run -- python -m openrlhf.cli.train_ppo_ray ...`",
        )
    plan.register_import_hooks()
