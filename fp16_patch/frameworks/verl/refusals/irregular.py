# SPDX-License-Identifier: Apache-2.0
"""Refuse what no row of ``config/table.py`` can say: combinations of settings, models and checkpoints."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from omegaconf import DictConfig

from fp16_patch.engines.vllm.fp16_risks import describe_wrong_function
from fp16_patch.engines.vllm.fp16_support import float16_refusing_model_types, model_type_of
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config import command_line, megatron, sampling, vllm_engines
from fp16_patch.frameworks.verl.config.rollout_correction import CORRECTION, read_correction
from fp16_patch.frameworks.verl.config.setting import MISSING, SECTIONS, refusal, value_of
from fp16_patch.frameworks.verl.config.table import fsdp_section
from fp16_patch.frameworks.verl.refusals import fused_kernels, optimizers, resume
from fp16_patch.frameworks.verl.refusals.megatron_installation import installation_problems
from fp16_patch.frameworks.verl.rollout_trace import EAGER
from fp16_patch.frameworks.verl.trainer_fsdp.fp32_modules import for_critics_only
from fp16_patch.precision import Precision

_BOUNDS_UNQUOTED = re.compile(r"(rollout_[ir]s_threshold)\s*[=:]\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?_[\w.]*)")


def uses_critic(config: DictConfig) -> bool:
    """Return whether the run trains a critic."""
    from verl.trainer.ppo.utils import need_critic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # verl asks the same question again, and warns there
        return bool(need_critic(config))


def problems(config: DictConfig, precision: Precision, critic: bool) -> list[Fp16PatchError]:
    """Return the problems of this run. ``critic``: whether it has one."""
    trained = ("actor", "critic") if critic else ("actor",)
    on_megatron = any(megatron.is_configured(config, role) for role in SECTIONS if critic or role != "critic")
    return [
        *(installation_problems() if on_megatron else ()),
        *_engines(config, trained),
        *optimizers.problems(config, precision, trained),
        *fused_kernels.problems(config),
        *_models(config, precision),
        *_fp32_modules(precision, critic, on_megatron),
        *_bounds_read_as_a_number(config),
        *_rollout_trace(config, precision),
        *sampling.problems(config, precision),
        *resume.problems(config, precision, critic),
    ]


def _engines(config: DictConfig, trained: Sequence[str]) -> Iterator[Fp16PatchError]:
    """Refuse a strategy whose engine has no section in the configuration."""
    for role in trained:
        key = f"{SECTIONS[role]}.strategy"
        engines = {"fsdp": fsdp_section(role), "fsdp2": fsdp_section(role), "megatron": f"{SECTIONS[role]}.megatron"}
        strategy = value_of(config, key)
        engine = engines.get(strategy)
        if engine is None or value_of(config, engine):
            continue
        if other := next((name for name in engines.values() if value_of(config, name)), None):
            why, model_engine = f"there is {other}, and no {engine}", "megatron" if strategy == "megatron" else "dp"
            next_step = f"set model_engine={model_engine}, or remove {key}"
            yield refusal(key, strategy, why, "the strategy of model_engine", next_step)
        else:
            why = "without this section verl trains in its default, BF16"
            yield refusal(
                engine, value_of(config, engine, MISSING), why, "verl's own section", f"do not remove {engine}"
            )


def _models(config: DictConfig, precision: Precision) -> Iterator[Fp16PatchError]:
    if precision.rollout_dtype != "fp16":
        return
    refused = float16_refusing_model_types()
    for key, path in vllm_engines.models(config).items():
        types = [name for name in model_type_of(path) if name in refused]
        reasons = [f"vLLM refuses float16 for model type {name!r}: {refused[name]}" for name in types]
        for why in reasons or filter(None, [describe_wrong_function(path)]):
            yield refusal(key, path, why, "a model that vLLM runs in float16", "use +precision@_global_=bf16")


def _fp32_modules(precision: Precision, critic: bool, on_megatron: bool) -> Iterator[Fp16PatchError]:
    """Refuse names that no engine of this run looks for; the engines refuse names that their model does not have."""
    key = "fp16_patch.fp32_modules"
    for pattern in precision.fp32_modules:
        if on_megatron and not fnmatchcase("mlp.router", f"*{pattern.strip('*')}*"):
            why = "Megatron keeps all weights of a model in one buffer of its dtype; only its router can be FP32"
            yield refusal(key, pattern, why, "*router*", "remove it, or train with FSDP")
        if for_critics_only(pattern) and not critic:
            why = "only a critic has such a module, and this run has none"
            yield refusal(key, pattern, why, "names of the actor's modules", f"remove it from {key}")


def _rollout_trace(config: DictConfig, precision: Precision) -> Iterator[Fp16PatchError]:
    """Refuse to trace modules whose hooks would not fire."""
    if precision.trace_rollout is not None and not config.actor_rollout_ref.rollout.enforce_eager:
        why = "module hooks do not fire in vLLM's compiled model and CUDA graphs"
        next_step = f"set {EAGER}=True for this run, or remove fp16_patch.trace_rollout"
        yield refusal(EAGER, False, why, "True, with fp16_patch.trace_rollout", next_step)


def _bounds_read_as_a_number(config: DictConfig) -> Iterator[Fp16PatchError]:
    """Hydra and YAML drop an underscore: 1e-9_2 is 1e-92, which zeroes every weight, and 0.5_5 is 0.55."""
    correction = read_correction(config)
    written = dict(pair for word in command_line.overrides(config) for pair in _BOUNDS_UNQUOTED.findall(word))
    for level in ("rollout_is", "rollout_rs"):
        name = f"{level}_threshold"
        value, text = correction.get(name), written.get(name)
        too_low = level == "rollout_is" and correction.get(level) and isinstance(value, float) and value < 1
        if isinstance(value, int | float) and (text or too_low):
            why = f"Hydra read it from {text}" if text else "it cuts the weight 1 of tokens with equal log-probs"
            allowed = "one number from 1 up, or the bounds LOWER_UPPER as text"
            next_step = f"""for bounds, quote twice, for the shell and for Hydra: '{CORRECTION}.{name}="1e-9_2"'"""
            yield refusal(f"{CORRECTION}.{name}", value, why, allowed, next_step)
