# SPDX-License-Identifier: Apache-2.0
"""The trainer's command inside what people type; nothing is executed."""

from __future__ import annotations

from pathlib import Path

import pytest
from raising import check_error, raises_code

from fp16_patch.cli import main
from fp16_patch.frameworks import advice
from fp16_patch.frameworks.user_command import find, find_in_text

VERL, OPENRLHF = "verl.trainer.main_ppo", "openrlhf.cli.train_ppo_ray"
FP16 = "+precision@_global_=fp16"
JOB = """ray job submit --address=http://x:8265 --runtime-env-json '{"env_vars": {"A": "b"}}' -- python3 -m m a=1"""


@pytest.mark.parametrize(
    ("text", "words", "wrapper"),
    [
        ("python -m m a=1 'b=${c.d}'", "python -m m a=1 b=${c.d}", ""),
        ("python3.11 -u -X dev -m m --config-name x", "python3.11 -u -X dev -m m --config-name x", ""),
        ("uv run --python python3.11 --with x python -m m a", "python -m m a", "uv run --python python3.11 --with x"),
        ("uv run -m m a=1", "-m m a=1", "uv run"),
        ("A=1 nohup python -m m a=1 > log.txt 2>&1 &", "python -m m a=1", "A=1 nohup"),
        ("cd /x && python \\\n  -m m \\\n  a=1 2>&1 | tee log", "python -m m a=1", ""),
        ("# don't\nset -x\npython -m m a=[1,2] $@", "python -m m a=[1,2]", ""),
        ("# it's\npython -m m a=[1,2] b=x#y x.c=~/d ~e # f=$G 'h", "python -m m a=[1,2] b=x#y x.c=~/d ~e", ""),
        ("cat <<EOF >f\npython -m no 'x\nEOF\npython -m m 'a=$B' \"b=\\$c\" d\\\ne", "python -m m a=$B b=$c de", ""),
        ("bash -lc 'python -m m a=1'", "python -m m a=1", ""),
        ("python main.py a=1", "python main.py a=1", ""),
        (f"python get_data.py\npython -m {VERL} a=1", f"python -m {VERL} a=1", ""),
        (
            "ray job submit -- fp16-patch run fp16_patch.overwrite=true -- python -m m",
            "python -m m",
            "ray job submit --",
        ),
    ],
)
def test_the_trainer_s_command_is_found(text: str, words: str, wrapper: str) -> None:
    found = find_in_text(text)
    assert found is not None
    assert (found.words, " ".join(found.wrapper)) == (words.split(), wrapper)


def test_what_stands_before_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_in_text(JOB)
    assert found is not None
    assert (found.submitted, found.option("--address"), found.environment) == (True, "http://x:8265", {"A": "b"})
    inner = find(
        ["ray", "job", "submit", "--", "fp16-patch", "run", "fp16_patch.overwrite=true", "--", "python", "-m", "m"]
    )
    assert inner is not None
    assert inner.settings == ("fp16_patch.overwrite=true",)
    monkeypatch.setenv("FOLDER", "/data")
    exported = find_in_text("export B=2 && C=3 python -m m a=$FOLDER/x b=${B}")
    assert exported is not None
    assert (exported.arguments, exported.environment) == (("a=/data/x", "b=2"), {"B": "2", "C": "3"})


@pytest.mark.parametrize(
    ("end", "words", "ignored"),
    [
        ('"$@"', "a=1 b=2 c=3 4", ()),
        ("$*", "a=1 b=2 c=3 4", ()),
        ('"${@:2}"', "a=1 c=3 4", ()),
        ("", "a=1", ("b=2", "c=3 4")),
    ],
)
def test_a_script_s_arguments_are_put_in(end: str, words: str, ignored: tuple[str, ...]) -> None:
    text = f"shift_it=1\npython -m {VERL} a=1 {end}\npython -m {VERL} a=2"
    found = find_in_text(text, strict=True, arguments=["b=2", "c=3 4"])
    assert found is not None
    assert (" ".join(found.arguments), found.ignored, found.further) == (words, ignored, 1)
    for moved in (f"shift\n{text}", f"run() {{\n{text}\n}}\nrun x"):
        assert (find_in_text(moved, strict=True, arguments=["b=2"]) is None) == bool(end)


