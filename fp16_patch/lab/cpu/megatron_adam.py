# SPDX-License-Identifier: Apache-2.0
"""Megatron's distributed optimizer around torch's Adam, which counts its steps parameter by parameter.

Megatron's own, TransformerEngine's and Apex's Adam count them for a whole group, and the checkpoint code is written for
that. Without either of the two it takes torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.lab.cpu.megatron_core import DISTRIBUTION, RELEASES
from fp16_patch.patching import Patch


def _before_the_first_step(original: Callable[..., Any]) -> Callable[..., Any]:
    def state_dict(self: Any) -> Any:
        import torch

        adam = self.optimizer
        if isinstance(adam, torch.optim.Adam) and not adam.state:
            for parameter in (parameter for group in adam.param_groups for parameter in group["params"]):
                averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                adam.state[parameter] = {"step": torch.tensor(0.0), **averages}
        return original(self)

    return state_dict


def _each_its_own_count(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_state_dict(self: Any, state_dict: Any) -> None:
        import torch

        original(self, state_dict)
        if isinstance(self.optimizer, torch.optim.Adam):
            steps = {float(group["step"]) for group in state_dict["optimizer"]["param_groups"]}
            for state in self.optimizer.state.values():
                state["step"] = torch.tensor(max(steps))

    return load_state_dict


def _its_count_too(original: Callable[..., Any]) -> Callable[..., Any]:
    def _set_main_param_and_optimizer_states(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        original(self, model_param, {key: state[key] for key in ("step",) if key in state} | tensors)

    return _set_main_param_and_optimizer_states


def _patch(name: str, method: str, **more: Any) -> Patch:
    return Patch(
        name=f"cpu-megatron-{name}",
        target=f"megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.{method}",
        kind="wrap",
        distribution=DISTRIBUTION,
        versions=RELEASES,
        process="trainer rank",
        upstream="not reported",
        **more,
    )


PATCHES = (
    _patch(
        "adam-before-steps",
        "state_dict",
        reason="Asserts that torch's Adam has counted its steps, which it does from the first one on: a checkpoint can "
        "neither be loaded into a new process nor saved before an update was made.",
        remove_when="DistributedOptimizer.state_dict works on an optimizer that has not stepped",
        make=_before_the_first_step,
        parameters=("self",),
    ),
    _patch(
        "adam-steps",
        "load_state_dict",
        reason="All parameters are given one count together, which each then advances, and the format dp_reshardable "
        "leaves it at zero: after loading, bias correction is wrong and training goes another way, silently. The "
        "count that was saved is given to each parameter.",
        remove_when="DistributedOptimizer.load_state_dict gives every parameter a step of its own, the one saved",
        make=_each_its_own_count,
        parameters=("self", "state_dict"),
    ),
    _patch(
        "adam-resharded",
        "_set_main_param_and_optimizer_states",
        reason="Copies every state that torch's Adam has, the count too, but the format that is independent of the "
        "layout holds no count for a parameter: loading it ends in a KeyError. The group's count is set afterwards.",
        remove_when="DistributedOptimizer loads fully_reshardable checkpoints into torch's Adam",
        make=_its_count_too,
        parameters=("self", "model_param", "tensors"),
    ),
)
