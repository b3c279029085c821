# SPDX-License-Identifier: Apache-2.0
"""The flag under ``ray job submit``, whose runtime environment may have a variable that the flag sets too.

The plugins of these tests are small modules of the standard library, since verl imports them.
"""

from __future__ import annotations

import json
import os

import pytest
from omegaconf import OmegaConf
from raising import raises_code

from fp16_patch import envs
from fp16_patch.engines.ray import job
from fp16_patch.frameworks.verl.entry import EXTERNAL_MODULES, WORKER_MODULE, apply_flag
from fp16_patch.precision import Precision

FP16 = "+precision@_global_=fp16"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())


def submit(**variables: str) -> None:
    """Set the environment of a job's driver as Ray does (``dashboard.modules.job.job_supervisor``)."""
    os.environ |= variables
    os.environ[job.JOB_CONFIG] = json.dumps({"runtime_env": {"env_vars": variables}, "metadata": {}})


def merged(config):
    """Return the variables of every process, from Ray's own merge; None if Ray refuses."""
    from ray.runtime_env.runtime_env import _merge_runtime_env

    ours = OmegaConf.to_container(config.ray_kwargs.ray_init.runtime_env)
    both = _merge_runtime_env(job.runtime_env(), ours)
    return both and both["env_vars"]


def test_a_plugin_of_the_job_is_loaded_besides(compose):
    stale = {envs.PRECISION: Precision("bf16", "bf16").to_environment(), envs.COUNT_LOGITS: "2"}
    submit(**{EXTERNAL_MODULES: "colorsys", **stale, "NCCL_DEBUG": "INFO"})
    config = compose(FP16)
    apply_flag(config)
    variables = merged(config)
    assert variables[EXTERNAL_MODULES] == f"colorsys,{WORKER_MODULE}"
    assert json.loads(variables[envs.PRECISION])["train_dtype"] == "fp16"
    assert variables["NCCL_DEBUG"] == "INFO"


def test_plugins_of_job_and_configuration_are_joined(compose):
    submit(**{EXTERNAL_MODULES: "colorsys,keyword"})
    config = compose(FP16, f"+ray_kwargs.ray_init.runtime_env.env_vars.{EXTERNAL_MODULES}='netrc,keyword'")
    apply_flag(config)
    assert merged(config)[EXTERNAL_MODULES] == f"netrc,keyword,colorsys,{WORKER_MODULE}"


def test_a_report_in_rays_copy_of_the_working_directory(compose, capsys):
    folder = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1"
    apply_flag(compose(FP16, f"trainer.default_local_dir={folder}/checkpoints"))
    assert f"{folder}/checkpoints/precision_report.json, in Ray's copy" in capsys.readouterr().out
    apply_flag(
        compose(FP16, f"trainer.default_local_dir={folder}/checkpoints", "fp16_patch.report_path=/shared/r.json")
    )
    assert "Ray's copy" not in capsys.readouterr().out


@pytest.mark.parametrize("variable", [True, False])
def test_a_cluster_that_does_not_answer(compose, variable):
    address = "127.0.0.1:1"
    config = compose(FP16, *(() if variable else (f"+ray_kwargs.ray_init.address='{address}'",)))
    if variable:
        os.environ["RAY_ADDRESS"] = address
    with raises_code("cluster-unreachable", address):
        apply_flag(config)


def test_a_job_configuration_that_is_not_json(compose):
    os.environ[job.JOB_CONFIG] = "{runtime_env}"
    config = compose(FP16)
    before = OmegaConf.to_yaml(config)
    with raises_code("runtime-env-not-json", "{runtime_env}"):
        apply_flag(config)
    assert OmegaConf.to_yaml(config) == before


@pytest.mark.parametrize("path", ["/", "/dev/null", "''", "[a]"])
def test_a_report_path_that_cannot_be_written(compose, path):
    with raises_code("value-not-allowed", "fp16_patch.report_path="):
        apply_flag(compose(FP16, f"fp16_patch.report_path={path}"))


@pytest.mark.parametrize("step", ["10", "99999999999999999999999999"])
def test_a_step_to_trace_that_the_run_never_reaches(compose, step):
    trace = (f"fp16_patch.trace_rollout={step}", "actor_rollout_ref.rollout.enforce_eager=True")
    with raises_code("setting-refused", f"fp16_patch.trace_rollout={step}", "trainer.total_training_steps=9"):
        apply_flag(compose(FP16, *trace, "trainer.total_training_steps=9"))
    apply_flag(compose(FP16, *trace, "trainer.total_training_steps=null"))
