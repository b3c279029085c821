# SPDX-License-Identifier: Apache-2.0
"""Compute log-probs and entropy from FP32 logits, as CUDA autocast does and CPU autocast does not.

CUDA autocast runs softmax and log_softmax in FP32. CPU autocast leaves them in the dtype of the logits, which would
round every log-prob to 8 (BF16) or 11 (FP16) bits. ``docs/cpu-platform.md`` lists the other operators on which the two
differ. This platform changes none of those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fp16_patch.lab.cpu.releases import VERL_RANK
from fp16_patch.patching import wrap

if TYPE_CHECKING:
    import torch


@wrap(
    "verl.utils.torch_functional:logprobs_from_logits_v2",
    **VERL_RANK,
    reason="CPU autocast rounds log-probs to the training dtype, which makes BF16's mismatch look about five times "
    "too large. CUDA autocast and flash-attn's cross entropy compute them in FP32.",
    upstream="CPU autocast's op lists differ from CUDA's by design",
    remove_when="CPU autocast runs log_softmax in FP32",
)
def _cpu_logprobs_fp32(original: Any, logits: torch.Tensor, labels: torch.Tensor) -> Any:
    return original(logits.float(), labels)


@wrap(
    "verl.utils.torch_functional:entropy_from_logits",
    **VERL_RANK,
    reason="CPU autocast rounds the softmax, the products and the sum to the training dtype. CUDA autocast computes "
    "the softmax in FP32.",
    upstream="CPU autocast's op lists differ from CUDA's by design",
    remove_when="CPU autocast runs softmax in FP32",
)
def _cpu_entropy_fp32(original: Any, logits: torch.Tensor) -> Any:
    return original(logits.float())
