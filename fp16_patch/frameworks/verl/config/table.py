# SPDX-License-Identifier: Apache-2.0
"""The settings of a run: of the trainer and of FSDP. Megatron's are in ``megatron.py``, vLLM's in ``vllm_engines.py``.

``changes.py`` reads the rows and finds what the flag changes and what it refuses. Line numbers are those of verl 0.9.1.
What a row cannot say is checked in ``fp16_patch/frameworks/verl/refusals``.

On FSDP the dtype that counts is ``fsdp_config.mixed_precision``, which verl's YAML does not have. The
``fsdp_config.dtype`` that it has is never read (``workers/engine/fsdp/transformer_impl.py``, ``_build_fsdp_module``).
"""

from __future__ import annotations

from omegaconf import DictConfig

from fp16_patch.frameworks.verl.config import megatron, rollout_correction, vllm_engines
from fp16_patch.frameworks.verl.config.command_line import explicit_keys
from fp16_patch.frameworks.verl.config.setting import MISSING, SECTIONS, Setting, place_under, value_of
from fp16_patch.precision import Precision, long_name

STRATEGIES = {
    "fsdp_turbo": "it has its own mixed precision (workers/engine/fsdp/fsdp_turbo_impl.py:59)",
    "veomni": "its autocast is BF16 and it has no scaler (workers/engine/veomni/transformer_impl.py:337)",
    "torchtitan": "its autocast is BF16 and it has no scaler (workers/engine/torchtitan/transformer_impl.py:429)",
    "automodel": "its autocast is BF16 and it has no scaler (workers/engine/automodel/transformer_impl.py:269)",
}
"""Trainer strategies that are not supported, and why."""

MASTER_WEIGHTS = "in FP16, master weights go non-finite at AdamW's first step; in BF16 they lose small updates"
NO_SYNC = "FSDP1's no_sync accumulates gradients in the compute dtype, FP16"


def settings(config: DictConfig, precision: Precision, critic: bool) -> list[Setting]:
    """Return the settings that apply to this run. ``critic``: whether the run has one."""
    rows = _trainer(config, critic)
    for role, section in SECTIONS.items():
        if value_of(config, fsdp_section(role)) is not None:
            rows += place_under(fsdp_section(role), _fsdp(config, role, precision))
        if megatron.is_configured(config, role):
            of_role = place_under(section, megatron.settings(config, role, precision))
            rows += [row for row in of_role if critic or role != "critic" or row.sets is not MISSING]
    rows += [*vllm_engines.settings(config, precision), *rollout_correction.settings(config, precision)]
    return [row for row in rows if row.when]


def fsdp_section(role: str) -> str:
    """Return where the FSDP engine of ``role`` is configured."""
    return f"{SECTIONS[role]}.{'fsdp' if role == 'critic' else 'fsdp_config'}"


def _trainer(config: DictConfig, critic: bool) -> list[Setting]:
    rows = [
        Setting("trainer.v1.trainer_mode", allowed=("sync", "colocate_async"), why="standalone replicas are untested"),
    ]
    for role in ("actor", "critic") if critic else ("actor",):
        key = f"{SECTIONS[role]}.strategy"
        why = STRATEGIES.get(str(value_of(config, key)), "fp16_patch does not know this strategy")
        chosen_by_engine = key not in explicit_keys(config)
        next_step = "start with model_engine=dp (FSDP) or model_engine=megatron" if chosen_by_engine else None
        rows.append(
            Setting(key, allowed=("fsdp2", "fsdp", "megatron"), why=f"not supported: {why}", next_step=next_step)
        )
    return rows


def _fsdp(config: DictConfig, role: str, precision: Precision) -> list[Setting]:
    # FSDP2 accumulates unsharded gradients in the reduce dtype, FP32.
    no_sync = precision.train_dtype == "fp16" and value_of(config, f"{SECTIONS[role]}.strategy") == "fsdp"
    return [
        Setting("model_dtype", sets="fp32", stock=(None,), why=MASTER_WEIGHTS),
        Setting("dtype", sets=long_name(precision.train_dtype), stock=("bfloat16",)),
        Setting("mixed_precision.param_dtype", sets=precision.train_dtype, stock=(MISSING,)),
        Setting("mixed_precision.reduce_dtype", sets="fp32", stock=(MISSING,)),
        Setting("mixed_precision.buffer_dtype", sets="fp32", stock=(MISSING,)),
        Setting("use_no_sync_for_gradient_accumulation", sets=False, why=NO_SYNC, when=no_sync),
        Setting("qat.enable", allowed=(False, None), why=megatron.QAT, when=role != "reference"),
    ]
