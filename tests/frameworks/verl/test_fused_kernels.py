# SPDX-License-Identifier: Apache-2.0
"""verl's fused kernels compute in the flag's dtype, or are refused; see ``fused_cases.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from raising import raises_code

from fp16_patch.frameworks.verl.entry import apply_flag
from fp16_patch.precision import Precision
from fp16_patch.report.precision_report import precision_violations

pytestmark = pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed")

Outcomes = Callable[..., list[dict[str, Any]]]
USED = "actor_rollout_ref.model.use_fused_kernels=True"


@pytest.mark.distributed
@pytest.mark.timeout(450)
@pytest.mark.parametrize("name", ["tied-fsdp2", "untied-fsdp"])
def test_they_compute_in_the_flags_dtype(results: Outcomes, name: str) -> None:
    (fused,), (plain,) = results(f"fused-{name}"), results(f"unfused-{name}")
    assert fused["seen"] == [["float16", "float16", "float32"]]
    assert fused["rows"] == {row: value for row, value in plain["rows"].items() if row != "logits"}
    assert precision_violations({"actor": fused["rows"]}, Precision()) == []
    assert fused["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)


@pytest.mark.distributed
@pytest.mark.timeout(450)
def test_fsdp2_shards_a_head_that_is_not_tied(outcomes: Outcomes) -> None:
    """When this fails, the refusal below is not needed any more."""
    (outcome,) = outcomes("fused-untied-fsdp2")
    assert "mixed torch.Tensor and DTensor" in outcome["error"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_fused_kernels_that_cannot_run_are_refused(compose, model, precision) -> None:
    flag, fsdp = f"+precision@_global_={precision}", "actor_rollout_ref.actor.strategy=fsdp"
    with raises_code("setting-refused", USED, "strategy=fsdp"):
        apply_flag(compose(flag, USED))  # Qwen2's default is a head of its own
    apply_flag(compose(flag, USED, fsdp))
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2", "tie_word_embeddings": True}))
    apply_flag(compose(flag, USED))
