# SPDX-License-Identifier: Apache-2.0
"""Translate a recipe's hyperparameters into verl's Hydra keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
MODEL = "actor_rollout_ref.model"

KEYS = {
    "prompts": "data.train_batch_size",
    "rollouts": f"{ROLLOUT}.n",
    "steps": "trainer.total_training_steps",
    "prompt_tokens": "data.max_prompt_length",
    "response_tokens": "data.max_response_length",
    "temperature": f"{ROLLOUT}.temperature",
    "top_p": f"{ROLLOUT}.top_p",
    "learning_rate": f"{ACTOR}.optim.lr",
    "warmup_steps": f"{ACTOR}.optim.lr_warmup_steps",
    "weight_decay": f"{ACTOR}.optim.weight_decay",
    "gradient_clip": f"{ACTOR}.optim.clip_grad",
    "lora_rank": f"{MODEL}.lora_rank",
    "lora_alpha": f"{MODEL}.lora_alpha",
    "eval_every": "trainer.test_freq",
    "eval_rollouts": f"{ROLLOUT}.val_kwargs.n",
    "eval_temperature": f"{ROLLOUT}.val_kwargs.temperature",
    "eval_top_p": f"{ROLLOUT}.val_kwargs.top_p",
}
"""The hyperparameters that are one key with the same value; an algorithm's own are in its definition."""

_ENDLESS = 1_000_000  # epochs: the number of steps ends the run


def overrides(values: Mapping[str, Any], strategy: str) -> dict[str, object]:
    """Return each Hydra key with its value, for a trainer of this strategy."""
    found: dict[str, object] = {key: values[name] for name, key in KEYS.items() if name in values}
    found[f"{ACTOR}.strategy"] = strategy
    found[f"{ROLLOUT}.name"] = "vllm"
    found["trainer.total_epochs"] = _ENDLESS
    found[f"{ACTOR}.ppo_mini_batch_size"] = values["prompts"] // values["updates"]
    if strategy == "megatron":
        found["model_engine"] = "megatron"
    found |= _adam(values, strategy)
    if "eval_temperature" in values:
        found[f"{ROLLOUT}.val_kwargs.do_sample"] = True
    if values.get("lora_rank"):
        found[f"{MODEL}.target_modules"] = "all-linear"
        found[f"{MODEL}.lora.merge"] = True
        found[f"{ROLLOUT}.load_format"] = "safetensors"
    return found


def _adam(values: Mapping[str, Any], strategy: str) -> dict[str, object]:
    """Return the keys for Adam. verl has no key for eps, and forwards neither betas nor eps to Megatron."""
    own = f"+{ACTOR}.optim.override_optimizer_config"
    found: dict[str, object] = {}
    if "adam_betas" in values:
        first, second = values["adam_betas"]
        if strategy == "megatron":
            found |= {f"{own}.adam_beta1": first, f"{own}.adam_beta2": second}
        else:
            found[f"{ACTOR}.optim.betas"] = [first, second]
    if "adam_eps" in values:
        found[f"{own}.{'adam_eps' if strategy == 'megatron' else 'eps'}"] = values["adam_eps"]
    return found
