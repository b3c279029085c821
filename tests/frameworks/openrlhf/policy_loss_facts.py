# SPDX-License-Identifier: Apache-2.0
"""Print as JSON facts of OpenRLHF's own loss and backward. ``test_measuring_mismatch.py`` runs it.

They are: which importance corrections change the loss, and what the check before the backward pass finds.
"""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import torch

from fp16_patch.attached_state import attached
from fp16_patch.engines.deepspeed.step import losses_of
from fp16_patch.lab.cpu import import_stubs
from fp16_patch.patching import apply

import_stubs.install_flash_attention()
from openrlhf.models import PolicyLoss  # noqa: E402  it imports flash-attn
from openrlhf.utils.deepspeed.deepspeed import DeepspeedStrategy  # noqa: E402

from fp16_patch.frameworks.openrlhf.loss_check import Batch, check_before_backward  # noqa: E402

SHAPE = (8, 24)
MEASURING = {"is_correction_level": "token", "is_correction_mode": "clip", "is_correction_threshold": [1.0, 1.0]}
CLIPPING = {**MEASURING, "is_correction_threshold": [0.0, 5.0]}


def loss_and_gradient(kind: str, correction: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both for a batch whose rollout is far from its policy: ratios from e-9 to e+9."""
    draw = torch.Generator().manual_seed(1)
    log_probs = (-3 * torch.rand(SHAPE, generator=draw)).requires_grad_()
    old = log_probs.detach() + 0.1 * torch.randn(SHAPE, generator=draw)
    advantages = torch.randn(SHAPE, generator=draw)
    mask = (torch.rand(SHAPE, generator=draw) > 0.2).float()
    rollout = (old + 3 * torch.randn(SHAPE, generator=draw)) * mask
    given = {"rollout_log_probs": rollout} if correction else {}
    loss, *_ = PolicyLoss(policy_loss_type=kind, **correction)(log_probs, old, advantages, action_mask=mask, **given)
    loss.backward()
    assert log_probs.grad is not None
    return loss.detach(), log_probs.grad


def same(kind: str, correction: dict[str, Any]) -> bool:
    """Return whether loss and gradient equal those without correction, bit for bit."""
    return all(map(torch.equal, loss_and_gradient(kind, {}), loss_and_gradient(kind, correction)))


class Engine:
    """A model whose backward is torch's, as DeepSpeed's engine has one."""

    def __init__(self) -> None:
        self.log_probs = torch.full(SHAPE, -1.0, requires_grad=True)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


def found_before_backward(spoilt: str, value: float) -> dict[str, Any]:
    """Return what the check finds in a batch with one bad number, or an empty mask, and what the gradients are."""
    engine, strategy = Engine(), object.__new__(DeepspeedStrategy)
    names = ("action_log_probs", "rollout_log_probs", "advantages", "action_mask")
    values = (torch.full(SHAPE, -1.0), torch.full(SHAPE, -1.5), torch.ones(SHAPE), torch.ones(SHAPE))
    batch = dict(zip(names, values, strict=True))
    if spoilt == "rollout_log_probs":  # a number where the mask is 0 is not to blame
        batch["action_mask"][0, 0], batch["advantages"][0, 0] = 0, math.nan
    if spoilt == "action_mask":
        batch[spoilt].zero_()
    elif spoilt:
        batch[spoilt][3, 5] = value
    mine = attached(strategy, Batch)
    mine.experience, mine.engine, mine.role = SimpleNamespace(**batch), engine, "actor"
    old, rollout, advantages, mask = (batch[name] for name in names)
    loss, *_ = PolicyLoss(**CLIPPING)(engine.log_probs, old, advantages, action_mask=mask, rollout_log_probs=rollout)
    if spoilt == "action_mask":
        loss = loss / mask.sum()
    strategy.backward(loss, engine, None)
    found = losses_of(engine).bad_loss_here
    gradient = engine.log_probs.grad
    return {"found": found and [found.role, found.source], "nan": bool(gradient.isnan().any())}


apply([check_before_backward])
corrections = {
    f"{kind} {name}": same(kind, c)
    for kind in ("ppo", "gspo")
    for name, c in (("measuring", MEASURING), ("clipping", CLIPPING))
}
spoilt = (("", 0.0), ("advantages", math.nan), ("rollout_log_probs", math.nan), ("action_mask", 0.0))
print(json.dumps({"unchanged": corrections, "found": {name: found_before_backward(name, bad) for name, bad in spoilt}}))
