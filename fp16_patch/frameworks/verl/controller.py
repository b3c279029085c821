# SPDX-License-Identifier: Apache-2.0
"""Patches of verl's trainer loop: no process unproven, no update before the precision report.

They run in verl's task runner. Each stops the run by raising there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fp16_patch.engines.ray import node_check
from fp16_patch.frameworks.verl import mismatch, releases, reports
from fp16_patch.patching import Patch, status
from fp16_patch.precision import Precision, reports_folder
from fp16_patch.report import precision_report
from fp16_patch.report.process_report import require, this_process

Trainer = Any  # verl.trainer.ppo.v1.trainer_base.PPOTrainer, never imported here

_REPLICAS: list[Any] = []  # every RolloutReplica made in this process: policy, reward model, teachers
_PRINTED = "_fp16_patch_report"  # on the trainer: how far the report has come


def check_processes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Check every node before the workers start, and every process's ledger once they have."""

    @functools.wraps(original)
    def _setup(self: Trainer) -> Any:
        node_check.check_every_node()
        result = original(self)
        gather(self)
        return result

    return _setup


def report_before_first_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """Print the precision report after the first log-probs were computed, before anything is updated."""

    @functools.wraps(original)
    def _compute_advantage(self: Trainer, batch: Any, metrics: dict[str, Any]) -> Any:
        if not hasattr(self, _PRINTED):
            publish(self, when="before the first update")
            setattr(self, _PRINTED, "before")
        return original(self, batch, metrics)

    return _compute_advantage


def report_after_first_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """Complete the saved report with gradients and optimizer state, and the metrics with bypass mode's mismatch."""

    @functools.wraps(original)
    def _update_actor(self: Trainer, batch: Any, metrics: dict[str, Any]) -> Any:
        result = original(self, batch, metrics)
        mismatch.under_their_own_name(metrics)
        if getattr(self, _PRINTED, None) == "before":
            publish(self, when="after the first update")
            setattr(self, _PRINTED, "after")
        return result

    return _update_actor


def remember_replica(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keep every rollout replica, so that all of them are asked for their ledgers."""

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _REPLICAS.append(self)

    return __init__


def add_mismatch_metrics(original: Callable[..., Any]) -> Callable[..., Any]:
    """Signed and KL mismatch of this batch beside verl's ``training/rollout_probs_diff_*``."""

    @functools.wraps(original)
    def calculate_debug_metrics(data: Any) -> dict[str, Any]:
        from fp16_patch.mismatch import METRIC_PREFIX, log_prob_store
        from fp16_patch.mismatch.metrics import mismatch_metrics

        metrics: dict[str, Any] = original(data)
        both = [data.batch[name] for name in ("rollout_log_probs", "old_log_probs", "response_mask")]
        found = mismatch_metrics(*both)
        if Precision.current().keep_log_probs:
            log_prob_store.save(reports_folder() / log_prob_store.FOLDER, *both)
        return metrics | {f"{METRIC_PREFIX}{name}": value for name, value in found.items()}

    return calculate_debug_metrics


def gather(trainer: Trainer) -> list[dict[str, Any]]:
    """Every process's report, or an :class:`Fp16PatchError` naming those that are missing or unproven."""
    from fp16_patch.frameworks.verl.plan import required

    groups = [getattr(trainer, name, None) for name in ("actor_rollout_wg", "critic_wg", "ref_policy_wg")]
    trainers = reports.from_trainers(group for group in groups if group is not None)
    servers, workers = reports.from_rollout(_REPLICAS, _other_roles(trainer))
    runner = [this_process("task runner", status(), {})]
    by_kind = {
        "task runner": runner,
        "trainer rank": trainers,
        "vLLM server": servers,
        "vLLM worker": workers,
    }
    require(by_kind, required(_strategies(trainer)))
    return [_driver_report(trainer.config.fp16_patch), *runner, *trainers, *servers, *workers]


def _strategies(trainer: Trainer) -> set[str]:
    """Return the engines that this run's trainer ranks use; a reference has its actor's."""
    critic = [trainer.config.critic.strategy] if getattr(trainer, "critic_wg", None) is not None else []
    return {trainer.config.actor_rollout_ref.actor.strategy, *critic}


def _driver_report(flag: Any) -> dict[str, Any]:
    """Return the report of the process that ran ``main_ppo``, read from the configuration it has changed."""
    entries = [
        {"name": change["key"], "outcome": "applied", "message": f"{change['before']} -> {change['after']}"}
        for change in changes_of(flag)
    ]
    return {"process": "driver", "host": flag.driver.host, "pid": flag.driver.pid, "ledger": entries, "roles": {}}


def publish(trainer: Trainer, when: str) -> None:
    """Gather, check against the flag, print (first time) and save."""
    flag = trainer.config.fp16_patch
    precision_report.publish(Precision.current(), gather(trainer), changes_of(flag), flag.report_path, when)


def changes_of(flag: Any) -> list[dict[str, Any]]:
    """Return what the flag changed in the configuration, as plain data; a value may be a whole section."""
    from omegaconf import OmegaConf

    found: list[dict[str, Any]] = OmegaConf.to_container(flag.changes)
    return found


def _other_roles(trainer: Trainer) -> dict[int, str]:
    """Replicas that do not serve the policy."""
    policy = {id(replica) for replica in trainer.llm_server_manager.get_replicas()}
    names = {}
    for replica in _REPLICAS:
        if id(replica) not in policy:
            names[id(replica)] = "reward model" if getattr(replica, "is_reward_model", False) else "teacher"
    return names


def _patch(name: str, target: str, **kwargs: Any) -> Patch:
    return Patch(
        name=name,
        target=target,
        distribution=releases.DISTRIBUTION,
        versions=releases.RELEASES,
        process="task runner",
        kind="wrap",
        upstream="none: our own proof",
        remove_when="never",
        **kwargs,
    )


_TRAINER = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"

PATCHES: tuple[Patch, ...] = (
    _patch(
        "check-processes",
        f"{_TRAINER}._setup",
        make=check_processes,
        parameters=("self",),
        reason="every hook that brings us into a process can fail silently, so a missing ledger stops the run",
    ),
    _patch(
        "precision-report",
        f"{_TRAINER}._compute_advantage",
        make=report_before_first_update,
        parameters=("self", "batch", "metrics"),
        reason="prints and saves the dtypes in force once, before the first update",
    ),
    _patch(
        "precision-report-complete",
        f"{_TRAINER}._update_actor",
        make=report_after_first_update,
        parameters=("self", "batch", "metrics"),
        reason="gradients and optimizer state exist only after the first update; completes the saved report; in bypass "
        "mode moves the mismatch, which only the updates can measure, to the name it has elsewhere",
    ),
    _patch(
        "remember-replicas",
        "verl.workers.rollout.replica:RolloutReplica.__init__",
        make=remember_replica,
        parameters=("self",),
        reason="reward-model and teacher engines are asked for their ledgers too",
    ),
    _patch(
        "mismatch-metrics",
        "verl.utils.debug.metrics:calculate_debug_metrics",
        also_bound=("verl.trainer.ppo.v1.trainer_base:calculate_debug_metrics",),
        make=add_mismatch_metrics,
        parameters=("data",),
        reason="adds max and min of pi - mu and the KL in float64 to verl's own mismatch metrics; keeps the log-probs "
        "where that was asked for",
    ),
)
