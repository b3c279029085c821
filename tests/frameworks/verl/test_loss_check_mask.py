# SPDX-License-Identifier: Apache-2.0
"""verl's own losses on verl's own batch: a number at a token that does not count is not blamed for a bad loss."""

from __future__ import annotations

import math
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fp16_patch import envs
from fp16_patch.precision import Precision

pytestmark = pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed")

MASKED, COUNTED = 0, 7
"""Places in the second answer, of 9 tokens; the first two of its tokens do not count."""


@pytest.fixture(autouse=True)
def in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(envs.PRECISION, Precision().to_environment())


def batch_of_two() -> Any:
    """Return two answers of 4 and 9 tokens, nested as verl's engines get them."""
    from engine_building import new_batch
    from verl.utils import tensordict_utils as tu

    batch = new_batch(0, rows=slice(2))
    for name in ("advantages", "old_log_probs"):
        rows = [torch.full((length,), -0.5) for length in (4, 9)]
        batch[name] = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    batch["response_mask"].values()[4:6] = 0
    tu.assign_non_tensor(batch, dp_size=1, batch_num_tokens=None)
    return batch


def spoil(batch: Any, name: str, place: int) -> None:
    batch[name].values()[4 + place] = math.nan


def outputs(batch: Any) -> torch.Tensor:
    """Return a model's output: a number for each token of prompts and answers, the answer's one place earlier."""
    offsets = batch["input_ids"].offsets()
    return torch.nested.nested_tensor_from_jagged(torch.full((int(offsets[-1]),), -0.5), offsets).requires_grad_()


def found(role: str, batch: Any, output: torch.Tensor) -> Any:
    """Return what the check reports of verl's loss."""
    from verl.workers.config import CriticConfig, FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss, value_loss

    from fp16_patch.frameworks.verl.loss_check import checked, losses_of

    if role == "critic":
        loss = partial(value_loss, CriticConfig(strategy="fsdp", ppo_micro_batch_size_per_gpu=2))
    else:
        loss = partial(ppo_loss, FSDPActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=2))
    model_type = "value_model" if role == "critic" else "language_model"
    engine = SimpleNamespace(model_config=SimpleNamespace(model_type=model_type))
    name = "values" if role == "critic" else "log_probs"
    loss_value, _ = checked(engine, loss)(model_output={name: output}, data=batch)
    bad_loss = losses_of(engine).bad_loss_here
    assert bool(loss_value.isfinite()) == (bad_loss is None)
    return bad_loss and (bad_loss.role, bad_loss.source, bad_loss.detail)


def test_an_input_that_counts_is_named_before_one_that_does_not() -> None:
    batch = batch_of_two()
    spoil(batch, "advantages", MASKED)
    spoil(batch, "old_log_probs", COUNTED)
    detail = "old_log_probs is not finite in 1 of 11 elements"
    assert found("actor", batch, outputs(batch)) == ("actor", "old_log_probs", detail)


def test_the_critic_s_inputs_are_searched_under_the_mask_too() -> None:
    batch = batch_of_two()
    spoil(batch, "returns", MASKED)
    spoil(batch, "values", COUNTED)
    assert found("critic", batch, outputs(batch))[1] == "values"


@pytest.mark.parametrize(("place", "blamed"), [(MASKED, ""), (COUNTED, "the model's log_probs")])
def test_the_model_s_output_is_searched_where_the_answer_counts(place: int, blamed: str) -> None:
    """It has a number for each token of prompt and answer, so the mask of the answers does not fit as it is."""
    batch = batch_of_two()
    output = outputs(batch).detach()
    output.values()[7 + 3 + place - 1] = math.nan
    output.values()[0] = math.nan  # of a prompt
    told = found("actor", batch, output.requires_grad_())
    assert (told and told[1]) == (blamed or None), "verl's loss leaves masked numbers out"
