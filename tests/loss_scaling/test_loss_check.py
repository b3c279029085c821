# SPDX-License-Identifier: Apache-2.0
"""A loss that is not finite before it is scaled: found, named, made NaN in every gradient, and no overflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diagnosed_models import examined, model, said, total
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from raising import raises_code

from fp16_patch import envs
from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.diagnosis.advice import LOOK_AT
from fp16_patch.loss_scaling.diagnosis.cause import CauseKind
from fp16_patch.loss_scaling.diagnosis.replay import Replay
from fp16_patch.loss_scaling.loss_check import BadLoss, check_loss
from fp16_patch.loss_scaling.scale_rule import ScaleRule
from fp16_patch.loss_scaling.skip_limit import exceeded_limit
from fp16_patch.loss_scaling.tensors import under_mask
from fp16_patch.loss_scaling.unscaled import UnscaledUpdates
from fp16_patch.loss_scaling.update import Update, describe
from fp16_patch.precision import Precision

UNTIMED = hypothesis_settings(deadline=None)
BAD = st.sampled_from([math.nan, math.inf, -math.inf])
SHAPE = (3, 4)


def policy_loss(batch: dict[str, torch.Tensor], log_probs: torch.Tensor) -> torch.Tensor:
    ratio = (log_probs - batch["old_log_probs"]).exp()
    weighted = ratio * batch["advantages"] * batch["rollout_is_weights"] * batch["response_mask"]
    return -weighted.sum() / batch["response_mask"].sum()


def new_batch() -> dict[str, torch.Tensor]:
    names = ("advantages", "rollout_is_weights", "old_log_probs", "response_mask")
    return {name: torch.ones(SHAPE) for name in names}


def check(batch: dict[str, torch.Tensor], log_probs: torch.Tensor) -> tuple[torch.Tensor, BadLoss | None]:
    inputs = {name: value for name, value in batch.items() if name != "response_mask"}
    masks = {"response_mask": batch["response_mask"]}
    return check_loss(policy_loss(batch, log_probs), inputs, masks, {"the model's log_probs": log_probs}, "actor")


# Found, and named.


def test_a_finite_loss_is_the_same_tensor() -> None:
    loss = torch.ones((), requires_grad=True) * 2
    assert check_loss(loss, {"advantages": torch.full(SHAPE, math.nan)}) == (loss, None)


@UNTIMED
@given(st.sampled_from(["advantages", "rollout_is_weights", "old_log_probs"]), BAD, st.integers(0, 11))
def test_the_input_that_is_not_finite_is_named(name: str, bad: float, place: int) -> None:
    batch, log_probs = new_batch(), torch.zeros(SHAPE, requires_grad=True)
    batch[name].view(-1)[place] = bad
    if policy_loss(batch, log_probs).isfinite():  # exp(-inf) is 0
        assert check(batch, log_probs)[1] is None
        return
    loss, found = check(batch, log_probs)
    assert found == BadLoss(name, f"{name} is not finite in 1 of 12 elements", "actor")
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.isnan().all()


def test_a_reward_of_infinity_is_found_in_the_advantages() -> None:
    rewards = torch.tensor([0.0, 1.0, math.inf])
    batch = new_batch()
    batch["advantages"] = (rewards - rewards.mean())[:, None].expand(SHAPE)
    _, found = check(batch, torch.zeros(SHAPE, requires_grad=True))
    assert found is not None
    assert (found.source, found.detail) == ("advantages", "advantages is not finite in 12 of 12 elements")


def test_an_empty_mask_is_named_and_makes_gradients_nan_all_the_same() -> None:
    """The loss is 0 / 0, but no token has a part in it."""
    batch, log_probs = new_batch(), torch.zeros(SHAPE, requires_grad=True)
    batch["response_mask"] = torch.zeros(SHAPE)
    kept = torch.where(batch["response_mask"].bool(), log_probs, 0.0)
    mask = {"response_mask": batch["response_mask"]}
    loss, found = check_loss(kept.sum() / torch.zeros(()), {}, mask, {"log_probs": log_probs})
    assert found is not None
    assert found.source == "response_mask"
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.isnan().all()


def test_the_model_s_own_output_is_named_last() -> None:
    batch, log_probs = new_batch(), torch.full(SHAPE, math.nan, requires_grad=True)
    _, found = check(batch, log_probs)
    assert found is not None
    assert found.source == "the model's log_probs"
    batch["advantages"][0, 0] = math.nan
    _, found = check(batch, log_probs)
    assert found is not None
    assert found.source == "advantages"


def test_finite_inputs_leave_the_loss_function() -> None:
    batch, log_probs = new_batch(), torch.full(SHAPE, 200.0, requires_grad=True)
    _, found = check(batch, log_probs)
    assert found is not None
    assert found.source == ""
    assert "the loss function itself" in found.detail


def test_nested_tensors_and_missing_inputs() -> None:
    rows = [torch.ones(2), torch.tensor([1.0, math.nan, 1.0])]
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    mask = torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    output = torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged).requires_grad_()
    given = {"returns": None, "advantages": nested}
    loss, found = check_loss(output.values().sum() * math.nan, given, {"response_mask": mask}, {"log_probs": output})
    assert found == BadLoss("advantages", "advantages is not finite in 1 of 5 elements")
    loss.backward()
    assert output.grad is not None
    assert output.grad.values().isnan().all()


# Under the mask.

MASKED = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])


def nested(padded: torch.Tensor, lengths: Sequence[int] = (2, 3, 4)) -> torch.Tensor:
    rows = [row[:length] for row, length in zip(padded, lengths, strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def test_a_number_where_the_mask_is_0_is_not_blamed() -> None:
    batch, log_probs = new_batch() | {"response_mask": MASKED}, torch.zeros(SHAPE, requires_grad=True)
    batch["advantages"][0, 3] = math.nan
    batch["old_log_probs"][1, 2] = -math.inf
    _, found = check(batch, log_probs)
    assert found is not None
    assert (found.source, found.detail) == ("old_log_probs", "old_log_probs is not finite in 1 of 9 elements")


def test_an_empty_mask_is_the_reason_whatever_it_masks() -> None:
    batch = new_batch() | {"response_mask": torch.zeros(SHAPE)}
    batch["advantages"][0, 3] = math.nan
    _, found = check(batch, torch.zeros(SHAPE, requires_grad=True))
    assert found is not None
    assert found.source == "response_mask"


def test_the_model_s_output_for_a_masked_token_is_not_blamed() -> None:
    batch, log_probs = new_batch() | {"response_mask": MASKED}, torch.zeros(SHAPE)
    log_probs[0, 3] = math.nan
    _, found = check(batch, log_probs.requires_grad_())
    assert found is not None
    assert found.source == "", "0 * NaN is the loss function's"
    for part in ("the loss function itself", "log_probs is not finite in 1 of 12 elements, all where the mask is 0"):
        assert part in found.detail


@pytest.mark.parametrize("ragged", ["values", "mask", "both", "neither"])
def test_padded_and_nested_tensors_meet_their_mask(ragged: str) -> None:
    values, mask = torch.arange(12.0).view(SHAPE), MASKED.bool() & (torch.arange(12).view(SHAPE) != 5)
    kept = [0.0, 1, 4, 6, 8, 9, 10, 11]
    given = (nested(one) if ragged in (kind, "both") else one for kind, one in (("values", values), ("mask", mask)))
    value, its_mask = given
    others = [nested(torch.ones(SHAPE), (4, 3, 2))] if ragged in ("values", "both") else []
    assert under_mask(value, [None, torch.zeros(5), *others, its_mask]).tolist() == kept
    assert len(under_mask(value, [torch.ones(5), None]).flatten()) == (9 if ragged in ("values", "both") else 12)


def test_a_mask_holds_for_further_dimensions() -> None:
    assert under_mask(torch.zeros(*SHAPE, 5), [MASKED]).shape == (9, 5)


# The scale.


@pytest.mark.parametrize("growth_interval", [1, 7, 50, 400, 2000])
@pytest.mark.parametrize("hysteresis", [1, 2])
def test_one_nan_in_350_updates_leaves_the_scale(growth_interval: int, hysteresis: int) -> None:
    """With real overflows in between, at the scales where this model's gradients overflow."""
    settings = LossScaling(growth_interval=growth_interval, hysteresis=hysteresis)
    rule, without = ScaleRule(settings), ScaleRule(settings)
    for number in range(1, 20_001):
        bad = number % 350 == 0
        rule.update(skipped=bad or rule.scale > 2.0**18, loss_not_finite=bad)
        if not bad:
            without.update(skipped=without.scale > 2.0**18)
    assert rule.scale == without.scale >= 2.0**16
    assert (rule.growth_tracker, rule.hysteresis_left) == (without.growth_tracker, without.hysteresis_left)
    assert rule.counts.losses_not_finite == 20_000 // 350
    assert rule.counts.backoffs == without.counts.backoffs


