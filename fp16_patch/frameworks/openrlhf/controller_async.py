# SPDX-License-Identifier: Apache-2.0
"""Patch OpenRLHF's async trainer: check every process before the sampler and the controller start.

The patch runs in the coordinator, the Ray actor that starts the two. They cannot answer later: each is one long call.
"""

from __future__ import annotations

from typing import Any

from fp16_patch.engines.ray import node_check
from fp16_patch.engines.ray.actor_calls import answers
from fp16_patch.frameworks.openrlhf import reports
from fp16_patch.frameworks.openrlhf.releases import RELEASE
from fp16_patch.patching import ProcessKind, hook

Coordinator = Any  # openrlhf.trainer.ppo_trainer_async.PPOTrainerAsync, never imported here


@hook(
    "openrlhf.trainer.ppo_trainer_async:PPOTrainerAsync.fit",
    name="openrlhf-async-check-processes",
    release=RELEASE,
    processes={ProcessKind.COORDINATOR},
    shipped=True,
    reason="every hook that loads this package in a process can fail silently, so a missing ledger stops the run; "
    "once it runs, the sampler cannot answer",
)
def check_processes(original: Any, self: Coordinator, *args: Any, **kwargs: Any) -> Any:
    """Check nodes and ledgers before anything is sampled. The controller keeps the reports of the other two."""
    import ray

    node_check.check_every_node()
    coordinator = reports.shipped_class_report(ProcessKind.COORDINATOR, type(self))
    sampler = answers({"sampler": self.generator_actor.__ray_call__.remote(reports.sampler_report)})
    extra_reports = {"coordinator": [coordinator], "sampler": list(sampler.values())}
    ray.get(self.trainer_actor.__ray_call__.remote(reports.keep_and_gather, extra_reports))
    return original(self, *args, **kwargs)
