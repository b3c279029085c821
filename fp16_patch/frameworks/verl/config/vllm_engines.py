# SPDX-License-Identifier: Apache-2.0
"""The settings of every vLLM of a run: of the policy, of the reward model and of the teachers of a distillation.

All of them are a ``verl.workers.config.RolloutConfig``, so one set of rules holds for all.
"""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from fp16_patch.engines.vllm.dtype_arguments import refused_arguments
from fp16_patch.engines.vllm.fp16_risks import warnings
from fp16_patch.frameworks.verl.config.setting import MISSING, Setting, place_under, value_of
from fp16_patch.precision import Precision, long_name

ROLLOUT = "actor_rollout_ref.rollout"
POLICY = "actor_rollout_ref.model.path"
REWARD_MODEL = "reward.reward_model"
TEACHERS = "distillation.teacher_models"
ARGUMENTS = "engine_kwargs.vllm"
VLLM_ARGUMENTS = f"{ROLLOUT}.{ARGUMENTS}"

TRANSPORTS = {
    "delta_sharded": "it sends BF16 only (checkpoint_engine/delta_checkpoint_engine.py:528)",
    "kimi_ckpt_engine": "it casts every weight to BF16 (checkpoint_engine/kimi_checkpoint_engine.py:50)",
    "mooncake": "it casts every weight to BF16 (checkpoint_engine/mooncake_checkpoint_engine.py:181)",
}
"""Weight transports that are not supported, and why."""

DATA_PARALLEL = "vLLM reports from its first data-parallel engine only, so the others cannot be checked"
REPLICAS = "use more replicas instead"
EXTENSION = "verl's own worker extension carries the precision report"
UNTESTED = "prefill/decode servers are untested"
MOVED = "verl's former section of a reward model: a trainer that reads it copies it over what the flag has set"
MOVE = f"move its settings to {REWARD_MODEL}"
QAT = "quantization-aware training has its own dtypes"


def settings(config: DictConfig, precision: Precision) -> list[Setting]:
    """Return the settings of every vLLM engine of this run."""
    rows = [row for section in engines(config) for row in _engine(config, section, precision.rollout_dtype)]
    moved = value_of(config, REWARD_MODEL) is not None
    rows.append(Setting("reward_model.enable", allowed=(None, False), why=MOVED, next_step=MOVE, when=moved))
    transport = value_of(config, f"{ROLLOUT}.checkpoint_engine.backend")
    if transport in TRANSPORTS:
        why = f"not supported: {TRANSPORTS[transport]}"
        allowed = ("naive", "nccl", "nixl", "hccl")
        rows.append(Setting(f"{ROLLOUT}.checkpoint_engine.backend", allowed=allowed, why=why))
    return rows


def engines(config: DictConfig) -> dict[str, str]:
    """Return the section of each vLLM engine of this run -> the key of the model that it serves."""
    found = {ROLLOUT: POLICY}
    if value_of(config, f"{REWARD_MODEL}.enable"):
        found[f"{REWARD_MODEL}.rollout"] = f"{REWARD_MODEL}.model_path"
    if value_of(config, "distillation.enabled"):
        teachers = [str(name) for name in value_of(config, TEACHERS) or {}]
        if len(teachers) > 1:  # verl drops its own entry then (workers/config/distillation.py, _resolve_teacher_models)
            teachers.remove("teacher_model")
        found |= {f"{TEACHERS}.{name}.inference": f"{TEACHERS}.{name}.model_path" for name in teachers}
    return found


def models(config: DictConfig) -> dict[str, str]:
    """Return key -> path or hub id of each model that vLLM serves."""
    paths = {key: value_of(config, key) for key in engines(config).values()}
    return {key: str(path) for key, path in paths.items() if path}


def fp16_warnings(config: DictConfig, precision: Precision) -> list[str]:
    """Return what is known against FP16 for the models of this run."""
    return [
        text for key, path in models(config).items() for text in warnings(key, path, precision, trained=key == POLICY)
    ]


def _engine(config: DictConfig, section: str, dtype: str) -> list[Setting]:
    rows = [
        Setting("name", allowed=("vllm",), why="only vLLM is supported"),
        # A teacher that the user adds has verl's default, without a key.
        Setting("dtype", sets=long_name(dtype), stock=("bfloat16", MISSING)),
        Setting("quantization", allowed=(None,), why=f"a quantized engine is not {dtype}"),
        Setting("qat.enable", allowed=(False, None), why=QAT),
        Setting("data_parallel_size", allowed=(1, None), why=DATA_PARALLEL, next_step=REPLICAS),
        Setting("disaggregation.enabled", allowed=(False, None), why=UNTESTED),
        *_arguments(config, f"{section}.{ARGUMENTS}", dtype),
    ]
    return place_under(section, rows)


def _arguments(config: DictConfig, section: str, dtype: str) -> Iterator[Setting]:
    """Yield the arguments that vLLM gets as they are; both ``kv_cache_dtype`` and ``kv-cache-dtype`` are options."""
    given = value_of(config, section)
    if not isinstance(given, DictConfig):
        yield Setting(ARGUMENTS, allowed=({}, None), why="it is not a mapping of vLLM's arguments")
        return
    arguments = OmegaConf.to_container(given, resolve=True)
    for key, allowed in refused_arguments(arguments, dtype):
        yield Setting(f"{ARGUMENTS}.{key}", allowed=allowed, why=f"it overrides what the flag gives vLLM ({dtype})")
    for key in arguments:
        if key.replace("-", "_") == "worker_extension_cls":
            yield Setting(f"{ARGUMENTS}.{key}", allowed=(None,), why=EXTENSION)
        if key.replace("-", "_") == "data_parallel_size":
            why = DATA_PARALLEL
            yield Setting(f"{ARGUMENTS}.{key}", allowed=(None, 1), why=why, next_step=REPLICAS)
