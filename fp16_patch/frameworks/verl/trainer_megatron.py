# SPDX-License-Identifier: Apache-2.0
"""Patch verl's Megatron engine: skip updates that overflow, with one loss scale for all of its optimizers.

Megatron's checkpoint has the scale in the optimizer's section. A run that loads without that section loses it.
"""

from __future__ import annotations

from typing import Any

from fp16_patch.engines.megatron import optimizer_choice
from fp16_patch.engines.megatron.precision import describe_megatron
from fp16_patch.frameworks.verl.loss_check import step_without_scale
from fp16_patch.frameworks.verl.releases import MEGATRON_RANK
from fp16_patch.frameworks.verl.state import scaler_of
from fp16_patch.frameworks.verl.trainer import check_built_dtype, record_update
from fp16_patch.log import logger
from fp16_patch.patching import hook, wrap
from fp16_patch.precision import Precision
from fp16_patch.report.observed_dtypes import record_dtype, recorded_dtypes

_MODULE = "verl.workers.engine.megatron.transformer_impl"
_ENGINE = f"{_MODULE}:MegatronEngine"
_OBSERVED: dict[str, Any] = {
    **MEGATRON_RANK,
    "reason": "the precision report states dtypes seen on live tensors; reads them, changes nothing",
}

Engine = Any  # verl.workers.engine.megatron.transformer_impl.MegatronEngine, never imported here


@hook(
    f"{_ENGINE}._build_tf_config",
    name="megatron-dtype",
    **MEGATRON_RANK,
    reason="checks that the engine computes in the train dtype; changes nothing",
)
def check_dtype(original: Any, self: Engine) -> None:
    """Check that this engine, trained or not, computes in the train dtype after verl read its configuration."""
    original(self)
    check_built_dtype(self.param_dtype)


@wrap(
    f"{_ENGINE}._build_optimizer",
    name="megatron-loss-scaler",
    **MEGATRON_RANK,
    reason="Megatron's scaler has no ceiling and fixed factors, and each optimizer of a chain has its own: with "
    "expert parallelism the experts' scale drifts from the one the loss is multiplied by, and their gradients are "
    "wrong by the ratio",
    upstream="megatron-core optimizer/optimizer.py:540-553, optimizer/grad_scaler.py",
    remove_when="megatron-core keeps one scale for a chain of optimizers and bounds it",
)
def build_optimizer(original: Any, self: Engine) -> Any:
    """Install our loss scaler in all optimizers that Megatron chains."""
    optimizer = original(self)
    precision = Precision.current()
    if precision.train_dtype == "fp16":
        from fp16_patch.engines.megatron.scaler import install_loss_scaler

        self.scaler = install_loss_scaler(optimizer, precision.loss_scaling, self.module)
    return optimizer


@wrap(
    f"{_ENGINE}.optimizer_step",
    name="megatron-optimizer-step",
    **MEGATRON_RANK,
    reason="verl raises NotImplementedError at Megatron's first overflow. Ours makes it a skipped update that is "
    "counted and reported; engines without a scaler run verl's own function, unless a loss is not finite",
    upstream="verl workers/engine/megatron/transformer_impl.py:700-706",
    remove_when="verl treats Megatron's overflow as a skipped update",
)
def optimizer_step(original: Any, self: Engine) -> Any:
    """Step, or skip the update on an overflow. Return the gradient norm, None on a skip."""
    if scaler_of(self) is None:
        return step_without_scale(original, self)
    from fp16_patch.engines.megatron import step

    return record_update(self, step.take_step(self.optimizer))


@wrap(
    f"{_ENGINE}.load_checkpoint",
    name="megatron-load-scaler",
    **MEGATRON_RANK,
    reason="verl loses the loss scale silently when it loads a checkpoint without the optimizer's section",
    upstream="verl utils/checkpoint/megatron_checkpoint_manager.py",
    remove_when="verl reports it",
)
def log_resumed_scale(original: Any, self: Engine, local_path: str, *args: Any, **kwargs: Any) -> Any:
    """Log the scale after loading. Warn if the checkpoint has none, or if it was not loaded."""
    if scaler_of(self) is None or local_path is None:
        return original(self, local_path, *args, **kwargs)
    from fp16_patch.engines.megatron import checkpoint

    checkpoint.refuse_other_trainers(local_path)
    result = original(self, local_path, *args, **kwargs)
    logger.info(checkpoint.resumption(self.optimizer, local_path))
    return result


@hook(f"{_MODULE}:MegatronEngineWithValueHead.prepare_model_outputs", name="megatron-observe-values", **_OBSERVED)
@hook(f"{_MODULE}:MegatronEngineWithLMHead.prepare_model_outputs", name="megatron-observe-log-probs", **_OBSERVED)
def prepare_model_outputs(original: Any, self: Engine, output: Any, data: Any) -> Any:
    """Record the dtypes of log-probs or values as they leave the model."""
    result = original(self, output, data)
    for name in ("log_probs", "values"):
        if (tensor := result.get(name)) is not None:
            record_dtype(self, name, tensor.dtype)
    return result


def describe_engine(engine: Engine) -> dict[str, str]:
    """Return the precision rows of one live Megatron engine: its dtypes in force, and those recorded."""
    rows = describe_megatron(engine.module, engine.optimizer)
    if engine.optimizer is not None:
        rows["optimizer"] = optimizer_choice.in_use(engine.optimizer)
    router = getattr(engine.tf_config, "moe_router_dtype", None)
    if getattr(engine.tf_config, "num_moe_experts", None):
        rows["router"] = {"fp32": "float32", "fp64": "float64"}.get(str(router), str(router))
    return rows | recorded_dtypes(engine)
