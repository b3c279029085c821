# SPDX-License-Identifier: Apache-2.0
"""Refusals as a user meets them: the real command, with verl's sources as they are or as they might become."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(300)]

COMMAND = [
    sys.executable,
    "-m",
    "verl.trainer.main_ppo",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.model.path=/no/such/model",
    "+precision@_global_=fp16",
]


def launch(
    *overrides: str, path: Path | None = None, cwd: Path, module: str = COMMAND[2]
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, HF_HUB_OFFLINE="1", **({"PYTHONPATH": str(path)} if path else {}))
    command = [*COMMAND[:2], module, *COMMAND[3:], *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, cwd=cwd, check=False)


@pytest.fixture
def other_verl(tmp_path: Path):
    """A copy of the installed verl, its version or one of its files changed, found before the installed one."""

    def make(version: str = "0.9.1", edit: tuple[str, str, str] | None = None) -> Path:
        site = tmp_path / "site"
        installed = Path(importlib.util.find_spec("verl").origin).parent
        shutil.copytree(installed, site / "verl", ignore=shutil.ignore_patterns("__pycache__"))
        info = site / f"verl-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: verl\nVersion: {version}\n")
        if edit:
            file, old, new = edit
            text = (site / "verl" / file).read_text()
            assert old in text, f"{old!r} is no longer in {file}"
            (site / "verl" / file).write_text(text.replace(old, new, 1))
        return site

    return make


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stderr[-3000:]}"
    for word in (*words, "allowed:", "next step:"):
        assert word in done.stderr, f"{word!r} is not in the error:\n{done.stderr[-3000:]}"
    assert "ray init kwargs" not in done.stdout, "Ray must not have been started"


def test_a_contradiction(tmp_path):
    key = "actor_rollout_ref.rollout.dtype=bfloat16"
    assert_refused(launch(key, cwd=tmp_path), f"{key} contradicts the flag")


def test_a_main_of_the_users_own_with_another_task_runner(tmp_path):
    (tmp_path / "my_main.py").write_text(
        "import hydra\n"
        "from verl.trainer.main_ppo import run_ppo\n"
        "@hydra.main(config_path='pkg://verl.trainer.config', config_name='ppo_trainer', version_base=None)\n"
        "def main(config):\n"
        "    run_ppo(config, task_runner_class=None)\n"
        "main()\n"
    )
    done = launch(cwd=tmp_path, module="my_main", path=tmp_path)
    assert_refused(done, "the precision flag was given to my_main", "TaskRunnerV1")


def test_a_misspelt_setting(tmp_path):
    """Hydra would advise to put a + before it."""
    done = launch("fp16_patch.loss_scaling.init_scal=4", cwd=tmp_path)
    assert_refused(done, "'fp16_patch.loss_scaling.init_scal=4'", "did you mean fp16_patch.loss_scaling.init_scale")
    assert "Could not override" not in done.stderr


def test_a_misspelt_precision(tmp_path):
    """Hydra would list its search path."""
    done = launch("+precision@_global_=fp61", cwd=tmp_path)
    assert_refused(done, "+precision@_global_=fp61", "fp16, bf16, fp32")
    assert "MissingConfigException" not in done.stderr


@pytest.mark.faults
def test_an_unsupported_verl(tmp_path, other_verl):
    done = launch(path=other_verl(version="0.8.0"), cwd=tmp_path)
    assert_refused(done, "verl 0.8.0", "==0.9.1")


def test_a_verl_whose_patched_function_has_changed(tmp_path, other_verl):
    """Same version number, another source: a fork, or a nightly build."""
    file = "workers/engine/fsdp/transformer_impl.py"
    site = other_verl(edit=(file, "full_tensor().to(torch.bfloat16, non_blocking=True)", "full_tensor()"))
    done = launch(path=site, cwd=tmp_path)
    assert_refused(done, "merged-lora-dtype", "_merged_lora_per_tensor_param", "source has changed")


@pytest.mark.faults
def test_a_verl_whose_patched_function_has_other_parameters(tmp_path, other_verl):
    file = "trainer/ppo/v1/trainer_base.py"
    site = other_verl(edit=(file, "def _update_actor(self, batch: KVBatchMeta", "def _update_actor(self, td: object"))
    assert_refused(launch(path=site, cwd=tmp_path), "precision-report-complete", "signature has changed")


@pytest.mark.faults
def test_without_the_package_the_flag_is_hydras_error(tmp_path):
    """What a user sees who copies the command to a machine where the package is not installed."""
    hide = tmp_path / "sitecustomize.py"
    hide.write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'fp16_patch' or name.startswith('hydra_plugins'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    done = launch(path=tmp_path, cwd=tmp_path)
    assert done.returncode != 0
    assert "'precision' does not exist" in done.stderr, done.stderr[-2000:]


def test_versions_are_as_the_tests_assume():
    assert metadata.version("verl") == "0.9.1"
