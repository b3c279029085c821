# SPDX-License-Identifier: Apache-2.0
"""Say which patches apply when which module of DeepSpeed is imported. A framework's plan includes this one."""

from __future__ import annotations

from fp16_patch.engines.deepspeed import checkpoint, gradient_accumulation, step
from fp16_patch.patching import declared_in, plan

PATCHES = declared_in(gradient_accumulation, step, checkpoint)
PLAN = plan(PATCHES)
