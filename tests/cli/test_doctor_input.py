# SPDX-License-Identifier: Apache-2.0
"""What a newcomer types wrong is one error that names the word or the file, from ``doctor`` and ``run`` alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from raising import check_error, raises_code

from fp16_patch.cli import main
from fp16_patch.cli.command_check import examine
from fp16_patch.engines.ray.cluster import runtime_env_problems
from fp16_patch.frameworks.launcher import command_with_flag
from fp16_patch.frameworks.user_command import find

VERL, OPENRLHF = "verl.trainer.main_ppo", "openrlhf.cli.train_ppo_ray"
FLAG = "+precision@_global_=fp16"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("a: [1\nb: 2\n", ("mine.yaml, line 2",)),
        ("a: ${b\n", ("--config-name mine", "quote")),
        ("- a\n", ("mine.yaml holds a list",)),
        (b"\0\xff\xfe", ("mine.yaml is not a text file",)),
        (None, ("--config-name mine", "Cannot find primary config")),
    ],
)
def test_a_broken_configuration_file_is_named(tmp_path: Path, content: str | bytes | None, named: tuple[str]) -> None:
    pytest.importorskip("verl.trainer.main_ppo", reason="verl is not installed")
    from fp16_patch.frameworks.verl.composition import compose

    if content is not None:
        (tmp_path / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with raises_code("configuration-refused", *named, "next step: "):
        compose([FLAG, "--config-path", str(tmp_path), "--config-name", "mine"])


def test_a_folder_that_is_none_and_a_configuration_that_is_not_verl_s(tmp_path: Path) -> None:
    pytest.importorskip("verl.trainer.main_ppo", reason="verl is not installed")
    from fp16_patch.frameworks.verl.composition import compose, examine_composed

    with raises_code("configuration-refused", "--config-path /nope", "next step: correct --config-path"):
        compose([FLAG, "--config-path", "/nope"])
    (tmp_path / "other.yaml").write_text("a: 1\n")
    with raises_code("configuration-refused", "is not a folder", "--config-dir"):
        compose([FLAG, "--config-dir", str(tmp_path / "other.yaml")])
    (problem,) = examine_composed(VERL, [FLAG, "--config-path", str(tmp_path), "--config-name", "other"]).problems
    check_error(problem, "application-not-supported", "--config-name other", "actor_rollout_ref")


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ((OPENRLHF, "fp16_patch.overwrite=true"), "setting-misplaced", "run fp16_patch.overwrite=true --"),
        ((OPENRLHF, FLAG), "setting-misplaced", "--ds.param_dtype fp16"),
        ((VERL, FLAG[1:]), "setting-misplaced", f"write {FLAG}"),
        (("openrlhf.cli.train_sft", "--x"), "command-not-supported", f"{OPENRLHF} only"),
    ],
)
def test_misplaced_words_are_one_error(words: tuple[str, ...], code: str, named: str) -> None:
    command = [sys.executable, "-m", *words]
    with raises_code(code, named):
        command_with_flag([], command)
    found = find(command)
    assert found is not None
    with raises_code(code, named):
        examine(found, [])


def test_a_command_that_only_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("verl.trainer.main_ppo", reason="verl is not installed")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    command = [sys.executable, "-m", VERL, "--cfg", "job"]
    assert main(["doctor", "--json", "--", *command]) == 1
    codes = [one["code"] for one in json.loads(capsys.readouterr().out)["refused"]]
    assert "command-trains-nothing" in codes
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, words: started.append(words))
    assert main(["run", "fp16_patch.overwrite=banana", "--", *command]) == 2
    assert "banana" in capsys.readouterr().err
    assert main(["run", "fp16_patch.overwrite=true", "--", *command]) == 0
    assert "before the flag changes it" in capsys.readouterr().err
    assert len(started) == 1


@pytest.mark.parametrize("words", [["--command", "x", "--command", "y"], ["--", "python", "-c", "1"]])
def test_json_has_the_error_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", *words]) == 2
    said = capsys.readouterr()
    error = json.loads(said.out)["error"]
    assert set(error) == {"code", "what", "allowed", "next_step"}
    assert error["what"] in said.err


def test_a_deleted_working_directory_and_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(options: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fp16_patch.cli.doctor.run", interrupt)
        assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "fp16_patch: interrupted\n"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["doctor", "--", "python", "-m", VERL]) == 2
    assert "working directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "folder", "name"),
    [
        ({"env_vars": {"A": 1}}, None, "env_vars"),
        ({"env_vars": ["A"]}, None, "env_vars"),
        ({}, "/nope", "working_dir"),
        ({"working_dir": 3}, None, "working_dir"),
    ],
)
def test_what_ray_refuses_in_a_runtime_environment(environment: dict[str, Any], folder: str | None, name: str) -> None:
    (problem,) = runtime_env_problems(environment, folder)
    check_error(problem, "runtime-env-refused", name, "next step: ")
    assert runtime_env_problems({"env_vars": {"A": "1"}, "working_dir": "s3://x/y.zip"}, ".") == []
