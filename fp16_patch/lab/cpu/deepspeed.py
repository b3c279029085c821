# SPDX-License-Identifier: Apache-2.0
"""Adapt DeepSpeed's own CPU accelerator (``DS_ACCELERATOR=cpu``): allow FP16, compile nothing at run time."""

from __future__ import annotations

from typing import Any

from fp16_patch.lab.cpu.releases import DEEPSPEED_RANK, OPENRLHF_RANK
from fp16_patch.patching import replace, wrap


@replace(
    "deepspeed.accelerator.cpu_accelerator:CPU_Accelerator.is_fp16_supported",
    **DEEPSPEED_RANK,
    reason="DeepSpeed refuses FP16 if oneDNN has no FP16 kernels. matmul.py computes FP16 products itself, and "
    "PyTorch has every other operator in FP16.",
    upstream="DeepSpeed asks oneDNN, not PyTorch; not reported",
    remove_when="DeepSpeed allows FP16 on any CPU",
    fingerprint="3ca8114c0b66cedb",
)
def _cpu_deepspeed_fp16(self: Any) -> bool:
    return True


@replace(
    "deepspeed.comm.torch:build_shm_op",
    **DEEPSPEED_RANK,
    reason="DeepSpeed compiles a C++ all-reduce for the ranks of one machine, which takes a minute at start-up and "
    "needs a compiler. gloo gives the same sums.",
    upstream="no setting turns it off; not reported",
    remove_when="DeepSpeed has a setting for it",
    fingerprint="5ee7daeb8dd5b011",
)
def _cpu_deepspeed_no_shared_memory_op() -> None:
    """Return None, as if the operator could not be built: DeepSpeed then uses gloo."""


@wrap(
    "openrlhf.utils.deepspeed.deepspeed_utils:get_train_ds_config",
    also_bound=("openrlhf.utils.deepspeed.deepspeed:get_train_ds_config",),
    **OPENRLHF_RANK,
    reason="DeepSpeed compiles its fused Adam at start-up. Its setting torch_adam selects torch.optim.AdamW, the same "
    "algorithm. OpenRLHF has no argument for it.",
    upstream="OpenRLHF passes no setting of its optimizer through; not reported",
    remove_when="OpenRLHF can set torch_adam",
)
def _cpu_deepspeed_torch_adam(original: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    config: dict[str, Any] = original(*args, **kwargs)
    optimizer = config.get("optimizer", {})
    if optimizer.get("type") in ("Adam", "AdamW"):
        optimizer["params"]["torch_adam"] = True
    return config
