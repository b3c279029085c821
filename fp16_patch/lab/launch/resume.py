# SPDX-License-Identifier: Apache-2.0
"""Which arms in a run directory need not be run again: those that completed with the settings they would get now."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.launch.command import ArmFiles, Command
from fp16_patch.lab.launch.settings import comparable, read_settings, settings_of
from fp16_patch.lab.logs.runs import read_result
from fp16_patch.report.precision_report import versions


def completed(out: Path, commands: Mapping[str, Command]) -> list[str]:
    """Those of the arms in ``commands`` that can be kept.

    Raises :class:`Fp16PatchError` naming what differs where one completed with other settings or packages.
    """
    kept = []
    for arm, command in commands.items():
        files = ArmFiles(out / arm)
        result, settings = read_result(files), read_settings(files)
        if result.get("status") != "completed":
            continue
        before = {**(comparable(settings) if settings else {}), **dict(result.get("versions") or {})}
        expected = settings_of(files, str(result.get("framework")), command)
        now = {**comparable(expected), "python": platform.python_version(), **versions()}
        differences = [
            f"  {name}: it ran with {before.get(name, 'nothing')}, and now there is {now.get(name, 'nothing')}"
            for name in dict.fromkeys((*before, *now))
            if before.get(name) != now.get(name)
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
