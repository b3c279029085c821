# SPDX-License-Identifier: Apache-2.0
"""Find, before a run starts, paths that cannot be written and environment variables that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.files import check_can_write
from fp16_patch.precision.loss_scaling import as_typed
from fp16_patch.precision.precision import Precision

SIGNIFICAND_BITS = (1, 10)
"""Fewest and most of ``envs.ROLLOUT_SIGNIFICAND``."""


def report_path_problems(value: object) -> Iterator[Fp16PatchError]:
    """Yield an error if ``fp16_patch.report_path`` is not a file that can be written. None is the default path."""
    key = "fp16_patch.report_path"
    why = "it is not a path" if not isinstance(value, str) or not value.strip() else check_can_write(value)
    if value is not None and why:
        yield Fp16PatchError(
            f"{key}={as_typed(value)}: {why}",
            code="value-not-allowed",
            allowed="the path of a file, in a folder that exists or can be made and can be written",
            next_step=f"set {key} to such a file, or remove it: the report then goes to the folder of the checkpoints",
        )


def environment_problems() -> Iterator[Fp16PatchError]:
    """Yield an error for each variable of this package that a user has set to what cannot be read."""
    try:
        Precision.from_environment()
    except Fp16PatchError as error:
        yield error
    try:
        significand_bits()
    except Fp16PatchError as error:
        yield error
    path = os.environ.get(envs.METRICS)
    if path and (why := _why_not_appended(Path(path))):
        yield Fp16PatchError(
            f"{envs.METRICS}={path!r}: {why}",
            code="value-not-allowed",
            allowed="a file that can be written, in a folder that exists; or the variable unset",
            next_step=f"correct {envs.METRICS} or unset it",
        )


def significand_bits() -> int | None:
    """Return the number of bits that ``envs.ROLLOUT_SIGNIFICAND`` sets; None if it is unset.

    Raises:
        Fp16PatchError: If it is not a whole number in range.
    """
    variable, (fewest, most) = envs.ROLLOUT_SIGNIFICAND, SIGNIFICAND_BITS
    text = os.environ.get(variable, "")
    if not text:
        return None
    if not text.isdecimal() or not fewest <= int(text) <= most:
        raise Fp16PatchError(
            f"{variable}={text!r}",
            code="value-not-allowed",
            allowed=f"{fewest} to {most} explicit bits of significand, or the variable unset: no rounding",
            next_step=f"correct {variable} or unset it",
        )
    return int(text)


def _why_not_appended(path: Path) -> str | None:
    if os.path.isdir(path):
        return "it is a folder"
    if os.path.exists(path):
        return None if os.access(path, os.W_OK) else "it cannot be written"
    return check_can_write(path) if path.parent.is_dir() else f"there is no folder {path.parent}"
