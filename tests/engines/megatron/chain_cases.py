# SPDX-License-Identifier: Apache-2.0
"""Optimizers with several parts: experts' own, and some parameters' own; as Megatron does it, and with one scale."""

from __future__ import annotations

from typing import Any

import hypothesis
from core_building import Training
from core_registry import case, in_layout
from engine_ranks import Result
from megatron.core.optimizer import ChainedOptimizer, get_megatron_optimizer
from test_scaler import UPDATES, Reference, settings

from fp16_patch.engines.megatron.scaler import install_loss_scaler
from fp16_patch.engines.megatron.step import take_step
from fp16_patch.engines.megatron.sub_optimizers import list_sub_optimizers
from fp16_patch.loss_scaling import LossScaling

HYSTERESIS = 2
"""Megatron's own default."""


def of_two(training: Training, chosen: LossScaling | None) -> list[Any]:
    """Give the output layer an optimizer of its own, as some recipes do; the parameters of each."""
    apart = training.model[0].module.module.output_layer.weight
    others = [parameter for parameter in training.model[0].parameters() if parameter is not apart]
    parts = []
    for frozen in ([apart], others):
        for parameter in frozen:
            parameter.requires_grad_(False)
        parts += list_sub_optimizers(get_megatron_optimizer(training.optimizer_config, training.model))
        for parameter in frozen:
            parameter.requires_grad_(True)
    training.optimizer = ChainedOptimizer(parts)
    training.config.grad_scale_func = None if chosen else training.optimizer.scale_loss
    training.scaler = install_loss_scaler(training.optimizer, chosen, training.model) if chosen else None
    return [others, [apart]]


def drift(rank: int, *, ours: bool, apart: bool = False, **options: Any) -> Result:
    """A good update, three that overflow in the last part only, a good one; weights stand still."""
    chosen = LossScaling(init_scale=2.0**12, hysteresis=HYSTERESIS) if ours else None
    stock = {"initial_loss_scale": 2.0**12, "hysteresis": HYSTERESIS}
    training = Training(chosen, lr=0.0, optimizer=None if ours else stock, **options)
    parameters = of_two(training, chosen) if apart else []
    norms, scales = [], []
    for good in (True, False, False, False, True):
        training.backward()
        if not good and apart:
            parameters[1][0].main_grad[:] = float("inf")
        elif not good and rank == 1:
            training.spoil(experts=True)
        made, *_ = training.optimizer.step()
        assert made is good
        scales.append([float(part.get_loss_scale()) for part in list_sub_optimizers(training.optimizer)])
        if good:
            norms.append([part.get_grad_norm() for part in list_sub_optimizers(training.optimizer)])
    return {"norms": norms, "scales": scales}


for name, ours in (("drift", True), ("stock-drift", False)):
    in_layout(name, drift, "ep2", ours=ours)
    in_layout(name, drift, "ep2-replicated", ours=ours)
    case(f"{name}-apart", drift, ours=ours, apart=True, distributed=False)


def any_sequence(rank: int) -> Result:
    """Each part overflows when it likes: the one scale follows the reference of a run with one part."""
    training = Training(LossScaling(), distributed=False, lr=0.0)
    parameters = of_two(training, LossScaling())
    examples = 0

    @hypothesis.settings(deadline=None, max_examples=100, database=None, derandomize=True)
    @hypothesis.given(settings(), UPDATES, UPDATES)
    def check(chosen: LossScaling, first: list[bool], second: list[bool]) -> None:
        nonlocal examples
        examples += 1
        training.config.grad_scale_func = None
        scaler, reference = install_loss_scaler(training.optimizer, chosen, training.model), Reference(chosen)
        for overflows in zip(first, second, strict=False):
            for part, overflow in zip(parameters, overflows, strict=True):
                for parameter in part:
                    parameter.main_grad.fill_(scaler.get_scale() * 1e-6)
                part[-1].main_grad.view(-1)[-1] = float("nan") if overflow else 0.0
            update = take_step(training.optimizer)
            assert update.skipped == any(overflows)
            assert update.loss_scale == reference.scale
            reference.update(any(overflows))
            assert scaler.state_dict() == reference.state()
            for part in list_sub_optimizers(training.optimizer):
                assert float(part.get_loss_scale()) == reference.scale
                assert part.grad_scaler._growth_tracker == reference.good_in_a_row

    check()
    return {"examples": examples}


case("any-sequence", any_sequence)
