# SPDX-License-Identifier: Apache-2.0
"""Measure the time of the rollout checks: alone, next to the work they watch, and as a share of a run's steps.

    PYTHONPATH=. python benchmarks/rollout_health.py                   # on this CPU, and on CUDA if there is a device
    PYTHONPATH=. python benchmarks/rollout_health.py --run ARM_FOLDER  # the share of a run: timing_s/rollout_health

Without ``--run`` two checks are timed:

* ``find_non_finite`` on the log-probs of one step, float32 ``[answers, tokens]``. It runs once per step and engine.
  Printed next to it: ``mismatch_metrics`` on the same tensors, and the shortest step of which it is at most 0.1 %.
* ``count_rows`` on the logits of one decoding step, ``[rows, vocabulary]``, as vLLM's worker calls it. Printed next to
  it: the lm_head product that makes these logits. The product is a small part of a decoding step, and decoding a part
  of a training step.

``--run`` adds up ``timing_s/rollout_health`` and ``timing_s/step`` of a run's metrics.jsonl. Only ratios apply to other
machines.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

from fp16_patch.engines.vllm.logits import count_rows
from fp16_patch.mismatch.metrics import mismatch_metrics
from fp16_patch.rollout_health.non_finite import find_non_finite

BOUND = 0.001
"""The largest share of a step that the check may take."""
CHECK, STEP = "timing_s/rollout_health", "timing_s/step"
DTYPES = {"cpu": torch.bfloat16, "cuda": torch.float16}
"""dtype of the lm_head. A CPU's own FP16 products are several times slower than its BF16 ones."""


class Worker:
    """What ``count_rows`` attaches its state to."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of one arm with metrics.jsonl; times nothing here")
    parser.add_argument("--answers", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=8192, help="length of the longest answer")
    parser.add_argument("--rows", type=int, default=256, help="sequences in one decoding step")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, nargs="+", default=[1536], help="inputs of the lm_head")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.run is not None:
        return print_share(arguments.run / "metrics.jsonl")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 CPU thread; median of {arguments.repeats}, ms\n")
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        time_log_probs(device, arguments.answers, arguments.tokens, arguments.repeats)
        for hidden in arguments.hidden:
            time_logits(device, arguments.rows, arguments.vocabulary, hidden, arguments.repeats)
    return 0


def time_log_probs(device: str, answers: int, tokens: int, repeats: int) -> None:
    """Print the time of ``find_non_finite`` next to that of ``mismatch_metrics``."""
    mu = -torch.rand(answers, tokens, device=device)
    mask = torch.arange(tokens, device=device) < torch.randint(1, tokens + 1, (answers, 1), device=device)
    check, metrics = side_by_side(
        device, repeats, partial(find_non_finite, mu, mask), partial(mismatch_metrics, mu, mu + 1e-4, mask)
    )
    print(
        f"{device}: log-probs [{answers} x {tokens}]: find_non_finite {1e3 * check:.2f}, mismatch_metrics "
        f"{1e3 * metrics:.2f}, ratio {check / metrics:.3f}; both engines are {BOUND:.1%} of a step of "
        f"{2 * check / BOUND:.1f} s"
    )


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
    steps = [row for row in rows if CHECK in row and STEP in row]
    if not steps:
        print(f"{metrics}: no step has both {CHECK} and {STEP}")
        return 1
    check, whole = (sum(row[name] for row in steps) for name in (CHECK, STEP))
    print(f"{len(steps)} steps: {CHECK} {check:.3f} s, {STEP} {whole:.1f} s, ratio {check / whole:.2%}")
    each = median(row[CHECK] for row in steps)
    print(f"median of a step: {1e3 * each:.1f} ms, which is {BOUND:.1%} of a step of {each / BOUND:.1f} s")
    print(f"bound {BOUND:.1%}: {'kept' if check <= BOUND * whole else 'EXCEEDED'}")
    return int(check > BOUND * whole)


if __name__ == "__main__":
    raise SystemExit(main())
