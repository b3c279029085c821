# SPDX-License-Identifier: Apache-2.0
"""Cases for the tests of verl's engine. Run as ``python engine_cases.py flag|stock FOLDER [CASE ...]``.

Results go to FOLDER. Torch, transformers and verl are imported once; each case then gets ranks of its own
(engine_ranks.py).
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import bypass_cases  # noqa: F401  registers its cases
import fp32_cases  # noqa: F401  registers its cases
import fused_cases  # noqa: F401  registers its cases
import golden_fsdp_cases  # noqa: F401  registers its cases
import loss_cases  # noqa: F401  registers its cases
import scaling_cases  # noqa: F401  registers its cases
import torch
from engine_building import digest, finite, local, new_engine, parameters, whole
from engine_ranks import Result, run_all
from engine_registry import (
    BF16,
    FLAG,
    FP32,
    STOCK,
    STRATEGIES,
    Loss,
    case,
    describe,
    infer,
    model,
    stock,
    train,
    use_folder,
)
from transformers import AutoConfig
from verl.utils.model import get_hf_auto_model_class
from verl.workers.config import CriticConfig
from verl.workers.utils.losses import value_loss

from fp16_patch.lab.toy.model import tiny_model
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.precision import Precision


def one_update(rank: int, *, strategy: str, dtype: str, **settings: Any) -> Result:
    engine = new_engine(model(), strategy, dtype, **settings)
    built = describe(engine)
    infer(engine, rank)
    before, loss = describe(engine), Loss(engine)
    metrics = train(engine, rank, loss)
    return {
        "built": built,
        "before": before,
        "after": describe(engine),
        "metrics": metrics,
        "loss_dtypes": sorted(loss.dtypes),
        "held_gradients": loss.held,
    }


for strategy in STRATEGIES:
    case(f"fp16-{strategy}", partial(one_update, strategy=strategy, dtype="fp16"))
    case(
        f"no-sync-{strategy}",
        partial(one_update, strategy=strategy, dtype="fp16", use_no_sync_for_gradient_accumulation=True),
    )
case("bf16", partial(one_update, strategy="fsdp2", dtype="bf16"), precision=BF16)
case("fp32", partial(one_update, strategy="fsdp2", dtype="fp32"), precision=FP32)
case("one-sided", partial(one_update, strategy="fsdp2", dtype="bf16"), precision=Precision("bf16", "fp16"))
case("against-the-flag", partial(one_update, strategy="fsdp2", dtype="bf16"), ranks=1)


def overflow(rank: int, *, strategy: str) -> Result:
    """Train from a scale that is far too high until an update is not skipped."""
    engine = new_engine(model(), strategy, "fp16")
    steps = []
    for _ in range(20):
        before = digest(engine)
        metrics = train(engine, rank)
        steps.append(
            {
                "loss_scale": metrics["loss_scale"],
                "update_skipped": metrics["update_skipped"],
                "scale_after": engine.scaler.get_scale(),
                "changed": digest(engine) != before,
                "optimizer_state": describe(engine)["optimizer_state"],
            }
        )
        if metrics["update_skipped"] == [0.0]:
            break
    return {"steps": steps, "finite": finite(engine)}


def one_bad_gradient(rank: int, *, strategy: str, dtype: str = "fp16") -> Result:
    """Put one infinity into the last rank's gradients, right before the optimizer's step."""
    engine = new_engine(model(), strategy, dtype)
    original = engine.optimizer_step

    def optimizer_step() -> Any:
        gradients = [local(p.grad) for p in engine.module.parameters() if p.grad is not None]
        if rank == torch.distributed.get_world_size() - 1:
            gradients[0].view(-1)[0] = float("inf")
        return original()

    engine.optimizer_step = optimizer_step
    before = digest(engine)
    metrics = train(engine, rank)
    return {"metrics": metrics, "rows": describe(engine), "changed": digest(engine) != before}


FAR_TOO_HIGH = Precision(loss_scaling=LossScaling(init_scale=2.0**24))
for strategy in STRATEGIES:
    case(f"overflow-{strategy}", partial(overflow, strategy=strategy), precision=FAR_TOO_HIGH)
    case(f"one-bad-gradient-{strategy}", partial(one_bad_gradient, strategy=strategy))
case("one-bad-gradient-bf16", partial(one_bad_gradient, strategy="fsdp2", dtype="bf16"), ranks=1, precision=BF16)


def settings_in_force(rank: int) -> Result:
    scaler = new_engine(model(), "fsdp2", "fp16").scaler
    return {
        "init_scale": scaler.get_scale(),
        "growth_factor": scaler.get_growth_factor(),
        "backoff_factor": scaler.get_backoff_factor(),
        "growth_interval": scaler.get_growth_interval(),
        "enabled": scaler.is_enabled(),
    }


OTHER_SETTINGS = LossScaling(init_scale=2.0**12, growth_factor=4.0, backoff_factor=0.25, growth_interval=7)
case("settings", settings_in_force, ranks=1, precision=Precision(loss_scaling=OTHER_SETTINGS))


def merged_lora(rank: int, *, strategy: str, sent_as: torch.dtype = torch.float16) -> Result:
    """Compare what is sent with the merge done here, in FP32, from the whole base and adapter weights."""
    lora = {"lora_rank": 4, "target_modules": "all-linear", "lora": {"merge": True}}
    engine = new_engine(model(), strategy, "fp16", lora=lora)
    generator = torch.Generator().manual_seed(rank)
    for parameter in engine.module.parameters():
        if parameter.requires_grad:  # adapters; peft starts B at zero, which would make merging a no-op
            local(parameter).normal_(std=0.1, generator=generator)
    expected, changed = merge_here(engine)
    before = digest(engine)
    stream, peft_config = engine.get_per_tensor_param()
    sent = dict(stream)  # kept to the end, as a sender that fills a bucket may: each must be a copy
    return {
        "peft_config": peft_config,
        "missing": sorted(set(expected) ^ set(sent)),
        "changed_by_merging": len(changed),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in sent.values()}),
        "not_rounded_once": [n for n, tensor in sent.items() if not torch.equal(tensor, expected[n].to(sent_as))],
        "rounding_error": sum(float((sent[n].double() - w.double()).abs().sum()) for n, w in expected.items()),
        "restored": digest(engine) == before,
    }


def merge_here(engine: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return merged FP32 weights by their names in the plain model, and the names that merging changed."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    plain: dict[str, torch.Tensor] = {}
    with FullyShardedDataParallel.summon_full_params(engine.module, writeback=False):  # nothing to do for FSDP2
        for name, parameter in engine.module.named_parameters():
            name = name.replace("_fsdp_wrapped_module.", "").replace("base_model.model.", "", 1)
            plain[name] = whole(parameter)
    names = [name.removesuffix(".base_layer.weight") for name in plain if name.endswith(".base_layer.weight")]
    for name in names:
        a, b = (plain.pop(f"{name}.lora_{side}.default.weight") for side in "AB")
        scaling = engine.model_config.lora_alpha / engine.model_config.lora_rank
        plain[f"{name}.base_layer.weight"] += b @ a * scaling
    return {name.replace(".base_layer", ""): tensor for name, tensor in plain.items()}, names


for strategy in STRATEGIES:
    case(f"merged-lora-{strategy}", partial(merged_lora, strategy=strategy))
    case(f"merged-lora-alone-{strategy}", partial(merged_lora, strategy=strategy), ranks=1)
    case(
        f"merged-lora-uncast-{strategy}",
        partial(merged_lora, strategy=strategy, sent_as=torch.float32),
        ranks=1,
        precision=Precision("fp16", "fp32"),
    )
stock("merged-lora-fsdp2", partial(merged_lora, strategy="fsdp2"))


def reference(rank: int, *, strategy: str) -> Result:
    engine = new_engine(model(), strategy, "fp16", forward_only=True)
    infer(engine, rank)
    return {"rows": describe(engine), "cpu_offload": engine._uses_fsdp2_cpu_offload_policy}


def critic(rank: int, *, strategy: str) -> Result:
    engine = new_engine(model(), strategy, "fp16", model_type="value_model")
    config = CriticConfig(strategy=strategy, ppo_micro_batch_size_per_gpu=2)
    loss = Loss(engine, partial(value_loss, config))
    metrics = train(engine, rank, loss)
    return {
        "rows": describe(engine),
        "loss_dtypes": sorted(loss.dtypes),
        "update_skipped": metrics["update_skipped"],
    }


# So few tokens make large gradients: at the default scale the first update would be skipped.
LOW = Precision(loss_scaling=LossScaling(init_scale=2.0**8))
for strategy in STRATEGIES:
    case(f"reference-{strategy}", partial(reference, strategy=strategy))
    case(f"critic-{strategy}", partial(critic, strategy=strategy), ranks=1, precision=LOW)


def half_master_weights(rank: int) -> Result:
    """Train with weights, and so AdamW's state, in FP16, which the flag refuses."""
    engine = new_engine(model(), "fsdp2", "fp16", model_dtype="fp16")
    metrics = train(engine, rank)
    broken = [name for name, part in parameters(engine) if not part.isfinite().all()]
    return {"grad_norm": metrics["grad_norm"], "broken": len(broken), "all": len(list(parameters(engine)))}


stock("half-master-weights", half_master_weights, ranks=1)


def main(kind: str, folder: Path, chosen: list[str]) -> None:
    use_folder(folder)
    tiny_model(model())
    # Here once and not in every rank: transformers imports the configurations of all its models for it.
    get_hf_auto_model_class(AutoConfig.from_pretrained(model()))
    run_all(FLAG if kind == "flag" else STOCK, folder, chosen)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
