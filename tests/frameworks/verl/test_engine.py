# SPDX-License-Identifier: Apache-2.0
"""Test verl's own FSDP engine on one and two ranks over gloo, with the flag and without.

The engines live in two processes (conftest.py), with the flag and without; see ``engine_cases.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from fp16_patch.precision import Precision
from fp16_patch.report.precision_report import Rows, merge_roles, precision_violations

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(450),
    pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed"),
]

STRATEGIES = pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
FP16 = Precision()

Outcomes = Callable[..., list[dict[str, Any]]]


def merged(results: list[dict[str, Any]], key: str, role: str = "actor") -> Rows:
    """Return the precision report's rows of all ranks; it lists every value if ranks disagree."""
    return merge_roles([{"roles": {role: result[key]}} for result in results])


@STRATEGIES
def test_rows_before_the_first_update(results: Outcomes, strategy: str) -> None:
    roles = merged(results(f"fp16-{strategy}"), "before")
    assert roles["actor"] == {
        "master_weights": "float32",
        "compute": "float16",
        "gradient_reduction": "float32",
        "gradient_accumulation": "float32",
        "optimizer_state": "created at the first update",
        "loss_scale": "65536",
        "logits": "float16",
        "log_probs": "float32",
    }
    assert precision_violations(roles, FP16) == []


@STRATEGIES
def test_rows_after_the_first_update(results: Outcomes, strategy: str) -> None:
    ranks = results(f"fp16-{strategy}")
    roles = merged(ranks, "after")
    expected = {"optimizer_state": "float32", "gradients": "float32"}
    assert roles["actor"] == merged(ranks, "before")["actor"] | expected
    assert precision_violations(roles, FP16) == []


@STRATEGIES
def test_metrics_of_an_update(results: Outcomes, strategy: str) -> None:
    exact = results("fp32")[0]["metrics"]["grad_norm"]
    for rank in results(f"fp16-{strategy}"):
        assert rank["metrics"]["loss_scale"] == [65536.0]
        assert rank["metrics"]["update_skipped"] == [0.0]
        assert rank["metrics"]["grad_norm"] == pytest.approx(exact, rel=0.01), "clipped before it was unscaled?"


@pytest.mark.parametrize("case", ["fp16-fsdp", "fp16-fsdp2", "critic-fsdp", "critic-fsdp2"])
def test_the_loss_that_is_scaled_is_float32(results: Outcomes, case: str) -> None:
    """ShardedGradScaler casts the scaled loss back to the loss's dtype: FP16 ends at 65504."""
    assert [rank["loss_dtypes"] for rank in results(case)] == [["float32"]] * len(results(case))


@pytest.mark.parametrize("case", ["fp16-fsdp", "fp16-fsdp2", "no-sync-fsdp", "no-sync-fsdp2"])
def test_accumulation_row_is_what_fsdp_holds_between_micro_batches(results: Outcomes, case: str) -> None:
    for rank in results(case):
        first, second = rank["held_gradients"]
        assert first == []
        assert second == [rank["before"]["gradient_accumulation"]]


def test_no_sync_breaks_the_promise_on_fsdp1(results: Outcomes) -> None:
    problems = precision_violations(merged(results("no-sync-fsdp"), "before"), FP16)
    assert [problem.what for problem in problems] == ["precision report: actor gradient accumulation is float16"]


def test_no_sync_keeps_the_promise_on_fsdp2(results: Outcomes) -> None:
    assert precision_violations(merged(results("no-sync-fsdp2"), "after"), FP16) == []


@pytest.mark.parametrize(
    ("case", "precision", "dtype"),
    [
        ("bf16", Precision("bf16", "bf16"), "bfloat16"),
        ("fp32", Precision("fp32", "fp32"), "float32"),
        ("one-sided", Precision("bf16", "fp16"), "bfloat16"),
    ],
)
def test_other_precisions_compute_in_theirs_and_scale_nothing(
    results: Outcomes, case: str, precision: Precision, dtype: str
) -> None:
    ranks = results(case)
    roles = merged(ranks, "after")
    assert precision_violations(roles, precision) == []
    assert roles["actor"]["compute"] == roles["actor"]["logits"] == dtype
    assert roles["actor"]["loss_scale"] == "none"
    assert not {"loss_scale", "update_skipped"} & set(ranks[0]["metrics"])


def test_an_engine_configured_against_the_flag_is_not_built(outcomes: Outcomes) -> None:
    (outcome,) = outcomes("against-the-flag")
    assert outcome["code"] == "wrong-dtype-built"
    assert "torch.bfloat16" in outcome["error"]


def test_loss_scaling_settings_arrive(results: Outcomes) -> None:
    assert results("settings") == [
        {
            "init_scale": 2.0**12,
            "growth_factor": 4.0,
            "backoff_factor": 0.25,
            "growth_interval": 7,
            "enabled": True,
        }
    ]


