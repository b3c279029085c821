# SPDX-License-Identifier: Apache-2.0
"""The async trainer's processes: what each must show, and who keeps what was said before the two loops began."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.openrlhf import plan, reporting
from fp16_patch.patching import Ledger, LedgerEntry, Patch
from fp16_patch.patching.binding import MARK
from fp16_patch.patching.inspection import check_source
from fp16_patch.proof.processes import this_process


def method_of_openrlhf(*_: object) -> None: ...


SHIPPED = plan.SHIPPED["async controller"]


def controller(without: Patch | None = None) -> Any:
    """What ``gather`` reads of the async controller, its class patched in the driver; no models, no vLLM."""
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


def said(kind: str, *patches: Patch) -> dict[str, list[dict[str, Any]]]:
    ledger = Ledger()
    for patch in patches:
        ledger.record(LedgerEntry(patch.name, patch.target, "applied", "0.11.2", "", patch.process))
    return {kind: [this_process(kind, ledger, {})]}


def refused(ask: Callable[..., Any], *given: Any) -> str:
    with pytest.raises(Fp16PatchError) as problem:
        ask(*given)
    return str(problem.value)


def test_its_patches_fit_the_installed_source() -> None:
    pytest.importorskip("openrlhf.utils.config", reason="OpenRLHF is not installed")
    for patch in plan.PLAN["openrlhf.trainer.ppo_trainer_async"]:
        finding = check_source(patch)
        assert finding.outcome == "applied", finding.message


def test_without_the_coordinator_s_check_nothing_is_proven() -> None:
    message = refused(reporting.gather, controller())
    assert "no sampler reported its ledger" in message
    assert "no coordinator reported its ledger" in message


def test_a_sampler_that_forbids_the_first_eos_is_named() -> None:
    beside = said("coordinator", *plan.REQUIRED["coordinator"]) | said("sampler")
    message = refused(reporting.gather_with, controller(), beside)
    assert "sampler (pid" in message
    assert "runs without the patch openrlhf-first-token" in message
    assert "coordinator" not in message


def test_a_controller_whose_class_came_unpatched_is_named() -> None:
    beside = said("coordinator", *plan.REQUIRED["coordinator"]) | said("sampler", *plan.REQUIRED["sampler"])
    missing, *others = SHIPPED
    message = refused(reporting.gather_with, controller(without=missing), beside)
    assert f"runs without the patch {missing.name}" in message
    assert all(f"the patch {other.name} of" not in message for other in others)
    assert "sampler (pid" not in message


def test_what_was_said_before_the_loops_began_is_kept() -> None:
    made = controller()
    beside = said("coordinator", *plan.REQUIRED["coordinator"]) | said("sampler", *plan.REQUIRED["sampler"])
    for message in (refused(reporting.gather_with, made, beside), refused(reporting.gather, made)):
        assert "no sampler" not in message
        assert "no coordinator" not in message
        assert "no vLLM server reported its ledger" in message, "what is not there must still be missed"