@UNTIMED
@given(st.lists(st.sampled_from(["made", "overflow", "bad loss"]), max_size=60), st.integers(1, 5), st.integers(1, 3))
def test_updates_with_a_bad_loss_are_as_if_they_had_not_been(kinds: list[str], interval: int, hysteresis: int) -> None:
    settings = LossScaling(growth_interval=interval, hysteresis=hysteresis)
    rule, without = ScaleRule(settings), ScaleRule(settings)
    for kind in kinds:
        rule.update(skipped=kind != "made", loss_not_finite=kind == "bad loss")
        if kind != "bad loss":
            without.update(skipped=kind != "made")
    assert [scale for _, scale in rule.history] == [scale for _, scale in without.history]
    assert (rule.growth_tracker, rule.hysteresis_left) == (without.growth_tracker, without.hysteresis_left)
    assert rule.counts.skipped == sum(kind != "made" for kind in kinds)
    assert rule.counts.losses_not_finite == kinds.count("bad loss")


def update(scaler: FsdpLossScaler, bad_loss: BadLoss | None = None, *, finite: bool = False) -> Update:
    if bad_loss is not None:
        scaler.report_bad_loss(bad_loss)
    scaler.record(OPTIMIZER, finite=finite)
    scaler.update()
    return Update(not finite, None, 1.0, loss_not_finite=scaler.bad_loss is not None)


