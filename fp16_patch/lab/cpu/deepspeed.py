# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's own CPU accelerator (``DS_ACCELERATOR=cpu``): FP16 allowed, and nothing compiled at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.patching import Patch


def _supported(original: Callable[..., Any]) -> Callable[..., Any]:
    def is_fp16_supported(self: Any) -> bool:
        return True

    return is_fp16_supported


def _over_gloo(original: Callable[..., Any]) -> Callable[..., Any]:
    def build_shm_op() -> None:
        """None is the answer where the operator cannot be built; DeepSpeed then leaves it to gloo."""

    return build_shm_op


def _with_torchs_adam(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def get_train_ds_config(*args: Any, **kwargs: Any) -> dict[str, Any]:
        config = original(*args, **kwargs)
        optimizer = config.get("optimizer", {})
        if optimizer.get("type") in ("Adam", "AdamW"):
            optimizer["params"]["torch_adam"] = True
        return config

    return get_train_ds_config


PATCHES = (
    Patch(
        name="cpu-deepspeed-fp16",
        target="deepspeed.accelerator.cpu_accelerator:CPU_Accelerator.is_fp16_supported",
        kind="replace",
        distribution="deepspeed",
        versions=">=0.19.6,<0.20",
        process="trainer rank",
        reason="DeepSpeed refuses FP16 where oneDNN has no FP16 kernels. matmul.py computes the products itself, and "
        "PyTorch has every other operator in Half.",
        upstream="DeepSpeed asks oneDNN, not PyTorch; not reported",
        remove_when="DeepSpeed allows FP16 on any CPU",
        make=_supported,
        fingerprint="3ca8114c0b66cedb",
    ),
    Patch(
        name="cpu-deepspeed-no-shared-memory-op",
        target="deepspeed.comm.torch:build_shm_op",
        kind="replace",
        distribution="deepspeed",
        versions=">=0.19.6,<0.20",
        process="trainer rank",
        reason="Compiles a C++ all-reduce for ranks of one machine: a minute at start-up, and a compiler. gloo gives "
        "the same sums.",
        upstream="no setting turns it off; not reported",
        remove_when="DeepSpeed has a setting for it",
        make=_over_gloo,
        fingerprint="5ee7daeb8dd5b011",
    ),
    Patch(
        name="cpu-deepspeed-torch-adam",
        target="openrlhf.utils.deepspeed.deepspeed_utils:get_train_ds_config",
        also_bound=("openrlhf.utils.deepspeed.deepspeed:get_train_ds_config",),
        kind="wrap",
        distribution="openrlhf",
        versions=">=0.11.2,<0.12",
        process="trainer rank",
        reason="DeepSpeed compiles its fused Adam at start-up. Its own setting torch_adam takes torch.optim.AdamW, "
        "the same algorithm; OpenRLHF has no argument for it.",
        upstream="OpenRLHF passes no setting of its optimizer through; not reported",
        remove_when="OpenRLHF can set torch_adam",
        make=_with_torchs_adam,
        parameters=(),
    ),
)
