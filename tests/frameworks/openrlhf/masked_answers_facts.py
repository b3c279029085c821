# SPDX-License-Identifier: Apache-2.0
"""Print as JSON how OpenRLHF's own functions treat masked answers. ``test_masked_answers.py`` runs it."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import torch

from fp16_patch import envs
from fp16_patch.attached_state import attached
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.openrlhf import masked_answers, rollout_health
from fp16_patch.lab.cpu import import_stubs
from fp16_patch.patching import plan, register_import_hooks
from fp16_patch.precision import Precision

import_stubs.install_flash_attention()
LOSS = (masked_answers.aggregate_no_token, masked_answers.drop_masked_rows)
register_import_hooks(plan([rollout_health.leave_groups, *LOSS, masked_answers.leave_out_of_means]))
from openrlhf.models.loss import PolicyLoss  # noqa: E402  it imports flash-attn
from openrlhf.trainer.ppo_utils import experience_maker  # noqa: E402
from openrlhf.trainer.ppo_utils.experience import Experience, make_experience_batch  # noqa: E402
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator  # noqa: E402
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer  # noqa: E402

GROUPS, SIZE, LENGTH = 3, 4, 6
ESTIMATORS = ("rloo", "reinforce_baseline", "dr_grpo", "group_norm", "flash_reinforce", "reinforce", "gae")
MASKED = torch.tensor([answer in (1, 4, 11) for answer in range(GROUPS * SIZE)])
"""One answer of each group."""
NAN = float("nan")
NO_VLLM = SimpleNamespace()
"""A controller that reaches no vLLM, so that there is no trace."""


def maker(estimator: str, size: int) -> Any:
    """Return OpenRLHF's experience maker with what the function under test reads. It has no models."""
    made = object.__new__(experience_maker.RemoteExperienceMaker)
    made.args = SimpleNamespace(
        algo=SimpleNamespace(advantage=SimpleNamespace(estimator=estimator, gamma=1.0, lambd=0.95, no_std_norm=False)),
        rollout=SimpleNamespace(n_samples_per_prompt=size, max_new_tokens=LENGTH),
        reward=SimpleNamespace(clip_range=(-1.2, 1.2), overlong_buffer_len=None, stop_properly_penalty_coef=0.5),
    )
    made.strategy, made.advantage_estimator = SimpleNamespace(args=made.args), estimator
    made.kl_ctl = SimpleNamespace(value=0.1)
    return made


def experience(rows: list[int], index: list[int], masked: torch.Tensor) -> Any:
    """Return the micro-batch of these answers; a masked one as the rollout check and the models leave it."""
    draw = torch.Generator().manual_seed(1)
    shape = (len(MASKED), LENGTH)
    kl, log_probs, values = (torch.randn(shape, generator=draw) for _ in range(3))
    rewards, lengths = (
        torch.randn(len(MASKED), generator=draw),
        torch.randint(2, LENGTH, (len(MASKED),), generator=draw),
    )
    mask = (torch.arange(LENGTH) < lengths[:, None]) & ~masked[:, None]
    for tensor in (kl, log_probs, values):
        tensor[masked, 1] = NAN
    rewards[masked] = NAN
    means = (kl * mask).sum(-1) / mask.sum(-1)
    return Experience(
        action_mask=mask[rows],
        action_log_probs=log_probs[rows],
        kl=kl[rows],
        values=values[rows],
        rewards=rewards[rows],
        truncated=torch.tensor([row % 3 == 0 for row in rows]),
        index=index,
        info={"reward": rewards[rows], "kl": means[rows], "logprobs_diff": means[rows]},
    )


def advantages(estimator: str, experiences: list[Any], size: int, masked: torch.Tensor | None) -> dict[int, Any]:
    """Return answer -> advantages, and the deviation of its group, from OpenRLHF's own function."""
    made = maker(estimator, size)
    attached(made, rollout_health.StepHealth).masked = masked
    made.compute_advantages_and_returns(experiences)
    for one in experiences if masked is not None else ():
        tensors = (one.advantages, one.returns, one.action_log_probs, one.info["kl"], one.info["return"])
        assert all(tensor.isfinite().all() for tensor in tensors)
    rows = [
        torch.cat([one.advantages * one.action_mask, one.info["group_reward_std"][:, None]], 1) for one in experiences
    ]
    return {
        i: row for one, tensor in zip(experiences, rows, strict=True) for i, row in zip(one.index, tensor, strict=True)
    }


