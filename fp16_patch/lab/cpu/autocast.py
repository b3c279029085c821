# SPDX-License-Identifier: Apache-2.0
"""Log-probs and entropy from FP32 logits, as CUDA autocast computes them and CPU autocast does not.

CUDA autocast runs softmax and log_softmax in FP32. CPU autocast leaves them in the dtype of the logits, which would
round every log-prob to 8 (BF16) or 11 (FP16) bits. The other operators on which the two differ are listed in
``docs/cpu-platform.md``; none of them is changed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fp16_patch.patching import Patch

if TYPE_CHECKING:
    import torch


def _logprobs(original: Callable[..., Any]) -> Callable[..., Any]:
    def logprobs_from_logits_v2(logits: torch.Tensor, labels: torch.Tensor) -> Any:
        return original(logits.float(), labels)

    return logprobs_from_logits_v2


def _entropy(original: Callable[..., Any]) -> Callable[..., Any]:
    def entropy_from_logits(logits: torch.Tensor) -> Any:
        return original(logits.float())

    return entropy_from_logits


PATCHES = (
    Patch(
        name="cpu-logprobs-fp32",
        target="verl.utils.torch_functional:logprobs_from_logits_v2",
        kind="wrap",
        distribution="verl",
        versions=">=0.9,<0.10",
        process="trainer rank",
        reason="Log-probs rounded to the training dtype: BF16's mismatch reads about five times too large. CUDA "
        "autocast, or flash-attn's cross entropy, gives FP32.",
        upstream="CPU autocast's op lists differ from CUDA's by design",
        remove_when="CPU autocast runs log_softmax in FP32",
        make=_logprobs,
        parameters=("logits", "labels"),
    ),
    Patch(
        name="cpu-entropy-fp32",
        target="verl.utils.torch_functional:entropy_from_logits",
        kind="wrap",
        distribution="verl",
        versions=">=0.9,<0.10",
        process="trainer rank",
        reason="Softmax, products and sum rounded to the training dtype; CUDA autocast runs the softmax in FP32.",
        upstream="CPU autocast's op lists differ from CUDA's by design",
        remove_when="CPU autocast runs softmax in FP32",
        make=_entropy,
        parameters=("logits",),
    ),
)
