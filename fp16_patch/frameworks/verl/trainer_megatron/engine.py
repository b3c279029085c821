# SPDX-License-Identifier: Apache-2.0
"""verl's Megatron engine: an overflow is a skipped update, one loss scale for all, and what it computes in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fp16_patch.engines.megatron import optimizer_choice
from fp16_patch.engines.megatron.precision import describe_megatron
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl import trainer
from fp16_patch.frameworks.verl.releases import in_trainer_rank
from fp16_patch.patching import Patch
from fp16_patch.precision import Precision, long_name
from fp16_patch.report.observed_dtypes import record_dtype, recorded_dtypes

_MODULE = "verl.workers.engine.megatron.transformer_impl"
_ENGINE = f"{_MODULE}:MegatronEngine"

Engine = Any  # verl.workers.engine.megatron.transformer_impl.MegatronEngine, never imported here


def check_dtype(original: Callable[..., Any]) -> Callable[..., Any]:
    """After verl has read its configuration: does this engine, trained or not, compute in the train dtype?"""

    @functools.wraps(original)
    def _build_tf_config(self: Engine) -> None:
        import torch

        original(self)
        wanted = getattr(torch, long_name(Precision.current().train_dtype))
        if self.param_dtype != wanted:
            raise Fp16PatchError(
                f"verl built a Megatron engine that computes in {self.param_dtype}, not {wanted}",
                code="wrong-dtype-built",
                next_step="report this with the precision report and your command: the flag did not hold",
            )

    return _build_tf_config


def govern_scalers(original: Callable[..., Any]) -> Callable[..., Any]:
    """One loss scale, ours, for all optimizers that Megatron chains."""

    @functools.wraps(original)
    def _build_optimizer(self: Engine) -> Any:
        optimizer = original(self)
        precision = Precision.current()
        if precision.train_dtype == "fp16":
            from fp16_patch.engines.megatron.scaler import install_loss_scaler

            self.scaler = install_loss_scaler(optimizer, precision.loss_scaling, self.module)
        return optimizer

    return _build_optimizer


def step_or_skip(original: Callable[..., Any]) -> Callable[..., Any]:
    """verl's step; an overflow is a skipped update. Returns the gradient norm, None on a skip."""

    @functools.wraps(original)
    def optimizer_step(self: Engine) -> Any:
        if trainer.scaler_of(self) is None:
            return original(self)
        from fp16_patch.engines.megatron import step

        return trainer.note(self, step.take_step(self.optimizer))

    return optimizer_step


def observe_outputs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Note the dtypes of log-probs or values as they leave the model."""

    @functools.wraps(original)
    def prepare_model_outputs(self: Engine, output: Any, data: Any) -> Any:
        result = original(self, output, data)
        for name in ("log_probs", "values"):
            if (tensor := result.get(name)) is not None:
                record_dtype(self, name, tensor.dtype)
        return result

    return prepare_model_outputs


def describe_engine(engine: Engine) -> dict[str, str]:
    """Precision rows of one live Megatron engine: what is in force, and what was seen passing."""
    rows = describe_megatron(engine.module, engine.optimizer)
    if engine.optimizer is not None:
        rows["optimizer"] = optimizer_choice.in_use(engine.optimizer)
    router = getattr(engine.tf_config, "moe_router_dtype", None)
    if getattr(engine.tf_config, "num_moe_experts", None):
        rows["router"] = {"fp32": "float32", "fp64": "float64"}.get(str(router), str(router))
    return rows | recorded_dtypes(engine)


PATCHES: tuple[Patch, ...] = (
    in_trainer_rank(
        "megatron-dtype",
        f"{_ENGINE}._build_tf_config",
        kind="wrap",
        make=check_dtype,
        parameters=("self",),
        reason="checks that the engine computes in the train dtype; changes nothing",
        upstream="none: our own proof",
        remove_when="never",
    ),
    in_trainer_rank(
        "megatron-loss-scaler",
        f"{_ENGINE}._build_optimizer",
        kind="wrap",
        make=govern_scalers,
        parameters=("self",),
        reason="Megatron's scaler has no ceiling and fixed factors, and each optimizer of a chain has its own: with "
        "expert parallelism the experts' scale drifts from the one the loss is multiplied by, and their gradients are "
        "wrong by the ratio",
        upstream="megatron-core optimizer/optimizer.py:540-553, optimizer/grad_scaler.py",
        remove_when="megatron-core keeps one scale for a chain of optimizers and bounds it",
    ),
    in_trainer_rank(
        "megatron-optimizer-step",
        f"{_ENGINE}.optimizer_step",
        kind="wrap",
        make=step_or_skip,
        parameters=("self",),
        reason="verl raises NotImplementedError at Megatron's first overflow. Ours makes it a skipped update that is "
        "counted and reported; engines without a scaler run verl's own function",
        upstream="verl workers/engine/megatron/transformer_impl.py:700-706",
        remove_when="verl treats Megatron's overflow as a skipped update",
    ),
    trainer.hold_lr_patch("megatron", _ENGINE),
    *(
        in_trainer_rank(
            f"megatron-observe-{what}",
            f"{_MODULE}:{engine}.prepare_model_outputs",
            kind="wrap",
            make=observe_outputs,
            parameters=("self", "output", "data"),
            reason="the precision report states dtypes seen on live tensors; reads them, changes nothing",
            upstream="none: our own proof",
            remove_when="never",
        )
        for what, engine in (("log-probs", "MegatronEngineWithLMHead"), ("values", "MegatronEngineWithValueHead"))
    ),
)
