# SPDX-License-Identifier: Apache-2.0
"""Which patches apply when which of DeepSpeed's modules is imported: a part of the plan of whoever starts it."""

from __future__ import annotations

from fp16_patch.frameworks.deepspeed import checkpoint, loss_scaling, sums
from fp16_patch.patching import Patch

PLAN: dict[str, tuple[Patch, ...]] = {
    "deepspeed.runtime.zero.stage_1_and_2": sums.PATCHES,
    "deepspeed.runtime.engine": loss_scaling.PATCHES + checkpoint.PATCHES,
}
