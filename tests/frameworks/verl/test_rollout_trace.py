# SPDX-License-Identifier: Apache-2.0
"""A trace that fails hides no overflow, and vLLM is put back to sleep after one. Real traces: tests/end_to_end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from raising import check_error

from fp16_patch.frameworks.verl.rollout_trace import _awake, add_trace
from fp16_patch.precision import Precision
from fp16_patch.rollout_health.overflow_policy import refuse_logits


class Manager:
    """verl's checkpoint manager, as far as it puts vLLM to sleep; sleeping itself needs a GPU."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __getattr__(self, name: str):
        return lambda *args: self.calls.append((name, *args))


def trainer(mode: str = "sync", free: bool = True) -> SimpleNamespace:
    config = {"actor_rollout_ref": {"rollout": {"free_cache_engine": free}}, "trainer": {"v1": {"trainer_mode": mode}}}
    return SimpleNamespace(global_steps=5, config=OmegaConf.create(config), checkpoint_manager=Manager())


def test_a_trace_that_fails_hides_no_overflow() -> None:
    batch = SimpleNamespace(keys=["a_0_0"])  # without the rest of a batch
    error = add_trace(refuse_logits(3, 7, Precision()), trainer(), batch, None)
    check_error(error, "rollout-overflow", "step 7: 3 rows of vLLM's logits", "no trace of vLLM's modules: ", "BF16")


@pytest.mark.parametrize(
    ("mode", "free", "before", "after"),
    [
        ("sync", False, [], []),
        ("sync", True, [("update_weights", 4)], [("sleep_replicas",)]),
        (
            "colocate_async",
            True,
            [("update_weights", 4), ("resume_generation_replicas",)],
            [("abort_replicas",), ("sleep_replicas",)],
        ),
    ],
)
@pytest.mark.parametrize("sleep", [False, True])
def test_vllm_gets_its_weights_back_for_a_trace(mode: str, free: bool, before: list, after: list, sleep: bool) -> None:
    run = trainer(mode, free)
    with _awake(run, sleep):
        assert run.checkpoint_manager.calls == before
    assert run.checkpoint_manager.calls == before + (after if sleep else [])
