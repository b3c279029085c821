# SPDX-License-Identifier: Apache-2.0
"""Load the hardware platform that ``FP16_PATCH_PLATFORM`` names, for frameworks without a platform interface."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "fp16_patch.platforms"
"""Entry-point group: a platform's name to a function without arguments that activates it."""


def activate() -> None:
    """Activate the platform that ``FP16_PATCH_PLATFORM`` names, if any. Idempotent.

    Raises:
        Fp16PatchError: If no installed platform has that name.
    """
    if name := os.environ.get(envs.PLATFORM, ""):
        _find(name).load()()


def check() -> list[Fp16PatchError]:
    """Return an error if no installed platform has the name in ``FP16_PATCH_PLATFORM``. Activates nothing."""
    try:
        if name := os.environ.get(envs.PLATFORM, ""):
            _find(name)
    except Fp16PatchError as error:
        return [error]
    return []


def _find(name: str) -> EntryPoint:
    from importlib.metadata import entry_points

    for entry_point in entry_points(group=ENTRY_POINTS, name=name):
        return entry_point
    known = sorted(entry_points(group=ENTRY_POINTS).names)
    raise Fp16PatchError(
        f"{envs.PLATFORM}={name!r} is not an installed platform",
        code="unknown-platform",
        allowed=f"{', '.join(known) or 'no platform is installed'}; or the variable unset, to use the accelerator",
        next_step=f"set {envs.PLATFORM} to one of them or unset it"
        if known
        else f"install fp16-patch again, which adds its platforms, or unset {envs.PLATFORM}",
    )