OPTIMIZER = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
NAN_RETURNS = BadLoss("returns", "returns is not finite in 1 of 5 elements", "critic")


def test_a_report_counts_for_its_own_update_only(capsys: pytest.CaptureFixture[str]) -> None:
    scaler = FsdpLossScaler(LossScaling(), "cpu")
    made = [update(scaler, NAN_RETURNS), update(scaler), update(scaler, finite=True)]
    assert [one.loss_not_finite for one in made] == [True, False, False]
    assert scaler.get_scale() == 2.0**15, "the second is an overflow"
    metrics = describe(made[0], scaler.counts)
    assert (metrics["loss_not_finite"], metrics["losses_not_finite_total/max"]) == (1.0, 1.0)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not finite before it is scaled" in line]
    for part in ("critic, update 1: the loss of rank 0", NAN_RETURNS.detail, "1 updates skipped"):
        assert part in line


# The end of a run.


def rule_after(skipped: Callable[[int], bool], updates: int, **settings: Any) -> ScaleRule:
    rule = ScaleRule(LossScaling(**settings))
    for number in range(1, updates + 1):
        rule.update(skipped=skipped(number))
        if exceeded_limit(rule) is not None:
            break
    return rule


@pytest.mark.parametrize(("every", "ends"), [(2, 42), (9, 189), (10, None), (350, None)])
def test_skips_that_are_spread_out_end_a_run_too(every: int, ends: int | None) -> None:
    rule = rule_after(lambda number: number % every == 0, 1000)
    assert rule.counts.updates == (ends or 1000)
    if (limit := exceeded_limit(rule)) is not None:
        assert limit.setting == "max_skip_rate=0.1"
        assert limit.reason == f"21 of the last {ends} updates were skipped"


def test_the_last_skips_survive_a_checkpoint() -> None:
    rule = rule_after(lambda number: number % 2 == 0, 40)
    resumed = ScaleRule(LossScaling())
    resumed.load_state_dict(rule.state_dict())
    assert exceeded_limit(resumed) is None
    resumed.update(skipped=True)
    assert exceeded_limit(resumed) is not None


def test_a_rate_of_one_leaves_only_the_skips_in_a_row() -> None:
    assert rule_after(lambda number: number % 20 != 0, 1000, max_skip_rate=1).counts.updates == 1000
    assert rule_after(bool, 1000, max_skip_rate=1).counts.updates == 20


def test_the_report_names_the_input() -> None:
    found = examined(model(), lambda output: total(output) * math.nan)
    assert "look at advantages, rewards, log-probs" in said(found)
    found = examined(model(), lambda output: total(output) * math.nan, bad_loss=NAN_RETURNS)
    assert found.case == "loss"
    assert NAN_RETURNS.detail in found.summary
    assert LOOK_AT["returns"] in found.advice[0]
    assert "init_scale" not in said(found)


def test_a_loss_that_is_only_seen_after_it_is_scaled_is_no_overflow() -> None:
    """DeepSpeed scales the loss itself; the check before it knows that it was not finite."""
    found = examined(model(), lambda output: total(output) * 1e9, bad_loss=NAN_RETURNS)
    assert found.cause.kind is CauseKind.LOSS
    assert "init_scale" not in said(found)


def test_a_run_without_a_kept_batch_names_the_input_too() -> None:
    scaler = FsdpLossScaler(LossScaling(max_consecutive_skips=1), "cpu")
    update(scaler, NAN_RETURNS)
    with raises_code("training-diverged", NAN_RETURNS.detail):
        Replay(scaler, lambda: pytest.fail("nothing to trace")).stop_after_too_many(Update(True, None, 1.0), None)


def test_without_a_scale_the_run_ends_by_the_same_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(envs.PRECISION, Precision("bf16", "bf16").to_environment())
    losses = UnscaledUpdates()

    def one_update(number: int) -> None:
        if number % 2:
            losses.report_bad_loss(NAN_RETURNS)
        losses.end_update(skipped=losses.any_bad_loss())
        assert losses.metrics()["loss_not_finite"] == number % 2
        losses.stop_after_too_many()

    for number in range(1, 41):
        one_update(number)
    with raises_code("training-diverged", "max_skip_rate=0.1", NAN_RETURNS.detail) as caught:
        one_update(41)
    assert "the loss scale" not in caught.value.what
    assert LOOK_AT["returns"] in (caught.value.next_step or "")
