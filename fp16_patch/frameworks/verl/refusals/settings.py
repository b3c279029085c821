# SPDX-License-Identifier: Apache-2.0
"""What cannot be kept in the chosen precision, or cannot be proven to be: refused before launch.

Each refusal names the place in verl 0.9.1 that makes it necessary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from fp16_patch.engines.vllm.fp16_support import float16_refusing_model_types, model_type_of
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config import rollout_correction
from fp16_patch.frameworks.verl.config.keys import refusal, value_of
from fp16_patch.frameworks.verl.refusals import megatron as megatron_refusals
from fp16_patch.frameworks.verl.trainer_fsdp.fp32_modules import for_critics_only
from fp16_patch.precision import Precision, short_name

STRATEGIES = {
    "fsdp_turbo": "its mixed precision is its own (workers/engine/fsdp/fsdp_turbo_impl.py:59)",
    "veomni": "its autocast is BF16 and it has no scaler (workers/engine/veomni/transformer_impl.py:337)",
    "torchtitan": "its autocast is BF16 and it has no scaler (workers/engine/torchtitan/transformer_impl.py:429)",
    "automodel": "its autocast is BF16 and it has no scaler (workers/engine/automodel/transformer_impl.py:269)",
}
"""Trainer strategies the flag does not cover yet, and why."""

CHECKPOINT_ENGINES = {
    "delta_sharded": "it sends BF16 only (checkpoint_engine/delta_checkpoint_engine.py:528)",
    "kimi_ckpt_engine": "it casts every weight to BF16 (checkpoint_engine/kimi_checkpoint_engine.py:50)",
    "mooncake": "it casts every weight to BF16 (checkpoint_engine/mooncake_checkpoint_engine.py:181)",
}
"""Weight transports that cast to BF16, and where."""


def unsupported(config: DictConfig, precision: Precision) -> list[Fp16PatchError]:
    """Every setting of this run that the flag cannot honour."""
    return [
        *_trainer(config),
        *megatron_refusals.unsupported(config, precision, _uses_critic(config)),
        *_rollout(config, precision),
        *_weight_transport(config),
        *_model(config, precision),
        *_fp32_modules(config, precision),
        *rollout_correction.unsupported(config),
        *_kept_log_probs(config, precision),
    ]


def _trainer(config: DictConfig) -> Iterator[Fp16PatchError]:
    engines = {"actor_rollout_ref.actor": "fsdp_config"}
    if _uses_critic(config):
        engines["critic"] = "fsdp"
    for section, name in engines.items():
        strategy = value_of(config, f"{section}.strategy")
        engine = f"{section}.{'megatron' if strategy == 'megatron' else name}"
        if strategy not in ("fsdp", "fsdp2", "megatron"):
            key, why = f"{section}.strategy", STRATEGIES.get(str(strategy), "this package does not know it")
            yield refusal(key, strategy, f"not covered: {why}", "fsdp, fsdp2 or megatron", f"set {key}=fsdp2")
        elif not value_of(config, engine) and (other := _other_engine(config, section, engine)):
            key, why = f"{section}.strategy", f"there is {other}, and no {engine}"
            wanted = "megatron" if strategy == "megatron" else "dp"
            yield refusal(key, strategy, why, "model_engine's own", f"set model_engine={wanted}, or remove {key}")
        elif not value_of(config, engine):
            why = "without it verl trains in its default, BF16"
            yield refusal(engine, value_of(config, engine), why, "verl's own section", f"do not remove {engine}")
    if not value_of(config, "trainer.use_v1"):
        yield refusal("trainer.use_v1", False, "the legacy trainer is not covered", "True", "use the V1 trainer")
    mode = value_of(config, "trainer.v1.trainer_mode")
    if mode not in ("sync", "colocate_async"):
        key = "trainer.v1.trainer_mode"
        why = "its standalone rollout replicas have not been proven"
        yield refusal(key, mode, why, "sync, colocate_async", f"set {key}=sync")
    for role, path in (("actor", "actor_rollout_ref.actor"), ("critic", "critic")):
        key = f"{path}.{'fsdp_config' if role == 'actor' else 'fsdp'}.qat.enable"
        if value_of(config, key):
            yield refusal(key, True, "quantization-aware training has its own dtypes", "False", "turn it off")


def _other_engine(config: DictConfig, section: str, engine: str) -> str | None:
    """Return the section of another engine that is there in place of ``engine``."""
    names = [f"{section}.{name}" for name in ("megatron", "fsdp_config", "fsdp")]
    return next((name for name in names if name != engine and value_of(config, name)), None)


def _rollout(config: DictConfig, precision: Precision) -> Iterator[Fp16PatchError]:
    rollout = "actor_rollout_ref.rollout"
    name = value_of(config, f"{rollout}.name")
    if name != "vllm":
        yield refusal(f"{rollout}.name", name, "only vLLM is covered", "vllm", f"set {rollout}.name=vllm")
    if value_of(config, f"{rollout}.quantization"):
        value = value_of(config, f"{rollout}.quantization")
        why = f"a quantized rollout is not {precision.rollout_dtype}"
        yield refusal(f"{rollout}.quantization", value, why, "null", "remove it")
    if (value_of(config, f"{rollout}.data_parallel_size") or 1) > 1:
        value = value_of(config, f"{rollout}.data_parallel_size")
        why = "vLLM reports from its first data-parallel engine only, so the others cannot be proven"
        yield refusal(f"{rollout}.data_parallel_size", value, why, "1", "use more replicas instead")
    if value_of(config, f"{rollout}.disaggregation.enabled"):
        key = f"{rollout}.disaggregation.enabled"
        yield refusal(key, True, "prefill/decode servers have not been proven", "False", "turn it off")
    yield from _engine_arguments(f"{rollout}.engine_kwargs.vllm", config, precision)


def _engine_arguments(path: str, config: DictConfig, precision: Precision) -> Iterator[Fp16PatchError]:
    """Arguments handed to vLLM as they are; verl turns both ``kv_cache_dtype`` and ``kv-cache-dtype`` into options."""
    arguments = value_of(config, path) or {}
    if not isinstance(arguments, DictConfig | dict):
        yield refusal(path, arguments, "it is no mapping of vLLM's arguments", "a mapping", f"correct {path}")
        return
    for key, value in arguments.items():
        name = str(key).replace("-", "_")
        hidden = name == "hf_overrides" and "dtype" in str(value)
        sets_dtype = name in ("dtype", "kv_cache_dtype", "quantization", "worker_extension_cls")
        if value is not None and (hidden or (sets_dtype and not _harmless(name, value, precision))):
            why = f"it overrides what the flag gives vLLM ({precision.rollout_dtype})"
            yield refusal(f"{path}.{key}", value, why, "unset", f"remove {path}.{key}")


def _harmless(key: str, value: Any, precision: Precision) -> bool:
    if key == "kv_cache_dtype" and value == "auto":  # vLLM's default: the model's dtype
        return True
    if key not in ("dtype", "kv_cache_dtype"):
        return False
    try:
        return short_name(key, value) == precision.rollout_dtype
    except Fp16PatchError:
        return False


def _weight_transport(config: DictConfig) -> Iterator[Fp16PatchError]:
    key = "actor_rollout_ref.rollout.checkpoint_engine.backend"
    backend = value_of(config, key)
    if backend in CHECKPOINT_ENGINES:
        why = f"not covered: {CHECKPOINT_ENGINES[backend]}"
        yield refusal(key, backend, why, "naive, nccl, nixl, hccl", f"set {key}=naive")


def _model(config: DictConfig, precision: Precision) -> Iterator[Fp16PatchError]:
    if precision.rollout_dtype != "fp16":
        return
    key = "actor_rollout_ref.model.path"
    path = value_of(config, key)
    refused = float16_refusing_model_types()
    for model_type in model_type_of(str(path)) if path else ():
        if model_type in refused:
            why = f"vLLM refuses float16 for model type {model_type!r}: {refused[model_type]}"
            yield refusal(key, path, why, "a model type vLLM runs in float16", "use +precision@_global_=bf16")


def _fp32_modules(config: DictConfig, precision: Precision) -> Iterator[Fp16PatchError]:
    """Only names that no engine of this run will look for; the engines refuse what their model does not have."""
    for pattern in precision.fp32_modules:
        if for_critics_only(pattern) and not _uses_critic(config):
            key = "fp16_patch.fp32_modules"
            why = "only a critic has such a module, and this run has none"
            yield refusal(key, pattern, why, "names of the actor's modules", f"remove it from {key}")


def _kept_log_probs(config: DictConfig, precision: Precision) -> Iterator[Fp16PatchError]:
    """Yield what keeps verl from having both engines' log-probs."""
    if not precision.keep_log_probs:
        return
    key = f"{rollout_correction.CORRECTION}.{rollout_correction.BYPASS}"
    if value_of(config, key):
        why = "the trainer's log-probs, which fp16_patch.keep_log_probs asks for, are not computed then"
        yield refusal(key, True, why, "false", "remove it, or fp16_patch.keep_log_probs")
    if not value_of(config, rollout_correction.LOG_PROBS):
        key = rollout_correction.LOG_PROBS
        why = "vLLM's log-probs, which fp16_patch.keep_log_probs asks for, are not there then"
        yield refusal(key, False, why, "true", f"set {key}=true")


def _uses_critic(config: DictConfig) -> bool:
    from verl.trainer.ppo.utils import need_critic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # verl asks the same question again, and warns there
        return bool(need_critic(config))
