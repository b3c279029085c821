# SPDX-License-Identifier: Apache-2.0
"""Trace a pass of a Megatron model on all pipeline stages, when asked or after too many skipped updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from fp16_patch.engines.megatron.module_names import inner_model, named_modules, named_parameters
from fp16_patch.engines.megatron.sub_optimizers import Optimizer, require_loss_scaler
from fp16_patch.loss_scaling.diagnosis.advice import Fallbacks
from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow, ModuleTrace, Watched, watch_parameters
from fp16_patch.loss_scaling.diagnosis.replay import Replay
from fp16_patch.loss_scaling.update import Update

STAGE = 1_000_000
"""Offset of the orders from one chunk to the next; more than the calls of modules in a pass through one chunk."""


def stop_after_too_many(
    optimizer: Optimizer,
    update: Update,
    run: Callable[[], object] | None = None,
    *,
    role: str = "model",
    in_bf16: str = "train in BF16",
) -> None:
    """Raise if ``update`` was skipped, and too many updates before it.

    Args:
        optimizer: Has this package's loss scaler.
        update: What :func:`~fp16_patch.engines.megatron.step.take_step` returned.
        run: Repeats forward and backward of the update's batch; None if the batch is gone.
        role: Names the model in the report.
        in_bf16: How to train the model in BF16, for the advice.

    Raises:
        Fp16PatchError: The run must stop; raised on every rank.
    """
    replay = new_replay(optimizer, role, in_bf16, partial(_without_gradients, optimizer))
    replay.stop_after_too_many(update, run)


def new_replay(
    optimizer: Optimizer,
    role: str,
    in_bf16: str = "train in BF16",
    extra_pass: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Replay:
    """Return a :class:`Replay` of the model that ``optimizer`` trains."""
    scaler = require_loss_scaler(optimizer)
    fallbacks = Fallbacks(in_bf16, fp32_modules=False)  # Float16Module makes the whole model half precision
    return Replay(scaler, partial(trace_model, scaler), role, fallbacks, extra_pass)


class ModelTrace:
    """Hold what :func:`trace_model` observed on this rank; names and orders are those of the whole model."""

    def __init__(self, chunks: Sequence[Any], traces: Sequence[ModuleTrace]) -> None:
        self._chunks, self._traces = chunks, traces

    def rows(self) -> list[ModuleRow]:
        """Return the rows of all chunks of this rank."""
        from megatron.core import parallel_state

        stages = parallel_state.get_pipeline_model_parallel_world_size()
        stage = parallel_state.get_pipeline_model_parallel_rank()
        last = stages * len(self._chunks) - 1
        rows = []
        for number, (chunk, trace) in enumerate(zip(self._chunks, self._traces, strict=True)):
            position = number * stages + stage  # an interleaved pipeline runs through all stages once a chunk
            names = {own: name for (own, _), (name, _) in zip(chunk.named_modules(), named_modules(chunk), strict=True)}
            rows += [_in_whole_model(row, names[row.module], position, last - position) for row in trace.rows()]
        return rows

    def gradients(self) -> Watched:
        """Return what Megatron's gradient buffers hold of each parameter."""
        return watch_parameters(self._parameters(), lambda parameter: getattr(parameter, "main_grad", None))

    def weights(self) -> Watched:
        """Return what the model's parameters hold."""
        return watch_parameters(self._parameters(), lambda parameter: parameter)

    def _parameters(self) -> Iterator[tuple[str, Any]]:
        return chain.from_iterable(named_parameters(chunk) for chunk in self._chunks)


@contextmanager
def trace_model(scaler: Any) -> Iterator[ModelTrace]:
    """Trace this rank's chunks under the names and orders of the whole model."""

    def scale(outputs: Any) -> Any:
        # To get the scale of auxiliary losses, the schedules pass a one that needs no gradient. It is not a loss.
        return scaler.scale(outputs) if outputs.requires_grad else outputs * scaler.get_scale()

    usual = [(chunk.config, chunk.config.grad_scale_func) for chunk in scaler.model]
    chunks = [inner_model(chunk) for chunk in scaler.model]
    with ExitStack() as stack:
        for config, function in usual:
            stack.callback(setattr, config, "grad_scale_func", function)
            config.grad_scale_func = scale
        yield ModelTrace(chunks, [stack.enter_context(ModuleTrace(chunk)) for chunk in chunks])


@contextmanager
def _without_gradients(optimizer: Optimizer) -> Iterator[None]:
    """Zero all gradients before and after."""

    def zero() -> None:
        for chunk in require_loss_scaler(optimizer).model:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()

    zero()
    try:
        yield
    finally:
        zero()


def _in_whole_model(row: ModuleRow, name: str, before: int, after: int) -> ModuleRow:
    """Shift the orders: ``before`` chunks come earlier in the forward pass, ``after`` in the backward pass."""

    def shift(order: int | None, chunks: int) -> int | None:
        return None if order is None else order + chunks * STAGE

    return replace(
        row,
        module=name,
        forward_order=row.forward_order + before * STAGE,
        forward_overflow=shift(row.forward_overflow, before),
        backward_order=shift(row.backward_order, after),
        first_overflow=shift(row.first_overflow, after),
    )
