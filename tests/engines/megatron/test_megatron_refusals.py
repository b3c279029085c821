# SPDX-License-Identifier: Apache-2.0
"""What is refused, before anything is built and where it is built; and which Adam is chosen."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from raising import check_error, raises_code

from fp16_patch.engines.megatron import optimizer_choice, refusals
from fp16_patch.engines.megatron.checkpoint import refuse_other_trainers
from fp16_patch.engines.megatron.config import optimizer_config
from fp16_patch.loss_scaling import LossScaling, state_file
from fp16_patch.loss_scaling.scale_rule import ScaleRule

Outcomes = Callable[[str], list[dict[str, Any]]]
REAL = [
    pytest.mark.distributed,
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed"),
]


class TestReal:
    pytestmark = REAL

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("static", "loss_scale=1024.0"),
            ("nan-check", "check_for_nan_in_grad=True"),
            ("large-check", "check_for_large_grads=True"),
            ("half-sharded", "use_distributed_optimizer=False"),
            ("fp16-sums", "torch.float16"),
            ("router", "moe_router_dtype=None with num_moe_experts=4"),
            ("bf16", "fp16=False"),
            ("fp32", "FP32Optimizer"),
        ],
    )
    def test_each_is_one_error_and_changes_nothing(self, results: Outcomes, name: str, said: str) -> None:
        (found,) = results("refused")
        assert found[name]["codes"] == ["setting-refused"], "one problem, reported once"
        assert said in found[name]["error"]

    @pytest.mark.parametrize(
        ("name", "code", "said"),
        [
            ("grad_scale_func", "setting-refused", "grad_scale_func"),
            ("no-loss-scaler", "loss-scaling-missing", "optimizer"),
            ("emerging", "setting-refused", "TensorParallelMuonOptimizer"),
        ],
    )
    def test_strangers(self, results: Outcomes, name: str, code: str, said: str) -> None:
        (found,) = results("refused-others")
        assert code in found[name]["codes"]
        assert said in found[name]["error"]

    def test_the_configuration_has_the_fields_that_megatron_has(self) -> None:
        fields = optimizer_config(LossScaling(init_scale=8.0, hysteresis=3, growth_interval=7, min_scale=2.0))
        (place,) = find_spec("megatron").submodule_search_locations
        text = Path(place, "core", "optimizer", "optimizer_config.py").read_text()
        assert all(f"    {name}: " in text for name in fields)
        assert list(fields.values()) == [None, 8, 2, 7, 3]


@pytest.mark.parametrize("name", ["muon", "dist_muon", "lion"])
def test_other_optimizers_are_refused_by_name(name: str) -> None:
    (error,) = refusals.refused_optimizer(name)
    check_error(error, "setting-refused", f"optimizer={name}")


def test_adam_and_sgd_are_not() -> None:
    assert refusals.refused_optimizer("adam") == refusals.refused_optimizer("sgd") == []


def config(**fields: Any) -> SimpleNamespace:
    usual = {"num_moe_experts": None, "moe_router_dtype": None, "fp8": None, "fp4": None}
    usual |= {"experimental_attention_variant": None, "dsa_indexer_loss_coeff": None}
    return SimpleNamespace(**usual | fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_moe_experts": 8}, "moe_router_dtype=None"),
        ({"fp8": "e4m3"}, "fp8=e4m3"),
        ({"fp4": "e2m1"}, "fp4=e2m1"),
        ({"experimental_attention_variant": "dsa", "dsa_indexer_loss_coeff": 0.1}, "dsa_indexer_loss_coeff=0.1"),
    ],
)
def test_models_that_would_not_be_fp16(fields: dict[str, Any], said: str) -> None:
    (error,) = refusals.refused_model(config(**fields))
    check_error(error, "setting-refused", said)


@pytest.mark.parametrize(
    "fields", [{}, {"num_moe_experts": 8, "moe_router_dtype": "fp32"}, {"dsa_indexer_loss_coeff": 1.0}]
)
def test_models_that_are(fields: dict[str, Any]) -> None:
    assert refusals.refused_model(config(**fields)) == []


@pytest.mark.parametrize("found", ["0.16.0", "0.17.0", None])
def test_another_release_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    monkeypatch.setattr(refusals, "installed_version", lambda _: found)
    (error,) = refusals.refusals(None, [])
    code = "release-not-supported" if found else "not-installed"
    check_error(error, code, "megatron-core", found or "", "megatron-core==0.16.1")


@pytest.mark.parametrize(
    ("engine", "aware", "line"),
    [
        (None, False, "TransformerEngine is not installed"),
        ("2.9.0", True, "FusedAdam of TransformerEngine 2.9.0, precision-aware"),
    ],
)
def test_the_best_installed_optimizer_is_chosen(
    monkeypatch: pytest.MonkeyPatch, engine: str | None, aware: bool, line: str
) -> None:
    monkeypatch.setattr(optimizer_choice, "_transformer_engine", lambda: engine)
    choice = optimizer_choice.choose()
    assert choice.precision_aware is aware
    assert line in choice.line


@pytest.mark.skipif(find_spec("transformer_engine") is not None, reason="TransformerEngine is installed")
def test_transformer_engine_is_looked_for() -> None:
    assert optimizer_choice._transformer_engine() is None


def test_a_folder_of_another_trainer_is_refused(tmp_path: Path) -> None:
    refuse_other_trainers(tmp_path)
    state_file.save(ScaleRule(LossScaling()).state_dict(), tmp_path)
    with raises_code("checkpoint-unusable", "loss_scaler.json"):
        refuse_other_trainers(tmp_path)
