# SPDX-License-Identifier: Apache-2.0
"""A process is proven when its ledger shows every required patch as applied or native."""

from __future__ import annotations

import pytest
from raising import check_error

from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import Ledger, LedgerEntry, Outcome, Patch, ProcessKind, Release
from fp16_patch.report.process_report import missing_patches, this_process


def patch(name: str) -> Patch:
    return Patch(
        name=name,
        target="some.module:Class.method",
        kind="wrap",
        release=Release("verl", ">=0.9"),
        processes=frozenset({ProcessKind.TRAINER_RANK}),
        reason="for this test",
        upstream="none",
        remove_when="never",
        make=lambda original: original,
        parameters=("self",),
    )


def problems(required: list[str], **outcomes: Outcome) -> list[Fp16PatchError]:
    ledger = Ledger(host="node-1", pid=7)
    for name, outcome in outcomes.items():
        entry = LedgerEntry(name, "some.module:Class.method", outcome, "0.9.1", f"because {outcome}", "trainer rank")
        ledger.record(entry)
    return missing_patches(this_process("trainer rank 3", ledger, {}), [patch(name) for name in required])


@pytest.mark.parametrize("outcome", ["applied", "native"])
def test_applied_and_native_prove_a_patch(outcome: Outcome) -> None:
    assert problems(["scaler"], scaler=outcome) == []


@pytest.mark.parametrize("outcome", ["not_installed", "refused"])
def test_the_other_outcomes_do_not(outcome: Outcome) -> None:
    (error,) = problems(["scaler"], scaler=outcome)
    named = ("trainer rank 3 (pid 7 on node-1)", "scaler", "some.module:Class.method", f"{outcome}: because {outcome}")
    check_error(error, "patch-missing", *named)
    assert error.next_step is not None
    assert "fp16-patch doctor" in error.next_step


def test_silence_proves_nothing() -> None:
    (error,) = problems(["scaler"])
    check_error(error, "patch-missing", "trainer rank 3", "scaler")


def test_every_unproven_patch_is_named_and_no_other() -> None:
    errors = problems(["a", "b", "c"], a="applied", b="refused", other="refused")
    assert [error.what.split("the patch ")[1].split()[0] for error in errors] == ["b", "c"]
