# SPDX-License-Identifier: Apache-2.0
"""vLLM's own way into each of its processes: the entry point group ``vllm.general_plugins``.

vLLM calls ``activate`` in every process that holds an engine or a worker, also in those that it starts by itself.
"""

from __future__ import annotations

import os
import pkgutil

from fp16_patch import envs, platforms


def activate() -> None:
    """Do what the environment asks for; nothing where it asks for nothing. What it raises ends the process."""
    platforms.activate()
    if setup := os.environ.get(envs.SETUP):
        pkgutil.resolve_name(setup)()
