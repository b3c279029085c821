# SPDX-License-Identifier: Apache-2.0
"""The releases of verl that every patch here was read against and run with."""

from __future__ import annotations

from typing import Any

from fp16_patch.patching import Patch

DISTRIBUTION = "verl"
RELEASES = "==0.9.1"


def in_trainer_rank(name: str, target: str, **declared: Any) -> Patch:
    """Return a patch of a function that verl's actor, critic and reference ranks run."""
    return Patch(
        name=name, target=target, distribution=DISTRIBUTION, versions=RELEASES, process="trainer rank", **declared
    )
