# SPDX-License-Identifier: Apache-2.0
"""What the check of OpenRLHF's losses sees of the model: its outputs, until the loss is checked, and no longer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fp16_patch import envs
from fp16_patch.attached_state import attached
from fp16_patch.frameworks.openrlhf.loss_check import Batch, check_before_backward, keep_outputs
from fp16_patch.loss_scaling.unscaled import UnscaledUpdates
from fp16_patch.precision import Precision


class Actor(torch.nn.Module):
    """Return log-probs, and an output with an entropy, as OpenRLHF's actor does."""

    def __init__(self, bad: str) -> None:
        super().__init__()
        self.weight, self.bad = torch.nn.Parameter(torch.ones(3)), bad

    def forward(self) -> tuple[torch.Tensor, SimpleNamespace]:
        factors = {name: torch.nan if name == self.bad else 1.0 for name in ("log_probs", "entropy")}
        prompt = torch.tensor([torch.inf])  # no loss reads the entropy of a prompt
        entropy = torch.cat([prompt, self.weight * factors["entropy"]])
        return self.weight * factors["log_probs"], SimpleNamespace(entropy=entropy)


@pytest.fixture
def strategy() -> Any:
    """Return what OpenRLHF's strategy holds while its actor trains, without a scaler."""
    made = SimpleNamespace()
    batch = attached(made, Batch)
    batch.role, batch.engine = "actor", SimpleNamespace()
    batch.experience = SimpleNamespace(advantages=torch.ones(3), action_mask=torch.ones(3))
    return made


def check(strategy: Any, actor: Actor) -> None:
    keep_outputs(strategy, actor, "log_probs")
    log_probs, output = actor()
    loss = log_probs.sum() + output.entropy[-3:].sum()
    assert check_before_backward.handler is not None
    check_before_backward.handler(lambda _, loss, __: loss.backward(), strategy, loss, actor)


@pytest.mark.parametrize("bad", ["log_probs", "entropy"])
def test_an_output_that_is_not_finite_is_named(strategy: Any, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(envs.PRECISION, Precision("bf16", "bf16").to_environment())
    actor = Actor(bad)
    check(strategy, actor)
    found = attached(attached(strategy, Batch).engine, UnscaledUpdates).bad_loss_here
    assert found is not None
    assert (found.source, found.role) == (f"the model's {bad}", "actor")
    assert found.detail.endswith("in 3 of 3 elements")
    assert actor.weight.grad is not None
    assert actor.weight.grad.isnan().all(), "so that every rank skips the update"


def test_outputs_are_kept_for_one_loss_and_only_in_training(strategy: Any) -> None:
    actor = Actor("")
    check(strategy, actor)
    assert attached(strategy, Batch).outputs == {}
    with torch.no_grad():
        actor()
    assert attached(strategy, Batch).outputs == {}, "log-probs of an experience have no loss"
    actor()
    assert list(attached(strategy, Batch).outputs) == ["the model's log_probs", "the model's entropy"]
