# SPDX-License-Identifier: Apache-2.0
"""Make ZeRO-2 accumulate the gradients of micro-batches in the dtype that the configuration names."""

from __future__ import annotations

from typing import Any

from fp16_patch.engines.deepspeed.releases import RELEASE
from fp16_patch.patching import ProcessKind, wrap
from fp16_patch.precision import Precision

Optimizer = Any  # deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer, never imported here


@wrap(
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.get_all_grad_tensors",
    name="deepspeed-fp32-sums",
    release=RELEASE,
    processes={ProcessKind.TRAINER_RANK},
    engine="deepspeed",
    reason="ZeRO-2 adds up micro-batches in FP16, whatever data_types.grad_accum_dtype says. It uses that dtype only "
    "for gradients that are missing. This casts this rank's part before anything is added to it",
    upstream="deepspeed runtime/zero/stage_1_and_2.py:2116-2123 and 946-954",
    remove_when="DeepSpeed's ZeRO-2 keeps to grad_accum_dtype",
)
def cast_to_accumulation_dtype(original: Any, self: Optimizer, tensor_list: Any, dtype: Any) -> Any:
    """Return this rank's part of the gradients in ``dtype``. The others are added to the first of them."""
    gradients = original(self, tensor_list, dtype)
    if Precision.current().train_dtype != "fp16":
        return gradients
    return [gradient.to(dtype) for gradient in gradients]
