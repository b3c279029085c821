# SPDX-License-Identifier: Apache-2.0
"""Print as JSON which importance corrections of OpenRLHF change the loss. ``test_measuring_mismatch.py`` runs it."""

from __future__ import annotations

import json
from typing import Any

import torch

from fp16_patch.lab.cpu import import_stubs

import_stubs.install_flash_attention()
from openrlhf.models import PolicyLoss  # noqa: E402  it imports flash-attn

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


print(
    json.dumps(
        {
            f"{kind} {name}": same(kind, c)
            for kind in ("ppo", "gspo")
            for name, c in (("measuring", MEASURING), ("clipping", CLIPPING))
        }
    )
)
