# SPDX-License-Identifier: Apache-2.0
"""Compose the commands of arms in other processes, each under the platform of its command.

What a framework imports (600 MB) would stay in memory, and it is imported once per process with one platform.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms.command import Command
from fp16_patch.lab.trainers import TRAINERS

_PLATFORM = ("VERL_PLATFORM", "VERL_USE_EXTERNAL_MODULES", envs.PLATFORM)
"""The variables that decide what a framework's first import does."""


class Composer:
    """Holds one process for each platform. A context manager."""

    def __enter__(self) -> Composer:
        self._stack = ExitStack()
        self._pools: dict[tuple[str | None, ...], ProcessPoolExecutor] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def refusal(self, framework: str, command: Command) -> Fp16PatchError | None:
        """Return why the framework, or the flag, would not start ``command``."""
        platform = tuple(command.environment.get(name, os.environ.get(name)) for name in _PLATFORM)
        if platform not in self._pools:
            pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            self._pools[platform] = self._stack.enter_context(pool)
        try:
            return self._pools[platform].submit(_refusal, framework, command).result()
        except BrokenProcessPool:
            del self._pools[platform]
            return Fp16PatchError(
                f"the process that composed {framework}'s configuration died",
                code="configuration-refused",
                next_step="look at the output above; compose it yourself with `fp16-patch doctor -- <command>`",
            )


def _refusal(framework: str, command: Command) -> Fp16PatchError | None:
    os.environ.update({"HF_HUB_OFFLINE": "1", **command.environment})  # do not ask the hub for the model
    try:
        TRAINERS[framework].compose(command)
    except Fp16PatchError as error:
        return error
    return None
