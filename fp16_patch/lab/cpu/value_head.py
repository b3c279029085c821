# SPDX-License-Identifier: Apache-2.0
"""Load the critic's value head without flash attention, which has no CPU kernel."""

from __future__ import annotations

from typing import Any

from fp16_patch.lab.cpu.releases import VERL_RANK
from fp16_patch.patching import replace


@replace(
    "verl.utils.model:load_valuehead_model",
    **VERL_RANK,
    reason="verl hard-codes flash_attention_2 for the value head. The patch takes the attention from the model's "
    "configuration. Models that only trl can give a value head are not supported.",
    upstream="https://github.com/verl-project/verl/pull/3405 (open)",
    remove_when="load_valuehead_model takes attn_implementation from the model's configuration",
    fingerprint="d7528f4ff909c7c3",
)
def _cpu_value_head_attention(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForTokenClassification

    return AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        attn_implementation=getattr(model_config, "_attn_implementation", None) or "sdpa",
        trust_remote_code=trust_remote_code,
    )