@pytest.mark.parametrize("text", ["", "bash run.sh", "torchrun -m m", "python -c 'import verl'", "python", "ls -m"])
def test_where_there_is_none(text: str) -> None:
    assert find_in_text(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "python -m m a='b",
        "python -m m a=$NOT_SET_HERE",
        "python -m m a=$(pwd)",
        "python -m m ~/x",
        "python -m m a={1,2}",
        "python -m m /et*",
    ],
)
def test_what_cannot_be_read_is_one_error(text: str) -> None:
    with raises_code("command-unreadable", "next step: "):
        find_in_text(text)


@pytest.mark.parametrize(
    ("text", "code"), [("env_vars: {A: 1}", None), ("env_vars: [", "runtime-env-not-yaml"), (None, "file-not-found")]
)
def test_a_runtime_environment_in_a_file(tmp_path: Path, text: str | None, code: str | None) -> None:
    file = tmp_path / "env.yaml"
    if text:
        file.write_text(text)
    words = ["ray", "job", "submit", f"--runtime-env={file}", "--", "python", "-m", "m"]
    if code is None:
        found = find(words)
        assert found is not None
        assert found.environment == {"A": "1"}
    else:
        with raises_code(code, file, "next step: "):
            find(words)


def script(folder: Path, text: str) -> str:
    (folder / "run_x.sh").write_text(text)
    return str(folder / "run_x.sh")


@pytest.mark.parametrize(
    ("text", "step"),
    [
        (f'set -x\nD=(a=1)\npython3 -m {VERL} "${{D[@]}}" "$@"\n', f"run_x.sh {FP16} fp16_patch.overwrite=true"),
        (f"A=2\npython3 -m {VERL} a=$A\n", f"add {FP16} fp16_patch.overwrite=true to the command in line 2"),
        (f"# python -m {VERL}\n\npython3 -m {OPENRLHF} --a $A\n", "`fp16-patch run fp16_patch.overwrite=true --`"),
    ],
)
def test_a_script_gets_the_way_that_fits(tmp_path: Path, text: str, step: str) -> None:
    error = advice.command_not_supported(["bash", script(tmp_path, text)], ["fp16_patch.overwrite=true"])
    check_error(error, "command-in-script", step, f"line {2 if 'A=2' in text else 3}", "fp16-patch doctor --")


def test_a_script_among_the_arguments_is_not_the_command() -> None:
    error = advice.command_not_supported(["uv", "run", "python", "-m", VERL, "data.tool=/x/y.sh"], [])
    check_error(error, "command-not-supported", f"append {FP16}")
    check_error(advice.command_not_supported(["python", "-m", "x", "y.sh"], []), "command-not-supported", "python -m x")


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_a_script_without_a_trainer(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    without = script(tmp_path, f"# python -m {VERL}\npython train.py\n")
    assert main([command, "--", "bash", without, "a=1"]) == 2
    assert f"{without} starts no trainer that the flag supports\n  allowed: " in capsys.readouterr().err
    assert main([command, "--", str(tmp_path / "none.sh")]) == 2
    assert "none.sh cannot be read: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "step"),
    [
        (f"uv run python -m {VERL} a=1", f"append {FP16} fp16_patch.overwrite=true"),
        (
            f"uv run python -m {OPENRLHF} --a b",
            f"uv run fp16-patch run fp16_patch.overwrite=true -- python -m {OPENRLHF}",
        ),
        (f"ray job submit -- python -m {OPENRLHF}", "ray job submit -- fp16-patch run"),
        (f"torchrun -m {VERL}", "without torchrun"),
        (f"env A=1 python -m {VERL}", "A=1 fp16-patch run fp16_patch.overwrite=true -- python -m"),
        (f"nohup python -m {OPENRLHF}", "nohup fp16-patch run fp16_patch.overwrite=true -- python -m"),
    ],
)
def test_run_says_how_the_flag_gets_inside(command: str, step: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "fp16_patch.overwrite=true", "--", *command.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fp16_patch: ")
    assert step in said.partition("next step: ")[2]
