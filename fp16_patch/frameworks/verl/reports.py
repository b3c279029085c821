# SPDX-License-Identifier: Apache-2.0
"""Ask every process of a verl run for its report. Runs in verl's task runner, the single controller."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from fp16_patch.engines.ray.actor_calls import answers
from fp16_patch.engines.vllm.precision import REPORT, parse_reports
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl import proof_gate, trainer_megatron
from fp16_patch.frameworks.verl.state import is_megatron
from fp16_patch.frameworks.verl.trainer_fsdp import engine as trainer_fsdp
from fp16_patch.patching import status
from fp16_patch.report.process_report import this_process

if TYPE_CHECKING:
    from omegaconf import DictConfig

Report = dict[str, Any]


def trainer_report(worker: Any) -> Report:
    """Return a trainer rank's report. Runs inside that rank: Ray hands over the actor instance."""
    proof_gate.open_gate()
    rows: dict[str, dict[str, str]] = {}
    for key, inner in getattr(worker, "worker_dict", {"worker": worker}).items():
        training_workers = {
            "actor": getattr(inner, "actor", None),
            "reference": getattr(inner, "ref", None),
            "critic": inner if "critic" in key else None,
        }
        for role, training_worker in training_workers.items():
            engine = getattr(training_worker, "engine", None)
            if getattr(engine, "module", None) is not None:
                trainer = trainer_megatron if is_megatron(engine) else trainer_fsdp
                rows[role] = trainer.describe_engine(engine)
    return this_process(f"trainer rank {worker.rank}", status(), rows)


def server_report(_server: Any, name: str) -> Report:
    """Return the report of a vLLM server actor. Runs inside it. Replica ranks start at 0 for each role."""
    return this_process(name, status(), {})


def from_trainers(worker_groups: Iterable[Any]) -> list[Report]:
    """Return one report from every trainer rank. Colocated worker groups share their actors."""
    actors = {actor._actor_id: actor for group in worker_groups for actor in group.workers}
    calls = {f"trainer rank {i}": a.__ray_call__.remote(trainer_report) for i, a in enumerate(actors.values())}
    return list(answers(calls).values())


def from_rollout(replicas: Iterable[Any], policy: Collection[Any]) -> tuple[list[Report], list[Report]]:
    """Return the reports of every vLLM server actor, and of every vLLM worker process behind them.

    Args:
        replicas: verl's RolloutReplica objects.
        policy: Those of them that serve the policy.

    Raises:
        Fp16PatchError: A process did not report.
    """
    servers: list[Report] = []
    workers: list[Report] = []
    for number, replica in enumerate(replicas):
        names = {f"vLLM server {number} node {i}": server for i, server in enumerate(replica.servers)}
        calls = {name: server.__ray_call__.remote(server_report, name) for name, server in names.items()}
        servers += answers(calls).values()
        # The first node's server answers for the workers of all nodes of its replica.
        name = f"vLLM workers of server {number}"
        replies = answers({name: replica.servers[0].collective_rpc.remote(REPORT)})[name]
        for report in parse_reports(replies, replica.world_size, number):
            workers.append(report | {"roles": {_role(replica, policy): report["roles"]["rollout"]}})
    return servers, workers


def missing_engines(config: DictConfig, workers: Iterable[Report]) -> list[Fp16PatchError]:
    """Return an error for each vLLM engine of the configuration whose role none of the ``workers`` has."""
    from fp16_patch.frameworks.verl.config.vllm_engines import REWARD_MODEL, ROLLOUT, engines  # imports omegaconf

    seen = {role for worker in workers for role in worker["roles"]}
    roles = {ROLLOUT: "rollout", f"{REWARD_MODEL}.rollout": "reward model"}
    return [
        Fp16PatchError(
            f"{section}: no vLLM worker of it has reported its dtypes",
            code="process-missing",
            allowed="a report from every vLLM of the run",
            next_step="use verl's own managers of reward models and teachers; others are not checked",
        )
        for section in engines(config)
        if roles.get(section, "teacher") not in seen
    ]


def _role(replica: Any, policy: Collection[Any]) -> str:
    if replica in policy:
        return "rollout"
    return "reward model" if getattr(replica, "is_reward_model", False) else "teacher"
