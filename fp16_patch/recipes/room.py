# SPDX-License-Identifier: Apache-2.0
"""How many arms run at a time, and which GPUs of this machine each of them gets."""

from __future__ import annotations

import os

from fp16_patch.errors import Fp16PatchError
from fp16_patch.recipes import requirements
from fp16_patch.recipes.requirements import Needs
from fp16_patch.recipes.schema import Recipe

_VISIBLE = "CUDA_VISIBLE_DEVICES"

Place = dict[str, str]
"""What one arm's environment gets."""


def places(recipe: Recipe, needs: Needs, arms: int, jobs: int | None) -> list[Place]:
    """One for each arm that runs at a time: ``jobs``, or as many of the ``arms`` as this machine's GPUs hold.

    On a CPU, and on a cluster, whose GPUs Ray hands out, it is one without ``jobs``. Raises :class:`Fp16PatchError`
    where this machine has not GPUs for so many.
    """
    if recipe.platform is not None or os.environ.get("RAY_ADDRESS"):
        return [{}] * min(jobs or 1, arms)
    there, wanted = requirements.gpus_here(), needs.gpus[1]
    hold = there // wanted
    jobs = min(jobs or max(1, hold), arms)
    if jobs == 1:
        return [{}]
    if jobs > hold:
        raise Fp16PatchError(
            f"--jobs {jobs}: so many arms need {jobs * wanted} GPUs, {needs.gpus[0]}={wanted} each, "
            f"and this machine has {there}",
            allowed=f"up to {hold}" if hold > 1 else "1: one arm after the other",
        )
    visible = [name for name in os.environ.get(_VISIBLE, "").split(",") if name] or [str(i) for i in range(there)]
    return [{_VISIBLE: ",".join(visible[i * wanted : (i + 1) * wanted])} for i in range(jobs)]
