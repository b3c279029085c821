# SPDX-License-Identifier: Apache-2.0
"""Which platform a process is asked to run on, for frameworks that have no word for it themselves."""

from __future__ import annotations

import os

from fp16_patch.errors import Fp16PatchError

ENVIRONMENT_VARIABLE = "FP16_PATCH_PLATFORM"


def activate() -> None:
    """Activate the platform that ``FP16_PATCH_PLATFORM`` names, if any. Idempotent; raises Fp16PatchError."""
    asked_for = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if not asked_for:
        return
    if asked_for != "cpu":
        raise Fp16PatchError(
            f"{ENVIRONMENT_VARIABLE}={asked_for!r} names no platform",
            code="unknown-platform",
            allowed=f"{ENVIRONMENT_VARIABLE}=cpu, or the variable unset: the accelerator there is",
            next_step=f"set {ENVIRONMENT_VARIABLE}=cpu or unset it",
        )
    from fp16_patch.lab.cpu import openrlhf

    openrlhf.activate()
