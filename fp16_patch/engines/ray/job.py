# SPDX-License-Identifier: Apache-2.0
"""Read the runtime environment of the job that this driver runs in (``ray job submit``, KubeRay's RayJob).

``ray.init`` merges it with its own, and ends with "Failed to merge the Job's runtime env" if both set one variable
(``ray._private.worker.init``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.log import logger

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable in which Ray passes the job's configuration to its driver (``ray._private.runtime_env.constants``)."""


def runtime_env() -> dict[str, Any]:
    """Return the job's runtime environment; empty outside a job.

    Raises:
        Fp16PatchError: If it is not JSON.
    """
    return _config().get("runtime_env") or {}


def take_variables(names: Iterable[str]) -> dict[str, str]:
    """Remove variables from the job's runtime environment, so that ``ray.init`` may set them. Return their values."""
    config = _config()
    variables = (config.get("runtime_env") or {}).get("env_vars") or {}
    taken = {name: variables.pop(name) for name in names if name in variables}
    if taken:
        os.environ[JOB_CONFIG] = json.dumps(config)
    return taken


def _config() -> dict[str, Any]:
    text = os.environ.get(JOB_CONFIG)
    try:
        config = json.loads(text) if text else {}
    except ValueError as error:
        raise _not_a_job_config(text, str(error)) from error
    if not isinstance(config, dict) or not isinstance(config.get("runtime_env") or {}, dict):
        raise _not_a_job_config(text, "no mapping with the key runtime_env")
    return config


def _not_a_job_config(text: str | None, why: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"{JOB_CONFIG}={text!r} is not the JSON that Ray gives a job's driver: {why}",
        code="runtime-env-not-json",
        allowed='{"runtime_env": {...}}, or unset outside a Ray job',
        next_step=f"unset {JOB_CONFIG}, or start the command with `ray job submit`",
    )


def warn_if_deleted(report_path: str) -> None:
    """Warn if reports go into Ray's copy of the job's working directory, which Ray deletes after the job."""
    if "runtime_resources" in Path(report_path).parts:  # .../session_.../runtime_resources/working_dir_files/...
        logger.warning(
            "the precision report goes to %s, in Ray's copy of the working directory, which Ray deletes after the job; "
            "set fp16_patch.report_path to a path that all nodes share",
            report_path,
        )
