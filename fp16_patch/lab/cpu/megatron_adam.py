# SPDX-License-Identifier: Apache-2.0
"""Fix checkpoints of Megatron's distributed optimizer around torch's Adam, which counts steps per parameter.

TransformerEngine's and Apex's Adam count steps per parameter group, and Megatron's checkpoint code is written for
that. Without either library Megatron uses torch's Adam.
"""

from __future__ import annotations

from typing import Any

from fp16_patch.lab.cpu.releases import MEGATRON_CORE_RANK
from fp16_patch.patching import wrap

OPTIMIZER = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"


@wrap(
    f"{OPTIMIZER}.state_dict",
    **MEGATRON_CORE_RANK,
    reason="state_dict asserts that torch's Adam has counted its steps, which Adam does only from its first step on. "
    "A checkpoint can then neither be loaded into a new process nor saved before the first update.",
    upstream="not reported",
    remove_when="DistributedOptimizer.state_dict works on an optimizer that has not stepped",
)
def _cpu_megatron_adam_before_steps(original: Any, self: Any) -> Any:
    import torch

    adam = self.optimizer
    if isinstance(adam, torch.optim.Adam) and not adam.state:
        for parameter in (parameter for group in adam.param_groups for parameter in group["params"]):
            averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            adam.state[parameter] = {"step": torch.tensor(0.0), **averages}
    return original(self)


@wrap(
    f"{OPTIMIZER}.load_state_dict",
    **MEGATRON_CORE_RANK,
    reason="load_state_dict gives all parameters one shared step count, which each of them advances, and the format "
    "dp_reshardable leaves it at zero. Bias correction is then wrong, without an error. The patch gives each "
    "parameter its own count, as saved.",
    upstream="not reported",
    remove_when="DistributedOptimizer.load_state_dict gives every parameter its own step count, as saved",
)
def _cpu_megatron_adam_steps(original: Any, self: Any, state_dict: Any) -> None:
    import torch

    original(self, state_dict)
    if isinstance(self.optimizer, torch.optim.Adam):
        steps = {float(group["step"]) for group in state_dict["optimizer"]["param_groups"]}
        for state in self.optimizer.state.values():
            state["step"] = torch.tensor(max(steps))


@wrap(
    f"{OPTIMIZER}._set_main_param_and_optimizer_states",
    **MEGATRON_CORE_RANK,
    reason="Megatron copies every state of torch's Adam, including the step count. The format that is independent of "
    "the layout has no count per parameter, so loading ends in a KeyError. The patch passes the current count; the "
    "saved one is set afterwards.",
    upstream="not reported",
    remove_when="DistributedOptimizer loads fully_reshardable checkpoints into torch's Adam",
)
def _cpu_megatron_adam_resharded(original: Any, self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
    group, order = self.model_param_group_index_map[model_param]
    state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
    original(self, model_param, {key: state[key] for key in ("step",) if key in state} | tensors)
