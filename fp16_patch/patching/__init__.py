# SPDX-License-Identifier: Apache-2.0
"""What a patch is; check, apply, verify and undo patches; the ledger. Knows no framework."""

from __future__ import annotations

from fp16_patch.patching.applying import apply, status, undo
from fp16_patch.patching.checks import Finding, check_live, check_source, installed_version, refusal
from fp16_patch.patching.import_hooks import when_imported
from fp16_patch.patching.ledger import Ledger, LedgerEntry
from fp16_patch.patching.patch import Kind, Outcome, Patch, validate_plan
from fp16_patch.patching.source import Definition, find

__all__ = [
    "Definition",
    "Finding",
    "Kind",
    "Ledger",
    "LedgerEntry",
    "Outcome",
    "Patch",
    "apply",
    "check_live",
    "check_source",
    "find",
    "installed_version",
    "refusal",
    "status",
    "undo",
    "validate_plan",
    "when_imported",
]
