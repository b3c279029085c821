# SPDX-License-Identifier: Apache-2.0
"""Small models with overflows, and diagnoses of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.diagnosis.advice import Diagnosis, Fallbacks
from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow, ModuleTrace
from fp16_patch.loss_scaling.diagnosis.observations import Losses, Observations, observe
from fp16_patch.loss_scaling.loss_check import BadLoss

Module = torch.nn.Module
BF16 = Fallbacks().in_bf16
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


class Found(Diagnosis):
    """A diagnosis with shorter names."""

    def __init__(self, observations: Observations) -> None:
        super().__init__(observations)
        self.case, self.suspects = self.cause.case, self.cause.culprits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.observations, name)


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
    bad_loss: BadLoss | None = None,
    **settings: Any,
) -> Found:
    """A diagnosis of one pass under FP16 autocast, after ``skipped`` skipped updates, at the scale they led to."""
    scaler = FsdpLossScaler(LossScaling(**settings), device="cpu")
    bad_start(scaler, skipped)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.float16):
            output = module(x)
        if bad_loss is not None:
            scaler.report_bad_loss(bad_loss)
        scaler.scale(loss(output)).backward()

    found = observe(partial(ModuleTrace, module), scaler, run, f"{skipped} updates in a row were skipped")
    assert "scale" not in vars(scaler), "the scaler was left changed"
    return Found(found)


def said(found: Found) -> str:
    return f"{found.summary}; {'; '.join(found.advice)}"


def row(module: str, backward: int, overflow: bool = False, **fields: Any) -> ModuleRow:
    return replace(
        ModuleRow(
            module=module,
            class_name="Linear",
            dtype="float16",
            has_parameters=True,
            forward_order=100 - backward,
            activation_peak=1.0,
            activation_nonfinite=0.0,
            forward_overflow=None,
            backward_order=backward,
            gradient_peak=None if overflow else float(backward + 1),
            gradient_nonfinite=float(overflow),
            first_overflow=backward if overflow else None,
        ),
        **fields,
    )


def diagnosis(*rows: ModuleRow, **fields: Any) -> Found:
    some: dict[str, Any] = {
        "reason": "20 updates in a row were skipped",
        "loss_scale": 65536.0,
        "settings": LossScaling().as_dict(),
        "history": [(0, 65536.0)],
        "counts": {"updates": 20, "skipped": 20, "consecutive": 20, "growths": 0, "backoffs": 0},
        "rows": rows,
        "losses": Losses(peak=1.0),
    }
    return Found(Observations(**some | fields))


def fp32_of(found: Found) -> str:
    return next((line.partition(": ")[2] for line in found.advice if "fp32_modules" in line), "")
