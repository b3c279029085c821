# SPDX-License-Identifier: Apache-2.0
"""Read the precision in force off a live vLLM worker (``vllm.v1.worker``)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fp16_patch.patching import status
from fp16_patch.report.dtypes import agree, describe
from fp16_patch.report.observed_dtypes import seen
from fp16_patch.report.process_report import this_process

_extra_rows: dict[str, Callable[[Any], str | None]] = {}


def register_row(name: str, read: Callable[[Any], str | None]) -> None:
    """Add a row to the precision report of this process's vLLM workers.

    Args:
        name: The row's key.
        read: Called with the worker's model; returns the row's text, or None to leave the row out.
    """
    _extra_rows[name] = read


def describe_worker(worker: Any) -> dict[str, str]:
    """Return rows for the precision report: rollout weights, compute and KV cache of one vLLM worker process."""
    runner = worker.model_runner
    extra = {name: text for name, read in _extra_rows.items() if (text := read(runner.model))}
    return {
        "weights": describe(runner.model.parameters()),
        "compute": agree([runner.model_config.dtype]),
        "kv_cache": describe(_tensors(getattr(runner, "kv_caches", [])), none="not allocated"),
        **extra,
    }


REPORT = "fp16_patch_report"
"""Name of the method that is added to a framework's worker extension, and called in every vLLM worker."""


def report_method(_original: None) -> Callable[..., str]:
    """That method: vLLM's workers are no Ray actors, this is how their ledgers get out."""

    def fp16_patch_report(self: Any) -> str:
        # JSON, because vLLM sends answers between its processes as plain data only.
        rows = describe_worker(self) | seen(self)
        return json.dumps(this_process(f"vLLM worker {self.rank}", status(), {"rollout": rows}))

    return fp16_patch_report


def watch_logits(worker: Any) -> None:
    """Have the dtype of the worker's logits noted whenever it computes some."""
    model = worker.model_runner.model
    compute_logits = model.compute_logits

    @functools.wraps(compute_logits)
    def observed(*args: Any, **kwargs: Any) -> Any:
        logits = compute_logits(*args, **kwargs)
        if logits is not None:  # tensor-parallel ranks other than 0 may get none
            seen(worker)["logits"] = agree([logits.dtype])
        return logits

    model.compute_logits = observed


def note_on_the_wire(worker: Any, dtypes: Iterable[Any]) -> None:
    """Note dtypes in which weights have arrived at the worker, beside those noted before."""
    notes = seen(worker)
    earlier = notes["weights_on_the_wire"].split(", ") if "weights_on_the_wire" in notes else []
    notes["weights_on_the_wire"] = agree([*earlier, *dtypes])


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
