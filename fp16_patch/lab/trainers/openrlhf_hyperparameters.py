# SPDX-License-Identifier: Apache-2.0
"""Translate a recipe's hyperparameters into OpenRLHF's options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OPTIONS = {
    "prompts": "rollout.batch_size",
    "rollouts": "rollout.n_samples_per_prompt",
    "response_tokens": "rollout.max_new_tokens",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "learning_rate": "actor.adam.lr",
    "weight_decay": "actor.adam.weight_decay",
    "adam_betas": "actor.adam.betas",
    "adam_eps": "actor.adam.eps",
    "gradient_clip": "actor.max_norm",
    "lora_rank": "ds.lora.rank",
    "lora_alpha": "ds.lora.alpha",
    "eval_every": "eval.steps",
    "eval_rollouts": "eval.n_samples_per_prompt",
    "eval_temperature": "eval.temperature",
}
"""The hyperparameters that are one option with the same value; an algorithm's own are in its definition."""

LACKS = {"eval_top_p": "OpenRLHF evaluates with top_p"}
"""The hyperparameters that it has no option for, with what it does instead."""


def arguments(values: Mapping[str, Any], problems: int | None) -> dict[str, object]:
    """Return each option with its value; OpenRLHF counts episodes over ``problems``, not steps."""
    found = {option: values[name] for name, option in OPTIONS.items() if name in values}
    wanted = values["prompts"] * values["steps"]
    a_pass = min(problems or wanted, wanted)
    return found | {
        "data.max_len": values["prompt_tokens"] + values["response_tokens"],
        "data.max_samples": a_pass,
        "train.num_episodes": -(-wanted // a_pass),
        "train.max_epochs": 1,
        "train.batch_size": values["prompts"] * values["rollouts"] // values["updates"],
        "actor.lr_scheduler": "constant_with_warmup",
        "actor.lr_warmup_ratio": values.get("warmup_steps", 0) / (values["steps"] * values["updates"]),
    }
