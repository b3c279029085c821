# SPDX-License-Identifier: Apache-2.0
"""Refuse, before any actor starts, the arguments of OpenRLHF that the flag cannot honour.

Each refusal names the place in OpenRLHF 0.11.2 or DeepSpeed 0.19.6 that makes it necessary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fp16_patch.engines.vllm.fp16_support import float16_refusing_model_types, model_type_of
from fp16_patch.errors import Fp16PatchError
from fp16_patch.precision import Precision

Args = Any  # OpenRLHF's arguments, nested as its utils/config.py nests them


def unsupported(args: Args, precision: Precision) -> list[Fp16PatchError]:
    """Return an error for every argument of this run that the flag cannot honour."""
    return [
        *_rollout(args, precision),
        *(_trainer(args) if precision.train_dtype == "fp16" else ()),
        *_fp32_modules(precision),
        *_kept_log_probs(args, precision),
    ]


def _rollout(args: Args, precision: Precision) -> Iterator[Fp16PatchError]:
    if not args.vllm.num_engines:
        why = "without vLLM there is no rollout engine to run in another precision"
        yield _refusal("--vllm.num_engines", args.vllm.num_engines, why, "1 or more", "set --vllm.num_engines")
    if args.ds.lora.rank > 0:
        why = (
            "the weight sync sends LoRA names that vLLM does not know and never the merged weights "
            "(trainer/ray/ppo_actor.py:478), in any precision"
        )
        yield _refusal("--ds.lora.rank", args.ds.lora.rank, why, "0", "train all weights, or use verl's LoRA")
    if precision.rollout_dtype != "fp16":
        return
    refused = float16_refusing_model_types()
    for model_type in model_type_of(str(args.actor.model_name_or_path)):
        if model_type in refused:
            why = f"vLLM refuses float16 for model type {model_type!r}: {refused[model_type]}"
            key, value = "--actor.model_name_or_path", args.actor.model_name_or_path
            yield _refusal(key, value, why, "a model type vLLM runs in float16", "use --ds.param_dtype bf16")


def _trainer(args: Args) -> Iterator[Fp16PatchError]:
    ds = args.ds
    if ds.load_in_4bit:
        why = "OpenRLHF's 4-bit weights compute in BF16 only (models/actor.py:116)"
        yield _refusal("--ds.load_in_4bit", True, why, "False", "remove it, or use --ds.param_dtype bf16")
    if ds.tensor_parallel_size > 1:
        key, value = "--ds.tensor_parallel_size", ds.tensor_parallel_size
        why = "DeepSpeed's tensor parallel is BF16 only here (utils/deepspeed/deepspeed.py:78)"
        yield _refusal(key, value, why, "1", "use ZeRO-3 and ring attention instead")
    if ds.zero_stage not in (2, 3):
        why = (
            "with FP32 accumulation it does not average gradients (deepspeed runtime/zero/stage_1_and_2.py:1148)"
            if ds.zero_stage == 1
            else "without ZeRO, DeepSpeed's FP16 optimizer has another scaler, which is not covered"
        )
        yield _refusal("--ds.zero_stage", ds.zero_stage, why, "2 or 3", "set --ds.zero_stage 2")
    if ds.adam_offload and ds.zero_stage == 2 and _micro_batches(args) > 1:
        why = f"stage 2 accumulates the {_micro_batches(args)} micro-batches of an update in FP16 on the CPU"
        yield _refusal("--ds.adam_offload", True, why, "stage 3, or one micro-batch", "set --ds.zero_stage 3")
    if args.train.dynamic_batch_enable:
        why = "how DeepSpeed accumulates its micro-batches is untested (it needs flash-attn)"
        yield _refusal("--train.dynamic_batch_enable", True, why, "False", "use fixed micro-batches")
    if ds.grad_accum_dtype not in (None, "fp32"):
        why = "gradients would be accumulated in half precision"
        yield _refusal("--ds.grad_accum_dtype", ds.grad_accum_dtype, why, "fp32", "remove it: the flag sets fp32")
    if ds.deepcompile:
        why = "compiled engines are untested"
        yield _refusal("--ds.deepcompile", True, why, "False", "turn it off")
    if ds.use_universal_ckpt:
        why = "universal checkpoints restore DeepSpeed's own scaler in place of ours"
        yield _refusal("--ds.use_universal_ckpt", True, why, "False", "turn it off")
    for role in ("actor", "critic"):
        if getattr(args, role).optim == "muon":
            why = "DeepSpeed orthogonalises the scaled gradients in BF16"
            yield _refusal(f"--{role}.optim", "muon", why, "adam", f"set --{role}.optim adam")


def _micro_batches(args: Args) -> int:
    """Count those of one update on one rank as OpenRLHF does (utils/deepspeed/deepspeed.py, setup_distributed)."""
    ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
    return int(args.train.batch_size * args.ds.ring_attn_size // args.train.micro_batch_size // ranks)


def _fp32_modules(precision: Precision) -> Iterator[Fp16PatchError]:
    if precision.fp32_modules:
        key, value = "fp16_patch.fp32_modules", list(precision.fp32_modules)
        why = "DeepSpeed casts the whole model to half precision"
        yield _refusal(key, value, why, "unset", "remove it; on verl's FSDP engines it works")


def _kept_log_probs(args: Args, precision: Precision) -> Iterator[Fp16PatchError]:
    if not precision.keep_log_probs:
        return
    key, level = "--algo.advantage.is_correction_level", args.algo.advantage.is_correction_level
    if level == "off":
        why = "OpenRLHF then does not ask vLLM for log-probs, which fp16_patch.keep_log_probs needs"
        yield _refusal(key, level, why, "token, seq", f"set {key} token; with the threshold 1 1 it corrects nothing")


def _refusal(key: str, value: object, why: str, allowed: str, next_step: str) -> Fp16PatchError:
    return Fp16PatchError(f"{key} {value}: {why}", code="setting-refused", allowed=allowed, next_step=next_step)
