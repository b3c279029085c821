# SPDX-License-Identifier: Apache-2.0
"""Register the patches in a process of the job: Ray calls this in its workers, vLLM's plugin in vLLM's processes."""

from __future__ import annotations

import functools

from fp16_patch.frameworks.openrlhf import plan
from fp16_patch.precision import Precision


@functools.cache  # Ray and vLLM may both call it in one process
def activate() -> None:
    """Register the patches once. Raise :class:`Fp16PatchError` if the environment has no flag."""
    Precision.current()
    plan.register_import_hooks()
