# SPDX-License-Identifier: Apache-2.0
"""The rows that a vLLM worker records, and the patch of its model's ``compute_logits``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from raising import raises_code

from fp16_patch.engines.vllm.precision import observe_compute_logits, record_logits_dtype, record_weight_dtypes
from fp16_patch.errors import combine_errors
from fp16_patch.patching import check_source
from fp16_patch.precision import Precision
from fp16_patch.report.observed_dtypes import recorded_dtypes
from fp16_patch.report.precision_report import precision_violations


class Model:
    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return hidden_states if len(hidden_states) else None


def test_the_patch_fits_the_installed_vllm() -> None:
    assert check_source(observe_compute_logits).outcome == "applied"


def test_the_dtype_of_logits_is_recorded_on_the_worker_of_that_model() -> None:
    workers = [SimpleNamespace(model_runner=SimpleNamespace(model=Model())) for _ in range(2)]
    for worker in workers:
        record_logits_dtype(worker)
        record_logits_dtype(worker)
    given = torch.ones(3, dtype=torch.float16)
    models = [worker.model_runner.model for worker in workers]
    assert models[0].compute_logits(hidden_states=given) is given
    assert models[1].compute_logits(given[:0]) is None
    assert [recorded_dtypes(worker) for worker in workers] == [{"logits": "float16"}, {}]
    assert Model().compute_logits.__func__ is Model.compute_logits


def test_dtypes_of_arriving_weights_add_up() -> None:
    worker = SimpleNamespace()
    record_weight_dtypes(worker, [torch.float16])
    record_weight_dtypes(worker, iter([torch.float32, torch.float16]))
    assert recorded_dtypes(worker) == {"weights_on_the_wire": "float16, float32"}


@pytest.mark.timeout(180)
def test_the_adapters_of_vllms_own_lora_layers_are_a_row(real_layers: dict[str, Any]) -> None:
    rows = real_layers["lora"]
    assert rows["adapted"] == rows["plain"] | {"lora": "bfloat16"}
    assert rows["plain"]["weights"] == "float16"
    assert precision_violations({"rollout": rows["plain"]}, Precision()) == []
    with raises_code("precision-violated", "rollout lora is bfloat16"):
        raise combine_errors(precision_violations({"rollout": rows["adapted"]}, Precision()))
