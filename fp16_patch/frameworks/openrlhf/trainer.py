# SPDX-License-Identifier: Apache-2.0
"""Patches of OpenRLHF's DeepSpeed strategy and of its actor and critic trainers, and reading their precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fp16_patch.frameworks.openrlhf import releases
from fp16_patch.frameworks.openrlhf.ema import average_in_fp32
from fp16_patch.patching import Patch
from fp16_patch.precision import Precision
from fp16_patch.proof.deepspeed import describe_engine
from fp16_patch.proof.dtypes import agree
from fp16_patch.proof.observed import seen

Strategy = Any  # openrlhf.utils.deepspeed.DeepspeedStrategy
Trainer = Any  # openrlhf.trainer.ray.ppo_actor.ActorPPOTrainer, or the critic's


def with_our_loss_scaling(original: Callable[..., Any]) -> Callable[..., Any]:
    """Our settings in DeepSpeed's ``fp16`` block."""

    @functools.wraps(original)
    def get_ds_train_config(self: Strategy, *args: Any, **kwargs: Any) -> dict[str, Any]:
        from fp16_patch.frameworks.deepspeed.settings import fp16_block

        config: dict[str, Any] = original(self, *args, **kwargs)
        if config["fp16"]["enabled"]:
            config["fp16"] = fp16_block(Precision.in_force().loss_scaling)
        return config

    return get_ds_train_config


def observe_logits(original: Callable[..., Any]) -> Callable[..., Any]:
    """Note the dtype of the logits as the model gives them, and of the log-probs made of them."""

    @functools.wraps(original)
    def _ds_init_train_model(self: Strategy, model: Any, cfg: dict[str, Any]) -> Any:
        result = original(self, model, cfg)
        watch_outputs(result[0])
        return result

    return _ds_init_train_model


def watch_outputs(model: Any) -> None:
    """``model`` is OpenRLHF's Actor around an engine, or a critic's engine itself."""
    engine = engine_of(model)

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        logits = output.get("logits") if hasattr(output, "get") else None
        if logits is not None:
            seen(engine)["logits"] = agree([logits.dtype])

    engine.module.register_forward_hook(note)
    if engine is not model:
        model.register_forward_hook(
            lambda _module, _inputs, output: seen(engine).update(
                log_probs=agree([(output[0] if isinstance(output, tuple) else output).dtype])
                if not hasattr(output, "get")
                else "none"
            )
        )


def engine_of(model: Any) -> Any:
    """The DeepSpeed engine in an Actor, a critic's trainer or the engine itself."""
    return model.model if hasattr(model, "packing_samples") and hasattr(model.model, "module") else model


def describe_actor(actor: Any) -> dict[str, str]:
    """Rows for the precision report of one model actor (policy, reference, critic or reward)."""
    model = next(getattr(actor, name) for name in ("actor", "critic", "model") if hasattr(actor, name))
    engine = engine_of(model)
    return describe_engine(engine) | seen(engine)
