# SPDX-License-Identifier: Apache-2.0
"""Which configuration keys of verl the flag sets, and when a user's own value contradicts it.

verl 0.9.1 keeps the dtypes of actor, reference, critic, rollout, reward model and teacher in independent
keys, and the one that counts on FSDP, ``fsdp_config.mixed_precision``, is not in its YAML at all: the
``fsdp_config.dtype`` that is there is never read (``workers/engine/fsdp/transformer_impl.py``,
``_build_fsdp_module``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config import command_line, rollout_correction
from fp16_patch.frameworks.verl.config import megatron as megatron_rules
from fp16_patch.frameworks.verl.config.keys import MISSING, Rule
from fp16_patch.precision import Precision, long_name, short_name

TRAINER_ENGINES = {
    "actor": "actor_rollout_ref.actor.fsdp_config",
    "reference": "actor_rollout_ref.ref.fsdp_config",
    "critic": "critic.fsdp",
}
"""Role -> where its FSDP engine is configured."""


@dataclass(frozen=True)
class Change:
    """One key as it was and as it will be."""

    key: str
    before: Any
    after: Any

    def as_dict(self) -> dict[str, Any]:
        """Return the change as plain data."""
        return asdict(self)


def rules(config: DictConfig, precision: Precision) -> Iterator[Rule]:
    """Every key the flag is answerable for, on this configuration."""
    train, rollout = long_name(precision.train_dtype), long_name(precision.rollout_dtype)
    for path in TRAINER_ENGINES.values():
        if OmegaConf.select(config, path) is None:
            continue
        why = "in FP16, master weights go non-finite at AdamW's first step; in BF16 they lose small updates"
        yield Rule(f"{path}.model_dtype", "fp32", (None,), why)
        yield Rule(f"{path}.dtype", train, ("bfloat16",))
        yield Rule(f"{path}.mixed_precision.param_dtype", precision.train_dtype, (MISSING,))
        yield Rule(f"{path}.mixed_precision.reduce_dtype", "fp32", (MISSING,))
        yield Rule(f"{path}.mixed_precision.buffer_dtype", "fp32", (MISSING,))
        # FSDP2 accumulates unsharded gradients in the reduce dtype, FP32.
        if precision.train_dtype == "fp16" and _select(config, f"{path.rpartition('.')[0]}.strategy") == "fsdp":
            why = "FSDP1's no_sync accumulates gradients in the compute dtype, FP16"
            yield Rule(f"{path}.use_no_sync_for_gradient_accumulation", False, (), why)
    yield from megatron_rules.rules(config, precision)
    yield Rule("actor_rollout_ref.rollout.dtype", rollout, ("bfloat16",))
    yield from _generators(config, rollout)
    yield from rollout_correction.rules(config)


def _generators(config: DictConfig, dtype: str) -> Iterator[Rule]:
    """Yield the other vLLM engines of a run: the reward model and the teachers of a distillation."""
    if OmegaConf.select(config, "reward.reward_model.enable"):
        yield Rule("reward.reward_model.rollout.dtype", dtype, ("bfloat16",))
    if OmegaConf.select(config, "distillation.enabled"):
        for name in OmegaConf.select(config, "distillation.teacher_models") or {}:
            key = f"distillation.teacher_models.{name}.inference.dtype"
            # Interpolates to the rollout's dtype unless set; bfloat16 is what that resolves to in stock.
            yield Rule(key, dtype, ("bfloat16",))


def plan(
    config: DictConfig, precision: Precision, explicit: frozenset[str]
) -> tuple[list[Change], list[Fp16PatchError]]:
    """Return what to change, and what contradicts the flag. Changes nothing.

    A value is the user's own when its key is among the command line's overrides (``explicit``), or when
    it is neither what the flag needs nor what verl ships.
    """
    changes, problems = [], []
    for rule in rules(config, precision):
        before = _select(config, rule.key)
        if _same(before, rule.value):
            continue
        if before is MISSING and not _is_node(config, rule.key.rpartition(".")[0]):
            before = _select(config, rule.key.rpartition(".")[0])  # such as mixed_precision=bf16, no mapping at all
        if rule.key in explicit or before not in rule.stock:
            problems.append(
                Fp16PatchError(
                    f"{rule.key}={before} contradicts {rule.asked_by or f'the flag ({precision.name})'}",
                    code="setting-contradicts",
                    allowed=f"{rule.key}={rule.value}",
                    next_step=f"remove {rule.key} from your command or file ({rule.why})",
                )
            )
        else:
            changes.append(Change(rule.key, None if before is MISSING else before, rule.value))
    return changes, problems


def rewrite(config: DictConfig, changes: list[Change]) -> None:
    """Apply ``changes`` in place."""
    with open_dict(config):
        for change in changes:
            OmegaConf.update(config, change.key, change.after, force_add=True)


def explicit_overrides(config: DictConfig) -> frozenset[str]:
    """Return the keys set on the command line; ``a={b:1}`` sets ``a.b``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(command_line.overrides(config))
    return frozenset(key for override in parsed for key in _leaves(override.key_or_group, override.value()))


def _leaves(key: str, value: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        yield key
        return
    for name, child in value.items():
        yield from _leaves(f"{key}.{name}", child)


def _is_node(config: DictConfig, key: str) -> bool:
    """Whether ``key`` is a section, or not there at all: a place where keys can be added."""
    value = _select(config, key)
    return value is MISSING or isinstance(value, DictConfig)


def _select(config: DictConfig, key: str) -> Any:
    return OmegaConf.select(config, key, default=MISSING)


def _same(value: Any, wanted: Any) -> bool:
    if value == wanted or not isinstance(wanted, str):
        return bool(value == wanted)
    try:
        return short_name("", value) == short_name("", wanted)
    except Fp16PatchError:  # no dtype at all
        return False