def advantages_differ(estimator: str) -> float:
    """Return the largest difference between a run with masked answers and the run without these answers."""
    order = [5, 0, 3, 9, 1, 7, 2, 11, 4, 10, 6, 8]  # as dynamic batches sort them
    batches = [order[:5], order[5:8], order[8:]]
    with_masked = advantages(estimator, [experience(rows, rows, MASKED) for rows in batches], SIZE, MASKED)
    left = (~MASKED).nonzero().flatten().tolist()
    nothing = torch.zeros_like(MASKED)
    without = advantages(estimator, [experience(left, list(range(len(left))), nothing)], SIZE - 1, None)
    assert not any(with_masked[answer][:-1].any() for answer in MASKED.nonzero().flatten().tolist())
    return max(float((with_masked[answer] - without[i]).abs().max()) for i, answer in enumerate(left))


def loss_differs(aggregate: str, **settings: Any) -> float:
    """Return the difference of loss and gradient between a batch with a masked row and the batch without it."""
    draw = torch.Generator().manual_seed(2)
    log_probs = -3 * torch.rand((4, LENGTH), generator=draw)
    old, rollout = (log_probs + 0.3 * torch.randn((4, LENGTH), generator=draw) for _ in range(2))
    gains, mask = torch.randn((4, LENGTH), generator=draw), torch.rand((4, LENGTH), generator=draw) > 0.2
    mask[2], rollout[2], gains[2] = False, 0, 0
    found = []
    for rows in ([0, 1, 2, 3], [0, 1, 3]):
        pi = log_probs[rows].clone().requires_grad_()
        loss_function = PolicyLoss(token_level_loss=aggregate == "token-mean", **settings)
        totals = {"batch_num_tokens": mask[rows].sum(), "global_batch_size": mask[rows].any(-1).sum()}
        given = {"action_mask": mask[rows], "rollout_log_probs": rollout[rows], **totals}
        loss, *_ = loss_function(pi, old[rows], gains[rows], **given)
        loss.backward()
        assert pi.grad is not None
        found.append((loss.detach(), pi.grad[[0, 1, -1]]))
    return max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))


class Buffer(list[Any]):
    """OpenRLHF's replay buffer without its device."""

    sample_batch_size = 1

    @staticmethod
    def collate_fn(items: list[Any]) -> Any:
        """Return one micro-batch of these answers."""
        return make_experience_batch(items, packing_samples=False)


