# SPDX-License-Identifier: Apache-2.0
"""Name the kinds of processes of a training run, for patches, reports and errors."""

from __future__ import annotations

from enum import Enum


class ProcessKind(str, Enum):
    """A kind of process. The value is its name in reports and errors."""

    ANY = "every process"
    DRIVER = "driver"
    TASK_RUNNER = "task runner"
    CONTROLLER = "controller"
    ASYNC_CONTROLLER = "async controller"
    COORDINATOR = "coordinator"
    SAMPLER = "sampler"
    AGENT_LOOP = "agent loop worker"
    TRAINER_RANK = "trainer rank"
    ACTOR_RANK = "actor rank"
    REFERENCE_RANK = "reference rank"
    CRITIC_RANK = "critic rank"
    REWARD_RANK = "reward rank"
    VLLM_SERVER = "vLLM server"
    VLLM_WORKER = "vLLM worker"

    def __str__(self) -> str:
        return self.value

    @property
    def kinds(self) -> frozenset[ProcessKind]:
        """Return the kinds whose patches it needs: its own, every process's, and a trainer rank's if it is one."""
        ranks = {ProcessKind.TRAINER_RANK} if self.name.endswith("_RANK") else set()
        return frozenset({self, ProcessKind.ANY} | ranks)
