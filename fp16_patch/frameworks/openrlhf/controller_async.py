# SPDX-License-Identifier: Apache-2.0
"""Patch of OpenRLHF's async trainer: proof of every process before its sampler and its controller run side by side.

It runs in the Ray actor that starts the two. They have no time to answer later: each is one long call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fp16_patch.engines.ray import node_check
from fp16_patch.engines.ray.actor_calls import answers
from fp16_patch.frameworks.openrlhf import releases, reporting, reports
from fp16_patch.patching import Patch, status
from fp16_patch.report.process_report import this_process

Coordinator = Any  # openrlhf.trainer.ppo_trainer_async.PPOTrainerAsync, never imported here


def check_processes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Nodes and ledgers, before anything is sampled. The controller keeps what the two beside it have said."""

    @functools.wraps(original)
    def fit(self: Coordinator, *args: Any, **kwargs: Any) -> Any:
        import ray

        node_check.check_every_node()
        own = this_process("coordinator", reports.with_shipped(status(), type(self), PATCHES), {})
        sampler = answers({"sampler": self.generator_actor.__ray_call__.remote(reports.sampler_report)})
        beside = {"coordinator": [own], "sampler": list(sampler.values())}
        ray.get(self.trainer_actor.__ray_call__.remote(reporting.gather_with, beside))
        return original(self, *args, **kwargs)

    return fit


PATCHES: tuple[Patch, ...] = (
    Patch(
        name="openrlhf-async-check-processes",
        target="openrlhf.trainer.ppo_trainer_async:PPOTrainerAsync.fit",
        kind="wrap",
        make=check_processes,
        parameters=("self",),
        distribution=releases.DISTRIBUTION,
        versions=releases.RELEASES,
        process="coordinator",
        reason="every hook that brings us into a process can fail silently, so a missing ledger stops the run; once "
        "it runs, the sampler answers nobody",
        upstream="none: our own proof",
        remove_when="never",
    ),
)
