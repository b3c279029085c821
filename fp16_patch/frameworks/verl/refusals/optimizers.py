# SPDX-License-Identifier: Apache-2.0
"""Refuse optimizers whose states are not FP32, and updates that verl cannot make. Line numbers are of verl 0.9.1.

On FSDP the optimizer is any class that ``optim.optimizer_impl`` holds, with any arguments (``build_optimizer`` in
``workers/config/optimizer.py``). After the first update the precision report stops a run whose optimizer keeps anything
but FP32. The classes and arguments that say so in their names are refused before launch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config.setting import MISSING, SECTIONS, Setting, refusal, value_of
from fp16_patch.precision import Precision

_HALF_OR_LESS = re.compile(r"[48]_?bit|fp8|bf16|bfloat16", re.IGNORECASE)
"""Part of the name of a class with such states: AdamW8bit of bitsandbytes and torchao, AdamW4bit and AdamWFp8."""

STATES = "its states are not FP32: half precision and less lose small updates"
FP32_STATES = "an optimizer with FP32 states"
FP32_WEIGHTS = "its rounding is for BF16 weights, and the flag keeps FP32 weights"
NO_NORM = "verl clips every update: it would end at the first one, after the first rollout ({place})"
PLACES = {
    "megatron": "megatron/core/optimizer/optimizer.py, clip_grad > 0",
    "fsdp": "workers/engine/fsdp/transformer_impl.py:795",
}
MEGATRON_FP32 = "verl's Megatron engine has BF16 and FP16 only (workers/config/engine.py, McoreEngineConfig)"


def problems(config: DictConfig, precision: Precision, roles: Sequence[str]) -> Iterator[Fp16PatchError]:
    """Yield the problems of the optimizers of ``roles``, which train."""
    for role in roles:
        section = f"{SECTIONS[role]}.optim"
        megatron = value_of(config, f"{SECTIONS[role]}.strategy") == "megatron"
        yield from _clipping(config, section, PLACES["megatron" if megatron else "fsdp"])
        if not megatron:
            yield from _states(config, section)
        elif precision.train_dtype == "fp32":
            next_step = "use +precision@_global_=fp16, or train with FSDP (model_engine=dp)"
            yield refusal("fp16_patch.train_dtype", "fp32", MEGATRON_FP32, "fp16 or bf16", next_step)


def _clipping(config: DictConfig, section: str, place: str) -> Iterator[Fp16PatchError]:
    # verl's older name of the setting, which wins (workers/config/optimizer.py:59).
    keys = (f"{section}.clip_grad", f"{section}.grad_clip")
    if value_of(config, keys[0], MISSING) is None and value_of(config, keys[1]) is None:
        next_step = f"set {keys[0]}=1.0, verl's default, or a number that is never reached, such as 1e9"
        yield refusal(keys[0], "null", NO_NORM.format(place=place), "a number above 0", next_step)


def _states(config: DictConfig, section: str) -> Iterator[Fp16PatchError]:
    name = str(value_of(config, f"{section}.optimizer", ""))
    if _HALF_OR_LESS.search(name):
        next_step = f"set {section}.optimizer=AdamW and {section}.optimizer_impl=torch.optim"
        yield refusal(f"{section}.optimizer", name, STATES, FP32_STATES, next_step)
    arguments = value_of(config, f"{section}.override_optimizer_config")
    for argument, value in (arguments or {}).items():
        key = f"{section}.override_optimizer_config.{argument}"
        rows = [
            Setting(key, allowed=("fp32", None), why=STATES, when=str(argument).endswith("dtype")),
            Setting(key, allowed=(32, None), why=STATES, when=argument == "optim_bits"),
            Setting(key, allowed=(False, None), why=FP32_WEIGHTS, when=argument == "bf16_stochastic_round"),
        ]
        yield from (row.refusal(value, "") for row in rows if row.when and not row.accepts(value))
