# SPDX-License-Identifier: Apache-2.0
"""``fp16-patch run``: the command that is executed for each framework."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from raising import raises_code

from fp16_patch.cli import main
from fp16_patch.frameworks.launcher import HYDRA_OPTIONS_WITH_A_VALUE, command_with_flag

OPENRLHF = ["python3", "-u", "-m", "openrlhf.cli.train_ppo_ray", "--ds.param_dtype", "fp16"]
WINDOW = "fp16_patch.loss_scaling.skip_rate_window"
VERL = ["/opt/env/bin/python", "-m", "verl.trainer.main_ppo", "trainer.total_epochs=1"]
FP16 = "+precision@_global_=fp16"
SCALE = "fp16_patch.loss_scaling.init_scale=1024"


def test_openrlhf_is_started_by_our_module_in_the_same_interpreter() -> None:
    started = ["python3", "-u", "-m", "fp16_patch.frameworks.openrlhf"]
    assert command_with_flag([SCALE], OPENRLHF) == [*started, SCALE, "--", *OPENRLHF[3:]]
    assert command_with_flag([], OPENRLHF) == [*started, "--", *OPENRLHF[3:]]


def test_verl_gets_hydra_overrides_before_the_user_s() -> None:
    assert command_with_flag([SCALE], VERL) == [*VERL[:3], FP16, SCALE, VERL[3]]


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "a=1",
        "a=1 ~b --cfg job",
        "--cfg job --resolve a=1",
        "--config-path /x --config-name y a=1 -p trainer",
        "--config-path=/x a=1 -cn y",
        "--help",
        "a=1 --info",
        "--info",
        "-i searchpath a=1",
        "a=1 -m",
    ],
)
def test_hydra_reads_the_flag_and_the_rest_as_before(arguments: str) -> None:
    """``a=1 --cfg job b=2`` is an error of Hydra's: overrides come in one block."""
    from hydra._internal.utils import get_args_parser

    words = arguments.split()
    flagged = vars(get_args_parser().parse_args(command_with_flag([SCALE], [*VERL[:3], *words])[3:]))
    stock = vars(get_args_parser().parse_args(words))
    assert flagged == stock | {"overrides": [FP16, SCALE, *stock["overrides"]]}


def test_every_option_of_hydra_with_a_value_is_known() -> None:
    from hydra._internal.utils import get_args_parser

    options = [option for option in get_args_parser()._actions if option.option_strings and option.nargs != 0]
    assert {name for option in options for name in option.option_strings} == HYDRA_OPTIONS_WITH_A_VALUE


@pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed")
def test_the_config_that_hydra_prints_has_the_flag() -> None:
    own = [*VERL[1:], f"{WINDOW}=300", f"{WINDOW}=400", "--cfg", "job", "--resolve"]
    command = command_with_flag([SCALE, "fp16_patch.rollout_dtype=bf16"], [sys.executable, *own])
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout
    flag = yaml.safe_load(printed)["fp16_patch"]
    assert (flag["train_dtype"], flag["rollout_dtype"]) == ("fp16", "bf16")
    assert flag["loss_scaling"]["init_scale"] == 1024
    assert flag["loss_scaling"]["skip_rate_window"] == 400, "Hydra's own rule: the later one"


def test_a_precision_of_the_command_s_own_stays() -> None:
    own = [*VERL, "+precision@_global_=bf16"]
    assert command_with_flag([], own) == own


def test_an_interpreter_without_the_package_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    assert main(["run", "--", str(bare), *VERL[1:]]) == 2
    assert f"fp16-patch is not installed for {bare}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "command", "code", "named"),
    [
        (["init_scale=4"], VERL, "setting-misplaced", "init_scale=4"),
        (["fp16_patch.x"], VERL, "setting-misplaced", "fp16_patch.x"),
        (["fp16_patch.x=1"], VERL, "unknown-setting", "fp16_patch.x=1"),
        (["fp16_patch.init_scale=1"], OPENRLHF, "unknown-setting", "fp16_patch.loss_scaling.init_scale?"),
        ([], [*VERL, "+fp16_patch.rolout_dtype=bf16"], "unknown-setting", "fp16_patch.rollout_dtype?"),
        ([], [*VERL, "+precision@_global_=fp61"], "not-a-precision", "+precision@_global_=fp61"),
        ([f"{WINDOW}=9"], [*VERL, f"{WINDOW}=8"], "setting-repeated", f"'{WINDOW}=9' and '{WINDOW}=8'"),
        ([f"{WINDOW}=9", f"{WINDOW}=8"], OPENRLHF, "setting-repeated", f"'{WINDOW}=9' and '{WINDOW}=8'"),
        ([], [], "command-not-supported", "python -m verl.trainer.main_ppo"),
        ([], ["torchrun", "-m", "verl.trainer.main_ppo"], "command-not-supported", "torchrun"),
        ([], ["python", "train.py"], "command-not-supported", "python train.py"),
        ([], ["python", "-m"], "command-not-supported", "python -m"),
        ([], ["python", "-m", "openrlhf.cli.train_sft"], "command-not-supported", "openrlhf.cli.train_sft"),
        ([], ["python", "-m", "verl.trainer.sft_trainer"], "command-not-supported", "verl.trainer.sft_trainer"),
    ],
)
def test_what_cannot_be_started_is_refused_by_name(
    settings: list[str], command: list[str], code: str, named: str
) -> None:
    with raises_code(code, named, "next step: "):
        command_with_flag(settings, command)
