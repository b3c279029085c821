# SPDX-License-Identifier: Apache-2.0
"""What the flag would do to a command that has not been started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fp16_patch.errors import Fp16PatchError


@dataclass(frozen=True)
class Examined:
    """The changes, refusals and warnings for one command."""

    precision: str
    """Its name, such as ``"fp16 train, bf16 rollout"``."""
    changes: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """Each with ``key``, ``before``, ``after`` and ``overwritten``, which says that ``before`` was the user's."""
    problems: list[Fp16PatchError] = field(default_factory=list)
    """Why the command would not start."""
    warnings: list[str] = field(default_factory=list)
