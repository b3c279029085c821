# SPDX-License-Identifier: Apache-2.0
"""Read the precision in force off a live vLLM worker (``vllm.v1.worker``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fp16_patch.proof.dtypes import agree, describe


def describe_worker(worker: Any) -> dict[str, str]:
    """Rows for the precision report: rollout weights, compute and KV cache of one vLLM worker process."""
    runner = worker.model_runner
    return {
        "weights": describe(runner.model.parameters()),
        "compute": agree([runner.model_config.dtype]),
        "kv_cache": describe(_tensors(getattr(runner, "kv_caches", [])), none="not allocated"),
    }


def _tensors(node: Any) -> Iterator[Any]:
    """The tensors in vLLM's KV cache lists; hybrid models nest them."""
    if hasattr(node, "dtype"):
        yield node
    elif isinstance(node, dict):
        for child in node.values():
            yield from _tensors(child)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _tensors(child)
