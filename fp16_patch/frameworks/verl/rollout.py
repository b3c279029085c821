# SPDX-License-Identifier: Apache-2.0
"""Patch verl's vLLM server actor, and its worker extension inside vLLM's own processes."""

from __future__ import annotations

from typing import Any

from fp16_patch.engines.vllm.logits import NON_FINITE_LOGITS, take_rows
from fp16_patch.engines.vllm.precision import REPORT, record_logits_dtype, record_weight_dtypes, report_method
from fp16_patch.engines.vllm.trace import TRACE_START, TRACE_TAKE, start_trace, take_trace
from fp16_patch.frameworks.verl.releases import RELEASE, VLLM_WORKER
from fp16_patch.patching import ProcessKind, add, hook, replace

_SERVER = "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer"
_EXTENSION = "verl.workers.rollout.vllm_rollout.utils:vLLMColocateWorkerExtension"


@replace(
    f"{_SERVER}.collective_rpc",
    name="server-returns-worker-answers",
    release=RELEASE,
    processes={ProcessKind.VLLM_SERVER},
    fingerprint="5d40f57bd8925333",
    reason="verl drops what vLLM's workers answer, so they could not report; same call, with its result",
    upstream="verl workers/rollout/vllm_rollout/vllm_async_server.py, collective_rpc",
    remove_when="verl returns the result",
)
async def return_worker_answers(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what the vLLM workers answered. verl's own ``collective_rpc`` drops it."""
    return await self.engine.collective_rpc(*args, **kwargs)


@add(
    f"{_EXTENSION}.{REPORT}",
    name="worker-report",
    **VLLM_WORKER,
    reason="vLLM's worker processes are not Ray actors; this method sends their ledger to the task runner",
    upstream="none: our own proof",
    remove_when="never",
)
def fp16_patch_report(self: Any) -> str:
    """Return this vLLM worker's report as JSON."""
    return report_method(None)(self)


@add(
    f"{_EXTENSION}.{NON_FINITE_LOGITS}",
    name="worker-non-finite-logits",
    **VLLM_WORKER,
    reason="a run that does not ask vLLM for log-probs shows an overflow in vLLM's logits only",
    upstream="none: our own proof",
    remove_when="never",
)
def fp16_patch_non_finite_logits(self: Any) -> int | None:
    """Return the rows of logits of this vLLM worker that were NaN or +inf since the last call; None if uncounted."""
    return take_rows(self)


@add(
    f"{_EXTENSION}.{TRACE_START}",
    name="worker-trace-start",
    **VLLM_WORKER,
    reason="an overflow in vLLM is reported with the module where it began; does nothing unless the task runner asks",
    upstream="none: our own proof",
    remove_when="never",
)
def fp16_patch_trace_start(self: Any) -> bool:
    """Trace the modules of this vLLM worker from now on; False where module hooks do not fire."""
    return start_trace(self)


@add(
    f"{_EXTENSION}.{TRACE_TAKE}",
    name="worker-trace-take",
    **VLLM_WORKER,
    reason="ends that trace and sends its rows to the task runner",
    upstream="none: our own proof",
    remove_when="never",
)
def fp16_patch_trace_take(self: Any) -> str:
    """Return what the trace of this vLLM worker has seen, as JSON."""
    return take_trace(self)


@hook(
    f"{_EXTENSION}._update_weights",
    name="observe-wire",
    **VLLM_WORKER,
    reason="the precision report states the dtype of the weight sync; reads dtypes, changes nothing",
)
def update_weights(original: Any, self: Any, weights: Any, peft_config: dict[str, Any], base_sync_done: bool) -> Any:
    """Record the dtypes in which weights arrive from the trainer."""
    record_weight_dtypes(self, (tensor.dtype for _, tensor in weights))
    return original(self, weights, peft_config, base_sync_done)


@hook(
    f"{_EXTENSION}.monkey_patch_model",
    name="observe-rollout-logits",
    **VLLM_WORKER,
    reason="the precision report states the dtype of the rollout's logits; reads it, changes nothing",
)
def observe_logits(original: Any, self: Any, vocab_size: int, banned_token_ids: list[int] | None = None) -> Any:
    """Record the dtype of vLLM's logits, where verl itself wraps ``compute_logits``."""
    result = original(self, vocab_size, banned_token_ids)
    record_logits_dtype(self)
    return result
