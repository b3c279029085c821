# SPDX-License-Identifier: Apache-2.0
"""A spread of the paper's recipes, toy scale, on the real frameworks: two steps of two updates on a small toy task.

All of them, in both arms: ``make recipes-toy``.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from shared_cache import make_once

from fp16_patch.lab import toy
from fp16_patch.lab.launch.run import run_recipe
from fp16_patch.lab.loading.load import find, load
from fp16_patch.lab.logs.runs import ArmRun, read_run

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

RunArm = Callable[..., ArmRun]
BARELY_TRAINED = {"layers": 2, "target": 0.1, "train": 64, "val": 16, "samples": 4, "keep_from": 0.0, "keep_to": 1.0}
"""Settings of a toy task made in seconds. Its policy solves enough problems for the answers to differ in reward."""


@pytest.fixture
def run_arm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunArm:
    def run(recipe: str, arm: str, *overrides: str, framework: str = "verl") -> ArmRun:
        for name, settings in toy.TOY_TASKS.items():
            monkeypatch.setitem(toy.TOY_TASKS, name, dataclasses.replace(settings, **BARELY_TRAINED))
        name = load(find(recipe), "toy").world
        assert name is not None, f"{recipe} has no toy task"
        made = make_once(
            tmp_path_factory, name, lambda folder: toy.build(folder / "world", settings=toy.TOY_TASKS[name])
        )
        shutil.copytree(made / "world", tmp_path / "world")  # the run finds it complete and uses it
        run_recipe(
            find(recipe), tmp_path, framework=framework, scale="toy", arms=[arm], overrides=overrides, timeout_s=480
        )
        _, arms = read_run(tmp_path)
        found = next(one for one in arms if one.name == arm)
        assert found.status == "completed", f"{found.result}\n{(tmp_path / arm / 'train.log').read_text()[-4000:]}"
        assert len(found.series.steps) == 2
        assert all(0 <= reward <= 1 for reward in found.series.known("reward"))
        return found

    return run


def test_experts_over_two_ranks_of_megatron_survive_an_overflow(run_arm: RunArm) -> None:
    """Stock verl ends there: tests/frameworks/verl_megatron/test_stock_megatron.py."""
    run = run_arm(
        "moe-grpo-seq-mis",
        "fp16",
        "trainer.total_training_steps=2",
        "fp16_patch.loss_scaling.init_scale=1073741824",
        "fp16_patch.loss_scaling.backoff_factor=0.0000152587890625",  # 2**-16: back in one update of four
    )
    actor, rollout = run.precision_report["roles"]["actor"], run.precision_report["roles"]["rollout"]
    assert actor["compute"] == rollout["compute"] == rollout["weights"] == rollout["weights_on_the_wire"] == "float16"
    assert actor["router"] == actor["master_weights"] == actor["gradients"] == "float32"
    assert run.skipped_updates == 1
    assert run.series.known("loss_scale")[-1] == 2**14
    assert run.series.known("grad_norm")[-1] > 0
    before, after = run.series.known("prob_diff_mean")
    assert 0 < before < 6e-4
    # A router that has hardly learnt sends a token or two to another expert than the rollout's: near ties, in FP16 too.
    assert 0 < after < 1e-2


def test_adapters(run_arm: RunArm) -> None:
    run = run_arm("lora-grpo-token-tis", "fp16", "trainer.total_training_steps=2")
    roles = run.precision_report["roles"]
    assert roles["actor"]["compute"] == roles["rollout"]["compute"] == roles["rollout"]["weights"] == "float16"
    assert run.skipped_updates == 0
    assert run.series.known("grad_norm")[-1] > 0
    assert all(0 < difference < 6e-4 for difference in run.series.known("prob_diff_mean"))


@pytest.mark.parametrize("arm", ["bf16", "fp16"])
def test_a_policy_gradient_with_sequence_weights(run_arm: RunArm, arm: str) -> None:
    """tests/lab/algorithms compares the gradient to the paper's; here the metrics show that this loss trains."""
    run = run_arm("sanity-pg-seq-is", arm, "trainer.total_training_steps=2")
    assert run.precision_report["roles"]["actor"]["compute"] == {"bf16": "bfloat16", "fp16": "float16"}[arm]
    assert run.series.known("grad_norm")[-1] > 0
    assert run.skipped_updates == (0 if arm == "fp16" else None)
    low, high = {"bf16": (6e-4, 6e-3), "fp16": (0, 6e-4)}[arm]
    assert all(low < difference < high for difference in run.series.known("prob_diff_mean"))
    assert len(run.series.known("k3_kl")) == 2


def test_truncated_token_weights_on_openrlhf(run_arm: RunArm) -> None:
    run = run_arm("sanity-grpo-token-tis", "fp16", "data.max_samples=32", framework="openrlhf")
    roles = run.precision_report["roles"]
    assert roles["actor"]["compute"] == roles["rollout"]["compute"] == "float16"
    assert run.skipped_updates == 0
    assert all(0 < difference < 6e-4 for difference in run.series.known("prob_diff_mean"))
