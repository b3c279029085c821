# SPDX-License-Identifier: Apache-2.0
"""Take masked answers out of OpenRLHF's group rewards, losses and means.

An answer is masked by a zero action mask. OpenRLHF computes group rewards over full groups, so masked answers cannot be
dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fp16_patch.frameworks.openrlhf.releases import RELEASE
from fp16_patch.patching import ProcessKind, opened, scoped, wrap
from fp16_patch.precision import Precision

if TYPE_CHECKING:
    import torch

Experience = Any  # openrlhf.trainer.ppo_utils.experience.Experience, never imported here

STEP_TENSORS = ("action_log_probs", "base_action_log_probs", "values", "kl")
"""What a model has computed for each token of an answer. NaN times a zero mask is NaN."""

_MAKER = "openrlhf.trainer.ppo_utils.experience_maker"
_OURS: dict[str, Any] = {"release": RELEASE, "upstream": "none: our own setting", "remove_when": "never"}
_GROUPS: dict[str, Any] = {
    **_OURS,
    "processes": {ProcessKind.CONTROLLER, ProcessKind.ASYNC_CONTROLLER},
    "required": False,
}
_RANKS: dict[str, Any] = {**_OURS, "processes": {ProcessKind.ACTOR_RANK, ProcessKind.CRITIC_RANK}}
_TINY = 1e-6


def clear_answers(experiences: list[Experience], masked: torch.Tensor) -> None:
    """Replace what is not finite in the masked answers by 0. A mean over their tokens was 0/0."""
    import torch

    for experience in experiences:
        rows = masked[experience.index]
        for name in STEP_TENSORS:
            if (tensor := getattr(experience, name)) is not None:
                setattr(experience, name, torch.where(rows.unsqueeze(1), tensor.nan_to_num(0, 0, 0), tensor))
        for name in ("kl", "logprobs_diff"):
            experience.info[name] = torch.where(rows, 0, experience.info[name])


@contextmanager
def out_of_their_groups(
    experiences: list[Experience], masked: torch.Tensor, estimator: str, group_size: int
) -> Iterator[None]:
    """Make ``compute_advantages_and_returns`` leave the masked answers, boolean ``[answers]``, out of their groups."""
    from fp16_patch.rollout_health.groups import advantage_factors

    factors = advantage_factors(masked.reshape(-1, group_size), estimator).flatten()
    order: list[int] = []
    deviations: list[torch.Tensor] = []
    with (
        opened(replace_masked_rewards, masked, estimator, group_size, order, deviations),
        opened(scale_group_rewards, factors, order),
    ):
        yield
    for experience in experiences:
        if "group_reward_std" in experience.info:
            experience.info["group_reward_std"] = deviations[0][experience.index]


@scoped(
    f"{_MAKER}:apply_length_penalties",
    name="openrlhf-masked-rewards",
    reason="the last function before the group's mean and deviation; a masked answer gets the mean of the others",
    **_GROUPS,
)
def replace_masked_rewards(
    original: Callable[..., Any],
    masked: torch.Tensor,
    estimator: str,
    group_size: int,
    order: list[int],
    deviations: list[torch.Tensor],
) -> Callable[..., Any]:
    """Replace masked answers' rewards after the penalties. ``info`` keeps the real ones.

    Fill ``order`` with the answers as they come, and ``deviations`` with one tensor: each answer's group's.
    """
    import torch

    from fp16_patch.rollout_health.groups import group_deviations, replace_rewards

    def penalise_and_replace(experiences: list[Experience], args: Any) -> Any:
        result = original(experiences, args)
        order[:] = [index for experience in experiences for index in experience.index]
        rewards = torch.empty_like(torch.cat([experience.rewards for experience in experiences]))
        for experience in experiences:
            rewards[experience.index] = experience.rewards
        groups = (rewards.reshape(-1, group_size), masked.reshape(-1, group_size))
        deviations[:] = [group_deviations(*groups).flatten()]
        replaced = replace_rewards(*groups, estimator).flatten()
        for experience in experiences:
            experience.rewards = replaced[experience.index]
        return result

    return penalise_and_replace


@scoped(
    f"{_MAKER}:compute_reward",
    name="openrlhf-masked-group-size",
    reason="the first function after the group's mean and deviation, which count masked answers in the group's size",
    **_GROUPS,
)
def scale_group_rewards(original: Callable[..., Any], factors: torch.Tensor, order: list[int]) -> Callable[..., Any]:
    """Multiply each answer's group-relative reward by its factor. Micro-batches come in the order of ``order``."""

    def scale(r: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        batch = [order.pop(0) for _ in range(len(r))]
        return original(r * factors[batch].to(r.dtype), *args, **kwargs)

    return scale


@wrap(
    "openrlhf.models.loss:aggregate_loss",
    name="openrlhf-loss-of-no-token",
    reason="the loss of an update whose answers are all masked is 0/0, and a step in BF16 then ruins the weights",
    **_RANKS,
)
def aggregate_no_token(original: Any, loss: torch.Tensor, loss_mask: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Return 0 for a micro-batch without a token that counts, with a gradient of zeros."""
    if Precision.current().rollout_overflow == "mask" and not loss_mask.any():
        return (loss * loss_mask).sum()
    return original(loss, loss_mask, *args, **kwargs)


@wrap(
    "openrlhf.models.loss:PolicyLoss.forward",
    name="openrlhf-loss-of-answers-that-stay",
    reason="at sequence level is_filter_ratio is a mean over all answers, and counts a masked one as filtered",
    **{**_RANKS, "processes": {ProcessKind.ACTOR_RANK}},
)
def drop_masked_rows(
    original: Any,
    self: Any,
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    action_mask: torch.Tensor | None = None,
    rollout_log_probs: torch.Tensor | None = None,
    **totals: Any,
) -> Any:
    """Compute the loss of the answers with a token that counts. The others add 0 to it, and no gradient."""
    if Precision.current().rollout_overflow == "mask" and action_mask is not None and action_mask.any():
        rows = action_mask.any(-1)
        log_probs, old_log_probs, advantages, action_mask, rollout_log_probs = (
            given if given is None else given[rows]
            for given in (log_probs, old_log_probs, advantages, action_mask, rollout_log_probs)
        )
    given = {"action_mask": action_mask, "rollout_log_probs": rollout_log_probs, **totals}
    return original(self, log_probs, old_log_probs, advantages, **given)


@wrap(
    "openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer.training_step",
    name="openrlhf-actor-metrics-of-no-token",
    reason="OpenRLHF's means over answers (kl, group_reward_std, reward, ...) count masked ones; those of a "
    "micro-batch whose answers are all masked are 0/0, and OpenRLHF divides by its tokens",
    **{**_RANKS, "processes": {ProcessKind.ACTOR_RANK}},
)
def leave_out_of_means(original: Any, self: Any, experience: Experience, *args: Any, **kwargs: Any) -> Any:
    """Leave answers without a token that counts out of every mean, and out of what these are weighted by.

    A micro-batch without a token reports 0, and a weight that adds nothing to the means over a step.
    """
    status = original(self, experience, *args, **kwargs)
    if Precision.current().rollout_overflow != "mask":
        return status
    rows, metrics = experience.action_mask.any(-1), status["metrics"]
    for name, weight in status["weights"].items():
        if weight is not None:  # None: of the update, not of its answers
            metrics[name] = _of_rows(metrics[name], rows) if rows.any() else 0.0
    status["num_samples"] = float(rows.sum()) or _TINY
    status["num_action_tokens"] = status["num_action_tokens"] or _TINY
    return status


@wrap(
    "openrlhf.trainer.ray.ppo_critic:CriticPPOTrainer.training_step",
    name="openrlhf-critic-metrics-of-no-token",
    reason="the mean value of a micro-batch whose answers are all masked is 0/0",
    **{**_RANKS, "processes": {ProcessKind.CRITIC_RANK}},
)
def report_no_token(original: Any, self: Any, experience: Experience, *args: Any, **kwargs: Any) -> Any:
    """Report 0 for the critic's means over no token."""
    status = original(self, experience, *args, **kwargs)
    if Precision.current().rollout_overflow == "mask" and not experience.action_mask.any():
        status |= {name: 0.0 for name, value in status.items() if value != value}
    return status


def _of_rows(value: Any, rows: torch.Tensor) -> Any:
    """Return the part of a metric that belongs to these answers; one number of the whole micro-batch is of them all."""
    one_each = getattr(value, "shape", ())[:1] == rows.shape
    return value[rows.to(value.device)] if one_each else value
