# SPDX-License-Identifier: Apache-2.0
"""Load the hardware platform that ``FP16_PATCH_PLATFORM`` names, for frameworks without a platform interface."""

from __future__ import annotations

import os

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError

ENTRY_POINTS = "fp16_patch.platforms"
"""Entry-point group: a platform's name to a function without arguments that activates it."""


def activate() -> None:
    """Activate the platform that ``FP16_PATCH_PLATFORM`` names, if any. Idempotent.

    Raises:
        Fp16PatchError: If no installed platform has that name.
    """
    name = os.environ.get(envs.PLATFORM, "")
    if not name:
        return
    from importlib.metadata import entry_points

    for entry_point in entry_points(group=ENTRY_POINTS, name=name):
        entry_point.load()()
        return
    known = sorted(entry_points(group=ENTRY_POINTS).names)
    raise Fp16PatchError(
        f"{envs.PLATFORM}={name!r} is not an installed platform",
        code="unknown-platform",
        allowed=f"{', '.join(known) or 'no platform is installed'}; or the variable unset, to use the accelerator",
        next_step=f"set {envs.PLATFORM} to one of them or unset it"
        if known
        else f"install fp16-patch again, which adds its platforms, or unset {envs.PLATFORM}",
    )
