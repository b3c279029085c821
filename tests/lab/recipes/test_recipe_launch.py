# SPDX-License-Identifier: Apache-2.0
"""Launch real processes: they finish, crash, refuse, hang, and leave children and shared memory behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raising import raises_code

from fp16_patch.lab.arms.command import ArmFiles
from fp16_patch.lab.arms.settings import comparable, read_settings
from fp16_patch.lab.launch.run import run_recipe
from fp16_patch.lab.loading.load import find

Write = Callable[..., Path]
Launcher = Callable[..., subprocess.Popen[str]]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def assert_no_trace(traces: dict[str, object]) -> None:
    pids = traces["pids"]
    assert isinstance(pids, list)
    assert not [pid for pid in pids if is_alive(pid)], "processes of the run were left running"
    shared_memory = traces["shared_memory"]
    assert isinstance(shared_memory, list)
    assert not [path for path in shared_memory if Path(path).exists()], "shared memory was left behind"
    assert not Path(str(traces["ray"])).exists()


def test_both_arms_run_and_progress_is_visible(write_recipe: Write, stand_in: str, tmp_path: Path) -> None:
    said: list[str] = []
    results = run_recipe(write_recipe(), tmp_path / "run", say=said.append, module=stand_in)
    assert [(r.arm, r.status, r.exit_code) for r in results] == [("bf16", "completed", 0), ("fp16", "completed", 0)]
    text = "\n".join(said)
    assert "starting Ray" in text
    assert "everything is up" in text
    assert "step   4/4  reward 0.540  |pi-mu| 1.00e-05  KL 1.00e-10  loss scale 65536" in text
    assert "+precision@_global_=fp16" in text
    kept = json.loads((tmp_path / "run" / "fp16" / "result.json").read_text())
    assert kept["status"] == "completed"
    assert kept["versions"]["python"] == sys.version.split()[0]
    settings = read_settings(ArmFiles(tmp_path / "run" / "fp16"))
    assert settings is not None
    assert settings["format"] == "fp16_patch.settings/1"
    assert (settings["framework"], settings["arm"], settings["module"]) == ("verl", "fp16", stand_in)
    assert settings["overrides"]["precision@_global_"] == "fp16"
    assert settings["environment"]["VERL_FILE_LOGGER_PATH"] == str(tmp_path / "run" / "fp16" / "metrics.jsonl")
    assert comparable(settings)["VERL_FILE_LOGGER_PATH"] == "/the-run/fp16/metrics.jsonl"


def test_a_recipe_of_both_frameworks_runs_on_the_one_asked_for(
    write_recipe: Write, openrlhf: str, stand_in: str, tmp_path: Path
) -> None:
    recipe, said = write_recipe(("verl:", f"{openrlhf}verl:")), list[str]()
    results = run_recipe(recipe, tmp_path / "run", say=said.append, module=stand_in)
    assert [(r.framework, r.status) for r in results] == [("openrlhf", "completed")] * 2
    text = "\n".join(said)
    assert "starting Ray" in text
    assert "rollout and update of the first step" in text
    assert "step   4/4  reward 0.540  |pi-mu| 1.00e-05  KL 1.00e-10  loss scale 65536" in text
    assert "--ds.param_dtype=fp16" in text
    (result,) = run_recipe(recipe, tmp_path / "verl", framework="verl", arms=["fp16"], say=said.append, module=stand_in)
    assert (result.framework, result.status) == ("verl", "completed")
    with raises_code("output-of-other-recipe", "'tiny'", "openrlhf"):
        run_recipe(recipe, tmp_path / "run", framework="verl", arms=["fp16"], module=stand_in)


def test_a_framework_the_recipe_does_not_run_on_is_refused(write_recipe: Write, tmp_path: Path) -> None:
    with raises_code("framework-not-in-recipe", "tiny", "'openrlhf'", "allowed: verl"):
        run_recipe(write_recipe(), tmp_path / "run", framework="openrlhf")


def test_the_saved_command_runs_by_itself(write_recipe: Write, stand_in: str, tmp_path: Path) -> None:
    run_recipe(write_recipe(), tmp_path / "run", arms=["fp16"], module=stand_in, say=lambda _: None)
    folder = tmp_path / "run" / "fp16"
    (folder / "metrics.jsonl").unlink()
    subprocess.run(["bash", folder / "command.sh"], check=True, capture_output=True)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4


def test_the_saved_command_names_the_directory_that_ray_got(write_recipe: Write, stand_in: str, tmp_path: Path) -> None:
    recipe = write_recipe(("model:", "platform: cpu\nmodel:"))
    hang = ["+stand_in.mode=hang", f"+stand_in.traces={tmp_path}"]
    run_recipe(
        recipe, tmp_path / "run", arms=["fp16"], overrides=hang, timeout_s=3, module=stand_in, say=lambda _: None
    )
    used = json.loads((tmp_path / "traces.json").read_text())["ray"]
    assert f"export RAY_TMPDIR={used}\n" in (tmp_path / "run" / "fp16" / "command.sh").read_text()
    assert not Path(used).exists()


def test_a_crashing_arm_is_explained_and_the_next_one_still_runs(
    write_recipe: Write, stand_in: str, tmp_path: Path
) -> None:
    said: list[str] = []
    recipe = write_recipe(("{precision: bf16}", "{precision: bf16, overrides: {+stand_in.mode: crash}}"))
    crashed, completed = run_recipe(recipe, tmp_path / "run", say=said.append, module=stand_in)
    assert (crashed.status, crashed.exit_code) == ("failed", 1)
    assert "ValueError: a tensor went wrong" in str(crashed.error)
    assert f"whole log: {tmp_path / 'run' / 'bf16' / 'train.log'}" in "\n".join(said)
    assert completed.status == "completed"
    assert (tmp_path / "run" / "bf16" / "metrics.jsonl").exists()


def test_shared_memory_of_a_process_that_is_killed_early_is_removed(
    write_recipe: Write, stand_in: str, tmp_path: Path
) -> None:
    """A vLLM worker that Ray kills a second after it came up cannot clean up, and is gone when the run ends."""
    (result,) = run_recipe(
        write_recipe(),
        tmp_path / "run",
        arms=["fp16"],
        overrides=["+stand_in.mode=die", f"+stand_in.traces={tmp_path}"],
        say=lambda _: None,
        module=stand_in,
    )
    assert "killed by SIGKILL" in str(result.error)
    assert_no_trace(json.loads((tmp_path / "traces.json").read_text()))


def test_our_own_refusal_is_the_error_shown(write_recipe: Write, stand_in: str, tmp_path: Path) -> None:
    (result,) = run_recipe(
        write_recipe(),
        tmp_path / "run",
        arms=["fp16"],
        overrides=["+stand_in.mode=refuse"],
        say=lambda _: None,
        module=stand_in,
    )
    assert result.exit_code == 2
    assert str(result.error).splitlines()[1:] == [
        "fp16_patch: actor.fsdp_config.model_dtype='fp16' is refused",
        "  next step: remove it",
    ]


def test_a_hanging_run_is_ended_at_its_limit_without_trace(write_recipe: Write, stand_in: str, tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    said: list[str] = []
    try:
        (result,) = run_recipe(
            write_recipe(),
            tmp_path / "run",
            arms=["bf16"],
            overrides=["+stand_in.mode=hang", f"+stand_in.traces={tmp_path}"],
            timeout_s=5.0,
            heartbeat_s=0.5,
            say=said.append,
            module=stand_in,
        )
        assert bystander.poll() is None, "a process that is not of the run was killed"
    finally:
        bystander.kill()
        bystander.wait()
    assert result.status == "timed out"
    assert "not finished after 0:05, stopped during: step 5" in str(result.error)
    assert any("still alive: step 5" in line for line in said)
    assert_no_trace(json.loads((tmp_path / "traces.json").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_launcher_leaves_nothing_running(
    write_recipe: Write, start_launcher: Launcher, tmp_path: Path, number: signal.Signals
) -> None:
    launcher = start_launcher(write_recipe(), mode="hang")
    try:
        wait_for((tmp_path / "traces.json").exists, "the stand-in trainer to start")
        launcher.send_signal(number)
        output, _ = launcher.communicate(timeout=20)
    finally:
        launcher.kill()
    assert launcher.returncode != 0
    assert "bf16: interrupted" in output
    assert_no_trace(json.loads((tmp_path / "traces.json").read_text()))
    assert json.loads((tmp_path / "run" / "bf16" / "result.json").read_text())["status"] == "interrupted"


def test_a_killed_launcher_takes_its_trainer_along_and_the_next_run_ends_the_rest(
    write_recipe: Write, start_launcher: Launcher, stand_in: str, tmp_path: Path
) -> None:
    launcher = start_launcher(write_recipe(), mode="hang")
    traces: dict[str, Any] = {"pids": []}
    try:
        wait_for((tmp_path / "traces.json").exists, "the stand-in trainer to start")
        traces = json.loads((tmp_path / "traces.json").read_text())
        trainer, own_group, own_session = traces["pids"]
        launcher.kill()
        launcher.communicate(timeout=20)
        wait_for(lambda: not is_alive(trainer), "the kernel to end the trainer")
        assert is_alive(own_group), "the stand-in's child did not outlive it: nothing would be left to end"
        said: list[str] = []
        results = run_recipe(write_recipe(), tmp_path / "run", say=said.append, module=stand_in)
        assert [result.status for result in results] == ["completed", "completed"]
        assert "bf16 still runs, and its launcher was killed: terminating its 2 processes" in said
        assert not is_alive(own_group)
        assert not is_alive(own_session)
    finally:
        launcher.kill()
        for pid in filter(is_alive, traces["pids"]):
            os.kill(pid, signal.SIGKILL)
        for path in traces.get("shared_memory", []):
            Path(path).unlink(missing_ok=True)


def test_an_unknown_arm_is_refused_before_anything_starts(write_recipe: Write, tmp_path: Path) -> None:
    with raises_code("unknown-arm", "--arm fp8", "allowed: bf16, fp16"):
        run_recipe(write_recipe(), tmp_path / "run", arms=["fp8"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "code", "named"),
    [
        ("trainer.logger=[wandb]", "option-reserved", "trainer.logger"),
        ("trainer.nnodes", "setting-unreadable", "'trainer.nnodes'"),
        ("=3", "setting-unreadable", "'=3'"),
        ("fp16_patch.loss_scaling.init_scale=8", "setting-refused", "--arm fp16"),
    ],
)
def test_overrides_that_cannot_hold_are_refused(
    write_recipe: Write, tmp_path: Path, override: str, code: str, named: str
) -> None:
    with raises_code(code, named):
        run_recipe(write_recipe(), tmp_path / "run", overrides=[override])


def test_a_second_run_keeps_the_first_and_never_moves_checkpoints_or_foreign_files(
    write_recipe: Write, stand_in: str, tmp_path: Path
) -> None:
    said: list[str] = []

    def run() -> None:
        run_recipe(write_recipe(), tmp_path / "run", arms=["fp16"], module=stand_in, say=said.append)

    arm = tmp_path / "run" / "fp16"
    run()
    (arm / "model").mkdir()
    (arm / "model" / "weights").write_text("of the first run")
    run()
    run()
    earlier = tmp_path / "run" / "earlier"
    assert sorted(kept.name for kept in earlier.iterdir()) == ["fp16-1", "fp16-2"]
    with raises_code("output-in-the-way", tmp_path / "run"):
        run_recipe(write_recipe(), arm / "deeper", module=stand_in)
    assert not (arm / "deeper").exists()
    assert (earlier / "fp16-1" / "model" / "weights").read_text() == "of the first run"
    assert (earlier / "fp16-1" / "result.json").exists()
    assert not (arm / "model").exists()
    kept_as = f"the earlier run in {arm} is kept as {earlier / 'fp16-2'}"
    assert f"{kept_as}; it had completed: --resume would have kept it in its place" in said
    (arm / "checkpoints").mkdir()
    with raises_code("output-holds-checkpoints", arm):
        run()
    (arm / "checkpoints").rmdir()
    (arm / "command.sh").unlink()
    with raises_code("output-in-the-way", arm):
        run()


def test_what_was_there_before_any_run_is_left_alone(write_recipe: Write, stand_in: str, tmp_path: Path) -> None:
    own = write_recipe().rename(tmp_path / "recipe.yaml")
    before = own.read_text()
    with raises_code("output-in-the-way", "recipe.yaml", "--out"):
        run_recipe(own, tmp_path, module=stand_in)
    assert own.read_text() == before
    out = tmp_path / "out"
    (out / "fp16").mkdir(parents=True)
    (out / "fp16" / "notes.txt").write_text("mine")
    with raises_code("output-in-the-way", out / "fp16"):
        run_recipe(own, out, module=stand_in)
    assert [path.name for path in out.iterdir()] == ["fp16"]


@pytest.mark.parametrize(
    ("framework", "override", "code", "named"),
    [
        ("verl", "trainer.total_training_stepss=3", "configuration-refused", "mean trainer.total_training_steps?"),
        ("verl", "actor_rollout_ref.rollout.dtype=float32", "setting-contradicts", "rollout.dtype=float32"),
        ("verl", "fp16_patch.loss_scaling.init_scal=3", "unknown-setting", "mean fp16_patch.loss_scaling.init_scale?"),
        ("openrlhf", "eval.stepps=3", "configuration-refused", "mean eval.steps?"),
    ],
)
def test_what_the_framework_refuses_is_one_error_before_an_earlier_run_is_touched(
    tmp_path: Path, framework: str, override: str, code: str, named: str
) -> None:
    out = tmp_path / "run"
    (out / "fp16").mkdir(parents=True)
    for file in (".lock", "fp16/command.sh", "fp16/result.json"):
        (out / file).write_text("of an earlier run")
    with raises_code(code, named) as error:
        run_recipe(find("sanity-grpo"), out, framework=framework, scale="toy", overrides=[override], say=[].append)
    assert "bf16, fp16: " in str(error.value) or code != "configuration-refused", "one error for both arms"
    assert (out / "fp16" / "result.json").read_text() == "of an earlier run"
    assert not (out / "world").exists()


def test_two_runs_into_one_directory_are_refused_and_a_killed_one_keeps_nobody_out(
    write_recipe: Write, stand_in: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    script = "import sys; from pathlib import Path; from fp16_patch.lab.folder_lock import exclusive_lock\n"
    script += "with exclusive_lock(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with raises_code("folder-in-use", holder.pid):
            run_recipe(write_recipe(), out, module=stand_in)
        assert not (out / "fp16").exists()
    finally:
        holder.kill()
        holder.wait()
    results = run_recipe(write_recipe(), out, arms=["fp16"], module=stand_in, say=lambda _: None)
    assert [result.status for result in results] == ["completed"]
