# SPDX-License-Identifier: Apache-2.0
"""Small models that overflow in FP16 on the CPU, and their diagnoses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.diagnosis.cause import Remedies
from fp16_patch.loss_scaling.diagnosis.observations import Diagnosis, diagnose

Module = torch.nn.Module
BF16 = Remedies().in_bf16
WIDTH = 8
ONES = torch.ones(2, WIDTH)
AT_FLOOR = {"init_scale": 1.0}


class Gated(Module):
    """``down(up(x) * up(x))``, the product by the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x) * self.up(x))


class Model(Module):
    """Weights such that everything is near 1, gradients too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp, self.head = torch.nn.Linear(WIDTH, WIDTH), Gated(), torch.nn.Linear(WIDTH, 4)
        for name, parameter in self.named_parameters():
            torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1 / WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mlp(self.embed(x)))


def model(**weights: float) -> Model:
    """``embed``, ``up``, ``down`` and ``head`` multiplied."""
    built = Model()
    with torch.no_grad():
        for name, part in built.named_modules():
            if (short := name.rpartition(".")[2]) in weights:
                part.weight.mul_(weights[short])
    return built


def bad_start(scaler: FsdpLossScaler, updates: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    for _ in range(updates):
        scaler.record(optimizer, finite=False)
        scaler.update()


def total(output: torch.Tensor) -> torch.Tensor:
    return output.float().sum()


def examined(
    module: Module,
    loss: Callable[[torch.Tensor], torch.Tensor] = total,
    skipped: int = 4,
    x: torch.Tensor = ONES,
    **settings: Any,
) -> Diagnosis:
    """A diagnosis of one pass under FP16 autocast, after ``skipped`` skipped updates, at the scale they led to."""
    scaler = FsdpLossScaler(LossScaling(**settings), device="cpu")
    bad_start(scaler, skipped)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.float16):
            output = module(x)
        scaler.scale(loss(output)).backward()

    found = diagnose(module, scaler, run, f"{skipped} updates in a row were skipped")
    assert "scale" not in vars(scaler), "the scaler was left changed"
    return found


def said(found: Diagnosis) -> str:
    return f"{found.cause}; {'; '.join(found.advice)}"
