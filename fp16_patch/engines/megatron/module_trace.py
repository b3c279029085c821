# SPDX-License-Identifier: Apache-2.0
"""Watch one pass through all chunks of a model on all pipeline stages, as if the model were in one piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from fp16_patch.engines.megatron.module_names import inner_model, named_modules, named_parameters
from fp16_patch.loss_scaling.diagnosis.module_trace import Extremes, ModuleRow, ModuleTrace, trace_modules
from fp16_patch.loss_scaling.diagnosis.observations import Watched

STAGE = 1_000_000
"""More calls of modules than there are in a pass through one chunk: orders count on by it from chunk to chunk."""


class ModelTrace:
    """What :func:`trace_model` has seen on this rank; names and orders are those in the whole model."""

    def __init__(self, chunks: Sequence[tuple[Any, ModuleTrace]]) -> None:
        self._chunks = chunks

    def rows(self) -> list[ModuleRow]:
        from megatron.core import parallel_state

        stages = parallel_state.get_pipeline_model_parallel_world_size()
        stage = parallel_state.get_pipeline_model_parallel_rank()
        last = stages * len(self._chunks) - 1
        rows = []
        for number, (chunk, trace) in enumerate(self._chunks):
            place = number * stages + stage  # an interleaved pipeline comes by once a chunk
            names = {own: name for (own, _), (name, _) in zip(chunk.named_modules(), named_modules(chunk), strict=True)}
            rows += [_placed(row, names[row.module], place, last - place) for row in trace.rows()]
        return rows


@contextmanager
def trace_model(model: Sequence[Any]) -> Iterator[ModelTrace]:
    """As :func:`~fp16_patch.loss_scaling.diagnosis.module_trace.trace_modules`, of the chunks that this rank has."""
    with ExitStack() as stack:
        chunks = [inner_model(chunk) for chunk in model]
        yield ModelTrace([(chunk, stack.enter_context(trace_modules(chunk))) for chunk in chunks])


def held(model: Sequence[Any], part: Callable[[Any], Any]) -> Watched:
    """Parameter -> what ``part`` of it holds on this rank."""
    watched: dict[str, tuple[Extremes, int]] = {}
    for chunk in model:
        for name, parameter in named_parameters(inner_model(chunk)):
            extremes = Extremes()
            if (tensor := part(parameter)) is not None:
                extremes.add(tensor)
            watched[name] = (extremes, parameter.numel())
    return watched


def _placed(row: ModuleRow, name: str, before: int, after: int) -> ModuleRow:
    """``before`` chunks come earlier in the forward pass, ``after`` in the backward pass."""

    def moved(order: int | None, chunks: int) -> int | None:
        return None if order is None else order + chunks * STAGE

    return replace(
        row,
        module=name,
        forward_order=row.forward_order + before * STAGE,
        forward_overflow=moved(row.forward_overflow, before),
        backward_order=moved(row.backward_order, after),
        first_overflow=moved(row.first_overflow, after),
    )
