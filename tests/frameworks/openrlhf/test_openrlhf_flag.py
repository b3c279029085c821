# SPDX-License-Identifier: Apache-2.0
"""The flag on OpenRLHF: the meaning of arguments and settings, and the refusals before anything starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from raising import check_error, raises_code

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks import installation
from fp16_patch.frameworks.openrlhf import config, entry, refusals
from fp16_patch.patching import checks
from fp16_patch.precision import Precision

Arguments = Callable[..., Any]


def test_everything_follows_param_dtype(arguments: Arguments) -> None:
    args = arguments()
    assert config.precision(args, {}) == Precision("fp16", "fp16")
    args.ds.param_dtype = "bf16"
    assert config.precision(args, {}) == Precision("bf16", "bf16")


def test_settings_are_those_of_verl(arguments: Arguments) -> None:
    given = config.settings(
        [
            "fp16_patch.loss_scaling.init_scale=1024",
            "fp16_patch.loss_scaling.hysteresis=2",
            "fp16_patch.rollout_dtype=bf16",
            "fp16_patch.trace_update=3",
        ]
    )
    precision = config.precision(arguments(), given)
    assert (precision.train_dtype, precision.rollout_dtype, precision.trace_update) == ("fp16", "bf16", 3)
    assert (precision.loss_scaling.init_scale, precision.loss_scaling.hysteresis) == (1024.0, 2)
    assert config.settings([]) == {}


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("fp16_patch.los_scaling.init_scale=4", "unknown-setting"),
        ("actor.adam.lr=1", "setting-misplaced"),
        ("fp16_patch", "setting-misplaced"),
        ("fp16_patch.trace_update", "setting-misplaced"),
        ("--ds.x=1", "setting-misplaced"),
    ],
)
def test_a_setting_that_is_not_ours_is_refused_by_name(override: str, code: str) -> None:
    with raises_code(code, override, "allowed: "):
        config.settings([override])


@pytest.mark.parametrize(
    ("override", "code", "named"),
    [
        ("fp16_patch.loss_scaling.init_scale=1000", "value-not-allowed", "fp16_patch.loss_scaling.init_scale"),
        ("fp16_patch.loss_scaling.init_scal=4", "unknown-setting", "fp16_patch.loss_scaling.init_scal"),
        ("fp16_patch.rollout_dtype=banana", "not-a-precision", "fp16_patch.rollout_dtype"),
        ("fp16_patch.train_dtype=bf16", "setting-contradicts", "--ds.param_dtype fp16"),
        ("fp16_patch.trace_update=0", "value-not-allowed", "fp16_patch.trace_update"),
        ("fp16_patch.keep_log_probs=2", "value-not-allowed", "fp16_patch.keep_log_probs=2"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(arguments: Arguments, override: str, code: str, named: str) -> None:
    with raises_code(code, named):
        config.precision(arguments(), config.settings([override]))


@pytest.mark.parametrize(
    "override",
    [
        "fp16_patch.loss_scaling.init_scale=[1",
        "fp16_patch.loss_scaling.init_scale=1000",
        "fp16_patch.loss_scaling.init_scal=4",
        "fp16_patch.loss_scaling=3",
        "fp16_patch.rollout_dtype=int8",
    ],
)
def test_a_value_that_no_run_could_use_is_refused_before_openrlhf_is_imported(override: str) -> None:
    with pytest.raises(Fp16PatchError) as refused:
        config.settings([override])
    assert override.partition("=")[0] in str(refused.value)
    assert "allowed: " in str(refused.value)


REFUSED = {
    # argument -> the option the message must name
    ("ds__load_in_4bit", True): "--ds.load_in_4bit",
    ("ds__tensor_parallel_size", 2): "--ds.tensor_parallel_size 2",
    ("ds__zero_stage", 0): "--ds.zero_stage 0",
    ("ds__zero_stage", 1): "--ds.zero_stage 1",
    ("ds__adam_offload", True): "--ds.adam_offload True",
    ("ds__grad_accum_dtype", "fp16"): "--ds.grad_accum_dtype fp16",
    ("ds__deepcompile", True): "--ds.deepcompile",
    ("ds__use_universal_ckpt", True): "--ds.use_universal_ckpt",
    ("ds__lora__rank", 8): "--ds.lora.rank 8",
    ("vllm__num_engines", 0): "--vllm.num_engines 0",
    ("actor__optim", "muon"): "--actor.optim muon",
    ("critic__optim", "muon"): "--critic.optim muon",
}


@pytest.mark.parametrize(("given", "named"), REFUSED.items(), ids=str)
def test_what_cannot_be_honoured_is_refused(arguments: Arguments, given: tuple[str, Any], named: str) -> None:
    (problem,) = refusals.unsupported(arguments(**{given[0]: given[1]}), Precision())
    check_error(problem, "setting-refused", named, "allowed: ", "next step: ")


def test_a_trace_of_the_rollout_needs_modules_that_are_called_alone(arguments: Arguments) -> None:
    traced = Precision(trace_rollout=1)
    (problem,) = refusals.unsupported(arguments(), traced)
    check_error(problem, "setting-refused", "--vllm.enforce_eager False", "set --vllm.enforce_eager")
    assert refusals.unsupported(arguments(vllm__enforce_eager=True), traced) == []
    alone = arguments(vllm__enforce_eager=True, train__partial_rollout_enable=True)
    (problem,) = refusals.unsupported(alone, traced)
    check_error(problem, "setting-refused", "--train.partial_rollout_enable True")


@pytest.mark.parametrize("setting", [{"keep_log_probs": True}, {"rollout_overflow": "mask"}])
def test_what_needs_log_probs_that_vllm_is_not_asked_for(arguments: Arguments, setting: dict[str, Any]) -> None:
    args, precision = arguments(algo__advantage__is_correction_level="off"), Precision(**setting)
    (problem,) = refusals.unsupported(args, precision)
    check_error(problem, "setting-refused", "--algo.advantage.is_correction_level off", *setting)
    args.algo.advantage.is_correction_level = "token"
    assert refusals.unsupported(args, precision) == []


def test_offload_goes_with_stage_3_or_one_micro_batch(arguments: Arguments) -> None:
    args = arguments(ds__adam_offload=True, ds__zero_stage=3)
    assert refusals.unsupported(args, Precision()) == []
    args.ds.zero_stage, args.train.micro_batch_size = 2, 16
    assert refusals.unsupported(args, Precision()) == []
    args.train.dynamic_batch_enable = True  # their number is not known
    (problem,) = refusals.unsupported(args, Precision())
    check_error(problem, "setting-refused", "--ds.adam_offload True", "set --ds.zero_stage 3")
    args.ds.adam_offload = False
    assert refusals.unsupported(args, Precision()) == []


def test_a_model_that_vllm_refuses_in_float16(arguments: Arguments, tmp_path: Path) -> None:
    args = arguments()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    (problem,) = refusals.unsupported(args, Precision())
    check_error(problem, "setting-refused", "gemma3")
    assert refusals.unsupported(args, Precision("fp16", "bf16")) == []
    wrong = {"architectures": ["Glm4MoeForCausalLM"], "routed_scaling_factor": 2.5}
    (tmp_path / "model" / "config.json").write_text(json.dumps(wrong))
    (problem,) = refusals.unsupported(args, Precision())
    check_error(problem, "setting-refused", "--actor.model_name_or_path", "2.5")
    assert refusals.unsupported(args, Precision("fp16", "bf16")) == []


def test_a_model_that_may_overflow_in_fp16_is_warned_about(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    args = arguments()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "gemma3n"}))
    entry.apply_flag(args, {})
    assert "language_model.layers may overflow in FP16" in capsys.readouterr().out


def test_bf16_is_left_as_it_is(arguments: Arguments) -> None:
    args = arguments(ds__param_dtype="bf16", ds__load_in_4bit=True, ds__tensor_parallel_size=2)
    precision = config.precision(args, {})
    assert refusals.unsupported(args, precision) == []
    assert config.rewrite(args, precision) == []
    assert args.ds.grad_accum_dtype is None


def test_modules_in_fp32_are_refused(arguments: Arguments) -> None:
    args = arguments()
    precision = config.precision(args, config.settings(["fp16_patch.fp32_modules=[lm_head]"]))
    (problem,) = refusals.unsupported(args, precision)
    check_error(problem, "setting-refused", "fp16_patch.fp32_modules ['lm_head']")


def test_gradients_are_accumulated_in_fp32(arguments: Arguments) -> None:
    args = arguments()
    changes = config.rewrite(args, Precision())
    assert args.ds.grad_accum_dtype == "fp32"
    assert ("vLLM dtype", "bfloat16", "float16") in {(one["key"], one["before"], one["after"]) for one in changes}


@pytest.mark.parametrize(
    ("changed", "version", "code", "named"),
    [
        ("openrlhf", "0.10.0", "release-not-supported", "OpenRLHF 0.10.0"),
        ("openrlhf", None, "not-installed", "OpenRLHF"),
        ("deepspeed", "0.18.3", "patch-refused", "0.18.3"),
    ],
)
def test_another_release_is_refused(
    monkeypatch: pytest.MonkeyPatch, changed: str, version: str | None, code: str, named: str
) -> None:
    pytest.importorskip("openrlhf.utils.config", reason="OpenRLHF is not installed")
    real = checks.installed_version

    def other(distributions: Iterable[str]) -> str | None:
        return version if changed in distributions else real(distributions)

    monkeypatch.setenv("FP16_PATCH_PLATFORM", "cpu")
    monkeypatch.setattr(checks, "installed_version", other)
    monkeypatch.setattr(installation, "installed_version", other)
    problems = list(entry.installation_problems(entry.MODULE))
    assert problems
    for problem in problems:
        check_error(problem, code, named, "next step: ")
        assert "None" not in str(problem)


def test_this_installation_is_fit_on_the_cpu_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openrlhf.utils.config", reason="OpenRLHF is not installed")
    monkeypatch.delenv("FP16_PATCH_PLATFORM", raising=False)
    monkeypatch.setattr(
        entry.importlib.util, "find_spec", lambda name: None if name == "flash_attn" else find_spec(name)
    )
    (problem,) = entry.installation_problems(entry.MODULE)
    check_error(problem, "not-installed", "flash-attn", "FP16_PATCH_PLATFORM=cpu")
    monkeypatch.setenv("FP16_PATCH_PLATFORM", "cpu")
    assert not list(entry.installation_problems(entry.MODULE))
    (problem,) = entry.installation_problems("openrlhf.cli.train_sft")
    check_error(problem, "command-not-supported", "openrlhf.cli.train_sft")


def test_a_refused_run_leaves_nothing_behind(arguments: Arguments) -> None:
    before = dict(os.environ)
    args = arguments(ds__zero_stage=0)
    with pytest.raises(Fp16PatchError):
        entry.apply_flag(args, {})
    assert dict(os.environ) == before
    assert args.ds.grad_accum_dtype is None


@pytest.mark.parametrize("variables", [{"FP16_PATCH_PLATFORM": "tpu"}, {"FP16_PATCH_ROLLOUT_SIGNIFICAND": "99"}])
def test_a_wrong_variable_of_the_platform_is_one_error(variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "fp16_patch.cli", "run", "--", sys.executable, "-m", entry.MODULE]
    environment = {**os.environ, "FP16_PATCH_PLATFORM": "cpu", **variables}
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, env=environment)
    (name,) = variables
    assert done.returncode == 2, done.stderr[-3000:]
    assert name in done.stderr
    assert "next step: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--ds.param_dtype", "fp16", "--ds.load_in_4bit", "--vllm.num_engines", "1"], "--ds.load_in_4bit"),
        (["--ds.param_dtype", "fp16"], "--vllm.num_engines"),
    ],
)
def test_the_real_command_is_refused_before_ray_starts(options: list[str], named: str, tmp_path: Path) -> None:
    pytest.importorskip("openrlhf.utils.config", reason="OpenRLHF is not installed")
    command = [sys.executable, "-m", "fp16_patch.cli", "run", "--", sys.executable, "-m"]
    trainer = ["openrlhf.cli.train_ppo_ray", "--actor.model_name_or_path", "/no/such/model"]
    estimator = ["--algo.advantage.estimator", "reinforce", "--reward.remote_url", "reward.py"]
    environment = {name: value for name, value in os.environ.items() if name != envs.PRECISION}
    done = subprocess.run(
        [*command, *trainer, *estimator, *options],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=tmp_path,
        env={**environment, "FP16_PATCH_PLATFORM": "cpu"},
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert named in done.stderr, done.stderr[-3000:]
    assert "next step: " in done.stderr
    assert "Started a local Ray instance" not in done.stdout + done.stderr
