# SPDX-License-Identifier: Apache-2.0
"""The names of all settings, and a misspelt one found before a framework is imported or Hydra composes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields

from fp16_patch.errors import Fp16PatchError, several
from fp16_patch.precision import KEYS
from fp16_patch.precision.loss_scaling import LossScaling

PREFIX = "fp16_patch."
NAMES = (
    *(f"{PREFIX}{key}" for key in (*KEYS, "report_path")),
    *(f"{PREFIX}loss_scaling.{field.name}" for field in fields(LossScaling)),
)


def check(words: Iterable[str]) -> None:
    """Raises :class:`Fp16PatchError` on every ``fp16_patch.<name>=<value>`` among ``words`` that has no such name.

    Hydra's own error would advise to add the key with a ``+``.
    """
    problems = []
    for word in words:
        name = word.lstrip("+").partition("=")[0]
        if not name.startswith(PREFIX) or name in NAMES:
            continue
        close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.75)
        problems.append(
            Fp16PatchError(
                f"{word!r} is not a setting of this package",
                code="unknown-setting",
                allowed=", ".join(NAMES),
                next_step=f"did you mean {close[0]}?" if close else "correct the spelling, or remove it",
            )
        )
    if problems:
        raise several(problems)
