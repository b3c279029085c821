# SPDX-License-Identifier: Apache-2.0
"""Which keys of verl's Megatron engines the flag sets.

verl 0.9.1 hands ``optim.override_optimizer_config`` to Megatron's OptimizerConfig last
(``utils/megatron/optimizer.py``, ``init_megatron_optim_config``), so the settings of the loss scale go there; the
factors and the ceiling, for which Megatron has no settings, are given to its scaler once it is built.
"""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from fp16_patch.engines.megatron import config as configuration
from fp16_patch.engines.megatron import optimizer_choice
from fp16_patch.engines.vllm.fp16_support import describe
from fp16_patch.frameworks.verl.config.keys import MISSING, Rule
from fp16_patch.precision import Precision, long_name

SECTIONS = {"actor": "actor_rollout_ref.actor", "reference": "actor_rollout_ref.ref", "critic": "critic"}
"""Role -> the section that holds its ``strategy``, its ``megatron`` engine and, if it trains, its ``optim``."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What Hugging Face's configurations call the number of experts."""


def sections(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Role and section of every engine of this configuration that is Megatron's."""
    for role, section in SECTIONS.items():
        if isinstance(OmegaConf.select(config, f"{section}.megatron"), DictConfig):
            yield role, section


def rules(config: DictConfig, precision: Precision) -> Iterator[Rule]:
    """Every key of the Megatron engines that the flag is answerable for."""
    half = precision.train_dtype == "fp16"
    for role, section in sections(config):
        yield Rule(f"{section}.megatron.dtype", long_name(precision.train_dtype), ("bfloat16",))
        if half and _has_experts(config) and not _follows_the_actor(config, section):
            why = "a router in FP16 sends tokens to other experts than the rollout's"
            yield Rule(f"{section}.megatron.override_transformer_config.moe_router_dtype", "fp32", (MISSING, None), why)
        if half and role != "reference":
            yield from _optimizer(config, f"{section}.optim.override_optimizer_config", precision)


def _optimizer(config: DictConfig, path: str, precision: Precision) -> Iterator[Rule]:
    for theirs, ours in configuration.SETTINGS.items():
        why = f"the setting is fp16_patch.loss_scaling.{ours}, on every backend"
        yield Rule(f"{path}.{theirs}", getattr(precision.loss_scaling, ours), (MISSING,), why)
    # Both are right where TransformerEngine is installed; without it only the plain optimizer can be.
    key = f"{path}.use_precision_aware_optimizer"
    if OmegaConf.select(config, key) is None:
        yield Rule(key, optimizer_choice.choose(None).precision_aware, (MISSING, None))


def _has_experts(config: DictConfig) -> bool:
    folder = OmegaConf.select(config, "actor_rollout_ref.model.path", throw_on_missing=False)
    described = describe(str(folder)) if folder else {}
    return any(part.get(name) for part in (described, described.get("text_config") or {}) for name in EXPERTS)


def _follows_the_actor(config: DictConfig, section: str) -> bool:
    """verl's reference interpolates to the actor's ``override_transformer_config``."""
    engine = OmegaConf.select(config, f"{section}.megatron")
    return bool(OmegaConf.is_interpolation(engine, "override_transformer_config"))
