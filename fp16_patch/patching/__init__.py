# SPDX-License-Identifier: Apache-2.0
"""Declare, check, apply and undo patches, and keep the ledger. Imports no framework."""

from __future__ import annotations

from fp16_patch.patching.applying import apply, status, undo
from fp16_patch.patching.checks import PatchStatus, check_live, check_source, installed_version, refusal
from fp16_patch.patching.declare import add, hook, replace, scoped, wrap
from fp16_patch.patching.import_hooks import when_imported
from fp16_patch.patching.ledger import Ledger, LedgerEntry
from fp16_patch.patching.patch import Outcome, Patch, Release, validate_plan
from fp16_patch.patching.process_kind import ProcessKind
from fp16_patch.patching.registry import declared_in, plan, register_import_hooks, required
from fp16_patch.patching.scoped_patches import attach, opened
from fp16_patch.patching.source import find_definitions

__all__ = [
    "PatchStatus",
    "Ledger",
    "LedgerEntry",
    "Outcome",
    "Patch",
    "ProcessKind",
    "Release",
    "add",
    "apply",
    "attach",
    "check_live",
    "check_source",
    "declared_in",
    "find_definitions",
    "hook",
    "installed_version",
    "opened",
    "plan",
    "refusal",
    "register_import_hooks",
    "replace",
    "required",
    "scoped",
    "status",
    "undo",
    "validate_plan",
    "when_imported",
    "wrap",
]
