# SPDX-License-Identifier: Apache-2.0
"""Run RL fine-tuning in FP16 on both engines, trainer and rollout, with one flag, and prove it.

The flag and ``fp16-patch run`` turn it on. Importing this package changes nothing and imports none of torch, verl,
vLLM and Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fp16_patch.patching import Ledger

__version__ = "0.1.0"
__all__ = ["__version__", "status"]


def status() -> Ledger:
    """Return this process's ledger: every patch, its target and its outcome."""
    from fp16_patch.patching import status

    return status()
