# SPDX-License-Identifier: Apache-2.0
"""Trace vLLM's modules in its workers, between two calls of the controller.

The controller calls :func:`start_trace` in every worker, sends requests, and calls :func:`take_trace`. Module hooks do
not fire in a model that is compiled or replayed from a CUDA graph: then nothing is traced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fp16_patch.attached_state import attached

if TYPE_CHECKING:
    from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow, ModuleTrace

TRACE_START = "fp16_patch_trace_start"
TRACE_TAKE = "fp16_patch_trace_take"
"""Names of the methods that are added to a framework's worker extension, and called in every vLLM worker."""


@dataclass
class TraceState:
    """State on a vLLM worker: the trace in progress, if there is one."""

    trace: ModuleTrace | None = None


@dataclass(frozen=True)
class RolloutTrace:
    """What the workers of one vLLM engine have seen."""

    rows: Sequence[ModuleRow]
    """One row for each module, over all tensor-parallel ranks, in forward order."""
    weights: dict[str, float]
    """Parameter -> share of inf and NaN in itself, if any."""


def start_trace(worker: Any) -> bool:
    """Trace every module of this worker's model from now on. Return False where hooks would not fire."""
    from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleTrace

    if not is_eager(worker.vllm_config):
        return False
    take_trace(worker)
    state = attached(worker, TraceState)
    state.trace = ModuleTrace(worker.model_runner.get_model(), in_place=True)
    return True


def take_trace(worker: Any) -> str:
    """End the trace, and return what it has seen: JSON, since vLLM sends plain data between its processes."""
    state = attached(worker, TraceState)
    trace, state.trace = state.trace, None
    if trace is None:
        return json.dumps({"rows": [], "weights": {}})
    with trace:  # removes the hooks
        pass
    bad = {name: seen.nonfinite for name, seen in trace.weights().items() if seen.bad}
    return json.dumps({"rows": [asdict(row) for row in trace.rows()], "weights": bad})


def read_traces(replies: Iterable[str]) -> RolloutTrace:
    """Merge what :func:`take_trace` has returned in the workers of one engine."""
    from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow, merge_ranks

    documents = [json.loads(reply) for reply in replies]
    rows = merge_ranks([ModuleRow(**row) for row in document["rows"]] for document in documents)
    return RolloutTrace(rows, {name: share for document in documents for name, share in document["weights"].items()})


def is_eager(vllm_config: Any) -> bool:
    """Return whether vLLM calls the modules of its model: not compiled, and no CUDA graphs."""
    compilation = vllm_config.compilation_config
    modes = (getattr(compilation, name, None) for name in ("mode", "cudagraph_mode"))
    return vllm_config.model_config.enforce_eager or all(mode is None or mode.name == "NONE" for mode in modes)