class Actor:
    """Look up the log-probs of an answer, by the first token of its row."""

    table: torch.Tensor

    def train(self) -> None:
        """Do nothing: it has no dropout."""

    def __call__(self, ids: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """Return the log-probs, and no logits."""
        return self.table[ids[:, 0]], None


def metrics_of_an_epoch(answers: list[int], micro_batch: int, level: str) -> dict[str, float]:
    """Return what OpenRLHF's own ``ppo_train`` reports of these answers; the actor is a table of log-probs."""
    draw = torch.Generator().manual_seed(3)
    table, old, rollout, advantage = (torch.rand((6, LENGTH), generator=draw) for _ in range(4))
    mask = torch.rand((6, LENGTH), generator=draw) > 0.2
    numbers = torch.rand((6, 4), generator=draw)
    mask[1], mask[4] = False, False
    items = [
        Experience(
            sequences=torch.tensor([answer, *range(LENGTH)]),
            attention_mask=torch.ones(LENGTH + 1, dtype=torch.long),
            action_mask=mask[answer],
            action_log_probs=-old[answer],
            rollout_log_probs=-rollout[answer] * mask[answer],
            advantages=advantage[answer] * mask[answer],
            info=dict(zip(("kl", "reward", "group_reward_std"), numbers[answer], strict=False)),
            response_length=numbers[answer, 3],
        )
        for answer in answers
    ]
    trainer = object.__new__(ActorPPOTrainer)
    trainer.replay_buffer = Buffer(items)
    trainer.replay_buffer.sample_batch_size = micro_batch
    train = SimpleNamespace(dynamic_batch_enable=False)
    one_step = {"accumulated_gradient": 1, "ring_attn_group": None, "get_grad_norm": lambda _: 1.0}
    nothing = {name: lambda *_, **__: None for name in ("backward", "optimizer_step")}
    trainer.strategy = SimpleNamespace(is_rank_0=lambda: False, all_reduce=lambda status: status, **one_step, **nothing)
    trainer.args = SimpleNamespace(
        train=train,
        ds=SimpleNamespace(tensor_parallel_size=1),
        actor=SimpleNamespace(entropy_coef=None),
        algo=SimpleNamespace(kl=SimpleNamespace(use_loss=False)),
    )
    trainer.max_epochs, trainer.dataloader_pin_memory, trainer.aux_loss, trainer.ema_model = 1, False, False, None
    trainer.actor_loss_fn = PolicyLoss(is_correction_level=level, is_correction_threshold=[0.9, 1.1])
    trainer.actor_optim = trainer.actor_scheduler = SimpleNamespace(get_last_lr=lambda: [0.1])
    trainer.actor = Actor()
    trainer.actor.table = -table
    return {name: float(value) for name, value in trainer.ppo_train(0.0).items()}


def metrics_differ(micro_batch: int | None, level: str) -> dict[str, float]:
    """Return metric -> difference between an epoch with two masked answers of six, and one without them."""
    with_masked = metrics_of_an_epoch([0, 1, 2, 3, 4, 5], micro_batch or 6, level)
    without = metrics_of_an_epoch([0, 2, 3, 5], micro_batch or 4, level)
    assert with_masked.keys() == without.keys()
    return {name: abs(with_masked[name] - without[name]) for name in without}


def loss_of_no_token() -> list[float]:
    """Return the loss of a micro-batch, and of an update, whose answers are all masked, and its largest gradient."""
    pi = torch.full((2, LENGTH), -1.0).requires_grad_()
    zeros = torch.zeros(2, LENGTH)
    loss, *_ = PolicyLoss(is_correction_level="token")(
        *(pi, zeros, zeros), action_mask=zeros.bool(), rollout_log_probs=zeros, batch_num_tokens=torch.tensor(0.0)
    )
    loss.backward()
    assert pi.grad is not None
    return [loss.item(), pi.grad.abs().max().item()]


def samples(spoilt: float = 0.0, log_probs: int = 5) -> list[Any]:
    """Return 20 answers of three tokens and a turn of the environment between them, as OpenRLHF makes them."""
    response = {"prompt": "", "label": "", "observation_tokens": [7, 7, 5, 6, 7, 8], "action_ranges": [(2, 4), (5, 6)]}
    made = []
    for answer in range(20):
        given = [0.0, 0.0, -1.0, spoilt if answer == 3 else -1.0, NAN, -1.0][: log_probs + 1]
        full = {**response, "rollout_log_probs": given, "reward": 1.0}
        made.append(SamplesGenerator._process_response_into_experience(None, full))
    return made


def check(**given: Any) -> dict[str, Any]:
    """Return the metrics of the check, and what it left of the fourth answer, or its error."""
    made, metrics = samples(**given), {}
    try:
        masked = rollout_health.check_log_probs(NO_VLLM, made, metrics, step=5)
    except Fp16PatchError as error:
        return {"code": error.code, "text": str(error), "metrics": metrics}
    left = made[3].action_mask.sum() + made[3].rollout_log_probs.abs().nansum()
    return {"metrics": metrics, "left": float(left), "masked": None if masked is None else masked.nonzero().tolist()}


torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]  # ppo_train asks it
TOKEN, CLIP = {"is_correction_level": "token"}, {"is_correction_mode": "clip"}
os.environ[envs.PRECISION] = Precision(rollout_overflow="mask").to_environment()
found = {
    "advantages": {estimator: advantages_differ(estimator) for estimator in ESTIMATORS},
    "losses": {
        "token mask": loss_differs("token-mean", **TOKEN),
        "token clip": loss_differs("token-mean", **TOKEN, **CLIP),
        "seq mask": loss_differs("token-mean", is_correction_level="seq"),
        "mean of answers": loss_differs("seq-mean", **TOKEN),
        "gspo": loss_differs("seq-mean", policy_loss_type="gspo", **TOKEN),
    },
    "no token": loss_of_no_token(),
    "metrics": {
        f"{level}, {micro_batch or 'all'} at once": metrics_differ(micro_batch, level)
        for level in ("token", "seq")
        for micro_batch in (1, None)
    },
    "check": {"one": check(spoilt=NAN), "none": check(), "short": check(log_probs=4)},
}
os.environ[envs.PRECISION] = Precision().to_environment()
print(json.dumps({**found, "stop": check(spoilt=NAN)}))
