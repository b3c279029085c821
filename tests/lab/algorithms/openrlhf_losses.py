# SPDX-License-Identifier: Apache-2.0
"""Run as a script: the loss and gradient of OpenRLHF's own code for every case, as JSON into the file that is named.

The arguments are the recipe's, parsed by OpenRLHF. Advantages are its experience maker's, the loss is its
``PolicyLoss``, built by the very expression with which its trainer builds it.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fp16_patch import platforms

platforms.activate()
from cases import cases  # noqa: E402
from fixed_batch import Answer, answers  # noqa: E402
from openrlhf import models  # noqa: E402
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker  # noqa: E402

from fp16_patch.lab.trainers import TRAINERS  # noqa: E402


def loss_and_gradient(args: Any) -> tuple[float, list[float]]:
    """Of one update over the whole batch on one rank."""
    batch = answers()
    mask = padded([torch.ones(len(answer.mu)) for answer in batch]).bool()
    leaves = [answer.new.clone().requires_grad_() for answer in batch]
    loss, *_ = policy_loss(args)(
        padded(leaves),
        padded([answer.old for answer in batch]),
        advantages(args, batch, mask),
        action_mask=mask,
        rollout_log_probs=padded([answer.mu for answer in batch]),
        dp_size=1,
        batch_num_tokens=mask.sum().item(),
        global_batch_size=len(batch),
    )
    loss.backward()
    return loss.item(), [value for leaf in leaves for value in leaf.grad.tolist()]


def advantages(args: Any, batch: list[Answer], mask: torch.Tensor) -> torch.Tensor:
    maker = object.__new__(RemoteExperienceMaker)
    maker.strategy, maker.kl_ctl = SimpleNamespace(args=args), SimpleNamespace(value=0.0)
    maker.advantage_estimator, maker.args = args.algo.advantage.estimator, args
    args.rollout.n_samples_per_prompt = len(batch) // len({answer.group for answer in batch})
    experience = SimpleNamespace(
        rewards=torch.tensor([answer.reward for answer in batch]),
        index=list(range(len(batch))),
        kl=torch.zeros(mask.shape),
        action_mask=mask,
        info={},
    )
    (made,) = maker.compute_advantages_and_returns([experience])
    found: torch.Tensor = made.advantages
    return found


def policy_loss(args: Any) -> Any:
    """``ActorPPOTrainer.__init__``'s own ``PolicyLoss(...)``; the class is not built, for it needs DeepSpeed."""
    source = Path(models.__file__).parents[1] / "trainer" / "ray" / "ppo_actor.py"
    calls = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
    (built,) = (call for call in calls if ast.unparse(call.func) == "PolicyLoss")
    names = {"PolicyLoss": models.PolicyLoss, "self": SimpleNamespace(args=args)}
    return eval(compile(ast.Expression(built), str(source), "eval"), names)


def padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


if __name__ == "__main__":
    found = {
        case.name: loss_and_gradient(TRAINERS["openrlhf"].compose(case.command("openrlhf")))
        for case in cases("openrlhf")
    }
    Path(sys.argv[1]).write_text(json.dumps(found))
