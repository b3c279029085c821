# SPDX-License-Identifier: Apache-2.0
"""The critic's value head without flash attention, which has no CPU kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.patching import Patch


def _with_configured_attention(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_valuehead_model(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification.from_pretrained(
            local_path,
            dtype=torch_dtype,
            config=model_config,
            attn_implementation=getattr(model_config, "_attn_implementation", None) or "sdpa",
            trust_remote_code=trust_remote_code,
        )

    return load_valuehead_model


PATCHES = (
    Patch(
        name="cpu-value-head-attention",
        target="verl.utils.model:load_valuehead_model",
        kind="replace",
        distribution="verl",
        versions=">=0.9,<0.10",
        process="trainer rank",
        reason="verl hard-codes flash_attention_2 for the value head; here it follows the model's own configuration. "
        "Models that only trl can give a value head are not supported.",
        upstream="https://github.com/verl-project/verl/pull/3405 (open)",
        remove_when="load_valuehead_model takes attn_implementation from the model's configuration",
        make=_with_configured_attention,
        fingerprint="d7528f4ff909c7c3",
    ),
)
