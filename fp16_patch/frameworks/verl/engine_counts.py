# SPDX-License-Identifier: Apache-2.0
"""Ask the vLLM servers of a verl run what they have counted: requests, and logits that are not finite.

A step asks before the trainer computes its log-probs, and reads the answers afterwards: it waits for nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fp16_patch.attached_state import attached
from fp16_patch.engines.ray.actor_calls import answers
from fp16_patch.engines.vllm.logits import NON_FINITE_LOGITS, sum_rows
from fp16_patch.engines.vllm.sampling import take_requests
from fp16_patch.frameworks.verl.releases import TASK_RUNNER
from fp16_patch.patching import wrap
from fp16_patch.rollout_health.sampling import Changed

Trainer = Any  # verl.trainer.ppo.v1.trainer_base.PPOTrainer, never imported here


@dataclass
class EngineCounts:
    """What the rollout engine has counted; as state on a trainer, what no step has looked at."""

    requests: Changed = field(default_factory=Counter)
    """Requests for each (sampling parameter, value)."""
    rows: int = 0
    """Rows of logits that were not finite; 0 where log-probs are counted in their place."""

    def take(self) -> EngineCounts:
        """Return the counts, and start at 0."""
        taken = EngineCounts(self.requests, self.rows)
        self.requests, self.rows = Counter(), 0
        return taken


@dataclass(frozen=True)
class AskedCounts:
    """Calls that were sent to the servers, by name."""

    requests: dict[str, Any]
    rows: dict[str, Any]

    def wait(self) -> EngineCounts:
        """Return the counts since the calls before.

        Raises:
            Fp16PatchError: A server does not answer, or its workers do not count.
        """
        found = EngineCounts(rows=sum_rows(answers(self.rows)))
        for counts in answers(self.requests).values():
            found.requests.update(counts)
        return found


def ask_counts(trainer: Trainer) -> AskedCounts:
    """Ask every vLLM server for its counts since the last time. Does not wait."""
    replicas = trainer.llm_server_manager.get_replicas()
    requests = {
        f"vLLM server {number} node {node}": server.__ray_call__.remote(take_server_requests)
        for number, replica in enumerate(replicas)
        for node, server in enumerate(replica.servers)
    }
    if trainer.config.actor_rollout_ref.rollout.calculate_log_probs:
        return AskedCounts(requests, {})
    rows = {
        f"vLLM workers of server {number}": replica.servers[0].collective_rpc.remote(NON_FINITE_LOGITS)
        for number, replica in enumerate(replicas)
    }
    return AskedCounts(requests, rows)


def take_server_requests(_server: Any) -> dict[tuple[str, str], int]:
    """Return the requests that reached this vLLM server since the last call. Runs inside it."""
    return take_requests()


_APART: dict[str, Any] = {
    **TASK_RUNNER,
    "reason": "validation has sampling settings of its own; its requests are not those of the next training step",
    "upstream": "none: our own proof",
    "remove_when": "verl checks the log-probs of its rollout engine",
}


@wrap("verl.trainer.ppo.ray_trainer:RayPPOTrainer._validate", name="legacy-validation-requests-apart", **_APART)
@wrap("verl.trainer.ppo.v1.trainer_base:PPOTrainer._validate", name="validation-requests-apart", **_APART)
def drop_validation_requests(original: Any, self: Trainer, *args: Any, **kwargs: Any) -> Any:
    """Keep the requests and logits so far for the next step, and forget those of the validation."""
    kept, found = attached(self, EngineCounts), ask_counts(self).wait()
    kept.requests.update(found.requests)
    kept.rows += found.rows
    result = original(self, *args, **kwargs)
    ask_counts(self).wait()
    return result
