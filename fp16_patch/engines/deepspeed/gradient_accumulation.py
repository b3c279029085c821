# SPDX-License-Identifier: Apache-2.0
"""ZeRO-2 adds up micro-batches in the dtype that the configuration names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fp16_patch.engines.deepspeed import releases
from fp16_patch.patching import Patch
from fp16_patch.precision import Precision

Optimizer = Any  # deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer, never imported here


def in_their_dtype(original: Callable[..., Any]) -> Callable[..., Any]:
    """This rank's part of the gradients, in ``dtype``: the first of them is what the others are added to."""

    @functools.wraps(original)
    def get_all_grad_tensors(self: Optimizer, tensor_list: Any, dtype: Any) -> Any:
        gradients = original(self, tensor_list, dtype)
        if Precision.current().train_dtype != "fp16":
            return gradients
        return [gradient.to(dtype) for gradient in gradients]

    return get_all_grad_tensors


PATCHES: tuple[Patch, ...] = (
    Patch(
        name="deepspeed-fp32-sums",
        target="deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.get_all_grad_tensors",
        kind="wrap",
        make=in_their_dtype,
        parameters=("self", "tensor_list", "dtype"),
        distribution=releases.DISTRIBUTION,
        versions=releases.RELEASES,
        process="trainer rank",
        reason="ZeRO-2 adds up micro-batches in FP16 whatever data_types.grad_accum_dtype says: it uses the dtype only "
        "for gradients that are missing. A cast of this rank's part, before anything is added to it",
        upstream="deepspeed runtime/zero/stage_1_and_2.py:2116-2123 and 946-954",
        remove_when="DeepSpeed's ZeRO-2 keeps to grad_accum_dtype",
    ),
)
