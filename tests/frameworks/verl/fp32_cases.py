# SPDX-License-Identifier: Apache-2.0
"""Cases for test_fp32_modules.py: modules that verl's engine computes in FP32 while it computes the rest in FP16."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from engine_building import local, new_engine, whole
from engine_ranks import Result, describe_error
from engine_registry import STRATEGIES, Loss, case, describe, folder, infer, model, train
from safetensors.torch import load_file
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.overrides import TorchFunctionMode
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from verl.utils import fsdp_utils
from verl.workers.config import CriticConfig
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.utils.losses import value_loss

from fp16_patch.errors import Fp16PatchError
from fp16_patch.fp32_modules import _ATTRIBUTE, list_fp32_modules
from fp16_patch.frameworks.verl.trainer_fsdp.fp32_modules import build_with_fp32_modules
from fp16_patch.lab.toy.model import save
from fp16_patch.lab.toy.tokenizer import character_tokenizer
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.precision import Precision

PEFT = "base_model.model."


def keeping(*patterns: str) -> Precision:
    # So few tokens make large gradients: at the default scale the first update would be skipped.
    return Precision(loss_scaling=LossScaling(init_scale=2.0**8), fp32_modules=patterns)


def plain(name: str) -> str:
    return name.replace("_fsdp_wrapped_module.", "").removesuffix("._fsdp_wrapped_module").removeprefix(PEFT)


def _words(tensors: list[torch.Tensor]) -> str:
    """Return ``"float16"`` if all agree, else ``"float32*float16->float16"``: input, weight, result."""
    given, weight, *_, got = (str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    return got if given == weight == got else f"{given}*{weight}->{got}"


class Linears(TorchFunctionMode):
    """Record what every ``F.linear`` gets and returns, and its error relative to the exact product."""

    def __init__(self, dtypes: set[str], errors: list[float]) -> None:
        super().__init__()
        self.dtypes, self.errors = dtypes, errors

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.linear:
            tensors = [tensor.detach() for tensor in (*args, result) if tensor is not None]
            self.dtypes.add(_words(tensors))
            given, weight, *bias, got = (tensor.double() for tensor in tensors)
            exact = given @ weight.T + (bias[0] if bias else 0)
            self.errors.append(float((got - exact).abs().max() / exact.abs().max()) if exact.any() else 0.0)
        return result


class Watch:
    """Record the linear products inside modules, in forwards and in recomputation."""

    def __init__(self, engine: Any, *names: str) -> None:
        self.dtypes: dict[str, set[str]] = {name: set() for name in names}
        self.errors: dict[str, list[float]] = {name: [] for name in names}
        for name, part in engine.module.named_modules():
            if plain(name) in names and not isinstance(part, FullyShardedDataParallel):
                part.forward = self._watched(plain(name), part.forward)

    def _watched(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            with Linears(self.dtypes[name], self.errors[name]):
                return forward(*args, **kwargs)

        return watched

    def as_dict(self) -> Result:
        return {
            "dtypes": {name: sorted(dtypes) for name, dtypes in self.dtypes.items()},
            "products": {name: len(errors) for name, errors in self.errors.items()},
            "error": {name: max(errors, default=math.inf) for name, errors in self.errors.items()},
        }


def gradients_of(engine: Any, names: tuple[str, ...]) -> set[str]:
    """Return the dtypes of the nonzero gradients that the optimizer holds of these modules."""
    under = [part for name, part in engine.module.named_modules() if plain(name) in names]
    gradients = [p.grad for part in under for p in part.parameters() if p.grad is not None]
    return {str(gradient.dtype).removeprefix("torch.") for gradient in gradients if local(gradient).any()}


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    """Return the whole weights by their names in the plain model, as verl sends them to the rollout."""
    return {name: whole(tensor) for name, tensor in dict(engine.get_per_tensor_param()[0]).items()}


def one_update(
    rank: int,
    *,
    strategy: str,
    fp32_modules: tuple[str, ...],
    watch: tuple[str, ...] = (),
    path: Callable[[int], Path] | None = None,
    checkpointing: bool = False,
    loss: Callable[..., Any] | None = None,
    **settings: Any,
) -> Result:
    """Build, infer and train with ``fp32_modules`` in FP32. Watch them and the modules of ``watch``."""
    place = path(rank) if path else model()
    engine = new_engine(place, strategy, "fp16", **settings)
    if checkpointing:
        inner = getattr(engine.module, "_fsdp_wrapped_module", engine.module)
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    built, before = describe(engine), weights_of(engine)
    saved = {name: tensor for name, tensor in load_file(place / "model.safetensors").items() if name in before}
    sent_as = next(iter(before.values())).dtype
    watched, step, gradients = Watch(engine, *fp32_modules, *watch), engine.optimizer_step, set()

    def optimizer_step() -> Any:
        gradients.update(gradients_of(engine, fp32_modules))
        return step()

    engine.optimizer_step = optimizer_step
    infer(engine, rank)
    metrics = train(engine, rank, loss and Loss(engine, loss))
    after = weights_of(engine)
    inside = [name for name in before if name.startswith(fp32_modules)]
    return {
        "built": built,
        "after": describe(engine),
        "loaded": len(saved),
        "not_loaded": [name for name, tensor in saved.items() if not torch.equal(before[name], tensor.to(sent_as))],
        "gradients": sorted(gradients),
        "not_trained": [name for name in inside if torch.equal(before[name], after[name])],
        "update_skipped": metrics["update_skipped"],
        **watched.as_dict(),
    }


def tiny_moe(rank: int) -> Path:
    """Return the folder of a model with two layers of four experts."""
    place = folder() / "moe"
    if rank == 0 and not place.exists():
        config = Qwen3MoeConfig(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=64,
            moe_intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            num_experts=4,
            num_experts_per_tok=2,
            tie_word_embeddings=False,
            max_position_embeddings=256,
        )
        save(Qwen3MoeForCausalLM(config), character_tokenizer(), place)
    torch.distributed.barrier()
    return place


def reference(rank: int, *, strategy: str) -> Result:
    """Run forward only with offloaded parameters. Also report as if FP32 had not been requested."""
    engine = new_engine(model(), strategy, "fp16", forward_only=True)
    watched = Watch(engine, "lm_head")
    infer(engine, rank)
    rows = describe(engine)
    for fp32_module in list_fp32_modules(engine.module):
        delattr(fp32_module.module, _ATTRIBUTE)
    return {"rows": rows, "unasked": describe(engine), **watched.as_dict()}


def a_build_that_shards_nothing(rank: int, *, strategy: str) -> Result:
    names = fsdp_utils.fully_shard, transformer_impl.get_fsdp_wrap_policy
    engine = SimpleNamespace(
        model_config=SimpleNamespace(model_type="language_model", use_fused_kernels=False),
        engine_config=SimpleNamespace(strategy=strategy),
    )
    inner = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    try:
        build_with_fp32_modules(lambda _engine, module: module, engine, inner, ["1"])
    except Fp16PatchError as error:
        return {
            **describe_error(error),
            "restored": names == (fsdp_utils.fully_shard, transformer_impl.get_fsdp_wrap_policy),
        }
    return {}


LAYERS = "model.layers.0", "model.layers.1"

for strategy in STRATEGIES:
    update = partial(one_update, strategy=strategy)
    case(
        f"fp32-lm-head-{strategy}",
        partial(update, fp32_modules=("lm_head",), watch=("model.layers.0.mlp.gate_proj",)),
        precision=keeping("lm_head"),
    )
    case(
        f"fp32-alone-{strategy}",
        partial(update, fp32_modules=("lm_head",), watch=("model.layers.0.mlp.gate_proj",)),
        ranks=1,
        precision=keeping("lm_head"),
    )
    case(
        f"fp32-inside-{strategy}",
        partial(
            update,
            fp32_modules=tuple(f"{layer}.mlp.down_proj" for layer in LAYERS),
            watch=("model.layers.0.mlp.up_proj", "model.layers.1.self_attn", "lm_head"),
            checkpointing=True,
        ),
        precision=keeping("*.down_proj"),
    )
    case(
        f"fp32-router-{strategy}",
        partial(update, path=tiny_moe, fp32_modules=tuple(f"{layer}.mlp.gate" for layer in LAYERS), watch=("lm_head",)),
        precision=keeping("*.mlp.gate"),
    )
    case(
        f"fp32-layer-{strategy}",
        partial(update, fp32_modules=("model.layers.0",), watch=("model.layers.1",), checkpointing=True),
        precision=keeping("model.layers.0"),
    )
    lora = {"lora_rank": 4, "target_modules": "all-linear", "lora": {"merge": True}}
    case(
        f"fp32-lora-{strategy}",
        partial(
            update, fp32_modules=("model.layers.0.self_attn.q_proj",), watch=("model.layers.0.mlp.up_proj",), lora=lora
        ),
        precision=keeping("*.0.self_attn.q_proj", "lm_head"),
    )
    critic = CriticConfig(strategy=strategy, ppo_micro_batch_size_per_gpu=2)
    case(
        f"fp32-critic-{strategy}",
        partial(update, fp32_modules=("score",), model_type="value_model", loss=partial(value_loss, critic)),
        precision=keeping("score", "lm_head"),
    )
    case(f"fp32-reference-{strategy}", partial(reference, strategy=strategy), precision=keeping("lm_head"))
    case(f"fp32-not-built-{strategy}", partial(a_build_that_shards_nothing, strategy=strategy), ranks=1)
    case(f"fp32-misspelt-{strategy}", partial(update, fp32_modules=()), precision=keeping("lm_haed"))
