# SPDX-License-Identifier: Apache-2.0
"""The async trainer's processes: the patches that each must show, and the reports kept from before its two loops."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from raising import check_error

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.openrlhf import plan, reports
from fp16_patch.patching import Ledger, LedgerEntry, Patch, ProcessKind
from fp16_patch.patching.binding import MARK
from fp16_patch.patching.checks import check_source
from fp16_patch.report.process_report import this_process


def method_of_openrlhf(*_: object) -> None: ...


SHIPPED = tuple(patch for patch in reports.REQUIRED[ProcessKind.ASYNC_CONTROLLER] if patch.shipped)


def controller(without: Patch | None = None) -> Any:
    """Return what ``gather`` reads of the async controller, whose class the driver has patched; no models, no vLLM."""
    methods: dict[str, Any] = {}
    for patch in SHIPPED:

        def method(*_: object) -> None: ...

        name = patch.target.rpartition(".")[2]
        method.__wrapped__ = methods.get(name, method_of_openrlhf)  # type: ignore[attr-defined]
        if patch is not without:
            setattr(method, MARK, patch.name)
        methods[name] = method
    groups = dict.fromkeys(("actor_model_group", "reference_model_group", "critic_model_group", "reward_model_group"))
    made = type("TrainingActor", (SimpleNamespace,), methods)
    vllm = SimpleNamespace(tensor_parallel_size=1)
    return made(args=SimpleNamespace(train=SimpleNamespace(async_enable=True), vllm=vllm), vllm_engines=[], **groups)


def report_of(kind: str, *patches: Patch) -> dict[str, list[dict[str, Any]]]:
    ledger = Ledger()
    for patch in patches:
        ledger.record(LedgerEntry(patch.name, patch.target, "applied", "0.11.2", "", patch.process_names))
    return {kind: [this_process(kind, ledger, {})]}


COORDINATOR = report_of("coordinator", *reports.REQUIRED[ProcessKind.COORDINATOR])


def refused(ask: Callable[..., Any], *given: Any) -> Fp16PatchError:
    with pytest.raises(Fp16PatchError) as problem:
        ask(*given)
    return problem.value


def test_its_patches_fit_the_installed_source() -> None:
    pytest.importorskip("openrlhf.utils.config", reason="OpenRLHF is not installed")
    for patch in plan.PLAN["openrlhf.trainer.ppo_trainer_async"]:
        finding = check_source(patch)
        assert finding.outcome == "applied", finding.message


def test_without_the_coordinator_s_check_processes_are_missing() -> None:
    check_error(refused(reports.gather, controller()), "process-missing", "sampler", "coordinator")


def test_a_sampler_that_forbids_the_first_eos_is_named() -> None:
    extra = COORDINATOR | report_of("sampler")
    error = refused(reports.keep_and_publish, controller(), extra)
    check_error(error, "patch-missing", "sampler (pid", "openrlhf-first-token")
    assert "coordinator" not in str(error)


def test_a_controller_whose_class_came_unpatched_is_named() -> None:
    extra = COORDINATOR | report_of("sampler", *reports.REQUIRED[ProcessKind.SAMPLER])
    missing, *others = SHIPPED
    error = refused(reports.keep_and_publish, controller(without=missing), extra)
    check_error(error, "patch-missing", missing.name)
    assert all(other.name not in str(error) for other in others)
    assert "sampler (pid" not in str(error)


def test_reports_from_before_the_loops_are_kept() -> None:
    made = controller()
    extra = COORDINATOR | report_of("sampler", *reports.REQUIRED[ProcessKind.SAMPLER])
    for error in (refused(reports.keep_and_publish, made, extra), refused(reports.gather, made)):
        assert "sampler" not in str(error)
        assert "coordinator" not in str(error)
        check_error(error, "process-missing", "vLLM server")  # processes that never reported are still missing
