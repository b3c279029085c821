# SPDX-License-Identifier: Apache-2.0
"""Read this rank's scaled gradients from a ZeRO optimizer, between the end of the backward and the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fp16_patch.loss_scaling.gradients import Gradient

Engine = Any  # deepspeed.DeepSpeedEngine, never imported here


def measure_headroom(engine: Engine, scaler: Any) -> None:
    """Measure headroom and underflow share of a sixteenth of the gradients, for ``scaler.last_headroom``; collective.

    Measure nothing if the optimizer is on the CPU, because its gradients have left the device by now, or if
    gradients are accumulated in FP16.
    """
    import torch

    if not engine.zero_use_cpu_optimizer() and engine.get_data_types()[1] == torch.float32:
        scaler.measure_headroom(_gradients(engine.optimizer, scaler.embedding_param_ids), engine.device)


def _gradients(optimizer: Any, embedding_param_ids: frozenset[int]) -> Iterator[Gradient]:
    """Yield every element on one rank only. Padding is left out."""
    sharded = hasattr(optimizer, "fp16_groups")  # ZeRO-3
    groups = optimizer.fp16_groups if sharded else optimizer.params_in_partition
    for number, parameters in enumerate(groups):
        held = optimizer.averaged_gradients.get(number) or ()
        for gradient, parameter in zip(held, parameters, strict=False):  # ZeRO-2 pads with one more
            part = gradient.reshape(-1)
            if sharded:
                part = part[: _own_elements(optimizer, parameter)]
            yield Gradient(part, 1, sampled=id(parameter) not in embedding_param_ids)


def _own_elements(optimizer: Any, parameter: Any) -> int:
    """Return how many elements of this rank's piece are not padding. ZeRO-3 cuts a parameter into equal pieces."""
    import torch.distributed as dist

    length = int(parameter.partition_numel())
    before = length * dist.get_rank(optimizer.dp_process_group)
    own: int = min(max(int(parameter.ds_numel) - before, 0), length)
    return own
