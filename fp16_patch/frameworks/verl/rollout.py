# SPDX-License-Identifier: Apache-2.0
"""Patches of verl's vLLM server actor and of its worker extension inside vLLM's own processes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fp16_patch.engines.vllm.precision import REPORT, record_logits_dtype, record_weight_dtypes, report_method
from fp16_patch.frameworks.verl import releases
from fp16_patch.patching import Patch

_SERVER = "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer"
_EXTENSION = "verl.workers.rollout.vllm_rollout.utils:vLLMColocateWorkerExtension"


def return_results(_original: Callable[..., Any]) -> Callable[..., Any]:
    """``collective_rpc`` that returns what the vLLM workers answered; verl's own drops it."""

    async def collective_rpc(
        self: Any,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return await self.engine.collective_rpc(method=method, timeout=timeout, args=args, kwargs=kwargs)

    return collective_rpc


def observe_wire(original: Callable[..., Any]) -> Callable[..., Any]:
    """Note the dtypes in which weights arrive from the trainer."""

    @functools.wraps(original)
    def _update_weights(self: Any, weights: Any, peft_config: dict[str, Any], base_sync_done: bool) -> Any:
        record_weight_dtypes(self, (tensor.dtype for _, tensor in weights))
        return original(self, weights, peft_config, base_sync_done)

    return _update_weights


def observe_logits(original: Callable[..., Any]) -> Callable[..., Any]:
    """Note the dtype of vLLM's logits, at the place where verl already wraps ``compute_logits``."""

    @functools.wraps(original)
    def monkey_patch_model(self: Any, vocab_size: int, banned_token_ids: list[int] | None = None) -> Any:
        result = original(self, vocab_size, banned_token_ids)
        record_logits_dtype(self)
        return result

    return monkey_patch_model


def _patch(process: str, **kwargs: Any) -> Patch:
    return Patch(distribution=releases.DISTRIBUTION, versions=releases.RELEASES, process=process, **kwargs)


SERVER_PATCHES: tuple[Patch, ...] = (
    _patch(
        "vLLM server",
        name="server-returns-worker-answers",
        target=f"{_SERVER}.collective_rpc",
        kind="replace",
        make=return_results,
        fingerprint="5d40f57bd8925333",
        reason="verl drops what vLLM's workers answer, so they could not report; same call, with its result",
        upstream="verl workers/rollout/vllm_rollout/vllm_async_server.py, collective_rpc",
        remove_when="verl returns the result",
    ),
)

WORKER_PATCHES: tuple[Patch, ...] = (
    _patch(
        "vLLM worker",
        name="worker-report",
        target=f"{_EXTENSION}.{REPORT}",
        kind="add",
        make=report_method,
        reason="vLLM's worker processes are no Ray actors; this method is how their ledger reaches the driver",
        upstream="none: our own proof",
        remove_when="never",
    ),
    _patch(
        "vLLM worker",
        name="observe-wire",
        target=f"{_EXTENSION}._update_weights",
        kind="wrap",
        make=observe_wire,
        parameters=("self", "weights", "peft_config", "base_sync_done"),
        reason="the precision report states in which dtype weights travel; reads dtypes, changes nothing",
        upstream="none: our own proof",
        remove_when="never",
    ),
    _patch(
        "vLLM worker",
        name="observe-rollout-logits",
        target=f"{_EXTENSION}.monkey_patch_model",
        kind="wrap",
        make=observe_logits,
        parameters=("self", "vocab_size", "banned_token_ids"),
        reason="the precision report states the dtype of the rollout's logits; reads it, changes nothing",
        upstream="none: our own proof",
        remove_when="never",
    ),
)
