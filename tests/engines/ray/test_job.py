# SPDX-License-Identifier: Apache-2.0
"""A job's runtime environment and the flag's: Ray merges them only if no variable is in both."""

from __future__ import annotations

import json
import os

import pytest
from raising import raises_code

from fp16_patch.engines.ray import job

JOB = {"runtime_env": {"env_vars": {"ACME_A": "1", "ACME_B": "2"}, "working_dir": "gcs://x.zip"}, "metadata": {}}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop(job.JOB_CONFIG, None)


def test_rays_name_of_the_variable() -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert job.JOB_CONFIG == RAY_JOB_CONFIG_JSON_ENV_VAR


def test_a_variable_taken_is_no_longer_the_jobs() -> None:
    os.environ[job.JOB_CONFIG] = json.dumps(JOB)
    assert job.take_variables(("ACME_A", "ACME_NOT_SET")) == {"ACME_A": "1"}
    assert json.loads(os.environ[job.JOB_CONFIG]) == {
        "runtime_env": {"env_vars": {"ACME_B": "2"}, "working_dir": "gcs://x.zip"},
        "metadata": {},
    }


def test_outside_a_job_and_in_one_without_variables() -> None:
    assert (job.runtime_env(), job.take_variables(("ACME_A",))) == ({}, {})
    assert job.JOB_CONFIG not in os.environ
    os.environ[job.JOB_CONFIG] = text = '{"runtime_env": null, "metadata": {}}'
    assert (job.runtime_env(), job.take_variables(("ACME_A",))) == ({}, {})
    assert os.environ[job.JOB_CONFIG] == text


@pytest.mark.parametrize("text", ["{'runtime_env': {}}", "[]", '{"runtime_env": "x"}'])
def test_a_job_configuration_that_is_not_json(text: str) -> None:
    os.environ[job.JOB_CONFIG] = text
    with raises_code("runtime-env-not-json", job.JOB_CONFIG, text):
        job.runtime_env()
