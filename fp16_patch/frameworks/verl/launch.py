# SPDX-License-Identifier: Apache-2.0
"""Before the run starts: is the installation fit, and how will every process learn of the flag."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf, open_dict

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.installation import unfit
from fp16_patch.frameworks.verl.plan import ALL_PATCHES
from fp16_patch.frameworks.verl.releases import RELEASE
from fp16_patch.precision import Precision

WORKER_MODULE = "fp16_patch.frameworks.verl.worker"
EXTERNAL_MODULES = "VERL_USE_EXTERNAL_MODULES"


def unfit_installation() -> list[Fp16PatchError]:
    """Everything about the installed packages that the flag cannot work with. Imports none of them."""
    problems = unfit("verl", "verl", RELEASE.versions, ALL_PATCHES)
    if _ray_is_running():
        problems.append(
            Fp16PatchError(
                "Ray is already initialised in this process, so the flag cannot reach its workers",
                code="ray-already-started",
                next_step="let verl call ray.init (RAY_ADDRESS still names a running cluster)",
            )
        )
    return problems


def reach_every_process(config: DictConfig, precision: Precision, report_path: str) -> None:
    """Put the flag into the run's Ray runtime environment; vLLM's child processes inherit it from there."""
    modules = [m for m in _current(config, EXTERNAL_MODULES).split(",") if m and m != WORKER_MODULE]
    variables = {
        envs.PRECISION: precision.to_environment(),
        envs.REPORTS: os.path.dirname(os.path.abspath(report_path)),
        EXTERNAL_MODULES: ",".join([*modules, WORKER_MODULE]),
    }
    with open_dict(config):
        for name, value in variables.items():
            key = f"ray_kwargs.ray_init.runtime_env.env_vars.{name}"
            OmegaConf.update(config, key, value, force_add=True)


def default_report_path(config: DictConfig) -> str:
    """``precision_report.json`` beside the run's checkpoints."""
    folder = OmegaConf.select(config, "trainer.default_local_dir") or "."
    return os.path.abspath(os.path.join(str(folder), "precision_report.json"))


def _current(config: DictConfig, name: str) -> str:
    """Return a variable's value for the workers: the user's runtime environment first, then this process's."""
    key = f"ray_kwargs.ray_init.runtime_env.env_vars.{name}"
    return str(OmegaConf.select(config, key) or os.environ.get(name, ""))


def _ray_is_running() -> bool:
    import ray

    return bool(ray.is_initialized())
