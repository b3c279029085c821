# SPDX-License-Identifier: Apache-2.0
"""The flag reaches a Ray job through Ray's own hook, together with the user's own settings."""

from __future__ import annotations

import json
import os

import pytest
from raising import check_error, raises_code

from fp16_patch import envs
from fp16_patch.engines.ray import job, runtime_env

SETUP = "acme.worker.activate"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop(runtime_env.HOOK, None)


def theirs(env: dict[str, object] | None) -> dict[str, object]:
    return {**(env or {}), "working_dir": "theirs"}


def test_the_job_gets_the_variables_and_the_setup() -> None:
    os.environ |= {"ACME_A": "1", "ACME_B": "2"}
    runtime_env.set_runtime_env_hook(SETUP, ("ACME_A", "ACME_B", "ACME_NOT_SET"))
    before = {"env_vars": {"NCCL_DEBUG": "WARN"}, "pip": ["x"]}
    extended = runtime_env.runtime_env_hook(before)
    carried = {"ACME_A": "1", "ACME_B": "2", envs.SETUP: SETUP}
    assert extended["env_vars"] == {"NCCL_DEBUG": "WARN", **carried}
    assert extended["worker_process_setup_hook"] == SETUP
    assert extended["pip"] == ["x"]
    assert before == {"env_vars": {"NCCL_DEBUG": "WARN"}, "pip": ["x"]}, "the caller's own must stay as it is"
    assert runtime_env.runtime_env_hook(None)["env_vars"] == carried


def test_ray_finds_the_hook_by_its_name() -> None:
    from ray._common.utils import load_class

    runtime_env.set_runtime_env_hook(SETUP, ())
    assert load_class(os.environ[runtime_env.HOOK]) is runtime_env.runtime_env_hook


def test_a_hook_of_the_user_is_called_too() -> None:
    os.environ[runtime_env.HOOK] = f"{__name__}.theirs"
    import sys

    sys.modules.setdefault(__name__, sys.modules[theirs.__module__])
    runtime_env.set_runtime_env_hook(SETUP, ())
    runtime_env.set_runtime_env_hook(SETUP, ())  # again, it is not taken for the user's
    assert runtime_env.runtime_env_hook({})["working_dir"] == "theirs"


def test_a_second_setup_hook_is_refused() -> None:
    runtime_env.set_runtime_env_hook(SETUP, ())
    with raises_code("setting-contradicts", "worker_process_setup_hook='acme.other'"):
        runtime_env.runtime_env_hook({"worker_process_setup_hook": "acme.other"})
    assert runtime_env.runtime_env_hook({"worker_process_setup_hook": SETUP})["worker_process_setup_hook"] == SETUP


def test_a_setup_hook_of_the_job_is_found_before_anything_starts() -> None:
    os.environ[job.JOB_CONFIG] = json.dumps({"runtime_env": {"worker_process_setup_hook": "acme.other"}})
    (problem,) = runtime_env.job_problems(SETUP)
    check_error(problem, "setting-contradicts", "worker_process_setup_hook='acme.other'")
    assert list(runtime_env.job_problems("acme.other")) == []


def test_ray_client_calls_no_hook() -> None:
    os.environ["RAY_ADDRESS"] = "ray://head:10001"
    (problem,) = runtime_env.job_problems(SETUP)
    check_error(problem, "ray-client-not-supported", "ray://head:10001")
