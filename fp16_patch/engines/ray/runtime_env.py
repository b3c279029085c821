# SPDX-License-Identifier: Apache-2.0
"""Set up every process of a Ray job through Ray's own hook.

``ray.init`` calls ``RAY_RUNTIME_ENV_HOOK`` with the job's runtime environment, also on a cluster and under ``ray job
submit``, and the hook may add to it. ``uv run`` turns the hook off. The ledgers show whether it was called.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from fp16_patch import envs
from fp16_patch.engines.ray import job
from fp16_patch.errors import Fp16PatchError

HOOK = "RAY_RUNTIME_ENV_HOOK"
_OURS = f"{__name__}.runtime_env_hook"


def set_runtime_env_hook(setup: str, variables: Iterable[str]) -> None:
    """Make workers of the next ``ray.init`` call ``setup`` (``package.module.function``) with these variables set.

    The user's own hook, if any, is called before ours.
    """
    if (hook := os.environ.get(HOOK)) not in (None, _OURS):
        os.environ[envs.NEXT_RUNTIME_ENV_HOOK] = str(hook)
    os.environ[envs.SETUP] = setup
    os.environ[envs.CARRIED] = ",".join([envs.SETUP, *variables])
    os.environ[HOOK] = _OURS


def runtime_env_hook(runtime_env: dict[str, Any] | None) -> dict[str, Any]:
    """Return the runtime environment with our setup hook and variables. ``ray.init`` calls it.

    Raises:
        Fp16PatchError: If another ``worker_process_setup_hook`` is set.
    """
    if following := os.environ.get(envs.NEXT_RUNTIME_ENV_HOOK):
        from ray._common.utils import load_class

        runtime_env = load_class(following)(runtime_env)
    extended = dict(runtime_env or {})
    setup = os.environ[envs.SETUP]
    check_setup_hook(extended, setup)
    ours = {name: os.environ[name] for name in os.environ[envs.CARRIED].split(",") if name in os.environ}
    extended["env_vars"] = {**(extended.get("env_vars") or {}), **ours}
    extended["worker_process_setup_hook"] = setup
    return extended


def job_problems(setup: str) -> Iterator[Fp16PatchError]:
    """Yield why ``setup`` would not reach the workers: Ray Client calls no hook, or the job has another setup hook."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        yield Fp16PatchError(
            f"RAY_ADDRESS={address}: Ray Client does not call {HOOK}, so the flag would reach no worker",
            code="ray-client-not-supported",
            allowed="HOST:PORT of `ray start --head` (port 6379), from a node of the cluster",
            next_step="start the command on the cluster with `ray job submit`",
        )
    try:
        check_setup_hook(job.runtime_env(), setup)
    except Fp16PatchError as error:
        yield error


def check_setup_hook(runtime_env: dict[str, Any], setup: str) -> None:
    """Check that the runtime environment has room for our setup hook.

    Raises:
        Fp16PatchError: If it has another ``worker_process_setup_hook``.
    """
    if (other := runtime_env.get("worker_process_setup_hook")) not in (None, setup):
        raise Fp16PatchError(
            f"worker_process_setup_hook={other!r} is already set; Ray supports only one",
            code="setting-contradicts",
            allowed=setup,
            next_step=f"call {setup}() from your own hook, and start without fp16-patch run",
        )
