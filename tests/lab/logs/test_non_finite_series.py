# SPDX-License-Identifier: Apache-2.0
"""Tell a value that is NaN or infinite from one that was not logged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fp16_patch.lab.logs.readers import StepMetrics, read_json_lines, read_log
from fp16_patch.lab.logs.runs import ArmRun
from fp16_patch.lab.logs.series import NonFiniteSteps, Series, build_series

NAN = math.nan


def series_of(**metrics: list[object]) -> Series:
    """One step per value; ``...`` for a key that is not there. ``__`` stands for ``/``."""
    rows = StepMetrics()
    for step in range(1, 6):
        data = {name.replace("__", "/"): values[step - 1] for name, values in metrics.items()}
        rows.add(step, {"critic/score/mean": 0.5} | {key: value for key, value in data.items() if value is not ...})
    return build_series(rows)


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf, None, "NaN"], ids=str)
def test_knows_the_steps_that_are_not_finite(bad: object) -> None:
    series = series_of(mismatch__k3_kl=[1e-6, bad, ..., bad, 1e-6])
    assert series.values["k3_kl"] == [1e-6, None, None, None, 1e-6]
    assert series.non_finite == {"k3_kl": NonFiniteSteps([2, 4], logged=4)}
    assert str(series.non_finite["k3_kl"]) == "not finite in 2 of 4 steps"


def test_a_series_that_is_never_finite_is_logged() -> None:
    series = series_of(mismatch__k3_kl=[NAN] * 5)
    assert series.known("k3_kl") == []
    assert (series.is_logged("k3_kl"), series.is_logged("prob_diff_mean")) == (True, False)
    assert series_of().non_finite == {}


def test_null_is_not_finite_in_verls_file_and_absent_in_wandbs(tmp_path: Path) -> None:
    """verl's file logger writes NaN as null; wandb's history has null for what was not logged at a call."""
    data = {"critic/score/mean": 0.5, "mismatch/k3_kl": None}
    (tmp_path / "verl.jsonl").write_text(json.dumps({"step": 1, "data": data}) + "\n")
    (tmp_path / "wandb.jsonl").write_text(json.dumps({"_step": 1} | data) + "\n")
    assert build_series(read_json_lines(tmp_path / "verl.jsonl")).non_finite_steps("k3_kl") == [1]
    assert build_series(read_log(tmp_path / "wandb.jsonl")).non_finite == {}


def test_the_first_key_that_is_logged_decides() -> None:
    ours = series_of(mismatch__k3_kl=[NAN] * 5, rollout_corr__k3_kl=[1e-6] * 5)
    assert (ours.known("k3_kl"), ours.non_finite_steps("k3_kl")) == ([], [1, 2, 3, 4, 5])
    verls = series_of(rollout_corr__k3_kl=[1e-6, NAN, 1e-6, 1e-6, 1e-6])
    assert verls.non_finite_steps("k3_kl") == [2]


def test_rewards_counts_and_evaluations_are_told_apart_too() -> None:
    rows = StepMetrics()
    for step, reward in enumerate([0.5, NAN, 0.5], 1):
        rows.add(
            step, {"rollout/reward_mean": reward, "rollout/num_samples": 8, "rollout/response_length_mean": reward}
        )
        rows.add(step, {"eval_x_pass1": reward, "eval_y_pass1": NAN})
    series = build_series(rows)
    assert series.steps == [1, 2, 3]
    assert {name: found.steps for name, found in series.non_finite.items()} == {
        "reward": [2],
        "response_tokens": [2],
        "eval_x_pass1": [2],
        "eval_y_pass1": [1, 2, 3],
    }
    assert series.evaluation == {"eval_x_pass1": ([1, 3], [0.5, 0.5]), "eval_y_pass1": ([], [])}


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ([1e-6, NAN, 1e-6, None, 1e-6], "logged numbers that are not finite: k3_kl in 2 of 5 steps"),
        ([NAN] * 5, "logged numbers that are not finite: k3_kl in 5 of 5 steps"),
        ([...] * 5, "logged no mismatch metrics"),
    ],
    ids=["some", "all", "absent"],
)
def test_notes_say_not_finite_or_not_logged(values: list[object], note: str) -> None:
    series = series_of(mismatch__k3_kl=values)
    arm = ArmRun("fp16", "verl", "fp16", series, {"status": "completed"}, precision_report={}, settings={})
    assert [line.partition(";")[0] for line in arm.notes()] == [f"fp16 {note}"]
