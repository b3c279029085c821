# SPDX-License-Identifier: Apache-2.0
"""Gather the reports of every process of an OpenRLHF run, check them and publish them. Runs in the controller."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fp16_patch import envs
from fp16_patch.attached_state import attached
from fp16_patch.engines.ray.actor_calls import answers
from fp16_patch.engines.vllm.precision import REPORT, parse_reports
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.openrlhf.rollout import ask_workers
from fp16_patch.frameworks.openrlhf.trainer import describe_actor
from fp16_patch.patching import Ledger, LedgerEntry, Patch, ProcessKind, status
from fp16_patch.patching.binding import marked_by
from fp16_patch.precision import Precision, long_name
from fp16_patch.report import precision_report
from fp16_patch.report.process_report import require, this_process

Report = dict[str, Any]
Controller = Any  # openrlhf.trainer.ppo_trainer.PPOTrainer, or ppo_trainer_async.TrainingActor, never imported here

REQUIRED: dict[ProcessKind, tuple[Patch, ...]] = {}
"""Kind of process -> the patches that its ledger must show as applied or native. ``plan`` fills it."""


@dataclass
class _ExtraReports:
    """Hold the reports that the async trainer's other processes made before they were busy."""

    by_kind: dict[str, list[Report]] = field(default_factory=lambda: {"coordinator": [], "sampler": []})


def gather(controller: Controller) -> list[Report]:
    """Return every process's report. Raise :class:`Fp16PatchError` if a process or a required patch is missing."""
    asynchronous = controller.args.train.async_enable
    kind = ProcessKind.ASYNC_CONTROLLER if asynchronous else ProcessKind.CONTROLLER
    reports = {
        kind.value: [shipped_class_report(kind, type(controller))],
        **(attached(controller, _ExtraReports).by_kind if asynchronous else {}),
        **_from_trainers(controller),
        **_from_rollout(controller.vllm_engines, controller.args.vllm.tensor_parallel_size),
    }
    if not REQUIRED:
        raise Fp16PatchError(
            "fp16_patch.frameworks.openrlhf.worker.activate was not called in the controller",
            code="flag-not-propagated",
            next_step="start with `fp16-patch run -- python -m openrlhf.cli.train_ppo_ray ...`",
        )
    require(reports, {kind.value: patches for kind, patches in REQUIRED.items()})
    return [report for some in reports.values() for report in some]


def keep_and_publish(controller: Controller, extra_reports: dict[str, list[Report]]) -> None:
    """Keep the reports of the async trainer's other processes for every later :func:`gather`, and publish."""
    attached(controller, _ExtraReports).by_kind = extra_reports
    publish(controller, when="before training")


def publish(controller: Controller, when: str) -> None:
    """Gather the reports, check them against the flag, print them before training and updates, and save them."""
    gathered = gather(controller)
    record = json.loads(os.environ[envs.RUN_RECORD])
    driver = {"process": "driver", **record["driver"], "ledger": [], "roles": {}}
    reports = [driver, *gathered]
    precision = Precision.current()
    precision_report.publish(
        precision,
        reports,
        record["changes"],
        record["report_path"],
        when,
        extra_allowed=_deepspeed_dtypes(precision),
        sampling=record["sampling"],
    )


def _deepspeed_dtypes(precision: Precision) -> Mapping[str, tuple[str, ...]]:
    """Return the rows in which DeepSpeed's half precision is expected: reduction, and in BF16 accumulation."""
    half = (long_name(precision.train_dtype),)
    return {"gradient_reduction": half} | ({"gradient_accumulation": half} if precision.train_dtype == "bf16" else {})


def _from_trainers(controller: Controller) -> dict[str, list[Report]]:
    """Return role (``"actor rank"``) -> a report of each of its ranks. Leave out roles that the run does not have."""
    found: dict[str, list[Report]] = {}
    for role in ("actor", "reference", "critic", "reward"):
        if (group := getattr(controller, f"{role}_model_group")) is not None:
            ranks = enumerate(group._actor_handlers)
            calls = {f"{role} rank {i}": actor.__ray_call__.remote(trainer_report, role) for i, actor in ranks}
            found[f"{role} rank"] = list(answers(calls).values())
    return found


def trainer_report(actor: Any, role: str) -> Report:
    """Return the report of a model actor. Runs inside it: Ray passes the instance."""
    return this_process(f"{role} rank {actor._rank}", status(), {role: describe_actor(actor)})


def _from_rollout(engines: list[Any], workers_each: int) -> dict[str, list[Report]]:
    """Return the reports of every vLLM actor, and of every worker process behind them."""
    calls = {f"vLLM server {i}": engine.__ray_call__.remote(server_report, i) for i, engine in enumerate(engines)}
    servers = list(answers(calls).values())
    calls = {f"vLLM workers of server {i}": e.__ray_call__.remote(ask_workers, REPORT) for i, e in enumerate(engines)}
    workers: list[Report] = []
    for number, replies in enumerate(answers(calls).values()):
        workers += parse_reports(replies, workers_each, number)
    return {"vLLM server": servers, "vLLM worker": workers}


def server_report(actor: Any, number: int) -> Report:
    """Return the report of a vLLM actor. Runs inside it."""
    return shipped_class_report(ProcessKind.VLLM_SERVER, type(actor), f"vLLM server {number}")


def sampler_report(_actor: Any) -> Report:
    """Return the report of the async trainer's sampler. Runs inside it."""
    return this_process("sampler", status(), {})


def shipped_class_report(kind: ProcessKind, cls: type, name: str | None = None) -> Report:
    """Return the report of this process, whose class ``cls`` came from the driver: Ray shipped it by value.

    Of the patches on that class, the report says what ``cls`` brought along. What this process did to its own copy of
    the class does not count.
    """
    ledger = Ledger()
    for entry in status().entries:
        ledger.record(entry)
    for patch in REQUIRED.get(kind, ()):
        if patch.shipped:
            ledger.remove(patch.name)
            if marked_by(getattr(cls, patch.target.rpartition(".")[2]), patch.name):
                message = "came with its class"
                ledger.record(LedgerEntry(patch.name, patch.target, "applied", None, message, patch.process_names))
    return this_process(name or kind.value, ledger, {})
