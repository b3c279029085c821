# SPDX-License-Identifier: Apache-2.0
"""Small models that overflow in FP16 on the CPU, and their traces."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow, ModuleTrace

Module = torch.nn.Module
WIDTH = 8


class Gated(Module):
    """``down(act(gate(x)) * up(x))``: the product is this module's own work, not a child's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.act = torch.nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Layer(Module):
    def __init__(self, how: str | None) -> None:
        super().__init__()
        self.norm, self.mlp, self.how = torch.nn.LayerNorm(WIDTH), Gated(), how

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        if self.how is None:
            return (x + self.mlp(self.norm(x)),)
        return (x + checkpoint(lambda y: self.mlp(self.norm(y)), x, use_reentrant=self.how == "reentrant"),)


class Model(Module):
    """Decoder layers that return tuples, and an output like transformers': a mapping with a nested tuple."""

    def __init__(self, how: str | None = None) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(how) for _ in range(2))
        self.head = torch.nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1])[0])
        return {"logits": self.head(states[-1]), "states": (tuple(states), None), "length": torch.tensor(3)}


def new(how: str | None = None) -> Model:
    torch.manual_seed(0)
    return Model(how)


INPUT = torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)


def run(module: Module, scale: float = 1.0, x: torch.Tensor = INPUT) -> None:
    """Forward under FP16 autocast, a loss in FP32, its backward."""
    with torch.autocast("cpu", dtype=torch.float16):
        output = module(x.clone().requires_grad_())
    logits = output["logits"] if isinstance(output, dict) else output
    (logits.float().sum() * scale).backward()


def traced(module: Module, *args: Any, **options: Any) -> dict[str, ModuleRow]:
    with ModuleTrace(module) as trace:
        run(module, *args, **options)
    return {row.module: row for row in trace.rows()}


def first(rows: dict[str, ModuleRow], order: str) -> str:
    found = {name: getattr(row, order) for name, row in rows.items() if getattr(row, order) is not None}
    return min(found, key=lambda name: found[name])


def chain(*weights: float) -> torch.nn.Sequential:
    """Linear layers that multiply the sum of their inputs: gradients and activations grow by weight x width."""
    layers = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in weights])
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.fill_(weight)
    return layers


def hooks_of(module: Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
