# SPDX-License-Identifier: Apache-2.0
"""Find why a run failed in logs of Ray, Hydra and vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from fp16_patch.lab.launch.failure import reason

OUR_ERROR_FROM_A_WORKER = """\
fp16_patch: precision fp16, 2 settings changed
  actor_rollout_ref.rollout.dtype: bfloat16 -> float16
\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m Traceback (most recent call last):
\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m   File "a.py", line 1, in run
\x1b[36m(WorkerDict pid=8)\x1b[0m INFO unrelated
\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m fp16_patch.errors.Fp16PatchError: fp16_patch: rank 0 runs without x: refused
\x1b[36m(WorkerDict pid=8)\x1b[0m INFO unrelated
\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m   allowed: applied or native, in every process
\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m   next step: run `fp16-patch doctor`
Traceback (most recent call last):
  File "b.py", line 2, in main
ray.exceptions.RayTaskError(Something): ray::run()
  File "a.py", line 1, in run
Something: noise
"""

OUR_ERROR = "fp16_patch: rank 0 runs without x: refused\n  allowed: applied or native, in every process\n"

DRIVER_AND_SHUTDOWN_NOISE = """\
(TaskRunnerV1 pid=7) Traceback (most recent call last):
(TaskRunnerV1 pid=7)   File "early.py", line 1, in caught
(TaskRunnerV1 pid=7) KeyError: 'handled'
Traceback (most recent call last):
  File "main_ppo.py", line 3, in main
    run_ppo(config)
ray.exceptions.RayTaskError(ValueError): ray::TaskRunnerV1.run() (pid=7)
  File "trainer.py", line 9, in fit
    step()
ValueError: a tensor went wrong
Exception ignored in: <function Tracking.__del__ at 0x7f>
Traceback (most recent call last):
  File "tracking.py", line 1, in finish
OSError: closed
"""

ACTOR_DIED = f"""\
Traceback (most recent call last):
  File "main_ppo.py", line 3, in main
    run_ppo(config)
ray.exceptions.RayTaskError(ActorDiedError): ray::TaskRunnerV1.run() (pid=7)
  File "trainer.py", line 9, in fit
    ray.get(output)
ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
\tclass_name: WorkerDict
\tpid: 2061
\tip: 192.0.2.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR {"Some common causes " * 40}
"""

VLLM_WORKER_DIED = """\
(vLLMHttpServer pid=9) (EngineCore pid=11) ERROR 11-23 21:00:00 [core.py:700] Traceback (most recent call last):
(vLLMHttpServer pid=9) (EngineCore pid=11) ERROR 11-23 21:00:00 [core.py:700]   File "cpu.py", line 5, in load
(vLLMHttpServer pid=9) (EngineCore pid=11) ERROR 11-23 21:00:00 [core.py:700]     weight.copy_(loaded)
(vLLMHttpServer pid=9) (EngineCore pid=11) ERROR 11-23 21:00:00 [core.py:700] RuntimeError: no storage
(vLLMHttpServer pid=9) INFO waiting
"""


OUR_ERROR_FROM_OPENRLHF = """\
fp16_patch: precision fp16, 3 settings changed
  vLLM dtype: bfloat16 -> float16
\x1b[36m(PPOTrainer pid=8)\x1b[0m INFO 11-24 14:32:01 ppo_trainer.py:224] Sample: ['fp16_patch: 1+1=', 0.0]
\x1b[36m(RolloutRayActor pid=7)\x1b[0m (EngineCore pid=10) ERROR 11-24 14:32:02 [core.py:700] Traceback (most recent
Traceback (most recent call last):
  File "<frozen runpy>", line 88, in _run_code
  File "openrlhf/cli/train_ppo_ray.py", line 187, in train
    ray.get(ppo_trainer.fit.remote())
ray.exceptions.RayTaskError(Fp16PatchError): \x1b[36mray::PPOTrainer.fit()\x1b[39m (pid=8, ip=192.0.2.2, actor_id=1)
  File "openrlhf/trainer/ppo_trainer.py", line 541, in fit
fp16_patch.errors.Fp16PatchError: fp16_patch: rank 0 runs without x: refused
  allowed: applied or native, in every process
"""

OPENRLHF_USAGE = """\
usage: train_ppo_ray.py [-h] [--ref.num_nodes REF.NUM_NODES]
                        [--use_ms]
train_ppo_ray.py: error: unrecognized arguments: --ds.zero_stag=2
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "train.log"


def test_our_error_is_found_among_interleaved_lines_and_later_tracebacks(log: Path) -> None:
    log.write_text(OUR_ERROR_FROM_A_WORKER)
    assert reason(log) == OUR_ERROR + "  next step: run `fp16-patch doctor`"


def test_our_error_is_found_in_a_log_of_openrlhf(log: Path) -> None:
    log.write_text(OUR_ERROR_FROM_OPENRLHF)
    assert reason(log) == OUR_ERROR.rstrip()


def test_an_option_openrlhf_does_not_know_is_shown_without_its_usage(log: Path) -> None:
    log.write_text(OPENRLHF_USAGE)
    assert reason(log) == "train_ppo_ray.py: error: unrecognized arguments: --ds.zero_stag=2"


def test_several_problems_are_shown_together(log: Path) -> None:
    message = "fp16_patch: 2 problems, nothing was started:\n- a=1 is wrong\n  allowed: 2\n- b=1 is wrong"
    log.write_text(f"ray init kwargs\n\n{message}\n")
    assert reason(log) == message


def test_what_we_merely_report_is_no_error(log: Path) -> None:
    log.write_text("fp16_patch: precision fp16, 1 settings changed\n  a: b -> c\nKilled\n")
    assert reason(log).endswith("Killed")


def test_the_drivers_traceback_wins_over_handled_errors_and_shutdown_noise(log: Path) -> None:
    log.write_text(DRIVER_AND_SHUTDOWN_NOISE)
    lines = reason(log).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: a tensor went wrong"


def test_a_traceback_of_vllm_is_put_together_when_there_is_no_other(log: Path) -> None:
    log.write_text(VLLM_WORKER_DIED)
    assert reason(log) == (
        'Traceback (most recent call last):\n  File "cpu.py", line 5, in load\n    weight.copy_(loaded)\n'
        "RuntimeError: no storage"
    )


def test_the_reason_names_an_actor_that_died_and_how(log: Path) -> None:
    log.write_text(ACTOR_DIED)
    found = reason(log)
    assert "class_name: WorkerDict" in found
    assert "pid: 2061" in found
    assert "Worker exit type: SYSTEM_ERROR" in found
    assert max(map(len, found.splitlines())) <= 300


def test_a_long_traceback_keeps_both_ends(log: Path) -> None:
    frames = "".join(f'  File "f{i}.py", line {i}, in f\n' for i in range(100))
    log.write_text(f"Traceback (most recent call last):\n{frames}ValueError: deep\n")
    lines = reason(log).splitlines()
    assert len(lines) == 30
    assert lines[-1] == "ValueError: deep"
    assert "73 lines, see the log" in "\n".join(lines)


def test_without_any_traceback_the_last_lines_are_shown(log: Path) -> None:
    log.write_text("".join(f"line {i}\n" for i in range(50)))
    assert reason(log).splitlines() == [f"line {i}" for i in range(40, 50)]


def test_an_empty_or_missing_log_is_said_to_be_so(log: Path) -> None:
    assert reason(log) == "the log is empty"
    log.touch()
    assert reason(log) == "the log is empty"
