# SPDX-License-Identifier: Apache-2.0
"""Load the hardware platform that ``FP16_PATCH_PLATFORM`` names, for frameworks without a platform interface."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    if entry_point := _find():
        entry_point.load()()


def check() -> Iterator[Fp16PatchError]:
    """Yield an error if no installed platform has the name in ``FP16_PATCH_PLATFORM``. Activates nothing."""
    try:
        _find()
    except Fp16PatchError as error:
        yield error


def _find() -> EntryPoint | None:
    name = os.environ.get(envs.PLATFORM)
    if not name:
        return None
    from importlib.metadata import entry_points

    installed = {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        known = ", ".join(sorted(installed)) or "no platform is installed: install fp16-patch again, which adds its own"
        raise Fp16PatchError(
            f"{envs.PLATFORM}={name!r} is not an installed platform",
            code="unknown-platform",
            allowed=f"{known}; or the variable unset, to use the accelerator",
            next_step=f"set {envs.PLATFORM} to an installed platform, or unset it",
        )
    return installed[name]
