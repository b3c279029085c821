# SPDX-License-Identifier: Apache-2.0
"""verl's fused kernels are refused where they cannot run."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from raising import raises_code

from fp16_patch.frameworks.verl.entry import apply_flag

pytestmark = pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed")

USED = "actor_rollout_ref.model.use_fused_kernels=True"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_fused_kernels_that_cannot_run_are_refused(compose, model, precision) -> None:
    flag, fsdp = f"+precision@_global_={precision}", "actor_rollout_ref.actor.strategy=fsdp"
    with raises_code("setting-refused", USED, "strategy=fsdp"):
        apply_flag(compose(flag, USED))  # Qwen2's default is a head of its own
    apply_flag(compose(flag, USED, fsdp))
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2", "tie_word_embeddings": True}))
    apply_flag(compose(flag, USED))
