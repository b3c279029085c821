# SPDX-License-Identifier: Apache-2.0
"""Find the arms of a run directory that need not run again: they completed with the settings they would get now."""

from __future__ import annotations

import platform

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.analysis.run_diff import diff_settings
from fp16_patch.lab.arms.settings import comparable, read_settings, settings_of
from fp16_patch.lab.launch.plan import Plan
from fp16_patch.lab.logs.runs import read_result
from fp16_patch.report.precision_report import versions


def completed(plan: Plan) -> list[str]:
    """Return the arms of ``plan`` that can be kept.

    Raises :class:`Fp16PatchError` if one completed with other settings or packages, and names each difference.
    """
    kept, out = [], plan.out
    for arm, job in plan.jobs.items():
        result = read_result(job.files)
        if result.get("status") != "completed":
            continue
        if (settings := read_settings(job.files)) is None:
            raise Fp16PatchError(
                f"{arm} in {out} completed, but has no settings.json to compare with",
                code="settings-differ",
                next_step="choose another --out, or leave --resume out to run every arm again",
            )
        planned = settings_of(job.files, plan.framework, plan.commands[arm])
        before = {**comparable(settings), **dict(result.get("versions") or {})}
        now = {**comparable(planned), "python": platform.python_version(), **versions()}
        differences = [
            f"  {name}: it ran with {ran}, now it would run with {would}"
            for name, ran, would in diff_settings(before, now, missing="nothing")
        ]
        if differences:
            raise Fp16PatchError(
                "\n".join([f"{arm} in {out} completed with other settings, and cannot be kept", *differences]),
                code="settings-differ",
                allowed="--resume with the settings and packages of the arms that completed",
                next_step="set them back, choose another --out, or leave --resume out to run every arm again",
            )
        kept.append(arm)
    return kept
