# SPDX-License-Identifier: Apache-2.0
"""Refuse or accept the configured sampling settings that make mu another distribution, for every framework.

A framework finds such settings in its configuration. :func:`judge` decides: an error where an importance weight or a
mismatch metric would read the wrong log-probs, otherwise an entry of the precision report. Does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.precision import Precision

ACCEPT = "fp16_patch.allow_truncated_sampling=true"
UNREAD = "nothing reads the rollout's log-probs"

CUT_SAMPLES = "vLLM samples from the tokens that it leaves"
CUT = f"{CUT_SAMPLES}, and its log-probs are those of the cut, renormalised distribution"
LOWEST_TEMPERATURE = 0.01
"""vLLM samples at this temperature where a lower one is asked for, and greedily at 0 (``vllm/sampling_params.py``)."""
TOO_COLD = "vLLM raises it to 0.01, or at 0 takes the likeliest token; the trainer divides the logits by another number"


@dataclass(frozen=True)
class SamplingSetting:
    """A configured setting that changes what vLLM samples from, or what its log-probs are."""

    key: str
    value: Any
    why: str
    """What vLLM samples from then, and what its log-probs are."""
    allowed: str
    next_step: str
    """How to get right log-probs. :func:`judge` adds how to accept wrong ones."""
    accepted_by: str | None = None
    """The setting that makes the log-probs right all the same, or None."""


def judge(
    found: Iterable[SamplingSetting], precision: Precision, read: bool
) -> tuple[list[Fp16PatchError], list[dict[str, Any]]]:
    """Return the refused settings, and the accepted ones as the precision report lists them.

    Args:
        found: The settings that change mu.
        precision: Says whether the user accepts them.
        read: Whether an importance weight or a mismatch metric reads the rollout's log-probs.
    """
    refused, accepted = [], []
    for setting in found:
        accepted_by = setting.accepted_by or (None if read else UNREAD)
        if accepted_by is None and precision.allow_truncated_sampling:
            accepted_by = ACCEPT
        if accepted_by is None:
            refused.append(_refusal(setting))
        else:
            entry = {"key": setting.key, "value": setting.value, "why": setting.why, "accepted_by": accepted_by}
            accepted.append(entry)
    return refused, accepted


def warning(accepted: Mapping[str, Any]) -> str:
    """Return the line to log before launch for a setting that :func:`judge` has accepted."""
    return f"{accepted['key']}={accepted['value']}: {accepted['why']} (accepted: {accepted['accepted_by']})"


def _refusal(setting: SamplingSetting) -> Fp16PatchError:
    return Fp16PatchError(
        f"{setting.key}={setting.value}: {setting.why}; every importance weight and mismatch metric would be wrong",
        code="sampling-changed",
        allowed=setting.allowed,
        next_step=f"{setting.next_step}; to train all the same, set {ACCEPT}",
    )
