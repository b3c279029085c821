# SPDX-License-Identifier: Apache-2.0
"""Overflows that do not end, made in one module on one rank: the stop and its report; a traced update."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from core_building import Training
from core_registry import case, in_layout
from engine_ranks import Result, describe_error

from fp16_patch import envs
from fp16_patch.engines.megatron.replay import new_replay, stop_after_too_many
from fp16_patch.engines.megatron.step import take_step
from fp16_patch.loss_scaling import LossScaling

STOPPING = LossScaling(init_scale=2.0**10, max_consecutive_skips=3)


def overflowing(training: Training, name: str) -> None:
    """The gradient that arrives at the output of this rank's module ``name`` is inf."""
    inner = training.model[-1].module.module
    module = inner.get_submodule(name)

    def spoil(_: Any, inputs: Any, outputs: Any) -> None:
        output = outputs[0] if isinstance(outputs, tuple) else outputs
        output.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))

    module.register_forward_hook(spoil)


def stopped(rank: int, *, name: str, bad: int, where: str | None = None, factor: Any = 1.0, **options: Any) -> Result:
    training = Training(STOPPING, **options)
    if where is not None and rank == bad:
        overflowing(training, where)
    os.environ[envs.REPORTS] = str(Path(os.environ[envs.REPORTS], name))

    def run() -> object:
        return training.backward(factor=factor)

    updates: list[dict[str, Any]] = []
    error: Result = {}
    while not error and len(updates) < 5:
        run()
        update = take_step(training.optimizer)
        updates.append({"skipped": update.skipped, "scale": update.loss_scale})
        try:
            stop_after_too_many(training.optimizer, update, run, role="actor", in_bf16="use BF16")
        except RuntimeError as raised:
            error = describe_error(raised)
    report = Path(os.environ[envs.REPORTS], "overflow_report_actor.json")
    return {"updates": updates, **error, "report": json.loads(report.read_text()) if rank == 0 else None}


def stop(name: str, layout: str, **options: Any) -> None:
    in_layout(f"stop-{name}", stopped, layout, name=f"{name}-{layout}", **options)


stop("layer", "1", where="decoder.layers.1.self_attention.linear_qkv", bad=0)
stop("layer", "tp2", where="decoder.layers.1.mlp.linear_fc1", bad=1)
stop("first-stage", "pp2", where="decoder.layers.0.mlp.linear_fc2", bad=0)
stop("last-stage", "pp2", where="decoder.layers.0.mlp.linear_fc2", bad=1)
stop("last-chunk", "vpp2", where="decoder.layers.0.mlp.linear_fc2", bad=0)
stop("expert", "ep2", where="decoder.layers.1.mlp.experts.local_experts.0.linear_fc1", bad=1)
stop("loss", "pp2", bad=0, factor=float("nan"))
stop("last-micro-batch", "pp2", bad=0, factor=[1.0, float("inf")])


def without_a_batch(rank: int) -> Result:
    training = Training(STOPPING)
    for _ in range(3):
        training.backward(factor=float("inf"))
        update = take_step(training.optimizer)
    try:
        stop_after_too_many(training.optimizer, update, role="critic")
    except RuntimeError as raised:
        return describe_error(raised)
    return {}


case("stop-unseen", without_a_batch)


def traced(rank: int, *, trace: int | None, **options: Any) -> Result:
    """Three updates, the second of them traced or not."""
    os.environ[envs.REPORTS] = str(Path(os.environ[envs.REPORTS], f"traced-{trace}"))
    training = Training(LossScaling(init_scale=2.0**10), **options)
    outputs = []
    for seed in range(3):
        run: Callable[[], Any] = lambda seed=seed: training.backward(seed)  # noqa: E731
        traced_run: Callable[[], Any] = lambda run=run: outputs.append(run())  # noqa: E731
        if not new_replay(training.optimizer, "actor").trace_if_due(trace, traced_run):
            traced_run()
        take_step(training.optimizer)
    report = Path(os.environ[envs.REPORTS], "trace_of_update_2_actor.json")
    modules = json.loads(report.read_text())["modules"] if report.exists() else []
    names = [row["module"] for row in sorted(modules, key=lambda row: row["forward_order"])]
    backwards = [row["module"] for row in sorted(modules, key=lambda row: row["backward_order"] or 0)]
    grad_scale = training.config.grad_scale_func == training.optimizer.scale_loss
    return {
        "outputs": outputs,
        "digest": training.digest(),
        "modules": names,
        "backwards": backwards,
        "grad_scale": grad_scale,
    }


for chosen in (2, None):
    in_layout(f"trace-{chosen}", traced, "pp2", trace=chosen)
