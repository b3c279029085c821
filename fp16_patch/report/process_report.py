# SPDX-License-Identifier: Apache-2.0
"""Build and check the report of one process: its name, its ledger, and the precision rows it can see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.patching import Ledger, Patch

_Kind = TypeVar("_Kind", bound=str)

OK_OUTCOMES = ("applied", "native")
"""Outcomes of a patch that is in force; the other two are ``not_installed`` and ``refused``."""


def this_process(name: str, ledger: Ledger, roles: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return the report, ready for JSON: ``name``, host, pid, ledger entries, and rows per role (``"actor"``, ...)."""
    return {
        "process": name,
        "host": ledger.host,
        "pid": ledger.pid,
        "ledger": ledger.as_dict()["entries"],
        "roles": {role: dict(rows) for role, rows in roles.items()},
    }


def missing_patches(report: Mapping[str, Any], required: Iterable[Patch]) -> list[Fp16PatchError]:
    """Return an error for each required patch that the process's ledger does not show as applied or native."""
    entries = {entry["name"]: entry for entry in report["ledger"]}
    problems = []
    for patch in required:
        entry = entries.get(patch.name)
        if entry is not None and entry["outcome"] in OK_OUTCOMES:
            continue
        found = f"{entry['outcome']}: {entry['message']}" if entry else "missing from its ledger"
        problems.append(
            Fp16PatchError(
                f"{report['process']} (pid {report['pid']} on {report['host']}) runs without the patch "
                f"{patch.name} of {patch.target}: {found}",
                code="patch-missing",
                allowed="applied or native, in every process",
                next_step="run `fp16-patch doctor` on that node, with that process's Python environment",
            )
        )
    return problems


def require(reports: Mapping[_Kind, Sequence[Mapping[str, Any]]], required: Mapping[_Kind, Iterable[Patch]]) -> None:
    """Check that every kind of process has reported, and that each process has the patches of its kind.

    Raises:
        Fp16PatchError: A report or a patch is missing. The error names every such process and patch.
    """
    problems: list[Fp16PatchError] = []
    for kind, of_kind in reports.items():
        if not of_kind:
            what = f"no {kind} reported its ledger"
            next_step = "read the logs of these processes; the run was stopped before training"
            problems.append(Fp16PatchError(what, code="process-missing", next_step=next_step))
        for report in of_kind:
            problems += missing_patches(report, required[kind])
    if problems:
        raise combine_errors(problems)
