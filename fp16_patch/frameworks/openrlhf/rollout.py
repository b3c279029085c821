# SPDX-License-Identifier: Apache-2.0
"""Patches of OpenRLHF's vLLM actor, of its sampling, and of its worker extension inside vLLM's own processes."""

from __future__ import annotations

import asyncio
import copy
import functools
from collections.abc import Callable
from typing import Any

from fp16_patch.engines.vllm.precision import REPORT, record_logits_dtype, record_weight_dtypes, report_method
from fp16_patch.frameworks.openrlhf import releases
from fp16_patch.patching import Patch
from fp16_patch.precision import Precision, long_name

_EXTENSION = "openrlhf.trainer.ray.vllm_worker_wrap:WorkerWrap"
LOOP = "_fp16_patch_loop"  # on a vLLM actor: its event loop, for calls that Ray makes in other threads


def rollout_in_its_dtype(original: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM in the flag's rollout dtype.

    Ray ships the actor class by value from the driver: this runs in the actor, whose environment has the flag, or it
    raises.
    """

    @functools.wraps(original)
    async def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        setattr(self, LOOP, asyncio.get_running_loop())
        kwargs["dtype"] = long_name(Precision.current().rollout_dtype)
        await original(self, *args, **kwargs)

    return __init__


def receive_weight(original: Callable[..., Any]) -> Callable[..., Any]:
    """Note the dtype that a weight comes in; vLLM rounds it to its own where the two differ."""

    @functools.wraps(original)
    def update_weight(self: Any, name: str, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        record_weight_dtypes(self, [dtype])
        receiver = self
        if dtype != self.model_config.dtype:
            # Upstream asserts that they are equal, and reads nothing else there.
            receiver = copy.copy(self)
            receiver.model_config = copy.copy(self.model_config)
            receiver.model_config.dtype = dtype
        return original(receiver, name, dtype, *args, **kwargs)

    return update_weight


def observe_logits(original: Callable[..., Any]) -> Callable[..., Any]:
    """From the first contact with the trainer on, note the dtype of vLLM's logits."""

    @functools.wraps(original)
    def init_process_group(self: Any, *args: Any, **kwargs: Any) -> Any:
        record_logits_dtype(self)
        return original(self, *args, **kwargs)

    return init_process_group


def sample_from_the_policy(original: Callable[..., Any]) -> Callable[..., Any]:
    """No token is forbidden at the first position, so that mu is the policy itself there too."""

    @functools.wraps(original)
    def _dispatch_prompts_to_vllm(self: Any, prompts: Any, labels: Any, **generate_kwargs: Any) -> Any:
        return original(self, prompts, labels, **{"min_new_tokens": 0, **generate_kwargs})

    return _dispatch_prompts_to_vllm


def _patch(process: str, name: str, **kwargs: Any) -> Patch:
    name = f"openrlhf-{name}"
    return Patch(name=name, distribution=releases.DISTRIBUTION, versions=releases.RELEASES, process=process, **kwargs)


SERVER_PATCHES: tuple[Patch, ...] = (
    _patch(
        "vLLM server",
        name="rollout-dtype",
        target="openrlhf.trainer.ray.vllm_engine:RolloutRayActor.__init__",
        kind="wrap",
        make=rollout_in_its_dtype,
        parameters=("self",),
        reason="OpenRLHF hard-codes BF16 for vLLM; with an FP16 trainer the first weight sync then fails. The class is "
        "patched in the driver, and Ray ships it to every node",
        upstream="OpenRLHF trainer/ray/vllm_engine.py:273",
        remove_when="OpenRLHF gives vLLM the trainer's dtype",
    ),
)

SAMPLING_PATCHES: tuple[Patch, ...] = (
    _patch(
        "controller or sampler",
        name="first-token",
        target="openrlhf.trainer.ppo_utils.samples_generator:SamplesGenerator._dispatch_prompts_to_vllm",
        kind="wrap",
        make=sample_from_the_policy,
        parameters=("self", "prompts", "labels"),
        reason="min_tokens=1 forbids EOS at the first position, and vLLM's log-probs there are those of the masked, "
        "renormalised distribution: mu differs from pi by log(1 - p(EOS)) in any precision. Without it an empty "
        "answer can be sampled, as the policy would; it is EOS alone, one token that is trained on",
        upstream="OpenRLHF trainer/ppo_utils/samples_generator.py:204",
        remove_when="OpenRLHF samples without min_tokens, or corrects the first log-prob",
    ),
)

WORKER_PATCHES: tuple[Patch, ...] = (
    _patch(
        "vLLM worker",
        name="worker-report",
        target=f"{_EXTENSION}.{REPORT}",
        kind="add",
        make=report_method,
        reason="vLLM's worker processes are no Ray actors; this method is how their ledger reaches the controller",
        upstream="none: our own proof",
        remove_when="never",
    ),
    _patch(
        "vLLM worker",
        name="observe-rollout-logits",
        target=f"{_EXTENSION}.init_process_group",
        kind="wrap",
        make=observe_logits,
        parameters=("self",),
        reason="the precision report states the dtype of the rollout's logits; reads it, changes nothing",
        upstream="none: our own proof",
        remove_when="never",
    ),
    *(
        _patch(
            "vLLM worker",
            name=name,
            target=f"{_EXTENSION}.{method}",
            kind="wrap",
            make=receive_weight,
            parameters=("self", "name", "dtype"),
            reason="OpenRLHF insists that trainer and rollout have one dtype, so no one-sided run is possible; and the "
            "precision report states in which dtype weights travel",
            upstream="OpenRLHF trainer/ray/vllm_worker_wrap.py:39",
            remove_when="OpenRLHF takes weights of another dtype",
        )
        for name, method in (("receive-weight", "update_weight"), ("receive-shared-weight", "update_weight_cuda_ipc"))
    ),
)
