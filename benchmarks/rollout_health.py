# SPDX-License-Identifier: Apache-2.0
"""Measure the time of the rollout checks: alone, next to the work they watch, and as a share of a run's steps.

    PYTHONPATH=. python benchmarks/rollout_health.py                        # on this CPU, and on CUDA if there is one
    PYTHONPATH=. python benchmarks/rollout_health.py --run ARM_FOLDER ...   # the share of these runs' steps

Without ``--run`` these are timed:

* ``find_in_answers`` on the log-probs of one step, float32, ``--answers`` of 1 to ``--tokens`` tokens. It runs once per
  step and engine. Printed next to it: ``mismatch_metrics`` on the same tensors, and the shortest step of which it is at
  most 0.1 %.
* ``check_log_probs`` of OpenRLHF on the same answers, which come one by one.
* ``count_rows`` on the logits of one decoding step, ``[rows, vocabulary]``, as vLLM's worker calls it in a run that
  asks vLLM for no log-probs. Printed next to it: the lm_head product that makes these logits. The product is a small
  part of a decoding step, and decoding a part of a training step.

``--run`` adds up what a run of verl or OpenRLHF logs in its metrics.jsonl: the time of the check and of the step, and
the same for all steps but the first. Only ratios apply to other machines.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch

from fp16_patch import envs
from fp16_patch.engines.vllm.logits import count_rows
from fp16_patch.frameworks.openrlhf.rollout_health import check_log_probs
from fp16_patch.mismatch.metrics import mismatch_metrics
from fp16_patch.precision import Precision
from fp16_patch.rollout_health.non_finite import find_in_answers

BOUND = 0.001
"""The largest share of a step that the check may take."""
TIMES = {"timing_s/rollout_health": "timing_s/step", "timing/rollout_health": "timing/step_total"}
"""Metric of the check -> metric of the step: verl's, and OpenRLHF's, which has no metric of the whole step but adds up
its parts, the check among them."""
DTYPES = {"cpu": torch.bfloat16, "cuda": torch.float16}
"""dtype of the lm_head. A CPU's own FP16 products are several times slower than its BF16 ones."""


class Worker:
    """What ``count_rows`` attaches its state to."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", help="folders of arms with metrics.jsonl; times nothing here")
    parser.add_argument("--answers", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=8192, help="length of the longest answer")
    parser.add_argument("--rows", type=int, default=256, help="sequences in one decoding step")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, nargs="+", default=[1536], help="inputs of the lm_head")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.run is not None:
        return max([print_share(folder / "metrics.jsonl") for folder in arguments.run])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 CPU thread; median of {arguments.repeats}, ms\n")
    time_openrlhf(arguments.answers, arguments.tokens, arguments.repeats)
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        time_log_probs(device, arguments.answers, arguments.tokens, arguments.repeats)
        for hidden in arguments.hidden:
            time_logits(device, arguments.rows, arguments.vocabulary, hidden, arguments.repeats)
    return 0


def time_log_probs(device: str, answers: int, tokens: int, repeats: int) -> None:
    """Print the time of ``find_in_answers`` next to that of ``mismatch_metrics``."""
    lengths = torch.randint(1, tokens + 1, (answers,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    mu = -torch.rand(int(offsets[-1]), device=device)
    mask = torch.ones_like(mu, dtype=torch.bool)
    check, metrics = side_by_side(
        device, repeats, partial(find_in_answers, mu, mask, offsets), partial(mismatch_metrics, mu, mu + 1e-4, mask)
    )
    print(
        f"{device}: log-probs of {answers} answers, {len(mu)} tokens: find_in_answers {1e3 * check:.2f}, "
        f"mismatch_metrics {1e3 * metrics:.2f}, ratio {check / metrics:.3f}; both engines are {BOUND:.1%} of a step of "
        f"{2 * check / BOUND:.1f} s"
    )


def time_openrlhf(answers: int, tokens: int, repeats: int) -> None:
    """Print the time of OpenRLHF's check of the rollout."""
    os.environ[envs.PRECISION] = Precision().to_environment()
    samples = []
    for length in torch.randint(2, tokens + 1, (answers,)).tolist():
        mask, log_probs = torch.ones(1, length, dtype=torch.bool), -torch.rand(1, length)
        samples.append(SimpleNamespace(action_mask=mask, rollout_log_probs=log_probs))
    (check,) = side_by_side("cpu", repeats, partial(check_log_probs, None, samples, {}, 1))
    print(f"cpu: OpenRLHF's check_log_probs of {answers} answers: {1e3 * check:.2f}")


def time_logits(device: str, rows: int, vocabulary: int, hidden: int, repeats: int) -> None:
    """Print the time of ``count_rows`` next to that of the lm_head product."""
    dtype, worker = DTYPES[device], Worker()
    lm_head = torch.randn(vocabulary, hidden, device=device, dtype=dtype)
    states = torch.randn(rows, hidden, device=device, dtype=dtype)
    logits = states @ lm_head.T
    check, product = side_by_side(
        device, repeats, partial(count_rows, worker, logits), partial(torch.matmul, states, lm_head.T)
    )
    print(
        f"{device}: logits [{rows} x {vocabulary}] {dtype}, hidden {hidden}: count_rows {1e3 * check:.2f}, lm_head "
        f"{1e3 * product:.2f}, ratio {check / product:.3f}"
    )


def side_by_side(device: str, repeats: int, *calls: Callable[[], object]) -> list[float]:
    """Return the median seconds of each call, on a CPU those of its one thread. The calls alternate."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, taken in zip(calls, seconds, strict=True):
            start = clock()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first one warms up
                taken.append(clock() - start)
    return [median(taken) for taken in seconds]


def print_share(metrics: Path) -> int:
    """Print the check's share of a run's steps; return 1 if it is above the bound or was not logged."""
    rows = [json.loads(line)["data"] for line in metrics.read_text(encoding="utf-8").splitlines()]
    times = [(row[check], row[step]) for row in rows for check, step in TIMES.items() if check in row and step in row]
    if not times:
        print(f"{metrics}: no step has both times of {TIMES}")
        return 1
    print(f"{metrics}: {len(times)} steps")
    for name, part in (("all", times), ("all but the first", times[1:])):
        check, step = (sum(seconds) for seconds in zip(*part, strict=True)) if part else (0.0, 0.0)
        print(f"  {name}: check {check:.4f} s, steps {step:.1f} s, ratio {check / step if step else 0:.3%}")
    each = median(check for check, _ in times)
    print(f"  median of a step: {1e3 * each:.1f} ms, which is {BOUND:.1%} of a step of {each / BOUND:.1f} s")
    kept = sum(check for check, _ in times) <= BOUND * sum(step for _, step in times)
    print(f"  bound {BOUND:.1%}: {'kept' if kept else 'EXCEEDED'}")
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
