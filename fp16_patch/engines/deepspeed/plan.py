# SPDX-License-Identifier: Apache-2.0
"""Which patches apply when which of DeepSpeed's modules is imported: a part of the plan of whoever starts it."""

from __future__ import annotations

from fp16_patch.engines.deepspeed import checkpoint, gradient_accumulation, step
from fp16_patch.patching import Patch

PLAN: dict[str, tuple[Patch, ...]] = {
    "deepspeed.runtime.zero.stage_1_and_2": gradient_accumulation.PATCHES,
    "deepspeed.runtime.engine": step.PATCHES + checkpoint.PATCHES,
}
