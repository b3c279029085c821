# SPDX-License-Identifier: Apache-2.0
"""Cases for test_fused_kernels.py: verl's fused kernels (its torch backend) under the flag."""

from __future__ import annotations

from functools import partial
from typing import Any

from engine_building import new_batch, new_engine
from engine_ranks import Result
from engine_registry import Loss, case, describe, folder
from verl.utils import tensordict_utils as tu
from verl.utils.experimental.torch_functional import FusedLinearForPPO

from fp16_patch.lab.toy.model import new_model, save
from fp16_patch.lab.toy.tokenizer import character_tokenizer
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.precision import Precision

LOW = Precision(loss_scaling=LossScaling(init_scale=2.0**8))


def one_update(rank: int, *, strategy: str, tied: bool, fused: bool = True) -> Result:
    """Make one update; return the dtypes of hidden states, weight and log-probs that went through the kernel."""
    seen: set[tuple[str, ...]] = set()
    original = FusedLinearForPPO.forward

    def watched(self: Any, hidden_states: Any, vocab_weights: Any, **others: Any) -> Any:
        log_probs, entropy = original(self, hidden_states=hidden_states, vocab_weights=vocab_weights, **others)
        tensors = (hidden_states, vocab_weights, log_probs)
        seen.add(tuple(str(tensor.dtype).removeprefix("torch.") for tensor in tensors))
        return log_probs, entropy

    FusedLinearForPPO.forward = watched
    path = folder() / f"fused-{strategy}-{tied}-{fused}"
    made = new_model(character_tokenizer(), hidden=64, layers=1, seed=0)
    if tied:
        made.config.tie_word_embeddings = True
        made.tie_weights()
    save(made, character_tokenizer(), path)
    options = {"use_fused_kernels": fused, "fused_kernel_options": {"impl_backend": "torch"}}
    engine = new_engine(path, strategy, "fp16", lora=options)
    batch = new_batch(rank)
    tu.assign_non_tensor(batch, use_fused_kernels=fused)
    with engine.train_mode():
        metrics = engine.train_batch(batch, Loss(engine))["metrics"]
    return {"seen": sorted(seen), "rows": describe(engine), "grad_norm": metrics["grad_norm"]}


for name, strategy, tied in (("tied-fsdp2", "fsdp2", True), ("untied-fsdp", "fsdp", False)):
    case(f"fused-{name}", partial(one_update, strategy=strategy, tied=tied), ranks=1, precision=LOW)
    case(f"unfused-{name}", partial(one_update, strategy=strategy, tied=tied, fused=False), ranks=1, precision=LOW)
case("fused-untied-fsdp2", partial(one_update, strategy="fsdp2", tied=False), ranks=1, precision=LOW)
