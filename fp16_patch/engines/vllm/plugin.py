# SPDX-License-Identifier: Apache-2.0
"""Activate this package in vLLM's processes, through the entry point group ``vllm.general_plugins``.

vLLM calls ``activate`` in every process that has an engine or a worker, also in those that vLLM starts.
"""

from __future__ import annotations

import os
import pkgutil

from fp16_patch import envs, platforms


def activate() -> None:
    """Activate what the environment variables name, if anything. An error ends the process."""
    platforms.activate()
    if setup := os.environ.get(envs.SETUP):
        pkgutil.resolve_name(setup)()
