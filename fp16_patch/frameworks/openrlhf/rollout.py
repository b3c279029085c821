# SPDX-License-Identifier: Apache-2.0
"""Patch OpenRLHF's vLLM actor, its sampling, and its worker extension inside vLLM's own processes."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from typing import Any

from fp16_patch.attached_state import attached
from fp16_patch.engines.ray.actor_calls import SECONDS
from fp16_patch.engines.vllm.logits import NON_FINITE_LOGITS, count_method
from fp16_patch.engines.vllm.precision import REPORT, record_logits_dtype, record_weight_dtypes, report_method
from fp16_patch.engines.vllm.trace import TRACE_START, TRACE_TAKE, start_trace, take_trace
from fp16_patch.frameworks.openrlhf.releases import RELEASE
from fp16_patch.patching import ProcessKind, add, hook, wrap
from fp16_patch.precision import Precision, long_name

_EXTENSION = "openrlhf.trainer.ray.vllm_worker_wrap:WorkerWrap"
_WORKER: dict[str, Any] = {"release": RELEASE, "processes": {ProcessKind.VLLM_WORKER}}
_RECEIVE: dict[str, Any] = {
    "parameters": ("self", "name", "dtype"),
    "reason": "OpenRLHF requires one dtype for trainer and rollout, so no one-sided run is possible; and the precision "
    "report states the dtype of the weight sync",
    "upstream": "OpenRLHF trainer/ray/vllm_worker_wrap.py:39",
    "remove_when": "OpenRLHF takes weights of another dtype",
}


@dataclass
class EventLoop:
    """Hold a vLLM actor's event loop, for calls that Ray makes in other threads."""

    loop: asyncio.AbstractEventLoop | None = None


@wrap(
    "openrlhf.trainer.ray.vllm_engine:RolloutRayActor.__init__",
    name="openrlhf-rollout-dtype",
    release=RELEASE,
    processes={ProcessKind.VLLM_SERVER},
    shipped=True,
    reason="OpenRLHF hard-codes BF16 for vLLM; with an FP16 trainer the first weight sync then fails. The class is "
    "patched in the driver, and Ray ships it to every node",
    upstream="OpenRLHF trainer/ray/vllm_engine.py:273",
    remove_when="OpenRLHF gives vLLM the trainer's dtype",
)
async def set_rollout_dtype(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """Start vLLM in the flag's rollout dtype. Raise if the actor's environment does not have the flag."""
    attached(self, EventLoop).loop = asyncio.get_running_loop()
    kwargs["dtype"] = long_name(Precision.current().rollout_dtype)
    await original(self, *args, **kwargs)


@add(
    f"{_EXTENSION}.{REPORT}",
    name="openrlhf-worker-report",
    reason="vLLM's worker processes are not Ray actors; this method sends their ledger to the controller",
    upstream="none: our own proof",
    remove_when="never",
    maker=True,
    **_WORKER,
)
def add_report_method(original: Any) -> Any:
    """Return the method that reports a worker's ledger. It starts to observe the logits, if nothing has."""
    report = report_method(original)

    def fp16_patch_report(self: Any) -> str:
        record_logits_dtype(self)  # where weights come by CUDA IPC, init_process_group is never called
        return report(self)

    return fp16_patch_report


@add(
    f"{_EXTENSION}.{NON_FINITE_LOGITS}",
    name="openrlhf-worker-non-finite-logits",
    reason="a run that does not ask vLLM for log-probs shows an overflow in vLLM's logits only",
    upstream="none: our own proof",
    remove_when="never",
    maker=True,
    **_WORKER,
)
def add_count_method(original: Any) -> Any:
    """Return the method that counts the rows of logits that were not finite."""
    return count_method(original)


@add(
    f"{_EXTENSION}.{TRACE_START}",
    name="openrlhf-worker-trace-start",
    reason="an overflow in vLLM is reported with the module where it began; does nothing unless the controller asks",
    upstream="none: our own proof",
    remove_when="never",
    **_WORKER,
)
def fp16_patch_trace_start(self: Any) -> bool:
    """Trace the modules of this vLLM worker from now on; False where module hooks do not fire."""
    return start_trace(self)


@add(
    f"{_EXTENSION}.{TRACE_TAKE}",
    name="openrlhf-worker-trace-take",
    reason="ends that trace and sends its rows to the controller",
    upstream="none: our own proof",
    remove_when="never",
    **_WORKER,
)
def fp16_patch_trace_take(self: Any) -> str:
    """Return what the trace of this vLLM worker has seen, as JSON."""
    return take_trace(self)


@hook(
    f"{_EXTENSION}.init_process_group",
    name="openrlhf-observe-rollout-logits",
    reason="the precision report states the dtype of the rollout's logits; reads it, changes nothing",
    **_WORKER,
)
def observe_logits(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Start to record the dtype of vLLM's logits when the trainer connects."""
    record_logits_dtype(self)
    return original(self, *args, **kwargs)


@wrap(f"{_EXTENSION}.update_weight_cuda_ipc", name="openrlhf-receive-shared-weight", **_RECEIVE, **_WORKER)
@wrap(f"{_EXTENSION}.update_weight", name="openrlhf-receive-weight", **_RECEIVE, **_WORKER)
def receive_weight(original: Any, self: Any, name: str, dtype: Any, *args: Any, **kwargs: Any) -> Any:
    """Record the dtype of a received weight. vLLM casts it to its own dtype."""
    record_weight_dtypes(self, [dtype])
    receiver = self
    if dtype != self.model_config.dtype:
        # Upstream asserts that both dtypes are equal. It reads nothing else of model_config.
        receiver = copy.copy(self)
        receiver.model_config = copy.copy(self.model_config)
        receiver.model_config.dtype = dtype
    return original(receiver, name, dtype, *args, **kwargs)


@wrap(
    "openrlhf.trainer.ppo_utils.samples_generator:SamplesGenerator._dispatch_prompts_to_vllm",
    name="openrlhf-first-token",
    release=RELEASE,
    processes={ProcessKind.CONTROLLER, ProcessKind.SAMPLER},
    reason="min_tokens=1 forbids EOS at the first position, and vLLM's log-probs there are those of the masked, "
    "renormalised distribution: mu differs from pi by log(1 - p(EOS)) in any precision. With this "
    "patch the rollout may sample an empty answer, as the policy would: EOS alone, one token that is trained on",
    upstream="OpenRLHF trainer/ppo_utils/samples_generator.py:204",
    remove_when="OpenRLHF samples without min_tokens, or corrects the first log-prob",
)
def allow_first_eos(original: Any, self: Any, prompts: Any, labels: Any, **generate_kwargs: Any) -> Any:
    """Allow every token at the first position, so that mu is the policy itself there too."""
    return original(self, prompts, labels, **{"min_new_tokens": 0, **generate_kwargs})


def ask_workers(actor: Any, method: str) -> list[Any]:
    """Return what ``method`` returns in each worker of a vLLM actor.

    Runs inside the actor, in another thread than its event loop.
    """
    loop = attached(actor, EventLoop).loop
    assert loop is not None, "the vLLM actor was not initialised under the flag"
    replies: list[Any] = asyncio.run_coroutine_threadsafe(actor.llm.collective_rpc(method), loop).result(SECONDS)
    return replies
