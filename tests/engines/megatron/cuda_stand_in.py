# SPDX-License-Identifier: Apache-2.0
"""What megatron-core asks of ``torch.cuda``, answered by a CPU, in this thread."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class CudaMeansCpu(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.Tensor.type and len(args) == 1 and not kwargs:
            return function(*args).replace("torch.", "torch.cuda.")
        if function is torch.Tensor.to:
            args = tuple("cpu" if isinstance(arg, str) and arg.startswith("cuda") else arg for arg in args)
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


class _Stream:
    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __getattr__(self, name: str) -> Any:
        return lambda *_: self


def install() -> None:
    import megatron.core.tensor_parallel.random as random
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    cuda = torch.cuda  # only now: torch.compile, which they import, looks through it
    cuda.current_device = lambda: torch.device("cpu")
    cuda.synchronize = cuda.set_device = lambda *_: None
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = cuda.default_stream = _Stream
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.manual_seed = torch.manual_seed
    CudaMeansCpu().__enter__()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    moe_utils.te_general_gemm = None  # without TransformerEngine the name is missing, and asked for
    moved = moe_utils.maybe_move_tensor_to_cpu
    for module in (moe_utils, token_dispatcher):
        module.maybe_move_tensor_to_cpu = lambda tensor, as_numpy=False, record_stream=False: (
            tensor.numpy() if as_numpy and torch.is_tensor(tensor) else moved(tensor, as_numpy, record_stream)
        )
