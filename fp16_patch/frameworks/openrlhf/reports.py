# SPDX-License-Identifier: Apache-2.0
"""Ask every process of an OpenRLHF run for its report. Runs in the controller."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from fp16_patch.engines.ray.actor_calls import SECONDS, answers
from fp16_patch.engines.vllm.precision import REPORT
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.openrlhf.rollout import LOOP, SERVER_PATCHES
from fp16_patch.patching import Ledger, LedgerEntry, Patch, status
from fp16_patch.patching.binding import marked_by
from fp16_patch.report.process_report import this_process

Report = dict[str, Any]


def from_trainers(groups: dict[str, Any]) -> dict[str, list[Report]]:
    """Role (``"actor"``) -> one report from every rank of its group; groups that are None are left out."""
    found: dict[str, list[Report]] = {}
    for role, group in groups.items():
        if group is not None:
            calls = {
                f"{role} rank {i}": actor.__ray_call__.remote(trainer_report, role)
                for i, actor in enumerate(group._actor_handlers)
            }
            found[f"{role} rank"] = list(answers(calls).values())
    return found


def trainer_report(actor: Any, role: str) -> Report:
    """Return a model actor's report. Runs inside that actor: Ray hands over the instance."""
    from fp16_patch.frameworks.openrlhf.trainer import describe_actor

    return this_process(f"{role} rank {actor._rank}", status(), {role: describe_actor(actor)})


def from_rollout(engines: list[Any], workers_each: int) -> dict[str, list[Report]]:
    """Return the reports of every vLLM actor, and of every worker process behind them."""
    asked = {f"vLLM server {i}": engine.__ray_call__.remote(server_report, i) for i, engine in enumerate(engines)}
    servers = list(answers(asked).values())
    workers: list[Report] = []
    calls = {f"vLLM workers of server {i}": e.__ray_call__.remote(worker_reports) for i, e in enumerate(engines)}
    for number, replies in enumerate(answers(calls).values()):
        reports = [json.loads(reply) for reply in replies or []]
        if len(reports) != workers_each:
            raise Fp16PatchError(
                f"{len(reports)} of {workers_each} processes behind vLLM server {number} reported",
                code="process-missing",
                next_step="look in the log for the vLLM worker that failed; the run was stopped before training",
            )
        for report in reports:
            report["process"] = f"{report['process']} of server {number}"
        workers += reports
    return {"vLLM server": servers, "vLLM worker": workers}


def server_report(actor: Any, number: int) -> Report:
    """Return a vLLM actor's report. Runs inside that actor, whose class came from the driver with its patches."""
    return this_process(f"vLLM server {number}", with_shipped(status(), type(actor), SERVER_PATCHES), {})


def sampler_report(_actor: Any) -> Report:
    """Return the sampler's report. Runs inside the async trainer's sampler."""
    return this_process("sampler", status(), {})


def with_shipped(ledger: Ledger, cls: type, patches: Sequence[Patch]) -> Ledger:
    """``ledger`` with what is true of ``cls``, which Ray brought here by value: the driver has patched it, or has not.

    What this process did to its own copy of the class counts for nothing.
    """
    names = {patch.name for patch in patches}
    found = Ledger()
    for entry in ledger.entries:
        if entry.name not in names:
            found.record(entry)
    for patch in patches:
        if marked_by(getattr(cls, patch.target.rpartition(".")[2]), patch.name):
            found.record(
                LedgerEntry(patch.name, patch.target, "applied", None, "came with its class", patch.process_names)
            )
    return found


def worker_reports(actor: Any) -> list[str]:
    """Return the reports of a vLLM actor's workers. Runs inside that actor, in a thread beside its event loop."""
    question = asyncio.run_coroutine_threadsafe(actor.llm.collective_rpc(REPORT), getattr(actor, LOOP))
    told: list[str] = question.result(SECONDS)
    return told
