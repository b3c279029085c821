# SPDX-License-Identifier: Apache-2.0
"""A program the launcher starts in place of verl or OpenRLHF: same arguments, same files, every way to end badly.

Run as ``python -m stand_in_trainer key=value ...`` for verl, ``... run key=value ... -- python -m MODULE --key=value``
for OpenRLHF; ``stand_in.mode`` says how to behave.
"""

from __future__ import annotations

import _multiprocessing
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

VERL = ("VERL_FILE_LOGGER_PATH", "critic/score/mean", "timing_s/step")
OPENRLHF = ("FP16_PATCH_METRICS", "rollout/reward_mean", "timing/step_total")
KEPT: list[object] = []  # mapped until the process ends
SLEEPER = [sys.executable, "-c", "import time; time.sleep(120)"]


def main() -> None:
    openrlhf = sys.argv[1] == "run"
    options = dict(word.lstrip("+-").split("=", 1) for word in sys.argv[1:] if "=" in word)
    mode = options.get("stand_in.mode", "train")
    print("fp16_patch: precision x, 1 settings changed" if openrlhf else "ray init kwargs: {}")
    if mode == "refuse":
        print("\nfp16_patch: actor.fsdp_config.model_dtype='fp16' is refused\n  next step: remove it", file=sys.stderr)
        raise SystemExit(2)
    print("(PPOTrainer pid=7) Episode [1/1]:   0%" if openrlhf else "(TaskRunnerV1 pid=7) all initialize finished")
    precision = options["ds.param_dtype" if openrlhf else "precision@_global_"]
    if openrlhf:
        train(int(options["data.max_samples"]) // int(options["rollout.batch_size"]), precision, OPENRLHF)
    else:
        train(int(options["trainer.total_training_steps"]), precision, VERL)
    Path(options["fp16_patch.report_path"].strip("'")).write_text(json.dumps({"precision": precision}))
    if mode == "crash":
        raise ValueError("a tensor went wrong")
    if mode == "die":
        leave_shared_memory(Path(options["stand_in.traces"]))
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "meet":
        meet(Path(options["stand_in.traces"]), precision)
    if mode == "wait":
        (Path(options["stand_in.traces"]) / f"waits-{os.getpid()}").touch()
        time.sleep(120)
    if mode == "hang":
        leave_traces(Path(options["stand_in.traces"]))
        time.sleep(120)


def train(steps: int, precision: str, names: tuple[str, str, str]) -> None:
    variable, reward, seconds = names
    size = 1e-4 if precision == "bf16" else 1e-5
    with Path(os.environ[variable]).open("w") as file:
        for step in range(1, steps + 1):
            row = {
                reward: 0.5 + step / 100,
                "mismatch/prob_diff_mean": size,
                "mismatch/k3_kl": size**2,
                "mismatch/pi_minus_mu_max": 10 * size,
                "mismatch/pi_minus_mu_min": -10 * size,
                "actor/loss_scale": None if precision == "bf16" else 65536.0,
                seconds: 0.01,
            }
            file.write(json.dumps({"step": step, "data": row}) + "\n")
            file.flush()


def meet(folder: Path, precision: str) -> None:
    """Wait until the other arm is here too; BF16 crashes then."""
    (folder / f"met-{precision}.json").write_text(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")))
    deadline = time.monotonic() + 20
    while len(list(folder.glob("met-*"))) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError("nobody came")
        time.sleep(0.05)
    if precision == "bf16":
        raise ValueError("met, and crashed")


def leave_traces(folder: Path) -> None:
    """A child in a group of its own as Ray's workers are, one in another session, and shared memory."""
    own_group = subprocess.Popen(SLEEPER, process_group=0) if sys.version_info >= (3, 11) else subprocess.Popen(SLEEPER)
    own_session = subprocess.Popen(SLEEPER, start_new_session=True)
    leave_shared_memory(folder, own_group.pid, own_session.pid)
    time.sleep(120)


def leave_shared_memory(folder: Path, *pids: int) -> None:
    """A block and a semaphore, as after multiprocessing's resource tracker was killed, which would clean up."""
    block = Path(f"/dev/shm/fp16_patch_test_{os.getpid()}")
    block.write_bytes(bytes(4096))
    semaphore = _multiprocessing.SemLock(1, 1, 1, f"/{block.name}", False)
    with block.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4096)
    KEPT.extend([mapped, semaphore])
    traces = {
        "pids": [os.getpid(), *pids],
        "shared_memory": [str(block), str(block.with_name(f"sem.{block.name}"))],
        "ray": os.environ["RAY_TMPDIR"],
    }
    (folder / "unfinished.json").write_text(json.dumps(traces))
    (folder / "unfinished.json").rename(folder / "traces.json")


if __name__ == "__main__":
    main()
