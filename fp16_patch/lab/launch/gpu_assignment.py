# SPDX-License-Identifier: Apache-2.0
"""Decide how many arms run at a time, and which GPUs of this machine each of them gets."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms import preflight
from fp16_patch.lab.arms.preflight import Needs
from fp16_patch.lab.recipes.schema import Recipe

_VISIBLE = "CUDA_VISIBLE_DEVICES"

Environment = dict[str, str]
"""Variables that are added to the environment of one arm."""


def environments(recipe: Recipe, arms: Sequence[Needs], jobs: int | None) -> list[Environment]:
    """Return an environment for each arm that runs at a time: ``jobs``, or as many as this machine's GPUs hold.

    Without ``jobs`` it is one on a CPU, on a cluster (Ray assigns its GPUs), and if an arm needs more GPUs than its
    trainer's. Raises :class:`Fp16PatchError` if this machine does not have the GPUs.
    """
    if recipe.platform is not None or os.environ.get("RAY_ADDRESS"):
        return [{}] * min(jobs or 1, len(arms))
    whole = all(needs.whole for needs in arms)
    if len(arms) == 1 or jobs == 1 or (jobs is None and not whole):
        return [{}]
    if not whole:
        raise Fp16PatchError(
            f"--jobs {jobs}: an arm needs more GPUs than its trainer's, and their number is not known",
            code="gpus-unknown",
            allowed="1: one arm after the other",
            next_step="leave --jobs out; or start each arm by itself, with --arm and CUDA_VISIBLE_DEVICES",
        )
    there, (key, wanted) = preflight.gpus_here(), max((needs.gpus for needs in arms), key=lambda gpus: gpus[1])
    hold = there // wanted
    at_a_time = min(jobs or max(1, hold), len(arms))
    if at_a_time > max(1, hold):
        raise Fp16PatchError(
            f"--jobs {jobs}: {at_a_time} arms at a time need {at_a_time * wanted} GPUs, {key}={wanted} each, and this "
            f"machine has {there}",
            code="not-enough-gpus",
            allowed=f"1 to {max(1, hold)}",
            next_step="leave --jobs out: as many arms run as there are GPUs for",
        )
    if at_a_time == 1:
        return [{}]
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    visible = named or [str(i) for i in range(there)]
    return [{_VISIBLE: ",".join(visible[i * wanted : (i + 1) * wanted])} for i in range(at_a_time)]
