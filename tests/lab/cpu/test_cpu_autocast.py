# SPDX-License-Identifier: Apache-2.0
"""The CPU half of the table in docs/cpu-platform.md: which operators CPU autocast leaves in the training dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

X = torch.rand(2, 4, 8) + 0.5
LABELS = torch.arange(8)
Operator = Callable[[torch.Tensor], torch.Tensor]

NOT_WIDENED: dict[str, Operator] = {
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "softmax": lambda x: F.softmax(x, -1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "pow": lambda x: x.pow(2),
    "rsqrt": torch.rsqrt,
    "rms_norm": lambda x: F.rms_norm(x, (8,)),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "group_norm": lambda x: F.group_norm(x, 2),
    "exp": torch.exp,
    "log": torch.log,
    "expm1": torch.expm1,
    "log1p": torch.log1p,
    "sum": lambda x: x.sum(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "norm": lambda x: x.norm(dim=-1),
}
WIDENED: dict[str, Operator] = {
    "prod": lambda x: x.prod(-1),
    "cross_entropy": lambda x: F.cross_entropy(x.flatten(0, 1), LABELS),
    "nll_loss": lambda x: F.nll_loss(x.flatten(0, 1), LABELS),
    "mse_loss": lambda x: F.mse_loss(x, x),
    "kl_div": lambda x: F.kl_div(x, x, reduction="sum"),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*NOT_WIDENED, *WIDENED])
def test_cpu_autocast_widens_what_the_page_says(name: str, dtype: torch.dtype) -> None:
    operator = {**NOT_WIDENED, **WIDENED}[name]
    with torch.autocast("cpu", dtype=dtype):
        result = operator(X.to(dtype))
    assert result.dtype is (torch.float32 if name in WIDENED else dtype), (
        "PyTorch's CPU autocast has changed: update docs/cpu-platform.md, and see whether "
        "fp16_patch/lab/cpu/autocast.py can go"
    )
