# SPDX-License-Identifier: Apache-2.0
"""``fp16-patch doctor -- COMMAND``: what the flag would change, refuse or warn about, as the framework composes it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fp16_patch.cli import main

pytest.importorskip("verl.trainer.main_ppo", reason="verl is not installed")

MAIN = "verl.trainer.main_ppo"
ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
USUAL = (
    f"{ROLLOUT}.name=vllm",
    f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=1",
    f"{ACTOR}.strategy=fsdp2",
    f"{ACTOR}.ppo_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=1",
    "algorithm.adv_estimator=grpo",
)
VERL = (sys.executable, "-m", MAIN, *USUAL)
OPENRLHF = (
    *(sys.executable, "-m", "openrlhf.cli.train_ppo_ray", "--actor.model_name_or_path", "x"),
    *("--reward.remote_url", "y", "--vllm.num_engines", "1"),
)
Doctor = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    monkeypatch.setenv("FP16_PATCH_PLATFORM", "cpu")  # without flash-attn, which OpenRLHF imports
    monkeypatch.setenv("RAY_ADDRESS", "local")

    def examined(*words: str) -> tuple[int, dict[str, Any]]:
        status = main(["doctor", "--json", *words])
        return status, json.loads(capsys.readouterr().out)

    return examined


def refused(found: dict[str, Any]) -> dict[str, str]:
    return {one["code"]: one["what"] for one in found["refused"]}


def test_verl_s_command_as_it_is(doctor: Doctor) -> None:
    status, found = doctor("--", *VERL)
    assert (status, found["ready"], found["refused"], found["precision"]) == (0, True, [], "fp16")
    changed = {one["key"]: (one["before"], one["after"]) for one in found["changes"]}
    assert changed[f"{ROLLOUT}.dtype"] == ("bfloat16", "float16")
    assert found["with_the_flag"] == [*VERL[:3], "+precision@_global_=fp16", *VERL[3:]]


def test_a_hard_coded_dtype_is_refused_or_overwritten(doctor: Doctor) -> None:
    command = (*VERL, f"{ROLLOUT}.dtype=bfloat16", f"{ROLLOUT}.top_p=0.9")
    status, found = doctor("--", *command)
    assert (status, refused(found)["setting-contradicts"]) == (
        1,
        f"{ROLLOUT}.dtype=bfloat16 contradicts the flag (fp16)",
    )
    settings = ("fp16_patch.overwrite=true", "fp16_patch.allow_truncated_sampling=true")
    status, found = doctor(*settings, "--command", shlex.join(command))
    assert status == 0
    assert {one["key"] for one in found["changes"] if one["overwritten"]} == {f"{ROLLOUT}.dtype"}
    assert f"{ROLLOUT}.top_p=0.9" in " ".join(found["warnings"])


def test_what_verl_itself_refuses(doctor: Doctor) -> None:
    status, found = doctor("--", *VERL, f"{ACTOR}.loss_agg_mode=banana")
    said = "verl refuses the configuration: Invalid loss_agg_mode: banana"
    assert (status, refused(found)) == (1, {"configuration-refused": said})


def test_a_critic_whose_model_is_not_here_is_a_warning(doctor: Doctor) -> None:
    status, found = doctor("--", *VERL, "algorithm.adv_estimator=gae", "critic.ppo_micro_batch_size_per_gpu=1")
    assert (status, found["refused"]) == (0, [])
    assert "files of a model" in " ".join(found["warnings"])


def test_inside_uv_run_and_a_script_that_says_it_all(doctor: Doctor, tmp_path: Path) -> None:
    status, found = doctor("--", "uv", "run", "--with", "x", "python", *VERL[1:])
    assert (status, found["inside"]) == (0, ["uv", "run", "--with", "x"])
    (tmp_path / "run.sh").write_text(f'set -x\npython3 -m {MAIN} \\\n {" ".join(USUAL)} "$@"\n')
    status, found = doctor("--", "bash", str(tmp_path / "run.sh"))
    assert (status, found["command"]) == (0, ["python3", *VERL[1:]])
    assert found["inside"] == ["bash", str(tmp_path / "run.sh")]


def test_own_folder_of_configuration_and_own_main(doctor: Doctor, tmp_path: Path) -> None:
    mine = {
        "hydra": {"searchpath": ["pkg://verl.trainer.config"]},
        "defaults": ["ppo_trainer", "_self_"],
        "actor_rollout_ref": {"actor": {"fsdp_config": {"model_dtype": "bf16"}}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    status, found = doctor("--", *VERL, "--config-path", str(tmp_path), "--config-name", "mine")
    assert (status, list(refused(found))) == (1, ["setting-contradicts"])
    (tmp_path / "main.py").write_text(
        "import hydra\nopen('started', 'w')\n"
        "@hydra.main(config_path='.', config_name='mine', version_base=None)\ndef main(config): ...\n"
    )
    script = (sys.executable, str(tmp_path / "main.py"), *USUAL)
    status, found = doctor("fp16_patch.overwrite=true", "--", *script)
    assert (status, found["ready"]) == (0, True)
    assert "is checked when it starts" in found["warnings"][-1]
    assert not Path("started").exists(), "nothing is imported"


def test_the_composition_is_the_main_s_own() -> None:
    from omegaconf import OmegaConf

    from fp16_patch.frameworks.verl.composition import compose

    words = [*USUAL, f"{ROLLOUT}.n=4", "--config-name=ppo_trainer"]
    command = [sys.executable, "-m", MAIN, *words, "--cfg", "job"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout
    composed = OmegaConf.to_container(compose(words), resolve=False)
    assert isinstance(composed, dict)
    assert {name: node for name, node in composed.items() if name != "hydra"} == yaml.safe_load(printed)


def test_hydra_s_own_settings_and_a_callback_that_is_removed(doctor: Doctor) -> None:
    status, found = doctor("--", *VERL, "hydra.run.dir=somewhere", "hydra/job_logging=none")
    assert (status, found["ready"]) == (0, True)
    assert not Path("somewhere").exists()
    status, found = doctor("--", *VERL, "~hydra.callbacks.fp16_patch")
    assert (status, list(refused(found))) == (1, ["flag-not-applied"])


def test_verl_s_mains_that_are_not_supported(doctor: Doctor) -> None:
    status, found = doctor("--", sys.executable, "-m", "verl.experimental.fully_async_policy.fully_async_main")
    assert (status, list(refused(found))) == (1, ["application-not-supported"])


def test_another_environment_s_python_examines_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}

    def execve(program: str, words: list[str], environment: dict[str, str]) -> None:
        started.update(words=words, environment=environment)
        raise SystemExit

    monkeypatch.setattr("os.execve", execve)
    monkeypatch.setattr(sys, "prefix", "/another/environment")
    with pytest.raises(SystemExit):
        main(["doctor", "--json", "fp16_patch.overwrite=true", "--", "env", "A=1", *VERL])
    assert started["words"][1:] == [
        "-m",
        "fp16_patch.cli",
        "doctor",
        "--json",
        "fp16_patch.overwrite=true",
        "--",
        *VERL,
    ]
    assert started["environment"]["A"] == "1"


def test_openrlhf_s_command(doctor: Doctor) -> None:
    status, found = doctor("--", *OPENRLHF, "--ds.param_dtype", "fp16")
    assert (status, found["precision"], found["warnings"]) == (0, "fp16", [])
    assert found["with_the_flag"][:3] == ["fp16-patch", "run", "--"]
    status, found = doctor("--", *OPENRLHF, "--ds.param_dtype", "fp16", "--ds.zero_stage", "1")
    assert (status, refused(found)["setting-refused"].partition(":")[0]) == (1, "--ds.zero_stage 1")
    status, found = doctor("--", *OPENRLHF)
    assert (status, found["precision"]) == (0, "bf16")
    assert "--ds.param_dtype fp16" in found["warnings"][0]
    overwrite = ("fp16_patch.train_dtype=fp16", "fp16_patch.overwrite=true")
    status, found = doctor(*overwrite, "--", *OPENRLHF, "--ds.param_dtype", "bf16")
    assert (status, found["precision"]) == (0, "fp16")
    assert {one["key"] for one in found["changes"] if one["overwritten"]} == {"--ds.param_dtype"}


@pytest.mark.parametrize(
    ("command", "model"), [(VERL, "actor_rollout_ref.model.path={}"), (OPENRLHF, "--actor.model_name_or_path={}")]
)
def test_a_model_that_may_overflow_is_a_warning(
    doctor: Doctor, tmp_path: Path, command: tuple[str, ...], model: str
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma4"}')
    dtype = ("--ds.param_dtype", "fp16") if command is OPENRLHF else ()
    status, found = doctor("--", *command, *dtype, model.format(tmp_path))
    assert status == 0
    assert f"{model.format(tmp_path)}: " in " ".join(found["warnings"])


def test_a_cluster_that_does_not_answer(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    job = ("ray", "job", "submit", "--address", "http://127.0.0.1:9", "--")
    for command in (
        (*job, "python", *VERL[1:]),
        ("RAY_ADDRESS=127.0.0.1:9", *VERL),
        ("RAY_ADDRESS=127.0.0.1:9", *OPENRLHF),
    ):
        status, found = doctor("--", *command)
        assert (status, list(refused(found))) == (1, ["cluster-unreachable"]), command


BAD = {
    ("--command", "python -m x a='b"): "the command cannot be read",
    ("--", sys.executable, "-m", "verl.trainer.nope"): "verl is installed and has no such module",
    ("--", sys.executable, "-m", "nope.main"): "nope is not installed",
    ("--", sys.executable, "nope.py"): "there is no script nope.py",
    ("--", sys.executable, "-m", "json.tool"): "json.tool starts no trainer",
    ("--", "/no/python", "-m", MAIN): "program '/no/python' was not found",
    ("--", *VERL, f"{ROLLOUT}.nme=vllm"): f"next step: did you mean {ROLLOUT}.name?",
    ("--", *VERL, "--config-name", "nope"): "Cannot find primary config 'nope'",
    ("--", *VERL, "--config-dir", "/nope"): "there is no folder /nope",
    ("--", *VERL, "--nope"): "unrecognized arguments: --nope",
    ("--", *VERL, "-m"): "multirun",
    ("--", *VERL, "trainer.project_name=${oc.env:NOT_SET}"): "Environment variable 'NOT_SET' not found",
    ("--", *VERL, "a=["): "Hydra refuses the overrides",
    ("--", *OPENRLHF, "--ds.zero_stge", "1"): "next step: did you mean ds.zero_stage?",
    ("--", *OPENRLHF, "--ds.zero_stage", "x"): "OpenRLHF refuses its arguments: argument --ds.zero_stage",
    ("--", "ray", "job", "submit", "--runtime-env-json", "{x", "--", *VERL): "is not a JSON mapping",
    ("fp16_patch.init_scale=2", "--", *VERL): "did you mean fp16_patch.loss_scaling.init_scale?",
    ("fp16_patch.overwrite=2", "--", *VERL): "allowed: true, false",
    ("fp16_patch.overwrite=true",): "settings without a command",
    ("--command", "x", "--", "y"): "both --command and a command after the --",
    ("--",): "an empty command",
}


@pytest.mark.parametrize("words", BAD, ids=lambda words: " ".join(words[-2:]).replace("/", "."))
def test_bad_input_is_one_error(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.startswith("fp16_patch: "), said.err.count("fp16_patch: ")) == ("", True, 1)
    assert BAD[words] in said.err
    assert "next step: " in said.err


def test_the_text_says_what_the_json_does(doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--", *VERL]) == 0
    out = capsys.readouterr().out
    assert f"{ROLLOUT}.dtype" in out
    assert f"Ready: {shlex.join(VERL[:3])} +precision@_global_=fp16 " in out
    assert main(["doctor", "--", *VERL, f"{ROLLOUT}.dtype=bfloat16"]) == 1
    assert f"NOT READY: {ROLLOUT}.dtype=bfloat16" in capsys.readouterr().out