@STRATEGIES
def test_an_overflow_skips_the_update_and_halves_the_scale(results: Outcomes, strategy: str) -> None:
    for rank in results(f"overflow-{strategy}"):
        first = rank["steps"][0]
        assert first["loss_scale"] == [2.0**24]
        assert first["update_skipped"] == [1.0]
        assert first["scale_after"] == 2.0**23
        assert not first["changed"], "parameters differ after an update that was skipped"
        assert first["optimizer_state"] == "created at the first update"


@STRATEGIES
def test_training_recovers_from_overflows_on_all_ranks_alike(results: Outcomes, strategy: str) -> None:
    ranks = results(f"overflow-{strategy}")
    assert ranks[0] == ranks[1], "ranks disagree on the scale or on what was skipped"
    *skipped, last = ranks[0]["steps"]
    assert [step["loss_scale"] for step in ranks[0]["steps"]] == [[2.0 ** (24 - i)] for i in range(len(skipped) + 1)]
    assert not any(step["changed"] for step in skipped)
    assert last["update_skipped"] == [0.0]
    assert last["changed"]
    assert ranks[0]["finite"]


@STRATEGIES
def test_one_infinity_on_one_rank_skips_the_update_on_all(results: Outcomes, strategy: str) -> None:
    for rank in results(f"one-bad-gradient-{strategy}"):
        assert rank["metrics"]["update_skipped"] == [1.0]
        assert rank["rows"]["loss_scale"] == "32768"
        assert not rank["changed"]


def test_gradients_that_verl_dropped_break_no_promise(results: Outcomes) -> None:
    """Without a scaler verl drops non-finite gradients. Then the row is missing and is not "none"."""
    ranks = results("one-bad-gradient-bf16")
    assert math.isinf(ranks[0]["metrics"]["grad_norm"])
    assert not ranks[0]["changed"]
    assert precision_violations(merged(ranks, "rows"), Precision("bf16", "bf16")) == []


@pytest.mark.parametrize(
    "case", ["merged-lora-fsdp", "merged-lora-fsdp2", "merged-lora-alone-fsdp", "merged-lora-alone-fsdp2"]
)
def test_merged_lora_is_sent_in_float16_rounded_once(results: Outcomes, case: str) -> None:
    for rank in results(case):
        assert rank["missing"] == []
        assert rank["changed_by_merging"] == 14, "seven linear layers in each of two blocks have adapters"
        assert rank["dtypes"] == ["float16"]
        assert rank["not_rounded_once"] == []


@STRATEGIES
def test_merged_lora_for_a_float32_rollout_is_sent_as_it_is(results: Outcomes, strategy: str) -> None:
    """On one rank a cast that changes nothing copies nothing: the restored base would be sent."""
    (rank,) = results(f"merged-lora-uncast-{strategy}")
    assert rank["dtypes"] == ["float32"]
    assert rank["not_rounded_once"] == []


@STRATEGIES
def test_merging_lora_leaves_the_parameters_as_they_were(results: Outcomes, strategy: str) -> None:
    assert all(rank["restored"] for rank in results(f"merged-lora-{strategy}"))


def test_stock_sends_merged_lora_in_bfloat16_with_eight_times_the_error(results: Outcomes) -> None:
    stock, ours = results("merged-lora-fsdp2", "stock")[0], results("merged-lora-fsdp2")[0]
    assert stock["dtypes"] == ["bfloat16"], "stock verl no longer casts: delete the patch merged-lora-dtype"
    assert stock["rounding_error"] / ours["rounding_error"] == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_a_reference_engine_has_no_rows_about_training(results: Outcomes, strategy: str) -> None:
    roles = merged(results(f"reference-{strategy}"), "rows", "reference")
    assert roles["reference"] == {
        "master_weights": "float32",
        "compute": "float16",
        "logits": "float16",
        "log_probs": "float32",
    }
    assert precision_violations(roles, FP16) == []


@STRATEGIES
def test_a_critic_shows_the_dtype_of_its_values(results: Outcomes, strategy: str) -> None:
    (rank,) = results(f"critic-{strategy}")
    roles = merged([rank], "rows", "critic")
    assert roles["critic"]["values"] == "float16"
    assert "log_probs" not in roles["critic"]
    assert rank["update_skipped"] == [0.0]
    assert precision_violations(roles, FP16) == []


def test_stock_lets_float16_master_weights_break_in_the_first_update(results: Outcomes) -> None:
    """Why the flag refuses ``model_dtype=fp16``: AdamW's eps of 1e-8 is zero in FP16, and the scaler sees nothing."""
    (rank,) = results("half-master-weights", "stock")
    assert math.isfinite(rank["grad_norm"])
    assert rank["broken"] == rank["all"]
