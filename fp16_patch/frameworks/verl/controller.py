# SPDX-License-Identifier: Apache-2.0
"""Patch verl's trainer loop: check every process, and report the precision before training and its first update.

They run in verl's task runner. An error raised there stops the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fp16_patch.attached_state import attached
from fp16_patch.engines.ray import node_check
from fp16_patch.engines.vllm import sampling
from fp16_patch.errors import combine_errors
from fp16_patch.frameworks.verl import mismatch, reports
from fp16_patch.frameworks.verl.releases import TASK_RUNNER
from fp16_patch.patching import Patch, ProcessKind, hook, registry, status, wrap
from fp16_patch.precision import Precision
from fp16_patch.report import precision_report
from fp16_patch.report.process_report import require, this_process

Trainer = Any  # verl's PPOTrainer or, with trainer.use_v1=False, its RayPPOTrainer; never imported here

_TRAINER = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
V1, LEGACY = "verl.trainer.ppo.v1.", "verl.trainer.ppo.ray_trainer:"
"""How the targets of patches begin that only one of verl's two trainers needs."""
KINDS = (ProcessKind.TASK_RUNNER, ProcessKind.TRAINER_RANK, ProcessKind.VLLM_SERVER, ProcessKind.VLLM_WORKER)
"""The kinds of processes of a run of verl that must show their patches."""

START, BEFORE, AFTER = "before training", "before the first update", "after the first update"

_replicas: list[Any] = []  # every RolloutReplica made in this process: policy, reward model, teachers


@dataclass
class ReportProgress:
    """State on a trainer."""

    due: str | None = START
    """When its next precision report is due; None after the last one."""


@hook(
    f"{_TRAINER}._setup",
    **TASK_RUNNER,
    reason="every hook that loads this package in a process can fail silently, so a missing ledger stops the run",
)
@hook(
    f"{LEGACY}RayPPOTrainer.init_workers",
    name="legacy-check-processes",
    **TASK_RUNNER,
    reason="every hook that loads this package in a process can fail silently, so a missing ledger stops the run",
)
def check_processes(original: Any, self: Trainer) -> Any:
    """Check the ledger of every process once the workers have started. ``nodes.py`` checks nodes before."""
    result = original(self)
    gather(self)
    return result


@hook(
    f"{_TRAINER}.fit",
    name="precision-report-start",
    **TASK_RUNNER,
    reason="a run that only validates, or has no step, has no update to report at; saves what is known before training",
)
def report_before_training(original: Any, self: Trainer, *args: Any, **kwargs: Any) -> Any:
    """Save the precision report before the first validation. Later reports complete it."""
    publish_if_due(self, START)
    return original(self, *args, **kwargs)


@hook(
    f"{_TRAINER}._compute_advantage",
    name="precision-report",
    **TASK_RUNNER,
    reason="prints and saves the dtypes in force once, before the first update",
)
def report_before_first_update(original: Any, self: Trainer, batch: Any, metrics: dict[str, Any]) -> Any:
    """Publish the precision report after the first log-probs were computed, before anything is updated."""
    publish_if_due(self, BEFORE)
    return original(self, batch, metrics)


@wrap(
    f"{_TRAINER}._update_actor",
    name="precision-report-complete",
    **TASK_RUNNER,
    reason="gradients and optimizer state exist only after the first update; completes the saved report; in bypass "
    "mode renames the mismatch, which only the updates can measure, as in other modes",
    upstream="none: our own proof",
    remove_when="never",
)
def report_after_first_update(original: Any, self: Trainer, batch: Any, metrics: dict[str, Any]) -> Any:
    """Add gradients and optimizer state to the saved report; rename the mismatch metrics of bypass mode."""
    result = original(self, batch, metrics)
    mismatch.strip_actor_prefix(metrics)
    publish_if_due(self, AFTER)
    return result


@hook(
    "verl.workers.rollout.replica:RolloutReplica.__init__",
    name="remember-replicas",
    when="verl.trainer.ppo.ray_trainer",  # the V1 trainer imports it too
    **TASK_RUNNER,
    reason="reward-model and teacher engines are asked for their ledgers too",
)
def remember_replica(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """Keep every rollout replica, so that all of them are asked for their ledgers."""
    original(self, *args, **kwargs)
    _replicas.append(self)


def gather(trainer: Trainer) -> list[dict[str, Any]]:
    """Collect the reports of every process.

    Raises:
        Fp16PatchError: A process did not report, runs without one of its patches, or on a node with other versions.
    """
    node_check.check_nodes_in_use()
    groups = [getattr(trainer, name, None) for name in ("actor_rollout_wg", "critic_wg", "ref_policy_wg")]
    trainers = reports.from_trainers(group for group in groups if group is not None)
    servers, workers = reports.from_rollout(_replicas, trainer.llm_server_manager.get_replicas())
    runner = [this_process(ProcessKind.TASK_RUNNER.value, status(), {})]
    by_kind = dict(zip(KINDS, (runner, trainers, servers, workers), strict=True))
    require(by_kind, registry.required(patches_of(type(trainer).__module__), KINDS, _engines(trainer)))
    if missing := reports.missing_engines(trainer.config, workers):
        raise combine_errors(missing)
    return [_driver_report(trainer.config.fp16_patch), *runner, *trainers, *servers, *workers]


def patches_of(trainer_module: str) -> tuple[Patch, ...]:
    """Return the patches of a run whose trainer is defined in this module: without those of verl's other trainer."""
    other = V1 if f"{trainer_module}:" == LEGACY else LEGACY
    declared = (*registry.declared_under("fp16_patch.frameworks.verl"), *registry.declared_in(sampling))
    return tuple(patch for patch in declared if not patch.target.startswith(other))


def publish_if_due(trainer: Trainer, when: str) -> None:
    """Gather the reports, check them against the flag, save them, and print them before training and updates."""
    progress = attached(trainer, ReportProgress)
    if progress.due == when:
        flag = trainer.config.fp16_patch
        precision, changes, accepted = Precision.current(), plain_list(flag.changes), plain_list(flag.sampling)
        precision_report.publish(precision, gather(trainer), changes, flag.report_path, when, sampling=accepted)
        progress.due = {START: BEFORE, BEFORE: AFTER}.get(when)


def _engines(trainer: Trainer) -> set[str]:
    """Return the engines of this run's trainer ranks, as patches name them. A reference has its actor's engine."""
    critic = [trainer.config.critic.strategy] if getattr(trainer, "critic_wg", None) is not None else []
    strategies = [trainer.config.actor_rollout_ref.actor.strategy, *critic]
    return {"fsdp" if strategy == "fsdp2" else strategy for strategy in strategies}


def _driver_report(flag: Any) -> dict[str, Any]:
    """Describe the process that ran ``main_ppo`` by the configuration that it passed on."""
    entries = [
        {"name": change["key"], "outcome": "applied", "message": f"{change['before']} -> {change['after']}"}
        for change in plain_list(flag.changes)
    ]
    return {"process": "driver", "host": flag.driver.host, "pid": flag.driver.pid, "ledger": entries, "roles": {}}


def plain_list(node: Any) -> list[dict[str, Any]]:
    """Return a list of the flag's node as plain data. A value in it may be a whole section."""
    from omegaconf import OmegaConf

    return list(OmegaConf.to_container(node))
