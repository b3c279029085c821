# SPDX-License-Identifier: Apache-2.0
"""Real optimizers and models that are refused, and why."""

from __future__ import annotations

from typing import Any

from core_building import Training
from core_registry import case
from engine_ranks import Result, describe_error
from megatron.core.optimizer import ChainedOptimizer

from fp16_patch.engines.megatron.scaler import install_loss_scaler
from fp16_patch.engines.megatron.step import take_step
from fp16_patch.engines.megatron.sub_optimizers import list_sub_optimizers
from fp16_patch.loss_scaling import LossScaling


def refused(rank: int) -> Result:
    return {name: _error(name, **options) for name, options in REFUSED.items()}


REFUSED: dict[str, dict[str, Any]] = {
    "static": {"optimizer": {"loss_scale": 1024.0}},
    "nan-check": {"ddp": {"check_for_nan_in_grad": True}},
    "large-check": {"ddp": {"check_for_large_grads": True}},
    "half-sharded": {"distributed": False, "ddp": {"use_distributed_optimizer": True}},
    "fp16-sums": {"ddp": {"grad_reduce_in_fp32": False}},
    "router": {"experts": 4, "transformer": {"moe_router_dtype": None}},
    "bf16": {"dtype": "bf16"},
    "fp32": {"dtype": "fp32", "distributed": False},
}


def _error(name: str, **options: Any) -> Result:
    training = Training(None, **options)
    training.config.grad_scale_func = None
    before = [getattr(part, "grad_scaler", None) for part in list_sub_optimizers(training.optimizer)]
    try:
        install_loss_scaler(training.optimizer, LossScaling(), training.model)
    except RuntimeError as error:
        after = [getattr(part, "grad_scaler", None) for part in list_sub_optimizers(training.optimizer)]
        assert before == after, "refused, and changed all the same"
        return describe_error(error)
    finally:
        training.close()
    return {}


case("refused", refused)


def other(rank: int) -> Result:
    """A scale function of somebody else's; an optimizer without our scaler; one of another class."""
    errors = {}
    training = Training(None)
    training.config.grad_scale_func = lambda loss: loss * 2
    for name, run in {
        "grad_scale_func": lambda: install_loss_scaler(training.optimizer, LossScaling(), training.model),
        "no-loss-scaler": lambda: take_step(training.optimizer),
        "emerging": lambda: install_loss_scaler(_unknown(training), LossScaling(), training.model),
    }.items():
        try:
            run()
        except RuntimeError as error:
            errors[name] = describe_error(error)
    return errors


def _unknown(training: Training) -> Any:
    """Muon needs a package that is not here; to Megatron it is an optimizer of another class in the chain."""
    (part,) = list_sub_optimizers(training.optimizer)
    part.__class__ = type("TensorParallelMuonOptimizer", (type(part),), {})
    return ChainedOptimizer([part])


case("refused-others", other)
